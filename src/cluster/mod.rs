//! Several nodes with one log: what they tell each other, which message of the stream counts, and who writes next. Pure.
//!
//! A stream outside of the broker orders and replicates *frames*. A frame is one commit of the log as a message, with every
//! decision already made, so that each node that follows the stream has the same log. Nothing here knows a network, a disk or a
//! clock: the journal that drives it has those. A broker that is alone uses the [`Totals`] of it only.
//!
//! - [`Frame`] is the message, with its [`Totals`] and [`Entries`].
//! - [`judge`] is the apply rule: what a message means for a node at a [`Position`].
//! - [`Protocol`] is one node's part: who writes, what to do while the fate of a frame is not known, whom to hand a group to.
//! - `hearing` is what a node has to hear of the others before it writes. [`StreamId`] says which stream they speak of.
//!
//! The rule and the protocol are checked in every order of their steps at small sizes, and at random at larger ones (`tests`).

mod totals;
mod entry;
mod frame;
mod apply_rule;
mod stream_id;
mod step;
mod hearing;
mod protocol;

pub use apply_rule::{Beginning, Hole, Join, Position, Verdict, forgotten_before, join, judge};
pub use entry::{Entries, Entry, FrameError};
pub use frame::{Author, Contents, Encoded, FORMAT, Frame, Header, Link};
pub use protocol::Protocol;
pub use step::{Group, GroupId, Input, Limits, Output, Refusal, Reply, Stop, ToldBy};
pub use stream_id::StreamId;
pub use totals::{Correction, Totals, Trust};

#[cfg(test)]
mod tests;
