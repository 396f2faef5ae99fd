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
        AppendError, OpenError, Store, database,
        directory::{self, APPEND_COPY, LOCK, LOG, USED_UP},
        layout::INDEX,
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
            if name == INDEX {
                copy_index(&entry.path(), &copy.join(name)).map_err(copied)?;
            } else if directory::is_part(&name) && name != USED_UP {
                // A part may lie on another disk, behind a link.
                let from = entry.path().canonicalize().map_err(copied)?;
                copy_all(&from, &copy.join(name)).map_err(copied)?;
            }
        }

        Store::open(&copy, CACHE_BYTES).map_err(|error| not_opened(path, error))
    }
}

/// Why the copy of a directory cannot be opened, said of the directory.
fn not_opened(path: &Path, error: OpenError) -> AppendError {
    let path = path.to_path_buf();
    match error {
        OpenError::Format { found, .. } => AppendError::Format { path, found },
        OpenError::Corrupt { problem, .. } => AppendError::Damaged { path, problem },
        OpenError::Io { source, .. } => AppendError::Copy { path, source },
        // Of the copy: the disk that it is on is full.
        error @ OpenError::Index { .. } => AppendError::Copy {
            path,
            source: io::Error::other(error),
        },
        other => AppendError::Damaged {
            path,
            problem: other.to_string(),
        },
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

/// Copies an index, and nothing else that its folder has. One that cannot be copied is left out: it
/// is built again from the log.
fn copy_index(from: &Path, to: &Path) -> io::Result<()> {
    let copied = from.canonicalize().and_then(|from| {
        fs::create_dir(to)?;
        fs::read_dir(from)?.try_for_each(|entry| {
            let entry = entry?;
            if database::is_part(&entry.file_name()) {
                copy_all(&entry.path(), &to.join(entry.file_name()))?;
            }
            Ok(())
        })
    });
    copied.or_else(|error: io::Error| {
        tracing::warn!(path = %from.display(), %error, "cannot copy the index, which is built again from the log");
        files::if_there(fs::remove_dir_all(to))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_cannot_be_copied_or_has_other_things_beside_it_is_no_reason_to_refuse() {
        let parent = tempfile::tempdir().unwrap();
        let (path, to) = (parent.path().join("other"), parent.path().join("to"));
        drop(Store::open(&path, CACHE_BYTES).unwrap());
        let index = path.join(INDEX);
        // A file system of its own has a folder that only root may read.
        fs::create_dir(index.join("lost+found")).unwrap();
        let copy = |is_copied: bool| {
            fs::create_dir(&to).unwrap();
            let stopped = Stopped::hold(&path).unwrap();
            drop(stopped.copy(&to).unwrap());
            let copied = to.join(APPEND_COPY).join(INDEX);
            assert!(copied.join("version").exists());
            assert!(!copied.join("lost+found").exists(), "{is_copied}");
            fs::remove_dir_all(&to).unwrap();
        };
        copy(true);
        fs::remove_dir_all(&index).unwrap();
        std::os::unix::fs::symlink(parent.path().join("nowhere"), &index).unwrap();
        copy(false);
    }

    #[test]
    fn an_index_without_room_is_not_said_to_be_a_damaged_directory() {
        let error = not_opened(
            Path::new("other"),
            OpenError::Index {
                path: "to/append.copy/index".into(),
                problem: "no space left on device".into(),
            },
        );
        let said = error.to_string();
        assert!(said.contains("it needs room there"), "{said}");
        assert!(!said.contains("damaged"), "{said}");
    }
}
