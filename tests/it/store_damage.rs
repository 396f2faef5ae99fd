//! A damaged data directory: the start is refused, the damage is named, and nothing is changed. No
//! acknowledged event is silently missing.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use blobcast::{
    store::{OpenError, Store},
    wire::v1::DiscardQuarantinedRequest,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use serde_json::json;

use crate::{
    store_door::{complaint, copy_directory, log, segment, shorten_journal, start_in_vain},
    support::{Server, completed, until, with},
};

/// What a store is asked for once it is open.
fn counts(store: &Store) -> (u64, u64) {
    (
        store.head().0,
        store
            .quarantined_after(0, usize::MAX, usize::MAX)
            .unwrap()
            .len() as u64,
    )
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
    assert!(
        told.contains("blobcast restore") && told.contains("empty log"),
        "what to do is missing: {told}"
    );
    told
}

/// What was acknowledged, and its copy.
const WITNESSES: [&str; 2] = ["acknowledged", "acknowledged.copy"];

fn remove_witnesses(data_dir: &Path) {
    WITNESSES
        .iter()
        .for_each(|name| fs::remove_file(data_dir.join(name)).unwrap());
}

/// Changes a database past its store.
fn tamper(data_dir: &Path, keyspace: &str, change: impl FnOnce(&Keyspace)) {
    let database = Database::builder(data_dir).open().unwrap();
    change(
        &database
            .keyspace(keyspace, KeyspaceCreateOptions::default)
            .unwrap(),
    );
    database.persist(PersistMode::SyncAll).unwrap();
}

/// A broker that has taken so many events and quarantined callbacks and was killed.
async fn killed_with(events: u64, quarantined: u64) -> Server {
    let mut server = Server::start().await;
    for number in 0..events {
        server
            .http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    for number in 0..quarantined {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", format!("garbage-{number}"))
                .await
                .status,
            202
        );
    }
    server.kill();
    shorten_journal(&server.data_dir());
    server
}

/// The same, and more than the first segment of the log holds, so that a start does not tell the database of it again.
async fn killed_behind_a_checkpoint() -> Server {
    let mut server = Server::start().await;
    server.http().post_bulky(0..3, 100_000).await;
    for number in 0..3 {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", format!("{number}{}", "?".repeat(400_000)))
                .await
                .status,
            202
        );
    }
    let log = server.data_dir().join("log");
    until("the second segment", async || {
        fs::read_dir(&log).unwrap().count() == 2
    })
    .await;
    // A start makes the checkpoint, if the broker has not by then, and the next commit notes it.
    server.crash().await;
    assert_eq!(
        server
            .http()
            .post_to("/webhook/veo", "garbage")
            .await
            .status,
        202
    );
    server.kill();
    shorten_journal(&server.data_dir());
    server
}

/// The folders of the database's keyspaces, in the order in which they were made.
fn folders(data_dir: &Path) -> Vec<PathBuf> {
    (1..=3)
        .map(|number| data_dir.join(format!("keyspaces/{number}")))
        .collect()
}

#[tokio::test]
async fn a_lost_part_of_the_store_is_refused_before_the_database_deletes_the_rest_of_it() {
    let mut server = killed_with(20, 5).await;
    let data_dir = server.data_dir();
    for folder in folders(&data_dir) {
        let (current, aside) = (folder.join("current"), folder.join("aside"));
        fs::rename(&current, &aside).unwrap();
        let told = complaint(&start_in_vain(&data_dir).await);
        assert!(
            told.contains(&format!("{} is lost", current.display())),
            "{told}"
        );
        fs::rename(&aside, &current).unwrap();
        assert_eq!(
            opened_after(&data_dir, |_| ()).unwrap(),
            (20, 5),
            "put back, all is there again"
        );
        // Tables alone tell that the folder was in use, also when the witness is gone.
        let without_witness = opened_after(&data_dir, |copy| {
            let folder = copy.join(folder.strip_prefix(&data_dir).unwrap());
            remove_witnesses(copy);
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
            refused(opened_after(&server.data_dir(), |copy| {
                fs::remove_dir_all(copy.join(folder)).unwrap()
            }))
        });
        for (told, name) in names.zip(["meta", "tasks", "quarantine"]) {
            assert!(
                told.contains(&format!("the keyspace {name} is lost")),
                "{told}"
            );
        }
    }
}

