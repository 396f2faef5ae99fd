//! The database, fjall, of the task index and the quarantine: its options, its names, and what is checked around its opening.

use std::{fs, io, panic, path::Path};

use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{
    acknowledged::{AcknowledgedFiles, Read},
    directory::LOCK,
    error::StartFailure,
    layout::{FORMAT, META_COMMIT, META_EPOCH, META_FORMAT, parse_u64},
    log::Indexed,
    torn,
};
use crate::event::Epoch;

/// Journals beyond this are flushed to tables, so that a start reads little more than this. The least that there may be.
const REPLAY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Each keyspace's share of memory before it is flushed; what a start has to put there again takes a fraction of a second.
const MEMTABLE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The database's own names, below the data directory: a folder for each keyspace, with its tables, and the file without
/// which it is none.
pub(super) const KEYSPACES_FOLDER: &str = "keyspaces";
const TABLES_FOLDER: &str = "tables";
const CURRENT_FILE: &str = "current";

pub(super) const META: &str = "meta";
pub(super) const KEYSPACES: [&str; 3] = [META, "tasks", "quarantine"];

/// The database takes a folder without its file `current` for a keyspace that was never finished, and deletes it with all its
/// tables. So this has to be noticed before.
pub(super) fn check_folders(path: &Path) -> Result<(), StartFailure> {
    let Read {
        acknowledged,
        damaged,
    } = AcknowledgedFiles::read(path)?;
    let has_acknowledged = acknowledged.is_some() || damaged.is_some();
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
            return Err(StartFailure::Corrupt(format!(
                "{} is lost",
                current.display()
            )));
        }
    }
    Ok(())
}

/// Opens the database, and tells damage from a disk that refuses; also how many bytes of its journal a crash had torn.
pub(super) fn recover_database(
    path: &Path,
    cache_bytes: u64,
) -> Result<(Database, u64), StartFailure> {
    let mut cut = 0;
    // A damaged file is reported when it is known to be of this format.
    if let Some(acknowledged) = AcknowledgedFiles::read(path)?.acknowledged {
        // Not below another process: it is in the middle of writing.
        let lock = fs::File::open(path.join(LOCK));
        if let Ok(lock) = &lock
            && matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock))
        {
            return Err(fjall::Error::Locked.into());
        }
        let torn = torn::cut(path, acknowledged.database_next)?;
        cut = torn.ok_or_else(|| StartFailure::broken("its journal is not as it was written"))?;
    }
    // It panics where damage breaks what it takes for granted.
    let opened = panic::catch_unwind(|| open_database(path, cache_bytes));
    let opened = opened
        .map_err(|_| StartFailure::broken("see the panic above"))?
        .map_err(|error| match error {
            fjall::Error::Io(cause) | fjall::Error::Storage(fjall::LsmError::Io(cause))
                if is_damage(&cause) =>
            {
                StartFailure::broken(cause)
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

pub(super) fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX)
}

/// All of them, in the order of their names above.
pub(super) fn keyspaces(database: &Database) -> fjall::Result<[Keyspace; 3]> {
    let [meta, tasks, quarantine] = KEYSPACES.map(|name| database.keyspace(name, options));
    Ok([meta?, tasks?, quarantine?])
}

pub(super) fn check_format(meta: &Keyspace) -> Result<(), StartFailure> {
    match meta
        .get(META_FORMAT)?
        .map(|bytes| parse_u64(&bytes))
        .transpose()?
    {
        Some(FORMAT) | None => Ok(()),
        Some(other) => Err(StartFailure::Format(other)),
    }
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

/// What the database knows of its log; `None` if it is new.
pub(super) fn indexed_of(meta: &Keyspace) -> Result<Option<Indexed>, StartFailure> {
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
        _ => Err(StartFailure::Corrupt(
            "a part of the log's identity is lost".to_owned(),
        )),
    }
}
