//! Files that may change while the broker runs: looked at every second, read again when they have changed. What cannot be used
//! changes nothing, and is tried again.
//!
//! Looking and reading may wait for ever on a mount that hangs, so both are done aside, for each set of files on its own. Here are
//! only the decisions, which wait for nothing: when to look, when to give up, and what to do with what was read.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    aside,
    lock::lock,
    refusal::{Refusal, Refusals, Source, What},
};
use crate::{
    audit::{self, Audit, Entry},
    files::Stamp,
};

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// How long one look may take, with reading and parsing: a local file takes milliseconds, a slow mount some hundred.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How often files that cannot be used are read again although nothing about them has changed: a disk's error may have passed.
const RETRY: Duration = Duration::from_secs(10);
/// How long files that do not belong together may stay so before that is a refusal: a certificate and its key are replaced one after
/// the other, by hand or by a slow mount.
const SETTLE: Duration = Duration::from_secs(10);
/// A look that hangs keeps its thread. The path may lead elsewhere by now, so there is always another look, but ever later; and at
/// once, if somebody asks for it, only while fewer than so many hang.
const HANGING_MAX: usize = 8;
const HANGING_PAUSE_MIN: Duration = Duration::from_millis(500);
const HANGING_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Of the time that a mount has hung, the next look waits this part if that is longer: so a day costs 160 threads, of about
/// 30 KiB each, and a month 270.
const HANGING_PART: u32 = 32;

/// Puts into force what was read, and tells what that is. Must not wait for anything.
pub(super) type Change = Box<dyn FnOnce() -> News + Send>;
type Read = Arc<dyn Fn() -> Result<Change, Vec<Refusal>> + Send + Sync>;

/// What is in force now, for people.
#[derive(Debug, Default)]
pub(super) struct News {
    pub summary: String,
    /// What differs from before, as far as that is known.
    pub changes: Vec<String>,
}

/// Where it is counted and recorded what becomes of files.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub refusals: Arc<Refusals>,
    pub audit: Arc<Audit>,
}

/// Files that are read together, as they were when that was made: before they were read, so that no change is missed.
pub(super) struct Files {
    /// All that they hold.
    whats: Vec<What>,
    /// Each with what it holds.
    paths: Arc<[(What, PathBuf)]>,
    seen: Vec<Stamp>,
}

impl Files {
    /// Looks at them.
    pub(super) fn new(paths: impl IntoIterator<Item = (What, PathBuf)>) -> Self {
        let paths: Arc<[_]> = paths.into_iter().collect();
        let mut whats: Vec<_> = paths.iter().map(|(what, _)| *what).collect();
        whats.dedup();
        Self {
            whats,
            seen: stamps(&paths),
            paths,
        }
    }

    /// What is not in files that can be looked at, and is read again only when somebody asks for it.
    pub(super) fn on_demand(what: What) -> Self {
        Self {
            whats: vec![what],
            paths: Arc::default(),
            seen: Vec::new(),
        }
    }

    /// `read` reads them again, aside.
    pub(super) fn watched(
        self,
        read: impl Fn() -> Result<Change, Vec<Refusal>> + Send + Sync + 'static,
    ) -> Watched {
        Watched {
            files: self,
            read: Arc::new(read),
        }
    }
}

/// Files, and what reads them again when they change.
pub(super) struct Watched {
    files: Files,
    read: Read,
}

fn stamps(paths: &[(What, PathBuf)]) -> Vec<Stamp> {
    paths.iter().map(|(_, path)| Stamp::of(path)).collect()
}

/// Asks for everything to be read again.
#[derive(Debug)]
pub(super) struct Rereader {
    ask: mpsc::Sender<Question>,
    /// When a read of [`Rereader::read`] was given up last.
    hung_at: Mutex<Option<Instant>>,
}

/// Answered with what could not be used.
type Question = oneshot::Sender<Vec<What>>;

impl Rereader {
    /// And where it is asked for.
    pub(super) fn new() -> (Self, Asked) {
        let (ask, asked) = mpsc::channel(1); // nobody asks twice at once
        (
            Self {
                ask,
                hung_at: Mutex::default(),
            },
            Asked(asked),
        )
    }

