//! Which stream the log of a node is read from. A small file in the data directory keeps it, written before the log begins.
//!
//! A stream that was made anew from a log has the same epoch, and other frames. A node whose file is lost is of no stream that says
//! which it is: it reads the stream into another directory.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use super::{Store, directory::FOLLOWED as FILE, open::sync_names};
use crate::{cluster::StreamId, files};

/// Far more than the file has.
const BYTES_MAX: u64 = 4_096;

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
struct Followed {
    stream: String,
}

impl Store {
    /// The stream that this log is read from.
    pub fn stream(&self) -> StreamId {
        stream_of(&self.path)
    }
}

/// The stream that the log of this directory is read from.
pub(super) fn stream_of(directory: &Path) -> StreamId {
    let said = files::read(&directory.join(FILE), BYTES_MAX).ok();
    let said = said.and_then(|bytes| serde_json::from_slice::<Followed>(&bytes).ok());
    said.and_then(|it| StreamId::parse(&it.stream))
        .unwrap_or(StreamId::NONE)
}

/// Notes it for a log that begins now.
pub(super) fn note(directory: &Path, stream: StreamId) -> io::Result<()> {
    let stream = stream.to_string();
    files::replace_private(directory, FILE, &serde_json::to_vec(&Followed { stream })?)?;
    sync_names(directory)
}
