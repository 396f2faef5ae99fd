//! `SendTestCallback`: a made-up callback passes what a real one passes.

use blobcast::wire::v1::{
    Event, ListRefusalsRequest, SendTestCallbackRequest, SendTestCallbackResponse, TaskStatus,
    Verification, admin_service_client::AdminServiceClient,
};
use serde_json::{Value, json};
use tonic::Status;

use crate::{
    permissions::{Authenticated, admin_as, events_as},
    support::{CredentialsFile, Options, Server, violation},
};

/// A broker whose callbacks have to authenticate, with an administrator.
struct House {
    server: Server,
    token: String,
    admin: String,
}

impl House {
    async fn new(options: Options) -> Self {
        let mut file = CredentialsFile::new();
        let token = file
            .add("callback ads --product veo --label team=ads")
            .await;
        file.add("signing-key k1").await;
        let admin = file.add("client ops --all-products --admin").await;
        let server = options
            .set("credentials_file", file.path().display())
            .start()
            .await;
        Self {
            server,
            token,
            admin,
        }
    }

    async fn client(&self) -> AdminServiceClient<Authenticated> {
        admin_as(&self.server, Some(&self.admin)).await
    }

    async fn send(&self, url: &str) -> Result<SendTestCallbackResponse, Status> {
        let request = SendTestCallbackRequest {
            callback_url: url.into(),
            ..Default::default()
        };
        let answer = self.client().await.send_test_callback(request).await?;
        Ok(answer.into_inner())
    }

    async fn events(&self, task_id: &str) -> Vec<Event> {
        let request = blobcast::wire::v1::GetTaskRequest {
            task_id: task_id.into(),
            ..Default::default()
        };
        let mut client = events_as(&self.server, Some(&self.admin)).await;
        client.get_task(request).await.unwrap().into_inner().events
    }
}

fn body(answer: &SendTestCallbackResponse) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

