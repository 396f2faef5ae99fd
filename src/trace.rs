//! Request ids and traces.
//!
//! Every request has an id of its own, which its answer and its log lines carry. A caller's id is never adopted: a caller that chose
//! one could make two requests look like one. A sampled request also has a [`Span`]; a trace that begins here has the id of its
//! request. Ended spans are queued for the exporter. When the queue is full they are dropped and counted, so that no request ever
//! waits for a trace. A span never holds a secret, a body or a URL.
//!
//! Knows nothing of the rest of the crate, nor of an export protocol. While tracing is off, or a request is not sampled, everything
//! here is one branch.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::header::{HeaderName, HeaderValue};
use prometheus::IntCounter;
use tokio::sync::mpsc::{self, Receiver, Sender};
use uuid::Uuid;

/// The header, or the gRPC metadata, with the request's id in an answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header, or the gRPC metadata, in which a caller names its own trace (W3C Trace Context).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The bits of a trace id that decide sampling: those that W3C Trace Context requires to be random.
const SAMPLED_BITS: u32 = 56;

/// A request's id: 32 random hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A new one.
    #[allow(
        clippy::new_without_default,
        reason = "no two are the same, so there is no default"
    )]
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }

    /// Its hexadecimal digits.
    pub fn digits(self) -> [u8; 32] {
        let mut digits = [0; 32];
        self.0.simple().encode_lower(&mut digits);
        digits
    }
}

impl From<RequestId> for HeaderValue {
    fn from(id: RequestId) -> Self {
        Self::from_bytes(&id.digits()).expect("digits are fit for a header")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0.simple())
    }
}

/// A trace's id: 32 hexadecimal digits, never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A span's id within its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub u64);

impl SpanId {
    fn new() -> Self {
        // The first half of a UUID has its version, so it is never zero.
        Self(Uuid::new_v4().as_u64_pair().0)
    }
}

/// A span's context, as W3C Trace Context has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// Whether the service that began the span records it.
    pub is_sampled: bool,
}

impl Context {
    /// Parses a `traceparent`; `None` if it is malformed. Of a later version, the fields of version 00 are read.
    pub fn parse(traceparent: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(traceparent).ok()?;
        let is_hex = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };

        let mut parts = text.splitn(5, '-');
        let mut part = |len| {
            parts
                .next()
                .filter(|part| part.len() == len && is_hex(part))
        };
        let (version, trace_id, span_id, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace_id, 16)
            .ok()
            .filter(|&id| id != 0)?;
        let span_id = u64::from_str_radix(span_id, 16)
            .ok()
            .filter(|&id| id != 0)?;
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 != 0;
        Some(Self {
            trace_id: TraceId(trace_id),
            span_id: SpanId(span_id),
            is_sampled,
        })
    }
}

