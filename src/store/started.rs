//! How a log was found at a start, and what tells that there should be one.
//!
//! A file in the data directory says who had the log last and how that ended. It only informs: a log is judged by itself. A file
//! beside the data directory says that the directory had a log. So a disk that is not mounted, or a path that is mistyped, is no
//! reason to begin a new log, whose epoch no client's cursor belongs to. Where the directory's parent cannot be written there is
//! no such file; then only `log.expect_existing` tells.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{
    OpenError, append, backup_results, open::LOCK_FILE, quarantine_keys, restore,
    watermark::Watermark,
};
use crate::{event::Epoch, files};

/// Who had the log last.
const FILE: &str = "last-start.json";
/// What a directory with a log has one of at least.
const PARTS: [&str; 3] = ["log", "keyspaces", "acknowledged"];
/// What the database has beside its folder.
const VERSION_FILE: &str = "version";
const JOURNAL_EXTENSION: &str = "jnl";
/// A line: nothing that is longer was written by a broker.
const MARKER_BYTES_MAX: u64 = 512;

/// How a log was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
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
    pub fn as_str(self) -> &'static str {
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
pub struct Cut {
    /// Of a last commit that is not whole.
    pub log_bytes: u64,
    /// Of the torn end of the database's journal; the log has told it again.
    pub journal_bytes: u64,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.log_bytes, self.journal_bytes) {
            (0, 0) => f.write_str("nothing"),
            (log, 0) => write!(f, "{log} bytes of a torn last commit"),
            (0, journal) => write!(f, "{journal} bytes of the index's journal"),
            (log, journal) => write!(
                f,
                "{log} bytes of a torn last commit, {journal} bytes of the index's journal"
            ),
        }
    }
}

/// How a start went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
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

/// Whether something in a data directory is the store's. Other things are there, too: `lost+found`, a file system's snapshots.
pub fn is_part(name: &OsStr) -> bool {
    let others = [
        LOCK_FILE,
        VERSION_FILE,
        quarantine_keys::FILE,
        FILE,
        backup_results::FILE,
        restore::UNFINISHED,
        append::COPY,
        append::USED_UP,
    ];
    let mut names = PARTS.into_iter().chain(Watermark::FILES).chain(others);
    names.any(|part| name == part)
        || Path::new(name)
            .extension()
            .is_some_and(|end| end == JOURNAL_EXTENSION)
}

/// Refuses a directory without a log if there should be one. Changes nothing.
pub fn check_expected(directory: &Path, is_expected: bool) -> Result<(), OpenError> {
    let has_log = PARTS.iter().any(|part| may_be_there(&directory.join(part)));
    if has_log {
        return Ok(());
    }
    if is_expected {
        return Err(OpenError::Expected(directory.into()));
    }
    let Some(marker) = marker_of(directory).filter(|marker| may_be_there(marker)) else {
        return Ok(());
    };
    Err(OpenError::Vanished {
        path: directory.into(),
        said: said_by(&marker),
        marker,
    })
}

/// Whether an entry is there, as far as can be seen. One that cannot be looked at is not taken for missing: a log behind a failing
/// disk or a directory that is closed to this user must not be replaced by a new one.
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

/// Notes beside a data directory that it has a log; where that cannot be written, nothing is noted.
pub(super) fn mark(directory: &Path, epoch: Epoch) {
    let Some(path) = marker_of(directory) else {
        return;
    };
    let name = directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let text = format!(
        "blobcast {} had log {epoch} in {name}\n",
        env!("CARGO_PKG_VERSION")
    );
    if let Err(error) = write_marker(&path, text.as_bytes()) {
        tracing::debug!(path = %path.display(), %error, "nothing beside the data directory notes that it has a log");
    }
}

fn write_marker(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = open_marker(
        path,
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600),
    )?;
    if read_marker(&file)? == text {
        return Ok(());
    }
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text)
}

/// Others may write to the parent, too: no link of theirs is followed.
fn open_marker(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    files::open_regular(path, options, OFlags::NOFOLLOW)
}

