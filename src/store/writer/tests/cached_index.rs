//! The index is a cache: what a writer does when it does not fit the log, and what a start does.

use std::path::{Path, PathBuf};

use super::*;
use crate::store::{
    OpenError, ReadError,
    index::{Checkpoint, Index, Unsynced},
    index_doubt,
    layout::TaskEvent,
};

/// What the index would name of a task with an event at a place.
fn named_at(task: &str, place: u64) -> (TaskId, Vec<TaskEvent>) {
    let event = TaskEvent {
        sequence: Sequence(place),
        event_id: uuid::Uuid::new_v4(),
        fingerprint: 99.into(),
        revision: 1,
        status: TaskStatus::Processing,
        product: Product::parse("veo").unwrap(),
        is_erased: false,
    };
    (TaskId::parse(task).unwrap(), vec![event])
}

#[test]
fn an_index_that_names_an_event_behind_the_log_is_built_again_before_a_place_is_taken_twice() {
    for (place, is_doubted) in [(2, false), (3, true), (9, true)] {
        let mut stepped = Stepped::new();
        stepped.receive("t1");
        stepped.receive("t2");
        stepped
            .store
            .index
            .tasks
            .change([named_at("t3", place)])
            .unwrap();
        let answer = stepped.appender.append(draft("t3", 0));
        stepped.step();
        let answer = answer.blocking_recv().unwrap();
        assert_eq!(
            matches!(&answer, Err(WriteError::Failed(problem)) if problem.contains("the log ends behind 2")),
            is_doubted,
            "{place}: {answer:?}"
        );
        let said = index_doubt::said_in(&stepped.store.path);
        assert_eq!(said.is_some(), is_doubted, "{place}: {said:?}");
        assert_eq!(
            matches!(stepped.store.health(), Health::Failed(_)),
            is_doubted
        );
        if !is_doubted {
            continue;
        }

        let mut stepped = stepped.reopen();
        stepped.receive("t3");
        let task_id = TaskId::parse("t3").unwrap();
        let events = stepped.store.index.tasks.get(&task_id).unwrap();
        let places: Vec<_> = events.iter().map(|event| event.sequence.0).collect();
        assert_eq!(places, [3], "as the log has it");
    }
}

#[test]
fn an_erasure_that_meets_an_index_in_doubt_is_not_told_of_a_damaged_log() {
    let mut stepped = Stepped::new();
    stepped.receive("t1");
    let changed = stepped.store.index.tasks.change([named_at("t1", 9)]);
    changed.unwrap();
    let erased = stepped.appender.erase(erasure_of("t1"));
    stepped.step();
    let answer = erased.blocking_recv().unwrap();
    assert!(
        matches!(&answer, Err(WriteError::Failed(problem)) if problem.contains("the index")),
        "{answer:?}"
    );
}

/// Appends an event that says something, received now.
fn say(stepped: &mut Stepped, task: &str, raw: &str) {
    let answer = stepped.appender.append(Draft {
        received_at_micros: stepped.store.clock().now_micros(),
        raw: raw.to_owned().into(),
        // What says something else is a new event.
        fingerprint: (raw.len() as u128 * 8).into(),
        ..draft(task, 0)
    });
    stepped.step();
    answer.blocking_recv().unwrap().unwrap();
}

/// Goes on in another segment.
fn next_segment(stepped: &mut Stepped) {
    let totals = *lock(&stepped.store.totals);
    stepped.store.log.finish(&totals).unwrap();
}

pub(super) fn segment(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("log/{number:012}.log"))
}

/// Does something to a segment, and returns how it was.
fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let whole = std::fs::read(path).unwrap();
    let mut changed = whole.clone();
    change(&mut changed);
    std::fs::write(path, changed).unwrap();
    whole
}

/// Changes a byte of the first commit.
fn flip(bytes: &mut [u8]) {
    bytes[300] ^= 1;
}

