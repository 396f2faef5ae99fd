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
    /// The place of its newest event. This and what follows are for people; a version that does not say them is heard all the same.
    pub place: Option<u64>,
    /// Whether it takes callbacks.
    pub ready: Option<bool>,
}

impl Presence {
    pub(super) fn of(author: Author, position: &Position, is_ready: bool) -> Self {
        Self {
            author: format!("{:032x}", author.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            seen: position.seen,
            frame: position.frame,
            chain: format!("{:016x}", position.chain),
            place: position.totals.head().map(|place| place.0),
            ready: Some(is_ready),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Epoch;

    #[test]
    fn a_node_of_a_version_that_says_less_or_more_is_heard() {
        let mine = Presence::of(Author(1), &Position::start(Epoch(7)), true);
        assert_eq!(Presence::parse(&mine.encode()), Some(mine.clone()));

        let mut said: serde_json::Value = serde_json::from_slice(&mine.encode()).unwrap();
        let fields = said.as_object_mut().unwrap();
        fields.remove("place");
        fields.remove("ready");
        fields.insert("zone".into(), "b".into());
        let heard = Presence::parse(said.to_string().as_bytes()).unwrap();
        let expected = Presence {
            place: None,
            ready: None,
            ..mine
        };
        assert_eq!(heard, expected);
    }
}
