//! Which bodies are JSON, and how deep and how broken it may be.

use super::*;

#[test]
fn a_body_other_than_one_json_value_is_refused_as_not_json() {
    let bodies = [
        "",
        " ",
        "{",
        "hello",
        "{'id': 1}",
        "{\"id\": \"t\",}",
        "{\"id\": 01}",
        "{} {}",
        "[1",
        "nul",
    ];
    for body in bodies {
        assert_eq!(refusal(body), Unreadable::NotJson, "{body}");
    }
}

#[test]
fn json_that_is_not_an_object_is_refused_as_such() {
    for body in ["null", "true", "5", "1e400", "\"text\"", "[]", "[ ]"] {
        assert_eq!(refusal(body), Unreadable::NotAnObject, "{body}");
    }
    for body in ["[0]", " [{\"id\": \"t\", \"status\": \"done\"}] "] {
        assert_eq!(
            (refusal(body), refusal(body).reason()),
            (Unreadable::Array, "not_an_object"),
            "{body}"
        );
    }
}

#[test]
fn a_byte_order_mark_is_skipped_and_says_how_the_body_is_encoded() {
    let body = r#"{"id": "t", "status": "done", "prompt": "кот 😀"}"#;
    let expected = report(body);
    let units = || body.encode_utf16();
    let big: Vec<u8> = [0xfeff]
        .into_iter()
        .chain(units())
        .flat_map(u16::to_be_bytes)
        .collect();
    let little: Vec<u8> = [0xfeff]
        .into_iter()
        .chain(units())
        .flat_map(u16::to_le_bytes)
        .collect();
    assert_eq!(
        read(format!("\u{feff}{body}").as_bytes()).as_ref(),
        Ok(&expected)
    );
    assert_eq!(
        (read(&big).as_ref(), read(&little).as_ref()),
        (Ok(&expected), Ok(&expected))
    );
    for cut in 1..big.len() {
        assert_eq!(read(&big[..cut]), Err(Unreadable::NotJson), "{cut}");
    }
    // Only one mark is removed; a second one is part of the text. UTF-16 without a mark is not UTF-8.
    assert_eq!(
        read(format!("\u{feff}\u{feff}{body}").as_bytes()),
        Err(Unreadable::NotJson)
    );
    assert_eq!(read(&big[2..]), Err(Unreadable::NotJson));
}

#[test]
fn an_array_gives_its_elements_as_they_stand_in_it() {
    let elements = |body: &str| crate::vendor::elements(body.as_bytes(), 3);
    let body = " [ {\"a\": 1} ,[2],\"é\"]\n";
    assert_eq!(
        elements(body).unwrap(),
        (vec!["{\"a\": 1}".into(), "[2]".into(), "\"é\"".into()], 3)
    );
    assert_eq!(elements("\u{feff}[1]").unwrap(), (vec!["1".into()], 1));
    for empty in ["[]", " [ \n ] "] {
        assert_eq!(elements(empty).unwrap(), (Vec::new(), 0));
    }
    for other in [
        "{}",
        "5",
        "[1",
        "[1]]",
        "[1,2,3,4",
        "",
        &"[".repeat(100_000),
    ] {
        assert_eq!(elements(other), None, "{other:.9}");
    }
}

#[test]
fn of_a_long_array_no_more_is_taken_than_was_asked_for() {
    let long = format!("[{}7]", "7,".repeat(999_999));
    let (first, count) = crate::vendor::elements(long.as_bytes(), 2).unwrap();
    assert_eq!(
        (first.as_slice(), first.capacity() < 8, count),
        (&["7", "7"].map(Into::into)[..], true, 1_000_000)
    );
}

#[test]
fn invalid_utf8_is_refused_also_in_a_field_nobody_reads() {
    assert_eq!(
        read(b"{\"id\": \"t\", \"status\": \"done\", \"x\": \"\xff\"}"),
        Err(Unreadable::NotJson)
    );
}

