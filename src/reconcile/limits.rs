//! Whether the vendor may be asked now: what each key may still spend, and the circuit breakers.
//! Asks nothing itself.
//!
//! 429 is about a key, so it stops that key. Other answers to try again later, and no answer at all,
//! are about the host, so they stop everything.
//!
//! Some ids may be answered with 5xx for ever, and nothing else. So the host is probed with the id of
//! no task, or such a task could be what every probe asks for. If that fails, too, the next probe
//! asks for a task: the vendor may have no good answer for no task.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    breaker::{Breaker, PAUSE_MAX},
    budget::Budget,
    vendor_api::{Answer, Problem},
};
use crate::credentials::{ApiKey, VendorKey};

/// So many failures of the host in a row stop everything: one may be by chance, or about one task.
const HOST_FAILURES_MAX: u32 = 3;
/// One 429 stops its key: the next would be answered alike.
const KEY_FAILURES_MAX: u32 = 1;
/// The longest pause of a key that the vendor may ask for. Its limit is for a minute; a longer pause
/// may be a mistake, and one call each quarter of an hour costs nobody anything.
const KEY_PAUSE_MAX: Duration = Duration::from_secs(900);
const TOO_MANY_REQUESTS: u16 = 429;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Limits {
    per_minute_max: u32,
    keys: BTreeMap<Arc<str>, Key>,
    host: Breaker,
}

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// A task or a list.
    Tasks,
    /// No task: whether the key is good, and whether the host is there.
    Nothing,
}

#[derive(Debug)]
struct Key {
    secret: ApiKey,
    budget: Budget,
    breaker: Breaker,
}

impl Limits {
    /// Without keys.
    pub(super) fn new(per_minute_max: u32) -> Self {
        Self {
            per_minute_max,
            keys: BTreeMap::new(),
            host: Breaker::new(HOST_FAILURES_MAX, PAUSE_MAX),
        }
    }

    /// Keeps these keys and no other; returns the names of those that are gone. New ones have nothing to spend yet; nor have those
    /// with another secret, which may have been spent under another name.
    pub(super) fn set_keys(&mut self, keys: &[Arc<VendorKey>], now: Instant) -> Vec<Arc<str>> {
        let mut before = std::mem::take(&mut self.keys);
        for new in keys {
            let old = before.remove(&new.name);
            let kept = old.filter(|old| old.secret == new.key);
            let key = kept.unwrap_or_else(|| Key {
                secret: new.key.clone(),
                budget: Budget::new(self.per_minute_max, now),
                breaker: Breaker::new(KEY_FAILURES_MAX, KEY_PAUSE_MAX),
            });
            self.keys.insert(Arc::clone(&new.name), key);
        }
        before.into_keys().collect()
    }

    /// Whether the vendor may be asked for a task or a list with a key.
    pub(super) fn may_use(&self, name: &str, now: Instant) -> bool {
        self.may_ask(Asks::Tasks, name, now)
    }

    fn may_ask(&self, asks: Asks, name: &str, now: Instant) -> bool {
        self.host.lets_through(now)
            && (asks == Asks::Nothing || !self.wants_probe(now))
            && self
                .keys
                .get(name)
                .is_some_and(|key| key.breaker.lets_through(now) && key.budget.left(now) > 0)
    }

    /// Whether the next call has to ask for no task.
    pub(super) fn wants_probe(&self, now: Instant) -> bool {
        self.host.is_open()
            && self.host.lets_through(now)
            && self.host.failed_probes().is_multiple_of(2)
    }

    /// Uses a key once if it may be used.
    pub(super) fn take(&mut self, asks: Asks, name: &str, now: Instant) -> bool {
        if !self.may_ask(asks, name, now) {
            return false;
        }
        let Some(key) = self.keys.get_mut(name) else {
            return false;
        };
        key.breaker.begin(now);
        self.host.begin(now);
        key.budget.take(now)
    }

    /// Notes what the vendor has answered to a call with a key, which began then.
    pub(super) fn note(&mut self, key: &VendorKey, answer: &Answer, began: Instant, now: Instant) {
        self.note_host(answer, began, now);
        let known = self.keys.get_mut(&key.name);
        if let Some(known) = known.filter(|known| known.secret == key.key) {
            known.note(&key.name, answer, began, now);
        }
    }

