//! The disks of the data directory: which directory it is, and how much of its disk is free, or of
//! the index's, if that has its own.

use std::{
    fs, io, iter,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Store, layout::INDEX};

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
    /// process may use them. If the index has a file system of its own of which a smaller share is
    /// free, they are that one's.
    pub(crate) fn disk_bytes(&self) -> io::Result<(u64, u64)> {
        let disks: Vec<_> = self
            .disks()
            .map(|path| bytes_of(&path))
            .collect::<Result<_, _>>()?;
        Ok(disks.into_iter().reduce(tighter).unwrap_or_default())
    }

    /// The data directory, and the index if that is on another file system.
    pub(super) fn disks(&self) -> impl Iterator<Item = PathBuf> {
        let index = self.path.join(INDEX);
        let device = |path: &Path| identity(path).map(|(device, _)| device);
        let is_apart = device(&index).is_some_and(|it| Some(it) != device(&self.path));
        iter::once(self.path.clone()).chain(is_apart.then_some(index))
    }
}

pub(super) fn bytes_of(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

/// Of two disks that of which a smaller share is free; each has its free and total bytes.
fn tighter(one: (u64, u64), other: (u64, u64)) -> (u64, u64) {
    // The shares of free by total bytes, both times the two totals.
    let [of_one, of_other] = [(one.0, other.1), (other.0, one.1)]
        .map(|(free, total)| u128::from(free) * u128::from(total));
    if of_other < of_one { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_with_the_smaller_free_share_counts() {
        let (half, tenth) = ((50, 100), (100, 1_000));
        assert_eq!(tighter(half, tenth), tenth);
        assert_eq!(tighter(tenth, half), tenth);
        assert_eq!(tighter((1, 2), half), (1, 2));
        assert_eq!(tighter(half, (0, 0)), half, "no disk at all");
        let largest = (u64::MAX, u64::MAX);
        assert_eq!(tighter(largest, half), half);
    }

    #[test]
    fn an_index_on_a_disk_of_its_own_is_looked_at_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let store = Store::open(path, 1 << 20).unwrap();
        assert_eq!(store.disks().collect::<Vec<_>>(), [path]);
        assert_eq!(store.can_reopen_after_failure(), Ok(()));
        // A file system that is everywhere, and has no room.
        let index = path.join(INDEX);
        fs::rename(&index, path.join("away")).unwrap();
        std::os::unix::fs::symlink("/proc", &index).unwrap();
        assert_eq!(store.disks().collect::<Vec<_>>(), [path, &*index]);
        let problem = store.can_reopen_after_failure().unwrap_err();
        assert!(problem.contains(index.to_str().unwrap()), "{problem}");
    }
}
