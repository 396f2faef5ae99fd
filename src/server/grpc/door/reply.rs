//! Answers of calls as answers in JSON.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    http::{
        HeaderValue, StatusCode,
        header::{
            ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tonic::{Code, Status};

use super::decode::transcoded;
use crate::{
    door::{Frames, Problem, Rpc, json_of},
    server::grpc::{content::MESSAGE, held::Account},
    trace::{REQUEST_ID, RequestId},
};

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An answer of one message.
pub(super) async fn json(rpc: &'static Rpc, answer: Response) -> Response {
    let id = id_of(&answer);
    let body = async {
        let (message, account) = message_of(answer).await?;
        let json = transcoded(message, |message| {
            json_of(&rpc.output, message).map_err(|error| broken(&error))
        });
        let json = json.await.map_err(|status| of_error(&status))?;
        counted(json, &account).map_err(|status| of_error(&status))
    };
    match body.await {
        Ok((body, length)) => {
            let mut answer = of_type(JSON, body, id);
            answer.headers_mut().insert(CONTENT_LENGTH, length.into());
            answer
        }
        Err(refused) => problem(&refused, id),
    }
}

/// JSON that is the same for all, in place of an answer that is not a refusal.
pub(super) async fn in_place_of(answer: Response, json: Bytes) -> Response {
    let id = id_of(&answer);
    match message_of(answer).await {
        Ok(_) => of_type(JSON, Body::from(json), id),
        Err(refused) => problem(&refused, id),
    }
}

/// An answer that is an error.
pub(super) fn problem(problem: &Problem, id: HeaderValue) -> Response {
    let json = problem.json(id.to_str().unwrap_or_default());
    let mut answer = of_type(PROBLEM, Body::from(json), id);
    *answer.status_mut() = problem.status;
    let headers = answer.headers_mut();
    if let Some(delay) = problem.retry_after {
        let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Some(methods) = problem.allow {
        headers.insert(ALLOW, HeaderValue::from_static(methods));
    }
    if problem.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// An answer of 200. What a broker tells is for its caller alone, and true for now.
pub(super) fn of_type(content_type: HeaderValue, body: Body, id: HeaderValue) -> Response {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REQUEST_ID, id);
    answer
}

/// The request id that the layers have given the call.
pub(super) fn id_of(answer: &Response) -> HeaderValue {
    let id = answer.headers().get(REQUEST_ID);
    id.cloned().unwrap_or_else(|| RequestId::new().into())
}

/// The one message of an answer, and what its JSON is counted by.
pub(super) async fn message_of(answer: Response) -> Result<(Bytes, Account), Problem> {
    let (account, mut body) = begun(answer)?;

    let (mut frames, mut status) = (Frames::default(), None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| of_error(&Status::from_error(error.into())))?;
        match frame.into_data() {
            Ok(data) => frames.push(&data),
            Err(frame) => status = frame.trailers_ref().and_then(Status::from_header_map),
        }
    }
    match (status, frames.next()) {
        (Some(status), _) if status.code() != Code::Ok => Err(of_error(&status)),
        (_, Some(message)) => Ok((message, account)),
        (_, None) => Err(of_error(&Status::internal("the call had no answer"))),
    }
}

/// Whether the call was refused with a delay after which it may be let in.
pub(super) fn is_refused_for_now(answer: &Response) -> bool {
    Status::from_header_map(answer.headers())
        .is_some_and(|status| of_error(&status).retry_after.is_some())
}

/// The body of an answer that is not a refusal.
pub(super) fn begun(answer: Response) -> Result<(Account, Body), Problem> {
    let (mut head, body) = answer.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers)
        && status.code() != Code::Ok
    {
        return Err(of_error(&status));
    }
    head.extensions
        .remove::<Account>()
        .map(|account| (account, body))
        .ok_or_else(|| {
            // Refused before it was a call.
            let message = head
                .headers
                .get(MESSAGE)
                .and_then(|value| value.to_str().ok());
            Problem::new(head.status, message.unwrap_or("refused"))
        })
}

/// A body of the bytes, and its length.
pub(super) fn counted(bytes: Vec<u8>, account: &Account) -> Result<(Body, usize), Status> {
    let length = bytes.len();
    let body = account.body(bytes.into())?;
    Ok((Body::new(Whole(body)), length))
}

/// What has gone wrong in the broker itself, if a message of its own cannot be written as JSON.
pub(super) fn broken(error: &serde_json::Error) -> Status {
    Status::internal(error.to_string())
}

pub(super) fn of_error(status: &Status) -> Problem {
    Problem::of_status(status)
}

/// A body that is whole or broken off: a status in trailers is an error here.
struct Whole(Body);

impl hyper::body::Body for Whole {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            ended => return Poll::Ready(ended),
        };
        let status = frame.trailers_ref().map(Status::from_header_map);
        Poll::Ready(match status {
            None => Some(Ok(frame)),
            Some(None) => None,
            Some(Some(status)) if status.code() == Code::Ok => None,
            Some(Some(status)) => Some(Err(axum::Error::new(status))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
