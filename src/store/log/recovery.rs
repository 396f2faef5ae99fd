//! Opening a log: which files are its segments, where its last whole commit ends, and whether
//! anything is lost.
//!
//! Everything is checked before anything is changed.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Active, EXTENSION, Log, Place,
    frame::{self, Frame, Streamed},
    older::OlderLogs,
    path_of,
    segment::{self, HEADER_BYTES, Header, Segment, Unreadable, Walked},
    summaries,
};
use crate::{
    cluster::Totals,
    event::{Epoch, Sequence},
    store::{acknowledged::Acknowledged, directory::LOG, error::StartFailure},
};

/// A log as it was found.
pub(in crate::store) struct Opened {
    pub log: Log,
    /// As its last commit has left them.
    pub totals: Totals,
    /// Bytes of a last commit that was not whole.
    pub torn_bytes: u64,
}

/// The newest segment, as far as it has whole commits.
struct Newest {
    segment: Arc<Segment>,
    bytes: Bytes,
    walked: Walked,
    /// Where the first commit begins that may not be durable: the last one, or of a log that follows a stream the first
    /// that nobody noted as synced.
    doubtful: usize,
    /// When its first commit came that brought content.
    since_micros: Option<i64>,
    torn_bytes: u64,
}

impl Newest {
    fn read(
        path: PathBuf,
        header: Header,
        acknowledged: Option<Acknowledged>,
    ) -> Result<Self, StartFailure> {
        let synced_before = acknowledged.map(|it| it.commit_next);
        let bytes = Bytes::from(fs::read(&path)?);
        let segment = Segment::empty(path, header, bytes.len() as u64);
        let (mut doubtful, mut is_unsynced, mut since_micros) = (0, false, None);
        let walked = segment::walk(&header, &bytes, |at, frame| {
            segment.show(at as u64, &frame.header);
            if !is_unsynced {
                doubtful = at;
                is_unsynced = synced_before.is_some_and(|before| frame.header.commit >= before);
            }
            since_micros = since_micros.or_else(|| frame.brought_at());
            Ok::<_, StartFailure>(())
        })?;

        let behind = bytes.slice(walked.end..);
        let torn_bytes = behind
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last as u64 + 1);
        // What the stream has is synced later, and a power cut may leave any part of it.
        let is_streamed = walked.streamed != Streamed::default()
            && synced_before.is_some_and(|before| walked.next_commit >= before);
        if torn_bytes > 0
            && !is_streamed
            && frame::is_followed(header.epoch, &behind, walked.next_commit)
        {
            return Err(not_as_written(walked.next_commit, segment.path()));
        }
        Ok(Self {
            segment: Arc::new(segment),
            bytes,
            walked,
            doubtful,
            since_micros,
            torn_bytes,
        })
    }

    /// Removes a torn last commit, and makes the others durable.
    fn finish(self) -> io::Result<Active> {
        let Walked {
            end,
            next_commit,
            streamed,
            ..
        } = self.walked;
        let path = self.segment.path();
        let mut file = File::options().read(true).write(true).open(path)?;
        if self.torn_bytes > 0 {
            let path = path.display();
            tracing::warn!(%path, at = end, commit = next_commit, "the last commit was cut off by a crash, and is taken back");
            segment::zero_from(&mut file, end as u64)?;
        }

        // What a killed process wrote but had not synced is read from here on, so it must be
        // durable from here on. It is written again, because the kernel takes what it once failed
        // to write for written.
        file.write_all_at(&self.bytes[..HEADER_BYTES], 0)?;
        file.write_all_at(&self.bytes[self.doubtful..end], self.doubtful as u64)?;
        file.sync_all()?;
        Ok(Active {
            segment: self.segment,
            file,
            end: end as u64,
            bytes: self.bytes.len() as u64,
            next_commit,
            streamed,
            is_behind: false,
            #[cfg(test)]
            synced_end: end as u64,
            since_micros: self.since_micros,
            terms: None,
        })
    }
}

