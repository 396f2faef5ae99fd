//! Callback tokens and signing keys that are bound to products and labels: the callbacks that they
//! may send, the labels that their events get, and that no URL, minting, quarantine or repetition
//! gets around it.

use blobcast::wire::v1::{self, Event};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    permissions::told,
    support::{
        Answer, Cli, CredentialsFile, Options, Server, completed, processing, refusal, until,
        violation, with,
    },
};

/// A broker with callback credentials of several tenants.
struct House {
    server: Server,
    file: CredentialsFile,
    ads: String,
    film: String,
}

impl House {
    async fn new() -> Self {
        let mut file = CredentialsFile::new();
        let ads = file
            .add("callback ads --product veo --label team=ads")
            .await;
        let film = file
            .add("callback film --label team=film --label site=b")
            .await;
        file.add("signing-key everybody").await;
        file.add("signing-key k-ads --product veo --product kling --label team=ads")
            .await;
        // Refusals are many, while a change is waited for.
        let options = Options::default().set("ingest.refusals_per_minute_max", 1_000_000);
        let server = options
            .set("credentials_file", file.path().display())
            .start()
            .await;
        Self {
            server,
            file,
            ads,
            film,
        }
    }

    /// Posts to a path below the webhook's, with a token.
    async fn post(&self, token: &str, target: &str, body: &Value) -> Answer {
        let mark = if target.contains('?') { '&' } else { '?' };
        self.server
            .http()
            .post_to(
                &format!("/webhook{target}{mark}token={token}"),
                body.to_string(),
            )
            .await
    }

    async fn refused(&self, cause: &str, kind: &str, name: &str, product: &str) -> f64 {
        let labels =
            format!("cause=\"{cause}\",kind=\"{kind}\",name=\"{name}\",product=\"{product}\"");
        self.server
            .metric(&format!("blobcast_callbacks_refused_total{{{labels}}}"))
            .await
    }

    /// The newest event.
    async fn newest(&self) -> Event {
        self.server.log_of_events().await.pop().unwrap()
    }

    /// Path and query of what `blobcast url` prints.
    async fn url(&self, flags: &str) -> String {
        let url = self
            .server
            .cli(&format!("url {flags}"))
            .run()
            .await
            .good()
            .trim_end()
            .to_owned();
        url[url.find("/webhook").unwrap()..].to_owned()
    }
}

/// `key=value` of each label.
fn labels(event: &Event) -> Vec<String> {
    let mut labels: Vec<_> = event
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    labels
}

/// What the shape of sora's callbacks is.
fn of_sora(task: &str) -> Value {
    json!({"generation_id": task, "status": "completed", "error_message": null})
}

#[tokio::test]
async fn a_bound_token_brings_its_products_and_its_labels_are_on_each_event() {
    let house = House::new().await;
    for (number, (target, expected)) in [
        ("/veo", vec!["team=ads"]),
        ("/veo?ref=42", vec!["ref=42", "team=ads"]),
        ("/veo?team=ads&ref=42", vec!["ref=42", "team=ads"]),
        ("", vec!["team=ads"]),
        ("//veo/", vec!["team=ads"]),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = house
            .post(&house.ads, target, &completed(&format!("t{number}")))
            .await;
        assert_eq!(
            (answer.status, &answer.json),
            (200, &json!({"status": "received"})),
            "{target}"
        );
        let event = house.newest().await;
        assert_eq!(
            (event.product.as_str(), labels(&event)),
            ("veo", expected.iter().map(ToString::to_string).collect()),
            "{target}"
        );
        assert_eq!(
            (event.product_inferred, event.credential.as_str()),
            (target.is_empty(), "callback_token ads")
        );
    }
    // What a body is taken for is a guess, and the token knows better.
    let unknown = json!({"generation_id": "u1", "status": "completed"});
    for (task, body) in [("s1", of_sora("s1")), ("u1", unknown)] {
        assert_eq!(house.post(&house.ads, "", &body).await.status, 200);
        let event = house.newest().await;
        assert_eq!(
            (
                event.task_id.as_str(),
                event.product.as_str(),
                event.product_inferred,
                labels(&event)
            ),
            (task, "veo", true, vec!["team=ads".to_owned()])
        );
    }
    // By labels alone any product.
    assert_eq!(
        house
            .post(&house.film, "/sora", &completed("f1"))
            .await
            .status,
        200
    );
    assert_eq!(labels(&house.newest().await), ["site=b", "team=film"]);
}

