//! The console below `/ui/` of the admin listener: its files, logins, and calls, as a browser makes them.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Answer, CredentialsFile, Http, Options, Server, completed, until, within};

const JSON: (&str, &str) = ("content-type", "application/json");
const OWN: (&str, &str) = ("sec-fetch-site", "same-origin");

async fn ask(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", server.admin));
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let request = request.body(Full::new(body.into())).unwrap();
    Http::new(server.admin).send(request).await.unwrap()
}

async fn call(server: &Server, rpc: &str, cookie: Option<&str>) -> Answer {
    let mut headers = vec![JSON, OWN];
    headers.extend(cookie.map(|cookie| ("cookie", cookie)));
    ask(server, "POST", &format!("/ui/v1/{rpc}"), &headers, "{}").await
}

/// How a call with these headers is answered.
async fn status(server: &Server, headers: &[(&str, &str)]) -> u16 {
    ask(server, "POST", "/ui/v1/GetLogInfo", headers, "{}")
        .await
        .status
}

/// How history is answered to the browser with a cookie.
async fn events(server: &Server, cookie: &str) -> Answer {
    ask(
        server,
        "GET",
        "/ui/v1/events",
        &[OWN, ("cookie", cookie)],
        "",
    )
    .await
}

/// The whole answer as text: status line, headers and body.
async fn text(server: &Server, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(server.admin).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\n{header}connection: close\r\n\r\n",
        server.admin
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    answer
}

async fn log_in(server: &Server, proof: Value) -> Result<String, u16> {
    let answer = ask(
        server,
        "POST",
        "/ui/session",
        &[JSON, OWN],
        proof.to_string(),
    )
    .await;
    if answer.status != 204 {
        return Err(answer.status);
    }
    let cookie = answer.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict"), "{cookie}");
    Ok(cookie.split(';').next().unwrap().to_owned())
}

async fn guarded() -> (CredentialsFile, Server, String, String) {
    let mut file = CredentialsFile::new();
    let team = file.add("client team --product veo").await;
    let ops = file.add("client ops --all-products --admin").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    (file, server, team, ops)
}

#[tokio::test]
async fn the_page_and_its_files_are_part_of_the_broker_and_asked_for_again_by_their_tag() {
    let server = Server::start().await;
    let page = text(&server, "/ui/", "").await;
    let head = page.to_lowercase();
    assert!(
        page.starts_with("HTTP/1.1 200") && page.contains("app.js"),
        "{page}"
    );
    for wanted in [
        "content-type: text/html; charset=utf-8",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' https:; media-src https:; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        "referrer-policy: no-referrer",
        "x-content-type-options: nosniff",
        "cross-origin-opener-policy: same-origin",
        "cross-origin-resource-policy: same-origin",
        "cache-control: no-cache",
    ] {
        assert!(head.contains(wanted), "no {wanted} in {page}");
    }

    let tag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .unwrap();
    let tag = page
        .lines()
        .find(|line| line.to_lowercase().contains(&tag.trim().to_lowercase()))
        .unwrap();
    let tag = tag.split_once(": ").unwrap().1.trim();
    let again = text(&server, "/ui/", &format!("if-none-match: {tag}\r\n")).await;
    assert!(again.starts_with("HTTP/1.1 304"), "{again}");

    let script = text(&server, "/ui/pages/live.js", "").await;
    assert!(
        script.contains("text/javascript") && !script.contains("no-store"),
        "{script:.200}"
    );
    assert!(
        text(&server, "/ui/pages/nothing.js", "")
            .await
            .starts_with("HTTP/1.1 404")
    );
    let moved = text(&server, "/ui", "").await.to_lowercase();
    assert!(
        moved.starts_with("http/1.1 307")
            && moved.contains("location: ui/")
            && moved.contains("content-security-policy"),
        "{moved}"
    );
}

#[tokio::test]
async fn nobody_logs_in_where_grpc_is_open_and_calls_are_those_of_the_json_door() {
    let server = Server::start().await;
    let session = ask(&server, "GET", "/ui/session", &[], "").await.json;
    assert_eq!(
        (&session["open"], &session["admin"]),
        (&json!(true), &json!(true))
    );
    assert!(
        session["shown"]["curl"]
            .as_str()
            .unwrap()
            .contains(&server.ingest.to_string())
    );

    server
        .http()
        .post_to("/webhook/veo?team=ads", completed("t1").to_string())
        .await
        .event_id();
    let listed = ask(
        &server,
        "GET",
        "/ui/v1/events?order=newest_first",
        &[OWN],
        "",
    )
    .await;
    assert_eq!(listed.json["events"][0]["taskId"], "t1");
    let info = call(&server, "GetLogInfo", None).await;
    assert_eq!(info.json["eventCount"], "1");
    let overview = call(&server, "GetOverview", None).await;
    assert_eq!(
        (overview.status, &overview.json["ready"]),
        (200, &json!(true))
    );
}

