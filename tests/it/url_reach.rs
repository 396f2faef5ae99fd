//! What the holder of a callback URL can affect and learn: not the tasks of other products, their
//! state, or the history of others.

use blobcast::{
    credentials::{TokenHash, new_secret},
    wire::v1::{Event, GetTaskRequest, WaitTaskRequest},
};
use serde_json::{Value, json};

use crate::support::{
    Answer, CredentialsFile, Options, Server, bulky, completed, processing, until, with,
};

/// A broker with a signing key, and what posts to it by signed URLs.
struct House {
    server: Server,
    file: CredentialsFile,
}

impl House {
    async fn new(options: Options) -> Self {
        let mut file = CredentialsFile::new();
        file.add("signing-key k1").await;
        Self {
            server: options
                .set("credentials_file", file.path().display())
                .start()
                .await,
            file,
        }
    }

    /// Path and query of a signed URL.
    async fn signed(&self, product: &str) -> String {
        let url = self
            .server
            .cli(&format!("url --product {product}"))
            .run()
            .await
            .good()
            .trim_end()
            .to_owned();
        url[url.find("/webhook").unwrap()..].to_owned()
    }

    async fn post(&self, target: &str, body: &Value) -> Answer {
        self.server.http().post_to(target, body.to_string()).await
    }

    async fn get(&self, task_id: &str, product: &str) -> Vec<Event> {
        let request = GetTaskRequest {
            task_id: task_id.into(),
            product: product.into(),
            ..Default::default()
        };
        self.server
            .events()
            .await
            .get_task(request)
            .await
            .unwrap()
            .into_inner()
            .events
    }

    /// What `WaitTask` answers at once.
    async fn waited(&self, task_id: &str, product: &str) -> Option<Event> {
        let (task_id, product) = (task_id.to_owned(), product.to_owned());
        let timeout = Some(prost_types::Duration::default());
        let request = WaitTaskRequest {
            task_id,
            product,
            timeout,
            ..Default::default()
        };
        let answer = self
            .server
            .events()
            .await
            .wait_task(request)
            .await
            .unwrap()
            .into_inner();
        answer.event.filter(|_| answer.done)
    }
}

#[tokio::test]
async fn a_signed_url_of_one_product_takes_no_room_of_another() {
    let house = House::new(Options::default()).await;
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);
    let http = house.server.http();
    for number in 0..129 {
        let body = with(
            processing("victim"),
            json!({"status": format!("step {number}")}),
        );
        assert_eq!(http.post_to(&veo, body.to_string()).await.status, 200);
    }
    assert_eq!(
        house.server.log_info().await.quarantine_count,
        1,
        "veo's own limit holds"
    );
    assert_eq!(house.post(&sora, &completed("victim")).await.status, 200);
    assert_eq!(
        house.server.log_info().await.quarantine_count,
        1,
        "sora's event is none of veo's"
    );
    let [event] = &house.get("victim", "sora").await[..] else {
        panic!("one event")
    };
    assert_eq!((event.revision, event.conflict), (1, false));
    assert_eq!(house.waited("victim", "sora").await.as_ref(), Some(event));
    // A terminal event of veo's is taken behind all of them, too.
    assert_eq!(house.post(&veo, &completed("victim")).await.status, 200);
    assert_eq!(house.waited("victim", "veo").await.unwrap().revision, 129);
    assert_eq!(house.server.log_info().await.quarantine_count, 1);
}

#[tokio::test]
async fn a_forged_result_of_one_product_ends_no_wait_for_another() {
    let house = House::new(Options::default()).await;
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);
    house.post(&veo, &completed("t1")).await;
    assert_eq!(house.waited("t1", "sora").await, None);
    assert_eq!(
        house.waited("t1", "").await.unwrap().product,
        "veo",
        "who names no product is told which it was"
    );
    let wait = house
        .server
        .cli("wait t1 --product sora --output json")
        .start();
    house
        .post(
            &sora,
            &with(completed("t1"), json!({"video_url": "https://real/1.mp4"})),
        )
        .await;
    assert_eq!(wait.ended().await.each("product"), ["sora"]);
}

