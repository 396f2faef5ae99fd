//! Clients that are bound to labels: no call, live or about the past, tells them anything about
//! events without these labels.

use std::collections::BTreeMap;

use blobcast::wire::v1::{
    self, Event, Filter, GetRawBodyRequest, GetTaskRequest, ListEventsRequest, Order,
    WaitTaskRequest, subscribe_request::Start,
};
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    permissions::{events_as, subscribe_as, told},
    support::{
        CredentialsFile, Options, Server, Sub, bulky, completed, of_labels, of_products, of_tasks,
        processing, reason, refusal, request, tasks_of, until, with,
    },
};

/// A broker for two teams, and for a reader and an administrator who see everything.
struct House {
    server: Server,
    file: CredentialsFile,
    ads: String,
    film: String,
    all: String,
    admin: String,
}

impl House {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let mut file = CredentialsFile::new();
        let ads = file.add("client ads --all-products --label team=ads").await;
        let film = file
            .add("client film --product veo --product sora --label team=film --label site=b")
            .await;
        let all = file.add("client all --all-products").await;
        let admin = file.add("client admin --all-products --admin").await;
        let server = options
            .set("credentials_file", file.path().display())
            .start()
            .await;
        Self {
            server,
            file,
            ads,
            film,
            all,
            admin,
        }
    }

    async fn post(&self, target: &str, body: serde_json::Value) -> String {
        self.server
            .http()
            .post_to(&format!("/webhook/{target}"), body.to_string())
            .await
            .event_id()
    }

    /// A task of each team, and some that are nobody's.
    async fn post_tasks(&self) {
        for (target, task) in [
            ("veo?team=ads", "a1"),
            ("veo?team=film&site=b", "f1"),
            ("veo?team=film", "half"),
            ("veo", "n1"),
            ("sora?ref=42&team=ads", "a2"),
            ("veo?team=ads&site=b", "a3"),
            ("kling?team=film&site=b", "k1"),
            ("veo?team=Ads&ads=team", "n2"),
        ] {
            self.post(target, completed(task)).await;
        }
    }

    /// Everyone who may be let in, and the tasks they may see.
    fn clients(&self) -> [(&str, &[&str]); 3] {
        [
            (&self.ads, &["a1", "a2", "a3"]),
            (&self.film, &["f1"]),
            (
                &self.all,
                &["a1", "f1", "half", "n1", "a2", "a3", "k1", "n2"],
            ),
        ]
    }
}

async fn list(server: &Server, token: &str, request: ListEventsRequest) -> Vec<Event> {
    let mut client = events_as(server, Some(token)).await;
    let (mut events, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListEventsRequest {
            page_token,
            ..request.clone()
        };
        let page = client.list_events(request).await.unwrap().into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return events;
        }
    }
}

async fn get_task(server: &Server, token: &str, task_id: &str) -> Result<Vec<Event>, Status> {
    let request = GetTaskRequest {
        task_id: task_id.into(),
        ..Default::default()
    };
    Ok(events_as(server, Some(token))
        .await
        .get_task(request)
        .await?
        .into_inner()
        .events)
}

/// Whether it is over, and the id of the event that `WaitTask` answers, if there is one.
async fn wait_task(server: &Server, token: &str, task_id: &str) -> (bool, Option<String>) {
    let timeout = Some(prost_types::Duration {
        seconds: 0,
        nanos: 1_000_000,
    });
    let request = WaitTaskRequest {
        task_id: task_id.into(),
        timeout,
        ..Default::default()
    };
    let answer = events_as(server, Some(token))
        .await
        .wait_task(request)
        .await
        .unwrap()
        .into_inner();
    (answer.done, answer.event.map(|event| event.event_id))
}

