//! What a consumer sends: messages of the stream, and what it says of itself. Pure.

use async_nats::{HeaderMap, Message, StatusCode, Subject};

/// One thing that a consumer has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// A message of the stream.
    Message {
        /// Its place in the stream.
        sequence: u64,
        /// How many messages the consumer has sent with it.
        count: u64,
    },
    /// There is nothing new.
    Heartbeat {
        /// How many messages it has sent.
        count: Option<u64>,
        /// It waits for an answer to this subject, which was lost.
        stalled: Option<Subject>,
    },
    /// It goes on when this is answered: then everything before it was taken.
    FlowControl { reply: Subject },
    /// It sends nothing more, or something that is not understood.
    Over(String),
}

impl Delivery {
    pub(super) fn of(message: &Message) -> Self {
        match message.status {
            None => {}
            Some(StatusCode::IDLE_HEARTBEAT) => return Self::of_status(message),
            Some(status) => {
                let text = message.description.as_deref().unwrap_or_default();
                return Self::Over(format!("it says {status} {text}"));
            }
        }
        let places = message.reply.as_ref().and_then(|reply| places(reply));
        places.map_or_else(
            || Self::Over("a message came without its sequence".to_owned()),
            |(sequence, count)| Self::Message { sequence, count },
        )
    }

    fn of_status(message: &Message) -> Self {
        if let Some(reply) = &message.reply {
            let reply = reply.clone();
            return Self::FlowControl { reply };
        }
        let headers = message.headers.as_ref();
        let stalled = headers.and_then(|it| it.get("Nats-Consumer-Stalled"));
        Self::Heartbeat {
            count: headers.and_then(|it| number(it, "Nats-Last-Consumer")),
            stalled: stalled.map(|subject| subject.as_str().into()),
        }
    }
}

/// The number in a header.
pub(super) fn number(headers: &HeaderMap, name: &'static str) -> Option<u64> {
    headers.get(name)?.as_str().trim().parse().ok()
}

/// The sequences of stream and consumer in the subject for acknowledging:
/// `$JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>`, or with domain and account
/// before the stream (ADR-15).
fn places(reply: &str) -> Option<(u64, u64)> {
    let mut tokens = reply.split('.');
    if (tokens.next(), tokens.next()) != (Some("$JS"), Some("ACK")) {
        return None;
    }
    let rest: Vec<&str> = tokens.collect();
    let skipped = match rest.len() {
        7 => 3,
        9.. => 5,
        _ => return None,
    };
    let number = |at: usize| rest.get(at)?.parse().ok();
    Some((number(skipped)?, number(skipped + 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_subject_tell_the_sequences() {
        let old = "$JS.ACK.BLOBCAST_main.c.1.22.11.1700000000.0";
        let new = "$JS.ACK._.ACCOUNTHASH.BLOBCAST_main.c.1.22.11.1700000000.0";
        let newer = "$JS.ACK._.ACCOUNTHASH.BLOBCAST_main.c.1.22.11.1700000000.0.random";
        for reply in [old, new, newer] {
            assert_eq!(places(reply), Some((22, 11)), "{reply}");
        }
        for odd in [
            "",
            "$JS.ACK",
            "$JS.ACK.a.b.c.d.e.f",
            "_INBOX.1",
            "$JS.ACK.s.c.1.x.11.1.0",
        ] {
            assert_eq!(places(odd), None, "{odd}");
        }
    }
}