#[tokio::test]
async fn a_store_that_was_started_as_another_is_refused() {
    for events in [0, 3] {
        let server = killed_with(events, 0).await;
        for key in ["format", "epoch"] {
            let opened = opened_after(&server.data_dir(), |copy| {
                tamper(copy, "meta", |meta| meta.remove(key).unwrap())
            });
            assert!(
                refused(opened).contains("identity is lost"),
                "without {key}"
            );
        }
        let wiped = opened_after(&server.data_dir(), |copy| {
            tamper(copy, "meta", |meta| {
                ["format", "epoch"]
                    .iter()
                    .for_each(|key| meta.remove(*key).unwrap())
            });
        });
        assert!(refused(wiped).contains("identity is lost"));
        let other = opened_after(&server.data_dir(), |copy| {
            tamper(copy, "meta", |meta| {
                meta.insert("epoch", 7u64.to_le_bytes()).unwrap()
            });
        });
        assert!(refused(other).contains("its index is that of log 0000000000000007"));
        let other = killed_with(events, 0).await;
        let mixed = opened_after(&server.data_dir(), |copy| {
            fs::copy(segment(&other.data_dir()), segment(copy)).unwrap();
        });
        assert!(refused(mixed).contains("was acknowledged"));
        let lost = opened_after(&server.data_dir(), |copy| {
            fs::remove_dir_all(copy.join("log")).unwrap()
        });
        assert!(refused(lost).contains("the log is lost"));
    }
}

#[tokio::test]
async fn a_task_index_that_does_not_know_the_newest_or_the_oldest_event_is_refused() {
    let server = killed_behind_a_checkpoint().await;
    for (task, place) in [("t0", 1), ("t2", 3)] {
        let opened = opened_after(&server.data_dir(), |copy| {
            tamper(copy, "tasks", |tasks| tasks.remove(task).unwrap())
        });
        let told = refused(opened);
        assert!(
            told.contains(&format!("the task index does not know event {place}")),
            "{told}"
        );
    }
}

#[tokio::test]
async fn a_quarantine_that_is_emptier_than_its_count_is_refused() {
    let server = killed_behind_a_checkpoint().await;
    for gone in [&[1, 2][..], &[1]] {
        let opened = opened_after(&server.data_dir(), |copy| {
            tamper(copy, "quarantine", |quarantine| {
                gone.iter()
                    .for_each(|number: &u64| quarantine.remove(number.to_be_bytes()).unwrap());
            });
        });
        assert!(refused(opened).contains("4 callbacks must be in quarantine"));
    }
}

#[tokio::test]
async fn what_the_database_has_lost_since_the_last_checkpoint_is_told_anew_by_the_log() {
    let mut server = Server::start().await;
    let data_dir = server.data_dir();
    server.kill();
    let synced = shorten_journal(&data_dir);
    server.restart().await;
    let mut event_ids = Vec::new();
    for number in 0..20 {
        event_ids.push(
            server
                .http()
                .post(&completed(&format!("t{number}")))
                .await
                .event_id(),
        );
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", format!("garbage-{number}"))
                .await
                .status,
            202
        );
    }
    let discard = DiscardQuarantinedRequest {
        quarantine_ids: vec!["3".into(), "7".into()],
    };
    server
        .admin_service()
        .await
        .discard_quarantined(discard)
        .await
        .unwrap();
    server.kill();
    let end = shorten_journal(&data_dir);
    assert!(end > synced + 2_000, "the database was told");
    let lose = |data_dir: &Path, lost: Range<usize>| {
        let mut journal = fs::read(data_dir.join("0.jnl")).unwrap();
        journal[lost].fill(0);
        fs::write(data_dir.join("0.jnl"), journal).unwrap();
    };
    // All of it, a part of it, and holes in it.
    let holes = (synced..end).step_by(500).map(|at| at..(at + 500).min(end));
    for lost in [synced..end, (synced + end) / 2..end, end - 1..end]
        .into_iter()
        .chain(holes)
    {
        let opened = opened_after(&data_dir, |copy| lose(copy, lost.clone()));
        assert_eq!(opened.unwrap(), (20, 18), "{lost:?}");
    }
    lose(&data_dir, synced + 1_000..synced + 1_100);
    server.restart().await;
    for (number, event_id) in event_ids.iter().enumerate() {
        let answer = server.http().post(&completed(&format!("t{number}"))).await;
        assert!(
            answer.duplicate() && answer.event_id() == *event_id,
            "t{number}"
        );
    }
    server.kill();
    // What is synced is another matter.
    lose(&data_dir, 20..60);
    let told = complaint(&start_in_vain(&data_dir).await);
    assert!(
        told.contains("the database cannot read its files: its journal is not as it was written"),
        "{told}"
    );
}

