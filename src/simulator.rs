//! The vendor in miniature: sends callbacks the way the vendor does, and worse.
//!
//! A [`Plan`] says how callbacks are mistreated: sent twice, swapped, contradicted, cut off, tried again. It turns them into
//! [`Delivery`]s, purely and repeatably; a [`Vendor`] carries those out over HTTP and tells what was acknowledged. `blobcast
//! trigger` and the tests are built on it. Never retries what was acknowledged, and knows nothing of the broker but its URL.

use std::{convert::Infallible, error::Error, io, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Request, Uri, body::Frame, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::StreamExt;

use crate::{
    causes::causes,
    vendor::sample::{Sample, SampleStatus, Shape},
};

/// The vendor tries a callback this often at most (tests/data/vendor/VENDOR.md, "Delivery").
pub const ATTEMPTS_MAX: usize = 5;
/// The vendor's patience with one attempt, where it does not say otherwise.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer that is read; a broker's answers have about a hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// One thing the vendor has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// Slug, for the URL.
    pub product: String,
    /// The task that the body names.
    pub task_id: String,
    /// The body, byte for byte.
    pub body: Bytes,
    /// What the body says, where it is one of [`Sample`]'s: only those can be contradicted.
    pub status: Option<SampleStatus>,
}

impl Callback {
    /// A callback with the product's documented body.
    pub fn sample(product: &str, task_id: &str, status: SampleStatus, at: Timestamp) -> Self {
        let body = Sample {
            product,
            shape: Shape::Documented,
            status,
            task_id,
            at,
        }
        .body();
        let body = Value::Object(body).to_string().into();
        Self {
            product: product.to_owned(),
            task_id: task_id.to_owned(),
            body,
            status: Some(status),
        }
    }

    /// The same task's other end: failed after completed and the reverse; none for what is not an end.
    fn contradiction(&self) -> Option<Self> {
        let opposite = match self.status? {
            SampleStatus::Completed => SampleStatus::Failed,
            SampleStatus::Failed | SampleStatus::Timeout | SampleStatus::ModerationBlocked => {
                SampleStatus::Completed
            }
            SampleStatus::Pending | SampleStatus::Processing => return None,
        };
        Some(Self::sample(
            &self.product,
            &self.task_id,
            opposite,
            Timestamp::UNIX_EPOCH,
        ))
    }
}

/// How callbacks are sent. The default sends each once, in order, and never again.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Decides what is left to chance; the same seed makes the same plan.
    pub seed: u64,
    /// Time between the starts of two deliveries.
    pub spacing: Duration,
    /// The waits before the second and each later attempt; the first [`ATTEMPTS_MAX`]` - 1` count. Empty: one attempt.
    pub retry_gaps: Vec<Duration>,
    /// How many more times each callback is sent although it was acknowledged.
    pub duplicates: usize,
    /// How many of a hundred terminal callbacks are followed by one that says the opposite.
    pub conflict_percent: u8,
    /// How many places a delivery may be moved forward or back.
    pub reorder_span: usize,
    /// How many of a hundred deliveries lose their connection in the middle of the first attempt's body.
    pub cut_percent: u8,
}

/// One callback on its way, with all its attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// What is sent.
    pub callback: Callback,
    /// When the first attempt begins, from the beginning of all.
    pub start: Duration,
    /// In order, at least one; the first that is answered 2xx is the last that is made.
    pub attempts: Vec<Attempt>,
}

/// One POST of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// How long to wait after the attempt before has failed.
    pub wait: Duration,
    /// After how many bytes of the body the connection is cut.
    pub cut_after: Option<usize>,
}

impl Plan {
    /// The deliveries, in the order in which they start.
    pub fn deliveries(&self, callbacks: &[Callback]) -> Vec<Delivery> {
        let mut dice = Dice(self.seed);
        let mut queue = Vec::new();
        for callback in callbacks {
            queue.extend(std::iter::repeat_n(callback.clone(), 1 + self.duplicates));
            let contradicted = dice.percent(self.conflict_percent);
            queue.extend(callback.contradiction().filter(|_| contradicted));
        }
        // Sorting by a place that is drawn at most so far behind one's own moves nobody further than that.
        let mut placed: Vec<_> = queue
            .into_iter()
            .enumerate()
            .map(|(place, callback)| (place + dice.below(self.reorder_span + 1), callback))
            .collect();
        placed.sort_by_key(|(place, _)| *place);
        let spacing = |place: usize| {
            self.spacing
                .saturating_mul(u32::try_from(place).unwrap_or(u32::MAX))
        };
        let delivery = |(place, (_, callback)): (usize, (usize, Callback))| {
            let cut = dice.percent(self.cut_percent) && callback.body.len() > 1;
            let cut_after = cut.then(|| 1 + dice.below(callback.body.len() - 1));
            Delivery {
                start: spacing(place),
                attempts: self.attempts(cut_after),
                callback,
            }
        };
        placed.into_iter().enumerate().map(delivery).collect()
    }

