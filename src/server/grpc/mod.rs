//! The gRPC listener: services, health, reflection, the JSON door, gRPC-Web, and the limits of HTTP/2.

mod connection;
mod backlog;
mod corked;
mod http1;
mod origin;
mod cors;
mod names;
mod grpc_web;

mod layers;
mod content;
mod admission;
mod inflight;
mod streams;
mod unfinished;
mod arriving;
mod held;
mod refused;
mod spanned;

mod door;

mod health;

use std::sync::Arc;

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::{InterceptorLayer, Routes, RoutesBuilder};
use tonic_health::{pb::health_server::HealthServer, server::HealthReporter};

use super::{
    http,
    net::{Counters, Entrance},
    numbers::usize_of,
};
use crate::{
    config::Config,
    rpc,
    trace::Tracer,
    wire::{
        DESCRIPTOR_SET,
        service::{
            admin_service_server::AdminServiceServer, event_service_server::EventServiceServer,
        },
    },
};

use admission::Admission;
use connection::incoming;
use content::{ContentRefusals, only_grpc};
use cors::Cors;
pub(super) use door::ConsoleDoor;
use grpc_web::Entrance as WebEntrance;
use health::Health;
pub(super) use health::{end_health_watches, set_health};
use http1::Http1;
use inflight::Inflight;
use layers::{admit, admit_transcoded, explained, traced};
use names::Names;

/// What a client may send on one stream before we have read it: requests are small.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// What a client may send on one connection before we have read it. h2 also derives from it how many small frames may wait
/// (half of it, at 256 bytes a frame) before it calls them an attack and closes the connection: with its default, a client
/// that opens a thousand subscriptions at once is one. This is enough for 16,000.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Headers of one request: metadata and a token. Beyond it the stream is refused with HTTP status 431.
const HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Streams that a client has reset before they were looked at. More of them are an attack (rapid reset), and the connection is
/// closed. A service that cancels all its calls at once is none: those were looked at. With 1,024 eight connections that are made
/// anew each time kept all other clients waiting for seconds.
const PENDING_RESETS_MAX: usize = 128;
/// Streams of one connection beyond the subscriptions: calls that are answered at once.
const UNARY_STREAMS: u32 = 1_024;
/// One message of reflection: a name, with a wide margin.
const REFLECTION_BYTES_MAX: usize = 4 * 1024;

/// All services on `context` with the layers around them, and what reports their health, which is: serving.
pub(super) async fn services(
    context: rpc::Context,
    config: &Config,
    port: u16,
    tracer: Tracer,
) -> (HealthReporter, Routes, ConsoleDoor) {
    let health = HealthReporter::new();
    set_health(&health, tonic_health::ServingStatus::Serving).await;

    let request_bytes_max = usize_of(config.grpc.request_bytes_max);
    let (gate, answers) = (context.gate.clone(), Arc::clone(&context.answers));
    let metrics = Arc::clone(&gate.metrics);
    let events = EventServiceServer::new(rpc::Events::new(context.clone()));
    let admin = AdminServiceServer::new(rpc::Admin::new(context));

    let mut routes = RoutesBuilder::default();
    routes
        .add_service(events.max_decoding_message_size(request_bytes_max))
        .add_service(admin.max_decoding_message_size(request_bytes_max))
        .add_service(HealthServer::new(Health::of(&health)));
    add_reflection(&mut routes);

    let one_request =
        request_bytes_max.saturating_add(admission::CALL_BYTES + HEADER_LIST_BYTES as usize);
    let inflight = Inflight::new(usize_of(config.grpc.inflight_bytes_max), one_request);
    let admission = Arc::new(Admission::new(gate, inflight, answers, &metrics));
    let refusals = ContentRefusals::new(metrics.calls_refused.clone(), &config.grpc.hosts);
    let services = routes.routes().into_axum_router();
    let around = |admitted: Router| {
        admitted
            .layer(from_fn_with_state(request_bytes_max, explained))
            .layer(from_fn_with_state(refusals.clone(), only_grpc))
    };
    let with_trace = |around: Router| around.layer(from_fn_with_state(tracer.clone(), traced));
    let cors = Arc::new(Cors::new(&config.grpc.cors_origins));
    let names = Names::of(&config.grpc, port);

    // The last layer is the outermost. Requests in JSON have layers of their own, so that those of gRPC are asked nothing more.
    let decoded = services.clone().layer(from_fn(door::decode));
    let transcoded = decoded.layer(from_fn_with_state(Arc::clone(&admission), admit_transcoded));
    let calls = door::Calls::new(with_trace(around(transcoded)), request_bytes_max);
    let door = door::Door::new(calls, refusals.clone(), names.clone(), Arc::clone(&cors));
    let of_console = door.of_console();

    let grpc = around(services.layer(from_fn_with_state(admission, admit)));
    let for_pages = with_trace(grpc.clone());
    let entrance = WebEntrance::new(for_pages, refusals, cors, names, tracer);
    let grpc = grpc.layer(from_fn_with_state(Arc::new(entrance), grpc_web::enter));
    let routes = door::add(grpc, door);
    (health, routes.into(), of_console)
}

/// Adds reflection in both versions: grpcurl 1.8 and older speak only the second.
fn add_reflection(routes: &mut RoutesBuilder) {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that tools can show the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection()
        .build_v1()
        .expect("the descriptor set is our own, made at build time");
    let v1alpha = reflection()
        .build_v1alpha()
        .expect("the descriptor set is our own, made at build time");

    routes
        .add_service(v1.max_decoding_message_size(REFLECTION_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(REFLECTION_BYTES_MAX));
}

/// Serves until `stop`, then until every connection has ended.
pub(super) async fn serve(
    listener: TcpListener,
    entrance: Entrance,
    services: Routes,
    config: &Config,
    counters: Counters,
    stop: CancellationToken,
) {
    let http1 = Http1 {
        routes: services.clone().into_axum_router(),
        limits: http::Limits::grpc(config),
        counters: counters.clone(),
        interval: config.grpc.keepalive_interval,
        patience: config.grpc.keepalive_interval + config.grpc.keepalive_timeout,
        stop: stop.clone(),
    };
    let config = &config.grpc;
    let streams_max = u32::try_from(config.subscriptions_max)
        .unwrap_or(u32::MAX)
        .saturating_add(UNARY_STREAMS);
    let (incoming, accepting) = incoming(
        listener,
        entrance.expecting_preface(),
        usize_of(config.connections_max),
        counters,
        http1,
        stop.clone(),
    );

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
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.cancelled_owned());
    let (served, ()) = tokio::join!(server, accepting);
    if let Err(error) = served {
        tracing::error!(%error, "the gRPC listener failed");
    }
}
