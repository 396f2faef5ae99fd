//! Reads files that other processes may replace at any time: only regular files, and never more
//! bytes than a limit.
//!
//! A FIFO, a device or a directory is an error at once. A file system that hangs blocks the caller,
//! so a thread that serves requests must not call this directly (`server::aside`).

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

/// The content of the regular file at `path`; an error if it has more than `bytes_max`. Follows
/// symbolic links: Kubernetes mounts secrets as links.
pub(crate) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Checked before it is opened: opening a device may have an effect.
    check(&fs::metadata(path)?, bytes_max)?;
    // Checked again after: it may have been replaced meanwhile.
    let file = open_regular(path, File::options().read(true), OFlags::empty())?;
    check(&file.metadata()?, bytes_max)?;

    // The length is not reliable: files in /proc report 0, and a file may grow while it is read.
    let mut bytes = Vec::new();
    let count = file
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if count as u64 > bytes_max {
        Err(too_large(bytes_max))
    } else {
        Ok(bytes)
    }
}

/// Opens the file at `path`; an error if it is not a regular file. Does not wait for the other end
/// of a FIFO.
pub(crate) fn open_regular(
    path: &Path,
    options: &mut OpenOptions,
    flags: OFlags,
) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    check_is_regular(&file.metadata()?)?;
    Ok(file)
}

/// Like [`read`], for text.
pub(crate) fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

fn check_is_regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let is_regular = metadata.is_file();
    is_regular
        .then_some(())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

fn check(metadata: &Metadata, bytes_max: u64) -> io::Result<()> {
    check_is_regular(metadata)?;
    if metadata.len() > bytes_max {
        Err(too_large(bytes_max))
    } else {
        Ok(())
    }
}

fn too_large(bytes_max: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("it has more than {bytes_max} bytes"),
    )
}

/// Identifies a state of a file without reading it, to notice changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Result<[i128; 5], io::ErrorKind>);

impl Stamp {
    /// The current state. A missing or forbidden file has a state, too.
    pub(crate) fn of(path: &Path) -> Self {
        let nanoseconds =
            |seconds: i64, more: i64| i128::from(seconds) * 1_000_000_000 + i128::from(more);
        let stamp = fs::metadata(path).map(|it| {
            [
                it.dev().into(),
                it.ino().into(),
                it.len().into(),
                nanoseconds(it.mtime(), it.mtime_nsec()),
                // Changes with the permissions, which decide whether the file can be read.
                nanoseconds(it.ctime(), it.ctime_nsec()),
            ]
        });
        Self(stamp.map_err(|error| error.kind()))
    }
}

/// Replaces `directory/name` atomically. File and directory are readable for the owner only.
pub(crate) fn replace_private(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let new = directory.join(format!("{name}.new"));
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = open_regular(&new, &mut options, OFlags::empty())?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(new, directory.join(name))
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// Whether something was done to a file or folder, as far as it was there.
pub(crate) fn if_there(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn refusal(path: &Path) -> String {
        read(path, 10).unwrap_err().to_string()
    }

    #[test]
    fn a_regular_file_is_read_up_to_the_limit_also_behind_links() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("file"), directory.path().join("link"));
        symlink(&path, &link).unwrap();
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"0123456789");
        assert_eq!(read_text(&link, 10).unwrap(), "0123456789");
        fs::write(&path, "0123456789a").unwrap();
        assert_eq!(refusal(&link), "it has more than 10 bytes");
    }

    #[test]
    fn a_file_that_is_not_regular_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert_eq!(refusal(&fifo), "it is not a regular file");
        for device in ["/dev/zero", "/dev/tty"] {
            assert_eq!(refusal(Path::new(device)), "it is not a regular file");
        }
        assert_eq!(
            read(directory.path(), 10).unwrap_err().kind(),
            io::ErrorKind::IsADirectory
        );
        assert_eq!(
            read(&directory.path().join("none"), 10).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_file_that_says_it_is_empty_is_read_up_to_the_limit() {
        // Regular, of length 0, and longer than that.
        let endless = Path::new("/proc/self/maps");
        assert_eq!(fs::metadata(endless).unwrap().len(), 0);
        assert_eq!(refusal(endless), "it has more than 10 bytes");
    }

    #[test]
    fn a_stamp_changes_with_content_and_permissions_and_with_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let missing = Stamp::of(&path);
        fs::write(&path, "one").unwrap();
        let there = Stamp::of(&path);
        assert_ne!(missing, there);
        fs::read(&path).unwrap();
        assert_eq!(Stamp::of(&path), there);
        fs::write(directory.path().join("new"), "two").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert_ne!(Stamp::of(&path), there);
    }

    #[test]
    fn a_private_file_is_readable_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        replace_private(&inner, "kept", b"1").unwrap();
        replace_private(&inner, "kept", b"2").unwrap();
        assert_eq!(read(&inner.join("kept"), 1).unwrap(), b"2");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&inner.join("kept"))), (0o700, 0o600));
    }
}
