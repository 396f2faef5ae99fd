//! The log: every commit, in order, in files of its own; what is durable here is the truth, and the database an index of it.
//!
//! The log is a row of segments ([`segment`]), each a file of commits ([`frame`]). A commit is written behind the last and
//! synced before anybody hears of it. The database is told afterwards, of tasks not before there are many; it is synced now and
//! then, and that is a checkpoint: commits in older segments never have to be told again. A start replays the others, which
//! changes nothing that is there already. Segments go when all of their events are forgotten, the database has durably forgotten them, and a
//! commit behind that has noted the checkpoint.

mod frame;
mod segment;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fs::{self, File},
    io, mem,
    ops::{ControlFlow, Range, RangeInclusive},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use frame::Body;
pub(super) use frame::{Entry, Frame, FrameBuilder};
use segment::{HEADER_BYTES, PAGE_BYTES, Segment, Span, Unreadable, Walked};
use uuid::Uuid;

use super::{
    clock::TOLERANCE, layout::Totals, lock, open::Setup, read::ReadError, watermark::Mark,
};
use crate::event::{Epoch, Fingerprint, Record, Sequence};

/// The first segment is small, as most logs are; each further one is twice as large as the one before, up to the largest.
const FIRST_SEGMENT_BYTES: u64 = 1024 * 1024;
/// What a start may have to replay, and what forgetting frees at once.
const SEGMENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Events share the memory that they were read into, unless it is more than this: then one would hold too much of it.
pub(super) const LARGE_READ_BYTES: usize = 512 * 1024;
/// So many read more than that at once: a commit may have 8 MiB and another body, and is read as a whole.
const LARGE_READS_MAX: usize = 4;
/// Read at once by who takes much: enough to be quick.
pub(super) const READ_BYTES: u64 = 256 * 1024;
const FOLDER: &str = "log";
const EXTENSION: &str = "log";

/// Where a commit was written.
#[derive(Debug)]
pub(super) struct Written {
    segment: Arc<Segment>,
    at: u64,
    header: frame::Header,
}

/// The segment that is written to. The writer's alone.
#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    file: File,
    /// Where the next commit goes.
    end: u64,
    bytes: u64,
    next_commit: u64,
    /// The log time at its first commit that brought content, in microseconds since 1970: no content in it is older.
    since_micros: Option<i64>,
}

impl Active {
    fn at_start(segment: Arc<Segment>, file: File, bytes: u64) -> Self {
        let next_commit = segment.header.commit;
        Self {
            segment,
            file,
            end: HEADER_BYTES as u64,
            bytes,
            next_commit,
            since_micros: None,
        }
    }
}

/// A segment made ahead.
#[derive(Debug)]
struct Spare {
    file: File,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Log {
    folder: PathBuf,
    epoch: Epoch,
    /// Oldest first; never empty.
    segments: RwLock<VecDeque<Arc<Segment>>>,
    /// Locked before `spare`, never after it: the writer begins a segment while it holds this.
    active: Mutex<Active>,
    /// Locked after `active`, or alone. Held while a segment is made, which takes as long as the disk does.
    spare: Mutex<Option<Spare>>,
    /// The active segment is as old as it may become, and the next commit goes into one of its own once that is made ahead.
    is_old: AtomicBool,
    /// The number of the newest commit that is durable, and that the database has heard of.
    applied: AtomicU64,
    /// The oldest segment that a start has to replay, as the next commit will say.
    checkpoint: AtomicU64,
    /// The same, as the last commit has said: what is older is not needed any more.
    noted: AtomicU64,
    /// The database has durably forgotten all events before this one.
    forgotten_before: AtomicU64,
    /// What was announced to be erased and may not be overwritten yet.
    announced: Mutex<VecDeque<Announced>>,
    turns: Arc<Turns>,
}

/// What one commit has announced to be erased.
#[derive(Debug)]
struct Announced {
    /// The segment that the commit is in: a start has to find it there until all is overwritten.
    number: u64,
    /// Of events.
    places: Vec<Sequence>,
}

/// Limits concurrent reads of large parts of segments. The holder of a turn waits for the disk only.
#[derive(Debug, Default)]
struct Turns {
    taken: Mutex<usize>,
    given_back: Condvar,
}

impl Turns {
    /// Waits for a turn, if it takes one to read so much. Blocking.
    fn take(&self, span: &Span) -> Option<Turn<'_>> {
        if span.end - span.start <= LARGE_READ_BYTES as u64 {
            return None;
        }
        let taken = lock(&self.taken);
        let free = self
            .given_back
            .wait_while(taken, |taken| *taken == LARGE_READS_MAX);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Some(Turn(self))
    }
}

/// Given back when dropped.
struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.given_back.notify_one();
    }
}

impl Log {
    /// Begins a log in a data directory that has none.
    pub(super) fn create(directory: &Path, epoch: Epoch, totals: Totals) -> io::Result<Self> {
        let folder = directory.join(FOLDER);
        fs::create_dir_all(&folder)?;
        File::open(directory)?.sync_all()?;
        let header = segment::Header {
            epoch,
            number: 1,
            commit: 1,
            checkpoint: 1,
            totals,
        };
        let path = path_of(&folder, 1);
        let file = segment::create(&path, FIRST_SEGMENT_BYTES)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        let segment = Arc::new(Segment::empty(path, header));
        let segments = [Arc::clone(&segment)].into();
        Ok(Self::of(
            folder,
            segments,
            Active::at_start(segment, file, FIRST_SEGMENT_BYTES),
            1,
        ))
    }

