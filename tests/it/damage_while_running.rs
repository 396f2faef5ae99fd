//! Damage that a running broker meets in its log: it costs what is damaged, is reported, and stops nothing else. What a start does
//! with damage is in `store_damage`.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use blobcast::{
    event::Sequence,
    store::Store,
    wire::v1::{
        DiscardQuarantinedRequest, GetTaskRequest, QuarantinedCallback, ReleaseQuarantinedRequest,
    },
};
use tonic::Code;

use crate::{
    backup::{back_up, quarantine_of, shelf},
    support::{Cli, Options, Server, bulky, completed, is_on_disk, place, refusal, until},
};

/// The files of a log.
fn segments(data_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data_dir.join("log")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Flips one bit, so many bytes behind where a text begins in the log for the first time.
fn damage(data_dir: &Path, text: &str, behind: isize) {
    for path in segments(data_dir) {
        let bytes = fs::read(&path).unwrap();
        let found = bytes
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        if let Some(at) = found {
            let at = at.checked_add_signed(behind).unwrap();
            let file = fs::File::options().write(true).open(path).unwrap();
            file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
            return;
        }
    }
    panic!("{text} is not in the log");
}

async fn quarantine(server: &Server, text: &str) {
    let answer = server.http().post_to("/webhook/veo", text.to_owned()).await;
    assert_eq!(answer.status, 202);
}

async fn discard(server: &Server, ids: &[&str]) -> Result<u32, (Code, String)> {
    let request = DiscardQuarantinedRequest {
        quarantine_ids: ids.iter().map(ToString::to_string).collect(),
    };
    let answer = server
        .admin_service()
        .await
        .discard_quarantined(request)
        .await;
    answer
        .map(|answer| answer.into_inner().discarded_count)
        .map_err(|status| refusal(&status))
}

fn ids(listed: &[QuarantinedCallback]) -> Vec<&str> {
    listed.iter().map(|it| it.quarantine_id.as_str()).collect()
}

/// A broker with three callbacks in quarantine between two events.
async fn with_quarantine() -> Server {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    for number in 1..=3 {
        quarantine(&server, &format!("garbage-{number} and a secret-{number}")).await;
    }
    server.http().post(&completed("t2")).await.event_id();
    server
}

#[tokio::test]
async fn a_damaged_quarantined_callback_is_listed_as_damaged_and_can_only_be_discarded() {
    let mut server = with_quarantine().await;
    let data_dir = server.data_dir();
    let whole = quarantine_of(&server).await;
    damage(&data_dir, "garbage-2", 0);

    let listed = quarantine_of(&server).await;
    assert_eq!(ids(&listed), ["1", "2", "3"]);
    assert_eq!(listed[0].body, "garbage-1 and a secret-1");
    assert_eq!(listed[2].body, "garbage-3 and a secret-3");
    let damaged = &listed[1];
    assert_eq!(
        (&*damaged.reason, &*damaged.credential),
        ("damaged", "unverified")
    );
    assert!(damaged.detail.contains("discard"), "{}", damaged.detail);
    assert_eq!(damaged.received_at, whole[1].received_at);
    assert_eq!(damaged.body, "");
    assert!(server.metric("blobcast_log_damage_met_total").await > 0.0);
    server.logged("a part of the log is damaged", 1).await;

    let release = ReleaseQuarantinedRequest {
        quarantine_id: "2".into(),
        task_id: "t3".into(),
        ..Default::default()
    };
    let refused = server
        .admin_service()
        .await
        .release_quarantined(release)
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refusal(&refused), (Code::DataLoss, "LOG_CORRUPT".into()));
    assert!(
        refused.message().contains("discard"),
        "{}",
        refused.message()
    );

    assert_eq!(discard(&server, &["2"]).await, Ok(1));
    assert_eq!(ids(&quarantine_of(&server).await), ["1", "3"]);
    assert!(!is_on_disk(&data_dir, "secret-2") && is_on_disk(&data_dir, "secret-3"));
    // What is overwritten is damaged no more.
    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(ids(&quarantine_of(&server).await), ["1", "3"]);
    assert_eq!(server.log_of_events().await.len(), 2);
}

#[tokio::test]
async fn a_quarantined_callback_whose_place_is_damaged_is_discarded_with_a_line_in_the_log() {
    let server = with_quarantine().await;
    let data_dir = server.data_dir();
    // The first byte of its number, which lies before its header and the length of that.
    let header = quarantine_header(&data_dir, "garbage-2");
    damage(&data_dir, &header, -12);

    let listed = quarantine_of(&server).await;
    assert_eq!(ids(&listed), ["1", "2", "3"]);
    assert_eq!(listed[1].reason, "damaged");
    assert_eq!(discard(&server, &["2", "3"]).await, Ok(2));
    assert_eq!(ids(&quarantine_of(&server).await), ["1"]);
    assert!(!is_on_disk(&data_dir, "secret-3"));
    server.logged("could not be overwritten", 1).await;
    assert_eq!(discard(&server, &["2"]).await, Ok(0));
}

