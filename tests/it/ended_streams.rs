//! Streams that an administrator ends: their clients get a reason and do not reconnect by
//! themselves, but may subscribe again.

use blobcast::wire::v1::{Filter, WaitTaskRequest};
use tonic::Code;

use crate::{
    permissions::{events_as, subscribe_as, told},
    support::{
        CredentialsFile, Options, Server, Sub, after, bulky, completed, refusal, request, tasks_of,
        until,
    },
};

/// A broker with an administrator, and a client.
struct House {
    server: Server,
    admin: String,
    billing: String,
}

impl House {
    async fn new() -> Self {
        let mut file = CredentialsFile::new();
        let admin = file.add("client admin --all-products --admin").await;
        let billing = file.add("client billing --all-products").await;
        let server = Options::default()
            .set("credentials_file", file.path().display())
            .start()
            .await;
        Self {
            server,
            admin,
            billing,
        }
    }

    async fn subscriptions(&self, flags: &str) -> crate::support::Ran {
        self.server
            .cli(&format!("subscriptions {flags}"))
            .env("BLOBCAST_TOKEN", &self.admin)
            .run()
            .await
    }

    async fn open(&self) -> Vec<String> {
        self.subscriptions("--output json")
            .await
            .each("subscription_id")
    }

    async fn ended(&self) -> f64 {
        self.server
            .metric("blobcast_subscriptions_ended_total{cause=\"ended_by_admin\"}")
            .await
    }
}

#[tokio::test]
async fn a_stream_that_is_ended_says_so_and_its_client_may_come_back_with_its_cursor() {
    let house = House::new().await;
    let mut sub = subscribe_as(&house.server, Some(&house.billing), Filter::default())
        .await
        .unwrap();
    let mut other = subscribe_as(&house.server, Some(&house.billing), Filter::default())
        .await
        .unwrap();
    for sub in [&mut sub, &mut other] {
        sub.until_caught_up().await;
    }
    house.server.http().post(&completed("t1")).await.event_id();
    for sub in [&mut sub, &mut other] {
        assert_eq!(tasks_of(&sub.next_events(1).await), ["t1"]);
    }

    // A waiting stream: nothing but its end wakes it.
    let id = sub.subscribed.subscription_id.clone();
    let ended = house.subscriptions(&format!("--end {id}")).await;
    assert!(
        ended.good().contains(&id) && ended.stdout.contains("billing (a test)"),
        "{ended:?}"
    );
    let (_, status) = sub.end().await.unwrap_err();
    assert_eq!(
        refusal(&status),
        (Code::Aborted, "SUBSCRIPTION_ENDED".to_owned())
    );
    assert_eq!(
        house.open().await,
        [other.subscribed.subscription_id.clone()]
    );
    until("the count", async || house.ended().await == 1.0).await;
    let line = house.server.logged("subscription ended", 1).await.remove(0);
    assert!(
        line.contains("billing") && line.contains("ended_by_admin"),
        "{line}"
    );

    house.server.http().post(&completed("t2")).await.event_id();
    assert_eq!(
        tasks_of(&other.next_events(1).await),
        ["t2"],
        "another stream of the same client goes on"
    );
    let client = events_as(&house.server, Some(&house.billing)).await;
    let mut again = Sub::open(client, after(&sub.cursor)).await.unwrap();
    assert_eq!(tasks_of(&again.until_caught_up().await), ["t2"]);
}

#[tokio::test]
async fn several_are_ended_at_once_and_a_missing_one_is_named() {
    let house = House::new().await;
    let mut subs = Vec::new();
    for _ in 0..3 {
        subs.push(
            subscribe_as(&house.server, Some(&house.billing), Filter::default())
                .await
                .unwrap(),
        );
    }
    let id = |number: usize| subs[number].subscribed.subscription_id.clone();
    let ended = house
        .subscriptions(&format!(
            "--end {} --end nobody --end {} --output json",
            id(0),
            id(1)
        ))
        .await;
    assert!(
        ended
            .exited(1)
            .contains("nobody: NOT_FOUND SUBSCRIPTION_NOT_FOUND"),
        "{ended:?}"
    );
    let printed: Vec<serde_json::Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let printed: Vec<_> = printed
        .iter()
        .map(|line| line["subscription_id"].as_str().unwrap())
        .collect();
    assert_eq!(printed, [id(0), id(1)]);
    assert_eq!(house.open().await, [id(2)]);
    assert!(
        house
            .subscriptions(&format!("--end {}", id(0)))
            .await
            .exited(1)
            .contains("SUBSCRIPTION_NOT_FOUND"),
        "once"
    );
    for sub in &mut subs[..2] {
        assert_eq!(
            refusal(&sub.end().await.unwrap_err().1).1,
            "SUBSCRIPTION_ENDED"
        );
    }
}

