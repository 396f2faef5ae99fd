//! Permissions of every identity for every product and call, and open streams whose permission is
//! withdrawn.

use blobcast::wire::v1::{
    self, Event, Filter, GetTaskRequest, ListEventsRequest, WaitTaskRequest,
    admin_service_client::AdminServiceClient, event_service_client::EventServiceClient,
};
use tonic::{
    Code, Request, Status, Streaming, metadata::AsciiMetadataValue,
    service::interceptor::InterceptedService, transport::Channel,
};

use tonic_types::StatusExt;

use crate::support::{
    CredentialsFile, Options, Server, Sub, completed, processing, reason, request, until, within,
};

pub type Authenticated = InterceptedService<Channel, Bearer>;

/// Shows a token with each call, or nothing.
#[derive(Clone)]
pub struct Bearer(Option<String>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let header: AsciiMetadataValue = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", header);
        }
        Ok(request)
    }
}

pub async fn events_as(server: &Server, token: Option<&str>) -> EventServiceClient<Authenticated> {
    EventServiceClient::with_interceptor(server.channel().await, Bearer(token.map(str::to_owned)))
}

pub async fn admin_as(server: &Server, token: Option<&str>) -> AdminServiceClient<Authenticated> {
    AdminServiceClient::with_interceptor(server.channel().await, Bearer(token.map(str::to_owned)))
}

pub async fn subscribe_as(
    server: &Server,
    token: Option<&str>,
    filter: Filter,
) -> Result<Sub, Status> {
    Sub::open(
        events_as(server, token).await,
        v1::SubscribeRequest {
            filter: Some(filter),
            ..request()
        },
    )
    .await
}

fn products<const N: usize>(products: [&str; N]) -> Filter {
    Filter {
        products: products.map(str::to_owned).to_vec(),
        ..Filter::default()
    }
}

fn tasks_of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<&'a str> {
    events
        .into_iter()
        .map(|event| event.task_id.as_str())
        .collect()
}

/// The code and reason of a refusal, or `ok`.
pub fn told<T>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(_) => "ok".to_owned(),
        Err(status) => format!("{:?} {}", status.code(), reason(&status)),
    }
}

/// A broker with a veo task and a sora task, and clients who may see one product, two, all, and administer.
struct House {
    server: Server,
    file: CredentialsFile,
    veo: String,
    both: String,
    all: String,
    admin: String,
}

impl House {
    async fn new() -> Self {
        let mut file = CredentialsFile::new();
        let veo = file.add("client veo --product veo").await;
        let both = file.add("client both --product veo --product sora").await;
        let all = file.add("client all --all-products").await;
        let admin = file.add("client admin --product veo --admin").await;
        let server = Options::default()
            .set("credentials_file", file.path().display())
            .start()
            .await;
        for (product, task) in [("veo", "v1"), ("sora", "s1"), ("kling", "k1")] {
            server
                .http()
                .post_to(&format!("/webhook/{product}"), completed(task).to_string())
                .await
                .event_id();
        }
        Self {
            server,
            file,
            veo,
            both,
            all,
            admin,
        }
    }

    /// Everyone who may be let in, and the tasks they may see.
    fn clients(&self) -> [(&str, &[&str]); 4] {
        [
            (&self.veo, &["v1"]),
            (&self.both, &["v1", "s1"]),
            (&self.all, &["v1", "s1", "k1"]),
            (&self.admin, &["v1"]),
        ]
    }
}

const TASKS: [(&str, &str); 3] = [("veo", "v1"), ("sora", "s1"), ("kling", "k1")];

