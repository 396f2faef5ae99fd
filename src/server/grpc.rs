//! The gRPC listener: services, health, reflection, and the limits of HTTP/2.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use prometheus::IntGauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    service::{InterceptorLayer, Routes, RoutesBuilder, interceptor::InterceptedService},
    transport::server::Connected,
};
use tonic_health::server::{HealthReporter, health_reporter};

use crate::{
    config::{self, Config},
    rpc,
    wire::{
        DESCRIPTOR_SET,
        service::{
            admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN},
            event_service_server::{EventServiceServer, SERVICE_NAME as EVENTS},
        },
    },
};

/// Names whose health can be asked; the empty one is the whole server.
const HEALTH_NAMES: [&str; 3] = ["", EVENTS, ADMIN];
/// What a client may send on one stream before we have read it: requests are small.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// What a client may send on one connection before we have read it. h2 also derives from it how many small frames may wait
/// (half of it, at 256 bytes a frame) before it calls them an attack and closes the connection: with its default, a client
/// that opens a thousand subscriptions at once is one. This is enough for 16,000.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Headers of one request: metadata and a token. Beyond it the stream is refused with HTTP status 431.
const HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Streams a client has reset and we have not yet seen off; more of them is an attack (rapid reset), and closes the connection.
/// A service that cancels all it waits for at once is none.
const PENDING_RESETS_MAX: usize = 1_024;
/// Streams of one connection beyond the subscriptions: calls that are answered at once.
const UNARY_STREAMS: u32 = 1_024;
/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// All services on `context`, and the handle that reports their health: serving.
pub(super) async fn services(context: rpc::Context, gate: rpc::Gate, config: &Config) -> (HealthReporter, Routes) {
    let (health, health_service) = health_reporter();
    set_health(&health, tonic_health::ServingStatus::Serving).await;
    let request_bytes_max = super::usize_of(config.grpc.request_bytes_max);
    let events = EventServiceServer::new(rpc::Events::new(context.clone()));
    let admin = AdminServiceServer::new(rpc::Admin::new(context));
    let mut routes = RoutesBuilder::default();
    let events = events.max_decoding_message_size(request_bytes_max);
    let admin = admin.max_decoding_message_size(request_bytes_max);
    routes
        .add_service(InterceptedService::new(events, gate.clone()))
        .add_service(InterceptedService::new(admin, gate.clone()))
        // Probes have no tokens.
        .add_service(health_service);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that tools can show the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    // Both versions: grpcurl 1.8 and older speak only the second.
    let v1 = reflection().build_v1().expect("the descriptor set is our own, made at build time");
    let v1alpha = reflection().build_v1alpha().expect("the descriptor set is our own, made at build time");
    routes.add_service(InterceptedService::new(v1, gate.clone())).add_service(InterceptedService::new(v1alpha, gate));
    let explained = from_fn_with_state(request_bytes_max, explained);
    (health, routes.routes().into_axum_router().layer(explained).into())
}

/// Gives every refusal the reason that is part of the contract, also where no service was asked.
async fn explained(State(request_bytes_max): State<usize>, request: Request, next: Next) -> Response {
    let deadline = request.extensions().get().copied();
    let answer = next.run(request);
    let answer = match deadline {
        // tonic has a timer of its own, which would answer CANCELLED.
        Some(rpc::Deadline(deadline)) => timeout_at(deadline, answer).await,
        None => Ok(answer.await),
    };
    let Ok(answer) = answer else { return rpc::deadline_exceeded().into_http() };
    let refusal = Status::from_header_map(answer.headers());
    match refusal.and_then(|refusal| rpc::explained(&refusal, request_bytes_max)) {
        Some(explained) => explained.into_http(),
        None => answer,
    }
}

/// Reports the same health for every name.
pub(super) async fn set_health(health: &HealthReporter, status: tonic_health::ServingStatus) {
    for name in HEALTH_NAMES {
        health.set_service_status(name, status).await;
    }
}

/// Ends all `Watch` streams, which would hold a graceful shutdown up for ever.
pub(super) async fn end_health_watches(health: &mut HealthReporter) {
    for name in HEALTH_NAMES {
        health.clear_service_status(name).await;
    }
}

/// Serves until `stop`, then until every connection has ended.
pub(super) async fn serve(
    listener: TcpListener,
    services: Routes,
    config: config::Grpc,
    open: IntGauge,
    stop: CancellationToken,
) {
    let (sender, incoming) = mpsc::channel(1);
    let streams_max = u32::try_from(config.subscriptions_max).unwrap_or(u32::MAX).saturating_add(UNARY_STREAMS);
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(streams_max)
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .layer(InterceptorLayer::new(rpc::note_deadline))
        .add_routes(services)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
    let connections_max = super::usize_of(config.connections_max).min(Semaphore::MAX_PERMITS);
    let (served, ()) = tokio::join!(server, accept(listener, sender, connections_max, open, stop));
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC listener failed");
    }
}

/// Hands connections on while there is room; the rest waits in the kernel's queue.
async fn accept(
    listener: TcpListener,
    sender: mpsc::Sender<io::Result<Connection>>,
    connections_max: usize,
    open: IntGauge,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(connections_max));
    let accept_one = async || {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, address) = listener.accept().await?;
        // Events are wanted now, not when a packet is full.
        let _ = stream.set_nodelay(true).is_ok(); // a connection that is gone already will be noticed by its reader
        open.inc();
        let peer = rpc::Peer { address, certificate_names: Arc::default() };
        Ok::<_, io::Error>(Connection { stream, peer, open: open.clone(), _slot: slot })
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept_one() => accepted,
        };
        match accepted {
            Ok(connection) => {
                if sender.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection: check the limit of open files");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// A connection that gives its slot back when it ends.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    peer: rpc::Peer,
    open: IntGauge,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = rpc::Peer;

    fn connect_info(&self) -> rpc::Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
