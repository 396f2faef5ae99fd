//! A set of files whose reads hang as long as a test wants.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Applied, Change, Files, PERIOD, Reading, Recorder, Report, Set,
    hanging::{HANGING_MAX, PAUSE_MAX, READ_TIMEOUT, pause_beside},
    set::{RETRY, SETTLE},
};
use crate::{
    audit::Audit,
    metrics::Metrics,
    server::refusal::{Input, Refusal, Refusals},
};

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
    /// What each change that was put into force was said to be.
    readings: Arc<Mutex<Vec<Reading>>>,
}

impl Watching {
    fn new() -> Self {
        Self::of(|files| files)
    }

    fn of(files: impl FnOnce(Files) -> Files) -> Self {
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
        let refusal = |text: &str| vec![Refusal::new(Input::Certificates, text)];
        let readings = Arc::<Mutex<Vec<_>>>::default();
        let noted = Arc::clone(&readings);
        let watched = files(Files::new([(Input::Certificates, path.clone())])).watched(move || {
            let text = fs::read_to_string(&path).map_err(|error| refusal(&error.to_string()))?;
            counted.fetch_add(1, Ordering::SeqCst);
            if text != ELSEWHERE {
                let mut hangs = hanging.0.lock();
                hanging.1.wait_while(&mut hangs, |hangs| *hangs);
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
            let noted = Arc::clone(&noted);
            let change: Change = Box::new(move |reading| {
                noted.lock().push(reading);
                *forced.lock() = text;
                Applied::default()
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
            Recorder {
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
            readings,
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
        *self.hangs.0.lock() = hangs;
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
        self.in_force.lock().clone()
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
async fn unchanged_files_are_read_on_request_only() {
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
async fn a_read_that_hangs_is_reported_once_and_its_late_result_is_ignored() {
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
    watching.now += PAUSE_MAX;
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
async fn however_many_reads_hang_a_path_that_leads_elsewhere_is_read() {
    let mut watching = Watching::new();
    watching.write("leaked");
    watching.hang(true);
    for _ in 0..HANGING_MAX {
        watching.set.reread(watching.now);
        watching.now += READ_TIMEOUT;
        watching.set.tick(watching.now);
    }
    watching.until_it_reads(HANGING_MAX).await;

    // A further request is refused.
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
    watching.now += PAUSE_MAX;
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
    assert_eq!(pause_beside(HANGING_MAX, Some(last), last), Some(PAUSE_MAX));
    assert_eq!(
        pause_beside(100 * HANGING_MAX, Some(last), later(61)),
        None,
        "it may hang no more"
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_reported_once_and_read_again() {
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
async fn a_refusal_stands_until_the_file_is_corrected() {
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
async fn on_request_two_files_that_do_not_belong_together_are_refused_at_once() {
    let mut watching = Watching::new();
    watching.write(ANOTHERS);
    watching.set.reread(watching.now);
    watching.report().await;
    assert_eq!(
        (watching.counts(), watching.stands_refused()),
        ([0, 1], true)
    );
}

#[tokio::test]
async fn what_is_read_once_more_for_the_files_that_it_names_is_no_news() {
    let named = tempfile::NamedTempFile::new().unwrap();
    let path = named.path().to_owned();
    let mut watching = Watching::of(|files| files.with_named(move || vec![path.clone()]));
    watching.look().await;
    assert_eq!(*watching.readings.lock(), [Reading::Again]);
    watching.look().await;
    assert_eq!(watching.readings.lock().len(), 1, "nothing has changed");

    fs::write(named.path(), "another").unwrap();
    watching.look().await;
    assert_eq!(*watching.readings.lock(), [Reading::Again, Reading::News]);
}
