//! From an accepted socket to a connection that can be spoken on: who is behind it, whether it may have another one, and TLS.
//! All of it has to be done in one short time, so that a connection which says nothing holds nothing.

pub(crate) mod proxy;
mod shares;
mod stream;
pub(super) mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{sleep, timeout},
};

pub(super) use self::{shares::Share, stream::Stream};
use self::{shares::Shares, tls::Tls};

use crate::network;

/// From the accept to the end of the TLS handshake; a few round trips, also over a bad line.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How often it is said that accepts fail.
const ACCEPT_COMPLAINT: Duration = Duration::from_secs(5);

/// What a connection has to pass first.
#[derive(Clone, Debug)]
pub(super) struct Entrance {
    /// Proxies and load balancers: each stands for many.
    trusted: Arc<[IpNet]>,
    /// They begin each connection with a PROXY header.
    proxy_protocol: bool,
    /// How many connections each other address may have.
    shares: Option<Shares>,
    tls: Option<Arc<Tls>>,
    /// HTTP/2 is to follow, and is waited for.
    expects_preface: bool,
}

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// Its address has as many as it may.
    #[error("too many connections of one address")]
    Share,
    /// It did not say in time what it is.
    #[error("the connection was not opened in time")]
    Timeout,
    /// Not a PROXY header, from somebody who has to send one, or not TLS.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Refused {
    /// The value of the metric's `cause`.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::Share => "address_share",
            Self::Timeout => "timeout",
            Self::Io(_) => "not_understood",
        }
    }
}

/// A connection to be served.
#[derive(Debug)]
pub(super) struct Opened {
    pub stream: Stream,
    /// The client; behind a load balancer with a PROXY header, the one that it names.
    pub client: SocketAddr,
    /// The names in its certificate, if it has shown one that is good.
    pub certificate_names: Arc<[String]>,
    /// Held while it is open.
    share: Option<Share>,
}

impl Opened {
    /// The connection, and what is to be held while it is open.
    pub(super) fn into_parts(self) -> (Stream, Option<Share>) {
        (self.stream, self.share)
    }
}

impl Entrance {
    /// For everybody alike.
    pub(super) fn open_to_all(tls: Option<Arc<Tls>>) -> Self {
        Self { trusted: Arc::default(), proxy_protocol: false, shares: None, tls, expects_preface: false }
    }

    /// With `each_max` connections for each address that is not `trusted`.
    pub(super) fn shared(each_max: usize, trusted: &[IpNet], proxy_protocol: bool, tls: Option<Arc<Tls>>) -> Self {
        let shares = Some(Shares::new(each_max));
        Self { trusted: trusted.into(), proxy_protocol, shares, tls, expects_preface: false }
    }

    /// For connections that begin with HTTP/2's preface, which is read, and has to be replayed.
    pub(super) fn expecting_preface(self) -> Self {
        Self { expects_preface: true, ..self }
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn trusts(&self, address: SocketAddr) -> bool {
        network::contains(&self.trusted, address.ip())
    }

    /// Takes a connection in.
    pub(super) async fn open(&self, stream: TcpStream, peer: SocketAddr) -> Result<Opened, Refused> {
        timeout(OPENING_TIMEOUT, self.open_unhurried(stream, peer)).await.unwrap_or(Err(Refused::Timeout))
    }

    async fn open_unhurried(&self, mut stream: TcpStream, peer: SocketAddr) -> Result<Opened, Refused> {
        let names_client = self.proxy_protocol && self.trusts(peer);
        let client = if names_client { proxy::read(&mut stream, peer).await? } else { peer };
        let share = match &self.shares {
            Some(shares) if !self.trusts(client) => Some(shares.take(client.ip()).ok_or(Refused::Share)?),
            _ => None,
        };
        let (mut stream, certificate_names) = match &self.tls {
            None => (Stream::from(stream), Arc::default()),
            Some(tls) => {
                let stream = tls.accept(stream).await?;
                let certificates = stream.get_ref().1.peer_certificates();
                let names = certificates.and_then(<[_]>::first).map(tls::names).unwrap_or_default();
                (stream.into(), names)
            }
        };
        if self.expects_preface {
            let mut preface = [0; PREFACE.len()];
            stream.read_exact(&mut preface).await?;
            if preface != *PREFACE {
                return Err(io::Error::from(io::ErrorKind::InvalidData).into());
            }
        }
        Ok(Opened { stream, client, certificate_names, share })
    }
}

/// Says why no connection could be taken, and waits: usually there are no file descriptors left, and the next attempt would
/// fail at once.
pub(super) async fn accept_failed(error: &io::Error) {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let is_due = |told: &mut Option<Instant>| {
        let due = told.is_none_or(|told| told.elapsed() >= ACCEPT_COMPLAINT);
        due.then(|| told.replace(Instant::now())).is_some()
    };
    if is_due(&mut TOLD.lock().unwrap_or_else(PoisonError::into_inner)) {
        tracing::warn!(%error, "cannot accept connections: check the limit of open files");
    }
    sleep(ACCEPT_RETRY).await;
}
