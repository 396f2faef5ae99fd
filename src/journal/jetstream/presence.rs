//! What a node tells the others of itself every two seconds, and when it is connected again. A node that was away heeds it before it
//! writes; else it only informs.

use std::time::Instant;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::common::Common;
use crate::cluster::{Author, FORMAT, Position, StreamId};

/// See the module's description. As JSON, so that a person can read it on the subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Presence {
    /// The node since its start.
    pub author: String,
    /// What runs there.
    pub version: String,
    /// The newest format of frames that it reads.
    pub format: u16,
    /// The stream that its log is read from, if that says which it is. Frames of another one say nothing about this one's.
    pub stream: Option<String>,
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
    /// What its machine's clock says, in microseconds since 1970.
    pub clock_micros: Option<i64>,
    /// What has to be the same on all nodes.
    pub common: Option<Common>,
}

/// The newest frame that counts and that another node has.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The node that has said so.
    pub from: String,
    /// Since when the stream ends before it.
    pub lacks_since: Option<Instant>,
}

/// In what two nodes differ and must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// They have another log at the same frame.
    Chain,
    /// They have read another stream.
    Stream,
}

impl Mismatch {
    /// As people and scripts read it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Chain => "chain",
            Self::Stream => "stream",
        }
    }
}

impl Presence {
    pub(super) fn of(
        author: Author,
        stream: StreamId,
        position: &Position,
        is_ready: bool,
        clock_micros: i64,
        common: Common,
    ) -> Self {
        Self {
            author: format!("{:032x}", author.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            format: FORMAT,
            stream: (stream != StreamId::NONE).then(|| stream.to_string()),
            seen: position.seen,
            frame: position.frame,
            chain: format!("{:016x}", position.chain),
            place: position.totals.head().map(|place| place.0),
            ready: Some(is_ready),
            clock_micros: Some(clock_micros),
            common: Some(common),
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

    /// In what both differ and must not.
    pub(super) fn mismatch(&self, other: &Self) -> Option<Mismatch> {
        if self.stream != other.stream {
            return Some(Mismatch::Stream);
        }
        let differs = self.frame == other.frame && self.chain != other.chain;
        differs.then_some(Mismatch::Chain)
    }

    /// What else differs and should not, as far as both tell it.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let both = self.common.as_ref().zip(other.common.as_ref());
        both.map_or_else(Vec::new, |(mine, theirs)| mine.differences(theirs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Epoch;

    fn said(stream: u64) -> Presence {
        let (position, common) = (Position::start(Epoch(7)), Common::default());
        Presence::of(Author(1), StreamId(stream), &position, true, 5, common)
    }

    #[test]
    fn a_node_of_a_version_that_says_less_or_more_is_heard() {
        let mine = said(3);
        assert_eq!(Presence::parse(&mine.encode()), Some(mine.clone()));

        let mut said: serde_json::Value = serde_json::from_slice(&mine.encode()).unwrap();
        let fields = said.as_object_mut().unwrap();
        fields.remove("place");
        fields.remove("ready");
        fields.remove("stream");
        fields.remove("clock_micros");
        fields.remove("common");
        fields.insert("zone".into(), "b".into());
        let heard = Presence::parse(said.to_string().as_bytes()).unwrap();
        let expected = Presence {
            place: None,
            ready: None,
            stream: None,
            clock_micros: None,
            common: None,
            ..mine.clone()
        };
        assert_eq!(heard, expected);
        assert_eq!(mine.mismatch(&heard), Some(Mismatch::Stream));
        assert!(heard.differences(&mine).is_empty() && mine.differences(&heard).is_empty());
    }

    #[test]
    fn frames_are_compared_within_one_stream() {
        let of = |stream, chain: &str| Presence {
            chain: chain.to_owned(),
            ..said(stream)
        };
        let mine = of(3, "a");
        assert_eq!(mine.mismatch(&of(3, "a")), None);
        assert_eq!(mine.mismatch(&of(3, "b")), Some(Mismatch::Chain));
        assert_eq!(mine.mismatch(&of(4, "b")), Some(Mismatch::Stream));
    }
}