/// What a broker's directory opens as with another log; `None` if it is refused.
fn opened_with(data_dir: &Path, log: &[u8], both: bool) -> Option<(u64, u64)> {
    let opened = opened_after(data_dir, |copy| {
        fs::write(segment(copy), log).unwrap();
        if !both {
            fs::remove_file(copy.join("acknowledged")).unwrap();
        }
    });
    opened.ok()
}

#[tokio::test]
async fn a_damaged_byte_of_the_log_never_swallows_quarantined_callbacks() {
    let server = killed_with(1, 6).await;
    let log = log(&server.data_dir());
    let find = |text: &[u8]| {
        log.windows(text.len())
            .position(|window| window == text)
            .unwrap()
    };
    // From the end of one callback's body to the end of the next.
    for at in find(b"garbage-2") + b"garbage-2".len()..find(b"garbage-3") + b"garbage-3".len() {
        let mut damaged = log.clone();
        damaged[at] ^= 1;
        let opened = [true, false].map(|both| opened_with(&server.data_dir(), &damaged, both));
        assert_eq!(opened, [None, None], "at {at}");
    }
    for end in [find(b"garbage-5"), find(b"garbage-0") - 1, log.len() - 1] {
        assert_eq!(
            opened_with(&server.data_dir(), &log[..end], true),
            None,
            "cut at {end}"
        );
    }
}

#[tokio::test]
async fn a_number_of_the_quarantine_is_witnessed_without_any_event() {
    let mut server = killed_with(0, 2).await;
    server.restart().await;
    assert_eq!(
        server
            .http()
            .post_to("/webhook/veo", "garbage-2")
            .await
            .status,
        202
    );
    server.kill();
    let log = log(&server.data_dir());
    assert_eq!(opened_with(&server.data_dir(), &log, true), Some((0, 3)));
    assert_eq!(
        opened_with(&server.data_dir(), &log[..log.len() - 1], true),
        None
    );
}

#[tokio::test]
async fn damaged_witnesses_are_named_and_can_be_removed_if_the_log_is_trusted() {
    let mut server = killed_with(3, 2).await;
    let data_dir = server.data_dir();
    let whole = fs::read(data_dir.join(WITNESSES[0])).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        let opened = opened_after(&data_dir, |copy| {
            WITNESSES
                .iter()
                .for_each(|name| fs::write(copy.join(name), &damaged).unwrap());
        });
        assert!(
            matches!(opened, Err(OpenError::Acknowledged(_))),
            "bit {} of byte {at}: {opened:?}",
            at % 8
        );
    }
    WITNESSES
        .iter()
        .for_each(|name| fs::write(data_dir.join(name), &whole[..whole.len() - 1]).unwrap());
    let told = complaint(&start_in_vain(&data_dir).await);
    assert!(
        told.contains(data_dir.join("acknowledged").to_str().unwrap()),
        "{told}"
    );
    let advice =
        "if the log can be trusted, remove `acknowledged` and `acknowledged.copy` and start again";
    assert!(told.contains(advice), "{told}");
    remove_witnesses(&data_dir);
    server.restart().await;
    assert_eq!(server.log_of_events().await.len(), 3);
    let warning = "the file `acknowledged` and its copy are missing";
    assert!(server.log().contains(warning), "{}", server.log());
    for name in WITNESSES {
        let numbers = |witness: &[u8]| witness[..24].to_vec(); // events, quarantine, commits
        assert_eq!(
            numbers(&fs::read(data_dir.join(name)).unwrap()),
            numbers(&whole),
            "it is written anew"
        );
    }
}

