//! What answers the requests of a listener.

use std::{net::IpAddr, pin::Pin};

use axum::{Router, response::Response};
use hyper::{Request, service::Service as _};
use hyper_util::service::TowerToHyperService;

use super::unread_body::RequestBody;

/// Answers a request of a connection from an address.
pub(in crate::server) trait Responder:
    Fn(IpAddr, Request<RequestBody>) -> Answer + Clone + Send + Sync + 'static
{
}

impl<F> Responder for F where
    F: Fn(IpAddr, Request<RequestBody>) -> Answer + Clone + Send + Sync + 'static
{
}

/// An answer to come. On the heap from the start: it would be copied from layer to layer on its way there.
pub(in crate::server) type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Answers by routes, every client alike.
pub(in crate::server) fn routed(router: Router) -> impl Responder {
    let service = TowerToHyperService::new(router);
    move |_, request| {
        let answer = service.call(request);
        Box::pin(async move {
            let Ok(answer) = answer.await;
            answer
        })
    }
}
