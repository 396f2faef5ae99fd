//! When a broker that asks the vendor was last there. A small file in the data directory keeps it,
//! so that a start knows how long it was away. It only informs: without it, nothing is known of an
//! outage. A log that was restored has been away since its newest commit.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use super::{Store, directory::LAST_THERE as FILE};
use crate::{event::Epoch, files};

/// Far more than the file has.
const BYTES_MAX: u64 = 4_096;

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
struct LastThere {
    epoch: String,
    at_micros: i64,
}

impl Store {
    /// Notes that a broker is there now, by the log's clock.
    pub fn note_there(&self) -> io::Result<()> {
        note(&self.path, self.epoch, self.clock.now_micros())
    }

    /// When a broker was last there, by the log's clock in microseconds since 1970; `None` if nothing tells.
    pub fn last_there(&self) -> Option<i64> {
        let bytes = files::read(&self.path.join(FILE), BYTES_MAX).ok()?;
        let there: LastThere = serde_json::from_slice(&bytes).ok()?;
        // One of another log was copied there.
        (there.epoch == self.epoch.to_string()).then_some(there.at_micros)
    }
}

/// Notes that nobody has been there since the newest commit of a log that was restored. An empty one has none.
pub(super) fn note_restored(directory: &Path, epoch: Epoch, newest_micros: i64) -> io::Result<()> {
    if newest_micros == 0 {
        return Ok(());
    }
    note(directory, epoch, newest_micros)
}

fn note(directory: &Path, epoch: Epoch, at_micros: i64) -> io::Result<()> {
    let there = LastThere {
        epoch: epoch.to_string(),
        at_micros,
    };
    files::replace_private(directory, FILE, &serde_json::to_vec(&there)?)
}
