//! The contract of every journal implementation. A new implementation adds one line at the end.

use std::{fs, path::Path};

use blobcast::{
    event::{Product, TaskId, TaskStatus},
    journal::Answer,
    store::{
        Appended, Draft, Erased, Erasure, Expected, NewExpectation, NewQuarantined,
        QuarantineHeader, Retention, Store, Whose, WriteError, restore,
    },
};
use bytes::Bytes;
use jiff::Timestamp;
use tempfile::TempDir;

use crate::support::{Node, completed, draft, failed, jetstream, node, stored, until, within};

/// Makes a node on a directory, or opens the one that is there.
type Factory = fn(&Path) -> Node;

fn of(task: impl ToString) -> Draft {
    draft(&completed(&task.to_string()), Timestamp::now())
}

/// A callback that nobody could read.
fn nonsense(text: &str) -> NewQuarantined {
    NewQuarantined {
        header: QuarantineHeader {
            reason: "not_json".into(),
            received_at_micros: Timestamp::now().as_microsecond(),
            ..QuarantineHeader::default()
        },
        body: Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn erasure(task: &str, places: &[Appended]) -> Erasure {
    Erasure {
        task_id: TaskId::parse(task).unwrap(),
        product: Product::parse("veo").unwrap(),
        places: places.iter().map(|appended| appended.sequence).collect(),
    }
}

async fn outcome<T>(answer: Answer<T>) -> Result<T, WriteError> {
    within("the journal's answer", answer).await.unwrap()
}

async fn answer<T>(answer: Answer<T>) -> T {
    outcome(answer).await.unwrap()
}

/// Numbers and bodies of the quarantine.
fn quarantined(store: &Store) -> Vec<(u64, String)> {
    store
        .quarantined_after(0, usize::MAX, usize::MAX)
        .unwrap()
        .into_iter()
        .map(|it| (it.number, String::from_utf8(it.body.to_vec()).unwrap()))
        .collect()
}

/// Whether a text is in any file of a directory.
fn has(directory: &Path, text: &str) -> bool {
    fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            has(&path, text)
        } else {
            fs::read(path)
                .unwrap()
                .windows(text.len())
                .any(|bytes| bytes == text.as_bytes())
        }
    })
}

fn close(node: Node) {
    (node.stop)();
}

