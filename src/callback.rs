//! One callback, read: its URL and its body become a draft of an event, or a reason for the quarantine. Pure.
//!
//! Shared by the HTTP front, which sees callbacks for the first time, and by the release from quarantine, which reads them
//! again, perhaps with an operator's corrections.

mod path;

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    credentials::{Binding, Products, SECRET_PARAMETERS},
    event::{
        Event, LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Labels, Product,
        ProductError, TaskId, TaskStatus, Verification, labels_fit,
    },
    store::{Bound, Draft},
    vendor::{self, Overrides, StatusWord, Unreadable},
    wire,
};

pub use self::path::{WebhookPath, shown as shown_path};

/// A callback as it arrived.
#[derive(Clone, Debug)]
pub struct Callback {
    /// The product as the path names it, still percent-encoded but for slashes, which are `-`; `None` if it names none.
    pub product: Option<String>,
    /// The path as it came, if it is only a near miss of a webhook's: see [`WebhookPath`].
    pub near_miss: Option<String>,
    /// The query string as it was sent; empty if there was none.
    pub query: String,
    /// The body, byte for byte.
    pub body: Bytes,
    /// When it was complete.
    pub received_at: Timestamp,
    /// How it was authenticated.
    pub verification: Verification,
    /// Kind and name of the credential it came by; empty without any.
    pub credential: String,
    /// What that is bound to.
    pub bound: Option<Arc<Binding>>,
}

/// Most events that one quarantined callback can become: a page of a listing.
pub const RELEASED_EVENTS_MAX: usize = 256;
/// Most bytes that the events of one callback may take together, bodies included, if there are several: what the store commits
/// at once.
const RELEASED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What an operator knows better than the callback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corrections {
    /// Instead of the URL's product.
    pub product: Option<Product>,
    /// Instead of the body's task id.
    pub task_id: Option<TaskId>,
    /// Instead of the body's status.
    pub status: Option<StatusWord>,
    /// Read instead of the callback's body, which stays the event's raw body.
    pub body: Option<Bytes>,
    /// Without the URL's labels.
    pub drop_labels: bool,
}

/// Why a callback belongs in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The body cannot be understood.
    #[error(transparent)]
    Body(#[from] Unreadable),
    /// The URL's path is nearly a webhook's.
    #[error(
        "the URL's path is neither /webhook nor /webhook/PRODUCT, but close: correct the callback URL"
    )]
    Path,
    /// The URL's product is not a slug.
    #[error("the URL's product is malformed: {0}")]
    Product(#[from] ProductError),
    /// The credential is bound to other products.
    #[error("the credential is bound to other products than {0}")]
    OtherProduct(Product),
    /// The URL names no product, and the body is taken for one of others than the credential is bound to.
    #[error(
        "the URL names no product, and the credential is bound to several, of which {0}, inferred from the body, is none"
    )]
    NoProduct(Product),
    /// The URL has more or longer labels than an event may have.
    #[error(
        "the URL has, with those that its credential is bound to, more than {LABELS_MAX} labels, or one with a key of not 1 to {LABEL_KEY_CHARS_MAX} or a value of more than {LABEL_VALUE_CHARS_MAX} characters"
    )]
    Labels,
    /// The task already has as many events as one may have.
    #[error("the task has as many events of this product that are not terminal as one may have")]
    TooManyEvents,
}

impl Rejection {
    /// Stable word for answers, metrics and the quarantine.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Body(unreadable) => unreadable.reason(),
            Self::Path => "bad_path",
            Self::Product(_) => "bad_product",
            Self::OtherProduct(_) => "product_denied",
            Self::NoProduct(_) => "no_product",
            Self::Labels => "bad_labels",
            Self::TooManyEvents => "too_many_events",
        }
    }

    /// What makes it an event all the same: the way to release it, by the fields of the request and the flags of the command line.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Body(Unreadable::Array) => {
                "release it as it is, and each object in it becomes an event"
            }
            Self::Body(
                Unreadable::NotJson | Unreadable::TooDeeplyNested | Unreadable::NotAnObject,
            ) => "release it with a repaired `body` (--body FILE)",
            Self::Body(Unreadable::NoTaskId | Unreadable::BadTaskId) => {
                "release it with its `task_id` (--task-id)"
            }
            Self::Body(Unreadable::NoStatus) => "release it with its `status` (--status)",
            Self::Path | Self::Product(_) | Self::OtherProduct(_) | Self::NoProduct(_) => {
                "release it with a `product` (--product)"
            }
            Self::Labels => "release it without its labels: `drop_labels` (--drop-labels)",
            Self::TooManyEvents => "release it as it is, if it is wanted all the same",
        }
    }
}

