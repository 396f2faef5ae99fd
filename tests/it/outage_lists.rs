//! What a broker reads in the vendor's lists after an outage, and what it says when the vendor cannot be asked. The vendor here answers as
//! each test wants: pages that are capped or too large, nothing, or nothing usable.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{StatusCode, Uri},
};
use blobcast::wire::v1::{ExpectTasksRequest, Expectation};
use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{
    outages::age_last_there,
    support::{
        Authority, Cli, CredentialsFile, Issued, Options, Server, completed, recovers, replace,
        until, with,
    },
};

/// What a page is asked for with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    limit: usize,
    offset: usize,
}

/// A vendor whose lists a test makes up. It knows no task by itself.
struct Vendor {
    url: String,
    lists: Arc<Mutex<Vec<Asked>>>,
    /// Tasks that were asked for.
    tasks: Arc<Mutex<Vec<String>>>,
}

impl Vendor {
    async fn new(list: impl Fn(Asked) -> (u16, String) + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let vendor = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            lists: Arc::default(),
            tasks: Arc::default(),
        };
        let (lists, tasks) = (Arc::clone(&vendor.lists), Arc::clone(&vendor.tasks));
        let answer = move |uri: Uri| {
            let (status, body) = match asked(&uri) {
                Some(asked) => {
                    lists.lock().unwrap().push(asked);
                    list(asked)
                }
                None => {
                    tasks.lock().unwrap().push(uri.path().to_owned());
                    (404, "{}".to_owned())
                }
            };
            std::future::ready((StatusCode::from_u16(status).unwrap(), body))
        };
        let router = Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        vendor
    }

    fn lists(&self) -> Vec<Asked> {
        self.lists.lock().unwrap().clone()
    }

    /// Whether any task was asked for by itself; a key is tried with the id of none.
    fn was_asked_for_tasks(&self) -> bool {
        let tasks = self.tasks.lock().unwrap();
        tasks.iter().any(|path| !path.contains("00000000-0000"))
    }
}

fn asked(uri: &Uri) -> Option<Asked> {
    let value = |name: &str| {
        let mut pairs = uri.query()?.split('&');
        pairs.find_map(|pair| pair.strip_prefix(name)?.parse().ok())
    };
    Some(Asked {
        limit: value("limit=")?,
        offset: value("offset=")?,
    })
}

/// A page of tasks that have ended just now, with these fields.
fn page(ids: &[String], asked: Asked, fields: &Value) -> (u16, String) {
    let now = Timestamp::now().to_string();
    let shown = ids.iter().skip(asked.offset).take(asked.limit);
    let tasks = shown.map(|id| {
        let task = with(completed(id), json!({"created_at": now}));
        with(task, fields.clone())
    });
    (200, Value::Array(tasks.collect()).to_string())
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("lost{n}")).collect()
}

fn credentials() -> CredentialsFile {
    let mut credentials = CredentialsFile::new();
    credentials.add_line("[vendor_keys]", "name = \"main\"\nkey = \"rb-0123456789\"");
    credentials
}

/// A broker that asks at this URL, and learns of lost ends by lists alone.
fn options(credentials: &CredentialsFile, url: &str) -> Options {
    Options::default()
        .set("credentials_file", credentials.path().display())
        .set("reconcile.enabled", true)
        .set("reconcile.base_url", url)
        .set("reconcile.checks_per_minute_max", 6_000)
        .set("reconcile.expect_within", "veo=1h")
}

async fn expect(server: &Server, ids: &[String], seconds: i64) {
    let expectation = |task_id: &String| Expectation {
        product: "veo".to_owned(),
        task_id: task_id.clone(),
        expect_within: Some(prost_types::Duration { seconds, nanos: 0 }),
        ..Expectation::default()
    };
    let request = ExpectTasksRequest {
        expectations: ids.iter().map(expectation).collect(),
    };
    server.events().await.expect_tasks(request).await.unwrap();
}

/// Ends it, as if it had been ten minutes ago.
async fn away(server: &mut Server) {
    server.terminate().await;
    age_last_there(server, SignedDuration::from_mins(10));
}

async fn outage(server: &mut Server) {
    away(server).await;
    server.restart().await;
}

/// What the broker has noted of when it was there last.
fn noted(data_dir: &Path) -> String {
    fs::read_to_string(data_dir.join("last-there.json")).unwrap()
}

