//! How fast one client may expect tasks. Pure, and bounded in memory.
//!
//! What is expected and what ends again both stay in the log until the events before them are
//! forgotten, and retention counts events only. Without a limit, a client that expects and cancels in
//! a loop would fill the disk.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::store::EXPECTATIONS_PER_CLIENT_MAX;

/// Tasks that a client may expect at once: all that it may have open, twice.
const AT_ONCE: u32 = 2 * EXPECTATIONS_PER_CLIENT_MAX as u32;
/// Tasks a second beyond that: more than 20,000 that are open for 12 minutes each.
const PER_SECOND: u32 = 30;
/// With so many clients, those that have all of it again are dropped. The credentials file bounds their number.
const IDLE_CLIENTS_MAX: usize = 1_024;

/// The pace of every client.
#[derive(Debug, Default)]
pub(crate) struct ExpectationPace {
    /// When each client will have all of it again.
    full_at: Mutex<HashMap<Option<Arc<str>>, Instant>>,
}

impl ExpectationPace {
    /// Takes so many tasks for a client, or says how long it has to wait for that. At most [`AT_ONCE`].
    pub(super) fn take(
        &self,
        client: Option<Arc<str>>,
        tasks: u32,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock();
        if full_at.len() >= IDLE_CLIENTS_MAX {
            full_at.retain(|_, at| *at > now);
        }
        let at = full_at.entry(client).or_insert(now);
        let after = (*at).max(now) + Duration::from_secs(1) * tasks / PER_SECOND;
        let most = Duration::from_secs(1) * AT_ONCE / PER_SECOND;
        match after.saturating_duration_since(now).checked_sub(most) {
            None | Some(Duration::ZERO) => {
                *at = after;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_expect_many_at_once_and_then_some_each_second() {
        let (pace, now) = (ExpectationPace::default(), Instant::now());
        let take = |name: &str, tasks, at| pace.take(Some(name.into()), tasks, at);
        for _ in 0..AT_ONCE / 1_000 {
            assert_eq!(take("a", 1_000, now), Ok(()));
        }
        let wait = take("a", 300, now).unwrap_err();
        assert_eq!(wait.as_millis().div_ceil(10), 1_000, "{wait:?}");
        let second = Duration::from_secs(1);
        assert!(take("a", 300, now + wait - second / 10).is_err());
        assert_eq!(take("a", 300, now + wait), Ok(()));
        assert!(take("a", 1, now + wait).is_err());
        assert_eq!(take("b", 1_000, now), Ok(()), "another client");
        assert_eq!(pace.take(None, 1_000, now), Ok(()));
    }

    #[test]
    fn clients_that_have_all_of_it_again_are_forgotten() {
        let (pace, now) = (ExpectationPace::default(), Instant::now());
        for number in 0..2 * IDLE_CLIENTS_MAX {
            let at = now + Duration::from_secs(number as u64);
            let client = Some(number.to_string().into());
            assert_eq!(pace.take(client, 1, at), Ok(()));
            assert!(pace.full_at.lock().len() <= IDLE_CLIENTS_MAX);
        }
    }
}
