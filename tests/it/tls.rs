//! TLS on the three listeners: trusted authorities, protocols, changing certificates, and client
//! certificates.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use blobcast::wire::v1::{GetLogInfoRequest, event_service_client::EventServiceClient};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http2::SendRequest};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::support::{
    Authority, Cli, CredentialsFile, Http, Issued, Options, Server, Sub, completed, refusal,
    replace, request, until, within,
};

/// So soon what a certificate has begun ends, says the documentation.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// How late the machine itself is, which has other tests to run: by how much pauses, and answers of the broker's serving threads,
/// took longer than nothing. A promise is held to its time and that.
struct Lateness {
    micros: Arc<AtomicU64>,
    _measuring: AbortOnDropHandle<()>,
}

impl Lateness {
    fn of(server: &Server) -> Self {
        const PAUSE: Duration = Duration::from_millis(50);
        let (micros, http) = (Arc::<AtomicU64>::default(), Http::new(server.admin));
        let late = Arc::clone(&micros);
        let measuring = tokio::spawn(async move {
            loop {
                let before = Instant::now();
                tokio::time::sleep(PAUSE).await;
                http.get("/livez").await;
                late.fetch_add(
                    (before.elapsed() - PAUSE).as_micros() as u64,
                    Ordering::Relaxed,
                );
            }
        });
        Self {
            micros,
            _measuring: AbortOnDropHandle::new(measuring),
        }
    }

    fn so_far(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }
}

/// Waits for the end of a stream whose certificate counts no more from now on.
async fn ends_in_time(stream: &mut Sub, lateness: &Lateness) {
    let (begun, late_before) = (Instant::now(), lateness.so_far());
    let (_, status) = stream.end().await.unwrap_err();
    let (took, late) = (begun.elapsed(), lateness.so_far() - late_before);
    assert!(is_unauthenticated(&status), "{status:?}");
    assert!(
        took <= ENDS_WITHIN + late,
        "after {took:?}, of which the machine was {late:?} late"
    );
}

/// A broker with TLS on every listener.
async fn secured(authority: &Authority, more: impl FnOnce(Options) -> Options) -> (Server, Issued) {
    let issued = authority.issue("server", "localhost");
    let mut options = Options::default();
    for listener in ["ingest", "grpc", "admin"] {
        options = options.set(
            &format!("{listener}.tls_certificate_file"),
            issued.certificate.display(),
        );
        options = options.set(&format!("{listener}.tls_key_file"), issued.key.display());
    }
    (more(options).start().await, issued)
}

/// A command line that trusts the authority, and finds the broker by the name in its certificate.
fn cli(server: &Server, authority: &Authority, line: &str) -> Cli {
    let url = |address: SocketAddr| format!("https://localhost:{}", address.port());
    Cli::new(line)
        .env("SSL_CERT_FILE", authority.ca_file().display())
        .env("BLOBCAST_GRPC_URL", url(server.grpc))
        .env("BLOBCAST_INGEST_URL", url(server.ingest))
        .env("BLOBCAST_ADMIN_URL", url(server.admin))
}

async fn connect(
    address: SocketAddr,
    authority: &Authority,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(authority.ca_file()).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    within(
        "the handshake",
        TlsConnector::from(Arc::new(config)).connect(name, stream),
    )
    .await
}

/// Which certificate a listener shows.
pub async fn shown(address: SocketAddr, authority: &Authority) -> Vec<u8> {
    let stream = connect(address, authority, &[]).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn unauthenticated(line: &str) -> bool {
    line.contains("UNAUTHENTICATED TOKEN_INVALID")
}

#[tokio::test]
async fn callbacks_events_and_probes_go_over_tls() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, Options::on_terminal).await;
    until("the banner", || async {
        server.printed().contains("See it:")
    })
    .await;
    let banner = server.printed();
    assert!(
        !banner.contains("http://") && !banner.contains("-plaintext"),
        "{banner}"
    );
    cli(&server, &authority, "trigger --product veo --task-id t1")
        .run()
        .await
        .good();
    assert_eq!(
        cli(&server, &authority, "events --output json")
            .run()
            .await
            .each("task_id"),
        ["t1"]
    );
    assert_eq!(
        cli(&server, &authority, "healthcheck").run().await.good(),
        "ready\n"
    );
    // Who does not know the authority does not talk to the broker.
    let other = Authority::new();
    for line in ["events", "healthcheck", "trigger --task-id t2"] {
        assert_eq!(
            cli(&server, &other, line).run().await.code,
            Some(1),
            "{line}"
        );
    }
}

