//! What is due when: the tasks that are expected, when each is checked next, and when it is late.
//! Pure: `now` is an argument, in microseconds of the log's clock, and the dice have a seed.
//!
//! A task is checked first at its deadline, then after 30 s, each time half as long again, up to
//! 5 minutes. A task that a check has not settled after its deadline is overdue, and some hours
//! later it is given up: each is an event, once. Where no check comes about, because the key is
//! refused or spent, or the vendor is down, that event waits for 2 minutes and is then appended
//! without one. A task is not given up without a check while the vendor answers and a key is good.
//! A broker that was away first has these 2 minutes for checks.
//!
//! Each operation costs O(log n) for each task that it concerns. What the schedule holds is bounded
//! by what is expected: expectations that have ended are removed as new ones come, four times as fast
//! (see [`Schedule::sweep`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;

pub use super::entry::Checked;
pub(super) use super::entry::{Answered, Expected, Follows, Late, TaskKey, Why};
use super::{
    entry::{EMPTY_CHECKS_MAX, Entry, LATE_GRACE, State, micros},
    lanes::{Id, Lanes, Picked},
};
use crate::event::Product;

/// By what part intervals are shortened or lengthened by chance, so that tasks which were submitted
/// together do not stay together.
const JITTER: f64 = 0.1;
/// After an event could not be appended, or while an answer is on its way, the next attempt.
const AGAIN: i64 = 30_000_000;
/// Tasks that become due in one step. The next step goes on.
const WOKEN_MAX: usize = 1_000;
/// Tasks that are looked at, whether they are expected still, for each one that is added.
const SWEPT: usize = 4;

/// Everything that is expected.
#[derive(Debug)]
pub(super) struct Schedule {
    /// From a task's deadline until it is given up.
    give_up_after: i64,
    dice: Rng,
    entries: BTreeMap<Id, Entry>,
    ids: HashMap<TaskKey, Id>,
    next_id: Id,
    /// Tasks that are not due, by when they will be.
    sleeping: BTreeSet<(i64, Id)>,
    /// Tasks of which the log may have the end.
    unsure: Vec<Id>,
    lanes: Lanes,
    /// By when a task's next overdue event is appended without a check.
    late: BTreeSet<(i64, Id)>,
    /// Entries that are overdue.
    overdue: usize,
    /// Since when the broker has been able to check.
    there_since: i64,
    /// The task that was looked at last.
    swept: Id,
}

impl Schedule {
    /// Without any task.
    pub(super) fn new(give_up_after: Duration, seed: u64) -> Self {
        Self {
            give_up_after: micros(give_up_after),
            dice: Rng::with_seed(seed),
            entries: BTreeMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            sleeping: BTreeSet::new(),
            unsure: Vec::new(),
            lanes: Lanes::default(),
            late: BTreeSet::new(),
            overdue: 0,
            there_since: i64::MIN,
            swept: 0,
        }
    }

    /// Adds a task, or one more reason why it is expected.
    pub(super) fn expect(&mut self, new: Expected) {
        let give_up_after = self.give_up_after;
        let mut waits = None;
        if let Some(id) = self.id(&new.task) {
            let is_replaced = |entry: &&Entry| entry.is_replaced_by(&new);
            let Some(ended) = self.entries.get(&id).filter(is_replaced) else {
                self.change(id, |entry| entry.expect_also(new, give_up_after));
                return;
            };
            waits = ended.is_waited_for.then_some(ended.waits);
            self.settled(id);
        }

        let id = self.next_id;
        self.next_id += 1;
        let mut entry = Entry::new(new, give_up_after);
        if let Some(owner) = waits {
            entry.is_waited_for = true;
            entry.waits = owner;
        }
        self.ids.insert(entry.task.clone(), id);
        self.put(id, &entry);
        self.entries.insert(id, entry);
    }

