//! What is kept for how long, and the forgetting of the rest: a little with each commit, more when the writer is idle.

use std::{ops::ControlFlow, time::Duration};

use super::{
    carry::{Carrier, Due},
    counts::{Counts, Reason},
    disk,
    moment::{Moment, micros_of},
    recording::{Commit, Leave},
};
use crate::{
    cluster::Totals,
    event::{Record, Sequence},
    metrics::Metrics,
    store::{
        ReadError, Store, lock,
        shares::{Kept, Measure},
    },
};

/// Events forgotten by one commit at least; under load, twice what it appends, so that trimming always gains on appending.
const TRIM_EVENTS: usize = 256;
/// Read at once to find events to forget. There are mostly none, so it is little.
const TRIM_READ_BYTES: u64 = 16 * 1024;

/// How long and how much is kept, and how much of the disk stays free.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Events older than this are forgotten, by the log's clock.
    pub event_age_max: Duration,
    /// The oldest events are forgotten beyond this.
    pub event_bytes_max: u64,
    /// The contents of one segment of the log span no more than this; it is removed as a whole.
    pub segment_age_max: Duration,
    /// Quarantined callbacks older than this are forgotten.
    pub quarantine_age_max: Duration,
    /// The oldest quarantined callbacks are forgotten beyond this.
    pub quarantine_bytes_max: u64,
    /// The oldest quarantined callbacks are forgotten beyond so many.
    pub quarantine_count_max: u64,
    /// Below this share of free disk nothing is written.
    pub disk_free_min_percent: u64,
}

impl Retention {
    /// Nothing is forgotten, and the disk is never low.
    pub const KEEP_ALL: Self = Self {
        event_age_max: Duration::MAX,
        event_bytes_max: u64::MAX,
        segment_age_max: Duration::MAX,
        quarantine_age_max: Duration::MAX,
        quarantine_bytes_max: u64::MAX,
        quarantine_count_max: u64::MAX,
        disk_free_min_percent: 0,
    };

    /// The measure by which there is too much in quarantine.
    fn quarantine_surplus(&self, totals: &Totals) -> Option<Measure> {
        if totals.quarantine_bytes > self.quarantine_bytes_max {
            Some(Measure::Bytes)
        } else {
            (totals.quarantine_count > self.quarantine_count_max).then_some(Measure::Count)
        }
    }

    /// Sets the gauges that alerts compare with.
    pub(super) fn note_in(&self, metrics: &Metrics) {
        metrics
            .log_bytes_max
            .set(i64::try_from(self.event_bytes_max).unwrap_or(i64::MAX));
        metrics
            .log_age_max_seconds
            .set(i64::try_from(self.event_age_max.as_secs()).unwrap_or(i64::MAX));
    }

    fn cutoffs(&self, moment: &Moment) -> Cutoffs {
        Cutoffs {
            event_micros: cutoff(moment, self.event_age_max),
            quarantine_micros: cutoff(moment, self.quarantine_age_max),
        }
    }
}

/// What counts as received before these times is too old, in microseconds since 1970.
#[derive(Clone, Copy)]
struct Cutoffs {
    event_micros: i64,
    quarantine_micros: i64,
}

fn cutoff(moment: &Moment, age_max: Duration) -> i64 {
    if !moment.is_settled {
        return i64::MIN; // the age of anything is unknown until then
    }
    moment.now_micros.saturating_sub(micros_of(age_max))
}

/// Forgets what is too old or too much.
#[derive(Debug, Default)]
pub(super) struct Trimmer {
    /// When the oldest event counts as received, if that is known: to read the event for each commit would take too long.
    oldest_micros: Option<i64>,
    carrier: Carrier,
}

impl Trimmer {
    /// Takes note that events may count as received at other times than before.
    pub(super) fn forget_times(&mut self) {
        self.oldest_micros = None;
    }

    /// Whether there is something to forget or to write again, and that may be done now.
    pub(super) fn is_due(&self, store: &Store, retention: &Retention) -> bool {
        if self.is_forgetting_due(store, retention) {
            return true;
        }
        if !disk::may_forget(&store.health()) {
            return false;
        }
        let moment = Moment::now(&store.clock, None);
        let first_available = Sequence(lock(&store.totals).first_available);
        let due = self
            .carrier
            .due(store, first_available, retention.event_age_max, &moment);
        !due.is_empty()
    }

