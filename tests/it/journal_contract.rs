//! What every journal promises, wherever order and durability are decided. A new implementation adds one line at the end.

use std::{fs, path::Path};

use blobcast::{
    journal::Answer,
    store::{Appended, Draft, Store, WriteError},
};
use jiff::Timestamp;
use tempfile::TempDir;

use crate::support::{Node, completed, draft, failed, node, stored, within};

/// Makes a node on a directory, or opens the one that is there.
type Factory = fn(&Path) -> Node;

fn of(task: impl ToString) -> Draft {
    draft(&completed(&task.to_string()), Timestamp::now())
}

async fn answer(answer: Answer) -> Appended {
    within("the journal's answer", answer)
        .await
        .unwrap()
        .unwrap()
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
    let refused = within("the refusal", journal.append(of("late"))).await;
    assert_eq!(refused.unwrap(), Err(WriteError::Closed));
    let refused = within("the refusal", journal.probe()).await;
    assert_eq!(refused.unwrap(), Err(WriteError::Closed));
    assert_eq!(stored(&store).len(), 50);
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
                    super::$promise($open).await;
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
            a_probe_answers_and_leaves_no_event
            a_stopped_journal_answers_what_came_before_and_refuses_what_comes_after
            an_append_whose_caller_has_gone_is_whole_or_not_there
        })*
    };
}

every_journal! {
    local: super::node,
}
