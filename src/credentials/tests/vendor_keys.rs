//! Keys for the vendor's API.

use super::*;

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
