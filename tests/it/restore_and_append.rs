//! `restore --append`: the callbacks that a new broker received while the old one was away follow
//! the backup, none lost, none twice.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use blobcast::{
    store::{OpenError, Store},
    wire::v1::{self, Event, GetTaskRequest},
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    backup::{back_up, log_of, names, quarantine_of, shelf},
    erasure::{erase, saying},
    store_door::{complaint, damage_event, start_that_fails},
    support::{
        Cli, Options, Ran, Server, after, completed, failed, is_on_disk, place, processing,
        refusal, until, with,
    },
};

/// In a directory whose callbacks were appended.
const MARK: &str = "appended-to";

/// Every file below a directory but the mark, with what is in it.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.ends_with(MARK) => {}
            path if path.is_dir() => files.extend(self::files(&path)),
            path => drop(files.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    files
}

fn restore(file: &Path, data_dir: &Path, other: &Path) -> Cli {
    Cli::new("restore")
        .arg(file)
        .arg("--data-dir")
        .arg(data_dir)
        .arg("--append")
        .arg(other)
}

/// A directory to restore into, which is not there yet.
fn empty() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    (directory, data_dir)
}

/// A broker on what a backup and another data directory give; that has to be as it was before.
async fn started_from(file: &Path, other: &Path) -> (Server, Ran) {
    let before = files(other);
    let (directory, data_dir) = empty();
    let told = restore(file, &data_dir, other).run().await;
    told.good();
    assert!(
        files(other) == before,
        "what is appended is only read, but for the mark"
    );
    assert!(other.join(MARK).is_file());
    assert!(
        !names(&data_dir)
            .iter()
            .any(|name| name.starts_with("append") || name.starts_with("restore")),
        "nothing is left"
    );
    (Options::default().start_in(directory).await, told)
}

/// An event without what only its log gives it.
fn bare(event: &Event) -> Event {
    Event {
        cursor: String::new(),
        revision: 0,
        conflict: false,
        ..event.clone()
    }
}

