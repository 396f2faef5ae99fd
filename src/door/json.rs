//! Messages to canonical protobuf JSON and back.
//!
//! Fields without presence are always written, so that a script finds `outputs` and `done` where they are empty or false. 64-bit
//! integers are strings, since JavaScript's numbers have 53 bits. The text has no line break.

use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions, prost::Message};

const OPTIONS: SerializeOptions = SerializeOptions::new().skip_default_fields(false);

/// The encoding of a message that is written as JSON; nothing at all is an empty message.
pub(crate) fn message_of(
    descriptor: &MessageDescriptor,
    json: &[u8],
) -> Result<Vec<u8>, serde_json::Error> {
    if json.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }

    let mut reader = serde_json::Deserializer::from_slice(json);
    let message = DynamicMessage::deserialize(descriptor.clone(), &mut reader)?;
    reader.end()?;
    Ok(message.encode_to_vec())
}

/// The JSON of an encoded message.
pub(crate) fn json_of(
    descriptor: &MessageDescriptor,
    message: &[u8],
) -> Result<Vec<u8>, serde_json::Error> {
    let message = DynamicMessage::decode(descriptor.clone(), message);
    let message = message.map_err(serde::de::Error::custom)?;
    let mut json = Vec::new();
    write(&message, &mut json)?;
    Ok(json)
}

/// Writes a message's JSON behind what is there.
pub(super) fn write(message: &DynamicMessage, to: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    message.serialize_with_options(&mut serde_json::Serializer::new(to), &OPTIONS)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{door::Rpc, wire::v1};

    #[test]
    fn a_message_is_written_with_all_its_fields_and_in_one_line() {
        let event = v1::Event {
            task_id: "t\n1".into(),
            seed: Some(i64::MAX),
            ..Default::default()
        };
        let response = v1::WaitTaskResponse {
            event: Some(event),
            done: true,
        };
        let descriptor = &Rpc::named("WaitTask").output;
        let text = json_of(descriptor, &response.encode_to_vec()).unwrap();
        assert!(!text.contains(&b'\n'));
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["event"]["taskId"], "t\n1");
        assert_eq!(value["event"]["seed"], "9223372036854775807");
        assert_eq!(value["event"]["outputs"], json!([]));
        assert_eq!(value["event"]["status"], "TASK_STATUS_UNSPECIFIED");
        assert!(value["event"].get("receivedAt").is_none());

        let nothing = json_of(descriptor, &[]).unwrap();
        assert_eq!(nothing, br#"{"done":false}"#);
    }

    #[test]
    fn a_request_is_read_by_both_spellings_and_nothing_unknown_is_passed_over() {
        let descriptor = &Rpc::named("WaitTask").input;
        let expected = v1::WaitTaskRequest {
            task_id: "t1".into(),
            timeout: Some(prost_types::Duration {
                seconds: 5,
                nanos: 500_000_000,
            }),
            ..Default::default()
        };
        for json in [
            r#"{"task_id":"t1","timeout":"5.5s"}"#,
            r#" {"taskId":"t1","timeout":"5.500s"} "#,
        ] {
            let message = message_of(descriptor, json.as_bytes()).unwrap();
            assert_eq!(
                v1::WaitTaskRequest::decode(&message[..]).unwrap(),
                expected,
                "{json}"
            );
        }
        for empty in ["", " \n", "{}"] {
            assert!(message_of(descriptor, empty.as_bytes()).unwrap().is_empty());
        }
        for (wrong, named) in [
            (r#"{"task":"t1"}"#, "task"),
            (r#"{"taskId":"t1"} {}"#, "trailing"),
            (r#"{"taskId":1}"#, "string"),
            ("[]", "map"),
            (r#"{"taskId":"#, "EOF"),
        ] {
            let error = message_of(descriptor, wrong.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(named), "{wrong}: {error}");
        }
    }
}
