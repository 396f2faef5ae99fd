//! The public HTTP front: callbacks in, and nothing else.
//!
//! A callback is answered 2xx only when its bytes are durable, as an event or in quarantine. A refusal is answered with a reason
//! and counted; nothing is dropped silently. Owns the paths and the answers; connections are the server's.

mod answer;
mod body;
mod budget;
mod client_address;
mod denied;
mod encoding;
mod keep;
mod receive;
#[cfg(test)]
mod tests;
mod throttle;
mod verify;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    body::HttpBody,
    http::{HeaderValue, Method, Request, Uri},
    response::Response,
};
use bytes::Bytes;
use http_body_util::Full;
use parking_lot::RwLock;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) use answer::ToAnybody;
use answer::{Refusal, Reply};
use budget::{Budgets, Credential};
pub use client_address::TrustedProxies;
use throttle::Throttle;
pub use verify::Rules;
use verify::Verified;

use crate::{
    callback::{WebhookPath, shown_path},
    config::BodySignature,
    event::Product,
    journal::Journal,
    metrics::Metrics,
    refused::{RefusedCallback, RefusedCallbacks},
    repetitions::Repetitions,
    sampler::Sampler,
    store::Clock,
    trace::{REQUEST_ID, RequestId, Span, TRACEPARENT, Tracer},
    vendor,
};

/// How long a request that is arriving when the broker stops may still take: a lost packet is sent again sooner. Without this time
/// such a request would get no answer; with more of it, a silent client would hold up every restart.
pub(crate) const LAST_REQUEST: Duration = Duration::from_secs(1);

/// The front's limits; the configuration documents each.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one body.
    pub body_bytes_max: usize,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
    /// From the end of the body to the answer.
    pub answer_timeout: Duration,
    /// Bytes of all bodies held at once.
    pub inflight_bytes_max: usize,
    /// Refusals of one address in a minute, beyond which it is answered 429.
    pub refusals_per_minute_max: u32,
}

/// A request as the log and the trace name it.
struct RequestContext {
    id: RequestId,
    path: String,
    /// The broker has made it itself, for an administrator.
    is_test: bool,
    /// What the URL has proved, once it is verified.
    verified: Option<Verified>,
    /// Its trace has the same id.
    span: Span,
}

/// The front itself.
pub struct Ingest {
    journal: Arc<dyn Journal>,
    clock: Arc<Clock>,
    limits: Limits,
    rules: RwLock<Arc<Rules>>,
    throttle: Throttle,
    budgets: Budgets,
    /// By reason, cause, credential, and product as the metrics name it.
    refusals: Sampler<(&'static str, &'static str, Option<Credential>, String)>,
    refused: Arc<RefusedCallbacks>,
    repetitions: Arc<Repetitions>,
    quarantines: Sampler,
    lacking_output: Sampler,
    /// One permit for each byte of body in memory. When none is left callbacks are refused rather than held.
    inflight: Semaphore,
    draining: CancellationToken,
    metrics: Arc<Metrics>,
    tracer: Tracer,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Ingest {
    /// A front that appends events and quarantined callbacks to `journal`, and stamps both by the log's `clock`.
    pub fn new(
        journal: Arc<dyn Journal>,
        clock: Arc<Clock>,
        limits: Limits,
        rules: Rules,
        metrics: Arc<Metrics>,
        tracer: Tracer,
    ) -> Arc<Self> {
        vendor::sample::PRODUCTS
            .iter()
            .chain(&["unknown"])
            .for_each(|product| metrics.name_product(product));

        let inflight = Semaphore::new(limits.inflight_bytes_max.min(Semaphore::MAX_PERMITS));
        let throttle = Throttle::new(limits.refusals_per_minute_max, std::time::Instant::now());
        Arc::new(Self {
            journal,
            clock,
            limits,
            rules: RwLock::new(Arc::new(rules)),
            throttle,
            budgets: Budgets::new(Instant::now(), Arc::clone(&metrics)),
            refusals: Sampler::default(),
            refused: Arc::default(),
            repetitions: Arc::default(),
            quarantines: Sampler::default(),
            lacking_output: Sampler::default(),
            inflight,
            draining: CancellationToken::new(),
            metrics,
            tracer,
        })
    }

    /// Puts other rules into force, for requests that arrive from now on.
    pub fn set_rules(&self, rules: Rules) {
        *self.rules.write() = Arc::new(rules);
    }

    /// The last refusals, for operators.
    pub(crate) fn refused(&self) -> Arc<RefusedCallbacks> {
        Arc::clone(&self.refused)
    }

    /// How often events were repeated, for their readers.
    pub(crate) fn repetitions(&self) -> Arc<Repetitions> {
        Arc::clone(&self.repetitions)
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read())
    }

