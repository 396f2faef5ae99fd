//! A log that was set aside for one that is read from a cluster's stream anew, until that one has all that is retained.
//!
//! Its segments lie in a folder of their own within the log's, so a log on a disk of its own stays on that disk. The folder's name
//! has the frame that the log had come to, and says how far the exchange has come:
//!
//! ```text
//! older-7.moving   segments beside it belong to it: they are being moved there
//! older-7.moved    it has all of them; those beside it are of a new log that may not be whole
//! older-7          the new log has begun
//! ```

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use super::{EXTENSION, Log};
use crate::store::{directory::LOG, error::StartFailure, lock};

const PREFIX: &str = "older-";
const MOVING: &str = "moving";
const MOVED: &str = "moved";

/// The logs that lie beside this one.
#[derive(Debug, Default)]
pub(super) struct OlderLogs {
    folders: Mutex<Vec<PathBuf>>,
    may_go: AtomicBool,
}

impl OlderLogs {
    pub(super) fn find(folder: &Path) -> io::Result<Self> {
        let folders = folders(folder)?;
        Ok(Self {
            folders: folders.into(),
            may_go: false.into(),
        })
    }

    pub(super) fn are_due(&self) -> bool {
        self.may_go.load(Ordering::Acquire) && !lock(&self.folders).is_empty()
    }
}

impl Log {
    /// Whether logs that were set aside lie beside this one.
    pub(in crate::store) fn has_older(&self) -> bool {
        !lock(&self.older.folders).is_empty()
    }

    /// Logs that were set aside are not needed any more.
    pub(in crate::store) fn let_go_of_older(&self) {
        self.older.may_go.store(true, Ordering::Release);
    }

    /// Removes the logs that were set aside, once they are not needed any more.
    pub(in crate::store) fn remove_older(&self) {
        if !self.older.are_due() {
            return; // almost always
        }
        for folder in std::mem::take(&mut *lock(&self.older.folders)) {
            let path = folder.display();
            match fs::remove_dir_all(&folder) {
                Ok(()) => tracing::info!(%path, "the log that was set aside is removed"),
                Err(error) => {
                    tracing::warn!(%path, %error, "cannot remove a log that was set aside: the next start tries again");
                }
            }
        }
    }
}

/// Whether a log is being set aside. Then the directory has neither the old log nor the new one.
pub(in crate::store) fn is_begun(directory: &Path) -> io::Result<bool> {
    let folders = folders(&directory.join(LOG))?;
    Ok(folders
        .iter()
        .any(|folder| has_stage(folder, MOVING) || has_stage(folder, MOVED)))
}

/// Refuses a directory whose log is being set aside.
pub(in crate::store) fn check_whole(directory: &Path) -> Result<(), StartFailure> {
    if !is_begun(directory)? {
        return Ok(());
    }
    let problem =
        "its log was being set aside: start it as a node of its cluster, which goes on with that";
    Err(StartFailure::Corrupt(problem.to_owned()))
}

/// Begins to set the log aside, which has come to this frame.
pub(in crate::store) fn begin(directory: &Path, frame: u64) -> io::Result<()> {
    let folder = directory.join(LOG);
    fs::create_dir_all(folder.join(format!("{PREFIX}{frame}.{MOVING}")))?;
    sync(&folder)
}

/// Moves the segments of the old log, and removes what there is of a new one.
pub(in crate::store) fn move_segments(directory: &Path) -> io::Result<()> {
    let folder = directory.join(LOG);
    for older in folders(&folder)? {
        if has_stage(&older, MOVING) {
            for path in segments(&folder)? {
                let name = path.file_name().unwrap_or_default();
                fs::rename(&path, older.join(name))?;
            }
            sync(&older)?;
            sync(&folder)?;
            fs::rename(&older, older.with_extension(MOVED))?;
        } else if has_stage(&older, MOVED) {
            segments(&folder)?.iter().try_for_each(fs::remove_file)?;
        }
    }
    sync(&folder)
}

/// The new log has begun.
pub(in crate::store) fn end(directory: &Path) -> io::Result<()> {
    let folder = directory.join(LOG);
    for older in folders(&folder)? {
        if has_stage(&older, MOVED) {
            fs::rename(&older, older.with_extension(""))?;
        }
    }
    sync(&folder)
}

fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(PREFIX) && entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

/// The segments beside those folders, also those that were made ahead.
fn segments(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let paths: io::Result<Vec<_>> = paths.collect();
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|it| it == EXTENSION);
    paths.map(|paths| paths.into_iter().filter(is_segment).collect())
}

fn has_stage(folder: &Path, stage: &str) -> bool {
    folder.extension().is_some_and(|it| it == stage)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
