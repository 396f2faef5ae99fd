//! `listen --forward-to`: the request that an endpoint gets for an event, retries, and the notes
//! that are printed.

use std::time::{Duration, Instant};

use crate::support::{Authority, Cli, Endpoint, Options, Server, completed, free_address};

#[tokio::test]
async fn forward_to_posts_each_original_body_in_order_and_tries_again_until_it_is_taken() {
    let server = Server::start().await;
    let bodies: Vec<_> = (0..4)
        .map(|n| format!(" {}\n", completed(&format!("t{n}"))))
        .collect();
    for body in &bodies {
        server
            .http()
            .post_to("/webhook/veo", body.clone())
            .await
            .event_id();
    }
    let (endpoint, address) = (Endpoint::answering(&[200, 500, 503, 422]), free_address());
    let line = format!(
        "listen --from earliest --count 4 --output json --forward-to http://{address}/hook"
    );
    let listen = server.cli(&line).start();
    // Nobody listens there yet.
    listen
        .says(&format!("cannot forward t0 to http://{address}/hook: "))
        .await;
    assert!(
        listen.stderr().contains("same event again in "),
        "{}",
        listen.stderr()
    );
    endpoint.open(address).await;
    let ran = listen.ended().await;
    // Taken, failed twice and taken, refused, taken.
    let expected = [0, 1, 1, 1, 2, 3].map(|number| bodies[number].clone());
    assert_eq!(endpoint.bodies(), expected);
    assert_eq!(ran.each("task_id"), ["t0", "t1", "t2", "t3"]);
    assert!(
        ran.json_lines()
            .iter()
            .all(|event| event.get("raw_body").is_none()),
        "asked for by nobody"
    );
    for said in [
        "forwarded t0: 200 OK in ",
        "cannot forward t1 to ",
        ": 500 Internal Server Error in ",
    ] {
        assert!(ran.stderr.contains(said), "no `{said}` in {}", ran.stderr);
    }
    let log = server.log_of_events().await;
    let (_, headers, _) = &endpoint.seen.lock().unwrap()[0];
    for (name, value) in [
        ("content-type", "application/json"),
        ("x-blobcast-event-id", &log[0].event_id),
        ("x-blobcast-cursor", &log[0].cursor),
        ("x-blobcast-product", "veo"),
        ("x-blobcast-task-id", "t0"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
}

#[tokio::test]
async fn forward_to_repeats_after_a_break_only_what_was_not_taken() {
    let mut server = Server::start().await;
    let (endpoint, address) = (Endpoint::default(), free_address());
    endpoint.open(address).await;
    let listen = server
        .cli(&format!(
            "listen --from earliest --forward-to {address}/hook"
        ))
        .start();
    for round in 0..3 {
        server
            .http()
            .post(&completed(&format!("t{round}")))
            .await
            .event_id();
        listen.prints_lines(round + 1).await;
        server.crash().await;
    }
    server.http().post(&completed("t3")).await.event_id();
    listen.prints_lines(4).await;
    assert_eq!(
        endpoint.bodies(),
        (0..4)
            .map(|n| completed(&format!("t{n}")).to_string())
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn forward_to_carries_the_labels_a_signature_and_who_it_is() {
    let server = Server::start().await;
    let body = completed("t1").to_string();
    server
        .http()
        .post_to("/webhook/veo?team=ads%26co&ref=42", body.clone())
        .await
        .event_id();
    server
        .http()
        .post_to("/webhook/veo", completed("t2").to_string())
        .await
        .event_id();
    let (endpoint, address) = Endpoint::default().opened().await;
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "hunter2\n").unwrap();
    let url = format!("http://us%3Aer:p%40ss@{address}/hook?token=a1b2c3");
    let line = format!(
        "listen --from earliest --count 2 --forward-to {url} --forward-secret-file {}",
        secret.display()
    );
    let ran = server.cli(&line).run().await;
    ran.good();

    let first = "/hook?token=a1b2c3&ref=42&team=ads%26co";
    assert_eq!(endpoint.targets(), [first, "/hook?token=a1b2c3"]);
    assert_eq!(
        endpoint.header("x-blobcast-labels"),
        ["ref=42&team=ads%26co", ""]
    );
    // `us:er` and `p@ss`, in Base64.
    assert_eq!(
        endpoint.header("authorization"),
        ["Basic dXM6ZXI6cEBzcw=="; 2]
    );
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"hunter2");
    let tag: String = ring::hmac::sign(&key, body.as_bytes())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(endpoint.header("x-runblob-signature")[0], tag);
    for secret in ["ss@", "p%40ss", "a1b2c3", "us%3Aer"] {
        assert!(
            !ran.stderr.contains(secret) && !ran.stdout.contains(secret),
            "{secret} in {ran:?}"
        );
    }
}

#[tokio::test]
async fn forward_to_prints_no_password_where_it_fails() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    let nowhere = free_address();
    let listen = server
        .cli(&format!(
            "listen --from earliest --forward-to http://user:hunter2@{nowhere}/hook"
        ))
        .start();
    listen
        .says(&format!("cannot forward t1 to http://{nowhere}/hook: "))
        .await;
    assert!(!listen.stderr().contains("hunter2"), "{}", listen.stderr());
    for url in [
        "ftp://user:hunter2@example.com",
        "http://user:hunter2@@",
        "http://user:hunter2@/hook",
    ] {
        let ran = server
            .cli(&format!("listen --forward-to {url}"))
            .run()
            .await;
        assert!(
            ran.exited(2).starts_with("error: --forward-to: not a"),
            "{ran:?}"
        );
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
}

#[tokio::test]
async fn forward_to_waits_as_long_as_it_is_asked_to() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    let later = Some(("retry-after", "1"));
    let answers = [
        (408, None),
        (425, None),
        (429, later),
        (503, later),
        (200, None),
    ];
    let (endpoint, address) = Endpoint::answering_with(&answers).opened().await;
    let began = Instant::now();
    let ran = server
        .cli(&format!(
            "listen --from earliest --count 1 --forward-to http://{address}"
        ))
        .run()
        .await;
    ran.good();
    assert_eq!(endpoint.targets(), ["/"; 5]);
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "it came back too early: {ran:?}"
    );
    for said in [
        "408 Request Timeout",
        "425 Too Early",
        "429 Too Many Requests",
        "503 Service Unavailable",
    ] {
        assert!(
            ran.stderr.contains(&format!(
                "cannot forward t1 to http://{address}/: {said} in "
            )),
            "{ran:?}"
        );
    }
}

