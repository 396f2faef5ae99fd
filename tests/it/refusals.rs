//! The last callbacks that were refused, as administrators list them: with their cause, and without a secret.

use blobcast::wire::v1::{ListRefusalsRequest, Refusal};

use crate::support::{CredentialsFile, Options, Server, completed, until, violation};

/// All of them, page by page.
async fn refusals(server: &Server, page_size: i32) -> Vec<Refusal> {
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    let mut admin = server.admin_service().await;
    loop {
        let request = ListRefusalsRequest {
            page_size,
            page_token,
        };
        let page = admin.list_refusals(request).await.unwrap().into_inner();
        listed.extend(page.refusals);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return listed;
        }
    }
}

#[tokio::test]
async fn each_refusal_is_listed_with_its_cause_and_without_what_is_secret() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let removed = file.add("callback old").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .set("ingest.body_bytes_max", "1KiB")
        .start()
        .await;
    let body = completed("secret-task").to_string();
    assert_eq!(refusals(&server, 0).await, []);

    file.remove("old =");
    until("the token to be removed", async || {
        let answer = server
            .http()
            .post_to(&format!("/webhook/veo?token={removed}"), body.clone())
            .await;
        answer.status == 401
    })
    .await;
    let post = async |target: &str, body: &str| {
        let answer = server.http().post_to(target, body.to_owned()).await;
        (answer.status, answer.headers["x-request-id"].clone())
    };
    let (_, unknown) = post("/webhook/sora?token=guessed&team=ads", &body).await;
    let (_, foreign) = post("/%E2%80%AE/guessed-path", &body).await;
    let target = format!("/webhook/kling?token={token}");
    let (status, large) = post(&target, &"x".repeat(2_000)).await;
    assert_eq!(status, 413);
    let (status, _) = post(&target, &body).await;
    assert_eq!(status, 200, "what is kept is no refusal");

    let listed = refusals(&server, 2).await;
    let shown: Vec<_> = listed
        .iter()
        .map(|it| (&*it.cause, it.http_status, &*it.product, &*it.credential))
        .collect();
    assert_eq!(
        shown,
        [
            ("body_too_large", 413, "kling", "callback_token runblob"),
            ("not_found", 404, "", ""),
            ("unknown_token", 401, "sora", ""),
            ("removed", 401, "veo", "callback_token old"),
        ]
    );
    let ids: Vec<_> = listed.iter().map(|it| &*it.request_id).collect();
    assert_eq!(
        ids[..3],
        [large, foreign, unknown].map(|it| it.to_str().unwrap().to_owned())
    );
    assert_eq!(
        (&*listed[2].path, &*listed[2].remote_address),
        ("/webhook/sora", "127.0.0.1")
    );
    assert_eq!(listed[3].outcome, "unauthorized", "as its sender was told");
    assert!(
        listed[3]
            .explanation
            .contains("was removed from the credentials file")
    );
    let times: Vec<_> = listed
        .iter()
        .map(|it| it.refused_at.unwrap().seconds)
        .collect();
    assert!(
        times[0] > 1_700_000_000 && times.is_sorted_by(|a, b| a >= b),
        "{times:?}"
    );
    let everything = format!("{listed:?}");
    for secret in [&*token, &*removed, "guessed&", "team", "secret-task"] {
        assert!(!everything.contains(secret), "{secret}: {everything}");
    }
}

#[tokio::test]
async fn the_verb_shows_a_table_and_what_to_do_about_each_cause() {
    let mut file = CredentialsFile::new();
    let admin = file.add("client ops --all-products --admin").await;
    file.add("callback runblob").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let cli = async |line: &str| server.cli(line).env("BLOBCAST_TOKEN", &admin).run().await;
    let ran = cli("refusals").await;
    assert_eq!(
        (ran.good(), &*ran.stderr),
        ("", "no callback was refused since the broker started\n")
    );

    for product in ["veo", "sora", "kling"] {
        let target = format!("/webhook/{product}");
        let answer = server
            .http()
            .post_to(&target, completed("t").to_string())
            .await;
        assert_eq!(answer.status, 401);
    }
    let table = cli("refusals --limit 2").await;
    let rows: Vec<_> = table.good().lines().collect();
    assert!(
        rows[0].starts_with("TIME ") && rows[0].ends_with("  PATH"),
        "{table:?}"
    );
    for (row, product) in [(rows[1], "kling"), (rows[2], "sora")] {
        assert!(row.contains("Z  missing  401 unauthorized  "), "{row}");
        assert!(row.ends_with(&format!("  /webhook/{product}")), "{row}");
    }
    assert_eq!((rows.len(), rows[3]), (5, ""));
    assert!(
        rows[4].starts_with("missing: its URL has neither a token nor a signature: use"),
        "{table:?}"
    );

    let lines = cli("refusals --output json").await;
    assert_eq!(lines.each("product"), ["kling", "sora", "veo"]);
    assert_eq!(lines.each("remote_address"), ["127.0.0.1"; 3]);
    assert_eq!(lines.json_lines()[0]["http_status"], 401);
}

#[tokio::test]
async fn the_last_thousand_refusals_are_kept_and_paged() {
    let server = Options::default()
        .set("ingest.refusals_per_minute_max", 10)
        .start()
        .await;
    let http = server.http();
    for number in 0..1_020 {
        let answer = http.post_to(&format!("/nothing/{number}"), "").await;
        assert_eq!(answer.status, if number < 10 { 404 } else { 429 });
    }
    let listed = refusals(&server, 0).await;
    let expected: Vec<_> = (20..1_020)
        .rev()
        .map(|number| format!("/nothing/{number}"))
        .collect();
    let paths: Vec<_> = listed.iter().map(|it| it.path.clone()).collect();
    assert_eq!(paths, expected);
    assert_eq!(
        (&*listed[0].cause, &*listed[0].outcome),
        ("not_found", "rate_limited")
    );

    let mut admin = server.admin_service().await;
    let request = ListRefusalsRequest {
        page_token: "other".into(),
        ..Default::default()
    };
    let refused = admin.list_refusals(request).await.unwrap_err();
    assert_eq!(violation(&refused), "page_token");
}
