//! Pauses between tries: short first, then longer, and never longer than a second. Pure.

use std::time::Duration;

/// An election takes seconds, and ends at any moment of them.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// How long to wait before the next try.
    pub(super) fn next(&mut self) -> Duration {
        let pause = SHORTEST.saturating_mul(1 << self.tries.min(10));
        self.tries = self.tries.saturating_add(1);
        pause.min(LONGEST)
    }

    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }
}
