//! Requests that are refused before a route has seen them, and the answers that are written without hyper.

use std::{net::SocketAddr, time::Duration};

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use prometheus::IntCounterVec;
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::OwnedSemaphorePermit};

use super::linger::linger;
use crate::{
    metrics::Outcome,
    server::net::{Refused, TurnedAway},
    trace::{REQUEST_ID, RequestId},
};

/// Connections beyond the limit that are being refused. Beyond this number too, connections wait in the kernel's queue.
pub(super) const REFUSALS_MAX: usize = 256;

pub(super) const TOO_MANY_CONNECTIONS: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 30\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 100\r\n\r\n\
    {\"status\":\"refused\",\"reason\":\"too_many_connections\",\"message\":\"too many connections: send it again\"}";
pub(super) const DRAINING: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 78\r\n\r\n\
    {\"status\":\"refused\",\"reason\":\"draining\",\"message\":\"restarting: send it again\"}";
pub(super) const HEADER_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Why a request was refused before its head was read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unread {
    HeadersTooLarge,
    HeaderTimeout,
    Malformed,
    Draining,
}

impl Unread {
    /// The value of the metric's `outcome`.
    pub(super) fn as_str(self) -> &'static str {
        let outcome = match self {
            Self::HeadersTooLarge => Outcome::HeadersTooLarge,
            Self::HeaderTimeout => Outcome::HeaderTimeout,
            Self::Malformed => Outcome::MalformedRequest,
            Self::Draining => Outcome::Draining,
        };
        outcome.as_str()
    }

    /// The line of the log; `None` for what comes with every restart.
    fn explanation(self) -> Option<&'static str> {
        match self {
            Self::HeadersTooLarge => Some(
                "its headers are more than ingest.header_bytes_max or ingest.headers_max: raise these if they are a proxy's",
            ),
            Self::HeaderTimeout => Some(
                "its headers took longer than ingest.header_timeout: an idle scanner, or a line that hardly works",
            ),
            Self::Malformed => {
                Some("it is no HTTP/1.1: a scanner, or a proxy that is set up for something else")
            }
            Self::Draining => None,
        }
    }

    /// Counts and logs the refusal. `read` is what was read of the request: it may be of another protocol altogether.
    pub(super) fn note(
        self,
        read: &[u8],
        peer: SocketAddr,
        turned_away: &TurnedAway,
        callbacks: Option<&IntCounterVec>,
    ) {
        if matches!(self, Self::Malformed)
            && let Some(refused) = Refused::by_beginning(read)
        {
            turned_away.note(&refused, peer);
        }
        if let Some(callbacks) = callbacks {
            if let Some(explanation) = self.explanation() {
                turned_away.note_unread(self.as_str(), explanation, peer);
            }
            callbacks.with_label_values(&[self.as_str()]).inc();
        }
    }

    /// The answer that is still owed, with an id.
    pub(super) fn answer(self) -> Vec<u8> {
        let answer = match self {
            Self::HeaderTimeout => HEADER_TIMEOUT,
            Self::Draining => DRAINING,
            // hyper has answered these itself.
            Self::HeadersTooLarge | Self::Malformed => b"",
        };
        with_id(answer, self.as_str())
    }
}

/// Refuses a connection for which there is no place. Its `_permit` is one of the [`REFUSALS_MAX`].
pub(super) async fn refuse(
    mut stream: TcpStream,
    patience: Duration,
    _permit: OwnedSemaphorePermit,
) {
    let answer = with_id(TOO_MANY_CONNECTIONS, "too_many_connections");
    if stream.write_all(&answer).await.is_ok() {
        linger(stream, patience).await;
    }
}

/// The answer to an HTTP/2 request with too many headers. Of HTTP/1.1 hyper counts them itself.
pub(super) fn too_many_headers() -> Response {
    let mut response = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response();
    let id = unread_id(Unread::HeadersTooLarge.as_str());
    response.headers_mut().insert(REQUEST_ID, id.into());
    response
}

/// One of these answers with a request id. hyper's own answers (400, 431) have none, and nothing is logged of them.
fn with_id(answer: &[u8], outcome: &str) -> Vec<u8> {
    let Some(end) = answer.windows(2).position(|bytes| bytes == b"\r\n") else {
        return Vec::new();
    };
    let (status, rest) = answer.split_at(end);
    let id = format!("\r\n{REQUEST_ID}: {}", unread_id(outcome));
    [status, id.as_bytes(), rest].concat()
}

/// The id of a request that no route has seen.
fn unread_id(outcome: &str) -> RequestId {
    let id = RequestId::new();
    tracing::debug!(request_id = %id, outcome, "request refused before it was read");
    id
}
