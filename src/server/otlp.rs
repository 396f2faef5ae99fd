//! Sends ended spans to a collector, by OTLP over gRPC. The only file that knows the protocol.
//!
//! The messages and the client are OpenTelemetry's own (the crate `opentelemetry-proto`); the queue and the batches are ours. The
//! SDK's batch processor needs a thread of its own, logs only the first span that it drops, and has no metric of the spans that it
//! drops or that the collector refuses. Here each span is counted as taken, refused, lost or dropped.
//!
//! Batches are sent one after the other and never repeated. While the collector is slow, spans wait in a bounded queue, and those that
//! do not fit are dropped. Nothing else ever waits for an export.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status as SpanStatus, span, status::StatusCode},
};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use uuid::Uuid;

use super::{
    refusal::{Input, Refusal},
    watch::{Applied, Change, Files, Watched},
};
use crate::{
    causes::causes,
    config,
    metrics::{Metrics, SpanOutcome},
    trace::{Context, Ended, Kind, Tracer, Value},
};

/// Spans that wait, about 4 MiB of them: some seconds of everything that a broker does. Beyond it spans are dropped.
const QUEUE_MAX: usize = 8_192;
/// Spans sent at once: the default of OpenTelemetry's own batch processor.
const BATCH_MAX: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long a collector may take for a batch: OTLP's default.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last spans may take at the end; within what the drain allows.
const FLUSH: Duration = Duration::from_millis(800);
/// The log has one line in this time about a collector that does not take spans.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Sends spans to the collector.
#[derive(Debug)]
pub(super) struct Exporter {
    ended: Receiver<Ended>,
    batch: Vec<Ended>,
    client: Arc<Mutex<TraceServiceClient<Channel>>>,
    endpoint: String,
    resource: Resource,
    metrics: Arc<Metrics>,
    /// When it was last logged that the collector takes no spans; `None` while it does.
    complained: Option<Instant>,
}

/// What begins spans and, if they go to a collector, what sends them. Has to be called within a runtime.
pub(super) fn tracer(
    config: &config::Traces,
    collector: Option<Endpoint>,
    metrics: &Arc<Metrics>,
) -> (Tracer, Option<Exporter>) {
    let (Some(collector), Some(endpoint)) = (collector, config.otlp_endpoint.clone()) else {
        return (Tracer::default(), None);
    };
    let client = Arc::new(Mutex::new(TraceServiceClient::new(
        collector.connect_lazy(),
    )));
    let dropped = metrics
        .trace_spans
        .with_label_values(&[SpanOutcome::Dropped.as_str()]);
    let (tracer, ended) = Tracer::new(config.sampling_ratio.get(), QUEUE_MAX, dropped);
    let metrics = Arc::clone(metrics);
    let exporter = Exporter {
        ended,
        batch: Vec::new(),
        client,
        endpoint,
        resource: resource(),
        metrics,
        complained: None,
    };
    (tracer, Some(exporter))
}

/// The collector, if the configuration names one. Reads the system's certificates if they are needed.
pub(super) fn collector(config: &config::Traces) -> Result<Option<Endpoint>, Refusal> {
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok(None);
    };
    endpoint_of(endpoint).map(Some).map_err(|error| {
        let problem = with_causes("cannot set up the connection to the collector", &error);
        let remedy =
            "install ca-certificates, or name the collector's authorities by SSL_CERT_FILE";
        Refusal::new(
            Input::Traces,
            format!("traces.otlp_endpoint: {endpoint}: {problem}; {remedy}"),
        )
    })
}

/// Connects with the first batch, and again after a failure.
fn endpoint_of(endpoint: &str) -> Result<Endpoint, tonic::transport::Error> {
    let is_https = endpoint.starts_with("https://");
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?
        .user_agent(concat!("blobcast/", env!("CARGO_PKG_VERSION")))?
        .connect_timeout(CONNECT_TIMEOUT);
    if is_https {
        endpoint.tls_config(ClientTlsConfig::new().with_native_roots())
    } else {
        Ok(endpoint)
    }
}

impl Exporter {
    /// The certificates that the collector is checked with. They are read again on request only.
    pub(super) fn watched(&self, config: &config::Traces) -> Option<Watched> {
        let (client, config) = (Arc::clone(&self.client), config.clone());
        let is_checked = config
            .otlp_endpoint
            .as_ref()
            .is_some_and(|endpoint| endpoint.starts_with("https://"));

        is_checked.then(|| {
            Files::on_demand(Input::Traces).watched(move || {
                let (collector, client) = (
                    collector(&config).map_err(|refusal| vec![refusal])?,
                    Arc::clone(&client),
                );
                let change: Change = Box::new(move |_| {
                    if let Some(collector) = collector {
                        *client.lock() = TraceServiceClient::new(collector.connect_lazy());
                    }
                    Applied {
                        summary: "for the next connection".to_owned(),
                        changes: Vec::new(),
                    }
                });
                Ok(change)
            })
        })
    }