    fn of(
        folder: PathBuf,
        segments: VecDeque<Arc<Segment>>,
        active: Active,
        checkpoint: u64,
    ) -> Self {
        Self {
            folder,
            epoch: active.segment.header.epoch,
            applied: (active.next_commit - 1).into(),
            segments: RwLock::new(segments),
            active: Mutex::new(active),
            spare: Mutex::default(),
            is_old: false.into(),
            checkpoint: checkpoint.into(),
            noted: checkpoint.into(),
            forgotten_before: 0.into(),
            announced: Mutex::default(),
            turns: Arc::default(),
        }
    }

    /// Opens the log of a data directory, with the totals as its last commit left them, and how many bytes behind that were taken
    /// back; `None` if there is none yet. Everything is checked before anything is changed.
    ///
    /// A last commit that is not whole was cut off by a crash, and is taken back; unless it was acknowledged, or the database
    /// was told of it, or another one follows it: then the log is damaged.
    pub(super) fn open(
        directory: &Path,
        acknowledged: Option<Mark>,
        indexed: Option<Indexed>,
    ) -> Result<Option<(Self, Totals, u64)>, Setup> {
        let folder = directory.join(FOLDER);
        let is_begun = acknowledged.is_some() || indexed.is_some();
        let mut known = Known::look(&folder, is_begun)?;
        let Some(header) = known.segments.pop_back().map(|newest| newest.header) else {
            return if is_begun {
                Err(Setup::Corrupt("the log is lost".to_owned()))
            } else {
                Ok(known.clear().map(|()| None)?)
            };
        };
        let newest = Segment::empty(path_of(&folder, header.number), header);
        let bytes = newest.read_whole()?;
        let (mut last_commit, mut since_micros, mut before) = (0, None, header.totals);
        let walked = segment::walk(&header, &bytes, |at, frame| {
            newest.show(at as u64, &frame.header);
            last_commit = at;
            since_micros = since_micros.or_else(|| frame.header.brought_at(&before));
            before = frame.header.totals;
            Ok::<_, Setup>(())
        })?;
        let behind = bytes.slice(walked.end..);
        let torn_bytes = behind
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last as u64 + 1);
        let is_clean = torn_bytes == 0;
        if !is_clean && frame::is_followed(header.epoch, &behind, walked.next_commit) {
            return Err(not_as_written(walked.next_commit, newest.path()));
        }
        check_acknowledged(
            acknowledged,
            header.epoch,
            walked.next_commit,
            &walked.totals,
        )?;
        let newest = Arc::new(newest);
        known.segments.push_back(Arc::clone(&newest));
        known.check(&walked, indexed)?;

        let path = newest.path();
        let mut file = File::options().read(true).write(true).open(path)?;
        if !is_clean {
            let (path, at, commit) = (path.display(), walked.end, walked.next_commit);
            tracing::warn!(%path, at, commit, "the last commit was cut off by a crash, and is taken back");
            segment::zero_from(&mut file, walked.end as u64)?;
        }
        // What a killed process wrote but had not synced is read from here on, so it must be durable from here on. It is
        // written again, because the kernel takes what it once failed to write for written.
        file.write_all_at(&bytes[..HEADER_BYTES], 0)?;
        file.write_all_at(&bytes[last_commit..walked.end], last_commit as u64)?;
        file.sync_all()?;
        known.clear()?;
        let Walked {
            end,
            next_commit,
            checkpoint,
            totals,
        } = walked;
        let (end, bytes) = (end as u64, bytes.len() as u64);
        let active = Active {
            segment: newest,
            file,
            end,
            bytes,
            next_commit,
            since_micros,
        };
        Ok(Some((
            Self::of(folder, known.segments, active, checkpoint),
            totals,
            torn_bytes,
        )))
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes note that the database has heard of a commit.
    pub(super) fn note_applied(&self, written: &Written) {
        self.applied.store(written.header.commit, Ordering::Release);
    }

    /// The number of the newest commit that is durable, and that the database has heard of.
    pub(super) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// The number of the next commit.
    pub(super) fn next_commit(&self) -> u64 {
        lock(&self.active).next_commit
    }

    fn segments(&self) -> std::sync::RwLockReadGuard<'_, VecDeque<Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a commit behind the last; `before` and `after` are the totals around it. It is not durable yet.
    pub(super) fn append(
        &self,
        frame: FrameBuilder,
        before: &Totals,
        after: &Totals,
    ) -> io::Result<Written> {
        let mut active = lock(&self.active);
        let checkpoint = self.checkpoint.load(Ordering::Acquire);
        let (mut bytes, header) = frame.finish(self.epoch, active.next_commit, checkpoint, *after);
        let is_full = active.bytes - active.end < header.length as u64;
        if is_full || self.is_old.load(Ordering::Acquire) && self.has_spare() {
            self.begin_segment(
                &mut active,
                before,
                HEADER_BYTES as u64 + header.length as u64,
            )?;
        }
        // With the zeros behind it up to the end of a page, which are there already, but not in memory.
        let end = (active.end + header.length as u64).next_multiple_of(PAGE_BYTES);
        bytes.resize((end - active.end) as usize, 0);
        active.file.write_all_at(&bytes, active.end)?;
        let written = Written {
            segment: Arc::clone(&active.segment),
            at: active.end,
            header,
        };
        active.end += header.length as u64;
        active.next_commit += 1;
        active.since_micros = active.since_micros.or_else(|| header.brought_at(before));
        Ok(written)
    }

