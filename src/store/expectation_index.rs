//! The open expectations, in memory, and which of them the index has yet to store. Pure.
//!
//! Changed only by commits that are durable. The writer's overlay ([`Unwritten`]) has what a commit
//! in the making changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use bytes::{Buf, BufMut};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    by_segment::BySegment,
    expectation::{ByTask, Expectation, Kept},
    layout::Damaged,
    lock,
};

/// The new value of each number that has changed; `None` if the expectation has ended.
pub(super) type Changes = BTreeMap<u64, Option<Vec<u8>>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub kept: Kept,
    /// The segment with its newest copy.
    pub segment: u64,
    /// The frame that has its newest copy in the stream; 0 on a single machine.
    pub frame: u64,
}

impl Held {
    /// As the index stores it.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + self.kept.bytes().len());
        bytes.put_u64_le(self.segment);
        bytes.put_u64_le(self.frame);
        bytes.put_slice(self.kept.bytes());
        bytes
    }

    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Damaged> {
        const DAMAGED: Damaged = Damaged("expectation in the index");
        let segment = bytes.try_get_u64_le().map_err(|_| DAMAGED)?;
        let frame = bytes.try_get_u64_le().map_err(|_| DAMAGED)?;
        Ok(Self {
            segment,
            frame,
            kept: Kept::parse(bytes)?,
        })
    }
}

/// How many expectations are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpectationCounts {
    /// All of them.
    pub open: usize,
    /// Those of which an event says that they are late.
    pub overdue: usize,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct ExpectationIndex {
    held: BTreeMap<u64, Held>,
    by_task: HashMap<ByTask, u64>,
    /// How many each client has.
    clients: HashMap<Box<str>, usize>,
    segments: BySegment,
    /// The same by the frames that have their newest copies in the stream.
    frames: BySegment,
    overdue: usize,
    /// Those that have changed since the last checkpoint.
    changed: BTreeSet<u64>,
    /// The newest number that was added.
    newest: watch::Sender<u64>,
}

impl ExpectationIndex {
    /// Adds one that the index has stored.
    pub(super) fn load(&mut self, number: u64, held: Held) {
        self.take_out(number);
        let Held {
            kept,
            segment,
            frame,
        } = &held;
        let bytes = kept.bytes().len() as u64;
        self.segments.put(*segment, number, bytes);
        if *frame > 0 {
            self.frames.put(*frame, number, bytes);
        }
        self.overdue += usize::from(kept.is_overdue());
        if let Some(client) = kept.client() {
            *self.clients.entry(client.into()).or_default() += 1;
        }
        // A replay may bring back one that has ended, until it comes to that: the task may be
        // expected anew.
        let newest = self.by_task.entry(ByTask(kept.clone())).or_default();
        *newest = number.max(*newest);
        self.held.insert(number, held);
        self.newest.send_if_modified(|newest| {
            let is_new = number > *newest;
            *newest = number.max(*newest);
            is_new
        });
    }

    /// Adds one, or a newer copy.
    pub(super) fn put(&mut self, number: u64, held: Held) {
        self.load(number, held);
        self.changed.insert(number);
    }

    /// Removes one that has ended.
    pub(super) fn remove(&mut self, number: u64) {
        self.take_out(number);
        self.changed.insert(number);
    }