#[tokio::test]
async fn a_bound_client_sees_events_with_all_of_its_labels_and_no_others_by_stream_and_by_listing()
{
    for number in 0..3 {
        let house = House::new().await;
        let (token, visible) = house.clients()[number];
        let mut live = subscribe_as(&house.server, Some(token), Filter::default())
            .await
            .unwrap();
        live.until_caught_up().await;
        house.post_tasks().await;
        assert_eq!(
            tasks_of(&live.next_events(visible.len()).await),
            visible,
            "live"
        );

        let mut behind = subscribe_as(&house.server, Some(token), Filter::default())
            .await
            .unwrap();
        assert_eq!(
            tasks_of(&behind.until_caught_up().await),
            visible,
            "catching up"
        );
        let listed = list(
            &house.server,
            token,
            ListEventsRequest {
                page_size: 1,
                ..Default::default()
            },
        )
        .await;
        assert_eq!(tasks_of(&listed), visible);
        let newest_first = ListEventsRequest {
            page_size: 1,
            order: Order::NewestFirst.into(),
            ..Default::default()
        };
        let mut listed = list(&house.server, token, newest_first).await;
        listed.reverse();
        assert_eq!(tasks_of(&listed), visible);

        // What a filter asks for besides is of these.
        let asked = |event: &&Event| ["veo", "sora"].contains(&event.product.as_str());
        let expected: Vec<_> = listed
            .iter()
            .filter(asked)
            .map(|event| event.task_id.clone())
            .collect();
        let of_two = ListEventsRequest {
            filter: Some(of_products(["veo", "sora"])),
            ..Default::default()
        };
        assert_eq!(
            tasks_of(&list(&house.server, token, of_two).await),
            expected
        );
        let of_film = ListEventsRequest {
            filter: Some(of_labels([("team", "film")])),
            ..Default::default()
        };
        let has_it = |event: &&Event| event.labels.get("team").is_some_and(|team| team == "film");
        let expected: Vec<_> = listed
            .iter()
            .filter(has_it)
            .map(|event| event.task_id.clone())
            .collect();
        assert_eq!(
            tasks_of(&list(&house.server, token, of_film).await),
            expected
        );
    }
}

#[tokio::test]
async fn by_task_and_by_cursor_nothing_tells_what_is_anothers_from_what_is_not_there() {
    let house = House::new().await;
    house.post_tasks().await;
    let every = list(&house.server, &house.all, ListEventsRequest::default()).await;
    for (token, visible) in house.clients() {
        for event in &every {
            let task = event.task_id.as_str();
            let may = visible.contains(&task);
            let what = format!("{visible:?} asks for {task}");
            match get_task(&house.server, token, task).await {
                Ok(events) => assert_eq!((may, tasks_of(&events)), (true, vec![task]), "{what}"),
                Err(got) => {
                    let nothing = get_task(&house.server, token, "nothing").await.unwrap_err();
                    assert_eq!((may, refusal(&got)), (false, refusal(&nothing)), "{what}");
                    assert_eq!(
                        got.message(),
                        nothing.message().replace("nothing", task),
                        "{what}"
                    );
                }
            }
            let expected = (may, may.then(|| event.event_id.clone()));
            assert_eq!(
                wait_task(&house.server, token, task).await,
                expected,
                "{what}"
            );

            let of_task = ListEventsRequest {
                filter: Some(of_tasks([task])),
                ..Default::default()
            };
            assert_eq!(
                list(&house.server, token, of_task).await.len(),
                usize::from(may),
                "{what}"
            );
            let mut sub = subscribe_as(&house.server, Some(token), of_tasks([task]))
                .await
                .unwrap();
            assert_eq!(
                sub.until_caught_up().await.len(),
                usize::from(may),
                "{what}"
            );

            let raw = GetRawBodyRequest {
                cursor: event.cursor.clone(),
                offset: u64::from(!may) << 40,
            };
            let body = events_as(&house.server, Some(token))
                .await
                .get_raw_body(raw)
                .await;
            assert_eq!(
                told(body),
                if may {
                    "ok"
                } else {
                    "NotFound EVENT_NOT_FOUND"
                },
                "{what}"
            );
        }
    }
}

