//! The loop that joins all of it: takes what is new, asks the vendor, and hands what it says to the
//! journal. One task of the server's; what it waits for runs within it.
//!
//! A step never waits: it begins futures ([`super::asking`]), and the loop wakes when one is done,
//! when something is new, or when something is due.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    asking::{Call, Done},
    entry::micros,
    in_flight::InFlight,
    lanes::{Id, Owner, Picked, SINGLE_MAX},
    limits::{Asks, Limits},
    outage::Outage,
    presence::Presence,
    reconciler::Reconciler,
    schedule::{Expected, Schedule, TaskKey, Why},
    vendor_api::REQUESTS_MAX,
    walks::Walks,
};
use crate::{
    credentials::{Credentials, VendorKey},
    store::Expectation,
};

/// Calls of the vendor at once: the same as its client has places for.
const CALLS_MAX: usize = REQUESTS_MAX;
/// Events of late tasks that are on their way into the log at once: callbacks go before them.
pub(super) const LATE_MAX: usize = 64;
/// New expectations taken in one step.
const TAKEN_MAX: usize = 512;
/// The loop looks at least so often: for keys that have changed, and so that the metrics are fresh.
const TICK: Duration = Duration::from_secs(1);
/// The loop rests so long between two steps that nothing has woken it for.
const REST: Duration = Duration::from_millis(5);

/// The loop's own state.
pub(super) struct Loop {
    pub(super) shared: Arc<Reconciler>,
    pub(super) limits: Limits,
    pub(super) walks: Walks,
    pub(super) in_flight: InFlight<Done>,
    /// Calls of the vendor that are on their way.
    pub(super) calls: usize,
    /// Events of late tasks that are on their way.
    pub(super) late: usize,
    /// Whether the broker and the vendor are there.
    pub(super) presence: Presence,
    /// The newest expectation that was taken.
    taken: u64,
    /// An outage whose lists are read when all expectations are taken, until there is none left to read.
    pub(super) outage: Option<Outage>,
    /// When it was seen which of them to read.
    pub(super) lists_seen_at: Option<Instant>,
    credentials: Arc<Credentials>,
    pub(super) time_noted_at: Option<Instant>,
    /// A page of a walk had the last turn.
    page_was_last: bool,
}

impl Reconciler {
    /// Asks the vendor until it is stopped.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let parts = Arc::clone(&self.parts);
        let mut running = Loop::new(self);
        running.find_outage().await;

        let mut newest = parts.store.newest_expectation();
        loop {
            let wake_at = running.step();
            tokio::select! {
                () = stop.cancelled() => break,
                done = running.in_flight.next() => running.done(done),
                () = parts.waiting.changed() => {}
                _ = newest.changed() => {}
                () = sleep_until(wake_at) => {}
            }
        }
        if running.outage.is_none() {
            parts.note_time().await;
        }
    }
}

impl Loop {
    fn new(shared: Arc<Reconciler>) -> Self {
        let limits = Limits::new(shared.settings.checks_per_minute_max);
        let credentials = shared.parts.credentials.get();
        shared.parts.keys.refresh(&credentials);
        let mut new = Self {
            shared,
            limits,
            walks: Walks::default(),
            in_flight: InFlight::new(),
            calls: 0,
            late: 0,
            presence: Presence::default(),
            taken: 0,
            outage: None,
            lists_seen_at: None,
            credentials,
            time_noted_at: None,
            page_was_last: false,
        };
        new.take_keys();
        new
    }

    /// Does all that can be done now; returns when there is more.
    fn step(&mut self) -> Instant {
        self.notice_new_keys();
        let has_all = self.take_stored();
        self.take_waits();
        let asks = self.shared.parts.journal.is_writer();
        if asks {
            self.ask_and_note_late(has_all);
        }
        self.note_time();
        self.show();
        if asks {
            self.wakes_at(has_all)
        } else if has_all {
            Instant::now() + TICK
        } else {
            Instant::now()
        }
    }

    /// What one node of a cluster does for all. One that begins to do so was away before.
    fn ask_and_note_late(&mut self, has_all: bool) {
        self.notice_absence();
        if has_all {
            self.read_lists();
        }
        self.look_up();
        self.note_late();
        self.try_keys();
        while self.calls < CALLS_MAX && self.ask_next() {}
    }

    /// Takes over the keys of a credentials file that has changed.
    fn notice_new_keys(&mut self) {
        let credentials = self.shared.parts.credentials.get();
        if Arc::ptr_eq(&credentials, &self.credentials) {
            return;
        }
        self.credentials = credentials;
        if self.shared.parts.keys.refresh(&self.credentials) {
            self.take_keys();
            self.shared.parts.waiting.keys_changed();
        }
    }