/// A span's role in its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It answers a request.
    Server,
    /// It passes a message on.
    Producer,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A span that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its context.
    pub context: Context,
    /// Its parent; `None` if the trace begins with it.
    pub parent: Option<SpanId>,
    /// A span of another trace that is related.
    pub link: Option<Context>,
    /// Its role.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// Its attributes.
    pub attributes: Vec<(&'static str, Value)>,
    /// What happened in between, and when.
    pub events: Vec<(&'static str, SystemTime)>,
    /// Whether it failed through the broker's fault.
    pub is_error: bool,
}

/// The queue for the exporter; full when the exporter is behind.
#[derive(Debug)]
struct Exit {
    queue: Sender<Ended>,
    dropped: IntCounter,
}

impl Exit {
    fn send(&self, ended: impl FnOnce() -> Ended) {
        match self.queue.try_reserve() {
            Ok(place) => place.send(ended()),
            Err(_) => self.dropped.inc(),
        }
    }
}

/// Begins spans. The default tracer begins none.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Sampling>);

#[derive(Clone, Debug)]
struct Sampling {
    exit: Arc<Exit>,
    /// A trace is sampled if its id is below this in the bits that decide.
    below: u64,
}

impl Tracer {
    /// A tracer that samples a share of all requests, from 0 to 1, and the receiver of their ended spans. Spans beyond `queue_max` are
    /// dropped and counted in `dropped`.
    pub fn new(share: f64, queue_max: usize, dropped: IntCounter) -> (Self, Receiver<Ended>) {
        let (queue, ended) = mpsc::channel(queue_max);
        let below = (share * (1_u64 << SAMPLED_BITS) as f64) as u64;
        (
            Self(Some(Sampling {
                exit: Arc::new(Exit { queue, dropped }),
                below,
            })),
            ended,
        )
    }

    /// Begins the span of a request from outside. The caller's trace is only linked, not continued: an outside caller could name any
    /// trace.
    pub fn begin_untrusted(
        &self,
        name: &str,
        id: RequestId,
        traceparent: Option<&HeaderValue>,
    ) -> Span {
        let Some(sampling) = &self.0 else {
            return Span(None);
        };
        let mut span = sampling.begin(name, id, None);
        if let Some(open) = &mut span.0 {
            open.ended.link = traceparent.and_then(|header| Context::parse(header.as_bytes()));
        }
        span
    }

    /// Begins the span of a request from inside. It continues the caller's trace, and is sampled if that is.
    pub fn begin(&self, name: &str, id: RequestId, traceparent: Option<&HeaderValue>) -> Span {
        let Some(sampling) = &self.0 else {
            return Span(None);
        };
        sampling.begin(
            name,
            id,
            traceparent.and_then(|header| Context::parse(header.as_bytes())),
        )
    }
}

impl Sampling {
    fn begin(&self, name: &str, id: RequestId, parent: Option<Context>) -> Span {
        let trace_id = parent.map_or(TraceId(id.0.as_u128()), |parent| parent.trace_id);
        let is_sampled = match parent {
            Some(parent) => parent.is_sampled,
            None => (trace_id.0 as u64 & ((1 << SAMPLED_BITS) - 1)) < self.below,
        };
        if !is_sampled {
            return Span(None);
        }
        let now = SystemTime::now();
        let ended = Ended {
            context: Context {
                trace_id,
                span_id: SpanId::new(),
                is_sampled,
            },
            parent: parent.map(|parent| parent.span_id),
            link: None,
            kind: Kind::Server,
            name: name.to_owned(),
            began: now,
            ended: now,
            attributes: Vec::new(),
            events: Vec::new(),
            is_error: false,
        };

        Span(Some(Box::new(Open {
            ended,
            exit: Arc::clone(&self.exit),
        })))
    }
}

/// The span of a request; ends when dropped. Empty if the request is not sampled.
#[derive(Debug, Default)]
pub struct Span(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    ended: Ended,
    exit: Arc<Exit>,
}

impl Span {
    /// Its context; `None` if it is not sampled.
    pub fn context(&self) -> Option<Context> {
        self.0.as_ref().map(|open| open.ended.context)
    }

    /// Its trace, for the log; `None` if it is not sampled.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.context().map(|context| context.trace_id)
    }

    /// Renames it.
    pub fn set_name(&mut self, name: &str) {
        if let Some(open) = &mut self.0 {
            name.clone_into(&mut open.ended.name);
        }
    }

    /// Sets an attribute. Never a secret.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(open) = &mut self.0 {
            open.ended.attributes.push((key, value.into()));
        }
    }

    /// Notes an event that happens now.
    pub fn note(&mut self, event: &'static str) {
        if let Some(open) = &mut self.0 {
            open.ended.events.push((event, SystemTime::now()));
        }
    }

    /// Notes that it failed through the broker's fault.
    pub fn fail(&mut self) {
        if let Some(open) = &mut self.0 {
            open.ended.is_error = true;
        }
    }

    /// Discards it: it is not exported.
    pub fn discard(&mut self) {
        self.0 = None;
    }

    /// The parent of the spans of its event's deliveries.
    pub fn origin(&self) -> Option<Arc<Origin>> {
        let open = self.0.as_ref()?;
        Some(Arc::new(Origin {
            context: open.ended.context,
            exit: Arc::clone(&open.exit),
        }))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let Open { mut ended, exit } = *open;
            ended.ended = SystemTime::now();
            exit.send(|| ended);
        }
    }
}

/// The span of a callback, kept with its event in memory, so that deliveries are part of the same trace.
#[derive(Debug)]
pub struct Origin {
    context: Context,
    exit: Arc<Exit>,
}

