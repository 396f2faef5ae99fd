//! Sending deliveries over HTTP: attempts, time-outs, broken connections, and the answers.

use std::{
    convert::Infallible,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Request, Uri, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    bodies::{self, Body},
    plan::{Attempt, VendorCallback, VendorDelivery},
    url::callback_url,
};
use crate::causes::causes;

/// The time after which the vendor gives up an attempt, by product (tests/data/vendor/VENDOR.md, "Delivery").
fn attempt_timeout(product: &str) -> Duration {
    Duration::from_secs(if product == "gemini" { 5 } else { 30 })
}

/// Longest answer that is read. The broker's answers have about a hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The outcome of one delivery after its last attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryOutcome {
    /// The product of the callback, as in its URL.
    pub product: String,
    /// The task that the callback is about.
    pub task_id: String,
    /// The number of attempts that were made.
    pub attempts: usize,
    /// The answer to the last attempt, or the error of a failed one.
    pub answer: Result<Answer, String>,
    /// The brokers that another one was asked after, with why; empty where there is only one.
    pub passed: Vec<(Uri, String)>,
}

/// One HTTP answer of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status code.
    pub http_status: u16,
    /// The body as text, at most 64 KiB.
    pub body: String,
}

impl Answer {
    /// True if the status is 2xx, by which the vendor knows that a callback has arrived.
    pub(super) fn is_taken(&self) -> bool {
        (200..300).contains(&self.http_status)
    }

    /// True if a broker, or a gateway before it, says that it is not available.
    fn is_unavailable(&self) -> bool {
        (502..=504).contains(&self.http_status)
    }
}

/// The broker's acknowledgement of a callback, which must not be lost from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The task that the callback is about.
    pub task_id: String,
    /// The product of the callback, as in its URL.
    pub product: String,
    /// The id of the event; `None` if the callback went to quarantine.
    pub event_id: Option<String>,
    /// True if the log already had the event.
    pub duplicate: bool,
    /// 200, or 202 for a quarantined callback.
    pub http_status: u16,
}