#[tokio::test]
async fn a_page_of_another_origin_reads_and_changes_nothing() {
    let server = Server::start().await;
    for (site, expected) in [
        ("same-site", 403),
        ("cross-site", 403),
        ("none", 403),
        ("same-origin", 200),
    ] {
        let answered = status(&server, &[JSON, ("sec-fetch-site", site)]).await;
        assert_eq!(answered, expected, "{site}");
    }
    let form = [("content-type", "text/plain"), OWN];
    assert_eq!(status(&server, &form).await, 403);
    let own = format!("http://{}", server.admin);
    for (origin, expected) in [(&*own, 200), ("http://127.0.0.1:1", 403)] {
        let answered = status(&server, &[JSON, ("origin", origin)]).await;
        assert_eq!(answered, expected, "{origin}");
    }
    let read = ask(
        &server,
        "GET",
        "/ui/v1/events",
        &[("sec-fetch-site", "same-site")],
        "",
    )
    .await;
    assert_eq!(read.status, 403);

    let rebound = format!(
        "GET /ui/v1/events HTTP/1.1\r\nhost: evil.example:{}\r\nconnection: close\r\n\r\n",
        server.admin.port()
    );
    let mut stream = TcpStream::connect(server.admin).await.unwrap();
    stream.write_all(rebound.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
}

#[tokio::test]
async fn a_session_has_the_rights_of_its_client_and_ends_with_its_line() {
    let (mut file, server, team, ops) = guarded().await;
    server
        .http()
        .post_to("/webhook/veo", completed("t1").to_string())
        .await;
    server
        .http()
        .post_to("/webhook/sora", completed("t2").to_string())
        .await;

    assert_eq!(call(&server, "GetLogInfo", None).await.status, 401);
    let bearer = format!("Bearer {ops}");
    let by_token = [JSON, OWN, ("authorization", &*bearer)];
    assert_eq!(status(&server, &by_token).await, 401);
    assert_eq!(
        log_in(&server, json!({"token": "bcast_no"})).await,
        Err(403)
    );
    let nobody = ask(&server, "GET", "/ui/session", &[], "").await.json;
    assert_eq!(
        (&nobody["open"], &nobody["client"]),
        (&json!(false), &json!(""))
    );
    assert!(nobody.get("shown").is_none());

    let cookie = log_in(&server, json!({"token": team})).await.unwrap();
    let listed = events(&server, &cookie).await;
    let tasks: Vec<_> = listed.json["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["taskId"].clone())
        .collect();
    assert_eq!(tasks, ["t1"]);
    assert_eq!(
        call(&server, "ListSubscriptions", Some(&cookie))
            .await
            .status,
        403
    );
    let admin = log_in(&server, json!({"token": ops})).await.unwrap();
    assert_eq!(
        call(&server, "ListSubscriptions", Some(&admin))
            .await
            .status,
        200
    );

    file.remove("team");
    server.signal(rustix::process::Signal::HUP);
    until("the session's end", async || {
        call(&server, "GetLogInfo", Some(&cookie)).await.status == 401
    })
    .await;

    assert_eq!(
        ask(
            &server,
            "DELETE",
            "/ui/session",
            &[OWN, ("cookie", &admin)],
            ""
        )
        .await
        .status,
        204
    );
    assert_eq!(call(&server, "GetLogInfo", Some(&admin)).await.status, 401);
}

/// A stream that is live, and what it has sent so far.
async fn open_stream(server: &Server, cookie: &str) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(server.admin).await.unwrap();
    let request = format!(
        "GET /ui/v1/events/stream?client_name=console HTTP/1.1\r\nhost: {}\r\ncookie: {cookie}\r\n\r\n",
        server.admin
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("event: caught_up") {
        let count = within("the stream", stream.read_buf(&mut read))
            .await
            .unwrap();
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&read));
    }
    (stream, read)
}

#[tokio::test]
async fn logging_out_ends_the_streams_of_the_session_at_once() {
    let (_file, server, team, _) = guarded().await;
    let [left, kept] = [
        log_in(&server, json!({"token": team})).await.unwrap(),
        log_in(&server, json!({"token": team})).await.unwrap(),
    ];
    let (mut of_left, _) = open_stream(&server, &left).await;
    let (mut of_kept, _) = open_stream(&server, &kept).await;

    let out = ask(
        &server,
        "DELETE",
        "/ui/session",
        &[OWN, ("cookie", &left)],
        "",
    )
    .await;
    assert_eq!(
        (out.status, &out.headers["cache-control"]),
        (204, &"no-store".parse().unwrap())
    );
    let mut rest = Vec::new();
    // Cut off: the connection ends without the end of the body.
    let _ = within("the end", of_left.read_to_end(&mut rest)).await;
    assert!(
        !rest.ends_with(b"0\r\n\r\n"),
        "{}",
        String::from_utf8_lossy(&rest)
    );

    let event = server
        .http()
        .post_to("/webhook/veo", completed("t1").to_string())
        .await;
    let id = event.event_id();
    let mut more = Vec::new();
    while !String::from_utf8_lossy(&more).contains(&id) {
        assert_ne!(
            within("the event", of_kept.read_buf(&mut more))
                .await
                .unwrap(),
            0
        );
    }
}

