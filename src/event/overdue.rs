//! Late tasks: what the broker says of one whose end it expected. Its own word, never the vendor's. Pure.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Labels, Product, TaskId};

/// What the broker knows of a late task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// When the task should have been over.
    pub expected_by: Timestamp,
    /// When the vendor was last asked; `None` if it could not be asked.
    pub checked_at: Option<Timestamp>,
    /// HTTP status of the vendor's last answer; 0 if there was none.
    pub vendor_http_status: u16,
    /// The vendor's own word for the task's status in that answer; empty if it had none.
    pub vendor_status: String,
    /// How often the vendor was asked for this task.
    pub check_count: u32,
    /// The broker no longer asks for the task.
    pub gave_up: bool,
}

/// An event of a late task, before the log has given it a sequence, a revision and a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverdueEvent {
    /// The event's stable identity.
    pub event_id: Uuid,
    /// The product of the expectation.
    pub product: Product,
    /// The task that is late.
    pub task_id: TaskId,
    /// The labels of the expectation.
    pub labels: Labels,
    /// When the broker noticed it, by the broker's clock.
    pub noticed_at: Timestamp,
    /// Kind and name of the credential that the vendor is asked with; empty if there is none.
    pub credential: String,
    /// What is known.
    pub overdue: Overdue,
}