#[tokio::test]
async fn it_is_answered_and_kept_as_a_real_one_would_be() {
    let server = Server::start().await;
    let mut admin = server.admin_service().await;
    let send = async |admin: &mut AdminServiceClient<_>, url: &str, task_id: &str, status: &str| {
        let request = SendTestCallbackRequest {
            callback_url: url.into(),
            task_id: task_id.into(),
            status: status.into(),
        };
        admin.send_test_callback(request).await
    };

    let first = send(&mut admin, "", "", "").await.unwrap().into_inner();
    assert!(first.task_id.starts_with("test-"), "{first:?}");
    assert_eq!(
        (first.http_status, &body(&first)["duplicate"]),
        (200, &json!(false))
    );
    let again = send(&mut admin, "", &first.task_id, "completed").await;
    let again = again.unwrap().into_inner();
    assert_eq!(
        (again.http_status, body(&again)),
        (
            200,
            json!({"status": "received", "event_id": body(&first)["event_id"], "duplicate": true})
        )
    );
    let target = "/webhook/sora?team=ads";
    let failed = send(&mut admin, target, "t1", "moderation_blocked").await;
    assert_eq!(failed.unwrap().into_inner().http_status, 200);
    let url = format!("http://{}/webhook/a%20b", server.ingest);
    let kept = send(&mut admin, &url, "", "").await.unwrap().into_inner();
    assert_eq!(
        (kept.http_status, body(&kept)),
        (
            202,
            json!({"status": "quarantined", "reason": "bad_product"})
        )
    );
    for (url, status, field) in [
        ("http://elsewhere/webhook/veo", "", "callback_url"),
        ("/metrics", "", "callback_url"),
        ("", "done", "status"),
    ] {
        let refused = send(&mut admin, url, "", status).await.unwrap_err();
        assert_eq!(violation(&refused), field, "{url}");
    }

    let log = server.log_of_events().await;
    let shown: Vec<_> = log
        .iter()
        .map(|event| {
            (
                event.product.as_str(),
                event.task_id.as_str(),
                event.status(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("veo", first.task_id.as_str(), TaskStatus::Completed),
            ("sora", "t1", TaskStatus::Failed),
        ]
    );
    assert_eq!(log[1].labels["team"], "ads");
    for (outcome, count) in [("accepted", 2.0), ("duplicate", 1.0), ("quarantined", 1.0)] {
        let name = format!("blobcast_callbacks_total{{outcome=\"{outcome}\"}}");
        assert_eq!(server.metric(&name).await, count, "{outcome}");
    }
}

#[tokio::test]
async fn its_url_has_to_be_good() {
    let house = House::new(Options::default()).await;
    let minted = house
        .client()
        .await
        .mint_callback_url(blobcast::wire::v1::MintCallbackUrlRequest {
            product: "kling".into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner()
        .callback_url;
    let by_key = house.send(&minted).await.unwrap();
    assert_eq!(
        (by_key.http_status, body(&by_key)),
        (200, json!({"status": "received"})),
        "a signed URL is told no more"
    );
    let [event] = &house.events(&by_key.task_id).await[..] else {
        panic!("one event")
    };
    assert_eq!(
        (event.verification(), &*event.credential, &*event.product),
        (Verification::SignedUrl, "signing_key k1", "kling")
    );

    let by_token = format!("/webhook?token={}", house.token);
    let by_token = house.send(&by_token).await.unwrap();
    let [event] = &house.events(&by_token.task_id).await[..] else {
        panic!("one event")
    };
    assert_eq!((&*event.product, &*event.labels["team"]), ("veo", "ads"));

    for (url, status, cause) in [
        (String::new(), 401, "missing"),
        (minted.replace("kling", "sora"), 401, "bad_signature"),
        (
            format!("/webhook/sora?token={}", house.token),
            401,
            "product_denied",
        ),
    ] {
        let refused = house.send(&url).await.unwrap();
        assert_eq!(
            (refused.http_status, &body(&refused)["status"]),
            (status, &json!("refused"))
        );
        let mut client = house.client().await;
        let listed = client.list_refusals(ListRefusalsRequest::default()).await;
        let newest = listed.unwrap().into_inner().refusals.remove(0);
        assert_eq!(
            (newest.request_id, &*newest.cause),
            (refused.request_id, cause)
        );
    }
}

#[tokio::test]
async fn neither_the_callers_address_nor_a_signature_of_the_body_stands_in_its_way() {
    let mut file = CredentialsFile::new();
    let admin = file.add("client ops --all-products --admin").await;
    file.add_line("body_signature", "secret = \"vendor-secret\"");
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .set("ingest.body_signature", "require")
        .set("ingest.allowlist", "enforce")
        .set("ingest.allowed_networks", "192.0.2.0/24")
        .start()
        .await;
    let request = SendTestCallbackRequest::default();
    let mut client = admin_as(&server, Some(&admin)).await;
    let answer = client
        .send_test_callback(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.http_status, 200, "{answer:?}");
    let real = server.http().post(&crate::support::completed("t1")).await;
    assert_eq!(real.status, 403);
}

#[tokio::test]
async fn the_verb_prints_the_answer_and_takes_the_url_from_standard_input() {
    let house = House::new(Options::default()).await;
    let url = format!("/webhook/veo?token={}", house.token);
    let sent = house
        .server
        .cli("test-callback - --task-id t7")
        .env("BLOBCAST_TOKEN", &house.admin)
        .stdin(url)
        .run()
        .await;
    assert_eq!(sent.good(), "t7 200 {\"status\":\"received\"}\n");
    let refused = house
        .server
        .cli("test-callback --output json")
        .env("BLOBCAST_TOKEN", &house.admin)
        .run()
        .await;
    let said = refused.exited(1);
    assert!(said.contains("blobcast refusals"), "{said}");
    let printed: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(
        (&printed["http_status"], &printed["body"]["reason"]),
        (&json!(401), &json!("unauthorized"))
    );
}