    /// Chooses a key for each task anew.
    pub(super) fn take_keys(&mut self) {
        let keys = &self.shared.parts.keys;
        self.lists_seen_at = None;
        self.walks.keys_changed();
        let lost = self.walks.keep_keys(|name| keys.named(name).is_some());
        // A refused key is tried now and then, and what it has spent counts.
        for gone in self.limits.set_keys(&keys.all(), Instant::now()) {
            let metrics = &self.shared.parts.metrics;
            for gauges in [&metrics.vendor_budget_left, &metrics.vendor_paused] {
                let _ = gauges.remove_label_values(&[&gone]).is_ok();
            }
        }

        let mut schedule = self.shared.schedule.lock();
        for id in lost {
            schedule.not_asked(id);
        }
        schedule.choose_keys(|product, named| self.shared.key_of(product, named));
    }

    /// Takes new stored expectations. True if it has all of them.
    fn take_stored(&mut self) -> bool {
        let store = &self.shared.parts.store;
        let new = store.expectations_after(self.taken, TAKEN_MAX);
        let has_all = new.len() < TAKEN_MAX;
        if let Some(last) = new.last() {
            self.taken = last.number;
        }

        let mut schedule = self.shared.schedule.lock();
        for expectation in new {
            let key = self
                .shared
                .key_of(&expectation.product, expectation.vendor_key.as_deref());
            schedule.expect(stored(expectation, key));
            schedule.sweep(|task| store.expectation(&task.product, &task.task_id).is_some());
        }
        has_all
    }

    /// Takes tasks that somebody has begun or ceased to wait for.
    fn take_waits(&mut self) {
        let waiting = &self.shared.parts.waiting;
        let now = self.now();
        let mut schedule = self.shared.schedule.lock();
        while let Some((task, client)) = waiting.next_begun() {
            let within = self.shared.expect_within(&task.product, None);
            // Nobody can be asked for other products: then it is only waited for, until there is a key.
            let Ok(within) = within else {
                waiting.has_no_key(task);
                continue;
            };
            schedule.expect(Expected {
                number: None,
                owner: Owner::of(client.as_deref()),
                since: now,
                deadline: now.saturating_add(micros(within)),
                is_overdue: false,
                named_key: None,
                key: self.shared.key_of(&task.product, None),
                why: Why::WaitedFor,
                task,
            });
        }
        while let Some(task) = waiting.next_ended(Instant::now()) {
            schedule.no_longer_waited_for(&task);
        }
    }

    /// Begins to look up which of the tasks that have become due are over.
    fn look_up(&mut self) {
        let unsure = self.shared.schedule.lock().take_unsure(self.now());
        if !unsure.is_empty() {
            let parts = Arc::clone(&self.shared.parts);
            self.in_flight.push(parts.look_up(unsure));
        }
    }

    /// Tries keys of which nothing is known or that were refused, and the host, if it has failed and something waits for it.
    fn try_keys(&mut self) {
        let now = Instant::now();
        let parts = Arc::clone(&self.shared.parts);
        let mut keys = parts.keys.to_try(now);
        if self.limits.wants_probe(now) {
            let schedule = self.shared.schedule.lock();
            let wanted = schedule.wanted_keys().chain(self.walks.wanted_keys());
            keys.extend(wanted.filter_map(|name| parts.keys.named(name)));
        }
        for key in keys {
            if self.calls < CALLS_MAX && self.limits.take(Asks::Nothing, &key.name, now) {
                self.calls += 1;
                parts.keys.begin_trial(&key);
                let call = Call { key, began: now };
                self.in_flight.push(Arc::clone(&parts).try_key(call));
            }
        }
    }

    /// Begins the next call of the vendor. False if there is none now. Pages and tasks take turns.
    fn ask_next(&mut self) -> bool {
        let page_first = !self.page_was_last;
        self.page_was_last = page_first;
        page_first && self.ask_page() || self.ask_task() || !page_first && self.ask_page()
    }

    fn ask_page(&mut self) -> bool {
        let now = Instant::now();
        let Some(page) = self.walks.next_page(|key| self.limits.may_use(key, now)) else {
            return false;
        };
        if !self.still_wants(&page) {
            return true;
        }
        let key = self.shared.parts.keys.named(&page.key);
        let Some(key) = key.filter(|_| self.limits.take(Asks::Tasks, &page.key, now)) else {
            self.walks.not_asked(page.walk);
            return false;
        };
        self.calls += 1;
        self.in_flight
            .push(Arc::clone(&self.shared.parts).page(page, Call { key, began: now }));
        true
    }

