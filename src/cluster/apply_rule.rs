//! The apply rule: what a message of the stream means for a node. Pure, and total: any bytes have a verdict.
//!
//! It must never change. All nodes have to come to the same verdict about the same message, whatever their versions, or they would
//! have different logs. The condition under which a frame was published lies in the frame, so nothing rests on the stream's own
//! check of it.

use bytes::Bytes;

use super::{
    entry::FrameError,
    frame::{Frame, Header, Link},
    stream_id::StreamId,
    totals::Totals,
};
use crate::event::{Epoch, Sequence};

/// Up to where a node has the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The log that it has.
    pub epoch: Epoch,
    /// The sequence of the last message that it has seen.
    pub seen: u64,
    /// The sequence of the last frame that it has applied; 0 if there is none.
    pub frame: u64,
    /// The chain of that frame.
    pub chain: u64,
    /// The totals that it left.
    pub totals: Totals,
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next commit.
    Apply(Box<Frame>),
    /// Another frame was faster. Nobody applies it.
    Void,
    /// It does not belong to the log.
    Foreign,
    /// The stream is not what it was: this node must not go on.
    Hole(Hole),
    /// A later version has written it, and this one cannot go on.
    Upgrade {
        /// The format of the frame.
        format: u16,
    },
}

/// Why a node cannot follow the stream any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Hole {
    /// A message is missing.
    #[error("the stream goes on with message {found}, and {expected} is missing")]
    Jumped {
        /// The message that comes next.
        expected: u64,
        /// The message that came.
        found: u64,
    },
    /// The frame follows one that never was.
    #[error("a frame follows message {prev}, which was no frame here")]
    NeverSeen {
        /// What it says that it follows.
        prev: u64,
    },
    /// The frame follows another one at the same sequence, or was changed.
    #[error("the chain of a frame does not fit the frame before")]
    Chain,
    /// The frame was decided on another state.
    #[error("a frame was decided on other totals than this node has")]
    Totals,
    /// The frame is as it was written, and cannot be applied.
    #[error("{0}")]
    Malformed(FrameError),
}

impl Position {
    /// Before everything.
    pub fn start(epoch: Epoch) -> Self {
        Self {
            epoch,
            seen: 0,
            frame: 0,
            chain: Link::start(epoch).chain,
            totals: Totals::EMPTY,
        }
    }

    /// What the next frame has to follow.
    pub fn link(&self) -> Link {
        Link {
            epoch: self.epoch,
            frame: self.frame,
            chain: self.chain,
        }
    }

    /// Behind a frame that was applied, which is the next message.
    #[must_use]
    pub fn behind(&self, frame: &Frame) -> Self {
        let sequence = self.seen.saturating_add(1);
        Self {
            epoch: self.epoch,
            seen: sequence,
            frame: sequence,
            chain: frame.header.chain,
            totals: frame.contents.after,
        }
    }

    /// Behind the next message, which was passed over.
    #[must_use]
    pub fn past(&self) -> Self {
        Self {
            seen: self.seen.saturating_add(1),
            ..*self
        }
    }
}

/// What a message at `sequence` means for a node at `position`.
pub fn judge(position: &Position, sequence: u64, message: &Bytes) -> Verdict {
    let expected = position.seen.saturating_add(1);
    if sequence != expected {
        let found = sequence;
        return Verdict::Hole(Hole::Jumped { expected, found });
    }
    let Some(header) = Header::parse(message).filter(|it| it.epoch == position.epoch) else {
        return Verdict::Foreign;
    };
    if header.is_newer() {
        let format = header.format;
        return Verdict::Upgrade { format };
    }

    if header.prev < position.frame {
        return Verdict::Void;
    }
    if header.prev > position.frame {
        return Verdict::Hole(Hole::NeverSeen { prev: header.prev });
    }
    if Frame::chain_of(message, position.chain) != header.chain {
        return Verdict::Hole(Hole::Chain);
    }
    match Frame::parse(message) {
        Err(problem) => Verdict::Hole(Hole::Malformed(problem)),
        // The first frame says where the log begins: an imported one has totals before it.
        Ok(frame) if position.frame > 0 && frame.contents.before != position.totals => {
            Verdict::Hole(Hole::Totals)
        }
        Ok(frame) => Verdict::Apply(Box::new(frame)),
    }
}

/// Where a node without a log begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// From here on the rule holds.
    At(Position),
    /// Not by this message, perhaps by the next one.
    Next,
    /// A later version has written it.
    Upgrade {
        /// The format of the frame.
        format: u16,
    },
}

/// Finds where a node without a log begins in a stream whose first messages were removed, by the messages in order from the first
/// one on.
///
/// It begins *behind* the first frame that is left: without the chain of the frame before, nothing proves its entries, but the next
/// frame proves its chain and its totals. So a stream must keep one frame before the first that has something retained. The genesis
/// follows nothing, and is applied by [`judge`].
pub fn join(epoch: Epoch, sequence: u64, message: &Bytes) -> Join {
    let Some(header) = Header::parse(message).filter(|it| it.epoch == epoch) else {
        return Join::Next;
    };
    if header.is_newer() {
        let format = header.format;
        return Join::Upgrade { format };
    }
    let Some(before) = sequence.checked_sub(1) else {
        return Join::Next;
    };
    let Ok(frame) = Frame::parse(message) else {
        return Join::Next;
    };
    if header.prev == 0 {
        // An imported log has totals before its first frame.
        return Join::At(Position {
            seen: before,
            totals: frame.contents.before,
            ..Position::start(epoch)
        });
    }
    Join::At(Position {
        epoch,
        seen: sequence,
        frame: sequence,
        chain: header.chain,
        totals: frame.contents.after,
    })
}

/// What a stream says to a node that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Which stream it is.
    pub stream: StreamId,
    /// Where a node without a log begins.
    pub position: Position,
    /// The sequence of the stream's first message.
    pub first: u64,
    /// Retention has forgotten all events before this one.
    pub first_available: Sequence,
}

impl Beginning {
    /// Of a stream from which nothing was removed.
    pub fn whole(stream: StreamId, epoch: Epoch) -> Self {
        Self {
            stream,
            position: Position::start(epoch),
            first: 1,
            first_available: Sequence(0),
        }
    }

    /// Whether a node that has come to `log` cannot follow any more, and retention has forgotten all of its events. Then it lacks
    /// nothing that the stream does not have. A stream that was shortened by hand has forgotten nothing by that.
    pub fn leaves_behind(&self, log: &Position) -> bool {
        let is_removed = log.frame.saturating_add(1) < self.first;
        let is_forgotten = |head: Sequence| head < self.first_available;
        log.epoch == self.position.epoch
            && is_removed
            && log.totals.head().is_some_and(is_forgotten)
    }
}

/// Before which event retention had forgotten all when a message of the stream was decided; `None` if it is no frame of this log.
///
/// A frame that lost a race says it, too: what it was decided on was applied.
pub fn forgotten_before(epoch: Epoch, message: &Bytes) -> Option<Sequence> {
    let header = Header::parse(message)?;
    let frame = Frame::parse(message).ok()?;
    let is_ours = header.epoch == epoch && !header.is_newer();
    is_ours.then_some(Sequence(frame.contents.before.first_available))
}