#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one outage, from its begin to its end"
)]
async fn what_a_fresh_broker_took_meanwhile_follows_behind_the_backup_once() {
    let (mut old, shelf) = (Server::start().await, shelf());
    let http = old.http();
    for body in [processing("t1"), completed("t1"), completed("t2")] {
        http.post(&body).await.event_id();
    }
    assert_eq!(
        http.post_to("/webhook/veo?team=old", "bad 1").await.status,
        202
    );
    let (log, quarantine) = (log_of(&old).await, quarantine_of(&old).await);
    let file = shelf.path().join("backup");
    back_up(&old, &file).await.good();
    let old_cursor = old.log_info().await.head;
    // After the backup, so the vendor's retry of it is all that there will be.
    http.post(&completed("t3")).await.event_id();
    old.kill();

    let mut fresh = Server::start().await;
    let http = fresh.http();
    // The vendor repeats what the old one may not have answered.
    for body in [completed("t1"), completed("t2"), completed("t3")] {
        assert!(!http.post(&body).await.duplicate());
    }
    assert_eq!(
        http.post_to("/webhook/veo?team=new", "bad 2").await.status,
        202
    );
    let labelled = with(completed("t4"), json!({"prompt": "ü"})).to_string();
    http.post_to("/webhook/sora?team=ads&ref=order-42", labelled)
        .await
        .event_id();
    assert!(
        http.post_to(
            "/webhook/sora?team=ads&ref=order-42",
            completed("t4").to_string()
        )
        .await
        .duplicate()
    );
    // Another last word, and the same task id of another product.
    http.post(&failed("t1")).await.event_id();
    http.post_to("/webhook/kling", completed("t1").to_string())
        .await
        .event_id();
    assert_eq!(
        http.post_to("/webhook/veo?team=new", "bad 3").await.status,
        202
    );
    let (new_log, new_quarantine) = (log_of(&fresh).await, quarantine_of(&fresh).await);
    let new_cursor = fresh.log_info().await.head;
    assert!(fresh.terminate().await.success());

    let (mut restored, told) = started_from(&file, &fresh.data_dir()).await;
    assert!(
        told.stderr
            .contains("3 events and 1 quarantined callbacks are in"),
        "{told:?}"
    );
    assert!(
        told.stderr
            .contains("appended 4 events and 2 quarantined callbacks of"),
        "{told:?}"
    );
    assert!(
        told.stderr
            .contains("2 events and 0 quarantined callbacks were in the backup already"),
        "{told:?}"
    );
    assert!(told.stderr.contains("take a backup"), "{told:?}");

    let repeated = |event: &Event| {
        ["t1", "t2"].contains(&event.task_id.as_str())
            && event.product == "veo"
            && event.status == 3
    };
    let expected = log
        .iter()
        .chain(&new_log)
        .map(|(_, event)| bare(event))
        .collect::<Vec<_>>();
    let expected: Vec<_> = expected
        .iter()
        .enumerate()
        .filter(|(at, event)| *at < 3 || !repeated(event))
        .map(|(_, event)| event.clone())
        .collect();
    assert_eq!(expected.len(), 7);
    for start in 0..2 {
        let all = log_of(&restored).await;
        assert_eq!(
            all.iter().map(|(place, _)| *place).collect::<Vec<_>>(),
            (1..=7).collect::<Vec<_>>()
        );
        assert_eq!(
            all.iter().map(|(_, event)| bare(event)).collect::<Vec<_>>(),
            expected,
            "start {start}"
        );
        assert_eq!(all[..3], log[..], "the backup's are as they were");

        let kept = quarantine_of(&restored).await;
        let without_id = |callback: &v1::QuarantinedCallback| v1::QuarantinedCallback {
            quarantine_id: String::new(),
            ..callback.clone()
        };
        let both: Vec<_> = quarantine
            .iter()
            .chain(&new_quarantine)
            .map(without_id)
            .collect();
        assert_eq!(kept.iter().map(without_id).collect::<Vec<_>>(), both);
        assert_eq!(
            kept.iter()
                .map(|callback| &*callback.quarantine_id)
                .collect::<Vec<_>>(),
            ["1", "2", "3"]
        );

        // Also when the log is replayed after a crash.
        restored.crash().await;
    }

    let get = GetTaskRequest {
        task_id: "t1".into(),
        product: "veo".into(),
        ..Default::default()
    };
    let of_task = restored
        .events()
        .await
        .get_task(get)
        .await
        .unwrap()
        .into_inner()
        .events;
    assert_eq!(
        of_task
            .iter()
            .map(|event| (event.revision, event.conflict))
            .collect::<Vec<_>>(),
        [(1, false), (2, false), (3, true)]
    );
    let info = restored.log_info().await;
    for cursor in [&old_cursor, &new_cursor] {
        let refused = restored.try_subscribe(after(cursor)).await.err().unwrap();
        assert_eq!(refusal(&refused).1, "EPOCH_MISMATCH");
    }
    assert_eq!(
        (place(&info.head), info.event_count, info.quarantine_count),
        (7, 7, 3)
    );

    // It goes on there, and knows every repetition.
    let http = restored.http();
    for body in [
        processing("t1"),
        completed("t1"),
        failed("t1"),
        completed("t2"),
        completed("t3"),
    ] {
        assert!(http.post(&body).await.duplicate());
    }
    http.post(&completed("t9")).await.event_id();
    assert_eq!(place(&restored.log_info().await.head), 8);
    let release = v1::ReleaseQuarantinedRequest {
        quarantine_id: "3".into(),
        body: completed("t10").to_string().into(),
        ..Default::default()
    };
    restored
        .admin_service()
        .await
        .release_quarantined(release)
        .await
        .unwrap();
    assert_eq!(restored.log_of_events().await.pop().unwrap().task_id, "t10");
}

/// A backup of a broker with two tasks.
async fn small_backup(shelf: &TempDir) -> PathBuf {
    let (server, file) = (Server::start().await, shelf.path().join("backup"));
    for task in ["t1", "t2"] {
        server.http().post(&completed(task)).await.event_id();
    }
    back_up(&server, &file).await.good();
    file
}

