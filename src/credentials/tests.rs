//! Credentials through the public items: parsing, authenticating, minting, refusing and replacing them.

#![allow(
    clippy::too_many_lines,
    reason = "a test is a story told from top to bottom"
)]

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::event::{Labels, Product};

const BASE: &str = "https://hooks.example.com";
const VECTORS: &str = include_str!("../../tests/data/signed_urls.json");

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn refusal(text: &str) -> String {
    Credentials::parse(text).unwrap_err().to_string()
}

fn vectors() -> (Credentials, Vec<Value>) {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let line = |(id, secret): (&String, &Value)| format!("\"{id}\" = {{ secret = {secret} }}\n");
    let keys: String = vectors["keys"]
        .as_object()
        .unwrap()
        .iter()
        .map(line)
        .collect();
    let credentials = Credentials::parse(&format!("[signing_keys]\n{keys}")).unwrap();
    (credentials, vectors["vectors"].as_array().unwrap().clone())
}

/// Path and query of a URL below [`BASE`].
fn target(url: &str) -> (&str, &str) {
    url.strip_prefix(BASE).unwrap().split_once('?').unwrap()
}

fn key(created: &str, expires: &str) -> String {
    format!(
        "{{ secret = \"{}\", created = {created}, expires = {expires} }}",
        new_secret(false)
    )
}

#[test]
fn a_line_may_say_how_many_bytes_a_minute_its_urls_may_bring() {
    let (token, secret) = (TokenHash::of(&new_secret(true)), new_secret(false));
    let parse = |budget: &str| {
        let text = format!(
            "[callback_tokens]\nt = {{ token = \"{token}\"{budget} }}\n[signing_keys]\nk = {{ secret = \"{secret}\"{budget} }}"
        );
        let credentials = Credentials::parse(&text).map_err(|error| error.to_string())?;
        let key_id = KeyId::parse("k").unwrap();
        let budgets = (
            credentials.callback_token_budget("t"),
            credentials.signing_key_budget(&key_id),
        );
        Ok::<_, String>(if budgets.0 == budgets.1 {
            budgets.0
        } else {
            panic!("{budgets:?}")
        })
    };
    assert_eq!(parse(""), Ok(None));
    for (text, bytes) in [
        ("0", 0),
        ("1000", 1_000),
        ("\"16MiB\"", 16 << 20),
        ("\"0\"", 0),
    ] {
        assert_eq!(
            parse(&format!(", bytes_per_minute_max = {text}")),
            Ok(Some(bytes)),
            "{text}"
        );
    }
    for text in ["-1", "1.5", "\"hunter2\"", "true"] {
        let told = parse(&format!(", bytes_per_minute_max = {text}")).unwrap_err();
        assert!(
            told.contains("128MiB") && !told.contains("hunter2"),
            "{told}"
        );
    }
}

#[test]
fn the_published_vectors_are_accepted_until_they_expire() {
    let (credentials, vectors) = vectors();
    assert!(vectors.len() >= 5);
    for vector in vectors {
        let url = vector["url"].as_str().unwrap();
        let (path, query) = target(url);
        let expires: i64 = query
            .split_once("exp=")
            .unwrap()
            .1
            .split('&')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let verified = credentials
            .verify_url(path, query, at(expires - 1))
            .map(|(key_id, _)| key_id.to_string());
        assert_eq!(
            verified.as_deref(),
            Ok(vector["key_id"].as_str().unwrap()),
            "{url}"
        );
        assert_eq!(
            credentials.verify_url(path, query, at(expires)),
            Err(UrlRefusal::Expired),
            "{url}"
        );
    }
}

#[test]
fn a_signed_url_is_refused_with_any_byte_changed() {
    let (credentials, vectors) = vectors();
    for vector in vectors {
        let (path, query) = target(vector["url"].as_str().unwrap());
        for index in 0..query.len() {
            let mut changed = query.as_bytes().to_vec();
            changed[index] ^= 1;
            let Ok(changed) = String::from_utf8(changed) else {
                continue;
            };
            assert_eq!(
                credentials.verify_url(path, &changed, at(0)),
                Err(UrlRefusal::Invalid),
                "{changed}"
            );
        }
        assert_eq!(
            credentials.verify_url("/webhook/other", query, at(0)),
            Err(UrlRefusal::Invalid)
        );
        for added in [
            format!("{query}&team=film"),
            format!("team=film&{query}"),
            format!("{query}&sig=AAAA"),
        ] {
            assert_eq!(
                credentials.verify_url(path, &added, at(0)),
                Err(UrlRefusal::Invalid),
                "{added}"
            );
        }
    }
}

#[test]
fn a_url_without_one_of_the_parameters_is_no_signed_url() {
    let (credentials, _) = vectors();
    for query in [
        "",
        "sig=AAAA",
        "exp=1&kid=k1",
        "kid=k1&sig=AAAA",
        "exp=1&sig=AAAA",
        "exp=1&exp=2&kid=k1&sig=AAAA",
    ] {
        assert_eq!(
            credentials.verify_url("/webhook", query, at(0)),
            Err(UrlRefusal::Invalid),
            "{query}"
        );
    }
}

#[test]
fn urls_are_signed_by_the_newest_key_that_has_not_expired() {
    let text = format!(
        "[signing_keys]\nold = {}\nnew = {}\ngone = {}\n",
        key("2026-01-01", "2030-01-01"),
        key("2026-02-01", "2030-01-01"),
        key("2026-03-01", "2026-04-01"),
    );
    let credentials = Credentials::parse(&text).unwrap();
    let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
    let mint = |key: Option<&str>| {
        let minted = credentials.mint(
            BASE,
            None,
            &Labels::new(),
            Duration::from_secs(60),
            key,
            now,
        );
        minted.map(|minted| minted.key_id.to_string())
    };
    assert_eq!(mint(None).as_deref(), Ok("new"));
    assert_eq!(mint(Some("old")).as_deref(), Ok("old"));
    assert_eq!(
        mint(Some("gone")),
        Err(MintError::UnknownKey("gone".into()))
    );
    let none = Credentials::default().mint(BASE, None, &Labels::new(), Duration::ZERO, None, now);
    assert_eq!(none, Err(MintError::NoKey));
}