    /// Removes some tasks whose expectation was stored and has ended. Called for each task that is added, so the schedule holds at
    /// most about a third more than is expected: a round over all entries takes a quarter as many additions as there are entries.
    pub(super) fn sweep(&mut self, is_open: impl Fn(&TaskKey) -> bool) {
        for _ in 0..SWEPT {
            let behind = (Bound::Excluded(self.swept), Bound::Unbounded);
            let next = self.entries.range(behind).next();
            let Some((&id, entry)) = next.or_else(|| self.entries.first_key_value()) else {
                return;
            };
            self.swept = id;
            if entry.is_stored && !is_open(&entry.task) {
                self.no_longer_stored(id);
            }
        }
    }

    /// The expectation of a task was stored and has ended. If somebody waits for the task still, it may be over: if it is due, that
    /// is looked up.
    pub(super) fn no_longer_stored(&mut self, id: Id) {
        let mut is_unsure = false;
        self.change(id, |entry| {
            entry.is_stored = false;
            if let State::Due { since } = entry.state {
                entry.state = State::Unsure { since };
                is_unsure = true;
            }
        });
        if is_unsure {
            self.unsure.push(id);
        }
        self.forget_unexpected(id);
    }

    /// Nobody waits for a task any more.
    pub(super) fn no_longer_waited_for(&mut self, task: &TaskKey) {
        if let Some(id) = self.id(task) {
            self.change(id, |entry| entry.is_waited_for = false);
            self.forget_unexpected(id);
        }
    }

    fn forget_unexpected(&mut self, id: Id) {
        let is_expected = |entry: &Entry| entry.is_stored || entry.is_waited_for;
        if !self.entries.get(&id).is_some_and(is_expected) {
            self.settled(id);
        }
    }

    /// A task is over, or given up.
    pub(super) fn settled(&mut self, id: Id) {
        if let Some(entry) = self.entries.remove(&id) {
            self.take(id, &entry);
            self.ids.remove(&entry.task);
        }
    }

    /// Chooses keys anew for all tasks, by their products and the keys that were named for them.
    pub(super) fn choose_keys(
        &mut self,
        choose: impl Fn(&Product, Option<&str>) -> Option<Arc<str>>,
    ) {
        let mut entries = std::mem::take(&mut self.entries);
        for (id, entry) in &mut entries {
            let key = choose(&entry.task.product, entry.named_key.as_deref());
            if key != entry.key {
                self.take(*id, entry);
                entry.key = key;
                self.put(*id, entry);
            }
        }
        self.entries = entries;
    }

    /// Tasks that have become due and are only waited for: the caller looks up whether the log has their ends.
    pub(super) fn take_unsure(&mut self, now: i64) -> Vec<(Id, TaskKey)> {
        self.wake(now);
        let unsure = std::mem::take(&mut self.unsure);
        let task = |id: Id| Some((id, self.entries.get(&id)?.task.clone()));
        unsure.into_iter().filter_map(task).collect()
    }

    /// Notes what such a look-up has found.
    pub(super) fn looked_up(&mut self, id: Id, is_over: bool) {
        if is_over {
            self.settled(id);
            return;
        }
        self.change(id, |entry| {
            if let State::Unsure { since } = entry.state {
                entry.state = State::Due { since };
            }
        });
    }

    /// What to ask the vendor now. Its tasks are busy until one of the next four functions notes what became of them.
    pub(super) fn next(
        &mut self,
        now: i64,
        may_use: impl FnMut(&str) -> bool,
        has_list: impl Fn(&str, &Product) -> bool,
    ) -> Option<(Arc<str>, Picked)> {
        self.wake(now);
        let (key, picked) = self.lanes.pick(may_use, has_list)?;
        let ids = match &picked {
            Picked::One(id) => std::slice::from_ref(id),
            Picked::List(_, ids) => ids,
        };
        for id in ids {
            let entry = self.entries.get_mut(id);
            let entry = entry.expect("`put` and `take` keep the lanes in step with the entries");
            if let State::Due { since } = entry.state {
                entry.state = State::Busy { since };
            }
        }

        Some((key, picked))
    }

    /// Notes that a check has not settled its task.
    pub(super) fn unsettled(&mut self, id: Id, answered: Answered, now: i64) -> Follows {
        let has_enough =
            |entry: &Entry| entry.empty_checks >= EMPTY_CHECKS_MAX || now >= entry.gives_up_at;
        if answered.lacks_outputs && self.entries.get(&id).is_some_and(has_enough) {
            return Follows::TakeAsItIs;
        }

        let chance = 1.0 + JITTER * (2.0 * self.dice.f64() - 1.0);
        self.change(id, |entry| entry.note_unsettled(answered, chance, now));
        Follows::Again
    }

