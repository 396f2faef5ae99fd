//! How a log was found at a start. A file in the data directory names the last version that had it
//! open, and how that process ended. It only informs: the log is judged by its own content.

use std::{fmt, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::directory::LAST_START as FILE;
use crate::{event::Epoch, files};

/// How a log was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There was none: it begins.
    New,
    /// As the last broker had closed it.
    Clean,
    /// Not closed: that broker was killed, or its disk had failed, or the power was cut.
    Recovered,
    /// As `blobcast restore` has left it.
    Restored,
    /// Closed by another version.
    Upgraded,
}

impl Found {
    /// One word, as in metrics and the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Clean => "clean",
            Self::Recovered => "recovered",
            Self::Restored => "restored",
            Self::Upgraded => "upgraded",
        }
    }
}

/// What a crash had begun to write, and a start has taken back. None of it was ever acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Of a last commit that is not whole.
    pub log_bytes: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.log_bytes {
            0 => f.write_str("nothing"),
            bytes => write!(f, "{bytes} bytes of a torn last commit"),
        }
    }
}

/// How a start went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    /// How the log was found.
    pub found: Found,
    /// The version that had it last; `None` of a new one, or if nothing tells.
    pub version_before: Option<String>,
    /// What was taken back.
    pub cut: Cut,
}

/// How the last one to have a log has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Left {
    /// It has it still, or did not come to its end.
    Open,
    Closed,
    Restored,
}

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
struct Last {
    version: String,
    epoch: String,
    left: Left,
}

/// Judges by what the file in a data directory says; `is_new`: the log begins with this start.
pub(super) fn judge(directory: &Path, epoch: Epoch, is_new: bool, cut: Cut) -> Started {
    if is_new {
        return Started {
            found: Found::New,
            version_before: None,
            cut,
        };
    }
    // One of another log was copied there.
    let last = read(directory).filter(|last| last.epoch == epoch.to_string());
    let version_before = last.as_ref().map(|last| last.version.clone());
    let found = match last {
        Some(Last {
            left: Left::Restored,
            ..
        }) => Found::Restored,
        Some(Last {
            left: Left::Closed,
            version,
            ..
        }) if version != env!("CARGO_PKG_VERSION") => Found::Upgraded,
        Some(Last {
            left: Left::Closed, ..
        }) => Found::Clean,
        Some(Last {
            left: Left::Open, ..
        })
        | None => Found::Recovered,
    };
    Started {
        found,
        version_before,
        cut,
    }
}

fn read(directory: &Path) -> Option<Last> {
    serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()
}

/// Notes that this version has the log now.
pub(super) fn note_open(directory: &Path, epoch: Epoch) -> io::Result<()> {
    write(directory, epoch, Left::Open)
}

/// Notes that the log was closed with everything in it.
pub(super) fn note_closed(directory: &Path, epoch: Epoch) -> io::Result<()> {
    write(directory, epoch, Left::Closed)
}

/// Notes that a backup was restored.
pub(super) fn note_restored(directory: &Path, epoch: Epoch) -> io::Result<()> {
    write(directory, epoch, Left::Restored)
}

fn write(directory: &Path, epoch: Epoch, left: Left) -> io::Result<()> {
    let last = Last {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: epoch.to_string(),
        left,
    };
    // A lost one says that the log was not closed, which is safe.
    files::replace_private(directory, FILE, &serde_json::to_vec(&last)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(7);

    fn found(directory: &Path) -> Found {
        judge(directory, EPOCH, false, Cut::default()).found
    }

    #[test]
    fn what_the_last_one_has_noted_says_how_the_log_was_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(judge(path, EPOCH, true, Cut::default()).found, Found::New);
        assert_eq!(
            found(path),
            Found::Recovered,
            "nothing tells that it was closed"
        );
        for (note, expected) in [
            (
                note_open as fn(&Path, Epoch) -> io::Result<()>,
                Found::Recovered,
            ),
            (note_closed, Found::Clean),
            (note_restored, Found::Restored),
        ] {
            note(path, EPOCH).unwrap();
            assert_eq!(found(path), expected);
            let before = judge(path, EPOCH, false, Cut::default()).version_before;
            assert_eq!(before.as_deref(), Some(env!("CARGO_PKG_VERSION")));
        }
        note_closed(path, Epoch(8)).unwrap();
        assert_eq!(
            found(path),
            Found::Recovered,
            "it was another log that was closed"
        );
        fs::write(
            path.join(FILE),
            r#"{"version":"0.0.1","epoch":"0000000000000007","left":"closed"}"#,
        )
        .unwrap();
        assert_eq!(found(path), Found::Upgraded);
        for bytes in ["", "{", "[]", "\u{0}"] {
            fs::write(path.join(FILE), bytes).unwrap();
            assert_eq!(found(path), Found::Recovered, "{bytes:?}");
        }
    }

    #[test]
    fn what_was_cut_is_said_in_words() {
        let said = |log_bytes| Cut { log_bytes }.to_string();
        assert_eq!(said(0), "nothing");
        assert_eq!(said(3), "3 bytes of a torn last commit");
    }
}