    fn ask_task(&mut self) -> bool {
        let now = Instant::now();
        let parts = Arc::clone(&self.shared.parts);
        let mut schedule = self.shared.schedule.lock();
        let picked = schedule.next(
            parts.store.clock().now_micros(),
            |key| self.limits.may_use(key, now),
            |key, product| parts.api.has_list(product) && self.walks.may_begin(key, product, now),
        );
        match picked {
            None => false,
            Some((name, Picked::List(product, ids))) => {
                let since = schedule.expected_since(&ids).unwrap_or_default();
                let wanted = ids.into_iter().filter_map(|id| {
                    let task = open_task(&mut schedule, &self.shared, id)?;
                    Some((task.task_id, id))
                });
                let wanted: HashMap<_, _> = wanted.collect();
                if wanted.len() <= SINGLE_MAX {
                    for id in wanted.into_values() {
                        schedule.not_asked(id); // so few are picked one by one
                    }
                    return true;
                }
                self.walks.begin_due(name, product, wanted, since);
                true
            }
            Some((name, Picked::One(id))) => {
                let Some(task) = open_task(&mut schedule, &self.shared, id) else {
                    return true;
                };
                let key = parts.keys.named(&name);
                let Some(key) = key.filter(|_| self.limits.take(Asks::Tasks, &name, now)) else {
                    schedule.not_asked(id);
                    return false;
                };
                drop(schedule);
                self.calls += 1;
                let call = Call { key, began: now };
                self.in_flight.push(parts.ask(id, task, call));
                true
            }
        }
    }

    /// Puts the state into the metrics.
    fn show(&self) {
        let metrics = &self.shared.parts.metrics;
        let counts = self.shared.parts.store.expectation_counts();
        let schedule = self.shared.schedule.lock();
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let states = [
            ("waiting", counts.open.saturating_sub(counts.overdue)),
            ("overdue", counts.overdue),
            ("waited_for", self.shared.parts.waiting.len()),
        ];
        for (state, count) in states {
            metrics
                .expectations
                .with_label_values(&[state])
                .set(gauge(count));
        }
        metrics.tasks_overdue.set(gauge(schedule.overdue()));
        for (key, left) in self.limits.left(Instant::now()) {
            metrics
                .vendor_budget_left
                .with_label_values(&[key])
                .set(left.into());
        }
        for (key, is_paused) in self.limits.paused(Instant::now()) {
            metrics
                .vendor_paused
                .with_label_values(&[key])
                .set(is_paused.into());
        }
    }

    fn wakes_at(&self, has_all: bool) -> Instant {
        let now = Instant::now();
        let mut at = now + TICK;
        if !has_all {
            return now;
        }

        let schedule = self.shared.schedule.lock();
        let is_full = self.late >= LATE_MAX;
        if let Some(due) = schedule.next_at().filter(|_| !is_full) {
            let wait = u64::try_from(due.saturating_sub(self.now())).unwrap_or_default();
            at = at.min(now + Duration::from_micros(wait));
        }
        if self.calls < CALLS_MAX {
            let wanted = schedule.wanted_keys().chain(self.walks.wanted_keys());
            at = self
                .limits
                .next_at(wanted, now)
                .map_or(at, |next| next.min(at));
        }
        at.max(now + REST)
    }

    pub(super) fn now(&self) -> i64 {
        self.shared.parts.store.clock().now_micros()
    }
}

/// A stored expectation, as the schedule takes it.
fn stored(expectation: Expectation, key: Option<Arc<str>>) -> Expected {
    Expected {
        number: Some(expectation.number),
        task: TaskKey {
            product: expectation.product,
            task_id: expectation.task_id,
        },
        owner: Owner::of(expectation.client.as_deref()),
        since: expectation.expected_at_micros,
        deadline: expectation.expected_by_micros,
        is_overdue: expectation.is_overdue,
        named_key: expectation.vendor_key.map(Arc::from),
        key,
        why: Why::Stored,
    }
}

/// The task of an entry that is still expected. One that is not is removed.
pub(super) fn open_task(schedule: &mut Schedule, shared: &Reconciler, id: Id) -> Option<TaskKey> {
    let (task, is_stored) = schedule.task(id)?;
    let task = task.clone();
    let store = &shared.parts.store;
    if is_stored && store.expectation(&task.product, &task.task_id).is_none() {
        schedule.not_asked(id);
        schedule.no_longer_stored(id);
        return None;
    }
    Some(task)
}

/// A key that the vendor takes, as far as is known.
pub(super) type Key = Arc<VendorKey>;