#[tokio::test]
async fn a_callback_that_names_no_product_and_is_taken_for_another_one_is_kept_until_an_operator_names_one()
 {
    let mut house = House::new().await;
    let both = house
        .file
        .add("callback both --product veo --product kling")
        .await;
    until("the token", async || {
        house.post(&both, "/veo", &completed("t0")).await.status == 200
    })
    .await;

    assert_eq!(
        house.post(&both, "", &completed("t1")).await.status,
        200,
        "of the shape of veo's"
    );
    let unknown = json!({"generation_id": "t2", "status": "completed"});
    for body in [unknown, of_sora("t3")] {
        let answer = house.post(&both, "", &body).await;
        assert_eq!(
            (answer.status, answer.reason()),
            (202, "no_product"),
            "{answer:?}"
        );
    }
    assert_eq!(
        house.post(&both, "/sora", &of_sora("t4")).await.status,
        401,
        "named by the path"
    );
    assert_eq!(house.server.log_info().await.quarantine_count, 2);

    let release = async |house: &House, words: &str| {
        house
            .server
            .cli(&format!("quarantine release {words}"))
            .run()
            .await
    };
    let refused = release(&house, "1").await;
    assert!(
        refused.exited(1).contains("the URL names no product"),
        "{refused:?}"
    );
    assert!(
        refused
            .exited(1)
            .contains("release it with a `product` (--product)"),
        "{refused:?}"
    );
    release(&house, "1 --product kling").await.good();
    let event = house.newest().await;
    assert_eq!(
        (
            event.task_id.as_str(),
            event.product.as_str(),
            event.product_inferred
        ),
        ("t2", "kling", false)
    );
}

#[tokio::test]
async fn no_answer_to_a_bound_token_tells_what_is_known_of_a_task() {
    let mut house = House::new().await;
    let free = house.file.add("callback free").await;
    let veo = house.file.add("callback veo --product veo").await;
    until("the tokens", async || {
        house.post(&veo, "/veo", &completed("t0")).await.status == 200
    })
    .await;

    let told = house.post(&free, "/veo", &completed("t")).await;
    assert_eq!(
        (told.status, &told.json["duplicate"]),
        (200, &json!(false)),
        "{told:?}"
    );
    for token in [&veo, &house.ads, &house.film] {
        let answer = house.post(token, "/veo", &completed("t")).await;
        assert_eq!(
            (answer.status, &answer.json),
            (200, &json!({"status": "received"}))
        );
    }
}

#[tokio::test]
async fn what_a_token_is_not_bound_to_is_refused_as_if_it_were_no_token_and_told_to_the_operator() {
    let house = House::new().await;
    let wrong = house.post("bcast_wrong", "/veo", &completed("t")).await;
    for (target, body, cause, product) in [
        ("/sora", completed("t"), "product_denied", "sora"),
        (
            "/kling/o1-video",
            completed("t"),
            "product_denied",
            "kling-o1-video",
        ),
        ("/veo?team=film", completed("t"), "label_denied", "veo"),
        ("/veo?team=", completed("t"), "label_denied", "veo"),
        (
            "/veo?team=film&team=ads",
            completed("t"),
            "label_denied",
            "veo",
        ),
        ("/veo?%74eam=film", completed("t"), "label_denied", "veo"),
    ] {
        let before = house.refused(cause, "callback_token", "ads", product).await;
        let answer = house.post(&house.ads, target, &body).await;
        assert_eq!(
            (answer.status, &answer.json),
            (401, &wrong.json),
            "{target}"
        );
        let after = house.refused(cause, "callback_token", "ads", product).await;
        assert_eq!(after - before, 1.0, "{target}");
    }
    // At a path that is only nearly right it is as if nobody were there.
    let near = house
        .server
        .http()
        .post_to(
            &format!("/Webhook/sora?token={}", house.ads),
            completed("t").to_string(),
        )
        .await;
    assert_eq!(near.status, 404);
    assert!(house.server.log_of_events().await.is_empty());
    assert_eq!(house.server.log_info().await.quarantine_count, 0);
    for (cause, next_step) in [
        ("product_denied", "bound to other products"),
        ("label_denied", "leave that label out"),
    ] {
        until("the line", async || {
            let log = house.server.log();
            log.lines().any(|line| {
                line.contains(cause)
                    && line.contains("callback_token ads")
                    && line.contains(next_step)
            })
        })
        .await;
    }
}

