//! The simulated vendor, as `blobcast vendor` and within a test's process, with a real broker behind
//! its callbacks.

use std::{collections::BTreeMap, time::Duration};

use blobcast::{
    simulator::server::{Settings, SimulatedVendor},
    vendor::sample::PRODUCTS,
    wire::v1::TaskStatus,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    ANY_PORT, Answer, Cli, Endpoint, Http, Running, Server, free_address, request, until,
};

/// The verb, and a client of its API.
struct Verb {
    running: Running,
    api: Api,
}

/// A client of a vendor's API.
struct Api {
    url: String,
    http: Http,
}

impl Api {
    fn at(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            // Its own address is not used: every request has a whole URL.
            http: Http::new(ANY_PORT),
        }
    }

    async fn ask(&self, method: &str, path: &str, key: Option<&str>, body: Bytes) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body)).unwrap();
        self.http.send(request).await.unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, Some("any"), Bytes::new()).await
    }

    async fn generate(&self, path: &str, body: &Value) -> Answer {
        let path = format!("/v1/{path}/generate");
        self.ask("POST", &path, Some("any"), body.to_string().into())
            .await
    }

    /// Creates a task and returns its id.
    async fn create(&self, path: &str, callback_url: Option<String>) -> String {
        let answer = self
            .generate(
                path,
                &json!({"prompt": "a cat", "callback_url": callback_url}),
            )
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
        id(&answer.json)
    }

    /// Waits until a task is over, and returns what the status API says about it.
    async fn ended(&self, path: &str, id: &str) -> Value {
        let slash = if path == "sora" { "/" } else { "" };
        let mut body = Value::Null;
        until("the end of a task", async || {
            let answer = self
                .get(&format!("/v1/{path}/generations/{id}{slash}"))
                .await;
            assert_eq!(answer.status, 200, "{answer:?}");
            body = answer.json;
            body["status"] == "completed" || body["status"] == "failed"
        })
        .await;
        body
    }
}

/// The task's id, under whichever key.
fn id(body: &Value) -> String {
    ["generation_id", "task_uuid"]
        .iter()
        .find_map(|key| body[key].as_str())
        .unwrap_or_else(|| panic!("no id in {body}"))
        .to_owned()
}

/// The path of a product, as documented.
fn path(product: &str) -> String {
    product
        .strip_prefix("kling-")
        .map_or_else(|| product.to_owned(), |rest| format!("kling/{rest}"))
}

async fn verb(flags: &str) -> Verb {
    let line = format!("vendor --listen 127.0.0.1:0 --output json {flags}");
    let running = Cli::new(&line).start();
    running.prints_lines(1).await;
    let listening = &running.json_lines()[0];
    assert_eq!(listening["what"], "listening");
    let api = Api::at(listening["url"].as_str().unwrap());
    Verb { running, api }
}

impl Verb {
    /// Waits for a line about a task's callback with one of these results, and returns it.
    async fn callback(&self, id: &str, results: &[&str]) -> Value {
        let mut found = None;
        let of_task = |line: &Value| {
            line["what"] == "callback"
                && line["task_id"] == id
                && results.iter().any(|result| line["result"] == *result)
        };
        until(&format!("a callback that is {results:?}"), || {
            found = self.running.json_lines().into_iter().find(of_task);
            std::future::ready(found.is_some())
        })
        .await;
        found.unwrap()
    }
}

async fn in_process(settings: Settings) -> (SimulatedVendor, Api) {
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let vendor = SimulatedVendor::start(listener, settings).unwrap();
    let api = Api::at(&vendor.base_url());
    (vendor, api)
}

// --- from a task to an event ---

