//! One behaviour at a time.

use serde_json::json;

use super::*;
use crate::vendor::{NESTING_LEVELS_MAX, StatusWord, time};

fn report(body: &str) -> Report {
    read(body.as_bytes()).unwrap_or_else(|e| panic!("{e}: {body}"))
}

fn refusal(body: &str) -> Unreadable {
    read(body.as_bytes()).expect_err(body)
}

/// A completed task with more fields.
fn with(fields: &str) -> Report {
    report(&format!(
        r#"{{"id": "t", "status": "completed", {fields}}}"#
    ))
}

/// A failed task with more fields.
fn error(fields: &str) -> TaskError {
    report(&format!(r#"{{"id": "t", "status": "failed", {fields}}}"#))
        .error
        .unwrap()
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
    with(fields)
        .outputs
        .into_iter()
        .map(|output| output.url)
        .collect()
}

fn inferred(fields: &str) -> String {
    report(&format!(
        r#"{{"id": "t", "video_url": "https://a/v", {fields}}}"#
    ))
    .inferred_product
    .as_str()
    .to_owned()
}

// Which bodies are JSON.

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
    for other in [
        "[]",
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
    for digits in [
        "0",
        "42",
        "18446744073709551616",
        "12345678901234567890123456789012345678901234567890",
    ] {
        assert_eq!(task_id(&format!(r#""id": {digits}"#)), Ok(digits.into()));
    }
    assert_eq!(
        task_id(&format!(r#""id": {}"#, "1".repeat(129))),
        Err(Unreadable::BadTaskId)
    );
}

#[test]
fn an_id_that_is_neither_text_nor_number_is_none() {
    for value in [
        "{}",
        "[]",
        "true",
        "false",
        "null",
        "\"\"",
        "{\"id\": \"t\"}",
    ] {
        assert_eq!(
            task_id(&format!(r#""id": {value}"#)),
            Err(Unreadable::NoTaskId),
            "{value}"
        );
        assert_eq!(
            task_id(&format!(r#""generation_id": {value}, "id": "t""#)),
            Ok("t".into()),
            "{value}"
        );
    }
    assert_eq!(refusal("{}"), Unreadable::NoTaskId);
}

#[test]
fn an_id_with_spaces_or_of_the_wrong_length_is_bad_even_beside_a_good_one() {
    for value in [" ", "a b", "a\\n", "\\u0000", "\\u00a0", &"x".repeat(129)] {
        assert_eq!(
            task_id(&format!(r#""generation_id": "{value}", "id": "t""#)),
            Err(Unreadable::BadTaskId)
        );
    }
    assert_eq!(
        task_id(&format!(r#""id": "{}""#, "ü".repeat(128))),
        Ok("ü".repeat(128))
    );
}

// Rule 2: the status.

#[test]
fn every_documented_word_has_its_status_in_any_case_and_with_blanks_around_it() {
    let completed = [
        "completed",
        "complete",
        "done",
        "success",
        "succeeded",
        "succeed",
        "finished",
    ];
    let failed = [
        [
            "failed",
            "failure",
            "error",
            "internal_error",
            "timeout",
            "expired",
        ],
        [
            "canceled",
            "cancelled",
            "rejected",
            "blocked",
            "filtered",
            "moderated",
        ],
        [
            "moderation_blocked",
            "safety_blocked",
            "nsfw",
            "Failed",
            "CANCELED",
            "Nsfw",
        ],
    ];
    let words = [
        (TaskStatus::Completed, completed.to_vec()),
        (TaskStatus::Failed, failed.concat()),
        (TaskStatus::Pending, vec!["pending", "queued"]),
        (TaskStatus::Processing, vec!["processing", "running"]),
    ];
    for (expected, word) in words
        .into_iter()
        .flat_map(|(s, words)| words.into_iter().map(move |word| (s, word)))
    {
        for word in [
            word.to_owned(),
            word.to_uppercase(),
            word.replacen(&word[..1], &word[..1].to_uppercase(), 1),
        ] {
            for blanks in ["", " ", "\\n", "\\u00a0"] {
                assert_eq!(
                    status(&format!(r#""status": "{blanks}{word}{blanks}""#)),
                    (expected, word.clone())
                );
            }
            assert_eq!(word.parse::<StatusWord>().unwrap().status(), expected);
        }
    }
}

#[test]
fn any_other_word_or_type_is_kept_and_never_guessed_at() {
    for word in ["completing", "ok", "true", "false", "not failed", "готово"] {
        let body = format!(
            r#"{{"id": "t", "status": "{word}", "video_url": "https://a/v", "error": {{}}}}"#
        );
        let report = report(&body);
        assert_eq!(
            (report.status, report.status_text.as_str()),
            (TaskStatus::Unspecified, word)
        );
        assert_eq!(report.error, None);
        assert!(word.parse::<StatusWord>().is_err());
    }
    for value in ["5", "200", "{}", "[\"failed\"]", "{\"state\":\"done\"}"] {
        for key in ["status", "success"] {
            let body = format!(r#""{key}": {value}, "video_url": "https://a/v""#);
            assert_eq!(
                status(&body),
                (TaskStatus::Unspecified, value.to_owned()),
                "{key}"
            );
        }
    }
    assert_eq!(
        status(r#""success": "yes""#),
        (TaskStatus::Unspecified, "yes".into())
    );
}

#[test]
fn true_and_false_are_statuses_without_a_word() {
    for key in ["status", "success"] {
        assert_eq!(
            status(&format!(r#""{key}": true"#)),
            (TaskStatus::Completed, String::new())
        );
        assert_eq!(
            status(&format!(r#""{key}": false"#)),
            (TaskStatus::Failed, String::new())
        );
    }
    for (text, expected) in [
        ("true", TaskStatus::Completed),
        (" FALSE ", TaskStatus::Failed),
    ] {
        assert_eq!(
            status(&format!(r#""success": "{text}""#)),
            (expected, String::new())
        );
    }
}

#[test]
fn status_goes_before_success_unless_it_says_nothing() {
    assert_eq!(
        status(r#""success": true, "status": "failed""#).0,
        TaskStatus::Failed
    );
    for nothing in ["null", "\"\"", "\" \"", "5", "200", "{}", "[\"failed\"]"] {
        assert_eq!(
            status(&format!(r#""success": true, "status": {nothing}"#)).0,
            TaskStatus::Completed
        );
    }
}

#[test]
fn without_a_status_an_output_or_an_error_implies_one() {
    assert_eq!(
        status(r#""video_url": "https://a/v", "error": {}"#),
        (TaskStatus::Completed, String::new())
    );
    assert_eq!(
        status(r#""output": {"video_urls": ["https://a/v"]}"#).0,
        TaskStatus::Completed
    );
    assert_eq!(
        status(r#""video_url": null, "error": {}"#),
        (TaskStatus::Failed, String::new())
    );
    assert_eq!(status(r#""error_message": "no""#).0, TaskStatus::Failed);
}

#[test]
fn without_anything_that_implies_a_status_the_body_is_refused() {
    for fields in [
        r#""x": 1"#,
        r#""status": null"#,
        r#""status": " ", "success": null"#,
        r#""error": null, "error_message": null"#,
        r#""message": "TASK_FAILED""#,
        r#""error_message": """#,
        r#""video_url": """#,
        r#""video_url": "soon", "result": "no luck""#,
    ] {
        assert_eq!(
            refusal(&format!(r#"{{"id": "t", {fields}}}"#)),
            Unreadable::NoStatus,
            "{fields}"
        );
    }
}

// Rule 3: outputs.

#[test]
fn outputs_come_in_the_documented_order_whatever_the_order_in_the_body() {
    let body = r#"
        "result": ["http://q", "http://r"], "urls": "http://p", "url": "http://o",
        "output": {
            "url": "http://n", "last_frame_url": "http://m", "videos": "http://l", "images": ["http://k"],
            "image_urls": ["http://j"], "video_urls": ["http://i"]
        },
        "videos": ["http://h"], "images": [{"url": "http://g"}], "result_image_urls": ["http://f"], "image_urls": {"url": "http://e"},
        "image_url": "http://d", "result_image_url": "http://c", "video_urls": ["http://b"], "video_url": "http://a""#;
    let letters: Vec<_> = urls(body)
        .iter()
        .map(|url| url.trim_start_matches("http://").to_owned())
        .collect();
    assert_eq!(letters.concat(), "abcdefghijklmnopqr");
}

#[test]
fn an_output_may_be_a_text_an_object_or_an_array_of_either_wherever_it_stands() {
    let keys = [
        ["video_url", "video_urls", "result_image_url", "image_url"],
        ["image_urls", "result_image_urls", "images", "videos"],
        ["output", "url", "urls", "result"],
    ];
    for key in keys.as_flattened() {
        for value in [
            r#""https://a/b""#,
            r#"{"url": "https://a/b", "width": 5}"#,
            r#"["https://a/b", null, 5, ["https://a/c"]]"#,
            r#"[{"url": "https://a/b"}, {"url": null}, {"uri": "https://a/c"}]"#,
        ] {
            assert_eq!(
                urls(&format!(r#""{key}": {value}"#)),
                ["https://a/b"],
                "{key}: {value}"
            );
            assert_eq!(
                urls(&format!(r#""{key}": [{value}]"#)).len(),
                usize::from(!value.starts_with('[')),
                "{key}"
            );
        }
    }
}

#[test]
fn only_an_absolute_http_or_https_url_is_an_output() {
    for url in [
        "https://a/b?c=d#e",
        "HTTP://a",
        "https://a:8080/ü",
        "http://[::1]/",
        "https://u:p@a",
    ] {
        assert_eq!(
            urls(&format!(r#""video_url": "{url}", "result": ["{url}"]"#)),
            [url]
        );
    }
    for other in [
        "",
        " ",
        "v",
        "/videos/1.mp4",
        "//a/b",
        "a/b.mp4",
        "ftp://a/b",
        "data:image/png;base64,AAAA",
        "s3://a/b",
        "https:a",
        "https://",
        "https:///b",
        "http://?x",
        "https://a/b could not be written",
        "https://a/b\\n",
        "done",
    ] {
        assert_eq!(
            urls(&format!(r#""video_url": "{other}", "result": ["{other}"]"#)),
            [""; 0],
            "{other}"
        );
    }
}

#[test]
fn the_kind_of_an_output_comes_from_its_key() {
    let body = r#"
        "video_url": "http://1.png", "video_urls": "http://2", "result_image_url": "http://3/a.mp4", "image_url": "http://4",
        "image_urls": "http://5", "result_image_urls": ["http://6"], "images": "http://7", "videos": "http://8",
        "output": {"video_urls": ["http://9"], "image_urls": ["http://10"], "images": "http://11", "videos": "http://12",
                   "last_frame_url": "http://13", "url": "http://14/a.mp4"}"#;
    use OutputKind::{Image, Video};
    let kinds: Vec<_> = with(body)
        .outputs
        .into_iter()
        .map(|output| output.kind)
        .collect();
    let expected = [
        [Video, Video, Image, Image, Image, Image, Image],
        [Video, Video, Image, Image, Video, Image, Video],
    ];
    assert_eq!(kinds, expected.concat());
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
    ];
    for (url, kind) in kinds {
        for value in [
            format!(r#""url": "{url}""#),
            format!(r#""result": "{url}""#),
            format!(r#""result": ["{url}"]"#),
        ] {
            assert_eq!(with(&value).outputs, [output(kind, url)]);
        }
    }
}

#[test]
fn empty_null_and_repeated_outputs_are_skipped() {
    assert_eq!(
        urls(r#""video_url": "", "url": null, "image_url": {"href": "http://x"}, "result": 5"#),
        [""; 0]
    );
    let within = r#""output": {"video_urls": [null, "", 5, {}, "http://a", "http://a", ["http://b"], "http://c"]}"#;
    assert_eq!(urls(within), ["http://a", "http://c"]);
    assert_eq!(
        urls(r#""video_url": "http://a", "url": "http://a", "result": ["http://a", "http://b"]"#),
        ["http://a", "http://b"]
    );
}

#[test]
fn an_output_found_twice_keeps_the_kind_of_the_first() {
    assert_eq!(
        with(r#""url": "http://a", "image_url": "http://a""#).outputs,
        [output(OutputKind::Image, "http://a")]
    );
}

#[test]
fn completed_without_an_output_and_failed_with_one_are_legal() {
    assert_eq!(with(r#""video_url": null"#).outputs, []);
    assert_eq!(
        report(r#"{"id": "t", "status": "failed", "video_url": "https://a/v"}"#)
            .outputs
            .len(),
        1
    );
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
        (
            "2025-12-06T21:43:03.123456789Z",
            "2025-12-06T21:43:03.123456789Z",
        ),
        ("2025-12-06T21:43:03.1+05:30", "2025-12-06T16:13:03.1Z"),
        ("2025-12-06T21:43:03-08:00", "2025-12-07T05:43:03Z"),
        ("2024-02-29T00:00:00-00:00", "2024-02-29T00:00:00Z"),
        ("2025-12-06T21:43:03+0530", "2025-12-06T16:13:03Z"),
        ("2025-12-06 21:43:03.25-0800", "2025-12-07T05:43:03.25Z"),
        ("2025-12-06T21:43:03+05", "2025-12-06T16:43:03Z"),
        (
            "2025-12-06T21:43:03.1234567891234Z",
            "2025-12-06T21:43:03.123456789Z",
        ),
        (
            "2025-12-06T21:43:03.99999999999999",
            "2025-12-06T21:43:03.999999999Z",
        ),
        ("1733521383", "2024-12-06T21:43:03Z"),
        ("1733521383250", "2024-12-06T21:43:03.25Z"),
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
        "2025-12-06",
        "2025-12-06T21:43",
        "20251206T214303Z",
        "20251206",
        "20251206214303",
        "173352138",
        "17335213830",
        "-173352138",
        "1733521383.5",
        "2025-12-06T21:43:03+5",
        "2025-12-06T21:43:03+053",
        "2025-12-06T21:43:03+05:3",
        "2025-12-06T21:43:03.",
        "2025-12-06T21:43:03,5Z",
        "2025-12-06T21:43:03Z[UTC]",
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
    assert_eq!(
        with(r#""created_at": "soon", "completed_at": {"at": 5}"#),
        with(r#""x": 1"#)
    );
}

#[test]
fn a_number_is_seconds_or_beyond_the_year_5000_milliseconds() {
    for (number, expected) in [
        ("1733521383", Some("2024-12-06T21:43:03Z")),
        ("1733521383.25", Some("2024-12-06T21:43:03.25Z")),
        (
            "1733521383.1234567891",
            Some("2024-12-06T21:43:03.123456789Z"),
        ),
        ("1.733521383e9", Some("2024-12-06T21:43:03Z")),
        ("1733521383250", Some("2024-12-06T21:43:03.25Z")),
        ("95617583999", Some("4999-12-31T23:59:59Z")),
        ("95617584000", Some("1973-01-11T16:26:24Z")),
        ("0", Some("1970-01-01T00:00:00Z")),
        ("-1.5", Some("1969-12-31T23:59:58.5Z")),
        ("1733521383250000", None),
        ("1e400", None),
        ("-1e300", None),
        ("true", None),
    ] {
        let read = with(&format!(r#""created_at": {number}"#)).created_at;
        assert_eq!(read, expected.map(|time| time.parse().unwrap()), "{number}");
    }
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
    for value in ["true", "{}", "[]", "[\"x\"]", "null"] {
        let report = with(&format!(
            r#""prompt": {value}, "model": {value}, "created_at": {value}"#
        ));
        assert_eq!(report, with(r#""x": 1"#));
    }
}

#[test]
fn prompt_and_model_are_kept_as_they_are() {
    let prompt = " a\n\u{1f600}\" ".repeat(5_000);
    let report = with(&format!(
        r#""prompt": {}, "model": "Veo 3.1""#,
        json!(prompt)
    ));
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
    assert_eq!(
        inferred(r#""prompt": "p", "message": null, "created_at": null"#),
        "unknown"
    );
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
        assert_eq!(
            inferred(&format!(r#""model": "{model}""#)),
            product,
            "{model}"
        );
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
    let sentences: std::collections::HashSet<_> =
        Unreadable::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(sentences.len(), Unreadable::ALL.len());
}
