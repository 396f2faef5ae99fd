//! Why the store cannot be opened or read. The errors of the parts that have their own are with
//! them.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use super::{
    has_log,
    layout::{BACKUP_FORMAT, Damaged, FORMAT, INDEX},
};
use crate::event::RecordError;

/// Why a part of the log cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Retention has passed the place.
    #[error("the events behind this place are no longer retained")]
    Expired,
    /// The log is damaged.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
    /// The disk refuses to read it, or the process may open no more files. The log may be whole.
    #[error("the log cannot be read: {0}")]
    Io(String),
    /// The index cannot be believed. The log may be whole: the next start builds the index from it.
    #[error("the index cannot be trusted, and is built again from the log ({0})")]
    Index(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A file that is cut short, or gone.
            io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound => {
                Self::Corrupt(error.to_string())
            }
            _ => Self::Io(error.to_string()),
        }
    }
}

impl From<Damaged> for ReadError {
    fn from(damage: Damaged) -> Self {
        Self::Corrupt(damage.to_string())
    }
}

impl From<RecordError> for ReadError {
    fn from(error: RecordError) -> Self {
        Self::Corrupt(error.to_string())
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{0} is in use by another process: stop that one, or give this one its own --data-dir")]
    Locked(PathBuf),
    /// Written by another version.
    #[error(
        "{path} has format {found}, this version reads format {FORMAT}: run the version that wrote it, or start with an empty --data-dir: in place of this one, {anew}",
        path = path.display(),
        anew = has_log::to_begin_anew(path)
    )]
    Format {
        /// The data directory.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// There is no log where the configuration says that one is.
    #[error(
        "{0} has no log, and log.expect_existing says that it has one: mount the disk that it is on, correct data_dir, or restore a backup with `blobcast restore`; to begin a new log, start once with `log.expect_existing = false`"
    )]
    Expected(PathBuf),
    /// There is no log where a start has left one.
    #[error(
        "{path} has no log, and it had one ({said:?}): mount the disk that it is on, or restore a backup with `blobcast restore`; to begin a new log, remove {marker}",
        path = path.display(),
        marker = marker.display()
    )]
    Vanished {
        /// The data directory.
        path: PathBuf,
        /// What is beside it.
        marker: PathBuf,
        /// What that says.
        said: String,
    },
    /// Half of a restored log.
    #[error(
        "{0} was being restored, and that did not come to its end: remove everything in it, and run `blobcast restore` again"
    )]
    Unfinished(PathBuf),
    /// Its callbacks are in another log.
    #[error(
        "{path} is used up: its callbacks were appended to {to}: start the broker on that; to use this directory all the same, remove {mark}",
        path = path.display(),
        mark = mark.display()
    )]
    UsedUp {
        /// The data directory.
        path: PathBuf,
        /// Where its callbacks are, as that was called.
        to: String,
        /// The file that says so.
        mark: PathBuf,
    },
    /// Damaged.
    #[error(
        "{path} is damaged ({problem}): move it away, and restore a backup with `blobcast restore` or start with an empty log: for that, {anew}",
        path = path.display(),
        anew = has_log::to_begin_anew(path)
    )]
    Corrupt {
        /// The data directory.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A newer version has written to it what this one does not know.
    #[error(
        "{path} has an entry of kind {kind} in its log, which a newer version has written: run that version",
        path = path.display()
    )]
    NewerKind {
        /// The data directory.
        path: PathBuf,
        /// Of the entry.
        kind: u8,
    },
    /// Both files that record what was acknowledged are damaged or missing.
    #[error(
        "{0} is damaged, there is no copy of it that can be read, and without one nobody can tell whether the log beside it has lost its end: restore a backup, or, if the log can be trusted, remove `acknowledged` and `acknowledged.copy` and start again"
    )]
    Acknowledged(PathBuf),
    /// The disk refuses.
    #[error(
        "cannot open {path}: {source}; it has to be a directory that can be written: choose it with --data-dir"
    )]
    Io {
        /// The data directory.
        path: PathBuf,
        /// The system's complaint.
        source: io::Error,
    },
    /// The index can be neither opened nor built. Nothing is said against the log.
    #[error(
        "cannot build the index in {path}: {problem}; the log is whole, and the index is a cache of it: see to it that {path} is a directory that can be written and has room, also behind a link or a mount point, or remove it",
        path = path.display()
    )]
    Index {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The folder of the index has something that is not the database's.
    #[error(
        "{path} has {name:?}, which is not the index's, and the index has to be emptied and built again: nothing was removed; have {path} be, or lead to, a directory with nothing else in it",
        path = path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What it has.
        name: OsString,
    },
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There may be a log in it.
    #[error("{0} is not empty: name another directory, or move what is in it away first")]
    NotEmpty(PathBuf),
    /// Something else.
    #[error("this is no backup: take a file that `blobcast backup` has written")]
    NoBackup,
    /// Of another version.
    #[error(
        "the backup has format {0}, this version reads format {BACKUP_FORMAT}: use the version that wrote it"
    )]
    Format(u64),
    /// Not what was written.
    #[error("the backup is damaged ({0}), and nothing was restored: take another one")]
    Damaged(&'static str),
    /// It has no end.
    #[error("the backup was cut short, and nothing was restored: take another one")]
    CutShort,
    /// The backup cannot be read.
    #[error("cannot read the backup: {0}")]
    Read(io::Error),
    /// The directory cannot be used.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The other log cannot be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl From<Damaged> for RestoreError {
    fn from(damage: Damaged) -> Self {
        Self::Damaged(damage.0)
    }
}

