//! A client that may read events: its permissions, and the token or certificate that authenticates it.
//!
//! A connection verifies its certificate once, when it is opened. A [`Certificate`] belongs to one connection and can become
//! invalid while that is open: when it expires, or when the server withdraws it.

use std::{
    ptr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::{
    binding::Products,
    lifetime::{Generation, Lifetime},
    secret::TokenHash,
};
use crate::event::Labels;

/// The proof of identity that a client's line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A bearer token with this hash, in `authorization: Bearer …`.
    Token(TokenHash),
    /// A certificate for this DNS name, URI, or common name.
    Certificate(String),
}

/// A service that may read events, as one of its proofs authenticates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The name of the client's line in the credentials file.
    pub name: Arc<str>,
    /// The products whose events the client may read.
    pub products: Products,
    /// The client sees only events that carry all of these labels; `None`: no such restriction.
    pub labels: Option<Arc<Labels>>,
    /// Whether the client may use `AdminService`.
    pub admin: bool,
    /// Whether the client may take backups, which hold every product.
    pub backup: bool,
    /// Most streams that the client may have open; `None`: the limit of the configuration.
    pub subscriptions_max: Option<usize>,
    /// Most task ids in one filter of the client; `None`: the limit of the configuration.
    pub task_ids_max: Option<usize>,
    pub(super) proof: Proof,
    pub(super) lifetime: Lifetime,
    pub(super) generation: Generation,
    /// The certificate that the connection presented. `None` for a token, and for a client as it stands in the file.
    pub(super) certificate: Option<Arc<Certificate>>,
}

impl Client {
    /// Which of its tokens the client presented.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// True if the client may see every event.
    pub fn sees_all(&self) -> bool {
        self.products == Products::All && self.labels.is_none()
    }

    /// The certificate name in the client's line; `None` if the client uses a token.
    pub fn certificate_name(&self) -> Option<&str> {
        match &self.proof {
            Proof::Certificate(name) => Some(name),
            Proof::Token(_) => None,
        }
    }

    /// True if neither the client's line nor its certificate has expired, and the certificate is not withdrawn.
    pub fn is_good(&self, now: Timestamp) -> bool {
        !self.is_expired(now) && self.certificate_is_good(now)
    }

    pub(super) fn certificate_is_good(&self, now: Timestamp) -> bool {
        self.certificate
            .as_ref()
            .is_none_or(|certificate| certificate.is_good(now))
    }

    /// True if the line's expiry has passed.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.lifetime.is_over(now)
    }
}

/// One line of `[clients]`: the client as its current proof authenticates it, and as its previous token does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientLine {
    pub client: Arc<Client>,
    pub previous: Option<Arc<Client>>,
}

impl ClientLine {
    /// The client once for each of its proofs.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Client>> {
        [Some(&self.client), self.previous.as_ref()]
            .into_iter()
            .flatten()
    }
}

/// The verified certificate of one connection.
#[derive(Debug)]
pub struct Certificate {
    names: Vec<String>,
    /// The last second in which the certificate is valid, since 1970.
    expires: i64,
    is_withdrawn: AtomicBool,
    /// The last client that was authenticated: as it stands in the file, and with this certificate while it is in use.
    authenticated: Mutex<Option<(Arc<Client>, Weak<Client>)>>,
}

impl Certificate {
    /// A certificate for `names` (DNS names, URIs, and the common name), valid up to and including the second `expires`.
    pub fn new(names: Vec<String>, expires: i64) -> Self {
        Self {
            names,
            expires,
            is_withdrawn: AtomicBool::new(false),
            authenticated: Mutex::default(),
        }
    }

    /// The names that the certificate was issued for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// True if the certificate has neither expired nor been withdrawn.
    pub fn is_good(&self, now: Timestamp) -> bool {
        now.as_second() <= self.expires && !self.is_withdrawn()
    }

    /// True if the certificate was withdrawn, whether or not it has also expired.
    pub(super) fn is_withdrawn(&self) -> bool {
        self.is_withdrawn.load(Relaxed)
    }

    /// Makes the certificate invalid from now on: it was revoked, or its authority is no longer trusted.
    pub fn withdraw(&self) {
        self.is_withdrawn.store(true, Relaxed);
    }

    /// `client` with this certificate. All calls of a connection share one value, so that a call costs little.
    pub(super) fn authenticate(self: &Arc<Self>, client: &Arc<Client>) -> Arc<Client> {
        let mut authenticated = self.authenticated.lock();
        let known = authenticated
            .as_ref()
            .filter(|(known, _)| Arc::ptr_eq(known, client))
            .and_then(|(_, with_certificate)| with_certificate.upgrade());

        known.unwrap_or_else(|| {
            let with_certificate = Arc::new(Client {
                certificate: Some(Arc::clone(self)),
                ..Client::clone(client)
            });
            *authenticated = Some((Arc::clone(client), Arc::downgrade(&with_certificate)));
            with_certificate
        })
    }
}

/// By identity: each value belongs to one connection.
impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        ptr::eq(self, other)
    }
}

impl Eq for Certificate {}
