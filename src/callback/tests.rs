//! Callbacks as they are sent, and what is made of them.

use proptest::prelude::*;

use super::*;

const BODY: &[u8] = br#"{"generation_id":"t1","status":"completed","video_url":"https://x/v.mp4"}"#;

fn callback(product: Option<&str>, query: &str) -> Callback {
    Callback {
        product: product.map(str::to_owned),
        near_miss: None,
        query: query.to_owned(),
        body: Bytes::from_static(BODY),
        received_at: Timestamp::UNIX_EPOCH,
        verification: Verification::Unverified,
        credential: String::new(),
        bound: None,
    }
}

fn reason(callback: &Callback) -> &'static str {
    callback
        .draft(&Corrections::default())
        .unwrap_err()
        .reason()
}

#[test]
fn query_parameters_become_labels_and_secrets_do_not() {
    let draft = callback(
        Some("veo"),
        "team=ads&token=s3cret&ref=order%2042&sig=x&exp=1&kid=k&team=film",
    );
    let draft = draft.draft(&Corrections::default()).unwrap();
    let labels: Vec<_> = draft
        .labels
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(labels, [("ref", "order 42"), ("team", "film")]);
}

#[test]
fn the_kept_target_has_no_secrets_even_percent_encoded() {
    let target = callback(
        Some("veo"),
        "team=ads&token=s3cret&%74oken=s3cret&sig=x&&ref=a%26b",
    )
    .target();
    assert_eq!(target, "/webhook/veo?team=ads&ref=a%26b");
    let again = Callback::from_target(
        &target,
        Bytes::new(),
        Timestamp::UNIX_EPOCH,
        Verification::UrlToken,
        "",
    );
    assert_eq!(
        (again.target(), again.product.as_deref()),
        (target, Some("veo"))
    );
}

#[test]
fn the_kept_target_has_no_secrets_of_a_query_that_was_taken_for_a_product() {
    for (sent, kept) in [
        ("/webhook/veo&token=s3cret", "/webhook/veo&token="),
        (
            "/webhook/veo&token=s3cret&team=ads&sig=s3cret",
            "/webhook/veo&token=&team=ads&sig=",
        ),
        (
            "/webhook/veo%26TOKEN%3Ds3cret%26team=ads",
            "/webhook/veo%26TOKEN%3D%26team=ads",
        ),
        (
            "/webhook/veo%3f%74oken=s3%63ret;kid=s3cret",
            "/webhook/veo%3f%74oken=;kid=",
        ),
        (
            "/webhook/veo/exp=s3cret?team=ads",
            "/webhook/veo-exp=?team=ads",
        ),
        ("/webhook/bcast_s3cret", "/webhook/bcast_"),
        (
            "/webhook/veo&x=%62cast_s3cret&y=1",
            "/webhook/veo&x=%62cast_&y=1",
        ),
        (
            "/webhook/veo&mytoken=1&a=token",
            "/webhook/veo&mytoken=1&a=token",
        ),
    ] {
        let read = |target: &str| {
            Callback::from_target(
                target,
                BODY.into(),
                Timestamp::UNIX_EPOCH,
                Verification::UrlToken,
                "",
            )
        };
        assert_eq!(
            (read(sent).target().as_str(), reason(&read(sent))),
            (kept, "bad_product"),
            "{sent}"
        );
        assert_eq!(
            (read(kept).target().as_str(), reason(&read(kept))),
            (kept, "bad_product"),
            "{sent}"
        );
    }
}

#[test]
fn labels_fit_up_to_their_limits_and_not_beyond() {
    let query = |count: usize, key: usize, value: usize| {
        let label = |n| format!("{n:a>key$}={}", "é".repeat(value));
        (0..count).map(label).collect::<Vec<_>>().join("&")
    };
    for (count, key, value) in [(16, 64, 256), (1, 1, 0), (0, 1, 0)] {
        let draft = callback(None, &query(count, key, value))
            .draft(&Corrections::default())
            .unwrap();
        assert_eq!(draft.labels.len(), count);
    }
    for (count, key, value) in [(17, 64, 256), (1, 65, 0), (1, 1, 257)] {
        assert_eq!(
            reason(&callback(None, &query(count, key, value))),
            "bad_labels"
        );
    }
    assert_eq!(reason(&callback(None, "=x")), "bad_labels");
}

fn bound(products: &[&str], labels: &[(&str, &str)]) -> Option<Arc<Binding>> {
    let products = match products {
        [] => Products::All,
        some => Products::Only(
            some.iter()
                .map(|product| Product::parse(product).unwrap())
                .collect(),
        ),
    };
    let labels = labels
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Some(Arc::new(Binding { products, labels }))
}

