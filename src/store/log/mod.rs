//! The log: every commit, in order, in files of its own; what is durable here is the truth, and the database an index of it.
//!
//! The log is a row of segments ([`segment`]), each a file of commits ([`frame`]). A commit is written behind the last and
//! synced before anybody hears of it. The database is told afterwards, of tasks not before there are many; it is synced now and
//! then, and that is a checkpoint: commits in older segments never have to be told again. A start replays the others, which
//! changes nothing that is there already. Segments go when all of their events are forgotten, the database has durably forgotten them, and a
//! commit behind that has noted the checkpoint.

mod erasure;
mod frame;
mod read;
mod recovery;
mod segment;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use erasure::Announced;
pub(super) use erasure::Found;
pub(super) use frame::{Entry, Frame, FrameBuilder};
use read::Turns;
pub(super) use read::{Events, LARGE_READ_BYTES, READ_BYTES};
pub(super) use recovery::Indexed;
use segment::{HEADER_BYTES, PAGE_BYTES, Segment};

use super::{clock::TOLERANCE, directory::LOG, layout::Totals, lock};
use crate::event::{Epoch, Sequence};

/// The first segment is small, as most logs are; each further one is twice as large as the one before, up to the largest.
const FIRST_SEGMENT_BYTES: u64 = 1024 * 1024;
/// What a start may have to replay, and what forgetting frees at once.
const SEGMENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
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

impl Log {
    /// Begins a log in a data directory that has none.
    pub(super) fn create(directory: &Path, epoch: Epoch, totals: Totals) -> io::Result<Self> {
        let folder = directory.join(LOG);
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

    /// The oldest event that a file still has, forgotten or not.
    pub(super) fn oldest(&self) -> Sequence {
        self.segments()
            .front()
            .map_or(Sequence(0), |oldest| oldest.first_sequence())
    }
}

fn next_bytes(bytes: u64) -> u64 {
    (2 * bytes).clamp(FIRST_SEGMENT_BYTES, SEGMENT_BYTES_MAX)
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:012}.{EXTENSION}"))
}

#[cfg(test)]
mod tests;