#[tokio::test]
async fn a_change_of_the_line_is_in_force_for_the_next_callback_and_holds_for_the_token_before() {
    let mut house = House::new().await;
    let rotated = house
        .file
        .change("rotate callback ads")
        .await
        .good()
        .to_owned();
    let new = rotated
        .split_whitespace()
        .find(|word| word.starts_with("bcast_"))
        .unwrap()
        .to_owned();
    until("the new token", async || {
        house.post(&new, "/veo", &completed("t")).await.status == 200
    })
    .await;
    for token in [&house.ads, &new] {
        assert_eq!(
            house.post(token, "/veo", &processing("t")).await.status,
            200
        );
        assert_eq!(labels(&house.newest().await), ["team=ads"]);
        assert_eq!(
            house.post(token, "/sora", &completed("t")).await.status,
            401
        );
    }
    let text = std::fs::read_to_string(house.file.path()).unwrap();
    let bound = "products = [\"veo\"], labels = { team = \"ads\" }";
    assert!(text.contains(bound), "{text}");
    house
        .file
        .write(&text.replace(bound, "products = [\"sora\"], labels = { team = \"new\" }"));
    for token in [&house.ads, &new] {
        until("the change", async || {
            house.post(token, "/sora", &of_sora("s")).await.status == 200
        })
        .await;
        assert_eq!(labels(&house.newest().await), ["team=new"]);
        assert_eq!(
            house.post(token, "/veo", &completed("t2")).await.status,
            401
        );
    }
}

#[tokio::test]
async fn a_bound_key_mints_urls_for_its_products_and_labels_and_they_work() {
    let house = House::new().await;
    let http = house.server.http();
    for (flags, expected) in [
        ("--product veo --key-id k-ads", vec!["team=ads"]),
        (
            "--product kling --label team=ads --label ref=1 --key-id k-ads",
            vec!["ref=1", "team=ads"],
        ),
        ("--product sora --label team=x", vec!["team=x"]),
    ] {
        let target = house.url(flags).await;
        assert_eq!(
            http.post_to(&target, completed(&flags.len().to_string()).to_string())
                .await
                .status,
            200,
            "{flags}"
        );
        let event = house.newest().await;
        assert_eq!(labels(&event), expected, "{flags}");
        let key = if flags.contains("k-ads") {
            "signing_key k-ads"
        } else {
            "signing_key everybody"
        };
        assert_eq!(
            event.credential, key,
            "without a name the key signs that is bound to nothing"
        );
    }
    let mut admin = house.server.admin_service().await;
    let mut mint = async |product: &str, labels: &[(&str, &str)], key_id: &str| {
        let labels = labels
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let request = v1::MintCallbackUrlRequest {
            product: product.into(),
            labels,
            key_id: key_id.into(),
            ..Default::default()
        };
        admin
            .mint_callback_url(request)
            .await
            .map(tonic::Response::into_inner)
    };
    assert_eq!(
        violation(&mint("", &[], "k-ads").await.unwrap_err()),
        "product",
        "it is bound to two"
    );
    let refused = mint("sora", &[], "k-ads").await.unwrap_err();
    assert_eq!(
        refusal(&refused),
        (Code::PermissionDenied, "PRODUCT_DENIED".to_owned())
    );
    assert_eq!(
        violation(&mint("veo", &[("team", "film")], "k-ads").await.unwrap_err()),
        "labels"
    );
    let many: Vec<_> = (0..16).map(|number| format!("l{number}")).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), "")).collect();
    assert!(mint("veo", &many[..15], "k-ads").await.is_ok());
    assert_eq!(
        violation(&mint("veo", &many, "k-ads").await.unwrap_err()),
        "labels"
    );
    let with_bound: Vec<_> = many[..15]
        .iter()
        .copied()
        .chain([("team", "ads")])
        .collect();
    assert!(
        mint("veo", &with_bound, "k-ads").await.is_ok(),
        "it is one of them"
    );
    assert!(mint("veo", &many, "everybody").await.is_ok());
}

