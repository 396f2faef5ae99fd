//! What is due when: ticks, takeovers, the repetition of a frame in doubt. Pure: the driver hands in the time.

use std::time::{Duration, Instant};

/// A writer whose last frame is so old writes an empty one, so that the others hear of it.
const QUIET: Duration = Duration::from_secs(2);
/// A node that has applied no frame for so long takes over: the writer, or its own connection, must be gone.
const SILENT: Duration = Duration::from_secs(5);
/// And up to so much more, at random, so that not all nodes do it at once.
const SILENT_SPREAD: Duration = Duration::from_secs(2);
/// The same at a start, where it costs nothing to try: a writer that lives has sent a tick by then.
const FIRST_SILENT: Duration = Duration::from_millis(2_500);
const FIRST_SILENT_SPREAD: Duration = Duration::from_millis(500);
/// A node speaks of itself so often.
const PRESENCE: Duration = Duration::from_secs(2);
/// A node that has heard nobody for so long, not even itself, was away.
const DEAF: Duration = Duration::from_secs(4);
/// So long it listens then. Every node that is there speaks meanwhile.
const LISTENS: Duration = Duration::from_millis(2_200);
/// A frame in doubt is not published again before that, whatever says at once that nobody answers.
const AGAIN_MIN: Duration = Duration::from_millis(250);
/// A frame takes milliseconds. What comes while one takes so much longer may have to be refused, and so is taken and timed.
const STUCK: Duration = Duration::from_millis(250);
/// Beyond the time in which the connection reports that a frame has no answer: then the report itself is lost.
const REPORT: Duration = Duration::from_secs(1);
/// What the store does beside frames is due so often.
const TEND: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug)]
pub(super) struct Timing {
    publish_timeout: Duration,
    quiet_at: Instant,
    silent_at: Instant,
    tend_at: Instant,
    presence_at: Instant,
    heard_at: Instant,
    ear: Ear,
    doubt: Option<Doubted>,
}

/// Whether a node knows what the others have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ear {
    /// It has yet to hear anybody.
    Deaf,
    ListensUntil(Instant),
    Hears,
}

/// A frame of which nobody has said what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Doubted {
    pub chain: u64,
    pub began: Instant,
    published_at: Instant,
    again_at: Instant,
    /// It was said in the log.
    pub is_logged: bool,
}

/// Something that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Quiet,
    Silent,
    Tend,
    Presence,
    Listened,
    /// The frame with this chain was published long ago.
    Unanswered(u64),
}

impl Timing {
    /// `listens`: other nodes may have something of the stream.
    pub(super) fn new(publish_timeout: Duration, listens: bool, now: Instant) -> Self {
        Self {
            publish_timeout,
            quiet_at: now + QUIET,
            silent_at: now + FIRST_SILENT + spread(FIRST_SILENT_SPREAD),
            tend_at: now,
            presence_at: now,
            heard_at: now,
            ear: if listens { Ear::Deaf } else { Ear::Hears },
            doubt: None,
        }
    }

    /// A frame was applied.
    pub(super) fn applied(&mut self, now: Instant) {
        self.quiet_at = now + QUIET;
        self.silent_at = now + SILENT + spread(SILENT_SPREAD);
    }

    /// A node has spoken, be it this one.
    pub(super) fn hears(&mut self, now: Instant) {
        self.heard_at = now;
        if self.ear == Ear::Deaf {
            self.ear = Ear::ListensUntil(now + LISTENS);
        }
    }

    /// True once no node was heard for too long.
    pub(super) fn goes_deaf(&mut self, now: Instant) -> bool {
        let is_deaf = now >= self.heard_at + DEAF;
        is_deaf && std::mem::replace(&mut self.ear, Ear::Deaf) != Ear::Deaf
    }

    /// A writer has more to write than callbacks.
    pub(super) fn write_soon(&mut self, now: Instant) {
        self.quiet_at = now;
    }

    /// A frame was published, for the first time or again.
    pub(super) fn published(&mut self, chain: u64, now: Instant) {
        let again_at = now + self.publish_timeout + REPORT;
        match &mut self.doubt {
            Some(doubt) if doubt.chain == chain => {
                (doubt.published_at, doubt.again_at) = (now, again_at);
            }
            _ => {
                self.doubt = Some(Doubted {
                    chain,
                    began: now,
                    published_at: now,
                    again_at,
                    is_logged: false,
                });
            }
        }
    }

    /// Nobody answers about a frame. It is published again soon, but not at once.
    pub(super) fn unanswered(&mut self, chain: u64) -> Option<&mut Doubted> {
        let doubt = self.doubt.as_mut().filter(|doubt| doubt.chain == chain)?;
        doubt.again_at = doubt.published_at + AGAIN_MIN;
        Some(doubt)
    }

    pub(super) fn doubt(&mut self) -> Option<&mut Doubted> {
        self.doubt.as_mut()
    }

    /// What became of the frame is known. Returns how long it was in doubt, if that was said in the log.
    pub(super) fn resolved(&mut self, now: Instant) -> Option<Duration> {
        let doubt = self.doubt.take()?;
        doubt.is_logged.then(|| now.duration_since(doubt.began))
    }

    /// Whether a frame has been in doubt for much longer than a frame takes.
    pub(super) fn is_stuck(&self, now: Instant) -> bool {
        let is_old = |doubt: &Doubted| now >= doubt.began + STUCK;
        self.doubt.as_ref().is_some_and(is_old)
    }

