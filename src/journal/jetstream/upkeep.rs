//! What the driver looks at beside the protocol: whether the stream is still the one that it was, and what of it nobody needs any
//! more.

use std::time::{Duration, Instant};

use super::driver::Driver;
use crate::{nats::StreamState, store::Publish};

/// How long a leader of the stream that is cut off from the others may take itself for the leader, and somewhat more.
pub(super) const STALE_MAX: Duration = Duration::from_secs(15);
/// Messages are removed from the stream when so many hold nothing that is retained: a removal costs each NATS server some work.
const PURGED_MIN: u64 = 100;
/// And this part of all messages.
const PURGED_SHARE: u64 = 8;

impl<P: Publish> Driver<P> {
    pub(super) fn tend(&mut self) {
        if let Err(error) = self.replica.tend() {
            return self.halt(&error.to_string());
        }
        self.state.set_complete(self.replica.is_complete());
        self.replica.tend_older(self.state.problem().is_none());
        let Some(stream) = self.stream.state().stream else {
            return;
        };
        if self.halted.is_none() {
            self.compare(&stream);
            self.compare_heard();
            self.purge(&stream);
        }
        if self.may_start_anew && self.is_left_behind(&stream) {
            self.may_start_anew = false;
            self.state.start_anew();
        }
    }

    /// Whether the next message is removed from the stream.
    pub(super) fn is_left_behind(&self, stream: &StreamState) -> bool {
        let position = self.protocol.position();
        (stream.epoch, stream.id) == (position.epoch, self.stream_id)
            && stream.first > position.seen.saturating_add(1)
    }

    /// Has the stream forget what nobody needs any more. One node does it, now and then.
    fn purge(&self, stream: &StreamState) {
        let through = self.replica.unneeded_up_to();
        let count = through.saturating_add(1).saturating_sub(stream.first);
        let worth = stream.last.saturating_sub(stream.first) / PURGED_SHARE;
        if self.state.is_writer() && count >= worth.max(PURGED_MIN) {
            self.stream.purge(through);
        }
    }

    /// Finds a stream that is not the one that this node has followed, by its epoch, its identity and its beginning.
    pub(super) fn compare(&mut self, stream: &StreamState) {
        let position = self.protocol.position();
        let (has, epoch) = (position.seen, position.epoch);
        self.state
            .set_stream(stream.last, stream.bytes, stream.bytes_max);
        if stream.epoch != epoch {
            let other = stream.epoch;
            self.halt(&format!(
                "hole: the stream has another log, {other}, and this node has {epoch}: it was made anew, or is another cluster's"
            ));
        } else if stream.id != self.stream_id {
            self.halt(
                "hole: the stream was made anew, with the log that it had, and this node has read another one: start it with another \
                 --data-dir, empty",
            );
        } else if self.is_left_behind(stream) {
            let first = stream.first;
            self.halt(&format!(
                "hole: the stream begins with message {first}, and this node has it up to message {has}"
            ));
        }
    }

    /// Finds a stream that has lost its end, or was restored from an older copy. A leader that is cut off says too little, too, for
    /// ten seconds at most.
    pub(super) fn compare_end(&mut self, last: Option<u64>) {
        let has = self.protocol.position().seen;
        let Some(last) = last.filter(|last| *last < has) else {
            self.ahead_since = None;
            return;
        };
        let since = *self.ahead_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= STALE_MAX {
            self.halt(&format!(
                "hole: the stream ends with message {last}, and this node has message {has}"
            ));
        }
    }

    /// The connection to NATS is there, or is lost.
    pub(super) fn connected(&mut self, is_connected: bool) {
        if is_connected == self.state.is_connected() {
            return; // as it says at the start
        }
        if is_connected {
            tracing::info!("connected to NATS again");
            self.metrics
                .cluster_reconnects
                .with_label_values(&["connection"])
                .inc();
            self.show();
        } else {
            tracing::warn!(
                "the connection to NATS is lost: reads go on, callbacks are answered 503 until it is back"
            );
        }
        self.state.set_connected(is_connected);
    }
}
