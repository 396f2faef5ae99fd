//! Expectations: durable, idempotent, whole or nothing, bounded, and carried over.

use std::slice;

use super::*;
use crate::store::{
    EXPECTATIONS_MAX, EXPECTATIONS_PER_CLIENT_MAX, Expectation, Expected, NewExpectation,
    WhenRunning, Whose, restore, restore_and_append,
};

const SECOND: i64 = 1_000_000;

fn product() -> Product {
    Product::parse("veo").unwrap()
}

fn task(id: &str) -> (Product, TaskId) {
    (product(), TaskId::parse(id).unwrap())
}

fn new(id: &str, client: &str, at: i64) -> NewExpectation {
    NewExpectation {
        product: product(),
        task_id: TaskId::parse(id).unwrap(),
        labels: [("user".to_owned(), "u1".to_owned())].into(),
        client: (!client.is_empty()).then(|| client.to_owned()),
        vendor_key: Some("main".to_owned()),
        expected_at_micros: at,
        expected_by_micros: at + 60 * SECOND,
    }
}

impl Stepped {
    fn expect_all(&mut self, new: Vec<NewExpectation>) -> Result<Vec<Expected>, WriteError> {
        let answer = self.appender.expect(new);
        self.step();
        answer.blocking_recv().unwrap()
    }

    fn expect(&mut self, id: &str, client: &str) -> Expected {
        let now = self.store.clock().now_micros();
        self.expect_all(vec![new(id, client, now)])
            .unwrap()
            .remove(0)
    }

    fn end_expectations(&mut self, ids: &[&str], whose: Whose) -> u32 {
        let tasks = ids.iter().map(|id| task(id)).collect();
        let answer = self.appender.end_expectations(tasks, whose);
        self.step();
        answer.blocking_recv().unwrap().unwrap()
    }

    /// The number of a task's expectation; 0 if it has none.
    fn number_of(&self, id: &str) -> u64 {
        let (product, id) = task(id);
        let open = self.store.expectation(&product, &id);
        open.map_or(0, |open| open.number)
    }

    fn overdue(&mut self, id: &str, gives_up: bool) -> Option<Appended> {
        self.overdue_of(self.number_of(id), id, gives_up)
    }

    fn overdue_of(&mut self, number: u64, id: &str, gives_up: bool) -> Option<Appended> {
        let late = Draft {
            status: TaskStatus::Overdue,
            fingerprint: (100 + u128::from(gives_up)).into(),
            received_at_micros: self.store.clock().now_micros(),
            ..draft(id, 0)
        };
        let answer = self.appender.overdue(number, late, gives_up);
        self.step();
        answer.blocking_recv().unwrap().unwrap()
    }

    /// A backup, as bytes.
    fn backed_up(&mut self) -> Vec<u8> {
        let backup = self.appender.backup();
        self.step();
        bytes_of(backup.blocking_recv().unwrap().unwrap())
    }

    fn open(&self) -> Vec<Expectation> {
        self.store.expectations_after(0, usize::MAX)
    }

    fn open_tasks(&self) -> Vec<String> {
        let open = self.open();
        open.iter().map(|open| open.task_id.to_string()).collect()
    }
}

fn bytes_of(mut backup: Backup) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = backup.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

#[test]
fn a_callback_waits_for_one_call_that_expects_many_tasks_and_not_for_all() {
    let mut held = Held::new();
    let many = |call: usize| {
        let new = |n| new(&format!("t{call}-{n}"), "", 0);
        held.appender.expect((0..GROUP_MAX).map(new).collect())
    };
    let calls = [many(0), many(1), many(2)];
    let behind = held.append("callback", 0);
    held.run_to_the_sync();
    for open in [0, GROUP_MAX, 2 * GROUP_MAX] {
        assert_eq!(held.store.expectation_counts().open, open);
        held.synced.send(Ok(())).unwrap();
        held.syncing.recv().unwrap();
    }
    held.synced.send(Ok(())).unwrap();
    assert!(behind.blocking_recv().unwrap().is_ok());
    for call in calls {
        assert_eq!(call.blocking_recv().unwrap().unwrap().len(), GROUP_MAX);
    }
}

