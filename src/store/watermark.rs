//! The newest place that was ever acknowledged, kept in a file of its own beside the database.
//!
//! The database takes damage in its journal for the torn end of a write, and drops what is behind it. Without a second
//! witness the log would go on from there: events that were acknowledged gone, and their cursors given out again. The file
//! is written after each sync and never synced itself, so a power cut can only make it too low, which refuses nothing.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use crate::event::Sequence;

const FILE: &str = "acknowledged";

#[derive(Debug)]
pub(super) struct Watermark(File);

impl Watermark {
    /// Opens the file in the data directory, creating it if need be, and reads the place; 0 if there is none.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Sequence)> {
        let path = directory.join(FILE);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut place = [0; 8];
        match file.read_exact_at(&mut place, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => place = [0; 8],
            Err(error) => return Err(error),
        }
        Ok((Self(file), Sequence(u64::from_le_bytes(place))))
    }

    /// Raises the place. A failure costs the witness, not the event, which is durable already.
    pub(super) fn raise(&self, place: Sequence) {
        if let Err(error) = self.0.write_all_at(&place.0.to_le_bytes(), 0) {
            tracing::warn!(%error, "cannot note the newest event in the file `acknowledged`");
        }
    }
}
