//! The log's clock: what events are stamped and aged by. It trusts no single reading of the
//! machine's clock.
//!
//! A machine's clock may be wrong for a while: at boot, before it is synchronised, by a mistaken
//! hand. Ages counted by it would have retention forget everything at once, and a time stamp from
//! the future would hide the log's real times for as long. So the log has a clock of its own. It
//! advances with monotonic time, and follows the machine's clock (the *wall* clock here) while both
//! agree within [`TOLERANCE`]. If they disagree, monotonic time alone counts, until the wall clock
//! has agreed with itself, so has advanced in step with monotonic time, for [`AGREEMENT`]. Then the
//! log's clock adopts its time, forwards or backwards, and the writer notes in the log how older
//! events age from then on (`Correction`).
//!
//! At a start nobody knows how long the machine was off. The wall clock is taken at its word for
//! new events, unless it says that no time or more than [`DOWNTIME_MAX`] has passed; but retention
//! by age waits until it has agreed with itself. The log says if it waited, so that the next start
//! waits, too. If the clocks disagreed, nobody will ever know how long the machine was off: then
//! everything counts as received after the start.
//!
//! [`Judge`] decides and is pure; [`Clock`] reads the clocks. Only the writer has it look and
//! adopt; everybody reads it. Time while the machine sleeps is not monotonic time here: after a
//! longer sleep the log takes over the new time as after any step.

use std::{
    fmt,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::lock;
pub(super) use crate::cluster::Trust;

const SECOND: i64 = 1_000_000;
/// So far the log's clock follows the wall clock at once; what a first synchronisation of a good
/// clock changes is less. It is also the most that it gains on monotonic time in [`AGREEMENT`].
pub(super) const TOLERANCE: i64 = 10 * SECOND;
/// So long a wall clock has to agree with itself before it is believed: longer than a mistake that
/// somebody watches, or than a machine needs from its boot to its first synchronisation.
pub(super) const AGREEMENT: i64 = 5 * 60 * SECOND;
/// Beyond this somebody should look at the machine's clock, and retention by age waits after a
/// start.
pub(super) const FAR: i64 = 2 * 60 * SECOND;
/// A machine may have been off for so long: as long as the configuration lets events be kept. The
/// clock of one that boots in 1970 claims more, or that time went backwards.
const DOWNTIME_MAX: i64 = 3_650 * 86_400 * SECOND;
/// Differences below this are the time between two readings.
const READING: i64 = SECOND / 1_000;

/// The log's clock has taken over the wall clock's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Adoption {
    /// What it says now, in microseconds since 1970.
    pub at_micros: i64,
    /// How much more that is than before. What was stamped since the start ages as if it had been
    /// stamped so much later.
    pub by_micros: i64,
    /// The same for what was stamped before the start.
    pub earlier_by_micros: i64,
}

/// Decides which time it is. All times are in microseconds; monotonic ones since any moment, the
/// others since 1970.
#[derive(Clone, Debug)]
struct Judge {
    /// The log's clock is so far ahead of monotonic time.
    offset: i64,
    /// The log's clock may be at most [`TOLERANCE`] ahead of this until the next [`AGREEMENT`]
    /// begins.
    period: Stretch,
    /// While the wall clock has agreed with itself.
    wall: Stretch,
    /// What the log had at the start, until the downtime since then is believed.
    downtime_from: Option<Newest>,
    started: i64,
}

/// What a log knows of its clock when it is opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest {
    /// Its newest time, in microseconds since 1970.
    pub micros: i64,
    /// What its last commit knew of its times.
    pub trust: Trust,
}

/// A clock that is in step with monotonic time.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    /// How far it is ahead of monotonic time.
    offset: i64,
    /// Since when, in monotonic time.
    since: i64,
}

impl Judge {
    fn start(wall: i64, monotonic: i64, newest: Option<Newest>) -> Self {
        let wall_offset = wall.saturating_sub(monotonic);
        let (offset, is_settled) = match newest {
            None => (wall_offset, true),
            Some(Newest { micros, trust }) => {
                let downtime = wall.saturating_sub(micros);
                let is_plausible = (-TOLERANCE..=DOWNTIME_MAX).contains(&downtime);
                let offset = if is_plausible {
                    wall_offset
                } else {
                    micros.saturating_sub(monotonic)
                };
                (
                    offset,
                    (-FAR..=FAR).contains(&downtime) && trust == Trust::Known,
                )
            }
        };
        Self {
            offset,
            period: Stretch {
                offset,
                since: monotonic,
            },
            wall: Stretch {
                offset: wall_offset,
                since: monotonic,
            },
            downtime_from: newest.filter(|_| !is_settled),
            started: monotonic,
        }
    }

