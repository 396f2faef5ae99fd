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
use crate::credentials::{ApiKey, VendorKey};

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
            host: Breaker::new(HOST_FAILURES_MAX),
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
                breaker: Breaker::new(KEY_FAILURES_MAX),
            });
            self.keys.insert(Arc::clone(&new.name), key);
        }
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

    /// Notes what the vendor has answered to a call with a key, which began then.
    pub(super) fn note(&mut self, key: &VendorKey, answer: &Answer, began: Instant, now: Instant) {
        let host = &mut self.host;
        match answer {
            Answer::Later {
                status: TOO_MANY_REQUESTS,
                ..
            } => host.succeeded(began),
            Answer::Later { retry_after, .. } => host.failed(*retry_after, began, now),
            Answer::Failed(Problem::Broken(_) | Problem::TimedOut) => host.failed(None, began, now),
            // The vendor was not asked.
            Answer::Failed(Problem::NoPath(_) | Problem::NoList(_)) => host.says_nothing(began),
            // An answer that cannot be used may be about one task: it must not stop the others.
            Answer::Failed(_)
            | Answer::Body { .. }
            | Answer::NotFound
            | Answer::KeyRefused { .. } => host.succeeded(began),
        }

        let known = self.keys.get_mut(&key.name);
        let Some(known) = known.filter(|known| known.secret == key.key) else {
            return;
        };
        match answer {
            Answer::Later {
                status: TOO_MANY_REQUESTS,
                retry_after,
            } => known.breaker.failed(*retry_after, began, now),
            // They are about the host.
            Answer::Later { .. }
            | Answer::Failed(
                Problem::Broken(_) | Problem::TimedOut | Problem::NoPath(_) | Problem::NoList(_),
            ) => known.breaker.says_nothing(began),
            Answer::Failed(_)
            | Answer::Body { .. }
            | Answer::NotFound
            | Answer::KeyRefused { .. } => known.breaker.succeeded(began),
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
        limits.note(&key("a"), &later(429), now, now);
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
                limits.note(&key("a"), &failure, now, now);
            }
            assert!(!limits.may_use("b", now));

            let next = limits.next_at([&"b".into()], now).unwrap();
            assert!(limits.take("b", next));
            assert!(!limits.may_use("a", next), "one call tries it");
            assert_eq!(limits.next_at([&"a".into()], next), None);
            limits.note(&key("b"), &GOOD, next, next);
            assert!(limits.may_use("a", next));
        }
    }

    #[test]
    fn an_answer_that_cannot_be_used_stops_nothing() {
        let (mut limits, now) = limits();
        for _ in 0..5 {
            assert!(limits.take("a", now));
            limits.note(&key("a"), &Answer::Failed(Problem::Status(400)), now, now);
        }
        assert!(limits.may_use("b", now));
    }

    #[test]
    fn a_key_that_stays_keeps_what_it_has_spent() {
        let (mut limits, now) = limits();
        while limits.take("a", now) {}
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
        while limits.take("a", now) {}
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
        assert!(limits.take("a", now) && limits.take("a", now));
        let answered = now + Duration::from_secs(1);
        limits.note(&key("a"), &asks, now, answered);
        limits.note(&key("a"), &GOOD, now, answered);
        assert!(!limits.may_use("a", answered));

        // The host fails then: that says nothing of the key, and another call tries it.
        let next = now + Duration::from_secs(91);
        assert!(limits.take("a", next));
        limits.note(&key("a"), &later(503), next, next);
        assert!(limits.take("a", next));
        assert!(!limits.may_use("a", next), "one call tries it");
    }
}
