//! Opening a store: what is there is checked before anything is read or written.
//!
//! The database starts over with any part of itself that it cannot find, as if that part had never been. A log that goes on
//! without its identity, its totals, its task index or its quarantine forgets what it has promised, and says nothing. So what
//! must fit together is looked at first, by a few reads that do not grow with the log, and what does not fit is refused.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
};

use fjall::{Database, PersistMode};
use uuid::Uuid;

use super::{
    BackupResults, Health, OpenError, Store,
    acknowledged::{Acknowledged, AcknowledgedFiles, Read},
    apply::Index,
    clock::{Clock, Newest, Source},
    database::{self, KEYSPACES, KEYSPACES_FOLDER, META},
    dedupe::may_lack,
    directory::{UNFINISHED, check_expected, check_not_used_up},
    disk::identity,
    error::StartFailure,
    layout::{
        Damaged, META_COMMIT, QuarantineHeader, Totals, parse_quarantined, parse_sequence_key,
    },
    lock,
    log::{Indexed, Log},
    marker,
    quarantine_keys::{self, OVERHEAD_BYTES, QuarantineKeys},
    replay::replay,
    started::{self, Cut},
    tasks::{RECENT_MAX, Tasks},
};
use crate::event::{Epoch, Selectable, Sequence, TaskId};

