//! How long a node is behind: since when the stream has the oldest message that the node has not seen. Pure: the driver's clock is
//! handed in, so no clock of another machine counts.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Ends of the stream that are remembered. One is heard each two seconds, so a node that is behind by more than two minutes has the
/// time of the last of these for all that comes later.
const ENDS_MAX: usize = 64;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// When the stream was first heard to end there: those that the node has not seen, in order.
    ends: VecDeque<(Instant, u64)>,
}

impl Lag {
    /// The stream ends with this message.
    pub(super) fn ends(&mut self, now: Instant, last: u64) {
        let is_full = self.ends.len() >= ENDS_MAX;
        match self.ends.back_mut() {
            Some((_, end)) if *end >= last => {}
            Some((_, end)) if is_full => *end = last,
            _ => self.ends.push_back((now, last)),
        }
    }

    /// The node has seen everything up to this message.
    pub(super) fn seen(&mut self, sequence: u64) {
        while self.ends.front().is_some_and(|(_, end)| *end <= sequence) {
            self.ends.pop_front();
        }
    }

    /// How long it is behind; zero if it has seen all that was heard of.
    pub(super) fn time(&self, now: Instant) -> Duration {
        let oldest = self.ends.front();
        oldest.map_or(Duration::ZERO, |(at, _)| now.saturating_duration_since(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_node_is_behind_since_the_stream_had_the_oldest_message_that_it_lacks() {
        let start = Instant::now();
        let mut lag = Lag::default();
        assert_eq!(lag.time(start), Duration::ZERO);
        for second in 0..10_u32 {
            lag.ends(start + SECOND * second, u64::from(second) + 1);
        }
        let now = start + SECOND * 10;
        assert_eq!(lag.time(now), SECOND * 10);
        lag.seen(4);
        assert_eq!(lag.time(now), SECOND * 6);
        // The same end again is not new.
        lag.ends(now, 10);
        lag.seen(9);
        assert_eq!(lag.time(now), SECOND);
        lag.seen(10);
        assert_eq!(lag.time(now), Duration::ZERO);
    }

    #[test]
    fn one_that_stands_still_takes_no_more_memory_and_is_behind_for_ever_longer() {
        let start = Instant::now();
        let mut lag = Lag::default();
        for second in 0..10_000_u32 {
            lag.ends(start + SECOND * second, u64::from(second) + 1);
        }
        assert_eq!(lag.ends.len(), ENDS_MAX);
        let now = start + SECOND * 10_000;
        assert_eq!(lag.time(now), SECOND * 10_000);
        lag.seen(9_999);
        assert!(lag.time(now) > Duration::ZERO);
        lag.seen(10_000);
        assert_eq!(lag.time(now), Duration::ZERO);
    }
}