    /// Whether there is something to forget, and may be forgotten now.
    pub(super) fn is_forgetting_due(&self, store: &Store, retention: &Retention) -> bool {
        if !disk::may_forget(&store.health()) {
            return false;
        }
        let totals = *lock(&store.totals);
        let moment = Moment::now(&store.clock, None);
        let cutoffs = retention.cutoffs(&moment);

        let events = totals.event_bytes > retention.event_bytes_max
            || self
                .oldest_event_micros(store, &totals)
                .is_some_and(|at| at < cutoffs.event_micros);
        let oldest_quarantined = lock(&store.shares).oldest();
        let quarantined = retention.quarantine_surplus(&totals).is_some()
            || oldest_quarantined.is_some_and(|(number, kept)| {
                is_expired(&totals, number, &kept, cutoffs.quarantine_micros)
            });
        events || quarantined
    }

    fn oldest_event_micros(&self, store: &Store, totals: &Totals) -> Option<i64> {
        if totals.event_count == 0 {
            return None;
        }
        self.oldest_micros.or_else(|| {
            let (first, correction) = (store.first_available(), &totals.correction);
            match store.get(first) {
                Ok(oldest) => {
                    let oldest = oldest?;
                    Some(correction.of_event(oldest.sequence(), oldest.log_time_micros()))
                }
                Err(_) => {
                    let gap = store.log.gap(first, store.head()).ok().flatten()?;
                    gap.received_micros(correction)
                }
            }
        })
    }

    /// What of the oldest segment of this log has to be written again now.
    pub(super) fn due_here(
        &self,
        store: &Store,
        first_available: Sequence,
        event_age_max: Duration,
        moment: &Moment,
    ) -> Due {
        self.carrier
            .due(store, first_available, event_age_max, moment)
    }

    /// Has a commit forget some of what is too old or too much, and write again what stays.
    pub(super) fn trim(
        &mut self,
        commit: &mut Commit<'_>,
        counts: &mut Counts,
        retention: &Retention,
        moment: &Moment,
    ) {
        self.forget(commit, counts, retention, moment);
        self.carrier
            .carry(commit, counts, retention.event_age_max, moment);
    }

    /// Has a commit forget some of what is too old or too much.
    pub(super) fn forget(
        &mut self,
        commit: &mut Commit<'_>,
        counts: &mut Counts,
        retention: &Retention,
        moment: &Moment,
    ) {
        let cutoffs = retention.cutoffs(moment);
        // A failure is no reason to refuse callbacks; readers will report the damage.
        if let Err(error) = self.trim_events(commit, counts, retention, cutoffs.event_micros) {
            tracing::error!(%error, "cannot forget old events");
        }
        if let Err(error) = trim_quarantine(commit, counts, retention, cutoffs.quarantine_micros) {
            tracing::error!(%error, "cannot forget old quarantined callbacks");
        }
    }