#[test]
fn a_task_that_is_expected_again_keeps_its_first_deadline_labels_and_client() {
    let mut stepped = Stepped::new();
    let now = stepped.store.clock().now_micros();
    let first = new("t1", "billing", now);
    let Expected::Open(open) = stepped.expect_all(vec![first.clone()]).unwrap().remove(0) else {
        panic!("it is not over");
    };
    assert_eq!(open, first.numbered(1));
    let again = NewExpectation {
        labels: Labels::new(),
        client: None,
        vendor_key: None,
        ..new("t1", "", now + 7 * SECOND)
    };
    // Twice in one call, too.
    let answers = stepped.expect_all(vec![again.clone(), again]).unwrap();
    assert_eq!(answers, vec![Expected::Open(open.clone()); 2]);
    assert_eq!(stepped.open(), slice::from_ref(&open));

    let stepped = stepped.reopen();
    assert_eq!(stepped.open(), slice::from_ref(&open));
    assert_eq!(stepped.rebuilt().open(), [open]);
}

#[test]
fn an_expectation_is_neither_answered_nor_shown_before_the_sync() {
    let mut held = Held::new();
    let mut answer = held.appender.expect(vec![new("t1", "", 1)]);
    held.run_to_the_sync();
    let mut news = held.store.newest_expectation();
    assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    assert_eq!(held.store.expectation_counts().open, 0);
    assert_eq!(*news.borrow_and_update(), 0);
    held.synced.send(Ok(())).unwrap();
    assert!(answer.blocking_recv().unwrap().is_ok());
    let (product, task_id) = task("t1");
    assert!(held.store.expectation(&product, &task_id).is_some());
    assert!(
        held.store
            .expectation(&product, &TaskId::parse("t2").unwrap())
            .is_none()
    );
    assert!(news.has_changed().unwrap() && *news.borrow() == 1);
}

#[test]
fn an_expectation_falls_with_a_commit_that_could_not_be_synced() {
    let mut held = Held::new();
    let answer = held.appender.expect(vec![new("t1", "", 1)]);
    held.run_to_the_sync();
    held.synced.send(Err("no such luck".into())).unwrap();
    assert!(answer.blocking_recv().unwrap().is_err());
    assert_eq!(held.store.expectation_counts().open, 0);
}

#[test]
fn a_terminal_event_ends_the_expectation_of_its_task_however_it_comes() {
    let mut stepped = Stepped::new();
    for id in ["called", "released", "late", "other"] {
        stepped.expect(id, "");
    }
    let other_product = Draft {
        product: Product::parse("sora").unwrap(),
        ..draft("other", 0)
    };
    let not_over = Draft {
        status: TaskStatus::Processing,
        ..draft("other", 0)
    };
    let number = stepped.quarantine();
    let answers = [
        stepped.appender.append(draft("called", 0)),
        stepped.appender.append(other_product),
        stepped.appender.append(not_over),
    ];
    let released = stepped.appender.release(number, vec![draft("released", 0)]);
    stepped.step();
    for answer in answers {
        answer.blocking_recv().unwrap().unwrap();
    }
    released.blocking_recv().unwrap().unwrap();
    assert_eq!(stepped.open_tasks(), ["late", "other"]);

    // Opened and ended by one commit, in this order.
    let now = stepped.store.clock().now_micros();
    let opened = stepped.appender.expect(vec![new("both", "c1", now)]);
    let ended = stepped.appender.append(draft("both", 0));
    let over = stepped.appender.expect(vec![new("both", "c1", now)]);
    stepped.step();
    assert!(matches!(
        opened.blocking_recv().unwrap().unwrap()[..],
        [Expected::Open(_)]
    ));
    let end = ended.blocking_recv().unwrap().unwrap();
    assert_eq!(
        over.blocking_recv().unwrap(),
        Ok(vec![Expected::Over(end.sequence)])
    );

    let stepped = stepped.reopen();
    assert_eq!(stepped.open_tasks(), ["late", "other"]);
    let mut stepped = stepped.rebuilt();
    assert_eq!(stepped.open_tasks(), ["late", "other"]);
    assert_eq!(
        stepped.expect("both", "c1"),
        Expected::Over(end.sequence),
        "also after a start"
    );
}

