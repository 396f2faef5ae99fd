#![allow(
    clippy::too_many_lines,
    reason = "a test is a story told from top to bottom"
)]

mod cached_index;
mod expectations;
mod idle;
mod replicas;
mod same_state;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    appender::{QUEUE_BYTES_MAX, QUEUE_MAX},
    command::Command,
    decide::decide,
    disk::FORGET_FREE_BYTES_MIN,
    moment::Moment,
    retention::Trimmer,
    thread::ANNOUNCED_MAX,
    *,
};
use crate::{
    event::{Labels, Product, Record, Sequence, TaskId, TaskStatus},
    store::{
        Appended, Backup, Draft, Health, NewQuarantined, QuarantineHeader, Store, Totals,
        clock::tests::Machine,
        error::StartFailure,
        lock,
        log::FrameBuilder,
        replay::{ReplayFrom, replay},
    },
};

fn draft(task: &str, raw_bytes: usize) -> Draft {
    Draft {
        event_id: uuid::Uuid::new_v4(),
        product: Product::parse("veo").unwrap(),
        task_id: TaskId::parse(task).unwrap(),
        status: TaskStatus::Completed,
        fingerprint: 7.into(),
        received_at_micros: 0,
        labels: Labels::new(),
        event: Bytes::new(),
        raw: vec![0; raw_bytes].into(),
        is_answer: false,
        lacks_output: false,
        conceals_duplicates: false,
        origin: None,
    }
}

/// A writer whose sync waits for the test's permission, started when the test has queued one group.
struct Held {
    store: Arc<Store>,
    appender: Appender,
    /// How many events each commit has brought.
    published: Arc<Mutex<Vec<usize>>>,
    synced: mpsc::Sender<Result<(), String>>,
    syncing: mpsc::Receiver<()>,
    start: Option<Box<dyn FnOnce() -> thread::JoinHandle<()>>>,
    _directory: tempfile::TempDir,
}

impl Held {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 1 << 20).unwrap());
        let published = Arc::<Mutex<Vec<usize>>>::default();
        let counts = Arc::clone(&published);
        let publish = move |records: &[Record]| counts.lock().push(records.len());
        let (appender, mut writer) = writer(
            Arc::clone(&store),
            Retention::KEEP_ALL,
            publish,
            Arc::default(),
        );
        let ((begun, syncing), (synced, verdict)) = (mpsc::channel(), mpsc::channel());
        writer.sync = Box::new(move |_| {
            let _ = begun.send(()).is_ok();
            verdict.recv().unwrap_or(Ok(())) // the test is over
        });
        let start: Box<dyn FnOnce() -> _> = Box::new(|| thread::spawn(|| writer.run()));
        Self {
            store,
            appender,
            published,
            synced,
            syncing,
            start: Some(start),
            _directory: directory,
        }
    }

    fn append(
        &self,
        task: &str,
        raw_bytes: usize,
    ) -> oneshot::Receiver<Result<Appended, WriteError>> {
        self.appender.append(draft(task, raw_bytes))
    }

    /// Starts the writer and waits until it syncs its first group.
    fn run_to_the_sync(&mut self) {
        (self.start.take().unwrap())();
        self.syncing.recv().unwrap();
    }

    fn visible(&self) -> (u64, usize) {
        (self.store.head().0, self.published.lock().iter().sum())
    }
}

#[test]
fn nothing_is_answered_or_shown_before_the_sync_and_duplicates_wait_too() {
    let mut held = Held::new();
    let mut original = held.append("t1", 0);
    let mut beside = held.append("t1", 0);
    held.run_to_the_sync();
    let mut behind = held.append("t1", 0);
    for answer in [&mut original, &mut beside, &mut behind] {
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }
    assert_eq!(held.visible(), (0, 0));
    held.synced.send(Ok(())).unwrap();
    let answers = [original, beside, behind].map(|answer| answer.blocking_recv().unwrap().unwrap());
    assert_eq!(
        answers.map(|appended| appended.duplicate),
        [false, true, true]
    );
    assert_eq!(
        answers.map(|appended| appended.event_id),
        [answers[0].event_id; 3]
    );
    assert_eq!(held.visible(), (1, 1));
}

#[test]
fn the_database_hears_of_events_at_checkpoints_only() {
    let mut held = Held::new();
    let before = held.store.index.seqno();
    let answer = held.append("t1", 0);
    held.run_to_the_sync();
    held.synced.send(Ok(())).unwrap();
    answer.blocking_recv().unwrap().unwrap();
    assert_eq!(
        held.store.index.seqno(),
        before,
        "its journal would grow, and every start read all of it"
    );
    held.store.checkpoint().unwrap();
    assert!(held.store.index.seqno() > before);
}

#[test]
fn a_failed_sync_refuses_everyone_shows_nothing_and_stops_the_writing() {
    let mut held = Held::new();
    let (one, other) = (held.append("t1", 0), held.append("t2", 0));
    held.run_to_the_sync();
    held.synced.send(Err("no such luck".into())).unwrap();
    let failed = Err(WriteError::Failed("no such luck".into()));
    assert_eq!(one.blocking_recv().unwrap(), failed);
    assert_eq!(other.blocking_recv().unwrap(), failed);
    assert_eq!(held.append("t3", 0).blocking_recv().unwrap(), failed);
    assert_eq!(
        (held.visible(), held.store.health()),
        ((0, 0), Health::Failed("no such luck".into()))
    );
}

#[test]
fn what_waits_for_a_stalled_disk_is_bounded_in_bytes() {
    const EACH: usize = 8 * 1024 * 1024;
    let mut held = Held::new();
    let first = held.append("t0", 0);
    held.run_to_the_sync();
    let mut waiting: Vec<_> = (0..=QUEUE_BYTES_MAX / EACH)
        .map(|n| held.append(&format!("w{n}"), EACH))
        .collect();
    // What is refused takes no room, however often it is tried.
    for _ in 0..waiting.len() {
        assert_eq!(
            held.append("excess", EACH).try_recv(),
            Ok(Err(WriteError::Overloaded))
        );
    }
    assert!(
        waiting.iter_mut().all(|answer| answer.try_recv().is_err()),
        "up to the bound all wait"
    );
    (0..=waiting.len()).for_each(|_| held.synced.send(Ok(())).unwrap());
    assert!(first.blocking_recv().unwrap().is_ok());
    assert!(
        waiting
            .into_iter()
            .all(|answer| answer.blocking_recv().unwrap().is_ok())
    );
    assert!(
        held.append("again", EACH).try_recv().is_err(),
        "it waits; it is not refused"
    );
}

#[test]
fn what_waits_is_bounded_in_number() {
    let mut held = Held::new();
    let mut waiting: Vec<_> = (0..QUEUE_MAX).map(|_| held.appender.probe()).collect();
    assert_eq!(
        held.appender.probe().try_recv(),
        Ok(Err(WriteError::Overloaded))
    );
    assert!(
        waiting.iter_mut().all(|answer| answer.try_recv().is_err()),
        "up to the bound all wait"
    );
    (0..=QUEUE_MAX).for_each(|_| held.synced.send(Ok(())).unwrap());
    held.run_to_the_sync();
    assert!(
        waiting
            .into_iter()
            .all(|answer| answer.blocking_recv().unwrap().is_ok())
    );
    assert_eq!(
        held.appender.probe().blocking_recv().unwrap(),
        Ok(()),
        "there is room again"
    );
}

