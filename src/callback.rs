//! From a callback to a draft of an event, or to the reason why it belongs in quarantine. Pure.
//!
//! The HTTP front drafts new callbacks. The release from quarantine drafts them again, perhaps with an operator's corrections.

mod path;
mod rejection;
#[cfg(test)]
mod tests;

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    credentials::{Binding, Products, SECRET_PARAMETERS},
    event::{Event, Labels, Product, TaskId, TaskStatus, Verification, labels_fit},
    store::{Bound, Draft},
    vendor::{self, Overrides, StatusWord},
    wire,
};

pub use self::{
    path::{WebhookPath, shown as shown_path},
    rejection::{RELEASED_EVENTS_MAX, Rejection, Unreleasable},
};
use rejection::RELEASED_BYTES_MAX;

/// A callback as it arrived.
#[derive(Clone, Debug)]
pub struct Callback {
    /// The product as the path names it, percent-encoded but for slashes, which are `-`. `None` if the path names none.
    pub product: Option<String>,
    /// The path as it was sent, if it is only a near miss of a webhook's; see [`WebhookPath`].
    pub near_miss: Option<String>,
    /// The query string as it was sent; empty if there was none.
    pub query: String,
    /// The body, byte for byte.
    pub body: Bytes,
    /// When the last byte of it had arrived.
    pub received_at: Timestamp,
    /// How it was authenticated.
    pub verification: Verification,
    /// Kind and name of the credential it was sent with; empty without one.
    pub credential: String,
    /// The products and labels that the credential is bound to.
    pub bound: Option<Arc<Binding>>,
}

/// An operator's corrections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Corrections {
    /// Replaces the URL's product.
    pub product: Option<Product>,
    /// Replaces the body's task id.
    pub task_id: Option<TaskId>,
    /// Replaces the body's status.
    pub status: Option<StatusWord>,
    /// Is parsed in place of the callback's body, which stays the event's raw body.
    pub body: Option<Bytes>,
    /// Leaves out the URL's labels.
    pub drop_labels: bool,
}

impl Callback {
    /// Drafts the event that the callback reports.
    pub fn draft(&self, corrections: &Corrections) -> Result<Draft, Rejection> {
        self.draft_of(
            corrections.body.as_ref().unwrap_or(&self.body),
            &self.body,
            corrections,
        )
    }

    /// Drafts the events that a quarantined callback becomes: one, or one for each element if the body is an array. The raw body of
    /// such an event is its element alone, unless the body was corrected.
    pub fn released(&self, corrections: &Corrections) -> Result<Vec<Draft>, Unreleasable> {
        let read = corrections.body.as_ref().unwrap_or(&self.body);
        let elements = vendor::elements(read, RELEASED_EVENTS_MAX);
        // An empty array is refused like any other body without a task.
        let Some((elements, count)) = elements.filter(|&(_, count)| count > 0) else {
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
            // An operator may name any product.
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

        let tenant = self.bound.as_deref().map(|bound| &bound.labels);
        Ok(draft(event, read, raw.clone(), tenant))
    }

    /// The product without secrets: a query may have been written into the path.
    pub fn kept_product(&self) -> Option<Cow<'_, str>> {
        self.product.as_deref().map(path::without_secrets)
    }

    /// Path and query without secrets: safe to store and show.
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

    /// Reads a callback back from its [`Callback::target`] and its other stored parts.
    pub fn from_target(
        target: &str,
        body: Bytes,
        received_at: Timestamp,
        verification: Verification,
        credential: &str,
    ) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        // Only webhooks' paths are stored. If another one were, an operator would have to name the product.
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

    /// What the quarantine stores of [`Callback::bound`].
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

    /// The same callback, bound as [`Callback::kept_bound`] was.
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

    /// The product of a callback whose URL names none: the one that its credential is bound to, or else `guess`, which is inferred from
    /// the body. A guess that the credential is not bound to sends the callback to quarantine: it may be wrong.
    fn inferred(&self, guess: &Product) -> Result<Product, Rejection> {
        let only = self.bound.as_ref().and_then(|bound| bound.products.only());
        match only {
            Some(only) => Ok(only.clone()),
            None if self.may_be_of(guess) => Ok(guess.clone()),
            None => Err(Rejection::NoProduct(guess.clone())),
        }
    }

    /// Whether its credential may send callbacks of a product.
    fn may_be_of(&self, product: &Product) -> bool {
        self.bound
            .as_ref()
            .is_none_or(|bound| bound.products.allow(product.as_str()))
    }

    /// The query parameters but the secret ones, unless they are dropped (of equal keys the last counts), and the labels that the
    /// credential is bound to, which are never dropped.
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

/// Drafts an event that was read from `read`, and is stored with `raw`. `tenant`: the labels that its sender is bound to.
pub fn draft(event: Event, read: &[u8], raw: Bytes, tenant: Option<&Labels>) -> Draft {
    let report = &event.report;
    let lacks_output = report.status == TaskStatus::Completed && report.outputs.is_empty();
    Draft {
        event_id: event.event_id,
        product: event.product.clone(),
        task_id: report.task_id.clone(),
        status: report.status,
        fingerprint: report.fingerprint(read).of_tenant(tenant),
        received_at_micros: event.received_at.as_microsecond(),
        labels: event.labels.clone(),
        is_answer: event.verification == Verification::VendorApi,
        event: wire::encode_event(event),
        raw,
        lacks_output,
        conceals_duplicates: false,
        origin: None,
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    form_urlencoded::parse(query.as_bytes())
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
}
