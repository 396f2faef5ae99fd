//! The steps of the loop that wait: for the vendor, for the log, for the disk. Each is a future of
//! its own, and none holds a lock.

use std::{collections::HashSet, sync::Arc};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Asked,
    keys::Keys,
    lanes::Id,
    overdue,
    schedule::{Late, TaskKey},
    vendor_api::{Answer, VendorApi},
    waiting::Waiting,
    walks::{ListKey, Page},
};
use crate::{
    credentials::{SharedCredentials, VendorKey},
    event::{Labels, Overdue, Product, Sequence},
    journal::Journal,
    metrics::Metrics,
    sampler::Sampler,
    store::{Appended, Draft, Store, WriteError},
};

/// What asking the vendor needs of the broker.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Has the expectations.
    pub store: Arc<Store>,
    /// Takes the events.
    pub journal: Arc<dyn Journal>,
    /// The vendor.
    pub api: Arc<VendorApi>,
    /// The keys for it.
    pub keys: Keys,
    /// Where the keys come from, and what clients are bound to.
    pub credentials: Arc<SharedCredentials>,
    /// Which tasks somebody waits for.
    pub waiting: Arc<Waiting>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Limits the log's lines about what could not be appended: that may be so for every task that is late.
    pub log: Sampler,
    /// Limits those about calls that the vendor has not answered, by their cause: that may be so for every call.
    pub unanswered: Sampler,
}

/// A call of the vendor.
#[derive(Debug)]
pub(super) struct Call {
    pub key: Arc<VendorKey>,
    pub began: Instant,
}

/// What became of a step.
pub(super) enum Done {
    /// It is known of each task whether the log has its end.
    LookedUp(Vec<(Id, bool)>),
    /// The vendor has answered for a task.
    Answered {
        id: Id,
        task: TaskKey,
        call: Call,
        answer: Answer,
    },
    /// The vendor has answered with a page of a list.
    Paged {
        page: Page,
        call: Call,
        answer: Answer,
    },
    /// A key was tried.
    Tried { call: Call, answer: Answer },
    /// The end of a task was appended, or could not be.
    Appended {
        /// `None` if the task is not in the schedule.
        id: Option<Id>,
        product: Product,
        /// The list in which a walk after an outage has found it.
        list: Option<ListKey>,
        appended: Option<Appended>,
    },
    /// The event of a late task was appended, or could not be.
    Noted { late: Late, is_noted: bool },
    /// The log has the task's end, so it is not late.
    NotLate(Late),
    /// The time was noted, or could not be.
    TimeNoted,
}

/// What an event about a task has of its expectation.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject {
    labels: Labels,
    tenant: Option<Labels>,
}

impl Subject {
    /// The question that an answer or an event is about.
    pub(super) fn asked<'a>(
        &'a self,
        task: &'a TaskKey,
        vendor_key: Option<&'a str>,
        at: Timestamp,
    ) -> Asked<'a> {
        Asked {
            product: &task.product,
            task_id: &task.task_id,
            labels: &self.labels,
            tenant: self.tenant.as_ref(),
            vendor_key,
            at,
        }
    }
}

impl Parts {
    /// What an event of a task will carry; `None` if it is not expected.
    pub(super) fn subject(&self, task: &TaskKey) -> Option<Subject> {
        let Some(stored) = self.store.expectation(&task.product, &task.task_id) else {
            let bound = self.waiting.labels(task)?;
            return Some(Subject {
                labels: bound.clone(),
                tenant: Some(bound),
            });
        };

        let client = stored.client.as_deref();
        let credentials = self.credentials.get();
        let bound = client.and_then(|name| credentials.labels_of_client(name));
        Some(Subject {
            labels: stored.labels,
            tenant: bound.map(|labels| Labels::clone(labels)),
        })
    }

    /// Asks for a task.
    pub(super) async fn ask(self: Arc<Self>, id: Id, task: TaskKey, call: Call) -> Done {
        let answer = self
            .api
            .status(&task.product, &task.task_id, &call.key.key)
            .await;
        Done::Answered {
            id,
            task,
            call,
            answer,
        }
    }

    /// Asks for a page of a list.
    pub(super) async fn page(self: Arc<Self>, page: Page, call: Call) -> Done {
        let answer = self
            .api
            .list(&page.product, &call.key.key, page.limit, page.offset)
            .await;
        Done::Paged { page, call, answer }
    }

