//! The domain types: task ids, products, statuses, reports, events, and the filters that select them.
//!
//! Parsing happens once, at the edge: a `TaskId`, a `Product` or a `Cursor` that exists is valid. This module knows neither
//! protobuf nor HTTP nor the store, and does no I/O.

mod cursor;
mod filter;
mod fingerprint;
mod overdue;
mod record;

pub use cursor::{Cursor, CursorError, Epoch, Sequence};
pub use filter::{Filter, Selectable};
pub use fingerprint::Fingerprint;
pub use overdue::{Overdue, OverdueEvent};
pub use record::{Encoded, Record, RecordError, RecordParts, Records, SharedEncoding, WeakRecords};

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

/// Longest task id in characters. The vendor's ids are UUIDs or shorter; the rest is room for future products.
pub const TASK_ID_CHARS_MAX: usize = 128;
/// Longest product slug in bytes: the limit of a DNS label, so that a product can be one.
pub const PRODUCT_BYTES_MAX: usize = 63;
/// Most labels that one callback may carry.
pub const LABELS_MAX: usize = 16;
/// Longest label key in characters.
pub const LABEL_KEY_CHARS_MAX: usize = 64;
/// Longest label value in characters.
pub const LABEL_VALUE_CHARS_MAX: usize = 256;

/// The vendor's id of one generation: 1 to 128 printable characters without spaces. Opaque: nothing is read out of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

/// The text is not a task id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task id has 1 to {TASK_ID_CHARS_MAX} printable characters without spaces")]
pub struct TaskIdError;

impl TaskId {
    /// Takes `raw` unchanged if it is a task id.
    pub fn parse(raw: &str) -> Result<Self, TaskIdError> {
        let printable = |c: char| !c.is_control() && !c.is_whitespace();
        // Counting stops one past the limit: a megabyte of text must not cost more than a valid id.
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

// So that a `&str` can be looked up in a map keyed by `TaskId`.
impl std::borrow::Borrow<str> for TaskId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The vendor's product a task belongs to: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Product(Arc<str>);

/// The text is not a product.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a product has 1 to {PRODUCT_BYTES_MAX} characters of a-z, 0-9 and '-', and does not begin with '-'"
)]
pub struct ProductError;

impl Product {
    /// Takes `raw` unchanged if it is a well-formed slug. There is no list of products: the vendor adds new ones.
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

    /// The slug as it stands in callback URLs, filters and events.
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

/// The state of a task at the vendor. The discriminants are stored and sent: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TaskStatus {
    /// The broker does not know the vendor's word, which is in [`Report::status_text`].
    Unspecified = 0,
    /// The vendor has accepted the task and not started it.
    Pending = 1,
    /// The vendor is generating.
    Processing = 2,
    /// The vendor has delivered outputs. Terminal.
    Completed = 3,
    /// The task failed, timed out or was refused. Terminal.
    Failed = 4,
    /// The broker's own word: the task's end is late. Not terminal.
    Overdue = 5,
}

impl TaskStatus {
    /// Every status, in the order of the numbers.
    pub const ALL: [Self; 6] = [
        Self::Unspecified,
        Self::Pending,
        Self::Processing,
        Self::Completed,
        Self::Failed,
        Self::Overdue,
    ];

    /// True if the vendor is expected to send nothing more about the task.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }

    /// The status that is stored as `number`, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The lower-case word used in metrics, logs and the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Overdue => "overdue",
        }
    }
}

/// The kind of file that an output's URL leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A still image, by its key in the body or its file extension.
    Image,
    /// A video, by its key in the body or its file extension.
    Video,
    /// Any other file, or one whose extension is not known.
    Other,
}

/// One file that a task has generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The kind of file behind the URL.
    pub kind: OutputKind,
    /// The vendor's download URL, http or https. The broker never fetches it.
    pub url: String,
}

/// The vendor's reason for a failed task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskError {
    /// Upper-case code, `UNSPECIFIED` if the vendor gave none.
    pub code: String,
    /// The vendor's sentence for people; may be empty.
    pub message: String,
    /// The vendor's `details`, any JSON value, or the whole error if its shape is not known; `None` if code and message are all that
    /// the vendor sent.
    pub details: Option<Value>,
}

impl TaskError {
    /// The code of an error without a code from the vendor.
    pub const NO_CODE: &str = "UNSPECIFIED";

    /// True if the vendor sent a code, a message or details: more than the fact that the task has failed.
    pub fn gives_a_reason(&self) -> bool {
        self.code != Self::NO_CODE || !self.message.is_empty() || self.said_details().is_some()
    }

    /// The details, unless they say nothing: an empty object or array, or a blank text.
    pub fn said_details(&self) -> Option<&Value> {
        self.details.as_ref().filter(|details| match details {
            Value::Object(fields) => !fields.is_empty(),
            Value::Array(elements) => !elements.is_empty(),
            Value::String(text) => !text.trim().is_empty(),
            _ => true,
        })
    }
}

/// How a callback was authenticated. The discriminants are stored: never reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// The callback carried no credential that was checked.
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

    /// The verification stored as `number`. An unknown number reads as unverified: the safe side.
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

/// The content of one callback body: the vendor's statement about a task, without anything the broker adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The task that the body names.
    pub task_id: TaskId,
    /// Inferred from the body's shape; used only if the URL names no product.
    pub inferred_product: Product,
    /// The state of the task, from the vendor's word or implied by outputs and errors.
    pub status: TaskStatus,
    /// The vendor's own word for the status; empty if the body has none.
    pub status_text: String,
    /// All outputs, in the body's order, each once.
    pub outputs: Vec<Output>,
    /// Present exactly if `status` is [`TaskStatus::Failed`].
    pub error: Option<TaskError>,
    /// The prompt of the generation; empty if the body does not repeat it.
    pub prompt: String,
    /// The model that the vendor used; empty if the body does not name it.
    pub model: String,
    /// The random seed of the generation.
    pub seed: Option<i64>,
    /// When the vendor accepted the task, by the vendor's clock.
    pub created_at: Option<Timestamp>,
    /// When the task ended, by the vendor's clock.
    pub completed_at: Option<Timestamp>,
}

impl Report {
    /// The hashes by which the store recognises repeats and contradictions; `body` is the body the report was read from.
    pub fn fingerprint(&self, body: &[u8]) -> Fingerprint {
        Fingerprint::of(self, body)
    }
}

/// An event before the log has given it a sequence, a revision and a cursor.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The event's stable identity, by which clients dedupe.
    pub event_id: Uuid,
    /// The product of the callback URL, or the inferred one if the URL names none.
    pub product: Product,
    /// True if the URL named no product.
    pub product_inferred: bool,
    /// The content of the callback's body.
    pub report: Report,
    /// When the broker received the callback, by the broker's clock.
    pub received_at: Timestamp,
    /// How the callback was authenticated.
    pub verification: Verification,
    /// The labels of the callback URL and of its credential.
    pub labels: Labels,
    /// True if an operator corrected the callback on its release from quarantine.
    pub corrected: bool,
    /// Kind and name of the credential that authenticated the callback; empty if none did.
    pub credential: String,
}