#[tokio::test]
async fn nothing_is_lost_while_a_backup_is_restored_beside_a_broker_that_takes_callbacks() {
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    let mut fresh = Server::start().await;
    fresh.http().post(&completed("t3")).await.event_id();

    let (directory, data_dir) = empty();
    let told = restore(&file, &data_dir, &fresh.data_dir()).run().await;
    let complaint = told.exited(1);
    assert!(
        complaint.contains("is in use by another process") && complaint.contains("add --wait"),
        "{told:?}"
    );
    assert_eq!(names(&data_dir), [""; 0]);

    let restoring = restore(&file, &data_dir, &fresh.data_dir())
        .arg("--wait")
        .start();
    restoring
        .says("the backup is restored: stop the broker on")
        .await;
    assert!(!fresh.data_dir().join(MARK).exists());
    fresh.http().post(&completed("t4")).await.event_id();
    assert!(fresh.terminate().await.success());
    let told = restoring.ended().await;
    told.good();
    assert!(told.stderr.contains("appended 2 events"), "{told:?}");

    // The last steps of the procedure: the new directory takes the place of the one that was used meanwhile.
    let place_of_it = fresh.data_dir();
    fs::rename(&place_of_it, directory.path().join("meanwhile")).unwrap();
    fs::rename(&data_dir, &place_of_it).unwrap();
    fresh.restart().await;
    let tasks: Vec<_> = fresh
        .log_of_events()
        .await
        .into_iter()
        .map(|event| event.task_id)
        .collect();
    assert_eq!(tasks, ["t1", "t2", "t3", "t4"]);
    assert!(fresh.http().post(&completed("t4")).await.duplicate());
    assert!(fresh.logged("log opened", 1).await[0].contains("\"found\":\"restored\""));
}

#[tokio::test]
async fn a_restore_that_is_killed_before_all_is_appended_leaves_nothing_that_starts() {
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    let backup = fs::read(&file).unwrap();
    let mut fresh = Server::start().await;
    fresh.http().post(&completed("t3")).await.event_id();
    // While the backup is read, and when it is restored and nothing is appended yet.
    for fed in [0, backup.len() / 2, backup.len()] {
        let (_directory, data_dir) = empty();
        let mut restore = Command::new(env!("CARGO_BIN_EXE_blobcast"));
        restore
            .args(["restore", "-", "--wait", "--data-dir"])
            .arg(&data_dir)
            .arg("--append")
            .arg(fresh.data_dir());
        let mut restore = restore
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = restore.stdin.take().unwrap();
        stdin.write_all(&backup[..fed]).unwrap();
        let stdin = (fed < backup.len()).then_some(stdin); // else it has ended
        let begun = match fed {
            0 => data_dir.join("restore-unfinished"),
            _ if fed < backup.len() => data_dir.join("log/000000000001.log"),
            _ => data_dir.join("last-start.json"),
        };
        until("the store to be begun", async || begun.exists()).await;
        if fed == backup.len() {
            let said = std::io::BufReader::new(restore.stderr.take().unwrap());
            let line = tokio::task::spawn_blocking(|| {
                std::io::BufRead::lines(said).next().unwrap().unwrap()
            })
            .await
            .unwrap();
            assert!(line.contains("the backup is restored"), "{line}");
        }
        restore.kill().unwrap();
        restore.wait().unwrap();
        drop(stdin);
        let told = complaint(&start_that_fails(&data_dir).await);
        assert!(
            told.contains("was being restored") && told.contains("`blobcast restore` again"),
            "{told}"
        );
        assert!(matches!(
            Store::open(&data_dir, 1 << 20),
            Err(OpenError::Unfinished(_))
        ));
    }
    fresh.http().post(&completed("t4")).await.event_id();
    assert!(fresh.terminate().await.success());
}

/// Kills a restore at random moments; whatever is there then starts with everything, or not at all.
#[tokio::test]
async fn a_restore_that_is_killed_at_any_moment_leaves_all_or_nothing() {
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    let mut fresh = Server::start().await;
    for number in 0..40 {
        fresh
            .http()
            .post(&completed(&format!("f{number}")))
            .await
            .event_id();
    }
    assert!(fresh.terminate().await.success());
    let began = std::time::Instant::now();
    let (_directory, data_dir) = empty();
    restore(&file, &data_dir, &fresh.data_dir())
        .run()
        .await
        .good();
    let whole = began.elapsed();
    let mut refused = 0;
    for trial in 1..=12 {
        let (_directory, data_dir) = empty();
        let mut running = restore(&file, &data_dir, &fresh.data_dir()).start();
        tokio::time::sleep(whole * trial / 12).await; // a moment of the twelve that it has
        running.signal(rustix::process::Signal::KILL);
        running.status().await;
        if names(&data_dir).is_empty() {
            continue;
        }
        match Store::open(&data_dir, 1 << 20) {
            Ok(store) => assert_eq!(store.head().0, 42, "trial {trial}"),
            Err(OpenError::Unfinished(_)) => refused += 1,
            Err(other) => panic!("trial {trial}: {other}"),
        }
    }
    assert!(refused > 0, "none was killed in the middle");
}