/// Why a callback stays in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreleasable {
    /// It still cannot be understood.
    #[error("{0}; {remedy}", remedy = .0.remedy())]
    Rejected(#[from] Rejection),
    /// Nor can one of the objects in its body, counted from 0.
    #[error("element {element} of the body: {rejection}; {remedy}", remedy = remedy_of_element(rejection))]
    Element {
        /// Which.
        element: usize,
        /// What is wrong with it.
        rejection: Rejection,
    },
    /// One task id for several events.
    #[error(
        "the body has {count} elements, and `task_id` names one task: leave it out, or repair the `body` (--body FILE)"
    )]
    OneTaskId {
        /// How many there are.
        count: usize,
    },
    /// There are too many of them.
    #[error(
        "the body has {count} elements, and one callback becomes at most {RELEASED_EVENTS_MAX} events: repair the `body` (--body FILE)"
    )]
    TooManyElements {
        /// How many there are.
        count: usize,
    },
    /// They are too large.
    #[error(
        "its {count} events would take {bytes} bytes, and those of one callback have at most {RELEASED_BYTES_MAX}: repair the `body` (--body FILE)"
    )]
    TooLarge {
        /// How many events.
        count: usize,
        /// Bytes of all of them.
        bytes: usize,
    },
}

impl Unreleasable {
    /// Stable word, as of a [`Rejection`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) | Self::Element { rejection, .. } => rejection.reason(),
            Self::OneTaskId { .. } | Self::TooManyElements { .. } | Self::TooLarge { .. } => {
                "not_an_object"
            }
        }
    }
}

/// Of an array a task id would be that of all elements; a status may be.
fn remedy_of_element(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::Body(Unreadable::NoStatus) => {
            "release it with one `status` for all of them (--status)"
        }
        _ => "release it with a repaired `body` (--body FILE)",
    }
}

impl Callback {
    /// Makes the event that the callback stands for.
    pub fn draft(&self, corrections: &Corrections) -> Result<Draft, Rejection> {
        self.draft_of(
            corrections.body.as_ref().unwrap_or(&self.body),
            &self.body,
            corrections,
        )
    }

    /// Makes what a callback is released as: one event, or one of each element if the body is an array. The raw body of such an
    /// event is its element alone, unless the body was repaired.
    pub fn released(&self, corrections: &Corrections) -> Result<Vec<Draft>, Unreleasable> {
        let read = corrections.body.as_ref().unwrap_or(&self.body);
        let Some((elements, count)) = vendor::elements(read, RELEASED_EVENTS_MAX) else {
            return Ok(vec![self.draft(corrections)?]);
        };

        if count > RELEASED_EVENTS_MAX {
            return Err(Unreleasable::TooManyElements { count });
        }
        if count > 1 && corrections.task_id.is_some() {
            return Err(Unreleasable::OneTaskId { count });
        }
        let draft = |(element, read): (usize, &Bytes)| {
            let raw = if corrections.body.is_some() {
                &self.body
            } else {
                read
            };
            let draft = self.draft_of(read, raw, corrections);
            draft.map_err(|rejection| match rejection {
                Rejection::Body(_) => Unreleasable::Element { element, rejection },
                of_url => of_url.into(),
            })
        };
        let drafts: Vec<_> = elements
            .iter()
            .enumerate()
            .map(draft)
            .collect::<Result<_, _>>()?;
        let bytes = drafts
            .iter()
            .map(|draft| draft.event.len() + draft.raw.len())
            .sum();
        if count > 1 && bytes > RELEASED_BYTES_MAX {
            return Err(Unreleasable::TooLarge { count, bytes });
        }
        Ok(drafts)
    }

