//! Properties of every body and of every sample.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Value;

use super::*;
use crate::vendor::sample::{Broken, PRODUCTS, Sample, SampleStatus, Shape, broken};

const KEYS: [&str; 34] = [
    "generation_id",
    "task_uuid",
    "task_id",
    "id",
    "status",
    "success",
    "video_url",
    "video_urls",
    "result_image_url",
    "image_url",
    "image_urls",
    "result_image_urls",
    "images",
    "videos",
    "output",
    "last_frame_url",
    "url",
    "urls",
    "result",
    "error",
    "code",
    "msg",
    "details",
    "error_code",
    "error_message",
    "error_msg",
    "message",
    "description",
    "detail",
    "prompt",
    "model",
    "seed",
    "created_at",
    "completed_at",
];
/// The keys that may hold the reason of a failure.
const REASONS: [&str; 7] = [
    "error",
    "error_code",
    "error_message",
    "error_msg",
    "message",
    "description",
    "detail",
];

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![4 => select(&KEYS[..]).prop_map(String::from), 1 => ".{0,12}"]
}

fn any_text() -> impl Strategy<Value = String> {
    let word = select(
        &[
            "completed",
            "failed",
            "timeout",
            "TASK_FAILED",
            "no luck",
            "https://a/b.mp4",
            "t-1",
            "5",
        ][..],
    );
    let time = select(&["2025-12-06T21:43:03.374000", "2025-12-06T21:43:03Z"][..]);
    prop_oneof![
        word.prop_map(String::from),
        time.prop_map(String::from),
        ".{0,20}",
        "kling[-_ ]o[0-9]{1,3}[-_]video"
    ]
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any_text().prop_map(Value::from),
        any_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((any_key(), inner), 0..6)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn any_object() -> impl Strategy<Value = BTreeMap<String, Value>> {
    vec((any_key(), any_value()), 0..12).prop_map(|entries| entries.into_iter().collect())
}

/// A readable object: any object with an id and a status.
fn any_readable() -> impl Strategy<Value = BTreeMap<String, Value>> {
    any_object().prop_map(|mut object| {
        object.insert("generation_id".into(), "t-1".into());
        object.insert("status".into(), "failed".into());
        object
    })
}

/// Writes the entries in the given order, with duplicates.
fn body<'a>(entries: impl IntoIterator<Item = (&'a String, &'a Value)>) -> Vec<u8> {
    let field = |(key, value): (&String, &Value)| format!("{}: {value}", Value::from(key.as_str()));
    let fields: Vec<_> = entries.into_iter().map(field).collect();
    format!("{{{}}}", fields.join(", ")).into_bytes()
}

fn any_sample() -> impl Strategy<Value = (String, Shape, SampleStatus, String, i64)> {
    let product =
        prop_oneof![4 => select(&PRODUCTS[..]).prop_map(String::from), 1 => "[a-z][a-z0-9-]{0,20}"];
    let (shape, status) = (select(&Shape::ALL[..]), select(&SampleStatus::ALL[..]));
    (product, shape, status, "[!-~]{1,128}", 0..4_000_000_000_i64)
}

fn consistent(report: &Report) -> bool {
    let distinct: std::collections::HashSet<_> =
        report.outputs.iter().map(|output| &output.url).collect();
    (report.status == TaskStatus::Failed) == report.error.is_some()
        && distinct.len() == report.outputs.len()
        && report
            .outputs
            .iter()
            .all(|output| output.url.to_ascii_lowercase().starts_with("http"))
}

/// Every text, without surrounding space, and every whole number in a value.
fn said(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.trim().to_owned()],
        // A fraction may change in its last digit when it is read.
        Value::Number(number) if !number.is_f64() => vec![number.to_string()],
        Value::Array(values) => values.iter().flat_map(said).collect(),
        Value::Object(map) => map.values().flat_map(said).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

fn utf16(text: &[u8], unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let text = std::str::from_utf8(text).unwrap();
    [0xfeff]
        .into_iter()
        .chain(text.encode_utf16())
        .flat_map(unit)
        .collect()
}

