//! A file beside the data directory that says that the directory had a log.
//!
//! So a disk that is not mounted, or a path that is mistyped, is no reason to begin a new log,
//! whose epoch no client's cursor belongs to. Where the directory's parent cannot be written there
//! is no such file; then only `log.expect_existing` tells.

use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::{event::Epoch, files};

/// A line: nothing that is longer was written by a broker.
const MARKER_BYTES_MAX: u64 = 512;

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

/// What lets a new log begin where a data directory had one, in words.
pub(super) fn to_begin_anew(directory: &Path) -> String {
    let setting = "start once with `log.expect_existing = false`";
    match marker_of(directory) {
        Some(marker) => format!("remove {} if it is there, and {setting}", marker.display()),
        None => setting.to_owned(),
    }
}

/// Where that is noted; `None` of a directory without a name or a parent.
pub(super) fn marker_of(directory: &Path) -> Option<PathBuf> {
    // Not by asking the file system: what is not there has no true path.
    let whole = std::path::absolute(directory).ok()?;
    let mut name = OsString::from(".");
    name.push(whole.file_name()?);
    name.push(".has-log");
    Some(whole.parent()?.join(name))
}

pub(super) fn said_by(marker: &Path) -> String {
    let said = open_marker(marker, File::options().read(true)).and_then(|file| read_marker(&file));
    String::from_utf8_lossy(&said.unwrap_or_default())
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{directory::check_expected, error::OpenError},
        *,
    };

    const EPOCH: Epoch = Epoch(7);

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
}