#[test]
fn bound_labels_are_on_each_event_and_count_with_those_of_the_url() {
    let ads = bound(&[], &[("team", "ads")]);
    for (query, drop_labels, expected) in [
        ("", false, vec![("team", "ads")]),
        ("ref=42", false, vec![("ref", "42"), ("team", "ads")]),
        (
            "ref=42&team=ads",
            false,
            vec![("ref", "42"), ("team", "ads")],
        ),
        // Refused before it gets here; if it did, this is what counts.
        ("team=film", false, vec![("team", "ads")]),
        ("ref=42", true, vec![("team", "ads")]),
    ] {
        let callback = Callback {
            bound: ads.clone(),
            ..callback(Some("veo"), query)
        };
        let draft = callback
            .draft(&Corrections {
                drop_labels,
                ..Corrections::default()
            })
            .unwrap();
        let labels: Vec<_> = draft
            .labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(labels, expected, "{query}");
    }
    let of_url = |count: usize| {
        (0..count)
            .map(|n| format!("l{n}="))
            .collect::<Vec<_>>()
            .join("&")
    };
    for (count, fits) in [(15, true), (16, false)] {
        let callback = Callback {
            bound: ads.clone(),
            ..callback(Some("veo"), &of_url(count))
        };
        assert_eq!(
            callback
                .draft(&Corrections::default())
                .map(|draft| draft.labels.len())
                .ok(),
            fits.then_some(16)
        );
        let dropped = callback
            .draft(&Corrections {
                drop_labels: true,
                ..Corrections::default()
            })
            .unwrap();
        assert_eq!(
            dropped.labels.len(),
            1,
            "the way out of quarantine leaves what is bound"
        );
    }
}