#[tokio::test]
async fn what_was_erased_in_either_log_stays_erased() {
    const OF_BACKUP: &str = "a portrait of Erika Mustermann";
    const OF_OTHER: &str = "a portrait of Max Mustermann";
    let (old, shelf) = (Server::start().await, shelf());
    let (erased_before, erased_later) = (
        saying(completed("t1"), OF_BACKUP),
        saying(completed("t2"), OF_OTHER),
    );
    for body in [
        &erased_before,
        &erased_later,
        &saying(completed("t3"), "a cat"),
    ] {
        old.http().post(body).await.event_id();
    }
    assert_eq!(erase(&old, "veo", "t1").await.unwrap(), 1);
    let file = shelf.path().join("backup");
    back_up(&old, &file).await.good();

    let mut fresh = Server::start().await;
    for body in [&erased_before, &erased_later] {
        assert!(
            !fresh.http().post(body).await.duplicate(),
            "it knows nothing of the old one"
        );
    }
    assert_eq!(erase(&fresh, "veo", "t2").await.unwrap(), 1);
    // What comes behind the erasure is new content, as at every broker.
    fresh.http().post(&failed("t2")).await.event_id();
    assert!(fresh.terminate().await.success());

    let (restored, told) = started_from(&file, &fresh.data_dir()).await;
    assert!(
        told.stderr.contains("appended 1 events")
            && told
                .stderr
                .contains("2 events and 0 quarantined callbacks were"),
        "{told:?}"
    );
    assert!(
        told.stderr.contains("erased 1 events of the backup"),
        "{told:?}"
    );
    assert!(
        told.stderr.contains("1 erased tasks have new content")
            && told.stderr.contains("erase veo t2"),
        "{told:?}"
    );
    let shown: Vec<_> = restored
        .log_of_events()
        .await
        .into_iter()
        .map(|event| (event.task_id, event.revision))
        .collect();
    assert_eq!(shown, [("t3".to_owned(), 1), ("t2".to_owned(), 2)]);
    for body in [&erased_before, &erased_later] {
        assert!(
            restored.http().post(body).await.duplicate(),
            "it brings nothing back"
        );
    }
    for text in [OF_BACKUP, OF_OTHER] {
        assert!(!is_on_disk(&restored.data_dir(), text), "{text}");
    }
}

#[tokio::test]
async fn what_the_other_broker_has_erased_and_the_backup_never_had_stays_erased() {
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    let mut fresh = Server::start().await;
    let body = saying(completed("t3"), "a portrait");
    fresh.http().post(&body).await.event_id();
    assert_eq!(erase(&fresh, "veo", "t3").await.unwrap(), 1);
    assert!(fresh.terminate().await.success());

    let (mut restored, told) = started_from(&file, &fresh.data_dir()).await;
    assert!(
        told.stderr.contains("appended 1 events") && !told.stderr.contains("erased"),
        "{told:?}"
    );
    for _ in 0..2 {
        assert_eq!(
            (
                place(&restored.log_info().await.head),
                restored.log_of_events().await.len()
            ),
            (3, 2)
        );
        assert!(
            restored.http().post(&body).await.duplicate(),
            "it brings nothing back"
        );
        restored.crash().await;
    }
}