#[tokio::test]
async fn without_a_filter_each_client_sees_what_it_may_and_nothing_else() {
    for number in 0..4 {
        let house = House::new().await;
        let (token, visible) = house.clients()[number];
        let mut sub = subscribe_as(&house.server, Some(token), Filter::default())
            .await
            .unwrap();
        assert_eq!(tasks_of(&sub.until_caught_up().await), visible);
        let mut client = events_as(&house.server, Some(token)).await;
        let page = client
            .list_events(ListEventsRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(tasks_of(&page.events), visible);
        // What comes live is no different.
        for (product, task) in TASKS {
            let (path, body) = (format!("/webhook/{product}"), processing(task).to_string());
            house.server.http().post_to(&path, body).await.event_id();
        }
        assert_eq!(tasks_of(&sub.next_events(visible.len()).await), visible);
    }
}

#[tokio::test]
async fn every_client_product_and_call() {
    let house = House::new().await;
    for (token, visible) in house.clients() {
        for (product, task) in TASKS {
            let may = visible.contains(&task);
            let mut client = events_as(&house.server, Some(token)).await;
            let denied = if may {
                "ok"
            } else {
                "PermissionDenied PRODUCT_DENIED"
            };
            let what = format!("{visible:?} asks for {product}");

            let subscribed = subscribe_as(&house.server, Some(token), products([product])).await;
            assert_eq!(told(subscribed), denied, "{what}");
            let both = subscribe_as(&house.server, Some(token), products(["veo", product])).await;
            assert_eq!(told(both), denied, "{what}");
            let list = ListEventsRequest {
                filter: Some(products([product])),
                ..Default::default()
            };
            assert_eq!(told(client.list_events(list).await), denied, "{what}");

            // By task nothing tells a task that may not be seen from one that is not there.
            let unknown = |task: &str| GetTaskRequest {
                task_id: task.into(),
                ..Default::default()
            };
            let got = client.get_task(unknown(task)).await;
            if may {
                assert_eq!(
                    tasks_of(&got.unwrap().into_inner().events),
                    [task],
                    "{what}"
                );
            } else {
                let (got, nothing) = (
                    got.unwrap_err(),
                    client.get_task(unknown("nothing")).await.unwrap_err(),
                );
                assert_eq!(
                    (got.code(), reason(&got)),
                    (nothing.code(), reason(&nothing)),
                    "{what}"
                );
                assert_eq!(
                    got.message(),
                    nothing.message().replace("nothing", task),
                    "{what}"
                );
            }
            let timeout = Some(prost_types::Duration {
                seconds: 0,
                nanos: 1_000_000,
            });
            let wait = WaitTaskRequest {
                task_id: task.into(),
                timeout,
                ..Default::default()
            };
            let waited = client.wait_task(wait).await.unwrap().into_inner();
            assert_eq!((waited.done, waited.event.is_some()), (may, may), "{what}");

            let filter = Filter {
                task_ids: vec![task.into()],
                ..Filter::default()
            };
            let list = ListEventsRequest {
                filter: Some(filter.clone()),
                ..Default::default()
            };
            assert_eq!(
                client
                    .list_events(list)
                    .await
                    .unwrap()
                    .into_inner()
                    .events
                    .len(),
                usize::from(may),
                "{what}"
            );
            let mut sub = subscribe_as(&house.server, Some(token), filter)
                .await
                .unwrap();
            assert_eq!(
                sub.until_caught_up().await.len(),
                usize::from(may),
                "{what}"
            );
        }
    }
}

#[tokio::test]
async fn the_end_of_a_task_that_may_not_be_seen_ends_nothing() {
    let house = House::new().await;
    let filter = Filter {
        task_ids: vec!["v1".into(), "s1".into()],
        ..Filter::default()
    };
    let request = v1::SubscribeRequest {
        filter: Some(filter),
        until_terminal: true,
        ..request()
    };
    let mut all = Sub::open(
        events_as(&house.server, Some(&house.all)).await,
        request.clone(),
    )
    .await
    .unwrap();
    assert!(all.end().await.is_ok(), "both are over");
    // From behind both, too, where only the index knows of them.
    let start = Some(v1::subscribe_request::Start::AfterCursor(
        all.cursor.clone(),
    ));
    for request in [request.clone(), v1::SubscribeRequest { start, ..request }] {
        let mut veo = Sub::open(events_as(&house.server, Some(&house.veo)).await, request)
            .await
            .unwrap();
        veo.until_caught_up().await;
        house
            .server
            .http()
            .post_to("/webhook/sora", completed("s1").to_string())
            .await
            .duplicate();
        let listed = house
            .server
            .cli("subscriptions --output json")
            .env("BLOBCAST_TOKEN", &house.admin)
            .run()
            .await;
        assert_eq!(listed.each("client"), ["veo"], "it is still open");
    }
}

#[tokio::test]
async fn only_administrators_use_the_admin_service() {
    let house = House::new().await;
    for (token, expected) in [
        (Some(&house.admin), "ok"),
        (Some(&house.all), "PermissionDenied ADMIN_DENIED"),
        (None, "Unauthenticated TOKEN_INVALID"),
    ] {
        let mut client = admin_as(&house.server, token.map(String::as_str)).await;
        assert_eq!(
            told(
                client
                    .list_subscriptions(v1::ListSubscriptionsRequest::default())
                    .await
            ),
            expected
        );
        assert_eq!(
            told(
                client
                    .list_quarantine(v1::ListQuarantineRequest::default())
                    .await
            ),
            expected
        );
        assert_eq!(
            told(
                client
                    .list_refusals(v1::ListRefusalsRequest::default())
                    .await
            ),
            expected
        );
        assert_eq!(
            told(
                client
                    .list_ended_subscriptions(v1::ListEndedSubscriptionsRequest::default())
                    .await
            ),
            expected
        );
        assert_eq!(
            told(client.get_overview(v1::GetOverviewRequest {}).await),
            expected
        );
        assert_eq!(
            told(
                client
                    .list_credentials(v1::ListCredentialsRequest::default())
                    .await
            ),
            expected
        );
        assert_eq!(
            told(
                client
                    .get_configuration(v1::GetConfigurationRequest {})
                    .await
            ),
            expected
        );
        let end = v1::EndSubscriptionRequest {
            subscription_id: "nobody".into(),
        };
        let or = |ok: &str| {
            if expected == "ok" {
                ok.to_owned()
            } else {
                expected.to_owned()
            }
        };
        assert_eq!(
            told(client.end_subscription(end).await),
            or("NotFound SUBSCRIPTION_NOT_FOUND")
        );
        let release = v1::ReleaseQuarantinedRequest {
            quarantine_id: "9".into(),
            ..Default::default()
        };
        let preview = v1::ReleaseQuarantinedRequest {
            validate_only: true,
            ..release.clone()
        };
        for request in [release, preview] {
            assert_eq!(
                told(client.release_quarantined(request).await),
                or("NotFound QUARANTINE_NOT_FOUND")
            );
        }
        let discard = v1::DiscardQuarantinedRequest {
            quarantine_ids: vec!["9".into()],
        };
        assert_eq!(told(client.discard_quarantined(discard).await), expected);
        let erase = v1::EraseTaskRequest {
            product: "veo".into(),
            task_id: "nobody".into(),
        };
        assert_eq!(
            told(client.erase_task(erase).await),
            or("NotFound TASK_NOT_FOUND")
        );
        // A backup holds every product, and this administrator may see one.
        let backup = told(client.backup(v1::BackupRequest {}).await);
        assert_eq!(backup, or("PermissionDenied PRODUCT_DENIED"));
        let test = v1::SendTestCallbackRequest::default();
        assert_eq!(told(client.send_test_callback(test).await), expected);
        let mint = v1::MintCallbackUrlRequest::default();
        assert_eq!(
            told(client.mint_callback_url(mint).await),
            or("FailedPrecondition SIGNING_KEY_MISSING")
        );
    }
}

#[tokio::test]
async fn a_client_with_the_right_to_take_backups_takes_them_and_does_nothing_else() {
    let mut house = House::new().await;
    let nightly = house.file.add("client nightly --backup").await;
    let reader = house.file.add("client reader --product veo --backup").await;
    until("the new clients", async || {
        let mut client = events_as(&house.server, Some(&reader)).await;
        client
            .get_log_info(v1::GetLogInfoRequest::default())
            .await
            .is_ok()
    })
    .await;

    for token in [&nightly, &reader] {
        let mut client = admin_as(&house.server, Some(token)).await;
        let mut backup = client
            .backup(v1::BackupRequest {})
            .await
            .unwrap()
            .into_inner();
        let mut summary = None;
        while let Some(message) = backup.message().await.unwrap() {
            summary = message.summary;
        }
        assert_eq!(summary.unwrap().event_count, 3, "of every product");

        let refused = "PermissionDenied ADMIN_DENIED";
        assert_eq!(
            told(
                client
                    .list_subscriptions(v1::ListSubscriptionsRequest::default())
                    .await
            ),
            refused
        );
        assert_eq!(
            told(
                client
                    .list_quarantine(v1::ListQuarantineRequest::default())
                    .await
            ),
            refused
        );
        assert_eq!(
            told(
                client
                    .release_quarantined(v1::ReleaseQuarantinedRequest::default())
                    .await
            ),
            refused
        );
        assert_eq!(
            told(
                client
                    .discard_quarantined(v1::DiscardQuarantinedRequest::default())
                    .await
            ),
            refused
        );
        assert_eq!(
            told(client.erase_task(v1::EraseTaskRequest::default()).await),
            refused
        );
        assert_eq!(
            told(
                client
                    .mint_callback_url(v1::MintCallbackUrlRequest::default())
                    .await
            ),
            refused
        );
    }

    // Without products it sees no event, however it asks.
    let mut client = events_as(&house.server, Some(&nightly)).await;
    let refused = "PermissionDenied PRODUCT_DENIED";
    for filter in [Filter::default(), products(["veo"])] {
        let list = ListEventsRequest {
            filter: Some(filter.clone()),
            ..Default::default()
        };
        assert_eq!(told(client.list_events(list).await), refused);
        assert_eq!(
            told(subscribe_as(&house.server, Some(&nightly), filter).await),
            refused
        );
    }
    assert_eq!(
        told(
            client
                .get_task(GetTaskRequest {
                    task_id: "v1".into(),
                    ..Default::default()
                })
                .await
        ),
        refused
    );
    let wait = WaitTaskRequest {
        task_id: "v1".into(),
        ..Default::default()
    };
    assert_eq!(told(client.wait_task(wait).await), refused);
    let mut all = events_as(&house.server, Some(&house.all)).await;
    let page = all
        .list_events(ListEventsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let cursor = page.events[0].cursor.clone();
    let raw = client
        .get_raw_body(v1::GetRawBodyRequest {
            cursor,
            ..Default::default()
        })
        .await;
    assert_eq!(told(raw), refused);

    // The other one sees what its products show.
    let mut sub = subscribe_as(&house.server, Some(&reader), Filter::default())
        .await
        .unwrap();
    assert_eq!(tasks_of(&sub.until_caught_up().await), ["v1"]);
}

#[tokio::test]
async fn a_client_without_the_right_to_take_backups_learns_which_it_needs() {
    let house = House::new().await;
    let shelf = tempfile::tempdir().unwrap();
    let told = async |token: &str| {
        let ran = house
            .server
            .cli("backup")
            .arg(shelf.path().join("file"))
            .env("BLOBCAST_TOKEN", token)
            .run()
            .await;
        ran.exited(1).to_owned()
    };
    let refused = told(&house.all).await;
    assert!(
        refused.contains("ADMIN_DENIED") && refused.contains("all may not take backups"),
        "{refused}"
    );
    assert!(
        refused.contains("needs `backup = true`") && !refused.contains("admin = true"),
        "{refused}"
    );
    let refused = told(&house.admin).await;
    assert!(
        refused.contains("PRODUCT_DENIED") && refused.contains("needs `backup = true`, or"),
        "{refused}"
    );
    assert!(
        std::fs::read_dir(shelf.path()).unwrap().next().is_none(),
        "nothing is left"
    );
}

#[tokio::test]
async fn who_shows_nothing_or_nothing_known_is_refused_every_call_but_health() {
    let house = House::new().await;
    for token in [None, Some("bcast_unknown"), Some("")] {
        let mut client = events_as(&house.server, token).await;
        let refused = "Unauthenticated TOKEN_INVALID";
        assert_eq!(told(client.subscribe(request()).await), refused);
        assert_eq!(
            told(
                client
                    .wait_task(WaitTaskRequest {
                        task_id: "v1".into(),
                        ..Default::default()
                    })
                    .await
            ),
            refused
        );
        assert_eq!(
            told(
                client
                    .get_task(GetTaskRequest {
                        task_id: "v1".into(),
                        ..Default::default()
                    })
                    .await
            ),
            refused
        );
        assert_eq!(
            told(client.list_events(ListEventsRequest::default()).await),
            refused
        );
        assert_eq!(
            told(client.get_log_info(v1::GetLogInfoRequest::default()).await),
            refused
        );
    }
    let mut health =
        tonic_health::pb::health_client::HealthClient::new(house.server.channel().await);
    let request = tonic_health::pb::HealthCheckRequest {
        service: String::new(),
    };
    assert!(health.check(request).await.is_ok(), "probes have no tokens");
    assert_eq!(
        house
            .server
            .metric("blobcast_grpc_unauthenticated_total")
            .await,
        15.0
    );
    let used = "blobcast_credential_last_used_timestamp_seconds{kind=\"client\",name=\"veo\",secret=\"current\"}";
    assert_eq!(house.server.metric(used).await, 0.0);
    events_as(&house.server, Some(&house.veo))
        .await
        .get_log_info(v1::GetLogInfoRequest::default())
        .await
        .unwrap();
    assert!(house.server.metric(used).await > 1.7e9);
}

#[tokio::test]
async fn a_withdrawn_permission_ends_open_streams_and_no_others() {
    let mut house = House::new().await;
    let mut veo = subscribe_as(&house.server, Some(&house.veo), Filter::default())
        .await
        .unwrap();
    let mut both = subscribe_as(&house.server, Some(&house.both), Filter::default())
        .await
        .unwrap();
    let mut narrow = subscribe_as(&house.server, Some(&house.both), products(["veo"]))
        .await
        .unwrap();
    let mut all = subscribe_as(&house.server, Some(&house.all), Filter::default())
        .await
        .unwrap();
    for sub in [&mut veo, &mut both, &mut narrow, &mut all] {
        sub.until_caught_up().await;
    }
    // Waiting streams: nothing but the withdrawal wakes them.
    house.file.remove("veo =");
    let (_, status) = veo.end().await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unauthenticated, "TOKEN_INVALID".to_owned())
    );

    let text = std::fs::read_to_string(house.file.path()).unwrap();
    house
        .file
        .write(&text.replace("[\"veo\", \"sora\"]", "[\"veo\"]"));
    let (_, status) = both.end().await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::PermissionDenied, "PRODUCT_DENIED".to_owned())
    );

    house.server.http().post(&completed("v2")).await.event_id();
    for sub in [&mut narrow, &mut all] {
        assert_eq!(
            sub.next_event().await.task_id,
            "v2",
            "streams about what is still allowed go on"
        );
    }
    let ended = "blobcast_subscriptions_ended_total{cause=\"withdrawn\"}";
    assert_eq!(house.server.metric(ended).await, 2.0);
}