proptest! {
    #[test]
    fn any_bytes_give_a_report_or_a_reason(bytes: Vec<u8>) {
        if let Ok(report) = read(&bytes) {
            prop_assert!(consistent(&report));
        }
    }

    #[test]
    fn any_cut_or_changed_body_gives_a_report_or_a_reason(object in any_readable(), cut: u16, at: u16, byte: u8) {
        let mut bytes = body(&object);
        let at = usize::from(at) % bytes.len();
        bytes[at] = byte;
        bytes.truncate(usize::from(cut).max(1));
        if let Ok(report) = read(&bytes) {
            prop_assert!(consistent(&report));
        }
    }

    #[test]
    fn any_object_is_read_or_lacks_an_id_or_a_status(object in any_object()) {
        match read(&body(&object)) {
            Ok(report) => prop_assert!(consistent(&report)),
            Err(reason) => {
                let lacking = [Unreadable::NoTaskId, Unreadable::BadTaskId, Unreadable::NoStatus];
                prop_assert!(lacking.contains(&reason), "{}", reason);
            }
        }
    }

    #[test]
    fn an_object_with_an_id_and_a_status_is_always_read(object in any_readable()) {
        prop_assert!(read(&body(&object)).is_ok());
    }

    #[test]
    fn neither_order_nor_unknown_fields_nor_overruled_ones_change_the_report(
        object in any_readable(),
        order in any::<u64>(),
        unknown in vec(("x_[a-z]{1,8}", any_value()), 0..6),
        overruled in any_value(),
    ) {
        let expected = read(&body(&object));
        let mut entries: Vec<_> = object.iter().chain(unknown.iter().map(|(key, value)| (key, value))).collect();
        entries.sort_by_key(|(key, _)| key.bytes().fold(order, |hash, b| hash.rotate_left(9) ^ u64::from(b).wrapping_mul(order | 1)));
        let first = object.keys().map(|key| (key, &overruled));
        prop_assert_eq!(read(&body(first.chain(entries))), expected);
    }

    #[test]
    fn interleaved_nulls_change_nothing_but_the_inferred_product(object in any_readable(), nulls in vec(any_key(), 0..8)) {
        let expected = read(&body(&object)).unwrap();
        let nulls: Vec<_> = nulls.into_iter().filter(|key| !object.contains_key(key)).collect();
        let null = Value::Null;
        let read = read(&body(nulls.iter().map(|key| (key, &null)).chain(&object))).unwrap();
        let inferred_product = expected.inferred_product.clone();
        prop_assert_eq!(Report { inferred_product, ..read }, expected);
    }

    #[test]
    fn every_sample_reads_back_as_what_it_claims((product, shape, status, task_id, second) in any_sample()) {
        let at = Timestamp::from_second(second).unwrap();
        let sample = Sample { product: &product, shape, status, task_id: &task_id, at };
        let report = read(&serde_json::to_vec(&sample.body()).unwrap()).unwrap();
        prop_assert_eq!(report.task_id.as_str(), &task_id);
        prop_assert_eq!(report.status, status.task_status());
        prop_assert_eq!(report.outputs.is_empty(), status != SampleStatus::Completed);
        prop_assert!(report.completed_at.is_none_or(|time| time == at));
        prop_assert_eq!(sample.body(), sample.body());
        let code = report.error.map(|error| error.code);
        match status {
            SampleStatus::Timeout => prop_assert_eq!(code.as_deref(), Some("TIMEOUT")),
            SampleStatus::ModerationBlocked => prop_assert_eq!(code.as_deref(), Some("MODERATION_BLOCKED")),
            _ => prop_assert!(code.is_none_or(|code| !["TIMEOUT", "MODERATION_BLOCKED"].contains(&&*code))),
        }
    }

    #[test]
    fn a_byte_order_mark_changes_nothing(object in any_object()) {
        let body = body(&object);
        let expected = read(&body);
        let marked = [b"\xef\xbb\xbf", body.as_slice()].concat();
        for body in [marked, utf16(&body, u16::to_be_bytes), utf16(&body, u16::to_le_bytes)] {
            prop_assert_eq!(&read(&body), &expected);
        }
    }

    #[test]
    fn whatever_is_said_of_an_error_is_its_code_its_message_or_in_its_details(
        reasons in vec((select(&REASONS[..]).prop_map(String::from), any_value()), 1..4),
    ) {
        let mut object: BTreeMap<String, Value> = reasons.into_iter().collect();
        let all: Vec<_> = object.values().flat_map(said).filter(|text| !text.is_empty()).collect();
        object.extend([("id".into(), "t".into()), ("status".into(), "failed".into())]);
        let error = read(&body(&object)).unwrap().error.unwrap();

        let mut told = vec![error.code, error.message.trim().to_owned(), error.message.trim().to_ascii_uppercase()];
        told.extend(error.details.iter().flat_map(said));
        for text in all {
            prop_assert!(told.contains(&text) || told.contains(&text.to_ascii_uppercase()), "{:?} is not in {:?}", text, told);
        }
    }

    #[test]
    fn a_stated_code_has_its_neighbour_for_a_message_word_for_word(
        code in "[A-Za-z0-9_. -]{1,20}[a-z]", message in "\\PC{0,20}[a-z!]", others in vec((select(&REASONS[1..]).prop_map(String::from), any_value()), 0..4),
        key in select(&["message", "msg", "detail"][..]),
    ) {
        let mut object: BTreeMap<String, Value> = others.into_iter().collect();
        let error = serde_json::json!({"code": code, key: message});
        object.extend([("id".into(), "t".into()), ("status".into(), "failed".into()), ("error".into(), error)]);
        let error = read(&body(&object)).unwrap().error.unwrap();
        prop_assert_eq!((error.code, error.message), (code.trim().to_ascii_uppercase(), message));
    }

    #[test]
    fn a_time_is_the_same_however_it_is_written(micros in 1_000_000_000_000_000..9_999_999_999_000_000_i64, zeros in 0..9_usize) {
        let at = Timestamp::from_microsecond(micros).unwrap();
        let text = format!("{at:.6}");
        let naive = text.trim_end_matches('Z');
        let zeros = "0".repeat(zeros);
        for written in [text.clone(), format!("{naive}{zeros}+0000"), format!("{naive}{zeros}+00"), naive.replace('T', " ")] {
            prop_assert_eq!(crate::vendor::time::read(&written), Some(at), "{}", written);
        }
        let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
        prop_assert_eq!(crate::vendor::time::of_number(&format!("{seconds}.{fraction:06}{zeros}")), Some(at));
        let milliseconds = Timestamp::from_millisecond(micros / 1_000).unwrap();
        prop_assert_eq!(crate::vendor::time::read(&(micros / 1_000).to_string()), Some(milliseconds));
    }

    #[test]
    fn every_broken_body_is_refused_for_the_reason_it_claims(kind in select(&Broken::ALL[..]), task_id in "[!-~]{1,128}") {
        prop_assert_eq!(read(&broken(kind, &task_id)), Err(kind.unreadable()));
    }
}

