//! The layers around the gRPC services, from the outside in: [`trace`], then [`only_grpc`](super::content::only_grpc), then
//! [`explained`], then [`admit`].

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};
use tracing::Instrument;

use super::{admission::Admission, backlog::until_written, origin::Origin, spanned};
use crate::{
    rpc,
    trace::{REQUEST_ID, RequestId, TRACEPARENT, Tracer},
};

/// Asks the gate, and holds requests, and then their answers, to their time and their share of memory.
pub(super) async fn admit(
    State(admission): State<Arc<Admission>>,
    request: Request,
    next: Next,
) -> Response {
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

/// The same for a call whose answer is transcoded: the answer also has the [`Account`](super::held::Account) of what it becomes.
pub(super) async fn admit_transcoded(
    State(admission): State<Arc<Admission>>,
    request: Request,
    next: Next,
) -> Response {
    match admission.admit(request) {
        Ok((request, call, held)) => {
            let account = held.account();
            let answer = next.run(request).await;
            if let Some(status) = Status::from_header_map(answer.headers()) {
                admission.refused.note(&call, &status);
            }
            let mut answer = held.until_its_end(answer);
            answer.extensions_mut().insert(account);
            answer
        }
        Err(refused) => refused.into_http(),
    }
}

/// Gives every refusal the reason that is part of the contract, also where no service was asked.
pub(super) async fn explained(
    State(request_bytes_max): State<usize>,
    request: Request,
    next: Next,
) -> Response {
    let deadline = request.extensions().get().copied();
    let answer = next.run(request);
    let answer = match deadline {
        // An answer that is late already is refused even if it is at hand.
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

/// Gives every call an id, which is in its answer and in its log lines (of a stream in those up to its first message), and a span
/// if it is sampled.
pub(super) async fn traced(State(tracer): State<Tracer>, request: Request, next: Next) -> Response {
    trace(&tracer, request, next).await
}

/// The same as part of another layer.
pub(super) async fn trace(tracer: &Tracer, mut request: Request, next: Next) -> Response {
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

    // At the highest level, so that lines of every level have it.
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