    /// Notes that the vendor has refused the key. The task is due with the next key.
    pub(super) fn refused(&mut self, id: Id, answered: Answered, now: i64) {
        self.change(id, |entry| entry.note(answered, now));
        self.not_asked(id);
    }

    /// Notes that the vendor does not know a task by its key: it may be another key's, unless one was named.
    pub(super) fn use_key(&mut self, id: Id, next: Arc<str>) {
        self.change(id, |entry| {
            if entry.named_key.is_none() {
                entry.key = Some(next);
            }
        });
    }

    /// Notes that a list did not show a task: it is checked by itself.
    pub(super) fn not_listed(&mut self, id: Id) {
        self.change(id, |entry| entry.is_single = true);
        self.not_asked(id);
    }

    /// Notes that the vendor was not asked after all: the task is due as it was.
    pub(super) fn not_asked(&mut self, id: Id) {
        self.change(id, |entry| {
            if let State::Busy { since } = entry.state {
                entry.state = State::Due { since };
            }
        });
    }

    /// Notes that the end of a task could not be appended: it is checked again soon.
    pub(super) fn not_appended(&mut self, id: Id, now: i64) {
        let until = now.saturating_add(AGAIN);
        self.change(id, |entry| entry.state = State::Sleeping { until });
    }

    /// Notes that the broker was away until now: nothing was checked meanwhile.
    pub(super) fn back(&mut self, now: i64) {
        self.there_since = now;
    }

    /// The next event of a task that is late now. It is on its way until it is noted. `is_asked`: whether tasks are checked with a
    /// key, sooner or later.
    pub(super) fn next_late(&mut self, now: i64, is_asked: impl Fn(&str) -> bool) -> Option<Late> {
        let first_checks_end = self.there_since.saturating_add(LATE_GRACE);
        for _ in 0..WOKEN_MAX {
            let (_, id) = self.late.first().copied().filter(|(at, _)| *at <= now)?;
            let mut late = None;
            self.change(id, |entry| {
                if matches!(entry.state, State::Busy { .. }) {
                    entry.late_at = now.saturating_add(AGAIN); // its answer may settle it
                    return;
                }
                if !entry.is_checked_late() {
                    if now < first_checks_end {
                        entry.late_at = first_checks_end;
                        return;
                    }
                    if entry.is_overdue && entry.key.as_deref().is_some_and(&is_asked) {
                        entry.late_at = now.saturating_add(LATE_GRACE); // the check is still to come
                        return;
                    }
                }
                entry.is_noting = true;
                late = Some(Late {
                    id,
                    number: entry.stored_number(),
                    task: entry.task.clone(),
                    named_key: entry.named_key.clone(),
                    deadline: entry.deadline,
                    gave_up: entry.is_overdue,
                    checked: entry.checked.clone(),
                });
            });
            if late.is_some() {
                return late;
            }
        }
        None // the next step goes on
    }

    /// The event of a late task is in the log. A task that was given up is forgotten, unless it has been expected anew meanwhile.
    pub(super) fn noted(&mut self, late: &Late, now: i64) {
        let is_meant = |entry: &Entry| entry.stored_number() == late.number;
        if !self.entries.get(&late.id).is_some_and(is_meant) {
            self.change(late.id, |entry| entry.is_noting = false);
        } else if late.gave_up {
            self.settled(late.id);
        } else {
            self.change(late.id, |entry| entry.note_overdue(now));
        }
    }

    /// The event of a late task could not be appended.
    pub(super) fn not_noted(&mut self, late: &Late, now: i64) {
        self.change(late.id, |entry| {
            entry.is_noting = false;
            entry.late_at = now.saturating_add(AGAIN);
        });
    }