/// Ends it as a crash does, and returns its directory.
pub(super) fn ended(stepped: Stepped) -> (tempfile::TempDir, Machine) {
    let Stepped {
        store,
        appender,
        writer,
        directory,
        machine,
        ..
    } = stepped;
    drop((appender, writer, store));
    (directory, machine)
}

/// What the index knows of tasks and of the quarantine.
fn known(stepped: &Stepped, tasks: &[&str]) -> (Vec<Vec<TaskEvent>>, Vec<u64>) {
    let events = tasks.iter().map(|task| {
        let task_id = TaskId::parse(task).unwrap();
        stepped.store.index.tasks.get(&task_id).unwrap()
    });
    (events.collect(), stepped.quarantined())
}

#[test]
fn a_rebuild_that_was_cut_off_goes_on_where_it_was_and_ends_the_same() {
    const TASKS: [&str; 4] = ["t0", "t1", "t2", "t3"];
    let (mut stepped, number) = with_an_older_segment();
    let kept = stepped.quarantine();
    next_segment(&mut stepped);
    // Their commit is in the third segment, and nothing is overwritten as yet.
    say(&mut stepped, "t3", "what t3 said");
    let totals = stepped.announce("t1", number);
    *lock(&stepped.store.totals) = totals;
    assert!(stepped.log_has("what t1 said") && stepped.log_has("nonsense"));
    next_segment(&mut stepped);
    say(&mut stepped, "t0", "a fourth segment");
    say(&mut stepped, "t1", "more in the fourth segment");
    next_segment(&mut stepped);
    say(&mut stepped, "t0", "in the fifth segment");
    let expected = known(&stepped, &TASKS);
    assert_eq!(expected.1, [kept]);
    // It is cut off where the fourth segment is read.
    let (directory, machine) = ended(stepped);
    let path = directory.path();
    std::fs::remove_dir_all(path.join("index")).unwrap();
    let whole = change(&segment(path, 4), |bytes| flip(bytes));
    let refused = Store::open_by(machine.source(), path, 1 << 20);
    assert!(
        matches!(&refused, Err(OpenError::Corrupt { problem, .. }) if problem.contains("000000000004.log")),
        "{refused:?}"
    );
    std::fs::write(segment(path, 4), whole).unwrap();

    // It has what is before, so that is not read again: it may even be damaged.
    change(&segment(path, 2), |bytes| flip(bytes));
    let stepped = Stepped::on(directory, machine);
    assert_eq!(known(&stepped, &TASKS), expected);
    // What was announced before is overwritten all the same.
    assert!(!stepped.log_has("what t1 said"));
    let copies: Vec<_> = stepped.store.copies_of(number);
    assert!(copies.is_empty());
    let first = std::fs::read(segment(stepped.directory.path(), 1)).unwrap();
    assert!(!has(&first, "nonsense") && stepped.log_has("nonsense"));
}

#[test]
fn a_rebuild_passes_over_segments_that_nothing_needs() {
    let mut stepped = Stepped::new();
    say(&mut stepped, "t1", "what t1 said");
    stepped.begin_segment();
    stepped.writer.retention.event_bytes_max = 0;
    assert_eq!(stepped.trim(), 2);
    stepped.writer.retention = Retention::KEEP_ALL;
    stepped.store.checkpoint().unwrap();
    // It notes that the first is not needed. Its file is still there.
    stepped.receive("t3");
    stepped.receive("t4");
    let expected = known(&stepped, &["t1", "t2", "t3", "t4"]);
    let (directory, machine) = ended(stepped);
    let first = segment(directory.path(), 1);
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    change(&first, |bytes| flip(bytes));
    let stepped = Stepped::on(directory, machine);
    assert_eq!(known(&stepped, &["t1", "t2", "t3", "t4"]), expected);
    drop(ended(stepped));
    assert!(!first.exists(), "the start removes it");
}

