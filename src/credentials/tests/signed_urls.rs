//! Signed URLs: signing, verifying, and the keys that do so.

use super::*;

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
