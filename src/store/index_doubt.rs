//! A file in the data directory that tells the next start to build the index again.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::error::IndexError;
use crate::files;

/// The file. It says why.
pub(super) const FILE: &str = "index.doubted";

/// Why the index must not be opened; `None` if nothing says so.
pub(super) fn said_in(directory: &Path) -> Option<String> {
    let said = match fs::read(directory.join(FILE)) {
        Ok(said) => said,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(format!("the file {FILE} cannot be read: {error}")),
    };
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Some(if said.is_empty() {
        "the last start ended while it opened or emptied the index".into()
    } else {
        said
    })
}

/// Has the next start build the index again, durably. Writes no content: the disk may be full.
pub(super) fn mark(directory: &Path) -> io::Result<()> {
    let mut options = File::options();
    let file = options
        .append(true)
        .create(true)
        .open(directory.join(FILE))?;
    file.sync_all()?;
    File::open(directory)?.sync_all()
}

/// Whether the index can be trusted, for this process and for the next start.
#[derive(Debug)]
pub(super) struct Doubt {
    path: PathBuf,
    problem: OnceLock<String>,
}

impl Doubt {
    pub(super) fn of(directory: &Path) -> Self {
        Self {
            path: directory.join(FILE),
            problem: OnceLock::new(),
        }
    }

    /// The error that has raised the doubt, if any.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.get().map(String::as_str)
    }

    /// Passes a result on, and raises the doubt if it is an error that comes from the index's
    /// files.
    pub(super) fn look<T>(&self, result: Result<T, IndexError>) -> Result<T, IndexError> {
        if let Err(error) = &result
            && error.is_doubt()
        {
            self.raise(&error.to_string());
        }
        result
    }

    /// Has the store take no more commands, and the next start build the index again.
    pub(super) fn raise(&self, problem: &str) {
        if self.problem.set(problem.to_owned()).is_ok() {
            tracing::error!(
                problem,
                "the index cannot be trusted: refusing callbacks until a restart, which builds it again from the log"
            );
            self.write();
        }
    }

    // Without a sync: a power cut may lose it, and then the next start meets what this one has met.
    pub(super) fn write(&self) {
        let problem = self.problem.get().map_or("", String::as_str);
        if let Err(error) = fs::write(&self.path, problem) {
            tracing::warn!(path = %self.path.display(), %error, "cannot note that the index is in doubt");
        }
    }

    pub(super) fn remove(&self) {
        if let Err(error) = files::if_there(fs::remove_file(&self.path)) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove it: the next start builds the index again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_says_that_there_is_doubt() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(said_in(directory.path()), None);
        fs::create_dir(directory.path().join(FILE)).unwrap();
        let said = said_in(directory.path());
        assert!(
            said.as_ref().is_some_and(|it| it.contains(FILE)),
            "{said:?}"
        );
    }
}
