//! The disk of the data directory: which directory it is, and how much of the disk is free.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::Store;

/// Device and inode of a directory; `None` if it is not there.
pub(super) type Identity = Option<(u64, u64)>;

pub(super) fn identity(path: &Path) -> Identity {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Store {
    /// True while the path still leads to the directory that was opened.
    pub(super) fn is_in_place(&self) -> bool {
        identity(&self.path) == self.identity
    }

    /// Free and total bytes of the file system that holds the data directory, as an unprivileged
    /// process may use them.
    pub(crate) fn disk_bytes(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }
}
