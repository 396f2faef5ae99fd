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
    collections::VecDeque,
    fs::{self, File},
    io,
    ops::{ControlFlow, RangeInclusive},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

pub(super) use frame::{Entry, Frame, FrameBuilder};
use segment::{HEADER_BYTES, PAGE_BYTES, Segment, Span, Unreadable, Walked};

use super::{layout::Totals, lock, open::Setup, read::ReadError, watermark::Mark};
use crate::event::{Epoch, Record, Sequence};

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
}

impl Active {
    fn at_start(segment: Arc<Segment>, file: File, bytes: u64) -> Self {
        let next_commit = segment.header.commit;
        Self { segment, file, end: HEADER_BYTES as u64, bytes, next_commit }
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
    active: Mutex<Active>,
    spare: Mutex<Option<Spare>>,
    /// The number of the newest commit that is durable, and that the database has heard of.
    applied: AtomicU64,
    /// The oldest segment that a start has to replay, as the next commit will say.
    checkpoint: AtomicU64,
    /// The same, as the last commit has said: what is older is not needed any more.
    noted: AtomicU64,
    /// The database has durably forgotten all events before this one.
    forgotten_before: AtomicU64,
    turns: Arc<Turns>,
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
        let free = self.given_back.wait_while(taken, |taken| *taken == LARGE_READS_MAX);
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
        let header = segment::Header { epoch, number: 1, commit: 1, checkpoint: 1, totals };
        let path = path_of(&folder, 1);
        let file = segment::create(&path, FIRST_SEGMENT_BYTES)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        let segment = Arc::new(Segment::empty(path, header));
        let segments = [Arc::clone(&segment)].into();
        Ok(Self::of(folder, segments, Active::at_start(segment, file, FIRST_SEGMENT_BYTES), 1))
    }

    fn of(folder: PathBuf, segments: VecDeque<Arc<Segment>>, active: Active, checkpoint: u64) -> Self {
        Self {
            folder,
            epoch: active.segment.header.epoch,
            applied: (active.next_commit - 1).into(),
            segments: RwLock::new(segments),
            active: Mutex::new(active),
            spare: Mutex::default(),
            checkpoint: checkpoint.into(),
            noted: checkpoint.into(),
            forgotten_before: 0.into(),
            turns: Arc::default(),
        }
    }

    /// Opens the log of a data directory, with the totals as its last commit left them; `None` if there is none yet. Everything
    /// is checked before anything is changed.
    ///
    /// A last commit that is not whole was cut off by a crash, and is taken back; unless it was acknowledged, or the database
    /// was told of it, or another one follows it: then the log is damaged.
    pub(super) fn open(
        directory: &Path,
        acknowledged: Option<Mark>,
        indexed: Option<Indexed>,
    ) -> Result<Option<(Self, Totals)>, Setup> {
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
        let mut last_commit = 0;
        let walked = segment::walk(&header, &bytes, |at, frame| {
            newest.show(at as u64, &frame.header);
            last_commit = at;
            Ok::<_, Setup>(())
        })?;
        let behind = bytes.slice(walked.end..);
        let is_clean = behind.iter().all(|&byte| byte == 0);
        if !is_clean && frame::is_followed(header.epoch, &behind, walked.next_commit) {
            return Err(not_as_written(walked.next_commit, newest.path()));
        }
        check_acknowledged(acknowledged, header.epoch, walked.next_commit, &walked.totals)?;
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
        let Walked { end, next_commit, checkpoint, totals } = walked;
        let active = Active { segment: newest, file, end: end as u64, bytes: bytes.len() as u64, next_commit };
        Ok(Some((Self::of(folder, known.segments, active, checkpoint), totals)))
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
    pub(super) fn append(&self, frame: FrameBuilder, before: &Totals, after: &Totals) -> io::Result<Written> {
        let mut active = lock(&self.active);
        let checkpoint = self.checkpoint.load(Ordering::Acquire);
        let (mut bytes, header) = frame.finish(self.epoch, active.next_commit, checkpoint, *after);
        if active.bytes - active.end < header.length as u64 {
            self.begin_segment(&mut active, before, HEADER_BYTES as u64 + header.length as u64)?;
        }
        // With the zeros behind it up to the end of a page, which are there already, but not in memory.
        let end = (active.end + header.length as u64).next_multiple_of(PAGE_BYTES);
        bytes.resize((end - active.end) as usize, 0);
        active.file.write_all_at(&bytes, active.end)?;
        let written = Written { segment: Arc::clone(&active.segment), at: active.end, header };
        active.end += header.length as u64;
        active.next_commit += 1;
        Ok(written)
    }

    /// Makes what was appended durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        lock(&self.active).file.sync_data()
    }