#[tokio::test]
async fn a_vendor_whose_pages_are_shorter_than_asked_for_is_read_to_the_end() {
    let all = ids(180);
    let shown = all.clone();
    let vendor = Vendor::new(move |asked| {
        let limit = asked.limit.min(50);
        page(&shown, Asked { limit, ..asked }, &json!({}))
    })
    .await;
    let credentials = credentials();
    let mut server = options(&credentials, &vendor.url).start().await;
    expect(&server, &all, 3_600).await;
    outage(&mut server).await;

    recovers(&server, &all).await;
    let calls = vendor.lists().len();
    assert!((4..=6).contains(&calls), "{calls} calls");
    assert!(!vendor.was_asked_for_tasks());
}

#[tokio::test]
async fn a_task_that_is_deleted_between_two_pages_hides_no_other() {
    let all = ids(200);
    let shown = all.clone();
    let vendor = Vendor::new(move |asked| {
        // Two that the first page showed are gone when the second is asked for.
        let shown = &shown[if asked.offset > 0 { 2 } else { 0 }..];
        page(shown, asked, &json!({}))
    })
    .await;
    let credentials = credentials();
    let mut server = options(&credentials, &vendor.url).start().await;
    expect(&server, &all, 3_600).await;
    outage(&mut server).await;
    recovers(&server, &all).await;
    assert!(!vendor.was_asked_for_tasks());
}

#[tokio::test]
async fn a_list_with_long_prompts_is_read_in_smaller_pages() {
    let all = ids(100);
    let shown = all.clone();
    let prompt = json!({"prompt": "x".repeat(12_000)});
    let vendor = Vendor::new(move |asked| page(&shown, asked, &prompt)).await;
    let credentials = credentials();
    let mut server = options(&credentials, &vendor.url).start().await;
    expect(&server, &all, 3_600).await;
    outage(&mut server).await;

    recovers(&server, &all).await;
    let limits: Vec<_> = vendor.lists().iter().map(|asked| asked.limit).collect();
    assert_eq!(limits[..2], [100, 20]);
    assert!(!server.log().contains("cannot read the vendor's list"));
}

#[tokio::test]
async fn a_list_that_is_too_large_in_any_size_is_left_with_its_cause() {
    let vendor = Vendor::new(|_| (200, "x".repeat(2 << 20))).await;
    let credentials = credentials();
    let options = options(&credentials, &vendor.url).set("reconcile.unknown_tasks", "publish");
    let mut server = options.start().await;
    expect(&server, &ids(1), 3_600).await;
    outage(&mut server).await;

    until("the list of veo to be left", async || {
        server.log().contains("cannot read the vendor's list")
    })
    .await;
    let log = server.log();
    let line = log.lines().find(|line| line.contains("cannot read"));
    let line = line.unwrap();
    assert!(line.contains("more than 1048576 bytes"), "{line}");
    assert!(!line.contains("one by one"), "nobody knows of them: {line}");
    assert!(vendor.lists().iter().any(|asked| asked.limit == 5));
}

#[tokio::test]
async fn a_walk_ends_when_no_task_of_its_list_is_expected_any_more() {
    let vendor = Vendor::new(|_| (503, "{}".to_owned())).await;
    let credentials = credentials();
    let mut server = options(&credentials, &vendor.url).start().await;
    expect(&server, &ids(2), 3_600).await;
    outage(&mut server).await;
    let before = noted(&server.data_dir());
    until("the list to be asked for", async || {
        !vendor.lists().is_empty()
    })
    .await;
    for id in ids(2) {
        let (http, body) = (server.http(), completed(&id).to_string());
        assert_eq!(http.post_to("/webhook/veo", body).await.status, 200);
    }

    until("the outage to be over", async || {
        noted(&server.data_dir()) != before
    })
    .await;
    let calls = vendor.lists().len();
    assert!(calls <= 4, "{calls} calls");
}

#[tokio::test]
async fn what_a_list_shows_and_the_log_cannot_take_is_read_again() {
    let shown = ids(1);
    let vendor = Vendor::new(move |asked| page(&shown, asked, &json!({}))).await;
    let credentials = credentials();
    let options = options(&credentials, &vendor.url).set("reconcile.unknown_tasks", "publish");
    let mut server = options.clone().start().await;
    away(&mut server).await;

    let full = options.clone().set("log.disk_free_min_percent", 100);
    server.restart_with(full).await;
    until("the list to be read", async || {
        server
            .log()
            .contains("cannot append what the vendor's API says")
    })
    .await;
    server.terminate().await;
    server.restart_with(options).await;
    recovers(&server, &ids(1)).await;
}

