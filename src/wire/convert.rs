//! From the domain's types to protobuf. Pure.

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use serde_json::Value;
use std::time::Duration;

use super::{frame::EVENT_BYTES_MAX, v1};
use crate::event::{Event, Output, OutputKind, OverdueEvent, TaskError, TaskStatus, Verification};

/// Most bytes of an error's `details`, encoded. A JSON number grows fivefold in a `Struct`, so a body of 1 MiB could become an event
/// beyond the 4 MiB that clients accept by default, and no such client would get past it. With this limit the details, the texts of
/// the largest body, and that body together stay below 4 MiB.
const DETAILS_BYTES_MAX: usize = 1024 * 1024;
/// Most levels of arrays and objects in an error's `details`. Protobuf decoders stop at about 100 nested messages; a level becomes three
/// messages, and some are around it. A deeper event would stop every subscriber that receives it.
const DETAILS_LEVELS_MAX: usize = 24;

/// Encodes an event without the fields that only the log knows (cursor, revision, conflict) and without the raw body. Fields are left
/// out of an event larger than [`EVENT_BYTES_MAX`], and `truncated` says so.
pub fn encode_event(event: Event) -> Bytes {
    let Event {
        event_id,
        product,
        product_inferred,
        report,
        received_at,
        verification,
        labels,
        corrected,
        credential,
    } = event;

    let (error, lacks_details) = error_to_wire(report.error);
    let event = v1::Event {
        event_id: event_id.to_string(),
        cursor: String::new(),
        product: product.as_str().to_owned(),
        task_id: report.task_id.as_str().to_owned(),
        status: status_to_wire(report.status).into(),
        status_text: report.status_text,
        terminal: report.status.is_terminal(),
        outputs: report.outputs.into_iter().map(output).collect(),
        error,
        prompt: report.prompt,
        model: report.model,
        seed: report.seed,
        created_at: report.created_at.map(timestamp),
        completed_at: report.completed_at.map(timestamp),
        received_at: Some(timestamp(received_at)),
        revision: 0,
        conflict: false,
        product_inferred,
        verification: verification_to_wire(verification).into(),
        labels: labels.into_iter().collect(),
        raw_body: Bytes::new(),
        corrected,
        truncated: lacks_details,
        credential,
        overdue: None,
    };

    let encoded = event.encode_to_vec();
    if encoded.len() <= EVENT_BYTES_MAX {
        encoded.into()
    } else {
        shortened(event).encode_to_vec().into()
    }
}

/// Encodes the event of a late task, like [`encode_event`]. It has no sender, so nothing of it was verified.
pub fn encode_overdue(event: OverdueEvent) -> Bytes {
    let OverdueEvent {
        event_id,
        product,
        task_id,
        labels,
        noticed_at,
        credential,
        overdue,
    } = event;

    let overdue = v1::Overdue {
        expected_by: Some(timestamp(overdue.expected_by)),
        checked_at: overdue.checked_at.map(timestamp),
        vendor_http_status: overdue.vendor_http_status.into(),
        vendor_status: overdue.vendor_status,
        check_count: overdue.check_count,
        gave_up: overdue.gave_up,
    };
    let event = v1::Event {
        event_id: event_id.to_string(),
        product: product.as_str().to_owned(),
        task_id: task_id.as_str().to_owned(),
        status: v1::TaskStatus::Overdue.into(),
        received_at: Some(timestamp(noticed_at)),
        labels: labels.into_iter().collect(),
        credential,
        overdue: Some(overdue),
        ..v1::Event::default()
    };
    event.encode_to_vec().into()
}

/// True if an encoded event says that the broker no longer asks for its task.
pub fn gave_up(encoded: &[u8]) -> bool {
    v1::Event::decode(encoded)
        .ok()
        .and_then(|event| event.overdue)
        .is_some_and(|overdue| overdue.gave_up)
}