    /// Lets readers find what was appended and synced.
    pub(super) fn show(&self, written: &Written) {
        written.segment.show(written.at, &written.header);
        self.noted.store(written.header.checkpoint, Ordering::Release);
    }

    /// Makes everything durable and goes on in a segment of its own, from which on starts replay.
    pub(super) fn finish(&self, totals: &Totals) -> io::Result<()> {
        let mut active = lock(&self.active);
        self.checkpoint.store(active.segment.header.number + 1, Ordering::Release);
        self.begin_segment(&mut active, totals, 0)?;
        active.file.sync_data()
    }

    fn begin_segment(&self, active: &mut Active, totals: &Totals, bytes_min: u64) -> io::Result<()> {
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
                let create = |bytes: u64| Ok(Spare { file: segment::create(&path, bytes)?, bytes });
                create(next_bytes(active.bytes).max(bytes_min)).or_else(|error: io::Error| match error.kind() {
                    // To forget something may need a segment, too.
                    io::ErrorKind::StorageFull => create(FIRST_SEGMENT_BYTES.max(bytes_min)),
                    _ => Err(error),
                })?
            }
        };
        let checkpoint = self.checkpoint.load(Ordering::Acquire);
        let header =
            segment::Header { epoch: self.epoch, number, commit: active.next_commit, checkpoint, totals: *totals };
        let mut page = [0; PAGE_BYTES as usize];
        page[..HEADER_BYTES].copy_from_slice(&header.encode());
        file.write_all_at(&page, 0)?;
        let segment = Arc::new(Segment::empty(path, header));
        self.segments.write().unwrap_or_else(PoisonError::into_inner).push_back(Arc::clone(&segment));
        *active = Active::at_start(segment, file, bytes);
        Ok(())
    }

    /// Makes the next segment ahead, once this one is half full.
    pub(super) fn make_ahead(&self) -> io::Result<()> {
        if !self.needs_spare() {
            return Ok(());
        }
        let mut spare = lock(&self.spare);
        let newest = self.segments().back().cloned();
        if let (None, Some(newest)) = (&*spare, newest) {
            let bytes = next_bytes(newest.path().metadata()?.len());
            let file = segment::create(&path_of(&self.folder, newest.header.number + 1), bytes)?;
            *spare = Some(Spare { file, bytes });
        }
        Ok(())
    }

    fn needs_spare(&self) -> bool {
        let is_half_full = {
            let active = lock(&self.active);
            active.end > active.bytes / 2
        };
        // While it is being made, none is needed.
        is_half_full && self.spare.try_lock().is_ok_and(|spare| spare.is_none())
    }

    /// Whether there is something to do beside writing: a segment to make ahead, a checkpoint, a file to remove.
    pub(super) fn needs_care(&self, first_available: Sequence) -> bool {
        self.needs_spare() || self.needs_checkpoint(first_available) || self.has_forgotten()
    }

    /// Whether a checkpoint would shorten the replay, or let a segment go.
    pub(super) fn needs_checkpoint(&self, first_available: Sequence) -> bool {
        let segments = self.segments();
        let newest = segments.back().map_or(0, |newest| newest.header.number);
        let would_free = |before: u64| segments.get(1).is_some_and(|second| second.first_sequence().0 <= before);
        newest > self.checkpoint.load(Ordering::Acquire)
            || would_free(first_available.0) && !would_free(self.forgotten_before.load(Ordering::Acquire))
    }

    /// The number of the segment that is written to. All commits in older ones have been applied when the writer is between
    /// two commits or in the first of this segment.
    pub(super) fn newest(&self) -> u64 {
        self.segments().back().map_or(0, |newest| newest.header.number)
    }

    /// What is before segment `number`, and the forgetting of all events before `first_available`, is durable in the database.
    pub(super) fn checkpoint(&self, number: u64, first_available: Sequence) {
        self.checkpoint.store(number, Ordering::Release);
        self.forgotten_before.store(first_available.0, Ordering::Release);
    }

    fn has_forgotten(&self) -> bool {
        self.is_oldest_forgotten(&self.segments())
    }

    /// Whether all events of the oldest segment are durably forgotten, and no start can need it: a durable commit says so.
    fn is_oldest_forgotten(&self, segments: &VecDeque<Arc<Segment>>) -> bool {
        let forgotten_before = self.forgotten_before.load(Ordering::Acquire);
        segments.front().is_some_and(|oldest| oldest.header.number < self.noted.load(Ordering::Acquire))
            && segments.get(1).is_some_and(|second| second.first_sequence().0 <= forgotten_before)
    }

    /// Lets go of the segments that are forgotten. A last one may have to wait for the next commit.
    pub(super) fn remove_forgotten(&self) {
        let mut forgotten = Vec::new();
        {
            let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
            while self.is_oldest_forgotten(&segments) {
                forgotten.extend(segments.pop_front());
            }
        }
        // A file may take a while to remove.
        forgotten.iter().for_each(|segment| segment.forget());
    }

    /// Hands over every commit that a start has to replay, with the totals that the first of them found.
    pub(super) fn replay(&self, mut each: impl FnMut(Frame) -> Result<(), Setup>) -> Result<Totals, Setup> {
        let checkpoint = self.checkpoint.load(Ordering::Acquire);
        let segments: Vec<_> =
            self.segments().iter().filter(|segment| segment.header.number >= checkpoint).cloned().collect();
        for (at, segment) in segments.iter().enumerate() {
            let walked = segment::walk(&segment.header, &segment.read_whole()?, |_, frame| each(frame))?;
            if let Some(next) = segments.get(at + 1)
                && (walked.next_commit, walked.totals) != (next.header.commit, next.header.totals)
            {
                return Err(not_as_written(walked.next_commit, segment.path()));
            }
        }
        Ok(segments.first().map_or_else(Totals::default, |oldest| oldest.header.totals))
    }

    /// The oldest event that a file still has, forgotten or not.
    pub(super) fn oldest(&self) -> Sequence {
        self.segments().front().map_or(Sequence(0), |oldest| oldest.first_sequence())
    }

    /// The events at these places, one by one, also those that are forgotten meanwhile.
    pub(super) fn events(&self, places: RangeInclusive<Sequence>) -> Events {
        let turns = Arc::clone(&self.turns);
        Events { epoch: self.epoch, segments: self.segments().clone(), turns, places, read: VecDeque::new() }
    }

    /// Hands over the events at these places in order, until told to stop, reading about so many bytes at a time.
    ///
    /// A place without its event is damage, or forgotten meanwhile: whoever asks has to look.
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
            let Some(segment) = segment_of(&self.segments(), next) else { return Err(missing(next)) };
            let up_to = *places.end();
            let Some(span) = segment.span(next, bytes)? else { return Err(missing(next)) };
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
            let Some(segment) = segment_of(&self.segments(), last) else { return Err(missing(last)) };
            let Some(span) = segment.span(last, 0)? else { return Err(missing(last)) };
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
        let Some(span) = segment.span(first, READ_BYTES)? else { return Err(missing(first)) };
        let _turn = self.turns.take(&span);
        let flow = scan_span(&segment, &span, self.epoch, self.places.clone(), &mut |record| {
            self.read.push_back(record);
            Ok(ControlFlow::Continue(()))
        })?;
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
            let Entry::Event { record, .. } = entry? else { continue };
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
    if next == *places.start() { Err(missing(next)) } else { Ok(ControlFlow::Continue(next)) }
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
            entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
        };
        let number_of = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
        paths.retain(|path| {
            path.extension().is_some_and(|extension| extension == EXTENSION) && number_of(path).is_some()
        });
        paths.sort_unstable_by_key(number_of);
        let mut known = Self::default();
        while let Some(path) = paths.pop_if(|path| is_unused(path).unwrap_or(false)) {
            known.stale.push(path);
        }
        let newest = paths.last().cloned();
        for path in paths {
            let number = number_of(&path).unwrap_or_default();
            if known.segments.back().is_some_and(|last| last.header.number + 1 != number) {
                // Files of forgotten events go when nobody reads them, in any order. Whether these are such is asked later.
                known.stale.extend(known.segments.drain(..).map(|segment| segment.path().to_owned()));
            }
            let last = known.segments.back().map(|last| last.header);
            match read_header(&path)? {
                Ok(header) if header.number == number && last.is_none_or(|last| follows(&last, &header)) => {
                    known.segments.push_back(Arc::new(Segment::known(path, header)));
                }
                Err(Unreadable::Format(found)) => return Err(Setup::Format(found)),
                // Whether what was cut off was acknowledged is asked later.
                Err(Unreadable::Damaged | Unreadable::Unused)
                    if Some(&path) == newest.as_ref() && (!is_begun || is_cut_off(&known.segments, &path)?) =>
                {
                    known.cut_off = Some(path);
                }
                _ => return Err(Setup::Corrupt(format!("{} is not as it was written", path.display()))),
            }
        }
        Ok(known)
    }

    /// Whether all is there that a start has to replay, all that is retained, and all that the database was told of.
    fn check(&self, walked: &Walked, indexed: Option<Indexed>) -> Result<(), Setup> {
        let corrupt = |problem: String| Err(Setup::Corrupt(problem));
        let Some(oldest) = self.segments.front() else { return Ok(()) };
        let checkpoint = self.segments.iter().find(|segment| segment.header.number == walked.checkpoint);
        let (Some(checkpoint), true) = (checkpoint, oldest.first_sequence().0 <= walked.totals.first_available) else {
            return corrupt(format!("a segment before {} is lost", oldest.path().display()));
        };
        let newest = walked.next_commit - 1;
        match indexed {
            None if newest > 0 => corrupt("the log's identity is lost".to_owned()),
            Some(Indexed { epoch, .. }) if epoch != oldest.header.epoch => {
                corrupt(format!("it is log {}, and its index is that of log {epoch}", oldest.header.epoch))
            }
            // It hears of a commit when the log has it for good.
            Some(Indexed { told, .. }) if told > newest => {
                corrupt(format!("its index knows {told} commits, and the log ends behind {newest}"))
            }
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
    Setup::Corrupt(format!("commit {commit} in {} is not as it was written", path.display()))
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
    let Some(last) = before.back() else { return Ok(false) };
    let walked = segment::walk(&last.header, &last.read_whole()?, |_, _| Ok::<_, Setup>(()))?;
    Ok(!frame::is_followed(last.header.epoch, &fs::read(path)?.into(), walked.next_commit))
}

fn check_acknowledged(
    acknowledged: Option<Mark>,
    epoch: Epoch,
    next_commit: u64,
    totals: &Totals,
) -> Result<(), Setup> {
    let Some(mark) = acknowledged else { return Ok(()) };
    let corrupt = |problem: String| Err(Setup::Corrupt(problem));
    let head = totals.head()?.0;
    if mark.epoch != epoch {
        return corrupt(format!("it is log {epoch}, and log {} was acknowledged", mark.epoch));
    }
    if mark.head > head {
        return corrupt(format!("{} events were acknowledged, and the log ends behind {head}", mark.head));
    }
    if mark.quarantine_next > totals.quarantine_next {
        let (known, found) = (mark.quarantine_next, totals.quarantine_next);
        return corrupt(format!(
            "{known} quarantined callbacks were acknowledged, and the quarantine ends behind {found}"
        ));
    }
    if mark.commit_next > next_commit {
        let (known, found) = (mark.commit_next - 1, next_commit - 1);
        return corrupt(format!("{known} commits were acknowledged, and the log ends behind {found}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
