//! Callbacks whose path is nearly right: an unambiguous one is accepted, the others are
//! quarantined, and unauthenticated clients learn nothing from the answer.

use serde_json::json;

use super::{counted, nothing_is_kept, quarantine};
use crate::support::{CredentialsFile, Options, Server, completed, until};

/// The path, and the product that an event gets by it.
const READ: [(&str, &str); 7] = [
    ("/webhook//veo", "veo"),
    ("//webhook/veo", "veo"),
    ("/webhook/veo//", "veo"),
    ("/webhook%2Fveo", "veo"),
    ("/webhook/kling/o1-video", "kling-o1-video"),
    ("/webhook/kling%2fo1-video/", "kling-o1-video"),
    ("/webhook/veo/more", "veo-more"),
];
const KEPT: [&str; 7] = [
    "/Webhook/veo",
    "/WEBHOOK",
    "/webhooks/veo",
    "/webhook:veo",
    "/webhook%252Fveo",
    "/callbacks/webhook/veo",
    "/callbacks//Webhook/kling/o1-video",
];
const OTHERS: [&str; 4] = ["/", "/veo", "/my-webhook/veo", "/webhoo"];

#[tokio::test]
async fn slashes_are_read_as_they_are_meant() {
    let server = Server::start().await;
    for (number, (path, product)) in READ.into_iter().enumerate() {
        let answer = server
            .http()
            .post_to(
                &format!("{path}?ref=a"),
                completed(&format!("t{number}")).to_string(),
            )
            .await;
        assert_eq!(answer.status, 200, "{path}");
        let log = server.log_of_events().await;
        let newest = log.last().unwrap();
        assert_eq!(
            (newest.product.as_str(), newest.product_inferred),
            (product, false),
            "{path}"
        );
        assert_eq!(newest.labels["ref"], "a");
    }
    assert!(quarantine(&server).await.is_empty());
}

#[tokio::test]
async fn a_near_miss_is_kept_as_it_came_and_released_once_its_product_is_named() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    for (number, path) in KEPT.into_iter().enumerate() {
        let body = completed(&format!("t{number}")).to_string();
        let answer = server
            .http()
            .post_to(&format!("{path}?ref=a&token={token}"), body)
            .await;
        assert_eq!(
            (answer.status, answer.json),
            (202, json!({"status": "quarantined", "reason": "bad_path"})),
            "{path}"
        );
    }
    let kept = quarantine(&server).await;
    let targets: Vec<_> = kept
        .iter()
        .map(|callback| callback.target.clone())
        .collect();
    assert_eq!(targets, KEPT.map(|path| format!("{path}?ref=a")));

    let id = &kept[0].quarantine_id;
    let refused = server.cli(&format!("quarantine release {id}")).run().await;
    assert!(refused.stderr.contains("(--product)"), "{refused:?}");
    server
        .cli(&format!("quarantine release {id} --product veo"))
        .run()
        .await
        .good();
    let log = server.log_of_events().await;
    assert_eq!(
        (log[0].task_id.as_str(), log[0].product.as_str()),
        ("t0", "veo")
    );
    assert_eq!(log[0].labels["ref"], "a");
}

#[tokio::test]
async fn without_a_valid_credential_a_near_miss_is_a_path_like_any_other() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    for path in KEPT.into_iter().chain(OTHERS) {
        for query in ["", "?token=wrong", "?sig=wrong"] {
            let answer = server
                .http()
                .post_to(&format!("{path}{query}"), completed("t1").to_string())
                .await;
            assert_eq!(
                (answer.status, answer.reason()),
                (404, "not_found"),
                "{path}{query}"
            );
        }
    }
    for path in OTHERS {
        let answer = server
            .http()
            .post_to(
                &format!("{path}?token={token}"),
                completed("t1").to_string(),
            )
            .await;
        assert_eq!(
            (answer.status, answer.reason()),
            (404, "not_found"),
            "{path}"
        );
    }
    // Nothing that is read is read without it either.
    for (path, _) in READ {
        let answer = server
            .http()
            .post_to(path, completed("t1").to_string())
            .await;
        assert_eq!(
            (answer.status, answer.reason()),
            (401, "unauthorized"),
            "{path}"
        );
    }
    nothing_is_kept(&server).await;
}

#[tokio::test]
async fn a_signed_url_reaches_its_own_product_through_any_spelling_and_no_other_one() {
    let mut file = CredentialsFile::new();
    file.add("signing-key k1").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let signed = async |words: &str| {
        let url = server
            .cli(&format!("url {words}"))
            .run()
            .await
            .good()
            .trim_end()
            .to_owned();
        let target = &url[url.find("/webhook").unwrap()..];
        target.split_once('?').unwrap().1.to_owned()
    };
    let (kling, inferred) = (signed("--product kling-o1-video").await, signed("").await);
    let post = async |path: &str, query: &str, task: &str| {
        server
            .http()
            .post_to(&format!("{path}?{query}"), completed(task).to_string())
            .await
            .status
    };
    for (number, path) in [
        "/webhook/kling-o1-video",
        "//webhook/kling/o1-video",
        "/webhook%2Fkling%2Fo1-video",
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            post(path, &kling, &format!("t{number}")).await,
            200,
            "{path}"
        );
    }
    assert_eq!(post("/Webhook/kling/o1-video", &kling, "t8").await, 202);
    assert_eq!(post("//webhook/", &inferred, "t9").await, 200);
    for path in [
        "/webhook/kling",
        "/webhook/kling/o1-video/more",
        "/webhook",
        "/webhook/veo",
        "//webhook//veo",
    ] {
        assert_eq!(post(path, &kling, "forged").await, 401, "{path}");
        if path != "/webhook" {
            assert_eq!(post(path, &inferred, "forged").await, 401, "{path}");
        }
    }
    assert_eq!(post("/Webhook/veo", &kling, "forged").await, 404);
    let products: Vec<_> = server
        .log_of_events()
        .await
        .into_iter()
        .map(|event| event.product)
        .collect();
    assert_eq!(products[..3], ["kling-o1-video"; 3]);
    assert_eq!((products.len(), quarantine(&server).await.len()), (4, 1));
}

#[tokio::test]
async fn a_refusal_in_the_log_names_the_path_without_what_may_be_a_secret() {
    const SECRET: &str = "Zq7hush5Xw9never2Bt4tell";
    let server = Server::start().await;
    let http = server.http();
    let body = completed("t1").to_string();
    http.post_to(&format!("/hooks/veo?token={SECRET}"), body.clone())
        .await;
    until("its line", async || {
        server.log().contains(r#""path":"/hooks/veo""#)
    })
    .await;
    // Of each reason there is a line in ten seconds.
    let server = Server::start().await;
    server
        .http()
        .post_to(&format!("/hooks/veo%3Ftoken={SECRET}"), body)
        .await;
    until("its line", async || {
        server.log().contains(r#""path":"/hooks/veo""#)
    })
    .await;
    assert!(!server.log().contains(SECRET));
    assert_eq!(counted(&server, "not_found").await, 1.0);
}