    fn draft_of(
        &self,
        read: &[u8],
        raw: &Bytes,
        corrections: &Corrections,
    ) -> Result<Draft, Rejection> {
        let url_product = match (&corrections.product, &self.product) {
            (Some(product), _) => Some(product.clone()),
            (None, _) if self.near_miss.is_some() => return Err(Rejection::Path),
            (None, Some(segment)) => Some(Product::parse(segment)?),
            (None, None) => None,
        };
        let labels = self.labels(corrections.drop_labels)?;
        let overrides = Overrides {
            task_id: corrections.task_id.clone(),
            status: corrections.status.clone(),
        };
        let report = vendor::read_as(read, &overrides)?;
        let product_inferred = url_product.is_none();
        let product = match url_product {
            // What an operator names is the operator's to say.
            Some(product) if corrections.product.is_none() && !self.may_be_of(&product) => {
                return Err(Rejection::OtherProduct(product));
            }
            Some(product) => product,
            None => self.inferred(&report.inferred_product)?,
        };
        let event = Event {
            event_id: Uuid::now_v7(),
            product_inferred,
            product,
            report,
            received_at: self.received_at,
            verification: self.verification,
            labels,
            corrected: *corrections != Corrections::default(),
            credential: self.credential.clone(),
        };
        let lacks_output =
            event.report.status == TaskStatus::Completed && event.report.outputs.is_empty();
        Ok(Draft {
            event_id: event.event_id,
            product: event.product.clone(),
            task_id: event.report.task_id.clone(),
            status: event.report.status,
            fingerprint: event
                .report
                .fingerprint(read)
                .of_tenant(self.bound.as_deref().map(|bound| &bound.labels)),
            received_at_micros: self.received_at.as_microsecond(),
            labels: event.labels.clone(),
            event: wire::encode_event(event),
            raw: raw.clone(),
            lacks_output,
            conceals_duplicates: false,
            origin: None,
        })
    }

