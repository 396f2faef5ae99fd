//! The names of the files in a data directory, its lock, and the refusal of a directory that has
//! lost its log.

use std::{
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io,
    path::Path,
};

use super::{
    acknowledged::AcknowledgedFiles,
    database,
    error::{OpenError, StartFailure},
    has_log, index_doubt,
    layout::INDEX,
};

/// Locked by the process that has the directory.
pub(super) const LOCK: &str = "lock";
/// The folder of the log's segments.
pub(super) const LOG: &str = "log";
/// Who had the log last.
pub(super) const LAST_START: &str = "last-start.json";
/// When a broker that asks the vendor was last there.
pub(super) const LAST_THERE: &str = "last-there.json";
/// Which stream a node's log is read from.
pub(super) const FOLLOWED: &str = "stream.json";
/// What became of the log's backups.
pub(super) const BACKUPS: &str = "backups.json";
/// There while a log is appended to what was restored.
pub(super) const UNFINISHED: &str = "restore-unfinished";
/// Where the copy of a log lies that is appended to this one.
pub(super) const APPEND_COPY: &str = "append.copy";
/// In a directory whose callbacks were appended to another log: it says to which.
pub(super) const USED_UP: &str = "appended-to";
/// What a directory with a log has one of at least, or else an index.
const PARTS: [&str; 2] = [LOG, AcknowledgedFiles::FILE];

/// The lock of a data directory, until it is dropped.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    _file: File,
    _directory: File,
}

/// Locks the directory for this process: the file `lock`, and the directory itself, because somebody may take
/// the file for a stale one and remove it while its process runs.
pub(super) fn lock(directory: &Path) -> Result<DirectoryLock, StartFailure> {
    let itself = File::open(directory)?;
    match itself.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StartFailure::Locked),
        // Some network file systems lock files only; then the file alone has to do.
        Err(TryLockError::Error(_)) => {}
    }

    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(DirectoryLock {
            _file: file,
            _directory: itself,
        }),
        Err(TryLockError::WouldBlock) => Err(StartFailure::Locked),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Whether something in a data directory is the store's. Other things are there, too: `lost+found`,
/// a file system's snapshots.
pub(crate) fn is_part(name: &OsStr) -> bool {
    let others = [
        INDEX,
        LOCK,
        index_doubt::FILE,
        LAST_START,
        LAST_THERE,
        FOLLOWED,
        BACKUPS,
        UNFINISHED,
        APPEND_COPY,
        USED_UP,
    ];
    let mut names = PARTS
        .into_iter()
        .chain(AcknowledgedFiles::FILES)
        .chain(others);
    names.any(|part| name == part)
}

/// Refuses a directory without a log if there should be one. Changes nothing.
pub(crate) fn check_expected(directory: &Path, is_expected: bool) -> Result<(), OpenError> {
    // An empty `index` is only the place for one: a file system may be mounted there.
    let has_log = PARTS.iter().any(|part| may_be_there(&directory.join(part)))
        || database::is_in(&directory.join(INDEX)).unwrap_or(true);
    if has_log {
        return Ok(());
    }
    if is_expected {
        return Err(OpenError::Expected(directory.into()));
    }
    let Some(marker) = has_log::marker_of(directory).filter(|marker| may_be_there(marker)) else {
        return Ok(());
    };
    Err(OpenError::Vanished {
        path: directory.into(),
        said: has_log::said_by(&marker),
        marker,
    })
}

/// Refuses a directory whose callbacks were appended to another log.
pub(super) fn check_not_used_up(directory: &Path) -> Result<(), OpenError> {
    let mark = directory.join(USED_UP);
    if fs::symlink_metadata(&mark).is_err() {
        return Ok(());
    }
    Err(OpenError::UsedUp {
        path: directory.into(),
        to: has_log::said_by(&mark),
        mark,
    })
}

/// Whether an entry is there, as far as can be seen. One that cannot be looked at is not taken for
/// missing: a log behind a failing disk or a directory that is closed to this user must not be
/// replaced by a new one.
fn may_be_there(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => {
            // Of these the system says that there can be no such entry.
            let is_missing = [
                io::ErrorKind::NotFound,
                io::ErrorKind::NotADirectory,
                io::ErrorKind::InvalidFilename,
            ];
            !is_missing.contains(&error.kind())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::has_log::mark, *};
    use crate::event::Epoch;

    const EPOCH: Epoch = Epoch(7);

    #[test]
    fn a_directory_is_locked_although_its_lock_file_was_removed() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        fs::remove_file(directory.path().join(LOCK)).unwrap();
        assert!(matches!(lock(directory.path()), Err(StartFailure::Locked)));
        drop(held);
        lock(directory.path()).unwrap();
    }

    #[test]
    fn a_directory_without_its_log_is_refused_where_something_tells_that_it_had_one() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        assert!(check_expected(&path, false).is_ok(), "nothing tells");
        assert!(matches!(
            check_expected(&path, true),
            Err(OpenError::Expected(_))
        ));
        mark(&path, EPOCH);
        let refused = check_expected(&path, false).unwrap_err().to_string();
        let marker = parent.path().join(".data.has-log");
        assert!(
            refused.contains(&marker.display().to_string()) && refused.contains(&EPOCH.to_string()),
            "{refused}"
        );
        // A file system of its own is mounted there.
        fs::create_dir_all(path.join("lost+found")).unwrap();
        assert!(check_expected(&path, false).is_err());
        // So it may be for the index.
        fs::create_dir_all(path.join("index/lost+found")).unwrap();
        assert!(check_expected(&path, true).is_err());
        for part in PARTS.into_iter().chain(["index/keyspaces", "index/0.jnl"]) {
            fs::create_dir(path.join(part)).unwrap();
            assert!(check_expected(&path, true).is_ok(), "{part}");
            fs::remove_dir(path.join(part)).unwrap();
        }
        fs::remove_file(marker).unwrap();
        assert!(check_expected(&path, false).is_ok());
    }

    #[test]
    fn an_entry_that_cannot_be_looked_at_counts_as_being_there() {
        let parent = tempfile::tempdir().unwrap();
        let endless = parent.path().join("data");
        std::os::unix::fs::symlink(&endless, &endless).unwrap();
        assert!(
            fs::symlink_metadata(endless.join("log"))
                .is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
        );
        assert!(
            check_expected(&endless, true).is_ok(),
            "opening it tells what is wrong"
        );
        // No entry can have such a name, or be below a file.
        let long = parent.path().join("d".repeat(250));
        assert!(check_expected(&long, false).is_ok());
        fs::write(parent.path().join("file"), "").unwrap();
        assert!(matches!(
            check_expected(&parent.path().join("file"), true),
            Err(OpenError::Expected(_))
        ));
    }

    #[test]
    fn who_follows_the_advice_about_a_damaged_log_begins_a_new_one() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        mark(&path, EPOCH);
        // It was moved away.
        assert!(check_expected(&path, false).is_err());
        let advice = [
            OpenError::Corrupt {
                path: path.clone(),
                problem: String::new(),
            }
            .to_string(),
            OpenError::Format {
                path: path.clone(),
                found: 1,
            }
            .to_string(),
        ];
        let marker = parent.path().join(".data.has-log");
        for advice in advice {
            assert!(
                advice.contains(&format!("remove {}", marker.display())),
                "{advice}"
            );
            assert!(advice.contains("log.expect_existing = false"), "{advice}");
        }
        fs::remove_file(marker).unwrap();
        assert!(check_expected(&path, false).is_ok());
    }
}
