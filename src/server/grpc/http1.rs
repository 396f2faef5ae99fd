//! HTTP/1.1 on the gRPC listener: for the JSON door and gRPC-Web, since gRPC needs HTTP/2.

use std::{
    future::ready,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::{Request, service::Service as _};
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::{grpc_web::is_from_page, origin::Origin};
use crate::{
    door,
    server::{
        http::{self, Answer, RequestBody},
        net::{Counters, Opened, Refused, places::Place},
    },
    trace::{REQUEST_ID, RequestId},
};

const MESSAGE: &str = "this is blobcast's gRPC listener: gRPC is HTTP/2, so use a gRPC client; in HTTP/1.1 there are \
                       gRPC-Web, and JSON below /v1/; callbacks go to the ingest listener\n";

/// What connections in HTTP/1.1 are served with.
#[derive(Clone)]
pub(super) struct Http1 {
    pub routes: Router,
    pub limits: http::Limits,
    pub counters: Counters,
    /// How often a silent peer is asked for, and after which time without an acknowledgement it counts as dead: as with pings of
    /// HTTP/2.
    pub interval: Duration,
    pub patience: Duration,
    pub stop: CancellationToken,
}

impl Http1 {
    /// Serves a connection until it ends.
    pub(super) async fn serve(&self, mut opened: Opened, place: &Place) {
        opened.stream.end_if_left(self.interval, self.patience);
        let (origin, peer) = (Origin::of(&opened, place), opened.client);
        let routes = TowerToHyperService::new(self.routes.clone());
        let turned_away = self.counters.turned_away.clone();
        let responder = move |_: IpAddr, request: Request<RequestBody>| -> Answer {
            origin.peer.heard.note();
            let is_json = door::is_below(request.uri().path());
            if !is_json && !is_from_page(&request) {
                turned_away.note(&Refused::NotHttp2, peer);
                return Box::pin(ready(upgrade_required(peer)));
            }
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(origin.clone());
            let answer = routes.call(request);
            Box::pin(async move {
                let Ok(answer) = answer.await;
                answer
            })
        };

        let (limits, stop) = (self.limits, self.stop.clone());
        http::serve_http1(responder, limits, &self.counters, opened, place, stop).await;
    }
}

/// gRPC needs HTTP/2.
fn upgrade_required(peer: SocketAddr) -> Response {
    let id = RequestId::new();
    tracing::debug!(request_id = %id, %peer, "request refused: it is neither gRPC, gRPC-Web, nor JSON");
    let headers = [
        (header::UPGRADE, "HTTP/2.0"),
        (header::CONNECTION, "upgrade, close"),
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
    ];
    (
        StatusCode::UPGRADE_REQUIRED,
        headers,
        [(REQUEST_ID, id.to_string())],
        MESSAGE,
    )
        .into_response()
}