    /// Returns when what the files say is in force, or was refused: then with what they are.
    pub(super) async fn reread(&self) -> Vec<What> {
        let (done, is_done) = oneshot::channel();
        // Without a watcher the process is about to end.
        match self.ask.send(done).await {
            Ok(()) => is_done.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Reads what is not watched, aside; the outer error is that it takes too long. A read that hangs keeps its thread, so there are
    /// few at once, and then one in a while.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: &Arc<impl Fn() -> T + Send + Sync + 'static>,
    ) -> Result<T, String> {
        let hanging = Arc::strong_count(read) - 1; // each has one
        let hung_at = *lock(&self.hung_at);
        if let Some(pause) = pause_beside(hanging, hung_at, Instant::now()) {
            return Err(already_hanging(hanging, pause));
        }

        let read = Arc::clone(read);
        let read = aside::within(READ_TIMEOUT, move || read()).await;
        if read.is_err() {
            *lock(&self.hung_at) = Some(Instant::now());
        }
        read
    }
}

/// Where a [`Rereader`]'s questions arrive.
#[derive(Debug)]
pub(super) struct Asked(mpsc::Receiver<Question>);

/// Looks at everything until `stop`, and reads everything again when it is `asked` to; `tick` is called each time behind it.
pub(super) async fn watch(
    all: Vec<Watched>,
    mut tick: impl FnMut(),
    Asked(mut asked): Asked,
    told: Told,
    stop: CancellationToken,
) {
    // At most one for each thread that looks.
    let (report, mut reports) = mpsc::unbounded_channel();
    let set = |(place, watched)| Set::new(place, watched, report.clone(), told.clone());
    let mut sets: Vec<_> = all.into_iter().enumerate().map(set).collect();
    let mut waiting: Vec<Question> = Vec::new();
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
                let refused = sets.iter().flat_map(Set::refused);
                let _ = done.send(refused.collect()).is_ok(); // who has asked may be gone
            }
        }
    }
}

/// How long nothing may be read because so many reads hang, of which the last was given up then.
fn pause_beside(hanging: usize, hung_at: Option<Instant>, now: Instant) -> Option<Duration> {
    let pause = HANGING_PAUSE_MAX.saturating_sub(now.duration_since(hung_at?));
    (hanging >= HANGING_MAX && !pause.is_zero()).then_some(pause)
}

/// Why nothing is read although it was asked for.
fn already_hanging(count: usize, pause: Duration) -> String {
    format!(
        "not read: {count} reads hang already, the next may begin in {} s",
        pause.as_secs() + 1
    )
}

/// What a look has found.
enum Found {
    Unchanged,
    Changed(Vec<Stamp>, Result<Change, Vec<Refusal>>),
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
    told: Told,
    look: Option<Look>,
    /// A number for each look: what one says that was given up is not listened to.
    looks: u64,
    /// Held by each thread that looks, also by those that were given up.
    threads: Arc<()>,
    /// To be read as soon as the present look has reported.
    is_asked_for: bool,
    trouble: Option<Trouble>,
    /// When they are read again although nothing has changed, if there is trouble.
    retry_at: Instant,
    hanging_pause: Duration,
    /// When the first of the looks began that have hung since one reported.
    hanging_since: Option<Instant>,
}

/// Why files cannot be used.
struct Trouble {
    refusals: Vec<Refusal>,
    since: Instant,
    /// Not while it may settle.
    is_told: bool,
}

impl Set {
    fn new(
        place: usize,
        watched: Watched,
        report: mpsc::UnboundedSender<Report>,
        told: Told,
    ) -> Self {
        Self {
            place,
            watched,
            report,
            told,
            look: None,
            looks: 0,
            threads: Arc::default(),
            is_asked_for: false,
            trouble: None,
            retry_at: Instant::now(),
            hanging_pause: HANGING_PAUSE_MIN,
            hanging_since: None,
        }
    }

    fn reread(&mut self, now: Instant) {
        self.is_asked_for = true;
        self.begin_if_asked(now);
    }

    fn refused(&self) -> impl Iterator<Item = What> {
        let told = self.trouble.iter().filter(|trouble| trouble.is_told);
        told.flat_map(|trouble| trouble.refusals.iter().map(|refusal| refusal.what))
    }

    fn is_rereading(&self) -> bool {
        self.is_asked_for || self.look.as_ref().is_some_and(|look| look.is_asked_for)
    }

