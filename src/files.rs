//! Reads files that somebody else may change, and that may be anything by the time they are read: only a regular file, and never
//! more of it than a limit. A FIFO, a device or a directory is an error at once. A file system that hangs blocks the caller: a
//! thread that serves must not call this (`server::aside`).

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

/// Everything in the regular file at `path`, if that is no more than `bytes_max`. Symbolic links are followed: Kubernetes mounts
/// secrets as such.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Looked at first: opening a device may do something to it.
    check(&fs::metadata(path)?, bytes_max)?;
    // And looked at again, because it may have been replaced.
    let file = open_regular(path, File::options().read(true), OFlags::empty())?;
    check(&file.metadata()?, bytes_max)?;

    // Some files of /proc say that they are empty, and one may grow while it is read.
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

/// Opens the file at `path` with `options` and `flags`, and refuses it if it is not a regular one. A FIFO is not waited for.
pub fn open_regular(path: &Path, options: &mut OpenOptions, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    check_is_regular(&file.metadata()?)?;
    Ok(file)
}

/// Like [`read`], for text.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
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

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Result<[i128; 5], io::ErrorKind>);

impl Stamp {
    /// As of now. That it is not there, or not allowed, is a state, too.
    pub fn of(path: &Path) -> Self {
        let nanoseconds =
            |seconds: i64, more: i64| i128::from(seconds) * 1_000_000_000 + i128::from(more);
        let stamp = fs::metadata(path).map(|it| {
            [
                it.dev().into(),
                it.ino().into(),
                it.len().into(),
                nanoseconds(it.mtime(), it.mtime_nsec()),
                // Who may read it has a part in whether it can be used.
                nanoseconds(it.ctime(), it.ctime_nsec()),
            ]
        });
        Self(stamp.map_err(|error| error.kind()))
    }
}

/// Replaces `directory/name`, both for the owner's eyes only, and the file never half written.
pub fn replace_private(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let new = directory.join(format!("{name}.new"));
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(new, directory.join(name))
}

/// Removes a file.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
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
    fn what_is_no_regular_file_is_refused_at_once() {
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
    fn what_is_kept_is_for_the_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        replace_private(&inner, "kept", b"1").unwrap();
        replace_private(&inner, "kept", b"2").unwrap();
        assert_eq!(read(&inner.join("kept"), 1).unwrap(), b"2");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&inner), mode(&inner.join("kept"))), (0o700, 0o600));
    }
}
