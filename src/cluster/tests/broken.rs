//! Apply rules with a mistake each, to see that model and simulation find it.

use bytes::Bytes;

use crate::cluster::{Frame, Header, Hole, Position, Verdict, judge};

/// Applies what was decided on another state: no condition, and none of what implies it.
pub(super) fn without_condition(position: &Position, sequence: u64, message: &Bytes) -> Verdict {
    let is_next = sequence == position.seen + 1;
    let is_ours = Header::parse(message).is_some_and(|header| header.epoch == position.epoch);
    match Frame::parse(message) {
        Ok(frame) if is_next && is_ours => Verdict::Apply(Box::new(frame)),
        _ => judge(position, sequence, message),
    }
}

/// Believes that a frame follows what this node has, if only its place is right.
pub(super) fn without_chain(position: &Position, sequence: u64, message: &Bytes) -> Verdict {
    let verdict = judge(position, sequence, message);
    if verdict != Verdict::Hole(Hole::Chain) {
        return verdict;
    }
    match Frame::parse(message) {
        Ok(frame) if position.frame == 0 || frame.contents.before == position.totals => {
            Verdict::Apply(Box::new(frame))
        }
        _ => verdict,
    }
}