/// As much of it as a broker may have written.
fn read_marker(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MARKER_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Refuses a directory whose callbacks were appended to another log.
pub(super) fn check_not_used_up(directory: &Path) -> Result<(), OpenError> {
    let mark = directory.join(append::USED_UP);
    if fs::symlink_metadata(&mark).is_err() {
        return Ok(());
    }
    Err(OpenError::UsedUp {
        path: directory.into(),
        to: said_by(&mark),
        mark,
    })
}

/// What lets a new log begin where a data directory had one, in words.
pub(super) fn to_begin_anew(directory: &Path) -> String {
    let setting = "start once with `log.expect_existing = false`";
    match marker_of(directory) {
        Some(marker) => format!("remove {} if it is there, and {setting}", marker.display()),
        None => setting.to_owned(),
    }
}

/// Where that is noted; `None` of a directory without a name or a parent.
fn marker_of(directory: &Path) -> Option<PathBuf> {
    // Not by asking the file system: what is not there has no true path.
    let whole = std::path::absolute(directory).ok()?;
    let mut name = OsString::from(".");
    name.push(whole.file_name()?);
    name.push(".has-log");
    Some(whole.parent()?.join(name))
}

fn said_by(marker: &Path) -> String {
    let said = open_marker(marker, File::options().read(true)).and_then(|file| read_marker(&file));
    String::from_utf8_lossy(&said.unwrap_or_default())
        .trim()
        .to_owned()
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
        for part in PARTS {
            fs::create_dir(path.join(part)).unwrap();
            assert!(check_expected(&path, true).is_ok());
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
    fn no_link_is_followed_to_note_it() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("target");
        fs::write(&target, "mine").unwrap();
        std::os::unix::fs::symlink(&target, parent.path().join(".data.has-log")).unwrap();
        mark(&parent.path().join("data"), EPOCH);
        assert_eq!(fs::read_to_string(target).unwrap(), "mine");
    }

    #[test]
    fn a_marker_of_somebody_else_is_neither_waited_for_nor_read_without_a_limit() {
        let parent = tempfile::tempdir().unwrap();
        let (path, marker) = (
            parent.path().join("data"),
            parent.path().join(".data.has-log"),
        );
        let (ended, end) = std::sync::mpsc::channel();
        let look = |path: PathBuf| {
            let ended = ended.clone();
            std::thread::spawn(move || {
                mark(&path, EPOCH);
                ended.send(check_expected(&path, false)).unwrap();
            });
            end.recv_timeout(std::time::Duration::from_secs(30))
                .expect("it blocks")
        };
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &marker, mode).unwrap();
        assert!(
            matches!(look(path.clone()), Err(OpenError::Vanished { said, .. }) if said.is_empty())
        );
        fs::remove_file(&marker).unwrap();

        // A sparse file of 1 TiB: nobody has the memory for all of it.
        File::create(&marker).unwrap().set_len(1 << 40).unwrap();
        let refused = check_expected(&path, false);
        assert!(
            matches!(refused, Err(OpenError::Vanished { said, .. }) if said.len() == MARKER_BYTES_MAX as usize)
        );
        assert!(
            matches!(look(path), Err(OpenError::Vanished { said, .. }) if said.contains(&EPOCH.to_string()))
        );
        assert!(
            fs::metadata(&marker).unwrap().len() < MARKER_BYTES_MAX,
            "the marker has replaced it"
        );
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

    #[test]
    fn what_was_cut_is_told_in_words() {
        let told = |log_bytes, journal_bytes| {
            Cut {
                log_bytes,
                journal_bytes,
            }
            .to_string()
        };
        assert_eq!(told(0, 0), "nothing");
        assert_eq!(told(3, 0), "3 bytes of a torn last commit");
        assert_eq!(told(0, 4), "4 bytes of the index's journal");
        assert_eq!(
            told(3, 4),
            "3 bytes of a torn last commit, 4 bytes of the index's journal"
        );
    }
}
