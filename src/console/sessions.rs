//! Who is logged in, and the codes of links that log in once. In memory: a restart ends them all.
//!
//! Only hashes of what browsers hold are kept. A session is no more than its client's credential: each request asks whether that is
//! still good.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use ring::digest;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::credentials::{Client, new_secret};

/// A session without a request ends.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(30 * 60);
/// A session ends, whatever happens: a working day.
const SESSION_MAX: Duration = Duration::from_secs(12 * 3600);
/// From the terminal to the browser.
const CODE_MAX: Duration = Duration::from_secs(60);
/// Sessions and codes of one client, each. The one that was not used for longest makes room.
const OF_ONE_CLIENT: usize = 32;

type Hash = [u8; 32];

/// The sessions and codes of one broker.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    sessions: HashMap<Hash, Entry>,
    codes: HashMap<Hash, Entry>,
}

#[derive(Debug)]
struct Entry {
    client: Arc<Client>,
    began: Instant,
    used: Instant,
    /// Cancelled when the entry goes, whatever the cause.
    over: DropGuard,
}

/// A session that is open.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub client: Arc<Client>,
    /// When it ends at the latest.
    pub ends: Instant,
    /// Cancelled when it has ended before: by a log-out, or because its client has logged in too often.
    pub over: CancellationToken,
}

impl Sessions {
    /// Begins a session, and returns the secret of its cookie.
    pub(crate) fn begin(&self, client: Arc<Client>, now: Instant) -> String {
        keep(&mut self.0.lock().sessions, client, now, is_open)
    }

    /// The session of a cookie, which counts as used.
    pub(crate) fn find(&self, secret: &str, now: Instant) -> Option<Session> {
        let (hash, mut kept) = (hash(secret), self.0.lock());
        let entry = kept.sessions.get_mut(&hash)?;
        if !is_open(entry, now) {
            kept.sessions.remove(&hash);
            return None;
        }
        entry.used = now;
        Some(Session {
            client: Arc::clone(&entry.client),
            ends: entry.began + SESSION_MAX,
            over: entry.over.token().clone(),
        })
    }

    /// Ends a session.
    pub(crate) fn end(&self, secret: &str) {
        self.0.lock().sessions.remove(&hash(secret));
    }

    /// A code that logs in once.
    pub(crate) fn code(&self, client: Arc<Client>, now: Instant) -> String {
        keep(&mut self.0.lock().codes, client, now, is_fresh)
    }

    /// The client of a code, which is good no more.
    pub(crate) fn redeem(&self, code: &str, now: Instant) -> Option<Arc<Client>> {
        let entry = self.0.lock().codes.remove(&hash(code))?;
        is_fresh(&entry, now).then_some(entry.client)
    }
}

fn is_open(entry: &Entry, now: Instant) -> bool {
    now < entry.used + IDLE_MAX && now < entry.began + SESSION_MAX
}

fn is_fresh(entry: &Entry, now: Instant) -> bool {
    now < entry.began + CODE_MAX
}

/// Keeps an entry under a new secret. Those that are over go first, then the oldest of the same client.
fn keep(
    entries: &mut HashMap<Hash, Entry>,
    client: Arc<Client>,
    now: Instant,
    is_good: fn(&Entry, Instant) -> bool,
) -> String {
    entries.retain(|_, entry| is_good(entry, now));
    let of_client = || {
        entries
            .iter()
            .filter(|(_, entry)| entry.client.name == client.name)
    };
    if of_client().count() >= OF_ONE_CLIENT {
        let oldest = of_client()
            .min_by_key(|(_, entry)| entry.used)
            .map(|(&hash, _)| hash);
        oldest.map(|hash| entries.remove(&hash));
    }

    let secret = new_secret(false);
    let entry = Entry {
        client,
        began: now,
        used: now,
        over: CancellationToken::new().drop_guard(),
    };
    entries.insert(hash(&secret), entry);
    secret
}

fn hash(secret: &str) -> Hash {
    let hash = digest::digest(&digest::SHA256, secret.as_bytes());
    hash.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::client_for_tests;

    fn client(name: &str) -> Arc<Client> {
        client_for_tests(name, false)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_it_is_idle_or_old_or_closed() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let secret = sessions.begin(client("ops"), start);
        let mut now = start;
        while now + Duration::from_secs(29 * 60) < start + SESSION_MAX {
            now += Duration::from_secs(29 * 60);
            assert_eq!(&*sessions.find(&secret, now).unwrap().client.name, "ops");
        }
        assert!(sessions.find(&secret, start + SESSION_MAX).is_none());

        let secret = sessions.begin(client("ops"), start);
        assert!(sessions.find(&secret, start + IDLE_MAX).is_none());

        let secret = sessions.begin(client("ops"), start);
        assert!(sessions.find("another", start).is_none());
        let session = sessions.find(&secret, start).unwrap();
        assert!(!session.over.is_cancelled());
        sessions.end(&secret);
        assert!(session.over.is_cancelled());
        assert!(sessions.find(&secret, start).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_code_is_good_once_and_for_a_minute() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let code = sessions.code(client("ops"), now);
        assert!(sessions.find(&code, now).is_none());
        assert!(sessions.redeem(&code, now).is_some());
        assert!(sessions.redeem(&code, now).is_none());
        let code = sessions.code(client("ops"), now);
        assert!(sessions.redeem(&code, now + CODE_MAX).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_logs_in_again_and_again_ends_its_own_oldest_session() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let (ops, other) = (client("ops"), client("other"));
        let of_other = sessions.begin(other, now);
        let first = sessions.begin(Arc::clone(&ops), now);
        let of_first = sessions.find(&first, now).unwrap();
        for second in 1..=OF_ONE_CLIENT as u64 {
            sessions.begin(Arc::clone(&ops), now + Duration::from_secs(second));
        }
        let later = now + Duration::from_secs(60);
        assert!(of_first.over.is_cancelled());
        assert!(sessions.find(&first, later).is_none());
        assert!(sessions.find(&of_other, later).is_some());
    }
}