#[tokio::test]
async fn a_witness_that_is_damaged_or_lost_is_replaced_by_the_other() {
    let mut server = killed_with(3, 2).await;
    let data_dir = server.data_dir();
    let whole = fs::read(data_dir.join(WITNESSES[0])).unwrap();
    let log = log(&data_dir);
    let cut = |copy: &Path| fs::write(segment(copy), &log[..log.len() - 1]).unwrap();
    for name in WITNESSES {
        for damaged in [
            None,
            Some(vec![0; whole.len()]),
            Some(whole[1..].to_vec()),
            Some([&whole[..], b"x"].concat()),
        ] {
            let damage = |copy: &Path| match &damaged {
                Some(bytes) => fs::write(copy.join(name), bytes).unwrap(),
                None => fs::remove_file(copy.join(name)).unwrap(),
            };
            let opened = opened_after(&data_dir, |copy| {
                damage(copy);
                assert_eq!(
                    counts(&Store::open(copy, 1 << 20).unwrap()),
                    (3, 2),
                    "{name} {damaged:?}"
                );
                let written = WITNESSES.map(|name| fs::read(copy.join(name)).unwrap());
                assert_eq!(written[0], written[1], "{name} {damaged:?}");
            });
            assert_eq!(opened.unwrap(), (3, 2), "{name} {damaged:?}");
            let opened = opened_after(&data_dir, |copy| {
                damage(copy);
                cut(copy);
            });
            assert!(
                refused(opened).contains("were acknowledged"),
                "{name} {damaged:?}"
            );
        }
    }
    fs::write(data_dir.join(WITNESSES[0]), "x").unwrap();
    server.restart().await;
    assert!(
        server
            .log()
            .contains("damaged, and replaced by what its other copy says"),
        "{}",
        server.log()
    );
    // What was durable at a checkpoint, as a start makes one, the database knows, too.
    server.kill();
    let lost = opened_after(&data_dir, |copy| {
        remove_witnesses(copy);
        cut(copy);
    });
    assert!(refused(lost).contains("its index knows 5 commits, and the log ends behind 4"));
}

#[tokio::test]
async fn a_last_commit_that_a_power_cut_has_torn_is_cut_off_unless_it_was_acknowledged() {
    let mut server = killed_with(3, 0).await;
    let data_dir = server.data_dir();
    let begin = log(&data_dir).len();
    let witnesses = WITNESSES.map(|name| (name, fs::read(data_dir.join(name)).unwrap()));
    server.restart().await;
    server
        .http()
        .post(&with(
            completed("torn"),
            json!({"prompt": "x".repeat(8_000)}),
        ))
        .await
        .event_id();
    server.kill();
    let end = log(&data_dir).len();
    let sector_lost = |copy: &Path| {
        let mut log = fs::read(segment(copy)).unwrap();
        log[(begin + end) / 2..][..512].fill(0);
        fs::write(segment(copy), log).unwrap();
    };
    let told = refused(opened_after(&data_dir, sector_lost));
    assert!(
        told.contains("4 events were acknowledged, and the log ends behind 3"),
        "{told}"
    );
    // The witnesses are not synced with each commit, so a power cut takes them back.
    sector_lost(&data_dir);
    for (name, bytes) in witnesses {
        let told = refused(opened_after(&data_dir, |_| ()));
        assert!(
            told.contains("4 events were acknowledged, and the log ends behind 3"),
            "{told}"
        );
        fs::write(data_dir.join(name), bytes).unwrap();
    }
    server.restart().await;
    assert_eq!(server.log_of_events().await.len(), 3);
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
            assert!(
                told.contains("the database cannot read its files"),
                "{told}"
            );
        }
    }
}

#[tokio::test]
async fn a_discard_that_was_acknowledged_is_not_undone_by_a_damaged_value() {
    let mut server = killed_with(1, 2).await;
    let data_dir = server.data_dir();
    server.restart().await;
    let begin = log(&data_dir).len();
    let discard = DiscardQuarantinedRequest {
        quarantine_ids: vec!["1".into()],
    };
    assert_eq!(
        server
            .admin_service()
            .await
            .discard_quarantined(discard)
            .await
            .unwrap()
            .into_inner()
            .discarded_count,
        1
    );
    server.kill();
    assert_eq!(opened_after(&data_dir, |_| ()).unwrap(), (1, 1));
    let log = log(&data_dir);
    for at in begin..log.len() {
        let mut damaged = log.clone();
        damaged[at] ^= 1;
        assert_eq!(opened_with(&data_dir, &damaged, true), None, "byte {at}");
    }
}

#[tokio::test]
async fn segments_go_when_nothing_needs_them_and_the_log_is_whole_after_every_kill_9() {
    let mut server = Server::start().await;
    let log = server.data_dir().join("log");
    let files = || {
        let names = fs::read_dir(&log)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    // A log without any event: all it holds is in the database, and synced there with each segment.
    for number in 1..=12 {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", format!("{number}{}", "?".repeat(400_000)))
                .await
                .status,
            202
        );
        server.crash().await;
        assert_eq!(server.log_info().await.quarantine_count, number);
    }
    until("the first segment to go", async || {
        assert_eq!(
            server.http().post_to("/webhook/veo", "small").await.status,
            202
        );
        !files().contains("000000000001.log")
    })
    .await;
    let kept = server.log_info().await.quarantine_count;
    server.crash().await;
    assert_eq!(server.log_info().await.quarantine_count, kept);
}