    /// Makes what was appended durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        lock(&self.active).file.sync_data()
    }

    /// Lets readers find what was appended and synced.
    pub(super) fn show(&self, written: &Written) {
        written.segment.show(written.at, &written.header);
        self.noted
            .store(written.header.checkpoint, Ordering::Release);
    }

    /// Makes everything durable and goes on in a segment of its own, from which on starts replay.
    pub(super) fn finish(&self, totals: &Totals) -> io::Result<()> {
        let mut active = lock(&self.active);
        self.checkpoint
            .store(active.segment.header.number + 1, Ordering::Release);
        self.begin_segment(&mut active, totals, 0)?;
        active.file.sync_data()
    }

    fn begin_segment(
        &self,
        active: &mut Active,
        totals: &Totals,
        bytes_min: u64,
    ) -> io::Result<()> {
        // So nothing but the newest segment ever has to be synced.
        active.file.sync_data()?;
        let number = active.segment.header.number + 1;
        let path = path_of(&self.folder, number);
        // Held until the segment is one of the row: nobody else makes the file then. Waits for one that is being made.
        let mut spare = lock(&self.spare);
        let Spare { file, bytes } = match spare.take().filter(|spare| spare.bytes >= bytes_min) {
            Some(spare) => spare,
            None => {
                let bytes_min = bytes_min.next_multiple_of(PAGE_BYTES);
                let create = |bytes: u64| {
                    Ok(Spare {
                        file: segment::create(&path, bytes)?,
                        bytes,
                    })
                };
                create(next_bytes(active.bytes).max(bytes_min)).or_else(|error: io::Error| {
                    match error.kind() {
                        // To forget something may need a segment, too.
                        io::ErrorKind::StorageFull => create(FIRST_SEGMENT_BYTES.max(bytes_min)),
                        _ => Err(error),
                    }
                })?
            }
        };
        let checkpoint = self.checkpoint.load(Ordering::Acquire);
        let header = segment::Header {
            epoch: self.epoch,
            number,
            commit: active.next_commit,
            checkpoint,
            totals: *totals,
        };
        let mut page = [0; PAGE_BYTES as usize];
        page[..HEADER_BYTES].copy_from_slice(&header.encode());
        file.write_all_at(&page, 0)?;
        let segment = Arc::new(Segment::empty(path, header));
        self.segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(Arc::clone(&segment));
        *active = Active::at_start(segment, file, bytes);
        self.is_old.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes note of the log's time, in microseconds since 1970: what is in the active segment must not become older there than
    /// `age_max`, or it stays on the disk long after it was forgotten.
    pub(super) fn look_at_age(&self, now_micros: i64, age_max: Duration) {
        let age_max = i64::try_from(age_max.as_micros()).unwrap_or(i64::MAX);
        let since = lock(&self.active).since_micros;
        // A time in the future comes from a clock that has been set right since: nobody knows how old its content is.
        let is_unknown = |since: i64| since.saturating_sub(now_micros) > TOLERANCE;
        let is_old = since
            .is_some_and(|since| is_unknown(since) || now_micros.saturating_sub(since) >= age_max);
        self.is_old.store(is_old, Ordering::Release);
    }

    /// Whether the next commit is needed for what it says of the log, whatever else is in it: it begins a segment in place of an
    /// old one, or notes the checkpoint that lets forgotten ones go.
    pub(super) fn needs_commit(&self) -> bool {
        self.is_old.load(Ordering::Acquire) && self.has_spare() || self.awaits_note()
    }

    fn has_spare(&self) -> bool {
        // While it is being made, there is none.
        self.spare.try_lock().is_ok_and(|spare| spare.is_some())
    }

    fn awaits_note(&self) -> bool {
        let (checkpoint, noted) = (
            self.checkpoint.load(Ordering::Acquire),
            self.noted.load(Ordering::Acquire),
        );
        noted < checkpoint && self.is_oldest_forgotten(&self.segments(), checkpoint)
    }

    /// Makes the next segment ahead, once this one is half full, or old.
    pub(super) fn make_ahead(&self) -> io::Result<()> {
        // Asked before `spare` is locked. If the writer begins a segment meanwhile, this is made for the one after it.
        let Some(bytes) = self.needs_spare() else {
            return Ok(());
        };
        let mut spare = lock(&self.spare);
        let newest = self.segments().back().cloned();
        if let (None, Some(newest)) = (&*spare, newest) {
            let file = segment::create(&path_of(&self.folder, newest.header.number + 1), bytes)?;
            *spare = Some(Spare { file, bytes });
        }
        Ok(())
    }

    /// How large the next segment should be, if it is time to make it.
    fn needs_spare(&self) -> Option<u64> {
        let (end, bytes) = {
            let active = lock(&self.active);
            (active.end, active.bytes)
        };
        let is_half_full = end > bytes / 2;
        // While it is being made, none is needed.
        let is_needed = (is_half_full || self.is_old.load(Ordering::Acquire))
            && self.spare.try_lock().is_ok_and(|spare| spare.is_none());
        // One that was full is followed by a larger one, one that grew old by what it would have needed.
        is_needed.then(|| {
            next_bytes(if is_half_full {
                bytes
            } else {
                end.next_multiple_of(PAGE_BYTES)
            })
        })
    }

    /// Whether there is something to do beside writing: a segment to make ahead, a checkpoint, a file to remove.
    pub(super) fn needs_care(&self, first_available: Sequence) -> bool {
        self.needs_spare().is_some()
            || self.needs_checkpoint(first_available)
            || self.has_forgotten()
    }

    /// Whether a checkpoint would shorten the replay, or let a segment go.
    pub(super) fn needs_checkpoint(&self, first_available: Sequence) -> bool {
        let checkpoint_max = self.checkpoint_max();
        let segments = self.segments();
        let would_free = |before: u64| {
            segments
                .get(1)
                .is_some_and(|second| second.first_sequence().0 <= before)
        };
        checkpoint_max > self.checkpoint.load(Ordering::Acquire)
            || would_free(first_available.0)
                && !would_free(self.forgotten_before.load(Ordering::Acquire))
    }

    /// The segment up to which a checkpoint may go: the one that is written to, or an older one that has announced what is not
    /// overwritten yet. All commits in older ones have been applied when the writer is between two commits or in the first of
    /// this segment.
    pub(super) fn checkpoint_max(&self) -> u64 {
        // In this order: what is announced later is not in an older segment.
        let newest = self.newest();
        lock(&self.announced)
            .front()
            .map_or(newest, |oldest| oldest.number.min(newest))
    }

    /// The number of the segment that is written to.
    pub(super) fn newest(&self) -> u64 {
        self.segments()
            .back()
            .map_or(0, |newest| newest.header.number)
    }

    /// What is before segment `number`, and the forgetting of all events before `first_available`, is durable in the database.
    pub(super) fn checkpoint(&self, number: u64, first_available: Sequence) {
        self.checkpoint.store(number, Ordering::Release);
        self.forgotten_before
            .store(first_available.0, Ordering::Release);
    }

    fn has_forgotten(&self) -> bool {
        self.is_oldest_forgotten(&self.segments(), self.noted.load(Ordering::Acquire))
    }

    /// Whether all events of the oldest segment are durably forgotten, and no start would need it if a durable commit had noted
    /// that checkpoint.
    fn is_oldest_forgotten(&self, segments: &VecDeque<Arc<Segment>>, noted: u64) -> bool {
        let forgotten_before = self.forgotten_before.load(Ordering::Acquire);
        segments
            .front()
            .is_some_and(|oldest| oldest.header.number < noted)
            && segments
                .get(1)
                .is_some_and(|second| second.first_sequence().0 <= forgotten_before)
    }

    /// Lets go of the segments that are forgotten. A last one may have to wait for the next commit.
    pub(super) fn remove_forgotten(&self) {
        let mut forgotten = Vec::new();
        {
            let mut segments = self
                .segments
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            while self.is_oldest_forgotten(&segments, self.noted.load(Ordering::Acquire)) {
                forgotten.extend(segments.pop_front());
            }
        }
        // A file may take a while to remove.
        forgotten.iter().for_each(|segment| segment.forget());
    }

    /// Hands over every commit that a start has to replay, with the totals that the first of them found.
    pub(super) fn replay(
        &self,
        mut each: impl FnMut(Frame) -> Result<(), Setup>,
    ) -> Result<Totals, Setup> {
        let checkpoint = self.checkpoint.load(Ordering::Acquire);
        let segments: Vec<_> = self
            .segments()
            .iter()
            .filter(|segment| segment.header.number >= checkpoint)
            .cloned()
            .collect();
        for (at, segment) in segments.iter().enumerate() {
            let walked = segment::walk(&segment.header, &segment.read_whole()?, |_, frame| {
                each(frame)
            })?;
            if let Some(next) = segments.get(at + 1)
                && (walked.next_commit, walked.totals) != (next.header.commit, next.header.totals)
            {
                return Err(not_as_written(walked.next_commit, segment.path()));
            }
        }
        Ok(segments
            .first()
            .map_or_else(Totals::default, |oldest| oldest.header.totals))
    }

    /// Finds the bodies of those events at these places that are meant, and of the quarantined callbacks with these numbers, as far
    /// as there are files that should have them. Both are in order, and none comes twice. Every commit is proven.
    pub(super) fn find(
        &self,
        places: &[Sequence],
        numbers: &[u64],
        mut is_meant: impl FnMut(&Record) -> bool,
    ) -> Found {
        let mut found = Found::default();
        let segments = self.segments().clone();
        for (at, segment) in segments.iter().enumerate() {
            let next = segments.get(at + 1);
            let behind = next.map_or(Sequence(u64::MAX), |next| next.first_sequence());
            let number_last = next.map_or(u64::MAX, |next| next.header.totals.quarantine_next);
            let places = slice(places, segment.first_sequence(), behind.previous());
            let numbers = slice(
                numbers,
                segment.header.totals.quarantine_next + 1,
                number_last,
            );
            if !places.is_empty() || !numbers.is_empty() {
                self.find_in(segment, places, numbers, &mut is_meant, &mut found);
            }
        }
        found
    }

    fn find_in(
        &self,
        segment: &Arc<Segment>,
        places: &[Sequence],
        numbers: &[u64],
        is_meant: &mut impl FnMut(&Record) -> bool,
        found: &mut Found,
    ) {
        let of_places = places.iter().map(|&place| segment.span(place, 0));
        let of_numbers = numbers.iter().map(|&number| segment.span_of_number(number));
        let mut blocks = BTreeMap::new();
        for span in of_places.chain(of_numbers) {
            match span {
                Ok(span) => blocks.extend(span.map(|span| (span.start, span))),
                Err(error) => found.problem = Some(error.to_string()),
            }
        }

        let (mut count, mut bodies) = (0, Vec::new());
        for span in blocks.values() {
            let read = segment
                .read(span)
                .map_err(|error| found.problem = Some(error.to_string()));
            let Ok(read) = read else { continue };
            self.each_body(&read, span.number, places, numbers, |entry, at, body| {
                count += 1;
                if !matches!(entry, Entry::Event { record, .. } if !is_meant(record)) {
                    let place = |in_frame: usize| span.start + (at + in_frame) as u64;
                    bodies.push((
                        place(body.mark),
                        place(body.range.start)..place(body.range.end),
                    ));
                }
            });
        }
        let lost = (places.len() + numbers.len()).saturating_sub(count);
        if lost > 0 {
            found.lost += lost;
            let path = segment.path().display();
            found.problem.get_or_insert_with(|| {
                format!("{lost} bodies in {path} are not as they were written")
            });
        }
        if !bodies.is_empty() {
            found
                .segments
                .entry(segment.header.number)
                .or_insert((Arc::clone(segment), Vec::new()))
                .1
                .extend(bodies);
        }
    }

    /// Hands over the bodies at these places and with these numbers in some commits, with where their commit begins. Those that are
    /// damaged are passed over.
    fn each_body(
        &self,
        read: &Bytes,
        mut number: u64,
        places: &[Sequence],
        numbers: &[u64],
        mut each: impl FnMut(&Entry, usize, Body),
    ) {
        let mut at = 0;
        while let Some(said) = read.get(at..).and_then(frame::Header::parse) {
            let start = at;
            at += said.length;
            let before = mem::replace(&mut number, said.totals.quarantine_next);
            let has_some = !slice(places, said.first_sequence(), said.head()).is_empty()
                || !slice(numbers, before + 1, number).is_empty();
            let Some(frame) = has_some
                .then(|| Frame::parse(self.epoch, read, start))
                .flatten()
            else {
                continue;
            };
            for (entry, body) in frame.bodies() {
                let is_sought = match &entry {
                    Entry::Event { record, .. } => places.binary_search(&record.sequence()).is_ok(),
                    Entry::Quarantined { number, .. } => numbers.binary_search(number).is_ok(),
                    _ => false,
                };
                if is_sought {
                    each(&entry, start, body);
                }
            }
        }
    }

    /// Erases again what was announced, durably, and says how much of it cannot be found. Also what seems to be erased: a kernel that
    /// has failed to write it shows it as written, until it reads it from the disk again.
    pub(super) fn erase(&self, places: &[Sequence], numbers: &[u64]) -> io::Result<usize> {
        let (mut places, mut numbers) = (places.to_vec(), numbers.to_vec());
        places.sort_unstable();
        places.dedup();
        numbers.sort_unstable();
        numbers.dedup();
        let found = self.find(&places, &numbers, |_| true);
        if let Some(problem) = &found.problem {
            tracing::error!(count = found.lost, %problem, "cannot erase what is damaged in the log: it may be on the disk still");
        }
        for (segment, bodies) in found.segments() {
            segment.erase(bodies)?;
        }
        Ok(found.lost)
    }

    /// Takes note that the commit which was appended last has announced to erase what is at these places: no checkpoint passes it
    /// before [`Self::note_overwritten`].
    pub(super) fn note_announced(&self, places: Vec<Sequence>) {
        let number = self.newest();
        lock(&self.announced).push_back(Announced { number, places });
    }

    /// Takes note that everything which the oldest noted commit has announced is overwritten.
    pub(super) fn note_overwritten(&self) {
        lock(&self.announced).pop_front();
    }

    /// How many commits have announced what may not be overwritten yet.
    pub(super) fn announced(&self) -> usize {
        lock(&self.announced).len()
    }

    /// The places of events that are announced and may not be overwritten yet.
    pub(super) fn announced_places(&self) -> HashSet<Sequence> {
        lock(&self.announced)
            .iter()
            .flat_map(|announced| announced.places.iter().copied())
            .collect()
    }

    /// The oldest event that a file still has, forgotten or not.
    pub(super) fn oldest(&self) -> Sequence {
        self.segments()
            .front()
            .map_or(Sequence(0), |oldest| oldest.first_sequence())
    }

    /// The events at these places, one by one, also those that are forgotten meanwhile.
    pub(super) fn events(&self, places: RangeInclusive<Sequence>) -> Events {
        let turns = Arc::clone(&self.turns);
        Events {
            epoch: self.epoch,
            segments: self.segments().clone(),
            turns,
            places,
            read: VecDeque::new(),
        }
    }

    /// Hands over the events at these places in order, until told to stop, reading about so many bytes at a time.
    ///
    /// A place without its event is damage, or forgotten meanwhile: the caller has to look.
    pub(super) fn scan(
        &self,
        places: RangeInclusive<Sequence>,
        bytes: u64,
        each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        self.scan_in_turn(Some(&self.turns), places, bytes, each)
    }

    /// The same for the writer, which waits for no reader.
    pub(super) fn scan_at_once(
        &self,
        places: RangeInclusive<Sequence>,
        bytes: u64,
        each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        self.scan_in_turn(None, places, bytes, each)
    }

    fn scan_in_turn(
        &self,
        turns: Option<&Turns>,
        places: RangeInclusive<Sequence>,
        bytes: u64,
        mut each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let mut next = *places.start();
        while next <= *places.end() {
            let Some(segment) = segment_of(&self.segments(), next) else {
                return Err(missing(next));
            };
            let up_to = *places.end();
            let Some(span) = segment.span(next, bytes)? else {
                return Err(missing(next));
            };
            let _turn = turns.and_then(|turns| turns.take(&span));
            match scan_span(&segment, &span, self.epoch, next..=up_to, &mut each)? {
                ControlFlow::Continue(behind) => next = behind,
                ControlFlow::Break(()) => break,
            }
        }
        Ok(())
    }

    /// The same backwards, from the end of `places`.
    pub(super) fn scan_back(
        &self,
        places: RangeInclusive<Sequence>,
        mut each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let mut last = *places.end();
        while last >= *places.start() {
            let Some(segment) = segment_of(&self.segments(), last) else {
                return Err(missing(last));
            };
            let Some(span) = segment.span(last, 0)? else {
                return Err(missing(last));
            };
            let _turn = self.turns.take(&span);
            let first = span.first.max(*places.start());
            let mut records = Vec::new();
            let all = scan_span(&segment, &span, self.epoch, first..=last, &mut |record| {
                records.push(record);
                Ok(ControlFlow::Continue(()))
            })?;
            if all != ControlFlow::Continue(last.next()) {
                return Err(missing(last));
            }
            for record in records.into_iter().rev() {
                if each(record)?.is_break() {
                    return Ok(());
                }
            }
            last = first.previous();
        }
        Ok(())
    }

    /// Id and fingerprint of the event at `sequence`, as its commit has them; neither is known of what came from a backup.
    pub(super) fn identity(&self, sequence: Sequence) -> Result<(Uuid, Fingerprint), ReadError> {
        let segment = segment_of(&self.segments(), sequence).ok_or_else(|| missing(sequence))?;
        let span = segment
            .span(sequence, 0)?
            .ok_or_else(|| missing(sequence))?;
        let read = segment.read(&span)?;
        let mut at = 0;
        while let Some(said) = read.get(at..).and_then(frame::Header::parse) {
            let start = at;
            at += said.length;
            if said.events == 0 || said.head() < sequence {
                continue;
            }
            let frame = Frame::parse(self.epoch, &read, start).ok_or_else(|| missing(sequence))?;
            for entry in frame.entries() {
                match entry? {
                    Entry::Event {
                        event_id,
                        fingerprint,
                        record,
                    } if record.sequence() == sequence => {
                        return Ok((event_id, fingerprint));
                    }
                    _ => {}
                }
            }
        }
        Err(missing(sequence))
    }

    /// The event at `sequence`, in memory of its own.
    pub(super) fn get(&self, sequence: Sequence) -> Result<Record, ReadError> {
        let mut found = None;
        self.scan(sequence..=sequence, 0, |record| {
            found = Some(record.compact());
            Ok(ControlFlow::Break(()))
        })?;
        found.ok_or_else(|| missing(sequence))
    }
}

