//! Clients and tokens: who is found by which credential, how long, and why one is refused.

use super::*;

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
