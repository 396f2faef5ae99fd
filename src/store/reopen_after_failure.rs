//! Whether a store that has failed, because a write did, can be opened again. The server asks, and then starts the process anew.

use std::{
    fs::{self, File},
    io::Write,
};

use super::{Store, disk::bytes_of};

/// With less free disk a store that has failed is not opened again: recovery writes, and would
/// fail, too.
const REOPEN_FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;

impl Store {
    /// Whether a store that has failed would find what it needs: its own directory, room, and a
    /// disk that takes a write. Says what is missing. Blocks on the disk.
    pub(crate) fn can_reopen_after_failure(&self) -> Result<(), String> {
        if !self.is_in_place() {
            return Err("the data directory was removed or replaced".to_owned());
        }
        for path in self.disks() {
            let (free_bytes, _) = bytes_of(&path).map_err(|error| error.to_string())?;
            if free_bytes < REOPEN_FREE_BYTES_MIN {
                return Err(format!(
                    "{free_bytes} bytes are free on the disk of {}, {REOPEN_FREE_BYTES_MIN} must be",
                    path.display()
                ));
            }
        }
        let path = self.path.join("written-to-try");
        let tried = File::create(&path).and_then(|mut file| {
            file.write_all(&[0; 4096])?;
            file.sync_all()
        });
        let removed = fs::remove_file(path);
        tried.and(removed).map_err(|error| error.to_string())
    }
}
