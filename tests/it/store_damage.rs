//! A damaged data directory. Of the log: the start is refused, the damage is named, and nothing is
//! changed. Of the index: it is built again. No acknowledged event is silently missing.

use std::{
    fs,
    io::{BufRead, BufReader},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Stdio,
};

use blobcast::{
    event::{Product, Sequence, TaskId},
    store::{Draft, Keep, OpenError, Store},
    wire::v1::{DiscardQuarantinedRequest, EraseTaskRequest, ListQuarantineRequest},
};
use jiff::Timestamp;
use serde_json::json;

use crate::{
    store_door::{complaint, copy_directory, log, segment, shorten_journal, start_that_fails},
    support::{ANY_PORT, Options, Server, completed, draft, node, until, with, within},
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

/// What a copy of a data directory knows after something was done to it.
fn opened(data_dir: &Path, change: impl FnOnce(&Path)) -> Known {
    let copy = tempfile::tempdir().unwrap();
    copy_directory(data_dir, copy.path());
    change(copy.path());
    Known::of(&Store::open(copy.path(), 1 << 20).unwrap())
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

/// Everything that a store knows.
#[derive(Debug, PartialEq)]
struct Known {
    epoch: String,
    head: u64,
    events: Vec<String>,
    tasks: Vec<String>,
    quarantine: Vec<String>,
}

impl Known {
    fn of(store: &Store) -> Self {
        let all = || -> RangeInclusive<Sequence> { store.first_available()..=store.head() };
        let product = Product::parse("veo").unwrap();
        let task_ids: Vec<_> = (0..TASKS)
            .map(|number| TaskId::parse(&format!("t{number}")).unwrap())
            .collect();
        let mut tasks = Vec::new();
        for task_id in &task_ids {
            let places = store.task_events([task_id], all(), Keep::All).unwrap();
            let erased = store.places_of_task(task_id, &product).unwrap();
            tasks.push(format!("{places:?} {erased:?}"));
        }
        let events = all().start().0..=all().end().0;
        let events = events.map(|place| store.get(Sequence(place)).unwrap().unwrap());
        let quarantine = store.quarantined_after(0, usize::MAX, usize::MAX).unwrap();
        Self {
            epoch: store.epoch().to_string(),
            head: store.head().0,
            events: events.map(|event| format!("{:?}", event.bytes())).collect(),
            tasks,
            quarantine: quarantine.iter().map(|it| format!("{it:?}")).collect(),
        }
    }
}

/// Tasks that a broker is sent below, by number.
const TASKS: u64 = 30;

/// A broker that was killed, and has a bit of everything: several segments, an index with tables and a journal, a task that is
/// erased, callbacks in quarantine and some that have left it.
async fn killed_with_everything() -> Server {
    let mut server = Server::start().await;
    server.http().post_bulky(0..3, 100_000).await;
    let quarantine = async |server: &Server, text: String| {
        let answer = server.http().post_to("/webhook/veo", text).await;
        assert_eq!(answer.status, 202);
    };
    for number in 0..3 {
        quarantine(&server, format!("{number}{}", "?".repeat(400_000))).await;
    }
    server.crash().await;
    for number in 3..TASKS {
        let body = completed(&format!("t{number}"));
        server.http().post(&body).await.event_id();
        quarantine(&server, format!("garbage-{number}")).await;
    }
    let discard = DiscardQuarantinedRequest {
        quarantine_ids: vec!["2".into(), "7".into()],
    };
    let mut admin = server.admin_service().await;
    admin.discard_quarantined(discard).await.unwrap();
    let erase = EraseTaskRequest {
        task_id: "t5".into(),
        product: "veo".into(),
    };
    admin.erase_task(erase).await.unwrap();
    // A checkpoint has all of it; what follows is replayed.
    server.crash().await;
    quarantine(&server, "late".into()).await;
    server.kill();
    shorten_journal(&server.data_dir());
    server
}

/// All files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

/// What may become of a file.
fn damages(whole: &[u8]) -> Vec<Option<Vec<u8>>> {
    let garbage = (0..whole.len().max(100)).map(|at| (at * 31 % 251) as u8 | 1);
    let mut damages = vec![
        None,
        Some(Vec::new()),
        Some(whole[..whole.len() / 2].to_vec()),
        Some(whole[..whole.len().saturating_sub(1)].to_vec()),
        Some(vec![0; whole.len()]),
        Some(garbage.collect()),
        Some([whole, b"more"].concat()),
    ];
    for flip in 0..6 {
        let mut flipped = whole.to_vec();
        let at = whole.len() * flip / 6;
        if let Some(byte) = flipped.get_mut(at) {
            *byte ^= 1 << flip;
            damages.push(Some(flipped));
        }
    }
    damages
}

#[tokio::test]
async fn whatever_happens_to_a_file_of_the_index_the_start_succeeds_with_everything() {
    let server = killed_with_everything().await;
    let data_dir = server.data_dir();
    let known = opened(&data_dir, |_| ());
    assert_eq!((known.events.len(), known.quarantine.len()), (30, 29));
    let index = data_dir.join("index");
    let files = files_below(&index);
    assert!(files.len() > 8, "{files:?}");
    for file in files {
        let whole = fs::read(&file).unwrap();
        let name = file.strip_prefix(&data_dir).unwrap();
        for (number, damage) in damages(&whole).into_iter().enumerate() {
            let now = opened(&data_dir, |copy| match damage {
                Some(bytes) => fs::write(copy.join(name), bytes).unwrap(),
                None => fs::remove_file(copy.join(name)).unwrap(),
            });
            assert_eq!(now, known, "damage {number} of {}", name.display());
        }
    }
}

#[tokio::test]
async fn an_index_that_is_gone_half_gone_or_that_of_another_log_is_built_again() {
    let server = killed_with_everything().await;
    let other = killed_with(3, 2).await;
    let data_dir = server.data_dir();
    let known = opened(&data_dir, |_| ());
    let index = |data_dir: &Path| data_dir.join("index");
    let remove = |copy: &Path| fs::remove_dir_all(index(copy)).unwrap();
    assert_eq!(opened(&data_dir, remove), known);
    let folders: Vec<_> = fs::read_dir(index(&data_dir).join("keyspaces"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    for folder in &folders {
        let now = opened(&data_dir, |copy| {
            fs::remove_dir_all(index(copy).join("keyspaces").join(folder)).unwrap();
        });
        assert_eq!(now, known, "without {folder:?}");
    }
    let now = opened(&data_dir, |copy| {
        remove(copy);
        fs::create_dir(index(copy)).unwrap();
        copy_directory(&index(&other.data_dir()), &index(copy));
    });
    assert_eq!(now, known, "with that of another log");
    // An emptying that was cut off.
    let now = opened(&data_dir, |copy| {
        fs::remove_dir_all(index(copy).join("keyspaces")).unwrap();
        fs::write(copy.join("index.doubted"), "").unwrap();
    });
    assert_eq!(now, known);
    // No folder at all.
    let now = opened(&data_dir, |copy| {
        remove(copy);
        fs::write(index(copy), "a file").unwrap();
    });
    assert_eq!(now, known);
    // A start that ended while it opened the index, and a broker that could not read it.
    for said in ["", "a table is damaged"] {
        let now = opened(&data_dir, |copy| {
            fs::write(copy.join("index.doubted"), said).unwrap();
        });
        assert_eq!(now, known);
    }
}

#[tokio::test]
async fn a_log_that_is_lost_or_that_of_another_store_is_refused() {
    for events in [0, 3] {
        let server = killed_with(events, 0).await;
        let other = killed_with(events, 0).await;
        let mixed = opened_after(&server.data_dir(), |copy| {
            fs::copy(segment(&other.data_dir()), segment(copy)).unwrap();
        });
        assert!(refused(mixed).contains("was acknowledged"));
        for has_witnesses in [true, false] {
            let lost = opened_after(&server.data_dir(), |copy| {
                fs::remove_dir_all(copy.join("log")).unwrap();
                if !has_witnesses {
                    remove_witnesses(copy);
                }
            });
            assert!(refused(lost).contains("the log is lost"));
        }
    }
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
    let told = complaint(&start_that_fails(&data_dir).await);
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
    // Without both, nothing but the log counts.
    server.kill();
    let lost = opened_after(&data_dir, |copy| {
        remove_witnesses(copy);
        cut(copy);
    });
    assert_eq!(lost.unwrap(), (3, 1));
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
    let mut server = Options::default()
        .set("quarantine.retention_count_max", 4)
        .start()
        .await;
    let log = server.data_dir().join("log");
    let files = || {
        let names = fs::read_dir(&log)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let quarantine = async |server: &Server, product: &str, text: String| {
        let url = format!("/webhook/{product}");
        assert_eq!(server.http().post_to(&url, text).await.status, 202);
    };
    // Two of a product that has its share stay; of the other product the oldest are forgotten beside them.
    for number in 1..=2 {
        quarantine(&server, "sora", format!("small {number}")).await;
    }
    for number in 3..=14 {
        quarantine(&server, "veo", format!("{number}{}", "?".repeat(800_000))).await;
        if number % 3 == 0 {
            server.crash().await;
        }
    }
    until("the first segment to go", async || {
        quarantine(&server, "veo", "large".into()).await;
        !files().contains("000000000001.log")
    })
    .await;
    let known = quarantined(&server).await;
    assert_eq!(known[..2], [("1".to_owned(), 7), ("2".to_owned(), 7)]);
    server.crash().await;
    assert_eq!(quarantined(&server).await, known);
    // Also without its index.
    server.kill();
    fs::remove_dir_all(server.data_dir().join("index")).unwrap();
    server.restart_with(Options::default()).await;
    assert_eq!(quarantined(&server).await, known);
}

/// Starts a broker in a directory, and kills it as soon as it logs one of these texts; which that was.
async fn killed_at(data_dir: &Path, texts: [&'static str; 2]) -> &'static str {
    let options = Options::default().set("logging.level", "debug");
    let mut command = options.command(data_dir, [ANY_PORT; 3]);
    let mut broker = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(broker.stderr.take().unwrap()).lines();
    let met = tokio::task::spawn_blocking(move || {
        let met = lines
            .map_while(Result::ok)
            .find_map(|line| texts.into_iter().find(|text| line.contains(text)));
        broker.kill().unwrap();
        broker.wait().unwrap();
        met
    });
    within("the line", met)
        .await
        .unwrap()
        .expect("a line with one of the texts")
}

#[tokio::test]
async fn a_rebuild_that_is_killed_goes_on_from_its_last_checkpoint_and_ends_with_the_same() {
    const EVENTS: u64 = 110;
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let known = |store: &Store| {
        let product = Product::parse("veo").unwrap();
        let places = (0..EVENTS).map(|number| {
            let task_id = TaskId::parse(&format!("t{number}")).unwrap();
            store.places_of_task(&task_id, &product).unwrap()
        });
        (store.head(), places.collect::<Vec<_>>())
    };
    // A checkpoint is made behind 63 MiB, and there is about as much behind it.
    let node = node(&data_dir);
    for number in 0..EVENTS {
        let draft = draft(&completed(&format!("t{number}")), Timestamp::now());
        let raw = vec![b' '; 1024 * 1024].into();
        let appended = node.journal.append(Draft { raw, ..draft });
        appended.await.unwrap().unwrap();
    }
    let expected = known(&node.store);
    assert_eq!(expected.0, Sequence(EVENTS));
    (node.stop)();
    drop((node.journal, node.store));

    let (checkpoint, ready) = (
        "a start that is cut off from here on",
        "\"message\":\"ready\"",
    );
    let (goes_on, again) = (
        "built on from its last checkpoint",
        "built again from the log",
    );
    // The process may be too quick to be killed in time.
    for _ in 0..10 {
        fs::remove_dir_all(data_dir.join("index")).unwrap();
        assert_eq!(killed_at(&data_dir, [checkpoint, ready]).await, checkpoint);
        if killed_at(&data_dir, [goes_on, ready]).await == goes_on {
            assert_eq!(killed_at(&data_dir, [again, ready]).await, ready);
            let store = Store::open(&data_dir, 1 << 20).unwrap();
            assert_eq!(known(&store), expected);
            return;
        }
    }
    panic!("no rebuild was killed before its end");
}

#[tokio::test]
async fn a_start_over_a_damaged_oldest_event_says_so_and_serves_the_others() {
    let mut server = Server::start().await;
    server.http().post(&completed("oldest")).await.event_id();
    server.http().post_bulky(0..4, 400_000).await;
    // A checkpoint: the first segment is not replayed any more.
    server.crash().await;
    server.kill();
    let path = segment(&server.data_dir());
    let mut log = fs::read(&path).unwrap();
    let at = log.windows(6).position(|text| text == b"oldest").unwrap();
    log[at] ^= 1;
    fs::write(&path, log).unwrap();

    server.restart().await;
    let said = server
        .logged("the oldest or newest event cannot be read", 1)
        .await;
    assert!(said[0].contains("\"place\":1"), "{said:?}");
    server.http().post(&completed("another")).await.event_id();
    let info = server.log_info().await;
    assert_eq!(info.event_count, 6, "{info:?}");
}

/// Numbers and sizes of the callbacks in quarantine.
async fn quarantined(server: &Server) -> Vec<(String, u64)> {
    let request = ListQuarantineRequest {
        page_size: 100,
        ..Default::default()
    };
    let mut admin = server.admin_service().await;
    let listed = admin.list_quarantine(request).await.unwrap().into_inner();
    let callbacks = listed.callbacks.into_iter();
    callbacks
        .map(|callback| (callback.quarantine_id, callback.body_bytes))
        .collect()
}