/// What a machine would find that lost its power now, as far as a copy can tell: whatever is in a file.
fn copied(from: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_all(from, copy.path());
    copy
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn ids(store: &Store) -> Vec<String> {
    let parsed = |event: &[u8]| {
        <blobcast::wire::v1::Event as prost::Message>::decode(event)
            .unwrap()
            .event_id
    };
    stored(store)
        .iter()
        .map(|record| parsed(record.event()))
        .collect()
}

async fn an_answer_comes_after_the_event_is_durable(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    for number in 0..4 {
        let appended = answer(node.journal.append(of(number))).await;
        let copy = copied(directory.path());
        let store = Store::open(copy.path(), 1024 * 1024).unwrap();
        assert!(store.head() >= appended.sequence);
        assert!(
            ids(&store).contains(&appended.event_id.to_string()),
            "answered, and not on the disk"
        );
    }
    close(node);
}

async fn an_answered_event_is_visible_and_stays_over_a_restart(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let mut expected: Vec<String> = Vec::new();
    for round in 0..3 {
        let node = open(directory.path());
        assert_eq!(ids(&node.store), expected);
        for number in 0..5 {
            let appended = answer(node.journal.append(of(format!("{round}-{number}")))).await;
            expected.push(appended.event_id.to_string());
            assert_eq!(node.store.head(), appended.sequence);
            assert_eq!(ids(&node.store), expected);
        }
        close(node);
    }
}

async fn places_rise_in_the_order_of_one_callers_appends(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    let pending: Vec<_> = (0..500)
        .map(|number| node.journal.append(of(number)))
        .collect();
    let mut appended = Vec::new();
    for pending in pending {
        appended.push(answer(pending).await);
    }
    assert!(
        appended
            .windows(2)
            .all(|pair| pair[0].sequence < pair[1].sequence)
    );
    assert!(appended.iter().all(|appended| !appended.duplicate));
    let expected: Vec<_> = appended
        .iter()
        .map(|appended| appended.event_id.to_string())
        .collect();
    assert_eq!(ids(&node.store), expected);
    close(node);
}

async fn a_duplicate_is_answered_with_its_durable_original(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    // All on their way at once, so that most meet an original that is not durable yet.
    let pending: Vec<_> = (0..20).map(|_| node.journal.append(of("t1"))).collect();
    let mut answers = Vec::new();
    for (at, pending) in pending.into_iter().enumerate().rev() {
        answers.push(answer(pending).await);
        if at == 19 {
            let copy = copied(directory.path());
            let store = Store::open(copy.path(), 1024 * 1024).unwrap();
            assert_eq!(ids(&store), [answers[0].event_id.to_string()]);
        }
    }
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
    assert!(
        answers
            .iter()
            .all(|answer| (answer.event_id, answer.sequence)
                == (answers[0].event_id, answers[0].sequence))
    );
    close(node);

    let node = open(directory.path());
    let again = answer(node.journal.append(of("t1"))).await;
    assert_eq!(
        again,
        Appended {
            duplicate: true,
            ..answers[0]
        }
    );
    let other = answer(node.journal.append(draft(&failed("t1"), Timestamp::now()))).await;
    assert!(!other.duplicate && other.sequence > again.sequence);
    close(node);
}

async fn a_quarantined_callback_is_durable_when_it_is_answered_and_its_number_is_not_used_again(
    open: Factory,
) {
    let directory = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for round in 0..3 {
        let node = open(directory.path());
        assert_eq!(quarantined(&node.store), expected);
        for which in 0..2 {
            let text = format!("nonsense {round}-{which}");
            let number = answer(node.journal.quarantine(nonsense(&text))).await;
            expected.push((number, text));
            assert_eq!(quarantined(&node.store), expected);

            let copy = copied(directory.path());
            let store = Store::open(copy.path(), 1024 * 1024).unwrap();
            assert_eq!(quarantined(&store), expected, "answered, and not on disk");
        }
        // The newest number is free now, and is not given out again.
        let (newest, _) = expected.pop().unwrap();
        assert_eq!(answer(node.journal.discard(vec![newest])).await, 1);
        let number = answer(node.journal.quarantine(nonsense("once more"))).await;
        assert!(number > newest);
        expected.push((number, "once more".to_owned()));
        close(node);
    }
    assert!(expected.is_sorted());
}

async fn a_release_takes_the_callback_out_and_appends_its_events_or_does_neither(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    let known = answer(node.journal.append(of("t1"))).await;
    let number = answer(node.journal.quarantine(nonsense("t1 and t2, misspelt"))).await;

    let drafts = || vec![of("t1"), of("t2")];
    let missing = outcome(node.journal.release(number + 1, drafts())).await;
    assert_eq!(missing, Err(WriteError::NotInQuarantine));
    assert_eq!(
        (stored(&node.store).len(), quarantined(&node.store).len()),
        (1, 1)
    );

    let released = answer(node.journal.release(number, drafts())).await;
    assert_eq!(
        released.iter().map(|it| it.duplicate).collect::<Vec<_>>(),
        [true, false]
    );
    assert_eq!(released[0].sequence, known.sequence);
    let expected = [known.event_id, released[1].event_id].map(|id| id.to_string());
    let copy = copied(directory.path());
    let after_power_cut = Store::open(copy.path(), 1024 * 1024).unwrap();
    for store in [&*node.store, &after_power_cut] {
        assert_eq!(
            (ids(store), quarantined(store)),
            (expected.to_vec(), vec![])
        );
    }
    assert!(!has(directory.path(), "t1 and t2, misspelt"));

    let again = outcome(node.journal.release(number, drafts())).await;
    assert_eq!(again, Err(WriteError::NotInQuarantine));
    close(node);
    let node = open(directory.path());
    assert_eq!(
        (ids(&node.store), quarantined(&node.store)),
        (expected.to_vec(), vec![])
    );
    close(node);
}

async fn what_is_discarded_is_gone_from_every_file_and_stays_gone(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    let mut numbers = Vec::new();
    for text in ["first nonsense", "second nonsense", "third nonsense"] {
        numbers.push(answer(node.journal.quarantine(nonsense(text))).await);
    }
    let named = vec![numbers[2], numbers[0], numbers[0], numbers[2] + 1];
    assert_eq!(answer(node.journal.discard(named.clone())).await, 2);
    assert_eq!(answer(node.journal.discard(named)).await, 0);

    let expected = [(numbers[1], "second nonsense".to_owned())];
    assert_eq!(quarantined(&node.store), expected);
    let copy = copied(directory.path());
    for directory in [directory.path(), copy.path()] {
        assert!(has(directory, "second nonsense"));
        assert!(!has(directory, "first nonsense") && !has(directory, "third nonsense"));
    }
    close(node);
    let node = open(directory.path());
    assert_eq!(quarantined(&node.store), expected);
    close(node);
}

async fn what_is_erased_leaves_its_place_and_no_content_in_any_file(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    let terminal = answer(node.journal.append(of("erased-task"))).await;
    let other = answer(node.journal.append(of("other-task"))).await;
    assert!(has(directory.path(), "erased-task.mp4"));

    let Erased { events, bytes } =
        answer(node.journal.erase(erasure("erased-task", &[terminal]))).await;
    assert!(events == 1 && bytes > 0);
    let nothing = answer(node.journal.erase(erasure("erased-task", &[terminal]))).await;
    assert_eq!(nothing, Erased::default());
    let copy = copied(directory.path());
    for directory in [directory.path(), copy.path()] {
        assert!(!has(directory, "erased-task.mp4") && has(directory, "other-task.mp4"));
    }

    let again = answer(node.journal.append(of("erased-task"))).await;
    assert!(again.duplicate && again.sequence == terminal.sequence);
    close(node);
    let node = open(directory.path());
    for (place, is_erased) in [(terminal.sequence, true), (other.sequence, false)] {
        let record = node.store.get(place).unwrap().unwrap();
        assert_eq!(record.is_erased(), is_erased);
    }
    close(node);
}

async fn a_backup_has_everything_that_was_answered_before(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    for number in 0..20 {
        answer(node.journal.append(of(number))).await;
    }
    let number = answer(node.journal.quarantine(nonsense("kept nonsense"))).await;
    // Others are on their way: each is in it as a whole, or not at all.
    let pending: Vec<_> = (20..40).map(|n| node.journal.append(of(n))).collect();
    let mut backup = answer(node.journal.backup()).await;
    let mut bytes = Vec::new();
    while let Some(chunk) = backup.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    for pending in pending {
        answer(pending).await;
    }

    let restored = tempfile::tempdir().unwrap();
    restore(&bytes[..], restored.path()).unwrap();
    let store = Store::open(restored.path(), 1024 * 1024).unwrap();
    assert_eq!(quarantined(&store), [(number, "kept nonsense".to_owned())]);
    let (restored, all) = (ids(&store), ids(&node.store));
    assert!(restored.len() >= 20 && all.starts_with(&restored));
    close(node);
}

async fn what_retention_forgets_stays_forgotten(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    for number in 0..10 {
        answer(node.journal.append(of(number))).await;
    }
    answer(node.journal.quarantine(nonsense("surplus nonsense"))).await;
    node.journal.retain(Retention {
        event_bytes_max: 0,
        quarantine_count_max: 0,
        ..Retention::KEEP_ALL
    });
    until("retention", async || {
        stored(&node.store).is_empty() && quarantined(&node.store).is_empty()
    })
    .await;

    node.journal.retain(Retention::KEEP_ALL);
    let appended = answer(node.journal.append(of(0))).await;
    assert!(
        !appended.duplicate && appended.sequence.0 == 11,
        "a forgotten original has no duplicates"
    );
    close(node);
    let node = open(directory.path());
    assert_eq!(ids(&node.store), [appended.event_id.to_string()]);
    assert_eq!(quarantined(&node.store), []);
    close(node);
}

async fn a_probe_answers_and_leaves_no_event(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    let pending: Vec<_> = (0..50)
        .map(|number| node.journal.append(of(number)))
        .collect();
    for _ in 0..3 {
        within("the probe", node.journal.probe())
            .await
            .unwrap()
            .unwrap();
    }
    for pending in pending {
        answer(pending).await;
    }
    assert_eq!(stored(&node.store).len(), 50);
    close(node);
}

async fn a_stopped_journal_answers_what_came_before_and_refuses_what_comes_after(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let Node {
        journal,
        store,
        stop,
    } = open(directory.path());
    let before: Vec<_> = (0..50).map(|number| journal.append(of(number))).collect();
    stop();
    for pending in before {
        answer(pending).await;
    }
    assert_eq!(stored(&store).len(), 50);
    let closed = Some(WriteError::Closed);
    assert_eq!(outcome(journal.append(of("late"))).await.err(), closed);
    assert_eq!(
        outcome(journal.quarantine(nonsense("late"))).await.err(),
        closed
    );
    assert_eq!(
        outcome(journal.release(1, vec![of("late")])).await.err(),
        closed
    );
    assert_eq!(outcome(journal.discard(vec![1])).await.err(), closed);
    assert_eq!(
        outcome(journal.erase(erasure("1", &[]))).await.err(),
        closed
    );
    let expect = journal.expect(vec![expecting("1", "billing")]);
    assert_eq!(outcome(expect).await.err(), closed);
    let end = journal.end_expectations(vec![key("1")], Whose::Anybody);
    assert_eq!(outcome(end).await.err(), closed);
    assert_eq!(
        outcome(journal.overdue(1, of("1"), true)).await.err(),
        closed
    );
    assert_eq!(outcome(journal.backup()).await.err(), closed);
    assert_eq!(outcome(journal.probe()).await.err(), closed);
    journal.retain(Retention::KEEP_ALL);
    assert_eq!((stored(&store).len(), quarantined(&store)), (50, vec![]));
}

/// A task that is expected by a client, with its deadline in a minute.
fn expecting(task: &str, client: &str) -> NewExpectation {
    let now = Timestamp::now().as_microsecond();
    NewExpectation {
        product: Product::parse("veo").unwrap(),
        task_id: TaskId::parse(task).unwrap(),
        labels: [("user".to_owned(), "u1".to_owned())].into(),
        client: Some(client.to_owned()),
        vendor_key: None,
        expected_at_micros: now,
        expected_by_micros: now + 60_000_000,
    }
}

fn key(task: &str) -> (Product, TaskId) {
    (Product::parse("veo").unwrap(), TaskId::parse(task).unwrap())
}

/// The tasks that are expected on a disk that has lost its power now.
fn expected_on_disk(directory: &Path) -> Vec<String> {
    let copy = copied(directory);
    let store = Store::open(copy.path(), 1024 * 1024).unwrap();
    expected(&store)
}

fn expected(store: &Store) -> Vec<String> {
    let open = store.expectations_after(0, usize::MAX);
    open.iter().map(|open| open.task_id.to_string()).collect()
}

async fn an_expectation_is_durable_when_it_is_answered_and_ends_with_its_tasks_terminal_event(
    open: Factory,
) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    let tasks = ["t1", "t2", "t3"].map(|task| expecting(task, "billing"));
    let first = answer(node.journal.expect(tasks.to_vec())).await;
    assert_eq!(expected_on_disk(directory.path()), ["t1", "t2", "t3"]);

    // To expect it again changes nothing.
    let again = NewExpectation {
        labels: [].into(),
        ..expecting("t1", "other")
    };
    assert_eq!(answer(node.journal.expect(vec![again])).await, first[..1]);

    let over = answer(node.journal.append(of("t2"))).await;
    assert_eq!(expected_on_disk(directory.path()), ["t1", "t3"]);
    let anew = answer(node.journal.expect(vec![expecting("t2", "billing")])).await;
    assert_eq!(anew, [Expected::Over(over.sequence)]);

    let others = Whose::Client(Some("other".to_owned()));
    let tasks = vec![key("t1"), key("t3")];
    assert_eq!(
        answer(node.journal.end_expectations(tasks.clone(), others)).await,
        0
    );
    assert_eq!(
        answer(node.journal.end_expectations(tasks, Whose::Anybody)).await,
        2
    );
    assert_eq!(expected_on_disk(directory.path()), [""; 0]);
    close(node);
}