/// Events of the log. Holds the files of all its segments.
pub(super) struct Events {
    epoch: Epoch,
    segments: VecDeque<Arc<Segment>>,
    turns: Arc<Turns>,
    /// Those that have not been read.
    places: RangeInclusive<Sequence>,
    read: VecDeque<Record>,
}

impl Events {
    fn read_more(&mut self) -> Result<(), ReadError> {
        let first = *self.places.start();
        let segment = segment_of(&self.segments, first).ok_or_else(|| missing(first))?;
        let Some(span) = segment.span(first, READ_BYTES)? else {
            return Err(missing(first));
        };
        let _turn = self.turns.take(&span);
        let flow = scan_span(
            &segment,
            &span,
            self.epoch,
            self.places.clone(),
            &mut |record| {
                self.read.push_back(record);
                Ok(ControlFlow::Continue(()))
            },
        )?;
        if let ControlFlow::Continue(next) = flow {
            self.places = next..=*self.places.end();
        }
        Ok(())
    }
}

impl Iterator for Events {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.is_empty()
            && !self.places.is_empty()
            && let Err(error) = self.read_more()
        {
            return Some(Err(error));
        }
        self.read.pop_front().map(Ok)
    }
}

/// Bodies in the files of the log.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By the number of the segment.
    segments: BTreeMap<u64, (Arc<Segment>, Bodies)>,
    /// How many of those that were looked for are not there, or not as they were written.
    lost: usize,
    /// Why, of one of them.
    problem: Option<String>,
}

