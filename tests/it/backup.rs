//! `backup` and `restore`: a backup taken while callbacks arrive is complete, and a log restored
//! from it keeps every guarantee.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use blobcast::{
    store::{OpenError, RestoreError, Store, restore},
    wire::v1::{
        self, BackupResponse, DiscardQuarantinedRequest, Event, GetTaskRequest, ListEventsRequest,
        ListQuarantineRequest, QuarantinedCallback, admin_service_client::AdminServiceClient,
    },
};
use serde_json::json;
use tempfile::TempDir;
use tonic::{Code, Streaming, transport::Endpoint};

use crate::{
    store_door::{complaint, damage_event, start_that_fails},
    support::{
        Cli, Options, Ran, Server, after, bulky, completed, failed, is_on_disk, place, places,
        processing, refusal, request, tasks, until, with,
    },
};

/// Every event with its body, and its place instead of its cursor, which another log spells otherwise.
pub async fn log_of(server: &Server) -> Vec<(u64, Event)> {
    let (mut client, mut log, mut page_token) = (server.events().await, Vec::new(), String::new());
    loop {
        let request = ListEventsRequest {
            page_token,
            include_raw: true,
            ..Default::default()
        };
        let page = client.list_events(request).await.unwrap().into_inner();
        let placed = |event: Event| {
            (
                place(&event.cursor),
                Event {
                    cursor: String::new(),
                    ..event
                },
            )
        };
        log.extend(page.events.into_iter().map(placed));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return log;
        }
    }
}

pub async fn quarantine_of(server: &Server) -> Vec<QuarantinedCallback> {
    let (mut client, mut kept, mut page_token) =
        (server.admin_service().await, Vec::new(), String::new());
    loop {
        let request = ListQuarantineRequest {
            include_body: true,
            page_token,
            ..Default::default()
        };
        let page = client.list_quarantine(request).await.unwrap().into_inner();
        kept.extend(page.callbacks);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return kept;
        }
    }
}

/// Where a test keeps its backups.
pub fn shelf() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The names in a directory; none if it is not there.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

pub async fn back_up(server: &Server, file: &Path) -> Ran {
    server.cli("backup").arg(file).run().await
}

pub async fn restored(file: &Path, data_dir: &Path) -> Ran {
    Cli::new("restore")
        .arg(file)
        .arg("--data-dir")
        .arg(data_dir)
        .run()
        .await
}

/// A broker on what a backup gives.
async fn started_from(file: &Path) -> Server {
    let directory = shelf();
    restored(file, &directory.path().join("data")).await.good();
    Options::default().start_in(directory).await
}

