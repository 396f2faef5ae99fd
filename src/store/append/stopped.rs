//! Another data directory whose log is appended: its lock, its copy, and the mark that it is used
//! up.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    files,
    store::{
        AppendError, OpenError, Store,
        directory::{self, APPEND_COPY, LOCK, LOG, USED_UP},
    },
};

/// Memory for blocks of the index: tasks are looked up in the order of their events.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// The pause between two attempts to lock the directory: callbacks are refused meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Another data directory whose broker is stopped, and cannot be started while this is held.
pub(in crate::store) struct Stopped {
    pub(super) path: PathBuf,
    _lock: File,
}

impl Stopped {
    /// Refuses a directory on which a broker runs.
    pub(in crate::store) fn hold(path: &Path) -> Result<Self, AppendError> {
        Ok(Self {
            path: path.into(),
            _lock: locked(path)?,
        })
    }

    /// Waits until no broker runs on it; calls `tell` once if it has to wait.
    pub(in crate::store) fn wait(path: &Path, tell: &dyn Fn()) -> Result<Self, AppendError> {
        let mut has_told = false;
        loop {
            match Self::hold(path) {
                Err(AppendError::Running(_)) => {
                    if !std::mem::replace(&mut has_told, true) {
                        tell();
                    }
                    thread::sleep(LOOK_AGAIN);
                }
                held => return held,
            }
        }
    }

    /// Keeps brokers from starting on it, because the log at `to` has all its contents now. Durable
    /// when this returns.
    pub(in crate::store) fn mark_used_up(&self, to: &Path) -> Result<(), AppendError> {
        let marked = std::path::absolute(to).and_then(|to| {
            files::replace_private(&self.path, USED_UP, to.as_os_str().as_bytes())?;
            File::open(&self.path)?.sync_all()
        });
        marked.map_err(|source| AppendError::Mark {
            path: self.path.join(USED_UP),
            source,
        })
    }

    /// Takes the mark back, when nothing was restored.
    pub(in crate::store) fn unmark(&self) {
        let path = self.path.join(USED_UP);
        let removed = fs::remove_file(&path).and_then(|()| File::open(&self.path)?.sync_all());
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, path = %path.display(), "cannot remove it: remove it before a broker is started there");
        }
    }

    /// Copies it into the directory at `to`, and opens the copy.
    pub(in crate::store) fn copy(&self, to: &Path) -> Result<Store, AppendError> {
        let path = &self.path;
        let copied = |source| AppendError::Copy {
            path: path.clone(),
            source,
        };
        let copy = to.join(APPEND_COPY);
        fs::create_dir(&copy).map_err(copied)?;
        for entry in fs::read_dir(path).map_err(copied)? {
            let entry = entry.map_err(copied)?;
            let name = entry.file_name();
            if directory::is_part(&name) && name != USED_UP {
                // A part may lie on another disk, behind a link.
                let from = entry.path().canonicalize().map_err(copied)?;
                copy_all(&from, &copy.join(name)).map_err(copied)?;
            }
        }

        Store::open(&copy, CACHE_BYTES).map_err(|error| match error {
            OpenError::Format { found, .. } => AppendError::Format {
                path: path.clone(),
                found,
            },
            OpenError::Corrupt { problem, .. } => AppendError::Damaged {
                path: path.clone(),
                problem,
            },
            OpenError::Io { source, .. } => AppendError::Copy {
                path: path.clone(),
                source,
            },
            other => AppendError::Damaged {
                path: path.clone(),
                problem: other.to_string(),
            },
        })
    }
}

/// Takes the lock of a data directory, as a broker does. The directory is only read.
fn locked(path: &Path) -> Result<File, AppendError> {
    let file = match File::open(path.join(LOCK)) {
        Ok(file) if path.join(LOG).is_dir() => file,
        Ok(_) => return Err(AppendError::NoLog(path.into())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Err(AppendError::NoLog(path.into()));
        }
        Err(source) => {
            return Err(AppendError::Copy {
                path: path.into(),
                source,
            });
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AppendError::Running(path.into())),
        Err(TryLockError::Error(source)) => Err(AppendError::Copy {
            path: path.into(),
            source,
        }),
    }
}

/// Refuses a directory that can never be appended, as far as that shows while a broker may run on
/// it.
pub(in crate::store) fn check_usable(other: &Path) -> Result<(), AppendError> {
    if other.join(directory::UNFINISHED).symlink_metadata().is_ok() {
        return Err(AppendError::Unfinished(other.into()));
    }
    match locked(other) {
        Err(AppendError::Running(_)) => Ok(()),
        looked => looked.map(drop),
    }
}

/// Refuses a directory without a log, and a restored directory within the one that is read.
pub(in crate::store) fn check_apart(path: &Path, other: &Path) -> Result<(), AppendError> {
    let Ok(whole_other) = other.canonicalize() else {
        return Err(AppendError::NoLog(other.into()));
    };
    if !whole_other.join(LOG).is_dir() {
        return Err(AppendError::NoLog(other.into()));
    }
    let whole = std::path::absolute(path).map_err(|source| AppendError::Copy {
        path: other.into(),
        source,
    })?;
    // A directory that does not exist yet will be in the first of its ancestors that does.
    let there = whole
        .ancestors()
        .find_map(|ancestor| ancestor.canonicalize().ok());
    if there.is_some_and(|there| there.starts_with(whole_other)) {
        return Err(AppendError::Within(path.into(), other.into()));
    }
    Ok(())
}

/// Copies regular files and folders. A log has nothing else.
fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_file() {
        fs::copy(from, to)?;
    } else if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_all(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
