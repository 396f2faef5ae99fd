//! One task of the schedule: why it is expected, what its checks have brought, and where it is.
//! Times are in microseconds of the log's clock.

use std::{sync::Arc, time::Duration};

use super::lanes::{Due, Id, Owner};
use crate::event::{Product, TaskId};

/// From the first check to the second.
pub(super) const INTERVAL_MIN: i64 = 30_000_000;
/// From one check to the next at most.
pub(super) const INTERVAL_MAX: i64 = 300_000_000;
/// So long an overdue event waits for a check that has not come about.
pub(super) const LATE_GRACE: i64 = 120_000_000;
/// So often a task that is completed and has no outputs is checked again, before it is taken as it
/// is: they may appear a moment after the status.
pub(super) const EMPTY_CHECKS_MAX: u32 = 5;

/// Names a task for everybody else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TaskKey {
    /// The vendor's product.
    pub product: Product,
    /// The vendor's id of the task.
    pub task_id: TaskId,
}

/// A task that is new in the schedule.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// The number of its stored expectation.
    pub number: Option<u64>,
    pub task: TaskKey,
    /// The client that expects it or waits for it.
    pub owner: Owner,
    /// When it was expected first.
    pub since: i64,
    /// When it is late.
    pub deadline: i64,
    /// It has its first overdue event.
    pub is_overdue: bool,
    /// The key that was named for it.
    pub named_key: Option<Arc<str>>,
    /// The key to check it with; `None` if there is none for its product.
    pub key: Option<Arc<str>>,
    /// Why it is expected.
    pub why: Why,
}

/// Why a task is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It was asked for, and stored.
    Stored,
    /// Somebody waits for it.
    WaitedFor,
}

/// What is known of a task by its checks since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// How often the vendor was asked.
    pub count: u32,
    /// When it was asked last, by the log's clock.
    pub at_micros: Option<i64>,
    /// Status of its last answer; 0 if there was none.
    pub http_status: u16,
    /// Its own word for the task's status in that answer.
    pub vendor_status: String,
}

/// What a check that has not settled its task was answered with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answered {
    /// 0 if there was no answer.
    pub http_status: u16,
    pub vendor_status: String,
    /// It says that the task is completed, and names no outputs.
    pub lacks_outputs: bool,
    /// How long the vendor wants to be left alone.
    pub retry_after: i64,
}

/// What follows from a check that has not settled its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    /// The task is checked again.
    Again,
    /// The answer without outputs is believed now.
    TakeAsItIs,
}

/// An event that is due because a task is late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Late {
    pub id: Id,
    /// The number of its stored expectation.
    pub number: Option<u64>,
    pub task: TaskKey,
    pub named_key: Option<Arc<str>>,
    pub deadline: i64,
    pub gave_up: bool,
    pub checked: Checked,
}

#[derive(Debug)]
pub(super) struct Entry {
    /// The number of its stored expectation.
    pub number: Option<u64>,
    pub task: TaskKey,
    /// The client that expects it.
    pub owner: Owner,
    /// The client that waits for it, while one does.
    pub waits: Owner,
    pub since: i64,
    pub deadline: i64,
    pub gives_up_at: i64,
    pub named_key: Option<Arc<str>>,
    pub key: Option<Arc<str>>,
    pub is_stored: bool,
    pub is_waited_for: bool,
    /// A list has not shown it.
    pub is_single: bool,
    /// It has its first overdue event.
    pub is_overdue: bool,
    /// An event that says that it is late is on its way into the log.
    pub is_noting: bool,
    pub state: State,
    /// When its next overdue event is appended without a check.
    pub late_at: i64,
    /// From the next check to the one after it.
    pub interval: i64,
    /// Checks that found it completed without outputs.
    pub empty_checks: u32,
    pub checked: Checked,
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not due.
    Sleeping { until: i64 },
    /// Due, but nobody has said that it is not over: only stored expectations end with their tasks.
    Unsure { since: i64 },
    /// In the lane of its key, or nowhere without one.
    Due { since: i64 },
    /// The vendor is being asked.
    Busy { since: i64 },
}

impl Entry {
    pub(super) fn new(new: Expected, give_up_after: i64) -> Self {
        let mut entry = Self {
            number: new.number,
            task: new.task,
            owner: new.owner,
            waits: new.owner,
            since: new.since,
            deadline: 0,
            gives_up_at: 0,
            named_key: new.named_key,
            key: new.key,
            is_stored: new.why == Why::Stored,
            is_waited_for: new.why == Why::WaitedFor,
            is_single: false,
            is_overdue: new.is_overdue,
            is_noting: false,
            state: State::Sleeping { until: 0 },
            late_at: 0,
            interval: INTERVAL_MIN,
            empty_checks: 0,
            checked: Checked::default(),
        };
        entry.expect_by(new.deadline, give_up_after);
        entry
    }

