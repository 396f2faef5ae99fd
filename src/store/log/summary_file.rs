//! The file of one segment's summary: what is known of it, and its reading, writing and erasing.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;

use super::summary::{SUMMARY_BYTES_MAX, Summary};
use crate::store::lock;

pub(super) const EXTENSION: &str = "summary";

/// The file of a segment's summary.
#[derive(Debug)]
pub(super) struct SummaryFile {
    path: PathBuf,
    /// Never held while the disk is waited for.
    state: Mutex<State>,
    /// How often a part of the segment was erased. Held while the file is written or erased.
    erasures: Mutex<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody has looked.
    Unknown,
    There,
    /// It has not been written yet.
    Due,
    /// It should be there, and is not, or is not good.
    Lost,
    /// Its segment cannot be read as a whole.
    Unreadable,
}

impl SummaryFile {
    /// Of a segment that is written to.
    pub(super) fn none_yet(segment: &Path) -> Self {
        Self::in_state(segment, State::Due)
    }

    /// Of a segment that was there when the log was opened.
    pub(super) fn perhaps(segment: &Path) -> Self {
        Self::in_state(segment, State::Unknown)
    }

    fn in_state(segment: &Path, state: State) -> Self {
        Self {
            path: segment.with_extension(EXTENSION),
            state: state.into(),
            erasures: Mutex::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn state(&self) -> State {
        *lock(&self.state)
    }

    pub(super) fn erasures(&self) -> u64 {
        *lock(&self.erasures)
    }

    /// Takes note that its segment cannot be read as a whole.
    pub(super) fn note_unreadable(&self) {
        *lock(&self.state) = State::Unreadable;
    }

    /// The summary, if it is good.
    pub(super) fn read(&self, bound: u64) -> Option<Summary> {
        let found = self.state();
        if !matches!(found, State::Unknown | State::There) {
            return None;
        }
        let read = match self.read_bytes() {
            Ok(bytes) => Summary::parse(&bytes.into(), bound),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(_) => return None, // out of file descriptors, perhaps: the next reader tries again
        };

        let mut state = lock(&self.state);
        if *state == found {
            *state = if read.is_some() {
                State::There
            } else {
                State::Lost
            };
        }
        read
    }

    fn read_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(&self.path)?;
        file.take(SUMMARY_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes it, unless a part of the segment was erased since there were so many erasures; whether it was lost.
    pub(super) fn write(&self, bytes: &[u8], erasures: u64) -> io::Result<Option<bool>> {
        let unchanged = lock(&self.erasures);
        if *unchanged != erasures {
            return Ok(None);
        }
        fs::write(&self.path, bytes)?;
        let was = std::mem::replace(&mut *lock(&self.state), State::There);
        Ok(Some(was == State::Lost))
    }

    /// Removes it, as a part of the segment was erased: by what it has, one could still try whether an event had a certain label.
    /// It is overwritten first, as what was erased is.
    pub(super) fn erase(&self) -> io::Result<()> {
        let mut erasures = lock(&self.erasures);
        *erasures += 1;
        *lock(&self.state) = State::Due;

        let file = match File::options().write(true).open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let bytes = file.metadata()?.len().min(SUMMARY_BYTES_MAX);
        file.write_all_at(&vec![0; bytes as usize], 0)?;
        file.sync_data()?;
        fs::remove_file(&self.path)
    }

    /// Removes it before its segment.
    pub(super) fn remove(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove the summary of a segment: the next start does");
            }
            _ => {}
        }
    }
}
