//! Recognizes answers that are not gRPC: from a proxy that cannot reach the broker, or from another
//! kind of server.
//!
//! tonic reads every body as gRPC messages, so an HTML page would give "invalid compression flag:
//! 60". This checks the head and the trailers of each answer first, and never reads a body.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, SizeHint},
    header::{CONTENT_TYPE, HeaderMap, SERVER},
};
use tonic::{
    Code, Status,
    codegen::{BoxFuture, Service, StdError},
};

/// The header with the broker's message when it refuses a request with an HTTP status, before there
/// is a gRPC call.
const BROKER_MESSAGE: &str = "x-blobcast-message";

/// The trailer with the details of a gRPC status, in Base64.
const DETAILS: &str = "grpc-status-details-bin";
/// Decodes Base64 as tonic does.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A channel that passes on gRPC answers only. Any other answer is an error: a [`Status`] whose
/// source is a [`ForeignAnswer`].
#[derive(Clone, Debug)]
pub(super) struct GrpcOnly<S>(pub(super) S);

impl<S, Sent, Received> Service<Request<Sent>> for GrpcOnly<S>
where
    S: Service<
            Request<Sent>,
            Response = Response<Received>,
            Error: Into<StdError>,
            Future: Send + 'static,
        >,
{
    type Response = Response<Readable<Received>>;
    type Error = StdError;
    type Future = BoxFuture<Self::Response, StdError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Sent>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let (mut head, body) = answer.await.map_err(Into::into)?.into_parts();
            if let Some(foreign) = ForeignAnswer::of(head.status, &head.headers) {
                return Err(foreign.into_status().into());
            }
            remove_bad_details(&mut head.headers);
            Ok(Response::from_parts(head, Readable(body)))
        })
    }
}

/// Removes details that are not valid Base64: tonic panics on them. The status keeps its code and
/// message, without a reason.
fn remove_bad_details(headers: &mut HeaderMap) {
    if headers
        .get(DETAILS)
        .is_some_and(|details| BASE64.decode(details).is_err())
    {
        headers.remove(DETAILS);
    }
}

/// The body of an answer, without trailers that tonic cannot read.
#[derive(Clone, Debug, Default)]
pub(super) struct Readable<B>(B);

impl<B: Body + Unpin> Body for Readable<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_ok(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                remove_bad_details(trailers);
            }
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// The head of an answer that is not gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForeignAnswer {
    status: StatusCode,
    content_type: Option<String>,
    server: Option<String>,
    /// The broker's message, if the broker refused the request before there was a gRPC call.
    broker_message: Option<String>,
}

impl ForeignAnswer {
    /// `None` if the answer is gRPC.
    fn of(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let text =
            |name: &str| Some(String::from_utf8_lossy(headers.get(name)?.as_bytes()).into_owned());
        let content_type = text(CONTENT_TYPE.as_str());
        let is_grpc = content_type
            .as_deref()
            .is_some_and(|content| content.starts_with("application/grpc"));
        if headers.contains_key("grpc-status") || (status == StatusCode::OK && is_grpc) {
            return None;
        }

        Some(Self {
            status,
            content_type,
            server: text(SERVER.as_str()),
            broker_message: text(BROKER_MESSAGE),
        })
    }

    /// The answer behind a status, if that answer was not gRPC.
    pub(super) fn behind(status: &Status) -> Option<&Self> {
        status.source()?.downcast_ref()
    }

    /// Whether the broker itself refused the request.
    pub(super) fn is_the_brokers(&self) -> bool {
        self.broker_message.is_some()
    }

    /// Whether a proxy answered that it could not reach its upstream.
    pub(super) fn is_a_gateways(&self) -> bool {
        matches!(self.status.as_u16(), 502..=504)
    }

    fn into_status(self) -> Status {
        // https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
        let code = match self.status.as_u16() {
            400 => Code::Internal,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::Unimplemented,
            429 | 502 | 503 | 504 => Code::Unavailable,
            _ => Code::Unknown,
        };
        let mut status = Status::new(code, self.to_string());
        status.set_source(Arc::new(self));
        status
    }
}

impl Error for ForeignAnswer {}

/// `the proxy (nginx/1.22.1) answered 504 Gateway Timeout`.
impl fmt::Display for ForeignAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(message) = &self.broker_message {
            return write!(f, "the broker answered {}: {message}", self.status);
        }

        f.write_str(if self.is_a_gateways() {
            "the proxy"
        } else {
            "another server than a broker, or a proxy in front of it,"
        })?;
        if let Some(server) = &self.server {
            write!(f, " ({server})")?;
        }
        write!(f, " answered {}", self.status)?;
        match &self.content_type {
            Some(content_type) if self.status.is_success() => {
                write!(f, " with {content_type}, which is not gRPC")
            }
            None if self.status.is_success() => f.write_str(" with something that is not gRPC"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: u16, headers: &[(&'static str, &'static str)]) -> Option<String> {
        let headers = headers
            .iter()
            .map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        ForeignAnswer::of(StatusCode::from_u16(status).unwrap(), &headers)
            .map(|answer| answer.to_string())
    }

    #[test]
    fn an_answer_of_grpc_is_let_through() {
        assert_eq!(seen(200, &[("content-type", "application/grpc")]), None);
        assert_eq!(
            seen(200, &[("content-type", "application/grpc+proto")]),
            None
        );
        // A status without a body; some proxies add an HTTP status of their own.
        assert_eq!(seen(503, &[("grpc-status", "14")]), None);
    }

    #[test]
    fn details_are_removed_only_if_tonic_would_panic() {
        for (details, is_removed) in [
            ("", false),
            ("CAU", false),
            ("CAU=", false),
            ("CAU-", true),
            ("<html>", true),
            ("CAU=,CAU=", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", "14".parse().unwrap());
            headers.insert(DETAILS, details.parse().unwrap());
            remove_bad_details(&mut headers);
            assert_eq!(!headers.contains_key(DETAILS), is_removed, "{details}");
            assert_eq!(
                Status::from_header_map(&headers).unwrap().code(),
                Code::Unavailable
            );
        }
    }

    #[test]
    fn any_other_answer_is_reported_with_its_status() {
        let html = ("content-type", "text/html");
        let nginx = ("server", "nginx/1.22.1");
        assert_eq!(
            seen(504, &[html, nginx]).unwrap(),
            "the proxy (nginx/1.22.1) answered 504 Gateway Timeout"
        );
        assert_eq!(
            seen(502, &[]).unwrap(),
            "the proxy answered 502 Bad Gateway"
        );
        assert_eq!(
            seen(200, &[html]).unwrap(),
            "another server than a broker, or a proxy in front of it, answered 200 OK with \
             text/html, which is not gRPC"
        );
        let said = [
            ("x-blobcast-message", "calls of web pages are refused"),
            html,
        ];
        assert_eq!(
            seen(403, &said).unwrap(),
            "the broker answered 403 Forbidden: calls of web pages are refused"
        );
    }
}
