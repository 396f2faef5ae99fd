//! Reading the log: in order, backwards, by task and by time. Blocking, bounded, never beyond the
//! head.

use std::ops::{ControlFlow, RangeInclusive};

use super::{
    ReadError, Store, lock,
    log::{LARGE_READ_BYTES, READ_BYTES, Step},
    task_entry::may_lack_some,
};
use crate::{
    cluster::Correction,
    event::{Filter, Product, Record, Selectable, Sequence, TaskId, TaskStatus},
};

/// What the task index knows of one retained event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskPlace {
    /// Whose event.
    pub task_id: TaskId,
    /// Where it is.
    pub sequence: Sequence,
    /// What it says became of the task.
    pub status: TaskStatus,
    /// Of which product.
    pub product: Product,
    /// Its content was erased: nothing but this is left of it.
    pub is_erased: bool,
}

/// How many of a task list's places are wanted.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    /// Every one.
    All,
    /// The first so many.
    Oldest(usize),
    /// The last so many.
    Newest(usize),
}

impl Keep {
    fn most(self) -> usize {
        match self {
            Self::All => usize::MAX,
            Self::Oldest(count) | Self::Newest(count) => count,
        }
    }

    fn apply(self, places: &mut Vec<TaskPlace>) {
        places.sort_unstable_by_key(|place| place.sequence);
        match self {
            Self::All => {}
            Self::Oldest(count) => places.truncate(count),
            Self::Newest(count) => drop(places.drain(..places.len().saturating_sub(count))),
        }
    }
}

/// Memory that records hold: their own bytes, and the rest of the blocks that they share.
pub(crate) fn bytes_held(records: &[Record]) -> usize {
    let bytes: usize = records.iter().map(Record::len).sum();
    bytes + bytes.min(LARGE_READ_BYTES)
}

/// Where one read stops. At least one record is always looked at.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// Matching records.
    pub records_max: usize,
    /// Bytes of matching records.
    pub bytes_max: usize,
    /// Records looked at, matching or not.
    pub scanned_max: usize,
    /// Bytes of records looked at, matching or not.
    pub scanned_bytes_max: usize,
}

/// What one read found.
#[derive(Debug)]
pub struct Chunk {
    /// The matching records, in the direction of the read.
    pub records: Vec<Record>,
    /// The last place looked at: reading continues behind it (before it, when reading backwards).
    pub scanned_to: Sequence,
    /// Segments of the log that were passed over, as their summaries say that they have nothing for the filter.
    pub segments_skipped: u64,
}

impl Store {
    /// Reads forwards from behind `after` up to and including `up_to`, which must not be beyond the
    /// head.
    pub fn read_after(
        &self,
        after: Sequence,
        up_to: Sequence,
        filter: &Filter,
        limits: ReadLimits,
    ) -> Result<Chunk, ReadError> {
        if after >= up_to {
            return Ok(Chunk {
                records: Vec::new(),
                scanned_to: after,
                segments_skipped: 0,
            });
        }
        let is_expired = || after.next() < self.first_available();
        if is_expired() {
            return Err(ReadError::Expired);
        }
        let (places, bytes) = (after.next()..=up_to, limits.bytes_to_read());
        let mut collector = Collector::new(after, limits);
        match self
            .log
            .scan_for(filter, places, bytes, |step| collector.take(step))
        {
            Ok(()) => Ok(collector.finish()),
            // Retention may have passed the place meanwhile.
            Err(_) if is_expired() => Err(ReadError::Expired),
            Err(error) => Err(error),
        }
    }