impl Log {
    /// Opens the log of a data directory; `None` if there is none yet. `is_begun`: something beside
    /// it says that there is one. Everything is checked before anything is changed.
    ///
    /// A last commit that is not whole was cut off by a crash, and is taken back; unless it was
    /// acknowledged, or another one follows it: then the log is damaged.
    pub(in crate::store) fn open(
        directory: &Path,
        acknowledged: Option<Acknowledged>,
        is_begun: bool,
    ) -> Result<Option<Opened>, StartFailure> {
        let folder = directory.join(LOG);
        let mut known = Known::look(&folder, is_begun)?;
        let Some(header) = known.segments.pop_back().map(|newest| newest.header) else {
            return if is_begun {
                Err(StartFailure::Corrupt("the log is lost".to_owned()))
            } else {
                Ok(known.clear().map(|()| None)?)
            };
        };

        let newest = Newest::read(path_of(&folder, header.number), header, acknowledged)?;
        let Walked {
            next_commit,
            oldest,
            totals,
            ..
        } = newest.walked;
        let torn_bytes = newest.torn_bytes;
        check_acknowledged(acknowledged, header.epoch, next_commit, &totals)?;
        known.segments.push_back(Arc::clone(&newest.segment));
        known.check(oldest, &totals)?;

        let active = newest.finish()?;
        known.clear()?;
        summaries::remove_others(&folder, &known.segments)?;
        let older = OlderLogs::find(&folder)?;
        let log = Self::of(folder, known.segments, active, oldest);
        Ok(Some(Opened {
            log: Self { older, ..log },
            totals,
            torn_bytes,
        }))
    }

    /// The number of the first commit of a segment; `None` if there is no such segment.
    pub(in crate::store) fn first_commit_of(&self, number: u64) -> Option<u64> {
        let segments = self.segments();
        let mut headers = segments.iter().map(|segment| segment.header);
        headers
            .find(|header| header.number == number)
            .map(|header| header.commit)
    }

