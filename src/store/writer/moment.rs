//! The time of a commit. The clock is read once, so that all decisions of a commit agree, and none of them reads it.

use std::time::Duration;

use crate::store::clock::{Adoption, Clock, Trust};

/// What the log's clock says when a commit is decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// In microseconds since 1970.
    pub now_micros: i64,
    /// Whether ages are known: not before the machine's clock is believed.
    pub is_settled: bool,
    pub trust: Trust,
    /// The clock was changed, and this commit has to note it.
    pub adoption: Option<Adoption>,
}

impl Moment {
    pub(super) fn now(clock: &Clock, adoption: Option<Adoption>) -> Self {
        Self {
            now_micros: clock.now_micros(),
            is_settled: clock.is_settled(),
            trust: clock.trust(),
            adoption,
        }
    }
}

/// A time in microseconds; the most there is for one that is longer.
pub(super) fn micros_of(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
