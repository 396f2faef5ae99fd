//! Where a call comes from: its connection, and what one connection may have.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::backlog::Waiting;
use crate::{
    credentials::Client,
    rpc,
    server::{
        http::Connection,
        net::{
            Opened,
            places::{Place, Standing},
        },
    },
    subscription::Heard,
};

/// Health calls of one connection without a credential that have not arrived whole, or whose answers were not taken: a probe has
/// one or a few.
pub(super) const HEALTH_CALLS_MAX: usize = 16;
/// `Watch` streams of one connection, each of which takes 6 KiB. An unauthenticated client has three names to watch; of clients a
/// proxy may put many on one connection.
pub(super) const UNAUTHENTICATED_WATCHES_MAX: usize = 8;
pub(super) const CLIENT_WATCHES_MAX: usize = 256;

/// Where a call comes from; an extension of each request.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub peer: rpc::Peer,
    pub standing: Arc<Standing>,
    pub limits: ConnectionLimits,
    pub waiting: Waiting,
}

impl Origin {
    /// Of a connection that has just been opened.
    pub(super) fn of(opened: &Opened, place: &Place) -> Self {
        Self {
            peer: rpc::Peer {
                address: opened.client,
                certificate: opened.certificate.clone(),
                heard: Heard::default(),
                session: None,
            },
            standing: Arc::clone(place.standing()),
            limits: ConnectionLimits::new(),
            waiting: Waiting::new(&Arc::default()),
        }
    }

    /// Of a request to the console, from a client that is logged in, if that is needed.
    pub(super) fn of_console(connection: &Connection, session: Option<Arc<Client>>) -> Self {
        Self {
            peer: rpc::Peer {
                address: connection.address,
                certificate: None,
                heard: Heard::default(),
                session,
            },
            standing: Arc::clone(&connection.standing),
            limits: ConnectionLimits::new(),
            waiting: Waiting::new(&Arc::default()),
        }
    }

    /// The same connection for a call that no request has made: it does not count as one that waits.
    pub(super) fn aside(&self) -> Self {
        Self {
            peer: self.peer.clone(),
            standing: Arc::clone(&self.standing),
            limits: self.limits.clone(),
            waiting: Waiting::new(&Arc::default()),
        }
    }
}

/// The pools of one connection. A permit for each call.
#[derive(Clone, Debug)]
pub(super) struct ConnectionLimits {
    pub health_calls: Arc<Semaphore>,
    pub unauthenticated_watches: Arc<Semaphore>,
    pub client_watches: Arc<Semaphore>,
}

impl ConnectionLimits {
    pub(super) fn new() -> Self {
        Self {
            health_calls: Arc::new(Semaphore::new(HEALTH_CALLS_MAX)),
            unauthenticated_watches: Arc::new(Semaphore::new(UNAUTHENTICATED_WATCHES_MAX)),
            client_watches: Arc::new(Semaphore::new(CLIENT_WATCHES_MAX)),
        }
    }
}
