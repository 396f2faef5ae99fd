//! Applies commits to the index. This is the only place where an entry of the log changes what the
//! store knows of tasks, of the quarantine and of expectations: the writer, the replay of a start and a rebuild all
//! come through here.
//!
//! Applying decides nothing: it knows no clock, no limits and no retention. What a commit means was
//! decided when it was made, and lies in its entries and totals. The changes of several entries are
//! collected in an [`Overlay`], which later entries see, and are written at once. To apply an entry
//! again changes nothing.

use std::collections::{HashMap, hash_map};

use parking_lot::Mutex;

use super::{
    QuarantineHeader, Store,
    error::IndexError,
    expectation::Kept,
    expectation_index::{ExpectationIndex, Unwritten},
    layout::TaskEvent,
    lock,
    log::Place,
    quarantine_index::QuarantineIndex,
    shares::Shares,
    task_entry::TaskEntry,
    task_index::Tasks,
};
use crate::event::{Sequence, TaskId};

/// The state that commits are applied to.
#[derive(Clone, Copy)]
pub(super) struct State<'a> {
    pub tasks: &'a Tasks,
    pub quarantine: &'a Mutex<QuarantineIndex>,
    pub expectations: &'a Mutex<ExpectationIndex>,
    /// Changed as soon as an entry is applied, ahead of the others: retention has to see what a
    /// commit in the making leaves.
    pub shares: &'a Mutex<Shares>,
}

impl Store {
    /// What the writer applies commits to.
    pub(super) fn state(&self) -> State<'_> {
        State {
            tasks: &self.index.tasks,
            quarantine: &self.quarantine,
            expectations: &self.expectations,
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
    /// A callback is put into quarantine, or written again.
    Quarantined {
        number: u64,
        header: &'c QuarantineHeader,
        /// Of header and body, as they are in the log.
        bytes: u64,
    },
    /// A callback has left the quarantine, for whatever reason.
    Left { number: u64 },
    /// A task is expected, or its expectation is written again.
    Expected { number: u64, kept: Kept },
    /// A task is not expected any more.
    ExpectationEnded { number: u64 },
}

/// The changes of some entries, above the state.
pub(super) struct Overlay<'a> {
    state: State<'a>,
    /// The entries of tasks that were looked at.
    tasks: HashMap<TaskId, TaskEntry>,
    /// Callbacks that are put into quarantine, or written again: the bytes of each.
    quarantined: HashMap<u64, (u64, QuarantineHeader)>,
    /// Callbacks that have left the quarantine.
    left: Vec<u64>,
    expectations: Unwritten,
}

impl<'a> Overlay<'a> {
    /// An overlay without changes, with room for so many tasks.
    pub(super) fn new(state: State<'a>, tasks: usize) -> Self {
        Self {
            state,
            tasks: HashMap::with_capacity(tasks),
            quarantined: HashMap::new(),
            left: Vec::new(),
            expectations: Unwritten::default(),
        }
    }

    /// The events that the index names of a task, oldest first, as the changes so far leave them.
    pub(super) fn events(&mut self, task_id: &TaskId) -> Result<&[TaskEvent], IndexError> {
        Ok(&self.entry(task_id)?.events)
    }

    /// The expectation of a task, as the changes so far leave it.
    pub(super) fn expectation(&self, key: &[u8]) -> Option<(u64, Kept)> {
        self.expectations.find(self.state.expectations, key)
    }

    /// The expectation with a number, as the changes so far leave it.
    pub(super) fn numbered_expectation(&self, number: u64) -> Option<Kept> {
        self.expectations.get(self.state.expectations, number)
    }

    /// Applies one entry. Fails only if the index cannot be read.
    pub(super) fn apply(&mut self, change: Change<'_>) -> Result<(), IndexError> {
        match change {
            Change::Appended { task_id, event } => match self.tasks.get_mut(task_id) {
                Some(entry) => entry.append(event),
                None => self.entry(task_id)?.append(event),
            },
            Change::Erased { task_id, place } => self.entry(task_id)?.erase(place),
            Change::Forgotten { task_id, place } => self.entry(task_id)?.forget(place),
            Change::Quarantined {
                number,
                header,
                bytes,
            } => self.quarantine(number, header, bytes),
            Change::Left { number } => self.leave(number),
            Change::Expected { number, kept } => self.expectations.put(number, kept),
            Change::ExpectationEnded { number } => self.expectations.end(number),
        }
        Ok(())
    }

    /// The entry of a task, read when it is looked at first.
    fn entry(&mut self, task_id: &TaskId) -> Result<&mut TaskEntry, IndexError> {
        Ok(match self.tasks.entry(task_id.clone()) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(place) => {
                place.insert(TaskEntry::new(self.state.tasks.get(task_id)?))
            }
        })
    }

    fn quarantine(&mut self, number: u64, header: &QuarantineHeader, bytes: u64) {
        let mut shares = lock(self.state.shares);
        if shares.get(number).is_none() {
            shares.add(
                number,
                &header.credential,
                &header.product,
                bytes,
                header.received_at_micros,
            );
        }
        self.quarantined.insert(number, (bytes, header.clone()));
    }

    fn leave(&mut self, number: u64) {
        self.left.push(number);
        lock(self.state.shares).remove(number);
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
            quarantined: self.quarantined,
            left: self.left,
            expectations: self.expectations,
        }
    }
}

/// The changes of one overlay.
pub(super) struct Changes {
    tasks: Vec<(TaskId, Vec<TaskEvent>)>,
    quarantined: HashMap<u64, (u64, QuarantineHeader)>,
    left: Vec<u64>,
    expectations: Unwritten,
}

impl Changes {
    /// Writes them to the state. `segment` has their commit, and `places` are those of the
    /// quarantined callbacks. The log must have the commit for good: the state could not take it
    /// back.
    pub(super) fn write(
        self,
        state: State<'_>,
        segment: u64,
        places: impl IntoIterator<Item = (u64, Place)>,
    ) -> Result<(), IndexError> {
        if !self.quarantined.is_empty() || !self.left.is_empty() {
            let mut quarantine = lock(state.quarantine);
            for (number, place) in places {
                if let Some((bytes, header)) = self.quarantined.get(&number) {
                    quarantine.put(number, place, *bytes, header);
                }
            }
            self.left
                .iter()
                .for_each(|&number| quarantine.remove(number));
        }
        self.expectations.write(state.expectations, segment);
        state.tasks.change(self.tasks)
    }
}
