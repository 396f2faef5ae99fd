//! The state of a broker on one page.

use blobcast::wire::v1::{self, SubscribeRequest};
use serde_json::json;

use crate::support::{Options, Server, completed, request, until};

async fn overview(server: &Server) -> v1::GetOverviewResponse {
    let mut admin = server.admin_service().await;
    let answer = admin.get_overview(v1::GetOverviewRequest {}).await;
    answer.unwrap().into_inner()
}

#[tokio::test]
async fn the_overview_shows_what_came_in_and_what_is_kept() {
    let server = Server::start().await;
    let empty = overview(&server).await;
    assert!(empty.ready && empty.problem.is_empty(), "{empty:?}");
    assert_eq!(
        (
            empty.event_count,
            empty.oldest_event_at,
            empty.last_backup_at
        ),
        (0, None, None)
    );
    assert_eq!((empty.certificates.len(), empty.cluster), (0, None));

    let http = server.http();
    for number in 0..3 {
        http.post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    http.post(&completed("t0")).await.duplicate();
    http.post_to("/webhook/veo", "no json").await;
    http.post_to("/nothing", "").await;
    http.post_to("/nothing", "").await;

    let full = overview(&server).await;
    let history = full.history.clone().unwrap();
    assert_eq!(
        (history.callbacks.len(), history.refusals.len()),
        (1_440, 1_440)
    );
    let newest = |minutes: &[u64]| minutes.iter().rev().take(3).sum::<u64>();
    assert_eq!(
        (newest(&history.callbacks), newest(&history.refusals)),
        (5, 2)
    );
    assert_eq!(history.callbacks.iter().sum::<u64>(), 5);
    let day = full.time.unwrap().seconds - history.began_at.unwrap().seconds;
    assert!((1_439 * 60..1_440 * 60).contains(&day), "{day}");

    assert_eq!((full.event_count, full.quarantine_count), (3, 1));
    let info = server.log_info().await;
    assert_eq!(
        (full.head, full.first_available),
        (info.head, info.first_available)
    );
    let age = full.time.unwrap().seconds - full.oldest_event_at.unwrap().seconds;
    assert!((0..600).contains(&age), "{age}");
    assert!(full.disk_free_bytes.unwrap() < full.disk_total_bytes.unwrap());
    assert_eq!((full.subscription_count, full.laggards), (0, vec![]));

    let ran = server.cli("overview").run().await;
    let text = ran.good();
    for line in [
        "ready          yes\n",
        "quarantine     1\n",
        "backup         none\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(
        text.contains("5 in the last hour, 5 in the last day\n"),
        "{text}"
    );
    assert!(
        text.contains("events         3, ") && text.contains(", the oldest of "),
        "{text}"
    );
    let shown = &server
        .cli("overview --output json")
        .run()
        .await
        .json_lines()[0];
    assert_eq!(
        (&shown["ready"], &shown["event_count"]),
        (&json!(true), &json!(3))
    );
    assert_eq!(
        shown["history"]["refusals"].as_array().unwrap().len(),
        1_440
    );
}

#[tokio::test]
async fn the_overview_names_the_streams_that_are_most_behind() {
    let server = Server::start().await;
    let slow = SubscribeRequest {
        client_name: "slow".into(),
        ..request()
    };
    let _slow = server.subscribe_narrowly(slow).await;
    server.http().post_bulky(0..100, 20_000).await;
    until("it to be behind", async || {
        overview(&server).await.laggards.len() == 1
    })
    .await;
    let shown = overview(&server).await;
    assert_eq!(
        (shown.subscription_count, &*shown.laggards[0].client_name),
        (1, "slow")
    );
    let lag = shown.laggards[0].lag;
    let text = server.cli("overview").run().await;
    assert!(
        text.good().contains(&format!("slow is {lag} behind\n")),
        "{text:?}"
    );
}

#[tokio::test]
async fn the_overview_says_why_the_broker_is_not_ready() {
    let server = Options::default()
        .set("log.disk_free_min_percent", 100)
        .start()
        .await;
    until("the disk to be looked at", async || {
        !overview(&server).await.ready
    })
    .await;
    let shown = overview(&server).await;
    assert!(shown.problem.contains("free"), "{shown:?}");
    let ran = server.cli("overview").run().await;
    ran.exited(1);
    assert!(ran.stdout.starts_with("ready          no: "), "{ran:?}");
}
