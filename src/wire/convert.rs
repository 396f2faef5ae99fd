//! From the domain to protobuf. Pure.

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use serde_json::Value;
use std::time::Duration;

use super::v1;
use crate::event::{Event, Output, OutputKind, TaskError, TaskStatus, Verification};

/// Largest `details` of an error, as encoded. JSON numbers grow five times on their way into a `Struct`, so a body of a
/// megabyte could become an event that no client with the usual limit of 4 MiB could ever get past. This, the texts of the
/// largest body, and that body together stay below it.
const DETAILS_BYTES_MAX: usize = 1024 * 1024;

/// Encodes an event without what only the log knows: cursor, revision, conflict, and without the raw body.
pub fn encode_event(event: Event) -> Bytes {
    let Event { event_id, product, product_inferred, report, received_at, verification, labels } = event;
    let wire = v1::Event {
        event_id: event_id.to_string(),
        cursor: String::new(),
        product: product.as_str().to_owned(),
        task_id: report.task_id.as_str().to_owned(),
        status: status_to_wire(report.status).into(),
        status_text: report.status_text,
        terminal: report.status.is_terminal(),
        outputs: report.outputs.into_iter().map(output).collect(),
        error: report.error.map(error),
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
    };
    wire.encode_to_vec().into()
}

/// A point in time, to the nanosecond.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // Protobuf counts nanoseconds forward from the second, jiff away from zero.
    let nanos = i64::from(time.subsec_nanosecond());
    let borrow = i64::from(nanos < 0);
    let nanos = (nanos + borrow * 1_000_000_000) as i32; // 0..1e9
    prost_types::Timestamp { seconds: time.as_second() - borrow, nanos }
}

/// A duration; one beyond protobuf's range (10,000 years) becomes its longest.
pub fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration { seconds: 315_576_000_000, nanos: 0 })
}

/// The wire's name of a status.
pub fn status_to_wire(status: TaskStatus) -> v1::TaskStatus {
    match status {
        TaskStatus::Unspecified => v1::TaskStatus::Unspecified,
        TaskStatus::Pending => v1::TaskStatus::Pending,
        TaskStatus::Processing => v1::TaskStatus::Processing,
        TaskStatus::Completed => v1::TaskStatus::Completed,
        TaskStatus::Failed => v1::TaskStatus::Failed,
    }
}

fn verification_to_wire(verification: Verification) -> v1::Verification {
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
    v1::Output { kind: kind.into(), url: output.url }
}

fn error(error: TaskError) -> v1::TaskError {
    let details = error.details.map(details).filter(|details| details.encoded_len() <= DETAILS_BYTES_MAX);
    v1::TaskError { code: error.code, message: error.message, details }
}

// `Struct` holds objects only; any other JSON value is kept under the key `value`.
fn details(details: Value) -> prost_types::Struct {
    let fields = match details {
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, json_value(value))).collect(),
        other => [("value".to_owned(), json_value(other))].into(),
    };
    prost_types::Struct { fields }
}

fn json_value(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(json_value).collect() })
        }
        Value::Object(map) => Kind::StructValue(prost_types::Struct {
            fields: map.into_iter().map(|(key, value)| (key, json_value(value))).collect(),
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
    fn details_that_are_no_object_are_kept_under_value() {
        let wire = details(serde_json::json!(["a", 1, null]));
        assert!(
            matches!(&wire.fields["value"].kind, Some(prost_types::value::Kind::ListValue(list)) if list.values.len() == 3)
        );
    }
}