#[test]
fn an_older_index_that_names_events_whose_segments_are_gone_is_built_again() {
    for segments_are_gone in [false, true] {
        let mut stepped = Stepped::new();
        stepped.receive("t1");
        stepped.begin_segment();
        // The disk of the index is not mounted: another one is built.
        let (directory, machine) = ended(stepped);
        let [index, away] = ["index", "away"].map(|name| directory.path().join(name));
        std::fs::rename(&index, &away).unwrap();
        let mut stepped = Stepped::on(directory, machine);
        stepped.writer.retention.event_bytes_max = 0;
        assert_eq!(stepped.trim(), 2);
        stepped.writer.retention = Retention::KEEP_ALL;
        stepped.store.checkpoint().unwrap();
        stepped.receive("t3");
        if segments_are_gone {
            stepped.store.log.remove_forgotten();
        }
        assert_ne!(segment(&stepped.store.path, 1).exists(), segments_are_gone);

        // It is mounted again.
        let (directory, machine) = ended(stepped);
        std::fs::remove_dir_all(&index).unwrap();
        std::fs::rename(&away, &index).unwrap();
        let mut stepped = Stepped::on(directory, machine);
        let (events, _) = known(&stepped, &["t1", "t2", "t3"]);
        let counts: Vec<_> = events.iter().map(Vec::len).collect();
        assert_eq!(counts, [0, 0, 1]);
        stepped.receive("t1");
        assert_eq!(stepped.store.head(), Sequence(4), "it is stored, as new");
    }
}

#[test]
fn a_damaged_event_that_is_forgotten_refuses_neither_a_start_nor_a_rebuild() {
    const TASKS: [&str; 4] = ["t0", "t1", "t2", "t3"];
    for is_rebuilt in [false, true] {
        let mut stepped = Stepped::new();
        stepped.receive("t0");
        say(&mut stepped, "t1", "damaged");
        stepped.begin_segment();
        stepped.writer.retention.event_bytes_max = 0;
        assert_eq!(stepped.trim(), 3);
        stepped.writer.retention = Retention::KEEP_ALL;
        stepped.receive("t3");
        damage(&stepped, "damaged");
        let (directory, machine) = ended(stepped);
        if is_rebuilt {
            std::fs::remove_dir_all(directory.path().join("index")).unwrap();
        }
        let mut stepped = Stepped::on(directory, machine);
        let (events, _) = known(&stepped, &TASKS);
        let counts: Vec<_> = events.iter().map(Vec::len).collect();
        assert_eq!(counts, [0, 0, 0, 1], "{is_rebuilt}");
        stepped.receive("t1");
        assert_eq!(stepped.store.head(), Sequence(5), "it is stored, as new");
    }
}

#[test]
fn a_rebuild_is_refused_if_the_damaged_segment_has_to_do_with_the_quarantine() {
    for leaves in [false, true] {
        let mut stepped = Stepped::new();
        let first = stepped.quarantine();
        if leaves {
            next_segment(&mut stepped);
        }
        say(&mut stepped, "t1", "damaged");
        if leaves {
            let discarded = stepped.appender.discard(vec![first]);
            stepped.step();
            assert_eq!(discarded.blocking_recv().unwrap(), Ok(1));
        } else {
            stepped.quarantine();
        }
        next_segment(&mut stepped);
        stepped.receive("t2");
        stepped.writer.retention.event_bytes_max = 0;
        stepped.trim();
        assert_eq!(stepped.store.first_available(), Sequence(3));
        let (directory, machine) = ended(stepped);
        std::fs::remove_dir_all(directory.path().join("index")).unwrap();
        let number = if leaves { 2 } else { 1 };
        let path = segment(directory.path(), number);
        change(&path, |bytes| {
            let at = bytes.windows(7).position(|it| it == b"damaged").unwrap();
            bytes[at] ^= 1;
        });
        let refused = Store::open_by(machine.source(), directory.path(), 1 << 20);
        assert!(
            matches!(&refused, Err(OpenError::Corrupt { problem, .. }) if problem.contains(path.to_str().unwrap())),
            "{refused:?}"
        );
    }
}

