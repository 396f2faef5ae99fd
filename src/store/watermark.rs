//! What was ever acknowledged, kept in a file of its own beside log and database, and once more in a copy of that.
//!
//! A damaged end of the log looks like the torn end of a write. Without a second witness the log would go on from there: what
//! was acknowledged gone, and its places and numbers given out again. The same goes for the database's journal. The files
//! are written after each sync and synced only when they are created, so a power cut can only make them too low, which refuses
//! nothing. Each lies within one sector, so it is never torn.
//!
//! A file whose checksum is wrong refuses the start, although a bit may have flipped beside a log that is whole: it lies on
//! the disk that the log lies on, and to go on without it would be to trust that disk just when it has proved not worth it.
//! A person who knows better removes the file, which costs a moment; a log that has lost its end costs what it has lost, and
//! then the other file tells.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::{Buf, BufMut};
use xxhash_rust::xxh3::xxh3_64;

use crate::event::Epoch;

/// What was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Of this log.
    pub epoch: Epoch,
    /// Up to this event.
    pub head: u64,
    /// Up to this callback in quarantine.
    pub quarantine_next: u64,
    /// The commits with numbers below this, whatever they did.
    pub commit_next: u64,
    /// The database's own writes with numbers below this are synced.
    pub database_next: u64,
}

impl Mark {
    const BYTES: usize = 48;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut rest = &mut bytes[..];
        [self.head, self.quarantine_next, self.commit_next, self.database_next, self.epoch.0]
            .into_iter()
            .for_each(|number| rest.put_u64_le(number));
        let checksum = xxh3_64(&bytes[..Self::BYTES - 8]);
        bytes[Self::BYTES - 8..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// What two marks of one log say together. Either may be behind; only the database's numbers may also fall.
    fn joined(self, other: Self) -> Self {
        Self {
            epoch: self.epoch,
            head: self.head.max(other.head),
            quarantine_next: self.quarantine_next.max(other.quarantine_next),
            commit_next: self.commit_next.max(other.commit_next),
            database_next: self.database_next.min(other.database_next),
        }
    }

    /// `None` if the bytes are not those of a mark.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut number = || rest.try_get_u64_le().ok();
        let (head, quarantine_next, commit_next, database_next) = (number()?, number()?, number()?, number()?);
        let mark = Self { head, quarantine_next, commit_next, database_next, epoch: Epoch(number()?) };
        (mark.encode() == bytes).then_some(mark)
    }
}

/// Why the file cannot be used.
pub(super) enum WatermarkError {
    Io(io::Error),
    Damaged(PathBuf),
}

impl From<io::Error> for WatermarkError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[derive(Debug)]
pub(super) struct Watermark([File; 2]);

impl Watermark {
    pub(super) const FILE: &str = "acknowledged";
    const FILES: [&str; 2] = [Self::FILE, "acknowledged.copy"];

    /// Whether a data directory has one of the files.
    pub(super) fn exists(directory: &Path) -> bool {
        Self::FILES.iter().any(|file| directory.join(file).metadata().is_ok_and(|metadata| metadata.len() > 0))
    }

    /// Opens the files in the data directory, creating them if need be; with the mark, if there is one.
    pub(super) fn open(directory: &Path) -> Result<(Self, Option<Mark>), WatermarkError> {
        let [file, copy] = Self::FILES.map(|name| open(directory.join(name)));
        let ((file, mark), (copy, copied)) = (file?, copy?);
        let mark = match (mark, copied) {
            (Some(mark), Some(copied)) if mark.epoch == copied.epoch => Some(mark.joined(copied)),
            (mark, copied) => mark.or(copied),
        };
        Ok((Self([file, copy]), mark))
    }

    /// Writes the first mark, durably: from here on a store without what it names is not whole.
    pub(super) fn begin(&self, directory: &Path, mark: Mark) -> io::Result<()> {
        for file in &self.0 {
            file.write_all_at(&mark.encode(), 0)?;
            file.sync_all()?;
        }
        File::open(directory)?.sync_all()
    }

    /// Raises the mark. A failure costs the witness, not the events, which are durable already.
    pub(super) fn raise(&self, mark: Mark) {
        for (file, name) in self.0.iter().zip(Self::FILES) {
            if let Err(error) = file.write_all_at(&mark.encode(), 0) {
                tracing::warn!(%error, "cannot note what was acknowledged in the file `{name}`");
            }
        }
    }
}

fn open(path: PathBuf) -> Result<(File, Option<Mark>), WatermarkError> {
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    // What ended between creating and writing it had acknowledged nothing.
    if bytes.is_empty() {
        return Ok((file, None));
    }
    let mark = Mark::parse(&bytes).ok_or(WatermarkError::Damaged(path))?;
    Ok((file, Some(mark)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mark_gives_back_its_numbers_and_no_flipped_bit_passes(epoch: u64, head: u64, quarantine_next: u64, commit_next: u64, database_next: u64, bit in 0..384usize) {
            let mark = Mark { epoch: Epoch(epoch), head, quarantine_next, commit_next, database_next };
            let mut bytes = mark.encode();
            prop_assert_eq!(Mark::parse(&bytes), Some(mark));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Mark::parse(&bytes), None);
            prop_assert_eq!(Mark::parse(&mark.encode()[..bit / 8]), None);
        }
    }

    #[test]
    fn either_file_tells_what_was_acknowledged_and_a_copy_of_another_log_tells_nothing() {
        let mark = |epoch, number| Mark {
            epoch: Epoch(epoch),
            head: number,
            quarantine_next: number,
            commit_next: number,
            database_next: number,
        };
        let (low, high, other) = (mark(1, 5), mark(1, 6), mark(2, 7));
        // The database's numbers may have fallen since the higher mark.
        let both = Mark { database_next: 5, ..high };
        for (marks, told) in [
            ([None, None], None),
            ([Some(low), None], Some(low)),
            ([None, Some(low)], Some(low)),
            ([Some(low), Some(high)], Some(both)),
            ([Some(high), Some(low)], Some(both)),
            ([Some(low), Some(other)], Some(low)),
        ] {
            let directory = tempfile::tempdir().unwrap();
            for (name, mark) in Watermark::FILES.iter().zip(marks) {
                let bytes = mark.map(|mark| mark.encode().to_vec());
                std::fs::write(directory.path().join(name), bytes.unwrap_or_default()).unwrap();
            }
            let opened = Watermark::open(directory.path()).map(|(_, mark)| mark);
            assert!(matches!(opened, Ok(mark) if mark == told), "{marks:?}");
        }
    }
}
