//! Opening a store: what is there is checked before anything is read or written.
//!
//! The database starts over with any part of itself that it cannot find, as if that part had never been. A log that goes on
//! without its identity, its totals, its task index or its quarantine forgets what it has promised, and says nothing. So what
//! must fit together is looked at first, by a few reads that do not grow with the log, and what does not fit is refused.

use std::{
    fmt::Display,
    fs, io, panic,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use uuid::Uuid;

use super::{
    BackupResults, Health, OpenError, ReadError, Store, UNKNOWN_MICROS,
    clock::{Clock, Newest, Source},
    dedupe::may_lack,
    identity,
    layout::{
        Damaged, FORMAT, META_COMMIT, META_EPOCH, META_FORMAT, QuarantineHeader, Totals,
        parse_quarantined, parse_sequence_key, parse_u64,
    },
    lock,
    log::{Indexed, Log},
    quarantine_keys::{self, OVERHEAD_BYTES, QuarantineKeys},
    replay::{Told, replay},
    restore,
    shares::Shares,
    started::{self, Cut},
    tasks::{RECENT_MAX, Tasks},
    torn,
    watermark::{Mark, Watermark, Witnessed},
};
use crate::event::{Epoch, Selectable, Sequence, TaskId};

/// Journals beyond this are flushed to tables, so that a start reads little more than this. The least that there may be.
const REPLAY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Each keyspace's share of memory before it is flushed; what a start has to put there again takes a fraction of a second.
const MEMTABLE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The database's own names, below the data directory: a folder for each keyspace, with its tables, and the file without
/// which it is none; and the file that is locked by who has it.
const KEYSPACES_FOLDER: &str = "keyspaces";
const TABLES_FOLDER: &str = "tables";
const CURRENT_FILE: &str = "current";
pub(super) const LOCK_FILE: &str = "lock";

const META: &str = "meta";
const KEYSPACES: [&str; 3] = [META, "tasks", "quarantine"];

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
        started::check_expected(path, is_expected)?;
        let store = Self::open(path, cache_bytes)?;
        started::mark(path, store.epoch());
        Ok(store)
    }

    /// The same by other clocks than the machine's.
    pub(super) fn open_by(
        source: Source,
        path: &Path,
        cache_bytes: u64,
    ) -> Result<Self, OpenError> {
        if path.join(restore::UNFINISHED).symlink_metadata().is_ok() {
            return Err(OpenError::Unfinished(path.into()));
        }
        started::check_not_used_up(path)?;
        let store = Self::open_unfinished(source, path, cache_bytes)?;
        // Again: a restore may have let go of the lock only now.
        started::check_not_used_up(path)?;
        Ok(store)
    }

    /// The same of one that is being restored.
    pub(super) fn open_unfinished(
        source: Source,
        path: &Path,
        cache_bytes: u64,
    ) -> Result<Self, OpenError> {
        let opened = fs::create_dir_all(path)
            .map_err(Setup::from)
            .and_then(|()| {
                check_folders(path)?;
                let (database, journal_bytes) = recover_database(path, cache_bytes)?;
                Self::from_database(source, path, database, journal_bytes)
            });
        opened.map_err(|error| error.at(path))
    }

    fn from_database(
        source: Source,
        path: &Path,
        database: Database,
        journal_bytes: u64,
    ) -> Result<Self, Setup> {
        // First, because another version may do everything below otherwise.
        if database.keyspace_exists(META) {
            check_format(&database.keyspace(META, options)?)?;
        }
        let acknowledged = acknowledged(path)?;
        let watermark = Watermark::open(path)?;
        let lost = KEYSPACES
            .into_iter()
            .find(|name| !database.keyspace_exists(name));
        if let (Some(lost), Some(_)) = (lost, acknowledged) {
            return Err(Setup::Corrupt(format!("the keyspace {lost} is lost")));
        }
        let [meta, tasks, quarantine] = keyspaces(&database)?;
        let indexed = indexed_of(&meta)?;
        if indexed.is_none()
            && (acknowledged.is_some() || !tasks.is_empty()? || !quarantine.is_empty()?)
        {
            return Err(Setup::Corrupt("the log's identity is lost".to_owned()));
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
            write_identity(&database, &meta, log.epoch(), 0)?;
        }
        let quarantine_keys = open_quarantine_keys(path, &totals)?;
        let tasks = Tasks::new(database.clone(), tasks, RECENT_MAX);
        let is_new = totals.head()?.0 == 0 && totals.quarantine_next == 0;
        let newest = Newest {
            micros: totals.log_time_micros,
            trust: totals.trust,
        };
        let told = Told {
            tasks: &tasks,
            quarantine: &quarantine,
            quarantine_keys: &quarantine_keys,
            database: &database,
            totals: &totals,
        };
        let to_erase = replay(&log, &told)?;
        // What is damaged is no reason to refuse everything else: it has been logged.
        log.erase(&to_erase.places, &to_erase.numbers)?;
        let shares = shares_of(&quarantine, &quarantine_keys)?;
        quarantine_keys.erase_unused_keys()?;
        let clock = Arc::new(Clock::start(source, (!is_new).then_some(newest)));
        let store = Self {
            path: path.into(),
            watermark,
            started,
            backup_results: BackupResults::open(path, log.epoch(), clock.now()),
            clock,
            epoch: log.epoch(),
            head: totals.head()?.0.into(),
            first_available: totals.first_available.into(),
            oldest_micros: UNKNOWN_MICROS.into(),
            shares: shares.into(),
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
        store.watermark.begin(path, store.mark())?;
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
        self.tasks.settle()?;
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

    fn check_events(&self, totals: &Totals) -> Result<(), Setup> {
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
            let events = self.tasks.get::<Setup>(&task_id)?;
            let is_known = events.iter().any(|event| event.sequence == place)
                || (record.status().is_terminal() && may_lack(&events, record.product(), place));
            if !is_known {
                return Err(Setup::Corrupt(format!(
                    "the task index does not know event {}",
                    place.0
                )));
            }
        }
        Ok(())
    }

    fn check_quarantine(&self, totals: &Totals) -> Result<(), Setup> {
        if totals.quarantine_count == 0 {
            return Ok(());
        }
        let number = |entry: Option<fjall::Guard>| match entry {
            Some(entry) => Ok::<_, Setup>(Some(parse_sequence_key(&entry.key()?)?.0)),
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
                Err(Setup::Corrupt(problem))
            }
        }
    }
}