/// How many events each commit brings, if drafts of these sizes wait for the writer.
fn commits_of(sizes: &[usize]) -> Vec<usize> {
    let mut held = Held::new();
    let waiting: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(n, bytes)| held.append(&format!("t{n}"), *bytes))
        .collect();
    sizes.iter().for_each(|_| held.synced.send(Ok(())).unwrap());
    held.run_to_the_sync();
    assert!(
        waiting
            .into_iter()
            .all(|answer| answer.blocking_recv().unwrap().is_ok())
    );
    held.published.lock().clone()
}

#[test]
fn a_commit_takes_as_many_commands_as_it_may_and_no_more() {
    assert_eq!(commits_of(&[0; GROUP_MAX + 1]), [GROUP_MAX, 1]);
    assert_eq!(commits_of(&[0; GROUP_MAX]), [GROUP_MAX]);
}

#[test]
fn a_commit_that_has_its_bytes_takes_no_further_command() {
    assert_eq!(
        commits_of(&[GROUP_BYTES_MAX - 1, 1, GROUP_BYTES_MAX, 0]),
        [2, 1, 1]
    );
}

#[test]
fn a_group_of_duplicates_is_answered_without_a_write_of_its_own() {
    let mut held = Held::new();
    let original = held.append("t1", 0);
    // One for the original; the others are for writes that must not come.
    (0..4).for_each(|_| held.synced.send(Ok(())).unwrap());
    held.run_to_the_sync();
    let original = original.blocking_recv().unwrap().unwrap();
    for _ in 0..3 {
        let again = held.append("t1", 0).blocking_recv().unwrap();
        assert_eq!(
            again,
            Ok(Appended {
                duplicate: true,
                ..original
            })
        );
    }
    assert!(
        held.syncing.try_recv().is_err(),
        "nothing was written, so nothing was synced"
    );
    assert_eq!(held.visible(), (1, 1));
}

#[test]
fn a_duplicate_falls_with_an_original_that_could_not_be_synced() {
    let mut held = Held::new();
    let original = held.append("t1", 0);
    held.run_to_the_sync();
    let behind = held.append("t1", 0);
    held.synced.send(Err("no such luck".into())).unwrap();
    let failed = Err(WriteError::Failed("no such luck".into()));
    assert_eq!(original.blocking_recv().unwrap(), failed);
    assert_eq!(behind.blocking_recv().unwrap(), failed);
    assert_eq!(held.append("t1", 0).blocking_recv().unwrap(), failed);
}

/// A writer that the test runs step by step, on a disk of which the test says how much is free.
struct Stepped {
    store: Arc<Store>,
    appender: Appender,
    writer: Writer<fn(&[Record])>,
    free_bytes: Arc<AtomicU64>,
    machine: Machine,
    directory: tempfile::TempDir,
}

impl Stepped {
    const DISK_BYTES: u64 = 1_000_000_000_000;

    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap(), Machine::right())
    }

    fn on(directory: tempfile::TempDir, machine: Machine) -> Self {
        let store = Arc::new(Store::open_by(machine.source(), directory.path(), 1 << 20).unwrap());
        let publish: fn(&[Record]) = |_| {};
        let (appender, mut writer) = writer(
            Arc::clone(&store),
            Retention::KEEP_ALL,
            publish,
            Arc::default(),
        );
        let free_bytes = Arc::new(AtomicU64::new(Self::DISK_BYTES));
        let free = Arc::clone(&free_bytes);
        writer.disk = Box::new(move |_| Ok((free.load(Ordering::Relaxed), Self::DISK_BYTES)));
        Self {
            store,
            appender,
            writer,
            free_bytes,
            machine,
            directory,
        }
    }

    fn reopen(self) -> Self {
        self.reopen_after(|_| {})
    }

    /// The same with its index built again.
    fn rebuilt(self) -> Self {
        self.reopen_after(|path| std::fs::remove_dir_all(path.join("index")).unwrap())
    }

    /// The same, when something has happened to the files of the closed store.
    fn reopen_after(self, happens: impl FnOnce(&Path)) -> Self {
        let Self {
            store,
            appender,
            writer,
            directory,
            machine,
            ..
        } = self;
        drop((appender, writer, store));
        happens(directory.path());
        Self::on(directory, machine)
    }

    /// Handles what was sent, as one group.
    fn step(&mut self) {
        let first = self.writer.queue.commands.try_recv().unwrap();
        assert!(self.writer.commit_group(first).is_continue());
    }

    /// Ends the segment that is written to, and begins the next one with an event of `t2`. A start replays from there.
    fn begin_segment(&mut self) {
        let totals = *lock(&self.store.totals);
        self.store.log.finish(&totals).unwrap();
        self.receive("t2");
        self.store.checkpoint().unwrap();
    }

    /// Commits that a task and a quarantined callback are erased, and does nothing of what follows that commit. Returns the totals
    /// behind it.
    fn announce(&mut self, task: &str, number: u64) -> Totals {
        let ((erase, _erased), (discard, _discarded)) = (oneshot::channel(), oneshot::channel());
        let group = vec![
            Command::Erase(erasure_of(task), erase),
            Command::Discard(vec![number], discard),
        ];
        let moment = Moment::now(self.store.clock(), None);
        let trimmer = &mut Trimmer::default();
        let decided = decide(&self.store, group, moment, &Retention::KEEP_ALL, trimmer);
        let (frame, changes) = decided.commit.write.unwrap();
        self.writer
            .write(frame, changes, &decided.commit.totals)
            .unwrap();
        decided.commit.totals
    }

    /// Lets retention do a commit's worth; how much it has forgotten.
    fn trim(&mut self) -> u64 {
        self.writer.commit(Vec::new())
    }

    fn quarantine(&mut self) -> u64 {
        self.quarantine_by("", "")
    }

    fn quarantine_by(&mut self, credential: &str, product: &str) -> u64 {
        let header = QuarantineHeader {
            reason: "not_json".into(),
            detail: String::new(),
            target: String::new(),
            received_at_micros: self.store.clock().now_micros(),
            verification: 0,
            credential: credential.into(),
            product: product.into(),
            ..QuarantineHeader::default()
        };
        let answer = self.appender.quarantine(NewQuarantined {
            header,
            body: Bytes::from_static(b"nonsense"),
        });
        self.step();
        answer.blocking_recv().unwrap().unwrap()
    }

    /// Appends an event that is received now.
    fn receive(&mut self, task: &str) {
        let received_at_micros = self.store.clock().now_micros();
        let answer = self.appender.append(Draft {
            received_at_micros,
            ..draft(task, 0)
        });
        self.step();
        answer.blocking_recv().unwrap().unwrap();
    }

    /// Time goes by, and each second the writer does what it does when it is idle.
    fn pass(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.machine.pass(Duration::from_secs(1));
            self.writer.tick();
            while self.writer.trim_is_due() && self.trim() > 0 {}
        }
    }

    /// The same, with what the maintenance does when it is woken.
    fn pass_with_maintenance(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.pass(Duration::from_secs(1));
            let store = &self.store;
            store.log.make_ahead().unwrap();
            if store.log.needs_checkpoint(store.first_available()) {
                store.checkpoint().unwrap();
            }
            store.log.remove_forgotten();
        }
    }

    /// Whether a text is anywhere in the files of the log.
    fn log_has(&self, text: &str) -> bool {
        let files = std::fs::read_dir(self.directory.path().join("log")).unwrap();
        files
            .map(|file| std::fs::read(file.unwrap().path()).unwrap())
            .any(|bytes| has(&bytes, text))
    }

    /// The places of the events since a time.
    fn events_since(&self, micros: i64) -> Vec<u64> {
        (self.store.seek_time(micros).unwrap().next().0..=self.store.head().0).collect()
    }

    fn event_count(&self) -> u64 {
        self.store.summary().event_count
    }

    fn quarantined(&self) -> Vec<u64> {
        let kept = self
            .store
            .quarantined_after(0, usize::MAX, usize::MAX)
            .unwrap();
        kept.iter().map(|callback| callback.number).collect()
    }
}

