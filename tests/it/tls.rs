//! TLS on the three listeners: who is trusted, what is spoken, certificates that change, and clients that show one.

use std::{
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use blobcast::wire::v1::{GetLogInfoRequest, event_service_client::EventServiceClient};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::support::{
    Authority, Cli, CredentialsFile, Issued, Options, Server, Sub, completed, refusal, replace, request, until, within,
};

/// A broker with TLS on every listener.
async fn secured(authority: &Authority, more: impl FnOnce(Options) -> Options) -> (Server, Issued) {
    let issued = authority.issue("server", "localhost");
    let mut options = Options::default();
    for listener in ["ingest", "grpc", "admin"] {
        options = options.set(&format!("{listener}.tls_certificate_file"), issued.certificate.display());
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

async fn connect(address: SocketAddr, authority: &Authority, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.ca_file()).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    within("the handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
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
    let (server, _) = secured(&authority, |options| options).await;
    until("the banner", || async { server.banner.lock().unwrap().contains("See it:") }).await;
    let banner = server.banner.lock().unwrap().clone();
    assert!(!banner.contains("http://") && !banner.contains("-plaintext"), "{banner}");
    cli(&server, &authority, "trigger --product veo --task-id t1").run().await.good();
    assert_eq!(cli(&server, &authority, "events --output json").run().await.each("task_id"), ["t1"]);
    assert_eq!(cli(&server, &authority, "healthcheck").run().await.good(), "ready\n");
    // Who does not know the authority does not talk to the broker.
    let other = Authority::new();
    for line in ["events", "healthcheck", "trigger --task-id t2"] {
        assert_eq!(cli(&server, &other, line).run().await.code, Some(1), "{line}");
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
        (server.admin, vec![h2, h1], Some(h1)),
    ] {
        let stream = connect(address, &authority, &offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
    }
    for (address, offered) in [(server.grpc, h1), (server.admin, h2), (server.ingest, b"spdy/3")] {
        assert!(connect(address, &authority, &[offered]).await.is_err());
    }
}

#[tokio::test]
async fn a_callback_comes_by_http_2_as_well() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| options.set("ingest.headers_max", 5)).await;
    let stream = connect(server.ingest, &authority, &[b"h2"]).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let mut post = async |headers: usize, body: String| {
        let mut request = hyper::Request::post("https://localhost/webhook/veo");
        for number in 0..headers {
            request = request.header(format!("x-{number}"), "y");
        }
        let request = request.body(http_body_util::Full::new(bytes::Bytes::from(body))).unwrap();
        within("an answer", sender.send_request(request)).await.unwrap().status().as_u16()
    };
    assert_eq!(post(0, completed("t1").to_string()).await, 200);
    assert_eq!(post(4, completed("t1").to_string()).await, 200, "and its content-length");
    assert_eq!(post(5, completed("t1").to_string()).await, 431);
    assert_eq!(post(0, "x".repeat(1024 * 1024 + 1)).await, 413);
    assert_eq!(cli(&server, &authority, "events --output json").run().await.each("task_id"), ["t1"]);
    let mut admin = connect(server.admin, &authority, &[]).await.unwrap();
    admin.write_all(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut metrics = String::new();
    within("the metrics", admin.read_to_string(&mut metrics)).await.unwrap();
    for (outcome, count) in [("accepted", 1), ("duplicate", 1), ("headers_too_large", 1), ("body_too_large", 1)] {
        let line = format!("\nblobcast_callbacks_total{{outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
}

#[tokio::test]
async fn an_http_2_connection_that_asks_nothing_is_closed() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| options.set("ingest.header_timeout", "200ms")).await;
    let mut stream = connect(server.ingest, &authority, &[b"h2"]).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut rest = Vec::new();
    // Its end may be an error: who says nothing is not waited for.
    let _ = within("the connection to be closed", stream.read_to_end(&mut rest)).await.is_ok();
}

#[tokio::test]
async fn a_new_certificate_is_shown_at_once_and_cuts_nobody_off() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| options.set("ingest.header_timeout", "60s")).await;
    let listening = cli(&server, &authority, "listen --output json --from earliest").start();
    listening.says("caught up").await;
    let first = shown(server.ingest, &authority).await;
    let kept = connect(server.ingest, &authority, &[b"http/1.1"]).await.unwrap();

    let issued = authority.issue("server", "localhost");
    for address in [server.ingest, server.grpc, server.admin] {
        until("the new certificate", || async { shown(address, &authority).await != first }).await;
    }
    // What cannot be used changes nothing.
    let second = shown(server.ingest, &authority).await;
    std::fs::write(&issued.certificate, "no certificate").unwrap();
    until("the complaint", || async { server.log().contains("the certificates stay as they were") }).await;
    assert_eq!(shown(server.ingest, &authority).await, second);

    let (mut kept, body) = (kept, completed("t1").to_string());
    let request = format!("POST /webhook/veo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    kept.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    within("the answer", kept.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    listening.prints_lines(1).await;
    assert!(!listening.stderr().contains("connecting again"), "{}", listening.stderr());
}

#[tokio::test]
async fn the_expiry_of_each_certificate_is_a_metric() {
    let authority = Authority::new();
    let issued = authority.issue("server", "localhost");
    let options = Options::default().set("grpc.tls_certificate_file", issued.certificate.display());
    let server = options.set("grpc.tls_key_file", issued.key.display()).start().await;
    let expiry = "blobcast_certificate_expiry_timestamp_seconds{listener=\"grpc\"}";
    assert!(server.metric(expiry).await > 1.7e9);
    assert_eq!(server.metric(&expiry.replace("grpc", "ingest")).await, 0.0, "it has none");
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let mut file = CredentialsFile::new();
    file.add_line("clients", "veo = { certificate = \"veo.internal\", products = [\"veo\"] }");
    file.add_line("clients", "ops = { certificate = \"common ops.internal\", products = [\"*\"], admin = true }");
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
        let line = cli(&server, &authority, line).env("BLOBCAST_TLS_CERTIFICATE_FILE", issued.certificate.display());
        line.env("BLOBCAST_TLS_KEY_FILE", issued.key.display())
    };
    let veo = authority.issue("veo", "veo.internal");
    assert_eq!(as_client("events --output json", &veo).run().await.each("task_id"), ["veo-1"]);
    assert!(as_client("subscriptions", &veo).run().await.exited(1).contains("ADMIN_DENIED"));
    let ops = authority.issue("ops", "ops.internal");
    assert_eq!(as_client("events --output json", &ops).run().await.each("task_id"), ["veo-1", "sora-1"]);
    as_client("subscriptions", &ops).run().await.good();
    // A token is shown on purpose, and goes before the certificate.
    let both = as_client("events --output json", &ops).env("BLOBCAST_TOKEN", &token).run().await;
    assert_eq!(both.each("task_id"), ["sora-1"]);

    let unknown = authority.issue("unknown", "unknown.internal");
    assert!(unauthenticated(as_client("events", &unknown).run().await.exited(1)));
    assert!(unauthenticated(cli(&server, &authority, "events").run().await.exited(1)), "without any");
    // The right name, by an authority that nobody asked.
    let forged = strangers.issue("veo", "veo.internal");
    let refused = as_client("events", &forged).run().await;
    assert!(!refused.exited(1).contains("veo-1"));
}

#[tokio::test]
async fn what_is_no_tls_and_what_never_ends_its_handshake_takes_no_place() {
    let authority = Authority::new();
    let (server, _) = secured(&authority, |options| options.set("ingest.connections_max", 2)).await;
    for _ in 0..4 {
        let mut plain = TcpStream::connect(server.ingest).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = within("the end", plain.read_to_end(&mut answer)).await.is_ok();
        assert!(!answer.starts_with(b"HTTP"), "it is told in TLS, or not at all");
    }
    assert!(connect(server.ingest, &authority, &[]).await.is_ok());
    let silent: Vec<_> =
        vec![TcpStream::connect(server.ingest).await.unwrap(), TcpStream::connect(server.ingest).await.unwrap()];
    until("places to be free again", || async { connect(server.ingest, &authority, &[]).await.is_ok() }).await;
    drop(silent);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_refused_at_the_start() {
    let authority = Authority::new();
    let (one, other) = (authority.issue("one", "localhost"), authority.issue("other", "localhost"));
    let directory = tempfile::tempdir().unwrap();
    let serve = |certificate: &std::path::Path, key: &std::path::Path| {
        let line = "serve --ingest-listen 127.0.0.1:0 --grpc-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0";
        let serve = Cli::new(line).arg("--data-dir").arg(directory.path().join("data"));
        let serve = serve.env("BLOBCAST_INGEST__TLS_CERTIFICATE_FILE", certificate.display());
        serve.env("BLOBCAST_INGEST__TLS_KEY_FILE", key.display())
    };
    let missing = directory.path().join("missing.pem");
    for (certificate, key, told) in [
        (&missing, &one.key, "missing.pem: No such file"),
        (&one.key, &one.key, "there is no certificate in it"),
        (&one.certificate, &other.key, "one.pem"),
    ] {
        let ran = serve(certificate, key).run().await;
        assert!(ran.exited(1).contains("cannot use the certificate") && ran.stderr.contains(told), "{ran:?}");
    }
}

#[tokio::test]
async fn what_strangers_send_instead_of_a_handshake_is_counted_and_never_logged() {
    let authority = Authority::new();
    let issued = authority.issue("server", "localhost");
    let mut options = Options::default();
    for listener in ["ingest", "grpc"] {
        options = options.set(&format!("{listener}.tls_certificate_file"), issued.certificate.display());
        options = options.set(&format!("{listener}.tls_key_file"), issued.key.display());
    }
    let server = options.start().await;
    // Data, a change of cipher, and the end of a handshake that never began.
    let records: [&[u8]; 3] =
        [b"\x17\x03\x03\x00\x01\x00", b"\x14\x03\x03\x00\x01\x01", b"\x16\x03\x03\x00\x04\x14\x00\x00\x00"];
    for (listener, address) in [("ingest", server.ingest), ("grpc", server.grpc)] {
        for record in records {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(record).await.unwrap();
            // What else is said about it goes to whoever has sent it.
            let _ = within("the end", stream.read_to_end(&mut Vec::new())).await;
        }
        let metric = format!("blobcast_connections_refused_total{{cause=\"not_understood\",listener=\"{listener}\"}}");
        until("the refusals", async || server.metric(&metric).await == 3.0).await;
    }
    assert!(!server.log().contains("rustls"), "{}", server.log());
}

/// A broker that knows `ops` and `veo` by their certificates.
async fn of_certificates(authority: &Authority, more: impl FnOnce(Options) -> Options) -> (Server, CredentialsFile) {
    let mut file = CredentialsFile::new();
    file.add_line("clients", "ops = { certificate = \"ops.internal\", products = [\"*\"], admin = true }");
    file.add_line("clients", "veo = { certificate = \"veo.internal\", products = [\"veo\"] }");
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
        .identity(Identity::from_pem(read(&issued.certificate), read(&issued.key)))
        .domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{}", server.grpc)).unwrap().tls_config(tls).unwrap();
    EventServiceClient::new(endpoint.connect_lazy())
}

fn is_unauthenticated(status: &Status) -> bool {
    refusal(status) == (Code::Unauthenticated, "TOKEN_INVALID".into())
}

async fn info(client: &EventServiceClient<Channel>) -> Result<(), Status> {
    within("an answer", client.clone().get_log_info(GetLogInfoRequest {})).await.map(|_| ())
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

    let (_, status) = ends.end().await.unwrap_err();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(is_unauthenticated(&status), "{status:?}");
    assert!(now.as_secs() > expires, "its last second is over");
    assert!(now < Duration::from_secs(expires + 1) + Duration::from_secs(5), "and not for long: {now:?}");
    assert!(is_unauthenticated(&info(&veo).await.unwrap_err()), "the same connection");
    info(&ops).await.unwrap();
    server.http().post(&completed("t1")).await;
    goes_on.next_event().await;
}

#[tokio::test]
async fn a_revoked_certificate_ends_what_was_begun_with_it_and_others_go_on() {
    let authority = Authority::new();
    let ca = fs::read_to_string(authority.ca_file()).unwrap();
    let lists = authority.revoke(&[99]);
    let (server, _file) =
        of_certificates(&authority, |options| options.set("grpc.tls_client_crl_file", lists.display())).await;
    let next_update = "blobcast_crl_next_update_timestamp_seconds";
    assert_eq!(server.metric(next_update).await, 4_070_908_800.0);

    let issued = authority.issue_numbered("veo", "veo.internal", 7);
    let (veo, ops) =
        (showing(&server, &ca, &issued), showing(&server, &ca, &authority.issue_numbered("ops", "ops.internal", 8)));
    let mut ends = Sub::open(veo.clone(), request()).await.unwrap();
    let mut goes_on = Sub::open(ops.clone(), request()).await.unwrap();
    ends.until_caught_up().await;
    goes_on.until_caught_up().await;

    authority.revoke(&[99, 7]);
    let (_, status) = ends.end().await.unwrap_err();
    assert!(is_unauthenticated(&status), "{status:?}");
    assert!(is_unauthenticated(&info(&veo).await.unwrap_err()), "the same connection");
    let again = showing(&server, &ca, &issued);
    assert!(info(&again).await.is_err(), "another one");
    info(&ops).await.unwrap();

    // What cannot be used changes nothing.
    replace(&lists, "no list");
    let refused = "blobcast_reloads_total{result=\"refused\",what=\"certificates\"}";
    until("the refusal", async || server.metric(refused).await >= 1.0).await;
    assert!(info(&veo).await.is_err());
    info(&ops).await.unwrap();
    // Who is revoked no more comes in by a new connection.
    authority.revoke(&[]);
    until("it to be let in", async || info(&showing(&server, &ca, &issued)).await.is_ok()).await;
    assert!(is_unauthenticated(&info(&veo).await.unwrap_err()), "what was withdrawn stays so");
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
    let (server, _file) =
        of_certificates(&authority, |options| options.set("grpc.tls_client_ca_file", both.display())).await;
    let veo = showing(&server, &ca, &other.issue("veo", "veo.internal"));
    let ops = showing(&server, &ca, &authority.issue("ops", "ops.internal"));
    let mut ends = Sub::open(veo.clone(), request()).await.unwrap();
    ends.until_caught_up().await;
    info(&ops).await.unwrap();

    replace(&both, &ca);
    let (_, status) = ends.end().await.unwrap_err();
    assert!(is_unauthenticated(&status), "{status:?}");
    assert!(is_unauthenticated(&info(&veo).await.unwrap_err()));
    info(&ops).await.unwrap();
}

#[tokio::test]
async fn with_lists_a_certificate_that_is_in_the_scope_of_none_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = fs::read_to_string(authority.ca_file()).unwrap();
    let lists = other.revoke(&[]);
    let (server, _file) =
        of_certificates(&authority, |options| options.set("grpc.tls_client_crl_file", lists.display())).await;
    let ops = showing(&server, &ca, &authority.issue("ops", "ops.internal"));
    assert!(info(&ops).await.is_err());
    let text = fs::read_to_string(&lists).unwrap();
    replace(&lists, &(text + &fs::read_to_string(authority.revoke(&[])).unwrap()));
    let issued = authority.issue("ops", "ops.internal");
    until("it to be let in", async || info(&showing(&server, &ca, &issued)).await.is_ok()).await;
}
