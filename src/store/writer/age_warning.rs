//! Logs what retention will forget by age once the clock is believed, while that can still be prevented. Only reads.
//!
//! Only the machine's clock says how long the machine was off. A clock that is wrong by more than the retention, and stays wrong
//! for the minutes until it is believed, makes everything in the log too old.

use std::time::Duration;

use super::retention::Retention;
use crate::{
    event::Sequence,
    store::{
        ReadError, Store,
        clock::{AGREEMENT, Trust},
        lock,
    },
};

/// Events that are too old by less are forgotten without a log line: a broker may be down for so long, and its clock right.
const TOO_OLD_BY_MIN: Duration = Duration::from_secs(3_600);

/// Logs what is going to be forgotten.
pub(super) fn report(store: &Store, retention: &Retention) {
    let minutes = AGREEMENT / 60_000_000;
    // If the clock is doubted, everything will count as received since the start.
    let found = if store.clock.trust() == Trust::Waiting {
        find(store, retention)
    } else {
        Ok((0, 0))
    };
    match found {
        Ok((0, 0)) => tracing::info!(
            minutes,
            "the clock is far from the newest event: nothing is forgotten by age until it has proved right"
        ),
        Ok((events, quarantined)) => tracing::error!(
            events,
            quarantined,
            minutes,
            clock = %store.clock.now(),
            "these are too old by this machine's clock, and are forgotten when it has run evenly for so many minutes: if it is \
             wrong, set it right or stop the broker before that"
        ),
        // Retention and readers report the damage, too.
        Err(error) => {
            tracing::error!(%error, minutes, "cannot see what is forgotten when the clock is believed");
        }
    }
}

/// How many events and quarantined callbacks are too old by the present clock. A kind whose oldest is so by little counts
/// as none.
fn find(store: &Store, retention: &Retention) -> Result<(u64, usize), ReadError> {
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    let cutoff = |age_max| store.clock.now_micros().saturating_sub(micros(age_max));
    let is_much = |oldest: i64, cutoff: i64| oldest < cutoff.saturating_sub(micros(TOO_OLD_BY_MIN));
    let correction = lock(&store.totals).correction;

    // Events are in the order of their times, so the first that is young enough is found by bisection.
    let received = |number: u64| -> Result<i64, ReadError> {
        let record = store.get(Sequence(number))?;
        Ok(record.map_or(i64::MIN, |it| {
            correction.of_event(it.sequence(), it.log_time_micros())
        }))
    };
    let (first, behind, event_cutoff) = (
        store.first_available().0,
        store.head().0 + 1,
        cutoff(retention.event_age_max),
    );
    let mut events = 0;
    if first < behind && is_much(received(first)?, event_cutoff) {
        let (mut low, mut high) = (first, behind);
        while low < high {
            let middle = low + (high - low) / 2;
            if received(middle)? < event_cutoff {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        events = low - first;
    }

    let shares = lock(&store.shares);
    let quarantine_cutoff = cutoff(retention.quarantine_age_max);
    let received = |number| {
        shares.get(number).map_or(i64::MAX, |kept| {
            correction.of_quarantined(number, kept.received_at_micros)
        })
    };
    let mut quarantined = 0;
    if shares
        .oldest()
        .is_some_and(|(number, _)| is_much(received(number), quarantine_cutoff))
    {
        quarantined = shares
            .after(0)
            .take_while(|&number| received(number) < quarantine_cutoff)
            .count();
    }
    Ok((events, quarantined))
}