#[test]
fn an_expectation_that_was_cancelled_and_made_anew_is_not_given_up_for_the_old_one() {
    let mut stepped = Stepped::new();
    stepped.expect("t1", "");
    let old = stepped.number_of("t1");
    stepped.end_expectations(&["t1"], Whose::Anybody);
    stepped.expect("t1", "");

    for gives_up in [false, true] {
        assert_eq!(stepped.overdue_of(old, "t1", gives_up), None);
    }
    assert_eq!(stepped.open_tasks(), ["t1"]);
    assert!(!stepped.open()[0].is_overdue);
    assert!(stepped.overdue("t1", true).is_some());
}

#[test]
fn a_late_task_has_one_overdue_event_and_one_by_which_it_is_given_up() {
    let mut stepped = Stepped::new();
    assert_eq!(stepped.overdue("t1", false), None, "nobody expects it");
    stepped.expect("t1", "");
    assert!(stepped.overdue("t1", false).is_some());
    assert_eq!(stepped.overdue("t1", false), None);
    assert_eq!(stepped.store.expectation_counts().overdue, 1);

    let mut stepped = stepped.reopen().rebuilt();
    assert!(stepped.open()[0].is_overdue);
    assert_eq!(stepped.store.expectation_counts().overdue, 1);
    assert_eq!(stepped.overdue("t1", false), None);
    assert!(stepped.overdue("t1", true).is_some());
    assert_eq!(stepped.overdue("t1", true), None);
    assert_eq!((stepped.open(), stepped.event_count()), (vec![], 2));

    // Its end may come all the same, and it may be expected anew.
    let Expected::Open(anew) = stepped.expect("t1", "") else {
        panic!("no terminal event has come")
    };
    assert_eq!((anew.number, anew.is_overdue), (2, false));
    let stepped = stepped.reopen();
    assert_eq!(stepped.open(), slice::from_ref(&anew));
    assert_eq!(stepped.rebuilt().open(), [anew]);
}

#[test]
fn only_callbacks_are_counted_as_duplicates() {
    let mut stepped = Stepped::new();
    let mut append = |draft: Draft| {
        let answer = stepped.appender.append(draft);
        stepped.step();
        let appended = answer.blocking_recv().unwrap().unwrap();
        (appended.duplicate, stepped.writer.metrics.duplicates.get())
    };
    let answer = || Draft {
        is_answer: true,
        fingerprint: 7.into(),
        ..draft("t1", 0)
    };
    let late = || Draft {
        status: TaskStatus::Overdue,
        fingerprint: 8.into(),
        ..draft("t1", 0)
    };
    assert_eq!(append(late()), (false, 0));
    assert_eq!(append(late()), (true, 0));
    assert_eq!(append(draft("t1", 0)), (false, 0));
    assert_eq!(append(answer()), (true, 0));
    assert_eq!(append(late()), (true, 0));
    assert_eq!(append(draft("t1", 0)), (true, 1));
}

#[test]
fn a_task_that_is_late_again_and_again_has_a_bounded_number_of_events_and_is_given_up_all_the_same()
{
    let mut stepped = Stepped::new();
    let mut appended = 0;
    for round in 0..40u128 {
        stepped.expect("t1", "");
        for gives_up in [false, true] {
            let late = Draft {
                status: TaskStatus::Overdue,
                fingerprint: (1_000 + 2 * round + u128::from(gives_up)).into(),
                ..draft("t1", 0)
            };
            let number = stepped.number_of("t1");
            let answer = stepped.appender.overdue(number, late, gives_up);
            stepped.step();
            appended += u32::from(answer.blocking_recv().unwrap().unwrap().is_some());
            assert_eq!(
                stepped.store.expectation_counts().overdue,
                usize::from(!gives_up)
            );
        }
        assert_eq!(stepped.open(), []);
    }
    assert_eq!(u64::from(appended), stepped.event_count());
    assert!((2..40).contains(&appended), "{appended}");
}