#[tokio::test]
async fn a_restored_log_has_been_away_since_its_newest_commit() {
    let shown = ids(1);
    let vendor = Vendor::new(move |asked| page(&shown, asked, &json!({}))).await;
    let credentials = credentials();
    let options = options(&credentials, &vendor.url).set("reconcile.outage_min", "1s");
    let mut server = options.clone().start().await;
    expect(&server, &ids(1), 3_600).await;
    let directory = tempfile::tempdir().unwrap();
    let (file, data) = (
        directory.path().join("backup"),
        directory.path().join("data"),
    );
    server.cli("backup").arg(&file).run().await.good();
    let restore = Cli::new("restore").arg(&file).arg("--data-dir").arg(data);
    restore.run().await.good();

    server.terminate().await;
    let since = Instant::now();
    until("the outage to be one", async || {
        since.elapsed() > Duration::from_millis(1_100)
    })
    .await;
    let server = options.start_in(directory).await;
    recovers(&server, &ids(1)).await;
    assert!(!vendor.was_asked_for_tasks());
}

#[tokio::test]
async fn a_completed_task_without_outputs_that_nobody_expects_is_read_again() {
    let shown = ids(1);
    let vendor =
        Vendor::new(move |asked| page(&shown, asked, &json!({"video_url": null, "result": null})))
            .await;
    let credentials = credentials();
    let options = options(&credentials, &vendor.url).set("reconcile.unknown_tasks", "publish");
    let mut server = options.start().await;
    outage(&mut server).await;
    let before = noted(&server.data_dir());
    let said = "shows completed tasks without outputs";
    server.logged(said, 1).await;
    server.terminate().await;
    let after = noted(&server.data_dir());
    assert_eq!(after, before, "the outage is not over");
}

#[tokio::test]
async fn a_vendor_that_cannot_be_asked_is_in_the_log_with_the_next_step() {
    let vendor = Vendor::new(|_| (302, "{}".to_owned())).await;
    let credentials = credentials();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let cause = "the vendor's API gives no usable answer";

    let server = options(&credentials, &nobody).start().await;
    expect(&server, &ids(8), 10).await;
    let line = server.logged(cause, 1).await.remove(0);
    assert!(line.contains("Connection refused"), "{line}");
    assert!(line.contains("reconcile.base_url"), "{line}");

    let mut server = options(&credentials, &vendor.url).start().await;
    expect(&server, &ids(1), 3_600).await;
    outage(&mut server).await;
    let line = server.logged(cause, 1).await.remove(0);
    assert!(line.contains("redirect (302)"), "{line}");
}

#[tokio::test]
async fn a_proxy_in_the_environment_is_said_to_be_unused() {
    let (credentials, authority) = (credentials(), Authority::new());
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let server = options(&credentials, "https://127.0.0.1:1")
            .variable("SSL_CERT_FILE", authority.ca_file().display())
            .variable("HTTPS_PROXY", "")
            .variable("https_proxy", "")
            .variable(name, "http://user:hunter2@proxy.example:3128")
            .start()
            .await;
        let line = server.logged("is asked without a proxy", 1).await.remove(0);
        assert!(line.contains(name), "{line}");
        assert!(line.contains("reconcile.base_url"), "{line}");
        assert!(!server.log().contains("hunter2"));
    }
}

/// Accepts TLS alone; tells when a client trusts its certificate.
async fn handshakes(issued: &Issued) -> (String, Arc<AtomicBool>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    let certificate = CertificateDer::from_pem_file(&issued.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&issued.key).unwrap();
    let config = config.with_single_cert(vec![certificate], key).unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let trusted = Arc::new(AtomicBool::new(false));
    let is_trusted = Arc::clone(&trusted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if tls.accept(stream).await.is_ok() {
                is_trusted.store(true, Ordering::SeqCst);
            }
        }
    });
    (url, trusted)
}

#[tokio::test]
async fn a_replaced_authority_of_the_vendors_is_taken_up_at_sighup() {
    let (stranger, authority) = (Authority::new(), Authority::new());
    let (url, trusted) = handshakes(&authority.issue("vendor", "localhost")).await;
    let trust = stranger.ca_file();
    let credentials = credentials();
    let server = options(&credentials, &url)
        .variable("SSL_CERT_FILE", trust.display())
        .start()
        .await;
    let line = server.logged("has no usable answer", 1).await.remove(0);
    assert!(line.contains("not trusted"), "{line}");
    assert!(!trusted.load(Ordering::SeqCst));

    replace(&trust, &fs::read_to_string(authority.ca_file()).unwrap());
    server.signal(Signal::HUP);
    until("the vendor to be trusted", async || {
        trusted.load(Ordering::SeqCst)
    })
    .await;
}