/// What the witness says; `None` if there is none.
fn acknowledged(path: &Path) -> Result<Option<Mark>, Setup> {
    let Witnessed { mark, damaged } = Watermark::read(path)?;
    match (mark, damaged) {
        (None, Some(file)) => Err(Setup::Witness(file)),
        (mark, None) => Ok(mark),
        (mark, Some(file)) => {
            tracing::warn!(path = %file.display(), "damaged, and replaced by what its other copy says");
            Ok(mark)
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
    acknowledged: Option<Mark>,
    indexed: Option<Indexed>,
) -> Result<OpenedLog, Setup> {
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
fn open_quarantine_keys(path: &Path, totals: &Totals) -> Result<QuarantineKeys, Setup> {
    if totals.quarantine_count > 0 && !path.join(quarantine_keys::FILE).try_exists()? {
        return Err(Setup::Corrupt(format!(
            "the keys of the quarantine ({}) are lost",
            quarantine_keys::FILE
        )));
    }
    Ok(QuarantineKeys::open(path)?)
}

/// Shares of the quarantined callbacks: reads all of them, at most `quarantine.retention_bytes_max`. Notes their keys.
fn shares_of(quarantine: &Keyspace, quarantine_keys: &QuarantineKeys) -> Result<Shares, Setup> {
    let mut shares = Shares::default();
    for entry in quarantine.iter() {
        let (key, value) = entry.into_inner()?;
        let (number, bytes) = (
            parse_sequence_key(&key)?.0,
            value.len().saturating_sub(OVERHEAD_BYTES) as u64,
        );
        quarantine_keys.note(number, &value);
        match quarantine_keys
            .unseal(number, &value)
            .and_then(|value| Ok(parse_quarantined(&value)?.0))
        {
            Ok(QuarantineHeader {
                credential,
                product,
                received_at_micros,
                ..
            }) => {
                shares.add(number, &credential, &product, bytes, received_at_micros);
            }
            // Reading it reports the damage. It belongs to no credential, and its age is unknown, so age does not forget it.
            Err(Damaged(_)) => shares.add(number, "", "", bytes, i64::MAX),
        }
    }
    Ok(shares)
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

/// The database takes a folder without its file `current` for a keyspace that was never finished, and deletes it with all its
/// tables. So this has to be noticed before.
fn check_folders(path: &Path) -> Result<(), Setup> {
    let Witnessed { mark, damaged } = Watermark::read(path)?;
    let has_acknowledged = mark.is_some() || damaged.is_some();
    let folders = match fs::read_dir(path.join(KEYSPACES_FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        folders => folders?,
    };
    for folder in folders {
        let folder = folder?.path();
        let has_tables = || {
            fs::read_dir(folder.join(TABLES_FOLDER)).is_ok_and(|mut tables| tables.next().is_some())
        };
        let current = folder.join(CURRENT_FILE);
        if folder.is_dir() && !current.try_exists()? && (has_acknowledged || has_tables()) {
            return Err(Setup::Corrupt(format!("{} is lost", current.display())));
        }
    }
    Ok(())
}

/// Opens the database, and tells damage from a disk that refuses; also how many bytes of its journal a crash had torn.
fn recover_database(path: &Path, cache_bytes: u64) -> Result<(Database, u64), Setup> {
    let mut cut = 0;
    // A witness that cannot be read is told of when it is known that it is one of this format.
    if let Some(mark) = Watermark::read(path)?.mark {
        // Not below another process: it is in the middle of writing.
        let lock = fs::File::open(path.join(LOCK_FILE));
        if let Ok(lock) = &lock
            && matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock))
        {
            return Err(fjall::Error::Locked.into());
        }
        let torn = torn::cut(path, mark.database_next)?;
        cut = torn.ok_or_else(|| Setup::broken("its journal is not as it was written"))?;
    }
    // It panics where damage breaks what it takes for granted.
    let opened = panic::catch_unwind(|| open_database(path, cache_bytes));
    let opened = opened
        .map_err(|_| Setup::broken("see the panic above"))?
        .map_err(|error| match error {
            fjall::Error::Io(cause) | fjall::Error::Storage(fjall::LsmError::Io(cause))
                if is_damage(&cause) =>
            {
                Setup::broken(cause)
            }
            other => other.into(),
        });
    opened.map(|database| (database, cut))
}

/// What reading says of files that are not as they were written; a disk that refuses says other things.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(
        error.kind(),
        InvalidData | InvalidInput | NotFound | UnexpectedEof
    )
}

pub(super) fn open_database(path: &Path, cache_bytes: u64) -> fjall::Result<Database> {
    Database::builder(path)
        .cache_size(cache_bytes)
        .max_journaling_size(REPLAY_BYTES_MAX)
        // A damaged byte in a compressed value reads as the journal's torn end, and what is behind it would be dropped;
        // in a plain one the checksum of its batch finds it, and the start is refused.
        .journal_compression(CompressionType::None)
        .open()
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX)
}