    /// Sends until `stop`, and then the rest for a moment longer.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        tracing::info!(endpoint = self.endpoint, "sending traces");
        let time_is_up = async {
            stop.cancelled().await;
            sleep(FLUSH).await;
        };
        tokio::select! {
            () = self.send_all(&stop) => {}
            () = time_is_up => {}
        }
        let lost = self.batch.len() + self.ended.len();
        if lost > 0 {
            self.count(SpanOutcome::Lost, lost);
            tracing::warn!(lost, "the last spans were not taken in time");
        }
    }

    async fn send_all(&mut self, stop: &CancellationToken) {
        loop {
            self.gather(stop).await;
            if self.batch.is_empty() {
                return;
            }
            self.send().await;
        }
    }

    /// Fills the batch. Once stopped: with the spans that are there, and then with nothing.
    async fn gather(&mut self, stop: &CancellationToken) {
        let Self { ended, batch, .. } = self;
        let filled = async {
            ended.recv_many(batch, BATCH_MAX).await;
            let rest = async {
                while batch.len() < BATCH_MAX
                    && ended.recv_many(batch, BATCH_MAX - batch.len()).await > 0
                {}
            };
            let _ = timeout(GATHER, rest).await.is_ok(); // either way the batch is not empty
        };
        tokio::select! {
            () = filled => return,
            () = stop.cancelled() => {}
        }
        self.ended.close();
        while self.batch.len() < BATCH_MAX
            && let Ok(span) = self.ended.try_recv()
        {
            self.batch.push(span);
        }
    }

    async fn send(&mut self) {
        let spans = self.batch.iter().map(encoded).collect();
        let scope = InstrumentationScope {
            name: "blobcast".to_owned(),
            ..Default::default()
        };
        let scope_spans = vec![ScopeSpans {
            scope: Some(scope),
            spans,
            ..Default::default()
        }];
        let resource_spans = ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans,
            ..Default::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![resource_spans],
        };

        let mut client = self.client.lock().clone();
        let answer = timeout(EXPORT_TIMEOUT, client.export(request)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("it does not answer")));
        let count = self.batch.len();
        self.batch.clear();

        match answer {
            Ok(answer) => {
                let partial = answer.into_inner().partial_success.unwrap_or_default();
                let refused = usize::try_from(partial.rejected_spans)
                    .unwrap_or_default()
                    .min(count);
                self.count(SpanOutcome::Taken, count - refused);
                self.count(SpanOutcome::Refused, refused);
                if refused > 0 {
                    self.complain(refused, &partial.error_message);
                } else if self.complained.take().is_some() {
                    tracing::info!(endpoint = self.endpoint, "the collector takes spans again");
                }
            }
            Err(status) => {
                self.count(SpanOutcome::Lost, count);
                self.complain(count, &with_causes(status.message(), &status));
            }
        }
    }

    fn count(&self, outcome: SpanOutcome, spans: usize) {
        self.metrics
            .trace_spans
            .with_label_values(&[outcome.as_str()])
            .inc_by(spans as u64);
    }

    fn complain(&mut self, spans: usize, error: &str) {
        if self
            .complained
            .is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL)
        {
            self.complained = Some(Instant::now());
            tracing::warn!(
                endpoint = self.endpoint,
                error,
                spans,
                "the collector does not take spans: check traces.otlp_endpoint, and blobcast_trace_spans_total for how many"
            );
        }
    }
}

/// A failure with its causes: tonic's own text says only that the transport has failed.
fn with_causes(failure: &str, error: &(dyn Error + 'static)) -> String {
    match error.source() {
        Some(source) if failure != source.to_string() => format!("{failure}: {}", causes(source)),
        Some(source) => causes(source),
        None => failure.to_owned(),
    }
}

/// The sender of the spans: this process, as long as it runs.
fn resource() -> Resource {
    let instance = Uuid::new_v4().to_string();
    let attributes = [
        ("service.name", "blobcast"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", &instance),
    ];
    let attributes = attributes.map(|(key, text)| key_value(key, &text.into()));
    Resource {
        attributes: attributes.into(),
        ..Default::default()
    }
}

fn encoded(ended: &Ended) -> Span {
    let Context {
        trace_id, span_id, ..
    } = ended.context;
    let link = |link: Context| span::Link {
        trace_id: link.trace_id.0.to_be_bytes().into(),
        span_id: link.span_id.0.to_be_bytes().into(),
        flags: u32::from(link.is_sampled),
        ..Default::default()
    };
    let event = |&(name, at): &(&str, SystemTime)| span::Event {
        name: name.to_owned(),
        time_unix_nano: nanoseconds(at),
        ..Default::default()
    };
    let status = ended.is_error.then(|| SpanStatus {
        code: StatusCode::Error.into(),
        ..Default::default()
    });
    let kind = match ended.kind {
        Kind::Server => span::SpanKind::Server,
        Kind::Producer => span::SpanKind::Producer,
    };

    Span {
        trace_id: trace_id.0.to_be_bytes().into(),
        span_id: span_id.0.to_be_bytes().into(),
        parent_span_id: ended
            .parent
            .map(|parent| parent.0.to_be_bytes().into())
            .unwrap_or_default(),
        flags: 1, // sampled
        name: ended.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: nanoseconds(ended.began),
        end_time_unix_nano: nanoseconds(ended.ended),
        attributes: ended
            .attributes
            .iter()
            .map(|(key, value)| key_value(key, value))
            .collect(),
        events: ended.events.iter().map(event).collect(),
        links: ended.link.into_iter().map(link).collect(),
        status,
        ..Default::default()
    }
}

fn key_value(key: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.clone()),
        Value::Number(number) => any_value::Value::IntValue(*number),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
