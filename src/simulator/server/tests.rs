//! The server through its own door, for what no single file shows: scripts, keys, limits, order.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

struct Asking {
    vendor: SimulatedVendor,
    client: Client<HttpConnector, Full<Bytes>>,
}

async fn asking(settings: Settings) -> Asking {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Asking {
        vendor: SimulatedVendor::start(listener, settings).unwrap(),
        client: Client::builder(TokioExecutor::new()).build_http(),
    }
}

impl Asking {
    async fn try_get(&self, target: &str) -> Option<Response<Incoming>> {
        self.get_as("Bearer k1", target).await
    }

    async fn get_as(&self, authorization: &str, target: &str) -> Option<Response<Incoming>> {
        let request = Request::get(format!("{}{target}", self.vendor.base_url()))
            .header("authorization", authorization)
            .body(Full::default())
            .unwrap();
        let asked = tokio::time::timeout(PATIENCE, self.client.request(request));
        asked.await.unwrap().ok()
    }

    async fn get(&self, target: &str) -> (u16, Value) {
        let response = self.try_get(target).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn status_of(&self, target: &str) -> Value {
        let (status, body) = self.get(target).await;
        assert_eq!(status, 200, "{body}");
        body["status"].clone()
    }
}

fn veo(id: &str) -> Task {
    Task::new("veo", id, Timestamp::UNIX_EPOCH)
}

const T1: &str = "/v1/veo/generations/t1";

#[tokio::test]
async fn a_task_is_shown_in_the_states_of_its_script_and_then_as_it_is() {
    let asking = asking(Settings::default()).await;
    let states = [
        State::Pending,
        State::Processing,
        State::CompletedWithoutOutputs,
    ];
    asking.vendor.add(veo("t1"));
    asking
        .vendor
        .script(Target::task("veo", "t1"), states.map(Step::State));
    for word in ["pending", "processing"] {
        assert_eq!(asking.status_of(T1).await, word);
    }
    let (_, body) = asking.get(T1).await;
    assert_eq!(
        (&body["status"], &body["video_url"]),
        (&json!("completed"), &Value::Null)
    );
    assert_eq!(asking.status_of(T1).await, "pending");
    assert!(asking.vendor.set_state("veo", "t1", State::Completed));
    let (_, body) = asking.get(T1).await;
    assert!(body["video_url"].is_string() && body["completed_at"].is_string());
}

#[tokio::test]
async fn any_answer_can_be_scripted() {
    let asking = asking(Settings::default()).await;
    asking.vendor.add(veo("t1"));
    let later = Duration::from_millis(30);
    asking.vendor.script(
        Target::task("veo", "t1"),
        [
            Step::too_many(7),
            Step::redirect("http://example.com/"),
            Step::status(403),
            Step::Answer(200, "no json".into()),
            Step::fields(json!({"status": "dreaming"})),
            Step::Slow(later, Box::new(Step::status(503))),
            Step::Huge(3_000_000),
        ],
    );
    let header = |response: &Response<Incoming>, name| {
        let value = response.headers().get(name).unwrap();
        value.to_str().unwrap().to_owned()
    };
    let too_many = asking.try_get(T1).await.unwrap();
    assert_eq!(too_many.status(), 429);
    assert_eq!(header(&too_many, "retry-after"), "7");
    let elsewhere = asking.try_get(T1).await.unwrap();
    assert_eq!(elsewhere.status(), 302);
    assert_eq!(header(&elsewhere, "location"), "http://example.com/");
    assert_eq!(asking.get(T1).await.0, 403);
    assert_eq!(asking.get(T1).await, (200, Value::Null));
    assert_eq!(asking.status_of(T1).await, "dreaming");

    let before = std::time::Instant::now();
    assert_eq!(asking.get(T1).await.0, 503);
    assert!(before.elapsed() >= later);
    let huge = asking.try_get(T1).await.unwrap();
    assert!(!huge.headers().contains_key("content-length"));
    let body = huge.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.len(), 3_000_000);
    assert!(serde_json::from_slice::<Value>(&body).is_ok());
}

#[tokio::test]
async fn connections_break_before_and_within_an_answer() {
    let asking = asking(Settings::default()).await;
    asking.vendor.add(veo("t1"));
    asking
        .vendor
        .script(Target::Checks, [Step::Truncated, Step::Broken]);
    let truncated = asking.try_get(T1).await.unwrap();
    assert_eq!(truncated.status(), 200);
    assert!(truncated.into_body().collect().await.is_err());
    assert!(asking.try_get(T1).await.is_none());
    assert_eq!(asking.status_of(T1).await, "pending");
    let statuses: Vec<_> = asking
        .vendor
        .checks()
        .iter()
        .map(|request| request.http_status)
        .collect();
    // The client repeats nothing by itself, so each break is one request.
    assert_eq!(statuses, [200, 0, 200]);
}

