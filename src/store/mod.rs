//! The node's own store: the log of events, the task index, the quarantine, and the log's identity.
//!
//! One [`Writer`] decides and commits everything, batch by batch, each with a real fsync
//! ([`writer`]) of the log (`log`), which holds everything durable. A database indexes it
//! (`index`), and is built again from it at any doubt (`replay`). Any number of readers use
//! [`Store`] at the same time. Readers never see beyond [`Store::head`], which moves only after the
//! fsync: what a crash could take back is never shown. Every function here may block on the disk;
//! callers keep it off the async threads.

mod acknowledged;
mod append;
mod apply;
mod backup;
mod begin;
mod backup_results;
mod by_segment;
mod clock;
mod database;
mod directory;
mod disk;
mod index_doubt;
mod error;
mod expectation;
mod expectation_index;
mod followed;
mod open_expectations;
mod index;
mod last_there;
mod layout;
mod log;
mod has_log;
mod open;
mod quarantine;
mod quarantine_index;
mod read;
mod reopen_after_failure;
mod replay;
mod restore;
mod same;
mod shares;
mod started;
mod task_entry;
mod task_index;
mod totals;
mod transfer;
mod writer;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use uuid::Uuid;

pub(crate) use append::{AppendSummary, WhenRunning};
pub use backup::Backup;
pub(crate) use backup::{BackupSummary, QuarantineDamage};
pub(crate) use backup_results::{BackupResult, BackupResults};
pub(crate) use clock::Clock;
pub(crate) use database::catches_panic;
pub(crate) use directory::{check_expected, is_part};
pub(crate) use error::AppendError;
pub use error::{OpenError, ReadError, RestoreError};
pub(crate) use expectation::{
    EXPECTATION_LABEL_BYTES_MAX, EXPECTATIONS_MAX, EXPECTATIONS_PER_CLIENT_MAX,
};
pub use expectation::{Expectation, Expected, NewExpectation, Whose};
pub(crate) use expectation_index::ExpectationCounts;
pub(crate) use layout::Bound;
pub use layout::QuarantineHeader;
pub use quarantine::{NewQuarantined, Quarantined};
pub use read::{Chunk, Keep, ReadLimits};
pub(crate) use read::{TaskPlace, bytes_held};
pub use replay::replayed_commits;
#[cfg(debug_assertions)]
pub(crate) use restore::check as check_backup;
pub use restore::restore;
pub(crate) use restore::restore_and_append;
pub(crate) use shares::CREDENTIAL_PRODUCTS_MAX;
pub(crate) use started::Started;
pub(crate) use transfer::{Taken, Transfer, TransferError};
pub use writer::{
    Appender, Erased, Erasure, Foreseen, HandoverError, Replica, Retention, Waited, Waker,
    WriteError, Writer, writer,
};
pub(crate) use writer::{ERASURE_PLACES_MAX, Publish};

use crate::{
    cluster::Totals,
    event::{Cursor, Epoch, Fingerprint, Labels, Product, Sequence, TaskId, TaskStatus},
    trace::Origin,
};
use acknowledged::{Acknowledged, AcknowledgedFiles};
use disk::Identity;
use expectation_index::ExpectationIndex;
use index::Index;
use log::Log;
use quarantine_index::QuarantineIndex;
use shares::Shares;

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
    /// When the callback was received by the log's `Clock`, in microseconds since 1970.
    pub received_at_micros: i64,
    /// From the callback URL.
    pub labels: Labels,
    /// The event's encoding without cursor, revision and conflict.
    pub event: Bytes,
    /// The callback's body.
    pub raw: Bytes,
    /// It is an answer of the vendor's status API. The broker asked because it knew of no end, so it
    /// is news only if there is none by now, or another one.
    pub is_answer: bool,
    /// It says that the task is completed, and names no output.
    pub lacks_output: bool,
    /// A duplicate must take as long as a new event: its sender must not learn whether the task is
    /// known.
    pub conceals_duplicates: bool,
    /// The trace that its deliveries are part of; not stored.
    pub origin: Option<Arc<Origin>>,
}

impl Draft {
    /// It is what the vendor has posted, neither an answer nor the broker's own word.
    fn is_callback(&self) -> bool {
        !self.is_answer && self.status != TaskStatus::Overdue
    }

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
    /// No, until the store is opened again: a write failed, and only recovery can tell what reached
    /// the disk.
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
    index: Index,
    epoch: Epoch,
    head: AtomicU64,
    first_available: AtomicU64,
    /// The quarantined callbacks by credential and product. The writer changes it ahead of the
    /// commit.
    shares: Mutex<Shares>,
    /// The places of the quarantined callbacks in the log. The writer changes it after the commit.
    quarantine: Mutex<QuarantineIndex>,
    /// The tasks that are expected. The writer changes it after the commit.
    expectations: Mutex<ExpectationIndex>,
    /// How often events were erased since this was opened: a reader of some before that looks
    /// again.
    erasures: AtomicU64,
    acknowledged_files: AcknowledgedFiles,
    started: Started,
    backup_results: BackupResults,
    clock: Arc<Clock>,
    /// The data directory as it was opened.
    identity: Identity,
    totals: Mutex<Totals>,
    health: Mutex<Health>,
    /// Given back last.
    _directory_lock: directory::DirectoryLock,
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
    pub(crate) fn cursor(&self, sequence: Sequence) -> Cursor {
        Cursor {
            epoch: self.epoch,
            sequence,
        }
    }

    /// How it was found when it was opened.
    pub(crate) fn started(&self) -> &Started {
        &self.started
    }

    /// What became of its backups.
    pub(crate) fn backup_results(&self) -> &BackupResults {
        &self.backup_results
    }

    /// Notes that nothing is written any more, and that everything was. The writer must have ended.
    pub(crate) fn close(&self) {
        if matches!(self.health(), Health::Failed(_)) {
            return;
        }
        if let Err(error) = started::note_closed(&self.path, self.epoch) {
            tracing::warn!(%error, "cannot note that the log was closed: the next start takes it for one after a crash");
        }
    }

    /// What the log is stamped and aged by.
    pub(crate) fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// How much is kept.
    pub(crate) fn summary(&self) -> Summary {
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

    /// How often events were erased since the store was opened. What was read from it before that
    /// must not be handed out.
    pub(crate) fn erasures(&self) -> u64 {
        self.erasures.load(Ordering::Acquire)
    }

    /// Everything that has been acknowledged.
    fn acknowledged(&self) -> Acknowledged {
        Acknowledged {
            epoch: self.epoch,
            head: self.head().0,
            quarantine_next: lock(&self.totals).quarantine_next,
            commit_next: self.log.next_commit(),
        }
    }

    /// Whether writes are taken, as of the last commit or check.
    pub(crate) fn health(&self) -> Health {
        match self.index.problem() {
            Some(problem) => Health::Failed(format!("the index: {problem}")),
            None => lock(&self.health).clone(),
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
