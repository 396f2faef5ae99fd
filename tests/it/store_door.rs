//! Opening a data directory: one process at a time, known formats only, and a correct log although
//! the clock is wrong.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use blobcast::{
    store::{OpenError, Store},
    wire::v1::{
        self, Event, Filter, ListEventsRequest, Order, SubscribeRequest, subscribe_request::Start,
    },
};
use jiff::{SignedDuration, Timestamp};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{
    ANY_PORT, Options, PATIENCE, Server, completed, draft, fatal, matching, node, of_tasks, place,
    refusal, request, stored, with,
};

/// What becomes of a broker that is started on a directory that it cannot have.
pub async fn start_that_fails(data_dir: &Path) -> Output {
    let mut command = Options::default().command(data_dir, [ANY_PORT; 3]);
    let broker = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&broker);
    let ended = tokio::task::spawn_blocking(move || broker.wait_with_output().unwrap());
    let Ok(output) = tokio::time::timeout(PATIENCE, ended).await else {
        kill_process(pid, Signal::KILL).unwrap();
        panic!("the broker runs on {}", data_dir.display());
    };
    let output = output.unwrap();
    assert!(!output.status.success());
    output
}

pub fn complaint(output: &Output) -> String {
    let text = fatal(&output.stderr);
    assert!(!text.contains("a bug"), "{text}");
    text
}

#[tokio::test]
async fn a_second_process_on_a_data_directory_is_refused_and_the_first_goes_on() {
    let mut server = Server::start().await;
    let told = complaint(&start_that_fails(&server.data_dir()).await);
    assert!(
        told.contains("in use by another process") && told.contains("--data-dir"),
        "{told}"
    );
    assert!(told.contains(server.data_dir().to_str().unwrap()), "{told}");
    let event_id = server.http().post(&completed("t1")).await.event_id();
    assert_eq!(server.log_of_events().await[0].event_id, event_id);
    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(server.log_of_events().await[0].event_id, event_id);
}