    /// Reads backwards from before `before` down to and including `first`, as far as it is
    /// retained.
    pub fn read_before(
        &self,
        before: Sequence,
        first: Sequence,
        filter: &Filter,
        limits: ReadLimits,
    ) -> Result<Chunk, ReadError> {
        let before = before.min(self.head().next());
        let first = first.max(self.first_available());
        if before <= first {
            return Ok(Chunk {
                records: Vec::new(),
                scanned_to: first,
                segments_skipped: 0,
            });
        }
        let places = first..=before.previous();
        let mut collector = Collector::new(before, limits);
        match self
            .log
            .scan_back_for(filter, places, |step| collector.take(step))
        {
            Ok(()) => Ok(collector.finish()),
            // Retention has taken the oldest meanwhile: the page then ends there, as it would a
            // moment later.
            Err(_) if collector.chunk.scanned_to <= self.first_available() => {
                Ok(collector.finish())
            }
            Err(error) => Err(error),
        }
    }

    /// Where the events of these tasks are that were not erased, oldest first, as far as `range`
    /// goes and `keep` lets it.
    pub fn task_events<'a>(
        &self,
        task_ids: impl IntoIterator<Item = &'a TaskId>,
        range: RangeInclusive<Sequence>,
        keep: Keep,
    ) -> Result<Vec<TaskPlace>, ReadError> {
        let mut places = Vec::new();
        self.each_task_event(task_ids, range, |place| {
            if place.is_erased {
                return;
            }
            places.push(place);
            // Now and then, so that it costs little and what is held stays near what is kept.
            if places.len() > keep.most().saturating_mul(2) {
                keep.apply(&mut places);
            }
        })?;
        keep.apply(&mut places);
        Ok(places)
    }

    /// Hands on where the events of these tasks are, erased or not, task by task, all as of one
    /// moment.
    pub(crate) fn each_task_event<'a>(
        &self,
        task_ids: impl IntoIterator<Item = &'a TaskId>,
        range: RangeInclusive<Sequence>,
        mut each: impl FnMut(TaskPlace),
    ) -> Result<(), ReadError> {
        let first_available = self.first_available();
        self.index.tasks.each(task_ids, |task_id, events| {
            // What retention has passed without being able to read it, the index still names.
            for event in events
                .iter()
                .filter(|event| range.contains(&event.sequence))
                .filter(|event| event.sequence >= first_available)
            {
                each(TaskPlace {
                    task_id: task_id.clone(),
                    sequence: event.sequence,
                    status: event.status,
                    product: event.product.clone(),
                    is_erased: event.is_erased,
                });
            }
        })
    }

    /// Where all retained events of a product's task are, erased or not. The index may not name all
    /// of them; then the whole log is read.
    pub fn places_of_task(
        &self,
        task_id: &TaskId,
        product: &Product,
    ) -> Result<Vec<Sequence>, ReadError> {
        let named = self.index.tasks.get(task_id)?;
        if !may_lack_some(&named) {
            let of_product = named.into_iter().filter(|event| event.product == *product);
            return Ok(of_product.map(|event| event.sequence).collect());
        }
        let (mut next, head, mut places) = (self.first_available(), self.head(), Vec::new());
        loop {
            let scanned = self.log.scan(next..=head, READ_BYTES, |record| {
                next = record.sequence().next();
                if record.task_id() == task_id.as_str() && record.product() == product.as_str() {
                    places.push(record.sequence());
                }
                Ok(ControlFlow::Continue(()))
            });
            match scanned {
                // Retention has passed the place meanwhile. Anything else is damage, and stays so.
                Err(_) if next < self.first_available() => next = self.first_available(),
                scanned => return scanned.map(|()| places),
            }
        }
    }

    /// The record at `sequence`, or `None` if retention has passed it.
    pub fn get(&self, sequence: Sequence) -> Result<Option<Record>, ReadError> {
        let is_forgotten = || sequence < self.first_available();
        if is_forgotten() {
            return Ok(None);
        }
        match self.log.get(sequence) {
            Err(_) if is_forgotten() => Ok(None),
            found => found.map(Some),
        }
    }

    /// The records at these places, in the order given, up to `bytes_max` after the first; fewer
    /// are no error.
    pub(crate) fn get_all(
        &self,
        places: &[Sequence],
        bytes_max: usize,
    ) -> Result<Vec<Record>, ReadError> {
        let mut records: Vec<Record> = Vec::with_capacity(places.len());
        let mut bytes = 0;
        for &place in places {
            let record = self.get(place)?.ok_or(ReadError::Expired)?;
            bytes += record.len();
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push(record);
        }
        Ok(records)
    }

    /// The log time that is meant by a time of the machine's, both in microseconds since 1970.
    pub(crate) fn log_time(&self, micros: i64) -> i64 {
        self.clock.meant_by(micros)
    }

    /// The place before the first event whose log time is at or after `micros` (microseconds since
    /// 1970).
    ///
    /// The log time falls along the log only where the log's clock was set back. So every event
    /// received at or after `micros` lies behind that place; of what was received by a clock that
    /// was ahead, only what came after the time that is meant.
    ///
    /// Only the newest change of the clock is noted. If the log still has events from before an
    /// older one, the place is exact for times since then, and may be off by as much as that change
    /// for times before.
    pub(crate) fn seek_time(&self, micros: i64) -> Result<Sequence, ReadError> {
        let micros = self.log_time(micros);
        let Correction {
            events, at_micros, ..
        } = lock(&self.totals).correction;
        let (first, behind) = (self.first_available().0, self.head().0 + 1);
        let changed_behind = events.saturating_add(1).clamp(first, behind);
        // The clock was changed to that time, so on either side of the change the times rise.
        let (mut low, mut high) = if micros > at_micros {
            (changed_behind, behind)
        } else {
            (first, changed_behind)
        };
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(Sequence(middle))? {
                Some(record) if record.log_time_micros() >= micros => high = middle,
                _ => low = middle + 1, // earlier, or forgotten meanwhile
            }
        }
        Ok(Sequence(low).previous())
    }
}

