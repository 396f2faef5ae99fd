//! Rule 2: the status.

use super::*;

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