#[test]
fn a_callback_is_of_a_product_that_its_credential_is_bound_to_unless_an_operator_says_otherwise() {
    // Of the shape of veo's.
    let body = Bytes::from_static(br#"{"generation_id":"t1","status":"completed","seed":7}"#);
    let callback = |product: Option<&str>, query: &str| Callback {
        body: body.clone(),
        ..callback(product, query)
    };
    let veo = bound(&["veo"], &[]);
    let of = |product: Option<&str>| Callback {
        bound: veo.clone(),
        ..callback(product, "")
    };
    for product in [Some("veo"), None] {
        assert_eq!(
            of(product)
                .draft(&Corrections::default())
                .unwrap()
                .product
                .as_str(),
            "veo",
            "named or inferred"
        );
    }
    assert_eq!(reason(&of(Some("sora"))), "product_denied");
    let drafted = |callback: &Callback| {
        let draft = callback.draft(&Corrections::default());
        draft
            .map(|draft| draft.product.to_string())
            .map_err(|rejection| rejection.reason())
    };
    // What is inferred is a guess: of one product the credential says which, of several an operator does.
    let unknown = Bytes::from_static(br#"{"generation_id":"t1","status":"completed"}"#);
    for body in [body.clone(), unknown] {
        let one = Callback {
            bound: bound(&["sora"], &[]),
            body: body.clone(),
            ..callback(None, "")
        };
        assert_eq!(drafted(&one).as_deref(), Ok("sora"));
        let several = Callback {
            bound: bound(&["sora", "kling"], &[]),
            ..one
        };
        assert_eq!(drafted(&several), Err("no_product"));
    }
    let fitting = Callback {
        bound: bound(&["sora", "veo"], &[]),
        ..callback(None, "")
    };
    assert_eq!(drafted(&fitting).as_deref(), Ok("veo"));
    let other = Callback {
        bound: bound(&["sora", "gemini"], &[]),
        ..callback(None, "")
    };
    let corrections = Corrections {
        product: Some(Product::parse("kling").unwrap()),
        ..Corrections::default()
    };
    assert_eq!(
        other.released(&corrections).unwrap()[0].product.as_str(),
        "kling"
    );
    assert_eq!(
        other
            .released(&Corrections::default())
            .unwrap_err()
            .reason(),
        "no_product"
    );
}

#[test]
fn the_same_words_of_two_tenants_are_two_events_and_of_one_a_repeat() {
    let fingerprint = |bound: Option<Arc<Binding>>| {
        Callback {
            bound,
            ..callback(Some("veo"), "")
        }
        .draft(&Corrections::default())
        .unwrap()
        .fingerprint
    };
    let labels: [&[(&str, &str)]; 5] = [
        &[],
        &[("team", "ads")],
        &[("team", "film")],
        &[("tea", "mads")],
        &[("team", "ads"), ("site", "b")],
    ];
    for (at, one) in labels.iter().enumerate() {
        for (other_at, other) in labels.iter().enumerate() {
            let is_repeat =
                fingerprint(bound(&[], one)).repeats(fingerprint(bound(&["veo"], other)));
            assert_eq!(is_repeat, at == other_at, "{one:?} {other:?}");
            assert!(!fingerprint(bound(&[], one)).contradicts(fingerprint(bound(&[], other))));
        }
    }
    assert!(
        fingerprint(None).repeats(fingerprint(bound(&["veo"], &[]))),
        "products alone make no tenant"
    );
}

#[test]
fn what_a_callback_is_bound_to_is_kept_with_it() {
    for bound in [
        None,
        bound(&["veo", "sora"], &[]),
        bound(&[], &[("team", "ads")]),
        bound(&["veo"], &[("a", "b")]),
    ] {
        let bound = Callback {
            bound,
            ..callback(Some("veo"), "")
        };
        let again = callback(Some("veo"), "").bound_as_kept(&bound.kept_bound());
        assert_eq!(again.bound, bound.bound);
    }
    // What cannot be read binds to no product at all, rather than to any.
    let damaged = Bound {
        products: vec!["?".to_owned()],
        ..Bound::default()
    };
    assert_eq!(
        reason(&callback(Some("veo"), "").bound_as_kept(&damaged)),
        "product_denied"
    );
}

#[test]
fn the_event_of_the_largest_body_is_one_that_every_client_takes() {
    // What takes most bytes for its own: a code that is the message, too, of characters that grow on their way,
    // beside details as large as may be.
    const BODY_BYTES: usize = 1024 * 1024;
    let numbers = ["1"; 87_000].join(",");
    for part in ["A", "é", r"\u00e9", r"\ud83d", r"\ud83d\ude00", r"\n"] {
        let body = |code: &str| {
            format!(
                r#"{{"id":"t","status":"failed","error":{{"code":"{code}","details":{{"a":[{numbers}]}}}}}}"#
            )
        };
        let room = BODY_BYTES - body("").len();
        let mut callback = callback(Some("veo"), "");
        callback.body = body(&part.repeat(room / part.len())).into();
        let draft = callback.draft(&Corrections::default()).unwrap();
        let bytes = draft.event.len() + draft.raw.len();
        assert!(
            draft.event.len() > 900_000 && bytes < 4 * 1024 * 1024 - 64 * 1024,
            "{part}: {bytes} bytes"
        );
    }
}

#[test]
fn an_operator_can_correct_what_the_url_or_the_body_got_wrong() {
    let mut wrong = callback(Some("Veo!"), "=x");
    wrong.body = Bytes::from_static(br#"{"status":"completed"}"#);
    assert_eq!(reason(&wrong), "bad_product");
    let corrections = Corrections {
        product: Some(Product::parse("veo").unwrap()),
        task_id: Some(TaskId::parse("t9").unwrap()),
        drop_labels: true,
        ..Corrections::default()
    };
    let draft = wrong.draft(&corrections).unwrap();
    assert_eq!(
        (draft.product.as_str(), draft.task_id.as_str()),
        ("veo", "t9")
    );
}

#[test]
fn a_near_miss_is_kept_as_it_came_and_read_once_its_product_is_named() {
    for target in [
        "/Webhook/veo?team=ads",
        "/api/webhook/kling/o1-video",
        "/webhooks",
    ] {
        let near = Callback::from_target(
            target,
            BODY.into(),
            Timestamp::UNIX_EPOCH,
            Verification::UrlToken,
            "",
        );
        assert_eq!(
            (near.target().as_str(), reason(&near)),
            (target, "bad_path")
        );
        let corrections = Corrections {
            product: Some(Product::parse("veo").unwrap()),
            ..Default::default()
        };
        assert_eq!(near.draft(&corrections).unwrap().product.as_str(), "veo");
    }
}

proptest! {
    #[test]
    fn what_is_kept_of_any_product_is_read_alike_and_has_no_secret(
        product in "(veo|[a-z0-9-]|[&;=/%_]|%26|%3[dD]|%3f|token|sig|exp|%74oken|bcast_|S3CRET|\\PC){1,8}",
    ) {
        let target = format!("/webhook/{product}");
        let sent = Callback::from_target(&target, BODY.into(), Timestamp::UNIX_EPOCH, Verification::UrlToken, "");
        let kept = sent.target();
        let again = Callback::from_target(&kept, BODY.into(), Timestamp::UNIX_EPOCH, Verification::UrlToken, "");
        prop_assert_eq!(&again.target(), &kept);
        // A product that is one stays as it is; one that is none is none, with or without a secret in it.
        let said = |callback: &Callback| {
            callback.draft(&Corrections::default()).map(|draft| draft.product).map_err(|rejection| rejection.reason())
        };
        prop_assert_eq!(said(&again), said(&sent));
        let path = kept.split('?').next().unwrap_or_default();
        for secret in ["&token=S3CRET", "&sig%3DS3CRET", "&bcast_S3CRET"] {
            prop_assert!(!path.contains(secret), "{kept}");
        }
    }

    #[test]
    fn any_body_is_released_or_refused_with_a_reason(body in r#"[\[\]{}",:\\a0 ]{0,40}"#) {
        let wrong = Callback { body: body.into(), ..callback(Some("veo"), "") };
        if let Err(refused) = wrong.released(&Corrections::default()) {
            prop_assert!(!refused.reason().is_empty());
        }
    }

    #[test]
    fn any_url_and_body_are_a_draft_or_a_reason(product: Option<String>, query: String, body: Vec<u8>) {
        let mut callback = callback(product.as_deref(), &query);
        callback.body = body.into();
        if let Err(rejection) = callback.draft(&Corrections::default()) {
            prop_assert!(!rejection.reason().is_empty());
        }
        let _ = callback.target();
    }
}
