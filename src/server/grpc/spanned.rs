//! Spans of sampled calls: a span ends with the answer, of a stream with its last message, and has its status code.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tonic::{Code, Status};

use crate::trace::Span;

/// Ends `span` with the answer. `code` is given if the answer is a refusal, which is all in its headers.
pub(super) fn until_its_end(answer: Response, mut span: Span, code: Option<Code>) -> Response {
    if span.context().is_none() {
        return answer;
    }
    match code {
        Some(code) => {
            end(&mut span, code);
            answer
        }
        None => answer.map(|body| Body::new(Spanned { body, span })),
    }
}

/// Notes in the span how a call has ended.
fn end(span: &mut Span, code: Code) {
    match code {
        // The caller can choose any name.
        Code::Unimplemented => span.set_name("unknown method"),
        // The codes that OpenTelemetry holds the server responsible for.
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => span.fail(),
        _ => {}
    }
    span.set("rpc.system", "grpc");
    span.set("rpc.grpc.status_code", i64::from(code as i32));
}

/// A body that holds a span. The span ends when the body is dropped, whichever side ends the call.
struct Spanned {
    body: Body,
    span: Span,
}

impl hyper::body::Body for Spanned {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(status) = frame.trailers_ref().and_then(Status::from_header_map)
        {
            end(&mut self.span, status.code());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