#[tokio::test]
async fn a_task_of_each_product_becomes_an_event_with_the_labels_of_its_callback_url() {
    let server = Server::start().await;
    let mut sub = server.subscribe(request()).await;
    let Verb { running, api } = &verb("--after 50ms").await;
    for product in PRODUCTS {
        let callback_url = format!("http://{}/webhook/{product}?ref=order-42", server.ingest);
        let id = api.create(&path(product), Some(callback_url)).await;
        let event = sub.next_event().await;
        assert_eq!((&event.product, &event.task_id), (&product.into(), &id));
        assert_eq!(event.status(), TaskStatus::Completed);
        assert_eq!(event.labels["ref"], "order-42");

        let answer = api.ended(&path(product), &id).await;
        assert_eq!(answer["status"], "completed");
        let url = &event.outputs[0].url;
        assert!(answer.to_string().contains(url), "{answer} has {url}");
    }

    let states = running.json_lines();
    let states = states
        .iter()
        .filter(|line| line["what"] == "task" && line["product"] == "veo");
    let states: Vec<_> = states
        .map(|line| line["status"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["pending", "processing", "completed"]);
}

#[tokio::test]
async fn a_failed_task_has_its_reason_in_the_event_where_the_status_api_has_none() {
    let server = Server::start().await;
    let mut sub = server.subscribe(request()).await;
    let verb = verb("--after 50ms --fail-rate 100").await;
    let callback_url = format!("http://{}/webhook/kling-o1-video", server.ingest);
    let id = verb.api.create("kling/o1-video", Some(callback_url)).await;
    let event = sub.next_event().await;
    assert_eq!(event.status(), TaskStatus::Failed);
    assert_eq!(event.error.unwrap().code, "CONTENT_POLICY_VIOLATION");
    let answer = verb.api.ended("kling/o1-video", &id).await;
    assert_eq!(answer["status"], "failed");
    assert!(!answer.to_string().contains("CONTENT_POLICY"), "{answer}");
}

#[tokio::test]
async fn a_lost_callback_is_never_sent_and_the_status_api_knows_the_end() {
    let (endpoint, address) = Endpoint::default().opened().await;
    let verb = verb("--after 50ms --lose-callbacks").await;
    let lost = verb
        .api
        .create("veo", Some(format!("http://{address}/hook")))
        .await;
    assert_eq!(verb.callback(&lost, &["lost"]).await["attempt"], 0);
    let answer = verb.api.ended("veo", &lost).await;
    assert_eq!(answer["prompt"], "a cat");
    assert_eq!(endpoint.bodies(), [""; 0]);
}

#[tokio::test]
async fn a_callback_waits_for_its_delay_behind_the_end_of_the_task() {
    let delay = Duration::from_millis(300);
    let (endpoint, address) = Endpoint::default().opened().await;
    let verb = verb("--after 50ms --after gemini=60s --delay 300ms").await;
    let callback_url = Some(format!("http://{address}/hook"));
    let id = verb.api.create("veo", callback_url.clone()).await;
    let slow = verb.api.create("gemini", callback_url).await;
    verb.callback(&id, &["taken"]).await;
    let lines = verb.running.json_lines();
    let at = |what: &str, key: &str, value: &str| {
        let is =
            |line: &&Value| line["what"] == what && line[key] == value && line["task_id"] == *id;
        let line = lines.iter().find(is).unwrap();
        line["time"]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap()
    };
    let ended = at("task", "status", "completed");
    let taken = at("callback", "result", "taken");
    assert!(taken.duration_since(ended) >= delay.try_into().unwrap());
    assert_eq!(endpoint.bodies().len(), 1);
    // The product with its own time has not ended meanwhile.
    let slow = verb
        .api
        .get(&format!("/v1/gemini/generations/{slow}"))
        .await;
    assert_ne!(slow.json["status"], "completed");
}

// --- attempts ---

#[tokio::test]
async fn a_callback_outlasts_a_broker_that_is_down() {
    let mut server = Server::start().await;
    let callback_url = format!("http://{}/webhook/veo", server.ingest);
    server.kill();
    // The vendor's waits become half a second: four of them are time enough to start a broker.
    let verb = verb("--after 10ms --retry-speed 60").await;
    let id = verb.api.create("veo", Some(callback_url)).await;
    let first = verb.callback(&id, &["unanswered"]).await;
    assert_eq!(
        (&first["attempt"], &first["again"]),
        (&json!(1), &json!(true))
    );
    assert!(first["error"].as_str().unwrap().contains("refused"));
    server.restart().await;
    let mut sub = server.subscribe(request()).await;
    assert_eq!(sub.next_event().await.task_id, id);
    let taken = verb.callback(&id, &["taken"]).await;
    assert!(taken["attempt"].as_u64().unwrap() > 1, "{taken}");
}

#[tokio::test]
async fn attempts_are_as_many_and_as_far_apart_as_the_product_documents() {
    /// A second of the vendor's is 5 ms.
    const SPEED: u32 = 200;
    let (vendor, api) = in_process(Settings {
        after: Duration::ZERO,
        retry_speed: SPEED,
        ..Settings::default()
    })
    .await;
    for (product, seconds) in [
        ("veo", &[30, 30, 30, 30][..]),
        ("kling", &[30, 60, 120, 240]),
        ("kling-o3-video", &[30, 30, 30, 30]),
        ("gemini", &[30, 30]),
    ] {
        let (endpoint, address) = Endpoint::answering(&[500; 9]).opened().await;
        let began = std::time::Instant::now();
        let id = api
            .create(&path(product), Some(format!("http://{address}/hook")))
            .await;
        until("the last attempt", async || vendor.counts().1 == 0).await;
        let waits = Duration::from_secs(seconds.iter().sum()) / SPEED;
        assert!(began.elapsed() >= waits, "{product}");
        let bodies = endpoint.bodies();
        assert_eq!(bodies.len(), 1 + seconds.len(), "{product}");
        assert!(
            bodies
                .iter()
                .all(|body| *body == bodies[0] && body.contains(&id))
        );
    }
}

// --- the status API ---

#[tokio::test]
async fn requests_without_a_key_for_unknown_tasks_and_beyond_the_limit_are_refused() {
    let verb = verb("--key k1").await;
    let ask = async |key: Option<&'static str>, path: &'static str| {
        let answer = verb.api.ask("GET", path, key, Bytes::new()).await;
        let hint = answer.json["hint"].as_str().unwrap_or_default().to_owned();
        (answer.status, hint, answer)
    };
    let unknown = "/v1/veo/generations/00000000-0000-0000-0000-000000000000";
    let (status, hint, _) = ask(None, unknown).await;
    assert!(status == 401 && hint.contains("Authorization: Bearer KEY"));
    assert_eq!(ask(Some("k2"), unknown).await.0, 401);
    // Refused requests do not count.
    for _ in 0..60 {
        let (status, hint, answer) = ask(Some("k1"), unknown).await;
        assert_eq!(status, 404, "{answer:?}");
        assert_eq!(answer.json["detail"], "Generation not found");
        assert!(hint.contains("by the key that created it"));
    }
    let (status, hint, answer) = ask(Some("k1"), "/v1/sora/generations").await;
    assert!(
        status == 429 && hint.contains("60 checks a minute"),
        "{answer:?}"
    );
    let seconds: u64 = answer.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&seconds));

    let (status, hint, _) = ask(Some("k1"), "/v1/vioe/generate").await;
    assert!(status == 404 && hint.contains("/v1/kling/o1-video/generate"));
    let (status, _, answer) = ask(Some("k1"), "/v1/sora/generations/x").await;
    assert_eq!(status, 307);
    assert_eq!(answer.headers["location"], "/v1/sora/generations/x/");
    let (_, _, answer) = ask(Some("k1"), "/v1/veo/generate").await;
    assert_eq!(
        (answer.status, &answer.headers["allow"]),
        (405, &"POST".parse().unwrap())
    );
    assert!(
        !verb.running.stdout().contains("k1"),
        "a key is never printed"
    );
}