impl DeliveryOutcome {
    /// The acknowledgement, if the callback was answered 2xx.
    pub fn acknowledged(&self) -> Option<Acknowledgement> {
        let answer = self
            .answer
            .as_ref()
            .ok()
            .filter(|answer| answer.is_taken())?;
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

/// Opens connections to http:// and https:// URLs.
pub type Connector = HttpsConnector<HttpConnector>;

/// A connector for `url`. It trusts the root certificates of the system, or those in `SSL_CERT_FILE`.
pub fn connector(url: &Uri) -> Connector {
    // Only for https: reading the system's root certificates takes a while.
    let roots = || HttpsConnectorBuilder::new().with_native_roots().ok();
    let builder = (url.scheme_str() == Some("https"))
        .then(roots)
        .flatten()
        .unwrap_or_else(|| {
            let no_roots = ClientConfig::builder().with_root_certificates(RootCertStore::empty());
            HttpsConnectorBuilder::new().with_tls_config(no_roots.with_no_client_auth())
        });
    builder.https_or_http().enable_http1().build()
}

/// Makes single attempts at callbacks.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    client: Client<Connector, Body>,
}

/// Sends deliveries to one broker, or to a cluster of several, as through a load balancer.
#[derive(Clone, Debug)]
pub struct Vendor {
    sender: Sender,
    bases: Arc<[Uri]>,
    /// Counts how often another broker's turn came.
    turn: Arc<AtomicUsize>,
    labels: Vec<(String, String)>,
    in_flight_max: usize,
}

impl Sender {
    /// A sender to URLs of the scheme of this one.
    pub(super) fn new(url: &Uri) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector(url)),
        }
    }

    /// POSTs a body once, within the product's time. An error is in words for people.
    pub(super) async fn attempt(
        &self,
        product: &str,
        url: &Uri,
        body: Bytes,
        cut_after: Option<usize>,
    ) -> Result<Answer, String> {
        let within = attempt_timeout(product);
        match timeout(within, self.post(url, body, cut_after)).await {
            Ok(answered) => answered.map_err(|error| causes(error.as_ref())),
            Err(_) => Err(format!("no answer within {} s", within.as_secs())),
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
            // The full length even if the body will be cut, so that the broker knows that a part is missing.
            .header(header::CONTENT_LENGTH, body.len());
        let body = match cut_after {
            Some(bytes) => bodies::cut(body.slice(..bytes.min(body.len()))),
            None => bodies::whole(body),
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

impl Vendor {
    /// A vendor that sends to `base` (see [`callback_url`]), with at most `in_flight_max` deliveries at the same time, at least one.
    pub fn new(base: Uri, labels: Vec<(String, String)>, in_flight_max: usize) -> Self {
        Self::of_several(vec![base], labels, in_flight_max)
    }

    /// The same with several brokers, at least one. A callback goes to the one that answered last; if it is away, or answers 502 to 504,
    /// to each of the others in turn. A repetition is a duplicate there, if it has been taken already.
    ///
    /// # Panics
    ///
    /// If there is no broker.
    pub fn of_several(
        bases: Vec<Uri>,
        labels: Vec<(String, String)>,
        in_flight_max: usize,
    ) -> Self {
        let with_roots = |base: &&Uri| base.scheme_str() == Some("https");
        Self {
            sender: Sender::new(bases.iter().find(with_roots).unwrap_or(&bases[0])),
            bases: bases.into(),
            turn: Arc::default(),
            labels,
            in_flight_max,
        }
    }

    /// Sends all deliveries and returns the acknowledgements, in the order of the answers.
    pub async fn send(&self, deliveries: Vec<VendorDelivery>) -> Vec<Acknowledgement> {
        let mut acknowledged = Vec::new();
        let collect = |outcome: &DeliveryOutcome| {
            acknowledged.extend(outcome.acknowledged());
            Ok::<(), Infallible>(())
        };
        let Ok(()) = self.send_each(deliveries, collect).await;
        acknowledged
    }

    /// Sends all deliveries and calls `report` with each outcome. An error of `report` abandons the rest.
    pub async fn send_each<E>(
        &self,
        deliveries: Vec<VendorDelivery>,
        mut report: impl FnMut(&DeliveryOutcome) -> Result<(), E>,
    ) -> Result<(), E> {
        let began = Instant::now();
        let mut in_flight = JoinSet::new();
        for delivery in deliveries {
            while in_flight.len() >= self.in_flight_max.max(1) {
                report_next(&mut in_flight, &mut report).await?;
            }

            // Outcomes are reported while the next delivery waits for its time.
            let start = began + delivery.start;
            while Instant::now() < start {
                tokio::select! {
                    () = sleep_until(start) => break,
                    reported = report_next(&mut in_flight, &mut report), if !in_flight.is_empty() => reported?,
                }
            }
            in_flight.spawn(self.clone().deliver(delivery));
        }

        while !in_flight.is_empty() {
            report_next(&mut in_flight, &mut report).await?;
        }
        Ok(())
    }

    async fn deliver(self, delivery: VendorDelivery) -> DeliveryOutcome {
        let VendorDelivery {
            callback, attempts, ..
        } = delivery;
        let mut made = 0;
        let mut answer = Err("no attempt was made".to_owned());
        let mut passed = Vec::new();
        for attempt in attempts {
            sleep(attempt.wait).await;
            made += 1;
            answer = self.attempt(&callback, attempt, &mut passed).await;
            if answer.as_ref().is_ok_and(Answer::is_taken) {
                break;
            }
        }

        DeliveryOutcome {
            product: callback.product,
            task_id: callback.task_id,
            attempts: made,
            answer,
            passed,
        }
    }

    /// One attempt, at one broker after the other until one answers.
    async fn attempt(
        &self,
        callback: &VendorCallback,
        attempt: Attempt,
        passed: &mut Vec<(Uri, String)>,
    ) -> Result<Answer, String> {
        let mut left = self.bases.len();
        let mut turn = self.turn.load(Ordering::Relaxed);
        loop {
            let base = &self.bases[turn % self.bases.len()];
            let url = callback_url(base, &callback.product, &self.labels);
            let (product, body) = (&callback.product, callback.body.clone());
            let answer = self
                .sender
                .attempt(product, &url, body, attempt.cut_after)
                .await;
            left -= 1;
            let why = match &answer {
                _ if left == 0 || attempt.cut_after.is_some() => return answer,
                Ok(answer) if answer.is_unavailable() => format!(
                    "{} {}",
                    answer.http_status,
                    answer.body.lines().next().unwrap_or_default()
                ),
                Ok(_) => return answer,
                Err(error) => error.clone(),
            };
            passed.push((base.clone(), why));
            // Deliveries that fail at the same broker together turn to the next one once.
            let next = turn + 1;
            let _ = self
                .turn
                .compare_exchange(turn, next, Ordering::Relaxed, Ordering::Relaxed);
            turn = next;
        }
    }
}

async fn report_next<E>(
    in_flight: &mut JoinSet<DeliveryOutcome>,
    report: &mut impl FnMut(&DeliveryOutcome) -> Result<(), E>,
) -> Result<(), E> {
    match in_flight.join_next().await {
        Some(Ok(outcome)) => report(&outcome),
        // Deliveries are not aborted, so a failed join is a panic, which continues here.
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        None => Ok(()),
    }
}
