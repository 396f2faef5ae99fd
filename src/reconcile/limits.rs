//! Whether the vendor may be asked now: what each key may still spend, and the circuit breakers.
//! Pure.
//!
//! 429 is about a key, so it stops that key. Other answers to try again later, and no answer at all,
//! are about the host, so they stop everything.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;

use super::{
    breaker::Breaker,
    budget::Budget,
    vendor_api::{Answer, Problem},
};

/// So many failures of the host in a row stop everything: one may be by chance.
const HOST_FAILURES_MAX: u32 = 3;
/// One 429 stops its key: the next would be answered alike.
const KEY_FAILURES_MAX: u32 = 1;
const TOO_MANY_REQUESTS: u16 = 429;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Limits {
    per_minute_max: u32,
    keys: BTreeMap<Arc<str>, Key>,
    host: Breaker,
}

#[derive(Debug)]
struct Key {
    budget: Budget,
    breaker: Breaker,
}

impl Limits {
    /// Without keys.
    pub(super) fn new(per_minute_max: u32) -> Self {
        Self {
            per_minute_max,
            keys: BTreeMap::new(),
            host: Breaker::new(HOST_FAILURES_MAX),
        }
    }

    /// Keeps these keys and no other; returns the names of those that are gone. New ones have nothing to spend yet.
    pub(super) fn set_keys(&mut self, names: Vec<Arc<str>>, now: Instant) -> Vec<Arc<str>> {
        let mut before = std::mem::take(&mut self.keys);
        let new = || Key {
            budget: Budget::new(self.per_minute_max, now),
            breaker: Breaker::new(KEY_FAILURES_MAX),
        };
        let keys = names.into_iter().map(|name| {
            let key = before.remove(&name).unwrap_or_else(new);
            (name, key)
        });
        self.keys = keys.collect();
        before.into_keys().collect()
    }

    /// Whether the vendor may be asked with a key.
    pub(super) fn may_use(&self, name: &str, now: Instant) -> bool {
        self.host.lets_through(now)
            && self
                .keys
                .get(name)
                .is_some_and(|key| key.breaker.lets_through(now) && key.budget.left(now) > 0)
    }

    /// Uses a key once if it may be used.
    pub(super) fn take(&mut self, name: &str, now: Instant) -> bool {
        if !self.may_use(name, now) {
            return false;
        }
        let Some(key) = self.keys.get_mut(name) else {
            return false;
        };
        key.breaker.begin();
        self.host.begin();
        key.budget.take(now)
    }

    /// Notes what the vendor has answered to a key.
    pub(super) fn note(&mut self, name: &str, answer: &Answer, now: Instant) {
        let key = self.keys.get_mut(name).map(|key| &mut key.breaker);
        match answer {
            Answer::Later {
                status: TOO_MANY_REQUESTS,
                retry_after,
            } => {
                self.host.succeeded();
                if let Some(key) = key {
                    key.failed(*retry_after, now);
                }
                return;
            }
            Answer::Later { retry_after, .. } => self.host.failed(*retry_after, now),
            Answer::Failed(Problem::Broken(_) | Problem::TimedOut) => self.host.failed(None, now),
            // An answer that cannot be used may be about one task: it must not stop the others.
            Answer::Failed(_)
            | Answer::Body { .. }
            | Answer::NotFound
            | Answer::KeyRefused { .. } => {
                self.host.succeeded();
            }
        }
        if let Some(key) = key {
            key.succeeded();
        }
    }

    /// When one of these keys may be used again; `None` if that depends on an answer.
    pub(super) fn next_at<'a>(
        &self,
        names: impl IntoIterator<Item = &'a Arc<str>>,
        now: Instant,
    ) -> Option<Instant> {
        let host = self.host.opens_at(now)?;
        let of = |key: &Key| {
            let breaker = key.breaker.opens_at(now)?;
            Some(key.budget.next_at(now).max(breaker).max(host))
        };
        let keys = names.into_iter().filter_map(|name| self.keys.get(name));
        keys.filter_map(of).min()
    }

    /// How often each key may be used at once.
    pub(super) fn left(&self, now: Instant) -> impl Iterator<Item = (&Arc<str>, u32)> {
        self.keys
            .iter()
            .map(move |(name, key)| (name, key.budget.left(now)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    const GOOD: Answer = Answer::NotFound;
    const BROKEN: Answer = Answer::Failed(Problem::TimedOut);

    fn later(status: u16) -> Answer {
        Answer::Later {
            status,
            retry_after: None,
        }
    }

    /// Limits with the keys a and b, and a time when both may be used.
    fn limits() -> (Limits, Instant) {
        let start = Instant::now();
        let mut limits = Limits::new(50);
        limits.set_keys(vec!["a".into(), "b".into()], start);
        assert!(!limits.may_use("a", start), "empty at the start");
        (limits, start + Duration::from_secs(60))
    }

    #[test]
    fn each_key_has_what_is_left_of_its_own() {
        let (mut limits, now) = limits();
        assert_eq!((0..9).filter(|_| limits.take("a", now)).count(), 5);
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
        assert!(limits.take("a", now));
        limits.note("a", &later(429), now);
        assert!(!limits.may_use("a", now));
        assert!(limits.may_use("b", now));
        let next = limits.next_at([&"a".into()], now).unwrap();
        assert!(limits.may_use("a", next));
    }

    #[test]
    fn a_host_that_fails_thrice_stops_every_key_until_an_answer_comes() {
        for failure in [later(503), BROKEN] {
            let (mut limits, now) = limits();
            for _ in 0..3 {
                assert!(limits.take("a", now));
                limits.note("a", &failure, now);
            }
            assert!(!limits.may_use("b", now));

            let next = limits.next_at([&"b".into()], now).unwrap();
            assert!(limits.take("b", next));
            assert!(!limits.may_use("a", next), "one call tries it");
            assert_eq!(limits.next_at([&"a".into()], next), None);
            limits.note("b", &GOOD, next);
            assert!(limits.may_use("a", next));
        }
    }

    #[test]
    fn an_answer_that_cannot_be_used_stops_nothing() {
        let (mut limits, now) = limits();
        for _ in 0..5 {
            assert!(limits.take("a", now));
            limits.note("a", &Answer::Failed(Problem::Status(400)), now);
        }
        assert!(limits.may_use("b", now));
    }

    #[test]
    fn a_key_that_stays_keeps_what_it_has_spent() {
        let (mut limits, now) = limits();
        while limits.take("a", now) {}
        let gone = limits.set_keys(vec!["a".into(), "c".into()], now);
        assert_eq!(gone, ["b".into()]);
        assert!(!limits.may_use("a", now));
        assert!(!limits.may_use("b", now), "it is gone");
        let body = Answer::Body {
            status: 200,
            body: Bytes::new(),
        };
        limits.note("b", &body, now);
    }
}
