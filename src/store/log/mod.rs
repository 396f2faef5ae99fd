//! The log: every commit, in order, in files of its own. It holds everything durable; the database
//! is an index of it.
//!
//! The log is a row of segments ([`segment`]), each a file of commits ([`frame`]). A commit is
//! written behind the last and synced before it becomes visible; then it is applied to the index,
//! which a checkpoint syncs now and then. A start replays the commits behind the last checkpoint,
//! or all of them if the index is lost.
//!
//! The oldest segment is removed when nothing needs it: its events are forgotten, in the index,
//! too; no callback that is still in quarantine has its newest copy there; no erasure that it
//! announces waits to be carried out; the checkpoint is behind it; and a durable commit says so, by
//! which a start tells a removed segment from a lost one.

mod entry;
mod erasure;
mod frame;
mod gap;
pub(super) mod older;
mod quarantine;
mod read;
mod recovery;
mod removal;
mod segment;
mod summaries;
mod summary;
mod summary_file;
mod written;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io, mem,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};

pub(super) use entry::{COPIES, Entry, Place};
use erasure::Announced;
pub(super) use erasure::Found;
pub(super) use frame::{Frame, FrameBuilder, Streamed};
pub(super) use gap::Gap;
use older::OlderLogs;
pub(super) use quarantine::{QuarantineReader, Unread};
use read::Turns;
pub(super) use read::{Events, LARGE_READ_BYTES, Logged, READ_BYTES, Step};
pub(super) use recovery::{Next, Opened, Replayed, check_format};
use segment::{HEADER_BYTES, PAGE_BYTES, Segment};
use summaries::Summaries;
use summary::Terms;
pub(super) use written::{NewCopy, Written};

use super::{clock::TOLERANCE, directory::LOG, lock};
use crate::{
    cluster::Totals,
    event::{Epoch, Sequence},
};

/// The first segment is small, as most logs are; each further one is twice as large as the one
/// before, up to the largest.
const FIRST_SEGMENT_BYTES: u64 = 1024 * 1024;
/// What a start may have to replay, and what forgetting frees at once.
const SEGMENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
const EXTENSION: &str = "log";

/// The segment that is written to. The writer's alone.
#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    file: File,
    /// Where the next commit goes.
    end: u64,
    bytes: u64,
    next_commit: u64,
    /// Of the newest commit.
    streamed: Streamed,
    /// It has commits from the stream that are not durable yet.
    is_behind: bool,
    /// Up to where it is durable.
    #[cfg(test)]
    synced_end: u64,
    /// The log time at its first commit that brought content, in microseconds since 1970: no
    /// content in it is older.
    since_micros: Option<i64>,
    /// What its events have; `None` of a segment that a start has found begun.
    terms: Option<Terms>,
}

