//! What the holder of a callback URL reaches, and what stays out of reach: other products' tasks, and what is known of them.

use blobcast::wire::v1::{Event, GetTaskRequest, WaitTaskRequest};
use serde_json::{Value, json};

use crate::support::{Answer, CredentialsFile, Options, Server, bulky, completed, processing, with};

/// A broker with a signing key, and what posts to it by signed URLs.
struct House {
    server: Server,
    file: CredentialsFile,
}

impl House {
    async fn new(options: Options) -> Self {
        let mut file = CredentialsFile::new();
        file.add("signing-key k1").await;
        Self { server: options.set("credentials_file", file.path().display()).start().await, file }
    }

    /// Path and query of a signed URL.
    async fn signed(&self, product: &str) -> String {
        let url = self.server.cli(&format!("url --product {product}")).run().await.good().trim_end().to_owned();
        url[url.find("/webhook").unwrap()..].to_owned()
    }

    async fn post(&self, target: &str, body: &Value) -> Answer {
        self.server.http().post_to(target, body.to_string()).await
    }

    async fn get(&self, task_id: &str, product: &str) -> Vec<Event> {
        let request = GetTaskRequest { task_id: task_id.into(), product: product.into(), ..Default::default() };
        self.server.events().await.get_task(request).await.unwrap().into_inner().events
    }

    /// What `WaitTask` answers at once.
    async fn waited(&self, task_id: &str, product: &str) -> Option<Event> {
        let (task_id, product) = (task_id.to_owned(), product.to_owned());
        let timeout = Some(prost_types::Duration::default());
        let request = WaitTaskRequest { task_id, product, timeout, ..Default::default() };
        let answer = self.server.events().await.wait_task(request).await.unwrap().into_inner();
        answer.event.filter(|_| answer.done)
    }
}

#[tokio::test]
async fn a_signed_url_of_one_product_takes_no_room_of_another() {
    let house = House::new(Options::default()).await;
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);
    let http = house.server.http();
    for number in 0..1_001 {
        let body = with(processing("victim"), json!({"status": format!("step {number}")}));
        assert_eq!(http.post_to(&veo, body.to_string()).await.status, 200);
    }
    assert_eq!(house.server.log_info().await.quarantine_count, 1, "veo's own limit holds");
    assert_eq!(house.post(&sora, &completed("victim")).await.status, 200);
    assert_eq!(house.server.log_info().await.quarantine_count, 1, "sora's event is none of veo's thousand");
    let [event] = &house.get("victim", "sora").await[..] else { panic!("one event") };
    assert_eq!((event.revision, event.conflict), (1, false));
    assert_eq!(house.waited("victim", "sora").await.as_ref(), Some(event));
    // A terminal event of veo's is taken behind the thousand, too.
    assert_eq!(house.post(&veo, &completed("victim")).await.status, 200);
    assert_eq!(house.waited("victim", "veo").await.unwrap().revision, 1_001);
    assert_eq!(house.server.log_info().await.quarantine_count, 1);
}

#[tokio::test]
async fn a_forged_result_of_one_product_ends_no_wait_for_another() {
    let house = House::new(Options::default()).await;
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);
    house.post(&veo, &completed("t1")).await;
    assert_eq!(house.waited("t1", "sora").await, None);
    assert_eq!(house.waited("t1", "").await.unwrap().product, "veo", "who names no product is told which it was");
    let wait = house.server.cli("wait t1 --product sora --output json").start();
    house.post(&sora, &with(completed("t1"), json!({"video_url": "https://real/1.mp4"}))).await;
    assert_eq!(wait.ended().await.each("product"), ["sora"]);
}

#[tokio::test]
async fn large_events_of_one_product_keep_nobody_from_a_task_of_another() {
    let house = House::new(Options::default()).await;
    let (veo, sora) = (house.signed("veo").await, house.signed("sora").await);
    for number in 0..5 {
        let body = with(bulky("big", 900_000), json!({"status": format!("step {number}")}));
        assert_eq!(house.post(&veo, &body).await.status, 200);
    }
    house.post(&sora, &completed("big")).await;
    assert_eq!(house.get("big", "sora").await.len(), 1);
    let all = house.server.cli("get big --output json").run().await;
    assert_eq!(all.each("product"), ["veo", "veo", "veo", "veo", "veo", "sora"], "page by page");
    let of_sora = house.server.cli("get big --product sora").run().await;
    assert!(of_sora.good().contains("sora") && !of_sora.good().contains("veo"), "{of_sora:?}");
}

#[tokio::test]
async fn a_signed_url_tells_nothing_of_what_is_known_of_a_task_and_a_token_does() {
    let mut house = House::new(Options::default()).await;
    let token = house.file.add("callback runblob").await;
    let by_token = format!("/webhook/veo?token={token}");
    crate::support::until("the token", async || house.post(&by_token, &completed("t0")).await.status == 200).await;
    let veo = house.signed("veo").await;
    let quiet = json!({"status": "received"});
    let original = house.post(&by_token, &completed("t1")).await;
    for task in ["t1", "t2", "t2"] {
        let answer = house.post(&veo, &completed(task)).await;
        assert_eq!((answer.status, &answer.json), (200, &quiet), "{task}");
    }
    // Not even that a task has all the events it may have.
    for number in 0..1_002 {
        let body = with(processing("full"), json!({"status": format!("step {number}")}));
        let answer = house.post(&veo, &body).await;
        assert_eq!((answer.status, &answer.json), (200, &quiet), "{number}");
    }
    assert_eq!(house.server.log_info().await.quarantine_count, 2);
    // A body that nobody could read is told: it says nothing of any task.
    let nonsense = house.server.http().post_to(&veo, "nonsense").await;
    assert_eq!((nonsense.status, nonsense.reason()), (202, "not_json"));

    let again = house.post(&by_token, &completed("t1")).await;
    assert_eq!((again.event_id(), original.duplicate(), again.duplicate()), (original.event_id(), false, true));
    let duplicates = house.server.metric("blobcast_callbacks_total{outcome=\"duplicate\"}").await;
    assert_eq!(duplicates, 3.0, "operators see them");
}

#[tokio::test]
async fn of_many_forged_last_words_none_keeps_the_true_one_out_also_across_a_crash() {
    let mut house = House::new(Options::default()).await;
    let veo = house.signed("veo").await;
    let forged = |number: usize| with(completed("t1"), json!({"video_url": format!("https://forged/{number}")}));
    let http = house.server.http();
    for number in 0..1_600 {
        http.post_to(&veo, forged(number).to_string()).await;
    }
    house.post(&veo, &with(completed("t1"), json!({"video_url": "https://true/1"}))).await;
    assert_eq!(house.waited("t1", "veo").await.unwrap().outputs[0].url, "https://true/1");
    for _ in 0..2 {
        assert_eq!(house.server.log_of_events().await.len(), 1_601, "all of them are in the log");
        let events = house.get("t1", "veo").await;
        assert_eq!(events.len(), 1_000, "and by task the first half and the newest half");
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