#[test]
fn a_catching_up_that_is_cut_off_never_says_that_the_index_has_less_than_it_has() {
    let mut stepped = Stepped::new();
    // A start has to replay from here.
    stepped.store.log.note_announced(Vec::new());
    for task in ["t1", "t2", "t3", "t4"] {
        stepped.receive(task);
        next_segment(&mut stepped);
    }
    stepped.receive("t5");
    stepped.store.checkpoint().unwrap();
    let commits = stepped.store.log.applied();
    let (directory, machine) = ended(stepped);
    let whole = change(&segment(directory.path(), 4), |bytes| flip(bytes));
    let said = || {
        let index = Index::open(directory.path(), 1 << 20).unwrap();
        let said = index.checkpoint.unwrap();
        (said.commit, said.replay_from, said.is_on_the_way)
    };
    assert_eq!(said(), (commits, 1, false));
    assert!(Store::open_by(machine.source(), directory.path(), 1 << 20).is_err());
    assert_eq!(said(), (commits, 4, true));
    std::fs::write(segment(directory.path(), 4), whole).unwrap();
    let stepped = Stepped::on(directory, machine);
    assert_eq!(stepped.store.head(), Sequence(5));
}

#[test]
fn an_index_behind_a_link_is_emptied_in_place_and_one_behind_a_broken_link_is_refused() {
    let mut stepped = Stepped::new();
    stepped.receive("t1");
    let expected = known(&stepped, &["t1"]);
    let (directory, machine) = ended(stepped);
    let elsewhere = tempfile::tempdir().unwrap();
    let (index, target) = (
        directory.path().join("index"),
        elsewhere.path().join("index"),
    );
    std::fs::rename(&index, &target).unwrap();
    std::os::unix::fs::symlink(&target, &index).unwrap();
    // As a file system of its own has.
    std::fs::create_dir(target.join("lost+found")).unwrap();

    index_doubt::Doubt::of(directory.path()).write();
    let stepped = Stepped::on(directory, machine);
    assert_eq!(known(&stepped, &["t1"]), expected);
    let (directory, machine) = ended(stepped);
    assert!(std::fs::symlink_metadata(&index).unwrap().is_symlink());
    assert!(target.join("keyspaces").exists() && target.join("lost+found").exists());
    assert_eq!(index_doubt::said_in(directory.path()), None);

    std::fs::rename(&target, elsewhere.path().join("away")).unwrap();
    let refused = Store::open_by(machine.source(), directory.path(), 1 << 20);
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains(index.to_str().unwrap()) && refused.contains("or remove it"),
        "{refused}"
    );
    std::fs::rename(elsewhere.path().join("away"), &target).unwrap();
    let stepped = Stepped::on(directory, machine);
    assert_eq!(known(&stepped, &["t1"]), expected);
}