#[tokio::test]
async fn lists_show_the_recent_tasks_of_a_product_to_the_key_that_created_them() {
    let (_vendor, api) = in_process(Settings {
        after: Duration::from_secs(3600),
        ..Settings::default()
    })
    .await;
    let mut created = Vec::new();
    for _ in 0..5 {
        created.push(api.create("chatgpt-images", None).await);
    }
    api.create("veo", None).await;
    created.reverse();
    let ids = |answer: &Answer| {
        let tasks = answer.json.as_array().unwrap();
        tasks.iter().map(id).collect::<Vec<_>>()
    };
    let list = "/v1/chatgpt-images/generations";
    let first = api.get(&format!("{list}?limit=3&offset=0")).await;
    let second = api.get(&format!("{list}?limit=3&offset=3")).await;
    assert_eq!([ids(&first), ids(&second)].concat(), created);
    assert_eq!(first.json[0]["status"], "pending");
    let theirs = api.ask("GET", list, Some("other"), Bytes::new()).await;
    assert_eq!((theirs.status, theirs.json), (200, json!([])));
    assert_eq!(api.get(&format!("{list}?limit=101")).await.status, 422);
}

// --- requests for tasks ---

#[tokio::test]
async fn a_request_that_the_vendor_would_refuse_is_refused_with_the_next_step() {
    let (_vendor, api) = in_process(Settings::default()).await;
    let url = |url: String| json!({"prompt": "a cat", "callback_url": url});
    let longest = format!("http://h/{}", "x".repeat(2_048 - "http://h/".len()));
    for (body, hint) in [
        (json!([]), "send an object such as"),
        (json!({}), "add \"prompt\""),
        (json!({"prompt": " "}), "add \"prompt\""),
        (json!({"prompt": "x".repeat(20_001)}), "20,000 characters"),
        (url("/hook".into()), "http:// or https:// URL"),
        (url("ftp://h/hook".into()), "http:// or https:// URL"),
        (url(longest.clone() + "x"), "at most 2,048 characters"),
    ] {
        let answer = api.generate("veo", &body).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        let detail = answer.json["detail"].as_str().unwrap();
        assert!(detail.starts_with("Validation error: "), "{detail}");
        assert!(answer.json["hint"].as_str().unwrap().contains(hint));
    }
    for body in [
        json!({"prompt": "ä".repeat(20_000)}),
        json!({"prompt": "a cat", "callback_url": null, "duration": "5"}),
        url(longest),
    ] {
        assert_eq!(api.generate("veo", &body).await.status, 201);
    }
}