#[tokio::test]
async fn large_events_of_one_product_keep_nobody_from_a_task_of_another() {
    let house = House::new(Options::default()).await;
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);
    for number in 0..5 {
        let body = with(
            bulky("big", 900_000),
            json!({"status": format!("step {number}")}),
        );
        assert_eq!(house.post(&veo, &body).await.status, 200);
    }
    house.post(&sora, &completed("big")).await;
    assert_eq!(house.get("big", "sora").await.len(), 1);
    let all = house.server.cli("get big --output json").run().await;
    assert_eq!(
        all.each("product"),
        ["veo", "veo", "veo", "veo", "veo", "sora"],
        "page by page"
    );
    let of_sora = house.server.cli("get big --product sora").run().await;
    assert!(
        of_sora.good().contains("sora") && !of_sora.good().contains("veo"),
        "{of_sora:?}"
    );
}

#[tokio::test]
async fn a_signed_url_tells_nothing_of_what_is_known_of_a_task_and_a_token_does() {
    let mut house = House::new(Options::default()).await;
    let token = house.file.add("callback runblob").await;
    let by_token = format!("/webhook/veo?token={token}");
    until("the token", async || {
        house.post(&by_token, &completed("t0")).await.status == 200
    })
    .await;
    let veo = house.signed("veo").await;
    let quiet = json!({"status": "received"});
    let original = house.post(&by_token, &completed("t1")).await;
    for task in ["t1", "t2", "t2"] {
        let answer = house.post(&veo, &completed(task)).await;
        assert_eq!((answer.status, &answer.json), (200, &quiet), "{task}");
    }
    // Not even that a task has all the events it may have.
    for number in 0..130 {
        let body = with(
            processing("full"),
            json!({"status": format!("step {number}")}),
        );
        let answer = house.post(&veo, &body).await;
        assert_eq!((answer.status, &answer.json), (200, &quiet), "{number}");
    }
    assert_eq!(house.server.log_info().await.quarantine_count, 2);
    // The answer to a body that cannot be read may say so: it tells nothing of any task.
    let nonsense = house.server.http().post_to(&veo, "nonsense").await;
    assert_eq!((nonsense.status, nonsense.reason()), (202, "not_json"));

    let again = house.post(&by_token, &completed("t1")).await;
    assert_eq!(
        (again.event_id(), original.duplicate(), again.duplicate()),
        (original.event_id(), false, true)
    );
    let duplicates = house
        .server
        .metric("blobcast_callbacks_total{outcome=\"duplicate\"}")
        .await;
    assert_eq!(duplicates, 3.0, "operators see them");
}

#[tokio::test]
async fn of_many_forged_last_words_none_keeps_the_true_one_out_also_across_a_crash() {
    let mut house = House::new(Options::default()).await;
    let veo = house.signed("veo").await;
    let forged = |number: usize| {
        with(
            completed("t1"),
            json!({"video_url": format!("https://forged/{number}")}),
        )
    };
    let http = house.server.http();
    for number in 0..200 {
        http.post_to(&veo, forged(number).to_string()).await;
    }
    house
        .post(
            &veo,
            &with(completed("t1"), json!({"video_url": "https://true/1"})),
        )
        .await;
    assert_eq!(
        house.waited("t1", "veo").await.unwrap().outputs[0].url,
        "https://true/1"
    );
    for _ in 0..2 {
        assert_eq!(
            house.server.log_of_events().await.len(),
            201,
            "all of them are in the log"
        );
        let events = house.get("t1", "veo").await;
        assert_eq!(
            events.len(),
            136 + 32,
            "and by task the first revisions and the newest"
        );
        assert_eq!(events[0].outputs[0].url, "https://forged/0");
        assert_eq!(events.last().unwrap().outputs[0].url, "https://true/1");
        let directory = tempfile::tempdir().unwrap();
        let backup = directory.path().join("copy");
        house.server.cli("backup").arg(&backup).run().await.good();
        house.server.crash().await;
    }
}

/// A holder with a clock learns nothing either: whatever is known of a task, the answer waits for a sync.
#[tokio::test]
async fn a_duplicate_by_a_signed_url_takes_a_commit_as_a_new_event_does() {
    let house = House::new(Options::default()).await;
    let veo = house.signed("veo").await;
    let commits = async || house.server.metric("blobcast_fsync_seconds_count").await;
    house.post(&veo, &completed("t1")).await;
    for task in ["t2", "t1", "t1"] {
        let before = commits().await;
        house.post(&veo, &completed(task)).await;
        assert_eq!(commits().await - before, 1.0, "{task}");
    }
}