#[tokio::test]
async fn all_streams_and_waits_of_a_client_are_ended_and_nobody_elses() {
    let house = House::new().await;
    let mut subs = Vec::new();
    for _ in 0..300 {
        subs.push(
            subscribe_as(&house.server, Some(&house.billing), Filter::default())
                .await
                .unwrap(),
        );
    }
    let mut others = subscribe_as(&house.server, Some(&house.admin), Filter::default())
        .await
        .unwrap();
    let mut client = events_as(&house.server, Some(&house.billing)).await;
    let wait = tokio::spawn(async move {
        told(
            client
                .wait_task(WaitTaskRequest {
                    task_id: "t".into(),
                    ..Default::default()
                })
                .await,
        )
    });
    until("the wait", async || house.open().await.len() == 302).await;

    let ended = house
        .subscriptions("--end-client billing --output json")
        .await;
    assert_eq!(
        ended.each("client"),
        vec!["billing"; 301],
        "more than a page"
    );
    assert_eq!(wait.await.unwrap(), "Aborted SUBSCRIPTION_ENDED");
    for sub in &mut subs {
        assert_eq!(
            refusal(&sub.end().await.unwrap_err().1).1,
            "SUBSCRIPTION_ENDED"
        );
    }
    assert_eq!(
        house.open().await,
        [others.subscribed.subscription_id.clone()]
    );
    house.server.http().post(&completed("t1")).await.event_id();
    assert_eq!(tasks_of(&others.next_events(1).await), ["t1"]);
    let nothing = house.subscriptions("--end-client billing").await;
    assert!(
        nothing.exited(1).contains("billing has no stream open"),
        "{nothing:?}"
    );
}

#[tokio::test]
async fn a_stream_whose_client_takes_nothing_gives_its_place_free_at_once() {
    let mut file = CredentialsFile::new();
    let admin = file.add("client admin --all-products --admin").await;
    let options = Options::default().set("credentials_file", file.path().display());
    let server = options
        .set("grpc.subscriptions_max", 1)
        .set("grpc.allow_anonymous", true)
        .start()
        .await;
    server.http().post_bulky(0..40, 100_000).await;
    let mut stalled = server.subscribe_narrowly(request()).await;
    assert_eq!(
        server
            .try_subscribe(request())
            .await
            .err()
            .map(|status| refusal(&status).1)
            .as_deref(),
        Some("SUBSCRIPTION_LIMIT")
    );
    let id = stalled.subscribed.subscription_id.clone();
    server
        .cli(&format!("subscriptions --end {id}"))
        .env("BLOBCAST_TOKEN", &admin)
        .run()
        .await
        .good();
    assert!(server.try_subscribe(request()).await.is_ok());
    // Once it reads on, it learns of its end behind what was sent before.
    let (seen, status) = stalled.end().await.unwrap_err();
    assert!(seen.len() < 40, "{} messages", seen.len());
    assert_eq!(refusal(&status).1, "SUBSCRIPTION_ENDED");
}

#[tokio::test]
async fn the_command_line_does_not_come_back_by_itself_and_tells_from_where_it_could() {
    let house = House::new().await;
    house.server.http().post(&bulky("t1", 10)).await.event_id();
    let listen = house
        .server
        .cli("listen --from earliest")
        .env("BLOBCAST_TOKEN", &house.billing)
        .start();
    until("the stream", async || {
        let listed = house.subscriptions("--output json").await.json_lines();
        listed.first().is_some_and(|line| {
            line["delivered_count"] == 1 && line["state"] == "SUBSCRIPTION_STATE_LIVE"
        })
    })
    .await;
    house.subscriptions("--end-client billing").await.good();
    let ended = listen.ended().await;
    let told = ended.exited(1);
    assert!(
        told.contains("SUBSCRIPTION_ENDED") && told.contains("continue with --from "),
        "{told}"
    );
    assert_eq!(house.ended().await, 1.0, "it was there once");
}