#[tokio::test]
async fn each_listener_speaks_its_protocols_and_no_other() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| options).await;
    let (h1, h2): (&[u8], &[u8]) = (b"http/1.1", b"h2");
    for (address, offered, agreed) in [
        (server.ingest, vec![h2, h1], Some(h2)),
        (server.ingest, vec![h1], Some(h1)),
        (server.ingest, vec![], None),
        (server.grpc, vec![h1, h2], Some(h2)),
        (server.grpc, vec![h1], Some(h1)), // to be told; see below
        (server.admin, vec![h2, h1], Some(h1)),
    ] {
        let stream = connect(address, &authority, &offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
    }
    for (address, offered) in [
        (server.admin, h2),
        (server.ingest, b"spdy/3"),
        (server.grpc, b"spdy/3"),
    ] {
        assert!(connect(address, &authority, &[offered]).await.is_err());
    }
    let mut stream = connect(server.grpc, &authority, &[h1]).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    within("the end", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 426 ") && answer.contains("HTTP/2"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_callback_comes_by_http_2_as_well() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| options.set("ingest.headers_max", 8)).await;
    let stream = connect(server.ingest, &authority, &[b"h2"]).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut post = async |headers: usize, body: String| {
        let mut request = hyper::Request::post("https://localhost/webhook/veo");
        for number in 0..headers {
            request = request.header(format!("x-{number}"), "y");
        }
        let request = request
            .body(http_body_util::Full::new(bytes::Bytes::from(body)))
            .unwrap();
        within("an answer", sender.send_request(request))
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(post(0, completed("t1").to_string()).await, 200);
    assert_eq!(
        post(7, completed("t1").to_string()).await,
        200,
        "and its content-length"
    );
    assert_eq!(post(8, completed("t1").to_string()).await, 431);
    assert_eq!(post(0, "x".repeat(1024 * 1024 + 1)).await, 413);
    assert_eq!(
        cli(&server, &authority, "events --output json")
            .run()
            .await
            .each("task_id"),
        ["t1"]
    );
    let mut admin = connect(server.admin, &authority, &[]).await.unwrap();
    admin
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut metrics = String::new();
    within("the metrics", admin.read_to_string(&mut metrics))
        .await
        .unwrap();
    for (outcome, count) in [
        ("accepted", 1),
        ("duplicate", 1),
        ("headers_too_large", 1),
        ("body_too_large", 1),
    ] {
        let line = format!("\nblobcast_callbacks_total{{outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
}

#[tokio::test]
async fn an_http_2_connection_that_asks_nothing_is_closed() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| {
        options.set("ingest.header_timeout", "200ms")
    })
    .await;
    let mut stream = connect(server.ingest, &authority, &[b"h2"]).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut rest = Vec::new();
    // Its end may be an error: who says nothing is not waited for.
    let _ = within("the connection to be closed", stream.read_to_end(&mut rest))
        .await
        .is_ok();
}

/// The client's end of an HTTP/2 connection.
async fn h2(server: &Server, authority: &Authority) -> SendRequest<Full<Bytes>> {
    let stream = connect(server.ingest, authority, &[b"h2"]).await.unwrap();
    let (executor, io) = (
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    );
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

async fn h2_post(sender: &mut SendRequest<Full<Bytes>>, path: &str, body: impl Into<Bytes>) -> u16 {
    within("the connection", sender.ready())
        .await
        .expect("it lives");
    let request = Request::post(format!("https://localhost{path}"))
        .body(Full::new(body.into()))
        .unwrap();
    let answer = within("an answer", sender.send_request(request))
        .await
        .unwrap();
    assert!(!answer.headers().contains_key("connection"));
    let status = answer.status().as_u16();
    within("its body", answer.into_body().collect())
        .await
        .unwrap();
    status
}

#[tokio::test]
async fn refusals_of_large_bodies_over_http_2_leave_the_connection_alive() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| {
        options.set("ingest.refusals_per_minute_max", 1_000)
    })
    .await;
    let mut sender = h2(&server, &authority).await;
    let large = Bytes::from(vec![b'x'; 3_000_000]);
    // More often than streams that were reset are remembered.
    for number in 0..100 {
        for (path, bytes, status) in [
            ("/nowhere", 300, 404),
            ("/nowhere", 3_000_000, 404),
            ("/webhook/veo", 3_000_000, 413),
        ] {
            assert_eq!(
                h2_post(&mut sender, path, large.slice(..bytes)).await,
                status,
                "{number}: {path}"
            );
        }
        assert_eq!(
            h2_post(
                &mut sender,
                "/webhook/veo",
                completed(&format!("t{number}")).to_string()
            )
            .await,
            200
        );
    }
}

#[tokio::test]
async fn a_refusal_of_a_large_body_over_tls_arrives_and_ends_as_it_should() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| options).await;
    let mut stream = connect(server.ingest, &authority, &[b"http/1.1"])
        .await
        .unwrap();
    stream
        .write_all(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n")
        .await
        .unwrap();
    within(
        "the body to be taken",
        stream.write_all(&vec![b'x'; 3_000_000]),
    )
    .await
    .unwrap();
    let mut answer = String::new();
    // Without a close_notify it would be an error.
    within("the answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn an_http_2_connection_that_was_used_is_kept_for_longer_than_one_that_asks_nothing() {
    let authority = Authority::new();
    let times = |options: Options| {
        options
            .set("ingest.header_timeout", "200ms")
            .set("ingest.idle_timeout", "2s")
    };
    let (server, _) = secured(&authority, times).await;
    let mut sender = h2(&server, &authority).await;
    assert_eq!(
        h2_post(&mut sender, "/webhook/veo", completed("t1").to_string()).await,
        200
    );
    // A connection that asks nothing shows that the time has gone by.
    let mut silent = connect(server.ingest, &authority, &[b"http/1.1"])
        .await
        .unwrap();
    let _ = within(
        "the connection to be closed",
        silent.read_to_end(&mut Vec::new()),
    )
    .await
    .is_ok();
    let answered = Instant::now();
    assert_eq!(
        h2_post(&mut sender, "/webhook/veo", completed("t2").to_string()).await,
        200
    );
    until("the connection to be closed", async || sender.is_closed()).await;
    assert!(answered.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_quiet_http_2_connection_gets_a_goaway_before_it_is_closed() {
    const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"; // with empty settings
    const GOAWAY: u8 = 7;
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| {
        options.set("ingest.header_timeout", "200ms")
    })
    .await;
    for _ in 0..4 {
        let mut stream = connect(server.ingest, &authority, &[b"h2"]).await.unwrap();
        stream.write_all(BEGIN).await.unwrap();
        let mut told = Vec::new();
        let _ = within("the connection to be closed", stream.read_to_end(&mut told))
            .await
            .is_ok();
        let (mut kinds, mut rest) = (Vec::new(), &told[..]);
        while let [a, b, c, kind, ..] = *rest {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            kinds.push(kind);
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        assert!(kinds.contains(&GOAWAY), "{kinds:?}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_at_once_and_cuts_nobody_off() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| {
        options.set("ingest.header_timeout", "60s")
    })
    .await;
    let listening = cli(&server, &authority, "listen --output json --from earliest").start();
    listening.says("caught up").await;
    let first = shown(server.ingest, &authority).await;
    let kept = connect(server.ingest, &authority, &[b"http/1.1"])
        .await
        .unwrap();

    let issued = authority.issue("server", "localhost");
    for address in [server.ingest, server.grpc, server.admin] {
        until("the new certificate", || async {
            shown(address, &authority).await != first
        })
        .await;
    }
    // What cannot be used changes nothing.
    let second = shown(server.ingest, &authority).await;
    std::fs::write(&issued.certificate, "no certificate").unwrap();
    until("the complaint", || async {
        server.log().contains("the certificates stay as they were")
    })
    .await;
    assert_eq!(shown(server.ingest, &authority).await, second);

    let (mut kept, body) = (kept, completed("t1").to_string());
    let request = format!(
        "POST /webhook/veo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    kept.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    within("the answer", kept.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    listening.prints_lines(1).await;
    assert!(
        !listening.stderr().contains("connecting again"),
        "{}",
        listening.stderr()
    );
}

#[tokio::test]
async fn a_certificate_whose_key_is_replaced_a_moment_later_is_no_refusal() {
    let authority = Authority::new();
    let served = authority.issue("server", "localhost");
    // Metrics are asked for without TLS.
    let options = ["ingest", "grpc"]
        .iter()
        .fold(Options::default(), |options, listener| {
            let options = options.set(
                &format!("{listener}.tls_certificate_file"),
                served.certificate.display(),
            );
            options.set(&format!("{listener}.tls_key_file"), served.key.display())
        });
    let server = options.start().await;
    let first = shown(server.grpc, &authority).await;
    let new = authority.issue("new", "localhost");
    let refused = async || {
        server
            .metric("blobcast_reloads_total{result=\"refused\",what=\"certificates\"}")
            .await
    };

    replace(
        &served.certificate,
        &fs::read_to_string(&new.certificate).unwrap(),
    );
    let waits = "stay as they were until the other file is there";
    until("it to be seen by each listener", async || {
        server.log().matches(waits).count() == 2
    })
    .await;
    assert_eq!(shown(server.grpc, &authority).await, first);
    replace(&served.key, &fs::read_to_string(&new.key).unwrap());
    for address in [server.ingest, server.grpc] {
        until("the new certificate", async || {
            shown(address, &authority).await != first
        })
        .await;
    }
    assert_eq!(refused().await, 0.0);
    assert!(!server.log().contains("\"ERROR\""), "{}", server.log());

    // A certificate that stays alone is one.
    authority.issue("other", "localhost");
    replace(
        &served.certificate,
        &fs::read_to_string(new.certificate.with_file_name("other.pem")).unwrap(),
    );
    until("the refusal", async || refused().await == 2.0).await;
    assert_eq!(
        server
            .metric("blobcast_reload_refused{what=\"certificates\"}")
            .await,
        1.0
    );
    replace(
        &served.certificate,
        &fs::read_to_string(&new.certificate).unwrap(),
    );
    until("its end", async || {
        server
            .metric("blobcast_reload_refused{what=\"certificates\"}")
            .await
            == 0.0
    })
    .await;
}

#[tokio::test]
async fn the_expiry_of_each_certificate_is_a_metric() {
    let authority = Authority::new();
    let issued = authority.issue("server", "localhost");
    let options = Options::default().set("grpc.tls_certificate_file", issued.certificate.display());
    let server = options
        .set("grpc.tls_key_file", issued.key.display())
        .start()
        .await;
    let expiry = "blobcast_certificate_expiry_timestamp_seconds{listener=\"grpc\"}";
    assert!(server.metric(expiry).await > 1.7e9);
    assert_eq!(
        server.metric(&expiry.replace("grpc", "ingest")).await,
        0.0,
        "it has none"
    );
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let mut file = CredentialsFile::new();
    file.add_line(
        "clients",
        "veo = { certificate = \"veo.internal\", products = [\"veo\"] }",
    );
    file.add_line(
        "clients",
        "ops = { certificate = \"common ops.internal\", products = [\"*\"], admin = true }",
    );
    let token = file.add("client sora --product sora").await;
    let (server, _) = secured(&authority, |options| {
        let options = options.set("grpc.tls_client_ca_file", authority.ca_file().display());
        options.set("credentials_file", file.path().display())
    })
    .await;
    for product in ["veo", "sora"] {
        let line = format!("trigger --product {product} --task-id {product}-1");
        cli(&server, &authority, &line).run().await.good();
    }
    let as_client = |line: &str, issued: &Issued| {
        let line = cli(&server, &authority, line).env(
            "BLOBCAST_TLS_CERTIFICATE_FILE",
            issued.certificate.display(),
        );
        line.env("BLOBCAST_TLS_KEY_FILE", issued.key.display())
    };
    let veo = authority.issue("veo", "veo.internal");
    assert_eq!(
        as_client("events --output json", &veo)
            .run()
            .await
            .each("task_id"),
        ["veo-1"]
    );
    assert!(
        as_client("subscriptions", &veo)
            .run()
            .await
            .exited(1)
            .contains("ADMIN_DENIED")
    );
    let ops = authority.issue("ops", "ops.internal");
    assert_eq!(
        as_client("events --output json", &ops)
            .run()
            .await
            .each("task_id"),
        ["veo-1", "sora-1"]
    );
    as_client("subscriptions", &ops).run().await.good();
    // A token is shown on purpose, and goes before the certificate.
    let both = as_client("events --output json", &ops)
        .env("BLOBCAST_TOKEN", &token)
        .run()
        .await;
    assert_eq!(both.each("task_id"), ["sora-1"]);

    let unknown = authority.issue("unknown", "unknown.internal");
    assert!(unauthenticated(
        as_client("events", &unknown).run().await.exited(1)
    ));
    assert!(
        unauthenticated(cli(&server, &authority, "events").run().await.exited(1)),
        "without any"
    );
    // The right name, by an authority that nobody asked.
    let forged = strangers.issue("veo", "veo.internal");
    let refused = as_client("events", &forged).run().await;
    assert!(
        !refused.exited(1).contains("veo-1") && !refused.stderr.contains("UnknownIssuer"),
        "{refused:?}"
    );
    let [told] = &server
        .logged("the certificate that it shows is not good", 1)
        .await[..]
    else {
        panic!("one line")
    };
    assert!(
        told.contains("grpc.tls_client_ca_file")
            && told.contains("\"cause\":\"client_certificate\""),
        "{told}"
    );
    let [told] = &server.logged("\"cause\":\"unknown_certificate\"", 1).await[..] else {
        panic!("one line")
    };
    assert!(told.contains("call refused"), "{told}");
}

#[tokio::test]
async fn what_is_no_tls_and_what_never_ends_its_handshake_takes_no_place() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| {
        options.set("ingest.connections_max", 2)
    })
    .await;
    for _ in 0..4 {
        let mut plain = TcpStream::connect(server.ingest).await.unwrap();
        plain
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ = within("the end", plain.read_to_end(&mut answer))
            .await
            .is_ok();
        assert!(
            !answer.starts_with(b"HTTP"),
            "it is told in TLS, or not at all"
        );
    }
    let [told] = &server
        .logged("it speaks plain text, and this listener speaks TLS", 1)
        .await[..]
    else {
        panic!("one line")
    };
    assert!(
        told.contains("\"cause\":\"plain_text\"") && told.contains("\"peer\":\"127.0.0.1:"),
        "{told}"
    );
    assert!(connect(server.ingest, &authority, &[]).await.is_ok());
    let silent: Vec<_> = vec![
        TcpStream::connect(server.ingest).await.unwrap(),
        TcpStream::connect(server.ingest).await.unwrap(),
    ];
    until("places to be free again", || async {
        connect(server.ingest, &authority, &[]).await.is_ok()
    })
    .await;
    drop(silent);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_refused_at_the_start() {
    let authority = Authority::new();
    let (one, other) = (
        authority.issue("one", "localhost"),
        authority.issue("other", "localhost"),
    );
    let directory = tempfile::tempdir().unwrap();
    let serve = |certificate: &std::path::Path, key: &std::path::Path| {
        let line = "serve --ingest-listen 127.0.0.1:0 --grpc-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0";
        let serve = Cli::new(line)
            .arg("--data-dir")
            .arg(directory.path().join("data"));
        let serve = serve.env(
            "BLOBCAST_INGEST__TLS_CERTIFICATE_FILE",
            certificate.display(),
        );
        serve.env("BLOBCAST_INGEST__TLS_KEY_FILE", key.display())
    };
    let missing = directory.path().join("missing.pem");
    for (certificate, key, told) in [
        (&missing, &one.key, "missing.pem: No such file"),
        (&one.key, &one.key, "there is no certificate in it"),
        (&one.certificate, &other.key, "one.pem"),
    ] {
        let ran = serve(certificate, key).run().await;
        assert!(
            ran.exited(1).contains("cannot use the certificate") && ran.stderr.contains(told),
            "{ran:?}"
        );
    }
}

#[tokio::test]
async fn what_strangers_send_instead_of_a_handshake_is_counted_and_never_logged() {
    let authority = Authority::new();
    let issued = authority.issue("server", "localhost");
    let mut options = Options::default();
    for listener in ["ingest", "grpc"] {
        options = options.set(
            &format!("{listener}.tls_certificate_file"),
            issued.certificate.display(),
        );
        options = options.set(&format!("{listener}.tls_key_file"), issued.key.display());
    }
    let server = options.start().await;
    // Data, a change of cipher, and the end of a handshake that never began.
    let records: [&[u8]; 3] = [
        b"\x17\x03\x03\x00\x01\x00",
        b"\x14\x03\x03\x00\x01\x01",
        b"\x16\x03\x03\x00\x04\x14\x00\x00\x00",
    ];
    for (listener, address) in [("ingest", server.ingest), ("grpc", server.grpc)] {
        for record in records {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(record).await.unwrap();
            // The rest of the answer is for the sender.
            let _ = within("the end", stream.read_to_end(&mut Vec::new())).await;
        }
        // A probe that only looks whether the port is open is no mistake.
        drop(TcpStream::connect(address).await.unwrap());
        let unused = format!(
            "blobcast_connections_refused_total{{cause=\"unused\",listener=\"{listener}\"}}"
        );
        until("the probe", async || server.metric(&unused).await == 1.0).await;
        let metric = format!(
            "blobcast_connections_refused_total{{cause=\"not_understood\",listener=\"{listener}\"}}"
        );
        until("the refusals", async || server.metric(&metric).await == 3.0).await;
    }
    assert!(!server.log().contains("rustls"), "{}", server.log());
}

/// A broker that knows `ops` and `veo` by their certificates.
async fn of_certificates(
    authority: &Authority,
    more: impl FnOnce(Options) -> Options,
) -> (Server, CredentialsFile) {
    let mut file = CredentialsFile::new();
    file.add_line(
        "clients",
        "ops = { certificate = \"ops.internal\", products = [\"*\"], admin = true }",
    );
    file.add_line(
        "clients",
        "veo = { certificate = \"veo.internal\", products = [\"veo\"] }",
    );
    let issued = authority.issue("server", "localhost");
    let options = Options::default().set("credentials_file", file.path().display());
    let options = options.set("grpc.tls_certificate_file", issued.certificate.display());
    let options = options.set("grpc.tls_key_file", issued.key.display());
    let options = options.set("grpc.tls_client_ca_file", authority.ca_file().display());
    (more(options).start().await, file)
}

/// A client on one connection, which shows a certificate.
fn showing(server: &Server, authority: &str, issued: &Issued) -> EventServiceClient<Channel> {
    let read = |path| fs::read(path).unwrap();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority))
        .identity(Identity::from_pem(
            read(&issued.certificate),
            read(&issued.key),
        ))
        .domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{}", server.grpc))
        .unwrap()
        .tls_config(tls)
        .unwrap();
    EventServiceClient::new(endpoint.connect_lazy())
}

fn is_unauthenticated(status: &Status) -> bool {
    refusal(status) == (Code::Unauthenticated, "TOKEN_INVALID".into())
}

async fn info(client: &EventServiceClient<Channel>) -> Result<(), Status> {
    within(
        "an answer",
        client.clone().get_log_info(GetLogInfoRequest::default()),
    )
    .await
    .map(|_| ())
}

#[tokio::test]
async fn a_certificate_that_expires_ends_what_was_begun_with_it() {
    let authority = Authority::new();
    let ca = fs::read_to_string(authority.ca_file()).unwrap();
    let (server, _file) = of_certificates(&authority, |options| options).await;
    let ops = showing(&server, &ca, &authority.issue("ops", "ops.internal"));
    let mut goes_on = Sub::open(ops.clone(), request()).await.unwrap();
    let (issued, expires) = authority.issue_for("veo", "veo.internal", Duration::from_secs(6));
    let veo = showing(&server, &ca, &issued);
    let mut ends = Sub::open(veo.clone(), request()).await.unwrap();
    ends.until_caught_up().await;
    goes_on.until_caught_up().await;
    info(&veo).await.unwrap();
    let lateness = Lateness::of(&server);

    let (_, status) = ends.end().await.unwrap_err();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(is_unauthenticated(&status), "{status:?}");
    assert!(now.as_secs() > expires, "its last second is over");
    let (over, late) = (now - Duration::from_secs(expires + 1), lateness.so_far());
    assert!(
        over <= ENDS_WITHIN + late,
        "and not for long: {over:?}, of which the machine was {late:?} late"
    );
    assert!(
        is_unauthenticated(&info(&veo).await.unwrap_err()),
        "the same connection"
    );
    info(&ops).await.unwrap();
    server.http().post(&completed("t1")).await;
    goes_on.next_event().await;
}

#[tokio::test]
async fn a_revoked_certificate_ends_what_was_begun_with_it_and_others_go_on() {
    let authority = Authority::new();
    let ca = fs::read_to_string(authority.ca_file()).unwrap();
    let lists = authority.revoke(&[99]);
    let (server, _file) = of_certificates(&authority, |options| {
        options.set("grpc.tls_client_crl_file", lists.display())
    })
    .await;
    let next_update = "blobcast_crl_next_update_timestamp_seconds";
    assert_eq!(server.metric(next_update).await, 4_070_908_800.0);

    let issued = authority.issue_numbered("veo", "veo.internal", 7);
    let (veo, ops) = (
        showing(&server, &ca, &issued),
        showing(
            &server,
            &ca,
            &authority.issue_numbered("ops", "ops.internal", 8),
        ),
    );
    let mut ends = Sub::open(veo.clone(), request()).await.unwrap();
    let mut goes_on = Sub::open(ops.clone(), request()).await.unwrap();
    ends.until_caught_up().await;
    goes_on.until_caught_up().await;

    let lateness = Lateness::of(&server);
    authority.revoke(&[99, 7]);
    ends_in_time(&mut ends, &lateness).await;
    assert!(
        is_unauthenticated(&info(&veo).await.unwrap_err()),
        "the same connection"
    );
    let again = showing(&server, &ca, &issued);
    assert!(info(&again).await.is_err(), "another one");
    info(&ops).await.unwrap();

    // What cannot be used changes nothing.
    replace(&lists, "no list");
    let refused = "blobcast_reloads_total{result=\"refused\",what=\"client_crl\"}";
    let in_force = "blobcast_reload_refused{what=\"client_crl\"}";
    until("the refusal", async || {
        server.metric(refused).await >= 1.0 && server.metric(in_force).await == 1.0
    })
    .await;
    assert_eq!(
        server
            .metric("blobcast_reload_refused{what=\"client_ca\"}")
            .await,
        0.0
    );
    assert!(info(&veo).await.is_err());
    info(&ops).await.unwrap();
    // Who is revoked no more comes in by a new connection.
    authority.revoke(&[]);
    until("it to be let in", async || {
        info(&showing(&server, &ca, &issued)).await.is_ok()
    })
    .await;
    assert_eq!(
        server
            .metric("blobcast_reload_refused{what=\"client_crl\"}")
            .await,
        0.0
    );
    assert!(
        is_unauthenticated(&info(&veo).await.unwrap_err()),
        "what was withdrawn stays so"
    );
    server.http().post(&completed("t1")).await;
    goes_on.next_event().await;
}

#[tokio::test]
async fn an_authority_that_is_trusted_no_more_ends_what_it_has_vouched_for() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = fs::read_to_string(authority.ca_file()).unwrap();
    let others = fs::read_to_string(other.ca_file()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let both = directory.path().join("authorities.pem");
    replace(&both, &format!("{ca}{others}"));
    let (server, _file) = of_certificates(&authority, |options| {
        options.set("grpc.tls_client_ca_file", both.display())
    })
    .await;
    let veo = showing(&server, &ca, &other.issue("veo", "veo.internal"));
    let ops = showing(&server, &ca, &authority.issue("ops", "ops.internal"));
    let mut ends = Sub::open(veo.clone(), request()).await.unwrap();
    ends.until_caught_up().await;
    info(&ops).await.unwrap();

    let lateness = Lateness::of(&server);
    replace(&both, &ca);
    ends_in_time(&mut ends, &lateness).await;
    assert!(is_unauthenticated(&info(&veo).await.unwrap_err()));
    info(&ops).await.unwrap();
}

#[tokio::test]
async fn a_revocation_does_not_wait_for_the_authorities_nor_they_for_the_lists() {
    let authority = Authority::new();
    let ca = fs::read_to_string(authority.ca_file()).unwrap();
    let lists = authority.revoke(&[99]);
    let (server, _file) = of_certificates(&authority, |options| {
        options.set("grpc.tls_client_crl_file", lists.display())
    })
    .await;
    let issued = [("veo", 7), ("ops", 8)]
        .map(|(name, number)| authority.issue_numbered(name, &format!("{name}.internal"), number));
    let [veo, ops] = &issued;
    let refused = async |what: &str| {
        server
            .metric(&format!("blobcast_reload_refused{{what=\"{what}\"}}"))
            .await
    };
    let is_let_in = async |issued: &Issued| info(&showing(&server, &ca, issued)).await.is_ok();
    assert!(is_let_in(veo).await && is_let_in(ops).await);

    replace(&authority.ca_file(), "no authority");
    until("the authorities to be refused", async || {
        refused("client_ca").await == 1.0
    })
    .await;
    authority.revoke(&[99, 7]);
    until("the revocation", async || !is_let_in(veo).await).await;
    assert!(
        is_let_in(ops).await,
        "by the authorities that were good last"
    );
    assert_eq!(
        (refused("client_ca").await, refused("client_crl").await),
        (1.0, 0.0)
    );

    replace(&lists, "no list");
    until("the lists to be refused", async || {
        refused("client_crl").await == 1.0
    })
    .await;
    replace(&authority.ca_file(), &ca);
    until("the authorities", async || {
        refused("client_ca").await == 0.0
    })
    .await;
    assert!(
        is_let_in(ops).await && !is_let_in(veo).await,
        "by the lists that were good last"
    );
    replace(
        &authority.ca_file(),
        &fs::read_to_string(Authority::new().ca_file()).unwrap(),
    );
    until("other authorities", async || !is_let_in(ops).await).await;
    assert_eq!(refused("client_crl").await, 1.0);
}

#[tokio::test]
async fn with_lists_a_certificate_that_is_in_the_scope_of_none_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = fs::read_to_string(authority.ca_file()).unwrap();
    let lists = other.revoke(&[]);
    let (server, _file) = of_certificates(&authority, |options| {
        options.set("grpc.tls_client_crl_file", lists.display())
    })
    .await;
    let ops = showing(&server, &ca, &authority.issue("ops", "ops.internal"));
    assert!(info(&ops).await.is_err());
    let text = fs::read_to_string(&lists).unwrap();
    replace(
        &lists,
        &(text + &fs::read_to_string(authority.revoke(&[])).unwrap()),
    );
    let issued = authority.issue("ops", "ops.internal");
    until("it to be let in", async || {
        info(&showing(&server, &ca, &issued)).await.is_ok()
    })
    .await;
}