    fn take_out(&mut self, number: u64) {
        let Some(Held {
            kept,
            segment,
            frame,
        }) = self.held.remove(&number)
        else {
            return;
        };
        let bytes = kept.bytes().len() as u64;
        self.segments.remove(segment, number, bytes);
        self.frames.remove(frame, number, bytes);
        self.overdue -= usize::from(kept.is_overdue());
        if let Some(client) = kept.client()
            && let Some(count) = self.clients.get_mut(client)
        {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(client);
            }
        }
        if self.by_task.get(kept.key()) == Some(&number) {
            self.by_task.remove(kept.key());
        }
    }

    /// The one of a task.
    pub(super) fn find(&self, key: &[u8]) -> Option<(u64, &Kept)> {
        let number = *self.by_task.get(key)?;
        Some((number, &self.held.get(&number)?.kept))
    }

    pub(super) fn get(&self, number: u64) -> Option<&Kept> {
        self.held.get(&number).map(|held| &held.kept)
    }

    /// The frame that has the newest copy of one in the stream.
    pub(super) fn frame_of(&self, number: u64) -> Option<u64> {
        self.held.get(&number).map(|held| held.frame)
    }

    /// Those behind a number, in order, at most so many.
    pub(super) fn after(&self, number: u64, most: usize) -> Vec<Expectation> {
        let Some(first) = number.checked_add(1) else {
            return Vec::new();
        };
        let behind = self.held.range(first..).take(most);
        behind
            .map(|(&number, held)| held.kept.expectation(number))
            .collect()
    }

    /// All of them as they are now, in the order of their numbers.
    pub(super) fn all(&self) -> Vec<(u64, Kept)> {
        self.held
            .iter()
            .map(|(&number, held)| (number, held.kept.clone()))
            .collect()
    }

    pub(super) fn counts(&self) -> ExpectationCounts {
        ExpectationCounts {
            open: self.held.len(),
            overdue: self.overdue,
        }
    }

    /// Tells when one with a higher number is added.
    pub(super) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// How many a client has.
    pub(super) fn of_client(&self, client: &str) -> usize {
        self.clients.get(client).copied().unwrap_or(0)
    }

    /// Where in the log their newest copies are.
    pub(super) fn segments(&self) -> &BySegment {
        &self.segments
    }

    /// By the frames that have their newest copies in the stream.
    pub(super) fn frames(&self) -> &BySegment {
        &self.frames
    }

    /// The changes since the last call.
    pub(super) fn take_changes(&mut self) -> Changes {
        mem::take(&mut self.changed)
            .into_iter()
            .map(|number| (number, self.held.get(&number).map(Held::encode)))
            .collect()
    }
}

/// What the entries of a commit change.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    put: BTreeMap<u64, Kept>,
    /// Those of them that are only written again in this log: the frames that have their newest copies in the stream.
    frames: BTreeMap<u64, u64>,
    ended: BTreeSet<u64>,
    by_task: HashMap<ByTask, u64>,
}

impl Unwritten {
    /// Adds an expectation, or a newer copy of one.
    pub(super) fn put(&mut self, number: u64, kept: Kept) {
        self.by_task.insert(ByTask(kept.clone()), number);
        self.put.insert(number, kept);
        self.frames.remove(&number);
    }

    /// Adds a newer copy that no frame knows of; `frame` has the newest copy in the stream.
    pub(super) fn put_here(&mut self, number: u64, kept: Kept, frame: u64) {
        self.put(number, kept);
        self.frames.insert(number, frame);
    }

    /// Ends an expectation.
    pub(super) fn end(&mut self, number: u64) {
        self.put.remove(&number);
        self.ended.insert(number);
    }

    /// The open one of a task, above the state.
    pub(super) fn find(&self, state: &Mutex<ExpectationIndex>, key: &[u8]) -> Option<(u64, Kept)> {
        if let Some(&number) = self.by_task.get(key) {
            return Some((number, self.put.get(&number)?.clone()));
        }
        let state = lock(state);
        let (number, kept) = state.find(key)?;
        (!self.ended.contains(&number)).then(|| (number, kept.clone()))
    }

    /// The open one with a number, above the state.
    pub(super) fn get(&self, state: &Mutex<ExpectationIndex>, number: u64) -> Option<Kept> {
        if self.ended.contains(&number) {
            return None;
        }
        let unwritten = self.put.get(&number).cloned();
        unwritten.or_else(|| lock(state).get(number).cloned())
    }

