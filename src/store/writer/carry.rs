//! Writes quarantined callbacks and open expectations again that are still in the oldest segment of
//! the log, so that it can be removed.
//!
//! Events are forgotten oldest first, but a callback may stay in quarantine, and a task be
//! expected, for longer than the events beside it. It would keep its segment, and every later one, on the disk. So it is written
//! again into the newest segment. This must not rewrite a full quarantine over and over: it is due
//! when at least as many bytes are freed as written, or when everything in the segment is older than
//! events are kept, and than an hour. So forgotten content is removed in time, and a callback is
//! written at most once in that time for it.
//!
//! A damaged callback is not written again. It leaves the quarantine, and is counted and reported:
//! it must not keep its segment.

use std::{collections::BTreeSet, time::Duration};

use super::{
    counts::Counts,
    moment::{Moment, micros_of},
    recording::{Commit, Leave},
};
use crate::{
    event::Sequence,
    store::{Health, ReadError, Store, layout::parse_quarantined, lock, log::Unread},
};

/// Written again by one commit, and one callback more: what comes meanwhile should not wait long.
pub(super) const CARRIED_BYTES_MAX: u64 = 1024 * 1024;
/// With less free disk nothing is written again: first a segment is written, and one made ahead, and only
/// then one is removed.
const CARRY_FREE_BYTES_MIN: u64 = 96 * 1024 * 1024;

/// However short events are kept, what is in a segment is written again for its age at the earliest
/// so long after it was written: a full quarantine of 1 GiB takes 0.3 MB/s then.
const CARRY_AGE_MIN: Duration = Duration::from_secs(3_600);

/// Most bytes of an expectation.
const EXPECTATION_BYTES_MAX: u64 = 4_096;

#[derive(Debug, Default)]
pub(super) struct Carrier {
    /// Callbacks that the system could not read, and were reported. It tries again.
    unread: BTreeSet<u64>,
}

/// What became of a callback.
enum Carried {
    /// It is written again, with so many bytes.
    Written(u64),
    /// It was damaged, and has left the quarantine.
    Left,
}

/// What has to be written again now, by number.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub quarantined: Vec<u64>,
    pub expected: Vec<u64>,
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

    /// Has a commit write some of them again.
    pub(super) fn carry(
        &mut self,
        commit: &mut Commit<'_>,
        counts: &mut Counts,
        event_age_max: Duration,
        moment: &Moment,
    ) {
        let (store, first_available) = (commit.store(), commit.totals().first_available);
        let mut bytes = 0;
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
                Ok(Carried::Written(written)) => {
                    // Its segment has content from now on, and grows old by that.
                    commit.stamp(moment.now_micros, moment.now_micros);
                    bytes += written;
                    counts.carried += 1;
                }
                Ok(Carried::Left) => counts.damage += 1,
                Err(error) if self.unread.insert(number) => {
                    tracing::error!(number, %error, "a quarantined callback cannot be read to be written again: its segment stays until it can be, or is forgotten");
                }
                Err(_) => {} // reported
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
                    counts.carried += 1;
                }
                Ok(None) => {} // this commit has ended it
                Err(error) => {
                    tracing::error!(number, %error, "an expectation cannot be written again");
                }
            }
        }
    }
}

/// Most callbacks, and most expectations, that are looked at for one frame.
const IN_STREAM_MAX: usize = 1_024;

/// Has a frame bring again what only frames have that hold no event any more, so that they can be removed from the stream: about
/// so many bytes at most. Each is written again at most once in the time for which events are kept. What is damaged here is left
/// to another node.
pub(super) fn carry_in_stream(
    commit: &mut Commit<'_>,
    counts: &mut Counts,
    moment: &Moment,
    bytes_max: u64,
) {
    let store = commit.store();
    let first_available = Sequence(commit.totals().first_available);
    let unneeded = store.log.frame_before(first_available, u64::MAX);
    if unneeded == 0 || bytes_max == 0 {
        return;
    }
    let quarantined = lock(&store.quarantine)
        .frames()
        .up_to(unneeded, IN_STREAM_MAX);
    let expected = lock(&store.expectations)
        .frames()
        .up_to(unneeded, IN_STREAM_MAX);
    let mut free = bytes_max;
    for number in quarantined {
        let held = lock(&store.quarantine).get(number);
        let Some(held) = held.filter(|_| commit.quarantined_bytes(number).is_some()) else {
            continue; // this commit has taken it out
        };
        // One that is larger than all of it goes alone.
        let is_alone = free == bytes_max && commit.is_empty();
        if held.bytes > free && !is_alone {
            break;
        }
        let Ok(Some(value)) = store.log.quarantined(number, held.newest) else {
            continue;
        };
        let known = lock(&store.shares).header_of(number).unwrap_or_default();
        let header = parse_quarantined(&value).map_or(known, |(header, _)| header);
        if commit.carry(number, &header, &value).is_ok() {
            free = free.saturating_sub(held.bytes);
            counts.carried += 1;
        }
    }
    for number in expected {
        if free < EXPECTATION_BYTES_MAX {
            break;
        }
        if let Ok(Some(bytes)) = commit.carry_expectation(number) {
            free = free.saturating_sub(bytes);
            counts.carried += 1;
        }
    }
    if free < bytes_max {
        commit.stamp(moment.now_micros, moment.now_micros);
    }
}

/// Writes a callback again, or lets a damaged one go.
fn carry_one(commit: &mut Commit<'_>, number: u64) -> Result<Carried, ReadError> {
    let store = commit.store();
    let held = lock(&store.quarantine).get(number);
    let Some(held) = held else {
        return Ok(Carried::Written(0));
    };
    let problem = match store.log.quarantined(number, held.newest) {
        Ok(Some(value)) => {
            let known = lock(&store.shares).header_of(number).unwrap_or_default();
            // It is whole. Another version may be able to read its header.
            let header = parse_quarantined(&value).map_or(known, |(header, _)| header);
            commit.carry(number, &header, &value)?;
            return Ok(Carried::Written(value.len() as u64));
        }
        Ok(None) => "it is marked as erased".to_owned(),
        Err(Unread::Damaged(problem)) => problem,
        Err(failed) => return Err(failed.into()),
    };
    commit.discard(number, Leave::Expired)?;
    tracing::error!(
        number,
        problem,
        "a quarantined callback is damaged in the log, and has left the quarantine: check the disk"
    );
    Ok(Carried::Left)
}