#[tokio::test]
async fn forward_to_follows_its_endpoint_to_another_path_and_to_no_other_host() {
    let server = Server::start().await;
    for task in ["t1", "t2", "t3"] {
        server
            .http()
            .post_to("/webhook/veo?team=ads", completed(task).to_string())
            .await
            .event_id();
    }
    let elsewhere = format!("http://{}/hook", free_address());
    let to = |target| Some(("location", target));
    let answers = [
        (307, to("/new?team=ads")),
        (308, to("other")),
        (204, None),
        (307, to(&*elsewhere)),
        (302, to("/login")),
    ];
    let (endpoint, address) = Endpoint::answering_with(&answers).opened().await;
    let line =
        format!("listen --from earliest --count 3 --forward-to http://user:pass@{address}/a/hook");
    let ran = server.cli(&line).run().await;
    ran.good();
    let expected = [
        "/a/hook?team=ads",
        "/new?team=ads",
        "/other",
        "/a/hook?team=ads",
        "/a/hook?team=ads",
    ];
    assert_eq!(endpoint.targets(), expected);
    assert_eq!(
        endpoint.bodies(),
        ["t1", "t1", "t1", "t2", "t3"].map(|task| completed(task).to_string())
    );
    assert!(
        endpoint
            .header("authorization")
            .iter()
            .all(|header| header == "Basic dXNlcjpwYXNz")
    );
    let said =
        format!("refused t2: 307 Temporary Redirect to {elsewhere}, which is not followed, in ");
    assert!(
        ran.stderr.contains(&said) && ran.stderr.contains("refused t3: 302 Found"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn forward_to_a_server_that_is_not_trusted_tells_what_to_do_about_it() {
    let (server, authority) = (Server::start().await, Authority::new());
    server.http().post(&completed("t1")).await.event_id();
    // Another broker is an endpoint like any other, with TLS.
    let issued = authority.issue("server", "localhost");
    let secured = Options::default()
        .set("ingest.tls_certificate_file", issued.certificate.display())
        .set("ingest.tls_key_file", issued.key.display())
        .set("grpc.tls_certificate_file", issued.certificate.display())
        .set("grpc.tls_key_file", issued.key.display());
    let endpoint = secured.start().await;
    let url = format!("https://localhost:{}/webhook/veo", endpoint.ingest.port());
    let line = format!("listen --from earliest --count 1 --forward-to {url}");

    let listen = server
        .cli(&line)
        .env("SSL_CERT_FILE", Authority::new().ca_file().display())
        .start();
    listen
        .says("an authority that is not trusted here; to trust that server, set SSL_CERT_FILE to ")
        .await;
    let trusting = |line: &str| {
        server
            .cli(line)
            .env("SSL_CERT_FILE", authority.ca_file().display())
    };
    assert!(
        trusting(&line)
            .run()
            .await
            .stderr
            .contains("forwarded t1: 200 OK in ")
    );

    // The same words wherever a certificate stands between.
    let grpc = format!("--grpc-url https://localhost:{}", endpoint.grpc.port());
    for line in [
        format!("events {grpc}"),
        format!("trigger --ingest-url {url}"),
    ] {
        let ran = Cli::new(&line)
            .env("SSL_CERT_FILE", Authority::new().ca_file().display())
            .run()
            .await;
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(
            said.contains("to trust that server, set SSL_CERT_FILE to "),
            "{line}: {ran:?}"
        );
        let wrong_name = line.replace("localhost", "127.0.0.1");
        let ran = Cli::new(&wrong_name)
            .env("SSL_CERT_FILE", authority.ca_file().display())
            .run()
            .await;
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(
            said.contains("; use a name that its certificate covers"),
            "{wrong_name}: {ran:?}"
        );
    }
}