impl Active {
    fn at_start(segment: Arc<Segment>, file: File, bytes: u64) -> Self {
        let segment::Header {
            commit: next_commit,
            streamed,
            ..
        } = segment.header;
        Self {
            segment,
            file,
            end: HEADER_BYTES as u64,
            bytes,
            next_commit,
            streamed,
            is_behind: false,
            #[cfg(test)]
            synced_end: HEADER_BYTES as u64,
            since_micros: None,
            terms: Some(Terms::default()),
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
    /// Locked after `active`, or alone. Held while a segment is made, which takes as long as the
    /// disk does.
    spare: Mutex<Option<Spare>>,
    /// The active segment is as old as it may become, and the next commit goes into one of its own
    /// once that is made ahead.
    is_old: AtomicBool,
    /// The number of the newest commit that is durable and applied. Moved by the writer.
    applied: AtomicU64,
    /// The segment with which a start begins to replay, as the index says durably; 0 as long as it
    /// says nothing. Moved by checkpoints.
    replay_from: AtomicU64,
    /// The index has durably forgotten all events before this one. Moved by checkpoints.
    forgotten_before: AtomicU64,
    /// The oldest segment with the newest copy of a callback that is in quarantine, or of an open
    /// expectation; 0 until the start has set it. Moved by the writer.
    kept_from: AtomicU64,
    /// The oldest segment that is needed, as the last durable commit says. Moved by the writer.
    noted_oldest: AtomicU64,
    /// Removed segments, whose files are there as long as a reader holds them.
    removed: Mutex<Vec<Weak<Segment>>>,
    /// What was announced to be erased and may not be overwritten yet.
    announced: Mutex<VecDeque<Announced>>,
    older: OlderLogs,
    summaries: Summaries,
    turns: Arc<Turns>,
}

impl Log {
    /// Begins a log in a data directory that has none.
    pub(super) fn create(directory: &Path, epoch: Epoch, totals: Totals) -> io::Result<Self> {
        Self::create_behind(directory, epoch, Streamed::default(), totals)
    }

    /// The same of one that follows a stream, behind one of its frames.
    pub(super) fn create_behind(
        directory: &Path,
        epoch: Epoch,
        streamed: Streamed,
        totals: Totals,
    ) -> io::Result<Self> {
        let folder = directory.join(LOG);
        fs::create_dir_all(&folder)?;
        File::open(directory)?.sync_all()?;
        let header = segment::Header {
            epoch,
            number: 1,
            commit: 1,
            oldest: 1,
            streamed,
            totals,
        };
        let path = path_of(&folder, 1);
        let file = segment::create(&path, FIRST_SEGMENT_BYTES)?;
        file.write_all_at(&header.encode(), 0)?;
        file.sync_all()?;
        let segment = Arc::new(Segment::empty(path, header, FIRST_SEGMENT_BYTES));
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
        noted_oldest: u64,
    ) -> Self {
        Self {
            folder,
            epoch: active.segment.header.epoch,
            applied: (active.next_commit - 1).into(),
            segments: RwLock::new(segments),
            active: Mutex::new(active),
            spare: Mutex::default(),
            is_old: false.into(),
            replay_from: 0.into(),
            forgotten_before: 0.into(),
            kept_from: 0.into(),
            noted_oldest: noted_oldest.into(),
            removed: Mutex::default(),
            announced: Mutex::default(),
            older: OlderLogs::default(),
            summaries: Summaries::default(),
            turns: Arc::default(),
        }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Takes note that a commit is applied.
    pub(super) fn note_applied(&self, written: &Written) {
        self.applied.store(written.header.commit, Ordering::Release);
    }

    /// The number of the newest commit that is durable and applied.
    pub(super) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    /// The number of the next commit.
    pub(super) fn next_commit(&self) -> u64 {
        lock(&self.active).next_commit
    }

    fn segments(&self) -> parking_lot::RwLockReadGuard<'_, VecDeque<Arc<Segment>>> {
        self.segments.read()
    }

    /// Writes a commit behind the last; `before` and `after` are the totals around it. It is not
    /// durable yet.
    pub(super) fn append(
        &self,
        mut frame: FrameBuilder,
        before: &Totals,
        after: &Totals,
    ) -> io::Result<Written> {
        let mut active = lock(&self.active);
        let oldest = self.oldest_needed(&self.segments());
        let has_content = frame.has_content();
        let is_streamed = frame.streamed.is_some();
        frame.streamed.get_or_insert(active.streamed);
        let gathered = mem::take(&mut frame.gathered);
        let (mut bytes, header, quarantined) =
            frame.finish(self.epoch, active.next_commit, oldest, *after);

        let is_full = active.bytes - active.end < header.length as u64;
        if is_full || self.is_old.load(Ordering::Acquire) && self.has_spare() {
            self.begin_segment(
                &mut active,
                before,
                HEADER_BYTES as u64 + header.length as u64,
            )?;
        }
        // With the zeros behind it up to the end of a page, which are there already, but not in
        // memory.
        let end = (active.end + header.length as u64).next_multiple_of(PAGE_BYTES);
        bytes.resize((end - active.end) as usize, 0);
        active.file.write_all_at(&bytes, active.end)?;
        let written = Written {
            segment: Arc::clone(&active.segment),
            at: active.end,
            header,
            quarantined,
        };
        active.end += header.length as u64;
        active.next_commit += 1;
        active.streamed = header.streamed;
        active.is_behind |= is_streamed;
        let terms = active.terms.iter_mut();
        terms.for_each(|terms| terms.add_gathered(&gathered));
        active.since_micros = active
            .since_micros
            .or_else(|| has_content.then_some(header.totals.log_time_micros));
        Ok(written)
    }

    /// Makes what was appended durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        let mut active = lock(&self.active);
        active.file.sync_data()?;
        active.is_behind = false;
        #[cfg(test)]
        {
            active.synced_end = active.end;
        }
        Ok(())
    }

    /// What a power cut may take back: the bytes in the newest segment that were not synced.
    #[cfg(test)]
    pub(super) fn unsynced(&self) -> (PathBuf, std::ops::Range<u64>) {
        let active = lock(&self.active);
        (
            active.segment.path().to_owned(),
            active.synced_end..active.end,
        )
    }

    /// The same, if it is not: only commits from the stream are applied before they are durable.
    pub(super) fn catch_up(&self) -> io::Result<()> {
        if lock(&self.active).is_behind {
            self.sync()
        } else {
            Ok(())
        }
    }

    /// The frame that the newest commit came from.
    pub(super) fn streamed(&self) -> Streamed {
        lock(&self.active).streamed
    }

    /// Lets readers find what was appended and synced.
    pub(super) fn show(&self, written: &Written) {
        self.show_ahead(written);
        self.note_oldest(written.oldest());
    }

    /// Lets readers find what was appended and is not durable yet: the stream has it.
    pub(super) fn show_ahead(&self, written: &Written) {
        written.segment.show(written.at, &written.header);
    }

    /// Takes note of the oldest segment that is needed, as a durable commit says. Older ones may go.
    pub(super) fn note_oldest(&self, number: u64) {
        self.noted_oldest.fetch_max(number, Ordering::AcqRel);
    }

    /// Goes on in a segment of its own.
    #[cfg(test)]
    pub(super) fn finish(&self, totals: &Totals) -> io::Result<()> {
        self.begin_segment(&mut lock(&self.active), totals, 0)
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
        // Held until the segment is in the row, so that no other thread makes its file. Waits for
        // one that is being made.
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
        let header = segment::Header {
            epoch: self.epoch,
            number,
            commit: active.next_commit,
            oldest: self.noted_oldest.load(Ordering::Acquire),
            streamed: active.streamed,
            totals: *totals,
        };
        let mut page = [0; PAGE_BYTES as usize];
        page[..HEADER_BYTES].copy_from_slice(&header.encode());
        file.write_all_at(&page, 0)?;
        let segment = Arc::new(Segment::empty(path, header, bytes));
        self.segments.write().push_back(Arc::clone(&segment));
        let sealed = mem::replace(active, Active::at_start(segment, file, bytes));
        self.summaries.note_sealed(number - 1, sealed.terms);
        self.is_old.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes note of the log's time, in microseconds since 1970: what is in the active segment must
    /// not become older there than `age_max`, or it stays on the disk long after it was forgotten.
    pub(super) fn look_at_age(&self, now_micros: i64, age_max: Duration) {
        let age_max = i64::try_from(age_max.as_micros()).unwrap_or(i64::MAX);
        let since = lock(&self.active).since_micros;
        // A time in the future comes from a clock that has been set right since: the age of its
        // content is unknown.
        let is_unknown = |since: i64| since.saturating_sub(now_micros) > TOLERANCE;
        let is_old = since
            .is_some_and(|since| is_unknown(since) || now_micros.saturating_sub(since) >= age_max);
        self.is_old.store(is_old, Ordering::Release);
    }

    /// Whether the next commit is needed for what it says of the log, whatever else is in it: it
    /// begins a segment in place of an old one, or notes the checkpoint that lets forgotten ones
    /// go.
    pub(super) fn needs_commit(&self) -> bool {
        self.is_old.load(Ordering::Acquire) && self.has_spare() || self.awaits_note()
    }

    fn has_spare(&self) -> bool {
        // While it is being made, there is none.
        self.spare.try_lock().is_some_and(|spare| spare.is_some())
    }

    /// Makes the next segment ahead, once this one is half full, or old.
    pub(super) fn make_ahead(&self) -> io::Result<()> {
        // Asked before `spare` is locked. If the writer begins a segment meanwhile, this is made
        // for the one after it.
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
            && self.spare.try_lock().is_some_and(|spare| spare.is_none());
        // One that was full is followed by a larger one, one that grew old by what it would have
        // needed.
        is_needed.then(|| {
            next_bytes(if is_half_full {
                bytes
            } else {
                end.next_multiple_of(PAGE_BYTES)
            })
        })
    }

    /// Whether there is something to do beside writing: a segment to make ahead, a checkpoint, a
    /// file to remove.
    pub(super) fn needs_care(&self, first_available: Sequence) -> bool {
        self.needs_spare().is_some()
            || self.needs_checkpoint(first_available)
            || self.has_forgotten()
            || self.older.are_due()
            || self.summaries.are_due()
    }

    /// The number of the segment that is written to.
    pub(super) fn newest(&self) -> u64 {
        self.segments()
            .back()
            .map_or(0, |newest| newest.header.number)
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