#[test]
fn an_import_leaves_the_keys_of_another_log_out() {
    let mut stepped = Stepped::new();
    let new = |detail: &str| NewQuarantined {
        header: QuarantineHeader {
            detail: detail.into(),
            idempotency_key: Some(7),
            ..QuarantineHeader::default()
        },
        body: Bytes::from_static(b"nonsense"),
    };
    let import = super::import::Import::Quarantined(Box::new(new("theirs")));
    let taken = stepped.writer.import(vec![import]).unwrap();
    assert_eq!(taken.quarantined, 1);

    // By chance this log uses the same key: the first time it is another callback, and the second time the same.
    for _ in 0..2 {
        let answer = stepped.appender.quarantine(new("ours"));
        stepped.step();
        assert_eq!(answer.blocking_recv().unwrap(), Ok(2));
    }
    assert_eq!(stepped.quarantined(), [1, 2]);
}

#[test]
fn a_low_disk_takes_deletions_only_and_an_almost_full_one_not_even_those() {
    let mut stepped = Stepped::new();
    let kept = stepped.appender.append(draft("t1", 0));
    stepped.step();
    assert!(kept.blocking_recv().unwrap().is_ok());
    assert_eq!([stepped.quarantine(), stepped.quarantine()], [1, 2]);
    stepped.writer.retention = Retention {
        event_bytes_max: 0,
        disk_free_min_percent: 100,
        ..Retention::KEEP_ALL
    };
    let low = |free_bytes| WriteError::DiskLow {
        free_bytes,
        needed_bytes: Stepped::DISK_BYTES,
    };

    for (free_bytes, deleted, left) in [
        (
            FORGET_FREE_BYTES_MIN - 1,
            Err(low(FORGET_FREE_BYTES_MIN - 1)),
            (1, 2),
        ),
        (FORGET_FREE_BYTES_MIN, Ok(1), (0, 1)),
    ] {
        stepped.free_bytes.store(free_bytes, Ordering::Relaxed);
        stepped.writer.check_disk();
        assert_eq!(stepped.writer.trim_is_due(), deleted.is_ok());
        let append = stepped.appender.append(draft("t2", 0));
        let discard = stepped.appender.discard(vec![1]);
        stepped.step();
        assert_eq!(append.blocking_recv().unwrap(), Err(low(free_bytes)));
        assert_eq!(discard.blocking_recv().unwrap(), deleted);
        let summary = stepped.store.summary();
        assert_eq!((summary.event_count, summary.quarantine_count), left);
    }
}

#[test]
fn the_quarantine_is_trimmed_from_its_oldest_end_also_after_a_restart() {
    let mut stepped = Stepped::new();
    (1..=6).for_each(|number| assert_eq!(stepped.quarantine(), number));
    let each = stepped.store.summary().quarantine_bytes / 6;
    stepped.writer.retention.quarantine_bytes_max = 4 * each;
    assert_eq!(
        (stepped.trim(), stepped.quarantined()),
        (2, vec![3, 4, 5, 6])
    );
    stepped.writer.retention.quarantine_count_max = 3;
    assert_eq!((stepped.trim(), stepped.quarantined()), (1, vec![4, 5, 6]));
    let summary = stepped.store.summary();
    let mut stepped = stepped.reopen();
    assert_eq!(
        (stepped.store.summary(), stepped.quarantined()),
        (summary, vec![4, 5, 6])
    );
    let after = |number, count_max| {
        stepped
            .store
            .quarantined_after(number, count_max, usize::MAX)
            .unwrap()
    };
    assert_eq!(
        after(4, 1)
            .iter()
            .map(|callback| callback.number)
            .collect::<Vec<_>>(),
        [5]
    );
    stepped.writer.retention.quarantine_bytes_max = 0;
    assert_eq!((stepped.trim(), stepped.quarantined()), (3, vec![]));
    assert_eq!(stepped.store.summary().quarantine_bytes, 0);
    assert_eq!(stepped.reopen().quarantine(), 7, "no number is used again");
}

#[test]
fn the_quarantine_forgets_first_what_came_by_who_has_most_also_after_a_restart() {
    let mut stepped = Stepped::new();
    for (credential, product) in [("a", "veo"), ("b", "sora"), ("b", "veo"), ("a", "sora")] {
        stepped.quarantine_by(credential, product);
    }
    for _ in 0..6 {
        stepped.quarantine_by("b", "veo");
    }
    stepped.writer.retention.quarantine_count_max = 8;
    assert_eq!(
        (stepped.trim(), stepped.quarantined()),
        (2, vec![1, 2, 4, 6, 7, 8, 9, 10]),
        "of b's veo the oldest"
    );
    let mut stepped = stepped.reopen();
    stepped.writer.retention.quarantine_count_max = 4;
    assert_eq!(stepped.trim(), 4);
    assert_eq!(
        stepped.quarantined(),
        [1, 2, 4, 10],
        "who has little keeps it"
    );
}

#[test]
fn totals_that_count_less_than_there_is_stop_retention_and_never_wrap() {
    let mut stepped = Stepped::new();
    for task in ["t1", "t2", "t3"] {
        let kept = stepped.appender.append(draft(task, 100));
        stepped.step();
        assert!(kept.blocking_recv().unwrap().is_ok());
    }
    assert_eq!([stepped.quarantine(), stepped.quarantine()], [1, 2]);
    stepped.machine.pass(Duration::from_secs(1));
    let whole = *lock(&stepped.store.totals);
    let too_low = [
        Totals {
            event_count: 0,
            ..whole
        },
        Totals {
            event_bytes: 10,
            ..whole
        },
        Totals {
            quarantine_count: 0,
            ..whole
        },
        Totals {
            quarantine_bytes: 10,
            ..whole
        },
    ];
    for totals in too_low {
        *lock(&stepped.store.totals) = totals;
        let events =
            totals.event_count != whole.event_count || totals.event_bytes != whole.event_bytes;
        let everything = if events {
            Retention {
                event_age_max: Duration::ZERO,
                ..Retention::KEEP_ALL
            }
        } else {
            Retention {
                quarantine_age_max: Duration::ZERO,
                ..Retention::KEEP_ALL
            }
        };
        stepped.writer.retention = everything;
        assert_eq!((stepped.trim(), *lock(&stepped.store.totals)), (0, totals));
        if !events {
            let discard = stepped.appender.discard(vec![1]);
            stepped.step();
            assert!(matches!(
                discard.blocking_recv().unwrap(),
                Err(WriteError::Corrupt(_))
            ));
        }
    }
    assert_eq!(
        (
            stepped.store.get(Sequence(1)).unwrap().is_some(),
            stepped.quarantined()
        ),
        (true, vec![1, 2])
    );
    *lock(&stepped.store.totals) = whole;
    stepped.writer.retention = Retention {
        event_age_max: Duration::ZERO,
        quarantine_age_max: Duration::ZERO,
        ..Retention::KEEP_ALL
    };
    assert_eq!(stepped.trim(), 5);
}

/// How many events a backup holds.
fn backed_up(mut backup: Backup) -> u64 {
    while backup.next_chunk().unwrap().is_some() {}
    backup.summary().event_count
}

