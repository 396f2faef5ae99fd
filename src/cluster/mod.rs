//! Several nodes with one log: what they tell each other, and which message of the stream counts. Pure.
//!
//! A stream outside of the broker orders and replicates *frames*. A frame is one commit of the log as a message, with every
//! decision already made, so that each node that follows the stream has the same log. Nothing here knows a network, a disk or a
//! clock: the journal that drives it has those.
//!
//! - [`Frame`] is the message, with its [`Totals`] and [`Entries`].
//! - [`judge`] is the apply rule: what a message means for a node at a [`Position`].

mod totals;
mod entry;
mod frame;
mod apply_rule;

pub use apply_rule::{Hole, Join, Position, Verdict, join, judge};
pub use entry::{Entries, Entry, FrameError};
pub use frame::{Author, Contents, Encoded, FORMAT, Frame, Header, Link};
pub use totals::{Correction, Totals, Trust};

#[cfg(test)]
mod tests;
