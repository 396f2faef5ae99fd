//! The public HTTP front: callbacks in, and nothing else.
//!
//! A callback is answered 2xx only when its bytes are durable, as an event or in quarantine. What is refused is answered with
//! a reason and counted; nothing is dropped silently. Owns the paths and the answers; connections are the server's.

mod client_address;
mod answer;
mod body;
mod budget;
mod encoding;
mod throttle;
mod verify;

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    body::HttpBody,
    http::{Method, Request},
    response::Response,
};
use bytes::Bytes;
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    callback::{Callback, Corrections, Rejection, WebhookPath, shown_path},
    event::{Product, Verification},
    journal::Journal,
    metrics::Metrics,
    sampler::Sampler,
    store::{Appended, Clock, NewQuarantined, QuarantineHeader, WriteError},
    trace::{REQUEST_ID, RequestId, Span, TRACEPARENT, Tracer},
    vendor, web,
};
pub(crate) use answer::ToAnybody;
use answer::{Outcome, Refusal};
use budget::{Budgets, Credential, Sender};
pub use client_address::TrustedProxies;
use throttle::Throttle;
use verify::LetIn;
pub use verify::Rules;

/// How long a request that is on its way when the broker stops may still take to arrive: a lost packet is sent again sooner.
/// Without it such a request would get no answer; any longer, and a stranger's silence would hold up every restart.
pub(crate) const LAST_REQUEST: Duration = Duration::from_secs(1);

/// From here on reading a body costs more than asking whether it may be brought.
const LARGE_BODY_BYTES: u64 = 16 * 1024;

/// What the front needs to know; see the configuration for the meaning of each.
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
    /// Refusals of one address in a minute, until it is told to slow down.
    pub refusals_per_minute_max: u32,
}

