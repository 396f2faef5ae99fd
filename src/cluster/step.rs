//! What goes into the protocol of a node, and what comes out. Pure.

use bytes::Bytes;

use super::{
    apply_rule::Hole,
    entry::FrameError,
    frame::{Author, Contents, Encoded, Frame},
};

/// Names a group of drafts on this node. They rise in the order in which the groups come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u64);

/// A group of drafts that wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Its number.
    pub id: GroupId,
    /// How many drafts it has.
    pub drafts: usize,
    /// How many bytes they have.
    pub bytes: usize,
    /// Another node has handed it over. It is never handed on, so it cannot go in a circle.
    pub is_from_peer: bool,
}

/// How much goes into one frame. A group that is larger has a frame of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Most drafts.
    pub drafts_max: usize,
    /// Most bytes.
    pub bytes_max: usize,
}

/// Something that has happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Drafts have come.
    Group(Group),
    /// The answer to [`Output::Decide`].
    Decided {
        /// As in the output.
        on: u64,
        /// What to write; `None` if what is applied says it all: then all drafts repeat it.
        contents: Option<Box<Contents>>,
    },
    /// The stream has this message.
    Message {
        /// Its sequence.
        sequence: u64,
        /// The message.
        bytes: Bytes,
    },
    /// A frame was stored.
    Acked {
        /// The frame's.
        chain: u64,
        /// Where the stream has it.
        sequence: u64,
    },
    /// A frame was refused, because the stream has something behind what it was expected to end with.
    Refused {
        /// The frame's.
        chain: u64,
    },
    /// Nobody has said what became of a frame: no answer in time, or none that says it.
    Unanswered {
        /// The frame's.
        chain: u64,
    },
    /// What became of a group that was handed to the writer.
    Replied {
        /// The group.
        group: GroupId,
        /// What the writer said, if anything.
        reply: Reply,
    },
    /// The callers of this group do not wait any longer.
    GiveUp(GroupId),
    /// No frame has come for so long that it is time for a tick.
    Quiet,
    /// No frame has come for so long that the writer, or this node's connection, must be gone.
    Silent,
    /// This node has heard no node for so long, not even itself, that others may have gone on without it.
    Deaf,
    /// Another node of this stream says that it has applied this frame.
    Heard {
        /// Its sequence in the stream.
        frame: u64,
    },
    /// Since it was [`Self::Deaf`], or has started, every node that is there has said what it has.
    Listened {
        /// The newest message that the stream is known to have had.
        last: u64,
    },
}

/// What became of a group that was handed to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reply {
    /// It is in the log, by the time that one has applied this message of the stream.
    Written {
        /// The message's sequence.
        through: u64,
    },
    /// That node is not the writer, or stops.
    NotWriter,
    /// No answer in time, or nobody listens.
    Nothing,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Decide about these groups on what is applied, and answer by [`Input::Decided`].
    Decide {
        /// The frame up to which the log is applied.
        on: u64,
        /// In the order in which they take effect.
        groups: Vec<GroupId>,
        /// Write a frame also if there is nothing to say.
        must_write: bool,
    },
    /// Publish these bytes, on condition that the stream's last sequence is `expected`.
    Publish {
        /// The condition.
        expected: u64,
        /// The frame.
        frame: Encoded,
    },
    /// Get this message from the stream now: the stream has one there.
    Fetch {
        /// Its sequence.
        sequence: u64,
    },
    /// Apply this frame to the log, and show it.
    Apply {
        /// Its sequence in the stream.
        sequence: u64,
        /// The frame.
        frame: Box<Frame>,
    },
    /// A message was passed over.
    Skipped {
        /// Its sequence in the stream.
        sequence: u64,
        /// A frame that was too late. Otherwise it is no frame of this log, which is worth an alarm.
        is_void: bool,
    },
    /// Hand this group to the writer, and answer by [`Input::Replied`].
    HandOver {
        /// The group.
        group: GroupId,
        /// The writer.
        to: Author,
    },
    /// Answer the group's callers, or the node that handed it over.
    Answer {
        /// The group.
        group: GroupId,
        /// For a reply to another node: see [`Reply::Written`].
        through: u64,
        /// Whose results to answer with.
        by: ToldBy,
    },
    /// Tell them that it was not done, or may not have been.
    Refuse {
        /// The group.
        group: GroupId,
        /// Why.
        why: Refusal,
    },
    /// Connect to another server, and follow from there.
    Reconnect,
    /// This node has stopped, for good: it serves what it has applied.
    Stopped(Stop),
}

/// Who has found the results of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToldBy {
    /// This node's last decision about it.
    ThisNode,
    /// The writer's reply.
    Writer,
}

/// Why a group is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Another node writes; only a group of a peer is refused so.
    NotWriter,
    /// Its time was up. It may still be written.
    GaveUp,
    /// This node has stopped.
    Stopped,
}

/// Why a node does not follow any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The stream is not what it was.
    Hole(Hole),
    /// A frame has a format that only a later version reads.
    Upgrade {
        /// The format.
        format: u16,
    },
    /// This node has decided what no node would apply.
    Unfit(FrameError),
}
