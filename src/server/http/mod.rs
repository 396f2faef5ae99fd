//! HTTP/1.1 on a listener, and HTTP/2 where TLS has agreed on it. Everything has a bound: connections, headers, the time for them,
//! idle time, the time to take an answer. And every answer arrives, refusals included.
//!
//! Not by axum's `serve`, which waits for ever for a first byte and takes any number of connections.

mod responder;
mod limits;
mod service;
mod h1;
mod h2;
mod activity;
mod unread_body;
mod refusals;
mod linger;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::{net::TcpListener, sync::Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(super) use self::{
    limits::Limits,
    responder::{Answer, Connection, Lasting, Responder, mark_as_stream, routed},
    service::Counters,
    unread_body::RequestBody,
};
use self::{
    refusals::{REFUSALS_MAX, refuse},
    service::Service,
};
use super::{
    net::{self, Acceptor, Entrance, Opened, Protocol, places::Place},
    runtimes::Homes,
};

/// Serves until `stop`, then lets the requests under way finish. Connections live on `homes`.
pub(super) async fn serve(
    listener: TcpListener,
    homes: Homes,
    entrance: Entrance,
    responder: impl Responder,
    limits: Limits,
    counters: Counters,
    stop: CancellationToken,
) {
    let acceptor = Acceptor::new(
        listener,
        entrance,
        limits.connections_max,
        limits.patience,
        &counters.connections,
    );
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = TaskTracker::new();

    while let Some(arrival) = acceptor.next(&stop).await {
        if let Some(place) = acceptor.places().try_take() {
            // Until its task runs, which takes a while on a busy machine, the client is not the one that is silent.
            let unheard = place.standing().begin();
            let Ok(arrival) = arrival.detach() else {
                continue;
            };
            let service = Service::new(&responder, limits, &counters);
            let stop = stop.clone();
            let served = async move {
                drop(unheard);
                let Ok(arrival) = arrival.attach() else {
                    return;
                };
                let opened = tokio::select! {
                    opened = arrival.open(&place) => opened,
                    () = limits.last_request_over(&stop) => return,
                };
                if let Some(opened) = opened {
                    // On the heap: a connection that is never opened needs no room for this.
                    Box::pin(serve_connection(service, opened, &place, stop)).await;
                }
            };
            connections.spawn_on(served, homes.next());
        } else if !acceptor.has_tls() {
            // Without TLS only: a client that expects a handshake could not read the refusal.
            let Ok(permit) = Arc::clone(&refusals).acquire_owned().await else {
                break;
            };
            connections.spawn(refuse(arrival.into_stream(), limits.farewell, permit));
        }
    }

    drop(acceptor);
    connections.close();
    connections.wait().await;
}

/// Serves one connection until it ends, by the protocol that TLS has agreed on.
async fn serve_connection<R: Responder>(
    service: Service<R>,
    opened: Opened,
    place: &Place,
    stop: CancellationToken,
) {
    let (protocol, client, standing) = (opened.protocol, opened.client, place.standing());
    let (stream, _share) = opened.into_parts();
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(service.limits.write_timeout));
    let stream = Box::pin(stream);

    match protocol {
        Protocol::Http2 => h2::serve(service, stream, client, standing, stop).await,
        Protocol::Http1 => h1::serve(service, stream, client, standing, stop).await,
    }
}

/// Serves a connection in HTTP/1.1 that another listener has accepted, like [`serve`] does its own.
pub(super) async fn serve_http1(
    responder: impl Responder,
    limits: Limits,
    counters: &net::Counters,
    opened: Opened,
    place: &Place,
    stop: CancellationToken,
) {
    let service = Service::new(&responder, limits, &Counters::without_callbacks(counters));
    serve_connection(service, opened, place, stop).await;
}
