//! What became of the backups of this log. A small file in the data directory keeps it, so that a
//! restart knows it.
//!
//! The file also names the backups that are open: a start that finds some there knows that they
//! were cut off. It only informs: one that is lost or damaged refuses nothing, and counts as a
//! failed backup, so that somebody looks.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{directory::BACKUPS as FILE, lock};
use crate::{event::Epoch, files};

/// It has some hundred bytes: what is longer was not written by a broker.
const FILE_BYTES_MAX: u64 = 4 * 1024;

/// How a backup has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BackupResult {
    /// All of it was sent.
    Ok,
    /// Its client has gone away before the end.
    Abandoned,
    /// Its client took nothing for too long.
    Stalled,
    /// Something in the log is damaged.
    Damaged,
    /// Its client's right was withdrawn, or has expired.
    Withdrawn,
    /// The broker was stopped.
    Stopped,
    /// The broker has ended without a word: it was killed, or the power was cut.
    Interrupted,
    /// It did not begin, as the store had failed.
    Refused,
    /// Something else.
    Failed,
    /// The file cannot be read.
    Unknown,
}

impl BackupResult {
    /// One word, as in metrics and the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Abandoned => "abandoned",
            Self::Stalled => "stalled",
            Self::Damaged => "damaged",
            Self::Withdrawn => "withdrawn",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// The newest backup that is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackupTaken {
    /// When it ended, in seconds since 1970; 0 if there was none. Of a restored log, when that was
    /// restored: then its backup had everything.
    pub at: i64,
    /// How long it took, in seconds.
    pub seconds: u64,
    /// Its size.
    pub bytes: u64,
}

/// What is known of the backups of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// The log: what is said of another one does not count.
    epoch: String,
    /// When those began that have not ended, in seconds since 1970.
    open: Vec<i64>,
    taken: BackupTaken,
    /// When the newest ended that has failed, in seconds since 1970; 0 if there was none.
    failed_at: i64,
}

/// The backups of one log.
#[derive(Debug)]
pub(crate) struct BackupResults {
    directory: PathBuf,
    known: Mutex<Known>,
    /// Held by the thread that writes the file.
    turn: Mutex<()>,
    /// Failures that this start found: one `Interrupted` for each backup that was open when the
    /// last broker ended, or `Unknown` if the file could not be read.
    found: Vec<BackupResult>,
}

impl BackupResults {
    /// As the file in a data directory says. What was open when the last broker ended has failed.
    pub(super) fn open(directory: &Path, epoch: Epoch, now: Timestamp) -> Self {
        let new = || Known {
            epoch: epoch.to_string(),
            ..Known::default()
        };
        let (mut known, found) = match read(directory) {
            Ok(Some(mut known)) if known.epoch == new().epoch => {
                let open = std::mem::take(&mut known.open);
                (known, vec![BackupResult::Interrupted; open.len()])
            }
            // Of a log that was here before, or there has been no backup.
            Ok(_) => (new(), Vec::new()),
            Err(error) => {
                let path = directory.join(FILE);
                tracing::error!(%error, path = %path.display(), "cannot read what became of earlier backups: take one");
                (new(), vec![BackupResult::Unknown])
            }
        };
        let has_failures = !found.is_empty();
        if has_failures {
            known.failed_at = now.as_second();
        }
        // Otherwise no alert would say, until then, that there is no newer one.
        for at in [&mut known.taken.at, &mut known.failed_at]
            .into_iter()
            .filter(|at| **at > now.as_second())
        {
            tracing::warn!(
                said = *at,
                "a backup is said to have ended in the future: it counts as of now; look at the clock"
            );
            // In memory only: this clock may be the one that is wrong.
            *at = now.as_second();
        }
        let results = Self {
            directory: directory.into(),
            known: known.into(),
            turn: Mutex::default(),
            found,
        };
        if has_failures {
            results.save();
        }
        results
    }

    /// What the start has found that did not end well.
    pub(crate) fn found(&self) -> &[BackupResult] {
        &self.found
    }

    /// The newest that is whole, and when the newest ended that has failed, in seconds since 1970;
    /// 0 if there was none.
    pub(crate) fn last(&self) -> (BackupTaken, i64) {
        let known = lock(&self.known);
        (known.taken, known.failed_at)
    }

    /// Notes in memory that a backup begins, so that its end finds it; [`Self::save`] makes that
    /// durable.
    pub(crate) fn begin(&self, now: Timestamp) {
        lock(&self.known).open.push(now.as_second());
    }

    /// Notes how one has ended that began at `begun`. Blocks on the disk.
    pub(crate) fn end(&self, begun: Timestamp, now: Timestamp, bytes: u64, result: BackupResult) {
        {
            let mut known = lock(&self.known);
            if let Some(at) = known
                .open
                .iter()
                .position(|&open| open == begun.as_second())
            {
                known.open.remove(at);
            }
            match result {
                BackupResult::Ok => {
                    let seconds = now
                        .as_second()
                        .saturating_sub(begun.as_second())
                        .try_into()
                        .unwrap_or(0);
                    known.taken = BackupTaken {
                        at: now.as_second(),
                        seconds,
                        bytes,
                    };
                }
                _ => known.failed_at = now.as_second(),
            }
        }
        self.save();
    }

