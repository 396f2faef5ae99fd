//! The disk of the data directory: how much of it is free, and whether it takes a write.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::Store;

/// With less free disk a store that has failed is not opened again: recovery writes, and would
/// fail, too.
const REOPEN_FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

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

    /// Whether a store that has failed would find what it needs: its own directory, room, and a
    /// disk that takes a write. Says what is missing. Blocks on the disk.
    pub fn can_be_opened_again(&self) -> Result<(), String> {
        if !self.is_in_place() {
            return Err("the data directory was removed or replaced".to_owned());
        }
        match self.disk_bytes() {
            Ok((free_bytes, _)) if free_bytes < REOPEN_FREE_BYTES_MIN => {
                return Err(format!(
                    "{free_bytes} bytes of disk are free, {REOPEN_FREE_BYTES_MIN} must be"
                ));
            }
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        let path = self.path.join("written-to-try");
        let tried = File::create(&path).and_then(|mut file| {
            file.write_all(&[0; 4096])?;
            file.sync_all()
        });
        let removed = fs::remove_file(path);
        tried.and(removed).map_err(|error| error.to_string())
    }

    /// Free and total bytes of the file system that holds the data directory, as an unprivileged
    /// process may use them.
    pub fn disk_bytes(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }
}
