//! The client against a server that answers with scripted bytes, and breaks off as it likes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_rustls::TlsAcceptor;

use super::*;

const KEY: &str = "rb-hunter2";
const ID: &str = "ffd473d5-5bef-4e14-bf22-8d559be3c19f";

/// What the server does once it has read a request's head.
#[derive(Clone)]
enum Deed {
    /// Sends this, and reads on.
    Send(Vec<u8>),
    /// Sends this, and closes.
    SendAndClose(Vec<u8>),
    /// Sends this, and nothing more for a day.
    SendAndHang(Vec<u8>),
}

/// A server on a free port, and what it has seen.
struct Scripted {
    url: String,
    /// The head of each request.
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    async fn new(deed: Deed) -> Self {
        Self::with_tls(deed, None).await
    }

    async fn with_tls(deed: Deed, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let scripted = Self {
            url: format!("{scheme}://localhost:{port}"),
            heads: Arc::default(),
            connections: Arc::default(),
        };
        let (heads, connections) = (
            Arc::clone(&scripted.heads),
            Arc::clone(&scripted.connections),
        );
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.fetch_add(1, Ordering::SeqCst);
                let (deed, heads, tls) = (deed.clone(), Arc::clone(&heads), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, deed, heads).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, deed, heads).await;
                            }
                        }
                    }
                });
            }
        });
        scripted
    }

    fn api(&self) -> VendorApi {
        api(&self.url)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    deed: Deed,
    heads: Arc<Mutex<Vec<String>>>,
) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        heads.lock().push(String::from_utf8(head).unwrap());
        let (Deed::Send(bytes) | Deed::SendAndClose(bytes) | Deed::SendAndHang(bytes)) = &deed;
        // The client may have had enough of it.
        if stream.write_all(bytes).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        match &deed {
            Deed::Send(_) => {}
            Deed::SendAndClose(_) => return,
            Deed::SendAndHang(_) => sleep(Duration::from_secs(86_400)).await,
        }
    }
}

