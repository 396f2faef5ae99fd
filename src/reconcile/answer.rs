//! What the vendor's status API says of a task: read by the rules for callbacks, and drafted like one. Pure.
//!
//! Never makes an end of anything but the vendor's word. A callback that only implies its status is an end; an answer is not: an
//! error that the API reports in JSON implies a failure by its shape, and so do the pages of proxies. So an answer ends a task only
//! if it was sent with 2xx, names that task, and has a word for its status.

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::{asked::Asked, walk::PAGE};
use crate::{
    callback,
    event::{Event, Report, TaskId, TaskStatus, Verification},
    store::Draft,
    vendor,
};

/// Most characters of the vendor's status word that are kept of an answer that settles nothing. The known words have 18 at most.
const WORD_CHARS_MAX: usize = 64;

/// What an answer says of its task.
#[derive(Debug)]
pub enum Understood {
    /// It is over.
    Ended(Box<Draft>),
    /// It is completed, and no output is named: perhaps it is named a little later.
    CompletedWithoutOutputs(Box<Draft>),
    /// It is pending or processing.
    NotYet {
        /// The vendor's word, cut to a length for people.
        vendor_status: String,
    },
    /// Nothing that is understood: another task, another word, no word, no answer of the API.
    Unknown {
        /// The vendor's word, cut to a length for people; empty if there is none about this task.
        vendor_status: String,
    },
}

/// Reads the answer to a question for one task.
pub fn understand(asked: &Asked<'_>, http_status: u16, body: &Bytes) -> Understood {
    match vendor::read(body) {
        Ok(report) if (200..300).contains(&http_status) => report_of(asked, report, body),
        Ok(report) => unknown(&report),
        Err(_) => Understood::Unknown {
            vendor_status: String::new(),
        },
    }
}

/// A list of tasks.
#[derive(Debug)]
pub struct List {
    /// How many elements it has.
    pub count: usize,
    /// Those that can be read, in the vendor's order.
    pub tasks: Vec<Listed>,
}

/// A task in a list.
#[derive(Debug)]
pub struct Listed {
    report: Report,
    body: Bytes,
}

impl List {
    /// Reads the answer to a question for a list, of which at most 100 elements are read; `None` if it is none.
    pub fn read(http_status: u16, body: &[u8]) -> Option<Self> {
        if !(200..300).contains(&http_status) {
            return None;
        }
        let (elements, count) = vendor::elements(body, PAGE as usize)?;
        let listed = |body: Bytes| {
            let report = vendor::read(&body).ok()?;
            Some(Listed { report, body })
        };
        Some(Self {
            count,
            tasks: elements.into_iter().filter_map(listed).collect(),
        })
    }
}

impl Listed {
    /// The task.
    pub fn task_id(&self) -> &TaskId {
        &self.report.task_id
    }

    /// When it was submitted, by the vendor's clock; some products do not say.
    pub fn created_at(&self) -> Option<Timestamp> {
        self.report.created_at
    }

    /// What the list says of it, as [`understand`] reads an answer.
    pub fn understand(self, asked: &Asked<'_>) -> Understood {
        report_of(asked, self.report, &self.body)
    }
}

fn report_of(asked: &Asked<'_>, report: Report, body: &Bytes) -> Understood {
    if report.task_id != *asked.task_id {
        // Its word is about another task.
        return Understood::Unknown {
            vendor_status: String::new(),
        };
    }
    if report.status_text.is_empty() {
        return unknown(&report);
    }
    match report.status {
        TaskStatus::Completed if report.outputs.is_empty() => {
            Understood::CompletedWithoutOutputs(drafted(asked, report, body))
        }
        TaskStatus::Completed | TaskStatus::Failed => {
            Understood::Ended(drafted(asked, report, body))
        }
        TaskStatus::Pending | TaskStatus::Processing => Understood::NotYet {
            vendor_status: word(&report),
        },
        TaskStatus::Unspecified | TaskStatus::Overdue => unknown(&report),
    }
}

/// The draft of an event, with the answer as its raw body.
fn drafted(asked: &Asked<'_>, report: Report, body: &Bytes) -> Box<Draft> {
    let event = Event {
        event_id: Uuid::now_v7(),
        product: asked.product.clone(),
        product_inferred: false,
        report,
        received_at: asked.at,
        verification: Verification::VendorApi,
        labels: asked.labels.clone(),
        corrected: false,
        credential: asked.credential(),
    };
    Box::new(callback::draft(event, body, body.clone(), asked.tenant))
}

fn unknown(report: &Report) -> Understood {
    Understood::Unknown {
        vendor_status: word(report),
    }
}

fn word(report: &Report) -> String {
    report.status_text.chars().take(WORD_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests;