    fn note_host(&mut self, answer: &Answer, began: Instant, now: Instant) {
        let host = &mut self.host;
        let was_open = host.is_open();
        match answer {
            Answer::Later {
                status: TOO_MANY_REQUESTS,
                ..
            } => host.succeeded(began),
            Answer::Later { retry_after, .. } => host.failed(*retry_after, began, now),
            Answer::Failed(Problem::Broken(_) | Problem::TimedOut) => host.failed(None, began, now),
            // The vendor was not asked.
            Answer::Failed(Problem::NoPath(_) | Problem::NoList(_)) => {
                host.says_nothing(began, now);
            }
            // An answer that cannot be used may be about one task: it must not stop the others.
            Answer::Failed(_)
            | Answer::Body { .. }
            | Answer::NotFound
            | Answer::KeyRefused { .. } => host.succeeded(began),
        }

        match (was_open, host.is_open()) {
            (false, true) => tracing::warn!(
                answer = answer.word(),
                seconds = (host.opens_at(now) - now).as_secs(),
                "the vendor's API fails: it is left alone for so long, and for longer each time that it fails again"
            ),
            (true, false) => tracing::info!("the vendor's API answers again"),
            _ => {}
        }
    }

    /// When one of these keys may be used again.
    pub(super) fn next_at<'a>(
        &self,
        names: impl IntoIterator<Item = &'a Arc<str>>,
        now: Instant,
    ) -> Option<Instant> {
        let host = self.host.opens_at(now);
        let of = |key: &Key| {
            let breaker = key.breaker.opens_at(now);
            key.budget.next_at(now).max(breaker).max(host)
        };
        let keys = names.into_iter().filter_map(|name| self.keys.get(name));
        keys.map(of).min()
    }

    /// How often each key may be used at once.
    pub(super) fn left(&self, now: Instant) -> impl Iterator<Item = (&Arc<str>, u32)> {
        self.keys
            .iter()
            .map(move |(name, key)| (name, key.budget.left(now)))
    }

    /// Which keys rest now, because the vendor fails or has had too many calls of them.
    pub(super) fn paused(&self, now: Instant) -> impl Iterator<Item = (&Arc<str>, bool)> {
        let rests = move |breaker: &Breaker| !breaker.lets_through(now);
        self.keys
            .iter()
            .map(move |(name, key)| (name, rests(&self.host) || rests(&key.breaker)))
    }
}