    /// Writes the changes to the state; `segment` is where their commit lies, and `frame` where it came from.
    pub(super) fn write(self, state: &Mutex<ExpectationIndex>, segment: u64, frame: u64) {
        if self.put.is_empty() && self.ended.is_empty() {
            return; // almost always
        }
        let mut state = lock(state);
        for (number, kept) in self.put {
            let frame = self.frames.get(&number).copied().unwrap_or(frame);
            let held = Held {
                kept,
                segment,
                frame,
            };
            state.put(number, held);
        }
        for number in self.ended {
            state.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::{super::expectation::tests::expectation, *};

    fn kept(number: u64, client: u8) -> Kept {
        Kept::new(&Expectation {
            client: (client > 0).then(|| format!("c{client}")),
            ..expectation(number, &format!("t{}", number % 3))
        })
    }

    /// Each second segment came from the stream.
    fn held(kept: Kept, segment: u64) -> Held {
        Held {
            kept,
            segment,
            frame: segment % 2 * segment,
        }
    }

    proptest! {
        /// Whatever is put, carried and ended, also after some of it is replayed: what is stored is
        /// what is known, and the counts are those of what is there.
        #[test]
        fn changes_stored_and_loaded_again_are_the_same_expectations(
            steps in collection::vec((1..9u64, 0..4u8), 1..60), cut: prop::sample::Index,
        ) {
            let (mut index, mut stored, mut log) = (ExpectationIndex::default(), BTreeMap::new(), Vec::new());
            let mut ended = BTreeSet::new();
            let apply = |index: &mut ExpectationIndex, (number, step, segment): (u64, u8, u64)| match step {
                0 => index.remove(number),
                1 => index.put(number, held(kept(number, step).overdue(), segment)),
                _ => index.put(number, held(kept(number, step), segment)),
            };
            for (segment, (number, step)) in (1..).zip(steps) {
                // A number is never used again.
                if ended.contains(&number) {
                    continue;
                }
                // A task has one at a time.
                if step > 0 && index.find(kept(number, step).key()).is_some_and(|(other, _)| other != number) {
                    continue;
                }
                if step == 0 {
                    ended.insert(number);
                }
                log.push((number, step, segment));
                apply(&mut index, (number, step, segment));
                for (number, change) in index.take_changes() {
                    match change {
                        Some(bytes) => stored.insert(number, Held::parse(&bytes).unwrap()),
                        None => stored.remove(&number),
                    };
                }
            }
            let mut loaded = ExpectationIndex::default();
            stored.into_iter().for_each(|(number, held)| loaded.load(number, held));
            prop_assert_eq!(&loaded.held, &index.held);

            // What was stored is replayed from some commit on, and ends where it was.
            if !log.is_empty() {
                log[cut.index(log.len())..].iter().for_each(|&step| apply(&mut loaded, step));
            }
            prop_assert_eq!(&loaded.held, &index.held);
            prop_assert_eq!(&loaded.segments, &index.segments);
            prop_assert_eq!(&loaded.frames, &index.frames);
            prop_assert_eq!(loaded.counts(), index.counts());
            prop_assert_eq!(&loaded.clients, &index.clients);
            prop_assert_eq!(index.counts().open, index.held.len());
            prop_assert_eq!(index.clients.values().sum::<usize>(), index.held.values().filter(|it| it.kept.client().is_some()).count());
            for (number, held) in &index.held {
                prop_assert_eq!(index.find(held.kept.key()), Some((*number, &held.kept)));
                prop_assert_eq!(loaded.find(held.kept.key()), Some((*number, &held.kept)));
            }
        }
    }

    #[test]
    fn what_a_commit_changes_is_seen_before_it_is_written_and_only_there() {
        let state = Mutex::new(ExpectationIndex::default());
        let mut unwritten = Unwritten::default();
        let (first, key) = (kept(3, 1), kept(3, 1).key().to_vec());
        unwritten.put(3, first.clone());
        assert_eq!(unwritten.find(&state, &key), Some((3, first.clone())));
        assert_eq!(lock(&state).counts().open, 0);
        unwritten.write(&state, 7, 0);
        assert_eq!(lock(&state).segments().first(), Some(7));

        let mut unwritten = Unwritten::default();
        assert_eq!(unwritten.find(&state, &key), Some((3, first)));
        unwritten.end(3);
        assert_eq!(unwritten.find(&state, &key), None);
        assert_eq!(unwritten.get(&state, 3), None);
        unwritten.put(6, kept(6, 1));
        assert_eq!(unwritten.find(&state, &key), Some((6, kept(6, 1))));
        assert_eq!(lock(&state).of_client("c1"), 1);
        unwritten.write(&state, 8, 0);
        assert_eq!(lock(&state).find(&key), Some((6, &kept(6, 1))));
        assert_eq!(lock(&state).of_client("c1"), 1);
    }

    /// What docs/ARCHITECTURE.md says of them; to be run alone:
    /// `cargo test --lib expectations_take -- --ignored --nocapture`
    #[test]
    #[ignore = "it measures the memory of the whole process"]
    fn a_hundred_thousand_expectations_take_some_400_bytes_each() {
        let resident = || {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
            pages * 4_096
        };
        let kept = |number: u64| {
            let labels = [("user", "customer-4711"), ("team", "advertising")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()));
            Kept::new(&Expectation {
                labels: labels.into(),
                client: Some("billing".to_owned()),
                ..expectation(number, &uuid::Uuid::new_v4().to_string())
            })
        };
        let mut index = ExpectationIndex::default();
        let before = resident();
        for number in 1..=100_000 {
            index.put(number, held(kept(number), 1 + number / 10_000));
        }
        let each = (resident() - before) / 100_000;
        println!("{each} bytes each");
        assert!(each < 450, "{each} bytes");
    }
}
