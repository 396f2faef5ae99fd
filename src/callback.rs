//! One callback, read: its URL and its body become a draft of an event, or a reason for the quarantine. Pure.
//!
//! Shared by the HTTP front, which sees callbacks for the first time, and by the release from quarantine, which reads them
//! again, perhaps with an operator's corrections.

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    credentials::SECRET_PARAMETERS,
    event::{
        Event, LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Labels, Product, ProductError, TaskId,
        Verification, labels_fit,
    },
    store::Draft,
    vendor::{self, Unreadable},
    wire,
};

/// A callback as it arrived.
#[derive(Clone, Debug)]
pub struct Callback {
    /// The product segment of the path as it was sent, still percent-encoded; `None` if the URL has none.
    pub product: Option<String>,
    /// The query string as it was sent; empty if there was none.
    pub query: String,
    /// The body, byte for byte.
    pub body: Bytes,
    /// When it was complete.
    pub received_at: Timestamp,
    /// How it was authenticated.
    pub verification: Verification,
}

/// What an operator knows better than the callback.
#[derive(Clone, Debug, Default)]
pub struct Corrections {
    /// Instead of the URL's product.
    pub product: Option<Product>,
    /// Instead of the body's task id.
    pub task_id: Option<TaskId>,
    /// Without the URL's labels.
    pub drop_labels: bool,
}

/// Why a callback belongs in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The body cannot be understood.
    #[error(transparent)]
    Body(#[from] Unreadable),
    /// The URL's product is not a slug.
    #[error("the URL's product is malformed: {0}")]
    Product(#[from] ProductError),
    /// The URL has more or longer labels than an event may have.
    #[error(
        "the URL has more than {LABELS_MAX} labels, or one with a key of not 1 to {LABEL_KEY_CHARS_MAX} or a value of more than {LABEL_VALUE_CHARS_MAX} characters"
    )]
    Labels,
    /// The task already has as many events as one may have.
    #[error(
        "the task has as many events of this product that are not terminal as one may have: release it, if it is wanted all the same"
    )]
    TooManyEvents,
}

impl Rejection {
    /// Stable word for answers, metrics and the quarantine.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Body(unreadable) => unreadable.reason(),
            Self::Product(_) => "bad_product",
            Self::Labels => "bad_labels",
            Self::TooManyEvents => "too_many_events",
        }
    }
}

impl Callback {
    /// Makes the event that the callback stands for.
    pub fn draft(&self, corrections: &Corrections) -> Result<Draft, Rejection> {
        let url_product = match (&corrections.product, &self.product) {
            (Some(product), _) => Some(product.clone()),
            (None, Some(segment)) => Some(Product::parse(segment)?),
            (None, None) => None,
        };
        let labels = if corrections.drop_labels { Labels::new() } else { self.labels()? };
        let report = match &corrections.task_id {
            Some(task_id) => vendor::read_as(&self.body, task_id.clone())?,
            None => vendor::read(&self.body)?,
        };
        let event = Event {
            event_id: Uuid::now_v7(),
            product_inferred: url_product.is_none(),
            product: url_product.unwrap_or_else(|| report.inferred_product.clone()),
            report,
            received_at: self.received_at,
            verification: self.verification,
            labels,
        };
        Ok(Draft {
            event_id: event.event_id,
            product: event.product.clone(),
            task_id: event.report.task_id.clone(),
            status: event.report.status,
            fingerprint: event.report.fingerprint(),
            received_at_micros: self.received_at.as_microsecond(),
            labels: event.labels.clone(),
            event: wire::encode_event(event),
            raw: self.body.clone(),
            releases: None,
            conceals_duplicates: false,
            origin: None,
        })
    }

    /// Path and query without what authenticates: fit to be kept and shown.
    pub fn target(&self) -> String {
        let mut target = String::from("/webhook");
        if let Some(product) = &self.product {
            target.push('/');
            target.push_str(product);
        }
        let is_secret = |pair: &str| parameters(pair).any(|(key, _)| SECRET_PARAMETERS.contains(&key.as_str()));
        let kept: Vec<_> = self.query.split('&').filter(|pair| !pair.is_empty() && !is_secret(pair)).collect();
        if !kept.is_empty() {
            target.push('?');
            target.push_str(&kept.join("&"));
        }
        target
    }

