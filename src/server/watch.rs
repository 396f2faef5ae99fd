//! Files that may change while the broker runs: looked at every second, read again when they have changed. What cannot be used
//! changes nothing, and is tried again.
//!
//! Looking and reading may wait for ever on a mount that hangs, so both are done aside, for each set of files on its own. Here are
//! only the decisions, which wait for nothing: when to look, when to give up, and what to do with what was read.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::aside;
use crate::{files::Stamp, metrics::Metrics};

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one look may take, with reading and parsing: a local file takes milliseconds, a slow mount some hundred.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How often files that cannot be used are read again although nothing about them has changed: a disk's error may have passed.
const RETRY: Duration = Duration::from_secs(10);
/// A look that hangs keeps its thread. The path may lead elsewhere by now, so there is another look, but ever later, and there are
/// never more than so many for one set of files.
pub(super) const HANGING_MAX: usize = 8;
const HANGING_PAUSE_MIN: Duration = Duration::from_millis(500);
const HANGING_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Puts into force what was read, and tells what that is. Must not wait for anything.
pub(super) type Change = Box<dyn FnOnce() -> String + Send>;
type Read = Arc<dyn Fn() -> Result<Change, String> + Send + Sync>;

/// Files that are read together, as they were when that was made: before they were read, so that no change is missed.
pub(super) struct Files {
    /// Names them to people and in the metric.
    what: &'static str,
    paths: Arc<[PathBuf]>,
    seen: Vec<Stamp>,
}

impl Files {
    /// Looks at them.
    pub(super) fn new(what: &'static str, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Arc<[_]> = paths.into_iter().collect();
        Self { what, seen: stamps(&paths), paths }
    }

    /// `read` reads them again, aside.
    pub(super) fn watched(self, read: impl Fn() -> Result<Change, String> + Send + Sync + 'static) -> Watched {
        Watched { files: self, read: Arc::new(read) }
    }
}

/// Files, and what reads them again when they change.
pub(super) struct Watched {
    files: Files,
    read: Read,
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    paths.iter().map(|path| Stamp::of(path)).collect()
}

/// Asks for everything to be read again.
#[derive(Clone, Debug)]
pub(super) struct Rereader(mpsc::Sender<oneshot::Sender<()>>);

impl Rereader {
    /// And where it is asked for.
    pub(super) fn new() -> (Self, Asked) {
        let (ask, asked) = mpsc::channel(1); // nobody asks twice at once
        (Self(ask), Asked(asked))
    }

    /// Returns when what the files say is in force, or was refused.
    pub(super) async fn reread(&self) {
        let (done, is_done) = oneshot::channel();
        // Without a watcher the process is about to end.
        if self.0.send(done).await.is_ok() {
            let _ = is_done.await.is_ok();
        }
    }
}

/// Where a [`Rereader`]'s questions arrive.
#[derive(Debug)]
pub(super) struct Asked(mpsc::Receiver<oneshot::Sender<()>>);

/// Looks at everything until `stop`, and reads everything again when it is `asked` to; `tick` is called each time behind it.
pub(super) async fn watch(
    all: Vec<Watched>,
    mut tick: impl FnMut(),
    Asked(mut asked): Asked,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    // At most one for each thread that looks.
    let (report, mut reports) = mpsc::unbounded_channel();
    let set = |(place, watched)| Set::new(place, watched, report.clone(), Arc::clone(&metrics));
    let mut sets: Vec<_> = all.into_iter().enumerate().map(set).collect();
    let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(done) = asked.recv() => {
                waiting.push(done);
                sets.iter_mut().for_each(|set| set.reread(Instant::now()));
            }
            Some(Report { place, look, found }) = reports.recv() => sets[place].take(look, found, Instant::now()),
            _ = ticks.tick() => sets.iter_mut().for_each(|set| set.tick(Instant::now())),
        }
        tick();
        if !sets.iter().any(Set::is_rereading) {
            for done in waiting.drain(..) {
                let _ = done.send(()).is_ok(); // who has asked may be gone
            }
        }
    }
}

/// What a look has found.
enum Found {
    Unchanged,
    Changed(Vec<Stamp>, Result<Change, String>),
}

struct Report {
    place: usize,
    look: u64,
    found: Found,
}

/// A look that has not reported yet.
struct Look {
    number: u64,
    begun: Instant,
    /// Reads, whether anything has changed or not, because it was asked for.
    is_asked_for: bool,
}

/// Files that are read together, and how that goes.
struct Set {
    place: usize,
    watched: Watched,
    report: mpsc::UnboundedSender<Report>,
    metrics: Arc<Metrics>,
    look: Option<Look>,
    /// A number for each look: what one says that was given up is not listened to.
    looks: u64,
    /// Held by each thread that looks, also by those that were given up.
    threads: Arc<()>,
    /// To be read as soon as the present look has reported.
    is_asked_for: bool,
    /// Why the files cannot be used, as it was told.
    problem: Option<String>,
    /// When they are read again although nothing has changed, if there is a problem.
    retry_at: Instant,
    hanging_pause: Duration,
}

