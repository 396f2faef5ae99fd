//! A commit in the making. Each of its entries goes into the frame for the log, the totals and the overlay of the index by one
//! call, so that a decision is applied exactly as it is recorded.

mod expectations;

use std::collections::{HashMap, HashSet};

use super::moment::Moment;
use crate::{
    cluster::{Entry as Decision, Totals},
    event::{Record, Selectable, Sequence, TaskId},
    store::{
        NewQuarantined, QuarantineHeader, ReadError, Store,
        apply::{Change, Changes, Overlay},
        layout::{TaskEvent, encode_quarantined},
        lock,
        log::{FrameBuilder, Gap},
        totals::MISFIT,
    },
};

/// How a callback leaves the quarantine.
#[derive(Clone, Copy)]
pub(super) enum Leave {
    /// By retention. In the log it goes with its segment.
    Expired,
    /// It was released or discarded, and is erased in the log, too.
    Removed,
}

pub(super) struct Commit<'a> {
    store: &'a Store,
    frame: FrameBuilder,
    overlay: Overlay<'a>,
    before: Totals,
    totals: Totals,
    head: Sequence,
    /// The events that it appends.
    records: Vec<Record>,
    /// The keys that are left of the events that it erases.
    erased: Vec<Record>,
    /// Places of events that are erased by this commit or an earlier one, and may not be overwritten yet. The log still has their
    /// content there, which the totals do not count any more.
    announced: HashSet<Sequence>,
    /// How many callbacks it puts into quarantine.
    quarantined: usize,
    /// How many expectations each client has more, or fewer.
    of_clients: HashMap<String, isize>,
}

/// A commit to which nothing is added any more.
pub(super) struct Committed {
    /// For the log, and for the index once the log has it; `None` if there is nothing to write.
    pub write: Option<(FrameBuilder, Changes)>,
    pub totals: Totals,
    pub records: Vec<Record>,
    pub erased: Vec<Record>,
}

impl Committed {
    /// What it decides as a frame of the stream says it, if it has to be written, and the totals that it leaves. Nothing of it is
    /// done: what was changed ahead is taken back.
    pub(super) fn take_back(self, store: &Store) -> Option<(Vec<Decision>, Totals)> {
        let (frame, changes) = self.write?;
        changes.take_back(store.state());
        Some((frame.into_decisions(store.head().next()), self.totals))
    }
}

impl<'a> Commit<'a> {
    /// A commit behind the newest of a store, for so many commands.
    pub(super) fn new(store: &'a Store, moment: &Moment, commands: usize) -> Self {
        let overlay = Overlay::new(store.state(), commands);
        Self::with(store, moment, commands, overlay)
    }

    /// The same of one that may not come: see [`Committed::take_back`].
    pub(super) fn revocable(store: &'a Store, moment: &Moment) -> Self {
        Self::with(store, moment, 0, Overlay::revocable(store.state(), 0))
    }

    fn with(store: &'a Store, moment: &Moment, commands: usize, overlay: Overlay<'a>) -> Self {
        let (before, head) = (*lock(&store.totals), store.head());
        let mut totals = Totals {
            trust: moment.trust,
            ..before
        };
        if let Some(adoption) = &moment.adoption {
            totals.correct(head, adoption);
        }
        Self {
            store,
            frame: FrameBuilder::new(),
            overlay,
            before,
            totals,
            head,
            records: Vec::with_capacity(commands),
            erased: Vec::new(),
            announced: store.log.announced_places(),
            quarantined: 0,
            of_clients: HashMap::new(),
        }
    }