    /// Tries a key.
    pub(super) async fn try_key(self: Arc<Self>, call: Call) -> Done {
        let answer = self.api.try_key(&call.key).await;
        Done::Tried { call, answer }
    }

    /// Appends the end of a task.
    pub(super) async fn append(
        self: Arc<Self>,
        id: Option<Id>,
        list: Option<ListKey>,
        draft: Box<Draft>,
    ) -> Done {
        let product = draft.product.clone();
        let appended = match self.journal.append(*draft).await {
            Ok(Ok(appended)) => Some(appended),
            Ok(Err(error)) => {
                if let Some(unlogged) = self.log.due("end") {
                    tracing::warn!(%error, unlogged, "cannot append what the vendor's API says: it is asked again");
                }
                None
            }
            Err(_) => None, // the broker stops
        };
        Done::Appended {
            id,
            product,
            list,
            appended,
        }
    }

    /// Appends the event of a late task.
    pub(super) async fn note_late(self: Arc<Self>, late: Late, subject: Subject) -> Done {
        if late.number.is_none() && self.are_over(vec![late.task.clone()]).await == [true] {
            return Done::NotLate(late);
        }

        let key = self
            .keys
            .choose(&late.task.product, late.named_key.as_deref());
        let key = key.ok().map(|key| Arc::clone(&key.name));
        let asked = subject.asked(&late.task, key.as_deref(), self.store.clock().now());
        let draft = overdue::draft(&asked, said_of(&late));
        let noted = if let Some(number) = late.number {
            let answer = self.journal.overdue(number, draft, late.gave_up).await;
            answer.map(|answer| answer.map(drop))
        } else {
            let answer = self.journal.append(draft).await;
            answer.map(|answer| answer.map(drop))
        };
        let is_noted = match noted {
            // It has so many already that one more would say nothing.
            Ok(Ok(()) | Err(WriteError::TooManyEvents)) => true,
            Ok(Err(error)) => {
                if let Some(unlogged) = self.log.due("late") {
                    tracing::warn!(%error, unlogged, "cannot append that a task is late: it is tried again");
                }
                false
            }
            Err(_) => false, // the broker stops
        };
        Done::Noted { late, is_noted }
    }

    /// Notes in the data directory that the broker is there.
    pub(super) async fn note_time(self: Arc<Self>) -> Done {
        let noted = tokio::task::spawn_blocking(move || self.store.note_there()).await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(%error, "cannot note the time: after an outage no list is read");
        }
        Done::TimeNoted
    }

    /// When a broker was last there.
    pub(super) async fn last_there(&self) -> Option<i64> {
        let store = Arc::clone(&self.store);
        let read = tokio::task::spawn_blocking(move || store.last_there());
        read.await.ok().flatten()
    }

    /// Finds out of which of these tasks the log has the end.
    pub(super) async fn look_up(self: Arc<Self>, tasks: Vec<(Id, TaskKey)>) -> Done {
        let (ids, tasks): (Vec<_>, Vec<_>) = tasks.into_iter().unzip();
        let are_over = self.are_over(tasks).await;
        Done::LookedUp(ids.into_iter().zip(are_over).collect())
    }

    /// Of which of these tasks the log has the end. Of none, if it cannot be read: a second end of a task is found out when it is
    /// appended.
    async fn are_over(&self, tasks: Vec<TaskKey>) -> Vec<bool> {
        let (store, count) = (Arc::clone(&self.store), tasks.len());
        let read = move || {
            let mut over = HashSet::new();
            let ids = tasks.iter().map(|task| &task.task_id);
            let read = store.each_task_event(ids, Sequence(1)..=store.head(), |event| {
                if event.status.is_terminal() {
                    over.insert(TaskKey {
                        product: event.product,
                        task_id: event.task_id,
                    });
                }
            });
            let is_over = |task| read.is_ok() && over.contains(task);
            tasks.iter().map(is_over).collect()
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|_| vec![false; count]) // only a runtime that shuts down cancels it
    }
}

/// What the event of a late task says.
fn said_of(late: &Late) -> Overdue {
    let time = |micros| Timestamp::from_microsecond(micros).unwrap_or_default();
    Overdue {
        expected_by: time(late.deadline),
        checked_at: late.checked.at_micros.map(time),
        vendor_http_status: late.checked.http_status,
        vendor_status: late.checked.vendor_status.clone(),
        check_count: late.checked.count,
        gave_up: late.gave_up,
    }
}
