//! The requests that the simulated vendor has seen: a record for tests, and what each key may still ask for. Bounded.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

/// The time to which the limit of checks applies.
const WINDOW: Duration = Duration::from_secs(60);
/// Requests in the record; the oldest are dropped.
const RECORD_MAX: usize = 10_000;
/// Longest method and target in the record, each. Keys are not longer either.
pub(super) const TEXT_BYTES_MAX: usize = 1_024;
/// Keys whose checks are counted. Beyond that the key that has been quiet for longest is forgotten.
const KEYS_MAX: usize = 1_000;

/// A request that the simulated vendor has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRequest {
    /// When it came, by the clock of the runtime.
    pub at: Instant,
    /// When it came.
    pub time: Timestamp,
    /// The method: GET or POST.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The key, if it had one.
    pub key: Option<String>,
    /// The HTTP status of the answer; 0 if there is none yet, or none at all.
    pub http_status: u16,
}

impl SeenRequest {
    /// True for a request of the status API: of one task, or of a list.
    pub fn is_check(&self) -> bool {
        self.method == "GET"
    }
}

/// The most requests within any `window`, of one key, or of all if `key` is `None`.
pub fn most_within(requests: &[SeenRequest], key: Option<&str>, window: Duration) -> usize {
    let times: Vec<_> = requests
        .iter()
        .filter(|request| key.is_none() || request.key.as_deref() == key)
        .map(|request| request.at)
        .collect();
    let within = |start: &Instant| {
        let inside = |time: &&Instant| **time >= *start && **time - *start < window;
        times.iter().filter(inside).count()
    };
    times.iter().map(within).max().unwrap_or_default()
}

/// The last requests.
#[derive(Debug, Default)]
pub(super) struct Record {
    seen: VecDeque<SeenRequest>,
    dropped: u64,
}

impl Record {
    /// Adds a request, and returns its number.
    pub(super) fn add(&mut self, request: SeenRequest) -> u64 {
        self.seen.push_back(request);
        if self.seen.len() > RECORD_MAX {
            self.seen.pop_front();
            self.dropped += 1;
        }
        self.dropped + self.seen.len() as u64 - 1
    }

    pub(super) fn answered(&mut self, number: u64, http_status: u16) {
        let place = number.checked_sub(self.dropped);
        let place = place.and_then(|place| usize::try_from(place).ok());
        if let Some(request) = place.and_then(|place| self.seen.get_mut(place)) {
            request.http_status = http_status;
        }
    }

    pub(super) fn all(&self) -> Vec<SeenRequest> {
        self.seen.iter().cloned().collect()
    }

    pub(super) fn clear(&mut self) {
        self.dropped += self.seen.len() as u64;
        self.seen.clear();
    }
}

/// The text, cut to what is kept of it.
pub(super) fn short(text: &str) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    text[..end.unwrap_or_default()].to_owned()
}

/// The checks of each key within the last minute.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    by_key: BTreeMap<String, VecDeque<Instant>>,
}

impl Budgets {
    /// Counts a check, or returns the time until the next one is allowed. A refused check does not count.
    pub(super) fn take(&mut self, key: &str, now: Instant, most: usize) -> Result<(), Duration> {
        if !self.by_key.contains_key(key) && self.by_key.len() >= KEYS_MAX {
            self.forget_the_quietest();
        }
        let times = self.by_key.entry(key.to_owned()).or_default();
        while times.front().is_some_and(|&time| now - time >= WINDOW) {
            times.pop_front();
        }
        if times.len() < most {
            times.push_back(now);
            return Ok(());
        }
        let free_at = times.front().map_or(now + WINDOW, |&time| time + WINDOW);
        Err(free_at - now)
    }

    fn forget_the_quietest(&mut self) {
        let quietest = self.by_key.iter().min_by_key(|(_, times)| times.back());
        if let Some(key) = quietest.map(|(key, _)| key.clone()) {
            self.by_key.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at: Instant, key: &str) -> SeenRequest {
        SeenRequest {
            at,
            time: Timestamp::UNIX_EPOCH,
            method: "GET".into(),
            target: "/".into(),
            key: Some(key.into()),
            http_status: 0,
        }
    }

    #[tokio::test]
    async fn a_key_has_its_checks_of_any_minute() {
        let (mut budgets, start) = (Budgets::default(), Instant::now());
        let second = Duration::from_secs(1);
        for n in 0..60 {
            assert_eq!(budgets.take("a", start + n * second / 2, 60), Ok(()));
        }
        assert_eq!(budgets.take("a", start + 59 * second, 60), Err(second));
        assert_eq!(budgets.take("b", start + 59 * second, 60), Ok(()));
        assert_eq!(budgets.take("a", start + 60 * second, 60), Ok(()));
        assert_eq!(budgets.take("a", start + 60 * second, 60), Err(second / 2));
    }

    #[tokio::test]
    async fn counting_keys_takes_bounded_memory() {
        let (mut budgets, start) = (Budgets::default(), Instant::now());
        for n in 0..2 * KEYS_MAX {
            let now = start + Duration::from_millis(n as u64);
            assert_eq!(budgets.take(&n.to_string(), now, 60), Ok(()));
        }
        assert_eq!(budgets.by_key.len(), KEYS_MAX);
        assert!(budgets.by_key.contains_key(&(2 * KEYS_MAX - 1).to_string()));
    }

    #[tokio::test]
    async fn the_record_keeps_the_last_requests_and_their_answers() {
        let (mut record, start) = (Record::default(), Instant::now());
        for _ in 0..RECORD_MAX {
            record.add(seen(start, "k"));
        }
        let mut long = seen(start, "k");
        long.target = short(&format!("/{}", "ä".repeat(TEXT_BYTES_MAX)));
        let number = record.add(long);
        record.answered(number, 404);
        record.answered(0, 500); // dropped meanwhile
        let all = record.all();
        assert_eq!(all.len(), RECORD_MAX);
        assert_eq!(all[RECORD_MAX - 1].http_status, 404);
        assert_eq!(all[RECORD_MAX - 1].target.len(), TEXT_BYTES_MAX - 1);
        assert!(all.iter().all(|request| request.http_status != 500));
    }

    #[tokio::test]
    async fn the_busiest_window_is_found_wherever_it_lies() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let requests = [0, 50, 55, 59, 61, 109].map(|second| seen(at(second), "k"));
        let minute = Duration::from_secs(60);
        assert_eq!(most_within(&requests, Some("k"), minute), 5);
        assert_eq!(most_within(&requests, Some("other"), minute), 0);
        assert_eq!(most_within(&requests, None, Duration::from_secs(1)), 1);
    }
}