async fn a_late_task_has_one_overdue_event_and_one_that_ends_its_expectation(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    let late = |id: u8| Draft {
        task_id: TaskId::parse("t1").unwrap(),
        status: TaskStatus::Overdue,
        ..of(id) // each says something else
    };
    assert_eq!(answer(node.journal.overdue(1, late(1), false)).await, None);
    let expected = answer(node.journal.expect(vec![expecting("t1", "billing")])).await;
    let [Expected::Open(open)] = &expected[..] else {
        panic!("{expected:?}");
    };
    let number = open.number;
    let other = answer(node.journal.overdue(number + 1, late(1), true)).await;
    assert_eq!(other, None, "another expectation of the task");
    let first = answer(node.journal.overdue(number, late(2), false)).await;
    let again = answer(node.journal.overdue(number, late(3), false)).await;
    assert_eq!(again, None);
    assert_eq!(expected_on_disk(directory.path()), ["t1"]);
    let last = answer(node.journal.overdue(number, late(4), true)).await;
    let places = [first, last].map(|event| event.unwrap().sequence.0);
    assert_eq!(places, [1, 2]);
    assert_eq!(expected_on_disk(directory.path()), [""; 0]);
    let again = answer(node.journal.overdue(number, late(5), true)).await;
    assert_eq!(again, None);
    close(node);
}

