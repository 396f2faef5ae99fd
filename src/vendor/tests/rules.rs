//! One behaviour at a time.

use serde_json::json;

use super::*;
use crate::vendor::{NESTING_LEVELS_MAX, time};

fn report(body: &str) -> Report {
    read(body.as_bytes()).unwrap_or_else(|e| panic!("{e}: {body}"))
}

fn refusal(body: &str) -> Unreadable {
    read(body.as_bytes()).expect_err(body)
}

/// A completed task with more fields.
fn with(fields: &str) -> Report {
    report(&format!(r#"{{"id": "t", "status": "completed", {fields}}}"#))
}

/// A failed task with more fields.
fn error(fields: &str) -> TaskError {
    report(&format!(r#"{{"id": "t", "status": "failed", {fields}}}"#)).error.unwrap()
}

fn reason(fields: &str) -> (String, String) {
    let TaskError { code, message, .. } = error(fields);
    (code, message)
}

fn pair(code: &str, message: &str) -> (String, String) {
    (code.into(), message.into())
}

fn task_id(fields: &str) -> Result<String, Unreadable> {
    let body = format!(r#"{{"status": "completed", {fields}}}"#);
    read(body.as_bytes()).map(|report| report.task_id.as_str().to_owned())
}

fn status(fields: &str) -> (TaskStatus, String) {
    let report = report(&format!(r#"{{"id": "t", {fields}}}"#));
    (report.status, report.status_text)
}

fn urls(fields: &str) -> Vec<String> {
    with(fields).outputs.into_iter().map(|output| output.url).collect()
}

fn inferred(fields: &str) -> String {
    report(&format!(r#"{{"id": "t", "video_url": "v", {fields}}}"#)).inferred_product.as_str().to_owned()
}

// What is JSON at all.

#[test]
fn what_is_not_one_json_value_is_refused_as_not_json() {
    let bodies =
        ["", " ", "{", "hello", "{'id': 1}", "{\"id\": \"t\",}", "{\"id\": 01}", "{} {}", "[1", "\u{feff}{}", "nul"];
    for body in bodies {
        assert_eq!(refusal(body), Unreadable::NotJson, "{body}");
    }
}

#[test]
fn json_that_is_not_an_object_is_refused_as_such() {
    for body in ["[]", "null", "true", "5", "1e400", "\"text\"", " [{\"id\": \"t\", \"status\": \"done\"}] "] {
        assert_eq!(refusal(body), Unreadable::NotAnObject, "{body}");
    }
}

#[test]
fn invalid_utf8_is_refused_also_in_a_field_nobody_reads() {
    assert_eq!(read(b"{\"id\": \"t\", \"status\": \"done\", \"x\": \"\xff\"}"), Err(Unreadable::NotJson));
}

#[test]
fn the_nesting_limit_holds_on_both_sides_and_everywhere() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let body = |key: &str, levels| format!(r#"{{"id": "t", "status": "failed", "{key}": {}}}"#, nested(levels));
    for key in ["unknown", "error", "prompt", "output", "id2"] {
        assert!(read(body(key, NESTING_LEVELS_MAX - 1).as_bytes()).is_ok(), "{key}");
        for levels in [NESTING_LEVELS_MAX, 10_000, 1_000_000] {
            assert_eq!(refusal(&body(key, levels)), Unreadable::TooDeeplyNested, "{key} {levels}");
        }
    }
    assert_eq!(refusal(&nested(NESTING_LEVELS_MAX)), Unreadable::NotAnObject);
    assert_eq!(refusal(&nested(NESTING_LEVELS_MAX + 1)), Unreadable::TooDeeplyNested);
    assert_eq!(refusal(&"[".repeat(1_000_000)).reason(), "not_json");
}

#[test]
fn brackets_within_a_text_are_not_levels() {
    let many = r#"\"[{\\"#.repeat(1_000);
    assert_eq!(with(&format!(r#""x": ["{many}"], "seed": 1"#)).seed, Some(1));
}

#[test]
fn details_at_the_nesting_limit_are_still_read() {
    let levels = NESTING_LEVELS_MAX - 2;
    let deep = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(error(&format!(r#""error": {{"details": {deep}}}"#)).details.unwrap().is_array());
}

#[test]
fn a_number_that_no_type_can_hold_spoils_nothing() {
    let digits = "9".repeat(400);
    for number in ["1e400", "-1e400", "1e99999999999999999999", &digits] {
        for key in ["x", "seed", "prompt", "video_url", "error", "created_at", "success", "output", "message"] {
            let expected = with(r#""x": null"#);
            let read = with(&format!(r#""{key}": {number}"#));
            let inferred_product = expected.inferred_product.clone();
            assert_eq!(Report { inferred_product, ..read }, expected, "{key}: {number}");
        }
        assert_eq!(error(&format!(r#""error": {{"code": "A", "details": {number}}}"#)).details, Some(json!(number)));
    }
}

#[test]
fn half_a_surrogate_pair_is_replaced_and_refused_only_in_the_id() {
    assert_eq!(with(r#""prompt": "cat \ud83d""#).prompt, "cat \u{fffd}");
    assert_eq!(with(r#""prompt": "\ude00\ud83d!""#).prompt, "\u{fffd}\u{fffd}!");
    assert_eq!(with(r#""prompt": "cat \ud83d\ude00""#).prompt, "cat \u{1f600}");
    assert_eq!(with(r#""x": "\udc00""#), with(r#""x": null"#));
    assert_eq!(task_id(r#""id": "cat\ud83d""#), Err(Unreadable::BadTaskId));
    assert_eq!(error(r#""error": {"details": ["\ud83d"]}"#).details, Some(json!(r#"["\ud83d"]"#)));
}

#[test]
fn escapes_mean_the_same_as_the_characters_also_in_keys() {
    let escaped =
        report(r#"{"\u0069d": "\u0074", "st\u0061tus": "comp\u006ceted", "video_url": "https:\/\/a\/b.mp4"}"#);
    assert_eq!(escaped, with(r#""video_url": "https://a/b.mp4""#));
}

#[test]
fn of_duplicate_keys_the_last_counts() {
    assert_eq!(task_id(r#""id": "a", "id": "b""#), Ok("b".into()));
    assert_eq!(task_id(r#""task_id": "a", "task_id": null, "id": "b""#), Ok("b".into()));
    assert_eq!(status(r#""status": "done", "status": "failed""#).1, "failed");
    assert_eq!(reason(r#""error": {"code": "A", "code": "B"}"#).0, "B");
}

// Rule 1: the id.

#[test]
fn the_first_id_that_is_not_empty_is_taken() {
    let all = r#""id": "d", "task_id": "c", "task_uuid": "b", "generation_id": "#;
    assert_eq!(task_id(&format!(r#"{all} "a""#)), Ok("a".into()));
    assert_eq!(task_id(&format!(r#"{all} """#)), Ok("b".into()));
    assert_eq!(task_id(&format!(r#"{all} null"#)), Ok("b".into()));
    assert_eq!(task_id(r#""id": "d", "task_id": "c""#), Ok("c".into()));
    assert_eq!(task_id(r#""id": "d""#), Ok("d".into()));
}

#[test]
fn an_id_need_not_be_a_uuid() {
    assert_eq!(task_id(r#""id": "фото/1:ü_?""#), Ok("фото/1:ü_?".into()));
}

#[test]
fn a_number_as_id_is_taken_as_its_digits() {
    for digits in ["0", "42", "18446744073709551616", "12345678901234567890123456789012345678901234567890"] {
        assert_eq!(task_id(&format!(r#""id": {digits}"#)), Ok(digits.into()));
    }
    assert_eq!(task_id(&format!(r#""id": {}"#, "1".repeat(129))), Err(Unreadable::BadTaskId));
}

#[test]
fn an_id_that_is_neither_text_nor_number_is_none() {
    for value in ["{}", "[]", "true", "false", "null", "\"\"", "{\"id\": \"t\"}"] {
        assert_eq!(task_id(&format!(r#""id": {value}"#)), Err(Unreadable::NoTaskId), "{value}");
        assert_eq!(task_id(&format!(r#""generation_id": {value}, "id": "t""#)), Ok("t".into()), "{value}");
    }
    assert_eq!(refusal("{}"), Unreadable::NoTaskId);
}

#[test]
fn an_id_with_spaces_or_of_the_wrong_length_is_bad_even_beside_a_good_one() {
    for value in [" ", "a b", "a\\n", "\\u0000", "\\u00a0", &"x".repeat(129)] {
        assert_eq!(task_id(&format!(r#""generation_id": "{value}", "id": "t""#)), Err(Unreadable::BadTaskId));
    }
    assert_eq!(task_id(&format!(r#""id": "{}""#, "ü".repeat(128))), Ok("ü".repeat(128)));
}

// Rule 2: the status.

#[test]
fn every_documented_word_has_its_status_in_any_case() {
    let words = [
        (TaskStatus::Completed, vec!["completed", "done", "success"]),
        (TaskStatus::Failed, vec!["failed", "error", "timeout", "moderation_blocked"]),
        (TaskStatus::Pending, vec!["pending", "queued"]),
        (TaskStatus::Processing, vec!["processing", "running"]),
    ];
    for (expected, word) in words.into_iter().flat_map(|(s, words)| words.into_iter().map(move |word| (s, word))) {
        for word in [word.to_owned(), word.to_uppercase(), word.replacen(&word[..1], &word[..1].to_uppercase(), 1)] {
            assert_eq!(status(&format!(r#""status": "{word}""#)), (expected, word));
        }
    }
}

#[test]
fn any_other_word_is_kept_and_never_guessed_at() {
    for word in ["complete", "cancelled", "ok", "true", " completed", "готово"] {
        let report = report(&format!(r#"{{"id": "t", "status": "{word}", "video_url": "v", "error": {{}}}}"#));
        assert_eq!((report.status, report.status_text.as_str()), (TaskStatus::Unspecified, word));
        assert_eq!(report.error, None);
    }
}

#[test]
fn true_and_false_are_statuses_without_a_word() {
    for key in ["status", "success"] {
        assert_eq!(status(&format!(r#""{key}": true"#)), (TaskStatus::Completed, String::new()));
        assert_eq!(status(&format!(r#""{key}": false"#)), (TaskStatus::Failed, String::new()));
    }
}

#[test]
fn status_goes_before_success_unless_it_says_nothing() {
    assert_eq!(status(r#""success": true, "status": "failed""#).0, TaskStatus::Failed);
    for nothing in ["null", "\"\"", "5", "{}", "[\"failed\"]"] {
        assert_eq!(status(&format!(r#""success": true, "status": {nothing}"#)).0, TaskStatus::Completed);
    }
}

#[test]
fn without_a_status_an_output_or_an_error_implies_one() {
    assert_eq!(status(r#""video_url": "v", "error": {}"#), (TaskStatus::Completed, String::new()));
    assert_eq!(status(r#""output": {"video_urls": ["v"]}"#).0, TaskStatus::Completed);
    assert_eq!(status(r#""video_url": null, "error": {}"#), (TaskStatus::Failed, String::new()));
    assert_eq!(status(r#""error_message": "no""#).0, TaskStatus::Failed);
}

#[test]
fn without_anything_that_implies_a_status_the_body_is_refused() {
    for fields in [
        r#""x": 1"#,
        r#""status": null"#,
        r#""status": 5, "success": null"#,
        r#""error": null, "error_message": null"#,
        r#""message": "TASK_FAILED""#,
        r#""error_message": """#,
        r#""video_url": """#,
    ] {
        assert_eq!(refusal(&format!(r#"{{"id": "t", {fields}}}"#)), Unreadable::NoStatus, "{fields}");
    }
}

// Rule 3: outputs.

#[test]
fn outputs_come_in_the_documented_order_whatever_the_order_in_the_body() {
    let body = r#"
        "result": ["k", "l"], "url": "j",
        "output": {"last_frame_url": "i", "image_urls": ["g", "h"], "video_urls": ["e", "f"]},
        "result_image_urls": ["c", "d"], "image_url": "b2", "result_image_url": "b", "video_url": "a""#;
    assert_eq!(urls(body), ["a", "b", "b2", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]);
}

#[test]
fn the_kind_of_an_output_comes_from_its_key() {
    let body = r#"
        "video_url": "1.png", "result_image_url": "2.mp4", "image_url": "3", "result_image_urls": ["4"],
        "output": {"video_urls": ["5"], "image_urls": ["6"], "last_frame_url": "7"}"#;
    use OutputKind::{Image, Video};
    let kinds: Vec<_> = with(body).outputs.into_iter().map(|output| output.kind).collect();
    assert_eq!(kinds, [Video, Image, Image, Image, Video, Image, Image]);
}

#[test]
fn the_kind_of_a_neutral_output_comes_from_its_extension() {
    let kinds = [
        ("https://a/b.mp4", OutputKind::Video),
        ("https://a/b.WEBM?x=1.png", OutputKind::Video),
        ("https://a/b.mov#t=1", OutputKind::Video),
        ("https://a/b.png", OutputKind::Image),
        ("https://a/b.JPEG?sig=a/b.mp4", OutputKind::Image),
        ("https://a.mp4/b", OutputKind::Other),
        ("https://a/b.zip", OutputKind::Other),
        ("https://a/b", OutputKind::Other),
        ("?", OutputKind::Other),
    ];
    for (url, kind) in kinds {
        for value in [format!(r#""url": "{url}""#), format!(r#""result": "{url}""#), format!(r#""result": ["{url}"]"#)]
        {
            assert_eq!(with(&value).outputs, [output(kind, url)]);
        }
    }
}

#[test]
fn empty_null_repeated_and_wrong_outputs_are_skipped() {
    assert_eq!(urls(r#""video_url": "", "url": null, "image_url": {"url": "x"}, "result": 5"#), [""; 0]);
    assert_eq!(urls(r#""video_url": ["x"], "result_image_urls": "y", "output": "z""#), [""; 0]);
    assert_eq!(urls(r#""output": {"video_urls": [null, "", 5, {}, "a", "a", ["b"], "c"]}"#), ["a", "c"]);
    assert_eq!(urls(r#""video_url": "a", "url": "a", "result": ["a", "b"]"#), ["a", "b"]);
}

#[test]
fn an_output_found_twice_keeps_the_kind_of_the_first() {
    assert_eq!(with(r#""url": "a", "image_url": "a""#).outputs, [output(OutputKind::Image, "a")]);
}

#[test]
fn completed_without_an_output_and_failed_with_one_are_legal() {
    assert_eq!(with(r#""video_url": null"#).outputs, []);
    assert_eq!(report(r#"{"id": "t", "status": "failed", "video_url": "v"}"#).outputs.len(), 1);
}

// Rule 4: errors.

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
        for key in ["error", "error_message", "message", "description"] {
            assert_eq!(reason(&format!(r#""{key}": "{text}""#)), expected, "{key}");
        }
        assert_eq!(reason(&format!(r#""error": {{"message": "{text}"}}"#)), expected);
    }
}

#[test]
fn code_and_sentence_may_come_from_different_places() {
    let both = pair("TASK_FAILED", "upstream down");
    assert_eq!(reason(r#""message": "TASK_FAILED", "error": "upstream down""#), both);
    assert_eq!(reason(r#""description": "upstream down", "error_message": "TASK_FAILED""#), both);
    assert_eq!(reason(r#""error": {"message": "upstream down"}, "message": "TASK_FAILED""#), both);
}

#[test]
fn places_are_searched_in_the_documented_order() {
    let mut places = [
        (r#""error": {"message": "M1"}"#, "M1"),
        (r#""error_message": "M2""#, "M2"),
        (r#""message": "M3""#, "M3"),
        (r#""description": "M4""#, "M4"),
    ];
    places.reverse();
    for last in 1..=places.len() {
        let fields: Vec<_> = places[..last].iter().map(|(field, _)| *field).collect();
        assert_eq!(reason(&fields.join(", ")).0, places[last - 1].1);
    }
}

#[test]
fn the_code_of_the_error_object_goes_before_any_other() {
    assert_eq!(reason(r#""error": {"code": "a_b", "message": "no luck"}, "message": "X""#), pair("A_B", "no luck"));
    assert_eq!(reason(r#""error": {"code": "A", "message": "B"}"#), pair("A", "A"));
    assert_eq!(reason(r#""error": {"code": 500, "message": "no luck"}"#), pair("500", "no luck"));
    assert_eq!(reason(r#""error": {"code": "content-policy"}"#), pair("CONTENT-POLICY", "content-policy"));
    for none in ["null", "\"\"", "\" \"", "{}", "true"] {
        assert_eq!(reason(&format!(r#""error": {{"code": {none}}}, "message": "X""#)).0, "X");
    }
}

#[test]
fn a_status_word_is_the_code_only_if_there_is_no_other() {
    let reason = |body: &str| {
        let error = report(body).error.unwrap();
        (error.code, error.message)
    };
    assert_eq!(reason(r#"{"id": "t", "status": "Timeout"}"#), pair("TIMEOUT", ""));
    assert_eq!(reason(r#"{"id": "t", "status": "moderation_blocked"}"#), pair("MODERATION_BLOCKED", ""));
    assert_eq!(reason(r#"{"id": "t", "status": "timeout", "message": "too slow"}"#), pair("TIMEOUT", "too slow"));
    assert_eq!(reason(r#"{"id": "t", "status": "timeout", "message": "API_ERROR"}"#), pair("API_ERROR", "API_ERROR"));
}

#[test]
fn a_failure_without_any_reason_is_unspecified() {
    let expected = TaskError { code: "UNSPECIFIED".into(), message: String::new(), details: None };
    for fields in [
        r#""x": 1"#,
        r#""error": null"#,
        r#""error": {}"#,
        r#""error": [1]"#,
        r#""error": 5, "message": {}, "description": " ""#,
        r#""error": {"message": {"code": "A"}, "details": null}"#,
    ] {
        assert_eq!(error(fields), expected, "{fields}");
    }
}

#[test]
fn details_are_kept_as_they_are() {
    let details = json!({"b": [1, 2.5, null, {"c": "\u{1f600}"}], "a": ""});
    assert_eq!(error(&format!(r#""error": {{"details": {details}}}"#)).details, Some(details));
    assert_eq!(error(r#""error": {"details": "text"}"#).details, Some(json!("text")));
    assert_eq!(error(r#""error": {"details": false}"#).details, Some(json!(false)));
}

#[test]
fn a_message_on_success_is_not_an_error() {
    assert_eq!(with(r#""message": "Task completed successfully", "error": {"code": "A"}"#).error, None);
    assert_eq!(report(r#"{"id": "t", "status": "pending", "message": "TASK_FAILED"}"#).error, None);
}

// Rule 5: times.

#[test]
fn times_are_read_with_any_fraction_and_any_zone() {
    for (text, expected) in [
        ("2025-12-06T21:43:03", "2025-12-06T21:43:03Z"),
        ("2025-12-06T21:43:03Z", "2025-12-06T21:43:03Z"),
        ("2025-12-06t21:43:03z", "2025-12-06T21:43:03Z"),
        ("2025-12-06 21:43:03.5", "2025-12-06T21:43:03.5Z"),
        ("2025-12-06 21:43:03+00:00", "2025-12-06T21:43:03Z"),
        ("2025-12-06T21:43:03.374000", "2025-12-06T21:43:03.374Z"),
        ("2025-12-06T21:43:03.123456789Z", "2025-12-06T21:43:03.123456789Z"),
        ("2025-12-06T21:43:03.1+05:30", "2025-12-06T16:13:03.1Z"),
        ("2025-12-06T21:43:03-08:00", "2025-12-07T05:43:03Z"),
        ("2024-02-29T00:00:00-00:00", "2024-02-29T00:00:00Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ] {
        assert_eq!(time::read(text), Some(expected.parse().unwrap()), "{text}");
    }
}

#[test]
fn an_unreadable_time_is_absent() {
    for text in [
        "yesterday",
        "",
        "1733521383",
        "2025-12-06",
        "2025-12-06T21:43",
        "20251206T214303Z",
        "2025-12-06T21:43:03.",
        "2025-12-06T21:43:03.1234567890Z",
        "2025-12-06T21:43:03,5Z",
        "2025-12-06T21:43:03Z[UTC]",
        "2025-12-06T21:43:03+0530",
        "2025-12-06T21:43:03 Z",
        " 2025-12-06T21:43:03Z",
        "2025-13-06T21:43:03Z",
        "2025-02-29T21:43:03Z",
        "2025-12-06T25:43:03Z",
        "2025-12-06_21:43:03Z",
        "0000-12-31T23:59:59Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59Z",
        "+002025-12-06T21:43:03Z",
        "2025-12-06T21:43:0ü",
    ] {
        assert_eq!(time::read(text), None, "{text}");
    }
    assert_eq!(with(r#""created_at": "soon", "completed_at": 1733521383"#), with(r#""x": 1"#));
}

// Rule 6 and the plain fields.

#[test]
fn a_seed_is_a_whole_number_however_it_is_written() {
    for (json, seed) in [
        ("319790131", Some(319_790_131)),
        ("\"319790131\"", Some(319_790_131)),
        ("\" 5 \"", Some(5)),
        ("0", Some(0)),
        ("-7", Some(-7)),
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775808", Some(i64::MIN)),
        ("319790131.0", Some(319_790_131)),
        ("\"319790131.0\"", Some(319_790_131)),
        ("3e2", Some(300)),
        ("9223372036854775808", None),
        ("1e18", None),
        ("1.5", None),
        ("1e400", None),
        ("\"NaN\"", None),
        ("\"inf\"", None),
        ("\"0x10\"", None),
        ("\"\"", None),
        ("null", None),
        ("true", None),
        ("[1]", None),
    ] {
        assert_eq!(with(&format!(r#""seed": {json}"#)).seed, seed, "{json}");
    }
}

#[test]
fn fields_of_the_wrong_type_are_absent() {
    for value in ["5", "true", "{}", "[]", "[\"x\"]", "null"] {
        let report = with(&format!(r#""prompt": {value}, "model": {value}, "created_at": {value}"#));
        assert_eq!(report, with(r#""x": 1"#));
    }
}

#[test]
fn prompt_and_model_are_kept_as_they_are() {
    let prompt = " a\n\u{1f600}\" ".repeat(5_000);
    let report = with(&format!(r#""prompt": {}, "model": "Veo 3.1""#, json!(prompt)));
    assert_eq!((report.prompt, report.model.as_str()), (prompt, "Veo 3.1"));
}

// Inference.

#[test]
fn the_product_is_inferred_from_the_first_shape_that_fits() {
    // Each line's key wins over those of all lines below.
    let ladder = [
        (r#""output": null"#, "seedance"),
        (r#""error_message": null"#, "sora"),
        (r#""success": true"#, "veo"),
        (r#""model": "kling-o3-photo""#, "kling-o3-photo"),
        (r#""image_url": null"#, "kling-o1-photo"),
        (r#""task_uuid": "u", "prompt": "p""#, "chatgpt-images"),
        (r#""error": null, "seed": 5"#, "veo"),
    ];
    for first in 0..ladder.len() {
        let fields: Vec<_> = ladder[first..].iter().map(|(field, _)| *field).collect();
        assert_eq!(inferred(&fields.join(", ")), ladder[first].1);
    }
}

#[test]
fn the_last_shapes_differ_by_one_key() {
    assert_eq!(inferred(r#""task_uuid": "u", "seed": 5"#), "gemini");
    assert_eq!(inferred(r#""error": null"#), "veo");
    assert_eq!(inferred(r#""seed": null"#), "veo");
    assert_eq!(inferred(r#""success": true, "status": "done""#), "unknown");
    assert_eq!(inferred(r#""prompt": "p", "message": null, "created_at": null"#), "unknown");
}

#[test]
fn a_kling_model_names_its_sub_product_in_any_spelling() {
    for (model, product) in [
        ("kling_o1_video", "kling-o1-video"),
        ("kling-o3-video-10s-pro", "kling-o3-video"),
        ("Kling O1 Photo", "kling-o1-photo"),
        ("KLING/O3-PHOTO", "kling-o3-photo"),
        ("kling-v2-o12-video", "kling-o12-video"),
        ("kling", "kling"),
        ("kling-2.6-pro", "kling"),
        ("kling-o1", "kling"),
        ("kling-o123-video", "kling"),
        ("kling-\u{130}-video", "kling"),
        ("my-kling-o1-video", "unknown"),
        ("veo-3", "unknown"),
    ] {
        assert_eq!(inferred(&format!(r#""model": "{model}""#)), product, "{model}");
    }
}

// Refusals.

#[test]
fn refusals_have_distinct_sentences_and_never_repeat_the_body() {
    let secret = "s3cret-prompt";
    let bodies = [
        secret.to_owned(),
        format!("[\"{secret}\"]"),
        format!(r#"{{"prompt": "{secret}"}}"#),
        format!(r#"{{"id": "{secret} {secret}"}}"#),
        format!(r#"{{"id": "t", "prompt": "{secret}"}}"#),
    ];
    for body in bodies {
        let refusal = refusal(&body);
        assert!(!format!("{refusal} {refusal:?} {}", refusal.reason()).contains(secret));
    }
    let sentences: std::collections::HashSet<_> = Unreadable::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(sentences.len(), Unreadable::ALL.len());
}