    fn attempts(&self, cut_after: Option<usize>) -> Vec<Attempt> {
        let first = Attempt {
            wait: Duration::ZERO,
            cut_after,
        };
        let later = self.retry_gaps.iter().map(|&wait| Attempt {
            wait,
            cut_after: None,
        });
        std::iter::once(first)
            .chain(later)
            .take(ATTEMPTS_MAX)
            .collect()
    }
}

/// The waits between the vendor's attempts, by product (tests/data/vendor/VENDOR.md, "Delivery").
pub fn retry_gaps(product: &str) -> Vec<Duration> {
    let seconds: &[u64] = match product {
        "gemini" => &[30, 30],
        "sora" => &[30, 60, 120, 240],
        _ if product.starts_with("kling") => &[30, 60, 120, 240],
        _ => &[30, 30, 30, 30],
    };
    seconds
        .iter()
        .map(|&seconds| Duration::from_secs(seconds))
        .collect()
}

/// The URL that a product's callbacks go to.
///
/// A base without a path gets `/webhook/{product}`; one with a path is a whole callback URL and stays as it is. Its query is
/// kept, and the labels are added to it.
pub fn callback_url(base: &Uri, product: &str, labels: &[(String, String)]) -> Uri {
    match base.path() {
        "" | "/" => with_target(
            base,
            &format!("/webhook/{}", percent_encoded(product)),
            labels,
        ),
        path => with_target(base, path, labels),
    }
}

/// The URL with labels added to its query.
pub fn with_labels(url: &Uri, labels: &[(String, String)]) -> Uri {
    with_target(url, url.path(), labels)
}

/// Labels as in the query of a URL, percent-encoded: `ref=42&team=ads`.
pub fn labels_query(labels: &[(String, String)]) -> String {
    let pair = |(key, value): &(String, String)| {
        format!("{}={}", percent_encoded(key), percent_encoded(value))
    };
    labels.iter().map(pair).collect::<Vec<_>>().join("&")
}

fn with_target(url: &Uri, path: &str, labels: &[(String, String)]) -> Uri {
    let query: Vec<_> = url
        .query()
        .map(str::to_owned)
        .into_iter()
        .chain([labels_query(labels)])
        .collect();
    let query = query
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("&");
    let target = if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    };
    let mut parts = url.clone().into_parts();
    parts.path_and_query = Some(
        target
            .parse()
            .expect("a valid path and percent-encoded pairs make a valid target"),
    );
    Uri::from_parts(parts).expect("only the target of a whole URI was replaced")
}

// What RFC 3986 calls unreserved stays; everything else is safe only when encoded.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// What became of one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryOutcome {
    /// The callback's product.
    pub product: String,
    /// The callback's task.
    pub task_id: String,
    /// How many attempts were made.
    pub attempts: usize,
    /// What the last of them was answered, or why it was not.
    pub answer: Result<Answer, String>,
}

/// One HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub http_status: u16,
    /// Body, cut after 64 KiB.
    pub body: String,
}

/// A callback that the broker has taken: it must never be lost from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The callback's task.
    pub task_id: String,
    /// The callback's product.
    pub product: String,
    /// The event it became; none if it went to quarantine.
    pub event_id: Option<String>,
    /// The log already had it.
    pub duplicate: bool,
    /// 200, or 202 for the quarantine.
    pub http_status: u16,
}