#[tokio::test]
async fn another_cookie_of_the_same_name_does_not_hide_a_session() {
    let (_file, server, team, _) = guarded().await;
    let good = log_in(&server, json!({"token": team})).await.unwrap();
    let (name, _) = good.split_once('=').unwrap();
    let both = format!("{name}=junk; {good}");
    let listed = events(&server, &both).await;
    assert_eq!(listed.status, 200);
}

#[tokio::test]
async fn a_client_with_many_pages_open_keeps_no_administrator_out() {
    let (_file, server, team, ops) = guarded().await;
    let cookie = log_in(&server, json!({"token": team})).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(open_stream(&server, &cookie).await);
    }
    let refused = events(&server, &cookie).await;
    assert_eq!(refused.status, 429);
    let why = refused.json["detail"].as_str().unwrap();
    assert!(why.contains("client team has 20 calls open"), "{why}");

    let admin = log_in(&server, json!({"token": ops})).await.unwrap();
    assert_eq!(call(&server, "GetOverview", Some(&admin)).await.status, 200);
    drop(open);
    until("the client's pages work again", async || {
        events(&server, &cookie).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn logins_that_never_arrive_keep_neither_probes_nor_people_out() {
    let (_file, server, team, _) = guarded().await;
    let slow = format!(
        "POST /ui/session HTTP/1.1\r\nhost: {}\r\nsec-fetch-site: same-origin\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{",
        server.admin
    );
    let mut held = Vec::new();
    for _ in 0..140 {
        let mut stream = TcpStream::connect(server.admin).await.unwrap();
        stream.write_all(slow.as_bytes()).await.unwrap();
        held.push(stream);
    }
    until("a probe", async || {
        text(&server, "/livez", "")
            .await
            .starts_with("HTTP/1.1 200")
    })
    .await;
    until("a login", async || {
        log_in(&server, json!({"token": team})).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_stream_of_a_session_ends_with_its_clients_line() {
    let (mut file, server, team, _) = guarded().await;
    let cookie = log_in(&server, json!({"token": team})).await.unwrap();
    let (mut stream, mut read) = open_stream(&server, &cookie).await;
    let text = String::from_utf8_lossy(&read).to_lowercase();
    assert!(
        text.contains("text/event-stream") && text.contains("nosniff"),
        "{text}"
    );

    file.remove("team");
    server.signal(rustix::process::Signal::HUP);
    while !String::from_utf8_lossy(&read).contains("event: problem") {
        assert_ne!(
            within("the end", stream.read_buf(&mut read)).await.unwrap(),
            0
        );
    }
}

#[tokio::test]
async fn the_verb_prints_a_link_that_logs_in_once() {
    let open = Server::start().await;
    let printed = open.cli("console").run().await;
    assert_eq!(printed.good(), format!("http://{}/ui/\n", open.admin));

    let (_file, server, _, ops) = guarded().await;
    let refused = server.cli("console").run().await;
    assert!(refused.exited(1).contains("--token-file"), "{refused:?}");

    let printed = server
        .cli("console")
        .env("BLOBCAST_TOKEN", &ops)
        .run()
        .await;
    let code = printed
        .good()
        .trim()
        .split_once("/ui/#code=")
        .unwrap()
        .1
        .to_owned();
    let cookie = log_in(&server, json!({"code": code})).await.unwrap();
    assert_eq!(
        call(&server, "GetOverview", Some(&cookie)).await.status,
        200
    );
    assert_eq!(log_in(&server, json!({"code": code})).await, Err(403));
}

#[tokio::test]
async fn media_are_loaded_from_the_hosts_of_the_configuration_only() {
    let server = Options::default()
        .set("console.media", "auto")
        .set("console.media_hosts", "cdn.runblob.io")
        .start()
        .await;
    let page = text(&server, "/ui/", "").await;
    assert!(
        page.contains("img-src 'self' https://cdn.runblob.io; media-src https://cdn.runblob.io;"),
        "{page}"
    );
    let session = ask(&server, "GET", "/ui/session", &[], "").await.json;
    assert_eq!(
        (&session["media"], &session["mediaHosts"]),
        (&json!("auto"), &json!(["cdn.runblob.io"]))
    );
}