impl Origin {
    /// Records a delivery that began when the callback was received and ends now. `call` is the span of the receiving call.
    pub fn delivered(
        &self,
        received_at_micros: i64,
        subscription_id: &str,
        client: Option<&str>,
        call: Option<Context>,
    ) {
        self.exit.send(|| {
            let ended = SystemTime::now();
            let since_1970 =
                Duration::from_micros(u64::try_from(received_at_micros).unwrap_or_default());
            let mut attributes = vec![("blobcast.subscription_id", subscription_id.into())];
            attributes.extend(client.map(|client| ("blobcast.client", client.into())));
            Ended {
                context: Context {
                    span_id: SpanId::new(),
                    ..self.context
                },
                parent: Some(self.context.span_id),
                link: call,
                kind: Kind::Producer,
                name: "deliver".to_owned(),
                // The clock may have been set back meanwhile: a span must not end before it begins.
                began: (UNIX_EPOCH + since_1970).min(ended),
                ended,
                attributes,
                events: Vec::new(),
                is_error: false,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn tracer(share: f64, queue_max: usize) -> (Tracer, Receiver<Ended>, IntCounter) {
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let (tracer, ended) = Tracer::new(share, queue_max, dropped.clone());
        (tracer, ended, dropped)
    }

    fn traceparent(text: &str) -> Option<HeaderValue> {
        Some(HeaderValue::from_str(text).unwrap())
    }

    #[test]
    fn an_id_is_32_digits_and_never_the_same() {
        let (one, other) = (RequestId::new(), RequestId::new());
        assert_ne!(one, other);
        assert_eq!(HeaderValue::from(one), one.to_string());
        assert_eq!(one.to_string().len(), 32);
        assert!(
            one.to_string()
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        );
    }

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let context = Context::parse(PARENT.as_bytes()).unwrap();
        assert_eq!(
            context.trace_id.to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert_eq!(
            (context.span_id, context.is_sampled),
            (SpanId(0xb7ad_6b71_6920_3331), true)
        );
        for (good, is_sampled) in [
            (PARENT.replace("-01", "-00"), false),
            (PARENT.replace("-01", "-ff"), true),
            // A later version may say more.
            (PARENT.replace("00-", "cc-") + "-more-of-it", true),
            (PARENT.replace("00-", "cc-"), true),
        ] {
            assert_eq!(
                Context::parse(good.as_bytes()).map(|context| context.is_sampled),
                Some(is_sampled),
                "{good}"
            );
        }
        for bad in [
            String::new(),
            PARENT.to_uppercase(),
            PARENT.replace("00-", "ff-"),
            PARENT.to_owned() + "-more",
            PARENT.to_owned() + "0",
            PARENT.replace("-01", ""),
            PARENT.replace("-01", "-1"),
            PARENT.replace("-01", "-+1"),
            PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            PARENT.replace("b7ad", "b7ag"),
        ] {
            assert_eq!(Context::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn nothing_comes_of_a_tracer_that_is_off() {
        let mut span =
            Tracer::default().begin("a call", RequestId::new(), traceparent(PARENT).as_ref());
        span.note("something");
        assert_eq!((span.context(), span.origin().is_none()), (None, true));
    }

    #[test]
    fn the_share_that_was_asked_for_is_sampled() {
        for (share, expected) in [
            (0.0, 0..=0),
            (0.1, 800..=1_200),
            (0.5, 4_700..=5_300),
            (1.0, 10_000..=10_000),
        ] {
            let (tracer, ..) = tracer(share, 10_000);
            let sampled = (0..10_000).filter(|_| {
                tracer
                    .begin("a call", RequestId::new(), None)
                    .context()
                    .is_some()
            });
            let count = sampled.count();
            assert!(expected.contains(&count), "{count} at {share}");
        }
    }

    #[test]
    fn a_trace_from_within_is_continued_and_one_from_outside_is_linked() {
        let (tracer, mut ended, _) = tracer(0.0, 10);
        let parent = Context::parse(PARENT.as_bytes()).unwrap();
        drop(tracer.begin("a call", RequestId::new(), traceparent(PARENT).as_ref()));
        let span = ended.try_recv().unwrap();
        assert_eq!(
            (span.context.trace_id, span.parent, span.link),
            (parent.trace_id, Some(parent.span_id), None)
        );
        // Neither may a caller whose own span is not recorded turn recording on.
        drop(tracer.begin(
            "a call",
            RequestId::new(),
            traceparent(&PARENT.replace("-01", "-00")).as_ref(),
        ));
        drop(tracer.begin_untrusted("a request", RequestId::new(), traceparent(PARENT).as_ref()));
        assert!(ended.try_recv().is_err());
        let (tracer, mut ended, _) = self::tracer(1.0, 10);
        let id = RequestId::new();
        drop(tracer.begin_untrusted("a request", id, traceparent(PARENT).as_ref()));
        let span = ended.try_recv().unwrap();
        assert_eq!(
            (span.context.trace_id.to_string(), span.parent, span.link),
            (id.to_string(), None, Some(parent))
        );
    }

    #[test]
    fn a_delivery_is_part_of_its_callbacks_trace() {
        let (tracer, mut ended, _) = tracer(1.0, 10);
        let call = Context::parse(PARENT.as_bytes());
        let callback = tracer.begin_untrusted("callback", RequestId::new(), None);
        let (context, origin) = (callback.context().unwrap(), callback.origin().unwrap());
        drop(callback);
        for received_at_micros in [1_000_000, i64::MAX, -1] {
            origin.delivered(received_at_micros, "s1", Some("billing"), call);
        }
        assert_eq!(ended.try_recv().unwrap().context, context);
        while let Ok(delivery) = ended.try_recv() {
            assert_eq!(
                (delivery.context.trace_id, delivery.parent),
                (context.trace_id, Some(context.span_id))
            );
            assert_eq!(delivery.link, call);
            assert!(delivery.began <= delivery.ended);
            assert!(
                delivery
                    .attributes
                    .contains(&("blobcast.subscription_id", "s1".into()))
            );
        }
    }

    #[test]
    fn what_finds_no_room_is_dropped_and_counted() {
        let (tracer, mut ended, dropped) = tracer(1.0, 2);
        for _ in 0..5 {
            drop(tracer.begin("a call", RequestId::new(), None));
        }
        assert_eq!((dropped.get(), ended.len()), (3, 2));
        ended.close();
        drop(tracer.begin("a call", RequestId::new(), None));
        assert_eq!(dropped.get(), 4);
        let mut discarded = tracer.begin("a call", RequestId::new(), None);
        discarded.discard();
        drop(discarded);
        assert_eq!(dropped.get(), 4, "what is discarded is not lost");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_traceparent_or_none(bytes: Vec<u8>, text in "[0-9a-f-]{0,60}") {
            let _ = (Context::parse(&bytes), Context::parse(text.as_bytes()));
        }
    }
}
