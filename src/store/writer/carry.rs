//! Writes quarantined callbacks and open expectations again that are still in the oldest segment of
//! the log, so that it can be removed.
//!
//! Events are forgotten oldest first, but a callback may stay in quarantine, and a task be
//! expected, for longer than the events beside it. It would keep its segment, and every later one, on the disk. So it is written
//! again into the newest segment. This must not rewrite a full quarantine over and over: it is due
//! when at least as many bytes are freed as written, or when everything in the segment is older than
//! events are kept, and than an hour. So forgotten content is removed in time, and a callback is
//! written at most once in that time for it.

use std::{collections::BTreeSet, time::Duration};

use super::{
    moment::{Moment, micros_of},
    recording::Commit,
};
use crate::{
    event::Sequence,
    store::{Health, ReadError, Store, layout::parse_quarantined, lock},
};

/// Written again by one commit, and one callback more: what comes meanwhile should not wait long.
const CARRIED_BYTES_MAX: u64 = 1024 * 1024;
/// With less free disk nothing is written again: first a segment is written, and one made ahead, and only
/// then one is removed.
const CARRY_FREE_BYTES_MIN: u64 = 96 * 1024 * 1024;

/// However short events are kept, what is in a segment is written again for its age at the earliest
/// so long after it was written: a full quarantine of 1 GiB takes 0.3 MB/s then.
const CARRY_AGE_MIN: Duration = Duration::from_secs(3_600);

/// Callbacks that are damaged, and were reported. They stay where they are, and so does their
/// segment.
#[derive(Debug, Default)]
pub(super) struct Carrier {
    damaged: BTreeSet<u64>,
}

/// What has to be written again now, by number.
#[derive(Debug, Default)]
pub(super) struct Due {
    quarantined: Vec<u64>,
    expected: Vec<u64>,
}

impl Due {
    pub(super) fn is_empty(&self) -> bool {
        self.quarantined.is_empty() && self.expected.is_empty()
    }
}

impl Carrier {
    /// What of the oldest segment has to be written again now.
    pub(super) fn due(
        &self,
        store: &Store,
        first_available: Sequence,
        event_age_max: Duration,
        moment: &Moment,
    ) -> Due {
        let unneeded = store.log.without_events(first_available);
        let (Some(oldest), Some(newest)) = (unneeded.first(), unneeded.last()) else {
            return Due::default(); // almost always
        };
        if let Health::DiskLow { free_bytes, .. } = *lock(&store.health)
            && free_bytes < CARRY_FREE_BYTES_MIN
        {
            return Due::default();
        }

        let quarantine = lock(&store.quarantine);
        let expectations = lock(&store.expectations);
        let written = quarantine.bytes_up_to(newest.number)
            + expectations.segments().bytes_up_to(newest.number);
        let there: u64 = unneeded.iter().map(|segment| segment.bytes).sum();
        let age_max = micros_of(event_age_max.max(CARRY_AGE_MIN));
        let is_old =
            moment.is_settled && oldest.ended_micros < moment.now_micros.saturating_sub(age_max);
        if written > there / 2 && !is_old {
            return Due::default();
        }
        let mut quarantined = quarantine.in_segment(oldest.number);
        quarantined.retain(|number| !self.damaged.contains(number));
        // A backup may still hold the file of an older copy. A third one would not be overwritten.
        quarantined.retain(|&number| {
            let held = quarantine.get(number);
            held.is_some_and(|held| !held.copies().any(|copy| store.log.is_held(copy.segment)))
        });
        Due {
            quarantined,
            expected: expectations.segments().in_segment(oldest.number),
        }
    }

    /// Has a commit write some of them again; returns how many.
    pub(super) fn carry(
        &mut self,
        commit: &mut Commit<'_>,
        event_age_max: Duration,
        moment: &Moment,
    ) -> u64 {
        let (store, first_available) = (commit.store(), commit.totals().first_available);
        let (mut carried, mut bytes) = (0, 0);
        let due = self.due(store, Sequence(first_available), event_age_max, moment);
        for number in due.quarantined {
            if bytes >= CARRIED_BYTES_MAX {
                break;
            }
            // This commit may have taken it out of quarantine.
            if commit.quarantined_bytes(number).is_none() {
                continue;
            }
            match carry_one(commit, number) {
                Ok(written) => {
                    // Its segment has content from now on, and grows old by that.
                    commit.stamp(moment.now_micros, moment.now_micros);
                    bytes += written;
                    carried += 1;
                }
                Err(error) => {
                    tracing::error!(number, %error, "a quarantined callback cannot be written again: its segment stays until it is forgotten");
                    self.damaged.insert(number);
                }
            }
        }
        for number in due.expected {
            if bytes >= CARRIED_BYTES_MAX {
                break;
            }
            match commit.carry_expectation(number) {
                Ok(Some(written)) => {
                    commit.stamp(moment.now_micros, moment.now_micros);
                    bytes += written;
                    carried += 1;
                }
                Ok(None) => {} // this commit has ended it
                Err(error) => {
                    tracing::error!(number, %error, "an expectation cannot be written again")
                }
            }
        }
        carried
    }
}

/// Writes a callback again; returns its bytes.
fn carry_one(commit: &mut Commit<'_>, number: u64) -> Result<u64, ReadError> {
    let store = commit.store();
    let held = lock(&store.quarantine).get(number);
    let Some(held) = held else { return Ok(0) };
    let Some(value) = store.log.quarantined(number, held.newest)? else {
        return Err(ReadError::Corrupt("it is marked as erased".to_owned()));
    };
    let (header, _) = parse_quarantined(&value)?;
    commit.carry(number, &header, &value)?;
    Ok(value.len() as u64)
}