    /// When there is something to do next, but for what is due and waits for its key.
    pub(super) fn next_at(&self) -> Option<i64> {
        let first = |set: &BTreeSet<(i64, Id)>| set.first().map(|(at, _)| *at);
        let sets = [&self.sleeping, &self.late];
        sets.into_iter().filter_map(first).min()
    }

    /// The keys that tasks which are due wait for.
    pub(super) fn wanted_keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.lanes.keys()
    }

    /// The task of an entry, and whether its expectation is stored.
    pub(super) fn task(&self, id: Id) -> Option<(&TaskKey, bool)> {
        self.entries.get(&id).map(|it| (&it.task, it.is_stored))
    }

    /// The entry of a task.
    pub(super) fn id(&self, task: &TaskKey) -> Option<Id> {
        self.ids.get(task).copied()
    }

    /// Since when the first of these tasks has been expected.
    pub(super) fn expected_since(&self, ids: &[Id]) -> Option<i64> {
        let entries = ids.iter().filter_map(|id| self.entries.get(id));
        entries.map(|entry| entry.since).min()
    }

    /// What checks of a task have brought.
    pub(super) fn checked(&self, task: &TaskKey) -> Option<&Checked> {
        self.entries.get(&self.id(task)?).map(|it| &it.checked)
    }

    /// The products of all tasks, with the keys with which they are checked; `None` for tasks without one.
    pub(super) fn products(&self) -> BTreeSet<(Option<Arc<str>>, Product)> {
        let of = |entry: &Entry| (entry.key.clone(), entry.task.product.clone());
        self.entries.values().map(of).collect()
    }

    /// The tasks of a product that are checked with a key.
    pub(super) fn of_list(&self, key: &str, product: &Product) -> Vec<Id> {
        let is_of =
            |entry: &Entry| entry.key.as_deref() == Some(key) && entry.task.product == *product;
        let entries = self.entries.iter().filter(|(_, entry)| is_of(entry));
        entries.map(|(id, _)| *id).collect()
    }

    /// Tasks of which an event says that they are late.
    pub(super) fn overdue(&self) -> usize {
        self.overdue
    }

    /// Tasks that it holds.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Moves tasks that have become due into their lanes.
    fn wake(&mut self, now: i64) {
        for _ in 0..WOKEN_MAX {
            match self.sleeping.first().copied() {
                Some((until, id)) if until <= now => self.wake_one(id, until),
                _ => return,
            }
        }
    }

    fn wake_one(&mut self, id: Id, since: i64) {
        let mut is_unsure = false;
        self.change(id, |entry| {
            is_unsure = !entry.is_stored;
            entry.state = if is_unsure {
                State::Unsure { since }
            } else {
                State::Due { since }
            };
        });
        if is_unsure {
            self.unsure.push(id);
        }
    }

    /// Changes an entry, and keeps the sets in step with it.
    fn change(&mut self, id: Id, change: impl FnOnce(&mut Entry)) {
        if let Some(mut entry) = self.entries.remove(&id) {
            self.take(id, &entry);
            change(&mut entry);
            self.put(id, &entry);
            self.entries.insert(id, entry);
        }
    }

    fn put(&mut self, id: Id, entry: &Entry) {
        match (entry.state, &entry.key) {
            (State::Sleeping { until }, _) => {
                self.sleeping.insert((until, id));
            }
            (State::Due { since }, Some(key)) => self.lanes.add(key, &entry.due(id, since)),
            (State::Due { .. }, None) | (State::Unsure { .. } | State::Busy { .. }, _) => {}
        }
        if !entry.is_noting {
            self.late.insert((entry.late_at, id));
        }
        self.overdue += usize::from(entry.is_overdue);
    }

    fn take(&mut self, id: Id, entry: &Entry) {
        match (entry.state, &entry.key) {
            (State::Sleeping { until }, _) => {
                self.sleeping.remove(&(until, id));
            }
            (State::Due { since }, Some(key)) => self.lanes.remove(key, &entry.due(id, since)),
            (State::Due { .. }, None) | (State::Unsure { .. } | State::Busy { .. }, _) => {}
        }
        self.late.remove(&(entry.late_at, id));
        self.overdue -= usize::from(entry.is_overdue);
    }
}

#[cfg(test)]
mod tests;
