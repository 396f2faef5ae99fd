//! The limits on open subscriptions: how many, and how many task ids in their filters, in all and for each client. Pure.

use std::time::Duration;

use crate::credentials::Client;

/// The configuration key of the limit on task ids.
const TASK_IDS_SETTING: &str = "grpc.task_ids_in_all_max";

/// The configured limits on open subscriptions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegistryLimits {
    /// Most subscriptions of all clients together.
    pub subscriptions_max: usize,
    /// Most subscriptions of one client, unless its line in the credentials file has its own limit.
    pub subscriptions_per_client_max: usize,
    /// Most task ids in the filters of all subscriptions, see [`crate::event::Filter::size_in_task_ids`]. One client may have half.
    pub task_ids_max: usize,
    /// A connection that was silent for longer has missed a keepalive.
    pub silence_max: Duration,
}

/// A new subscription would exceed a limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject} {open} {unit} open and may have {limit}, and this stream needs {needed}: {remedy}raise {setting}",
    remedy = if self.may_pass() { "end some, or " } else { "" })]
pub(crate) struct LimitReached {
    /// The most that may be open.
    pub limit: usize,
    /// The number that is open now.
    pub open: usize,
    /// The number that the new subscription needs.
    pub needed: usize,
    /// The unit, for the message: subscriptions, or task ids in streams.
    pub unit: &'static str,
    /// The subject of the message: all clients together, or this client.
    pub subject: &'static str,
    /// The configuration key of the limit, or the client's line in the credentials file.
    pub setting: String,
}

impl LimitReached {
    /// True if the new subscription fits after enough others have ended.
    pub(crate) fn may_pass(&self) -> bool {
        self.needed <= self.limit
    }
}

/// The use of the limits, by one client or by all together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub subscriptions: usize,
    pub task_ids: usize,
}

impl Usage {
    /// The usage with one more subscription, if it is within `max`.
    pub(super) fn with(self, task_ids: usize, max: &UsageLimits) -> Result<Self, LimitReached> {
        let more = self.and(task_ids);
        if more.subscriptions > max.usage.subscriptions {
            return Err(LimitReached {
                limit: max.usage.subscriptions,
                open: self.subscriptions,
                needed: 1,
                unit: "subscriptions",
                subject: max.subject,
                setting: max.setting.clone(),
            });
        }

        // A stream without task ids is not subject to their limit.
        if task_ids > 0 && more.task_ids > max.usage.task_ids {
            return Err(LimitReached {
                limit: max.usage.task_ids,
                open: self.task_ids,
                needed: task_ids,
                unit: "task ids in streams",
                subject: max.subject,
                setting: TASK_IDS_SETTING.to_owned(),
            });
        }
        Ok(more)
    }

    /// The usage with one more subscription, without a limit.
    pub(super) fn and(self, task_ids: usize) -> Self {
        Self {
            subscriptions: self.subscriptions + 1,
            task_ids: self.task_ids + task_ids,
        }
    }

    /// The usage with one subscription less.
    pub(super) fn without(self, task_ids: usize) -> Self {
        Self {
            subscriptions: self.subscriptions - 1,
            task_ids: self.task_ids - task_ids,
        }
    }
}

/// The most that one client, or all clients together, may use.
#[derive(Debug)]
pub(super) struct UsageLimits {
    pub usage: Usage,
    subject: &'static str,
    /// The setting of the limit on subscriptions.
    setting: String,
}

impl RegistryLimits {
    pub(super) fn of_all_clients(self) -> UsageLimits {
        UsageLimits {
            usage: Usage {
                subscriptions: self.subscriptions_max,
                task_ids: self.task_ids_max,
            },
            subject: "all clients together have",
            setting: "grpc.subscriptions_max".to_owned(),
        }
    }

    pub(super) fn of_client(self, client: &Client) -> UsageLimits {
        let subscriptions = client
            .subscriptions_max
            .unwrap_or(self.subscriptions_per_client_max)
            .min(self.subscriptions_max);
        let setting = match client.subscriptions_max {
            Some(_) => format!(
                "subscriptions_max in the line of {} in the credentials file",
                client.name
            ),
            None => "grpc.subscriptions_per_client_max".to_owned(),
        };

        UsageLimits {
            usage: Usage {
                subscriptions,
                task_ids: self.task_ids_max.div_ceil(2),
            },
            subject: "this client has",
            setting,
        }
    }
}