    /// Whether ages count: false after a start, until the wall clock's word on the downtime is
    /// believed.
    fn is_settled(&self) -> bool {
        self.downtime_from.is_none()
    }

    /// Nobody will know how long the machine was off.
    fn is_doubted(&self) -> bool {
        self.downtime_from
            .is_some_and(|newest| newest.trust == Trust::Doubted)
    }

    fn trust(&self, wall: i64, monotonic: i64) -> Trust {
        if self.is_doubted() || !is_within(wall.saturating_sub(monotonic), self.offset, TOLERANCE) {
            Trust::Doubted
        } else if self.is_settled() {
            Trust::Known
        } else {
            Trust::Waiting
        }
    }

    fn look(&mut self, wall: i64, monotonic: i64, may_adopt: bool) -> Option<Adoption> {
        let wall_offset = wall.saturating_sub(monotonic);
        if !is_within(wall_offset, self.wall.offset, TOLERANCE) {
            self.wall = Stretch {
                offset: wall_offset,
                since: monotonic,
            };
        }
        let has_agreed = monotonic - self.wall.since >= AGREEMENT;

        if is_within(wall_offset, self.offset, TOLERANCE) {
            self.follow(wall_offset, monotonic);
            if !has_agreed {
                return None;
            }
            if !self.is_doubted() {
                self.downtime_from = None;
                return None;
            }
        }
        (has_agreed && may_adopt).then(|| self.adopt(wall_offset, monotonic))
    }

    fn follow(&mut self, wall_offset: i64, monotonic: i64) {
        if monotonic - self.period.since >= AGREEMENT {
            self.period = Stretch {
                offset: self.offset,
                since: monotonic,
            };
        }
        if !is_within(wall_offset, self.offset, READING) {
            self.offset = wall_offset.min(self.period.offset.saturating_add(TOLERANCE));
        }
    }

    fn adopt(&mut self, wall_offset: i64, monotonic: i64) -> Adoption {
        let by_micros = wall_offset.saturating_sub(self.offset);
        let earlier_by_micros = match self.downtime_from.take() {
            None => by_micros,
            Some(Newest { micros, trust }) => {
                let downtime = wall_offset
                    .saturating_add(self.started)
                    .saturating_sub(micros);
                // Backwards needs no more: nothing counts as stamped later than now.
                if downtime <= DOWNTIME_MAX && trust != Trust::Doubted {
                    0
                } else {
                    i64::MAX
                }
            }
        };
        self.offset = wall_offset;
        self.period = Stretch {
            offset: wall_offset,
            since: monotonic,
        };
        Adoption {
            at_micros: wall_offset.saturating_add(monotonic),
            by_micros,
            earlier_by_micros,
        }
    }

    /// The time of the log's clock that is meant by a time of the wall clock. They differ only
    /// while the clocks disagree: then a time since the wall clock went astray is as long ago as it
    /// says, and an earlier one, or one that would lie in the future, comes from a clock that has
    /// the log's time.
    fn meant(&self, time: i64, wall: i64, monotonic: i64) -> i64 {
        let now = self.offset.saturating_add(monotonic);
        let difference = wall.saturating_sub(now);
        let astray_since = self.wall.offset.saturating_add(self.wall.since);
        if difference.saturating_abs() <= TOLERANCE || time < astray_since {
            return time;
        }
        let moved = time.saturating_sub(difference);
        if moved > now && time <= now {
            time
        } else {
            moved
        }
    }
}

fn is_within(one: i64, other: i64, most: i64) -> bool {
    one.saturating_sub(other).saturating_abs() <= most
}