    fn tick(&mut self, now: Instant) {
        if let Some(look) = self
            .look
            .take_if(|look| now.duration_since(look.begun) >= READ_TIMEOUT)
        {
            let since = *self.hanging_since.get_or_insert(look.begun);
            self.hanging_pause = (self.hanging_pause * 2).min(HANGING_PAUSE_MAX);
            self.retry_at = now
                + self
                    .hanging_pause
                    .max(now.duration_since(since) / HANGING_PART);
            self.refuse(
                self.all(&aside::too_slow(READ_TIMEOUT)),
                look.is_asked_for,
                now,
            );
            self.begin_if_asked(now);
        }
        let is_to_look = !self.watched.files.paths.is_empty() || self.trouble.is_some();
        if is_to_look && self.look.is_none() && (self.hanging() == 0 || now >= self.retry_at) {
            self.begin(false, now);
        }
    }

    /// The same of everything in the files: it is not known which of them it is.
    fn all(&self, why: &str) -> Vec<Refusal> {
        self.watched
            .files
            .whats
            .iter()
            .map(|&what| Refusal::new(what, why))
            .collect()
    }

    /// Threads of looks that were given up. That of the present one may be gone before it is heard of.
    fn hanging(&self) -> usize {
        (Arc::strong_count(&self.threads) - 1).saturating_sub(self.look.is_some().into())
    }

    fn begin_if_asked(&mut self, now: Instant) {
        if self.look.is_some() || !std::mem::take(&mut self.is_asked_for) {
            return;
        }
        let hanging = self.hanging();
        if hanging < HANGING_MAX || now >= self.retry_at {
            self.begin(true, now);
        } else {
            self.refuse(
                self.all(&already_hanging(hanging, self.retry_at.duration_since(now))),
                true,
                now,
            );
        }
    }

    fn begin(&mut self, is_asked_for: bool, now: Instant) {
        self.looks += 1;
        let (place, look, report) = (self.place, self.looks, self.report.clone());
        let Watched {
            files: Files { paths, seen, .. },
            read,
        } = &self.watched;
        let (paths, read, thread) = (
            Arc::clone(paths),
            Arc::clone(read),
            Arc::clone(&self.threads),
        );
        let must_read = is_asked_for || self.trouble.is_some() && now >= self.retry_at;
        let seen = (!must_read).then(|| seen.clone());
        let looking = aside::spawn(move || {
            // Before they are read: what changes meanwhile is seen next time.
            let stamps = stamps(&paths);
            let found = if seen.is_some_and(|seen| seen == stamps) {
                Found::Unchanged
            } else {
                Found::Changed(stamps, read())
            };
            drop(thread);
            let _ = report.send(Report { place, look, found }).is_ok(); // nobody listens at the end
        });
        match looking {
            Ok(_) => {
                self.look = Some(Look {
                    number: look,
                    begun: now,
                    is_asked_for,
                })
            }
            Err(error) => self.refuse(
                self.all(&format!("no thread to read them: {error}")),
                is_asked_for,
                now,
            ),
        }
    }

    fn take(&mut self, number: u64, found: Found, now: Instant) {
        // What was given up may be older than what has been read since.
        let Some(look) = self.look.take_if(|look| look.number == number) else {
            return;
        };
        let hung = self.hanging_since.take().is_some();
        self.hanging_pause = HANGING_PAUSE_MIN;
        if hung && self.trouble.is_some() {
            // It hangs no more. That nothing has changed is no reason to leave a refusal standing.
            self.retry_at = now;
        }
        if let Found::Changed(stamps, outcome) = found {
            let changed = self.changed(&stamps, look.is_asked_for);
            self.watched.files.seen = stamps;
            match outcome {
                Ok(change) => self.put_into_force(change, &changed, look.is_asked_for),
                Err(refusals) if self.may_settle(&refusals, &look, now) => {
                    self.wait_for_the_other(refusals, now)
                }
                Err(refusals) => {
                    self.retry_at = now + RETRY;
                    self.refuse(refusals, !changed.is_empty(), now);
                }
            }
        }
        self.begin_if_asked(now);
    }