#[tokio::test]
async fn a_backup_under_load_has_all_that_was_answered_before_and_no_holes() {
    let (server, shelf) = (Server::start().await, shelf());
    let senders = (0..4).map(|sender| {
        let http = server.http();
        tokio::spawn(async move {
            for number in 0..150 {
                let task = format!("t{sender}-{number}");
                http.post(&bulky(&task, 5_000)).await.event_id();
                if number % 10 == 0 {
                    assert_eq!(
                        http.post_to("/webhook/veo", format!("bad {task}"))
                            .await
                            .status,
                        202
                    );
                }
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let mut backups = Vec::new();
    for round in 1..=3 {
        until("some load", async || {
            place(&server.log_info().await.head) > round * 120
        })
        .await;
        let answered = server.log_info().await;
        let file = shelf.path().join(format!("{round}.backup"));
        let told = back_up(&server, &file).await;
        told.good();
        backups.push((answered, file, told.stderr));
    }
    for sender in senders {
        sender.await.unwrap();
    }
    let (log, quarantine) = (log_of(&server).await, quarantine_of(&server).await);
    assert_eq!(
        names(shelf.path()).len(),
        3,
        "nothing is left beside the backups"
    );
    for (answered, file, told) in backups {
        let copy = started_from(&file).await;
        let (copied_log, copied_quarantine) = (log_of(&copy).await, quarantine_of(&copy).await);
        assert_eq!(copied_log, log[..copied_log.len()]);
        assert_eq!(copied_quarantine, quarantine[..copied_quarantine.len()]);
        assert!(
            copied_log.len() as u64 >= place(&answered.head),
            "what was answered before is in it"
        );
        assert!(copied_quarantine.len() as u64 >= answered.quarantine_count);
        assert!(copied_log.len() < log.len(), "it was taken in the middle");
        let counts = format!(
            "{} events and {} quarantined",
            copied_log.len(),
            copied_quarantine.len()
        );
        assert!(told.contains(&counts), "{told}");
        for number in (0..copied_log.len()).step_by(37) {
            let task_id = copied_log[number].1.task_id.clone();
            assert!(copy.http().post(&bulky(&task_id, 5_000)).await.duplicate());
        }
    }
}

#[tokio::test]
async fn a_restored_log_is_the_same_but_for_its_cursors() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let (http, shelf) = (server.http(), shelf());
    // Retention has been here, a task has revisions and a conflict, and the quarantine has lost its oldest and its newest.
    http.post_bulky(0..40, 20_000).await;
    for body in [processing("t1"), failed("t1"), completed("t1")] {
        http.post(&body).await.event_id();
    }
    http.post_to(
        "/webhook/sora?team=ads",
        with(completed("s1"), json!({"prompt": "ü"})).to_string(),
    )
    .await
    .event_id();
    for number in 1..=4 {
        http.post_to(
            "/webhook/Veo?team=ads",
            completed(&format!("q{number}")).to_string(),
        )
        .await;
    }
    let ids = ["1", "4"].map(str::to_owned).to_vec();
    let discard = v1::DiscardQuarantinedRequest {
        quarantine_ids: ids,
    };
    server
        .admin_service()
        .await
        .discard_quarantined(discard)
        .await
        .unwrap();
    server.trimmed().await;
    let file = shelf.path().join("a backup");
    back_up(&server, &file).await.good();

    let mut copy = started_from(&file).await;
    for _ in 0..2 {
        assert_eq!(log_of(&copy).await, log_of(&server).await);
        assert_eq!(quarantine_of(&copy).await, quarantine_of(&server).await);
        let (is, was) = (copy.log_info().await, server.log_info().await);
        let counts = |info: &v1::GetLogInfoResponse| {
            (info.event_count, info.event_bytes, info.quarantine_count)
        };
        assert_eq!(counts(&is), counts(&was));
        assert_eq!(
            (place(&is.head), place(&is.first_available)),
            (place(&was.head), place(&was.first_available))
        );
        assert_ne!(is.epoch, was.epoch);
        // Of the old log's cursors none is taken, wherever it points.
        for cursor in [&was.head, &was.first_available] {
            let refused = copy.try_subscribe(after(cursor)).await.err().unwrap();
            assert_eq!(
                refusal(&refused),
                (Code::FailedPrecondition, "EPOCH_MISMATCH".into())
            );
        }
        assert_eq!(
            copy.subscribe(request()).await.until_caught_up().await,
            copy.log_of_events().await
        );
        copy.crash().await;
    }
    let get = GetTaskRequest {
        task_id: "t1".into(),
        ..Default::default()
    };
    let of_task = copy
        .events()
        .await
        .get_task(get)
        .await
        .unwrap()
        .into_inner()
        .events;
    let told: Vec<_> = of_task
        .iter()
        .map(|event| (event.revision, event.conflict))
        .collect();
    assert_eq!(told, [(1, false), (2, false), (3, true)]);
    assert_eq!(
        copy.subscribe(tasks(["t1"])).await.until_caught_up().await,
        of_task
    );

    // It goes on where the backup ended.
    let (http, head) = (copy.http(), place(&copy.log_info().await.head));
    assert!(http.post(&completed("t1")).await.duplicate());
    assert!(
        !http
            .post(&with(
                completed("t1"),
                json!({"video_url": "https://cdn/other.mp4"})
            ))
            .await
            .duplicate()
    );
    let newest = copy.log_of_events().await.pop().unwrap();
    assert_eq!(
        (place(&newest.cursor), newest.revision, newest.conflict),
        (head + 1, 4, true)
    );
    assert_eq!(http.post_to("/webhook/veo", "bad 5").await.status, 202);
    let ids: Vec<_> = quarantine_of(&copy)
        .await
        .into_iter()
        .map(|callback| callback.quarantine_id)
        .collect();
    assert_eq!(ids, ["2", "3", "5"], "no number is given twice");
    let release = v1::ReleaseQuarantinedRequest {
        quarantine_id: "2".into(),
        product: "veo".into(),
        ..Default::default()
    };
    copy.admin_service()
        .await
        .release_quarantined(release)
        .await
        .unwrap();
    assert_eq!(copy.log_of_events().await.pop().unwrap().task_id, "q2");
}

#[tokio::test]
async fn an_empty_log_is_backed_up_and_restored_with_all_places_used() {
    let server = Options::default()
        .set("log.retention_age_max", "1s")
        .start()
        .await;
    for number in 0..3 {
        server
            .http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    until("everything to be forgotten", async || {
        server.log_info().await.event_count == 0
    })
    .await;
    let shelf = shelf();
    for name in ["one", "two"] {
        let (file, directory) = (shelf.path().join(name), tempfile::tempdir().unwrap());
        back_up(&server, &file).await.good();
        restored(&file, &directory.path().join("data")).await.good();
        let copy = Options::default().start_in(directory).await;
        assert_eq!(places(&copy.log_of_events().await), [0; 0]);
        copy.http().post(&completed("t0")).await.event_id();
        assert_eq!(places(&copy.log_of_events().await), [4]);
    }
    let (fresh, file) = (Server::start().await, shelf.path().join("fresh"));
    back_up(&fresh, &file).await.good();
    assert_eq!(place(&started_from(&file).await.log_info().await.head), 0);
}

#[tokio::test]
async fn a_backup_goes_through_a_pipe() {
    let server = Server::start().await;
    server.http().post_bulky(0..30, 50_000).await;
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let blobcast = || Command::new(env!("CARGO_BIN_EXE_blobcast"));
    let mut writing = blobcast();
    writing
        .args(["backup", "-", "--grpc-url"])
        .arg(server.grpc.to_string())
        .stdout(Stdio::piped());
    let mut writing = writing.spawn().unwrap();
    let mut reading = blobcast();
    reading
        .args(["restore", "-", "--data-dir"])
        .arg(&data_dir)
        .stdin(writing.stdout.take().unwrap());
    let done =
        tokio::task::spawn_blocking(move || (reading.status().unwrap(), writing.wait().unwrap()));
    let (read, written) = done.await.unwrap();
    assert!(read.success() && written.success());
    let copy = Options::default().start_in(directory).await;
    assert_eq!(log_of(&copy).await, log_of(&server).await);
}

/// A backup of a few events and callbacks, as bytes.
async fn small_backup() -> Vec<u8> {
    let (server, shelf) = (Server::start().await, shelf());
    for number in 0..5 {
        server
            .http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
        server
            .http()
            .post_to("/webhook/veo", format!("bad {number}"))
            .await;
    }
    back_up(&server, &shelf.path().join("file")).await.good();
    fs::read(shelf.path().join("file")).unwrap()
}

/// How it is refused; nothing must be left of the attempt.
fn refused(backup: &[u8]) -> RestoreError {
    let directory = tempfile::tempdir().unwrap();
    let error = restore(backup, directory.path()).expect_err("it must be refused");
    assert_eq!(names(directory.path()), [""; 0], "{error}");
    error
}

#[tokio::test]
async fn a_backup_that_was_cut_short_is_refused_and_leaves_nothing() {
    let backup = small_backup().await;
    assert!(restore(&backup[..], tempfile::tempdir().unwrap().path()).is_ok());
    let ends = (0..backup.len())
        .step_by(backup.len() / 40)
        .chain(backup.len() - 20..backup.len());
    for end in ends {
        let error = refused(&backup[..end]);
        let expected = if end < 16 { "no backup" } else { "cut short" };
        assert!(error.to_string().contains(expected), "at {end}: {error}");
    }
    refused(&[&backup[..], b"x"].concat());
    refused(&[&backup[..], &backup[..]].concat());
    let shelf = shelf();
    let (file, data_dir) = (shelf.path().join("cut"), shelf.path().join("data"));
    fs::write(&file, &backup[..backup.len() - 1]).unwrap();
    let told = restored(&file, &data_dir).await;
    assert!(
        told.exited(1)
            .contains("the backup was cut short, and nothing was restored: take another one"),
        "{told:?}"
    );
    assert_eq!(names(&data_dir), [""; 0]);
}

#[tokio::test]
async fn a_backup_with_a_flipped_bit_is_refused_and_leaves_nothing() {
    let backup = small_backup().await;
    let places = (0..96)
        .chain((96..backup.len()).step_by(backup.len() / 60))
        .chain(backup.len() - 17..backup.len());
    for at in places {
        let mut flipped = backup.clone();
        flipped[at] ^= 1 << (at % 8);
        refused(&flipped);
    }
    let mut newer = backup;
    newer[16] += 1;
    assert!(matches!(refused(&newer), RestoreError::Format(7)));
    assert!(matches!(
        refused(b"not a backup at all"),
        RestoreError::NoBackup
    ));
}

/// Magic, format and totals.
const HEADER_BYTES: usize = 136;
/// Its mark, the number of entries, and the checksum.
const END_BYTES: usize = 17;

/// The entries of a backup: part, two lengths, key and value.
fn entries(backup: &[u8]) -> Vec<&[u8]> {
    let mut rest = &backup[HEADER_BYTES..backup.len() - END_BYTES];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let length = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        let (entry, behind) = rest.split_at(9 + length(1) + length(5));
        entries.push(entry);
        rest = behind;
    }
    entries
}

/// A backup with a good end behind these entries.
fn sealed(header: &[u8], entries: &[&[u8]]) -> Vec<u8> {
    let mut backup = [
        header,
        &entries.concat(),
        &[0],
        &(entries.len() as u64).to_le_bytes(),
    ]
    .concat();
    backup.extend(xxhash_rust::xxh3::xxh3_64(&backup).to_le_bytes());
    backup
}

#[tokio::test]
async fn a_backup_that_lacks_an_entry_or_has_one_twice_is_refused_whatever_its_checksum_says() {
    let backup = small_backup().await;
    let (header, whole) = (&backup[..HEADER_BYTES], entries(&backup));
    assert_eq!((whole.len(), sealed(header, &whole)), (10, backup.clone()));
    for number in 0..whole.len() {
        let mut without = whole.clone();
        let entry = without.remove(number);
        refused(&sealed(header, &without));
        let mut twice = whole.clone();
        twice.insert(number, entry);
        refused(&sealed(header, &twice));
    }
}

#[tokio::test]
async fn a_backup_whose_entries_are_out_of_order_is_refused_whatever_its_checksum_says() {
    let backup = small_backup().await;
    let (header, whole) = (&backup[..HEADER_BYTES], entries(&backup));
    let of_quarantine = whole.iter().filter(|entry| entry[0] == 2).count();
    assert!(of_quarantine > 1);
    let all: Vec<_> = (0..whole.len()).collect();
    for pair in all
        .windows(2)
        .filter(|pair| whole[pair[0]][0] == whole[pair[1]][0])
    {
        let mut swapped = whole.clone();
        swapped.swap(pair[0], pair[1]);
        refused(&sealed(header, &swapped));
    }
}

#[tokio::test]
async fn a_directory_with_anything_in_it_is_not_restored_into() {
    let mut server = Server::start().await;
    let event_id = server.http().post(&completed("t1")).await.event_id();
    let shelf = shelf();
    let file = shelf.path().join("backup");
    back_up(&server, &file).await.good();
    for stopped in [false, true] {
        if stopped {
            assert!(server.terminate().await.success());
        }
        let told = restored(&file, &server.data_dir()).await;
        assert!(
            told.exited(1)
                .contains("is not empty: name another directory, or move what is in it away"),
            "{told:?}"
        );
    }
    server.restart().await;
    assert_eq!(server.log_of_events().await[0].event_id, event_id);
    let told = restored(&file, &file).await;
    assert!(told.exited(1).contains(file.to_str().unwrap()), "{told:?}");
    let told = restored(&shelf.path().join("none"), &shelf.path().join("data")).await;
    assert!(told.exited(1).contains("cannot read"), "{told:?}");
}

#[tokio::test]
async fn a_restore_that_is_killed_leaves_nothing_that_starts() {
    let server = Server::start().await;
    server.http().post_bulky(0..100, 100_000).await;
    let shelf = shelf();
    let file = shelf.path().join("backup");
    back_up(&server, &file).await.good();
    let backup = fs::read(&file).unwrap();
    for fed in [HEADER_BYTES + 20, backup.len() / 2, backup.len() - 1] {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        let mut restore = Command::new(env!("CARGO_BIN_EXE_blobcast"));
        restore
            .args(["restore", "-", "--data-dir"])
            .arg(&data_dir)
            .stdin(Stdio::piped());
        let mut restore = restore.spawn().unwrap();
        let mut stdin = restore.stdin.take().unwrap();
        stdin.write_all(&backup[..fed]).unwrap(); // and no end: it waits for more
        until("the store to be begun", async || {
            data_dir.join("restore-unfinished").exists()
        })
        .await;
        restore.kill().unwrap();
        restore.wait().unwrap();
        let told = complaint(&start_that_fails(&data_dir).await);
        assert!(
            told.contains("was being restored") && told.contains("blobcast restore"),
            "{told}"
        );
        assert!(matches!(
            Store::open(&data_dir, 1 << 20),
            Err(OpenError::Unfinished(_))
        ));
    }
}

/// A broker with so much that a backup takes a while.
async fn bulky_broker(options: Options) -> Server {
    let server = options.start().await;
    server.http().post_bulky(0..60, 900_000).await;
    server
}

#[tokio::test]
async fn a_backup_has_its_name_only_when_it_is_whole() {
    let mut server = bulky_broker(Options::default()).await;
    let shelf = shelf();
    let (file, partial) = (shelf.path().join("file"), shelf.path().join("file.partial"));
    let begun = server.cli("backup").arg(&file).start();
    until("the first bytes", async || {
        fs::metadata(&partial).is_ok_and(|metadata| metadata.len() > 0)
    })
    .await;
    server.pause().await;
    assert_eq!(names(shelf.path()), ["file.partial"]);
    let beside = back_up(&server, &file).await;
    assert!(
        beside.exited(1).contains("another backup is writing"),
        "{beside:?}"
    );
    server.kill();
    let told = begun.ended().await;
    assert!(!told.exited(1).is_empty(), "{told:?}");
    assert_eq!(names(shelf.path()), [""; 0], "a part is worth nothing");
    server.restart().await;
    fs::write(&file, "the last one").unwrap();
    back_up(&server, &file).await.good();
    assert_eq!(
        names(shelf.path()),
        ["file"],
        "it takes the place of the last one"
    );
    assert_eq!(
        log_of(&started_from(&file).await).await,
        log_of(&server).await
    );
}

async fn next(stream: &mut Streaming<BackupResponse>) -> BackupResponse {
    stream.message().await.unwrap().expect("a message")
}

#[tokio::test]
async fn a_backup_is_of_the_moment_it_began_however_slowly_it_is_read() {
    let options = Options::default()
        .set("log.retention_bytes_max", "110MiB")
        .set("ingest.bytes_per_minute_max", 0);
    let server = bulky_broker(options).await;
    let before = server.log_info().await;
    let mut stream = server
        .admin_service()
        .await
        .backup(v1::BackupRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut backup = next(&mut stream).await.chunk.to_vec();
    // Retention takes most of what the backup has yet to read.
    server.http().post_bulky(60..110, 900_000).await;
    let after = server.trimmed().await;
    assert!(
        place(&after.first_available) > 30,
        "{}",
        after.first_available
    );
    let summary = loop {
        let BackupResponse { chunk, summary } = next(&mut stream).await;
        assert!(chunk.len() <= 256 * 1024);
        backup.extend(chunk);
        if let Some(summary) = summary {
            break summary;
        }
    };
    assert_eq!(stream.message().await.unwrap(), None);
    assert_eq!(
        (summary.event_count, &summary.head),
        (before.event_count, &before.head)
    );
    assert_eq!(summary.backup_bytes, backup.len() as u64);
    let directory = tempfile::tempdir().unwrap();
    restore(&backup[..], &directory.path().join("data")).unwrap();
    let copy = Options::default().start_in(directory).await;
    let copied = copy.log_info().await;
    assert_eq!(
        (copied.event_count, copied.event_bytes),
        (before.event_count, before.event_bytes)
    );
}

#[tokio::test]
async fn a_low_disk_can_be_backed_up_and_a_damaged_log_cannot() {
    let mut server = Server::start().await;
    for number in 0..3 {
        server
            .http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    let shelf = shelf();
    let file = shelf.path().join("backup");
    assert!(server.terminate().await.success());
    server
        .restart_with(Options::default().set("log.disk_free_min_percent", 100))
        .await;
    back_up(&server, &file).await.good();
    damage_event(&server.data_dir(), "t1");
    let told = back_up(&server, &shelf.path().join("damaged")).await;
    assert!(told.exited(1).contains("DATA_LOSS LOG_CORRUPT"), "{told:?}");
    assert_eq!(names(shelf.path()), ["backup"]);
    let unwritable = back_up(&server, Path::new("/nowhere/file")).await;
    assert!(
        unwritable
            .exited(1)
            .contains("cannot write /nowhere/file.partial"),
        "{unwritable:?}"
    );
}

#[tokio::test]
async fn a_directory_of_backups_keeps_the_newest_and_touches_nothing_else() {
    let (mut server, shelf) = (Server::start().await, shelf());
    server.http().post(&completed("t1")).await.event_id();
    let log = server.log_info().await.head[..8].to_owned();
    let of_log = |time: &str| format!("blobcast-{time}-{log}.backup");
    let old = [of_log("20200101T000000Z"), of_log("20200102T000000Z")];
    // Of another log, of no date, and of a time yet to come.
    let kept = [
        "blobcast-20190101T000000Z-00000007.backup".to_owned(),
        of_log("20191301T000000Z"),
        of_log("29990101T000000Z"),
    ];
    let cut_off = [
        "blobcast-20200103T000000Z.backup.partial",
        "blobcast-20200104T000000Z.backup.partial",
    ];
    let others = ["notes.txt", "mine.backup"];
    for name in old
        .iter()
        .chain(&kept)
        .map(String::as_str)
        .chain(cut_off)
        .chain(others)
    {
        fs::write(shelf.path().join(name), "x").unwrap();
    }
    let writing = fs::File::open(shelf.path().join(cut_off[1])).unwrap();
    writing.try_lock().unwrap();
    let back_up = async |server: &Server| {
        server
            .cli("backup --keep 2 --directory")
            .arg(shelf.path())
            .run()
            .await
    };
    let sorted = || {
        let mut names = names(shelf.path());
        names.sort();
        names
    };

    let told = back_up(&server).await;
    told.good();
    let is_old = |name: &str| {
        ["2019", "2020", "2999"]
            .iter()
            .any(|year| name.starts_with(&format!("blobcast-{year}")))
    };
    let new = sorted()
        .into_iter()
        .find(|name| name.starts_with("blobcast-") && !is_old(name))
        .unwrap();
    assert!(new.ends_with(&format!("Z-{log}.backup")), "{new}");
    assert_eq!(
        sorted(),
        [
            &kept[0], &kept[1], &old[1], cut_off[1], &new, &kept[2], others[1], others[0]
        ]
    );
    assert!(
        told.stderr.contains(&new) && told.stderr.contains("1 events"),
        "{told:?}"
    );
    assert!(
        told.stderr
            .contains(&format!("removed {}", shelf.path().join(&old[0]).display())),
        "{told:?}"
    );
    assert!(
        told.stderr.contains("another backup is writing"),
        "the one that is locked is another's: {told:?}"
    );
    assert_eq!(
        log_of(&started_from(&shelf.path().join(&new)).await).await,
        log_of(&server).await
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(shelf.path().join(&new)).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);

    // One that fails removes none.
    server.kill();
    let before = sorted();
    assert!(back_up(&server).await.exited(1).contains("cannot reach"));
    assert_eq!(sorted(), before);
    let told = server.cli("backup --directory /nowhere").run().await;
    assert!(
        told.exited(1)
            .contains("cannot read /nowhere: name an existing directory"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_backup_needs_one_place_and_keeps_one_at_least() {
    for line in [
        "backup",
        "backup --keep 2 file",
        "backup --directory . --keep 0",
        "backup --directory . file",
    ] {
        Cli::new(line).run().await.exited(2);
    }
}

#[tokio::test]
async fn what_only_a_running_backup_still_holds_is_overwritten_by_a_discard() {
    const BODY: &str = "garbage that nobody should keep";
    let server = Options::default()
        .set("ingest.body_bytes_max", "480KiB")
        .set("log.retention_bytes_max", "2MiB")
        .set("ingest.bytes_per_minute_max", 0)
        .set("grpc.stall_timeout", "5m")
        .start()
        .await;
    let (data_dir, http) = (server.data_dir(), server.http());
    assert_eq!(http.post_to("/webhook/veo", BODY).await.status, 202);
    http.post_bulky(0..9, 100_000).await;
    let before = server.log_info().await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
    // So small that most of the backup stays in the broker.
    let narrow = endpoint
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535);
    let mut admin = AdminServiceClient::new(narrow.connect().await.unwrap());
    let mut backup = admin
        .backup(v1::BackupRequest {})
        .await
        .unwrap()
        .into_inner();
    backup.message().await.unwrap().unwrap();
    let segments = || {
        let mut names = names(&data_dir.join("log"));
        names.sort();
        names
            .iter()
            .map(|name| data_dir.join("log").join(name))
            .collect::<Vec<_>>()
    };
    let first = segments()[0].clone();

    // It is written again, and its first segment is let go when a later one has been begun.
    let (mut number, mut newest_then) = (9, None);
    until("the first segment to be let go", async || {
        http.post_bulky(number..number + 4, 100_000).await;
        number += 4;
        let segments = segments();
        let has_it = |path: &&PathBuf| {
            let bytes = fs::read(path).unwrap_or_default();
            let mut windows = bytes.windows(BODY.len());
            windows.any(|window| window == BODY.as_bytes())
        };
        let newest = segments.last().cloned();
        if newest_then.is_none() && segments.iter().filter(has_it).count() == 2 {
            newest_then.clone_from(&newest);
        }
        newest_then.is_some() && newest > newest_then
    })
    .await;
    assert!(first.exists(), "the backup holds it");
    assert_eq!(quarantine_of(&server).await[0].body, BODY);

    let discard = DiscardQuarantinedRequest {
        quarantine_ids: vec!["1".into()],
    };
    let mut admin = server.admin_service().await;
    let discarded = admin.discard_quarantined(discard).await.unwrap();
    assert_eq!(discarded.into_inner().discarded_count, 1);
    assert!(!is_on_disk(&data_dir, BODY));
    let summary = loop {
        if let Some(summary) = backup.message().await.unwrap().unwrap().summary {
            break summary;
        }
    };
    assert_eq!(
        (summary.event_count, summary.quarantine_count),
        (before.event_count, 0)
    );
    until("what it held to go", async || !first.exists()).await;
}
