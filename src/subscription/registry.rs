//! The registry of open subscriptions: operators list and end them here, and it enforces the limits on their number.
//!
//! Never in the way of a delivery: a stream reports its progress by atomics, and takes the registry's lock only to enter and to leave.

use std::{
    collections::{BTreeMap, HashMap},
    ops::{Bound, ControlFlow},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::{task::yield_now, time::Instant};

use super::{
    ended::{EndedSubscription, EndedSubscriptions},
    entry::{RegistryEntry, Reporting},
    info::{ListedSubscription, NewSubscription, SubscriptionInfo, SubscriptionState, Wanted},
    limits::{LimitReached, RegistryLimits},
    message::Withdrawal,
    open_subscriptions::OpenSubscriptions,
    stream_log::StreamLog,
};
use crate::{
    credentials::Client,
    event::{Filter, Sequence},
    hub::Hub,
    metrics::Metrics,
    store::Clock,
};

/// Subscriptions that are looked at before other tasks have their turn.
const SEEN_AT_ONCE: usize = 1_024;

/// All open subscriptions, in the order in which they were opened.
#[derive(Debug)]
pub(crate) struct Registry {
    open: Arc<Mutex<OpenSubscriptions>>,
    next: AtomicU64,
    limits: RegistryLimits,
    log: Arc<StreamLog>,
    ended: Arc<EndedSubscriptions>,
    began: Instant,
}

/// Where a listing by lag goes on: behind this position, and behind this number at the position.
pub(crate) type Behind = (Sequence, u64);

impl Registry {
    /// A registry without subscriptions.
    pub(crate) fn new(limits: RegistryLimits) -> Self {
        Self {
            open: Arc::default(),
            next: AtomicU64::new(1),
            limits,
            log: Arc::default(),
            ended: Arc::default(),
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

    /// At most `count_max` of the wanted subscriptions with numbers above `after`, oldest first.
    pub(crate) async fn oldest(
        &self,
        hub: &Hub,
        after: u64,
        count_max: usize,
        wanted: &Wanted,
    ) -> Vec<ListedSubscription> {
        let mut found = Vec::new();
        let look = |number, info: &Arc<SubscriptionInfo>| {
            if info.is_wanted(wanted) {
                found.push(info.listed(number, hub));
            }
            if found.len() < count_max {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        self.for_each(after, look).await;
        found
    }

    /// At most `count_max` of the wanted subscriptions, those with the greatest lag first. A subscription may move while this looks, but
    /// only forward: one that is behind `after` is not missed.
    pub(crate) async fn most_behind(
        &self,
        hub: &Hub,
        after: Option<Behind>,
        count_max: usize,
        wanted: &Wanted,
    ) -> Vec<ListedSubscription> {
        let mut found: BTreeMap<Behind, Arc<SubscriptionInfo>> = BTreeMap::new();
        let look = |number, info: &Arc<SubscriptionInfo>| {
            let place = (info.position(hub), number);
            let is_next = after.is_none_or(|after| place > after);
            let has_room = found.len() < count_max
                || found
                    .last_key_value()
                    .is_some_and(|(last, _)| place < *last);
            if is_next && has_room && info.is_wanted(wanted) {
                found.insert(place, Arc::clone(info));
                if found.len() > count_max {
                    found.pop_last();
                }
            }
            ControlFlow::Continue(())
        };
        self.for_each(0, look).await;

        let listed =
            |((position, number), info): (Behind, Arc<SubscriptionInfo>)| ListedSubscription {
                position,
                ..info.listed(number, hub)
            };
        found.into_iter().map(listed).collect()
    }

    /// The newest `count_max` ends before number `before` that are of a client, the newest first, with their numbers.
    pub(crate) fn ended(
        &self,
        before: u64,
        count_max: usize,
        client: &str,
    ) -> Vec<(u64, Arc<EndedSubscription>)> {
        self.ended.newest(before, count_max, client)
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
            ended: Arc::clone(&self.ended),
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
        let check = |_, info: &Arc<SubscriptionInfo>| {
            info.check_stalled(now, hub, &self.log);
            ControlFlow::Continue(())
        };
        self.for_each(0, check).await;
    }

    /// Looks at the subscriptions with numbers above `after`, oldest first, until `look` breaks. Neither holds the lock for long
    /// nor the thread, however many there are.
    async fn for_each(
        &self,
        after: u64,
        mut look: impl FnMut(u64, &Arc<SubscriptionInfo>) -> ControlFlow<()>,
    ) {
        let mut after = after;
        loop {
            let page: Vec<_> = self
                .open
                .lock()
                .subscriptions
                .range((Bound::Excluded(after), Bound::Unbounded))
                .take(SEEN_AT_ONCE)
                .map(|(&number, info)| (number, Arc::clone(info)))
                .collect();
            let Some((last, _)) = page.last() else { return };
            after = *last;

            let seen = page
                .iter()
                .try_for_each(|(number, info)| look(*number, info));
            if seen.is_break() {
                return;
            }
            yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{event::TaskId, subscription::Heard};

    const COUNT: u64 = 100_000;

    fn task() -> TaskId {
        TaskId::parse("t1").unwrap()
    }

    /// What is wanted of the client.
    fn of(client: &str) -> Wanted {
        Wanted {
            client: client.to_owned(),
            task_id: None,
        }
    }

    /// Subscriptions of which number n is at the place n × 7,919, each thousandth is of billing, and each five hundredth for a task.
    fn registry() -> (Registry, Arc<Hub>) {
        let of_task = Arc::new(Filter {
            task_ids: [task()].into(),
            ..Filter::default()
        });
        let registry = Registry::new(RegistryLimits {
            subscriptions_max: COUNT as usize,
            subscriptions_per_client_max: COUNT as usize,
            task_ids_max: COUNT as usize,
            silence_max: std::time::Duration::ZERO,
        });
        for number in 1..=COUNT {
            let new = NewSubscription {
                id: Uuid::from_u128(number.into()),
                client: None,
                client_name: if number % 1_000 == 0 {
                    "billing"
                } else {
                    "others"
                }
                .to_owned(),
                peer: String::new(),
                heard: Heard::default(),
                call: None,
                filter: if number % 500 == 0 {
                    Arc::clone(&of_task)
                } else {
                    Arc::default()
                },
                position: Sequence(number * 7_919 % COUNT),
            };
            let info = Arc::new(SubscriptionInfo::new(new, jiff::Timestamp::UNIX_EPOCH));
            let entered = registry.open.lock().insert(number, &info, registry.limits);
            entered.unwrap();
        }
        (registry, Hub::new(Sequence(COUNT), 1_024))
    }

    fn places(listed: &[ListedSubscription]) -> Vec<u64> {
        listed.iter().map(|one| one.position.0).collect()
    }

    #[tokio::test]
    async fn of_a_hundred_thousand_those_that_are_most_behind_are_listed_first() {
        let (registry, hub) = registry();
        let began = std::time::Instant::now();
        let first = registry.most_behind(&hub, None, 256, &of("")).await;
        // Optimised it takes some milliseconds; this may be a debug build on a busy machine.
        let took = began.elapsed();
        assert!(took.as_millis() < 2_000, "{took:?}");
        assert_eq!(places(&first), (0..256).collect::<Vec<_>>());

        let last = first.last().map(|last| (last.position, last.number));
        let second = registry.most_behind(&hub, last, 256, &of("")).await;
        assert_eq!(places(&second), (256..512).collect::<Vec<_>>());

        let of_billing = registry.most_behind(&hub, None, 256, &of("billing")).await;
        assert_eq!(of_billing.len(), 100);
        assert!(places(&of_billing).is_sorted());
        println!("100,000 subscriptions by lag: {took:?}");
    }

    #[tokio::test]
    async fn the_oldest_of_a_client_are_found_among_others() {
        let (registry, hub) = registry();
        let numbers = |listed: Vec<ListedSubscription>| -> Vec<u64> {
            listed.iter().map(|one| one.number).collect()
        };
        let first = registry.oldest(&hub, 0, 2, &of("billing")).await;
        assert_eq!(numbers(first), [1_000, 2_000]);
        let next = registry.oldest(&hub, 2_000, 2, &of("billing")).await;
        assert_eq!(numbers(next), [3_000, 4_000]);
        assert_eq!(numbers(registry.oldest(&hub, 0, 2, &of("")).await), [1, 2]);
        assert_eq!(registry.oldest(&hub, 0, 2, &of("nobody")).await.len(), 0);
        assert_eq!(registry.oldest(&hub, 99_999, 2, &of("")).await.len(), 1);
    }

    #[tokio::test]
    async fn those_that_name_a_task_are_found_among_others() {
        let (registry, hub) = registry();
        let wanted = Wanted {
            task_id: Some(task()),
            ..of("")
        };
        let first = registry.oldest(&hub, 0, 2, &wanted).await;
        let numbers: Vec<_> = first.iter().map(|one| one.number).collect();
        assert_eq!(numbers, [500, 1_000]);
        assert_eq!(
            registry.most_behind(&hub, None, 256, &wanted).await.len(),
            200
        );

        let of_others = Wanted {
            client: "others".to_owned(),
            ..wanted
        };
        assert_eq!(registry.oldest(&hub, 0, 256, &of_others).await.len(), 100);
    }
}