impl From<io::Error> for RestoreError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Why the other directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// There is nothing to append.
    #[error(
        "{0} has no log: name the data directory of the broker that has taken callbacks meanwhile"
    )]
    NoLog(PathBuf),
    /// A broker runs on it.
    #[error(
        "{0} is in use by another process: stop the broker that runs on it; or add --wait, which asks for that only when the backup is restored"
    )]
    Running(PathBuf),
    /// Half of a restored log.
    #[error(
        "{0} was being restored, and that did not come to its end: name the data directory of the broker that has taken callbacks meanwhile"
    )]
    Unfinished(PathBuf),
    /// It cannot be kept from being used again.
    #[error(
        "cannot write {path}: {source}; it keeps brokers from starting there when its callbacks are appended, so nothing was restored: see to it that the directory can be written, and restore again",
        path = path.display()
    )]
    Mark {
        /// The file.
        path: PathBuf,
        /// The system's complaint.
        source: io::Error,
    },
    /// One is within the other.
    #[error("{0} is within {1}, which is only read: restore into a directory elsewhere")]
    Within(PathBuf, PathBuf),
    /// Of another version.
    #[error(
        "{path} has format {found}, this version appends format {FORMAT}: restore with the version that wrote it",
        path = path.display()
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Damaged.
    #[error(
        "{path} is damaged ({problem}), and nothing was restored: keep that directory, and restore without --append for now",
        path = path.display()
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The disk refuses.
    #[error("cannot copy {path} into the new data directory: {source}; it needs room there until it is appended", path = path.display())]
    Copy {
        /// The directory.
        path: PathBuf,
        /// The system's complaint.
        source: io::Error,
    },
    /// What is appended cannot be written.
    #[error(
        "cannot append to the restored log ({0}), and nothing was restored: make room on the disk, and restore again"
    )]
    Write(String),
}

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum IndexError {
    /// An error of the database.
    #[error("{0:?}")]
    Fjall(#[from] fjall::Error),
    /// It does not fit the log.
    #[error("{0}")]
    Doubt(String),
    /// The log could not be synced, which has to come first.
    #[error("the log: {0}")]
    Log(#[from] io::Error),
}

impl IndexError {
    /// Whether the index has to be rebuilt.
    pub(super) fn is_doubt(&self) -> bool {
        match self {
            Self::Fjall(
                fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)),
            ) => !is_refusal(error),
            // A write has failed, because of a full disk for example: the next opening tells what is left.
            // And what another process uses is not for this one to remove.
            Self::Fjall(fjall::Error::Poisoned | fjall::Error::Locked) | Self::Log(_) => false,
            Self::Fjall(_) | Self::Doubt(_) => true,
        }
    }
}

/// Whether an error is about the disk's state (full, read-only, no permission) and not about the
/// data on it.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{
        OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    let kinds = [
        OutOfMemory,
        PermissionDenied,
        QuotaExceeded,
        ReadOnlyFilesystem,
        StorageFull,
    ];
    let too_many_files = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    kinds.contains(&error.kind())
        || error
            .raw_os_error()
            .is_some_and(|code| too_many_files.contains(&code))
}