#[test]
fn the_body_of_every_product_is_inferred_as_it_where_the_documented_shape_tells() {
    for product in PRODUCTS {
        for status in SampleStatus::ALL {
            let sample = Sample {
                product,
                shape: Shape::Documented,
                status,
                task_id: "t",
                at: Timestamp::UNIX_EPOCH,
            };
            let report = read(&serde_json::to_vec(&sample.body()).unwrap()).unwrap();
            let tells = match product {
                "kling" => false,
                "sora" => matches!(status, SampleStatus::Failed | SampleStatus::Timeout),
                _ => true,
            };
            let expected = if tells { product } else { "unknown" };
            assert_eq!(
                report.inferred_product.as_str(),
                expected,
                "{product} {}",
                status.as_str()
            );
        }
    }
}

#[test]
fn a_sample_has_exactly_the_keys_of_the_documented_body() {
    let keys = |json: &str| -> Vec<String> {
        serde_json::from_str::<serde_json::Map<_, _>>(json)
            .unwrap()
            .into_iter()
            .map(|(key, _)| key)
            .collect()
    };
    let sample = |product, shape, status| {
        let at = Timestamp::UNIX_EPOCH;
        Sample {
            product,
            shape,
            status,
            task_id: "t",
            at,
        }
        .body()
        .into_iter()
        .map(|(key, _)| key)
        .collect::<Vec<_>>()
    };
    macro_rules! same {
        ($file:literal, $product:literal, $shape:ident, $status:ident) => {
            let documented = keys(include_str!(concat!(
                "../../../tests/data/vendor/",
                $file,
                ".json"
            )));
            assert_eq!(
                sample($product, Shape::$shape, SampleStatus::$status),
                documented,
                $file
            );
        };
    }
    same!("veo-completed", "veo", Documented, Completed);
    same!("veo-failed", "veo", Documented, Failed);
    same!("veo-timeout", "veo", Documented, Timeout);
    same!("veo-legacy-completed", "veo", Legacy, Completed);
    same!("veo-legacy-failed", "veo", Legacy, Failed);
    same!("kling-completed", "kling", Documented, Completed);
    same!(
        "kling-o1-video-completed",
        "kling-o1-video",
        Documented,
        Completed
    );
    same!(
        "kling-o3-video-failed",
        "kling-o3-video",
        Documented,
        Failed
    );
    same!(
        "kling-o1-photo-completed",
        "kling-o1-photo",
        Documented,
        Completed
    );
    same!("nanobanana-completed", "gemini", Documented, Completed);
    same!("nanobanana-failed", "gemini", Documented, Failed);
    same!(
        "chatgpt-images-completed",
        "chatgpt-images",
        Documented,
        Completed
    );
    same!("sora-completed", "sora", Documented, Completed);
    same!("sora-failed", "sora", Documented, Failed);
}

#[test]
fn every_name_is_read_back_and_an_unknown_one_lists_the_known() {
    for status in SampleStatus::ALL {
        assert_eq!(status.as_str().parse(), Ok(status));
    }
    for shape in Shape::ALL {
        assert_eq!(shape.as_str().parse(), Ok(shape));
    }
    for kind in Broken::ALL {
        assert_eq!(kind.as_str().parse(), Ok(kind));
    }
    assert_eq!(
        "moderation_blocked".parse(),
        Ok(SampleStatus::ModerationBlocked)
    );
    assert_eq!(
        "new".parse::<Shape>().unwrap_err().to_string(),
        "not one of documented, legacy"
    );
}
