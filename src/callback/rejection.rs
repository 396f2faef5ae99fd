//! Why a callback goes to quarantine, why it stays there, and how an operator gets it out.

use crate::{
    event::{LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Product, ProductError},
    vendor::Unreadable,
};

/// Most events that one quarantined callback can become: a page of a listing.
pub const RELEASED_EVENTS_MAX: usize = 256;
/// Most bytes of the events of one callback, bodies included, if there are several: they are one commit.
pub(super) const RELEASED_BYTES_MAX: usize = 8 * 1024 * 1024;

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
    /// The URL names no product, and the credential is not bound to the one inferred from the body.
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

    /// How to release it: the fields of the request, and the flags of the command line.
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
    /// One of the objects in its body cannot be understood.
    #[error("element {element} of the body: {rejection}; {remedy}", remedy = remedy_of_element(rejection))]
    Element {
        /// Its place in the array, from 0.
        element: usize,
        /// What is wrong with it.
        rejection: Rejection,
    },
    /// One task id for several events.
    #[error(
        "the body has {count} elements, and `task_id` names one task: leave it out, or repair the `body` (--body FILE)"
    )]
    OneTaskId {
        /// Elements of the array.
        count: usize,
    },
    /// Too many events.
    #[error(
        "the body has {count} elements, and one callback becomes at most {RELEASED_EVENTS_MAX} events: repair the `body` (--body FILE)"
    )]
    TooManyElements {
        /// Elements of the array.
        count: usize,
    },
    /// Together, the events are too large.
    #[error(
        "its {count} events would take {bytes} bytes, and those of one callback have at most {RELEASED_BYTES_MAX}: repair the `body` (--body FILE)"
    )]
    TooLarge {
        /// Events.
        count: usize,
        /// Bytes of all of them.
        bytes: usize,
    },
}

impl Unreleasable {
    /// The stable word of its [`Rejection`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) | Self::Element { rejection, .. } => rejection.reason(),
            Self::OneTaskId { .. } | Self::TooManyElements { .. } | Self::TooLarge { .. } => {
                "not_an_object"
            }
        }
    }
}

/// A task id cannot be the same for all elements of an array; a status can.
fn remedy_of_element(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::Body(Unreadable::NoStatus) => {
            "release it with one `status` for all of them (--status)"
        }
        _ => "release it with a repaired `body` (--body FILE)",
    }
}