    /// A callback from [`Callback::target`] and what else the quarantine has kept.
    pub fn from_target(target: &str, body: Bytes, received_at: Timestamp, verification: Verification) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let product = path.strip_prefix("/webhook/").map(str::to_owned);
        Self { product, query: query.to_owned(), body, received_at, verification }
    }

    /// All query parameters but the secret ones; of equal keys the last counts.
    fn labels(&self) -> Result<Labels, Rejection> {
        let labels: Labels =
            parameters(&self.query).filter(|(key, _)| !SECRET_PARAMETERS.contains(&key.as_str())).collect();
        if labels_fit(&labels) { Ok(labels) } else { Err(Rejection::Labels) }
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(query.as_bytes()).map(|(key, value)| (key.into_owned(), value.into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &[u8] = br#"{"generation_id":"t1","status":"completed","video_url":"https://x/v.mp4"}"#;

    fn callback(product: Option<&str>, query: &str) -> Callback {
        Callback {
            product: product.map(str::to_owned),
            query: query.to_owned(),
            body: Bytes::from_static(BODY),
            received_at: Timestamp::UNIX_EPOCH,
            verification: Verification::Unverified,
        }
    }

    fn reason(callback: &Callback) -> &'static str {
        callback.draft(&Corrections::default()).unwrap_err().reason()
    }

    #[test]
    fn query_parameters_become_labels_and_secrets_do_not() {
        let draft = callback(Some("veo"), "team=ads&token=s3cret&ref=order%2042&sig=x&exp=1&kid=k&team=film");
        let draft = draft.draft(&Corrections::default()).unwrap();
        let labels: Vec<_> = draft.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(labels, [("ref", "order 42"), ("team", "film")]);
    }

    #[test]
    fn the_kept_target_has_no_secrets_even_percent_encoded() {
        let target = callback(Some("veo"), "team=ads&token=s3cret&%74oken=s3cret&sig=x&&ref=a%26b").target();
        assert_eq!(target, "/webhook/veo?team=ads&ref=a%26b");
        let again = Callback::from_target(&target, Bytes::new(), Timestamp::UNIX_EPOCH, Verification::UrlToken);
        assert_eq!((again.target(), again.product.as_deref()), (target, Some("veo")));
    }

    #[test]
    fn labels_fit_up_to_their_limits_and_not_beyond() {
        let query = |count: usize, key: usize, value: usize| {
            let label = |n| format!("{n:a>key$}={}", "é".repeat(value));
            (0..count).map(label).collect::<Vec<_>>().join("&")
        };
        for (count, key, value) in [(16, 64, 256), (1, 1, 0), (0, 1, 0)] {
            let draft = callback(None, &query(count, key, value)).draft(&Corrections::default()).unwrap();
            assert_eq!(draft.labels.len(), count);
        }
        for (count, key, value) in [(17, 64, 256), (1, 65, 0), (1, 1, 257)] {
            assert_eq!(reason(&callback(None, &query(count, key, value))), "bad_labels");
        }
        assert_eq!(reason(&callback(None, "=x")), "bad_labels");
    }

    #[test]
    fn the_event_of_the_largest_body_is_one_that_every_client_takes() {
        // What takes most bytes for its own: a code that is told as message, too, of characters that grow on their way,
        // beside details as large as may be.
        const BODY_BYTES: usize = 1024 * 1024;
        let numbers = ["1"; 87_000].join(",");
        for part in ["A", "é", r"\u00e9", r"\ud83d", r"\ud83d\ude00", r"\n"] {
            let body = |code: &str| {
                format!(r#"{{"id":"t","status":"failed","error":{{"code":"{code}","details":{{"a":[{numbers}]}}}}}}"#)
            };
            let room = BODY_BYTES - body("").len();
            let mut callback = callback(Some("veo"), "");
            callback.body = body(&part.repeat(room / part.len())).into();
            let draft = callback.draft(&Corrections::default()).unwrap();
            let bytes = draft.event.len() + draft.raw.len();
            assert!(draft.event.len() > 900_000 && bytes < 4 * 1024 * 1024 - 64 * 1024, "{part}: {bytes} bytes");
        }
    }

    #[test]
    fn an_operator_can_correct_what_the_url_or_the_body_got_wrong() {
        let mut wrong = callback(Some("Veo!"), "=x");
        wrong.body = Bytes::from_static(br#"{"status":"completed"}"#);
        assert_eq!(reason(&wrong), "bad_product");
        let corrections = Corrections {
            product: Some(Product::parse("veo").unwrap()),
            task_id: Some(TaskId::parse("t9").unwrap()),
            drop_labels: true,
        };
        let draft = wrong.draft(&corrections).unwrap();
        assert_eq!((draft.product.as_str(), draft.task_id.as_str()), ("veo", "t9"));
    }

    proptest! {
        #[test]
        fn any_url_and_body_are_a_draft_or_a_reason(product: Option<String>, query: String, body: Vec<u8>) {
            let mut callback = callback(product.as_deref(), &query);
            callback.body = body.into();
            if let Err(rejection) = callback.draft(&Corrections::default()) {
                prop_assert!(!rejection.reason().is_empty());
            }
            let _ = callback.target();
        }
    }
}
