//! The file: what a line may say, and what each mistake is answered with.

use super::*;

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

#[test]
fn a_fingerprint_follows_what_a_file_says_and_not_how() {
    let of = |text: &str| Credentials::parse(text).unwrap().fingerprint(b"7");
    let line = r#"x = { certificate = "x.internal", products = ["veo"] }"#;
    let one = of(&format!("[clients]\n{line}"));
    assert_eq!(one.len(), 16);
    assert_eq!(one, of(&format!("# ours\n[clients] # theirs\n\n{line}\n")));
    assert_ne!(
        one,
        of(&format!("[clients]\n{}", line.replace("veo", "sora")))
    );
    assert_ne!(one, of(""));
    assert_eq!(of(""), of("# nothing"));
    let other = Credentials::parse(&format!("[clients]\n{line}")).unwrap();
    assert_ne!(one, other.fingerprint(b"8"));

    // A key in a file of its own counts, too.
    let text = "[[vendor_keys]]\nname = \"main\"\nkey_file = \"/k\"\n";
    let with = |key: &str| {
        let mut credentials = Credentials::parse(text).unwrap();
        let read = |_: &std::path::Path| Ok(key.to_owned());
        let done = credentials.read_key_files(read, |_, _, problem| problem);
        done.unwrap();
        credentials.fingerprint(b"7")
    };
    assert_eq!(with("k1"), with("k1\n"));
    assert_ne!(with("k1"), with("k2"));
}