impl Store {
    /// Opens the store under `path`, creating it if there is none. `cache_bytes` bounds the block cache.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        Self::open_by(Source::system(), path, cache_bytes)
    }

    /// The same for a broker: refuses a directory whose log is not there any more, and notes beside it that it has one.
    /// `is_expected`: the log must be there in any case.
    pub fn open_to_serve(
        path: &Path,
        cache_bytes: u64,
        is_expected: bool,
    ) -> Result<Self, OpenError> {
        check_expected(path, is_expected)?;
        let store = Self::open(path, cache_bytes)?;
        marker::mark(path, store.epoch());
        Ok(store)
    }

    /// The same by other clocks than the machine's.
    pub(super) fn open_by(
        source: Source,
        path: &Path,
        cache_bytes: u64,
    ) -> Result<Self, OpenError> {
        if path.join(UNFINISHED).symlink_metadata().is_ok() {
            return Err(OpenError::Unfinished(path.into()));
        }
        check_not_used_up(path)?;
        let store = Self::open_unfinished(source, path, cache_bytes)?;
        // Again: a restore may have let go of the lock only now.
        check_not_used_up(path)?;
        Ok(store)
    }

    /// The same of one that is being restored.
    pub(super) fn open_unfinished(
        source: Source,
        path: &Path,
        cache_bytes: u64,
    ) -> Result<Self, OpenError> {
        let opened = fs::create_dir_all(path)
            .map_err(StartFailure::from)
            .and_then(|()| {
                database::check_folders(path)?;
                let (database, journal_bytes) = database::recover_database(path, cache_bytes)?;
                Self::from_database(source, path, database, journal_bytes)
            });
        opened.map_err(|error| error.at(path))
    }

    fn from_database(
        source: Source,
        path: &Path,
        database: Database,
        journal_bytes: u64,
    ) -> Result<Self, StartFailure> {
        // First, because another version may do everything below otherwise.
        if database.keyspace_exists(META) {
            database::check_format(&database.keyspace(META, database::options)?)?;
        }
        let acknowledged = acknowledged(path)?;
        let acknowledged_files = AcknowledgedFiles::open(path)?;
        let lost = KEYSPACES
            .into_iter()
            .find(|name| !database.keyspace_exists(name));
        if let (Some(lost), Some(_)) = (lost, acknowledged) {
            return Err(StartFailure::Corrupt(format!(
                "the keyspace {lost} is lost"
            )));
        }
        let [meta, tasks, quarantine] = database::keyspaces(&database)?;
        let indexed = database::indexed_of(&meta)?;
        if indexed.is_none()
            && (acknowledged.is_some() || !tasks.is_empty()? || !quarantine.is_empty()?)
        {
            return Err(StartFailure::Corrupt(
                "the log's identity is lost".to_owned(),
            ));
        }
        let OpenedLog {
            log,
            totals,
            cut_bytes,
            is_new: begins,
        } = open_or_begin(path, acknowledged, indexed)?;
        let started = started::judge(
            path,
            log.epoch(),
            begins,
            Cut {
                log_bytes: cut_bytes,
                journal_bytes,
            },
        );
        if indexed.is_none() {
            database::write_identity(&database, &meta, log.epoch(), 0)?;
        }
        let quarantine_keys = open_quarantine_keys(path, &totals)?;
        let tasks = Tasks::new(database.clone(), tasks, RECENT_MAX);
        let is_new = totals.head()?.0 == 0 && totals.quarantine_next == 0;
        let newest = Newest {
            micros: totals.log_time_micros,
            trust: totals.trust,
        };
        let shares = Mutex::default();
        let index = Index {
            tasks: &tasks,
            database: &database,
            quarantine: &quarantine,
            quarantine_keys: &quarantine_keys,
            shares: &shares,
        };
        let to_erase = replay(&log, index, &totals)?;
        // What is damaged is no reason to refuse everything else: it has been logged.
        log.erase(&to_erase.places, &to_erase.numbers)?;
        add_shares(index)?;
        quarantine_keys.erase_unused_keys()?;
        let clock = Arc::new(Clock::start(source, (!is_new).then_some(newest)));
        let store = Self {
            path: path.into(),
            acknowledged_files,
            started,
            backup_results: BackupResults::open(path, log.epoch(), clock.now()),
            clock,
            epoch: log.epoch(),
            head: totals.head()?.0.into(),
            first_available: totals.first_available.into(),
            shares,
            quarantine_keys,
            erasures: 0.into(),
            database_next: 0.into(),
            identity: identity(path),
            totals: totals.into(),
            health: Health::Writable.into(),
            log,
            database,
            tasks,
            quarantine,
            meta,
        };
        store.check_events(&totals)?;
        store.check_quarantine(&totals)?;
        store.checkpoint()?;
        if acknowledged.is_none() && store.head().0 > 0 {
            tracing::warn!(
                "nothing tells whether the log is whole: the file `acknowledged` and its copy are missing"
            );
        }
        // Durably, because the database's numbers may be lower than they were.
        store.acknowledged_files.begin(path, store.acknowledged())?;
        started::note_open(path, store.epoch())?;
        sync_names(path)?;
        Ok(store)
    }

    /// Tells the database what it does not know yet and makes all of it durable, so that no start has to tell it again; then
    /// what is forgotten can go.
    pub(super) fn checkpoint(&self) -> fjall::Result<()> {
        // In this order: what was committed meanwhile is synced, too, but not counted; and all commits before that segment have
        // been applied.
        let up_to = self.log.checkpoint_max();
        let first_available = Sequence(lock(&self.totals).first_available);
        let applied = self.log.applied();
        self.tasks.flush()?;
        // What the database has must not be readable by nothing.
        self.quarantine_keys.sync()?;
        // Its own work takes numbers, too, which a crash may give out again; but none below that of the entry that is synced here.
        let database_next = self.database.seqno();
        self.meta.insert(META_COMMIT, applied.to_le_bytes())?;
        self.database.persist(PersistMode::SyncAll)?;
        self.database_next.store(database_next, Ordering::Release);
        self.log.checkpoint(up_to, first_available);
        Ok(())
    }

    fn check_events(&self, totals: &Totals) -> Result<(), StartFailure> {
        let (first, head) = (self.first_available(), self.head());
        // A task index that was lost and has begun anew knows neither or only the newest.
        let ends = if totals.event_count > 0 {
            &[first, head][..]
        } else {
            &[]
        };
        for &place in ends {
            let record = self.log.get(place)?;
            let task_id =
                TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))?;
            let events = self.tasks.get::<StartFailure>(&task_id)?;
            let is_known = events.iter().any(|event| event.sequence == place)
                || (record.status().is_terminal() && may_lack(&events, record.product(), place));
            if !is_known {
                return Err(StartFailure::Corrupt(format!(
                    "the task index does not know event {}",
                    place.0
                )));
            }
        }
        Ok(())
    }

    fn check_quarantine(&self, totals: &Totals) -> Result<(), StartFailure> {
        if totals.quarantine_count == 0 {
            return Ok(());
        }
        let number = |entry: Option<fjall::Guard>| match entry {
            Some(entry) => Ok::<_, StartFailure>(Some(parse_sequence_key(&entry.key()?)?.0)),
            None => Ok(None),
        };
        let ends = (
            number(self.quarantine.first_key_value())?,
            number(self.quarantine.last_key_value())?,
        );
        match ends {
            (Some(oldest), Some(newest))
                if newest <= totals.quarantine_next
                    && newest - oldest >= totals.quarantine_count - 1 =>
            {
                Ok(())
            }
            _ => {
                let problem = format!(
                    "{} callbacks must be in quarantine, and are not",
                    totals.quarantine_count
                );
                Err(StartFailure::Corrupt(problem))
            }
        }
    }
}

