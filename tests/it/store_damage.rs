//! A data directory that has lost a part: refused, named, and left as it is. Nothing that was acknowledged is silently missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use blobcast::{
    store::{OpenError, Store},
    wire::v1::DiscardQuarantinedRequest,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use serde_json::json;

use crate::{
    store_door::{complaint, copy_directory, journal, start_in_vain},
    support::{Server, completed, until, with},
};

/// What a store is asked for once it is open.
fn counts(store: &Store) -> (u64, u64) {
    (store.head().0, store.quarantined_after(0, usize::MAX, usize::MAX).unwrap().len() as u64)
}

/// What a copy of a data directory opens as after something was done to it; `Err` is how it was refused.
fn opened_after(data_dir: &Path, change: impl FnOnce(&Path)) -> Result<(u64, u64), OpenError> {
    let copy = tempfile::tempdir().unwrap();
    copy_directory(data_dir, copy.path());
    change(copy.path());
    Store::open(copy.path(), 1 << 20).map(|store| counts(&store))
}

/// How it was refused.
fn refused(opened: Result<(u64, u64), OpenError>) -> String {
    let error = opened.expect_err("it must be refused");
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("blobcast restore") && told.contains("empty log"), "what to do is missing: {told}");
    told
}

/// Changes a database past its store.
fn tamper(data_dir: &Path, keyspace: &str, change: impl FnOnce(&Keyspace)) {
    let database = Database::builder(data_dir).open().unwrap();
    change(&database.keyspace(keyspace, KeyspaceCreateOptions::default).unwrap());
    database.persist(PersistMode::SyncAll).unwrap();
}

/// A broker that has taken so many events and quarantined callbacks and was killed.
async fn killed_with(events: u64, quarantined: u64) -> Server {
    let mut server = Server::start().await;
    for number in 0..events {
        server.http().post(&completed(&format!("t{number}"))).await.event_id();
    }
    for number in 0..quarantined {
        assert_eq!(server.http().post_to("/webhook/veo", format!("garbage-{number}")).await.status, 202);
    }
    server.kill();
    journal(&server.data_dir());
    server
}

/// The folders of the store's four keyspaces, in the order in which they were made.
fn folders(data_dir: &Path) -> Vec<PathBuf> {
    (1..=4).map(|number| data_dir.join(format!("keyspaces/{number}"))).collect()
}

#[tokio::test]
async fn a_lost_part_of_the_store_is_refused_before_the_database_deletes_the_rest_of_it() {
    let mut server = killed_with(20, 5).await;
    let data_dir = server.data_dir();
    for folder in folders(&data_dir) {
        let (current, aside) = (folder.join("current"), folder.join("aside"));
        fs::rename(&current, &aside).unwrap();
        let told = complaint(&start_in_vain(&data_dir).await);
        assert!(told.contains(&format!("{} is lost", current.display())), "{told}");
        fs::rename(&aside, &current).unwrap();
        assert_eq!(opened_after(&data_dir, |_| ()).unwrap(), (20, 5), "put back, all is there again");
        // Tables alone tell that the folder was in use, also when the witness is gone.
        let without_witness = opened_after(&data_dir, |copy| {
            let folder = copy.join(folder.strip_prefix(&data_dir).unwrap());
            fs::remove_file(copy.join("acknowledged")).unwrap();
            fs::remove_file(folder.join("current")).unwrap();
            fs::write(folder.join("tables/0"), "a table").unwrap();
        });
        assert!(refused(without_witness).contains("current is lost"));
    }
    server.restart().await;
    assert_eq!(server.log_of_events().await.len(), 20);
}

#[tokio::test]
async fn a_keyspace_that_is_gone_altogether_is_refused_by_name() {
    for (events, quarantined) in [(20, 5), (0, 0)] {
        let server = killed_with(events, quarantined).await;
        let names = folders(&server.data_dir()).into_iter().map(|folder| {
            let folder = folder.strip_prefix(server.data_dir()).unwrap().to_owned();
            refused(opened_after(&server.data_dir(), |copy| fs::remove_dir_all(copy.join(folder)).unwrap()))
        });
        for (told, name) in names.zip(["meta", "events", "tasks", "quarantine"]) {
            assert!(told.contains(&format!("the keyspace {name} is lost")), "{told}");
        }
    }
}

#[tokio::test]
async fn a_store_that_was_started_as_another_is_refused() {
    for events in [0, 3] {
        let server = killed_with(events, 0).await;
        for key in ["format", "epoch", "totals"] {
            let opened =
                opened_after(&server.data_dir(), |copy| tamper(copy, "meta", |meta| meta.remove(key).unwrap()));
            assert!(refused(opened).contains("identity is lost"), "without {key}");
        }
        let wiped = opened_after(&server.data_dir(), |copy| {
            tamper(copy, "meta", |meta| {
                ["format", "epoch", "totals"].iter().for_each(|key| meta.remove(*key).unwrap());
            });
        });
        assert!(refused(wiped).contains("identity is lost"));
        let other = opened_after(&server.data_dir(), |copy| {
            tamper(copy, "meta", |meta| meta.insert("epoch", 7u64.to_le_bytes()).unwrap());
        });
        assert!(refused(other).contains("it is log 0000000000000007, and log "));
    }
}