#[test]
fn the_nesting_limit_holds_on_both_sides_and_everywhere() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let body = |key: &str, levels| {
        format!(
            r#"{{"id": "t", "status": "failed", "{key}": {}}}"#,
            nested(levels)
        )
    };
    for key in ["unknown", "error", "prompt", "output", "id2"] {
        assert!(
            read(body(key, NESTING_LEVELS_MAX - 1).as_bytes()).is_ok(),
            "{key}"
        );
        for levels in [NESTING_LEVELS_MAX, 10_000, 1_000_000] {
            assert_eq!(
                refusal(&body(key, levels)),
                Unreadable::TooDeeplyNested,
                "{key} {levels}"
            );
        }
    }
    assert_eq!(refusal(&nested(NESTING_LEVELS_MAX)), Unreadable::Array);
    assert_eq!(
        refusal(&nested(NESTING_LEVELS_MAX + 1)),
        Unreadable::TooDeeplyNested
    );
    assert_eq!(refusal(&"[".repeat(1_000_000)).reason(), "not_json");
}

#[test]
fn brackets_within_a_text_are_not_levels() {
    let many = r#"\"[{\\"#.repeat(1_000);
    assert_eq!(
        with(&format!(r#""x": ["{many}"], "seed": 1"#)).seed,
        Some(1)
    );
}

#[test]
fn details_at_the_nesting_limit_are_still_read() {
    let levels = NESTING_LEVELS_MAX - 2;
    let deep = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(
        error(&format!(r#""error": {{"details": {deep}}}"#))
            .details
            .unwrap()
            .is_array()
    );
}

#[test]
fn a_number_that_no_type_can_hold_spoils_nothing() {
    let digits = "9".repeat(400);
    for number in ["1e400", "-1e400", "1e99999999999999999999", &digits] {
        for key in [
            "x",
            "seed",
            "prompt",
            "video_url",
            "error",
            "created_at",
            "success",
            "output",
            "message",
            "images",
        ] {
            let expected = with(r#""x": null"#);
            let read = with(&format!(r#""{key}": {number}"#));
            let inferred_product = expected.inferred_product.clone();
            assert_eq!(
                Report {
                    inferred_product,
                    ..read
                },
                expected,
                "{key}: {number}"
            );
        }
        assert_eq!(
            error(&format!(r#""error": {{"code": "A", "details": {number}}}"#)).details,
            Some(json!(number))
        );
    }
}

#[test]
fn half_a_surrogate_pair_is_replaced_and_refused_only_in_the_id() {
    assert_eq!(with(r#""prompt": "cat \ud83d""#).prompt, "cat \u{fffd}");
    assert_eq!(
        with(r#""prompt": "\ude00\ud83d!""#).prompt,
        "\u{fffd}\u{fffd}!"
    );
    assert_eq!(
        with(r#""prompt": "cat \ud83d\ude00""#).prompt,
        "cat \u{1f600}"
    );
    assert_eq!(with(r#""x": "\udc00""#), with(r#""x": null"#));
    assert_eq!(task_id(r#""id": "cat\ud83d""#), Err(Unreadable::BadTaskId));
    assert_eq!(
        error(r#""error": {"details": ["\ud83d"]}"#).details,
        Some(json!(r#"["\ud83d"]"#))
    );
}

#[test]
fn escapes_mean_the_same_as_the_characters_also_in_keys() {
    let escaped = report(
        r#"{"\u0069d": "\u0074", "st\u0061tus": "comp\u006ceted", "video_url": "https:\/\/a\/b.mp4"}"#,
    );
    assert_eq!(escaped, with(r#""video_url": "https://a/b.mp4""#));
}

#[test]
fn of_duplicate_keys_the_last_counts() {
    assert_eq!(task_id(r#""id": "a", "id": "b""#), Ok("b".into()));
    assert_eq!(
        task_id(r#""task_id": "a", "task_id": null, "id": "b""#),
        Ok("b".into())
    );
    assert_eq!(
        status(r#""status": "done", "status": "failed""#).1,
        "failed"
    );
    assert_eq!(reason(r#""error": {"code": "A", "code": "B"}"#).0, "B");
}
