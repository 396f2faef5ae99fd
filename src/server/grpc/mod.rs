//! The gRPC listener: services, health, reflection, and the limits of HTTP/2.

mod admission;
mod backlog;
mod connection;
mod content;
mod corked;
mod health;
mod inflight;
mod refused;
mod spanned;
mod streams;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    service::{InterceptorLayer, Routes, RoutesBuilder},
};
use tonic_health::{pb::health_server::HealthServer, server::HealthReporter};
use tracing::Instrument;

use super::{
    net::{Counters, Entrance},
    numbers::usize_of,
};
use crate::{
    config::{self, Config},
    rpc,
    trace::{REQUEST_ID, RequestId, TRACEPARENT, Tracer},
    wire::{
        DESCRIPTOR_SET,
        service::{
            admin_service_server::{AdminServiceServer, SERVICE_NAME as ADMIN},
            event_service_server::{EventServiceServer, SERVICE_NAME as EVENTS},
        },
    },
};

use admission::Admission;
use backlog::until_written;
use connection::{Origin, incoming};
use content::{Refusals, only_grpc};
use health::Health;
use inflight::Inflight;

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
/// Streams a client has reset before they were looked at; more of them is an attack (rapid reset), and closes the connection.
/// A service that cancels all it waits for at once is none: those were looked at. With 1,024 eight connections that are made
/// anew each time kept everybody else waiting for seconds.
const PENDING_RESETS_MAX: usize = 128;
/// Streams of one connection beyond the subscriptions: calls that are answered at once.
const UNARY_STREAMS: u32 = 1_024;
/// Of one message of reflection: a name, and a wide margin.
const REFLECTION_BYTES_MAX: usize = 4 * 1024;

/// All services on `context`, and the handle that reports their health: serving.
pub(super) async fn services(
    context: rpc::Context,
    config: &Config,
    tracer: Tracer,
) -> (HealthReporter, Routes) {
    let health = HealthReporter::new();
    let health_service = HealthServer::new(Health::of(&health));
    set_health(&health, tonic_health::ServingStatus::Serving).await;
    let request_bytes_max = usize_of(config.grpc.request_bytes_max);
    let (gate, answers) = (context.gate.clone(), Arc::clone(&context.answers));
    let metrics = Arc::clone(&gate.metrics);
    let events = EventServiceServer::new(rpc::Events::new(context.clone()));
    let admin = AdminServiceServer::new(rpc::Admin::new(context));
    let mut routes = RoutesBuilder::default();
    let events = events.max_decoding_message_size(request_bytes_max);
    let admin = admin.max_decoding_message_size(request_bytes_max);
    routes
        .add_service(events)
        .add_service(admin)
        .add_service(health_service);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that tools can show the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    // Both versions: grpcurl 1.8 and older speak only the second.
    let v1 = reflection()
        .build_v1()
        .expect("the descriptor set is our own, made at build time");
    let v1alpha = reflection()
        .build_v1alpha()
        .expect("the descriptor set is our own, made at build time");
    routes
        .add_service(v1.max_decoding_message_size(REFLECTION_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(REFLECTION_BYTES_MAX));
    let one_request =
        request_bytes_max.saturating_add(admission::CALL_BYTES + HEADER_LIST_BYTES as usize);
    let inflight = Inflight::new(usize_of(config.grpc.inflight_bytes_max), one_request);
    let admission = Arc::new(Admission::new(gate, inflight, answers, &metrics));
    let routes = routes
        .routes()
        .into_axum_router()
        .layer(from_fn_with_state(admission, admit))
        .layer(from_fn_with_state(request_bytes_max, explained))
        .layer(from_fn_with_state(
            Refusals::new(metrics.calls_refused.clone()),
            only_grpc,
        ))
        .layer(from_fn_with_state(tracer, traced));
    (health, routes.into())
}

/// Asks the gate, and holds requests, and then their answers, to their time and their share of memory.
async fn admit(State(admission): State<Arc<Admission>>, request: Request, next: Next) -> Response {
    match admission.admit(request) {
        Ok((request, call, held)) => {
            let answer = next.run(request).await;
            if let Some(status) = Status::from_header_map(answer.headers()) {
                admission.refused.note(&call, &status);
            }
            held.until_its_end(answer)
        }
        Err(refused) => refused.into_http(),
    }
}

/// Gives every refusal the reason that is part of the contract, also where no service was asked.
async fn explained(
    State(request_bytes_max): State<usize>,
    request: Request,
    next: Next,
) -> Response {
    let deadline = request.extensions().get().copied();
    let answer = next.run(request);
    let answer = match deadline {
        // Nothing arrives in time any more, even if an answer is at hand.
        Some(rpc::Deadline(deadline)) if deadline <= Instant::now() => None,
        // tonic has a timer of its own, which would answer CANCELLED.
        Some(rpc::Deadline(deadline)) => timeout_at(deadline, answer).await.ok(),
        None => Some(answer.await),
    };
    let Some(answer) = answer else {
        return rpc::deadline_exceeded().into_http();
    };
    let refusal = Status::from_header_map(answer.headers());
    match refusal.and_then(|refusal| rpc::explained(&refusal, request_bytes_max)) {
        Some(explained) => explained.into_http(),
        None => answer,
    }
}

/// Gives every call an id, which its answer and its log lines have (of a stream those up to its first message), and a span if
/// it is sampled.
async fn traced(State(tracer): State<Tracer>, mut request: Request, next: Next) -> Response {
    let id = RequestId::new();
    let uri = request.uri().clone();
    let origin = request
        .extensions()
        .get::<Origin>()
        .expect("each connection says what it is, see `Connected`");
    let backlog = Arc::clone(origin.waiting.backlog());
    let method = uri.path().trim_start_matches('/');
    let mut span = tracer.begin(method, id, request.headers().get(TRACEPARENT));
    let let_in = rpc::LetIn::default();
    request.extensions_mut().insert(id);
    if let Some(context) = span.context() {
        request.extensions_mut().insert(context);
        request.extensions_mut().insert(let_in.clone());
    }
    // Of the highest level, so that a line of any level has it.
    let of_lines = tracing::error_span!("call", request_id = %id, method, trace_id = span.trace_id().map(tracing::field::display));
    let mut answer = next.run(request).instrument(of_lines.clone()).await;
    answer
        .headers_mut()
        .insert(REQUEST_ID, until_written(id.digits(), &backlog));
    // Unauthenticated calls are never traced: they must not crowd out real spans.
    if !let_in.get() {
        span.discard();
    }
    let code = Status::from_header_map(answer.headers()).map(|status| status.code());
    tracing::debug!(parent: &of_lines, code = ?code.unwrap_or(Code::Ok), "call answered");
    spanned::until_its_end(answer, span, code)
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
    entrance: Entrance,
    services: Routes,
    config: config::Grpc,
    counters: Counters,
    stop: CancellationToken,
) {
    let streams_max = u32::try_from(config.subscriptions_max)
        .unwrap_or(u32::MAX)
        .saturating_add(UNARY_STREAMS);
    let (keepalive_interval, keepalive_timeout) =
        (config.keepalive_interval, config.keepalive_timeout);
    let (incoming, accepting) = incoming(
        listener,
        entrance.expecting_preface(),
        usize_of(config.connections_max),
        counters,
        stop.clone(),
    );
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(streams_max)
        .http2_keepalive_interval(Some(keepalive_interval))
        .http2_keepalive_timeout(Some(keepalive_timeout))
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
