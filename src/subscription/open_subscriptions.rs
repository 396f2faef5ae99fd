//! The table of open subscriptions, with the use of the limits counted as they come and go. Never awaits, never logs.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    info::SubscriptionInfo,
    limits::{LimitReached, RegistryLimits, Usage},
};

/// The name under which a `WaitTask` call is listed.
pub(crate) const WAIT_NAME: &str = "WaitTask";

#[derive(Debug, Default)]
pub(super) struct OpenSubscriptions {
    /// By number, which is the order of opening.
    pub subscriptions: BTreeMap<u64, Arc<SubscriptionInfo>>,
    all: Usage,
    /// Clients with at least one subscription.
    per_client: HashMap<Arc<str>, Usage>,
}

impl OpenSubscriptions {
    /// Inserts a subscription if it is within the limits.
    pub(super) fn insert(
        &mut self,
        number: u64,
        info: &Arc<SubscriptionInfo>,
        limits: RegistryLimits,
    ) -> Result<(), LimitReached> {
        let task_ids = info.filter.size_in_task_ids();
        let all = self.all.with(task_ids, &limits.of_all_clients())?;
        if let Some(client) = &info.client {
            let usage = self
                .per_client
                .get(&client.name)
                .copied()
                .unwrap_or_default()
                .with(task_ids, &limits.of_client(client))?;
            self.per_client.insert(Arc::clone(&client.name), usage);
        }

        self.all = all;
        self.subscriptions.insert(number, Arc::clone(info));
        Ok(())
    }

    /// Inserts a subscription again, which was removed for a new one that does not fit after all.
    pub(super) fn put_back(&mut self, number: u64, info: Arc<SubscriptionInfo>) {
        let task_ids = info.filter.size_in_task_ids();
        self.all = self.all.and(task_ids);
        if let Some(client) = &info.client {
            let usage = self.per_client.entry(Arc::clone(&client.name)).or_default();
            *usage = usage.and(task_ids);
        }
        self.subscriptions.insert(number, info);
    }

    /// Removes a subscription; `None` if it was removed before.
    pub(super) fn remove(&mut self, number: u64) -> Option<Arc<SubscriptionInfo>> {
        let info = self.subscriptions.remove(&number)?;
        let task_ids = info.filter.size_in_task_ids();
        self.all = self.all.without(task_ids);
        if let Some(client) = &info.client
            && let Some(usage) = self.per_client.get_mut(&client.name)
        {
            *usage = usage.without(task_ids);
            if usage.subscriptions == 0 {
                self.per_client.remove(&client.name);
            }
        }
        Some(info)
    }

    /// The oldest subscription of the same client and client name whose connection has missed a keepalive. None for a stream without
    /// a name of its own: others without a name may be different readers.
    pub(super) fn lost(&self, new: &SubscriptionInfo, silence_max: Duration) -> Option<u64> {
        if ["", WAIT_NAME].contains(&&*new.client_name) {
            return None;
        }

        let name =
            |info: &SubscriptionInfo| info.client.as_ref().map(|client| Arc::clone(&client.name));
        let is_lost = |info: &SubscriptionInfo| {
            info.client_name == new.client_name
                && name(info) == name(new)
                && info.heard.silent_for() > silence_max
        };
        self.subscriptions
            .iter()
            .find(|(_, info)| is_lost(info))
            .map(|(&number, _)| number)
    }
}
