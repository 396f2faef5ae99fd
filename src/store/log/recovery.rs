//! Opening a log: which files are its segments, where its last whole commit ends, and whether anything is lost.
//!
//! Everything is checked before anything is changed.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use super::{
    Active, EXTENSION, Log,
    frame::{self, Frame},
    path_of,
    segment::{self, HEADER_BYTES, Segment, Unreadable, Walked},
};
use crate::{
    event::Epoch,
    store::{acknowledged::Acknowledged, directory::LOG, error::StartFailure, layout::Totals},
};

impl Log {
    /// Opens the log of a data directory, with the totals as its last commit left them, and how many bytes behind that were taken
    /// back; `None` if there is none yet. Everything is checked before anything is changed.
    ///
    /// A last commit that is not whole was cut off by a crash, and is taken back; unless it was acknowledged, or the database
    /// was told of it, or another one follows it: then the log is damaged.
    pub(in crate::store) fn open(
        directory: &Path,
        acknowledged: Option<Acknowledged>,
        indexed: Option<Indexed>,
    ) -> Result<Option<(Self, Totals, u64)>, StartFailure> {
        let folder = directory.join(LOG);
        let is_begun = acknowledged.is_some() || indexed.is_some();
        let mut known = Known::look(&folder, is_begun)?;
        let Some(header) = known.segments.pop_back().map(|newest| newest.header) else {
            return if is_begun {
                Err(StartFailure::Corrupt("the log is lost".to_owned()))
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
            Ok::<_, StartFailure>(())
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

    /// Hands over every commit that a start has to replay, with the totals that the first of them found.
    pub(in crate::store) fn replay(
        &self,
        mut each: impl FnMut(Frame) -> Result<(), StartFailure>,
    ) -> Result<Totals, StartFailure> {
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
}

/// What the database knows of its log.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Indexed {
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
    fn look(folder: &Path, is_begun: bool) -> Result<Self, StartFailure> {
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
                Err(Unreadable::Format(found)) => return Err(StartFailure::Format(found)),
                // Whether what was cut off was acknowledged is asked later.
                Err(Unreadable::Damaged | Unreadable::Unused)
                    if Some(&path) == newest.as_ref()
                        && (!is_begun || is_cut_off(&known.segments, &path)?) =>
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

    /// Whether all is there that a start has to replay, all that is retained, and all that the database was told of.
    fn check(&self, walked: &Walked, indexed: Option<Indexed>) -> Result<(), StartFailure> {
        let corrupt = |problem: String| Err(StartFailure::Corrupt(problem));
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
    let head = totals.head()?.0;
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