    /// Writes the file. Blocks on the disk. If it cannot be written, a restart will not know of the
    /// backups; none fails for that.
    pub(crate) fn save(&self) {
        let _turn = lock(&self.turn);
        let known = lock(&self.known).clone(); // after the turn has come: what is saved last is the newest
        if let Err(error) = write(&self.directory, &known) {
            let path = self.directory.join(FILE);
            tracing::warn!(%error, path = %path.display(), "cannot note what became of backups: a restart will not know it");
        }
    }
}

/// Notes in the data directory of a restored log that a backup has everything which is in it now.
pub(super) fn note_restored(
    directory: &Path,
    epoch: Epoch,
    now: Timestamp,
    bytes: u64,
) -> io::Result<()> {
    let taken = BackupTaken {
        at: now.as_second(),
        seconds: 0,
        bytes,
    };
    write(
        directory,
        &Known {
            epoch: epoch.to_string(),
            taken,
            ..Known::default()
        },
    )
}

fn read(directory: &Path) -> io::Result<Option<Known>> {
    match files::read(&directory.join(FILE), FILE_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(serde_json::from_slice(&read?)?)),
    }
}

fn write(directory: &Path, known: &Known) -> io::Result<()> {
    files::replace_private(directory, FILE, &serde_json::to_vec(known)?)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(7);

    #[test]
    fn every_result_has_a_counter() {
        use BackupResult::{
            Abandoned, Damaged, Failed, Interrupted, Ok, Refused, Stalled, Stopped, Unknown,
            Withdrawn,
        };
        let all = [
            Ok,
            Abandoned,
            Stalled,
            Damaged,
            Withdrawn,
            Stopped,
            Interrupted,
            Refused,
            Failed,
            Unknown,
        ];
        assert_eq!(
            all.map(BackupResult::as_str),
            crate::metrics::BACKUP_RESULTS
        );
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_restart_knows_what_became_of_backups_and_takes_those_that_were_open_for_failed() {
        let directory = tempfile::tempdir().unwrap();
        let open = |now| BackupResults::open(directory.path(), EPOCH, at(now));
        let first = open(1);
        assert_eq!(
            (first.last(), first.found()),
            ((BackupTaken::default(), 0), &[][..])
        );
        assert!(
            !directory.path().join(FILE).exists(),
            "a broker without backups writes nothing"
        );
        first.begin(at(2));
        first.end(at(2), at(5), 70, BackupResult::Ok);
        first.begin(at(6));
        first.end(at(6), at(9), 10, BackupResult::Stalled);

        let taken = BackupTaken {
            at: 5,
            seconds: 3,
            bytes: 70,
        };
        let second = open(20);
        assert_eq!((second.last(), second.found()), ((taken, 9), &[][..]));
        second.begin(at(30));
        second.begin(at(30));
        second.begin(at(31));
        second.end(at(30), at(32), 70, BackupResult::Ok);

        for (start, found) in [(40, 2), (50, 0)] {
            let next = open(start);
            assert_eq!(next.found(), vec![BackupResult::Interrupted; found]);
            assert_eq!(
                next.last(),
                (
                    BackupTaken {
                        at: 32,
                        seconds: 2,
                        bytes: 70
                    },
                    40
                )
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_counts_as_a_failed_backup_and_one_of_another_log_as_none() {
        for bytes in ["", "{", "[]", "\u{0}"] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join(FILE), bytes).unwrap();
            let results = BackupResults::open(directory.path(), EPOCH, at(3));
            assert_eq!(
                (results.found(), results.last().1),
                (&[BackupResult::Unknown][..], 3),
                "{bytes:?}"
            );
            let again = BackupResults::open(directory.path(), EPOCH, at(9));
            assert_eq!(
                (again.found(), again.last().1),
                (&[][..], 3),
                "it is mended"
            );
        }
        let directory = tempfile::tempdir().unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, directory.path().join(FILE), mode).unwrap();
        assert_eq!(
            BackupResults::open(directory.path(), EPOCH, at(3)).found(),
            [BackupResult::Unknown],
            "a FIFO"
        );

        let directory = tempfile::tempdir().unwrap();
        note_restored(directory.path(), EPOCH, at(8), 70).unwrap();
        assert_eq!(
            BackupResults::open(directory.path(), EPOCH, at(9))
                .last()
                .0
                .at,
            8
        );
        assert_eq!(
            BackupResults::open(directory.path(), Epoch(8), at(9)).last(),
            (BackupTaken::default(), 0)
        );
    }

    #[test]
    fn what_is_said_to_have_ended_in_the_future_has_ended_now() {
        let directory = tempfile::tempdir().unwrap();
        let results = BackupResults::open(directory.path(), EPOCH, at(1));
        results.begin(at(900));
        results.end(at(900), at(901), 7, BackupResult::Ok);
        results.begin(at(902));
        results.end(at(902), at(903), 7, BackupResult::Stalled);
        let (taken, failed_at) = BackupResults::open(directory.path(), EPOCH, at(50)).last();
        assert_eq!((taken.at, failed_at), (50, 50));
        let (taken, failed_at) = BackupResults::open(directory.path(), EPOCH, at(2_000)).last();
        assert_eq!((taken.at, failed_at), (901, 903));
    }

    #[test]
    fn a_directory_that_cannot_be_written_refuses_no_backup() {
        let directory = tempfile::tempdir().unwrap();
        let results = BackupResults::open(&directory.path().join("gone"), EPOCH, at(1));
        results.begin(at(2));
        results.end(at(2), at(3), 7, BackupResult::Ok);
        assert_eq!(results.last().0.at, 3);
    }
}