/// Where times come from, in microseconds. A value, so that tests can turn the clocks.
pub(super) struct Source {
    /// Since 1970.
    pub wall: Box<dyn Fn() -> i64 + Send + Sync>,
    /// Since any moment.
    pub monotonic: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl Source {
    /// The machine's.
    pub(super) fn system() -> Self {
        let began = Instant::now();
        let micros = |micros: u128| i64::try_from(micros).unwrap_or(i64::MAX);
        let wall = move || match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => micros(since.as_micros()),
            Err(before) => -micros(before.duration().as_micros()),
        };
        Self {
            wall: Box::new(wall),
            monotonic: Box::new(move || micros(began.elapsed().as_micros())),
        }
    }

    /// Both, read within so short a time that they belong together, if the machine is not too busy
    /// for that.
    fn read(&self) -> (i64, i64) {
        for _ in 0..3 {
            let (before, wall, after) = ((self.monotonic)(), (self.wall)(), (self.monotonic)());
            if after - before < READING {
                return (wall, before);
            }
        }
        ((self.wall)(), (self.monotonic)())
    }
}

/// The clock of one log.
pub struct Clock {
    source: Source,
    judge: Mutex<Judge>,
    /// The judge's offset, for readers.
    offset: AtomicI64,
    is_settled: AtomicBool,
    trust: Mutex<Trust>,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("judge", &self.judge)
            .finish_non_exhaustive()
    }
}

impl Clock {
    /// Starts the clock of a log that has this, if anything.
    pub(super) fn start(source: Source, newest: Option<Newest>) -> Self {
        let (wall, monotonic) = source.read();
        let judge = Judge::start(wall, monotonic, newest);
        let (offset, is_settled) = (judge.offset.into(), judge.is_settled().into());
        let trust = Mutex::new(judge.trust(wall, monotonic));
        Self {
            source,
            judge: Mutex::new(judge),
            offset,
            is_settled,
            trust,
        }
    }

    /// What it says, in microseconds since 1970.
    pub fn now_micros(&self) -> i64 {
        self.offset
            .load(Ordering::Relaxed)
            .saturating_add((self.source.monotonic)())
    }

    /// Monotonic time since any moment, in microseconds.
    pub(super) fn monotonic_micros(&self) -> i64 {
        (self.source.monotonic)()
    }

    /// What it says.
    pub fn now(&self) -> Timestamp {
        timestamp(self.now_micros())
    }

    /// The earlier of this clock's time and the machine's: for what is refused for ever when it has
    /// expired. A clock that is ahead for some seconds must not lose a callback.
    pub fn earliest(&self) -> Timestamp {
        timestamp(self.now_micros().min((self.source.wall)()))
    }

    /// How far the machine's clock is ahead of this one, in microseconds.
    pub fn difference_micros(&self) -> i64 {
        let (wall, monotonic) = self.source.read();
        wall.saturating_sub(
            self.offset
                .load(Ordering::Relaxed)
                .saturating_add(monotonic),
        )
    }

    /// Whether ages count. Not after a start, until it is known how long the broker was down.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled.load(Ordering::Relaxed)
    }

    /// How far its times could be trusted when it was last looked at.
    pub(super) fn trust(&self) -> Trust {
        *lock(&self.trust)
    }

    /// Compares it with the machine's clock. If it adopts that one's time, nothing may be stamped
    /// or aged by it before the log has a note of that. The writer's alone.
    pub(super) fn look(&self, may_adopt: bool) -> Option<Adoption> {
        let (wall, monotonic) = self.source.read();
        let mut judge = lock(&self.judge);
        let adoption = judge.look(wall, monotonic, may_adopt);
        self.offset.store(judge.offset, Ordering::Relaxed);
        self.is_settled.store(judge.is_settled(), Ordering::Relaxed);
        *lock(&self.trust) = judge.trust(wall, monotonic);
        adoption
    }

    /// The time of this clock that is meant by somebody who has a time from the machine's, both in
    /// microseconds since 1970.
    pub(super) fn meant_by(&self, micros: i64) -> i64 {
        let (wall, monotonic) = self.source.read();
        lock(&self.judge).meant(micros, wall, monotonic)
    }
}

fn timestamp(micros: i64) -> Timestamp {
    let end = if micros < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    };
    Timestamp::from_microsecond(micros).unwrap_or(end)
}

#[cfg(test)]
pub(super) mod tests;