#[test]
fn a_bound_key_signs_only_for_its_products_and_only_if_it_is_named() {
    let bound = |rest: &str| format!("{{ secret = \"{}\", {rest} }}", new_secret(false));
    let text = format!(
        "[signing_keys]\nads = {}\nfilm = {}\n",
        bound("products = [\"veo\"], labels = { team = \"ads\" }, created = 2026-02-01"),
        bound("labels = { team = \"film\", site = \"b\" }, created = 2026-03-01"),
    );
    let unbound = format!("free = {}\n", bound("created = 2026-01-01"));
    let mint = |text: &str, product: Option<&str>, labels: &[(&str, &str)], key: Option<&str>| {
        let product = product.map(|product| Product::parse(product).unwrap());
        let labels = labels
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let minted = Credentials::parse(text).unwrap().mint(
            BASE,
            product.as_ref(),
            &labels,
            Duration::ZERO,
            key,
            at(0),
        );
        minted.map(|minted| minted.key_id.to_string())
    };
    assert_eq!(mint(&text, None, &[], None), Err(MintError::AllBound));
    assert_eq!(
        mint(&(text.clone() + &unbound), None, &[], None).as_deref(),
        Ok("free"),
        "not the newest"
    );
    let only = text.lines().take(2).collect::<Vec<_>>().join("\n");
    assert_eq!(
        mint(&only, None, &[], None).as_deref(),
        Ok("ads"),
        "there is no other"
    );

    let key = || KeyId::parse("ads").unwrap();
    let ads = |product, labels: &[(&str, &str)]| mint(&text, product, labels, Some("ads"));
    let sora = Product::parse("sora").unwrap();
    assert_eq!(
        ads(Some("sora"), &[]),
        Err(MintError::OtherProduct {
            key_id: key(),
            product: sora
        })
    );
    assert_eq!(
        ads(Some("veo"), &[("team", "film")]),
        Err(MintError::OtherLabel { key_id: key() })
    );
    assert!(ads(Some("veo"), &[("team", "ads"), ("ref", "1")]).is_ok() && ads(None, &[]).is_ok());
    assert!(
        mint(&text, Some("sora"), &[], Some("film")).is_ok(),
        "bound to labels alone"
    );

    let target = |products: &str, product: Option<&str>| {
        let product = product.map(|product| Product::parse(product).unwrap());
        let text = format!("[signing_keys]\nk = {}", bound(products));
        let minted = Credentials::parse(&text).unwrap().mint(
            BASE,
            product.as_ref(),
            &Labels::new(),
            Duration::ZERO,
            Some("k"),
            at(0),
        );
        minted.map(|minted| target(&minted.url).0.to_owned())
    };
    let no_product = MintError::NoProduct {
        key_id: KeyId::parse("k").unwrap(),
    };
    for (products, wanted, expected) in [
        ("products = [\"veo\"]", None, Ok("/webhook/veo")),
        ("products = [\"veo\", \"sora\"]", None, Err(no_product)),
        (
            "products = [\"veo\", \"sora\"]",
            Some("sora"),
            Ok("/webhook/sora"),
        ),
        ("labels = { team = \"ads\" }", None, Ok("/webhook")),
        ("created = 2026-01-01", None, Ok("/webhook")),
    ] {
        assert_eq!(
            target(products, wanted),
            expected.map(str::to_owned),
            "{products}"
        );
    }
}

#[test]
fn a_line_for_callbacks_binds_to_nothing_unless_it_says_so() {
    let of = |rest: &str| {
        let text = format!(
            "[callback_tokens]\na = {{ token = \"{}\"{rest} }}",
            TokenHash::of("x")
        );
        Credentials::parse(&text).map(|credentials| {
            credentials
                .callback_token_binding("a")
                .map(|bound| (**bound).clone())
        })
    };
    let team = Labels::from([("team".to_owned(), "ads".to_owned())]);
    assert_eq!(of(""), Ok(None));
    assert_eq!(of(", products = [\"*\"]"), Ok(None));
    let bound = of(", labels = { team = \"ads\" }").unwrap().unwrap();
    assert_eq!(
        bound,
        Binding {
            products: Products::All,
            labels: team
        }
    );
    let bound = of(", products = [\"veo\"]").unwrap().unwrap();
    assert!(
        bound.products.allow("veo") && !bound.products.allow("sora") && bound.labels.is_empty()
    );
    for (rest, expected) in [
        (
            ", products = []",
            "[callback_tokens] a: `products` is empty",
        ),
        (", labels = {}", "[callback_tokens] a: `labels` is empty"),
        (
            ", products = [\"V\"]",
            "[callback_tokens] a: number 1 of `products`",
        ),
        (
            ", labels = { sig = \"x\" }",
            "[callback_tokens] a: no label is called `token`",
        ),
    ] {
        let refused = of(rest).unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{rest}: {refused}");
    }
}

#[test]
fn a_key_that_has_expired_verifies_nothing() {
    let text = format!("[signing_keys]\nk = {}\n", key("2026-01-01", "2026-02-01"));
    let credentials = Credentials::parse(&text).unwrap();
    let [before, after]: [Timestamp; 2] =
        ["2026-01-31T23:59:59Z", "2026-02-01T00:00:00Z"].map(|t| t.parse().unwrap());
    let minted = credentials
        .mint(
            BASE,
            None,
            &Labels::new(),
            Duration::from_secs(86_400),
            None,
            before,
        )
        .unwrap();
    let (path, query) = target(&minted.url);
    assert!(credentials.verify_url(path, query, before).is_ok());
    assert_eq!(
        credentials.verify_url(path, query, after),
        Err(UrlRefusal::Invalid)
    );
}

#[test]
fn a_url_has_at_most_512_bytes() {
    let (credentials, _) = vectors();
    let mint = |value: usize| {
        let labels = Labels::from([("l".to_owned(), "x".repeat(value))]);
        credentials
            .mint(
                BASE,
                None,
                &labels,
                Duration::from_secs(1),
                Some("k1"),
                at(0),
            )
            .map(|minted| minted.url.len())
    };
    let overhead = mint(0).unwrap();
    assert_eq!(mint(URL_BYTES_MAX - overhead), Ok(URL_BYTES_MAX));
    assert_eq!(
        mint(URL_BYTES_MAX - overhead + 1),
        Err(MintError::TooLong(URL_BYTES_MAX + 1))
    );
}

#[test]
fn a_label_cannot_have_the_name_of_an_authenticating_parameter() {
    let (credentials, _) = vectors();
    for name in SECRET_PARAMETERS {
        let labels = Labels::from([(name.to_owned(), "x".to_owned())]);
        let minted = credentials.mint(BASE, None, &labels, Duration::from_secs(1), None, at(0));
        assert_eq!(minted, Err(MintError::Reserved(name.to_owned())));
    }
}