    /// The product without what authenticates, if somebody has written a query into the path.
    pub fn kept_product(&self) -> Option<Cow<'_, str>> {
        self.product.as_deref().map(path::without_secrets)
    }

    /// Path and query without what authenticates: fit to be kept and shown.
    pub fn target(&self) -> String {
        let mut target = match (&self.near_miss, self.kept_product()) {
            (Some(path), _) => path.clone(),
            (None, Some(product)) => format!("/webhook/{product}"),
            (None, None) => "/webhook".to_owned(),
        };
        let is_secret =
            |pair: &str| parameters(pair).any(|(key, _)| SECRET_PARAMETERS.contains(&key.as_str()));
        let kept: Vec<_> = self
            .query
            .split('&')
            .filter(|pair| !pair.is_empty() && !is_secret(pair))
            .collect();
        if !kept.is_empty() {
            target.push('?');
            target.push_str(&kept.join("&"));
        }
        target
    }

    /// A callback from [`Callback::target`] and what else the quarantine has kept.
    pub fn from_target(
        target: &str,
        body: Bytes,
        received_at: Timestamp,
        verification: Verification,
        credential: &str,
    ) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        // Nothing else is kept; if it were, it would be for an operator to say what it is.
        let unknown = || WebhookPath {
            product: None,
            near_miss: Some(path.to_owned()),
        };
        let WebhookPath { product, near_miss } = WebhookPath::parse(path).unwrap_or_else(unknown);
        let (query, credential) = (query.to_owned(), credential.to_owned());
        Self {
            product,
            near_miss,
            query,
            body,
            received_at,
            verification,
            credential,
            bound: None,
        }
    }

    /// What the quarantine keeps of what it is bound to.
    pub fn kept_bound(&self) -> Bound {
        let Some(bound) = &self.bound else {
            return Bound::default();
        };
        let products = match &bound.products {
            Products::All => Vec::new(),
            Products::Only(products) => products.iter().map(ToString::to_string).collect(),
        };
        Bound {
            labels: bound.labels.clone(),
            products,
        }
    }

    /// The same, bound as [`Callback::kept_bound`] says.
    #[must_use]
    pub fn bound_as_kept(self, kept: &Bound) -> Self {
        if *kept == Bound::default() {
            return self;
        }
        let products = match kept.products.as_slice() {
            [] => Products::All,
            some => Products::Only(
                some.iter()
                    .filter_map(|product| Product::parse(product).ok())
                    .collect(),
            ),
        };
        let bound = Binding {
            products,
            labels: kept.labels.clone(),
        };
        Self {
            bound: Some(Arc::new(bound)),
            ..self
        }
    }

    /// The product of a callback whose URL names none. The body is a guess, and what the credential is bound to is none: a guess that
    /// does not fit is no reason to lose a callback.
    fn inferred(&self, guess: &Product) -> Result<Product, Rejection> {
        let only = self.bound.as_ref().and_then(|bound| bound.products.only());
        match only {
            Some(only) => Ok(only.clone()),
            None if self.may_be_of(guess) => Ok(guess.clone()),
            None => Err(Rejection::NoProduct(guess.clone())),
        }
    }

    /// Whether the credential that it came by is good for a product.
    fn may_be_of(&self, product: &Product) -> bool {
        self.bound
            .as_ref()
            .is_none_or(|bound| bound.products.allow(product.as_str()))
    }

    /// All query parameters but the secret ones, unless they are dropped; of equal keys the last counts. And what the credential is
    /// bound to, which nothing drops.
    fn labels(&self, are_dropped: bool) -> Result<Labels, Rejection> {
        let is_label = |(key, _): &(String, String)| {
            !are_dropped && !SECRET_PARAMETERS.contains(&key.as_str())
        };
        let of_url: Labels = parameters(&self.query).filter(is_label).collect();
        let labels = match &self.bound {
            Some(bound) => bound.with(of_url),
            None => of_url,
        };
        if labels_fit(&labels) {
            Ok(labels)
        } else {
            Err(Rejection::Labels)
        }
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(query.as_bytes())
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODY: &[u8] =
        br#"{"generation_id":"t1","status":"completed","video_url":"https://x/v.mp4"}"#;

    fn callback(product: Option<&str>, query: &str) -> Callback {
        Callback {
            product: product.map(str::to_owned),
            near_miss: None,
            query: query.to_owned(),
            body: Bytes::from_static(BODY),
            received_at: Timestamp::UNIX_EPOCH,
            verification: Verification::Unverified,
            credential: String::new(),
            bound: None,
        }
    }

    fn reason(callback: &Callback) -> &'static str {
        callback
            .draft(&Corrections::default())
            .unwrap_err()
            .reason()
    }

    #[test]
    fn query_parameters_become_labels_and_secrets_do_not() {
        let draft = callback(
            Some("veo"),
            "team=ads&token=s3cret&ref=order%2042&sig=x&exp=1&kid=k&team=film",
        );
        let draft = draft.draft(&Corrections::default()).unwrap();
        let labels: Vec<_> = draft
            .labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(labels, [("ref", "order 42"), ("team", "film")]);
    }

    #[test]
    fn the_kept_target_has_no_secrets_even_percent_encoded() {
        let target = callback(
            Some("veo"),
            "team=ads&token=s3cret&%74oken=s3cret&sig=x&&ref=a%26b",
        )
        .target();
        assert_eq!(target, "/webhook/veo?team=ads&ref=a%26b");
        let again = Callback::from_target(
            &target,
            Bytes::new(),
            Timestamp::UNIX_EPOCH,
            Verification::UrlToken,
            "",
        );
        assert_eq!(
            (again.target(), again.product.as_deref()),
            (target, Some("veo"))
        );
    }

    #[test]
    fn the_kept_target_has_no_secrets_of_a_query_that_was_taken_for_a_product() {
        for (sent, kept) in [
            ("/webhook/veo&token=s3cret", "/webhook/veo&token="),
            (
                "/webhook/veo&token=s3cret&team=ads&sig=s3cret",
                "/webhook/veo&token=&team=ads&sig=",
            ),
            (
                "/webhook/veo%26TOKEN%3Ds3cret%26team=ads",
                "/webhook/veo%26TOKEN%3D%26team=ads",
            ),
            (
                "/webhook/veo%3f%74oken=s3%63ret;kid=s3cret",
                "/webhook/veo%3f%74oken=;kid=",
            ),
            (
                "/webhook/veo/exp=s3cret?team=ads",
                "/webhook/veo-exp=?team=ads",
            ),
            ("/webhook/bcast_s3cret", "/webhook/bcast_"),
            (
                "/webhook/veo&x=%62cast_s3cret&y=1",
                "/webhook/veo&x=%62cast_&y=1",
            ),
            (
                "/webhook/veo&mytoken=1&a=token",
                "/webhook/veo&mytoken=1&a=token",
            ),
        ] {
            let read = |target: &str| {
                Callback::from_target(
                    target,
                    BODY.into(),
                    Timestamp::UNIX_EPOCH,
                    Verification::UrlToken,
                    "",
                )
            };
            assert_eq!(
                (read(sent).target().as_str(), reason(&read(sent))),
                (kept, "bad_product"),
                "{sent}"
            );
            assert_eq!(
                (read(kept).target().as_str(), reason(&read(kept))),
                (kept, "bad_product"),
                "{sent}"
            );
        }
    }

    #[test]
    fn labels_fit_up_to_their_limits_and_not_beyond() {
        let query = |count: usize, key: usize, value: usize| {
            let label = |n| format!("{n:a>key$}={}", "é".repeat(value));
            (0..count).map(label).collect::<Vec<_>>().join("&")
        };
        for (count, key, value) in [(16, 64, 256), (1, 1, 0), (0, 1, 0)] {
            let draft = callback(None, &query(count, key, value))
                .draft(&Corrections::default())
                .unwrap();
            assert_eq!(draft.labels.len(), count);
        }
        for (count, key, value) in [(17, 64, 256), (1, 65, 0), (1, 1, 257)] {
            assert_eq!(
                reason(&callback(None, &query(count, key, value))),
                "bad_labels"
            );
        }
        assert_eq!(reason(&callback(None, "=x")), "bad_labels");
    }

    fn bound(products: &[&str], labels: &[(&str, &str)]) -> Option<Arc<Binding>> {
        let products = match products {
            [] => Products::All,
            some => Products::Only(
                some.iter()
                    .map(|product| Product::parse(product).unwrap())
                    .collect(),
            ),
        };
        let labels = labels
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Some(Arc::new(Binding { products, labels }))
    }

    #[test]
    fn bound_labels_are_on_each_event_and_count_with_those_of_the_url() {
        let ads = bound(&[], &[("team", "ads")]);
        for (query, drop_labels, expected) in [
            ("", false, vec![("team", "ads")]),
            ("ref=42", false, vec![("ref", "42"), ("team", "ads")]),
            (
                "ref=42&team=ads",
                false,
                vec![("ref", "42"), ("team", "ads")],
            ),
            // Refused before it gets here; if it did, this is what counts.
            ("team=film", false, vec![("team", "ads")]),
            ("ref=42", true, vec![("team", "ads")]),
        ] {
            let callback = Callback {
                bound: ads.clone(),
                ..callback(Some("veo"), query)
            };
            let draft = callback
                .draft(&Corrections {
                    drop_labels,
                    ..Corrections::default()
                })
                .unwrap();
            let labels: Vec<_> = draft
                .labels
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            assert_eq!(labels, expected, "{query}");
        }
        let of_url = |count: usize| {
            (0..count)
                .map(|n| format!("l{n}="))
                .collect::<Vec<_>>()
                .join("&")
        };
        for (count, fits) in [(15, true), (16, false)] {
            let callback = Callback {
                bound: ads.clone(),
                ..callback(Some("veo"), &of_url(count))
            };
            assert_eq!(
                callback
                    .draft(&Corrections::default())
                    .map(|draft| draft.labels.len())
                    .ok(),
                fits.then_some(16)
            );
            let dropped = callback
                .draft(&Corrections {
                    drop_labels: true,
                    ..Corrections::default()
                })
                .unwrap();
            assert_eq!(
                dropped.labels.len(),
                1,
                "the way out of quarantine leaves what is bound"
            );
        }
    }

    #[test]
    fn a_callback_is_of_a_product_that_its_credential_is_bound_to_unless_an_operator_says_otherwise()
     {
        // Of the shape of veo's.
        let body = Bytes::from_static(br#"{"generation_id":"t1","status":"completed","seed":7}"#);
        let callback = |product: Option<&str>, query: &str| Callback {
            body: body.clone(),
            ..callback(product, query)
        };
        let veo = bound(&["veo"], &[]);
        let of = |product: Option<&str>| Callback {
            bound: veo.clone(),
            ..callback(product, "")
        };
        for product in [Some("veo"), None] {
            assert_eq!(
                of(product)
                    .draft(&Corrections::default())
                    .unwrap()
                    .product
                    .as_str(),
                "veo",
                "named or inferred"
            );
        }
        assert_eq!(reason(&of(Some("sora"))), "product_denied");
        let drafted = |callback: &Callback| {
            let draft = callback.draft(&Corrections::default());
            draft
                .map(|draft| draft.product.to_string())
                .map_err(|rejection| rejection.reason())
        };
        // What is inferred is a guess: of one product the credential says which, of several an operator does.
        let unknown = Bytes::from_static(br#"{"generation_id":"t1","status":"completed"}"#);
        for body in [body.clone(), unknown] {
            let one = Callback {
                bound: bound(&["sora"], &[]),
                body: body.clone(),
                ..callback(None, "")
            };
            assert_eq!(drafted(&one).as_deref(), Ok("sora"));
            let several = Callback {
                bound: bound(&["sora", "kling"], &[]),
                ..one
            };
            assert_eq!(drafted(&several), Err("no_product"));
        }
        let fitting = Callback {
            bound: bound(&["sora", "veo"], &[]),
            ..callback(None, "")
        };
        assert_eq!(drafted(&fitting).as_deref(), Ok("veo"));
        let other = Callback {
            bound: bound(&["sora", "gemini"], &[]),
            ..callback(None, "")
        };
        let corrections = Corrections {
            product: Some(Product::parse("kling").unwrap()),
            ..Corrections::default()
        };
        assert_eq!(
            other.released(&corrections).unwrap()[0].product.as_str(),
            "kling"
        );
        assert_eq!(
            other
                .released(&Corrections::default())
                .unwrap_err()
                .reason(),
            "no_product"
        );
    }

    #[test]
    fn the_same_words_of_two_tenants_are_two_events_and_of_one_a_repeat() {
        let fingerprint = |bound: Option<Arc<Binding>>| {
            Callback {
                bound,
                ..callback(Some("veo"), "")
            }
            .draft(&Corrections::default())
            .unwrap()
            .fingerprint
        };
        let labels: [&[(&str, &str)]; 5] = [
            &[],
            &[("team", "ads")],
            &[("team", "film")],
            &[("tea", "mads")],
            &[("team", "ads"), ("site", "b")],
        ];
        for (at, one) in labels.iter().enumerate() {
            for (other_at, other) in labels.iter().enumerate() {
                let is_repeat =
                    fingerprint(bound(&[], one)).repeats(fingerprint(bound(&["veo"], other)));
                assert_eq!(is_repeat, at == other_at, "{one:?} {other:?}");
                assert!(!fingerprint(bound(&[], one)).contradicts(fingerprint(bound(&[], other))));
            }
        }
        assert!(
            fingerprint(None).repeats(fingerprint(bound(&["veo"], &[]))),
            "products alone make no tenant"
        );
    }

    #[test]
    fn what_a_callback_is_bound_to_is_kept_with_it() {
        for bound in [
            None,
            bound(&["veo", "sora"], &[]),
            bound(&[], &[("team", "ads")]),
            bound(&["veo"], &[("a", "b")]),
        ] {
            let bound = Callback {
                bound,
                ..callback(Some("veo"), "")
            };
            let again = callback(Some("veo"), "").bound_as_kept(&bound.kept_bound());
            assert_eq!(again.bound, bound.bound);
        }
        // What cannot be read binds to no product at all, rather than to any.
        let damaged = Bound {
            products: vec!["?".to_owned()],
            ..Bound::default()
        };
        assert_eq!(
            reason(&callback(Some("veo"), "").bound_as_kept(&damaged)),
            "product_denied"
        );
    }

    #[test]
    fn the_event_of_the_largest_body_is_one_that_every_client_takes() {
        // What takes most bytes for its own: a code that is told as message, too, of characters that grow on their way,
        // beside details as large as may be.
        const BODY_BYTES: usize = 1024 * 1024;
        let numbers = ["1"; 87_000].join(",");
        for part in ["A", "é", r"\u00e9", r"\ud83d", r"\ud83d\ude00", r"\n"] {
            let body = |code: &str| {
                format!(
                    r#"{{"id":"t","status":"failed","error":{{"code":"{code}","details":{{"a":[{numbers}]}}}}}}"#
                )
            };
            let room = BODY_BYTES - body("").len();
            let mut callback = callback(Some("veo"), "");
            callback.body = body(&part.repeat(room / part.len())).into();
            let draft = callback.draft(&Corrections::default()).unwrap();
            let bytes = draft.event.len() + draft.raw.len();
            assert!(
                draft.event.len() > 900_000 && bytes < 4 * 1024 * 1024 - 64 * 1024,
                "{part}: {bytes} bytes"
            );
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
            ..Corrections::default()
        };
        let draft = wrong.draft(&corrections).unwrap();
        assert_eq!(
            (draft.product.as_str(), draft.task_id.as_str()),
            ("veo", "t9")
        );
    }

    #[test]
    fn a_near_miss_is_kept_as_it_came_and_read_once_its_product_is_named() {
        for target in [
            "/Webhook/veo?team=ads",
            "/api/webhook/kling/o1-video",
            "/webhooks",
        ] {
            let near = Callback::from_target(
                target,
                BODY.into(),
                Timestamp::UNIX_EPOCH,
                Verification::UrlToken,
                "",
            );
            assert_eq!(
                (near.target().as_str(), reason(&near)),
                (target, "bad_path")
            );
            let corrections = Corrections {
                product: Some(Product::parse("veo").unwrap()),
                ..Default::default()
            };
            assert_eq!(near.draft(&corrections).unwrap().product.as_str(), "veo");
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_of_any_product_is_read_alike_and_has_no_secret(
            product in "(veo|[a-z0-9-]|[&;=/%_]|%26|%3[dD]|%3f|token|sig|exp|%74oken|bcast_|S3CRET|\\PC){1,8}",
        ) {
            let target = format!("/webhook/{product}");
            let sent = Callback::from_target(&target, BODY.into(), Timestamp::UNIX_EPOCH, Verification::UrlToken, "");
            let kept = sent.target();
            let again = Callback::from_target(&kept, BODY.into(), Timestamp::UNIX_EPOCH, Verification::UrlToken, "");
            prop_assert_eq!(&again.target(), &kept);
            // A product that is one stays as it is; one that is none is none, with or without a secret in it.
            let said = |callback: &Callback| {
                callback.draft(&Corrections::default()).map(|draft| draft.product).map_err(|rejection| rejection.reason())
            };
            prop_assert_eq!(said(&again), said(&sent));
            let path = kept.split('?').next().unwrap_or_default();
            for secret in ["&token=S3CRET", "&sig%3DS3CRET", "&bcast_S3CRET"] {
                prop_assert!(!path.contains(secret), "{kept}");
            }
        }

        #[test]
        fn any_body_is_released_or_refused_with_a_reason(body in r#"[\[\]{}",:\\a0 ]{0,40}"#) {
            let wrong = Callback { body: body.into(), ..callback(Some("veo"), "") };
            if let Err(refused) = wrong.released(&Corrections::default()) {
                prop_assert!(!refused.reason().is_empty());
            }
        }

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
