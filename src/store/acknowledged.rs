//! What was ever acknowledged, in a file of its own beside the log, and in a copy of that file.
//!
//! A damaged end of the log looks like the torn end of a write. Without a second record the log
//! would go on from there: acknowledged callbacks would be gone, and their places and numbers would
//! be given out again. The files are written after each sync and are synced at starts only, so a
//! power cut can only make them too low, which refuses nothing. Each lies within one sector, so it
//! is never torn.
//!
//! A file that is lost or damaged is replaced by the other. If neither can be read and one has a
//! wrong checksum, the start is refused: the files lie on the same disk as the log, and that disk
//! has just proved unreliable. An operator who knows better removes them; then the log may have
//! lost its end.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use bytes::{Buf, BufMut};
use xxhash_rust::xxh3::xxh3_64;

use super::error::StartFailure;
use crate::event::Epoch;

/// What was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    /// Of this log.
    pub epoch: Epoch,
    /// Up to this event.
    pub head: u64,
    /// Up to this callback in quarantine.
    pub quarantine_next: u64,
    /// The commits with numbers below this, whatever they did.
    pub commit_next: u64,
}

impl Acknowledged {
    const BYTES: usize = 40;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut rest = &mut bytes[..];
        [
            self.head,
            self.quarantine_next,
            self.commit_next,
            self.epoch.0,
        ]
        .into_iter()
        .for_each(|number| rest.put_u64_le(number));
        let checksum = xxh3_64(&bytes[..Self::BYTES - 8]);
        bytes[Self::BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// What two files of one log say together. Either may be behind.
    fn joined(self, other: Self) -> Self {
        Self {
            epoch: self.epoch,
            head: self.head.max(other.head),
            quarantine_next: self.quarantine_next.max(other.quarantine_next),
            commit_next: self.commit_next.max(other.commit_next),
        }
    }

    /// `None` if the bytes are no such numbers.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut number = || rest.try_get_u64_le().ok();
        let (head, quarantine_next, commit_next) = (number()?, number()?, number()?);
        let acknowledged = Self {
            head,
            quarantine_next,
            commit_next,
            epoch: Epoch(number()?),
        };
        (acknowledged.encode() == bytes).then_some(acknowledged)
    }
}

/// The files, to write to.
#[derive(Debug)]
pub(super) struct AcknowledgedFiles([File; 2]);

impl AcknowledgedFiles {
    pub(super) const FILE: &str = "acknowledged";
    pub(super) const FILES: [&str; 2] = [Self::FILE, "acknowledged.copy"];

    /// What was acknowledged, as the files of a data directory say; `None` if there are none.
    pub(super) fn read(directory: &Path) -> Result<Option<Acknowledged>, StartFailure> {
        let (mut acknowledged, mut damaged) = (None::<Acknowledged>, None);
        for name in Self::FILES {
            let path = directory.join(name);
            let bytes = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            match (Acknowledged::parse(&bytes), acknowledged) {
                // A process that ended between creating and writing it had acknowledged nothing.
                (None, _) if bytes.is_empty() => {}
                (None, _) => damaged = damaged.or(Some(path)),
                (found, None) => acknowledged = found,
                (Some(copy), Some(found)) if copy.epoch == found.epoch => {
                    acknowledged = Some(found.joined(copy));
                }
                _ => {} // a copy of another log's
            }
        }
        match (acknowledged, damaged) {
            (None, Some(file)) => Err(StartFailure::Acknowledged(file)),
            (acknowledged, None) => Ok(acknowledged),
            (acknowledged, Some(file)) => {
                tracing::warn!(path = %file.display(), "damaged, and replaced by what its other copy says");
                Ok(acknowledged)
            }
        }
    }

    /// Opens the files in the data directory, creating them if need be.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let [file, copy] = Self::FILES.map(|name| {
            File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(directory.join(name))
        });
        Ok(Self([file?, copy?]))
    }

    /// Writes the first numbers, durably: from here on a store without what they name is not whole.
    pub(super) fn begin(&self, directory: &Path, acknowledged: Acknowledged) -> io::Result<()> {
        for file in &self.0 {
            file.write_all_at(&acknowledged.encode(), 0)?;
            file.set_len(Acknowledged::BYTES as u64)?;
            file.sync_all()?;
        }
        File::open(directory)?.sync_all()
    }

    /// Raises the numbers. A failure costs this second record, not the events, which are durable
    /// already.
    pub(super) fn raise(&self, acknowledged: Acknowledged) {
        for (file, name) in self.0.iter().zip(Self::FILES) {
            if let Err(error) = file.write_all_at(&acknowledged.encode(), 0) {
                tracing::warn!(%error, "cannot note what was acknowledged in the file `{name}`");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_give_back_its_numbers_and_no_flipped_bit_passes(epoch: u64, head: u64, quarantine_next: u64, commit_next: u64, bit in 0..320usize) {
            let mark = Acknowledged { epoch: Epoch(epoch), head, quarantine_next, commit_next };
            let mut bytes = mark.encode();
            prop_assert_eq!(Acknowledged::parse(&bytes), Some(mark));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Acknowledged::parse(&bytes), None);
            prop_assert_eq!(Acknowledged::parse(&mark.encode()[..bit / 8]), None);
        }
    }

    #[test]
    fn either_file_tells_what_was_acknowledged_and_a_copy_of_another_log_tells_nothing() {
        let mark = |epoch, number| Acknowledged {
            epoch: Epoch(epoch),
            head: number,
            quarantine_next: number,
            commit_next: number,
        };
        let (low, high, other) = (mark(1, 5), mark(1, 6), mark(2, 7));
        for (marks, told) in [
            ([None, None], None),
            ([Some(low), None], Some(low)),
            ([None, Some(low)], Some(low)),
            ([Some(low), Some(high)], Some(high)),
            ([Some(high), Some(low)], Some(high)),
            ([Some(low), Some(other)], Some(low)),
        ] {
            let directory = tempfile::tempdir().unwrap();
            for (name, mark) in AcknowledgedFiles::FILES.iter().zip(marks) {
                let bytes = mark.map(|mark| mark.encode().to_vec());
                std::fs::write(directory.path().join(name), bytes.unwrap_or_default()).unwrap();
            }
            let read = AcknowledgedFiles::read(directory.path()).unwrap();
            assert_eq!(read, told, "{marks:?}");
        }
    }
}