/// The event without as many of its large fields as necessary, the least important first. No field is cut in the middle.
fn shortened(mut event: v1::Event) -> v1::Event {
    event.truncated = true;
    let leave_out: [fn(&mut v1::Event); 6] = [
        |event| {
            event
                .error
                .iter_mut()
                .for_each(|error| error.details = None);
        },
        |event| event.prompt.clear(),
        |event| {
            event
                .error
                .iter_mut()
                .for_each(|error| error.message.clear());
        },
        |event| event.model.clear(),
        |event| event.status_text.clear(),
        |event| event.outputs.clear(),
    ];

    for leave_out in leave_out {
        if event.encoded_len() <= EVENT_BYTES_MAX {
            break;
        }
        leave_out(&mut event);
    }

    event
}

/// Exact to the nanosecond.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // Protobuf counts nanoseconds forward from the second, jiff counts them away from zero.
    let nanos = i64::from(time.subsec_nanosecond());
    let borrow = i64::from(nanos < 0);
    let nanos = (nanos + borrow * 1_000_000_000) as i32; // 0..1e9
    prost_types::Timestamp {
        seconds: time.as_second() - borrow,
        nanos,
    }
}

/// A duration beyond protobuf's range (10,000 years) becomes the longest.
pub fn duration(duration: Duration) -> prost_types::Duration {
    const LONGEST: Duration = Duration::from_secs(315_576_000_000);
    let duration = duration.min(LONGEST);
    prost_types::Duration {
        seconds: duration.as_secs() as i64,
        nanos: duration.subsec_nanos() as i32,
    } // below 1e9
}

/// The wire's number of a status.
pub fn status_to_wire(status: TaskStatus) -> v1::TaskStatus {
    match status {
        TaskStatus::Unspecified => v1::TaskStatus::Unspecified,
        TaskStatus::Pending => v1::TaskStatus::Pending,
        TaskStatus::Processing => v1::TaskStatus::Processing,
        TaskStatus::Completed => v1::TaskStatus::Completed,
        TaskStatus::Failed => v1::TaskStatus::Failed,
        TaskStatus::Overdue => v1::TaskStatus::Overdue,
    }
}

/// The wire's number of a way to authenticate.
pub fn verification_to_wire(verification: Verification) -> v1::Verification {
    match verification {
        Verification::Unverified => v1::Verification::Unverified,
        Verification::UrlToken => v1::Verification::UrlToken,
        Verification::SignedUrl => v1::Verification::SignedUrl,
        Verification::BodySignature => v1::Verification::BodySignature,
        Verification::VendorApi => v1::Verification::VendorApi,
    }
}

fn output(output: Output) -> v1::Output {
    let kind = match output.kind {
        OutputKind::Image => v1::OutputKind::Image,
        OutputKind::Video => v1::OutputKind::Video,
        OutputKind::Other => v1::OutputKind::Other,
    };
    v1::Output {
        kind: kind.into(),
        url: output.url,
    }
}

/// The error, and whether it lacks the details that the vendor sent.
fn error_to_wire(error: Option<TaskError>) -> (Option<v1::TaskError>, bool) {
    let Some(TaskError {
        code,
        message,
        details,
    }) = error
    else {
        return (None, false);
    };

    let has_details = details.is_some();
    let shallow = details.filter(|value| levels(value) <= DETAILS_LEVELS_MAX);
    let details = shallow
        .map(self::details)
        .filter(|details| details.encoded_len() <= DETAILS_BYTES_MAX);
    let lacks_details = has_details && details.is_none();
    (
        Some(v1::TaskError {
            code,
            message,
            details,
        }),
        lacks_details,
    )
}

// The parser of the body bounds the depth, so the stack suffices.
fn levels(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(levels).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(levels).max().unwrap_or(0),
        _ => 0,
    }
}

// `Struct` holds objects only; any other JSON value is kept under the key `value`.
fn details(details: Value) -> prost_types::Struct {
    let fields = match details {
        Value::Object(map) => map
            .into_iter()
            .map(|(key, value)| (key, json_value(value)))
            .collect(),
        other => [("value".to_owned(), json_value(other))].into(),
    };
    prost_types::Struct { fields }
}