    /// Sets when it is late. If it is being checked already, that goes on.
    fn expect_by(&mut self, deadline: i64, give_up_after: i64) {
        self.deadline = deadline;
        self.gives_up_at = deadline.saturating_add(give_up_after);
        if !matches!(self.state, State::Busy { .. }) {
            self.state = State::Sleeping { until: deadline };
        }
        self.late_at = self.late_by().saturating_add(LATE_GRACE);
    }

    /// The number of its expectation, if that is stored and open.
    pub(super) fn stored_number(&self) -> Option<u64> {
        self.number.filter(|_| self.is_stored)
    }

    /// When its next overdue event is due, the first or the second.
    pub(super) fn late_by(&self) -> i64 {
        if self.is_overdue {
            self.gives_up_at
        } else {
            self.deadline
        }
    }

    /// Whether its stored expectation has ended, and this is another one for the same task.
    pub(super) fn is_replaced_by(&self, new: &Expected) -> bool {
        new.number.is_some() && self.number.is_some() && self.number != new.number
    }

    /// Adds a reason why it is expected. A stored deadline counts before that of somebody who waits.
    pub(super) fn expect_also(&mut self, new: Expected, give_up_after: i64) {
        if new.why == Why::WaitedFor {
            self.is_waited_for = true;
            self.waits = new.owner;
            return;
        }

        let was_stored = std::mem::replace(&mut self.is_stored, true);
        self.number = new.number;
        self.owner = new.owner;
        self.since = self.since.min(new.since);
        self.named_key = new.named_key;
        self.key = new.key;
        if was_stored {
            self.is_overdue |= new.is_overdue;
            return;
        }

        // What was found and said while somebody only waited does not count against what was promised since.
        self.is_overdue = new.is_overdue;
        self.expect_by(new.deadline, give_up_after);
    }

    /// Notes an answer that has not settled it, and when it is checked next. `chance` scales the interval.
    pub(super) fn note_unsettled(&mut self, answered: Answered, chance: f64, now: i64) {
        let interval = if answered.lacks_outputs {
            self.empty_checks += 1;
            INTERVAL_MIN
        } else {
            let interval = self.interval;
            self.interval = (interval + interval / 2).min(INTERVAL_MAX);
            interval
        };

        let asked = answered.retry_after.min(INTERVAL_MAX);
        let again = now.saturating_add(scaled(interval, chance).max(asked));
        let mut until = again.max(self.deadline); // that may have moved while it was asked for
        if now < self.gives_up_at {
            until = until.min(self.gives_up_at); // the last check is when it is given up
        }
        self.state = State::Sleeping { until };
        self.is_single = false;
        self.note(answered, now);
    }

    /// Notes an answer.
    pub(super) fn note(&mut self, answered: Answered, now: i64) {
        self.checked.count = self.checked.count.saturating_add(1);
        self.checked.at_micros = Some(now);
        self.checked.http_status = answered.http_status;
        self.checked.vendor_status = answered.vendor_status;
        if now >= self.late_by() {
            self.late_at = now;
        }
    }

    /// Notes that its first overdue event is in the log.
    pub(super) fn note_overdue(&mut self, now: i64) {
        self.is_noting = false;
        self.is_overdue = true;
        let last_check = self.checked.at_micros;
        self.late_at = if last_check.is_some_and(|at| at >= self.gives_up_at) {
            now
        } else {
            self.gives_up_at.max(now).saturating_add(LATE_GRACE)
        };
    }

    /// Whether it was checked since its next overdue event is due.
    pub(super) fn is_checked_late(&self) -> bool {
        let last_check = self.checked.at_micros;
        last_check.is_some_and(|at| at >= self.late_by())
    }

    /// It, as its lane knows it.
    pub(super) fn due(&self, id: Id, at: i64) -> Due {
        Due {
            id,
            at,
            product: self.task.product.clone(),
            owner: if self.is_waited_for {
                self.waits
            } else {
                self.owner
            },
            is_waited_for: self.is_waited_for,
            is_single: self.is_single,
        }
    }
}

/// The microseconds of a duration.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// An interval is minutes at most, so a float holds it.
fn scaled(interval: i64, factor: f64) -> i64 {
    (interval as f64 * factor) as i64
}