/// All of them, in the order of their names above.
pub(super) fn keyspaces(database: &Database) -> fjall::Result<[Keyspace; 3]> {
    let [meta, tasks, quarantine] = KEYSPACES.map(|name| database.keyspace(name, options));
    Ok([meta?, tasks?, quarantine?])
}

fn check_format(meta: &Keyspace) -> Result<(), Setup> {
    match meta
        .get(META_FORMAT)?
        .map(|bytes| parse_u64(&bytes))
        .transpose()?
    {
        Some(FORMAT) | None => Ok(()),
        Some(other) => Err(Setup::Format(other)),
    }
}

/// What the database knows of its log; `None` if it is new.
fn indexed_of(meta: &Keyspace) -> Result<Option<Indexed>, Setup> {
    match (
        meta.get(META_FORMAT)?,
        meta.get(META_EPOCH)?,
        meta.get(META_COMMIT)?,
    ) {
        (Some(_), Some(epoch), Some(told)) => Ok(Some(Indexed {
            epoch: Epoch(parse_u64(&epoch)?),
            told: parse_u64(&told)?,
        })),
        (None, None, None) => Ok(None),
        _ => Err(Setup::Corrupt(
            "a part of the log's identity is lost".to_owned(),
        )),
    }
}

pub(super) fn new_epoch() -> Epoch {
    Epoch(Uuid::new_v4().as_u64_pair().0)
}

/// Makes the database that of a log, of which it was told up to a commit, durably; all of it or nothing.
pub(super) fn write_identity(
    database: &Database,
    meta: &Keyspace,
    epoch: Epoch,
    told: u64,
) -> fjall::Result<()> {
    let mut batch = database.batch();
    batch.insert(meta, META_FORMAT, FORMAT.to_le_bytes());
    batch.insert(meta, META_EPOCH, epoch.0.to_le_bytes());
    batch.insert(meta, META_COMMIT, told.to_le_bytes());
    batch.commit()?;
    database.persist(PersistMode::SyncAll)
}

/// Why a store cannot be opened, before it is said of which directory.
pub(super) enum Setup {
    Fjall(fjall::Error),
    Format(u64),
    Corrupt(String),
    Witness(PathBuf),
}

impl Setup {
    /// What the database found, which does not tell where.
    fn broken(cause: impl Display) -> Self {
        Self::Corrupt(format!("the database cannot read its files: {cause}"))
    }

    pub(super) fn at(self, path: &Path) -> OpenError {
        let path = path.to_path_buf();
        match self {
            Self::Fjall(fjall::Error::Locked) => OpenError::Locked(path),
            Self::Fjall(
                fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)),
            ) => OpenError::Io { path, source },
            Self::Fjall(other) => OpenError::Corrupt {
                path,
                problem: format!("{other:?}"),
            },
            Self::Format(found) => OpenError::Format { path, found },
            Self::Corrupt(problem) => OpenError::Corrupt { path, problem },
            Self::Witness(file) => OpenError::Witness(file),
        }
    }
}

impl From<fjall::Error> for Setup {
    fn from(error: fjall::Error) -> Self {
        Self::Fjall(error)
    }
}

impl From<io::Error> for Setup {
    fn from(error: io::Error) -> Self {
        Self::Fjall(error.into())
    }
}

impl From<Damaged> for Setup {
    fn from(damage: Damaged) -> Self {
        Self::Corrupt(damage.to_string())
    }
}

impl From<ReadError> for Setup {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Corrupt(problem) => Self::Corrupt(problem),
            ReadError::Expired => Self::Corrupt(error.to_string()),
        }
    }
}
