//! What a node finds before it starts: servers, their settings, permissions, and the stream.

use blobcast::nats::{Nats, NatsError, Settings, Sync, Synced};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{NatsOptions, NatsServer, nats_settings};

async fn server(options: NatsOptions) -> Option<[NatsServer; 1]> {
    Some([NatsServer::start(options).await?])
}

/// What is said when a node cannot start.
async fn refusal(settings: Settings) -> String {
    let started = match Nats::connect(settings).await {
        Ok(mut nats) => nats.stream().await.map(|_| ()),
        Err(error) => Err(error),
    };
    started.expect_err("it must not start").to_string()
}

#[tokio::test]
async fn the_stream_is_made_once_and_adopted_after_that() {
    let Some(servers) = server(NatsOptions::default()).await else {
        return;
    };
    let mut nats = Nats::connect(nats_settings(&servers)).await.unwrap();
    assert_eq!(nats.synced(), Synced::Shown);
    let made = nats.stream().await.unwrap();
    assert_eq!((made.first, made.last, made.format), (0, 0, 1));
    assert_eq!((made.bytes_max, made.replicas), (64 << 20, 1));

    let mut other = Nats::connect(nats_settings(&servers)).await.unwrap();
    assert_eq!(other.stream().await.unwrap(), made);

    let info = servers[0]
        .api("STREAM.INFO.BLOBCAST_main", &Value::Null)
        .await;
    let config = &info["config"];
    assert_eq!(config["subjects"], json!(["blobcast.main.log"]));
    for (key, value) in [
        ("retention", json!("limits")),
        ("storage", json!("file")),
        ("discard", json!("new")),
        ("max_age", json!(0)),
        ("deny_delete", json!(true)),
        ("allow_direct", json!(true)),
        ("compression", json!("none")),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let epoch = &config["metadata"]["blobcast-epoch"];
    assert_eq!(epoch, &json!(made.epoch.0.to_string()));
}

#[tokio::test]
async fn two_that_make_the_stream_at_once_have_the_same_one() {
    let Some(servers) = server(NatsOptions::default()).await else {
        return;
    };
    let connect = async || Nats::connect(nats_settings(&servers)).await.unwrap();
    let (mut one, mut other) = (connect().await, connect().await);
    let (one, other) = tokio::join!(one.stream(), other.stream());
    assert_eq!(one.unwrap(), other.unwrap());
}

#[tokio::test]
async fn a_stream_that_is_set_otherwise_is_refused_with_what_to_change() {
    let Some(servers) = server(NatsOptions::default()).await else {
        return;
    };
    let settings = nats_settings(&servers);
    let missing = Settings {
        create: false,
        ..settings.clone()
    };
    assert!(refusal(missing).await.contains("cluster.create is false"));
    Nats::connect(settings.clone())
        .await
        .unwrap()
        .stream()
        .await
        .unwrap();

    let smaller = Settings {
        stream_bytes_max: 1 << 20,
        ..settings.clone()
    };
    let said = refusal(smaller).await;
    assert!(
        said.contains("--max-bytes=1048576")
            && said.contains("cluster.stream_bytes_max to \"67108864\""),
        "{said}"
    );

    let made = servers[0]
        .api("STREAM.INFO.BLOBCAST_main", &Value::Null)
        .await;
    let mut config = made["config"].clone();
    config["max_age"] = json!(3_600_000_000_000_u64);
    let updated = servers[0].api("STREAM.UPDATE.BLOBCAST_main", &config).await;
    assert!(updated.get("error").is_none(), "{updated}");
    let said = refusal(settings).await;
    assert!(
        said.contains("max_age = 3600000000000, and 0 is needed"),
        "{said}"
    );
}

#[tokio::test]
async fn a_stream_of_somebody_else_is_refused() {
    let Some(servers) = server(NatsOptions::default()).await else {
        return;
    };
    let foreign = json!({ "name": "BLOBCAST_main", "subjects": ["blobcast.main.log"] });
    servers[0]
        .api("STREAM.CREATE.BLOBCAST_main", &foreign)
        .await;
    let said = refusal(nats_settings(&servers)).await;
    assert!(
        said.contains("it was not made by a blobcast cluster"),
        "{said}"
    );

    let overlapping = json!({ "name": "other", "subjects": ["blobcast.second.>"] });
    servers[0].api("STREAM.CREATE.other", &overlapping).await;
    let second = Settings {
        name: "second".to_owned(),
        ..nats_settings(&servers)
    };
    let said = refusal(second).await;
    assert!(said.contains("another stream has its subject"), "{said}");
}

#[tokio::test]
async fn more_replicas_than_servers_are_refused() {
    let Some(servers) = server(NatsOptions::default()).await else {
        return;
    };
    let settings = Settings {
        replicas: 3,
        sync: Sync::Off,
        ..nats_settings(&servers)
    };
    let said = refusal(settings).await;
    assert!(said.contains("cluster.replicas"), "{said}");
}

#[tokio::test]
async fn a_server_that_takes_too_small_messages_is_refused() {
    let options = NatsOptions {
        max_payload: 1 << 20,
        ..NatsOptions::default()
    };
    let Some(servers) = server(options).await else {
        return;
    };
    let said = refusal(nats_settings(&servers)).await;
    assert!(
        said.contains("1048576 bytes, and 2097152 are needed") && said.contains("max_payload"),
        "{said}"
    );
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    let options = NatsOptions {
        jetstream: false,
        ..NatsOptions::default()
    };
    let Some(servers) = server(options).await else {
        return;
    };
    let error = Nats::connect(nats_settings(&servers)).await.unwrap_err();
    assert!(matches!(error, NatsError::NoJetStream(_)), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_sync_is_refused_or_worth_a_warning() {
    let options = NatsOptions {
        syncs: false,
        ..NatsOptions::default()
    };
    let Some(servers) = server(options).await else {
        return;
    };
    let settings = nats_settings(&servers);
    let error = Nats::connect(settings.clone()).await.unwrap_err();
    assert!(matches!(error, NatsError::NotSynced { .. }), "{error}");

    let unasked = Settings {
        monitoring_urls: Vec::new(),
        ..settings.clone()
    };
    let error = Nats::connect(unasked).await.unwrap_err();
    assert!(matches!(error, NatsError::SyncUnknown(_)), "{error}");

    let warned = Settings {
        sync: Sync::Warn,
        ..settings
    };
    let nats = Nats::connect(warned).await.unwrap();
    assert_eq!(nats.synced(), Synced::NotShown);
}

#[tokio::test]
async fn a_missing_permission_and_a_wrong_password_are_named() {
    let options = NatsOptions {
        more: r#"authorization { users: [
            { user: "all", password: "right" }
            { user: "some", password: "right", permissions: { publish: { deny: "$JS.FC.>" } } }
            { user: "deaf", password: "right", permissions: { subscribe: { deny: "blobcast.main.nodes.>" } } }
        ] }"#
            .to_owned(),
        ..NatsOptions::default()
    };
    let Some(servers) = server(options).await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let password_file = directory.path().join("password");
    std::fs::write(&password_file, "right\n").unwrap();
    let user = |user: &str| Settings {
        user: user.to_owned(),
        password_file: Some(password_file.clone()),
        ..nats_settings(&servers)
    };
    Nats::connect(user("all")).await.unwrap();
    let said = refusal(user("some")).await;
    assert!(said.contains("publish to \"$JS.FC.BLOBCAST_main"), "{said}");
    let said = refusal(user("deaf")).await;
    assert!(
        said.contains("subscribe to \"blobcast.main.nodes.*\""),
        "{said}"
    );

    std::fs::write(&password_file, "wrong\n").unwrap();
    let error = Nats::connect(user("all")).await.unwrap_err();
    assert!(matches!(error, NatsError::Login(_)), "{error}");
    let missing = Settings {
        password_file: Some(directory.path().join("none")),
        ..user("all")
    };
    let error = Nats::connect(missing).await.unwrap_err();
    assert!(matches!(error, NatsError::File { .. }), "{error}");
}

#[tokio::test]
async fn an_old_server_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let old = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let info =
            r#"INFO {"server_name":"old","version":"2.13.9","max_payload":8388608,"headers":true}"#;
        stream
            .write_all(format!("{info}\r\n").as_bytes())
            .await
            .unwrap();
        let mut asked = Vec::new();
        while !asked.windows(4).any(|it| it == b"PING") {
            assert!(stream.read_buf(&mut asked).await.unwrap() > 0);
        }
        stream.write_all(b"PONG\r\n").await.unwrap();
        // Open until the client has seen it.
        while stream.read_buf(&mut asked).await.unwrap() > 0 {}
    });
    let settings = Settings {
        servers: vec![format!("nats://{address}")],
        ..nats_settings(&[])
    };
    let said = refusal(settings).await;
    assert!(
        said.contains("version 2.13.9, and 2.14.0 or newer"),
        "{said}"
    );
    old.await.unwrap();
}

#[tokio::test]
async fn servers_that_are_none_are_named() {
    let free = crate::support::free_address();
    let with = |server: &str| Settings {
        servers: vec![server.to_owned()],
        ..nats_settings(&[])
    };
    let said = refusal(with(&format!("nats://{free}"))).await;
    assert!(said.contains("could be reached"), "{said}");
    let said = refusal(with("http://127.0.0.1")).await;
    assert!(
        said.contains("\"http://127.0.0.1\" in cluster.servers"),
        "{said}"
    );
    assert!(
        refusal(nats_settings(&[]))
            .await
            .contains("cluster.servers is empty")
    );
    let named = Settings {
        name: "a.b".to_owned(),
        ..with("nats://127.0.0.1")
    };
    assert!(refusal(named).await.contains("cluster.name \"a.b\""));
}
