//! Rules 5 and 6: times, the seed and the plain fields; and the product that the shape of a body implies.

use super::*;

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