    /// What is news: it has changed, or somebody has asked for it.
    fn changed(&self, stamps: &[Stamp], is_asked_for: bool) -> Vec<What> {
        let Files { whats, paths, seen } = &self.watched.files;
        let differs = |what: What| {
            let mut stamps = paths.iter().zip(seen.iter().zip(stamps));
            stamps.any(|((of, _), (old, new))| *of == what && old != new)
        };
        whats
            .iter()
            .copied()
            .filter(|&what| is_asked_for || differs(what))
            .collect()
    }

    fn may_settle(&self, refusals: &[Refusal], look: &Look, now: Instant) -> bool {
        let is_in_time = self
            .trouble
            .as_ref()
            .is_none_or(|it| !it.is_told && now.duration_since(it.since) < SETTLE);
        is_in_time && !look.is_asked_for && refusals.iter().all(|refusal| refusal.may_settle)
    }

    /// Says nothing to anybody who would be woken. The other file is seen when it changes.
    fn wait_for_the_other(&mut self, refusals: Vec<Refusal>, now: Instant) {
        let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
        for Refusal { what, why, .. } in &refusals {
            tracing::info!(
                problem = why,
                "the {} stay as they were until the other file is there, too",
                what.name()
            );
        }
        self.retry_at = since + SETTLE;
        self.trouble = Some(Trouble {
            refusals,
            since,
            is_told: false,
        });
    }

    fn put_into_force(&mut self, change: Change, changed: &[What], is_asked_for: bool) {
        let News {
            summary: news,
            changes,
        } = change();
        let was_refused: Vec<_> = self.refused().collect();
        self.trouble = None;
        self.told
            .refusals
            .set(Source::Files(self.place), Vec::new());
        for &what in &self.watched.files.whats {
            if changed.contains(&what) || was_refused.contains(&what) {
                let mut entry = self.entry(what);
                entry.note(
                    "by",
                    if is_asked_for {
                        "SIGHUP"
                    } else {
                        "a changed file"
                    },
                );
                entry.note("changes", changes.clone());
                entry.end_now(audit::OK);
                // Before it is logged: a reader of the line may look at the count.
                self.told.refusals.count(what, "done");
                tracing::info!(news, "reloaded the {}", what.name());
            }
        }
    }

    fn entry(&self, what: What) -> Entry {
        let mut entry = self.told.audit.entry(what.label());
        let paths = self
            .watched
            .files
            .paths
            .iter()
            .filter(|(of, _)| *of == what);
        entry.note(
            "files",
            paths
                .map(|(_, path)| path.display().to_string())
                .collect::<Vec<_>>(),
        );
        entry
    }