    /// What is due by now; each is due again later.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        if now >= self.tend_at {
            self.tend_at = now + TEND;
            due.push(Due::Tend);
        }
        if now >= self.presence_at {
            self.presence_at = now + PRESENCE;
            due.push(Due::Presence);
        }
        if matches!(self.ear, Ear::ListensUntil(until) if now >= until) {
            self.ear = Ear::Hears;
            due.push(Due::Listened);
        }
        if now >= self.quiet_at {
            self.quiet_at = now + QUIET;
            due.push(Due::Quiet);
        }
        if now >= self.silent_at {
            self.silent_at = now + SILENT + spread(SILENT_SPREAD);
            due.push(Due::Silent);
        }
        if let Some(doubt) = &mut self.doubt
            && now >= doubt.again_at
        {
            doubt.again_at = now + self.publish_timeout + REPORT;
            due.push(Due::Unanswered(doubt.chain));
        }
        due
    }

    /// When something is due next, or a frame begins to be out for long.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let doubt = self.doubt.as_ref();
        let stuck_at = doubt.map(|doubt| doubt.began + STUCK);
        let listens_until = match self.ear {
            Ear::ListensUntil(until) => Some(until),
            Ear::Deaf | Ear::Hears => None,
        };
        [self.presence_at, self.quiet_at, self.silent_at]
            .into_iter()
            .chain(listens_until)
            .chain(doubt.map(|doubt| doubt.again_at))
            .chain(stuck_at.filter(|at| *at > now))
            .fold(self.tend_at, Instant::min)
    }
}

/// A random time up to `most`.
fn spread(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    #[test]
    fn a_frame_in_doubt_is_published_again_after_its_time_and_soon_where_nobody_answers() {
        let start = Instant::now();
        let mut timing = Timing::new(TIMEOUT, false, start);
        timing.published(7, start);
        let unanswered = |timing: &mut Timing, at: Duration| {
            timing.due(start + at).contains(&Due::Unanswered(7))
        };
        assert!(!unanswered(&mut timing, TIMEOUT));
        assert!(unanswered(&mut timing, TIMEOUT + REPORT));
        assert!(!unanswered(&mut timing, TIMEOUT + REPORT));

        timing.published(7, start);
        timing.unanswered(8);
        assert!(!unanswered(&mut timing, AGAIN_MIN));
        timing.unanswered(7);
        assert!(!unanswered(&mut timing, Duration::ZERO));
        assert!(unanswered(&mut timing, AGAIN_MIN));

        assert!(!timing.is_stuck(start) && timing.is_stuck(start + STUCK));
        assert_eq!(timing.resolved(start), None, "nobody was told");
        assert!(!timing.is_stuck(start + STUCK));
    }

    #[test]
    fn a_writer_is_quiet_for_two_seconds_unless_it_has_more_to_write() {
        let start = Instant::now();
        let mut timing = Timing::new(TIMEOUT, false, start);
        timing.applied(start);
        let is_due = |timing: &mut Timing, at: Instant| timing.due(at).contains(&Due::Quiet);
        assert!(!is_due(&mut timing, start + QUIET / 2));
        assert!(is_due(&mut timing, start + QUIET));
        timing.write_soon(start + QUIET);
        assert_eq!(timing.next(start + QUIET), start + QUIET);
        assert!(is_due(&mut timing, start + QUIET));
    }

    #[test]
    fn a_node_takes_over_when_no_frame_has_come_for_five_to_seven_seconds() {
        let start = Instant::now();
        let mut timing = Timing::new(TIMEOUT, false, start);
        timing.applied(start);
        let silent = |timing: &mut Timing, at: u64| {
            let due = timing.due(start + Duration::from_secs(at));
            due.contains(&Due::Silent)
        };
        assert!(!silent(&mut timing, 4) && silent(&mut timing, 8));
        timing.applied(start + Duration::from_secs(8));
        assert!(!silent(&mut timing, 12));
    }

    #[test]
    fn a_node_that_has_heard_nobody_listens_for_longer_than_the_others_take_to_speak() {
        let start = Instant::now();
        let mut timing = Timing::new(TIMEOUT, true, start);
        let listened = |timing: &mut Timing, at: Instant| timing.due(at).contains(&Due::Listened);
        assert!(!listened(&mut timing, start + LISTENS));
        let first = start + LISTENS;
        timing.hears(first);
        timing.hears(first + PRESENCE);
        assert!(!listened(&mut timing, first + PRESENCE));
        assert!(timing.next(first + PRESENCE) <= first + LISTENS);
        assert!(listened(&mut timing, first + LISTENS));
        assert!(!listened(&mut timing, first + LISTENS), "it is said once");

        let last = first + PRESENCE;
        assert!(!timing.goes_deaf(last + DEAF - PRESENCE));
        assert!(timing.goes_deaf(last + DEAF));
        assert!(!timing.goes_deaf(last + DEAF), "it is said once");
        assert!(!listened(&mut timing, last + DEAF));
        timing.hears(last + DEAF);
        assert!(listened(&mut timing, last + DEAF + LISTENS));
        assert!(!Timing::new(TIMEOUT, false, start).goes_deaf(start + PRESENCE));
    }
}
