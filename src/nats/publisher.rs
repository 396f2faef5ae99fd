//! Publishes one message at a time, on a condition, and says what became of it.

use std::sync::Arc;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::{
    api::{self, Ack, ApiError, Failure, code},
    asker::{Asker, NoAnswer},
    backoff::Backoff,
    event::{Doubt, Event, Events},
    settings::Settings,
    slot::Slot,
};

/// A message, and with what the stream has to end.
#[derive(Clone, Debug)]
pub(super) struct Publication {
    pub(super) expected: u64,
    pub(super) chain: u64,
    pub(super) bytes: Bytes,
}

pub(super) struct Publisher {
    pub(super) asker: Asker,
    pub(super) settings: Arc<Settings>,
    pub(super) orders: Slot<Publication>,
    pub(super) events: Events,
}

/// The message in doubt, and when it may be published again.
#[derive(Default)]
struct Doubted {
    chain: u64,
    backoff: Backoff,
    again: Option<Instant>,
}

impl Publisher {
    pub(super) async fn run(mut self) {
        let mut doubted = Doubted::default();
        loop {
            let publication = self.orders.take().await;
            let chain = publication.chain;
            if chain != doubted.chain {
                doubted = Doubted {
                    chain,
                    ..Doubted::default()
                };
            }
            // A server that refuses at once would be asked thousands of times a second.
            if let Some(again) = doubted.again.take() {
                tokio::select! {
                    () = sleep_until(again) => {}
                    () = self.orders.filled() => {
                        doubted.again = Some(again);
                        continue;
                    }
                }
            }

            let outcome = self.publish(publication).await;
            if matches!(outcome, Event::Unanswered { .. }) {
                doubted.again = Some(Instant::now() + doubted.backoff.next());
            }
            self.events.send(outcome).await;
        }
    }

    async fn publish(&mut self, publication: Publication) -> Event {
        publication.publish(&mut self.asker, &self.settings).await
    }
}

impl Publication {
    /// Publishes it once, and says what came of it.
    pub(super) async fn publish(self, asker: &mut Asker, settings: &Settings) -> Event {
        let Self {
            expected,
            chain,
            bytes,
        } = self;
        let stream = settings.stream();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Sequence", expected.to_string().as_str());
        headers.insert("Nats-Expected-Stream", stream.as_str());

        let (subject, time) = (settings.log_subject(), settings.publish_timeout);
        let answer = asker.ask(&subject, headers, bytes, time).await;
        match answer {
            Ok(answer) => outcome(chain, &stream, &answer.payload),
            Err(why) => Event::Unanswered {
                chain,
                why: why.into(),
            },
        }
    }
}

/// What an answer says of a message.
fn outcome(chain: u64, stream: &str, answer: &[u8]) -> Event {
    let why = match api::read::<Ack>(answer) {
        Ok(ack) if ack.stream == stream => {
            let sequence = ack.sequence;
            return Event::Acked { chain, sequence };
        }
        Ok(ack) => Doubt::Other(format!("stream {} has taken it", ack.stream)),
        Err(Failure::Error(error)) if error.code == code::WRONG_LAST_SEQUENCE => {
            let last = last_sequence(&error.description);
            return Event::Refused { chain, last };
        }
        Err(Failure::Error(error)) => doubt(error),
        Err(Failure::NoAnswer(why)) => why.into(),
        Err(Failure::Odd(text)) => Doubt::Other(text),
    };
    Event::Unanswered { chain, why }
}

/// An error says that this try has stored nothing, but an earlier one may have.
fn doubt(error: ApiError) -> Doubt {
    let ApiError { code, description } = error;
    let is_full = matches!(
        code,
        code::ACCOUNT_RESOURCES | code::INSUFFICIENT_RESOURCES | code::STORAGE_RESOURCES
    ) || code == code::STORE_FAILED && description.contains("maximum");
    if is_full {
        Doubt::Full(description)
    } else {
        Doubt::Other(format!("{description} (error {code})"))
    }
}

/// The sequence in "wrong last sequence: 5".
fn last_sequence(description: &str) -> Option<u64> {
    description.rsplit_once(": ")?.1.trim().parse().ok()
}

impl From<NoAnswer> for Doubt {
    fn from(why: NoAnswer) -> Self {
        match why {
            NoAnswer::NobodyThere => Self::NoLeader,
            NoAnswer::TimedOut => Self::NoAnswer,
            NoAnswer::Disconnected => Self::Disconnected,
            NoAnswer::NotSent(problem) => Self::Other(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ack_of_the_stream_acknowledges_and_only_a_wrong_sequence_refuses() {
        let of = |answer: &str| format!("{:?}", outcome(7, "S", answer.as_bytes()));
        let error = |code: u64, text: &str| {
            format!(
                r#"{{"error":{{"code":400,"err_code":{code},"description":"{text}"}},"stream":"S","seq":0}}"#
            )
        };
        assert_eq!(
            of(r#"{"stream":"S","seq":5}"#),
            "Acked { chain: 7, sequence: 5 }"
        );
        let refused = of(&error(10071, "wrong last sequence: 5"));
        assert_eq!(refused, "Refused { chain: 7, last: Some(5) }");

        for (answer, why) in [
            (
                r#"{"stream":"T","seq":5}"#.to_owned(),
                "stream T has taken it",
            ),
            ("{".to_owned(), "an odd answer"),
            (error(10077, "maximum bytes exceeded"), "Full"),
            (
                error(10047, "insufficient storage resources available"),
                "Full",
            ),
            (error(10077, "some other error"), "Other"),
            (error(10164, "wrong last sequence"), "Other"),
        ] {
            let said = of(&answer);
            assert!(
                said.starts_with("Unanswered") && said.contains(why),
                "{said}"
            );
        }
    }
}