    /// Hands over every commit from segment `first` on, with its place. `each` is also called before
    /// a segment is read, when all before it are done.
    ///
    /// What follows a damaged commit in a segment is left out if the index has nothing of it: all of
    /// its events are before `first_available`, and no callback came into quarantine or left it.
    pub(in crate::store) fn replay<E: From<StartFailure>>(
        &self,
        first: u64,
        first_available: Sequence,
        mut each: impl FnMut(Replayed<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let segments: Vec<_> = self
            .segments()
            .iter()
            .filter(|segment| segment.header.number >= first)
            .cloned()
            .collect();
        for (at, segment) in segments.iter().enumerate() {
            each(Replayed::Segment(Next {
                number: segment.header.number,
                commit: segment.header.commit,
                bytes: segment.bytes(),
                done: at,
                of: segments.len(),
            }))?;
            let bytes = segment.read_whole().map_err(StartFailure::from)?;
            let walked = segment::walk(&segment.header, &bytes, |at, frame| {
                let place = Place {
                    segment: segment.header.number,
                    at: at as u64,
                };
                each(Replayed::Commit(place, &frame))
            })?;
            if let Some(next) = segments.get(at + 1)
                && (walked.next_commit, walked.totals) != (next.header.commit, next.header.totals)
            {
                let is_forgotten = next.first_sequence() <= first_available;
                let quarantines = [segment.header.totals, next.header.totals]
                    .map(|it| (it.quarantine_next, it.quarantine_count, it.quarantine_bytes));
                if !is_forgotten || quarantines[0] != quarantines[1] {
                    return Err(not_as_written(walked.next_commit, segment.path()).into());
                }
                let (path, commit) = (segment.path().display(), walked.next_commit);
                tracing::warn!(%path, commit, "a segment of forgotten events is not as it was written, and nothing of it is needed");
            }
        }
        Ok(())
    }
}

/// A segment that is read next.
pub(in crate::store) struct Next {
    pub number: u64,
    /// Of its first commit.
    pub commit: u64,
    /// Of its file.
    pub bytes: u64,
    /// So many are done,
    pub done: usize,
    /// of so many.
    pub of: usize,
}

/// One step of a replay.
pub(in crate::store) enum Replayed<'a> {
    Segment(Next),
    /// A commit, and where it begins.
    Commit(Place, &'a Frame),
}

/// Refuses a log of another format, before anything else of it is looked at.
pub(in crate::store) fn check_format(directory: &Path) -> Result<(), StartFailure> {
    for path in segment_paths(&directory.join(LOG))? {
        match read_header(&path)? {
            Ok(_) => return Ok(()),
            Err(Unreadable::Format(found)) => return Err(StartFailure::Format(found)),
            Err(_) => {} // judged when the log is opened
        }
    }
    Ok(())
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
    fn look(folder: &Path, is_begun: bool) -> Result<Self, StartFailure> {
        let mut paths = segment_paths(folder)?;
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
                // Files of removed segments disappear with their last reader, in any order. Whether
                // these are such files is checked later.
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
                    let bytes = fs::metadata(&path)?.len();
                    known
                        .segments
                        .push_back(Arc::new(Segment::known(path, header, bytes)));
                }
                Err(Unreadable::Format(found)) => return Err(StartFailure::Format(found)),
                // Whether the part that was cut off was acknowledged is checked later.
                Err(Unreadable::Damaged | Unreadable::Unused)
                    if Some(&path) == newest.as_ref()
                        && (known.segments.is_empty() && !is_begun
                            || is_cut_off(&known.segments, &path)?) =>
                {
                    known.cut_off = Some(path);
                }
                _ => {
                    return Err(StartFailure::Corrupt(format!(
                        "{} is not as it was written",
                        path.display()
                    )));
                }
            }
        }
        Ok(known)
    }

    /// Whether all is there that the last commit says is needed, and all that is retained.
    fn check(&self, oldest_needed: u64, totals: &Totals) -> Result<(), StartFailure> {
        let Some(oldest) = self.segments.front() else {
            return Ok(());
        };
        let has_needed = oldest.header.number <= oldest_needed;
        // Before the first segment there was none. A node that has joined others begins there, and lacks what they forget.
        let has_retained =
            oldest.header.number == 1 || oldest.first_sequence().0 <= totals.first_available;
        if has_needed && has_retained {
            return Ok(());
        }
        Err(StartFailure::Corrupt(format!(
            "a segment before {} is lost",
            oldest.path().display()
        )))
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

/// The files of a folder that are named as segments are, in their order.
fn segment_paths(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()?,
    };
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == EXTENSION)
            && number_of(path).is_some()
    });
    paths.sort_unstable_by_key(|path| number_of(path));
    Ok(paths)
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn not_as_written(commit: u64, path: &Path) -> StartFailure {
    StartFailure::Corrupt(format!(
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
fn is_cut_off(before: &VecDeque<Arc<Segment>>, path: &Path) -> Result<bool, StartFailure> {
    let Some(last) = before.back() else {
        return Ok(false);
    };
    let walked = segment::walk(&last.header, &last.read_whole()?, |_, _| {
        Ok::<_, StartFailure>(())
    })?;
    Ok(!frame::is_followed(
        last.header.epoch,
        &fs::read(path)?.into(),
        walked.next_commit,
    ))
}

fn check_acknowledged(
    acknowledged: Option<Acknowledged>,
    epoch: Epoch,
    next_commit: u64,
    totals: &Totals,
) -> Result<(), StartFailure> {
    let Some(acknowledged) = acknowledged else {
        return Ok(());
    };
    let corrupt = |problem: String| Err(StartFailure::Corrupt(problem));
    let head = totals.newest()?.0;
    if acknowledged.epoch != epoch {
        return corrupt(format!(
            "it is log {epoch}, and log {} was acknowledged",
            acknowledged.epoch
        ));
    }
    if acknowledged.head > head {
        return corrupt(format!(
            "{} events were acknowledged, and the log ends behind {head}",
            acknowledged.head
        ));
    }
    if acknowledged.quarantine_next > totals.quarantine_next {
        let (known, found) = (acknowledged.quarantine_next, totals.quarantine_next);
        return corrupt(format!(
            "{known} quarantined callbacks were acknowledged, and the quarantine ends behind {found}"
        ));
    }
    if acknowledged.commit_next > next_commit {
        let (known, found) = (acknowledged.commit_next - 1, next_commit - 1);
        return corrupt(format!(
            "{known} commits were acknowledged, and the log ends behind {found}"
        ));
    }
    Ok(())
}
