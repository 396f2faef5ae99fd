//! TLS between nodes and NATS: both sides show certificates, and an error says what is wrong with one.

use std::fs;

use blobcast::nats::{Nats, Settings};

use crate::support::{
    Authority, Issued, NatsOptions, NatsServer, Options, completed, nats_settings, request,
};

/// A server that asks nodes for a certificate of the authority, and has one for `localhost`.
async fn server(authority: &Authority) -> Option<NatsServer> {
    let served = authority.issue("server", "localhost");
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        served.certificate,
        served.key,
        authority.ca_file()
    );
    let options = NatsOptions {
        more: tls,
        ..NatsOptions::default()
    };
    NatsServer::start(options).await
}

fn url(nats: &NatsServer) -> String {
    format!("tls://localhost:{}", nats.client.port())
}

fn node(nats: &NatsServer, authority: &Authority, own: &Issued) -> Options {
    nats.node("a")
        .set("cluster.servers", url(nats))
        .set("cluster.tls_ca_file", authority.ca_file().display())
        .set("cluster.tls_certificate_file", own.certificate.display())
        .set("cluster.tls_key_file", own.key.display())
}

#[tokio::test]
async fn a_node_and_its_servers_show_each_other_certificates_and_new_ones_count_at_the_next_connection()
 {
    let authority = Authority::new();
    let Some(mut nats) = server(&authority).await else {
        return;
    };
    let own = authority.issue("node", "node.example");
    let node = node(&nats, &authority, &own).start().await;
    node.ready().await;
    let mut sub = node.subscribe(request()).await;
    node.http().post(&completed("t1")).await.event_id();
    assert_eq!(sub.next_event().await.task_id, "t1");

    // From now on everybody's certificates are of another authority.
    let next = Authority::new();
    next.issue("server", "localhost");
    next.issue("node", "node.example");
    let directory = |authority: &Authority| authority.ca_file().parent().unwrap().to_owned();
    let (from, to) = (directory(&next), directory(&authority));
    for file in ["ca.pem", "server.pem", "server.key", "node.pem", "node.key"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    nats.kill();
    nats.run();
    node.ready().await;
    node.http().post(&completed("t2")).await.event_id();
    assert_eq!(sub.next_event().await.task_id, "t2");
}

#[track_caller]
fn said_well(said: &str, words: &str) {
    assert!(said.contains(words), "{said}");
}

#[tokio::test]
async fn an_error_says_what_is_wrong_with_a_certificate() {
    let authority = Authority::new();
    let Some(nats) = server(&authority).await else {
        return;
    };
    let own = authority.issue("node", "node.example");
    let right = Settings {
        servers: vec![url(&nats)],
        tls_ca_file: Some(authority.ca_file()),
        tls_certificate_file: Some(own.certificate),
        tls_key_file: Some(own.key),
        ..nats_settings(std::slice::from_ref(&nats))
    };
    Nats::connect(right.clone()).await.unwrap();

    let said = async |settings: Settings| Nats::connect(settings).await.unwrap_err().to_string();
    let other = Authority::new();
    let stranger = said(Settings {
        tls_ca_file: Some(other.ca_file()),
        ..right.clone()
    });
    said_well(&stranger.await, "set cluster.tls_ca_file");
    let nobody = said(Settings {
        tls_certificate_file: None,
        tls_key_file: None,
        ..right.clone()
    });
    said_well(&nobody.await, "CertificateRequired");
    let elsewhere = said(Settings {
        servers: vec![format!("tls://127.0.0.1:{}", nats.client.port())],
        ..right.clone()
    });
    said_well(&elsewhere.await, "not valid for name");
    let missing = said(Settings {
        tls_ca_file: Some("/nowhere/ca.pem".into()),
        ..right
    });
    said_well(&missing.await, "/nowhere/ca.pem");
}