impl Set {
    fn new(place: usize, watched: Watched, report: mpsc::UnboundedSender<Report>, metrics: Arc<Metrics>) -> Self {
        Self {
            place,
            watched,
            report,
            metrics,
            look: None,
            looks: 0,
            threads: Arc::default(),
            is_asked_for: false,
            problem: None,
            retry_at: Instant::now(),
            hanging_pause: HANGING_PAUSE_MIN,
        }
    }

    fn reread(&mut self, now: Instant) {
        self.is_asked_for = true;
        self.begin_if_asked(now);
    }

    fn is_rereading(&self) -> bool {
        self.is_asked_for || self.look.as_ref().is_some_and(|look| look.is_asked_for)
    }

    fn tick(&mut self, now: Instant) {
        if let Some(look) = self.look.take_if(|look| now.duration_since(look.begun) >= READ_TIMEOUT) {
            self.hanging_pause = (self.hanging_pause * 2).min(HANGING_PAUSE_MAX);
            self.retry_at = now + self.hanging_pause;
            self.refuse(aside::too_slow(READ_TIMEOUT), look.is_asked_for);
            self.begin_if_asked(now);
        }
        let is_due = match self.hanging() {
            0 => true,
            hanging => hanging < HANGING_MAX && now >= self.retry_at,
        };
        if self.look.is_none() && is_due {
            self.begin(false, now);
        }
    }

    /// Threads of looks that were given up. That of the present one may be gone before it is heard of.
    fn hanging(&self) -> usize {
        (Arc::strong_count(&self.threads) - 1).saturating_sub(self.look.is_some().into())
    }

    fn begin_if_asked(&mut self, now: Instant) {
        if self.look.is_none() && std::mem::take(&mut self.is_asked_for) && self.hanging() < HANGING_MAX {
            self.begin(true, now);
        }
    }

    fn begin(&mut self, is_asked_for: bool, now: Instant) {
        self.looks += 1;
        let (place, look, report) = (self.place, self.looks, self.report.clone());
        let Watched { files: Files { paths, seen, .. }, read } = &self.watched;
        let (paths, read, thread) = (Arc::clone(paths), Arc::clone(read), Arc::clone(&self.threads));
        let must_read = is_asked_for || self.problem.is_some() && now >= self.retry_at;
        let seen = (!must_read).then(|| seen.clone());
        let looking = aside::spawn(move || {
            // Before they are read: what changes meanwhile is seen next time.
            let stamps = stamps(&paths);
            let found =
                if seen.is_some_and(|seen| seen == stamps) { Found::Unchanged } else { Found::Changed(stamps, read()) };
            drop(thread);
            let _ = report.send(Report { place, look, found }).is_ok(); // nobody listens at the end
        });
        match looking {
            Ok(_) => self.look = Some(Look { number: look, begun: now, is_asked_for }),
            Err(error) => self.refuse(format!("no thread to read them: {error}"), is_asked_for),
        }
    }

    fn take(&mut self, number: u64, found: Found, now: Instant) {
        // What was given up may be older than what has been read since.
        let Some(look) = self.look.take_if(|look| look.number == number) else { return };
        self.hanging_pause = HANGING_PAUSE_MIN;
        if let Found::Changed(stamps, outcome) = found {
            let is_news = stamps != self.watched.files.seen || look.is_asked_for;
            self.watched.files.seen = stamps;
            match outcome {
                Ok(change) => self.put_into_force(change),
                Err(problem) => {
                    self.retry_at = now + RETRY;
                    self.refuse(problem, is_news);
                }
            }
        }
        self.begin_if_asked(now);
    }

    fn put_into_force(&mut self, change: Change) {
        let news = change();
        let what = self.watched.files.what;
        self.problem = None;
        // Before it is logged: a reader of the line may look at the count.
        self.metrics.reloads.with_label_values(&[what, "done"]).inc();
        tracing::info!(news, "reloaded the {what}");
    }