/// What a request is found again by.
struct Asked {
    id: RequestId,
    path: String,
    /// What it was let in by, once it was.
    let_in: Option<LetIn>,
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
    quarantines: Sampler,
    lacking_output: Sampler,
    /// One permit per byte of body in memory. When none is left callbacks are refused rather than held.
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
    /// A front that appends events to `journal`, quarantines there what it cannot read, and stamps both by the log's `clock`.
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
            quarantines: Sampler::default(),
            lacking_output: Sampler::default(),
            inflight,
            draining: CancellationToken::new(),
            metrics,
            tracer,
        })
    }

    /// What callbacks have to show from now on.
    pub fn set_rules(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on callbacks are answered 503 with a short Retry-After, and soon also those whose bodies are still arriving.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Answers one request, to whatever path, of a connection from `peer`. The answer has the request's id, and so has every
    /// line that is logged about it.
    pub async fn answer<B>(self: Arc<Self>, peer: IpAddr, request: Request<B>) -> Response
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
        let mut asked = Asked {
            id,
            path: request.uri().path().to_owned(),
            let_in: None,
            span,
        };
        let rules = self.rules();
        let client = rules.proxies.client(peer, request.headers());
        let outcome = self.receive(request, &rules, client, &mut asked).await;
        let mut response = self.respond(
            outcome.unwrap_or_else(|refused| refused),
            client,
            &mut asked,
        );
        response.headers_mut().insert(REQUEST_ID, id.into());
        response
    }

    /// Takes one request to a webhook; `client` is whom it comes from.
    async fn receive<B>(
        &self,
        request: Request<B>,
        rules: &Rules,
        client: IpAddr,
        asked: &mut Asked,
    ) -> Result<Outcome, Outcome>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let path = WebhookPath::parse(request.uri().path()).ok_or(Outcome::NotFound(None))?;
        let is_near_miss = path.near_miss.is_some();
        // Only what is authentic may be kept; to others it is a path like any other.
        let refused = |outcome| match outcome {
            Outcome::Unauthorized(denied) if is_near_miss => Outcome::NotFound(Some(denied)),
            outcome => outcome,
        };
        if request.method() != Method::POST {
            if is_near_miss {
                return Err(Outcome::NotFound(None));
            }
            return Err(Outcome::MethodNotAllowed {
                wants_html: answer::wants_html(request.headers()),
            });
        }
        if self.draining.is_cancelled() {
            return Err(Outcome::Draining);
        }
        if web::is_foreign(&request, rules.public_url.as_deref(), &[]) {
            return Err(Outcome::ForeignOrigin);
        }
        rules.check_address(client, &self.metrics)?;
        let query = request.uri().query().unwrap_or_default().to_owned();
        let now = self.clock.earliest();
        let let_in = rules
            .check_url(request.uri().path(), &path, &query, now, &self.metrics)
            .map_err(refused)?;
        let let_in = asked.let_in.insert(let_in);
        asked.span.note("URL verified");
        let encodings = encoding::of(request.headers())?;
        let url_product = path.product.as_deref().unwrap_or_default();
        // A large body for which there is no budget is not even read; nor is one that is too large, which has its own answer.
        let claimed = request.body().size_hint().lower();
        if claimed <= self.limits.body_bytes_max as u64 {
            self.check_budget(&let_in.sender, url_product, claimed)?;
        }
        let signature = request.headers().get(verify::SIGNATURE).cloned();
        let body = tokio::select! {
            biased; // a body that is there needs no look at the rest
            body = body::read(request, &self.limits, &self.inflight) => body?,
            () = self.last_request_over() => return Err(Outcome::Draining),
        };
        asked.span.note("body read");
        let started = Instant::now();
        let decoded = encodings
            .decode(&body.bytes, self.limits.body_bytes_max, &self.inflight)
            .await?;
        let either = [
            Some(&body.bytes),
            decoded.as_ref().map(|decoded| &decoded.bytes),
        ];
        let by_body = rules
            .check_body(signature.as_ref(), either, now, &self.metrics)
            .map_err(refused)?;
        let body = decoded.unwrap_or(body);
        // Nor looked into, if nobody had said how large it is.
        self.check_budget(&let_in.sender, url_product, body.bytes.len() as u64)?;
        let callback = Callback {
            product: path.product,
            near_miss: path.near_miss,
            query,
            body: body.bytes.clone(),
            received_at: self.clock.now(),
            verification: if by_body {
                Verification::BodySignature
            } else {
                let_in.verification
            },
            credential: let_in.sender.credential.on_event(by_body),
            bound: let_in.bound.clone(),
        };
        let deadline = started + self.limits.answer_timeout;
        let outcome = self
            .keep(&callback, let_in, deadline, &mut asked.span, asked.id)
            .await;
        self.metrics
            .callback_seconds
            .observe(started.elapsed().as_secs_f64());
        Ok(outcome)
    }

    fn check_budget(&self, sender: &Sender, product: &str, body_bytes: u64) -> Result<(), Outcome> {
        if body_bytes < LARGE_BODY_BYTES {
            return Ok(()); // asked when it is taken
        }
        let fits = self
            .budgets
            .has(sender, product, body_bytes, Instant::now());
        fits.map_err(Outcome::BudgetExceeded)
    }

    async fn last_request_over(&self) {
        self.draining.cancelled().await;
        sleep(LAST_REQUEST).await;
    }

    /// Counts what became of a request, and turns away who is refused too often.
    fn respond(&self, mut outcome: Outcome, client: IpAddr, asked: &mut Asked) -> Response {
        let refusal = outcome.refusal(
            asked
                .let_in
                .as_ref()
                .map(|let_in| &let_in.sender.credential),
        );
        if outcome.is_unauthenticated()
            && self.throttle.is_too_much(client, std::time::Instant::now())
        {
            outcome = Outcome::RateLimited;
        }
        // Unauthenticated requests are never traced: they must not crowd out real spans.
        if outcome.is_unauthenticated() || matches!(outcome, Outcome::RateLimited) {
            asked.span.discard();
        }
        let word = outcome.as_str();
        if let Some(refusal) = refusal {
            self.note_refusal(word, &refusal, client, asked);
        }
        self.metrics.callbacks.with_label_values(&[word]).inc();
        tracing::debug!(request_id = %asked.id, outcome = word, %client, "request answered");
        outcome.describe(&mut asked.span);
        outcome.response()
    }

    /// Counts a request that was not kept by its cause, whose it is, and its product; a line for each of these in ten seconds says
    /// more.
    fn note_refusal(&self, reason: &'static str, refusal: &Refusal, client: IpAddr, asked: &Asked) {
        let Refusal {
            cause,
            credential,
            key_id,
            explanation,
        } = refusal;
        let named = WebhookPath::parse(&asked.path).and_then(|path| path.product);
        let product = named.as_deref().map_or("", shown_product);
        let (kind, name) = credential
            .as_ref()
            .map_or(("", ""), |of| (of.kind(), of.name()));
        self.metrics.count_refused(cause, kind, name, product);

        let counted = self.metrics.label_of(product).to_owned();
        if let Some(unlogged) = self
            .refusals
            .due((reason, cause, credential.clone(), counted))
        {
            let (path, credential) = (
                shown_path(&asked.path),
                credential.as_ref().map(tracing::field::display),
            );
            tracing::warn!(
                request_id = %asked.id, reason, cause, %client, path, product, credential, key_id, unlogged,
                "request refused: {explanation}"
            );
        }
    }

    async fn keep(
        &self,
        callback: &Callback,
        let_in: &LetIn,
        deadline: Instant,
        span: &mut Span,
        id: RequestId,
    ) -> Outcome {
        let draft = callback.draft(&Corrections::default());
        // In bytes of the log, which is what the budget is about: the body is kept, and the event made of it.
        let bytes = callback.body.len() + draft.as_ref().map_or(0, |draft| draft.event.len());
        let product = callback.product.as_deref().unwrap_or_default();
        if let Err(wait) = self
            .budgets
            .take(&let_in.sender, product, bytes as u64, Instant::now())
        {
            return Outcome::BudgetExceeded(wait);
        }
        let mut draft = match draft {
            Ok(draft) => draft,
            Err(rejection) => {
                return self
                    .quarantine(callback, &let_in.sender, &rejection, deadline, id)
                    .await;
            }
        };
        let conceals = let_in.conceals();
        span.set("blobcast.product", draft.product.as_str());
        span.set("blobcast.task_id", draft.task_id.as_str());
        span.note("commit begun");
        draft.origin = span.origin();
        draft.conceals_duplicates = conceals;
        let lacks_output = draft.lacks_output.then(|| draft.product.clone());
        let outcome = match durable(self.journal.append(draft), deadline).await {
            Ok(appended) => {
                if let Some(product) = lacks_output.filter(|_| !appended.duplicate) {
                    self.note_lacking_output(&product, &appended, id);
                }
                Outcome::Received(appended)
            }
            Err(Failure::Write(WriteError::TooManyEvents)) => {
                self.quarantine(
                    callback,
                    &let_in.sender,
                    &Rejection::TooManyEvents,
                    deadline,
                    id,
                )
                .await
            }
            Err(failure) => Outcome::NotKept(failure),
        };
        match outcome {
            Outcome::Received(_) | Outcome::Quarantined { .. } if conceals => {
                Outcome::Concealed(Box::new(outcome))
            }
            outcome => outcome,
        }
    }

    /// Legal, and perhaps the first sign that the vendor has changed where outputs are.
    fn note_lacking_output(&self, product: &Product, appended: &Appended, request_id: RequestId) {
        self.metrics
            .count_completed_without_output(product.as_str());
        if let Some(unlogged) = self.lacking_output.due("completed_without_output") {
            let event_id = appended.event_id;
            tracing::warn!(
                %request_id, %product, %event_id, unlogged,
                "task completed, and its callback has no output: look at the raw body, and whether the vendor has changed its shape"
            );
        }
    }

    async fn quarantine(
        &self,
        callback: &Callback,
        sender: &Sender,
        rejection: &Rejection,
        deadline: Instant,
        request_id: RequestId,
    ) -> Outcome {
        let header = QuarantineHeader {
            reason: rejection.reason().to_owned(),
            detail: format!("{rejection}; {}", rejection.remedy()),
            target: callback.target(),
            received_at_micros: callback.received_at.as_microsecond(),
            verification: callback.verification as u8,
            credential: match &*callback.credential {
                "" => sender.credential.to_string(),
                shown => shown.to_owned(),
            },
            product: callback.kept_product().unwrap_or_default().into_owned(),
            bound: callback.kept_bound(),
        };
        let new = NewQuarantined {
            header,
            body: callback.body.clone(),
        };
        match durable(self.journal.quarantine(new), deadline).await {
            Ok(number) => {
                let reason = rejection.reason();
                if let Some(unlogged) = self.quarantines.due(reason) {
                    tracing::warn!(%request_id, quarantine_id = number, reason, unlogged, "callback quarantined");
                }
                Outcome::Quarantined { reason }
            }
            Err(failure) => Outcome::NotKept(failure),
        }
    }
}