/// Where bodies lie in a segment, each with where its mark goes.
type Bodies = Vec<(u64, Range<u64>)>;

impl Found {
    /// Itself, if nothing is lost.
    pub(super) fn whole(self) -> Result<Self, ReadError> {
        self.problem.map_or(
            Ok(Self {
                problem: None,
                ..self
            }),
            |problem| Err(ReadError::Corrupt(problem)),
        )
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn add(&mut self, other: Self) {
        for (number, (segment, bodies)) in other.segments {
            self.segments
                .entry(number)
                .or_insert((segment, Vec::new()))
                .1
                .extend(bodies);
        }
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = (&Segment, &[(u64, Range<u64>)])> {
        self.segments
            .values()
            .map(|(segment, bodies)| (&**segment, &bodies[..]))
    }
}

/// Those of some, which are in order, from the first to the last.
fn slice<T: Ord + Copy>(all: &[T], first: T, last: T) -> &[T] {
    let start = all.partition_point(|it| *it < first);
    let end = all.partition_point(|it| *it <= last);
    all.get(start..end).unwrap_or_default()
}

fn segment_of(segments: &VecDeque<Arc<Segment>>, sequence: Sequence) -> Option<Arc<Segment>> {
    let behind = segments.partition_point(|segment| segment.first_sequence() <= sequence);
    segments.get(behind.checked_sub(1)?).cloned()
}

/// Hands over the events at these places that lie in one span of a segment; where to go on behind them.
fn scan_span(
    segment: &Segment,
    span: &Span,
    epoch: Epoch,
    places: RangeInclusive<Sequence>,
    each: &mut impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
) -> Result<ControlFlow<(), Sequence>, ReadError> {
    let mut next = *places.start();
    let read = segment.read(span)?;
    let is_large = read.len() > LARGE_READ_BYTES;
    let mut at = 0;
    while at < read.len() && next <= *places.end() {
        let said = frame::Header::parse(&read[at..]).ok_or_else(|| missing(next))?;
        let start = at;
        at += said.length;
        // Those before are passed over, damaged or not.
        if said.events == 0 || said.head() < next {
            continue;
        }
        let frame = Frame::parse(epoch, &read, start).ok_or_else(|| missing(next))?;
        for entry in frame.entries() {
            let Entry::Event { record, .. } = entry? else {
                continue;
            };
            if record.sequence() < next {
                continue;
            }
            if record.sequence() > next {
                return Err(missing(next));
            }
            if next > *places.end() {
                break;
            }
            next = next.next();
            let record = if is_large { record.compact() } else { record };
            if each(record)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    if next == *places.start() {
        Err(missing(next))
    } else {
        Ok(ControlFlow::Continue(next))
    }
}

fn missing(sequence: Sequence) -> ReadError {
    ReadError::Corrupt(format!("event {} is missing", sequence.0))
}

fn next_bytes(bytes: u64) -> u64 {
    (2 * bytes).clamp(FIRST_SEGMENT_BYTES, SEGMENT_BYTES_MAX)
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.{EXTENSION}"))
}

/// What the database knows of its log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Indexed {
    /// Which log it is of.
    pub epoch: Epoch,
    /// The newest commit that it knows to be durable.
    pub told: u64,
}

/// What a folder has of a log.
#[derive(Default)]
struct Known {
    /// In order, without a gap.
    segments: VecDeque<Arc<Segment>>,
    /// Files that were made ahead, and those before a gap.
    stale: Vec<PathBuf>,
    /// The file of one that was begun and not finished.
    cut_off: Option<PathBuf>,
}

impl Known {
    fn look(folder: &Path, is_begun: bool) -> Result<Self, Setup> {
        let mut paths = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries?
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<Vec<_>>>()?,
        };
        let number_of = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
        paths.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == EXTENSION)
                && number_of(path).is_some()
        });
        paths.sort_unstable_by_key(number_of);
        let mut known = Self::default();
        while let Some(path) = paths.pop_if(|path| is_unused(path).unwrap_or(false)) {
            known.stale.push(path);
        }
        let newest = paths.last().cloned();
        for path in paths {
            let number = number_of(&path).unwrap_or_default();
            if known
                .segments
                .back()
                .is_some_and(|last| last.header.number + 1 != number)
            {
                // Files of forgotten events go when nobody reads them, in any order. Whether these are such is asked later.
                known.stale.extend(
                    known
                        .segments
                        .drain(..)
                        .map(|segment| segment.path().to_owned()),
                );
            }
            let last = known.segments.back().map(|last| last.header);
            match read_header(&path)? {
                Ok(header)
                    if header.number == number
                        && last.is_none_or(|last| follows(&last, &header)) =>
                {
                    known
                        .segments
                        .push_back(Arc::new(Segment::known(path, header)));
                }
                Err(Unreadable::Format(found)) => return Err(Setup::Format(found)),
                // Whether what was cut off was acknowledged is asked later.
                Err(Unreadable::Damaged | Unreadable::Unused)
                    if Some(&path) == newest.as_ref()
                        && (!is_begun || is_cut_off(&known.segments, &path)?) =>
                {
                    known.cut_off = Some(path);
                }
                _ => {
                    return Err(Setup::Corrupt(format!(
                        "{} is not as it was written",
                        path.display()
                    )));
                }
            }
        }
        Ok(known)
    }

    /// Whether all is there that a start has to replay, all that is retained, and all that the database was told of.
    fn check(&self, walked: &Walked, indexed: Option<Indexed>) -> Result<(), Setup> {
        let corrupt = |problem: String| Err(Setup::Corrupt(problem));
        let Some(oldest) = self.segments.front() else {
            return Ok(());
        };
        let checkpoint = self
            .segments
            .iter()
            .find(|segment| segment.header.number == walked.checkpoint);
        let (Some(checkpoint), true) = (
            checkpoint,
            oldest.first_sequence().0 <= walked.totals.first_available,
        ) else {
            return corrupt(format!(
                "a segment before {} is lost",
                oldest.path().display()
            ));
        };
        let newest = walked.next_commit - 1;
        match indexed {
            None if newest > 0 => corrupt("the log's identity is lost".to_owned()),
            Some(Indexed { epoch, .. }) if epoch != oldest.header.epoch => corrupt(format!(
                "it is log {}, and its index is that of log {epoch}",
                oldest.header.epoch
            )),
            // It hears of a commit when the log has it for good.
            Some(Indexed { told, .. }) if told > newest => corrupt(format!(
                "its index knows {told} commits, and the log ends behind {newest}"
            )),
            Some(Indexed { told, .. }) if told + 1 < checkpoint.header.commit => corrupt(format!(
                "its index ends behind commit {told}, and was synced behind {}",
                checkpoint.header.commit - 1
            )),
            _ => Ok(()),
        }
    }

    /// Removes what is none of the log.
    fn clear(&mut self) -> io::Result<()> {
        if let Some(path) = self.cut_off.take() {
            tracing::warn!(path = %path.display(), "a segment was cut off by a crash in its first commit, and is taken back");
            self.stale.push(path);
        }
        self.stale.drain(..).try_for_each(fs::remove_file)
    }
}