#[tokio::test]
async fn a_silent_vendor_answers_nobody_until_it_stops() {
    let asking = asking(Settings::default()).await;
    asking.vendor.script_always(Target::Checks, Step::Silence);
    let waiting = asking.try_get(T1);
    tokio::pin!(waiting);
    while asking.vendor.requests().is_empty() {
        let step = Duration::from_millis(5);
        assert!(tokio::time::timeout(step, &mut waiting).await.is_err());
    }
    asking.vendor.shared.stop();
    assert!(waiting.await.is_none());
}

#[tokio::test]
async fn lists_are_paged_in_either_order_and_show_only_the_tasks_of_a_key() {
    let asking = asking(Settings::default()).await;
    for second in 0..5 {
        let created_at = Timestamp::from_second(second).unwrap();
        asking
            .vendor
            .add(Task::new("veo", &format!("t{second}"), created_at));
    }
    asking.vendor.add(Task {
        key: Some("k2".into()),
        ..veo("theirs")
    });
    let ids = async |query: &str| {
        let (status, body) = asking.get(&format!("/v1/veo/generations?{query}")).await;
        assert_eq!(status, 200);
        let id = |task: &Value| task["generation_id"].as_str().unwrap().to_owned();
        body.as_array().unwrap().iter().map(id).collect::<Vec<_>>()
    };
    assert_eq!(ids("limit=2").await, ["t4", "t3"]);
    assert_eq!(ids("limit=100&offset=3").await, ["t1", "t0"]);
    assert_eq!(ids("offset=5").await, [""; 0]);
    asking.vendor.set_list_order(ListOrder::OldestFirst);
    assert_eq!(ids("limit=2&offset=1").await, ["t1", "t2"]);
    assert_eq!(asking.get("/v1/veo/generations/theirs").await.0, 404);

    asking.vendor.script(
        Target::list("veo"),
        [Step::State(State::Failed), Step::status(500)],
    );
    let (_, body) = asking.get("/v1/veo/generations").await;
    let tasks = body.as_array().unwrap();
    assert!(tasks.len() == 5 && tasks.iter().all(|task| task["status"] == "failed"));
    assert_eq!(asking.get("/v1/veo/generations").await.0, 500);
    assert_eq!(asking.get(T1).await.0, 200);
}

#[tokio::test]
async fn each_key_has_its_limit_and_a_key_may_be_withdrawn() {
    let asking = asking(Settings {
        checks_per_minute_max: 3,
        ..Settings::default()
    })
    .await;
    asking.vendor.add(veo("t1"));
    for _ in 0..3 {
        assert_eq!(asking.get(T1).await.0, 200);
    }
    let refused = asking.try_get("/v1/veo/generations").await.unwrap();
    assert_eq!(refused.status(), 429);
    let seconds: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    asking.vendor.set_keys(["k2"]);
    let (status, body) = asking.get(T1).await;
    assert_eq!((status, &body["detail"]), (401, &json!("Invalid API key")));

    let requests = asking.vendor.requests();
    assert!(
        requests
            .iter()
            .all(|request| request.key.as_deref() == Some("k1"))
    );
    assert_eq!(most_within(&requests, Some("k1"), PATIENCE), 5);
    asking.vendor.clear_requests();
    assert_eq!(asking.vendor.requests(), []);
}

#[tokio::test]
async fn a_key_has_1_to_1024_characters_and_the_scheme_bearer() {
    let asking = asking(Settings::default()).await;
    let answered = async |authorization: String| {
        let response = asking.get_as(&authorization, T1).await.unwrap();
        response.status().as_u16()
    };
    // The task is not known, but the key is good.
    for good in ["k".repeat(1_024), "k".into()] {
        assert_eq!(answered(format!("bearer  {good}")).await, 404);
    }
    let bad = ["Basic k", "Bearer", "Bearer ", "k", ""].map(str::to_owned);
    for bad in bad
        .into_iter()
        .chain([format!("Bearer {}", "k".repeat(1_025))])
    {
        assert_eq!(answered(bad.clone()).await, 401, "{bad}");
    }
}