/// What came from a backup has its identities in the index only.
#[tokio::test]
async fn a_log_that_was_itself_restored_can_be_appended() {
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    let (mut fresh, second) = (Server::start().await, shelf.path().join("second"));
    for body in [completed("t2"), completed("t5")] {
        fresh.http().post(&body).await.event_id();
    }
    assert_eq!(
        fresh.http().post_to("/webhook/veo", "bad").await.status,
        202
    );
    back_up(&fresh, &second).await.good();
    assert!(fresh.terminate().await.success());
    let (mut other, _) = started_from(&second, &fresh.data_dir()).await;
    assert_eq!(
        (
            other.log_of_events().await.len(),
            quarantine_of(&other).await.len()
        ),
        (2, 1),
        "each is there once"
    );
    assert!(other.terminate().await.success());

    let (restored, told) = started_from(&file, &other.data_dir()).await;
    assert!(
        told.stderr.contains("appended 1 events and 1 quarantined"),
        "{told:?}"
    );
    let tasks: Vec<_> = restored
        .log_of_events()
        .await
        .into_iter()
        .map(|event| event.task_id)
        .collect();
    assert_eq!(tasks, ["t1", "t2", "t5"]);
}

#[tokio::test]
async fn what_cannot_be_appended_is_refused_with_the_next_step_and_nothing_is_restored() {
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    let mut fresh = Server::start().await;
    for task in ["t3", "t4"] {
        fresh.http().post(&completed(task)).await.event_id();
    }
    assert!(fresh.terminate().await.success());
    let (_directory, data_dir) = empty();
    let refused = async |data_dir: &Path, other: &Path| {
        let told = restore(&file, data_dir, other).run().await;
        assert_eq!(names(data_dir), [""; 0], "{told:?}");
        told.exited(1).to_owned()
    };
    for nothing in [
        shelf.path().to_owned(),
        shelf.path().join("none"),
        file.clone(),
    ] {
        let told = refused(&data_dir, &nothing).await;
        assert!(
            told.contains("has no log: name the data directory of the broker"),
            "{told}"
        );
    }
    let within = fresh.data_dir().join("new");
    let told = refused(&within, &fresh.data_dir()).await;
    assert!(
        told.contains("which is only read: restore into a directory elsewhere"),
        "{told}"
    );
    assert!(!within.exists(), "it is not even made");

    damage_event(&fresh.data_dir(), "t3");
    let before = files(&fresh.data_dir());
    let told = refused(&data_dir, &fresh.data_dir()).await;
    assert!(
        told.contains("is damaged") && told.contains("restore without --append for now"),
        "{told}"
    );
    assert!(files(&fresh.data_dir()) == before);
    let cut = shelf.path().join("cut");
    fs::write(&cut, &fs::read(&file).unwrap()[..200]).unwrap();
    let told = restore(&cut, &data_dir, &fresh.data_dir()).run().await;
    assert!(
        told.exited(1).contains("the backup was cut short"),
        "{told:?}"
    );
    assert_eq!(names(&data_dir), [""; 0]);
}

/// What a service manager would do, or a socket unit.
#[tokio::test]
async fn no_broker_starts_on_what_was_appended_without_the_operators_word() {
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    let mut fresh = Server::start().await;
    fresh.http().post(&completed("t3")).await.event_id();
    let (_directory, data_dir) = empty();
    let restoring = restore(&file, &data_dir, &fresh.data_dir())
        .arg("--wait")
        .start();
    restoring
        .says("systemctl stop blobcast.service 'blobcast-*.socket'")
        .await;
    assert!(fresh.terminate().await.success());
    restoring.ended().await.good();

    let mark = fresh.data_dir().join(MARK);
    let told = complaint(&start_that_fails(&fresh.data_dir()).await);
    assert!(
        told.contains("is used up") && told.contains(&format!("remove {}", mark.display())),
        "{told}"
    );
    assert!(
        told.contains(&format!("were appended to {}", data_dir.display())),
        "{told}"
    );
    assert!(matches!(
        Store::open(&fresh.data_dir(), 1 << 20),
        Err(OpenError::UsedUp { .. })
    ));

    // Nothing was lost of it, so it can be appended once more, and used if the operator says so.
    let (_again, second) = empty();
    restore(&file, &second, &fresh.data_dir())
        .run()
        .await
        .good();
    assert!(!second.join(MARK).exists());
    fs::remove_file(mark).unwrap();
    fresh.restart().await;
    assert_eq!(fresh.log_of_events().await.len(), 1);
}

/// The last words of one task: so many that the index does not name all of them.
async fn many_last_words(server: &Server, numbers: std::ops::Range<usize>) {
    for number in numbers {
        server.http().post(&last_word(number)).await.event_id();
    }
}