#[test]
fn a_token_is_known_by_its_hash_until_it_expires() {
    let (token, other) = (new_secret(true), new_secret(true));
    let text = format!(
        "[callback_tokens]\na = {{ token = \"{}\" }}\nb = {{ token = \"{}\", expires = 2026-01-01 }}\n",
        TokenHash::of(&token),
        TokenHash::of(&other)
    );
    let credentials = Credentials::parse(&text).unwrap();
    let name = |token: &str, now| {
        credentials
            .callback_token(token, now)
            .map(|(name, _)| name.to_string())
    };
    let [before, after]: [Timestamp; 2] =
        ["2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z"].map(|t| t.parse().unwrap());
    assert_eq!(
        (name(&token, before), name(&other, before)),
        (Some("a".into()), Some("b".into()))
    );
    assert_eq!(
        (name(&token, after), name(&other, after)),
        (Some("a".into()), None)
    );
    assert_eq!(name("", before), None);
    assert_eq!(
        name(&TokenHash::of(&token).to_string(), before),
        None,
        "the hash is not the token"
    );
}

#[test]
fn a_client_is_found_by_its_token_or_its_certificate() {
    let token = new_secret(true);
    let text = format!(
        "[clients]\nbilling = {{ token = \"{}\", products = [\"veo\"], subscriptions_max = 3 }}\n\
         studio = {{ certificate = \"studio.internal\", products = [\"*\"], admin = true }}\n",
        TokenHash::of(&token)
    );
    let credentials = Credentials::parse(&text).unwrap();
    let billing = credentials.client_of_token(&token, at(0)).unwrap();
    assert_eq!(
        (&*billing.name, billing.admin, billing.subscriptions_max),
        ("billing", false, Some(3))
    );
    assert!(billing.products.allow("veo") && !billing.products.allow("sora"));
    let certificate = |names: &[&str]| {
        Arc::new(Certificate::new(
            names.iter().map(ToString::to_string).collect(),
            9,
        ))
    };
    let shown = certificate(&["else", "studio.internal"]);
    let studio = credentials.client_of_certificate(&shown, at(0)).unwrap();
    assert!(studio.admin && studio.products.allow("sora"));
    assert!(
        credentials
            .client_of_token("studio.internal", at(0))
            .is_none()
    );
    assert!(
        credentials
            .client_of_certificate(&certificate(&["billing"]), at(0))
            .is_none()
    );

    // All calls of one connection share one client; another connection has its own.
    assert!(Arc::ptr_eq(
        &studio,
        &credentials.client_of_certificate(&shown, at(0)).unwrap()
    ));
    let elsewhere = credentials
        .client_of_certificate(&certificate(&["studio.internal"]), at(0))
        .unwrap();
    assert!(!Arc::ptr_eq(&studio, &elsewhere));

    let is_in = |now| credentials.client_of_certificate(&shown, now).is_some();
    let goes_on = |client: &Client, now| credentials.current(client, now).is_some();
    assert_eq!(
        [is_in(at(9)), goes_on(&studio, at(9))],
        [true; 2],
        "its last second"
    );
    assert_eq!([is_in(at(10)), goes_on(&studio, at(10))], [false; 2]);
    let denial = |certificate: &Certificate| credentials.denial_of_certificate(certificate);
    assert_eq!(denial(&shown), Denial::Expired("studio".into()));
    shown.withdraw();
    assert_eq!(denial(&shown), Denial::Withdrawn("studio".into()));
    assert_eq!(denial(&certificate(&["else"])), Denial::UnknownCertificate);
    assert_eq!(
        [
            is_in(at(0)),
            goes_on(&studio, at(0)),
            goes_on(&elsewhere, at(0))
        ],
        [false, false, true]
    );
}

#[test]
fn a_client_that_takes_backups_needs_no_products_and_another_does() {
    let [nightly, both] = [new_secret(true), new_secret(true)];
    let text = format!(
        "[clients]\nnightly = {{ token = \"{}\", backup = true }}\n\
         both = {{ token = \"{}\", products = [\"veo\"], backup = true }}\n",
        TokenHash::of(&nightly),
        TokenHash::of(&both),
    );
    let credentials = Credentials::parse(&text).unwrap();
    let client = |token: &str| credentials.client_of_token(token, at(0)).unwrap();
    let (nightly, both) = (client(&nightly), client(&both));
    assert_eq!(
        [nightly.backup, nightly.admin, nightly.products.allow("veo")],
        [true, false, false]
    );
    assert_eq!(
        [
            both.backup,
            both.admin,
            both.products.allow("veo"),
            both.products.allow("sora")
        ],
        [true, false, true, false]
    );

    for line in ["", ", products = []", ", backup = false", ", admin = true"] {
        let text = format!(
            "[clients]\na = {{ token = \"{}\"{line} }}",
            TokenHash::of("x")
        );
        let refused = refusal(&text);
        assert!(
            refused.contains("[clients] a: may see nothing") && refused.contains("`backup = true`"),
            "{refused}"
        );
    }
}