impl DeliveryOutcome {
    /// The acknowledgement, if the callback was answered 2xx.
    pub fn acknowledged(&self) -> Option<Acknowledgement> {
        let answer = self
            .answer
            .as_ref()
            .ok()
            .filter(|answer| (200..300).contains(&answer.http_status))?;
        let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        Some(Acknowledgement {
            task_id: self.task_id.clone(),
            product: self.product.clone(),
            event_id: body["event_id"].as_str().map(str::to_owned),
            duplicate: body["duplicate"].as_bool().unwrap_or_default(),
            http_status: answer.http_status,
        })
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Opens connections to http:// and https:// URLs.
pub type Connector = HttpsConnector<HttpConnector>;

/// A connector for `url`; whom it trusts is the system's to say, or `SSL_CERT_FILE`'s.
pub fn connector(url: &Uri) -> Connector {
    // Reading whom the system trusts takes a while, and is of no use where nobody has to be trusted.
    let roots = || HttpsConnectorBuilder::new().with_native_roots().ok();
    let builder = (url.scheme_str() == Some("https"))
        .then(roots)
        .flatten()
        .unwrap_or_else(|| {
            let nobody = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
            HttpsConnectorBuilder::new().with_tls_config(nobody.with_no_client_auth())
        });
    builder.https_or_http().enable_http1().build()
}

/// Carries deliveries out.
#[derive(Clone, Debug)]
pub struct Vendor {
    client: Client<Connector, Body>,
    base: Uri,
    labels: Vec<(String, String)>,
    in_flight_max: usize,
}

impl Vendor {
    /// Sends to `base`, see [`callback_url`]; one delivery after the other unless `in_flight_max` is more than 1.
    pub fn new(base: Uri, labels: Vec<(String, String)>, in_flight_max: usize) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector(&base)),
            base,
            labels,
            in_flight_max,
        }
    }

    /// Makes all deliveries and returns what was acknowledged, in the order of the answers.
    pub async fn send(&self, deliveries: Vec<Delivery>) -> Vec<Acknowledgement> {
        let mut acknowledged = Vec::new();
        let collect = |outcome: &DeliveryOutcome| {
            acknowledged.extend(outcome.acknowledged());
            Ok::<(), Infallible>(())
        };
        let Ok(()) = self.send_each(deliveries, collect).await;
        acknowledged
    }

    /// Makes all deliveries and tells of each as it ends; an error of `tell` abandons the rest.
    pub async fn send_each<E>(
        &self,
        deliveries: Vec<Delivery>,
        mut tell: impl FnMut(&DeliveryOutcome) -> Result<(), E>,
    ) -> Result<(), E> {
        let began = Instant::now();
        let mut in_flight = JoinSet::new();
        for delivery in deliveries {
            while in_flight.len() >= self.in_flight_max.max(1) {
                tell_next(&mut in_flight, &mut tell).await?;
            }
            // Answers are told while the next delivery waits for its time.
            let start = began + delivery.start;
            while Instant::now() < start {
                tokio::select! {
                    () = sleep_until(start) => break,
                    told = tell_next(&mut in_flight, &mut tell), if !in_flight.is_empty() => told?,
                }
            }
            in_flight.spawn(self.clone().deliver(delivery));
        }
        while !in_flight.is_empty() {
            tell_next(&mut in_flight, &mut tell).await?;
        }
        Ok(())
    }

    async fn deliver(self, delivery: Delivery) -> DeliveryOutcome {
        let Delivery {
            callback, attempts, ..
        } = delivery;
        let url = callback_url(&self.base, &callback.product, &self.labels);
        let mut made = 0;
        let mut answer = Err("no attempt was made".to_owned());
        for attempt in attempts {
            sleep(attempt.wait).await;
            made += 1;
            answer = match timeout(
                ATTEMPT_TIMEOUT,
                self.post(&url, callback.body.clone(), attempt.cut_after),
            )
            .await
            {
                Ok(answered) => answered.map_err(|error| causes(error.as_ref())),
                Err(_) => Err(format!("no answer within {} s", ATTEMPT_TIMEOUT.as_secs())),
            };
            if answer
                .as_ref()
                .is_ok_and(|answer| (200..300).contains(&answer.http_status))
            {
                break;
            }
        }
        DeliveryOutcome {
            product: callback.product,
            task_id: callback.task_id,
            attempts: made,
            answer,
        }
    }

    async fn post(
        &self,
        url: &Uri,
        body: Bytes,
        cut_after: Option<usize>,
    ) -> Result<Answer, Box<dyn Error + Send + Sync>> {
        let request = Request::post(url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            // The whole length, also of a body that will be cut: so the broker knows that something is missing.
            .header(header::CONTENT_LENGTH, body.len());
        let body = match cut_after {
            Some(bytes) => cut_body(body.slice(..bytes.min(body.len()))),
            None => Full::new(body)
                .map_err(|never: Infallible| match never {})
                .boxed_unsync(),
        };
        let answer = self.client.request(request.body(body)?).await?;
        let http_status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await?
            .to_bytes();
        Ok(Answer {
            http_status,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}

async fn tell_next<E>(
    in_flight: &mut JoinSet<DeliveryOutcome>,
    tell: &mut impl FnMut(&DeliveryOutcome) -> Result<(), E>,
) -> Result<(), E> {
    match in_flight.join_next().await {
        Some(Ok(outcome)) => tell(&outcome),
        // Nobody aborts deliveries, so a failed join is a panic of ours; it goes on where it can be seen.
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        None => Ok(()),
    }
}

/// A body that breaks off; the client then closes the connection.
fn cut_body(part: Bytes) -> Body {
    let pieces = [
        Ok(Frame::data(part)),
        Err(io::Error::other("cut by the plan")),
    ];
    let pieces = tokio_stream::iter(pieces).then(|piece| async {
        if piece.is_err() {
            // Lets the client write the part before it hears that there is no more.
            tokio::task::yield_now().await;
        }
        piece
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// SplitMix64: a generator of ten lines that is the same everywhere, which spares a dependency.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < usize::from(percent)
    }
}

#[cfg(test)]
mod tests;