/// How many callbacks of 5,000 bytes are taken before one is refused, each kept with an event of nearly as many; and that
/// refusal.
async fn taken(house: &House, target: &str) -> (u64, Answer) {
    let http = house.server.http();
    for number in 0..1_000 {
        let answer = http
            .post_to(target, bulky(&format!("t{number}"), 4_700).to_string())
            .await;
        if answer.status != 200 {
            return (number, answer);
        }
    }
    panic!("all are taken");
}

#[tokio::test]
async fn a_url_brings_so_many_bytes_a_minute_and_uses_up_nobody_elses() {
    let mut file = CredentialsFile::new();
    file.add("signing-key k1").await;
    let (large, unlimited) = (new_secret(true), new_secret(true));
    for (name, secret, budget) in [
        ("large", &large, "\"200KB\""),
        ("unlimited", &unlimited, "0"),
    ] {
        let hash = TokenHash::of(secret);
        let budget = budget.replace("KB", "KiB");
        file.add_line(
            "callback_tokens",
            &format!("{name} = {{ token = \"{hash}\", bytes_per_minute_max = {budget} }}"),
        );
    }
    let options = Options::default().set("ingest.bytes_per_minute_max", "100KiB");
    let server = options
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let house = House { server, file };
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);

    // 102,400 bytes, and what comes back of them while a slow machine posts.
    let (count, refused) = taken(&house, &veo).await;
    assert!((9..=12).contains(&count), "{count}");
    assert_eq!((refused.status, refused.reason()), (429, "budget_exceeded"));
    let seconds: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        (1..=7).contains(&seconds),
        "about 10,000 bytes are there in 6 s, and not in {seconds}"
    );
    assert_eq!(
        house.post(&veo, &completed("small")).await.status,
        200,
        "what is there can be used"
    );
    assert!(
        (9..=12).contains(&taken(&house, &sora).await.0),
        "another product's"
    );

    let by = |token: &str, product: &str| format!("/webhook/{product}?token={token}");
    assert!(
        (19..=24).contains(&taken(&house, &by(&large, "veo")).await.0),
        "its line says so"
    );
    let http = house.server.http();
    for number in 0..30 {
        let body = bulky(&format!("u{number}"), 4_700).to_string();
        assert_eq!(
            http.post_to(&by(&unlimited, "veo"), body).await.status,
            200,
            "0 is no limit"
        );
    }
    assert_eq!(
        house
            .server
            .metric("blobcast_callbacks_total{outcome=\"budget_exceeded\"}")
            .await,
        3.0
    );
    let brought =
        "blobcast_callback_bytes_total{kind=\"signing_key\",name=\"k1\",product=\"sora\"}";
    assert!((85_000.0..130_000.0).contains(&house.server.metric(brought).await));
    until("a line", async || {
        house.server.log().contains("budget_exceeded")
    })
    .await;
    let log = house.server.log();
    let line = log
        .lines()
        .find(|line| line.contains("budget_exceeded"))
        .unwrap();
    assert!(
        line.contains("\"signing_key k1\"") && line.contains("\"product\":\"veo\""),
        "{line}"
    );
}

#[tokio::test]
async fn a_token_makes_up_no_budget_by_making_up_products() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let options = Options::default().set("ingest.bytes_per_minute_max", "20KiB");
    let server = options
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let mut count = 0;
    for number in 0..40 {
        let target = format!("/webhook/p{number}?token={token}");
        count += u32::from(
            server
                .http()
                .post_to(&target, bulky("t1", 4_700).to_string())
                .await
                .status
                == 200,
        );
    }
    assert!((7..=9).contains(&count), "four times 20 KiB, not {count}");
}

