//! The log: every commit, in order, in files of its own; what is durable here is the truth, and the database an index of it.
//!
//! The log is a row of segments ([`segment`]), each a file of commits ([`frame`]). A commit is written behind the last and
//! synced before anybody hears of it. The database is told afterwards, without a sync; it is synced now and then, and that is
//! a checkpoint: commits in older segments never have to be told again. A start replays the others, which changes nothing
//! that is there already. Segments go when all of their events are forgotten, and the database has durably forgotten them.

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
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

pub(super) use frame::{Entry, Frame, FrameBuilder};
use segment::{HEADER_BYTES, PAGE_BYTES, Segment, Unreadable, Walked};

use super::{layout::Totals, lock, open::Setup, read::ReadError, watermark::Mark};
use crate::event::{Epoch, Record, Sequence};

/// The first segment is small, as most logs are; each further one is twice as large as the one before, up to the largest.
const FIRST_SEGMENT_BYTES: u64 = 1024 * 1024;
/// What a start may have to replay, and what forgetting frees at once.
const SEGMENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Read at once by who takes everything.
const EVENTS_READ_BYTES: u64 = 256 * 1024;
const FOLDER: &str = "log";
const EXTENSION: &str = "log";

/// Where a commit was written.
#[derive(Debug)]
pub(super) struct Written {
    segment: Arc<Segment>,
    at: u64,
    header: frame::Header,
}