#[test]
fn each_mistake_in_the_file_is_reported_by_its_place_and_without_its_secret() {
    let hash = TokenHash::of("x");
    let hash = hash.to_string();
    for (text, expected) in [
        (
            "[callback_tokens]\na = { token = \"hunter2\" }".to_owned(),
            "[callback_tokens] a: the token is not",
        ),
        (
            "[signing_keys]\nk1 = { secret = \"c2hvcnQ\" }".to_owned(),
            "[signing_keys] k1: the secret is not base64url",
        ),
        (
            format!(
                "[signing_keys]\n\"k 1\" = {{ secret = \"{}\" }}",
                new_secret(false)
            ),
            "[signing_keys] line 2: a key's name has",
        ),
        (
            "[body_signature]\nsecret = \"\"".to_owned(),
            "[body_signature] secret: is empty",
        ),
        (
            "[clients]\na = { products = [\"*\"] }".to_owned(),
            "[clients] a: needs either",
        ),
        (
            format!("[clients]\na = {{ token = \"{hash}\", products = [] }}"),
            "[clients] a: may see nothing",
        ),
        (
            format!(
                "[callback_tokens]\na = {{ token = \"{hash}\", previous = {{ token = \"hunter2\" }} }}"
            ),
            "[callback_tokens] a: in `previous`, the token is not",
        ),
        (
            format!(
                "[clients]\na = {{ certificate = \"a\", previous = {{ token = \"{hash}\" }}, products = [\"*\"] }}"
            ),
            "[clients] a: has a `previous` token, but uses a certificate",
        ),
        (
            format!(
                "[clients]\na = {{ token = \"{hash}\", previous = {{ token = \"{hash}\" }}, products = [\"*\"] }}"
            ),
            "[clients] a: has the same token or certificate as a",
        ),
        (
            format!("[clients]\na = {{ token = \"{hash}\", products = [\"V\"] }}"),
            "[clients] a: number 1 of `products`: a product has",
        ),
        (
            format!(
                "[clients]\na = {{ token = \"{hash}\", products = [\"*\"], task_ids_max = 0 }}"
            ),
            "a limit of 0",
        ),
        (
            format!("[clients]\na = {{ token = \"{hash}\", products = [\"*\"], labels = {{}} }}"),
            "[clients] a: `labels` is empty",
        ),
        (
            format!(
                "[clients]\na = {{ token = \"{hash}\", products = [\"*\"], labels = {{ token = \"hunter2\" }} }}"
            ),
            "[clients] a: no label is called `token`",
        ),
        (
            format!(
                "[clients]\na = {{ token = \"{hash}\", products = [\"*\"], labels = {{ t = \"hunter2\" }}, admin = true }}"
            ),
            "[clients] a: is bound to `labels`, and an administrator sees everything",
        ),
        (
            format!(
                "[clients]\na = {{ token = \"{hash}\", products = [\"*\"], labels = {{ t = \"hunter2\" }}, backup = true }}"
            ),
            "[clients] a: is bound to `labels`, and a backup holds everything",
        ),
        (
            format!(
                "[clients]\na={{token=\"{hash}\",products=[\"*\"]}}\nb={{token=\"{hash}\",products=[\"*\"]}}"
            ),
            "[clients] b: has the same token or certificate as a",
        ),
        (
            format!("[callback_tokens]\na = {{ token = \"{hash}\", expires = 12:00:00 }}"),
            "12:00:00 is no point in time",
        ),
        (
            "\n[signing_keys]\nk1 = { secrt = \"hunter2\" }".to_owned(),
            "line 3: unknown field, expected one of `secret`, ",
        ),
        (
            "[signing_keys]\nk1 = { secret = \"hunter2".to_owned(),
            "line 2",
        ),
    ] {
        let refused = refusal(&text);
        assert!(refused.contains(expected), "{refused}");
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}

#[test]
fn a_line_binds_to_as_many_and_as_long_labels_as_an_event_may_have() {
    let bound = |count: usize, key: usize, value: usize| {
        let label = |n| format!("\"{n:a>key$}\" = \"{}\"", "é".repeat(value));
        let labels = (0..count).map(label).collect::<Vec<_>>().join(", ");
        Credentials::parse(&format!(
            "[clients]\na = {{ certificate = \"a\", products = [\"*\"], labels = {{ {labels} }} }}"
        ))
    };
    for (count, key, value) in [(1, 1, 0), (16, 64, 256)] {
        assert!(bound(count, key, value).is_ok(), "{count} {key} {value}");
    }
    for (count, key, value) in [(17, 64, 256), (1, 65, 0), (1, 1, 257)] {
        let refused = bound(count, key, value).unwrap_err().to_string();
        assert!(
            refused.starts_with("[clients] a: `labels` are at most 16; a key has 1 to 64"),
            "{refused}"
        );
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    for (text, expected) in [
        ("callback_tokens = \"hunter2\"", "line 1: expected"),
        (
            "[callback_tokens]\nrunblob = \"hunter2\"",
            "line 2: expected",
        ),
        ("[signing_keys]\nk1 = \"hunter2\"", "line 2: expected"),
        (
            "[signing_keys]\nk1 = { secret = \"x\", created = \"hunter2, expected y\" }",
            "line 2: expected",
        ),
        (
            "[clients]\na = { token = \"x\", products = \"hunter2\" }",
            "line 2: expected a sequence",
        ),
        (
            "[body_signature]\nsecret = 4711",
            "line 2: expected a string",
        ),
        ("body_signature = \"hunter2\"", "line 1: expected"),
        (
            "hunter2 = 1",
            "line 1: unknown field, expected one of `callback_tokens`, ",
        ),
        (
            "\n[hunter2]\n",
            "line 2: unknown field, expected one of `callback_tokens`, ",
        ),
        (
            "[body_signature]\nhunter2 = 1",
            "line 2: unknown field, expected one of `secret`, ",
        ),
        (
            "[body_signature]\nsecret = \"x\"\n\"hunter2, expected y\" = 1",
            "line 3: unknown field, expected one of `secret`, ",
        ),
        (
            "[body_signature]\nsecret = \"x\"\nprevious = \"hunter2\"",
            "line 3: expected a table with `secret`",
        ),
        (
            "[body_signature]\nsecret = \"x\"\nprevious = { secret = \"\" }",
            "[body_signature] previous: is empty",
        ),
        (
            "[clients]\na = { certificate = \"a\", products = [\"*\"], labels = \"hunter2\" }",
            "line 2: expected a map",
        ),
        (
            "[clients]\na = { certificate = \"a\", products = [\"*\"], labels = { t = 4711 } }",
            "line 2: expected a string",
        ),
        (
            "[clients]\na = { hunter2 = 1 }",
            "line 2: unknown field, expected one of `token`, ",
        ),
        (
            "[clients.a]\nhunter2 = 1\nhunter2 = 2",
            "line 3: duplicate key",
        ),
        ("hunter2", "line 1: "),
        ("[clients]\na = hunter2", "line 2: "),
        (
            "[clients]\na = { products = [], created = hunter2 }",
            "line 2: ",
        ),
        (
            "[clients]\nbcast_hunter2 = { products = [] }",
            "[clients] line 2: needs either",
        ),
        (
            "\n\n[clients.bcast_hunter2]\nproducts = []",
            "[clients] line 3: needs either",
        ),
        (
            "[clients]\n\"hunter2 \" = { products = [] }",
            "[clients] line 2: needs either",
        ),
        (
            "[clients]\nhunter2_89_123456789_123456789_123 = { products = [] }",
            "[clients] line 2: needs either",
        ),
        (
            "[clients]\nname_6789_123456789_123456789_12 = { products = [] }",
            "[clients] name_6789_123456789_123456789_12:",
        ),
        (
            "[signing_keys]\nbcast_hunter2 = { secret = \"x\" }",
            "[signing_keys] line 2: the secret is not",
        ),
        (
            "[callback_tokens]\nbcast_hunter2 = { token = \"x\" }",
            "[callback_tokens] line 2: the token is not",
        ),
        (
            "[clients]\na = { certificate = \"a\", products = [\"veo\", \"Hunter2 hunter2\"] }",
            "[clients] a: number 2 of `products`: ",
        ),
        (
            "[clients]\nbcast_hunter2 = { certificate = \"a\", products = [\"*\"] }\n\
             c = { certificate = \"a\", products = [\"*\"] }",
            "[clients] c: has the same token or certificate as line 2",
        ),
    ] {
        let error = Credentials::parse(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
        assert!(
            !error.contains("hunter2") && !error.contains("4711"),
            "{text}: {error}"
        );
    }
}

#[test]
fn beside_a_secret_the_one_before_is_good_for_its_own_time() {
    let (old, new) = (new_secret(true), new_secret(true));
    let hash = |token: &str| TokenHash::of(token).to_string();
    let entry = |rest: &str| {
        format!(
            "a = {{ token = \"{}\", previous = {{ token = \"{}\", expires = 2026-01-01 }}, expires = 2027-01-01{rest} }}\n",
            hash(&new),
            hash(&old)
        )
    };
    let text = format!(
        "[callback_tokens]\n{}[clients]\n{}",
        entry(""),
        entry(", products = [\"*\"]")
    );
    let credentials = Credentials::parse(&text).unwrap();
    let times = [
        "2025-12-31T23:59:59Z",
        "2026-01-01T00:00:00Z",
        "2027-01-01T00:00:00Z",
    ]
    .map(|t| t.parse().unwrap());
    let of_url = |token: &str| {
        times.map(|now| {
            credentials
                .callback_token(token, now)
                .map(|(_, which)| which)
        })
    };
    let of_client = |token: &str| {
        times.map(|now| {
            credentials
                .client_of_token(token, now)
                .map(|it| it.generation())
        })
    };
    let (current, previous) = (Some(Generation::Current), Some(Generation::Previous));
    for (token, expected) in [
        (&old, [previous, None, None]),
        (&new, [current, current, None]),
    ] {
        assert_eq!((of_url(token), of_client(token)), (expected, expected));
    }
    assert_eq!(
        (credentials.counts(), credentials.expired_clients(times[1])),
        ([1, 0, 1], 1)
    );

    // A stream that either token authenticated continues as long as that token is valid.
    for (token, goes_on) in [(&old, [true, false, false]), (&new, [true, true, false])] {
        let client = credentials.client_of_token(token, times[0]).unwrap();
        assert_eq!(
            times.map(|now| credentials.current(client, now).is_some()),
            goes_on
        );
    }
    let before = Credentials::parse(&format!(
        "[clients]\na = {{ token = \"{}\", products = [\"*\"] }}",
        hash(&old)
    ))
    .unwrap();
    assert!(
        credentials
            .current(&before.clients["a"].client, times[0])
            .is_some(),
        "nor does the rotation end one"
    );
    let expiries = credentials
        .expiries()
        .into_iter()
        .map(|(kind, name, at)| (kind, name.to_string(), at));
    let expected = ["callback_token", "client"].map(|kind| (kind, "a".to_owned(), times[2]));
    assert_eq!(
        expiries.collect::<Vec<_>>(),
        expected,
        "what is being replaced is to end"
    );
}

#[test]
fn a_url_that_the_secret_before_has_signed_is_good_as_long_as_that_is() {
    let (old, new) = (new_secret(false), new_secret(false));
    let now: Timestamp = "2026-05-01T00:00:00Z".parse().unwrap();
    let mint = |text: &str| {
        let credentials = Credentials::parse(text).unwrap();
        credentials
            .mint(
                BASE,
                None,
                &Labels::new(),
                Duration::from_secs(86_400),
                None,
                now,
            )
            .unwrap()
            .url
    };
    let before = format!("[signing_keys]\nk = {{ secret = \"{old}\" }}");
    let both = format!(
        "[signing_keys]\nk = {{ secret = \"{new}\", previous = {{ secret = \"{old}\", expires = 2026-05-01T12:00:00Z }} }}"
    );
    let credentials = Credentials::parse(&both).unwrap();
    let by = |url: &str, now: Timestamp| {
        let (path, query) = target(url);
        credentials
            .verify_url(path, query, now)
            .map(|(_, which)| which)
    };
    let noon = "2026-05-01T12:00:00Z".parse().unwrap();
    let (by_old, by_new) = (mint(&before), mint(&both));
    assert_eq!(
        (by(&by_old, now), by(&by_new, now)),
        (Ok(Generation::Previous), Ok(Generation::Current))
    );
    assert_eq!(
        (by(&by_old, noon), by(&by_new, noon)),
        (Err(UrlRefusal::Invalid), Ok(Generation::Current))
    );
}

#[test]
fn a_name_fits_into_every_event() {
    let line = |name: &str, rest: &str| {
        format!("{name} = {{ token = \"{}\"{rest} }}\n", TokenHash::of("x"))
    };
    for (section, rest) in [("callback_tokens", ""), ("clients", ", products = [\"*\"]")] {
        let parse = |bytes: usize| {
            Credentials::parse(&format!("[{section}]\n{}", line(&"n".repeat(bytes), rest)))
        };
        assert!(parse(128).is_ok());
        assert!(
            parse(129)
                .unwrap_err()
                .to_string()
                .contains("at most 128 bytes")
        );
    }
}

#[test]
fn secrets_are_not_shown_by_debug() {
    let secret = new_secret(false);
    let text = format!(
        "[signing_keys]\nk1 = {{ secret = \"{secret}\" }}\n[body_signature]\nsecret = \"hunter2\"\n"
    );
    let shown = format!("{:?}", Credentials::parse(&text).unwrap());
    assert!(
        !shown.contains("hunter2") && !shown.contains(&secret) && shown.contains("Secret(…)"),
        "{shown}"
    );
}

#[test]
fn a_client_stays_itself_as_long_as_it_shows_the_same_and_has_not_expired() {
    let [old, new] = [new_secret(true), new_secret(true)].map(|token| TokenHash::of(&token));
    let parse = |hash: &TokenHash, rest: &str| {
        Credentials::parse(&format!("[clients]\na = {{ token = \"{hash}\", {rest} }}")).unwrap()
    };
    let before = parse(&old, "products = [\"veo\"]");
    let client = &before.clients["a"].client;
    assert!(
        parse(&old, "products = [\"sora\"], subscriptions_max = 1")
            .current(client, at(0))
            .is_some()
    );
    assert!(
        parse(&new, "products = [\"veo\"]")
            .current(client, at(0))
            .is_none()
    );
    let expired = parse(&old, "products = [\"veo\"], expires = 1960-01-01");
    assert!(expired.current(client, at(0)).is_none());
    assert_eq!(
        (
            expired.expired_clients(at(0)),
            before.expired_clients(at(0))
        ),
        (1, 0)
    );
    assert!(Credentials::default().current(client, at(0)).is_none());
}

#[test]
fn required_authentication_stays_required_when_the_last_credential_is_removed() {
    let hash = TokenHash::of("secret");
    let (token, client) = ("[callback_tokens]\na = ", "[clients]\na = ");
    let token = Credentials::parse(&format!("{token}{{ token = \"{hash}\" }}")).unwrap();
    let client = Credentials::parse(&format!(
        "{client}{{ token = \"{hash}\", products = [\"*\"] }}"
    ))
    .unwrap();
    let shared = SharedCredentials::default();
    let asked = |credentials: &Credentials| {
        shared.set(credentials.clone());
        (shared.get().verify_urls(), shared.get().verify_clients())
    };
    let nothing = Credentials::default();
    let told = [&nothing, &token, &nothing, &nothing, &client, &nothing].map(asked);
    assert_eq!(
        told,
        [
            (false, false),
            (true, false),
            (true, false),
            (true, false),
            (true, true),
            (true, true)
        ]
    );
    assert!(shared.get().callback_token("secret", at(0)).is_none());
    assert!(shared.get().client_of_token("secret", at(0)).is_none());
}

#[test]
fn a_refusal_has_a_cause_and_the_name_of_the_current_or_removed_line() {
    let shared = SharedCredentials::default();
    let line =
        |name: &str, token: &str| format!("{name} = {{ token = \"{}\" }}\n", TokenHash::of(token));
    let set = |lines: &[String]| {
        shared.set(Credentials::parse(&format!("[callback_tokens]\n{}", lines.concat())).unwrap());
    };
    let cause = |token: &str| {
        let denial = shared.get().denial_of_token(Some(token));
        (
            denial.cause(),
            denial.name().map(ToString::to_string).unwrap_or_default(),
        )
    };
    set(&[line("a", "first"), line("b", "other")]);
    assert_eq!(
        cause("first"),
        ("expired", "a".into()),
        "what is there, and was refused, has expired"
    );
    set(&[line("a", "second")]);
    assert_eq!(
        (cause("first"), cause("other")),
        (("removed", "a".into()), ("removed", "b".into()))
    );
    assert_eq!(cause("third"), ("unknown_token", String::new()));
    set(&[line("c", "first")]);
    assert_eq!(
        (cause("first"), cause("second")),
        (("expired", "c".into()), ("removed", "a".into())),
        "it is back"
    );
    assert_eq!(shared.get().denial_of_token(None), Denial::Missing);
    // Only the newest removed secrets are remembered.
    for number in 0..=256 {
        set(&[line("n", &format!("token {number}"))]);
    }
    assert_eq!(
        (cause("second").0, cause("token 0").0, cause("token 255").0),
        ("unknown_token", "removed", "removed")
    );
    set(&[line("n", "token 257")]);
    assert_eq!(
        (cause("token 0").0, cause("token 1").0),
        ("unknown_token", "removed")
    );
}

#[test]
fn a_refused_url_has_the_name_of_its_key_only_where_the_signature_proves_it() {
    let keys = |lines: &str| Credentials::parse(&format!("[signing_keys]\n{lines}")).unwrap();
    let (k1, old) = (
        key("2026-01-01", "2027-01-01"),
        key("2020-01-01", "2021-01-01"),
    );
    let all = keys(&format!("k1 = {k1}\nold = {old}\n"));
    let (then, now) = (at(1_600_000_000), at(1_790_000_000));
    let minted = |key: &str, now, seconds| {
        all.mint(
            BASE,
            None,
            &Labels::default(),
            Duration::from_secs(seconds),
            Some(key),
            now,
        )
        .unwrap()
        .url
    };
    let (good, late, expired) = (
        minted("k1", now, 100),
        minted("k1", now, 0),
        minted("old", then, 1 << 30),
    );
    let shared = SharedCredentials::default();
    shared.set(all.clone());
    let cause = |url: &str, now| {
        let (path, query) = target(url);
        let denial = shared.get().denial_of_url(&[path], query, now);
        (denial.cause(), denial.name().map(ToString::to_string))
    };
    let later = at(1_790_000_010);
    assert_eq!(cause(&late, later), ("url_expired", Some("k1".into())));
    assert_eq!(cause(&expired, now), ("expired", Some("old".into())));
    assert_eq!(
        cause(&good.replace("/webhook?", "/webhook/veo?"), now),
        ("bad_signature", None)
    );
    assert_eq!(
        cause(&good.replace("kid=k1", "kid=k9"), now),
        ("unknown_key", None)
    );
    assert_eq!(
        cause(&good.replace("kid=k1&", ""), now),
        ("bad_signature", None)
    );
    shared.set(keys(&format!("old = {old}\n")));
    assert_eq!(cause(&good, now), ("removed", Some("k1".into())));
    // A name that was in the file proves nothing: anybody may know it.
    assert_eq!(
        cause(&good.replace("exp=1", "exp=2"), now),
        ("unknown_key", None)
    );
}

proptest! {
    #[test]
    fn a_minted_url_is_verified_and_keeps_its_labels(
        labels in prop::collection::btree_map("[a-z]{1,6}", "\\PC{0,8}", 0..4),
        product in prop::option::of("[a-z][a-z0-9-]{0,9}"),
        seconds in 0u32..100_000,
    ) {
        prop_assume!(labels.keys().all(|name| !SECRET_PARAMETERS.contains(&name.as_str())));
        let (credentials, _) = vectors();
        let product = product.map(|product| Product::parse(&product).unwrap());
        let ttl = Duration::from_secs(seconds.into());
        let minted = credentials.mint(BASE, product.as_ref(), &labels, ttl, None, at(1_000)).unwrap();
        let (path, query) = target(&minted.url);
        prop_assert_eq!(credentials.verify_url(path, query, at(1_000)), Ok((&minted.key_id, Generation::Current)));
        prop_assert_eq!(credentials.verify_url(path, query, minted.expires), Err(UrlRefusal::Expired));
        let got: Labels = form_urlencoded::parse(query.as_bytes())
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .filter(|(key, _)| !SECRET_PARAMETERS.contains(&key.as_str()))
            .collect();
        prop_assert_eq!(got, labels);
    }

    #[test]
    fn any_query_is_accepted_or_refused(path: String, query: String, text: String) {
        let (credentials, _) = vectors();
        prop_assert!(credentials.verify_url(&path, &query, at(0)).is_err());
        let _ = Credentials::parse(&text).is_ok();
    }
}

#[test]
fn a_change_is_reported_by_the_fields_that_differ_and_by_no_value() {
    let [token, other] = [TokenHash::of("a"), TokenHash::of("b")].map(|hash| hash.to_string());
    let changes = |section: &str, old: &str, new: &str| {
        let parse = |fields: &str| {
            Credentials::parse(&format!("[{section}]\nit = {{ {fields} }}")).unwrap()
        };
        parse(new).changes_from(&parse(old))
    };
    let time = "2030-01-01T00:00:00Z";

    let client = format!("token = \"{token}\", products = [\"veo\"]");
    for (new, fields) in [
        (client.replace(&token, &other), "token"),
        (
            client.replace(
                &format!("token = \"{token}\""),
                "certificate = \"it.internal\"",
            ),
            "token, certificate",
        ),
        (format!("{client}, created = {time}"), "created"),
        (format!("{client}, expires = {time}"), "expires"),
        (
            format!("{client}, previous = {{ token = \"{other}\", expires = {time} }}"),
            "previous",
        ),
        (client.replace("\"veo\"", "\"*\""), "products"),
        (format!("{client}, labels = {{ team = \"ads\" }}"), "labels"),
        (format!("{client}, admin = true"), "admin"),
        (format!("{client}, backup = true"), "backup"),
        (
            format!("{client}, subscriptions_max = 7"),
            "subscriptions_max",
        ),
        (format!("{client}, task_ids_max = 7"), "task_ids_max"),
        (
            format!("token = \"{other}\", products = [\"*\"], admin = true"),
            "token, products, admin",
        ),
    ] {
        assert_eq!(
            changes("clients", &client, &new),
            [format!("client it changed: {fields}")]
        );
        assert_eq!(
            changes("clients", &new, &client),
            [format!("client it changed: {fields}")]
        );
    }
    assert!(changes("clients", &client, &client).is_empty());

    // During a rotation a change of the client's permissions is reported as its own field.
    let rotated = format!("{client}, previous = {{ token = \"{other}\", expires = {time} }}");
    assert_eq!(
        changes("clients", &rotated, &rotated.replace("veo", "sora")),
        ["client it changed: products"]
    );

    let secret = new_secret(false);
    for (section, kind, field, value, replaced) in [
        ("callback_tokens", "callback_token", "token", &token, &other),
        (
            "signing_keys",
            "signing_key",
            "secret",
            &secret,
            &new_secret(false),
        ),
    ] {
        let line = format!("{field} = \"{value}\"");
        for (new, fields) in [
            (line.replace(value.as_str(), replaced), field),
            (format!("{line}, created = {time}"), "created"),
            (format!("{line}, expires = {time}"), "expires"),
            (
                format!("{line}, previous = {{ {field} = \"{replaced}\", expires = {time} }}"),
                "previous",
            ),
            (
                format!("{line}, bytes_per_minute_max = \"1MiB\""),
                "bytes_per_minute_max",
            ),
            (format!("{line}, products = [\"veo\"]"), "products"),
            (format!("{line}, labels = {{ team = \"ads\" }}"), "labels"),
        ] {
            assert_eq!(
                changes(section, &line, &new),
                [format!("{kind} it changed: {fields}")]
            );
            assert_eq!(
                changes(section, &new, &line),
                [format!("{kind} it changed: {fields}")]
            );
        }
    }

    let body = |secret: &str| {
        Credentials::parse(&format!("[body_signature]\nsecret = \"{secret}\"")).unwrap()
    };
    assert_eq!(
        body("one secret").changes_from(&body("another")),
        ["body_signature changed: secret"]
    );
    assert_eq!(
        body("one secret").changes_from(&Credentials::default()),
        ["body_signature added"]
    );
}

fn vendor_keys(lines: &[&str]) -> String {
    lines
        .iter()
        .map(|line| format!("[[vendor_keys]]\n{line}\n"))
        .collect()
}

#[test]
fn vendor_keys_keep_the_order_of_the_file_and_are_for_every_product_unless_they_say_so() {
    let text = vendor_keys(&[
        "name = \"b\"\nkey = \"one\"\nproducts = [\"veo\"]",
        "name = \"a.1\"\nkey = \"two\"",
        "name = \"c\"\nkey = \"three\"\nproducts = [\"*\"]",
    ]);
    let keys: Vec<_> = Credentials::parse(&text).unwrap().vendor_keys().collect();
    let shown: Vec<_> = keys
        .iter()
        .map(|key| (&*key.name, key.key.reveal(), key.products.allow("sora")))
        .collect();
    assert_eq!(
        shown,
        [
            ("b", "one", false),
            ("a.1", "two", true),
            ("c", "three", true)
        ]
    );
}

#[test]
fn a_wrong_vendor_key_is_reported_by_its_name_and_never_shown() {
    let long = "x".repeat(API_KEY_BYTES_MAX + 1);
    let long = format!("name = \"a\"\nkey = \"{long}\"");
    for (lines, expected) in [
        (
            &["name = \"a\""][..],
            "[vendor_keys] a: needs either `key` or `key_file`",
        ),
        (
            &["name = \"a\"\nkey = \"hunter2\"\nkey_file = \"k\""],
            "needs either",
        ),
        (&["name = \"a\"\nkey_file = \"\""], "needs either"),
        (&["name = \"a\"\nkey = \"\""], "a: the key is not 1 to 1024"),
        (&["name = \"a\"\nkey = \"hunter2 b\""], "a: the key is not"),
        (&["name = \"a\"\nkey = \"hunter2é\""], "a: the key is not"),
        (&[&*long], "a: the key is not"),
        (
            &["name = \"hunter2/\"\nkey = \"k\""],
            "[vendor_keys] line 2: a name has",
        ),
        (&["key = \"hunter2\""], "missing field `name`"),
        (&["name = \"a\"\nkey = 5"], "line 3: expected a string"),
        (
            &["name = \"a\"\nkey = \"hunter2\"\nkye = 1"],
            "line 4: unknown field",
        ),
        (
            &["name = \"a\"\nkey = \"hunter2\"\nproducts = []"],
            "`products` is empty",
        ),
        (
            &["name = \"a\"\nkey = \"hunter2\"\nproducts = [\"V\"]"],
            "number 1 of `products`",
        ),
        (
            &[
                "name = \"a\"\nkey = \"hunter2\"",
                "name = \"a\"\nkey = \"k\"",
            ],
            "[vendor_keys] a: has the name of an earlier line",
        ),
        (
            &[
                "name = \"a\"\nkey = \"hunter2\"",
                "name = \"b\"\nkey = \"hunter2\"",
            ],
            "[vendor_keys] b: has the same key as a",
        ),
        (
            &[
                "name = \"a\"\nkey_file = \"/k\"",
                "name = \"b\"\nkey_file = \"/k\"",
            ],
            "[vendor_keys] b: has the same key as a",
        ),
    ] {
        let refused = refusal(&vendor_keys(lines));
        assert!(refused.contains(expected), "{refused}");
        assert!(!refused.contains("hunter2"), "{refused}");
    }
    let refused = refusal("vendor_keys = \"hunter2\"");
    assert!(!refused.contains("hunter2"), "{refused}");
}

#[test]
fn there_are_at_most_64_vendor_keys() {
    let line = |n: usize| format!("name = \"k{n}\"\nkey = \"secret-{n}\"");
    let file = |count| {
        let lines: Vec<_> = (0..count).map(line).collect();
        vendor_keys(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(VENDOR_KEYS_MAX, 64);
    let all = Credentials::parse(&file(64)).unwrap();
    assert_eq!(all.vendor_keys().count(), 64);
    let refused = refusal(&file(65));
    assert!(
        refused.contains("[vendor_keys] k64: is one too many") && !refused.contains("secret-"),
        "{refused}"
    );
}

#[test]
fn a_key_file_is_read_without_its_line_break_and_holds_one_key() {
    let text = vendor_keys(&[
        "name = \"a\"\nkey = \"hunter1\"",
        "name = \"b\"\nkey_file = \"/keys/b\"",
    ]);
    let read = |content: &'static str| {
        let mut credentials = Credentials::parse(&text).unwrap();
        let unread: Vec<_> = credentials.vendor_keys().map(|key| key.name).collect();
        assert_eq!(unread, [Arc::from("a")], "it has no key yet");
        credentials.read_key_files(
            |path| {
                assert_eq!(path, std::path::Path::new("/keys/b"));
                Ok::<_, String>(content.to_owned())
            },
            |name, path, problem| format!("{name}: {}: {problem}", path.display()),
        )?;
        let last = credentials.vendor_keys().last().unwrap();
        Ok::<_, String>(last.key.reveal().to_owned())
    };
    for content in ["hunter2", "hunter2\n", "hunter2\r\n"] {
        assert_eq!(read(content).unwrap(), "hunter2");
    }
    for (content, why) in [
        ("", "b: /keys/b: the key is not 1 to 1024"),
        ("hunter2\nhunter3\n", "b: /keys/b: the key is not"),
        ("hunter1\n", "b: /keys/b: has the same key as a"),
    ] {
        let problem = read(content).unwrap_err();
        assert!(problem.contains(why), "{problem}");
        assert!(!problem.contains("hunter"), "{problem}");
    }
}

#[test]
fn a_change_of_vendor_keys_is_reported_by_the_fields_that_differ_and_by_no_value() {
    let [a, b] = [
        "name = \"a\"\nkey = \"hunter2\"",
        "name = \"b\"\nkey_file = \"/b\"",
    ];
    let changes = |old: &[&str], new: &[&str]| {
        let [old, new] = [old, new].map(|lines| Credentials::parse(&vendor_keys(lines)).unwrap());
        new.changes_from(&old)
    };
    let none: [&str; 0] = [];
    assert_eq!(changes(&[a, b], &[a, b]), none);
    assert_eq!(changes(&[a], &[a, b]), ["vendor_key b added"]);
    assert_eq!(changes(&[a, b], &[b]), ["vendor_key a removed"]);
    assert_eq!(changes(&[a, b], &[b, a]), ["vendor_keys changed: order"]);
    for (new, fields) in [
        (a.replace("hunter2", "hunter3"), "key"),
        (format!("{a}\nproducts = [\"veo\"]"), "products"),
        (
            a.replace("key = \"hunter2\"", "key_file = \"/a\""),
            "key, key_file",
        ),
    ] {
        assert_eq!(
            changes(&[a, b], &[&*new, b]),
            [format!("vendor_key a changed: {fields}")]
        );
    }
    let names = Credentials::parse(&vendor_keys(&[a, b])).unwrap().names();
    assert_eq!(names, ["vendor_key a", "vendor_key b"]);
}

#[test]
fn a_vendor_key_is_not_shown_by_debug() {
    let text = vendor_keys(&["name = \"a\"\nkey = \"hunter2\""]);
    let credentials = Credentials::parse(&text).unwrap();
    let shown = format!("{credentials:?} {:?}", credentials.vendor_keys().next());
    assert!(
        !shown.contains("hunter2") && shown.contains("ApiKey(…)"),
        "{shown}"
    );
}

#[test]
fn a_rotation_leaves_vendor_keys_as_they_are() {
    let keys = vendor_keys(&["name = \"a\" # ours\nkey = \"hunter2\""]);
    let [old, new] = ["a", "b"].map(|token| TokenHash::of(token).to_string());
    let text = format!("[callback_tokens]\nt = {{ token = \"{old}\" }}\n\n{keys}");
    let target = Target::CallbackToken("t".to_owned());
    let secret = NewSecret {
        text: new,
        created: at(0),
        expires: None,
        previous_expires: None,
    };
    let rotated = rotate(&text, &target, &secret).unwrap();
    assert!(rotated.ends_with(&keys), "{rotated}");
    let keys = |text| Credentials::parse(text).unwrap().vendor_keys().count();
    assert_eq!([keys(&text), keys(&rotated)], [1, 1]);
}
