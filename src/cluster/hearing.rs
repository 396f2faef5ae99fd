//! What a node knows of the log by the other nodes' word alone, and whether it may write on what it has itself. Pure.
//!
//! A stream that was restored from an older copy looks whole to a node that has no more than the copy: one that was away, or that
//! joins empty. Only the other nodes know that there was more. So a node that has heard nobody for a while, as at its start, first
//! listens, and writes nothing where the stream ends before what it hears of.
//!
//! What it hears counts until the log goes on behind what it found, be it by another node. A cluster that writes is not stopped by a
//! node that comes back with more, or that announces what there never was: the one that has more finds a hole.

/// See the module's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Hearing {
    state: State,
    /// The newest frame that another node has said it has.
    newest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// It does not know yet what others have.
    Listening,
    /// It has listened. Frames up to this one were there before.
    Heeding(u64),
    /// The log has gone on since.
    Following,
}

impl Hearing {
    /// Of a node that has nothing to hear of.
    pub(super) const FOLLOWING: Self = Self {
        state: State::Following,
        newest: 0,
    };

    pub(super) fn listen(&mut self) {
        self.state = State::Listening;
    }

    /// Every node that is there has said what it has. The stream is known to have had this message.
    pub(super) fn has_listened(&mut self, last: u64) {
        if self.is_listening() {
            self.state = State::Heeding(last);
        }
    }

    pub(super) fn hear(&mut self, frame: u64) {
        if self.state != State::Following {
            self.newest = self.newest.max(frame);
        }
    }

    /// This frame was applied.
    pub(super) fn applied(&mut self, frame: u64) {
        if matches!(self.state, State::Heeding(last) if frame > last) {
            *self = Self::FOLLOWING;
        }
    }

    pub(super) fn is_listening(&self) -> bool {
        self.state == State::Listening
    }

    /// The newest frame that another node has, by its word; 0 if none has said so while it counted.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether nothing is known behind what this node has seen.
    pub(super) fn may_write(&self, seen: u64) -> bool {
        !self.is_listening() && self.newest <= seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heard_counts_until_the_log_has_gone_on_behind_what_was_there() {
        let mut hearing = Hearing::FOLLOWING;
        hearing.hear(9);
        assert!(hearing.may_write(3), "a cluster that runs is not stopped");

        hearing.listen();
        assert!(!hearing.may_write(3));
        hearing.hear(6);
        hearing.has_listened(4);
        assert!(!hearing.may_write(5) && hearing.may_write(6));
        hearing.applied(4);
        hearing.hear(u64::MAX);
        assert_eq!(hearing.newest(), u64::MAX, "frame 4 was there before");
        hearing.applied(5);
        assert_eq!(hearing, Hearing::FOLLOWING);
        hearing.has_listened(20);
        hearing.hear(9);
        assert!(hearing.may_write(5), "it did not listen");
    }
}
