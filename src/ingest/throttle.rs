//! Rate limit on the refusals of one address. Bounded in memory. Pure.

use std::{
    collections::HashMap,
    mem,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::network;

/// Most addresses with a count of their own, about 4 MiB. Further ones share a count.
const ADDRESSES_MAX: usize = 65_536;
const WINDOW: Duration = Duration::from_secs(60);

/// Counts refusals by address over a sliding minute.
#[derive(Debug)]
pub(super) struct Throttle {
    per_minute_max: u32,
    addresses_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    window_began: Instant,
    current: HashMap<IpAddr, u32>,
    previous: HashMap<IpAddr, u32>,
}

impl Throttle {
    pub(super) fn new(per_minute_max: u32, now: Instant) -> Self {
        let counts = Counts {
            window_began: now,
            current: HashMap::new(),
            previous: HashMap::new(),
        };
        Self {
            per_minute_max,
            addresses_max: ADDRESSES_MAX,
            counts: Mutex::new(counts),
        }
    }

    /// Counts a refusal; true if the address is beyond its limit.
    pub(super) fn is_too_much(&self, address: IpAddr, now: Instant) -> bool {
        let mut counts = self.counts.lock();
        counts.turn(now);
        let mut key = network::of(address);
        if counts.current.len() >= self.addresses_max && !counts.current.contains_key(&key) {
            key = Ipv6Addr::UNSPECIFIED.into();
        }
        let count = counts.current.entry(key).or_default();
        *count = count.saturating_add(1);
        let (count, before) = (*count, counts.previous.get(&key).copied().unwrap_or(0));
        // The previous window's count fades out while the current window passes.
        let left =
            1.0 - now.duration_since(counts.window_began).as_secs_f64() / WINDOW.as_secs_f64();
        f64::from(before) * left + f64::from(count) > f64::from(self.per_minute_max)
    }
}

impl Counts {
    fn turn(&mut self, now: Instant) {
        let windows = now.duration_since(self.window_began).as_nanos() / WINDOW.as_nanos();
        match windows {
            0 => return,
            1 => self.previous = mem::take(&mut self.current),
            _ => (self.previous, self.current) = (HashMap::new(), HashMap::new()),
        }
        self.window_began += WINDOW * u32::try_from(windows).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_share_and_not_more() {
        let now = Instant::now();
        let throttle = Throttle::new(3, now);
        let [one, other] = ["198.51.100.7", "198.51.100.8"].map(address);
        let answers = [one, one, one, one, other].map(|address| throttle.is_too_much(address, now));
        assert_eq!(answers, [false, false, false, true, false]);
    }

    #[test]
    fn the_share_comes_back_over_the_next_minute() {
        let began = Instant::now();
        let throttle = Throttle::new(4, began);
        let one = address("198.51.100.7");
        let at = |seconds| began + Duration::from_secs(seconds);
        (0..4).for_each(|_| assert!(!throttle.is_too_much(one, at(0))));
        assert!(
            throttle.is_too_much(one, at(60)),
            "four a moment ago, and one"
        );
        assert!(
            !throttle.is_too_much(one, at(105)),
            "a quarter of four, and two"
        );
        assert!(
            !throttle.is_too_much(one, at(240)),
            "nothing for more than a minute"
        );
    }

    #[test]
    fn an_ipv6_subscriber_is_one_address() {
        let now = Instant::now();
        let throttle = Throttle::new(1, now);
        assert!(!throttle.is_too_much(address("2001:db8:1:2::1"), now));
        assert!(throttle.is_too_much(address("2001:db8:1:2:ffff::9"), now));
        assert!(!throttle.is_too_much(address("2001:db8:1:3::1"), now));
        assert!(!throttle.is_too_much(address("::ffff:198.51.100.7"), now));
        assert!(throttle.is_too_much(address("198.51.100.7"), now));
    }

    #[test]
    fn a_full_table_counts_the_rest_together_and_never_grows() {
        let now = Instant::now();
        let throttle = Throttle {
            addresses_max: 2,
            ..Throttle::new(1, now)
        };
        let answers: Vec<_> = (1..6)
            .map(|n| throttle.is_too_much(address(&format!("192.0.2.{n}")), now))
            .collect();
        assert_eq!(answers, [false, false, false, true, true]);
        assert!(throttle.counts.lock().current.len() <= 3);
    }
}