/// What lies before a quarantined body in the log, as text.
fn quarantine_header(data_dir: &Path, body: &str) -> String {
    let log = fs::read(&segments(data_dir)[0]).unwrap();
    let find = |text: &[u8]| log.windows(text.len()).position(|window| window == text);
    let body = find(body.as_bytes()).unwrap();
    let before = &log[..body];
    let begin = before
        .windows(9)
        .rposition(|window| window == b"{\"reason\"")
        .unwrap();
    String::from_utf8(log[begin..body].to_vec()).unwrap()
}

#[tokio::test]
async fn a_backup_goes_on_past_a_damaged_quarantined_callback_and_says_so() {
    let server = with_quarantine().await;
    damage(&server.data_dir(), "garbage-2", 0);
    let before = server.metric("blobcast_log_damage_met_total").await;
    let shelf = shelf();
    let file = shelf.path().join("backup");
    back_up(&server, &file).await.good();
    let line = &server.logged("not in the backup", 1).await[0];
    assert!(
        line.contains("\"level\":\"ERROR\"") && line.contains("quarantined callback 2"),
        "{line}"
    );
    assert_eq!(
        server.metric("blobcast_log_damage_met_total").await,
        before + 1.0
    );

    let data = shelf.path().join("data");
    let restored = Cli::new("restore")
        .arg(&file)
        .arg("--data-dir")
        .arg(&data)
        .run()
        .await;
    restored.good();
    assert!(
        restored.stderr.contains("2 quarantined callbacks"),
        "{restored:?}"
    );
    let store = Store::open(&data, 1 << 20).unwrap();
    let kept = store.quarantined_after(0, usize::MAX, usize::MAX).unwrap();
    assert_eq!(kept.iter().map(|it| it.number).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(store.head(), Sequence(2));
}

/// A log that keeps about 1 MiB.
fn small_log() -> Options {
    Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
}

#[tokio::test]
async fn a_damaged_quarantined_callback_keeps_no_segment() {
    let server = small_log().start().await;
    let data_dir = server.data_dir();
    let first = segments(&data_dir)[0].clone();
    for number in 1..=3 {
        quarantine(&server, &format!("garbage-{number}")).await;
    }
    damage(&data_dir, "garbage-2", 0);
    server.http().post_bulky(0..60, 20_000).await;

    until("the first segment to go", async || {
        server.http().post(&completed("more")).await;
        !first.exists()
    })
    .await;
    assert_eq!(ids(&quarantine_of(&server).await), ["1", "3"]);
    let line = &server.logged("has left the quarantine", 1).await[0];
    assert!(
        line.contains("\"level\":\"ERROR\"") && line.contains("\"number\":2"),
        "{line}"
    );
    assert_eq!(server.metric("blobcast_log_damage_met_total").await, 1.0);
    assert_eq!(server.metric("blobcast_quarantine_callbacks").await, 2.0);
}

#[tokio::test]
async fn retention_moves_on_past_what_is_damaged() {
    // A bit of the task's id, without which nothing of its commit is proven; and one of the prompt.
    for (text, behind) in [("t3", 0), ("xxxx", 2)] {
        let mut server = small_log().start().await;
        let (data_dir, http) = (server.data_dir(), server.http());
        let first = segments(&data_dir)[0].clone();
        if text == "t3" {
            http.post_bulky(0..3, 2_000).await;
        }
        http.post_bulky(3..6, 2_000).await;
        damage(&data_dir, text, behind);
        let get = async |server: &Server| {
            let request = GetTaskRequest {
                task_id: "t3".into(),
                ..Default::default()
            };
            let answer = server.events().await.get_task(request).await;
            answer
                .map(|answer| answer.into_inner().events.len())
                .map_err(|status| refusal(&status))
        };
        assert_eq!(
            get(&server).await,
            Err((Code::DataLoss, "LOG_CORRUPT".into()))
        );
        let met = server.metric("blobcast_log_damage_met_total").await;

        http.post_bulky(6..70, 20_000).await;
        let info = server.trimmed().await;
        assert!(
            place(&info.first_available) > 10,
            "{}",
            info.first_available
        );
        until("the first segment to go", async || {
            http.post(&completed("more")).await;
            !first.exists()
        })
        .await;
        assert!(
            server.log_info().await.event_bytes > 900_000,
            "and no more than that"
        );
        server.logged("cannot be read, and are forgotten", 1).await;
        assert_eq!(
            server.metric("blobcast_log_damage_met_total").await,
            met + 1.0
        );

        // What was forgotten unread is known no more.
        assert_eq!(
            get(&server).await,
            Err((Code::NotFound, "TASK_NOT_FOUND".into()))
        );
        let again = http.post(&bulky("t3", 2_000)).await;
        assert!(!again.duplicate());
        assert_eq!(get(&server).await, Ok(1));
        server.crash().await;
        assert_eq!(get(&server).await, Ok(1));
    }
}