impl Key {
    /// Notes what the vendor has answered to a call with it.
    fn note(&mut self, name: &str, answer: &Answer, began: Instant, now: Instant) {
        let was_open = self.breaker.is_open();
        match answer {
            Answer::Later {
                status: TOO_MANY_REQUESTS,
                retry_after,
            } => self.breaker.failed(*retry_after, began, now),
            // They are about the host.
            Answer::Later { .. }
            | Answer::Failed(
                Problem::Broken(_) | Problem::TimedOut | Problem::NoPath(_) | Problem::NoList(_),
            ) => self.breaker.says_nothing(began, now),
            Answer::Failed(_)
            | Answer::Body { .. }
            | Answer::NotFound
            | Answer::KeyRefused { .. } => self.breaker.succeeded(began),
        }

        if self.breaker.is_open() && !was_open {
            self.budget.slow_down(now);
            tracing::warn!(
                key = name,
                seconds = (self.breaker.opens_at(now) - now).as_secs(),
                "the vendor has had too many calls of the key: it rests for so long, and is then used less often; \
                 look whether services use it, too"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::credentials::Credentials;

    const GOOD: Answer = Answer::NotFound;
    const BROKEN: Answer = Answer::Failed(Problem::TimedOut);

    fn later(status: u16) -> Answer {
        Answer::Later {
            status,
            retry_after: None,
        }
    }

    /// Keys of these names and secrets.
    fn keys(lines: &[(&str, &str)]) -> Vec<Arc<VendorKey>> {
        let line = |(name, key): &(&str, &str)| {
            format!("[[vendor_keys]]\nname = {name:?}\nkey = {key:?}\n")
        };
        let credentials = Credentials::parse(&lines.iter().map(line).collect::<String>()).unwrap();
        credentials.vendor_keys().map(Arc::new).collect()
    }

    fn key(name: &str) -> Arc<VendorKey> {
        keys(&[(name, name)]).remove(0)
    }

    /// Limits with the keys a and b, and a time when both may be used.
    fn limits() -> (Limits, Instant) {
        let start = Instant::now();
        let mut limits = Limits::new(50);
        limits.set_keys(&keys(&[("a", "a"), ("b", "b")]), start);
        assert!(!limits.may_use("a", start), "empty at the start");
        (limits, start + Duration::from_secs(60))
    }

    #[test]
    fn each_key_has_what_is_left_of_its_own() {
        let (mut limits, now) = limits();
        assert_eq!(
            (0..9)
                .filter(|_| limits.take(Asks::Tasks, "a", now))
                .count(),
            5
        );
        let left: Vec<_> = limits.left(now).map(|(_, left)| left).collect();
        assert_eq!(left, [0, 5]);
        let a = limits.next_at([&"a".into()], now).unwrap();
        assert!(a > now);
        assert_eq!(limits.next_at([&"a".into(), &"b".into()], now), Some(now));
        assert_eq!(limits.next_at([&"unknown".into()], now), None);
    }

    #[test]
    fn too_many_requests_stop_their_key_alone() {
        let (mut limits, now) = limits();
        assert!(limits.take(Asks::Tasks, "a", now));
        limits.note(&key("a"), &later(429), now, now);
        assert!(!limits.may_use("a", now));
        assert!(limits.may_use("b", now));
        let paused: Vec<_> = limits.paused(now).map(|(_, is_paused)| is_paused).collect();
        assert_eq!(paused, [true, false]);
        let next = limits.next_at([&"a".into()], now).unwrap();
        assert!(limits.may_use("a", next));
    }

    #[test]
    fn a_host_that_fails_thrice_stops_every_key_until_an_answer_comes() {
        for failure in [later(503), BROKEN] {
            let (mut limits, now) = limits();
            for _ in 0..3 {
                assert!(limits.take(Asks::Tasks, "a", now));
                limits.note(&key("a"), &failure, now, now);
            }
            assert!(!limits.may_use("b", now));

            let next = limits.next_at([&"b".into()], now).unwrap();
            assert!(limits.paused(now).all(|(_, is_paused)| is_paused));
            assert!(!limits.may_use("b", next), "it is probed");
            assert!(limits.take(Asks::Nothing, "b", next));
            assert!(!limits.take(Asks::Nothing, "a", next), "by one call");
            assert!(limits.next_at([&"a".into()], next).unwrap() > next);
            limits.note(&key("b"), &GOOD, next, next);
            assert!(limits.may_use("a", next));
        }
    }

    #[test]
    fn one_failure_of_the_host_stops_nobody_whatever_pause_it_asks_for() {
        let (mut limits, now) = limits();
        let asks = Answer::Later {
            status: 503,
            retry_after: Some(Duration::from_secs(3_600)),
        };
        for _ in 0..2 {
            assert!(limits.take(Asks::Tasks, "a", now));
            limits.note(&key("a"), &asks, now, now);
            assert!(limits.may_use("a", now) && limits.may_use("b", now));
        }
        assert!(limits.take(Asks::Tasks, "a", now));
        limits.note(&key("a"), &asks, now, now);
        let next = limits.next_at([&"b".into()], now);
        assert_eq!(next, Some(now + Duration::from_secs(300)));
    }

    #[test]
    fn a_pause_of_a_key_has_a_limit() {
        let (mut limits, now) = limits();
        let asks = Answer::Later {
            status: 429,
            retry_after: Some(Duration::from_secs(3_600)),
        };
        assert!(limits.take(Asks::Tasks, "a", now));
        limits.note(&key("a"), &asks, now, now);
        let next = limits.next_at([&"a".into()], now);
        assert_eq!(next, Some(now + Duration::from_secs(900)));
    }

    #[test]
    fn a_task_that_always_fails_is_not_what_the_host_is_probed_with() {
        let (mut limits, mut now) = limits();
        for _ in 0..3 {
            assert!(limits.take(Asks::Tasks, "a", now));
            limits.note(&key("a"), &later(500), now, now);
        }
        // The vendor fails for no task, too: then for a task, and so on.
        for asks in [Asks::Nothing, Asks::Tasks, Asks::Nothing, Asks::Tasks] {
            now = limits.next_at([&"a".into()], now).unwrap();
            assert_eq!(limits.may_use("a", now), asks == Asks::Tasks);
            assert!(limits.take(asks, "a", now));
            limits.note(&key("a"), &later(500), now, now);
        }

        now = limits.next_at([&"a".into()], now).unwrap();
        assert!(limits.take(Asks::Nothing, "a", now));
        limits.note(&key("a"), &GOOD, now, now);
        assert!(limits.may_use("a", now));
    }

    #[test]
    fn late_answers_that_ask_for_a_pause_do_not_stop_the_broker_for_good() {
        let (mut limits, now) = limits();
        let at = |ms| now + Duration::from_millis(ms);
        for status in [429, 503] {
            let asks = Answer::Later {
                status,
                retry_after: Some(Duration::from_secs(6)),
            };
            for _ in 0..5 {
                assert!(limits.take(Asks::Tasks, "b", now));
            }
            for _ in 0..3 {
                limits.note(&key("b"), &asks, now, at(300));
            }
            assert!(limits.take(Asks::Nothing, "b", at(6_300)));
            for _ in 0..2 {
                limits.note(&key("b"), &asks, now, at(6_700));
            }
            limits.note(&key("b"), &GOOD, at(6_300), at(7_200));
            assert!(limits.paused(at(7_200)).all(|(_, is_paused)| !is_paused));
            limits.set_keys(&[], now);
            limits.set_keys(&keys(&[("b", "b")]), now - Duration::from_secs(60));
        }
    }

    #[test]
    fn a_key_of_which_there_were_too_many_calls_is_used_half_as_often() {
        let (mut limits, now) = limits();
        assert!(limits.take(Asks::Tasks, "a", now) && limits.take(Asks::Tasks, "a", now));
        let next = now + Duration::from_secs(60);
        for _ in 0..2 {
            limits.note(&key("a"), &later(429), now, now); // one for both
        }
        assert!(limits.take(Asks::Tasks, "a", next));
        limits.note(&key("a"), &GOOD, next, next);
        let taken = (0..9).filter(|_| limits.take(Asks::Tasks, "a", next));
        assert_eq!(taken.count(), 2, "three of five at once");
    }

    #[test]
    fn an_answer_that_cannot_be_used_stops_nothing() {
        let (mut limits, now) = limits();
        for _ in 0..5 {
            assert!(limits.take(Asks::Tasks, "a", now));
            limits.note(&key("a"), &Answer::Failed(Problem::Status(400)), now, now);
        }
        assert!(limits.may_use("b", now));
    }

    #[test]
    fn a_key_that_stays_keeps_what_it_has_spent() {
        let (mut limits, now) = limits();
        while limits.take(Asks::Tasks, "a", now) {}
        let gone = limits.set_keys(&keys(&[("a", "a"), ("c", "c")]), now);
        assert_eq!(gone, ["b".into()]);
        assert!(!limits.may_use("a", now));
        assert!(!limits.may_use("b", now), "it is gone");
        let body = Answer::Body {
            status: 200,
            body: Bytes::new(),
        };
        limits.note(&key("b"), &body, now, now);
    }

    #[test]
    fn a_key_with_another_secret_has_nothing_to_spend_yet() {
        let (mut limits, now) = limits();
        while limits.take(Asks::Tasks, "a", now) {}
        limits.set_keys(&keys(&[("b", "a")]), now);
        assert!(!limits.may_use("b", now), "its secret was spent as a");

        // What the old secret is answered says nothing of the new one.
        let next = now + Duration::from_secs(60);
        limits.note(&key("b"), &later(429), next, next);
        assert!(limits.may_use("b", next));
    }

    #[test]
    fn a_pause_that_the_vendor_asks_for_outlasts_the_calls_that_were_under_way() {
        let (mut limits, now) = limits();
        let asks = Answer::Later {
            status: 429,
            retry_after: Some(Duration::from_secs(90)),
        };
        assert!(limits.take(Asks::Tasks, "a", now) && limits.take(Asks::Tasks, "a", now));
        let answered = now + Duration::from_secs(1);
        limits.note(&key("a"), &asks, now, answered);
        limits.note(&key("a"), &GOOD, now, answered);
        assert!(!limits.may_use("a", answered));

        // The host fails then: that says nothing of the key, and another call tries it.
        let next = now + Duration::from_secs(91);
        assert!(limits.take(Asks::Tasks, "a", next));
        limits.note(&key("a"), &later(503), next, next);
        assert!(limits.take(Asks::Tasks, "a", next));
        assert!(!limits.may_use("a", next), "one call tries it");
    }
}
