//! The vendor's callback bodies. Any bytes are an event or a reason, always the same one; the event says in protobuf what the
//! body says, is read back from the log as it was written, and stays small enough for every client.
//!
//! Input: the product of the URL, or nothing, up to the first newline; behind it the body.

use blobcast::{
    callback::{Callback, Corrections},
    event::{
        Labels, Output, OutputKind, Product, Record, RecordParts, Report, Selectable, Sequence,
        TaskId, TaskStatus, Verification,
    },
    reconcile::{
        Asked,
        answer::{Understood, understand},
    },
    store::Draft,
    vendor::{self, Overrides, Unreadable},
    wire::{status_to_wire, timestamp, v1},
};
use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use prost_types::value::Kind;
use serde_json::Value;

/// All that the broker adds to a body's texts: ids, times, a product, numbers of fields.
const OVERHEAD_BYTES: usize = 1024;
/// As in `wire::convert`: deeper or larger `details` are left out.
const DETAILS_LEVELS_MAX: usize = 24;
const DETAILS_BYTES_MAX: usize = 1024 * 1024;

pub(crate) fn run(input: &[u8]) {
    let line = input.iter().position(|&byte| byte == b'\n').unwrap_or(0);
    let (product, body) = (
        String::from_utf8_lossy(&input[..line]),
        input.get(line + 1..).unwrap_or_default(),
    );
    let callback = Callback {
        near_miss: None,
        product: (!product.is_empty()).then(|| product.into_owned()),
        query: String::new(),
        body: Bytes::copy_from_slice(body),
        received_at: Timestamp::UNIX_EPOCH,
        verification: Verification::Unverified,
        credential: String::new(),
        bound: None,
    };
    let read = vendor::read(body);
    assert_eq!(vendor::read(body), read, "read twice");
    match body {
        [0xef, 0xbb, 0xbf, ..] | [0xfe, 0xff, ..] | [0xff, 0xfe, ..] => {}
        _ => {
            assert_eq!(
                vendor::read(&[b" ", body, b"\n"].concat()),
                read,
                "with space around it"
            );
            assert_eq!(
                vendor::read(&[b"\xef\xbb\xbf", body].concat()),
                read,
                "behind a byte order mark"
            );
        }
    }
    check_elements(body);
    let draft = callback.draft(&Corrections::default());
    let product = callback.product.as_deref().map(Product::parse).transpose();
    match (&read, product) {
        (Ok(report), Ok(product)) => {
            check_report(report);
            check_answer(report, body);
            let draft = draft.expect("a good product and a body that can be read");
            assert_eq!(draft.fingerprint, report.fingerprint(body));
            assert_eq!(
                draft.product,
                product.unwrap_or_else(|| report.inferred_product.clone())
            );
            check_event(report, &draft, callback.product.is_none());
            check_record(&draft);
            let renamed = TaskId::parse("another").unwrap();
            let expected = Report {
                task_id: renamed.clone(),
                ..report.clone()
            };
            let overrides = Overrides {
                task_id: Some(renamed),
                status: None,
            };
            assert_eq!(vendor::read_as(body, &overrides), Ok(expected));
        }
        (_, Err(_)) => assert_eq!(draft.unwrap_err().reason(), "bad_product"),
        (Err(reason), _) => assert_eq!(draft.unwrap_err().reason(), reason.reason()),
    }
}

/// As an answer of the status API the same body ends the task only by the vendor's word for it, and then as a callback would.
fn check_answer(report: &Report, body: &[u8]) {
    let labels = Labels::new();
    let asked = Asked {
        product: &report.inferred_product,
        task_id: &report.task_id,
        labels: &labels,
        tenant: None,
        vendor_key: None,
        at: Timestamp::UNIX_EPOCH,
    };
    let body = Bytes::copy_from_slice(body);
    let is_said = report.status.is_terminal() && !report.status_text.is_empty();
    match understand(&asked, 200, &body) {
        Understood::Ended(draft) | Understood::CompletedWithoutOutputs(draft) => {
            assert!(is_said);
            assert_eq!(draft.fingerprint, report.fingerprint(&body));
            assert_eq!((draft.status, draft.raw), (report.status, body));
        }
        Understood::NotYet { .. } | Understood::Unknown { .. } => assert!(!is_said),
    }
}

/// Only an array has elements, and what they are cut out of is what they are read as.
fn check_elements(body: &[u8]) {
    let elements = vendor::elements(body, 3);
    let is_array = vendor::read(body) == Err(Unreadable::Array);
    assert_eq!(
        elements.as_ref().is_some_and(|(_, count)| *count > 0),
        is_array
    );
    let Some((first, count)) = elements else {
        return;
    };
    assert_eq!(first.len(), count.min(3));
    for element in first {
        assert!(serde_json::from_slice::<&serde_json::value::RawValue>(&element).is_ok());
    }
}

fn check_report(report: &Report) {
    assert_eq!(report.status == TaskStatus::Failed, report.error.is_some());
    assert_eq!(
        TaskId::parse(report.task_id.as_str()).as_ref(),
        Ok(&report.task_id)
    );
    assert_eq!(
        Product::parse(report.inferred_product.as_str()).as_ref(),
        Ok(&report.inferred_product)
    );
    let distinct: std::collections::HashSet<_> =
        report.outputs.iter().map(|output| &output.url).collect();
    assert!(distinct.len() == report.outputs.len() && !distinct.contains(&String::new()));
}