#[test]
fn a_backup_waits_for_the_sync_of_what_it_holds() {
    let mut held = Held::new();
    let first = held.append("t1", 0);
    held.run_to_the_sync();
    let (mut backup, behind) = (held.appender.backup(), held.append("t2", 0));
    assert!(
        backup.try_recv().is_err(),
        "the first is written, and not yet synced"
    );
    held.synced.send(Ok(())).unwrap();
    assert!(first.blocking_recv().unwrap().is_ok());
    assert_eq!(backed_up(backup.blocking_recv().unwrap().unwrap()), 1);
    held.synced.send(Ok(())).unwrap();
    assert!(behind.blocking_recv().unwrap().is_ok());
    assert_eq!(
        backed_up(held.appender.backup().blocking_recv().unwrap().unwrap()),
        2
    );
}

#[test]
fn what_could_not_be_synced_is_not_backed_up() {
    let mut held = Held::new();
    let lost = held.append("t1", 0);
    held.run_to_the_sync();
    let beside = held.appender.backup();
    held.synced.send(Err("no such luck".into())).unwrap();
    assert!(lost.blocking_recv().unwrap().is_err());
    for backup in [beside, held.appender.backup()] {
        assert!(matches!(
            backup.blocking_recv().unwrap(),
            Err(WriteError::Failed(_))
        ));
    }
}

