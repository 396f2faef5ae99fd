//! The node's own store: the log of events, the task index, the quarantine, and the log's identity.
//!
//! One [`Writer`] decides and commits everything, batch by batch, each with a real fsync ([`writer`]) of the log (`log`); a
//! database has the task index (`tasks`) and the quarantine, which can be told anew from the log (`replay`). Any number of readers
//! use [`Store`] at the same time. Readers never see beyond [`Store::head`], which moves only after the fsync: what a crash
//! could take back is never shown. Every function here may block on the disk; callers keep it off the async threads.

mod append;
mod backup;
mod backup_results;
mod clock;
mod dedupe;
mod layout;
mod log;
mod open;
mod quarantine;
mod read;
mod replay;
mod restore;
mod quarantine_keys;
mod same;
mod shares;
mod started;
mod tasks;
mod torn;
mod watermark;
mod writer;

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use fjall::{Database, Keyspace};
use uuid::Uuid;

pub use append::{AppendError, AppendSummary, WhenRunning};
pub use backup::{Backup, BackupSummary};
pub use backup_results::{BackupResult, BackupResults, BackupTaken};
pub use clock::Clock;
pub use layout::{Bound, QuarantineHeader};
pub use quarantine::{NewQuarantined, Quarantined};
pub use read::{Chunk, Keep, ReadError, ReadLimits, TaskPlace, bytes_held};
#[cfg(fuzzing)]
pub(crate) use restore::check as check_backup;
pub use restore::{RestoreError, restore, restore_and_append};
pub use shares::CREDENTIAL_PRODUCTS_MAX;
pub use started::{Cut, Found, Started, check_expected, is_part};
pub use writer::{
    Appender, ERASURE_PLACES_MAX, Erased, Erasure, Keeper, Publish, Retention, WriteError, Writer,
    writer,
};

use crate::{
    event::{Cursor, Epoch, Fingerprint, Labels, Product, Sequence, TaskId, TaskStatus},
    trace::Origin,
};
use layout::{FORMAT, Totals};
use log::Log;
use quarantine_keys::QuarantineKeys;
use shares::Shares;
use tasks::Tasks;
use watermark::{Mark, Watermark};

/// With less free disk a store that has failed is not opened again: recovery writes, and would fail, too.
const REOPEN_FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Older than everything, so that a reader looks.
const UNKNOWN_MICROS: i64 = i64::MIN;

/// An event on its way into the log, already encoded.
#[derive(Debug)]
pub struct Draft {
    /// Stable identity.
    pub event_id: Uuid,
    /// First half of the dedupe key.
    pub product: Product,
    /// Second half.
    pub task_id: TaskId,
    /// What became of the task.
    pub status: TaskStatus,
    /// What the event says, condensed.
    pub fingerprint: Fingerprint,
    /// When the callback was received by the log's [`Clock`], in microseconds since 1970.
    pub received_at_micros: i64,
    /// From the callback URL.
    pub labels: Labels,
    /// The event's encoding without cursor, revision and conflict.
    pub event: Bytes,
    /// The callback's body.
    pub raw: Bytes,
    /// It says that the task is completed, and names no output.
    pub lacks_output: bool,
    /// Whether it takes as long if it is a duplicate: who sent it is not to learn whether its task has come before.
    pub conceals_duplicates: bool,
    /// The trace that its deliveries are part of; not stored.
    pub origin: Option<Arc<Origin>>,
}

impl Draft {
    /// Bytes that it will have in the log, but for its keys.
    fn bytes(&self) -> usize {
        self.event.len() + self.raw.len()
    }
}

/// What became of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The event's identity; of a duplicate, the original's.
    pub event_id: Uuid,
    /// Its place; of a duplicate, the original's.
    pub sequence: Sequence,
    /// The log already had it.
    pub duplicate: bool,
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
        anew = started::to_begin_anew(path)
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
        "{path} is used up: its callbacks were appended to {to} by `blobcast restore`: start the broker on that one; to use this directory all the same, remove {mark}",
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
        anew = started::to_begin_anew(path)
    )]
    Corrupt {
        /// The data directory.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The witness of what was acknowledged is damaged.
    #[error(
        "{0} is damaged, there is no copy of it that can be read, and without one nobody can tell whether the log beside it has lost its end: restore a backup, or, if the log can be trusted, remove `acknowledged` and `acknowledged.copy` and start again"
    )]
    Witness(PathBuf),
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
}

/// Whether the store takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Writable,
    /// No, until space is freed.
    DiskLow {
        /// Bytes free.
        free_bytes: u64,
        /// Bytes that must be free.
        needed_bytes: u64,
    },
    /// No, until the store is opened again: a write failed, and only recovery can tell what reached the disk.
    Failed(String),
}