impl From<Damaged> for IndexError {
    fn from(damage: Damaged) -> Self {
        Self::Doubt(damage.to_string())
    }
}

impl From<IndexError> for ReadError {
    fn from(error: IndexError) -> Self {
        Self::Index(error.to_string())
    }
}

/// Why a store cannot be opened, before it is said of which directory.
#[derive(Debug)]
pub(super) enum StartFailure {
    /// Another process has the directory.
    Locked,
    Io(io::Error),
    Format(u64),
    Corrupt(String),
    Acknowledged(PathBuf),
    /// The log has an entry of a kind that only a newer version knows.
    NewerKind(u8),
    Index(IndexError),
    /// The index cannot be emptied.
    Emptying(io::Error),
    /// It has this in its folder, which is not the database's.
    Foreign(OsString),
}

impl StartFailure {
    pub(super) fn at(self, path: &Path) -> OpenError {
        let path = path.to_path_buf();
        match self {
            Self::Locked | Self::Index(IndexError::Fjall(fjall::Error::Locked)) => {
                OpenError::Locked(path)
            }
            Self::Io(source) => OpenError::Io { path, source },
            Self::Index(error) => OpenError::Index {
                path: path.join(INDEX),
                problem: match error {
                    IndexError::Fjall(
                        fjall::Error::Io(source)
                        | fjall::Error::Storage(fjall::LsmError::Io(source)),
                    ) => source.to_string(),
                    IndexError::Fjall(fjall::Error::Poisoned) => {
                        "a write to it has failed, as on a full disk".into()
                    }
                    error => error.to_string(),
                },
            },
            Self::Emptying(source) => OpenError::Index {
                path: path.join(INDEX),
                problem: source.to_string(),
            },
            Self::Foreign(name) => OpenError::Foreign {
                path: path.join(INDEX),
                name,
            },
            Self::Format(found) => OpenError::Format { path, found },
            Self::NewerKind(kind) => OpenError::NewerKind { path, kind },
            Self::Corrupt(problem) => OpenError::Corrupt { path, problem },
            Self::Acknowledged(file) => OpenError::Acknowledged(file),
        }
    }
}

impl From<IndexError> for StartFailure {
    fn from(error: IndexError) -> Self {
        Self::Index(error)
    }
}

impl From<io::Error> for StartFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Damaged> for StartFailure {
    fn from(damage: Damaged) -> Self {
        Self::Corrupt(damage.to_string())
    }
}

impl From<ReadError> for StartFailure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Corrupt(problem) => Self::Corrupt(problem),
            ReadError::Expired => Self::Corrupt(error.to_string()),
            ReadError::Io(_) => Self::Io(io::Error::other(error)),
            ReadError::Index(problem) => Self::Index(IndexError::Doubt(problem)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_in_doubt_when_it_is_damaged_and_not_when_it_is_in_use_or_the_disk_refuses() {
        let doubtful = |error: fjall::Error| IndexError::from(error).is_doubt();
        assert!(doubtful(fjall::Error::InvalidTrailer));
        assert!(doubtful(fjall::Error::Io(io::ErrorKind::NotFound.into())));
        assert!(IndexError::Doubt("it is that of another log".to_owned()).is_doubt());

        assert!(!doubtful(fjall::Error::Locked));
        assert!(!doubtful(fjall::Error::Poisoned));
        assert!(!doubtful(fjall::Error::Io(
            io::ErrorKind::StorageFull.into()
        )));
        let refused = StartFailure::from(IndexError::from(fjall::Error::Locked));
        assert!(matches!(
            refused.at(Path::new("data")),
            OpenError::Locked(_)
        ));
    }

    #[test]
    fn what_befalls_the_index_is_never_said_of_the_log() {
        let failures = [
            StartFailure::from(IndexError::from(fjall::Error::Poisoned)),
            IndexError::from(fjall::Error::InvalidTrailer).into(),
            IndexError::from(fjall::Error::Io(io::ErrorKind::StorageFull.into())).into(),
            IndexError::Doubt("the database panicked".into()).into(),
            StartFailure::Emptying(io::ErrorKind::PermissionDenied.into()),
        ];
        for failure in failures {
            let error = failure.at(Path::new("data"));
            let said = error.to_string();
            assert!(matches!(error, OpenError::Index { .. }), "{said}");
            let is_plain = said.contains("data/index") && said.contains("the log is whole");
            assert!(is_plain, "{said}");
        }
    }
}