    /// The store before the commit.
    pub(super) fn store(&self) -> &'a Store {
        self.store
    }

    /// The totals as the commit leaves them so far.
    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The newest event as the commit leaves it so far.
    pub(super) fn head(&self) -> Sequence {
        self.head
    }

    /// It has no entries so far.
    pub(super) fn is_empty(&self) -> bool {
        self.frame.is_empty()
    }

    /// How many events it appends.
    pub(super) fn appended(&self) -> usize {
        self.records.len()
    }

    /// How many callbacks it puts into quarantine.
    pub(super) fn quarantined(&self) -> usize {
        self.quarantined
    }

    /// The size of a quarantined callback; `None` if it is not there, or only since this commit.
    pub(super) fn quarantined_bytes(&self, number: u64) -> Option<u64> {
        let is_older = number <= self.before.quarantine_next;
        lock(&self.store.shares)
            .get(number)
            .filter(|_| is_older)
            .map(|kept| kept.bytes)
    }

    /// Whether the erasure of the event at this place is announced, and not done yet.
    pub(super) fn is_announced(&self, place: Sequence) -> bool {
        self.announced.contains(&place)
    }

    /// What the index names of a task, as the commit leaves it so far. An event that the log has not
    /// puts the index in doubt: the next event would be taken for one that is known.
    pub(super) fn events(&mut self, task_id: &TaskId) -> Result<&[TaskEvent], ReadError> {
        let first_available = self.totals.first_available;
        let events = self.overlay.events(task_id)?;
        if let Some(newest) = events.last()
            && newest.sequence > self.head
        {
            let (place, head) = (newest.sequence.0, self.head.0);
            let problem = format!("it names event {place}, and the log ends behind {head}");
            return Err(self.store.index.put_in_doubt(problem).into());
        }
        // What retention has passed without being able to read it, the index still names.
        let forgotten = events.partition_point(|event| event.sequence.0 < first_available);
        Ok(&events[forgotten..])
    }

    /// The time by which an event or callback is aged and found: when it was received, but not before the newest in the log, and
    /// not after `now_micros`. It may have waited while the log's clock was changed.
    pub(super) fn stamp(&mut self, received_at_micros: i64, now_micros: i64) -> i64 {
        let newest = self.totals.log_time_micros;
        self.totals.log_time_micros = received_at_micros.clamp(newest, now_micros.max(newest));
        self.totals.log_time_micros
    }

    /// Appends the next event.
    pub(super) fn append(
        &mut self,
        task_id: &TaskId,
        event: TaskEvent,
        record: Record,
    ) -> Result<(), ReadError> {
        let (event_id, fingerprint) = (event.event_id, event.fingerprint);
        self.overlay.apply(Change::Appended { task_id, event })?;
        self.frame.event(event_id, fingerprint, &record);
        self.totals.event_count += 1;
        self.totals.event_bytes += record.len() as u64;
        self.head = record.sequence();
        self.records.push(record);
        Ok(())
    }

    /// The number in quarantine that an earlier try to put a callback there has given it.
    pub(super) fn quarantined_before(&self, new: &NewQuarantined) -> Option<u64> {
        self.overlay.quarantined_as(new.header.idempotency_key?)
    }

    /// Puts a callback into quarantine; returns its number.
    pub(super) fn quarantine(
        &mut self,
        new: &NewQuarantined,
        received_at_micros: i64,
    ) -> Result<u64, ReadError> {
        let number = self.totals.quarantine_next + 1;
        let header = QuarantineHeader {
            received_at_micros,
            ..new.header.clone()
        };
        let value = encode_quarantined(&header, &new.body);
        self.overlay.apply(Change::Quarantined {
            number,
            header: &header,
            bytes: value.len() as u64,
        })?;
        self.frame.quarantined(number, &value);
        self.totals.quarantine_next = number;
        self.totals.quarantine_count += 1;
        self.totals.quarantine_bytes += value.len() as u64;
        self.quarantined += 1;
        Ok(number)
    }

    /// Writes a callback again that is still in quarantine, because the segment of its first copy goes.
    pub(super) fn carry(
        &mut self,
        number: u64,
        header: &QuarantineHeader,
        value: &[u8],
    ) -> Result<(), ReadError> {
        self.overlay.apply(Change::Quarantined {
            number,
            header,
            bytes: value.len() as u64,
        })?;
        self.frame.carried(number, value);
        Ok(())
    }

    /// Takes a callback out of quarantine; false if it is not there, or only since this commit.
    pub(super) fn discard(&mut self, number: u64, leave: Leave) -> Result<bool, ReadError> {
        let Some(bytes) = self.quarantined_bytes(number) else {
            return Ok(false);
        };
        self.totals.forget_quarantined(bytes)?;
        self.overlay.apply(Change::Left { number })?;
        match leave {
            Leave::Expired => self.frame.expired(number),
            Leave::Removed => {
                let copies = self.store.copies_of(number);
                let places: Vec<_> = copies.into_iter().map(|(_, place)| place).collect();
                self.frame.removed(number, &places);
            }
        }
        Ok(true)
    }

    /// Announces that events of a task are erased: `left` are the keys that stay of them, and `bytes` the bytes that go. All of
    /// them are, or none.
    pub(super) fn erase(
        &mut self,
        task_id: &TaskId,
        left: Vec<Record>,
        bytes: u64,
    ) -> Result<(), ReadError> {
        self.overlay.events(task_id)?;
        let rest = self.totals.event_bytes.checked_sub(bytes);
        self.totals.event_bytes = rest.ok_or(MISFIT)?;
        for record in left {
            let place = record.sequence();
            self.overlay.apply(Change::Erased { task_id, place })?;
            self.frame.erased(place);
            self.announced.insert(place);
            self.erased.push(record);
        }
        Ok(())
    }

    /// Forgets the oldest event. The frame says so by its totals.
    pub(super) fn forget(&mut self, record: &Record) -> Result<(), ReadError> {
        let (place, bytes) = (record.sequence(), record.len() as u64);
        let Ok(task_id) = &TaskId::parse(record.task_id()) else {
            return Ok(self.totals.forget_event(place, bytes)?); // the index cannot name it
        };
        self.overlay.events(task_id)?;
        self.totals.forget_event(place, bytes)?;
        Ok(self.overlay.apply(Change::Forgotten { task_id, place })?)
    }

    /// Forgets the oldest events, which cannot be read. What is not known of them stays in the index, and their unknown bytes stay
    /// in the totals until no event is left.
    pub(super) fn forget_gap(&mut self, gap: &Gap) -> Result<(), ReadError> {
        let mut known = Vec::new();
        for (keys, _) in &gap.known {
            if let Ok(task_id) = TaskId::parse(keys.task_id()) {
                self.overlay.events(&task_id)?;
                known.push((task_id, keys.sequence()));
            }
        }
        self.totals
            .forget_event(gap.behind.previous(), gap.bytes_min())?;
        for (task_id, place) in known {
            let task_id = &task_id;
            self.overlay.apply(Change::Forgotten { task_id, place })?;
        }
        Ok(())
    }

    /// Ends it. A commit without entries is written only if it has to be, or if its totals say something new.
    pub(super) fn finish(self, must_write: bool) -> Committed {
        let has_news = !self.frame.is_empty() || self.totals != self.before || must_write;
        let write = has_news.then(|| (self.frame, self.overlay.into_changes()));
        Committed {
            write,
            totals: self.totals,
            records: self.records,
            erased: self.erased,
        }
    }
}