fn not_as_written(commit: u64, path: &Path) -> Setup {
    Setup::Corrupt(format!(
        "commit {commit} in {} is not as it was written",
        path.display()
    ))
}

/// Whether a file was made ahead, as far as it was made.
fn is_unused(path: &Path) -> io::Result<bool> {
    match read_header(path)? {
        Ok(_) | Err(Unreadable::Format(_)) => Ok(false),
        Err(_) => Ok(fs::read(path)?.iter().all(|&byte| byte == 0)),
    }
}

fn read_header(path: &Path) -> io::Result<Result<segment::Header, Unreadable>> {
    let mut bytes = [0; HEADER_BYTES];
    match File::open(path)?.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(Unreadable::Damaged)),
        read => read.map(|()| segment::Header::parse(&bytes)),
    }
}

fn follows(last: &segment::Header, next: &segment::Header) -> bool {
    last.epoch == next.epoch && last.commit <= next.commit
}

/// Whether a segment with a damaged header has no whole commit but, perhaps, the first.
fn is_cut_off(before: &VecDeque<Arc<Segment>>, path: &Path) -> Result<bool, Setup> {
    let Some(last) = before.back() else {
        return Ok(false);
    };
    let walked = segment::walk(&last.header, &last.read_whole()?, |_, _| Ok::<_, Setup>(()))?;
    Ok(!frame::is_followed(
        last.header.epoch,
        &fs::read(path)?.into(),
        walked.next_commit,
    ))
}

fn check_acknowledged(
    acknowledged: Option<Mark>,
    epoch: Epoch,
    next_commit: u64,
    totals: &Totals,
) -> Result<(), Setup> {
    let Some(mark) = acknowledged else {
        return Ok(());
    };
    let corrupt = |problem: String| Err(Setup::Corrupt(problem));
    let head = totals.head()?.0;
    if mark.epoch != epoch {
        return corrupt(format!(
            "it is log {epoch}, and log {} was acknowledged",
            mark.epoch
        ));
    }
    if mark.head > head {
        return corrupt(format!(
            "{} events were acknowledged, and the log ends behind {head}",
            mark.head
        ));
    }
    if mark.quarantine_next > totals.quarantine_next {
        let (known, found) = (mark.quarantine_next, totals.quarantine_next);
        return corrupt(format!(
            "{known} quarantined callbacks were acknowledged, and the quarantine ends behind {found}"
        ));
    }
    if mark.commit_next > next_commit {
        let (known, found) = (mark.commit_next - 1, next_commit - 1);
        return corrupt(format!(
            "{known} commits were acknowledged, and the log ends behind {found}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
