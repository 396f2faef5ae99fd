//! The switch of a live subscription back to the log: the ring has moved past its position, or the records that it had put away are
//! gone.
//!
//! Nothing is lost by it: the log has every event behind `position`, and the client learns how far behind it is.

use super::{
    info::SubscriptionState,
    message::Control,
    stream::{Phase, Subscription},
};

impl Subscription {
    pub(super) fn fall_behind(&mut self) {
        let head = self.sources.hub.head();
        // A stream that had not caught up has not announced that it is live.
        if self.catch_up_to.is_none() {
            let lag = head.0.saturating_sub(self.position.0);
            self.controls.push_back(Control::FellBehind {
                position: self.position,
                lag,
            });
            self.sources.metrics.fell_behind.inc();
            self.entry.set_state(SubscriptionState::CatchingUp);
        }

        self.catch_up_to = Some(head);
        self.entry.seated(None);
        self.phase = Phase::Planning;
    }
}