#[test]
fn a_client_ends_its_own_expectations_and_an_administrator_any() {
    let mut stepped = Stepped::new();
    for (id, client) in [("t1", "a"), ("t2", "b"), ("t3", ""), ("t4", "b")] {
        stepped.expect(id, client);
    }
    let all = ["t1", "t2", "t3", "t4", "t5"];
    let of = |client: &str| Whose::Client(Some(client.to_owned()));
    assert_eq!(stepped.end_expectations(&all, of("c")), 0);
    assert_eq!(stepped.end_expectations(&["t1", "t1", "t2"], of("a")), 1);
    assert_eq!(stepped.end_expectations(&all, Whose::Client(None)), 1);
    assert_eq!(stepped.open_tasks(), ["t2", "t4"]);
    assert_eq!(stepped.end_expectations(&["t2"], Whose::Anybody), 1);
    assert_eq!(stepped.reopen().open_tasks(), ["t4"]);
}

#[test]
fn as_many_tasks_are_expected_as_may_be_in_all_and_of_each_client_and_a_call_is_whole_or_nothing() {
    let mut stepped = Stepped::new();
    let many = |stepped: &mut Stepped, client: &str, count: usize| {
        for from in (0..count).step_by(5_000) {
            let calls =
                (from..count.min(from + 5_000)).map(|n| new(&format!("{client}-{n}"), client, 1));
            stepped.expect_all(calls.collect()).unwrap();
        }
    };
    let share = EXPECTATIONS_PER_CLIENT_MAX;
    many(&mut stepped, "a", share - 1);
    let one_too_many = vec![new("more-1", "a", 1), new("more-2", "a", 1)];
    assert_eq!(
        stepped.expect_all(one_too_many),
        Err(WriteError::TooManyExpectations {
            limit: share,
            open: share - 1
        })
    );
    assert_eq!(stepped.store.expectation_counts().open, share - 1);
    // Twice the same task is one, and those that are open take no room.
    let fits = vec![
        new("more-1", "a", 1),
        new("more-1", "a", 1),
        new("a-0", "a", 1),
    ];
    assert_eq!(stepped.expect_all(fits).unwrap().len(), 3);
    assert!(stepped.expect_all(vec![new("more-2", "a", 1)]).is_err());

    for client in ["b", "c", "d"] {
        many(&mut stepped, client, share);
    }
    // Those that are nobody's have no share.
    many(&mut stepped, "", share - 1);
    assert!(stepped.expect_all(vec![new("last", "e", 1)]).is_ok());
    assert_eq!(
        stepped.expect_all(vec![new("beyond", "f", 1)]),
        Err(WriteError::TooManyExpectations {
            limit: EXPECTATIONS_MAX,
            open: EXPECTATIONS_MAX
        })
    );

    // Each end makes room, also in the same commit.
    let ended = stepped
        .appender
        .end_expectations(vec![task("a-0"), task("b-0")], Whose::Anybody);
    let again = stepped.appender.expect(vec![new("again", "a", 1)]);
    let too_many = stepped.appender.expect(vec![new("again-2", "a", 1)]);
    stepped.step();
    assert_eq!(ended.blocking_recv().unwrap(), Ok(2));
    assert!(again.blocking_recv().unwrap().is_ok());
    assert!(too_many.blocking_recv().unwrap().is_err());

    let mut stepped = stepped.reopen();
    assert_eq!(
        stepped.store.expectation_counts().open,
        EXPECTATIONS_MAX - 1
    );
    assert!(
        stepped.expect_all(vec![new("again-2", "a", 1)]).is_err(),
        "its share is known"
    );
}