fn last_word(number: usize) -> serde_json::Value {
    with(
        failed("t1"),
        json!({"error": {"message": format!("reason {number}")}}),
    )
}

#[tokio::test]
async fn what_both_logs_have_of_a_common_past_is_there_once() {
    let (old, shelf) = (Server::start().await, shelf());
    many_last_words(&old, 0..100).await;
    assert_eq!(old.http().post_to("/webhook/veo", "bad").await.status, 202);
    let log = log_of(&old).await;
    assert_eq!(log.len(), 100);
    let file = shelf.path().join("backup");
    back_up(&old, &file).await.good();

    let (directory, data_dir) = empty();
    Cli::new("restore")
        .arg(&file)
        .arg("--data-dir")
        .arg(&data_dir)
        .run()
        .await
        .good();
    let mut other = Options::default().start_in(directory).await;
    many_last_words(&other, 100..140).await;
    assert_eq!(
        other.http().post_to("/webhook/veo", "bad").await.status,
        202
    );
    assert!(other.terminate().await.success());

    let (restored, told) = started_from(&file, &other.data_dir()).await;
    assert!(
        told.stderr.contains("appended 40 events and 1 quarantined"),
        "{told:?}"
    );
    assert!(
        told.stderr
            .contains("100 events and 1 quarantined callbacks were in the backup already"),
        "{told:?}"
    );
    let all = log_of(&restored).await;
    assert!(all.len() == 140 && all[..100] == log[..]);
    assert_eq!(quarantine_of(&restored).await.len(), 2);
}

#[tokio::test]
async fn what_the_index_gives_up_while_it_is_appended_to_is_still_known() {
    let (old, shelf) = (Server::start().await, shelf());
    many_last_words(&old, 0..64).await;
    let file = shelf.path().join("backup");
    back_up(&old, &file).await.good();
    let mut fresh = Server::start().await;
    many_last_words(&fresh, 100..120).await;
    many_last_words(&fresh, 30..64).await;
    assert!(fresh.terminate().await.success());

    let (restored, told) = started_from(&file, &fresh.data_dir()).await;
    assert!(
        told.stderr.contains("appended 20 events") && told.stderr.contains("34 events and 0"),
        "{told:?}"
    );
    assert_eq!(log_of(&restored).await.len(), 84);
}

#[tokio::test]
async fn a_log_behind_a_link_is_appended() {
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    let mut fresh = Server::start().await;
    fresh.http().post(&completed("t3")).await.event_id();
    assert!(fresh.terminate().await.success());
    let elsewhere = shelf.path().join("log");
    fs::rename(fresh.data_dir().join("log"), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, fresh.data_dir().join("log")).unwrap();
    let (restored, _) = started_from(&file, &fresh.data_dir()).await;
    assert_eq!(restored.log_of_events().await.len(), 3);
}

#[tokio::test]
async fn what_was_appended_counts_as_not_backed_up() {
    const SUCCESS: &str = "blobcast_backup_last_success_timestamp_seconds";
    let shelf = shelf();
    let file = small_backup(&shelf).await;
    // As old as its newest event, to the second.
    let whole = started_at(&file, None).await;
    let newest = whole
        .log_of_events()
        .await
        .pop()
        .unwrap()
        .received_at
        .unwrap()
        .seconds as f64;
    let (mut fresh, mut idle) = (Server::start().await, Server::start().await);
    fresh.http().post(&completed("t3")).await.event_id();
    for server in [&mut fresh, &mut idle] {
        assert!(server.terminate().await.success());
    }
    until("a second to pass", async || newest + 1.0 < now()).await;

    let appended = started_at(&file, Some(&fresh.data_dir())).await;
    assert_eq!(appended.metric(SUCCESS).await, newest);
    let nothing = started_at(&file, Some(&idle.data_dir())).await;
    assert!(
        nothing.metric(SUCCESS).await > newest,
        "the backup has everything that is there"
    );
}

fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
        .floor()
}

async fn started_at(file: &Path, other: Option<&Path>) -> Server {
    let (directory, data_dir) = empty();
    let mut restore = Cli::new("restore")
        .arg(file)
        .arg("--data-dir")
        .arg(&data_dir);
    if let Some(other) = other {
        restore = restore.arg("--append").arg(other);
    }
    restore.run().await.good();
    Options::default().start_in(directory).await
}