/// A product for the log. What is none may be anything, a secret at the wrong place for one.
fn shown_product(named: &str) -> &str {
    if Product::parse(named).is_ok() {
        named
    } else {
        "other"
    }
}

/// Why a callback is not known to be durable.
#[derive(Debug)]
enum Failure {
    Write(WriteError),
    /// Not in time; it may become durable yet, and its repetition is then a duplicate.
    Late,
}

async fn durable<T>(
    answer: oneshot::Receiver<Result<T, WriteError>>,
    deadline: Instant,
) -> Result<T, Failure> {
    match timeout_at(deadline, answer).await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(Failure::Write(error)),
        Ok(Err(_)) => Err(Failure::Write(WriteError::Closed)),
        Err(_) => Err(Failure::Late),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::header};

    use super::*;
    use crate::{
        config::{Allowlist, BodySignature, ForwardedHeader},
        journal::Local,
        store::{Appender, Retention, Store, writer},
    };

    const LIMITS: Limits = Limits {
        body_bytes_max: 1_000,
        body_timeout: Duration::from_secs(10),
        answer_timeout: Duration::from_millis(20),
        inflight_bytes_max: 10_000,
        refusals_per_minute_max: 1,
    };
    /// Far more than most tests send.
    const BUDGET: u64 = 6_000;
    const READABLE: &str = r#"{"generation_id":"t1","status":"completed"}"#;

    fn rules() -> Rules {
        Rules {
            credentials: Arc::default(),
            body_signature: BodySignature::Off,
            allowlist: Allowlist::Off,
            allowed: Vec::new(),
            proxies: TrustedProxies {
                networks: Vec::new(),
                header: ForwardedHeader::XForwardedFor,
            },
            bytes_per_minute_max: BUDGET,
            public_url: None,
        }
    }

    /// A front whose writer never runs or is gone, and what is to be held meanwhile.
    fn front(prepare: impl FnOnce(&Appender), writer_is_there: bool) -> (Arc<Ingest>, impl Sized) {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 1 << 20).unwrap());
        let metrics = Arc::new(Metrics::default());
        let clock = Arc::clone(store.clock());
        let (appender, writer) = writer(
            store,
            Retention::KEEP_ALL,
            |_: &[_]| {},
            Arc::clone(&metrics),
        );
        let writer = writer_is_there.then_some(writer);
        prepare(&appender);
        let journal = Arc::new(Local::new(appender));
        (
            Ingest::new(journal, clock, LIMITS, rules(), metrics, Tracer::default()),
            (writer, directory),
        )
    }

    async fn receive(ingest: &Ingest, body: Body) -> Result<Outcome, Outcome> {
        let request = Request::post("/webhook/veo").body(body).unwrap();
        let mut asked = Asked {
            id: RequestId::new(),
            path: String::new(),
            let_in: None,
            span: Span::default(),
        };
        ingest
            .receive(request, &ingest.rules(), [127, 0, 0, 1].into(), &mut asked)
            .await
    }

    /// What a front answers to a callback that can be read and to one that cannot, if its writer never runs or is gone.
    async fn answers(
        prepare: impl FnOnce(&Appender),
        writer_is_there: bool,
    ) -> Vec<(&'static str, Response)> {
        let (ingest, _held) = front(prepare, writer_is_there);
        let mut answers = Vec::new();
        for body in [READABLE, "nonsense"] {
            let outcome = receive(&ingest, Body::from(body)).await.unwrap();
            answers.push((outcome.as_str(), outcome.response()));
        }
        answers
    }

    fn assert_refused(answers: Vec<(&'static str, Response)>, expected: &str) {
        for (outcome, response) in answers {
            assert_eq!((outcome, response.status().as_u16()), (expected, 503));
            assert_eq!(response.headers()[header::RETRY_AFTER], "30");
        }
    }

    #[tokio::test]
    async fn what_is_not_durable_in_time_is_to_be_sent_again() {
        assert_refused(answers(|_| {}, true).await, "late");
    }

    #[tokio::test]
    async fn what_the_writer_has_no_room_for_is_to_be_sent_again() {
        let fill = |appender: &Appender| {
            while appender
                .probe()
                .try_recv()
                .is_err_and(|empty| empty == oneshot::error::TryRecvError::Empty)
            {}
        };
        assert_refused(answers(fill, true).await, "overloaded");
    }

    #[tokio::test]
    async fn a_body_that_is_still_arriving_at_the_end_has_a_moment() {
        let (ingest, _held) = front(|_| {}, true);
        let never =
            Body::from_stream(tokio_stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let drain = async {
            tokio::task::yield_now().await; // it is being read by now
            ingest.drain();
        };
        let (outcome, ()) = tokio::join!(receive(&ingest, never), drain);
        assert_eq!(outcome.unwrap_err().as_str(), "draining");
        assert_eq!(
            receive(&ingest, Body::from(READABLE))
                .await
                .unwrap_err()
                .as_str(),
            "draining"
        );
    }

    #[tokio::test]
    async fn a_budget_that_is_used_up_says_when_there_is_room_and_there_is() {
        let (mut ingest, _held) = front(|_| {}, false);
        let seconds = |ingest: &mut Arc<Ingest>, seconds| {
            Arc::get_mut(ingest)
                .unwrap()
                .budgets
                .pass(Duration::from_secs(seconds));
        };
        let outcome = async |ingest: &Ingest, body| {
            receive(ingest, body)
                .await
                .unwrap_or_else(|refused| refused)
        };
        let body = || Body::from(vec![b'x'; 1_000 - budget::CALLBACK_BYTES as usize]);
        let said = |response: Response| {
            let header = |name| response.headers()[name].to_str().unwrap().to_owned();
            (response.status().as_u16(), header(header::RETRY_AFTER))
        };
        for _ in 0..6 {
            assert_eq!(
                outcome(&ingest, body()).await.as_str(),
                "store_failed",
                "it was let in"
            );
        }
        let refused = outcome(&ingest, body()).await;
        assert_eq!(refused.as_str(), "budget_exceeded");
        assert_eq!(said(refused.response()), (429, "10".into()));
        seconds(&mut ingest, 9);
        let refused = outcome(&ingest, body()).await;
        assert_eq!(said(refused.response()), (429, "1".into()), "rounded up");
        seconds(&mut ingest, 1);
        assert_eq!(outcome(&ingest, body()).await.as_str(), "store_failed");
        // Also of a body of unknown length.
        seconds(&mut ingest, 6);
        let chunks =
            tokio_stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 400]))]);
        assert_eq!(
            outcome(&ingest, Body::from_stream(chunks)).await.as_str(),
            "budget_exceeded"
        );
        assert_eq!(
            ingest
                .metrics
                .callback_bytes
                .with_label_values(&["unverified", "", "veo"])
                .get(),
            7 * 488
        );
    }

    #[tokio::test]
    async fn what_no_writer_takes_is_to_be_sent_again() {
        assert_refused(answers(|_| {}, false).await, "store_failed");
    }
}