fn trusting(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn api(url: &str) -> VendorApi {
    VendorApi::new(url, Paths::default(), trusting(RootCertStore::empty())).unwrap()
}

fn key() -> ApiKey {
    ApiKey::parse(KEY).unwrap()
}

fn product(name: &str) -> Product {
    Product::parse(name).unwrap()
}

async fn status(api: &VendorApi) -> Answer {
    let answer = api
        .status(&product("veo"), &TaskId::parse(ID).unwrap(), &key())
        .await;
    let shown = match &answer {
        Answer::Failed(problem) => format!("{problem} {answer:?} {api:?}"),
        _ => format!("{answer:?}"),
    };
    assert!(!shown.contains("hunter2"), "{shown}");
    answer
}

fn response(head: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

async fn answer_to(head: &str, body: &str) -> Answer {
    let server = Scripted::new(Deed::Send(response(head, body))).await;
    status(&server.api()).await
}

fn problem(answer: Answer) -> Problem {
    match answer {
        Answer::Failed(problem) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_has_the_path_the_key_and_who_asks_and_nothing_else() {
    let server = Scripted::new(Deed::Send(response("200 OK", "{}"))).await;
    let api = server.api();
    assert_eq!(
        status(&api).await,
        Answer::Body {
            status: 200,
            body: Bytes::from_static(b"{}")
        }
    );
    let id = TaskId::parse("a/../b").unwrap();
    api.status(&product("sora"), &id, &key()).await;
    api.list(&product("kling"), &key(), 20, 100).await;

    let heads = server.heads();
    let lines: Vec<_> = heads
        .iter()
        .filter_map(|head| head.lines().next())
        .collect();
    assert_eq!(
        lines,
        [
            format!("GET /v1/veo/generations/{ID} HTTP/1.1").as_str(),
            "GET /v1/sora/generations/a%2F..%2Fb/ HTTP/1.1",
            "GET /v1/kling/generations?limit=20&offset=100 HTTP/1.1",
        ]
    );
    let mut headers: Vec<_> = heads[0]
        .lines()
        .skip(1)
        .filter(|it| !it.is_empty())
        .collect();
    headers.sort_unstable();
    let host = server.url.replace("http://", "host: ");
    let agent = format!("user-agent: blobcast/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        headers,
        [
            "accept: application/json",
            "authorization: Bearer rb-hunter2",
            &host,
            &agent
        ]
    );
    // Each has a connection of its own.
    assert_eq!(server.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_path_of_the_base_url_comes_first() {
    let server = Scripted::new(Deed::Send(response("200 OK", "{}"))).await;
    status(&api(&format!("{}/simulated/", server.url))).await;
    let heads = server.heads();
    assert!(
        heads[0].starts_with("GET /simulated/v1/veo/generations/"),
        "{heads:?}"
    );
}

#[tokio::test]
async fn each_status_has_its_meaning() {
    for (head, answer) in [
        ("404 Not Found", Answer::NotFound),
        ("401 Unauthorized", Answer::KeyRefused { status: 401 }),
        ("403 Forbidden", Answer::KeyRefused { status: 403 }),
        ("400 Bad Request", Answer::Failed(Problem::Status(400))),
        ("410 Gone", Answer::Failed(Problem::Status(410))),
        ("422 Unprocessable", Answer::Failed(Problem::Status(422))),
    ] {
        assert_eq!(answer_to(head, "{}").await, answer);
    }
    for (head, status) in [
        ("408 Request Timeout", 408),
        ("429 Too Many Requests", 429),
        ("500 Internal Server Error", 500),
        ("503 Service Unavailable", 503),
        ("599 What", 599),
    ] {
        let retry_after = None;
        assert_eq!(
            answer_to(head, "{}").await,
            Answer::Later {
                status,
                retry_after
            }
        );
    }
}

#[tokio::test]
async fn a_403_that_is_not_json_says_nothing_of_the_key() {
    for body in ["<html><h1>403 Forbidden</h1></html>", ""] {
        let later = Answer::Later {
            status: 403,
            retry_after: None,
        };
        assert_eq!(answer_to("403 Forbidden", body).await, later, "{body}");
    }
    let refused = Answer::KeyRefused { status: 403 };
    let body = r#"{"detail": "Forbidden"}"#;
    assert_eq!(answer_to("403 Forbidden", body).await, refused);
}

#[tokio::test]
async fn the_vendor_says_when_to_come_again_in_seconds_or_by_a_time() {
    const DATE: &str = "date: Sun, 06 Nov 1994 08:49:37 GMT";
    for (headers, seconds) in [
        ("retry-after: 0".to_owned(), Some(0)),
        ("retry-after: 17".to_owned(), Some(17)),
        ("retry-after: 3600".to_owned(), Some(3_600)),
        ("retry-after: 3601".to_owned(), Some(3_600)),
        (format!("retry-after: {}", "9".repeat(40)), Some(3_600)),
        (
            format!("{DATE}\r\nretry-after: Sun, 06 Nov 1994 08:50:07 GMT"),
            Some(30),
        ),
        (
            format!("{DATE}\r\nretry-after: Sun, 06 Nov 1994 09:49:37 GMT"),
            Some(3_600),
        ),
        (
            format!("{DATE}\r\nretry-after: Mon, 07 Nov 1994 08:49:37 GMT"),
            Some(3_600),
        ),
        // A time that has passed.
        (
            format!("{DATE}\r\nretry-after: Sun, 06 Nov 1994 08:49:36 GMT"),
            Some(0),
        ),
        (
            "retry-after: Sun, 06 Nov 1994 08:50:07 GMT".to_owned(),
            None,
        ),
        ("retry-after: soon".to_owned(), None),
        ("retry-after: -5".to_owned(), None),
        ("retry-after: 1.5".to_owned(), None),
        ("retry-after: ".to_owned(), None),
    ] {
        for (head, status) in [("429 Too Many Requests", 429), ("503 Unavailable", 503)] {
            let retry_after = seconds.map(Duration::from_secs);
            assert_eq!(
                answer_to(&format!("{head}\r\n{headers}"), "{}").await,
                Answer::Later {
                    status,
                    retry_after
                },
                "{headers}"
            );
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Scripted::new(Deed::Send(response("200 OK", "{}"))).await;
    for status in [301, 302, 303, 307, 308] {
        let head = format!("{status} Moved\r\nlocation: {}/hunter2", other.url);
        let problem = problem(answer_to(&head, "").await);
        assert_eq!(problem, Problem::Redirect(status));
        assert!(problem.to_string().contains("reconcile.base_url"));
    }
    assert_eq!(other.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_body_has_at_most_a_mebibyte() {
    let full = "x".repeat(BODY_BYTES_MAX);
    let Answer::Body { body, .. } = answer_to("200 OK", &full).await else {
        panic!("it fits")
    };
    assert_eq!(body.len(), BODY_BYTES_MAX);
    let over = format!("{full}x");
    assert_eq!(problem(answer_to("200 OK", &over).await), Problem::TooLarge);

    // And so it is if the length comes only with the bytes.
    let mut chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..17 {
        chunked.extend(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).into_bytes());
    }
    let server = Scripted::new(Deed::SendAndHang(chunked)).await;
    assert_eq!(problem(status(&server.api()).await), Problem::TooLarge);
}

#[tokio::test]
async fn a_head_without_an_end_is_refused() {
    let head = format!("200 OK\r\nx: {}", "x".repeat(2 * HEAD_BYTES_MAX));
    let Problem::Broken(why) = problem(answer_to(&head, "{}").await) else {
        panic!("it is broken")
    };
    assert!(why.contains("too large"), "{why}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_none() {
    let whole = response("200 OK", "{\"status\":\"completed\"}");
    let lengths = [0, 5, whole.len() - 30, whole.len() - 1];
    for length in lengths {
        let server = Scripted::new(Deed::SendAndClose(whole[..length].to_vec())).await;
        let problem = problem(status(&server.api()).await);
        assert!(matches!(problem, Problem::Broken(_)), "{length}: {problem}");
        assert_eq!(problem.word(), "broken");
    }
    let server = Scripted::new(Deed::SendAndClose(b"SSH-2.0-OpenSSH\r\n".to_vec())).await;
    assert!(matches!(
        problem(status(&server.api()).await),
        Problem::Broken(_)
    ));
}

#[tokio::test]
async fn an_answer_may_take_ten_seconds_in_all() {
    assert_eq!(api("http://a").timeout, Duration::from_secs(10));
    let limit = Duration::from_millis(300);
    let slow = response("200 OK", "{}");
    for sent in [0, 5, slow.len() - 1] {
        let server = Scripted::new(Deed::SendAndHang(slow[..sent].to_vec())).await;
        let api = VendorApi {
            timeout: limit,
            ..server.api()
        };
        let began = Instant::now();
        assert_eq!(problem(status(&api).await), Problem::TimedOut);
        assert!(began.elapsed() >= limit);
        assert_eq!(server.heads().len(), 1, "it is not repeated");
    }
}

#[tokio::test]
async fn at_most_four_requests_are_under_way() {
    let server = Scripted::new(Deed::SendAndHang(Vec::new())).await;
    let api = Arc::new(server.api());
    let asking: Vec<_> = (0..2 * REQUESTS_MAX)
        .map(|_| {
            let api = Arc::clone(&api);
            tokio::spawn(async move { status(&api).await })
        })
        .collect();
    while server.heads().len() < REQUESTS_MAX {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(api.places.available_permits(), 0);
    asking.iter().for_each(tokio::task::JoinHandle::abort);
    for asked in asking {
        assert!(asked.await.unwrap_err().is_cancelled());
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), REQUESTS_MAX);
    assert_eq!(api.places.available_permits(), REQUESTS_MAX);
}

#[tokio::test]
async fn a_connection_ends_with_its_call() {
    let (tls, roots) = tls_for("localhost");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("https://localhost:{port}");
    let api = VendorApi {
        timeout: Duration::from_secs(3),
        ..VendorApi::new(&url, Paths::default(), trusting(roots)).unwrap()
    };
    let is_asked = Semaphore::new(0);

    // While the second call waits for its handshake, the first one's connection is free again.
    let second = async {
        is_asked.acquire().await.unwrap().forget();
        status(&api).await
    };
    let host = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut first = tls.accept(stream).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(first.read_u8().await.unwrap());
        }
        is_asked.add_permits(1);
        let (mut silent, _) = listener.accept().await.unwrap();
        first.write_all(&response("200 OK", "{}")).await.unwrap();
        first.flush().await.unwrap();
        let mut sent = Vec::new();
        let ended = timeout(CONNECT_TIMEOUT, silent.read_to_end(&mut sent)).await;
        assert!(ended.is_ok(), "the connection is open still");
    };
    let (first, second, ()) = tokio::join!(status(&api), second, host);
    assert!(matches!(first, Answer::Body { .. }));
    assert_eq!(problem(second), Problem::TimedOut);
}

#[tokio::test]
async fn a_host_that_does_not_listen_is_named_as_the_cause() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let problem = problem(status(&api(&url)).await);
    assert!(
        problem.to_string().contains("Connection refused"),
        "{problem}"
    );
}

#[tokio::test]
async fn a_key_is_tried_with_a_task_that_does_not_exist() {
    let server = Scripted::new(Deed::Send(response("404 Not Found", "{}"))).await;
    let api = server.api();
    for (products, path) in [
        ("\"*\"", "veo"),
        ("\"flux\", \"seedance\"", "seedance"),
        ("\"flux\"", "veo"),
    ] {
        let text = format!("[[vendor_keys]]\nname = \"a\"\nkey = {KEY:?}\nproducts = [{products}]");
        let credentials = crate::credentials::Credentials::parse(&text).unwrap();
        let key = credentials.vendor_keys().next().unwrap();
        assert_eq!(api.try_key(&key).await, Answer::NotFound);
        let head = server.heads().pop().unwrap();
        let expected = format!("GET /v1/{path}/generations/00000000-0000-0000-0000-000000000000 ");
        assert!(head.starts_with(&expected), "{head}");
    }
}

#[tokio::test]
async fn what_has_no_path_is_not_asked() {
    let server = Scripted::new(Deed::Send(response("200 OK", "{}"))).await;
    let api = server.api();
    let (flux, seedance) = (product("flux"), product("seedance"));
    assert!(!api.has_status(&flux) && api.has_status(&seedance) && !api.has_list(&seedance));
    let id = TaskId::parse(ID).unwrap();
    let no_path = problem(api.status(&flux, &id, &key()).await);
    assert!(no_path.to_string().contains("set reconcile.path.flux"));
    assert_eq!(
        problem(api.list(&seedance, &key(), 100, 0).await),
        Problem::NoList(seedance)
    );
    assert_eq!(server.connections.load(Ordering::SeqCst), 0);
}

/// TLS for a server whose certificate has `name`, and its authority.
fn tls_for(name: &str) -> (TlsAcceptor, RootCertStore) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let own = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate: CertificateDer<'static> =
        params.signed_by(&own, &authority).unwrap().der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.serialize_der()));

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    (TlsAcceptor::from(Arc::new(config)), roots)
}

#[tokio::test]
async fn a_server_has_to_prove_its_name_before_it_gets_the_key() {
    let deed = Deed::Send(response("200 OK", "{}"));
    let (tls, roots) = tls_for("localhost");
    let server = Scripted::with_tls(deed.clone(), Some(tls)).await;
    let good = VendorApi::new(&server.url, Paths::default(), trusting(roots)).unwrap();
    assert!(matches!(status(&good).await, Answer::Body { .. }));
    assert_eq!(server.heads().len(), 1);

    // Nobody vouches for it.
    let unknown = problem(status(&server.api()).await).to_string();
    assert!(
        unknown.contains("an authority that is not trusted"),
        "{unknown}"
    );

    // Somebody does from now on.
    let (tls, roots) = tls_for("localhost");
    let renewed = Scripted::with_tls(deed.clone(), Some(tls)).await;
    let asked = api(&renewed.url);
    assert!(matches!(status(&asked).await, Answer::Failed(_)));
    asked.trust(trusting(roots));
    assert!(matches!(status(&asked).await, Answer::Body { .. }));

    // It is another one.
    let (tls, roots) = tls_for("other.example");
    let other = Scripted::with_tls(deed.clone(), Some(tls)).await;
    let asked = VendorApi::new(&other.url, Paths::default(), trusting(roots)).unwrap();
    let wrong = problem(status(&asked).await).to_string();
    assert!(wrong.contains("is for another name"), "{wrong}");

    assert_eq!([server.heads().len(), other.heads().len()], [1, 0]);
}

#[tokio::test]
async fn a_server_without_tls_gets_no_key_by_https() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut begin = vec![0; 64];
        stream.read_exact(&mut begin).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        String::from_utf8_lossy(&[begin, rest].concat()).into_owned()
    });
    let wrong = problem(status(&api(&url)).await).to_string();
    assert!(wrong.contains("does not speak TLS"), "{wrong}");
    assert!(!plain.await.unwrap().contains("hunter2"));
}

#[test]
fn a_base_url_is_http_or_https_with_a_host() {
    let new =
        |url: &str| VendorApi::new(url, Paths::default(), trusting(RootCertStore::empty())).is_ok();
    for good in ["https://a", "http://[::1]:80/x/"] {
        assert!(new(good), "{good}");
    }
    for wrong in ["", "a", "/a", "ftp://a", "https://"] {
        assert!(!new(wrong), "{wrong}");
    }
}
