//! The task index: which retained events each task has. What has changed since the last checkpoint
//! is in memory, the rest in the database.
//!
//! The log tells all of it again, so nothing is lost with the memory; and what is written for many
//! tasks at once, in the order of their ids, costs the database a fraction of what it costs commit
//! by commit: no journal, no sorting, fewer tables to merge.

use std::{collections::HashMap, mem, ops::Deref, sync::Arc};

use fjall::{Database, Keyspace, Readable};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{
    error::{IndexError, ReadError},
    index_doubt::Doubt,
    layout::{TaskEvent, encode_task, parse_task},
    lock,
};
use crate::event::TaskId;

/// Events of the tasks that may have changed since the last checkpoint, some hundreds of bytes
/// each. A segment of usual events has a fifth of that; beyond it a change of more waits for the
/// database.
pub(super) const RECENT_MAX: usize = 250_000;

type Changes = HashMap<TaskId, Events>;

/// What one task has, oldest first; nothing if all of it is forgotten. Most have one event, which
/// needs no memory of its own.
#[derive(Clone)]
enum Events {
    One([TaskEvent; 1]),
    Many(Arc<[TaskEvent]>),
}

impl From<Vec<TaskEvent>> for Events {
    fn from(events: Vec<TaskEvent>) -> Self {
        events
            .try_into()
            .map_or_else(|events: Vec<_>| Self::Many(events.into()), Self::One)
    }
}

impl Events {
    fn weight(&self) -> usize {
        self.len().max(1)
    }
}

impl Deref for Events {
    type Target = [TaskEvent];

    fn deref(&self) -> &[TaskEvent] {
        match self {
            Self::One(event) => event,
            Self::Many(events) => events,
        }
    }
}

/// See the module's description.
pub(super) struct Tasks {
    database: Database,
    stored: Keyspace,
    recent: RwLock<Recent>,
    /// Held by who brings what is recent into the database.
    turn: Mutex<()>,
    recent_max: usize,
    doubt: Arc<Doubt>,
}

#[derive(Default)]
struct Recent {
    changed: Changes,
    /// Events in it, and tasks without any.
    weight: usize,
    /// On its way into the database, older than what has changed.
    flushing: Arc<Changes>,
}

impl Recent {
    fn get(&self, task_id: &TaskId) -> Option<&Events> {
        self.changed
            .get(task_id)
            .or_else(|| self.flushing.get(task_id))
    }

    fn change(&mut self, task_id: TaskId, events: Events) {
        self.weight += events.weight();
        if let Some(before) = self.changed.insert(task_id, events) {
            self.weight -= before.weight();
        }
    }
}

impl Tasks {
    pub(super) fn new(
        database: Database,
        stored: Keyspace,
        recent_max: usize,
        doubt: Arc<Doubt>,
    ) -> Self {
        Self {
            database,
            stored,
            recent: RwLock::default(),
            turn: Mutex::default(),
            recent_max,
            doubt,
        }
    }

    /// What is known of a task.
    pub(super) fn get(&self, task_id: &TaskId) -> Result<Vec<TaskEvent>, IndexError> {
        let recent = self.recent().get(task_id).cloned();
        match recent {
            Some(events) => Ok(events.to_vec()),
            None => self.doubt.look(self.get_stored(task_id)),
        }
    }

    fn get_stored(&self, task_id: &TaskId) -> Result<Vec<TaskEvent>, IndexError> {
        let entry = self.stored.get(task_id.as_str())?;
        Ok(entry.map_or(Ok(Vec::with_capacity(1)), |entry| parse_task(&entry))?)
    }

    /// Hands over what is known of these tasks, one by one, all as of one moment.
    pub(super) fn each<'a>(
        &self,
        task_ids: impl IntoIterator<Item = &'a TaskId>,
        mut each: impl FnMut(&'a TaskId, &[TaskEvent]),
    ) -> Result<(), ReadError> {
        let (found, snapshot) = {
            let recent = self.recent();
            let found: Vec<_> = task_ids
                .into_iter()
                .map(|task_id| (task_id, recent.get(task_id).cloned()))
                .collect();
            (found, self.database.snapshot())
        };
        for (task_id, events) in found {
            match events {
                Some(events) => each(task_id, &events),
                None => {
                    let entry = snapshot.get(&self.stored, task_id.as_str());
                    let entry = entry.map_err(IndexError::from).and_then(|entry| {
                        Ok(entry.map_or(Ok(Vec::new()), |entry| parse_task(&entry))?)
                    });
                    each(task_id, &self.doubt.look(entry)?);
                }
            }
        }
        Ok(())
    }

