//! What happens at a simulated vendor, for people and scripts that watch it.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use tokio::sync::mpsc;

/// Events that may wait for their reader. Beyond that events are left out, and counted.
const WAITING_MAX: usize = 4_096;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// When.
    pub time: Timestamp,
    /// How many events before this one were left out, because nobody read them in time.
    pub left_out: u64,
    /// What.
    pub what: What,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A task has reached a state; the first one is pending.
    Task {
        /// The slug of its product.
        product: String,
        /// Its id.
        id: String,
        /// The vendor's word for its state.
        status: &'static str,
    },
    /// An attempt at a callback has ended.
    Callback {
        /// The slug of the task's product.
        product: String,
        /// The task's id.
        id: String,
        /// The number of the attempt, from 1; 0: none was made.
        attempt: usize,
        /// Its result.
        result: CallbackResult,
    },
    /// A request of the status API, or one that was refused, was answered.
    Request {
        /// The method.
        method: String,
        /// The path and query.
        target: String,
        /// The HTTP status of the answer.
        http_status: u16,
    },
}

/// The result of an attempt at a callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallbackResult {
    /// It was answered 2xx.
    Taken(u16),
    /// It was answered otherwise, and is tried again if `again`.
    Refused {
        /// The HTTP status of the answer.
        http_status: u16,
        /// True if another attempt follows.
        again: bool,
    },
    /// It was not answered, and is tried again if `again`.
    Unanswered {
        /// Why.
        error: String,
        /// True if another attempt follows.
        again: bool,
    },
    /// It is never sent, as the settings want it.
    Lost,
}

/// Where events go: to a reader, if there is one.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    reader: Option<mpsc::Sender<Happened>>,
    left_out: AtomicU64,
}

impl Reporter {
    /// A reporter and what it reports.
    pub(super) fn with_reader() -> (Self, mpsc::Receiver<Happened>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let reporter = Self {
            reader: Some(sender),
            left_out: AtomicU64::new(0),
        };
        (reporter, receiver)
    }

    pub(super) fn report(&self, time: Timestamp, what: What) {
        let Some(reader) = &self.reader else { return };
        match reader.try_reserve() {
            Ok(place) => place.send(Happened {
                time,
                left_out: self.left_out.swap(0, Ordering::Relaxed),
                what,
            }),
            Err(_) => {
                self.left_out.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_that_nobody_reads_are_left_out_and_counted() {
        let (reporter, mut events) = Reporter::with_reader();
        let what = What::Task {
            product: "veo".into(),
            id: "a".into(),
            status: "pending",
        };
        for _ in 0..WAITING_MAX + 3 {
            reporter.report(Timestamp::UNIX_EPOCH, what.clone());
        }
        for _ in 0..WAITING_MAX {
            assert_eq!(events.recv().await.unwrap().left_out, 0);
        }
        reporter.report(Timestamp::UNIX_EPOCH, what);
        assert_eq!(events.recv().await.unwrap().left_out, 3);
    }
}
