//! A stream's own entry in the registry: it reports the stream's progress and end to operators, metrics and the log. Dropping it
//! removes the subscription.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    ended::EndedSubscriptions,
    info::{SubscriptionInfo, SubscriptionState},
    message::{StreamEnd, Withdrawal},
    open_subscriptions::OpenSubscriptions,
    stream_log::{StreamLog, StreamSummary},
};
use crate::{
    credentials::Client,
    event::{Filter, Record, Sequence},
    hub::Hub,
    metrics::Metrics,
    store::Clock,
};

/// The causes of streams that end without being polled.
const REPLACED: &str = "replaced";
const BY_ADMIN: &str = "ended_by_admin";

/// The parts of the broker that an entry reports to.
#[derive(Clone, Debug)]
pub(super) struct Reporting {
    pub hub: Arc<Hub>,
    pub clock: Arc<Clock>,
    pub metrics: Arc<Metrics>,
    pub log: Arc<StreamLog>,
    pub ended: Arc<EndedSubscriptions>,
}

#[derive(Debug)]
pub(super) struct RegistryEntry {
    open: Arc<Mutex<OpenSubscriptions>>,
    number: u64,
    info: Arc<SubscriptionInfo>,
    reporting: Reporting,
    cause: &'static str,
    /// The log has a line about the start of this stream, and so gets one about its end.
    is_logged: bool,
    /// Deliveries that are not yet in the metric, which all streams share.
    uncounted: u64,
    /// The next delivery is the first of a batch from the live path.
    is_first: bool,
}

impl RegistryEntry {
    pub(super) fn new(
        open: Arc<Mutex<OpenSubscriptions>>,
        number: u64,
        info: Arc<SubscriptionInfo>,
        reporting: Reporting,
    ) -> Self {
        Self {
            open,
            number,
            info,
            reporting,
            cause: "client_gone",
            is_logged: false,
            uncounted: 0,
            is_first: false,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.info.id
    }

    /// The next deliveries were read together from the live path.
    pub(super) fn begin_batch(&mut self) {
        self.is_first = true;
    }

    /// Every event that was read is delivered.
    pub(super) fn end_batch(&mut self) {
        if self.uncounted > 0 {
            self.reporting
                .metrics
                .deliveries
                .inc_by(std::mem::take(&mut self.uncounted));
        }
    }

    pub(super) fn delivered(&mut self, record: &Record) {
        self.reached(record.sequence());
        self.info.count_delivery();
        self.uncounted += 1;

        if let Some(origin) = record.origin() {
            let client = self.info.client.as_ref().map(|client| &*client.name);
            origin.delivered(
                record.received_at_micros(),
                &self.info.id,
                client,
                self.info.call,
            );
        }

        // The first event of a batch has waited longest; the others follow at once.
        if std::mem::take(&mut self.is_first) && self.info.state() == SubscriptionState::Live {
            let micros = self.reporting.clock.now_micros() - record.received_at_micros();
            self.reporting
                .metrics
                .delivery_seconds
                .observe(micros.max(0) as f64 / 1e6); // a clock set back reads as 0
        }
    }

    pub(super) fn review(
        &self,
        verdict: impl FnOnce(Option<&Client>, &Filter) -> Option<Withdrawal>,
    ) -> Option<Withdrawal> {
        verdict(self.info.client.as_deref(), &self.info.filter)
    }

    pub(super) fn withdrawal(&self) -> Option<Withdrawal> {
        self.info.withdrawal()
    }

    pub(super) fn reached(&self, position: Sequence) {
        self.info.set_position(position);
    }

    pub(super) fn seated(&self, seat: Option<usize>) {
        self.info.set_seat(seat);
    }

    pub(super) fn frame_sent(&self) {
        self.info.frame_sent();
    }

    pub(super) fn more_asked(&self) {
        self.info.more_asked();
    }

    pub(super) fn subscribed(&mut self, position: Sequence) {
        self.is_logged = true;
        let lag = self.lag(position);
        self.reporting.log.subscribed(&self.info.at(position, lag));
    }

    pub(super) fn fell_behind(&self, position: Sequence, lag: u64) {
        self.reporting.log.fell_behind(&self.info.at(position, lag));
    }

    pub(super) fn lost(&self, kind: &'static str, after: Sequence, through: Sequence) {
        let Reporting { log, metrics, .. } = &self.reporting;
        log.lost(&self.info.reader(), kind, after, through, metrics);
    }

    pub(super) fn set_state(&self, state: SubscriptionState) {
        let gauge = |state: SubscriptionState| {
            self.reporting
                .metrics
                .subscriptions
                .with_label_values(&[state.as_str()])
        };
        gauge(self.info.state()).dec();
        gauge(state).inc();
        self.info.set_state(state);
    }

    pub(super) fn ended(&mut self, end: Option<&StreamEnd>) {
        self.cause = match end {
            None => "completed",
            Some(StreamEnd::Expired) => "expired",
            Some(StreamEnd::Draining) => "draining",
            Some(StreamEnd::Erased) => "erased",
            Some(StreamEnd::Corrupt(_)) => "corrupt",
            Some(StreamEnd::Withdrawn(Withdrawal::Place)) => REPLACED,
            Some(StreamEnd::Withdrawn(Withdrawal::Stream)) => BY_ADMIN,
            Some(StreamEnd::Withdrawn(_)) => "withdrawn",
            Some(StreamEnd::DeadlineExceeded) => "deadline",
        };
    }

    fn lag(&self, position: Sequence) -> u64 {
        self.reporting.hub.head().0.saturating_sub(position.0)
    }

    /// Logs the end, and keeps it for operators.
    fn note_end(&self) {
        let Reporting {
            hub,
            clock,
            log,
            ended,
            ..
        } = &self.reporting;
        let last = self.info.listed(self.number, hub);
        let (position, lag, now) = (last.position, self.lag(last.position), clock.now());
        log.ended(
            &self.info.reader(),
            StreamSummary {
                subscription_id: &self.info.id,
                cause: self.cause,
                position,
                lag,
                delivered: last.delivered,
                open_seconds: now.as_second() - self.info.opened_at.as_second(),
            },
        );
        ended.note(last, lag, now, self.cause);
    }
}

impl Drop for RegistryEntry {
    fn drop(&mut self) {
        self.end_batch();
        let removed = self.open.lock().remove(self.number);
        drop(removed); // outside the lock

        // A stream that was not polled again does not know why it ended.
        match self.withdrawal() {
            Some(Withdrawal::Place) => self.cause = REPLACED,
            Some(Withdrawal::Stream) => self.cause = BY_ADMIN,
            _ => {}
        }

        let metrics = &self.reporting.metrics;
        metrics
            .subscriptions
            .with_label_values(&[self.info.state().as_str()])
            .dec();
        metrics
            .subscriptions_ended
            .with_label_values(&[self.cause])
            .inc();
        if self.is_logged {
            self.note_end();
        }
    }
}
