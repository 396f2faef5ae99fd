//! The runtimes of a broker: one for everything, and one with a single thread for each core, on which callbacks' connections live.
//!
//! A commit answers dozens of callbacks at once, from the writer's thread. On a runtime of several threads each of these
//! connections is taken by whichever thread comes first, and the threads wake each other to share them. A connection that stays
//! with one thread is woken without any of that: a tenth more callbacks a second on two cores.

use std::{
    io,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads for reads of the store. More would only wait for the same disk; what exceeds them queues.
const BLOCKING_THREADS: usize = 16;

/// How often a start checks whether its threads serve. They start faster than this.
const LOOK_PERIOD: Duration = Duration::from_micros(100);

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Runtimes {
    main: Runtime,
    ingest: Vec<Runtime>,
}

impl Runtimes {
    /// Starts their threads.
    pub(crate) fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        // tokio starts the worker threads first, and blocking threads when they are needed. By itself it gives all of them one name.
        let started = AtomicUsize::new(0);
        let name = move || {
            if started.fetch_add(1, Ordering::Relaxed) < cores {
                "serve"
            } else {
                "reads"
            }
            .to_owned()
        };

        let mut main = Builder::new_multi_thread();
        let main = main
            .enable_all()
            .worker_threads(cores)
            .max_blocking_threads(BLOCKING_THREADS);
        let main = main.thread_name_fn(name).build()?;
        all_serve(&main, cores);

        // Not `new_current_thread`: that makes a system call for each task that is woken from outside.
        let one = || {
            Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name("ingest")
                .enable_all()
                .build()
        };
        Ok(Self {
            main,
            ingest: (0..cores).map(|_| one()).collect::<io::Result<_>>()?,
        })
    }

    /// Runs a future on the runtime for everything.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.main.block_on(future)
    }

    /// The runtimes for callbacks' connections.
    pub(crate) fn ingest(&self) -> Homes {
        Homes::new(self.ingest.iter().map(Runtime::handle).cloned())
    }

    /// Ends without waiting for what still runs: the process is about to end.
    pub(crate) fn shutdown_background(self) {
        self.all().for_each(Runtime::shutdown_background);
    }

    /// Waits for every thread to end, for so long at most.
    pub(crate) fn shutdown_timeout(self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.all().for_each(|runtime| {
            runtime.shutdown_timeout(deadline.saturating_duration_since(Instant::now()));
        });
    }

    fn all(self) -> impl Iterator<Item = Runtime> {
        // Those without blocking work first, so that they end in time even if the other one is held up.
        self.ingest.into_iter().chain([self.main])
    }
}

/// Waits until each worker thread runs: until then a thread that was started for a read may take its place. A worker that runs and has
/// nothing to do parks. (Tasks that wait for each other would not do: one thread may take them all, and wait for ever.)
fn all_serve(runtime: &Runtime, threads: usize) {
    let metrics = runtime.metrics();
    while (0..threads).any(|thread| metrics.worker_park_count(thread) == 0) {
        thread::sleep(LOOK_PERIOD);
    }
}

/// Runtimes that take a listener's connections in turn.
#[derive(Clone, Debug)]
pub(crate) struct Homes {
    runtimes: Arc<[Handle]>,
    taken: Arc<AtomicUsize>,
}

impl Homes {
    fn new(runtimes: impl IntoIterator<Item = Handle>) -> Self {
        Self {
            runtimes: runtimes.into_iter().collect(),
            taken: Arc::default(),
        }
    }

    /// The runtime that this is called on, for all.
    pub(super) fn here() -> Self {
        Self::new([Handle::current()])
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Handle] {
        &self.runtimes
    }

    /// The runtime for the next connection.
    pub(super) fn next(&self) -> &Handle {
        &self.runtimes[self.taken.fetch_add(1, Ordering::Relaxed) % self.runtimes.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_taken_in_turn_by_threads_of_their_own_one_for_each_core() {
        let runtimes = Runtimes::start().unwrap();
        let cores = thread::available_parallelism().unwrap().get();
        let homes = runtimes.ingest();
        let who = || thread::current().id();
        let takers =
            || runtimes.block_on(async { homes.next().spawn(async move { who() }).await.unwrap() });
        let taken: Vec<_> = (0..3 * cores).map(|_| takers()).collect();
        let first: std::collections::HashSet<_> = taken[..cores].iter().collect();
        assert_eq!(first.len(), cores, "each takes one");
        assert_eq!(taken[..cores], taken[cores..2 * cores], "and then the next");
        assert_eq!(taken[..cores], taken[2 * cores..]);
        let main = runtimes.block_on(async { tokio::spawn(async move { who() }).await.unwrap() });
        assert!(!taken.contains(&main));
        let name = || thread::current().name().unwrap().to_owned();
        let serves =
            runtimes.block_on(async { tokio::spawn(async move { name() }).await.unwrap() });
        let reads = runtimes.block_on(async { tokio::task::spawn_blocking(name).await.unwrap() });
        assert_eq!(
            (&*serves, &*reads),
            ("serve", "reads"),
            "who looks at threads can tell them apart"
        );
        runtimes.shutdown_timeout(Duration::from_secs(10));
    }
}