#[tokio::test]
async fn totals_that_do_not_fit_the_log_are_refused() {
    let server = killed_with(3, 2).await;
    // The second and the fourth number are how many events and how many numbers in quarantine there are.
    for (at, change) in [(0, 1), (1, 1), (1, -1), (4, 3)] {
        let opened = opened_after(&server.data_dir(), |copy| {
            tamper(copy, "meta", |meta| {
                let mut totals = meta.get("totals").unwrap().unwrap().to_vec();
                let number = totals[at * 8..].first_chunk_mut().unwrap();
                *number = u64::from_le_bytes(*number).strict_add_signed(change).to_le_bytes();
                meta.insert("totals", totals).unwrap();
            });
        });
        refused(opened);
    }
}

#[tokio::test]
async fn a_task_index_that_does_not_know_the_newest_or_the_oldest_event_is_refused() {
    let server = killed_with(3, 0).await;
    for (task, place) in [("t0", 1), ("t2", 3)] {
        let opened =
            opened_after(&server.data_dir(), |copy| tamper(copy, "tasks", |tasks| tasks.remove(task).unwrap()));
        let told = refused(opened);
        assert!(told.contains(&format!("the task index does not know event {place}")), "{told}");
    }
}

#[tokio::test]
async fn a_quarantine_that_is_emptier_than_its_count_is_refused() {
    let server = killed_with(0, 3).await;
    for gone in [&[1, 2, 3][..], &[1], &[3]] {
        let opened = opened_after(&server.data_dir(), |copy| {
            tamper(copy, "quarantine", |quarantine| {
                gone.iter().for_each(|number: &u64| quarantine.remove(number.to_be_bytes()).unwrap());
            });
        });
        assert!(refused(opened).contains("3 callbacks must be in quarantine"));
    }
}

/// What a broker's directory opens as with another journal; `None` if it is refused.
fn opened_with(data_dir: &Path, journal: &[u8], witnessed: bool) -> Option<(u64, u64)> {
    // A damaged length trips an assertion of the database that a release build does not have; that, too, swallows nothing.
    let opened = std::panic::catch_unwind(|| {
        opened_after(data_dir, |copy| {
            fs::write(copy.join("0.jnl"), journal).unwrap();
            if !witnessed {
                fs::remove_file(copy.join("acknowledged")).unwrap();
            }
        })
    });
    opened.ok()?.ok()
}

#[tokio::test]
async fn a_damaged_byte_of_the_journal_never_swallows_quarantined_callbacks() {
    let server = killed_with(1, 6).await;
    let journal = journal(&server.data_dir());
    let find = |text: &[u8]| journal.windows(text.len()).position(|window| window == text).unwrap();
    // From the end of one callback's body to the start of the next: all that lies between two values.
    let between = find(b"garbage-2") + b"garbage-2".len()..find(b"garbage-3");
    let opened_with_damage_at = |at: usize, witnessed| {
        let mut damaged = journal.clone();
        damaged[at] ^= 1;
        opened_with(&server.data_dir(), &damaged, witnessed)
    };
    let swallowed = between.clone().filter(|&at| opened_with_damage_at(at, false).is_some_and(|(_, kept)| kept < 6));
    let swallowed: Vec<_> = swallowed.collect();
    assert!(!swallowed.is_empty(), "to the database alone some damage is a torn write");
    for at in between {
        let opened = opened_with_damage_at(at, true);
        assert!(opened.is_none_or(|opened| opened == (1, 6)), "at {at}: {opened:?}");
    }
    for end in [find(b"garbage-5"), find(b"garbage-0") - 1, journal.len() - 1] {
        assert_eq!(opened_with(&server.data_dir(), &journal[..end], true), None, "cut at {end}");
        assert!(opened_with(&server.data_dir(), &journal[..end], false).is_some_and(|(_, kept)| kept < 6));
    }
}

#[tokio::test]
async fn a_number_of_the_quarantine_is_witnessed_without_any_event() {
    let mut server = killed_with(0, 2).await;
    let before = fs::read(server.data_dir().join("acknowledged")).unwrap();
    server.restart().await;
    assert_eq!(server.http().post_to("/webhook/veo", "garbage-2").await.status, 202);
    until("the witness", async || fs::read(server.data_dir().join("acknowledged")).unwrap() != before).await;
    server.kill();
    let journal = journal(&server.data_dir());
    assert_eq!(opened_with(&server.data_dir(), &journal, true), Some((0, 3)));
    assert_eq!(opened_with(&server.data_dir(), &journal[..journal.len() - 1], true), None);
}