    /// Takes up what these tasks have now. The log must have it for good.
    pub(super) fn change(
        &self,
        changes: impl IntoIterator<Item = (TaskId, Vec<TaskEvent>)>,
    ) -> Result<(), IndexError> {
        let weight = {
            let mut recent = self.recent_mut();
            changes
                .into_iter()
                .for_each(|(task_id, events)| recent.change(task_id, events.into()));
            recent.weight
        };
        if weight > self.recent_max {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Brings all that has changed so far into the database, durably: the end of an ingestion syncs
    /// the new table, its folder and the list of tables.
    pub(super) fn flush(&self) -> Result<(), IndexError> {
        self.flush_behind(|| Ok(()))
    }

    /// The same, behind what makes the log durable with all that has changed so far.
    pub(super) fn flush_behind(
        &self,
        make_durable: impl FnOnce() -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let _turn = lock(&self.turn);
        let flushing = self.begin_to_flush();
        make_durable()?;
        self.doubt.look(self.ingest(&flushing))
    }

    /// Whether so much more is brought into the database at once.
    pub(super) fn is_full_with(&self, weight: usize) -> bool {
        self.recent().weight + weight > self.recent_max
    }

    fn ingest(&self, flushing: &Changes) -> Result<(), IndexError> {
        if flushing.is_empty() {
            return Ok(()); // the database would leave an empty file
        }
        let mut sorted: Vec<_> = flushing.iter().collect();
        sorted.sort_unstable_by_key(|(task_id, _)| *task_id);
        let mut ingestion = self.stored.start_ingestion()?;
        for (task_id, events) in sorted {
            if events.is_empty() {
                ingestion.write_tombstone(task_id.as_str())?;
            } else {
                ingestion.write(task_id.as_str(), encode_task(events))?;
            }
        }
        ingestion.finish()?;
        self.recent_mut().flushing = Arc::default();
        Ok(())
    }

    /// From here on what changes is newer than what is flushed.
    fn begin_to_flush(&self) -> Arc<Changes> {
        // As much will change again, and making room is nothing that a commit should wait for.
        let room = Changes::with_capacity(self.recent().changed.len());
        let mut recent = self.recent_mut();
        recent.weight = 0;
        let mut changes = mem::replace(&mut recent.changed, room);
        // What could not be flushed before fails the store, which reads on: it must not be lost
        // from sight, nor come over what is newer.
        for (task_id, events) in recent.flushing.iter() {
            changes
                .entry(task_id.clone())
                .or_insert_with(|| events.clone());
        }
        recent.flushing = Arc::new(changes);
        Arc::clone(&recent.flushing)
    }

    fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read()
    }

    fn recent_mut(&self) -> RwLockWriteGuard<'_, Recent> {
        self.recent.write()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        thread,
    };

    use fjall::KeyspaceCreateOptions;
    use proptest::{collection::vec, prelude::*};
    use uuid::Uuid;

    use super::*;
    use crate::event::{Product, Sequence, TaskStatus};

    fn tasks_in(directory: &std::path::Path, recent_max: usize) -> Tasks {
        let database = Database::builder(directory).open().unwrap();
        let stored = database
            .keyspace("tasks", KeyspaceCreateOptions::default)
            .unwrap();
        Tasks::new(database, stored, recent_max, Arc::new(Doubt::of(directory)))
    }

    fn id(task: u8) -> TaskId {
        TaskId::parse(&format!("t{task}")).unwrap()
    }

    fn events(places: &[u64]) -> Vec<TaskEvent> {
        let event = |&place| TaskEvent {
            sequence: Sequence(place),
            event_id: Uuid::from_u128(place.into()),
            fingerprint: u128::from(place).into(),
            revision: 1,
            status: TaskStatus::Completed,
            product: Product::parse("veo").unwrap(),
            is_erased: false,
        };
        places.iter().map(event).collect()
    }

    fn places(events: &[TaskEvent]) -> Vec<u64> {
        events.iter().map(|event| event.sequence.0).collect()
    }