impl ReadLimits {
    /// Most that a read holds, if no event has more than `event_bytes_max`.
    pub(crate) fn bytes_held_max(self, event_bytes_max: usize) -> usize {
        self.bytes_max
            .saturating_add(event_bytes_max)
            .saturating_add(LARGE_READ_BYTES)
    }

    fn bytes_to_read(self) -> u64 {
        READ_BYTES.min(self.scanned_bytes_max as u64)
    }
}

/// Takes what a read comes by, until a limit is reached.
struct Collector {
    chunk: Chunk,
    limits: ReadLimits,
    bytes: usize,
    scanned: usize,
    scanned_bytes: usize,
}

impl Collector {
    fn new(from: Sequence, limits: ReadLimits) -> Self {
        let chunk = Chunk {
            records: Vec::new(),
            scanned_to: from,
            segments_skipped: 0,
        };
        Self {
            chunk,
            limits,
            bytes: 0,
            scanned: 0,
            scanned_bytes: 0,
        }
    }

    fn take(&mut self, step: Step) -> ControlFlow<()> {
        let Self { chunk, limits, .. } = self;
        match step {
            Step::Skipped { to, bytes } => {
                chunk.scanned_to = to;
                chunk.segments_skipped += 1;
                self.scanned_bytes += bytes;
            }
            Step::Event {
                record,
                is_selected,
            } => {
                let is_full = self.bytes + record.len() > limits.bytes_max;
                if is_selected && is_full && !chunk.records.is_empty() {
                    return ControlFlow::Break(());
                }
                chunk.scanned_to = record.sequence();
                self.scanned += 1;
                self.scanned_bytes += record.len();
                if is_selected {
                    self.bytes += record.len();
                    chunk.records.push(record);
                }
            }
        }
        let looked_enough =
            self.scanned >= limits.scanned_max || self.scanned_bytes >= limits.scanned_bytes_max;
        if chunk.records.len() >= limits.records_max || looked_enough {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn finish(self) -> Chunk {
        // A few records must not hold all that was read with them.
        let is_sparse = 2 * self.bytes < self.scanned_bytes.max(READ_BYTES as usize);
        let records = self.chunk.records.into_iter();
        let records = if is_sparse {
            records.map(Record::compact).collect()
        } else {
            records.collect()
        };
        Chunk {
            records,
            ..self.chunk
        }
    }
}