fn json_value(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(
            number
                .as_f64()
                .expect("every number that serde_json holds by default is one"),
        ),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(json_value).collect(),
        }),
        Value::Object(map) => Kind::StructValue(prost_types::Struct {
            fields: map
                .into_iter()
                .map(|(key, value)| (key, json_value(value)))
                .collect(),
        }),
    };

    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_point_in_time_keeps_its_nanoseconds(seconds in -10_000_000_000i64..10_000_000_000, nanos in 0i32..1_000_000_000) {
            let time = Timestamp::new(seconds, 0).unwrap() + jiff::SignedDuration::new(0, nanos);
            prop_assert_eq!(timestamp(time), prost_types::Timestamp { seconds, nanos });
        }
    }

    #[test]
    fn a_duration_is_sent_up_to_the_longest_of_protobuf() {
        let seconds = |seconds| duration(Duration::from_secs(seconds)).seconds;
        assert_eq!(
            [0, 1, 315_576_000_000].map(seconds),
            [0, 1, 315_576_000_000]
        );
        assert_eq!(
            [315_576_000_001, i64::MAX as u64, u64::MAX].map(seconds),
            [315_576_000_000; 3]
        );
    }

    #[test]
    fn details_are_kept_up_to_what_every_decoder_can_take() {
        let nested = |levels| {
            (0..levels).fold(
                serde_json::json!(1),
                |inner, _| serde_json::json!({ "a": inner }),
            )
        };
        let told = |details| {
            let error = TaskError {
                code: "X".into(),
                message: String::new(),
                details: Some(details),
            };
            let (error, lacks_details) = error_to_wire(Some(error));
            let details = error.unwrap().details;
            assert_eq!(lacks_details, details.is_none());
            details
        };
        let event = |details| v1::Event {
            error: Some(v1::TaskError {
                details,
                ..Default::default()
            }),
            ..Default::default()
        };
        let deepest = told(nested(DETAILS_LEVELS_MAX));
        assert!(deepest.is_some());
        let content = Some(v1::subscribe_response::Content::Event(event(deepest)));
        let frame = v1::SubscribeResponse { content };
        assert_eq!(
            v1::SubscribeResponse::decode(frame.encode_to_vec().as_slice()),
            Ok(frame)
        );
        assert_eq!(told(nested(DETAILS_LEVELS_MAX + 1)), None);
        let numbers = |count: usize| serde_json::json!({ "numbers": vec![1; count] });
        let (fits, exceeds) = (told(numbers(80_000)), told(numbers(120_000)));
        assert!(
            fits.is_some() && exceeds.is_none(),
            "11 bytes a number, about a megabyte in between"
        );
    }

    #[test]
    fn an_event_is_made_to_fit_by_leaving_out_as_few_fields_as_it_takes() {
        let text = |bytes| "x".repeat(bytes);
        let url = |bytes| v1::Output {
            url: text(bytes),
            ..Default::default()
        };
        let fields = [("value".to_owned(), json_value(Value::from(text(1_000_000))))];
        let details = Some(prost_types::Struct {
            fields: fields.into(),
        });
        let error = Some(v1::TaskError {
            code: "X".into(),
            message: text(1_000_000),
            details,
        });
        let event = |prompt, outputs| {
            let outputs = (0..outputs).map(|_| url(1_000_000)).collect();
            v1::Event {
                error: error.clone(),
                prompt: text(prompt),
                outputs,
                task_id: "t1".into(),
                ..Default::default()
            }
        };
        for (prompt, outputs, details, prompt_left, message_left, outputs_left) in [
            (2_500_000, 0, false, true, true, 0),
            (4_500_000, 0, false, false, true, 0),
            (10, 3, false, true, true, 3),
            (10, 4, false, false, false, 4),
            (10, 5, false, false, false, 0),
        ] {
            let event = event(prompt, outputs);
            let left = shortened(event.clone());
            assert!(
                left.truncated && left.encoded_len() <= EVENT_BYTES_MAX && left.task_id == "t1"
            );
            let error = left.error.unwrap();
            let seen = (
                error.details.is_some(),
                !left.prompt.is_empty(),
                !error.message.is_empty(),
                left.outputs.len(),
            );
            let case = format!("{prompt} {outputs}");
            assert_eq!(
                seen,
                (details, prompt_left, message_left, outputs_left),
                "{case}"
            );
        }
    }

    #[test]
    fn details_that_are_no_object_are_kept_under_value() {
        let wire = details(serde_json::json!(["a", 1, null]));
        assert!(
            matches!(&wire.fields["value"].kind, Some(prost_types::value::Kind::ListValue(list)) if list.values.len() == 3)
        );
    }
}
