//! What a node tells the others of itself every two seconds. It only informs: nothing is decided by it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cluster::{Author, FORMAT, Position};

/// See the module's description. As JSON, so that a person can read it on the subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Presence {
    /// The node since its start.
    pub author: String,
    /// What runs there.
    pub version: String,
    /// The newest format of frames that it reads.
    pub format: u16,
    /// The last message of the stream that it has seen,
    pub seen: u64,
    /// the last frame that it has applied,
    pub frame: u64,
    /// and that frame's chain: the whole log is the same wherever this is.
    pub chain: String,
}

impl Presence {
    pub(super) fn of(author: Author, position: &Position) -> Self {
        Self {
            author: format!("{:032x}", author.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            seen: position.seen,
            frame: position.frame,
            chain: format!("{:016x}", position.chain),
        }
    }

    pub(super) fn encode(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("a struct of texts and numbers is always JSON")
            .into()
    }

    /// `None` if another version says it otherwise.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Whether both have applied the same frame, and have another log.
    pub(super) fn contradicts(&self, other: &Self) -> bool {
        self.frame == other.frame && self.chain != other.chain
    }
}