    /// Tells a problem once, unless it is news all the same.
    fn refuse(&mut self, problem: String, is_news: bool) {
        if is_news || self.problem.as_ref() != Some(&problem) {
            let what = self.watched.files.what;
            self.metrics.reloads.with_label_values(&[what, "refused"]).inc();
            tracing::error!(problem, "the {what} stay as they were: correct the file");
        }
        self.problem = Some(problem);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{
            Condvar, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    /// A file whose reads hang as long as the test wants, and what was made of it.
    struct Watching {
        directory: tempfile::TempDir,
        hangs: Arc<(Mutex<bool>, Condvar)>,
        reads: Arc<AtomicUsize>,
        in_force: Arc<Mutex<String>>,
        metrics: Arc<Metrics>,
        set: Set,
        now: Instant,
        reports: mpsc::UnboundedReceiver<Report>,
    }

    impl Watching {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            fs::write(&path, "first").unwrap();
            let (hangs, reads, in_force) =
                (Arc::<(Mutex<bool>, Condvar)>::default(), Arc::<AtomicUsize>::default(), Arc::<Mutex<_>>::default());
            let (hanging, counted, forced) = (Arc::clone(&hangs), Arc::clone(&reads), Arc::clone(&in_force));
            let watched = Files::new("credentials", [path.clone()]).watched(move || {
                let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
                counted.fetch_add(1, Ordering::SeqCst);
                drop(hanging.1.wait_while(hanging.0.lock().unwrap(), |hangs| *hangs).unwrap());
                if text == "wrong" {
                    return Err(text);
                }
                let forced = Arc::clone(&forced);
                let change: Change = Box::new(move || {
                    *forced.lock().unwrap() = text;
                    String::new()
                });
                Ok(change)
            });
            let (report, reports) = mpsc::unbounded_channel();
            let metrics = Arc::<Metrics>::default();
            let set = Set::new(0, watched, report, Arc::clone(&metrics));
            Self { directory, hangs, reads, in_force, metrics, set, now: Instant::now(), reports }
        }

        fn write(&self, text: &str) {
            fs::write(self.directory.path().join("new"), text).unwrap();
            fs::rename(self.directory.path().join("new"), self.directory.path().join("file")).unwrap();
        }

        fn hang(&self, hangs: bool) {
            *self.hangs.0.lock().unwrap() = hangs;
            self.hangs.1.notify_all();
        }

        async fn report(&mut self) {
            let Report { look, found, .. } = self.reports.recv().await.unwrap();
            self.set.take(look, found, self.now);
        }

        async fn until_it_reads(&self, count: usize) {
            while self.reads.load(Ordering::SeqCst) < count {
                tokio::task::yield_now().await;
            }
        }

        fn in_force(&self) -> String {
            self.in_force.lock().unwrap().clone()
        }

        fn counts(&self) -> [u64; 2] {
            ["done", "refused"].map(|result| self.metrics.reloads.with_label_values(&["credentials", result]).get())
        }
    }

    #[tokio::test]
    async fn what_has_not_changed_is_not_read_unless_it_is_asked_for() {
        let mut watching = Watching::new();
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!((watching.reads.load(Ordering::SeqCst), watching.counts()), (0, [0, 0]));
        watching.set.reread(watching.now);
        assert!(watching.set.is_rereading());
        watching.report().await;
        assert!(!watching.set.is_rereading());
        assert_eq!((watching.in_force(), watching.counts()), ("first".to_owned(), [1, 0]));
    }

    #[tokio::test]
    async fn a_read_that_hangs_is_told_once_and_what_it_read_is_older_than_what_was_read_since() {
        let mut watching = Watching::new();
        watching.write("leaked");
        watching.hang(true);
        watching.set.tick(watching.now);
        watching.until_it_reads(1).await;

        watching.now += READ_TIMEOUT / 2;
        watching.set.tick(watching.now);
        assert_eq!(watching.counts(), [0, 0], "in time yet");
        watching.now += READ_TIMEOUT / 2;
        watching.set.tick(watching.now);
        assert_eq!(watching.counts(), [0, 1]);

        // The path leads elsewhere; the first read has what was there before, and hangs on.
        watching.write("revoked");
        watching.now += HANGING_PAUSE_MAX;
        watching.set.tick(watching.now);
        watching.until_it_reads(2).await;
        watching.hang(false);
        watching.report().await;
        watching.report().await;
        assert_eq!((watching.in_force(), watching.counts()), ("revoked".to_owned(), [1, 1]));
    }

    #[tokio::test]
    async fn a_mount_that_hangs_for_long_takes_so_many_threads_and_no_more() {
        let mut watching = Watching::new();
        watching.write("second");
        watching.hang(true);
        for _ in 0..5 * HANGING_MAX {
            watching.set.tick(watching.now);
            watching.set.reread(watching.now);
            watching.now += HANGING_PAUSE_MAX;
        }
        watching.until_it_reads(HANGING_MAX).await;
        assert_eq!(Arc::strong_count(&watching.set.threads) - 1, HANGING_MAX);

        watching.hang(false);
        for _ in 0..HANGING_MAX {
            watching.report().await;
        }
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!(watching.in_force(), "second");
        assert!(!watching.set.is_rereading(), "nobody is left waiting");
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_told_once_and_read_again() {
        let mut watching = Watching::new();
        watching.write("wrong");
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!(watching.counts(), [0, 1]);
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!(watching.reads.load(Ordering::SeqCst), 1, "not each time");

        watching.now += RETRY;
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!((watching.reads.load(Ordering::SeqCst), watching.counts()), (2, [0, 1]));

        watching.write("right");
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!((watching.in_force(), watching.counts()), ("right".to_owned(), [1, 1]));
    }
}