    /// What is known, by each way of asking: one by one, and several at once.
    fn told(tasks: &Tasks) -> [BTreeMap<TaskId, Vec<u64>>; 2] {
        let ids: Vec<_> = (0..8).map(id).collect();
        let one_by_one = ids
            .iter()
            .map(|id| (id.clone(), places(&tasks.get(id).unwrap())));
        let mut at_once = BTreeMap::new();
        tasks
            .each(&ids, |id, events| {
                drop(at_once.insert(id.clone(), places(events)));
            })
            .unwrap();
        at_once.retain(|_, places| !places.is_empty());
        [
            one_by_one
                .filter(|(_, places)| !places.is_empty())
                .collect(),
            at_once,
        ]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Change(Vec<(u8, Vec<u64>)>),
        Flush,
        /// As a flushing that has begun and not ended leaves it.
        BeginToFlush,
        Reopen,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => vec((0..8u8, vec(1..100u64, 0..3)), 1..4).prop_map(Step::Change),
            2 => Just(Step::Flush),
            1 => Just(Step::BeginToFlush),
            1 => Just(Step::Reopen),
        ]
    }

    struct End<'a>(&'a AtomicBool);

    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn changes_made_together_are_read_together_and_never_grow_older_while_others_flush() {
        const ROUNDS: u64 = 300;
        let directory = tempfile::tempdir().unwrap();
        let tasks = tasks_in(directory.path(), usize::MAX);
        let ids = [id(1), id(2)];
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Relaxed) {
                    tasks.flush().unwrap();
                }
            });
            scope.spawn(|| {
                let mut seen = 0;
                while !is_done.load(Relaxed) {
                    let mut counts = Vec::new();
                    tasks
                        .each(&ids, |_, events| counts.push(events.len()))
                        .unwrap();
                    assert!(
                        counts[0] == counts[1] && counts[0] >= seen,
                        "{counts:?} behind {seen}"
                    );
                    seen = counts[0];
                }
            });
            // Also when an assertion below fails: the scope waits for the others.
            let _end = End(&is_done);
            for round in 1..=ROUNDS {
                let now = events(&(1..=round).collect::<Vec<_>>());
                tasks
                    .change(ids.clone().map(|id| (id, now.clone())))
                    .unwrap();
                assert_eq!(tasks.get(&ids[0]).unwrap(), now);
            }
        });
    }

    #[test]
    fn an_entry_that_cannot_be_read_has_the_next_start_build_the_index_again() {
        let directory = tempfile::tempdir().unwrap();
        let tasks = tasks_in(directory.path(), 10);
        assert!(tasks.get(&id(1)).is_ok() && tasks.doubt.problem().is_none());
        tasks.stored.insert("t1", "garbage").unwrap();
        let ids = [id(1)];
        assert!(tasks.each(&ids, |_, _| {}).is_err());
        assert!(tasks.get(&ids[0]).is_err());
        let problem = tasks.doubt.problem().unwrap().to_owned();
        assert_eq!(
            crate::store::index_doubt::said_in(directory.path()),
            Some(problem)
        );
        assert!(tasks.get(&id(2)).is_ok(), "the others are still read");
    }

    #[test]
    fn flushing_nothing_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let tasks = tasks_in(directory.path(), 10);
        let tables = || {
            std::fs::read_dir(tasks.stored.path().join("tables"))
                .unwrap()
                .count()
        };
        tasks.flush().unwrap();
        assert_eq!(tables(), 0);
        tasks.change([(id(1), events(&[1]))]).unwrap();
        tasks.flush().unwrap();
        tasks.flush().unwrap();
        assert_eq!(tables(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn the_newest_change_is_read_wherever_it_lies(steps in vec(any_step(), 1..25), recent_max in 2..6usize) {
            let directory = tempfile::tempdir().unwrap();
            let mut tasks = tasks_in(directory.path(), recent_max);
            let mut known = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Change(changes) => {
                        known.extend(changes.iter().map(|(task, places)| (id(*task), places.clone())));
                        let changes = changes.into_iter().map(|(task, places)| (id(task), events(&places)));
                        tasks.change(changes).unwrap();
                        let held: usize = tasks.recent().changed.values().map(|events| events.len().max(1)).sum();
                        prop_assert_eq!(tasks.recent().weight, held);
                        prop_assert!(held <= recent_max, "more is brought into the database");
                    }
                    Step::Flush => {
                        tasks.flush().unwrap();
                        prop_assert!(tasks.recent().changed.is_empty() && tasks.recent().flushing.is_empty());
                    }
                    Step::BeginToFlush => drop(tasks.begin_to_flush()),
                    Step::Reopen => {
                        tasks.flush().unwrap();
                        drop(tasks);
                        tasks = tasks_in(directory.path(), recent_max);
                    }
                }
                known.retain(|_, places| !places.is_empty());
                prop_assert_eq!(told(&tasks), [known.clone(), known.clone()]);
            }
        }
    }
}