    /// Tells a problem once, unless it is news all the same.
    fn refuse(&mut self, refusals: Vec<Refusal>, is_news: bool, now: Instant) {
        let told = self.trouble.as_ref().filter(|trouble| trouble.is_told);
        let is_new = |refusal: &Refusal| {
            is_news || !told.is_some_and(|told| told.refusals.contains(refusal))
        };
        for refusal in refusals.iter().filter(|refusal| is_new(refusal)) {
            let mut entry = self.entry(refusal.what);
            entry.note("problem", refusal.why.as_str());
            entry.end_now(audit::REFUSED);
            self.told.refusals.count(refusal.what, "refused");
            tracing::error!(
                problem = refusal.why,
                "the {} stay as they were: correct the file",
                refusal.what.name()
            );
        }
        let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
        self.told
            .refusals
            .set(Source::Files(self.place), refusals.clone());
        self.trouble = Some(Trouble {
            refusals,
            since,
            is_told: true,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{
            Condvar,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;
    use crate::metrics::Metrics;

    /// The text of a file that never hangs.
    const ELSEWHERE: &str = "elsewhere";
    /// The text of a file that does not belong to another.
    const ANOTHERS: &str = "another's";

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
            let (hangs, reads, in_force) = (
                Arc::<(Mutex<bool>, Condvar)>::default(),
                Arc::<AtomicUsize>::default(),
                Arc::<Mutex<_>>::default(),
            );
            let (hanging, counted, forced) = (
                Arc::clone(&hangs),
                Arc::clone(&reads),
                Arc::clone(&in_force),
            );
            let refusal = |text: &str| vec![Refusal::new(What::Certificates, text)];
            let watched = Files::new([(What::Certificates, path.clone())]).watched(move || {
                let text =
                    fs::read_to_string(&path).map_err(|error| refusal(&error.to_string()))?;
                counted.fetch_add(1, Ordering::SeqCst);
                if text != ELSEWHERE {
                    drop(
                        hanging
                            .1
                            .wait_while(hanging.0.lock().unwrap(), |hangs| *hangs)
                            .unwrap(),
                    );
                }
                if text == "wrong" {
                    return Err(refusal(&text));
                }
                if text == ANOTHERS {
                    return Err(vec![Refusal {
                        may_settle: true,
                        ..refusal(&text).remove(0)
                    }]);
                }
                let forced = Arc::clone(&forced);
                let change: Change = Box::new(move || {
                    *forced.lock().unwrap() = text;
                    News::default()
                });
                Ok(change)
            });
            let (report, reports) = mpsc::unbounded_channel();
            let metrics = Arc::<Metrics>::default();
            let audit = Audit::new(
                None,
                false,
                || jiff::Timestamp::UNIX_EPOCH,
                Arc::clone(&metrics),
            );
            let set = Set::new(
                0,
                watched,
                report,
                Told {
                    refusals: Arc::new(Refusals::new(Arc::clone(&metrics))),
                    audit,
                },
            );
            Self {
                directory,
                hangs,
                reads,
                in_force,
                metrics,
                set,
                now: Instant::now(),
                reports,
            }
        }

        fn write(&self, text: &str) {
            fs::write(self.directory.path().join("new"), text).unwrap();
            fs::rename(
                self.directory.path().join("new"),
                self.directory.path().join("file"),
            )
            .unwrap();
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
            ["done", "refused"].map(|result| {
                self.metrics
                    .reloads
                    .with_label_values(&["certificates", result])
                    .get()
            })
        }

        fn stands_refused(&self) -> bool {
            self.metrics
                .reload_refused
                .with_label_values(&["certificates"])
                .get()
                == 1
        }

        async fn look(&mut self) {
            self.set.tick(self.now);
            self.report().await;
        }
    }

    #[tokio::test]
    async fn what_has_not_changed_is_not_read_unless_it_is_asked_for() {
        let mut watching = Watching::new();
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!(
            (watching.reads.load(Ordering::SeqCst), watching.counts()),
            (0, [0, 0])
        );
        watching.set.reread(watching.now);
        assert!(watching.set.is_rereading());
        watching.report().await;
        assert!(!watching.set.is_rereading());
        assert_eq!(
            (watching.in_force(), watching.counts()),
            ("first".to_owned(), [1, 0])
        );
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
        assert_eq!(
            (watching.in_force(), watching.counts()),
            ("revoked".to_owned(), [1, 1])
        );
    }

    #[tokio::test]
    async fn a_mount_that_hangs_for_long_takes_few_threads_and_is_read_when_it_hangs_no_more() {
        let mut watching = Watching::new();
        watching.write("second");
        watching.hang(true);
        let began = watching.now;
        let mut hanging = 0;
        while watching.now - began < Duration::from_secs(86_400) {
            watching.set.tick(watching.now);
            watching.now += PERIOD;
            hanging = Arc::strong_count(&watching.set.threads) - 1;
        }
        watching.until_it_reads(hanging).await;
        assert!((HANGING_MAX..200).contains(&hanging), "{hanging}");

        watching.hang(false);
        for _ in 0..hanging {
            watching.report().await;
        }
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!(watching.in_force(), "second");
        assert!(!watching.set.is_rereading(), "nobody is left waiting");
    }

    #[tokio::test]
    async fn a_refusal_ends_as_soon_as_the_mount_hangs_no_more_although_nothing_has_changed() {
        let mut watching = Watching::new();
        watching.hang(true);
        let began = watching.now;
        watching.set.reread(watching.now);
        while watching.now - began < Duration::from_secs(3_600) || watching.set.look.is_some() {
            watching.now += PERIOD;
            watching.set.tick(watching.now);
        }
        assert!(
            watching.stands_refused() && watching.now < watching.set.retry_at,
            "the next try is far off"
        );

        let hanging = Arc::strong_count(&watching.set.threads) - 1;
        watching.until_it_reads(hanging).await;
        watching.hang(false);
        for _ in 0..hanging {
            watching.report().await;
        }
        watching.look().await;
        watching.look().await;
        assert!(!watching.stands_refused());
    }

    #[tokio::test]
    async fn however_many_reads_hang_what_the_path_leads_to_then_is_read() {
        let mut watching = Watching::new();
        watching.write("leaked");
        watching.hang(true);
        for _ in 0..HANGING_MAX {
            watching.set.reread(watching.now);
            watching.now += READ_TIMEOUT;
            watching.set.tick(watching.now);
        }
        watching.until_it_reads(HANGING_MAX).await;

        // Who asks for more is told that it is not done.
        let [_, refused] = watching.counts();
        watching.set.reread(watching.now);
        assert!(!watching.set.is_rereading(), "nobody is left waiting");
        assert_eq!(watching.counts(), [0, refused + 1]);
        let told = watching
            .set
            .trouble
            .as_ref()
            .map(|trouble| trouble.refusals[0].why.clone())
            .unwrap();
        assert!(told.contains("8 reads hang already"), "{told}");
        assert!(watching.stands_refused());

        // The path leads elsewhere, where nothing hangs: those that hang do so where they began.
        watching.write(ELSEWHERE);
        watching.now += HANGING_PAUSE_MAX;
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!(watching.in_force(), ELSEWHERE);
        assert!(watching.set.trouble.is_none() && !watching.stands_refused());
    }

    #[test]
    fn reads_that_are_asked_for_hang_a_few_at_once_and_are_tried_again_in_a_while() {
        let (last, later) = (Instant::now(), |seconds| {
            Instant::now() + Duration::from_secs(seconds)
        });
        assert_eq!(pause_beside(0, None, last), None);
        assert_eq!(pause_beside(HANGING_MAX - 1, Some(last), last), None);
        assert_eq!(
            pause_beside(HANGING_MAX, Some(last), last),
            Some(HANGING_PAUSE_MAX)
        );
        assert_eq!(
            pause_beside(100 * HANGING_MAX, Some(last), later(61)),
            None,
            "it may hang no more"
        );
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
        assert_eq!(
            (watching.reads.load(Ordering::SeqCst), watching.counts()),
            (2, [0, 1])
        );

        watching.write("right");
        watching.set.tick(watching.now);
        watching.report().await;
        assert_eq!(
            (watching.in_force(), watching.counts()),
            ("right".to_owned(), [1, 1])
        );
    }

    #[tokio::test]
    async fn what_is_refused_stands_until_it_is_mended() {
        let mut watching = Watching::new();
        watching.write("wrong");
        watching.look().await;
        for _ in 0..100 {
            watching.now += RETRY;
            watching.look().await;
            assert!(watching.stands_refused());
        }
        assert_eq!(watching.counts(), [0, 1]);
        watching.write("right");
        watching.look().await;
        assert!(!watching.stands_refused());
    }

    #[tokio::test]
    async fn two_files_that_are_replaced_one_after_the_other_are_no_refusal() {
        let mut watching = Watching::new();
        watching.write(ANOTHERS);
        watching.look().await;
        watching.now += Duration::from_secs(2);
        watching.look().await;
        assert_eq!(
            (watching.counts(), watching.stands_refused()),
            ([0, 0], false)
        );
        watching.write("both");
        watching.look().await;
        assert_eq!(
            (watching.in_force(), watching.counts()),
            ("both".to_owned(), [1, 0])
        );

        // If they stay so, they are, once.
        watching.write(ANOTHERS);
        watching.look().await;
        watching.now += SETTLE - PERIOD;
        watching.look().await;
        assert_eq!(
            (watching.counts(), watching.stands_refused()),
            ([1, 0], false)
        );
        watching.now += PERIOD;
        watching.look().await;
        assert_eq!(
            (watching.counts(), watching.stands_refused()),
            ([1, 1], true)
        );
        watching.now += RETRY;
        watching.look().await;
        assert_eq!(
            (watching.counts(), watching.stands_refused()),
            ([1, 1], true)
        );
    }

    #[tokio::test]
    async fn who_asks_is_told_at_once_that_two_files_do_not_belong_together() {
        let mut watching = Watching::new();
        watching.write(ANOTHERS);
        watching.set.reread(watching.now);
        watching.report().await;
        assert_eq!(
            (watching.counts(), watching.stands_refused()),
            ([0, 1], true)
        );
    }
}
