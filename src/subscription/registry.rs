//! The registry of open subscriptions: operators list and end them here, and it enforces the limits on their number.
//!
//! Never in the way of a delivery: a stream reports its progress by atomics, and takes the registry's lock only to enter and to leave.

use std::{
    collections::HashMap,
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::{task::yield_now, time::Instant};

use super::{
    entry::{RegistryEntry, Reporting},
    info::{ListedSubscription, NewSubscription, SubscriptionInfo, SubscriptionState},
    limits::{LimitReached, RegistryLimits},
    message::Withdrawal,
    open_subscriptions::OpenSubscriptions,
    stream_log::StreamLog,
};
use crate::{credentials::Client, event::Filter, hub::Hub, metrics::Metrics, store::Clock};

/// Subscriptions that are checked for stalled clients before other tasks have their turn.
const CHECKED_AT_ONCE: usize = 1_024;

/// All open subscriptions, in the order in which they were opened.
#[derive(Debug)]
pub(crate) struct Registry {
    open: Arc<Mutex<OpenSubscriptions>>,
    next: AtomicU64,
    limits: RegistryLimits,
    log: Arc<StreamLog>,
    began: Instant,
}

impl Registry {
    /// A registry without subscriptions.
    pub(crate) fn new(limits: RegistryLimits) -> Self {
        Self {
            open: Arc::default(),
            next: AtomicU64::new(1),
            limits,
            log: Arc::default(),
            began: Instant::now(),
        }
    }

    /// Most subscriptions that a client may have open; for `None` the limit of all clients together.
    pub(crate) fn limit(&self, client: Option<&Client>) -> usize {
        client.map_or(self.limits.subscriptions_max, |client| {
            self.limits.of_client(client).usage.subscriptions
        })
    }

    /// Asks `verdict` for each subscription whether it may continue, and ends those that may not.
    pub(crate) fn review(
        &self,
        hub: &Hub,
        verdict: impl Fn(Option<&Client>, &Filter) -> Option<Withdrawal>,
    ) {
        let open: Vec<_> = self
            .open
            .lock()
            .subscriptions
            .values()
            .map(Arc::clone)
            .collect();
        for info in open {
            if let Some(withdrawal) = verdict(info.client.as_deref(), &info.filter) {
                info.withdraw(withdrawal, hub);
            }
        }
    }

    /// Ends the subscription with this id and returns its last state; `None` if there is none. It leaves the limits at once, because
    /// the stream of a client that reads nothing may never be polled again.
    pub(crate) fn end(&self, hub: &Hub, id: &str) -> Option<ListedSubscription> {
        let mut open = self.open.lock();
        let number = open
            .subscriptions
            .iter()
            .find(|(_, info)| info.id == id)
            .map(|(&number, _)| number)?;
        let info = open.remove(number)?;
        drop(open);

        let listed = info.listed(number, hub);
        info.withdraw(Withdrawal::Stream, hub);
        Some(listed)
    }

    /// The clients with open subscriptions, once for each proof that authenticated them.
    pub(crate) fn clients(&self) -> Vec<Arc<Client>> {
        let open = self.open.lock();
        let clients = open
            .subscriptions
            .values()
            .filter_map(|info| info.client.as_ref());
        let clients: HashMap<_, _> = clients
            .map(|client| (Arc::as_ptr(client), client))
            .collect();
        clients.into_values().map(Arc::clone).collect()
    }

    /// The number of open subscriptions.
    pub(crate) fn len(&self) -> usize {
        self.open.lock().subscriptions.len()
    }

    /// At most `count_max` subscriptions with numbers above `after`, with their current positions.
    pub(crate) fn list(&self, hub: &Hub, after: u64, count_max: usize) -> Vec<ListedSubscription> {
        // Collected first: the hub's lock is not taken while this lock is held.
        let page: Vec<_> = self
            .open
            .lock()
            .subscriptions
            .range((Bound::Excluded(after), Bound::Unbounded))
            .take(count_max)
            .map(|(&n, info)| (n, Arc::clone(info)))
            .collect();
        page.into_iter()
            .map(|(number, info)| info.listed(number, hub))
            .collect()
    }

    /// Enters a new subscription. If it would exceed a limit, it replaces older ones of the same client and client name whose
    /// connections have missed a keepalive. Such a stream is most likely the same reader's: it has reconnected before the broker has
    /// noticed that the old connection is dead.
    pub(super) fn enter(
        &self,
        new: NewSubscription,
        hub: &Arc<Hub>,
        clock: &Arc<Clock>,
        metrics: &Arc<Metrics>,
    ) -> Result<RegistryEntry, LimitReached> {
        let info = Arc::new(SubscriptionInfo::new(new, clock.now()));
        let number = self.next.fetch_add(1, Relaxed);

        let (mut open, mut replaced) = (self.open.lock(), Vec::new());
        while let Err(reached) = open.insert(number, &info, self.limits) {
            let Some(lost) = open.lost(&info, self.limits.silence_max) else {
                replaced
                    .into_iter()
                    .for_each(|(number, info)| open.put_back(number, info));
                return Err(reached);
            };
            replaced.extend(open.remove(lost).map(|info| (lost, info)));
        }
        drop(open);

        for (_, lost) in replaced {
            lost.withdraw(Withdrawal::Place, hub);
        }
        metrics
            .subscriptions
            .with_label_values(&[SubscriptionState::CatchingUp.as_str()])
            .inc();
        if let Some(client) = &info.client {
            metrics.name_client(&client.name);
        }

        let reporting = Reporting {
            hub: Arc::clone(hub),
            clock: Arc::clone(clock),
            metrics: Arc::clone(metrics),
            log: Arc::clone(&self.log),
        };
        let open = Arc::clone(&self.open);
        Ok(RegistryEntry::new(open, number, info, reporting))
    }

    /// Logs that a read has met a damaged part of the log.
    pub(crate) fn log_damage(&self, problem: &str) {
        self.log.damaged(problem);
    }

    pub(super) fn log(&self) -> &StreamLog {
        &self.log
    }

    /// Checks every subscription for a client that reads nothing although a frame was handed to the transport.
    pub(super) async fn look_for_stalled(&self, hub: &Hub) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut after = Bound::Unbounded;
        loop {
            let page: Vec<_> = self
                .open
                .lock()
                .subscriptions
                .range((after, Bound::Unbounded))
                .take(CHECKED_AT_ONCE)
                .map(|(&number, info)| (number, Arc::clone(info)))
                .collect();
            let Some((last, _)) = page.last() else { return };
            after = Bound::Excluded(*last);

            page.iter()
                .for_each(|(_, info)| info.check_stalled(now, hub, &self.log));
            yield_now().await;
        }
    }
}