#[tokio::test]
async fn of_a_task_that_two_have_events_of_each_sees_its_own_and_waits_for_its_own_end() {
    let house = House::new().await;
    house.post("veo?team=ads", processing("t")).await;
    house.post("veo?team=film&site=b", completed("t")).await;
    let statuses = async |token: &str| {
        let events = get_task(&house.server, token, "t").await.unwrap();
        events
            .iter()
            .map(|event| event.status_text.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(statuses(&house.ads).await, ["processing"]);
    assert_eq!(statuses(&house.film).await, ["completed"]);
    assert_eq!(statuses(&house.all).await, ["processing", "completed"]);
    let (done, latest) = wait_task(&house.server, &house.ads, "t").await;
    let ours = get_task(&house.server, &house.ads, "t")
        .await
        .unwrap()
        .remove(0);
    assert_eq!(
        (done, latest),
        (false, Some(ours.event_id)),
        "another's last word ends no wait"
    );
    assert!(wait_task(&house.server, &house.film, "t").await.0);

    // Nor a stream, be it from the beginning, or from behind that word, where only the index knows of it.
    let request = v1::SubscribeRequest {
        filter: Some(of_tasks(["t"])),
        until_terminal: true,
        ..request()
    };
    let behind = list(&house.server, &house.all, ListEventsRequest::default())
        .await
        .pop()
        .unwrap()
        .cursor;
    let start = Some(Start::AfterCursor(behind));
    let requests = [
        request.clone(),
        v1::SubscribeRequest {
            start: start.clone(),
            ..request.clone()
        },
    ];
    let mut waiting = Vec::new();
    for request in &requests {
        let client = events_as(&house.server, Some(&house.ads)).await;
        let mut sub = Sub::open(client, request.clone()).await.unwrap();
        sub.until_caught_up().await;
        waiting.push(sub);
        let client = events_as(&house.server, Some(&house.film)).await;
        assert!(
            Sub::open(client, request.clone())
                .await
                .unwrap()
                .end()
                .await
                .is_ok(),
            "its own ends its own"
        );
    }
    let long = WaitTaskRequest {
        task_id: "t".into(),
        ..Default::default()
    };
    let mut client = events_as(&house.server, Some(&house.ads)).await;
    let wait = tokio::spawn(async move { client.wait_task(long).await.unwrap().into_inner() });
    until("the wait to be there", async || {
        let listed = house
            .server
            .cli("subscriptions --output json")
            .env("BLOBCAST_TOKEN", &house.admin)
            .run()
            .await;
        listed
            .each("client")
            .iter()
            .filter(|client| *client == "ads")
            .count()
            == 3
    })
    .await;

    let body = with(
        completed("t"),
        json!({"video_url": "https://cdn.runblob.io/videos/ours.mp4"}),
    );
    let last_word = house.post("veo?team=ads", body).await;
    for mut sub in waiting {
        let seen = sub.end().await.unwrap();
        let events = seen
            .iter()
            .filter(|seen| matches!(seen, v1::subscribe_response::Content::Event(_)))
            .count();
        assert_eq!(events, 1, "{seen:?}");
    }
    assert_eq!(wait.await.unwrap().event.unwrap().event_id, last_word);
    // And from behind its own last word, too.
    let behind = list(&house.server, &house.ads, ListEventsRequest::default())
        .await
        .pop()
        .unwrap()
        .cursor;
    let start = Some(Start::AfterCursor(behind));
    let client = events_as(&house.server, Some(&house.ads)).await;
    let mut again = Sub::open(client, v1::SubscribeRequest { start, ..request })
        .await
        .unwrap();
    assert!(again.end().await.is_ok());
}

#[tokio::test]
async fn many_large_last_words_are_looked_at_one_part_after_the_other() {
    let house = House::new().await;
    // Some 24 MB of the log; one lookup reads 8 of it.
    for number in 0..14 {
        house
            .post("veo?team=ads", bulky(&format!("t{number}"), 900_000))
            .await;
    }
    house
        .post("veo?team=film&site=b", bulky("t14", 900_000))
        .await;
    let mut all = events_as(&house.server, Some(&house.all)).await;
    let behind = all
        .get_log_info(v1::GetLogInfoRequest::default())
        .await
        .unwrap()
        .into_inner()
        .head;
    let open = async |count: usize, cursor: &str| {
        let request = v1::SubscribeRequest {
            filter: Some(of_tasks((0..count).map(|number| format!("t{number}")))),
            until_terminal: true,
            start: Some(Start::AfterCursor(cursor.to_owned())),
            ..request()
        };
        Sub::open(events_as(&house.server, Some(&house.ads)).await, request)
            .await
            .unwrap()
    };
    assert!(open(14, &behind).await.end().await.is_ok());
    let mut waiting = open(15, &behind).await;
    waiting.until_caught_up().await;
    house.post("veo?team=ads", processing("t14")).await;
    assert_eq!(waiting.next_event().await.task_id, "t14", "it is not over");
    // Also from behind a part of them, where the rest is still to be handed out.
    let half = list(
        &house.server,
        &house.all,
        ListEventsRequest {
            page_size: 1,
            ..Default::default()
        },
    )
    .await
    .remove(7)
    .cursor;
    let seen = open(14, &half).await.end().await.unwrap();
    let events = seen
        .iter()
        .filter(|seen| matches!(seen, v1::subscribe_response::Content::Event(_)))
        .count();
    assert_eq!(events, 6);
}

#[tokio::test]
async fn an_erased_task_is_to_a_bound_client_as_if_it_had_never_been() {
    let house = House::new().await;
    house.post("veo?team=ads", completed("t")).await;
    let erased = house
        .server
        .cli("erase veo t")
        .env("BLOBCAST_TOKEN", &house.admin)
        .run()
        .await;
    erased.good();
    assert_eq!(
        wait_task(&house.server, &house.all, "t").await,
        (true, None)
    );
    assert_eq!(
        wait_task(&house.server, &house.ads, "t").await,
        (false, None)
    );
    assert_eq!(
        wait_task(&house.server, &house.film, "t").await,
        (false, None)
    );
    assert_eq!(
        told(get_task(&house.server, &house.ads, "t").await),
        "NotFound TASK_NOT_FOUND"
    );
}

#[tokio::test]
async fn a_change_of_labels_ends_the_streams_that_would_show_too_much_and_no_others() {
    let house = House::new().await;
    let mut ads = subscribe_as(&house.server, Some(&house.ads), Filter::default())
        .await
        .unwrap();
    let mut film = subscribe_as(&house.server, Some(&house.film), Filter::default())
        .await
        .unwrap();
    let mut all = subscribe_as(&house.server, Some(&house.all), Filter::default())
        .await
        .unwrap();
    for sub in [&mut ads, &mut film, &mut all] {
        sub.until_caught_up().await;
    }
    // Waiting streams: nothing but the change wakes them. `film` is bound to less from now on, so its stream may stay.
    let mut text = std::fs::read_to_string(house.file.path()).unwrap();
    for (before, after) in [
        ("{ team = \"ads\" }", "{ team = \"ads\", site = \"a\" }"),
        ("{ site = \"b\", team = \"film\" }", "{ site = \"b\" }"),
    ] {
        assert!(text.contains(before), "{text}");
        text = text.replace(before, after);
    }
    house.file.write(&text);
    let (_, status) = ads.end().await.unwrap_err();
    assert_eq!(
        refusal(&status),
        (Code::PermissionDenied, "LABEL_DENIED".to_owned())
    );
    assert_eq!(
        house
            .server
            .metric("blobcast_subscriptions_ended_total{cause=\"withdrawn\"}")
            .await,
        1.0
    );

    house.post_tasks().await;
    house.post("veo?team=ads&site=a", completed("a9")).await;
    assert_eq!(
        tasks_of(&film.next_events(1).await),
        ["f1"],
        "with what it had"
    );
    let mut ads = subscribe_as(&house.server, Some(&house.ads), Filter::default())
        .await
        .unwrap();
    assert_eq!(tasks_of(&ads.until_caught_up().await), ["a9"]);
    let mut film = subscribe_as(&house.server, Some(&house.film), Filter::default())
        .await
        .unwrap();
    assert_eq!(tasks_of(&film.until_caught_up().await), ["f1", "a3"]);

    // One that was bound to nothing, and is now.
    all.next_events(9).await;
    house
        .file
        .write(&text.replace("all = {", "all = { labels = { team = \"ads\" },"));
    let (_, status) = all.end().await.unwrap_err();
    assert_eq!(reason(&status), "LABEL_DENIED");
    // The same words in the file are no change.
    house.post("veo?team=ads&site=a", completed("a10")).await;
    assert_eq!(ads.next_event().await.task_id, "a10");
}

#[tokio::test]
async fn an_administrator_sees_to_what_a_client_is_bound() {
    let house = House::new().await;
    let _film = subscribe_as(&house.server, Some(&house.film), of_labels([("ref", "42")]))
        .await
        .unwrap();
    let listed = house
        .server
        .cli("subscriptions --output json")
        .env("BLOBCAST_TOKEN", &house.admin)
        .run()
        .await;
    let line = listed.json_lines().remove(0);
    assert_eq!(
        (&line["client"], &line["bound_labels"]),
        (&json!("film"), &json!({"site": "b", "team": "film"}))
    );
    assert_eq!(line["filter"]["labels"], json!({"ref": "42"}));
    let table = house
        .server
        .cli("subscriptions")
        .env("BLOBCAST_TOKEN", &house.admin)
        .run()
        .await;
    assert!(
        table
            .good()
            .contains("labels=ref:42 bound=site:b,team:film"),
        "{table:?}"
    );
}

/// Numbers that look random, and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// Whether a client may see an event.
type Rule = fn(&Event) -> bool;

fn has(event: &Event, key: &str, value: &str) -> bool {
    event.labels.get(key).is_some_and(|there| there == value)
}

#[tokio::test]
async fn a_bound_clients_stream_is_exactly_the_unbound_one_filtered_by_the_labels() {
    // Few events of each: a task with many of several products is crowded, and the index does not name all of them.
    const TASKS: usize = 40;
    let seed = std::env::var("BLOBCAST_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("repeat its choices with BLOBCAST_SEED={seed}");
    let mut dice = Dice(seed);
    // More than the ring holds, so that streams from the beginning read the log.
    let house = House::with(Options::default().set("hub.ring_bytes_max", "1MiB")).await;
    let prompt = "x".repeat(6_000);
    let mut live = BTreeMap::new();
    for (token, _) in house.clients() {
        live.insert(
            token,
            subscribe_as(&house.server, Some(token), Filter::default())
                .await
                .unwrap(),
        );
    }
    for number in 0..200 {
        let product = ["veo", "sora", "kling"][dice.roll(3)];
        let labels: Vec<_> = ["team=ads", "team=film", "site=b", "site=a", "ref=1"]
            .into_iter()
            .filter(|_| dice.roll(2) == 0)
            .collect();
        let body = with(
            completed(&format!("t{}", number % TASKS)),
            json!({"video_url": format!("https://x/{number}"), "prompt": prompt}),
        );
        house
            .post(&format!("{product}?{}", labels.join("&")), body)
            .await;
    }

    let every = list(&house.server, &house.all, ListEventsRequest::default()).await;
    assert_eq!(every.len(), 200);
    let may_see: [(&str, Rule); 3] = [
        (&house.ads, |event| has(event, "team", "ads")),
        (&house.film, |event| {
            has(event, "team", "film") && has(event, "site", "b") && event.product != "kling"
        }),
        (&house.all, |_| true),
    ];
    let ids = |events: &[Event]| {
        events
            .iter()
            .map(|event| event.event_id.clone())
            .collect::<Vec<_>>()
    };
    for (token, may_see) in may_see {
        let expected: Vec<_> = every
            .iter()
            .filter(|event| may_see(event))
            .cloned()
            .collect();
        let mut live = live.remove(token).unwrap();
        assert_eq!(
            ids(&live.next_events(expected.len()).await),
            ids(&expected),
            "live, seed {seed}"
        );
        let mut behind = subscribe_as(&house.server, Some(token), Filter::default())
            .await
            .unwrap();
        assert_eq!(
            ids(&behind.until_caught_up().await),
            ids(&expected),
            "from the log, seed {seed}"
        );
        assert_eq!(
            ids(&list(
                &house.server,
                token,
                ListEventsRequest {
                    page_size: 7,
                    ..Default::default()
                }
            )
            .await),
            ids(&expected),
            "seed {seed}"
        );
        for task in 0..TASKS {
            let task = format!("t{task}");
            let expected: Vec<_> = expected
                .iter()
                .filter(|event| event.task_id == task)
                .cloned()
                .collect();
            let got = get_task(&house.server, token, &task)
                .await
                .unwrap_or_default();
            assert_eq!(ids(&got), ids(&expected), "{task}, seed {seed}");
            let mut sub = subscribe_as(&house.server, Some(token), of_tasks([&task]))
                .await
                .unwrap();
            assert_eq!(
                ids(&sub.until_caught_up().await),
                ids(&expected),
                "{task}, seed {seed}"
            );
        }
    }
}