#[test]
fn a_disk_without_any_room_can_be_backed_up() {
    let mut stepped = Stepped::new();
    let kept = stepped.appender.append(draft("t1", 0));
    stepped.step();
    assert!(kept.blocking_recv().unwrap().is_ok());
    stepped.writer.retention = Retention {
        event_bytes_max: 0,
        disk_free_min_percent: 100,
        ..Retention::KEEP_ALL
    };
    stepped.free_bytes.store(0, Ordering::Relaxed);
    let backup = stepped.appender.backup();
    stepped.step();
    assert_eq!(
        backed_up(backup.blocking_recv().unwrap().unwrap()),
        1,
        "and nothing was forgotten for it"
    );
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const YEAR_MICROS: i64 = 365 * 86_400 * 1_000_000;
/// The time until a clock that has been changed is believed, and a moment more.
const BELIEVED: Duration = Duration::from_secs(5 * 60 + 2);

/// Events and quarantined callbacks are kept for an hour.
const KEEP_AN_HOUR: Retention = Retention {
    event_age_max: HOUR,
    quarantine_age_max: HOUR,
    ..Retention::KEEP_ALL
};

#[test]
fn a_clock_that_is_a_year_ahead_for_seconds_forgets_nothing_and_leaves_no_trace() {
    let mut stepped = Stepped::new();
    stepped.writer.retention = KEEP_AN_HOUR;
    stepped.receive("t1");
    stepped.quarantine();
    stepped.pass(MINUTE);
    stepped.machine.step(YEAR_MICROS);
    stepped.pass(Duration::from_secs(3));
    stepped.receive("t2");
    stepped.quarantine();
    stepped.machine.step(-YEAR_MICROS);
    stepped.pass(Duration::from_secs(2));
    stepped.receive("t3");
    assert_eq!(
        (stepped.event_count(), stepped.quarantined()),
        (3, vec![1, 2])
    );
    let now = stepped.machine.wall();
    assert_eq!(stepped.events_since(now - 1_000_000), [3]);
    assert_eq!(stepped.events_since(now - 3_000_000), [2, 3]);
    assert_eq!(
        stepped.events_since(now + 1),
        [0; 0],
        "until then all of them"
    );

    // And the hour is an hour.
    stepped.pass(HOUR - MINUTE - Duration::from_secs(5));
    assert_eq!(
        (stepped.event_count(), stepped.quarantined()),
        (3, vec![1, 2])
    );
    stepped.pass(Duration::from_secs(1));
    assert_eq!((stepped.event_count(), stepped.quarantined()), (2, vec![2]));
    stepped.pass(MINUTE + MINUTE);
    assert_eq!((stepped.event_count(), stepped.quarantined()), (0, vec![]));
}

#[test]
fn a_clock_that_is_changed_for_good_is_taken_over_durably_and_ages_nothing() {
    for by in [YEAR_MICROS, -2 * YEAR_MICROS] {
        let mut stepped = Stepped::new();
        stepped.writer.retention = KEEP_AN_HOUR;
        stepped.receive("t1");
        stepped.quarantine();
        stepped.pass(10 * MINUTE);
        stepped.receive("t2");
        stepped.machine.step(by);
        stepped.pass(BELIEVED);
        stepped.receive("t3");
        let received = |at: u64| {
            stepped
                .store
                .get(Sequence(at))
                .unwrap()
                .unwrap()
                .log_time_micros()
        };
        assert_eq!(
            received(3),
            stepped.machine.wall(),
            "{by}: events are stamped by the new time"
        );
        assert_eq!(stepped.events_since(stepped.machine.wall()), [3]);
        if by > 0 {
            assert_eq!(
                stepped.events_since(received(1)),
                [1, 2, 3],
                "times before the change are found as they were"
            );
            assert_eq!(stepped.events_since(received(1) + 1), [2, 3]);
        } else {
            assert_eq!(
                stepped.events_since(received(1)),
                [0; 0],
                "by the new time that is in the future"
            );
            assert_eq!(stepped.events_since(received(3) - 500_000), [3]);
        }

        // The note outlives the process, and events still live their hour.
        let mut stepped = stepped.reopen();
        stepped.writer.retention = KEEP_AN_HOUR;
        stepped.pass(HOUR - 10 * MINUTE - BELIEVED);
        assert_eq!(
            (stepped.event_count(), stepped.quarantined()),
            (3, vec![1]),
            "{by}"
        );
        stepped.pass(Duration::from_secs(1));
        assert_eq!(
            (stepped.event_count(), stepped.quarantined()),
            (2, vec![]),
            "{by}"
        );
        stepped.pass(10 * MINUTE);
        assert_eq!(stepped.event_count(), 1, "{by}");
        stepped.pass(BELIEVED);
        assert_eq!(stepped.event_count(), 0, "{by}");
    }
}

#[test]
fn a_machine_that_boots_in_1970_keeps_what_it_had_and_what_it_got() {
    let right = Machine::right();
    // A log that is new there, and one that was there before.
    for old in [0, 1] {
        let (machine, now) = (right.clone(), right.wall());
        let mut stepped = Stepped::on(tempfile::tempdir().unwrap(), machine);
        (0..old).for_each(|n| stepped.receive(&format!("old{n}")));
        stepped.machine.set(86_400_000_000);
        let mut stepped = stepped.reopen();
        stepped.writer.retention = KEEP_AN_HOUR;
        stepped.receive("at-boot");
        stepped.pass(MINUTE);
        stepped.machine.set(now + 86_400_000_000);
        stepped.pass(BELIEVED);
        stepped.receive("afterwards");
        assert_eq!(stepped.event_count(), old + 2);
        assert_eq!(stepped.events_since(stepped.machine.wall()), [old + 2]);
        stepped.pass(HOUR - MINUTE - BELIEVED);
        assert_eq!(stepped.event_count(), old + 2);
        stepped.pass(MINUTE);
        assert_eq!(
            stepped.event_count(),
            1,
            "what came since the boot is an hour old, too"
        );
        right.set(now);
    }
}

#[test]
fn a_start_forgets_by_age_only_when_the_clock_has_been_right_for_minutes() {
    let mut stepped = Stepped::new();
    stepped.writer.retention = KEEP_AN_HOUR;
    stepped.receive("t1");
    stepped.quarantine();

    // A start a year ahead, with a callback; then one with the right time.
    stepped.machine.step(YEAR_MICROS);
    let mut stepped = stepped.reopen();
    stepped.writer.retention = KEEP_AN_HOUR;
    stepped.pass(MINUTE);
    stepped.receive("from-the-future");
    assert_eq!(stepped.event_count(), 2);
    let mut stepped = stepped.reopen();
    stepped.writer.retention = KEEP_AN_HOUR;
    stepped.pass(4 * MINUTE);
    assert_eq!(
        (stepped.event_count(), stepped.quarantined()),
        (2, vec![1]),
        "the newest event is near, and was not believed"
    );
    stepped.machine.step(-YEAR_MICROS);
    let mut stepped = stepped.reopen();
    stepped.writer.retention = KEEP_AN_HOUR;
    stepped.pass(Duration::from_secs(1));
    stepped.receive("t3");
    let now = stepped.machine.wall();
    stepped.pass(MINUTE);
    assert_eq!(stepped.events_since(now), [3], "before it is believed, too");
    stepped.pass(BELIEVED);
    assert_eq!((stepped.event_count(), stepped.quarantined()), (3, vec![1]));
    stepped.receive("t4");
    assert_eq!(stepped.events_since(stepped.machine.wall()), [4]);
    stepped.pass(HOUR - 7 * MINUTE - BELIEVED);
    assert_eq!(stepped.event_count(), 4);

    // A night off is believed after some minutes, and then counts.
    stepped.machine.pass(8 * HOUR);
    let mut stepped = stepped.reopen();
    stepped.writer.retention = KEEP_AN_HOUR;
    stepped.receive("t5");
    assert_eq!(
        stepped.events_since(stepped.machine.wall()),
        [5],
        "the time is taken at once"
    );
    stepped.pass(4 * MINUTE);
    assert_eq!((stepped.event_count(), stepped.quarantined()), (5, vec![1]));
    stepped.pass(2 * MINUTE);
    assert_eq!((stepped.event_count(), stepped.quarantined()), (1, vec![]));
}

#[test]
fn bytes_and_numbers_are_bounded_whatever_the_clock_says() {
    let mut stepped = Stepped::new();
    ["t1", "t2"]
        .into_iter()
        .for_each(|task| stepped.receive(task));
    assert_eq!([stepped.quarantine(), stepped.quarantine()], [1, 2]);
    stepped.machine.step(YEAR_MICROS);
    let mut stepped = stepped.reopen();
    stepped.writer.retention = Retention {
        event_bytes_max: 0,
        quarantine_count_max: 1,
        ..KEEP_AN_HOUR
    };
    stepped.pass(Duration::from_secs(1));
    assert_eq!((stepped.event_count(), stepped.quarantined()), (0, vec![2]));
}

#[test]
fn what_waited_while_the_clock_was_changed_is_stamped_by_the_new_time() {
    for by in [YEAR_MICROS, -YEAR_MICROS] {
        let mut stepped = Stepped::new();
        stepped.writer.retention = KEEP_AN_HOUR;
        stepped.receive("t1");
        let received_at_micros = stepped.store.clock().now_micros();
        stepped.machine.step(by);
        stepped.pass(BELIEVED);
        let waited = stepped.appender.append(Draft {
            received_at_micros,
            ..draft("t2", 0)
        });
        stepped.step();
        waited.blocking_recv().unwrap().unwrap();
        let stamped = stepped
            .store
            .get(Sequence(2))
            .unwrap()
            .unwrap()
            .log_time_micros();
        assert!(
            (0..=2_000_000).contains(&(stepped.machine.wall() - stamped)),
            "{by}: {stamped}"
        );
        stepped.pass(MINUTE);
        assert_eq!(stepped.event_count(), 2);
    }
}

#[test]
fn what_is_released_from_quarantine_is_as_young_as_its_release() {
    let mut stepped = Stepped::new();
    stepped.writer.retention = Retention {
        quarantine_age_max: Duration::MAX,
        ..KEEP_AN_HOUR
    };
    let received_at_micros = stepped.store.clock().now_micros();
    let number = stepped.quarantine();
    stepped.pass(2 * HOUR);
    let released = stepped.appender.release(
        number,
        vec![Draft {
            received_at_micros,
            ..draft("t1", 0)
        }],
    );
    stepped.step();
    assert!(released.blocking_recv().unwrap().is_ok());
    stepped.pass(HOUR);
    assert_eq!(stepped.event_count(), 1);
    stepped.pass(Duration::from_secs(1));
    assert_eq!(stepped.event_count(), 0);
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[test]
fn on_a_quiet_broker_what_is_forgotten_is_gone_from_the_disk_within_the_age_of_a_segment() {
    let (kept, segment, minutes) = (
        Duration::from_secs(1_000),
        Duration::from_secs(300),
        Duration::from_secs(5),
    );
    let mut stepped = Stepped::new();
    stepped.writer.retention = Retention {
        event_age_max: kept,
        segment_age_max: segment,
        ..Retention::KEEP_ALL
    };
    let say = |stepped: &mut Stepped, task: &str| {
        let received_at_micros = stepped.store.clock().now_micros();
        let raw = format!("what {task} said").into();
        let answer = stepped.appender.append(Draft {
            received_at_micros,
            raw,
            ..draft(task, 0)
        });
        stepped.step();
        answer.blocking_recv().unwrap().unwrap();
    };
    say(&mut stepped, "t1");
    stepped.pass_with_maintenance(segment - minutes);
    say(&mut stepped, "t2");
    assert_eq!(stepped.store.log.newest(), 1);
    stepped.pass_with_maintenance(2 * minutes);
    assert_eq!(
        stepped.store.log.newest(),
        2,
        "it has the age that a segment may have"
    );
    say(&mut stepped, "t3");
    // Nothing comes any more. Both events of the first segment go when the younger one is too old.
    stepped.pass_with_maintenance(kept - 2 * minutes);
    assert!(stepped.log_has("what t1 said") && stepped.log_has("what t2 said"));
    stepped.pass_with_maintenance(2 * minutes);
    assert!(!stepped.log_has("what t1 said") && !stepped.log_has("what t2 said"));
    assert_eq!(
        (stepped.event_count(), stepped.log_has("what t3 said")),
        (1, true)
    );
    stepped.pass_with_maintenance(segment);
    assert!(!stepped.log_has("what t3 said"));
    // Without new content no further segment begins, however old the newest is.
    let newest = stepped.store.log.newest();
    stepped.pass_with_maintenance(3 * segment);
    assert_eq!(stepped.store.log.newest(), newest);
    let mut stepped = stepped.reopen();
    say(&mut stepped, "t4");
    assert_eq!(stepped.store.head().0, 4);
}

#[test]
fn what_stays_in_quarantine_is_written_again_and_its_segment_goes_with_the_events_beside_it() {
    let (kept, segment) = (Duration::from_secs(1_000), Duration::from_secs(300));
    let mut stepped = Stepped::new();
    stepped.writer.retention = Retention {
        event_age_max: kept,
        segment_age_max: segment,
        ..Retention::KEEP_ALL
    };
    let first = stepped.directory.path().join("log/000000000001.log");
    let number = stepped.quarantine();
    stepped.receive("t1");
    stepped.pass_with_maintenance(kept - segment);
    assert!(first.exists());
    stepped.pass_with_maintenance(segment + Duration::from_secs(30));
    assert_eq!(
        (stepped.event_count(), stepped.quarantined()),
        (0, vec![number])
    );
    assert!(!first.exists(), "nothing needs it any more");

    let mut stepped = stepped.reopen();
    assert_eq!(stepped.quarantined(), [number]);
    stepped = stepped.rebuilt();
    assert_eq!(stepped.quarantined(), [number], "the log has all of it");

    // It is content, which makes its segment old, too; and it is overwritten wherever it lies.
    stepped.writer.retention.segment_age_max = segment;
    let newest = stepped.store.log.newest();
    stepped.pass_with_maintenance(segment + Duration::from_secs(30));
    assert_eq!(stepped.store.log.newest(), newest + 1);
    assert!(stepped.log_has("nonsense"));
    let discarded = stepped.appender.discard(vec![number]);
    stepped.step();
    assert_eq!(discarded.blocking_recv().unwrap(), Ok(1));
    assert!(!stepped.log_has("nonsense"));
    assert_eq!(stepped.reopen().quarantined(), [0; 0]);
}

#[test]
fn both_copies_of_what_was_written_again_are_overwritten() {
    let mut stepped = Stepped::new();
    let numbers = [stepped.quarantine(), stepped.quarantine()];
    stepped.begin_segment();
    stepped.receive("t1");
    // The first segment has no event, and not much else.
    assert_eq!(stepped.trim(), 0, "they are written again once");
    for number in numbers {
        assert_eq!(stepped.store.copies_of(number).len(), 2);
    }
    stepped = stepped.reopen();
    for number in numbers {
        assert_eq!(stepped.store.copies_of(number).len(), 2);
        let discarded = stepped.appender.discard(vec![number]);
        stepped.step();
        assert_eq!(discarded.blocking_recv().unwrap(), Ok(1));
    }
    assert!(!stepped.log_has("nonsense"));
}

#[test]
fn a_quarantine_of_which_nothing_is_forgotten_is_not_written_over_and_over() {
    let mut stepped = Stepped::new();
    for _ in 0..6 {
        let header = QuarantineHeader {
            received_at_micros: stepped.store.clock().now_micros(),
            ..QuarantineHeader::default()
        };
        let body = vec![b'q'; 700_000].into();
        let answer = stepped.appender.quarantine(NewQuarantined { header, body });
        stepped.step();
        answer.blocking_recv().unwrap().unwrap();
    }
    assert!(stepped.store.log.newest() > 2);
    assert!(!stepped.writer.trim_is_due());
    assert_eq!(stepped.trim(), 0);
}

#[test]
fn a_full_quarantine_is_written_again_once_in_an_hour_at_most() {
    // For the age of events, and for an hour where that is less.
    for (kept, due) in [(Duration::from_secs(1), HOUR), (2 * HOUR, 2 * HOUR)] {
        let mut stepped = Stepped::new();
        stepped.writer.retention.event_age_max = kept;
        for _ in 0..6 {
            let header = QuarantineHeader {
                received_at_micros: stepped.store.clock().now_micros(),
                ..QuarantineHeader::default()
            };
            let body = vec![b'q'; 700_000].into();
            let answer = stepped.appender.quarantine(NewQuarantined { header, body });
            stepped.step();
            answer.blocking_recv().unwrap().unwrap();
        }
        assert!(stepped.store.log.newest() > 2);
        stepped.pass(due - MINUTE);
        assert_eq!(stepped.store.copies_of(1).len(), 1);
        stepped.pass(2 * MINUTE);
        assert_eq!(stepped.store.copies_of(1).len(), 2);
    }
}

#[test]
fn no_third_copy_is_written_while_a_backup_holds_the_first() {
    let mut stepped = Stepped::new();
    let number = stepped.quarantine();
    let mut backup = stepped.store.backup();
    stepped.begin_segment();
    stepped.receive("t1");
    stepped.pass_with_maintenance(Duration::from_secs(3));
    let places = |stepped: &Stepped| {
        let copies = stepped.store.copies_of(number).into_iter();
        copies.map(|(_, place)| place.segment).collect::<Vec<_>>()
    };
    assert_eq!(places(&stepped), [2, 1]);
    assert!(stepped.store.log.is_held(1), "only the backup has it");

    let totals = *lock(&stepped.store.totals);
    stepped.store.log.finish(&totals).unwrap();
    stepped.receive("t5");
    stepped.writer.retention.event_bytes_max = 0;
    stepped.pass_with_maintenance(Duration::from_secs(3));
    assert_eq!((stepped.event_count(), places(&stepped)), (0, vec![2, 1]));
    assert!(!stepped.writer.trim_is_due(), "it waits for the backup");
    while backup.next_chunk().unwrap().is_some() {}
    drop(backup);
    stepped.pass_with_maintenance(Duration::from_secs(3));
    assert_eq!(places(&stepped), [3, 2]);
    let discarded = stepped.appender.discard(vec![number]);
    stepped.step();
    assert_eq!(discarded.blocking_recv().unwrap(), Ok(1));
    assert!(!stepped.log_has("nonsense"));
}

#[test]
fn what_a_commit_has_announced_is_erased_by_the_next_start_if_a_crash_came_between() {
    let mut stepped = Stepped::new();
    for task in ["t1", "t2"] {
        let raw = format!("what {task} said").into();
        let answer = stepped.appender.append(Draft {
            raw,
            ..draft(task, 0)
        });
        stepped.step();
        answer.blocking_recv().unwrap().unwrap();
    }
    let number = stepped.quarantine();
    stepped.store.checkpoint().unwrap();
    assert!(stepped.log_has("what t1 said") && stepped.log_has("nonsense"));

    // The commit, and nothing of what follows it.
    let before = stepped.store.summary();
    let task_id = TaskId::parse("t1").unwrap();
    stepped.announce("t1", number);
    assert!(stepped.log_has("what t1 said") && stepped.log_has("nonsense"));

    let stepped = stepped.reopen();
    assert!(
        !stepped.log_has("what t1 said")
            && !stepped.log_has("nonsense")
            && stepped.log_has("what t2 said")
    );
    let record = stepped.store.get(Sequence(1)).unwrap().unwrap();
    assert!(record.is_erased() && !stepped.store.get(Sequence(2)).unwrap().unwrap().is_erased());
    let after = stepped.store.summary();
    assert_eq!(
        (after.event_count, after.quarantine_count),
        (before.event_count, 0)
    );
    assert_eq!(
        before.event_bytes - after.event_bytes,
        "what t1 said".len() as u64
    );
    let range = Sequence(1)..=Sequence(2);
    assert_eq!(
        stepped
            .store
            .task_events([&task_id], range, crate::store::Keep::All)
            .unwrap(),
        []
    );
    assert_eq!(stepped.quarantined(), [0; 0]);
    let mut stepped = stepped.reopen();
    let again = stepped.appender.append(draft("t1", 0));
    stepped.step();
    assert!(
        again.blocking_recv().unwrap().unwrap().duplicate,
        "the index still knows it"
    );
}

#[test]
fn a_task_with_more_terminal_events_than_the_index_names_is_erased_as_a_whole() {
    const EVENTS: u64 = 200;
    let mut stepped = Stepped::new();
    for number in 0..EVENTS {
        let raw = format!("what t1 said {number}").into();
        let fingerprint = u128::from(number).into();
        let answer = stepped.appender.append(Draft {
            raw,
            fingerprint,
            ..draft("t1", 0)
        });
        stepped.step();
        answer.blocking_recv().unwrap().unwrap();
    }
    let (task_id, product) = (TaskId::parse("t1").unwrap(), Product::parse("veo").unwrap());
    let places = stepped.store.places_of_task(&task_id, &product).unwrap();
    assert_eq!(places.len() as u64, EVENTS);
    let answer = stepped.appender.erase(Erasure {
        task_id,
        product,
        places,
    });
    stepped.step();
    assert_eq!(
        u64::from(answer.blocking_recv().unwrap().unwrap().events),
        EVENTS
    );
    assert!(!stepped.log_has("what t1 said") && stepped.store.erasures() == 1);
    assert_eq!(stepped.event_count(), EVENTS);
    // Forgetting them takes what is left of them, and no more.
    stepped.writer.retention = Retention {
        event_bytes_max: 0,
        ..Retention::KEEP_ALL
    };
    while stepped.trim() > 0 {}
    assert_eq!(
        (stepped.event_count(), stepped.store.summary().event_bytes),
        (0, 0)
    );
}

/// Changes a byte of a text in the file of the log's first segment.
fn damage(stepped: &Stepped, text: &str) {
    let path = stepped.directory.path().join("log/000000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes
        .windows(text.len())
        .position(|window| window == text.as_bytes())
        .unwrap();
    bytes[at + text.len() / 2] ^= 1 << 7;
    std::fs::write(path, bytes).unwrap();
}

/// Two events, of which the second says something, and a quarantined callback in a segment that no start has to replay.
fn with_an_older_segment() -> (Stepped, u64) {
    let mut stepped = Stepped::new();
    stepped.receive("t0");
    let answer = stepped.appender.append(Draft {
        raw: "what t1 said".into(),
        ..draft("t1", 0)
    });
    stepped.step();
    answer.blocking_recv().unwrap().unwrap();
    let number = stepped.quarantine();
    stepped.begin_segment();
    (stepped, number)
}

fn erasure_of(task: &str) -> Erasure {
    Erasure {
        task_id: TaskId::parse(task).unwrap(),
        product: Product::parse("veo").unwrap(),
        places: Vec::new(),
    }
}

#[test]
fn what_is_damaged_is_not_said_to_be_erased_and_stops_neither_the_writer_nor_a_start() {
    let (mut stepped, number) = with_an_older_segment();
    let before = stepped.store.summary();
    let whole = std::fs::read(stepped.directory.path().join("log/000000000001.log")).unwrap();
    damage(&stepped, "nonsense");
    damage(&stepped, "t1 said");
    let erased = stepped.appender.erase(erasure_of("t1"));
    stepped.step();
    assert!(matches!(
        erased.blocking_recv().unwrap(),
        Err(WriteError::Corrupt(_))
    ));
    assert_eq!(stepped.store.summary(), before);
    let read = stepped.store.quarantined(number).unwrap().unwrap();
    assert!(read.damage.is_some() && read.body.is_empty());
    stepped.receive("t3");

    // It was announced, and is damaged when a start is to erase it.
    let path = stepped.directory.path().join("log/000000000001.log");
    let damaged = std::fs::read(&path).unwrap();
    std::fs::write(&path, whole).unwrap();
    stepped.announce("t1", number);
    std::fs::write(&path, damaged).unwrap();
    let mut stepped = stepped.reopen();
    assert_eq!(stepped.quarantined(), [0; 0]);
    stepped.receive("t4");
    assert!(stepped.store.get(Sequence(3)).unwrap().is_some());
}

#[test]
fn what_retention_has_passed_unread_is_forgotten_by_the_next_start_too() {
    // Its body; and its task id, without which nothing of its commit is known but its place.
    for (text, is_known) in [("t1 said", true), ("t1", false)] {
        let (mut stepped, _) = with_an_older_segment();
        damage(&stepped, text);
        stepped.writer.retention.event_bytes_max = 0;
        assert!(stepped.writer.trim_is_due());
        while stepped.trim() > 0 {}
        let summary = stepped.store.summary();
        assert_eq!((summary.event_count, summary.event_bytes), (0, 0));
        assert_eq!(stepped.writer.metrics.log_damage_met.get(), 1);

        // The last checkpoint was before that.
        let mut stepped = stepped.reopen();
        assert_eq!(stepped.store.summary(), summary);
        let named = |stepped: &Stepped, task: &str| {
            let task_id = TaskId::parse(task).unwrap();
            stepped.store.index.tasks.get(&task_id).unwrap().len()
        };
        assert_eq!(named(&stepped, "t0"), 0);
        assert_eq!(named(&stepped, "t1"), usize::from(!is_known));
        let again = stepped.appender.append(draft("t1", 0));
        stepped.step();
        assert!(!again.blocking_recv().unwrap().unwrap().duplicate);
        let task_id = TaskId::parse("t1").unwrap();
        let places = stepped.store.task_events(
            [&task_id],
            Sequence(1)..=Sequence(9),
            crate::store::Keep::All,
        );
        assert_eq!(places.unwrap().len(), 1);
    }
}

#[test]
fn a_damaged_event_is_forgotten_when_what_follows_it_is_too_old() {
    let kept = Duration::from_secs(1_000);
    for (text, is_known) in [("t1 said", true), ("t1", false)] {
        let mut stepped = Stepped::new();
        stepped.writer.retention.event_age_max = kept;
        let answer = stepped.appender.append(Draft {
            raw: "what t1 said".into(),
            received_at_micros: stepped.store.clock().now_micros(),
            ..draft("t1", 0)
        });
        stepped.step();
        answer.blocking_recv().unwrap().unwrap();
        damage(&stepped, text);
        stepped.pass(kept / 2);
        assert_eq!(stepped.event_count(), 1);
        stepped.pass(kept);
        assert_eq!(
            stepped.event_count(),
            u64::from(!is_known),
            "nothing tells its age if nothing follows it"
        );
        stepped.receive("t2");
        stepped.pass(kept / 2);
        assert!(stepped.event_count() > 0);
        stepped.pass(kept);
        assert_eq!(stepped.event_count(), 0);
        assert_eq!(stepped.store.summary().event_bytes, 0);
    }
}

#[test]
fn a_callback_whose_header_cannot_be_read_is_carried_listed_and_forgotten_by_age() {
    let stepped = Stepped::new();
    let (mut frame, before) = (FrameBuilder::new(), *lock(&stepped.store.totals));
    frame.quarantined(1, b"no header");
    let totals = Totals {
        quarantine_next: 1,
        quarantine_count: 1,
        quarantine_bytes: 9,
        log_time_micros: stepped.store.clock().now_micros(),
        ..before
    };
    stepped.store.log.append(frame, &before, &totals).unwrap();
    stepped.store.log.sync().unwrap();
    let mut stepped = stepped.reopen();
    stepped.pass(BELIEVED);
    assert_eq!(stepped.quarantine(), 2);
    stepped.begin_segment();
    stepped.receive("t1");
    assert_eq!(stepped.store.copies_of(1).len(), 2, "it is written again");
    let listed = stepped.store.quarantined_after(0, 9, 999).unwrap();
    assert!(listed[0].damage.is_some() && listed[1].damage.is_none());

    stepped.writer.retention.quarantine_age_max = HOUR;
    stepped.pass(HOUR / 2);
    assert_eq!(stepped.quarantined(), [1, 2]);
    stepped.pass(HOUR);
    assert_eq!(stepped.quarantined(), [0; 0]);
}

#[test]
fn a_start_passes_over_no_erasure_because_the_disk_refuses_a_read() {
    let (mut stepped, number) = with_an_older_segment();
    let copies = stepped.store.copies_of(number);
    let totals = stepped.announce("t1", number);
    let path = stepped.directory.path().join("log/000000000001.log");
    let away = stepped.directory.path().join("away");
    // Reads fail, and not because of what is there.
    std::fs::rename(&path, &away).unwrap();
    std::fs::create_dir(&path).unwrap();
    let (log, state) = (&stepped.store.log, stepped.store.state());
    for (places, copies) in [(vec![Sequence(2)], vec![]), (vec![], copies)] {
        assert_eq!(places.len() + copies.len(), 1);
        assert!(log.erase(&places, &copies).is_err(), "{places:?}");
    }
    let from = ReplayFrom {
        segment: 2,
        forgotten_before: Sequence(1),
    };
    let replayed = replay(log, state, &totals, &from, |_| Ok(()));
    assert!(matches!(replayed, Err(StartFailure::Io(_))), "{replayed:?}");

    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&away, &path).unwrap();
    assert!(stepped.log_has("what t1 said") && stepped.log_has("nonsense"));
    let stepped = stepped.reopen();
    assert!(!stepped.log_has("what t1 said") && !stepped.log_has("nonsense"));
}

#[test]
fn a_start_erases_again_what_seems_to_be_erased() {
    let (mut stepped, _) = with_an_older_segment();
    let erased = stepped.appender.erase(erasure_of("t1"));
    stepped.step();
    assert_eq!(erased.blocking_recv().unwrap().unwrap().events, 1);
    let path = stepped.directory.path().join("log/000000000001.log");
    let written = |path: &std::path::Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    // The kernel may have told that it is erased, and failed to write it.
    let stepped = stepped.reopen();
    assert!(written(&path) > long_ago, "it was left as it seemed to be");
    assert!(stepped.store.get(Sequence(2)).unwrap().unwrap().is_erased());
}

#[test]
fn commits_go_on_while_the_maintenance_erases_and_no_checkpoint_passes_what_it_has_not_erased() {
    let (mut stepped, number) = with_an_older_segment();
    let maintenance = stepped.writer.maintenance();
    let before = stepped.store.summary();
    let mut erased = stepped.appender.erase(erasure_of("t1"));
    stepped.step();
    let mut discarded = stepped.appender.discard(vec![number]);
    stepped.step();
    // A second erasure waits for the first, too.
    let mut again = stepped.appender.erase(erasure_of("t1"));
    stepped.step();
    stepped.receive("t3");
    assert!(
        erased.try_recv().is_err() && discarded.try_recv().is_err() && again.try_recv().is_err()
    );
    assert!(stepped.log_has("what t1 said") && stepped.log_has("nonsense"));

    // Retention does not count what is not overwritten yet: it forgets what is before that.
    stepped.writer.retention = Retention {
        event_bytes_max: 0,
        ..Retention::KEEP_ALL
    };
    assert_eq!(
        (stepped.trim(), stepped.trim(), stepped.event_count()),
        (1, 0, before.event_count)
    );
    stepped.writer.retention = Retention::KEEP_ALL;

    // The next segment begins, and a checkpoint stays where the announcement is.
    stepped.writer.retention = Retention {
        segment_age_max: Duration::ZERO,
        ..Retention::KEEP_ALL
    };
    stepped.writer.look_at_age();
    stepped.store.log.make_ahead().unwrap();
    stepped.receive("t4");
    let log = &stepped.store.log;
    assert_eq!((log.newest(), log.checkpoint_max()), (3, 2));
    stepped.store.checkpoint().unwrap();
    assert!(
        !stepped.store.log.needs_checkpoint(Sequence(1)),
        "it would get no further"
    );
    stepped.receive("t5");

    // After a crash the start does it.
    let Stepped {
        store,
        appender,
        writer,
        machine,
        directory,
        ..
    } = stepped;
    drop((appender, writer, maintenance, store));
    assert!(
        erased.blocking_recv().is_err(),
        "nobody has said that it is erased"
    );
    let mut stepped = Stepped::on(directory, machine);
    assert!(!stepped.log_has("what t1 said") && !stepped.log_has("nonsense"));

    // Without a crash the maintenance does all of it.
    let maintenance = stepped.writer.maintenance();
    let answer = stepped.appender.append(Draft {
        raw: "what t6 said".into(),
        ..draft("t6", 0)
    });
    stepped.step();
    answer.blocking_recv().unwrap().unwrap();
    let erased = stepped.appender.erase(erasure_of("t6"));
    stepped.step();
    assert!(stepped.log_has("what t6 said"));
    stepped.writer.maintenance = None;
    maintenance.run();
    assert_eq!(erased.blocking_recv().unwrap().unwrap().events, 1);
    assert!(!stepped.log_has("what t6 said"));
    assert_eq!(
        stepped.store.log.checkpoint_max(),
        stepped.store.log.newest()
    );
}

#[test]
fn erasures_are_refused_while_as_many_as_may_be_wait_to_be_overwritten() {
    let (mut stepped, number) = with_an_older_segment();
    let tasks: Vec<_> = (0..=ANNOUNCED_MAX).map(|n| format!("task-{n}")).collect();
    tasks.iter().for_each(|task_id| stepped.receive(task_id));
    stepped.begin_segment();
    let maintenance = stepped.writer.maintenance();
    let mut erase = |task_id: &str| {
        let erased = stepped.appender.erase(erasure_of(task_id));
        stepped.step();
        erased
    };
    let waiting: Vec<_> = tasks[..ANNOUNCED_MAX]
        .iter()
        .map(|task_id| erase(task_id))
        .collect();

    let refused = erase(&tasks[ANNOUNCED_MAX]);
    assert!(matches!(
        refused.blocking_recv().unwrap(),
        Err(WriteError::Overloaded)
    ));
    let discarded = stepped.appender.discard(vec![number]);
    stepped.step();
    assert!(
        matches!(
            discarded.blocking_recv().unwrap(),
            Err(WriteError::Overloaded)
        ),
        "it is overwritten, too"
    );
    stepped.receive("taken-as-ever");

    // Those that wait are done, and then there is room again.
    stepped.writer.maintenance = None;
    maintenance.run();
    waiting
        .into_iter()
        .for_each(|erased| assert_eq!(erased.blocking_recv().unwrap().unwrap().events, 1));
    let erased = stepped.appender.erase(erasure_of(&tasks[ANNOUNCED_MAX]));
    stepped.step();
    assert_eq!(erased.blocking_recv().unwrap().unwrap().events, 1);
}

#[test]
fn the_age_of_a_segment_outlasts_a_restart() {
    let segment = Duration::from_secs(300);
    let mut stepped = Stepped::new();
    let retention = Retention {
        segment_age_max: segment,
        ..Retention::KEEP_ALL
    };
    stepped.writer.retention = retention;
    stepped.receive("t1");
    stepped.pass_with_maintenance(segment - Duration::from_secs(10));
    let mut stepped = stepped.reopen();
    stepped.writer.retention = retention;
    assert_eq!(stepped.store.log.newest(), 1);
    stepped.pass_with_maintenance(Duration::from_secs(20));
    assert_eq!(stepped.store.log.newest(), 2);
}

#[test]
fn a_change_that_cannot_be_noted_is_not_taken_over() {
    let mut stepped = Stepped::new();
    stepped.writer.retention = Retention {
        disk_free_min_percent: 50,
        ..KEEP_AN_HOUR
    };
    stepped.receive("t1");
    stepped.machine.step(YEAR_MICROS);
    stepped
        .free_bytes
        .store(FORGET_FREE_BYTES_MIN - 1, Ordering::Relaxed);
    stepped.pass(2 * BELIEVED);
    assert_eq!(stepped.store.clock().difference_micros(), YEAR_MICROS);
    stepped
        .free_bytes
        .store(FORGET_FREE_BYTES_MIN, Ordering::Relaxed);
    stepped.pass(Duration::from_secs(1));
    assert_eq!(
        (
            stepped.store.clock().difference_micros(),
            stepped.event_count()
        ),
        (0, 1)
    );
}
