//! Streams that an administrator ends: their clients get a reason and do not reconnect by
//! themselves, but may subscribe again.

use blobcast::wire::v1::{self, Filter, SubscribeRequest, WaitTaskRequest};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    permissions::{events_as, subscribe_as, told},
    support::{
        CredentialsFile, Options, Server, Sub, after, bulky, completed, matching, of_products,
        of_tasks, refusal, request, tasks_of, until, violation,
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

#[tokio::test]
async fn streams_that_have_ended_are_listed_with_the_cause_and_how_far_they_had_come() {
    let house = House::new().await;
    let nothing = house.subscriptions("--ended").await;
    assert_eq!(
        (nothing.good(), &*nothing.stderr),
        ("", "no subscription has ended since the broker started\n")
    );

    let filter = Filter {
        products: vec!["veo".into()],
        ..of_tasks((0..20).map(|number| format!("t{number:02}")))
    };
    let mut first = subscribe_as(&house.server, Some(&house.billing), filter)
        .await
        .unwrap();
    first.until_caught_up().await;
    let http = house.server.http();
    http.post_to("/webhook/veo", completed("t00").to_string())
        .await
        .event_id();
    let event = first.next_event().await;
    let second = subscribe_as(&house.server, Some(&house.admin), Filter::default())
        .await
        .unwrap();
    let ids = [&first, &second].map(|sub| sub.subscribed.subscription_id.clone());
    house
        .subscriptions(&format!("--end {}", ids[0]))
        .await
        .good();
    first.end().await.unwrap_err();
    until("the first end", async || {
        house
            .subscriptions("--ended --output json")
            .await
            .json_lines()
            .len()
            == 1
    })
    .await;
    drop(second);
    until("both ends", async || {
        house
            .subscriptions("--ended --output json")
            .await
            .json_lines()
            .len()
            == 2
    })
    .await;

    let ended = house.subscriptions("--ended --output json").await;
    assert_eq!(ended.each("cause"), ["client_gone", "ended_by_admin"]);
    assert_eq!(ended.each("client"), ["admin", "billing"]);
    assert_eq!(ended.each("subscription_id"), [&*ids[1], &*ids[0]]);
    let last = &ended.json_lines()[1];
    assert_eq!(last["cursor"], event.cursor);
    assert_eq!(
        (&last["lag"], &last["delivered_count"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(
        (&last["task_id_count"], &last["filter_cut"]),
        (&json!(20), &json!(false))
    );
    assert_eq!(last["filter"]["task_ids"].as_array().unwrap().len(), 16);
    assert_eq!(last["filter"]["products"], json!(["veo"]));
    assert!(last["open_seconds"].as_f64().unwrap() < 600.0, "{last}");

    let table = house.subscriptions("--ended --client billing").await;
    let rows: Vec<_> = table.good().lines().collect();
    assert!(
        rows[0].starts_with("ID ") && rows[0].ends_with("  FILTER"),
        "{table:?}"
    );
    assert!(rows[1].starts_with(&ids[0]), "{table:?}");
    for part in [
        "  ended_by_admin  billing (a test)  ",
        "  tasks=20 ids products=veo",
    ] {
        assert!(rows[1].contains(part), "{part}: {table:?}");
    }
    assert_eq!(rows.len(), 2, "of one client");
    assert_eq!(
        house
            .subscriptions("--ended --limit 1")
            .await
            .good()
            .lines()
            .count(),
        2
    );
}

#[tokio::test]
async fn open_streams_are_listed_by_lag_and_of_one_client() {
    let server = Server::start().await;
    let named = |name: &str, request: SubscribeRequest| SubscribeRequest {
        client_name: name.into(),
        ..request
    };
    let _fast = server
        .subscribe(named("fast", matching(of_products(["sora"]))))
        .await;
    let _slow = server.subscribe_narrowly(named("slow", request())).await;
    server.http().post_bulky(0..100, 20_000).await;
    let listed = async |flags: &str| {
        let ran = server
            .cli(&format!("subscriptions --output json {flags}"))
            .run()
            .await;
        ran.good();
        ran
    };
    until("one to be behind", async || {
        let lag = |line: &Value| line["lag"].as_u64().unwrap();
        let lines = listed("").await.json_lines();
        lag(&lines[0]) == 0 && lag(&lines[1]) > 0
    })
    .await;

    for (flags, names) in [
        ("", &["fast", "slow"][..]),
        ("--order lag", &["slow", "fast"]),
        ("--order lag --limit 1", &["slow"]),
        ("--limit 1", &["fast"]),
        ("--client fast", &["fast"]),
        ("--order lag --client fast", &["fast"]),
        ("--client nobody", &[]),
    ] {
        assert_eq!(listed(flags).await.each("client_name"), names, "{flags}");
    }

    // Page by page, by lag; the token belongs to its request.
    let mut admin = server.admin_service().await;
    let by_lag = |page_token: &str, client: &str| v1::ListSubscriptionsRequest {
        page_size: 1,
        page_token: page_token.into(),
        order: v1::SubscriptionOrder::LagFirst.into(),
        client: client.into(),
        task_id: String::new(),
    };
    let first = admin.list_subscriptions(by_lag("", "")).await;
    let first = first.unwrap().into_inner();
    let second = admin
        .list_subscriptions(by_lag(&first.next_page_token, ""))
        .await;
    let second = second.unwrap().into_inner();
    let name = |page: &v1::ListSubscriptionsResponse| page.subscriptions[0].client_name.clone();
    assert_eq!((&*name(&first), &*name(&second)), ("slow", "fast"));
    let other = by_lag(&first.next_page_token, "fast");
    let refused = admin.list_subscriptions(other).await.unwrap_err();
    assert_eq!(violation(&refused), "page_token");
    let unknown = v1::ListSubscriptionsRequest {
        order: 99,
        ..Default::default()
    };
    let refused = admin.list_subscriptions(unknown).await.unwrap_err();
    assert_eq!(violation(&refused), "order");
}
