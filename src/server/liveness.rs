//! Whether the serving threads run: a trivial task on each runtime has to run in time. Never touches the store or the disk, so that a
//! full disk does not get the process killed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::runtimes::Homes;

/// How long a task may wait for its thread. On a busy machine floods delay one by some hundred milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Liveness(Vec<Pulse>);

impl Liveness {
    /// Watches the runtime that this is called on, and those that callbacks' connections live on.
    pub(super) fn new(ingest: &Homes) -> Self {
        let main = Pulse::new("everything but callbacks".to_owned(), Handle::current());
        let homes = ingest.all().iter().enumerate();
        let pulses = homes
            .map(|(number, home)| Pulse::new(format!("callbacks, number {number}"), home.clone()));
        Self([main].into_iter().chain(pulses).collect())
    }

    /// The threads that do not run, if any.
    pub(super) async fn problem(&self) -> Option<String> {
        self.0.iter().for_each(Pulse::ask);
        let deadline = Instant::now() + PATIENCE;
        for pulse in &self.0 {
            if timeout_at(deadline, pulse.answer()).await.is_err() {
                let (name, patience) = (&pulse.name, PATIENCE.as_secs());
                return Some(format!(
                    "the threads for {name} have done nothing for {patience} s"
                ));
            }
        }
        None
    }
}

/// The trivial task of one runtime. There is never more than one that has not run.
#[derive(Debug)]
struct Pulse {
    name: String,
    home: Handle,
    beat: Arc<Beat>,
}

#[derive(Debug, Default)]
struct Beat {
    is_asked: AtomicBool,
    answered: Notify,
}

impl Pulse {
    fn new(name: String, home: Handle) -> Self {
        Self {
            name,
            home,
            beat: Arc::default(),
        }
    }

    fn ask(&self) {
        if self.beat.is_asked.swap(true, Ordering::AcqRel) {
            return; // by another caller, which waits as well
        }
        let beat = Arc::clone(&self.beat);
        self.home.spawn(async move {
            beat.is_asked.store(false, Ordering::Release);
            beat.answered.notify_waiters();
        });
    }

    async fn answer(&self) {
        loop {
            // First, so that no answer is missed between the check and the wait.
            let answered = self.beat.answered.notified();
            if !self.beat.is_asked.load(Ordering::Acquire) {
                return;
            }
            answered.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::server::runtimes::Runtimes;

    #[test]
    fn a_blocked_thread_for_callbacks_is_reported_until_it_goes_on() {
        let runtimes = Runtimes::start().unwrap();
        let homes = runtimes.ingest();
        let (release, held) = mpsc::channel::<()>();
        runtimes.block_on(async {
            let liveness = Liveness::new(&homes);
            assert_eq!(liveness.problem().await, None);
            let (holding, is_held) = tokio::sync::oneshot::channel();
            homes.all()[0].spawn(async move {
                holding.send(()).unwrap();
                let _ = held.recv().is_ok(); // blocks the thread
            });
            is_held.await.unwrap();
            let told = liveness.problem().await.unwrap();
            assert_eq!(
                told,
                "the threads for callbacks, number 0 have done nothing for 2 s"
            );
            release.send(()).unwrap();
            liveness.0[1].answer().await;
            assert_eq!(liveness.problem().await, None);
        });
        runtimes.shutdown_timeout(Duration::from_secs(10));
    }
}