#[tokio::test]
async fn a_body_may_have_32_mib_and_no_more() {
    const MAX: usize = 32 * 1024 * 1024;
    let (_vendor, api) = in_process(Settings::default()).await;
    let body = |bytes: usize| {
        let head = r#"{"prompt":"a cat","bytes_image":""#;
        let padding = "x".repeat(bytes - head.len() - 2);
        Bytes::from(format!("{head}{padding}\"}}"))
    };
    let path = "/v1/veo/generate";
    let answer = api.ask("POST", path, Some("any"), body(MAX)).await;
    assert_eq!(answer.status, 201);
    // The vendor answers without reading the rest, so the client may see the connection break.
    let request = Request::post(format!("{}{path}", api.url))
        .header("authorization", "Bearer any")
        .body(Full::new(body(MAX + 1)))
        .unwrap();
    if let Ok(answer) = api.http.send(request).await {
        assert_eq!(answer.status, 413, "{answer:?}");
        assert!(answer.json["hint"].as_str().unwrap().contains("32 MiB"));
    }
}

#[tokio::test]
async fn tasks_are_refused_while_all_that_fit_are_open_and_then_the_oldest_is_forgotten() {
    let (vendor, api) = in_process(Settings {
        tasks_max: 2,
        after_by_product: BTreeMap::from([("gemini".to_owned(), Duration::from_secs(3600))]),
        after: Duration::from_millis(10),
        ..Settings::default()
    })
    .await;
    let open = api.create("gemini", None).await;
    let short = api.create("veo", None).await;
    until("one of them to end", async || vendor.counts() == (2, 1)).await;
    let second = api.create("gemini", None).await;
    let gone = api.get(&format!("/v1/veo/generations/{short}")).await;
    assert_eq!(gone.status, 404);

    let full = api.generate("veo", &json!({"prompt": "a cat"})).await;
    assert_eq!(full.status, 503);
    assert!(full.headers.contains_key("retry-after"));
    assert!(full.json["hint"].as_str().unwrap().contains("wait until"));
    for id in [open, second] {
        let answer = api.get(&format!("/v1/gemini/generations/{id}")).await;
        assert_eq!(answer.status, 200);
    }
}

// --- the verb ---

#[tokio::test]
async fn the_same_seed_gives_the_same_run_twice() {
    let run = async |seed: u64| {
        let verb = verb(&format!(
            "--seed {seed} --after 1ms --fail-rate 50 --lose-callbacks=50"
        ))
        .await;
        let (_endpoint, address) = Endpoint::default().opened().await;
        let mut tasks = Vec::new();
        for _ in 0..20 {
            let id = verb
                .api
                .create("veo", Some(format!("http://{address}/hook")))
                .await;
            let callback = verb.callback(&id, &["taken", "lost"]).await;
            let end = verb.api.ended("veo", &id).await["status"].to_string();
            tasks.push((id, end, callback["result"].to_string()));
        }
        tasks
    };
    let (first, again, other) = tokio::join!(run(7), run(7), run(8));
    assert_eq!(first, again);
    assert_ne!(first, other);
    for (word, of) in [("failed", 1), ("completed", 1), ("lost", 2), ("taken", 2)] {
        let has = |task: &(String, String, String)| {
            let text = if of == 1 { &task.1 } else { &task.2 };
            text.contains(word)
        };
        assert!(first.iter().any(has), "{word}: {first:?}");
    }
}

#[tokio::test]
async fn the_verb_ends_with_130_at_ctrl_c_and_with_0_at_sigterm_and_says_what_is_lost() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 0)] {
        let Verb { running, api } = verb("--after 1h").await;
        api.create("veo", None).await;
        running.prints_lines(2).await;
        running.signal(signal);
        let ran = running.ended().await;
        let said = ran.exited(code);
        assert!(
            said.contains("forgotten, with their callbacks: 1"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_busy_port_ends_the_verb_with_the_next_step() {
    let address = free_address();
    let _listener = TcpListener::bind(address).await.unwrap();
    let ran = Cli::new(&format!("vendor --listen {address}")).run().await;
    assert!(
        ran.exited(1)
            .contains("choose another address with --listen")
    );
}

#[tokio::test]
async fn the_banner_has_a_request_that_works() {
    let running = Cli::new("vendor --listen 127.0.0.1:0 --seed 7").start();
    running.prints_lines(9).await;
    let banner = running.stdout();
    assert!(banner.contains("with seed 7"), "{banner}");
    let curl = banner
        .lines()
        .find(|line| line.contains("curl -H"))
        .unwrap();
    let body = curl
        .split("-d '")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    let url = curl.rsplit(' ').next().unwrap();
    let base = url.strip_suffix("/v1/veo/generate").unwrap();
    let answer = Api::at(base)
        .generate("veo", &serde_json::from_str(body).unwrap())
        .await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let id = id(&answer.json);
    until("a line about the task", async || {
        running.stdout().contains(&format!("veo {id} pending"))
    })
    .await;
}
