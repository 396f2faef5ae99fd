//! Messages of `Subscribe` as server-sent events: `event` is the name of the content, `id` its cursor, `data` its JSON in one line.
//!
//! A browser repeats the last `id` when it connects again, so only a cursor that is good to resume from is one.

use prost_reflect::{DynamicMessage, Value};

use super::{catalog::Rpc, json, problem::Problem};

/// What a subscription's message becomes.
#[derive(Debug)]
pub(crate) struct Sent {
    /// The name of the content.
    pub kind: String,
    pub text: Vec<u8>,
}

/// The event of an encoded `SubscribeResponse`.
pub(crate) fn event_of(message: &[u8]) -> Result<Sent, serde_json::Error> {
    let message = DynamicMessage::decode(Rpc::named("Subscribe").output.clone(), message);
    let message = message.map_err(broken)?;
    let mut contents = message.fields();
    let content = contents
        .next()
        .and_then(|(field, value)| Some((field, value.as_message()?)));
    let (field, content) =
        content.ok_or_else(|| serde::de::Error::custom("a message without content"))?;

    let (kind, mut text) = (field.name(), Vec::new());
    if kind == "progress" {
        text.extend_from_slice(b": heartbeat\n");
    }
    text.extend_from_slice(format!("event: {kind}\n").as_bytes());
    if let Some(id) = id_of(kind, content) {
        text.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    if let Some(millis) = retry_of(content) {
        text.extend_from_slice(format!("retry: {millis}\n").as_bytes());
    }
    text.extend_from_slice(b"data: ");
    json::write(content, &mut text)?;
    text.extend_from_slice(b"\n\n");
    Ok(Sent {
        kind: kind.to_owned(),
        text,
    })
}

fn broken(why: impl std::fmt::Display) -> serde_json::Error {
    serde::de::Error::custom(why)
}

/// The last event of a stream that ends with an error.
pub(crate) fn event_of_problem(problem: &Problem, request_id: &str) -> Vec<u8> {
    let mut text = b"event: problem\n".to_vec();
    if let Some(delay) = problem.retry_after {
        text.extend_from_slice(format!("retry: {}\n", delay.as_millis()).as_bytes());
    }
    text.extend_from_slice(b"data: ");
    text.extend_from_slice(&problem.json(request_id));
    text.extend_from_slice(b"\n\n");
    text
}

/// The cursor to resume from. That of `subscribed` is one only at the head: elsewhere retention may pass it before anything is sent,
/// so the request is repeated as it was.
fn id_of(kind: &str, content: &DynamicMessage) -> Option<String> {
    let text = |name| {
        let value = content.get_field_by_name(name)?;
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    match kind {
        "gap" => text("through"),
        "subscribed" => text("cursor").filter(|cursor| Some(cursor) == text("head").as_ref()),
        _ => text("cursor"),
    }
}

/// The delay of `going_away`, in milliseconds.
fn retry_of(content: &DynamicMessage) -> Option<i64> {
    let delay = content.get_field_by_name("reconnect_after")?;
    let delay = delay.as_message()?;
    let number = |name| {
        let value = delay.get_field_by_name(name)?.into_owned();
        match value {
            Value::I64(number) => Some(number),
            Value::I32(number) => Some(number.into()),
            _ => None,
        }
    };
    Some(number("seconds")? * 1_000 + number("nanos")? / 1_000_000)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost_reflect::prost::Message;

    use super::*;
    use crate::wire::{
        Reason, duration,
        v1::{self, subscribe_response::Content},
    };

    fn sent(content: Content) -> String {
        let message = v1::SubscribeResponse {
            content: Some(content),
        };
        String::from_utf8(event_of(&message.encode_to_vec()).unwrap().text).unwrap()
    }

    #[test]
    fn each_content_is_an_event_with_its_cursor_as_id() {
        let event = v1::Event {
            cursor: "c7".into(),
            prompt: "a\ncat".into(),
            ..Default::default()
        };
        let text = sent(Content::Event(event));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["event: event", "id: c7"]);
        assert!(
            lines[2].starts_with(r#"data: {"eventId":"","cursor":"c7""#),
            "{text}"
        );
        assert_eq!((lines.len(), lines[3]), (4, ""), "data has no line break");

        let gap = v1::Gap {
            after: "c1".into(),
            through: "c5".into(),
            ..Default::default()
        };
        assert!(sent(Content::Gap(gap)).contains("\nid: c5\n"));

        let away = v1::GoingAway {
            cursor: "c9".into(),
            reconnect_after: Some(duration(Duration::from_millis(2_500))),
        };
        let text = sent(Content::GoingAway(away));
        assert!(
            text.starts_with("event: going_away\nid: c9\nretry: 2500\ndata: {"),
            "{text}"
        );

        let progress = v1::Progress {
            cursor: "c9".into(),
            ..Default::default()
        };
        assert!(sent(Content::Progress(progress)).starts_with(": heartbeat\nevent: progress\n"));
    }

    #[test]
    fn where_a_stream_starts_is_an_id_only_at_the_head() {
        for (cursor, head, is_id) in [("c9", "c9", true), ("c1", "c9", false)] {
            let subscribed = v1::Subscribed {
                cursor: cursor.into(),
                head: head.into(),
                ..Default::default()
            };
            let text = sent(Content::Subscribed(subscribed));
            assert_eq!(text.contains("\nid: "), is_id, "{text}");
        }
    }

    #[test]
    fn an_error_is_an_event_that_says_when_to_come_back() {
        let status = Reason::Draining.passing_status("away", [], Duration::from_secs(2));
        let text = event_of_problem(&Problem::of_status(&status), "0123");
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with("event: problem\nretry: 2000\ndata: {"),
            "{text}"
        );
        assert!(
            text.contains("DRAINING") && text.ends_with("}\n\n"),
            "{text}"
        );
    }
}