#[test]
fn an_index_is_not_emptied_if_there_is_anything_else_in_its_folder() {
    let mut stepped = Stepped::new();
    stepped.receive("t1");
    let expected = known(&stepped, &["t1"]);
    let (directory, machine) = ended(stepped);
    let index = directory.path().join("index");
    let files = || {
        let entries = std::fs::read_dir(&index).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    std::fs::write(index.join("accounts.xls"), "").unwrap();
    index_doubt::Doubt::of(directory.path()).write();
    let before = files();
    let refused = Store::open_by(machine.source(), directory.path(), 1 << 20);
    let said = refused.unwrap_err().to_string();
    assert!(
        said.contains("accounts.xls") && said.contains(index.to_str().unwrap()),
        "{said}"
    );
    assert_eq!(files(), before, "nothing is removed");

    std::fs::remove_file(index.join("accounts.xls")).unwrap();
    let stepped = Stepped::on(directory, machine);
    assert_eq!(known(&stepped, &["t1"]), expected);
}

#[test]
fn a_log_begins_beside_an_index_that_is_mounted_or_linked_and_empty() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(elsewhere.path().join("lost+found")).unwrap();
    let index = directory.path().join("index");
    std::os::unix::fs::symlink(elsewhere.path(), &index).unwrap();
    let mut stepped = Stepped::on(directory, Machine::right());
    stepped.receive("t1");
    assert!(elsewhere.path().join("keyspaces").exists());

    // From then on it says that there is a log.
    let (directory, machine) = ended(stepped);
    for name in ["log", "acknowledged", "acknowledged.copy"] {
        let path = directory.path().join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }
    let refused = Store::open_by(machine.source(), directory.path(), 1 << 20);
    assert!(
        matches!(&refused, Err(OpenError::Corrupt { problem, .. }) if problem == "the log is lost"),
        "{refused:?}"
    );
}

#[test]
fn an_index_that_has_all_of_the_log_is_kept_though_a_power_cut_took_back_the_segment_it_names() {
    for lacks_a_commit in [false, true] {
        let mut stepped = Stepped::new();
        stepped.receive("t1");
        if lacks_a_commit {
            next_segment(&mut stepped);
            stepped.store.checkpoint().unwrap();
            stepped.receive("t2");
        } else {
            next_segment(&mut stepped);
            stepped.store.checkpoint().unwrap();
        }
        let (directory, machine) = ended(stepped);
        if lacks_a_commit {
            // It names a segment that was never begun, and lacks the last commit.
            let index = Index::open(directory.path(), 1 << 20).unwrap();
            let said = index.checkpoint.unwrap();
            let named = Checkpoint {
                replay_from: 3,
                ..said
            };
            index.sync(named, Unsynced::default(), || Ok(())).unwrap();
        } else {
            change(&segment(directory.path(), 2), |bytes| bytes.fill(0));
        }
        // An index with this cannot be emptied.
        let foreign = directory.path().join("index/foreign");
        std::fs::write(&foreign, "").unwrap();
        let opened = Store::open_by(machine.source(), directory.path(), 1 << 20);
        assert_eq!(
            matches!(opened, Err(OpenError::Foreign { .. })),
            lacks_a_commit,
            "{opened:?}"
        );
        if let Ok(store) = opened {
            assert_eq!(store.head(), Sequence(1));
        }
    }
}

/// Two events in a segment that a start does not replay, and what says more behind them.
fn with_ends(is_newest: bool) -> (Stepped, Sequence) {
    let mut stepped = Stepped::new();
    if is_newest {
        stepped.receive("t1");
        say(&mut stepped, "t2", "damaged");
        let totals = *lock(&stepped.store.totals);
        stepped.store.log.finish(&totals).unwrap();
        stepped.quarantine();
        stepped.store.checkpoint().unwrap();
        (stepped, Sequence(2))
    } else {
        say(&mut stepped, "t1", "damaged");
        stepped.begin_segment();
        (stepped, Sequence(1))
    }
}

#[test]
fn a_start_over_a_damaged_oldest_or_newest_event_serves_everything_else() {
    for is_newest in [false, true] {
        let (stepped, damaged) = with_ends(is_newest);
        damage(&stepped, "damaged");
        let mut stepped = stepped.reopen();
        assert!(
            matches!(stepped.store.get(damaged), Err(ReadError::Corrupt(_))),
            "{damaged:?}"
        );
        let other = Sequence(3 - damaged.0);
        assert!(stepped.store.get(other).unwrap().is_some(), "{other:?}");
        stepped.receive("t3");
        assert_eq!(stepped.store.head(), Sequence(3));
        assert!(stepped.store.get(Sequence(3)).unwrap().is_some());
        assert_eq!(stepped.store.health(), Health::Writable);
    }
}