/// Numbers about the log for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Retained events.
    pub event_count: u64,
    /// Their bytes.
    pub event_bytes: u64,
    /// Callbacks in quarantine.
    pub quarantine_count: u64,
    /// Their bytes.
    pub quarantine_bytes: u64,
}

/// The open store. Reading needs only `&self`.
pub struct Store {
    path: PathBuf,
    log: Log,
    database: Database,
    tasks: Tasks,
    quarantine: Keyspace,
    meta: Keyspace,
    epoch: Epoch,
    head: AtomicU64,
    first_available: AtomicU64,
    /// When the oldest event counts as received, or [`UNKNOWN_MICROS`]. The writer's, which would read the event for each commit.
    oldest_micros: AtomicI64,
    /// What is in quarantine, and whose it is. The writer changes it ahead of the commit; a reader who finds a number here finds
    /// its callback in the database, or that it is not there yet or not any more.
    shares: Mutex<Shares>,
    /// What it is encrypted by in the database.
    quarantine_keys: QuarantineKeys,
    /// How often events were erased since this was opened: a reader of some before that looks again.
    erasures: AtomicU64,
    /// The database's writes below this number are synced.
    database_next: AtomicU64,
    watermark: Watermark,
    started: Started,
    backup_results: BackupResults,
    clock: Arc<Clock>,
    /// The data directory as it was opened.
    identity: Identity,
    totals: Mutex<Totals>,
    health: Mutex<Health>,
}

impl Store {
    /// Identity of the log.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The newest durable event; 0 if there has never been one.
    pub fn head(&self) -> Sequence {
        Sequence(self.head.load(Ordering::Acquire))
    }

    /// The oldest event that may still be read; the one behind the head if none is retained.
    pub fn first_available(&self) -> Sequence {
        Sequence(self.first_available.load(Ordering::Acquire))
    }

    /// A place of this log in the form clients hold.
    pub fn cursor(&self, sequence: Sequence) -> Cursor {
        Cursor {
            epoch: self.epoch,
            sequence,
        }
    }

    /// How it was found when it was opened.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// What became of its backups.
    pub fn backup_results(&self) -> &BackupResults {
        &self.backup_results
    }

    /// Notes that nothing is written any more, and that everything was. The writer must have ended.
    pub fn close(&self) {
        if matches!(self.health(), Health::Failed(_)) {
            return;
        }
        if let Err(error) = started::note_closed(&self.path, self.epoch) {
            tracing::warn!(%error, "cannot note that the log was closed: the next start takes it for one after a crash");
        }
    }

    /// What the log is stamped and aged by.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// How much is kept.
    pub fn summary(&self) -> Summary {
        let Totals {
            event_count,
            event_bytes,
            quarantine_count,
            quarantine_bytes,
            ..
        } = *lock(&self.totals);
        Summary {
            event_count,
            event_bytes,
            quarantine_count,
            quarantine_bytes,
        }
    }

    /// How often events were erased since the store was opened. What was read from it before that must not be handed out.
    pub fn erasures(&self) -> u64 {
        self.erasures.load(Ordering::Acquire)
    }

    /// Everything that has been acknowledged.
    fn mark(&self) -> Mark {
        Mark {
            epoch: self.epoch,
            head: self.head().0,
            quarantine_next: lock(&self.totals).quarantine_next,
            commit_next: self.log.next_commit(),
            database_next: self.database_next.load(Ordering::Acquire),
        }
    }

    /// Whether writes are taken, as of the last commit or check.
    pub fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    /// True while the path still leads to the directory that was opened.
    fn is_in_place(&self) -> bool {
        identity(&self.path) == self.identity
    }

    /// Whether a store that has failed would find what it needs: its own directory, room, and a disk that takes a write. Says what
    /// is missing. Blocks on the disk.
    pub fn can_be_opened_again(&self) -> Result<(), String> {
        if !self.is_in_place() {
            return Err("the data directory was removed or replaced".to_owned());
        }
        match self.disk_bytes() {
            Ok((free_bytes, _)) if free_bytes < REOPEN_FREE_BYTES_MIN => {
                return Err(format!(
                    "{free_bytes} bytes of disk are free, {REOPEN_FREE_BYTES_MIN} must be"
                ));
            }
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        let path = self.path.join("written-to-try");
        let tried = File::create(&path).and_then(|mut file| {
            file.write_all(&[0; 4096])?;
            file.sync_all()
        });
        let removed = fs::remove_file(path);
        tried.and(removed).map_err(|error| error.to_string())
    }

    /// Free and total bytes of the file system that holds the data directory, as an unprivileged process may use them.
    pub fn disk_bytes(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.path)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// Device and inode of a directory; `None` if it is not there.
type Identity = Option<(u64, u64)>;

fn identity(path: &Path) -> Identity {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

// A panic while the lock is held ends the process, so a poisoned lock is never seen; its value would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