#[tokio::test]
async fn a_withdrawn_permission_ends_a_backup() {
    let mut house = House::new().await;
    let root = house.file.add("client root --all-products --admin").await;
    house.server.http().post_bulky(0..60, 100_000).await;
    until("the new client", async || {
        let mut client = admin_as(&house.server, Some(&root)).await;
        client
            .list_quarantine(v1::ListQuarantineRequest::default())
            .await
            .is_ok()
    })
    .await;
    let whole = admin_as(&house.server, Some(&root))
        .await
        .backup(v1::BackupRequest {})
        .await;
    let mut whole = whole.unwrap().into_inner();
    while whole.message().await.unwrap().is_some() {}

    let mut client = admin_as(&house.server, Some(&root)).await;
    let mut stream = client
        .backup(v1::BackupRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_some());
    house.file.remove("root =");
    until("the withdrawal", async || {
        let mut client = admin_as(&house.server, Some(&root)).await;
        client
            .list_quarantine(v1::ListQuarantineRequest::default())
            .await
            .is_err()
    })
    .await;
    assert_eq!(
        told::<()>(Err(cut_off(&mut stream).await)),
        "Unauthenticated TOKEN_INVALID"
    );
}

/// How a backup ends that must not go on.
async fn cut_off(backup: &mut Streaming<v1::BackupResponse>) -> Status {
    loop {
        match backup.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the backup went on to its end"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_token_that_expires_ends_its_streams() {
    let mut file = CredentialsFile::new();
    let token = file.add("client brief --all-products").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let mut sub = subscribe_as(&server, Some(&token), Filter::default())
        .await
        .unwrap();
    // Its time begins when the stream is open, and lasts for one look at the file and some more.
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let text = std::fs::read_to_string(file.path()).unwrap();
    file.write(&text.replace(" }", &format!(", expires = {expires:.0} }}")));
    let (_, status) = sub.end().await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_INVALID");
    assert_eq!(
        told(subscribe_as(&server, Some(&token), Filter::default()).await),
        "Unauthenticated TOKEN_INVALID"
    );
}

#[tokio::test]
async fn the_first_client_in_the_file_ends_anonymous_streams_on_loopback() {
    let mut file = CredentialsFile::new();
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let open = Options::default()
        .set("credentials_file", file.path().display())
        .set("grpc.allow_anonymous", true);
    let open = open.start().await;
    server.http().post_bulky(0..60, 100_000).await;
    let mut anonymous = subscribe_as(&server, None, Filter::default())
        .await
        .unwrap();
    let mut backup = admin_as(&server, None)
        .await
        .backup(v1::BackupRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(backup.message().await.unwrap().is_some());
    let token = file.add("client veo --product veo").await;
    let (_, status) = anonymous.end().await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_INVALID");
    assert_eq!(reason(&cut_off(&mut backup).await), "TOKEN_INVALID");
    assert!(
        subscribe_as(&server, Some(&token), Filter::default())
            .await
            .is_ok()
    );
    assert!(
        subscribe_as(&open, None, Filter::default()).await.is_ok(),
        "told otherwise"
    );
    assert_eq!(
        told(subscribe_as(&open, Some("wrong"), Filter::default()).await),
        "Unauthenticated TOKEN_INVALID"
    );
}

#[tokio::test]
async fn all_streams_together_name_so_many_task_ids_and_one_client_half_of_them() {
    let mut file = CredentialsFile::new();
    let (one, other) = (
        file.add("client one --all-products").await,
        file.add("client other --all-products").await,
    );
    let options = Options::default().set("credentials_file", file.path().display());
    let server = options.set("grpc.task_ids_in_all_max", 10).start().await;
    let ids = |count: usize| Filter {
        task_ids: (0..count).map(|n| format!("t{n}")).collect(),
        ..Filter::default()
    };
    let open = async |token: &str, count| subscribe_as(&server, Some(token), ids(count)).await;
    let limit = "ResourceExhausted SUBSCRIPTION_LIMIT";
    let refused = open(&one, 6).await.err().unwrap();
    assert_eq!(told(Err::<(), _>(refused.clone())), limit, "more than half");
    assert!(
        refused.get_details_retry_info().is_none(),
        "it never fits: {refused:?}"
    );
    let three = open(&one, 3).await.unwrap();
    assert_eq!(told(open(&one, 3).await), limit, "with those that are open");
    let _two = open(&one, 2).await.unwrap();
    let _five = open(&other, 5).await.unwrap();
    assert_eq!(told(open(&other, 1).await), limit, "all are taken");
    assert!(
        open(&other, 0).await.is_ok(),
        "a stream without task ids takes none"
    );
    let labels = |chars: usize| {
        (0..16)
            .map(|n| (format!("label{n}"), "x".repeat(chars)))
            .collect()
    };
    let labelled = |chars| Filter {
        labels: labels(chars),
        ..Filter::default()
    };
    assert!(
        subscribe_as(&server, Some(&other), labelled(8))
            .await
            .is_ok(),
        "nor does one with a few labels"
    );
    assert_eq!(
        told(subscribe_as(&server, Some(&other), labelled(256)).await),
        limit,
        "a large filter counts"
    );
    drop(three);
    until("room", || async { open(&one, 3).await.is_ok() }).await;
}

#[tokio::test]
async fn the_last_client_that_is_withdrawn_shuts_everybody_out_until_a_restart() {
    let here = crate::support::ANY_PORT;
    for grpc in [here, ([0, 0, 0, 0], 0).into()] {
        let mut file = CredentialsFile::new();
        let token = file.add("client only --all-products --admin").await;
        let options = Options::default().set("credentials_file", file.path().display());
        let mut server = options.start_on([here, grpc, here]).await;
        let mut sub = subscribe_as(&server, Some(&token), Filter::default())
            .await
            .unwrap();
        file.remove("only");
        let (_, status) = sub.end().await.unwrap_err();
        assert_eq!(reason(&status), "TOKEN_INVALID");
        for shown in [None, Some(token.as_str())] {
            let refused = "Unauthenticated TOKEN_INVALID";
            assert_eq!(
                told(subscribe_as(&server, shown, Filter::default()).await),
                refused,
                "{grpc} {shown:?}"
            );
            let list = v1::ListSubscriptionsRequest::default();
            assert_eq!(
                told(
                    admin_as(&server, shown)
                        .await
                        .list_subscriptions(list)
                        .await
                ),
                refused,
                "{grpc} {shown:?}"
            );
        }
        until("the warning", || async {
            server.log().contains("no call is let in any more")
        })
        .await;
        if grpc == here {
            assert!(server.terminate().await.success());
            server.restart().await;
            assert!(
                subscribe_as(&server, None, Filter::default()).await.is_ok(),
                "loopback asks for nothing"
            );
        }
    }
}

#[tokio::test]
async fn no_client_takes_more_than_its_share_of_streams_and_ids() {
    let mut file = CredentialsFile::new();
    let (some, own) = (
        file.add("client some --all-products").await,
        file.add("client own --all-products").await,
    );
    let text = std::fs::read_to_string(file.path()).unwrap();
    let line = text.lines().find(|line| line.starts_with("own =")).unwrap();
    file.write(&text.replace(
        line,
        &line.replace(" }", ", subscriptions_max = 1, task_ids_max = 2 }"),
    ));
    let options = Options::default().set("credentials_file", file.path().display());
    let server = options
        .set("grpc.subscriptions_per_client_max", 2)
        .start()
        .await;
    let of_own = "subscriptions_max in the line of own in the credentials file";
    for (token, limit, setting) in [
        (&some, 2, "grpc.subscriptions_per_client_max"),
        (&own, 1, of_own),
    ] {
        let mut open = Vec::new();
        for _ in 0..limit {
            open.push(
                subscribe_as(&server, Some(token), Filter::default())
                    .await
                    .unwrap(),
            );
        }
        let refused = subscribe_as(&server, Some(token), Filter::default())
            .await
            .err()
            .unwrap();
        assert_eq!(reason(&refused), "SUBSCRIPTION_LIMIT");
        let metadata = refused.get_details_error_info().unwrap().metadata;
        assert_eq!(
            (metadata["limit"].clone(), metadata["open"].clone()),
            (limit.to_string(), limit.to_string())
        );
        assert_eq!(metadata["setting"], setting);
        assert!(
            refused.message().contains(setting) && refused.message().contains("this client"),
            "{refused:?}"
        );
        assert!(
            refused
                .get_details_retry_info()
                .unwrap()
                .retry_delay
                .is_some_and(|delay| !delay.is_zero())
        );
        drop(open);
        until("the share to come back", || async {
            subscribe_as(&server, Some(token), Filter::default())
                .await
                .is_ok()
        })
        .await;
    }
    let ids = |count: usize| Filter {
        task_ids: (0..count).map(|n| format!("t{n}")).collect(),
        ..Filter::default()
    };
    until("the stream to go", || async {
        subscribe_as(&server, Some(&own), ids(2)).await.is_ok()
    })
    .await;
    let refused = within("a refusal", subscribe_as(&server, Some(&own), ids(3))).await;
    assert_eq!(told(refused), "ResourceExhausted SUBSCRIPTION_LIMIT");
}

#[tokio::test]
async fn beyond_loopback_nobody_is_let_in_who_is_not_known() {
    let mut file = CredentialsFile::new();
    file.add("callback runblob").await;
    let serve =
        crate::support::Cli::new("serve --ingest-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0");
    let serve = serve
        .arg("--grpc-listen")
        .arg("0.0.0.0:0")
        .arg("--data-dir")
        .arg(file.path().with_file_name("data"));
    let ran = serve
        .env("BLOBCAST_CREDENTIALS_FILE", file.path().display())
        .run()
        .await;
    assert!(
        ran.exited(1).contains("nobody is known: add [clients]"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn the_command_line_shows_a_token_from_a_file_or_the_environment() {
    let house = House::new().await;
    let file = house.file.path().with_file_name("token");
    std::fs::write(&file, format!("{}\n", house.both)).unwrap();
    let by_file = house
        .server
        .cli("events --output json --token-file")
        .arg(&file)
        .run()
        .await;
    assert_eq!(by_file.each("task_id"), ["v1", "s1"]);
    let by_variable = house
        .server
        .cli("events --output json")
        .env("BLOBCAST_TOKEN", &house.veo)
        .run()
        .await;
    assert_eq!(by_variable.each("task_id"), ["v1"]);
    let without = house.server.cli("events").run().await;
    assert!(
        without
            .exited(1)
            .contains("show a token with --token-file or BLOBCAST_TOKEN"),
        "{without:?}"
    );
    let missing = house.server.cli("events --token-file /nowhere").run().await;
    assert!(
        missing
            .exited(1)
            .contains("cannot read the token in /nowhere"),
        "{missing:?}"
    );
}