#[tokio::test]
async fn a_damaged_witness_is_named_and_can_be_removed_if_the_log_is_trusted() {
    let mut server = killed_with(3, 2).await;
    let witness = server.data_dir().join("acknowledged");
    let whole = fs::read(&witness).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        let opened = opened_after(&server.data_dir(), |copy| fs::write(copy.join("acknowledged"), damaged).unwrap());
        assert!(matches!(opened, Err(OpenError::Witness(_))), "bit {} of byte {at}: {opened:?}", at % 8);
    }
    fs::write(&witness, &whole[..whole.len() - 1]).unwrap();
    let told = complaint(&start_in_vain(&server.data_dir()).await);
    assert!(told.contains(witness.to_str().unwrap()), "{told}");
    assert!(told.contains("if the log can be trusted, remove this one file and start again"), "{told}");
    fs::remove_file(&witness).unwrap();
    server.restart().await;
    assert_eq!(server.log_of_events().await.len(), 3);
    assert!(server.log().contains("the file `acknowledged` is missing"), "{}", server.log());
    assert_eq!(fs::read(&witness).unwrap(), whole, "it is written anew");
}

#[tokio::test]
async fn a_last_commit_that_a_power_cut_has_torn_is_cut_off_unless_it_was_acknowledged() {
    let mut server = killed_with(3, 0).await;
    let data_dir = server.data_dir();
    let begin = journal(&data_dir).len();
    let witness = fs::read(data_dir.join("acknowledged")).unwrap();
    server.restart().await;
    server.http().post(&with(completed("torn"), json!({"prompt": "x".repeat(8_000)}))).await.event_id();
    server.kill();
    let end = journal(&data_dir).len();
    let sector_lost = |copy: &Path| {
        let mut journal = fs::read(copy.join("0.jnl")).unwrap();
        journal[(begin + end) / 2..][..512].fill(0);
        fs::write(copy.join("0.jnl"), journal).unwrap();
    };
    let told = refused(opened_after(&data_dir, sector_lost));
    assert!(told.contains("ChecksumMismatch"), "{told}");
    refused(opened_after(&data_dir, |copy| {
        sector_lost(copy);
        fs::remove_file(copy.join("acknowledged")).unwrap();
    }));
    // The witness is not synced, so a power cut takes it back.
    sector_lost(&data_dir);
    fs::write(data_dir.join("acknowledged"), witness).unwrap();
    server.restart().await;
    assert_eq!(server.log_of_events().await.len(), 3);
    assert_eq!(
        fs::metadata(data_dir.join(format!("0.{begin}.torn"))).unwrap().len(),
        (end - begin) as u64,
        "what was cut is kept"
    );
    server.http().post(&completed("torn")).await.event_id();
    server.kill();
    server.restart().await;
    assert_eq!(server.log_of_events().await[3].task_id, "torn");
}

#[tokio::test]
async fn what_the_database_cannot_read_is_told_as_damage() {
    let server = killed_with(3, 0).await;
    for folder in folders(&server.data_dir()) {
        let folder = folder.strip_prefix(server.data_dir()).unwrap();
        for byte in 0..8 {
            let opened = opened_after(&server.data_dir(), |copy| {
                let path = copy.join(folder).join("current");
                let mut current = fs::read(&path).unwrap();
                current[byte] ^= 1;
                fs::write(path, current).unwrap();
            });
            let told = refused(opened);
            assert!(told.contains("the database cannot read its files"), "{told}");
        }
    }
}

#[tokio::test]
async fn a_discard_that_was_acknowledged_is_not_undone_by_a_damaged_value() {
    let mut server = killed_with(1, 2).await;
    let data_dir = server.data_dir();
    server.restart().await;
    let begin = journal(&data_dir).len();
    let discard = DiscardQuarantinedRequest { quarantine_ids: vec!["1".into()] };
    assert_eq!(
        server.admin_service().await.discard_quarantined(discard).await.unwrap().into_inner().discarded_count,
        1
    );
    server.kill();
    assert_eq!(opened_after(&data_dir, |_| ()).unwrap(), (1, 1));
    let end = journal(&data_dir).len();
    let mut undone = 0;
    for at in begin..end {
        let opened = opened_after(&data_dir, |copy| {
            let mut journal = fs::read(copy.join("0.jnl")).unwrap();
            journal[at] ^= 1;
            fs::write(copy.join("0.jnl"), journal).unwrap();
        });
        undone += u32::from(matches!(opened, Ok((1, 2))));
        assert!(opened.as_ref().map_or_else(is_corrupt, |left| left.0 == 1), "byte {at}: {opened:?}");
    }
    // Some bytes are no value's. Where those are damaged, the commit reads as a torn end to the database, which drops it.
    assert!(undone < (end - begin) as u32 / 2, "{undone} of {} damaged bytes undid it", end - begin);
}

fn is_corrupt(error: &OpenError) -> bool {
    matches!(error, OpenError::Corrupt { .. })
}