    fn trim_events(
        &mut self,
        commit: &mut Commit<'_>,
        counts: &mut Counts,
        retention: &Retention,
        cutoff_micros: i64,
    ) -> Result<(), ReadError> {
        let is_full = commit.totals().event_bytes > retention.event_bytes_max;
        let may_be_expired =
            cutoff_micros > i64::MIN && self.oldest_micros.is_none_or(|at| at < cutoff_micros);
        if !is_full && !may_be_expired {
            return Ok(());
        }

        let store = commit.store();
        let oldest = Sequence(commit.totals().first_available);
        let mut budget = TRIM_EVENTS.max(2 * commit.appended());
        let mut failed = None;
        self.oldest_micros = None;
        let each = |record: Record| {
            if commit.is_announced(record.sequence()) {
                return Ok(ControlFlow::Break(())); // forgotten once it is overwritten
            }
            let received = commit
                .totals()
                .correction
                .of_event(record.sequence(), record.log_time_micros());
            let reason = too_old_or_much(commit.totals(), retention, received, cutoff_micros);
            let Some(reason) = reason.filter(|_| budget > 0) else {
                self.oldest_micros = Some(received);
                return Ok(ControlFlow::Break(()));
            };

            budget -= 1;
            if let Err(error) = commit.forget(&record) {
                failed = Some(error);
                return Ok(ControlFlow::Break(()));
            }
            counts.events_trimmed.add(reason, 1, record.len() as u64);
            Ok(ControlFlow::Continue(()))
        };
        let scanned = store
            .log
            .scan_at_once(oldest..=store.head(), TRIM_READ_BYTES, each);
        match (failed, scanned) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(()),
            (None, Err(error)) => self.trim_gap(commit, counts, retention, cutoff_micros, error),
        }
    }

    /// Forgets events that cannot be read, by their places; one gap for each commit. `error` says why they cannot be read.
    fn trim_gap(
        &mut self,
        commit: &mut Commit<'_>,
        counts: &mut Counts,
        retention: &Retention,
        cutoff_micros: i64,
        error: ReadError,
    ) -> Result<(), ReadError> {
        let store = commit.store();
        let first = Sequence(commit.totals().first_available);
        let Some(gap) = store.log.gap(first, store.head())? else {
            return Err(error); // it can be read now
        };
        if (gap.first.0..gap.behind.0).any(|place| commit.is_announced(Sequence(place))) {
            return Ok(()); // forgotten once it is overwritten
        }
        // Nothing is known to be older than what follows it.
        let received = gap.received_micros(&commit.totals().correction);
        let reason = too_old_or_much(
            commit.totals(),
            retention,
            received.unwrap_or(i64::MAX),
            cutoff_micros,
        );
        let Some(reason) = reason else {
            self.oldest_micros = received;
            return Ok(());
        };

        commit.forget_gap(&gap)?;
        counts
            .events_trimmed
            .add(reason, gap.events(), gap.bytes_min());
        counts.damage += 1;
        let (first, last) = (gap.first.0, gap.behind.previous().0);
        tracing::error!(
            first, last, %error,
            "these events are damaged in the log and cannot be read, and are forgotten: check the disk"
        );
        Ok(())
    }
}

/// Why the oldest event is forgotten, which was received then; `None` if it is kept.
fn too_old_or_much(
    totals: &Totals,
    retention: &Retention,
    received_micros: i64,
    cutoff_micros: i64,
) -> Option<Reason> {
    if received_micros < cutoff_micros {
        return Some(Reason::Age);
    }
    (totals.event_bytes > retention.event_bytes_max).then_some(Reason::Bytes)
}

fn trim_quarantine(
    commit: &mut Commit<'_>,
    counts: &mut Counts,
    retention: &Retention,
    cutoff_micros: i64,
) -> Result<(), ReadError> {
    if commit.totals().quarantine_count == 0 {
        return Ok(()); // almost always
    }

    let mut budget = TRIM_EVENTS.max(2 * commit.quarantined());
    while budget > 0
        && let Some((number, kept)) = oldest_quarantined(commit.store())
        && is_expired(commit.totals(), number, &kept, cutoff_micros)
        && commit.discard(number, Leave::Expired)?
    {
        counts.quarantine_trimmed.age += 1;
        budget -= 1;
    }
    while budget > 0
        && let Some(measure) = retention.quarantine_surplus(commit.totals())
        && let Some(number) = first_to_go(commit.store(), measure)
        // Callbacks of this very commit are left for the next one.
        && commit.discard(number, Leave::Expired)?
    {
        match measure {
            Measure::Bytes => counts.quarantine_trimmed.bytes += 1,
            Measure::Count => counts.quarantine_trimmed.count += 1,
        }
        budget -= 1;
    }
    Ok(())
}

// In functions of their own, so that the lock is not held while the commit discards.
fn oldest_quarantined(store: &Store) -> Option<(u64, Kept)> {
    lock(&store.shares).oldest()
}

fn first_to_go(store: &Store, measure: Measure) -> Option<u64> {
    lock(&store.shares).first_to_go(measure)
}

fn is_expired(totals: &Totals, number: u64, kept: &Kept, cutoff_micros: i64) -> bool {
    totals
        .correction
        .of_quarantined(number, kept.received_at_micros)
        < cutoff_micros
}