#[tokio::test]
async fn a_budget_that_was_too_low_by_mistake_is_made_up_for_in_a_minute() {
    let mut file = CredentialsFile::new();
    let (secret, reloads) = (
        new_secret(true),
        "blobcast_reloads_total{result=\"done\",what=\"credentials\"}",
    );
    let line = |budget: &str| {
        format!(
            "runblob = {{ token = \"{}\", bytes_per_minute_max = \"{budget}\" }}",
            TokenHash::of(&secret)
        )
    };
    file.add_line("callback_tokens", &line("1KiB"));
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let http = server.http();
    let post = async |body: Value| {
        http.post_to(&format!("/webhook/veo?token={secret}"), body.to_string())
            .await
    };
    assert_eq!(
        post(bulky("t1", 500_000)).await.status,
        200,
        "a large one passes when there is all of the budget"
    );

    let wait = |refused: &Answer| {
        refused.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let refused = post(completed("t2")).await;
    assert!((1..=60).contains(&wait(&refused)), "{} s", wait(&refused));
    file.remove("runblob");
    file.add_line("callback_tokens", &line("128MiB"));
    until("the new budget", async || {
        server.metric(reloads).await >= 1.0
    })
    .await;
    let answer = post(completed("t2")).await;
    assert!(
        answer.status == 200 || wait(&answer) <= wait(&refused),
        "a higher budget takes no longer"
    );
}

#[tokio::test]
async fn what_is_not_authentic_uses_up_no_budget() {
    let mut file = CredentialsFile::new();
    file.add_line("body_signature", "secret = \"hunter2\"");
    let options = Options::default().set("ingest.bytes_per_minute_max", "20KiB");
    let options = options
        .set("ingest.body_signature", "require")
        .set("ingest.refusals_per_minute_max", 1_000);
    let server = options
        .set("credentials_file", file.path().display())
        .start()
        .await;
    for _ in 0..20 {
        let answer = server
            .http()
            .post_to("/webhook/veo", bulky("t1", 4_700).to_string())
            .await;
        assert_eq!((answer.status, answer.reason()), (401, "unauthorized"));
    }
    assert_eq!(
        server
            .metric("blobcast_callbacks_total{outcome=\"budget_exceeded\"}")
            .await,
        0.0
    );
}

#[tokio::test]
async fn a_leaked_url_does_not_push_other_products_events_out_of_the_log() {
    let options = Options::default()
        .set("log.retention_bytes_max", "8MiB")
        .set("ingest.bytes_per_minute_max", "4MiB");
    let house = House::new(options).await;
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);
    for number in 0..5 {
        house
            .post(&sora, &completed(&format!("sora-{number}")))
            .await;
    }
    let http = house.server.http();
    let mut refused = 0;
    for number in 0..40 {
        let answer = http
            .post_to(&veo, bulky(&format!("evil-{number}"), 300_000).to_string())
            .await;
        refused += u32::from(answer.status == 429);
    }
    assert!(
        (25..40).contains(&refused),
        "24 MB were to be brought, and 4 may be: {refused}"
    );
    assert_eq!(house.get("sora-0", "sora").await.len(), 1);
    assert_eq!(
        house
            .server
            .metric("blobcast_events_trimmed_total{reason=\"bytes\"}")
            .await,
        0.0
    );
    // So a repetition is one, still.
    house.post(&sora, &completed("sora-0")).await;
    assert_eq!(house.server.metric("blobcast_duplicates_total").await, 1.0);
}

#[tokio::test]
async fn a_leaked_url_does_not_push_what_others_sent_out_of_quarantine() {
    let mut house = House::new(Options::default().set("quarantine.retention_count_max", 20)).await;
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);
    let token = house.file.add("callback runblob").await;
    let by_token = format!("/webhook/veo?token={token}");
    let http = house.server.http();
    until("the token", async || {
        http.post_to(&by_token, "by token").await.status == 202
    })
    .await;
    http.post_to(&sora, "by sora").await;
    for number in 0..200 {
        assert_eq!(http.post_to(&veo, format!("{number}")).await.status, 202);
    }
    for last in ["202", "203"] {
        until("retention", async || {
            house.server.log_info().await.quarantine_count == 20
        })
        .await;
        let listed = house
            .server
            .cli("quarantine list --output json")
            .run()
            .await;
        let ids = listed.each("quarantine_id");
        assert_eq!(
            (&ids[..2], ids.last().unwrap().as_str()),
            (&["1".to_owned(), "2".to_owned()][..], last)
        );
        assert_eq!(
            listed.each("credential")[..3],
            ["callback_token runblob", "signing_key k1", "signing_key k1"]
        );
        house.server.crash().await;
        house.server.http().post_to(&veo, "one more").await;
    }
}
