//! gRPC-Web, which is gRPC as a web page can speak it: trailers in the body, and on request all of it in base64
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>). tonic-web translates; what a call then passes is what any call
//! of gRPC passes, so credentials, limits and reasons are the same.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    middleware::Next,
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{
    body::{Body as HttpBody, Frame},
    service::Service as _,
};
use hyper_util::service::TowerToHyperService;
use tonic_web::GrpcWebLayer;

use super::{content::ContentRefusals, cors, cors::Cors, layers, names::Names};
use crate::{
    rpc,
    server::http::mark_as_stream,
    trace::{REQUEST_ID, RequestId, Tracer},
};

const BINARY: HeaderValue = HeaderValue::from_static("application/grpc-web+proto");
const TEXT: HeaderValue = HeaderValue::from_static("application/grpc-web-text+proto");
/// How every content type of gRPC-Web begins.
const BEGINNING: &[u8] = b"application/grpc-web";

/// The outermost layer, but for that of the whole server: gRPC-Web leaves the way of gRPC here.
#[derive(Debug)]
pub(super) struct Entrance {
    /// The services with the layers of any call, and the translation around them.
    translated: TowerToHyperService<Router>,
    refusals: ContentRefusals,
    cors: Arc<Cors>,
    names: Names,
    tracer: Tracer,
}

/// Answers a call, or what a web page's browser asks before one.
pub(super) async fn enter(
    State(entrance): State<Arc<Entrance>>,
    request: Request,
    next: Next,
) -> Response {
    if is_from_page(&request) {
        // On the heap: calls of gRPC need no room for this.
        return Box::pin(entrance.answer(request, next)).await;
    }
    layers::trace(&entrance.tracer, request, next).await
}

/// Whether a request is of gRPC-Web, or asks whether one may be sent.
pub(super) fn is_from_page<B>(request: &hyper::Request<B>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    let beginning = content_type.and_then(|value| value.as_bytes().get(..BEGINNING.len()));
    beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(BEGINNING))
        || cors::is_preflight(request)
}

impl Entrance {
    /// `services` have the layers of any call around them.
    pub(super) fn new(
        services: Router,
        refusals: ContentRefusals,
        cors: Arc<Cors>,
        names: Names,
        tracer: Tracer,
    ) -> Self {
        Self {
            translated: TowerToHyperService::new(services.layer(GrpcWebLayer::new())),
            refusals,
            cors,
            names,
            tracer,
        }
    }

    async fn answer(&self, mut request: Request, next: Next) -> Response {
        let origin = self.cors.allow(&mut request);
        let mut answer = if origin.is_some() && cors::is_preflight(&request) {
            cors::preflight()
        } else {
            self.answer_own(request, next).await
        };
        self.cors.expose(&mut answer, origin);
        answer
    }

    /// Answers a request as one of its own origin.
    async fn answer_own(&self, mut request: Request, next: Next) -> Response {
        if let Some(refused) = self.refusals.if_foreign(&request) {
            return with_id(refused);
        }
        if !self.names.allow(&request) {
            let message = "without a token this listener answers gRPC-Web by an IP address or localhost only: send \
                           `authorization: Bearer TOKEN`, or add the name to grpc.hosts and restart";
            let status = StatusCode::MISDIRECTED_REQUEST;
            return with_id(self.refusals.refuse(&request, "host", status, message));
        }
        let Some(is_text) = is_text(request.headers(), CONTENT_TYPE) else {
            // It is refused there.
            return layers::trace(&self.tracer, request, next).await;
        };

        let wants_text = is_text_wanted(request.headers(), is_text);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, if is_text { TEXT } else { BINARY });
        // What becomes base64 stays counted, so that is done here.
        headers.remove(ACCEPT);
        // In HTTP/2 it was noted already.
        if request.extensions().get::<rpc::Deadline>().is_none()
            && let Some(deadline) = rpc::Deadline::of_headers(request.headers())
        {
            request.extensions_mut().insert(deadline);
        }

        let Ok(answer) = self.translated.call(request).await;
        as_wanted(answer, wants_text)
    }
}

fn with_id(mut answer: Response) -> Response {
    let id = RequestId::new().into();
    answer.headers_mut().insert(REQUEST_ID, id);
    answer
}

/// Whether a header names the kind of gRPC-Web that is text; `None` if it names none that is spoken here.
fn is_text(headers: &HeaderMap, name: axum::http::HeaderName) -> Option<bool> {
    let value = headers.get(name)?.as_bytes();
    let essence = value.split(|&byte| byte == b';').next()?.trim_ascii();
    let rest = essence
        .split_at_checked(BEGINNING.len())
        .filter(|(beginning, _)| beginning.eq_ignore_ascii_case(BEGINNING))
        .map(|(_, rest)| rest.to_ascii_lowercase())?;
    match &rest[..] {
        b"" | b"+proto" => Some(false),
        b"-text" | b"-text+proto" => Some(true),
        _ => None,
    }
}

/// Whether the answer has to be text: a client that does not say so wants what it sends.
fn is_text_wanted(headers: &HeaderMap, sends_text: bool) -> bool {
    is_text(headers, ACCEPT).unwrap_or(sends_text)
}

fn as_wanted(mut answer: Response, wants_text: bool) -> Response {
    if !answer.status().is_success() {
        return answer; // of another method than POST
    }
    if wants_text {
        answer.headers_mut().insert(CONTENT_TYPE, TEXT);
    }
    if answer.body().is_end_stream() {
        return answer;
    }
    // Whether a call streams is not known here. In HTTP/1.1 a stream would be an idle connection, and a proxy would fill a buffer.
    mark_as_stream(&mut answer);
    if wants_text {
        answer.map(|body| Body::new(Text(body)))
    } else {
        answer
    }
}

/// A body in base64, each piece on its own.
struct Text(Body);

impl HttpBody for Text {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(in_text))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// The bytes as text, which keeps them until it has left: by them it is counted.
fn in_text(bytes: Bytes) -> Bytes {
    struct Encoded {
        text: String,
        _of: Bytes,
    }

    impl AsRef<[u8]> for Encoded {
        fn as_ref(&self) -> &[u8] {
            self.text.as_bytes()
        }
    }

    Bytes::from_owner(Encoded {
        text: STANDARD.encode(&bytes),
        _of: bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_of_grpc_web_is_text_or_is_not() {
        for (value, is) in [
            ("application/grpc-web", Some(false)),
            ("application/grpc-web+proto", Some(false)),
            ("Application/gRPC-Web+Proto; charset=utf-8", Some(false)),
            ("application/grpc-web-text", Some(true)),
            ("application/grpc-web-text+proto", Some(true)),
            ("application/grpc-web+json", None),
            ("application/grpc-webx", None),
            ("application/grpc", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_text(&headers, CONTENT_TYPE), is, "{value}");
        }
        let accepts =
            |value: &'static str| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]);
        assert!(is_text_wanted(&accepts("application/grpc-web-text"), false));
        assert!(!is_text_wanted(
            &accepts("application/grpc-web+proto"),
            true
        ));
        assert!(is_text_wanted(&accepts("*/*"), true) && !is_text_wanted(&accepts("*/*"), false));
    }
}
