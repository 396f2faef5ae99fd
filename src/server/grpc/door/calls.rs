//! gRPC calls within the process.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, TE, USER_AGENT},
        request::Parts,
    },
    response::Response,
};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::{
    decode::{Awaited, Kept},
    origin_of,
};
use crate::{
    door::{Rpc, framed},
    rpc,
    server::grpc::origin::Origin,
    trace::TRACEPARENT,
};

/// The headers of a request that mean the same in gRPC.
const KEPT: [HeaderName; 7] = [
    AUTHORIZATION,
    HOST,
    ORIGIN,
    USER_AGENT,
    TRACEPARENT,
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("sec-fetch-mode"),
];

/// The services with the layers around them.
#[derive(Clone, Debug)]
pub(in crate::server::grpc) struct Calls {
    services: TowerToHyperService<Router>,
    request_bytes_max: usize,
}

/// What the calls that one request leads to have in common.
#[derive(Debug)]
pub(super) struct Template {
    pub rpc: &'static Rpc,
    headers: HeaderMap,
    origin: Origin,
    deadline: Option<rpc::Deadline>,
}

impl Template {
    pub(super) fn of(rpc: &'static Rpc, mut head: Parts) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        for name in KEPT {
            for value in head.headers.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
        // HTTP/2 has the host in the target.
        let authority = head
            .uri
            .authority()
            .map(|host| HeaderValue::from_str(host.as_str()));
        if let (None, Some(Ok(host))) = (headers.get(HOST), authority) {
            headers.insert(HOST, host);
        }

        Self {
            rpc,
            headers,
            deadline: head.extensions.get().copied(),
            origin: origin_of(&mut head),
        }
    }

    /// For a later call: of the first one, what waits in the connection is over.
    pub(super) fn aside(self) -> Self {
        Self {
            origin: self.origin.aside(),
            ..self
        }
    }

    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.headers.get(AUTHORIZATION)
    }

    /// The same with another credential.
    pub(super) fn shows(mut self, authorization: Option<HeaderValue>) -> Self {
        self.headers.remove(AUTHORIZATION);
        if let Some(authorization) = authorization {
            self.headers.insert(AUTHORIZATION, authorization);
        }
        self
    }

    fn request(&self, body: Body) -> Request {
        let mut request = Request::post(&self.rpc.path)
            .body(body)
            .expect("the path of an RPC is one of a URL");
        request.headers_mut().clone_from(&self.headers);
        let extensions = request.extensions_mut();
        extensions.insert(self.origin.clone());
        if let Some(deadline) = self.deadline {
            extensions.insert(deadline);
        }
        request
    }
}

impl Calls {
    pub(in crate::server::grpc) fn new(services: Router, request_bytes_max: usize) -> Self {
        Self {
            services: TowerToHyperService::new(services),
            request_bytes_max,
        }
    }

    /// A call whose message is the JSON in `body`, which is not read before the call was let in.
    pub(super) async fn with_body(&self, template: &Template, body: Body) -> Response {
        let mut request = template.request(body);
        request.extensions_mut().insert(Awaited {
            rpc: template.rpc,
            bytes_max: self.request_bytes_max,
            kept: None,
        });
        self.call(request).await
    }

    /// A call with an empty message, for the request of another RPC in `body`, which is read when the call was let in, and kept.
    pub(super) async fn keeping(
        &self,
        template: &Template,
        rpc: &'static Rpc,
        bytes_max: usize,
        body: Body,
    ) -> (Response, Kept) {
        let (mut request, kept) = (template.request(body), Kept::default());
        request.extensions_mut().insert(Awaited {
            rpc,
            bytes_max: bytes_max.min(self.request_bytes_max),
            kept: Some(Arc::clone(&kept)),
        });
        (self.call(request).await, kept)
    }

    pub(super) async fn with_message(&self, template: &Template, message: &[u8]) -> Response {
        self.call(template.request(Body::from(framed(message))))
            .await
    }

    async fn call(&self, request: Request) -> Response {
        let Ok(answer) = self.services.call(request).await;
        answer
    }
}
