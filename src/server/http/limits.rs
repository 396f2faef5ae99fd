//! What a listener allows its connections.

use std::time::Duration;

use axum::response::Response;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::activity::Quiet;
use crate::{
    config::{self, Config},
    ingest::{LAST_REQUEST, ToAnybody},
    server::{
        net::places::{Patience, Standing},
        numbers::usize_of,
    },
};

/// How long a closing connection reads on, so that its last answer is not lost to a reset: a large body takes its time.
const LINGER: Duration = Duration::from_secs(2);
/// The same where others wait for it: when the broker stops, and where there was no place for the connection.
const FAREWELL: Duration = Duration::from_millis(500);
/// The admin listener's connections: probes, scrapers and people, with a wide margin; no load balancer comes in here.
const ADMIN_CONNECTIONS_MAX: usize = 128;
/// When all places are taken, a connection has so long to send a request before it gives way to a new one: the handshake and the
/// head of a request take less, also from the other side of the world. With any longer, a client that opens connections faster
/// than they grow old keeps others out. A connection that has brought a callback stays for longer, because the next one may be on
/// its way; but not for ever, or a few senders would hold all places.
pub(super) const PATIENCE: Patience = Patience {
    unauthenticated: Some(Duration::from_secs(1)),
    authenticated: Some(Duration::from_secs(5)),
};
/// Headers of one request to the admin listener, in bytes and in number: the ingest listener's defaults.
const ADMIN_HEADER_BYTES_MAX: usize = 16 * 1024;
const ADMIN_HEADERS_MAX: usize = 64;
/// Time for them to arrive, and for an idle connection to send another request: longer than the usual 15 s between two scrapes.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to take some of an answer. Answers are small, so only a client that does not read at all needs longer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Limits {
    pub(super) connections_max: usize,
    pub(super) patience: Patience,
    pub(super) header_bytes_max: usize,
    pub(super) headers_max: usize,
    pub(super) quiet: Quiet,
    /// How long a client may take to take some of an answer.
    pub(super) write_timeout: Duration,
    pub(super) linger: Duration,
    pub(super) farewell: Duration,
    /// Whether a success shows that its client was let in. If not, nothing is asked of clients, and all stay unauthenticated.
    pub(super) lets_in: bool,
    /// Whether a client that has closed its sending side is still answered. If not, it counts as gone, and its requests are dropped.
    pub(super) half_close: bool,
    /// Whether requests have their [`Connection`](super::Connection).
    pub(super) tells_connection: bool,
    /// How long a connection stays open for a request that may be on its way when the broker stops. A connection on which nothing
    /// is being answered after that is closed, so that no client can hold up a restart by sending nothing, little, or too much.
    pub(super) last_request: Duration,
}

impl Limits {
    /// The ingest listener's.
    pub(in crate::server) fn ingest(config: &config::Ingest) -> Self {
        Self {
            connections_max: usize_of(config.connections_max),
            patience: PATIENCE,
            header_bytes_max: usize_of(config.header_bytes_max),
            headers_max: usize_of(config.headers_max),
            quiet: Quiet {
                header_timeout: config.header_timeout,
                idle_timeout: config.idle_timeout,
            },
            write_timeout: WRITE_TIMEOUT,
            linger: LINGER,
            farewell: FAREWELL,
            lets_in: true,
            half_close: true,
            tells_connection: false,
            last_request: LAST_REQUEST,
        }
    }

    /// The admin listener's: few connections, with time.
    pub(in crate::server) fn admin() -> Self {
        Self {
            connections_max: ADMIN_CONNECTIONS_MAX,
            patience: PATIENCE,
            header_bytes_max: ADMIN_HEADER_BYTES_MAX,
            headers_max: ADMIN_HEADERS_MAX,
            quiet: Quiet {
                header_timeout: ADMIN_TIMEOUT,
                idle_timeout: ADMIN_TIMEOUT,
            },
            write_timeout: WRITE_TIMEOUT,
            linger: LINGER,
            farewell: FAREWELL,
            lets_in: false,
            half_close: false, // an answer may take as long as a disk that hangs
            tells_connection: true, // the console makes calls of requests
            last_request: Duration::ZERO, // scrapers and probes ask again by themselves
        }
    }

    /// Those of HTTP/1.1 on the gRPC listener, which admits calls itself: the ingest listener's against slow senders, and for
    /// answers the time that gRPC's may stay unread.
    pub(in crate::server) fn grpc(config: &Config) -> Self {
        Self {
            write_timeout: config.grpc.stall_timeout,
            lets_in: false,
            half_close: false, // a stream ends with its client
            last_request: Duration::ZERO,
            ..Self::ingest(&config.ingest)
        }
    }

    /// Marks a connection as a client's once a request on it was accepted.
    pub(super) fn note_client(&self, standing: &Standing, answer: &Response) {
        let is_client = self.lets_in
            && answer.status().is_success()
            && answer.extensions().get::<ToAnybody>().is_none();
        if is_client {
            standing.mark_authenticated();
        }
    }

    /// Completes when the broker stops and the time for last requests is over.
    pub(super) async fn last_request_over(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        sleep(self.last_request).await;
    }

    /// Completes when the broker stops and closing connections are not waited for any longer.
    pub(super) async fn farewell_over(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        sleep(self.farewell).await;
    }
}