#[tokio::test]
async fn no_tenants_key_signs_because_it_happens_to_be_the_newest() {
    let mut house = House::new().await;
    house.file.remove("everybody =");
    let mint = async |house: &House, key_id: &str| {
        let (product, key_id) = ("veo".into(), key_id.into());
        let request = v1::MintCallbackUrlRequest {
            product,
            key_id,
            ..Default::default()
        };
        house
            .server
            .admin_service()
            .await
            .mint_callback_url(request)
            .await
            .map(|minted| minted.into_inner().key_id)
    };
    until("the only key to sign", async || {
        mint(&house, "").await.is_ok_and(|key| key == "k-ads")
    })
    .await;
    house.file.add("signing-key k-film --label team=film").await;
    until("the second key", async || {
        mint(&house, "k-film").await.is_ok()
    })
    .await;
    assert_eq!(
        told(mint(&house, "").await),
        "FailedPrecondition SIGNING_KEY_MISSING"
    );
    let refused = house.server.cli("url").run().await;
    assert!(
        refused.exited(1).contains("name the one to sign with"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn what_waits_in_quarantine_stays_bound_when_it_is_released() {
    let mut house = House::new().await;
    let unreadable = json!({"status": "completed"});
    // No task id; a product that is none; too many labels, of which the bound ones are.
    assert_eq!(
        house
            .post(&house.ads, "/veo?ref=1", &unreadable)
            .await
            .reason(),
        "no_task_id"
    );
    assert_eq!(
        house
            .post(&house.ads, "/Veo!", &completed("t2"))
            .await
            .reason(),
        "bad_product"
    );
    let many = (0..16)
        .map(|number| format!("l{number}=x"))
        .collect::<Vec<_>>()
        .join("&");
    assert_eq!(
        house
            .post(&house.ads, &format!("/veo?{many}"), &completed("t3"))
            .await
            .reason(),
        "bad_labels"
    );
    assert_eq!(
        house.post(&house.ads, "", &unreadable).await.reason(),
        "no_task_id"
    );
    assert_eq!(
        house.post(&house.ads, "", &unreadable).await.reason(),
        "no_task_id"
    );
    let listed = house
        .server
        .cli("quarantine list --output json")
        .run()
        .await
        .json_lines();
    assert_eq!(
        (&listed[0]["bound_labels"], &listed[0]["bound_products"]),
        (&json!({"team": "ads"}), &json!(["veo"]))
    );
    let shown = house.server.cli("quarantine show 1").run().await;
    assert!(
        shown
            .good()
            .contains("bound to  products=veo labels=team:ads"),
        "{shown:?}"
    );

    // Whatever becomes of the credential, and of the broker.
    house.file.remove("ads =");
    house.server.crash().await;
    let release = async |house: &House, words: &str| {
        house
            .server
            .cli(&format!("quarantine release {words}"))
            .run()
            .await
    };
    release(&house, "1 --task-id t1 --drop-labels").await.good();
    assert_eq!(labels(&house.newest().await), ["team=ads"]);
    release(&house, "2 --product sora").await.good();
    let event = house.newest().await;
    assert_eq!(
        (event.product.as_str(), labels(&event)),
        ("sora", vec!["team=ads".to_owned()]),
        "the operator's word"
    );
    release(&house, "3 --drop-labels").await.good();
    assert_eq!(labels(&house.newest().await), ["team=ads"]);

    // Whatever a repaired body is taken for.
    let body = house.file.path().with_file_name("body.json");
    std::fs::write(&body, of_sora("t4").to_string()).unwrap();
    release(&house, &format!("4 --body {}", body.display()))
        .await
        .good();
    assert_eq!(house.newest().await.product, "veo");
    std::fs::write(&body, completed("t5").to_string()).unwrap();
    release(&house, &format!("5 --body {}", body.display()))
        .await
        .good();
    let event = house.newest().await;
    assert_eq!(
        (
            event.task_id.as_str(),
            event.product.as_str(),
            labels(&event)
        ),
        ("t5", "veo", vec!["team=ads".to_owned()])
    );
}

#[tokio::test]
async fn one_tenant_can_neither_keep_anothers_event_out_nor_learn_of_it() {
    let house = House::new().await;
    // The same words of the same task: first of one who has guessed them, and then of the one whose they are.
    for token in [&house.film, &house.ads, &house.film, &house.ads] {
        let answer = house.post(token, "/veo", &completed("t")).await;
        assert_eq!(
            (answer.status, &answer.json),
            (200, &json!({"status": "received"})),
            "new or not"
        );
    }
    let log = house.server.log_of_events().await;
    let seen: Vec<_> = log
        .iter()
        .map(|event| (labels(event).join(" "), event.conflict))
        .collect();
    assert_eq!(
        seen,
        [
            ("site=b team=film".to_owned(), false),
            ("team=ads".to_owned(), false)
        ]
    );
    // A later callback says something else and is reported as a contradiction.
    let other = with(completed("t"), json!({"video_url": "https://x/other.mp4"}));
    house.post(&house.film, "/veo", &other).await;
    assert!(house.newest().await.conflict);
}

#[tokio::test]
async fn credentials_that_may_write_any_label_beside_bound_clients_are_warned_of() {
    let mut file = CredentialsFile::new();
    file.add("client ads --all-products --label team=ads").await;
    let told = check(&file, "false").await;
    assert!(
        told.contains("a callback needs no token and no signature, so anybody may write any label"),
        "{told}"
    );
    file.add("callback ads --label team=ads").await;
    assert!(!check(&file, "false").await.contains("bound to labels"));

    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    for name in ["a", "b", "c", "d", "e", "f"] {
        file.add(&format!("callback {name} --product veo")).await;
    }
    file.add("signing-key k1").await;
    let problem = "callback_token a (client ads), callback_token b (client ads), callback_token c (client ads), \
                   callback_token d (client ads), callback_token e (client ads) and 2 more";
    until("the warning", async || server.log().contains(problem)).await;
    let told = check(&file, "false").await;
    assert!(told.contains(problem), "{told}");
}

#[tokio::test]
async fn a_credential_bound_to_other_keys_or_products_than_a_client_is_reported_where_it_reaches_it()
 {
    let mut file = CredentialsFile::new();
    file.add("client csite --product veo --product kling --label site=b")
        .await;
    file.add("callback ads --label team=ads").await;
    file.add("callback sora --product sora").await;
    let told = check(&file, "false").await;
    assert!(
        told.contains("that others may write, by callback_token ads (client csite): give"),
        "{told}"
    );
    let text = std::fs::read_to_string(file.path()).unwrap();
    file.write(&text.replace("team = \"ads\"", "team = \"ads\", site = \"a\""));
    assert!(!check(&file, "false").await.contains("others may write"));
}

#[tokio::test]
async fn anonymous_readers_beside_bound_clients_are_reported() {
    let mut file = CredentialsFile::new();
    file.add("client ops --all-products --admin").await;
    file.add("callback all").await;
    let problem = "a caller without a token reads every event";
    assert!(!check(&file, "true").await.contains(problem));

    let options = Options::default().set("credentials_file", file.path().display());
    let server = options.set("grpc.allow_anonymous", true).start().await;
    assert!(!server.log().contains(problem));
    file.add("client veo --product veo").await;
    until("the warning", async || {
        server
            .log()
            .contains("keep nothing from anybody (client veo): set it to false")
    })
    .await;
    let told = check(&file, "true").await;
    assert!(told.contains(problem), "{told}");
    assert!(!check(&file, "false").await.contains(problem));
}

/// What `check-config` says of a credentials file, if anonymous readers are allowed or not.
async fn check(file: &CredentialsFile, allow_anonymous: &str) -> String {
    let data = file.path().with_file_name("data");
    let check = Cli::new("check-config").env("BLOBCAST_CREDENTIALS_FILE", file.path().display());
    let check = check
        .env("BLOBCAST_DATA_DIR", data.display())
        .env("BLOBCAST_GRPC__LISTEN", "127.0.0.1:0");
    let ran = check
        .env("BLOBCAST_GRPC__ALLOW_ANONYMOUS", allow_anonymous)
        .run()
        .await;
    format!("{}{}", ran.stdout, ran.stderr)
}