async fn an_append_whose_caller_has_gone_is_whole_or_not_there(open: Factory) {
    let directory = tempfile::tempdir().unwrap();
    let node = open(directory.path());
    for number in 0..50 {
        drop(node.journal.append(of(number)));
    }
    // Behind all of them, and with a repetition of each: what is there is found, once.
    for number in 0..50 {
        answer(node.journal.append(of(number))).await;
    }
    assert_eq!(stored(&node.store).len(), 50);
    close(node);
}

macro_rules! contract {
    ($journal:ident: $open:expr; $($promise:ident)*) => {
        mod $journal {
            $(
                #[tokio::test]
                async fn $promise() {
                    let open: Option<super::Factory> = $open;
                    if let Some(open) = open {
                        super::$promise(open).await;
                    }
                }
            )*
        }
    };
}

macro_rules! every_journal {
    ($($journal:ident: $open:expr,)*) => {
        $(contract! {
            $journal: $open;
            an_answer_comes_after_the_event_is_durable
            an_answered_event_is_visible_and_stays_over_a_restart
            places_rise_in_the_order_of_one_callers_appends
            a_duplicate_is_answered_with_its_durable_original
            a_quarantined_callback_is_durable_when_it_is_answered_and_its_number_is_not_used_again
            a_release_takes_the_callback_out_and_appends_its_events_or_does_neither
            what_is_discarded_is_gone_from_every_file_and_stays_gone
            what_is_erased_leaves_its_place_and_no_content_in_any_file
            a_backup_has_everything_that_was_answered_before
            what_retention_forgets_stays_forgotten
            a_probe_answers_and_leaves_no_event
            a_stopped_journal_answers_what_came_before_and_refuses_what_comes_after
            an_expectation_is_durable_when_it_is_answered_and_ends_with_its_tasks_terminal_event
            a_late_task_has_one_overdue_event_and_one_that_ends_its_expectation
            an_append_whose_caller_has_gone_is_whole_or_not_there
        })*
    };
}

every_journal! {
    local: Some(super::node),
    jetstream: super::jetstream(),
}