impl Written {
    /// The commit's number.
    pub(super) fn commit(&self) -> u64 {
        self.header.commit
    }
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
    /// The oldest segment that a start has to replay.
    checkpoint: AtomicU64,
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
            segments: RwLock::new(segments),
            active: Mutex::new(active),
            spare: Mutex::default(),
            checkpoint: checkpoint.into(),
        }
    }

    /// Opens the log of a data directory, with the totals as its last commit left them; `None` if there is none.
    ///
    /// A last commit that is not whole was cut off by a crash, and is taken back; unless it was acknowledged, or another one
    /// follows it: then the log is damaged.
    pub(super) fn open(directory: &Path, acknowledged: Option<Mark>) -> Result<Option<(Self, Totals)>, Setup> {
        let folder = directory.join(FOLDER);
        let Some(Known { mut segments, cut_off }) = Known::look(&folder)? else { return Ok(None) };
        let header = segments.pop_back().ok_or_else(|| Setup::Corrupt("the log has no segment".to_owned()))?.header;
        let newest = Segment::empty(path_of(&folder, header.number), header);
        let path = newest.path().display();
        let bytes = newest.read_whole()?;
        let Walked { end, next_commit, checkpoint, totals } = segment::walk(&header, &bytes, |at, frame| {
            newest.show(at as u64, &frame.header);
            Ok::<_, Setup>(())
        })?;
        let behind = bytes.slice(end..);
        let is_clean = behind.iter().all(|&byte| byte == 0);
        if !is_clean && frame::is_followed(header.epoch, &behind, next_commit) {
            return Err(Setup::Corrupt(format!("commit {next_commit} in {path} is not as it was written")));
        }
        check_acknowledged(acknowledged, header.epoch, next_commit, &totals)?;
        if segments.front().map_or(header.number, |oldest| oldest.header.number) > checkpoint {
            return Err(Setup::Corrupt(format!("segment {checkpoint} of the log is lost")));
        }
        let mut file = File::options().read(true).write(true).open(newest.path())?;
        if !is_clean {
            tracing::warn!(%path, at = end, commit = next_commit, "the last commit was cut off by a crash, and is taken back");
            segment::zero_from(&mut file, end as u64)?;
        }
        if let Some(path) = cut_off {
            let path_shown = path.display();
            tracing::warn!(path = %path_shown, commit = next_commit, "the last commit was cut off by a crash, and is taken back");
            fs::remove_file(&path)?;
        }
        // What a killed process wrote but had not synced is read from here on, so it must be durable from here on.
        file.sync_all()?;
        let newest = Arc::new(newest);
        segments.push_back(Arc::clone(&newest));
        let active = Active { segment: newest, file, end: end as u64, bytes: bytes.len() as u64, next_commit };
        Ok(Some((Self::of(folder, segments, active, checkpoint), totals)))
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether nothing was ever committed to it.
    pub(super) fn is_new(&self) -> bool {
        self.next_commit() == 1
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
                let bytes = next_bytes(active.bytes).max(bytes_min.next_multiple_of(PAGE_BYTES));
                Spare { file: segment::create(&path, bytes)?, bytes }
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
        self.needs_spare() || self.needs_checkpoint(first_available)
    }

    /// Whether a checkpoint would shorten the replay, or free a segment.
    pub(super) fn needs_checkpoint(&self, first_available: Sequence) -> bool {
        let segments = self.segments();
        let newest = segments.back().map_or(0, |newest| newest.header.number);
        newest > self.checkpoint.load(Ordering::Acquire) || is_oldest_forgotten(&segments, first_available)
    }

    /// The number of the segment that is written to. All commits in older ones have been applied when the writer is between
    /// two commits or in the first of this segment.
    pub(super) fn newest(&self) -> u64 {
        self.segments().back().map_or(0, |newest| newest.header.number)
    }

    /// What is before segment `number`, and the forgetting of all events before `first_available`, is durable in the database.
    pub(super) fn checkpoint(&self, number: u64, first_available: Sequence) {
        self.checkpoint.store(number, Ordering::Release);
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        let mut forgotten = Vec::new();
        while segments.front().is_some_and(|oldest| oldest.header.number < number)
            && is_oldest_forgotten(&segments, first_available)
        {
            forgotten.extend(segments.pop_front());
        }
        drop(segments);
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
                let (commit, path) = (walked.next_commit, segment.path().display());
                return Err(Setup::Corrupt(format!("commit {commit} in {path} is not as it was written")));
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
        Events { epoch: self.epoch, segments: self.segments().clone(), places, read: VecDeque::new() }
    }

    /// Hands over the events at these places in order, until told to stop, reading about so many bytes at a time.
    ///
    /// A place without its event is damage, or forgotten meanwhile: whoever asks has to look.
    pub(super) fn scan(
        &self,
        places: RangeInclusive<Sequence>,
        bytes: u64,
        mut each: impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let mut next = *places.start();
        while next <= *places.end() {
            let Some(segment) = segment_of(&self.segments(), next) else { return Err(missing(next)) };
            let up_to = *places.end();
            match scan_span(&segment, self.epoch, next..=up_to, bytes, &mut each)? {
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
            let first = span.first.max(*places.start());
            let mut records = Vec::new();
            let all = scan_span(&segment, self.epoch, first..=last, 0, &mut |record| {
                records.push(record);
                Ok(ControlFlow::Continue(()))
            })?;
            debug_assert_eq!(
                all,
                ControlFlow::Continue(last.next()),
                "a span ends with the event that it was asked for"
            );
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
    /// Those that have not been read.
    places: RangeInclusive<Sequence>,
    read: VecDeque<Record>,
}

impl Events {
    fn read_more(&mut self) -> Result<(), ReadError> {
        let first = *self.places.start();
        let segment = segment_of(&self.segments, first).ok_or_else(|| missing(first))?;
        let flow = scan_span(&segment, self.epoch, self.places.clone(), EVENTS_READ_BYTES, &mut |record| {
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
    epoch: Epoch,
    places: RangeInclusive<Sequence>,
    bytes: u64,
    each: &mut impl FnMut(Record) -> Result<ControlFlow<()>, ReadError>,
) -> Result<ControlFlow<(), Sequence>, ReadError> {
    let mut next = *places.start();
    let Some(span) = segment.span(next, bytes)? else { return Err(missing(next)) };
    let read = segment.read(&span)?;
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

fn is_oldest_forgotten(segments: &VecDeque<Arc<Segment>>, first_available: Sequence) -> bool {
    segments.get(1).is_some_and(|second| second.first_sequence() <= first_available)
}

fn next_bytes(bytes: u64) -> u64 {
    (2 * bytes).clamp(FIRST_SEGMENT_BYTES, SEGMENT_BYTES_MAX)
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.{EXTENSION}"))
}

/// What a folder has of a log.
struct Known {
    /// In order.
    segments: VecDeque<Arc<Segment>>,
    /// The file of one that was begun and not finished.
    cut_off: Option<PathBuf>,
}

impl Known {
    /// `None` if there is no folder. Removes a segment that was made ahead.
    fn look(folder: &Path) -> Result<Option<Self>, Setup> {
        let mut paths = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
        };
        let number_of = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
        paths.retain(|path| {
            path.extension().is_some_and(|extension| extension == EXTENSION) && number_of(path).is_some()
        });
        paths.sort_unstable_by_key(number_of);
        let newest = paths.last().cloned();
        let mut known = Self { segments: VecDeque::new(), cut_off: None };
        for path in paths {
            let is_newest = Some(&path) == newest.as_ref();
            let last = known.segments.back().map(|last| last.header);
            let number = number_of(&path).unwrap_or_default();
            if last.is_some_and(|last| last.number + 1 != number) {
                return Err(Setup::Corrupt(format!("a segment before {} is lost", path.display())));
            }
            match read_header(&path)? {
                Ok(header) if header.number == number && last.is_none_or(|last| follows(&last, &header)) => {
                    known.segments.push_back(Arc::new(Segment::known(path, header)));
                }
                Err(Unreadable::Format(found)) => return Err(Setup::Format(found)),
                Err(Unreadable::Unused) if is_newest => fs::remove_file(path)?,
                // Whether what was cut off was acknowledged is asked by the caller.
                Err(Unreadable::Damaged) if is_newest && is_cut_off(last, &known.segments, &path)? => {
                    known.cut_off = Some(path);
                }
                _ => return Err(Setup::Corrupt(format!("{} is not as it was written", path.display()))),
            }
        }
        Ok(Some(known))
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
fn is_cut_off(last: Option<segment::Header>, before: &VecDeque<Arc<Segment>>, path: &Path) -> Result<bool, Setup> {
    let (Some(header), Some(last)) = (last, before.back()) else { return Ok(false) };
    let walked = segment::walk(&header, &last.read_whole()?, |_, _| Ok::<_, Setup>(()))?;
    Ok(!frame::is_followed(header.epoch, &fs::read(path)?.into(), walked.next_commit))
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
