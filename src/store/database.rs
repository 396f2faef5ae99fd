//! The database of the index, fjall: its options, its names, and a guard around its opening.

use std::{
    cell::Cell,
    ffi::OsStr,
    fs, io, panic,
    path::{Path, PathBuf},
};

use bytes::Buf;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use xxhash_rust::xxh3::xxh3_128;

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
const PARTS: [&str; 3] = [KEYSPACES, "lock", "version"];
const KEYSPACES: &str = "keyspaces";
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
    // Before it is opened, which may change them; said only if no other process has them open.
    let damaged = damaged_version(folder);
    CATCHES_PANIC.set(true);
    let opened = panic::catch_unwind(|| open_unguarded(folder, cache_bytes));
    CATCHES_PANIC.set(false);
    match opened {
        Ok(opened) => {
            let opened = opened?;
            damaged.map_or(Ok(opened), |path| {
                let problem = format!("{} is damaged", path.display());
                Err(IndexError::Doubt(problem))
            })
        }
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

/// The file of a keyspace that names its tables, if a bit of it has changed.
///
/// fjall notes the checksum of that file and does not look at it: a flipped bit leaves tables out, and what is in them is silently
/// forgotten. What else may be wrong with these files it finds itself.
fn damaged_version(folder: &Path) -> Option<PathBuf> {
    let keyspaces = fs::read_dir(folder.join(KEYSPACES)).ok()?;
    keyspaces.map_while(Result::ok).find_map(|keyspace| {
        let current = fs::read(keyspace.path().join("current")).ok()?;
        let (number, checksum) = version_and_checksum(&current)?;
        let path = keyspace.path().join(format!("v{number}"));
        let version = fs::read(&path).ok()?;
        (xxh3_128(&version) != checksum).then_some(path)
    })
}

/// What a keyspace notes of its version: its number and checksum, and of which kind that is, 0 for XXH3.
fn version_and_checksum(mut current: &[u8]) -> Option<(u64, u128)> {
    let number = current.try_get_u64_le().ok()?;
    let checksum = current.try_get_u128_le().ok()?;
    (current == [0]).then_some((number, checksum))
}

fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE_BYTES: u64 = 1 << 20;

    #[test]
    fn a_flipped_bit_in_what_names_the_tables_puts_the_index_in_doubt() {
        let folder = tempfile::tempdir().unwrap();
        let opened = open(folder.path(), CACHE_BYTES).unwrap();
        opened.tasks.insert("task", "events").unwrap();
        opened.tasks.rotate_memtable_and_wait().unwrap();
        drop(opened);
        assert_eq!(damaged_version(folder.path()), None);

        let keyspaces = fs::read_dir(folder.path().join(KEYSPACES)).unwrap();
        let mut count = 0;
        for keyspace in keyspaces.map(|it| it.unwrap().path()) {
            let current = fs::read(keyspace.join("current")).unwrap();
            let (number, _) = version_and_checksum(&current).expect("fjall writes it so");
            let path = keyspace.join(format!("v{number}"));
            let whole = fs::read(&path).unwrap();
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fs::write(&path, flipped).unwrap();
                assert_eq!(damaged_version(folder.path()).as_deref(), Some(&*path));
                count += 1;
            }
            let error = open(folder.path(), CACHE_BYTES).err().unwrap();
            assert!(error.is_doubt(), "{error}");
            fs::write(&path, whole).unwrap();
        }
        assert!(count > 1_000, "{count}");
        assert_eq!(damaged_version(folder.path()), None);
    }
}
