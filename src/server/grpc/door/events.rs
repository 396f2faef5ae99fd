//! `Subscribe` as server-sent events.
//!
//! An event's text is made when the transport asks for it, of what the subscription hands over. That stays counted as in the
//! transport until its text has left, so that a client that does not read holds up its own stream only, as in gRPC.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode},
    response::Response,
};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tonic::{Code, Status};

use super::{
    decode::{AT_ONCE_BYTES, transcoded},
    reply,
};
use crate::{
    door::{Frames, Problem, Sent, event_of, event_of_problem},
    server::{grpc::held::Account, http::mark_as_stream},
};

const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// What a client of a stream can make use of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// It resumes, and its tasks may be over: then it has been sent everything.
    pub may_be_over: bool,
    /// It takes server-sent events and nothing else, as a browser's `EventSource` does, which never comes back after any other answer.
    pub comes_back: bool,
}

/// The answer to a request for a stream.
pub(super) async fn answer(answer: Response, manner: Manner) -> Response {
    let id = reply::id_of(&answer);
    let (account, body) = match reply::begun(answer) {
        Ok(begun) => begun,
        Err(problem) if manner.comes_back && problem.retry_after.is_some() => {
            let text = event_of_problem(&problem, text_of(&id));
            return stream(Body::from(text), id);
        }
        Err(problem) => return reply::problem(&problem, id),
    };

    let mut events = Events::new(body, account, text_of(&id));
    if manner.may_be_over && events.is_over().await {
        let mut answer = reply::of_type(EVENTS, Body::empty(), id);
        *answer.status_mut() = StatusCode::NO_CONTENT;
        return answer;
    }
    stream(Body::new(events), id)
}

fn stream(body: Body, id: HeaderValue) -> Response {
    let mut answer = reply::of_type(EVENTS, body, id);
    mark_as_stream(&mut answer);
    answer
}

fn text_of(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

type Making = Pin<Box<dyn Future<Output = Result<Sent, Status>> + Send>>;

/// The body of the answer.
struct Events {
    /// The subscription's messages; `None` once it has ended.
    body: Option<Body>,
    account: Account,
    frames: Frames,
    /// The text of a large event while it is made, and then while it is sent.
    making: Option<Making>,
    large: Option<Body>,
    /// Text to send, and the bytes that it was made of.
    text: Vec<u8>,
    made_of: Vec<Bytes>,
    /// What the stream has begun with.
    begun: Begun,
    request_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    NotYet,
    CaughtUp,
    Over,
    Open,
}

impl Events {
    fn new(body: Body, account: Account, request_id: &str) -> Self {
        Self {
            body: Some(body),
            account,
            frames: Frames::default(),
            making: None,
            large: None,
            text: Vec::new(),
            made_of: Vec::new(),
            begun: Begun::NotYet,
            request_id: request_id.to_owned(),
        }
    }

    /// Whether the stream completes before it has sent an event. Returns as soon as that is known.
    async fn is_over(&mut self) -> bool {
        poll_fn(|cx| {
            while self.begun == Begun::NotYet && self.body.is_some() && self.large.is_none() {
                if let Err(error) = ready!(self.poll_step(cx)) {
                    self.end(&Status::from_error(error.into()));
                }
            }
            Poll::Ready(())
        })
        .await;
        self.begun == Begun::Over
    }

    /// Makes text of the next piece of the subscription.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        if let Some(making) = &mut self.making {
            let made = ready!(making.as_mut().poll(cx));
            self.making = None;
            match made.and_then(|sent| {
                self.note(&sent.kind);
                self.account.body(sent.text.into())
            }) {
                Ok(body) => self.large = Some(body),
                Err(refused) => self.end(&refused),
            }
            return Poll::Ready(Ok(()));
        }

        let Some(body) = &mut self.body else {
            return Poll::Ready(Ok(()));
        };
        match ready!(Pin::new(body).poll_frame(cx)) {
            None => self.body = None,
            Some(frame) => match frame?.into_data() {
                Ok(data) => {
                    self.frames.push(&data);
                    // Of a message that is not complete yet the rest must not wait for this piece.
                    if self.put_messages() {
                        self.made_of.push(data);
                    }
                }
                Err(frame) => match frame.trailers_ref().and_then(Status::from_header_map) {
                    Some(status) if status.code() != Code::Ok => self.end(&status),
                    _ => self.body = None,
                },
            },
        }
        Poll::Ready(Ok(()))
    }

    /// Adds the text of the messages that are complete, up to a large one. Whether there were any.
    fn put_messages(&mut self) -> bool {
        let before = self.text.len();
        while self.making.is_none() && self.large.is_none() {
            let Some(message) = self.frames.next() else {
                break;
            };
            if message.len() > AT_ONCE_BYTES {
                let making = transcoded(message, |message| {
                    event_of(message).map_err(|error| reply::broken(&error))
                });
                self.making = Some(Box::pin(making));
                break;
            }
            match event_of(&message) {
                Ok(sent) => {
                    self.note(&sent.kind);
                    self.text.extend_from_slice(&sent.text);
                }
                Err(error) => {
                    self.frames = Frames::default();
                    self.end(&reply::broken(&error));
                }
            }
        }
        self.text.len() > before
    }

    fn note(&mut self, kind: &str) {
        self.begun = match (self.begun, kind) {
            (Begun::NotYet, "subscribed") => Begun::NotYet,
            (Begun::NotYet, "caught_up") => Begun::CaughtUp,
            // Both are said at once where the tasks are over already.
            (Begun::NotYet | Begun::CaughtUp, "completed") => Begun::Over,
            _ => Begun::Open,
        };
    }

    /// Ends the stream with an error, as its last event.
    fn end(&mut self, status: &Status) {
        let problem = Problem::of_status(status);
        self.text
            .extend_from_slice(&event_of_problem(&problem, &self.request_id));
        self.body = None;
        self.making = None;
    }
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        loop {
            if !this.text.is_empty() {
                let text = Text {
                    text: std::mem::take(&mut this.text),
                    _made_of: std::mem::take(&mut this.made_of),
                };
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(text)))));
            }
            if let Some(large) = &mut this.large {
                match ready!(Pin::new(large).poll_frame(cx)) {
                    Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    // The client has not taken it in time, and has a part of it.
                    Some(Ok(_)) => {
                        let error = std::io::Error::from(std::io::ErrorKind::TimedOut);
                        return Poll::Ready(Some(Err(axum::Error::new(error))));
                    }
                    None => this.large = None,
                }
                this.put_messages();
                continue;
            }
            if this.body.is_none() && this.making.is_none() {
                return Poll::Ready(None);
            }
            if let Err(error) = ready!(this.poll_step(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

/// Text, which keeps what it was made of counted until it has left.
struct Text {
    text: Vec<u8>,
    _made_of: Vec<Bytes>,
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}