fn check_event(report: &Report, draft: &Draft, product_inferred: bool) {
    let event = v1::Event::decode(&*draft.event).expect("what is stored is an event");
    let details = event
        .error
        .as_ref()
        .and_then(|error| error.details.as_ref());
    let details_bytes = details.map_or(0, Message::encoded_len);
    let texts_bytes = draft.event.len() - details_bytes;
    assert!(details_bytes <= DETAILS_BYTES_MAX);
    // So that the event of a body of 1 MiB, and that body with it, stay below the 4 MiB that clients take.
    assert!(
        texts_bytes <= 2 * draft.raw.len() + OVERHEAD_BYTES,
        "{texts_bytes} bytes of texts"
    );
    if let Some(error) = &report.error {
        check_details(details, error.details.as_ref());
    }
    let expected = v1::Event {
        event_id: draft.event_id.to_string(),
        product: draft.product.to_string(),
        task_id: report.task_id.to_string(),
        status: status_to_wire(report.status).into(),
        status_text: report.status_text.clone(),
        terminal: report.status.is_terminal(),
        outputs: report.outputs.iter().map(output).collect(),
        error: report.error.as_ref().map(|error| v1::TaskError {
            code: error.code.clone(),
            message: error.message.clone(),
            details: details.cloned(),
        }),
        prompt: report.prompt.clone(),
        model: report.model.clone(),
        seed: report.seed,
        created_at: report.created_at.map(timestamp),
        completed_at: report.completed_at.map(timestamp),
        received_at: Some(timestamp(Timestamp::UNIX_EPOCH)),
        product_inferred,
        verification: v1::Verification::Unverified.into(),
        truncated: event.truncated, // of details that cannot be held
        ..v1::Event::default()
    };
    assert_eq!(event, expected);
    assert_eq!(event.encode_to_vec(), draft.event);
    for time in [event.created_at, event.completed_at].into_iter().flatten() {
        assert!(
            (-62_135_596_800..=253_402_300_799).contains(&time.seconds),
            "protobuf has no such time: {time:?}"
        );
    }
}

fn output(output: &Output) -> v1::Output {
    let kind = match output.kind {
        OutputKind::Image => v1::OutputKind::Image,
        OutputKind::Video => v1::OutputKind::Video,
        OutputKind::Other => v1::OutputKind::Other,
    };
    v1::Output {
        kind: kind.into(),
        url: output.url.clone(),
    }
}

fn check_details(told: Option<&prost_types::Struct>, given: Option<&Value>) {
    match (told, given) {
        (None, None) => {}
        (None, Some(given)) => assert!(levels(given) > DETAILS_LEVELS_MAX, "details are missing"),
        (Some(told), Some(Value::Object(map))) => assert!(same_fields(told, map)),
        (Some(told), Some(other)) => {
            assert!(told.fields.len() == 1 && same(&told.fields["value"], other));
        }
        (Some(_), None) => panic!("details that nobody gave"),
    }
}

fn levels(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(levels).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(levels).max().unwrap_or(0),
        _ => 0,
    }
}

fn same(told: &prost_types::Value, given: &Value) -> bool {
    match (told.kind.as_ref(), given) {
        (Some(Kind::NullValue(0)), Value::Null) => true,
        (Some(Kind::BoolValue(told)), Value::Bool(given)) => told == given,
        (Some(Kind::NumberValue(told)), Value::Number(given)) => Some(*told) == given.as_f64(),
        (Some(Kind::StringValue(told)), Value::String(given)) => told == given,
        (Some(Kind::ListValue(told)), Value::Array(given)) => {
            told.values.len() == given.len()
                && told
                    .values
                    .iter()
                    .zip(given)
                    .all(|(told, given)| same(told, given))
        }
        (Some(Kind::StructValue(told)), Value::Object(given)) => same_fields(told, given),
        _ => false,
    }
}

fn same_fields(told: &prost_types::Struct, given: &serde_json::Map<String, Value>) -> bool {
    told.fields.len() == given.len()
        && given
            .iter()
            .all(|(key, given)| told.fields.get(key).is_some_and(|told| same(told, given)))
}

fn check_record(draft: &Draft) {
    let parts = RecordParts {
        product: &draft.product,
        task_id: &draft.task_id,
        status: draft.status,
        revision: 1,
        conflict: false,
        received_at_micros: draft.received_at_micros,
        log_time_micros: draft.received_at_micros,
        labels: &draft.labels,
        event: &draft.event,
        raw: &draft.raw,
    };
    let written = Record::new(Sequence(1), &parts);
    let record =
        Record::from_stored(Sequence(1), written.bytes().clone()).expect("what was written");
    assert_eq!(
        (record.product(), record.task_id()),
        (draft.product.as_str(), draft.task_id.as_str())
    );
    assert_eq!(
        (record.status(), record.event(), record.raw()),
        (draft.status, &*draft.event, &*draft.raw)
    );
}
