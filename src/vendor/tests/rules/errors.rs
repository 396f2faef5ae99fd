//! Rule 4: errors.

use super::*;

#[test]
fn one_word_is_a_code_and_anything_else_a_sentence() {
    for (text, code, message) in [
        ("UNSAFE_CONTENT", "UNSAFE_CONTENT", "UNSAFE_CONTENT"),
        ("Maintenance", "MAINTENANCE", "Maintenance"),
        ("e404", "E404", "e404"),
        (" TIMEOUT ", "TIMEOUT", "TIMEOUT"),
        ("no luck", "UNSPECIFIED", "no luck"),
        ("Failed.", "UNSPECIFIED", "Failed."),
        ("失敗しました", "UNSPECIFIED", "失敗しました"),
    ] {
        let expected = pair(code, message);
        for key in [
            "error",
            "error_code",
            "error_message",
            "error_msg",
            "message",
            "description",
            "detail",
        ] {
            assert_eq!(reason(&format!(r#""{key}": "{text}""#)), expected, "{key}");
        }
        for key in ["message", "msg", "detail"] {
            for shape in [
                r#"{"KEY": TEXT}"#,
                r#"[{"KEY": TEXT}]"#,
                r#"{"error": {"KEY": TEXT}}"#,
                r#"{"KEY": {"message": TEXT}}"#,
            ] {
                let error = shape
                    .replace("KEY", key)
                    .replace("TEXT", &format!("\"{text}\""));
                assert_eq!(reason(&format!(r#""error": {error}"#)), expected, "{error}");
            }
        }
        assert_eq!(reason(&format!(r#""error": ["{text}"]"#)), expected);
    }
}

#[test]
fn a_text_as_long_as_no_code_is_a_sentence() {
    let (longest, longer) = ("A".repeat(256), "A".repeat(257));
    assert_eq!(
        reason(&format!(r#""message": "{longest}""#)),
        pair(&longest, &longest)
    );
    assert_eq!(
        reason(&format!(r#""message": "{longer}""#)),
        pair("UNSPECIFIED", &longer)
    );
    assert_eq!(
        reason(&format!(r#""error": {{"code": "{longest}"}}"#)).0,
        longest
    );
    assert_eq!(
        reason(&format!(r#""error": {{"code": "{longer}"}}"#)),
        pair("UNSPECIFIED", &longer)
    );
}

#[test]
fn code_and_sentence_may_come_from_different_places() {
    let both = pair("TASK_FAILED", "upstream down");
    assert_eq!(
        reason(r#""message": "TASK_FAILED", "error": "upstream down""#),
        both
    );
    assert_eq!(
        reason(r#""description": "upstream down", "error_message": "TASK_FAILED""#),
        both
    );
    assert_eq!(
        reason(r#""error": {"message": "upstream down"}, "message": "TASK_FAILED""#),
        both
    );
}

#[test]
fn places_are_searched_in_the_documented_order() {
    let mut places = [
        (r#""error": {"message": "M1"}"#, "M1"),
        (r#""error_code": "M2""#, "M2"),
        (r#""error_message": "M3""#, "M3"),
        (r#""error_msg": "M4""#, "M4"),
        (r#""message": "M5""#, "M5"),
        (r#""description": "M6""#, "M6"),
        (r#""detail": "M7""#, "M7"),
    ];
    places.reverse();
    for last in 1..=places.len() {
        let fields: Vec<_> = places[..last].iter().map(|(field, _)| *field).collect();
        assert_eq!(reason(&fields.join(", ")).0, places[last - 1].1);
    }
}

#[test]
fn the_code_of_the_error_object_goes_before_any_other() {
    assert_eq!(
        reason(r#""error": {"code": "a_b", "message": "no luck"}, "message": "X""#),
        pair("A_B", "no luck")
    );
    assert_eq!(
        reason(r#""error": {"code": "A", "message": "Overloaded"}"#),
        pair("A", "Overloaded")
    );
    assert_eq!(
        reason(r#""error": {"code": "A", "msg": "B", "message": null}, "message": "no luck""#),
        pair("A", "B")
    );
    assert_eq!(
        reason(r#""error": {"error": {"code": "A", "detail": " B "}}"#),
        pair("A", " B ")
    );
    assert_eq!(
        reason(r#""error": [{"code": "A"}], "message": "no luck""#),
        pair("A", "no luck")
    );
    assert_eq!(
        reason(r#""error": {"code": "A"}, "error_code": "B""#),
        pair("A", "A")
    );
    assert_eq!(
        reason(r#""error_code": 500, "error_message": "no luck""#),
        pair("500", "no luck")
    );
    assert_eq!(
        reason(r#""error": {"code": 500, "message": "no luck"}"#),
        pair("500", "no luck")
    );
    assert_eq!(
        reason(r#""error": {"code": "content-policy"}"#),
        pair("CONTENT-POLICY", "content-policy")
    );
    for none in ["null", "\"\"", "\" \"", "{}", "true"] {
        assert_eq!(
            reason(&format!(r#""error": {{"code": {none}}}, "message": "X""#)).0,
            "X"
        );
    }
}

#[test]
fn a_status_word_is_the_code_only_if_there_is_no_other() {
    let reason = |body: &str| {
        let error = report(body).error.unwrap();
        (error.code, error.message)
    };
    assert_eq!(
        reason(r#"{"id": "t", "status": "Timeout"}"#),
        pair("TIMEOUT", "")
    );
    assert_eq!(
        reason(r#"{"id": "t", "status": "moderation_blocked"}"#),
        pair("MODERATION_BLOCKED", "")
    );
    assert_eq!(
        reason(r#"{"id": "t", "status": "timeout", "message": "too slow"}"#),
        pair("TIMEOUT", "too slow")
    );
    assert_eq!(
        reason(r#"{"id": "t", "status": "timeout", "message": "API_ERROR"}"#),
        pair("API_ERROR", "API_ERROR")
    );
    for word in [
        "internal_error",
        "Expired",
        "canceled",
        "rejected",
        "safety_blocked",
        "nsfw",
    ] {
        assert_eq!(
            reason(&format!(r#"{{"id": "t", "status": " {word} "}}"#)),
            pair(&word.to_uppercase(), "")
        );
    }
    for plain in [r#""FAILED""#, r#""failure""#, r#"" error""#, "false"] {
        assert_eq!(
            reason(&format!(r#"{{"id": "t", "status": {plain}}}"#)),
            pair("UNSPECIFIED", "")
        );
    }
}

#[test]
fn a_failure_without_any_reason_is_unspecified() {
    let expected = TaskError {
        code: "UNSPECIFIED".into(),
        message: String::new(),
        details: None,
    };
    for fields in [
        r#""x": 1"#,
        r#""error": null"#,
        r#""error": {}"#,
        r#""error": []"#,
        r#""error": " ", "message": {}, "description": " ""#,
        r#""error": {"message": {"code": null}, "details": null}"#,
    ] {
        assert_eq!(error(fields), expected, "{fields}");
        assert!(!error(fields).gives_a_reason());
    }
}

#[test]
fn unused_parts_of_an_error_are_kept_in_the_details() {
    let details = |fields: &str| error(fields).details;
    // The error alone, as it is.
    for shape in [
        r#"{"type": "overloaded", "reason": "gpu"}"#,
        r#"{"code": "A", "message": "b c", "type": "x"}"#,
        r#"{"code": "A", "message": "b c", "details": {"d": 1}, "request_id": "r"}"#,
        r#"{"message": "b c", "msg": "other words"}"#,
        r#"{"code": "A", "error": {"code": "B"}}"#,
        r#"{"unsafe": {"code": "A", "message": "b c"}}"#,
        r#"{"code": {"value": 5}}"#,
        r#"["b c", "d e"]"#,
        r#"[{"code": "A"}, {"code": "B"}]"#,
        r#"[[[[[{"code": "A"}]]]]]"#,
        "5",
        "true",
    ] {
        let expected: serde_json::Value = serde_json::from_str(shape).unwrap();
        assert_eq!(
            details(&format!(r#""error": {shape}"#)),
            Some(expected),
            "{shape}"
        );
    }
    // Unused values are kept under their keys.
    for (fields, expected) in [
        (
            r#""error": {"code": "A", "message": "b"}, "message": "c d""#,
            json!({"message": "c d"}),
        ),
        (
            r#""error": {"code": "A", "details": [1]}, "error_code": "B""#,
            json!({"error_code": "B", "details": [1]}),
        ),
        (
            r#""error": ["x y", "z"], "message": "c d""#,
            json!({"error": ["x y", "z"], "message": "c d"}),
        ),
        (
            r#""detail": [{"loc": ["body"], "msg": "bad"}]"#,
            json!({"detail": [{"loc": ["body"], "msg": "bad"}]}),
        ),
        (
            r#""error_message": "a b", "message": "c d""#,
            json!({"message": "c d"}),
        ),
    ] {
        assert_eq!(details(fields), Some(expected), "{fields}");
    }
    // No details if code and message hold everything.
    for fields in [
        r#""error": {"code": "A", "message": "b c"}, "message": "A""#,
        r#""error": "TASK_FAILED", "message": "b c", "description": " b c""#,
        r#""error": {"error": {"code": "A", "message": "b c"}}"#,
        r#""error": [{"message": "A", "msg": null}], "detail": {}"#,
        r#""error_code": "A", "error_msg": "b c", "message": " ""#,
    ] {
        assert_eq!(details(fields), None, "{fields}");
    }
}

#[test]
fn details_are_kept_as_they_are() {
    let details = json!({"b": [1, 2.5, null, {"c": "\u{1f600}"}], "a": ""});
    assert_eq!(
        error(&format!(r#""error": {{"details": {details}}}"#)).details,
        Some(details)
    );
    assert_eq!(
        error(r#""error": {"details": "text"}"#).details,
        Some(json!("text"))
    );
    assert_eq!(
        error(r#""error": {"details": false}"#).details,
        Some(json!(false))
    );
}

#[test]
fn a_message_on_success_is_not_an_error() {
    assert_eq!(
        with(r#""message": "Task completed successfully", "error": {"code": "A"}"#).error,
        None
    );
    assert_eq!(
        report(r#"{"id": "t", "status": "pending", "message": "TASK_FAILED"}"#).error,
        None
    );
}
