//! The domain: what a callback becomes, and the words everything else uses.
//!
//! Parsing happens once, at the edge: a `TaskId`, a `Product` or a `Cursor` that exists is valid. This module knows neither
//! protobuf nor HTTP nor the store, and does no I/O.

mod cursor;
mod filter;
mod fingerprint;
mod record;

pub use cursor::{Cursor, CursorError, Epoch, Sequence};
pub use filter::{Filter, Selectable};
pub use fingerprint::Fingerprint;
pub use record::{Encoded, Encoding, Record, RecordError, RecordParts, Records, WeakRecords};

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

/// Longest task id in characters. The vendor's are UUIDs or shorter; the rest is room for products to come.
pub const TASK_ID_CHARS_MAX: usize = 128;
/// Longest product slug in bytes: what a DNS label may have, so that a product can name one.
pub const PRODUCT_BYTES_MAX: usize = 63;
/// Most labels of one callback.
pub const LABELS_MAX: usize = 16;
/// Longest label key in characters.
pub const LABEL_KEY_CHARS_MAX: usize = 64;
/// Longest label value in characters.
pub const LABEL_VALUE_CHARS_MAX: usize = 256;

/// The vendor's id of one generation: 1 to 128 printable characters without spaces, opaque.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

/// A text that cannot be a task id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task id has 1 to {TASK_ID_CHARS_MAX} printable characters without spaces")]
pub struct TaskIdError;

impl TaskId {
    /// Takes `raw` as it is, or says why not.
    pub fn parse(raw: &str) -> Result<Self, TaskIdError> {
        let printable = |c: char| !c.is_control() && !c.is_whitespace();
        // Counting stops one past the limit, so a megabyte of text costs no more than a good id.
        let count = raw.chars().take(TASK_ID_CHARS_MAX + 1).count();
        if (1..=TASK_ID_CHARS_MAX).contains(&count) && raw.chars().all(printable) {
            Ok(Self(raw.into()))
        } else {
            Err(TaskIdError)
        }
    }

    /// The id as the vendor sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// Lets maps keyed by `TaskId` be asked with a borrowed text.
impl std::borrow::Borrow<str> for TaskId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The vendor's product a task belongs to: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Product(Arc<str>);

/// A text that cannot be a product.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a product has 1 to {PRODUCT_BYTES_MAX} characters of a-z, 0-9 and '-', and does not begin with '-'"
)]
pub struct ProductError;

impl Product {
    /// Takes `raw` as it is, or says why not. Any well-formed slug is a product: the vendor adds new ones.
    pub fn parse(raw: &str) -> Result<Self, ProductError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let well_formed = (1..=PRODUCT_BYTES_MAX).contains(&raw.len())
            && raw.bytes().all(allowed)
            && !raw.starts_with('-');
        if well_formed {
            Ok(Self(raw.into()))
        } else {
            Err(ProductError)
        }
    }

    /// The slug.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Product {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What became of a task. The discriminants are stored and sent: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TaskStatus {
    /// The vendor's word is not known; see [`Report::status_text`].
    Unspecified = 0,
    /// Accepted, not started.
    Pending = 1,
    /// Running.
    Processing = 2,
    /// Done.
    Completed = 3,
    /// Failed, timed out or refused.
    Failed = 4,
}

impl TaskStatus {
    /// Every status, in the order of its number.
    pub const ALL: [Self; 5] = [
        Self::Unspecified,
        Self::Pending,
        Self::Processing,
        Self::Completed,
        Self::Failed,
    ];

    /// True if nothing more is to be expected of the task.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }

    /// The status with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Lower-case word, as in metrics, logs and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// What an output's URL leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A still image.
    Image,
    /// A video.
    Video,
    /// Neither, or unknown.
    Other,
}

/// One result of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// What the URL leads to.
    pub kind: OutputKind,
    /// Where to download it.
    pub url: String,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskError {
    /// Upper-case code, `UNSPECIFIED` if the vendor gave none.
    pub code: String,
    /// Explanation, maybe empty.
    pub message: String,
    /// The vendor's `details`, whatever JSON value it was, or all of an error whose shape is not known; `None` if there is no more
    /// than the two above.
    pub details: Option<Value>,
}

impl TaskError {
    /// The code of an error that has none.
    pub const NO_CODE: &str = "UNSPECIFIED";

    /// Whether the vendor said more than that the task has failed.
    pub fn gives_a_reason(&self) -> bool {
        let is_empty = |details: &Value| {
            details.as_object().is_some_and(serde_json::Map::is_empty)
                || details.as_array().is_some_and(Vec::is_empty)
        };
        let has_details = self
            .details
            .as_ref()
            .is_some_and(|details| !is_empty(details));
        self.code != Self::NO_CODE || !self.message.is_empty() || has_details
    }
}

/// How a callback was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Not at all.
    Unverified,
    /// By a secret token in the URL.
    UrlToken,
    /// By the broker's signature over the URL.
    SignedUrl,
    /// By the vendor's signature over the body.
    BodySignature,
    /// By asking the vendor's status API.
    VendorApi,
}

impl Verification {
    const ALL: [Self; 5] = [
        Self::Unverified,
        Self::UrlToken,
        Self::SignedUrl,
        Self::BodySignature,
        Self::VendorApi,
    ];

    /// The one whose discriminant `number` is; a number of none is not to be trusted.
    pub fn from_number(number: u8) -> Self {
        Self::ALL
            .into_iter()
            .find(|verification| *verification as u8 == number)
            .unwrap_or(Self::Unverified)
    }
}

/// The labels of a callback URL, ordered by key.
pub type Labels = BTreeMap<String, String>;

/// Whether an event may have these labels.
pub fn labels_fit(labels: &Labels) -> bool {
    let fits = |(key, value): (&String, &String)| {
        (1..=LABEL_KEY_CHARS_MAX).contains(&key.chars().count())
            && value.chars().count() <= LABEL_VALUE_CHARS_MAX
    };
    labels.len() <= LABELS_MAX && labels.iter().all(fits)
}

/// What the vendor's body says about a task, before the broker adds what it knows itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Which task.
    pub task_id: TaskId,
    /// Inferred from the body's shape; used only where the URL names no product.
    pub inferred_product: Product,
    /// What became of it.
    pub status: TaskStatus,
    /// The vendor's own word; empty if it used none.
    pub status_text: String,
    /// All outputs, in order, each once.
    pub outputs: Vec<Output>,
    /// Present exactly if `status` is [`TaskStatus::Failed`].
    pub error: Option<TaskError>,
    /// Empty if the vendor did not repeat it.
    pub prompt: String,
    /// Empty if the vendor did not name it.
    pub model: String,
    /// The generation's random seed.
    pub seed: Option<i64>,
    /// When the task was created.
    pub created_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
}

impl Report {
    /// Condenses what the report, read from that body, says, to tell repeats and contradictions.
    pub fn fingerprint(&self, body: &[u8]) -> Fingerprint {
        Fingerprint::of(self, body)
    }
}

/// An event before the log has given it a place, a revision and a cursor.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Stable identity.
    pub event_id: Uuid,
    /// The product of the URL, else the inferred one.
    pub product: Product,
    /// True if `product` was inferred.
    pub product_inferred: bool,
    /// What the body says.
    pub report: Report,
    /// When the callback was received.
    pub received_at: Timestamp,
    /// How it was authenticated.
    pub verification: Verification,
    /// From the callback URL.
    pub labels: Labels,
    /// An operator has corrected something of it.
    pub corrected: bool,
    /// Kind and name of the credential it came by; empty without any.
    pub credential: String,
}