#[test]
fn what_is_expected_is_written_again_and_its_segment_goes_with_the_events_beside_it() {
    let (kept, segment) = (Duration::from_secs(1_000), Duration::from_secs(300));
    let mut stepped = Stepped::new();
    stepped.writer.retention = Retention {
        event_age_max: kept,
        segment_age_max: segment,
        ..Retention::KEEP_ALL
    };
    let first = stepped.directory.path().join("log/000000000001.log");
    stepped.expect("late", "c1");
    stepped.expect("t0", "");
    stepped.receive("t1");
    assert!(stepped.overdue("late", false).is_some());
    stepped.pass_with_maintenance(kept - segment);
    assert!(first.exists());
    stepped.pass_with_maintenance(segment + Duration::from_secs(30));
    assert_eq!(stepped.event_count(), 0, "age forgets events,");
    assert_eq!(stepped.open_tasks(), ["late", "t0"], "and no expectation");
    assert!(!first.exists(), "nothing needs it any more");

    let open = stepped.open();
    let stepped = stepped.reopen();
    assert_eq!(stepped.open(), open);
    let mut stepped = stepped.rebuilt();
    assert_eq!(stepped.open(), open, "the log has all of it");
    assert!(
        open[0].is_overdue,
        "also where the event that says so is gone"
    );

    // It is content, which makes its segment old, too.
    stepped.writer.retention = Retention {
        event_age_max: kept,
        segment_age_max: segment,
        ..Retention::KEEP_ALL
    };
    let newest = stepped.store.log.newest();
    stepped.pass_with_maintenance(segment + Duration::from_secs(30));
    assert_eq!(stepped.store.log.newest(), newest + 1);
    stepped.receive("late");
    assert_eq!(stepped.reopen().open_tasks(), ["t0"]);
}

#[test]
fn a_start_takes_what_is_expected_from_the_index_and_does_not_read_old_segments_for_it() {
    let mut stepped = Stepped::new();
    stepped.expect("old", "c1");
    stepped.begin_segment();
    stepped.expect("new", "c1");
    damage(&stepped, "old");
    let open = stepped.open();
    let stepped = stepped.reopen();
    assert_eq!(stepped.open(), open);
    assert_eq!(stepped.open_tasks(), ["old", "new"]);
}

#[test]
fn expectations_of_which_none_ends_are_not_written_over_and_over() {
    let mut stepped = Stepped::new();
    for call in 0..12 {
        let calls = (0..5_000).map(|n| new(&format!("{call}-{n}"), "", 1));
        stepped.expect_all(calls.collect()).unwrap();
    }
    assert!(stepped.store.log.newest() > 2);
    assert!(!stepped.writer.trim_is_due());
    assert_eq!(stepped.trim(), 0);
}

#[test]
fn a_restored_log_has_what_was_expected_when_its_backup_was_taken() {
    let mut stepped = Stepped::new();
    stepped.expect("t1", "c1");
    stepped.expect("t2", "");
    assert!(stepped.overdue("t2", false).is_some());
    let backup = stepped.appender.backup();
    stepped.step();
    let backup = backup.blocking_recv().unwrap().unwrap();
    let open = stepped.open();
    // What ends meanwhile is in the backup, as everything else of that moment.
    stepped.receive("t1");
    let bytes = bytes_of(backup);
    let directory = tempfile::tempdir().unwrap();
    restore(&bytes[..], directory.path()).unwrap();
    let mut restored = Stepped::on(directory, stepped.machine.clone());
    assert_eq!(restored.open(), open);
    let Expected::Open(next) = restored.expect("t3", "c1") else {
        panic!("it is not over")
    };
    assert_eq!(next.number, 3);
}

#[test]
fn what_another_log_expects_is_expected_behind_a_backup_unless_it_is_over() {
    let mut old = Stepped::new();
    old.expect("both", "old");
    old.expect("over-by-the-other", "old");
    old.receive("over");
    let backup = old.backed_up();

    let mut fresh = Stepped::new();
    for id in ["both", "over", "late", "over-there"] {
        fresh.expect(id, "fresh");
    }
    assert!(fresh.overdue("late", false).is_some());
    fresh.receive("over-there");
    fresh.receive("over-by-the-other");
    let Stepped {
        store,
        appender,
        writer,
        directory: other,
        machine,
        ..
    } = fresh;
    drop((appender, writer, store));

    let directory = tempfile::tempdir().unwrap();
    let appended = restore_and_append(
        &backup[..],
        directory.path(),
        other.path(),
        WhenRunning::Refuse,
    );
    assert_eq!(appended.unwrap().1.expectation_count, 1);
    let restored = Stepped::on(directory, machine);
    let open = restored.open();
    let open: Vec<_> = open
        .iter()
        .map(|it| (it.task_id.as_str(), it.client.as_deref(), it.is_overdue))
        .collect();
    assert_eq!(
        open,
        [("both", Some("old"), false), ("late", Some("fresh"), true)]
    );
}