    /// From now on callbacks are answered 503 with a short Retry-After, and soon also those whose bodies are still arriving.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Answers one request, to any path, of a connection from `peer`. The answer carries the request's id, and so does every
    /// line that is logged about the request.
    pub async fn answer<B>(self: Arc<Self>, peer: IpAddr, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        self.answer_one(peer, request, false).await
    }

    /// Answers a callback that the broker has made itself, for an administrator at `caller`: like any other, but its address proves
    /// nothing, and it is signed where bodies have to be.
    pub async fn answer_test(&self, caller: IpAddr, target: Uri, body: Bytes) -> Response {
        let rules = self.rules();
        let is_signed = rules.body_signature == BodySignature::Require;
        let credentials = rules.credentials.get();
        let signature = is_signed
            .then(|| credentials.sign_body(&body, self.clock.earliest()))
            .flatten()
            .and_then(|signature| HeaderValue::try_from(signature).ok());

        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target;
        if let Some(signature) = signature {
            request.headers_mut().insert(verify::SIGNATURE, signature);
        }
        self.answer_one(caller, request, true).await
    }

    async fn answer_one<B>(&self, peer: IpAddr, request: Request<B>, is_test: bool) -> Response
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let id = RequestId::new();

        if answer::is_probe(&request) {
            let mut response = answer::to_probe();
            response.headers_mut().insert(REQUEST_ID, id.into());
            return response;
        }

        let span = self
            .tracer
            .begin_untrusted("callback", id, request.headers().get(TRACEPARENT));
        let mut context = RequestContext {
            id,
            path: request.uri().path().to_owned(),
            is_test,
            verified: None,
            span,
        };

        let rules = self.rules();
        let client = rules.proxies.client(peer, request.headers());

        let reply = self.receive(request, &rules, client, &mut context).await;
        let reply = reply.unwrap_or_else(|refused| refused);
        let mut response = self.respond(reply, client, &mut context);
        response.headers_mut().insert(REQUEST_ID, id.into());
        response
    }

    /// Counts what became of a request, and answers 429 to an address that was refused too often.
    fn respond(&self, mut reply: Reply, client: IpAddr, context: &mut RequestContext) -> Response {
        let verified = context.verified.as_ref();
        let refusal = reply.refusal(verified.map(|verified| &verified.sender.credential));
        if reply.is_unauthenticated()
            && self.throttle.is_too_much(client, std::time::Instant::now())
        {
            reply = Reply::RateLimited;
        }

        // Unauthenticated requests are never traced: they must not crowd out real spans.
        if reply.is_unauthenticated() || matches!(reply, Reply::RateLimited) {
            context.span.discard();
        }

        let outcome = reply.outcome().as_str();
        if let Some(refusal) = refusal {
            self.note_refusal(&reply, &refusal, client, context);
        }
        self.metrics.callbacks.with_label_values(&[outcome]).inc();
        tracing::debug!(request_id = %context.id, outcome, %client, "request answered");
        reply.describe(&mut context.span);
        reply.response()
    }

    /// Keeps a refusal for operators, and counts it by its cause, its credential and its product. One of each is logged in ten
    /// seconds.
    fn note_refusal(
        &self,
        reply: &Reply,
        refusal: &Refusal,
        client: IpAddr,
        context: &RequestContext,
    ) {
        let Refusal {
            cause,
            credential,
            key_id,
            explanation,
        } = refusal;

        let reason = reply.outcome().as_str();
        let named = WebhookPath::parse(&context.path).and_then(|path| path.product);
        let product = named.as_deref().map_or("", shown_product);
        let (kind, name) = credential
            .as_ref()
            .map_or(("", ""), |of| (of.kind(), of.name()));
        self.metrics.count_refused(cause, kind, name, product);
        self.refused.note(RefusedCallback {
            at: self.clock.now(),
            request_id: context.id,
            outcome: reason,
            http_status: reply.status().as_u16(),
            cause,
            explanation,
            product: product.into(),
            path: shown_path(&context.path).into(),
            address: client,
            credential: shown(credential.as_ref()),
            key_id: key_id.as_deref().unwrap_or_default().into(),
        });

        let counted = self.metrics.label_of(product).to_owned();
        if let Some(unlogged) = self
            .refusals
            .due((reason, cause, credential.clone(), counted))
        {
            let (path, credential) = (
                shown_path(&context.path),
                credential.as_ref().map(tracing::field::display),
            );
            tracing::warn!(
                request_id = %context.id, reason, cause, %client, path, product, credential, key_id, unlogged,
                "request refused: {explanation}"
            );
        }
    }
}

/// Kind and name of a credential; empty without one.
fn shown(credential: Option<&Credential>) -> Box<str> {
    credential
        .map(ToString::to_string)
        .unwrap_or_default()
        .into()
}

/// A product as the log shows it. A malformed one may be anything, even a secret in the wrong place.
fn shown_product(named: &str) -> &str {
    if Product::parse(named).is_ok() {
        named
    } else {
        "other"
    }
}
