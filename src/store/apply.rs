//! Applies commits to the index. This is the only place where an entry of the log changes what the store knows of tasks and of
//! the quarantine: the writer, the replay of a start and a rebuild all come through here.
//!
//! Applying decides nothing: it knows no clock, no limits and no retention. What a commit means was decided when it was made,
//! and lies in its entries and totals. The changes of several entries are collected in an [`Overlay`], which later entries see, and
//! are written at once. To apply an entry again changes nothing.

use std::{
    collections::{HashMap, hash_map},
    io,
    sync::Mutex,
};

use fjall::{Database, Keyspace, OwnedWriteBatch};

use super::{
    QuarantineHeader, Store,
    dedupe::insert,
    layout::{Damaged, TaskEvent, sequence_key},
    lock,
    quarantine_keys::QuarantineKeys,
    shares::Shares,
    tasks::Tasks,
};
use crate::event::{Sequence, TaskId};

/// The state that commits are applied to.
#[derive(Clone, Copy)]
pub(super) struct Index<'a> {
    pub tasks: &'a Tasks,
    pub database: &'a Database,
    pub quarantine: &'a Keyspace,
    pub quarantine_keys: &'a QuarantineKeys,
    /// Changed as soon as an entry is applied, ahead of the others: retention has to see what a commit in the making leaves.
    pub shares: &'a Mutex<Shares>,
}

impl Store {
    /// What the writer applies commits to.
    pub(super) fn index(&self) -> Index<'_> {
        Index {
            tasks: &self.tasks,
            database: &self.database,
            quarantine: &self.quarantine,
            quarantine_keys: &self.quarantine_keys,
            shares: &self.shares,
        }
    }
}

/// One entry of a commit, as the index sees it.
pub(super) enum Change<'c> {
    /// An event is appended.
    Appended {
        task_id: &'c TaskId,
        event: TaskEvent,
    },
    /// The content of an event is erased.
    Erased {
        task_id: &'c TaskId,
        place: Sequence,
    },
    /// Retention has forgotten an event.
    Forgotten {
        task_id: &'c TaskId,
        place: Sequence,
    },
    /// A callback is put into quarantine.
    Quarantined {
        number: u64,
        header: &'c QuarantineHeader,
        /// Header and body, as they are in the log.
        value: &'c [u8],
    },
    /// A callback has left the quarantine, for whatever reason.
    Left { number: u64 },
}

/// What the index names of one task.
struct TaskEntry {
    /// Oldest first.
    events: Vec<TaskEvent>,
    /// It differs from the index. A commit of duplicates changes no entry, and then writes none.
    is_changed: bool,
}

/// The changes of some entries, above the index.
pub(super) struct Overlay<'a> {
    index: Index<'a>,
    /// The entries of tasks that were looked at.
    tasks: HashMap<TaskId, TaskEntry>,
    quarantine: OwnedWriteBatch,
    /// Callbacks that have left the quarantine: their keys go.
    left: Vec<u64>,
}

impl<'a> Overlay<'a> {
    /// An overlay without changes, with room for so many tasks.
    pub(super) fn new(index: Index<'a>, tasks: usize) -> Self {
        Self {
            index,
            tasks: HashMap::with_capacity(tasks),
            quarantine: index.database.batch(),
            left: Vec::new(),
        }
    }

    /// The events that the index names of a task, oldest first, as the changes so far leave them.
    pub(super) fn events<E>(&mut self, task_id: &TaskId) -> Result<&[TaskEvent], E>
    where
        E: From<fjall::Error> + From<Damaged>,
    {
        Ok(&self.entry::<E>(task_id)?.events)
    }

    /// Applies one entry. Fails only if the index cannot be read, or the key of a callback cannot be written.
    pub(super) fn apply<E>(&mut self, change: Change<'_>) -> Result<(), E>
    where
        E: From<fjall::Error> + From<Damaged> + From<io::Error>,
    {
        match change {
            Change::Appended { task_id, event } => match self.tasks.get_mut(task_id) {
                Some(entry) => entry.append(event),
                None => self.entry::<E>(task_id)?.append(event),
            },
            Change::Erased { task_id, place } => self.entry::<E>(task_id)?.erase(place),
            Change::Forgotten { task_id, place } => self.entry::<E>(task_id)?.forget(place),
            Change::Quarantined {
                number,
                header,
                value,
            } => self.quarantine(number, header, value)?,
            Change::Left { number } => self.leave(number),
        }
        Ok(())
    }

    /// The entry of a task, read when it is looked at first.
    fn entry<E>(&mut self, task_id: &TaskId) -> Result<&mut TaskEntry, E>
    where
        E: From<fjall::Error> + From<Damaged>,
    {
        Ok(match self.tasks.entry(task_id.clone()) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(place) => place.insert(TaskEntry {
                events: self.index.tasks.get::<E>(task_id)?,
                is_changed: false,
            }),
        })
    }

    fn quarantine(
        &mut self,
        number: u64,
        header: &QuarantineHeader,
        value: &[u8],
    ) -> io::Result<()> {
        let sealed = self.index.quarantine_keys.seal(number, value)?;
        let key = sequence_key(Sequence(number));
        self.quarantine.insert(self.index.quarantine, key, sealed);

        let mut shares = lock(self.index.shares);
        if shares.get(number).is_none() {
            shares.add(
                number,
                &header.credential,
                &header.product,
                value.len() as u64,
                header.received_at_micros,
            );
        }
        Ok(())
    }

    fn leave(&mut self, number: u64) {
        let key = sequence_key(Sequence(number));
        self.quarantine.remove(self.index.quarantine, key);
        self.left.push(number);
        lock(self.index.shares).remove(number);
    }

    /// Ends the overlay: its changes, to be written when the log has the commit for good.
    pub(super) fn into_changes(self) -> Changes {
        let tasks = self
            .tasks
            .into_iter()
            .filter(|(_, entry)| entry.is_changed)
            .map(|(task_id, entry)| (task_id, entry.events))
            .collect();
        Changes {
            tasks,
            quarantine: self.quarantine,
            left: self.left,
        }
    }
}

impl TaskEntry {
    fn append(&mut self, event: TaskEvent) {
        self.is_changed |= insert(&mut self.events, event);
    }

    fn erase(&mut self, place: Sequence) {
        // An entry need not name all terminal events.
        if let Some(event) = self.find(place)
            && !event.is_erased
        {
            event.is_erased = true;
            self.is_changed = true;
        }
    }

    fn forget(&mut self, place: Sequence) {
        let count = self.events.len();
        self.events.retain(|event| event.sequence != place);
        self.is_changed |= self.events.len() != count;
    }

    fn find(&mut self, place: Sequence) -> Option<&mut TaskEvent> {
        let at = self
            .events
            .binary_search_by_key(&place, |event| event.sequence);
        at.ok().map(|at| &mut self.events[at])
    }
}

/// The changes of one overlay.
pub(super) struct Changes {
    tasks: Vec<(TaskId, Vec<TaskEvent>)>,
    quarantine: OwnedWriteBatch,
    left: Vec<u64>,
}

impl Changes {
    /// Writes them to the index. The log must have their commits for good: the index could not take them back.
    pub(super) fn write(self, index: Index<'_>) -> fjall::Result<()> {
        self.quarantine.commit()?;
        index.tasks.change(self.tasks)?;
        if !self.left.is_empty() {
            index.quarantine_keys.forget(&self.left)?;
        }
        Ok(())
    }
}
