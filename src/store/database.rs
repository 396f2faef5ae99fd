//! The database of the index, fjall: its options, its names, and a guard around its opening.

use std::{cell::Cell, ffi::OsStr, fs, io, panic, path::Path};

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use super::error::IndexError;

/// Journals beyond this are flushed to tables, so that a start reads little more than this. The
/// least that there may be.
const REPLAY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Each keyspace's share of memory before it is flushed.
const MEMTABLE_BYTES_MAX: u64 = 8 * 1024 * 1024;

const META: &str = "meta";
const TASKS: &str = "tasks";
const QUARANTINE: &str = "quarantine";
const EXPECTATIONS: &str = "expectations";

/// What it has in its folder beside its journals, whose names end with [`JOURNAL`].
const PARTS: [&str; 3] = ["keyspaces", "lock", "version"];
const JOURNAL: &str = "jnl";

thread_local! {
    static CATCHES_PANIC: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is caught and handled. A panic hook must not end the process
/// then.
pub(crate) fn catches_panic() -> bool {
    CATCHES_PANIC.get()
}

/// Whether something in the database's folder is its own.
pub(super) fn is_part(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    PARTS.iter().any(|part| name == *part) || extension.is_some_and(|it| it == JOURNAL)
}

/// Whether a folder has a database, or a part of one. One without may be a mount point.
pub(super) fn is_in(folder: &Path) -> io::Result<bool> {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};

    let mut entries = match fs::read_dir(folder) {
        // Of these the system says that there can be no such folder.
        Err(error) if [NotFound, NotADirectory, InvalidFilename].contains(&error.kind()) => {
            return Ok(false);
        }
        entries => entries?,
    };
    entries.try_fold(false, |is_in, entry| {
        Ok(is_in || is_part(&entry?.file_name()))
    })
}

/// The open database.
pub(super) struct Opened {
    pub database: Database,
    pub meta: Keyspace,
    pub tasks: Keyspace,
    pub quarantine: Keyspace,
    pub expectations: Keyspace,
    /// All of its keyspaces existed already.
    pub was_whole: bool,
}

/// Opens the database in a folder, or makes one there.
///
/// fjall panics on some damaged files instead of returning an error. The index can be rebuilt, so
/// such a panic must not end the process.
pub(super) fn open(folder: &Path, cache_bytes: u64) -> Result<Opened, IndexError> {
    CATCHES_PANIC.set(true);
    let opened = panic::catch_unwind(|| open_unguarded(folder, cache_bytes));
    CATCHES_PANIC.set(false);
    match opened {
        Ok(opened) => Ok(opened?),
        Err(_) => Err(IndexError::Doubt("the database panicked, see above".into())),
    }
}

fn open_unguarded(folder: &Path, cache_bytes: u64) -> fjall::Result<Opened> {
    let database = Database::builder(folder)
        .cache_size(cache_bytes)
        .max_journaling_size(REPLAY_BYTES_MAX)
        .open()?;
    let was_whole = [META, TASKS, QUARANTINE, EXPECTATIONS]
        .iter()
        .all(|name| database.keyspace_exists(name));
    Ok(Opened {
        meta: database.keyspace(META, options)?,
        tasks: database.keyspace(TASKS, options)?,
        quarantine: database.keyspace(QUARANTINE, options)?,
        expectations: database.keyspace(EXPECTATIONS, options)?,
        database,
        was_whole,
    })
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX)
}
