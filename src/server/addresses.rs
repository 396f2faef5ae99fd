//! Where the three listeners can be reached.

use std::net::SocketAddr;

/// The listeners' addresses: the real ports, also where the configuration says 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// For callbacks.
    pub ingest: SocketAddr,
    /// For subscriptions and all other calls.
    pub grpc: SocketAddr,
    /// For operators.
    pub admin: SocketAddr,
}

/// Whether only this machine reaches an address.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