#[tokio::test]
async fn a_data_directory_of_another_format_is_refused_and_left_as_it_is() {
    let mut server = Server::start().await;
    let event_id = server.http().post(&completed("t1")).await.event_id();
    assert!(server.terminate().await.success());
    let write_format = |format: u64| {
        let path = segment(&server.data_dir());
        let mut header = fs::read(&path).unwrap()[..256].to_vec();
        let before = u64::from_le_bytes(header[16..24].try_into().unwrap());
        header[16..24].copy_from_slice(&format.to_le_bytes());
        let checksum = xxhash_rust::xxh3::xxh3_64(&header[8..]);
        header[..8].copy_from_slice(&checksum.to_le_bytes());
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&header, 0).unwrap();
        before
    };
    let known = write_format(1_000_007);
    let told = complaint(&start_that_fails(&server.data_dir()).await);
    assert!(
        told.contains("format 1000007") && told.contains(&format!("format {known}")),
        "{told}"
    );
    assert!(
        told.contains("run the version that wrote it") && told.contains("--data-dir"),
        "{told}"
    );
    assert_eq!(write_format(known), 1_000_007);
    server.restart().await;
    assert_eq!(server.log_of_events().await[0].event_id, event_id);
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    for path in [file.clone(), file.join("below")] {
        let told = complaint(&start_that_fails(&path).await);
        assert!(told.contains(path.to_str().unwrap()), "{told}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not a directory");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_key_and_costs_no_data_directory() {
    let taken = TcpListener::bind(ANY_PORT).unwrap();
    let address = taken.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let mut command = Options::default().command(&data_dir, [ANY_PORT, address, ANY_PORT]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    assert!(!output.status.success());
    let told = complaint(&output);
    assert!(
        told.contains("grpc.listen") && told.contains("--grpc-listen"),
        "{told}"
    );
    assert!(told.contains(&address.to_string()), "{told}");
    assert!(!data_dir.exists());
}

/// A broker whose log was filled while its clock jumped about, by these seconds behind the start of the test.
async fn with_a_wild_clock(seconds: &[i64]) -> (Server, Timestamp) {
    let start = Timestamp::now() - SignedDuration::from_hours(1);
    let directory = tempfile::tempdir().unwrap();
    let node = node(&directory.path().join("data"));
    for (number, &seconds) in seconds.iter().enumerate() {
        let received_at = start + SignedDuration::from_secs(seconds);
        let appended = node
            .journal
            .append(draft(&completed(&format!("t{number}")), received_at));
        appended.await.unwrap().unwrap();
    }
    assert!(stored(&node.store).is_sorted_by_key(|record| record.log_time_micros()));
    (node.stop)();
    drop((node.journal, node.store));
    (Options::default().start_in(directory).await, start)
}

#[tokio::test]
async fn a_clock_that_goes_backwards_harms_neither_order_nor_search_by_time() {
    let clock = [100, 50, 200, 10, 150, 300, 299, 301];
    let (server, start) = with_a_wild_clock(&clock).await;
    let log = server.log_of_events().await;
    let at = |seconds: i64| {
        let time = start + SignedDuration::from_secs(seconds);
        prost_types::Timestamp {
            seconds: time.as_second(),
            nanos: time.subsec_nanosecond(),
        }
    };
    // Every event says when it was really received, and stands where it was appended.
    let received: Vec<_> = log.iter().map(|event| event.received_at.unwrap()).collect();
    assert_eq!(received, clock.map(at));
    assert!(log.is_sorted_by_key(|event| place(&event.cursor)));

    let mut client = server.events().await;
    let mut list = async |request: ListEventsRequest| {
        client
            .list_events(request)
            .await
            .unwrap()
            .into_inner()
            .events
    };
    let all = of_tasks((0..clock.len()).map(|number| format!("t{number}")));
    for seconds in (0..=310).step_by(5).chain([299, 301, 302]) {
        for filter in [Filter::default(), all.clone()] {
            let request = ListEventsRequest {
                filter: Some(filter.clone()),
                ..Default::default()
            };
            let since = list(ListEventsRequest {
                since: Some(at(seconds)),
                ..request.clone()
            })
            .await;
            let until = list(ListEventsRequest {
                until: Some(at(seconds)),
                ..request.clone()
            })
            .await;
            // The time cuts the log in two: nothing is in both, nothing in neither.
            assert_eq!([until, since.clone()].concat(), log, "at {seconds} s");
            // Nothing received at that time or later is left out.
            let young = |event: &&Event| {
                (
                    event.received_at.unwrap().seconds,
                    event.received_at.unwrap().nanos,
                ) >= (at(seconds).seconds, at(seconds).nanos)
            };
            assert!(
                log.iter().filter(young).all(|event| since.contains(event)),
                "at {seconds} s"
            );

            let newest = ListEventsRequest {
                since: Some(at(seconds)),
                order: Order::NewestFirst.into(),
                ..request
            };
            assert!(list(newest).await.iter().rev().eq(&since));
            let start = Some(Start::Since(at(seconds)));
            let mut sub = server
                .subscribe(SubscribeRequest {
                    start,
                    ..matching(filter)
                })
                .await;
            assert_eq!(sub.until_caught_up().await, since, "at {seconds} s");
        }
    }
}

#[tokio::test]
async fn a_clock_that_was_ahead_does_not_make_new_events_old() {
    // Half an hour ahead of the real clock, which the log and then the broker use.
    let (server, _) = with_a_wild_clock(&[0, 5_400]).await;
    server.http().post(&completed("new")).await;
    let log = server.log_of_events().await;
    assert_eq!(log.len(), 3);
    assert!(log[2].received_at.unwrap().seconds < log[1].received_at.unwrap().seconds);
    let since = ListEventsRequest {
        since: log[2].received_at,
        ..Default::default()
    };
    let listed = server
        .events()
        .await
        .list_events(since)
        .await
        .unwrap()
        .into_inner()
        .events;
    assert_eq!(
        listed,
        log[2..],
        "what came before was not later, whatever it says"
    );
}

/// A broker killed behind so many events, and the part of its log that is in use.
async fn killed_behind(events: u64) -> (Server, Vec<u8>) {
    let mut server = Server::start().await;
    let http = server.http();
    for number in 0..events {
        // Large, as prompts are.
        let body = with(
            completed(&format!("t{number}")),
            json!({"prompt": "a cat in a sunny room ".repeat(400)}),
        );
        http.post(&body).await.event_id();
    }
    server.kill();
    shorten_journal(&server.data_dir());
    let log = log(&server.data_dir());
    (server, log)
}

/// Cuts the journal of a killed broker's database to what is in use, which makes it quick to copy; returns how much that is.
pub fn shorten_journal(data_dir: &Path) -> usize {
    let path = data_dir.join("index/0.jnl");
    let mut journal = fs::read(&path).unwrap();
    journal.truncate(journal.iter().rposition(|&byte| byte != 0).unwrap() + 1);
    fs::write(path, &journal).unwrap();
    journal.len()
}

/// The first segment of a log; the only one below a megabyte.
pub fn segment(data_dir: &Path) -> PathBuf {
    data_dir.join("log/000000000001.log")
}

/// What a broker has written into the first segment of its log.
pub fn log(data_dir: &Path) -> Vec<u8> {
    let mut log = fs::read(segment(data_dir)).unwrap();
    log.truncate(log.iter().rposition(|&byte| byte != 0).unwrap() + 1);
    log
}

/// Damages the record of a task's only event, which may happen while a broker runs.
pub fn damage_event(data_dir: &Path, task: &str) {
    let path = segment(data_dir);
    let mut log = fs::read(&path).unwrap();
    let at = log
        .windows(task.len())
        .position(|window| window == task.as_bytes())
        .unwrap();
    log[at] ^= 1;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&log[at..=at], at as u64).unwrap();
}

/// Where a log ends that is opened with another content; `None` if it is refused as damaged.
fn head_with(server: &Server, log: &[u8], both: bool) -> Option<u64> {
    let copy = tempfile::tempdir().unwrap();
    copy_directory(&server.data_dir(), copy.path());
    fs::write(segment(copy.path()), log).unwrap();
    if !both {
        fs::remove_file(copy.path().join("acknowledged")).unwrap();
    }
    match Store::open(copy.path(), 1 << 20) {
        Ok(store) => Some(store.head().0),
        Err(OpenError::Corrupt { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

/// Flips one bit, at one of 90 places that are spread over the file and over the parts of an entry.
fn damaged(log: &[u8], trial: usize) -> Vec<u8> {
    let mut damaged = log.to_vec();
    damaged[log.len() * trial / 90 + trial] ^= 1 << (trial % 8);
    damaged
}

#[tokio::test]
async fn a_damaged_byte_of_the_log_is_refused_with_one_witness_as_with_both() {
    let (server, log) = killed_behind(40).await;
    for trial in 0..90 {
        assert_eq!(
            head_with(&server, &damaged(&log, trial), trial % 3 == 0),
            None,
            "trial {trial}"
        );
    }
    assert_eq!(
        [true, false].map(|both| head_with(&server, &log, both)),
        [Some(40); 2]
    );
}

#[tokio::test]
async fn a_log_that_has_lost_its_end_is_refused_with_one_witness_as_with_both() {
    let (server, log) = killed_behind(20).await;
    for end in [0, log.len() / 2, log.len() - 1] {
        for both in [true, false] {
            assert_eq!(head_with(&server, &log[..end], both), None, "cut at {end}");
        }
    }
}

pub fn copy_directory(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_hole_in_the_log_is_reported_as_corruption_and_never_stepped_over() {
    let mut server = Server::start().await;
    for task in ["first", "second", "third"] {
        server.http().post(&completed(task)).await.event_id();
    }
    assert!(server.terminate().await.success());
    server.restart().await; // so that none is in memory
    damage_event(&server.data_dir(), "second");
    let corrupt = (Code::DataLoss, "LOG_CORRUPT".to_owned());
    assert_eq!(
        refusal(&server.try_subscribe(request()).await.err().unwrap()),
        corrupt
    );
    let mut client = server.events().await;
    let get = |task: &str| v1::GetTaskRequest {
        task_id: task.into(),
        ..Default::default()
    };
    assert_eq!(
        refusal(&client.get_task(get("second")).await.unwrap_err()),
        corrupt
    );
    assert!(
        client.get_task(get("third")).await.is_ok(),
        "what is whole is still to be had"
    );
    assert_eq!(server.metric("blobcast_log_damage_met_total").await, 2.0);
    let told = server.logged("a part of the log is damaged", 2).await;
    assert!(
        told[0].contains("ERROR") && told[0].contains("problem"),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_store_that_takes_no_writes_says_so_and_when_to_try_again() {
    let mut server = Server::start().await;
    assert_eq!(
        server
            .http()
            .post_to("/webhook/veo", r#"{"status":"completed"}"#)
            .await
            .status,
        202
    );
    assert!(server.terminate().await.success());
    server
        .restart_with(Options::default().set("log.disk_free_min_percent", 100))
        .await;
    let release = || v1::ReleaseQuarantinedRequest {
        quarantine_id: "1".into(),
        task_id: "t1".into(),
        ..Default::default()
    };
    let refused = server
        .admin_service()
        .await
        .release_quarantined(release())
        .await
        .unwrap_err();
    assert_eq!(
        refusal(&refused),
        (Code::Unavailable, "STORE_READ_ONLY".into())
    );
    assert!(
        refused
            .get_details_retry_info()
            .unwrap()
            .retry_delay
            .is_some()
    );
    server.terminate().await;
    server.restart_with(Options::default()).await;
    assert!(
        server
            .admin_service()
            .await
            .release_quarantined(release())
            .await
            .is_ok(),
        "nothing was lost by it"
    );
}
