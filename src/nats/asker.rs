//! Questions by a request and its answer, one at a time. Each asker has one subscription for all its answers, so a question that is
//! never answered leaves nothing behind.

use std::{fmt, sync::Arc, time::Duration};

use async_nats::{Client, HeaderMap, Message, PublishErrorKind, StatusCode, Subscriber};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;

use super::{
    error::NatsError,
    link::{Connection, Link},
};

pub(super) struct Asker {
    client: Client,
    link: Arc<Link>,
    inbox: String,
    answers: Subscriber,
    asked: u64,
    connection: Connection,
}

/// Subscribes; the server knows it before it answers anything that is asked later.
pub(super) async fn subscribe(client: &Client, subject: String) -> Result<Subscriber, NatsError> {
    let subscribed = client.subscribe(subject).await;
    subscribed.map_err(|error| NatsError::NoAnswer {
        what: "take messages",
        why: error.to_string(),
    })
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Nobody listens to that subject.
    NobodyThere,
    TimedOut,
    /// There is no connection, or it was lost. The question may have arrived.
    Disconnected,
    /// It was not sent.
    NotSent(String),
}

impl Asker {
    pub(super) async fn new(client: &Client, link: &Arc<Link>) -> Result<Self, NatsError> {
        let inbox = client.new_inbox();
        let answers = subscribe(client, format!("{inbox}.*")).await?;
        Ok(Self {
            client: client.clone(),
            link: Arc::clone(link),
            inbox,
            answers,
            asked: 0,
            connection: Connection::default(),
        })
    }

    /// Asks, and waits for one answer.
    pub(super) async fn ask(
        &mut self,
        subject: &str,
        headers: HeaderMap,
        question: Bytes,
        time: Duration,
    ) -> Result<Message, NoAnswer> {
        let deadline = Instant::now() + time;
        self.send(subject, headers, question, deadline).await?;
        self.answer(deadline).await
    }

    /// Asks. While there is no connection it waits for one: what is sent then would come late, and its answer not at all.
    pub(super) async fn send(
        &mut self,
        subject: &str,
        headers: HeaderMap,
        question: Bytes,
        deadline: Instant,
    ) -> Result<(), NoAnswer> {
        let up = self.link.up_before(deadline).await;
        self.connection = up.ok_or(NoAnswer::Disconnected)?;
        self.asked = self.asked.wrapping_add(1);

        let reply = self.reply();
        let subject = subject.to_owned();
        let sent = (self.client).publish_with_reply_and_headers(subject, reply, headers, question);
        match timeout_at(deadline, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == PublishErrorKind::Send => Err(NoAnswer::Disconnected),
            Ok(Err(error)) => Err(NoAnswer::NotSent(error.to_string())),
            Err(_) => Err(NoAnswer::TimedOut),
        }
    }

    /// The next answer to the last question.
    pub(super) async fn answer(&mut self, deadline: Instant) -> Result<Message, NoAnswer> {
        let expected = self.reply();
        let (answers, link, connection) = (&mut self.answers, &self.link, self.connection);
        let answer = async {
            loop {
                tokio::select! {
                    biased;
                    message = answers.next() => match message {
                        // Another one is late, for an earlier question.
                        Some(message) if *message.subject == *expected => return Ok(message),
                        Some(_) => {}
                        None => return Err(NoAnswer::Disconnected),
                    },
                    () = link.lost(connection) => return Err(NoAnswer::Disconnected),
                }
            }
        };
        let message = timeout_at(deadline, answer).await;
        let message = message.unwrap_or(Err(NoAnswer::TimedOut))?;
        match message.status {
            Some(StatusCode::NO_RESPONDERS) => Err(NoAnswer::NobodyThere),
            _ => Ok(message),
        }
    }

    fn reply(&self) -> String {
        format!("{}.{}", self.inbox, self.asked)
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NobodyThere => "nobody answers for it now",
            Self::TimedOut => "no answer in time",
            Self::Disconnected => "there is no connection",
            Self::NotSent(problem) => problem,
        })
    }
}