/// What was acknowledged; `None` if nothing says so.
fn acknowledged(path: &Path) -> Result<Option<Acknowledged>, StartFailure> {
    let Read {
        acknowledged,
        damaged,
    } = AcknowledgedFiles::read(path)?;
    match (acknowledged, damaged) {
        (None, Some(file)) => Err(StartFailure::Acknowledged(file)),
        (acknowledged, None) => Ok(acknowledged),
        (acknowledged, Some(file)) => {
            tracing::warn!(path = %file.display(), "damaged, and replaced by what its other copy says");
            Ok(acknowledged)
        }
    }
}

/// The log of a data directory.
struct OpenedLog {
    log: Log,
    totals: Totals,
    /// Of a last commit that a crash has torn.
    cut_bytes: u64,
    is_new: bool,
}

/// Opens the log, or begins one where none is and none has to be.
fn open_or_begin(
    path: &Path,
    acknowledged: Option<Acknowledged>,
    indexed: Option<Indexed>,
) -> Result<OpenedLog, StartFailure> {
    if let Some((log, totals, cut_bytes)) = Log::open(path, acknowledged, indexed)? {
        return Ok(OpenedLog {
            log,
            totals,
            cut_bytes,
            is_new: false,
        });
    }

    let totals = Totals {
        first_available: 1,
        ..Totals::default()
    };
    Ok(OpenedLog {
        log: Log::create(path, new_epoch(), totals)?,
        totals,
        cut_bytes: 0,
        is_new: true,
    })
}

/// The keys of the quarantine; without them nothing of it can be read.
fn open_quarantine_keys(path: &Path, totals: &Totals) -> Result<QuarantineKeys, StartFailure> {
    if totals.quarantine_count > 0 && !path.join(quarantine_keys::FILE).try_exists()? {
        return Err(StartFailure::Corrupt(format!(
            "the keys of the quarantine ({}) are lost",
            quarantine_keys::FILE
        )));
    }
    Ok(QuarantineKeys::open(path)?)
}

/// Adds the quarantined callbacks that the replay has not brought to the shares: reads them, at most
/// `quarantine.retention_bytes_max`. Notes their keys.
fn add_shares(index: Index<'_>) -> Result<(), StartFailure> {
    let mut shares = lock(index.shares);
    for entry in index.quarantine.iter() {
        let (key, value) = entry.into_inner()?;
        let number = parse_sequence_key(&key)?.0;
        if shares.get(number).is_some() {
            continue;
        }
        index.quarantine_keys.note(number, &value);
        // A reader reports one that is damaged.
        let header = index
            .quarantine_keys
            .unseal(number, &value)
            .and_then(|value| Ok(parse_quarantined(&value)?.0))
            .unwrap_or_else(|Damaged(_)| QuarantineHeader::unreadable());
        let bytes = value.len().saturating_sub(OVERHEAD_BYTES) as u64;
        shares.add(
            number,
            &header.credential,
            &header.product,
            bytes,
            header.received_at_micros,
        );
    }
    Ok(())
}

/// Makes the names of what is there durable. A file's own sync does so on most file systems, but none has promised it.
fn sync_names(path: &Path) -> io::Result<()> {
    let folders = [
        Some(path.join(KEYSPACES_FOLDER)),
        Some(path.to_path_buf()),
        path.parent().map(Path::to_path_buf),
    ];
    let is_named = |folder: &std::path::PathBuf| !folder.as_os_str().is_empty();
    folders
        .into_iter()
        .flatten()
        .filter(is_named)
        .try_for_each(|folder| fs::File::open(folder)?.sync_all())
}

pub(super) fn new_epoch() -> Epoch {
    Epoch(Uuid::new_v4().as_u64_pair().0)
}
