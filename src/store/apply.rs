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
    log::NewCopy,
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
    /// An expectation is written again in this log; `frame` has its newest copy in the stream.
    ExpectedHere { number: u64, kept: Kept, frame: u64 },
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
    /// The numbers of those with an idempotency key.
    keys: HashMap<u64, u64>,
    /// Callbacks that have left the quarantine.
    left: Vec<u64>,
    expectations: Unwritten,
    /// How to take back what was changed ahead of the commit, if that may be necessary.
    undo: Option<Undo>,
}

/// What entries have changed of the shares, in order.
type Undo = Vec<ShareChange>;

enum ShareChange {
    Added(u64),
    Removed {
        number: u64,
        bytes: u64,
        header: Box<QuarantineHeader>,
    },
}

impl<'a> Overlay<'a> {
    /// An overlay without changes, with room for so many tasks.
    pub(super) fn new(state: State<'a>, tasks: usize) -> Self {
        Self {
            state,
            tasks: HashMap::with_capacity(tasks),
            quarantined: HashMap::new(),
            keys: HashMap::new(),
            left: Vec::new(),
            expectations: Unwritten::default(),
            undo: None,
        }
    }

    /// The same of changes that may have to be taken back, by [`Changes::take_back`].
    pub(super) fn revocable(state: State<'a>, tasks: usize) -> Self {
        Self {
            undo: Some(Undo::new()),
            ..Self::new(state, tasks)
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

    /// The number that a callback with this idempotency key was given, with the changes so far.
    pub(super) fn quarantined_as(&self, idempotency_key: u64) -> Option<u64> {
        let here = self.keys.get(&idempotency_key).copied();
        here.or_else(|| lock(self.state.quarantine).number_of(idempotency_key))
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
            Change::ExpectedHere {
                number,
                kept,
                frame,
            } => self.expectations.put_here(number, kept, frame),
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
            if let Some(undo) = &mut self.undo {
                undo.push(ShareChange::Added(number));
            }
        }
        if let Some(key) = header.idempotency_key {
            self.keys.insert(key, number);
        }
        self.quarantined.insert(number, (bytes, header.clone()));
    }

    fn leave(&mut self, number: u64) {
        self.left.push(number);
        let mut shares = lock(self.state.shares);
        if let Some(undo) = &mut self.undo
            && let (Some(kept), Some(header)) = (shares.get(number), shares.header_of(number))
        {
            undo.push(ShareChange::Removed {
                number,
                bytes: kept.bytes,
                header: Box::new(header),
            });
        }
        shares.remove(number);
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
            undo: self.undo.unwrap_or_default(),
        }
    }
}

/// The changes of one overlay.
pub(super) struct Changes {
    tasks: Vec<(TaskId, Vec<TaskEvent>)>,
    quarantined: HashMap<u64, (u64, QuarantineHeader)>,
    left: Vec<u64>,
    expectations: Unwritten,
    undo: Undo,
}

impl Changes {
    /// About how much the tasks that they change take in memory: see [`Tasks::is_full_with`].
    pub(super) fn weight(&self) -> usize {
        let tasks = self.tasks.iter();
        tasks.map(|(_, events)| events.len().max(1)).sum()
    }

    /// Takes back what was changed ahead of a commit that does not come. They must be revocable.
    pub(super) fn take_back(self, state: State<'_>) {
        let mut shares = lock(state.shares);
        for change in self.undo.into_iter().rev() {
            match change {
                ShareChange::Added(number) => shares.remove(number),
                ShareChange::Removed {
                    number,
                    bytes,
                    header,
                } => {
                    let QuarantineHeader {
                        credential,
                        product,
                        received_at_micros,
                        ..
                    } = *header;
                    shares.add(number, &credential, &product, bytes, received_at_micros);
                }
            }
        }
    }

    /// Writes them to the state. `segment` has their commit, `frame` is where it came from, and `copies` are those of the
    /// quarantined callbacks. The log must have the commit for good: the state could not take it
    /// back.
    pub(super) fn write(
        self,
        state: State<'_>,
        segment: u64,
        frame: u64,
        copies: impl IntoIterator<Item = NewCopy>,
    ) -> Result<(), IndexError> {
        if !self.quarantined.is_empty() || !self.left.is_empty() {
            let mut quarantine = lock(state.quarantine);
            for copy in copies {
                if let Some((bytes, header)) = self.quarantined.get(&copy.number) {
                    quarantine.put(copy, *bytes, header);
                }
            }
            self.left
                .iter()
                .for_each(|&number| quarantine.remove(number));
        }
        self.expectations.write(state.expectations, segment, frame);
        state.tasks.change(self.tasks)
    }
}
