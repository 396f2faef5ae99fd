//! What of another log the restored one has already, where the task index cannot tell.
//!
//! Both logs may have a past in common: the other one may itself be a restored backup, or a copy.
//! Of a task with very many terminal events the index names only some, and which ones changes with
//! each that is appended. So of such a task the events that were there before the append are looked
//! up in the log itself. The quarantine has no index by content: its callbacks are compared by
//! their time and their bodies.

use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
};

use xxhash_rust::xxh3::xxh3_128;

use super::{Quarantined, ReadError, Store, layout::TaskEvent, lock, task_entry::may_lack_some};
use crate::event::{Fingerprint, Product, Record, Selectable, Sequence, TaskId};

/// The restored log is read in pieces of about so many bytes.
const READ_BYTES: u64 = 4 * 1024 * 1024;

/// When an event was received, and its status: what is left of one that was erased.
type Moment = (i64, u8);

/// What the restored log had of one task before anything was appended.
#[derive(Default)]
struct Had {
    /// As the index named them.
    fingerprints: Vec<Fingerprint>,
    /// Hashes of what is shown of an event, in which its id is.
    contents: HashSet<u128>,
    moments: HashSet<Moment>,
    /// Of those that are erased.
    husks: HashSet<Moment>,
}

impl Had {
    fn has(&self, record: &Record, fingerprint: Fingerprint) -> bool {
        let moment = moment(record);
        self.fingerprints
            .iter()
            .any(|&named| fingerprint.repeats(named))
            || self.husks.contains(&moment)
            || if record.is_erased() {
                self.moments.contains(&moment)
            } else {
                self.contents.contains(&xxh3_128(record.event()))
            }
    }

    fn add(&mut self, record: &Record) {
        let moment = moment(record);
        self.moments.insert(moment);
        if record.is_erased() {
            self.husks.insert(moment);
        } else {
            self.contents.insert(xxh3_128(record.event()));
        }
    }
}

fn moment(record: &Record) -> Moment {
    (record.received_at_micros(), record.status() as u8)
}

type Task = (String, String);

fn task_of(record: &Record) -> Task {
    (record.product().to_owned(), record.task_id().to_owned())
}

/// What a restored log had before anything was appended.
pub(super) struct Before<'a> {
    restored: &'a Store,
    other: &'a Store,
    head: Sequence,
    /// Tasks of which an index may lack some; read when the first is met, as there is hardly ever
    /// one.
    crowded: Option<HashMap<Task, Had>>,
    /// Numbers of the restored quarantine by the time of receipt; each stands for one callback.
    quarantined: HashMap<i64, Vec<u64>>,
}

impl<'a> Before<'a> {
    pub(super) fn new(restored: &'a Store, other: &'a Store) -> Self {
        let mut quarantined: HashMap<_, Vec<_>> = HashMap::new();
        {
            let shares = lock(&restored.shares);
            for number in shares.after(0) {
                if let Some(kept) = shares.get(number) {
                    quarantined
                        .entry(kept.received_at_micros)
                        .or_default()
                        .push(number);
                }
            }
        }
        Self {
            restored,
            other,
            head: restored.head(),
            crowded: None,
            quarantined,
        }
    }

    /// Whether an event of the other log was there, though the index may not say so. `known`: what
    /// both indexes have of its task.
    pub(super) fn has_event(
        &mut self,
        record: &Record,
        fingerprint: Fingerprint,
        known: [&[TaskEvent]; 2],
    ) -> Result<bool, ReadError> {
        // Only names of terminal events are given up, and only where both logs together have more
        // than that.
        if !record.status().is_terminal() || !known.into_iter().any(may_lack_some) {
            return Ok(false);
        }
        let crowded = match self.crowded.take() {
            Some(crowded) => crowded,
            None => self.read_crowded(record.sequence())?,
        };
        let crowded = self.crowded.insert(crowded);
        Ok(crowded
            .get(&task_of(record))
            .is_some_and(|had| had.has(record, fingerprint)))
    }

    /// All such tasks that the other log has from a place on, and what the restored one had of
    /// them. Until then it has been given no event of any of them.
    fn read_crowded(&self, from: Sequence) -> Result<HashMap<Task, Had>, ReadError> {
        let mut crowded = HashMap::new();
        for event in self.other.log.events(from..=self.other.head()) {
            let record = event?.record;
            let Ok(task_id) = TaskId::parse(record.task_id()) else {
                continue;
            };
            if !record.status().is_terminal() || crowded.contains_key(&task_of(&record)) {
                continue;
            }
            let named = self.restored.index.tasks.get(&task_id)?;
            if may_lack_some(&named) || may_lack_some(&self.other.index.tasks.get(&task_id)?) {
                let Ok(product) = Product::parse(record.product()) else {
                    continue;
                };
                let fingerprints = named
                    .iter()
                    .filter(|event| event.product == product)
                    .map(|event| event.fingerprint)
                    .collect();
                crowded.insert(
                    task_of(&record),
                    Had {
                        fingerprints,
                        ..Had::default()
                    },
                );
            }
        }

        let places = self.restored.first_available()..=self.head;
        self.restored.log.scan(places, READ_BYTES, |record| {
            if record.status().is_terminal()
                && let Some(had) = crowded.get_mut(&task_of(&record))
            {
                had.add(&record);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(crowded)
    }

    /// Whether a callback in the other quarantine was in the restored one: received at the same
    /// microsecond, with the same body.
    pub(super) fn has_quarantined(&mut self, callback: &Quarantined) -> Result<bool, ReadError> {
        let Some(numbers) = self
            .quarantined
            .get_mut(&callback.header.received_at_micros)
        else {
            return Ok(false);
        };
        for at in 0..numbers.len() {
            let same = self.restored.quarantined(numbers[at])?;
            if same.is_some_and(|same| {
                same.body == callback.body && same.header.target == callback.header.target
            }) {
                numbers.swap_remove(at);
                return Ok(true);
            }
        }
        Ok(false)
    }
}
