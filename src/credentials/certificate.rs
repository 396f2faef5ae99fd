//! A client's certificate, as it was verified when its connection was opened. It may cease to be good while that is open.

use std::{
    ptr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use jiff::Timestamp;

use super::Client;

/// See the module's description.
#[derive(Debug)]
pub struct Certificate {
    names: Vec<String>,
    /// The last second that it is good in, since 1970.
    expires: i64,
    is_withdrawn: AtomicBool,
    /// The client that was let in by it last: as the file has it, and with this certificate, while somebody holds that.
    let_in: Mutex<Option<(Arc<Client>, Weak<Client>)>>,
}

impl Certificate {
    /// One that stands for `names` (DNS names, URIs, and the common name) up to and with that second.
    pub fn new(names: Vec<String>, expires: i64) -> Self {
        Self {
            names,
            expires,
            is_withdrawn: AtomicBool::new(false),
            let_in: Mutex::default(),
        }
    }

    /// What it stands for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether it has neither expired nor been withdrawn.
    pub fn is_good(&self, now: Timestamp) -> bool {
        now.as_second() <= self.expires && !self.is_withdrawn()
    }

    /// Whether it was withdrawn, which says nothing about its time.
    pub(super) fn is_withdrawn(&self) -> bool {
        self.is_withdrawn.load(Relaxed)
    }

    /// From now on it is not good: it was revoked, or nobody who is trusted vouches for it any more.
    pub fn withdraw(&self) {
        self.is_withdrawn.store(true, Relaxed);
    }

    /// `client` as one that has shown this certificate; the same for all calls of a connection, so that each costs little.
    pub(super) fn lets_in(self: &Arc<Self>, client: &Arc<Client>) -> Arc<Client> {
        let mut let_in = self.let_in.lock().unwrap_or_else(PoisonError::into_inner);
        let known = let_in
            .as_ref()
            .filter(|(known, _)| Arc::ptr_eq(known, client))
            .and_then(|(_, shown)| shown.upgrade());

        known.unwrap_or_else(|| {
            let shown = Arc::new(Client {
                shown: Some(Arc::clone(self)),
                ..Client::clone(client)
            });
            *let_in = Some((Arc::clone(client), Arc::downgrade(&shown)));
            shown
        })
    }
}

/// Each is that of one connection.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

impl Eq for Certificate {}
