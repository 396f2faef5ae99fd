//! `GetLogInfo` with a cursor: how far behind a reader is that does not read.

use blobcast::{
    event::{Cursor, Sequence},
    wire::v1::{GetLogInfoRequest, GetLogInfoResponse},
};
use serde_json::Value;
use tonic::{Code, Status};

use crate::support::{Options, Server, completed, latest, refusal, violation};

async fn behind(server: &Server, cursor: &str) -> Result<GetLogInfoResponse, Status> {
    let request = GetLogInfoRequest {
        after_cursor: cursor.into(),
    };
    let answer = server.events().await.get_log_info(request).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn the_events_behind_a_cursor_are_counted() {
    let server = Server::start().await;
    assert_eq!(behind(&server, "").await.unwrap().events_after, None);
    let start = server.log_info().await.head;
    assert_eq!(behind(&server, &start).await.unwrap().events_after, Some(0));

    for number in 0..3 {
        server.http().post(&completed(&format!("t{number}"))).await;
    }
    let mut sub = server.subscribe(latest()).await;
    sub.until_caught_up().await;
    let paused = sub.subscribed.cursor.clone();
    for number in 3..5 {
        server.http().post(&completed(&format!("t{number}"))).await;
    }
    let info = behind(&server, &paused).await.unwrap();
    assert_eq!(info.events_after, Some(2));
    assert_eq!(
        behind(&server, &info.head).await.unwrap().events_after,
        Some(0)
    );
    assert_eq!(behind(&server, &start).await.unwrap().events_after, Some(5));

    let ran = server
        .cli(&format!("log-info --output json --after {paused}"))
        .run()
        .await;
    let printed: Value = serde_json::from_str(ran.good()).unwrap();
    assert_eq!(
        (
            printed["events_after"].as_u64(),
            printed["event_count"].as_u64()
        ),
        (Some(2), Some(5))
    );
    let ran = server.cli("log-info").run().await;
    let lines = ran.good();
    assert!(
        lines.contains(&info.head) && !lines.contains("behind"),
        "{lines}"
    );
}

#[tokio::test]
async fn a_cursor_of_another_log_or_ahead_of_this_one_is_refused() {
    let (server, other) = (Server::start().await, Server::start().await);
    other.http().post(&completed("t1")).await;
    let foreign = behind(&server, &other.log_info().await.head).await;
    assert_eq!(
        refusal(&foreign.unwrap_err()),
        (Code::FailedPrecondition, "EPOCH_MISMATCH".into())
    );
    assert_eq!(
        violation(&behind(&server, "yesterday").await.unwrap_err()),
        "after_cursor"
    );
    // The next place, which no event has yet.
    let head = server.log_info().await.head;
    let head = Cursor::parse(&head).unwrap();
    let sequence = Sequence(head.sequence.0 + 1);
    let ahead = Cursor { sequence, ..head }.to_string();
    assert_eq!(
        refusal(&behind(&server, &ahead).await.unwrap_err()),
        (Code::OutOfRange, "CURSOR_AHEAD".into())
    );
}

#[tokio::test]
async fn what_retention_has_forgotten_is_counted_too() {
    let server = Options::default()
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let start = server.log_info().await.head;
    server.http().post_bulky(0..40, 50_000).await;
    let info = server.trimmed().await;
    assert!(info.event_count < 40, "{info:?}");
    assert_eq!(
        behind(&server, &start).await.unwrap().events_after,
        Some(40)
    );
}
