//! What a connection has to pass before it is served: its address' share, a PROXY header, TLS, HTTP/2's preface. All of it has to
//! be done within one short time, so that a connection on which nothing is sent holds nothing.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::{net::TcpStream, time::timeout};

use super::{
    per_address::{Share, Shares},
    preface::{self, Protocol},
    proxy,
    stream::Stream,
    tls::{H2, Tls},
    turned_away::{Beginning, Refused},
};
use crate::{credentials::Certificate, network};

/// From the accept to the end of the TLS handshake; a few round trips, also over a bad line.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection of one listener has to pass first.
#[derive(Clone, Debug)]
pub(in crate::server) struct Entrance {
    /// Proxies and load balancers: each stands for many clients.
    trusted: Arc<[IpNet]>,
    /// Whether they begin each connection with a PROXY header.
    proxy_protocol: bool,
    /// How many connections each other address may have.
    shares: Option<Shares>,
    tls: Option<Arc<Tls>>,
    /// Whether HTTP/2's preface is read, if there is one.
    expects_preface: bool,
}

/// A connection that can be served.
#[derive(Debug)]
pub(in crate::server) struct Opened {
    pub stream: Stream,
    /// The client; behind a load balancer with a PROXY header, the one that the header names.
    pub client: SocketAddr,
    /// The client's certificate, if it has shown one that is good.
    pub certificate: Option<Arc<Certificate>>,
    /// By its first bytes where they are looked at, else by what TLS has agreed on.
    pub protocol: Protocol,
    /// Held while it is open.
    share: Option<Share>,
}

impl Opened {
    /// The connection, and what has to be held while it is open.
    pub(in crate::server) fn into_parts(self) -> (Stream, Option<Share>) {
        (self.stream, self.share)
    }
}

impl Entrance {
    /// Without a limit on the connections of one address.
    pub(in crate::server) fn open_to_all(tls: Option<Arc<Tls>>) -> Self {
        Self {
            trusted: Arc::default(),
            proxy_protocol: false,
            shares: None,
            tls,
            expects_preface: false,
        }
    }

    /// With `each_max` connections for each address that is not `trusted`.
    pub(in crate::server) fn shared(
        each_max: usize,
        trusted: &[IpNet],
        proxy_protocol: bool,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        Self {
            trusted: trusted.into(),
            proxy_protocol,
            shares: Some(Shares::new(each_max)),
            tls,
            expects_preface: false,
        }
    }

    /// For connections that may begin with HTTP/2's preface. It is read here, so it has to be replayed to whatever serves them.
    pub(in crate::server) fn expecting_preface(self) -> Self {
        Self {
            expects_preface: true,
            ..self
        }
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn trusts(&self, address: SocketAddr) -> bool {
        network::contains(&self.trusted, address.ip())
    }

    /// Whether a PROXY header has to name the client.
    fn names_client(&self, peer: SocketAddr) -> bool {
        self.proxy_protocol && self.trusts(peer)
    }

    /// Takes one connection of the address' share, before anything else is spent on it. Where a PROXY header names the client,
    /// that is done later.
    pub(super) fn share(&self, peer: SocketAddr) -> Result<Option<Share>, Refused> {
        if self.names_client(peer) {
            Ok(None)
        } else {
            self.share_of(peer)
        }
    }

    fn share_of(&self, client: SocketAddr) -> Result<Option<Share>, Refused> {
        match &self.shares {
            Some(shares) if !self.trusts(client) => shares
                .take(client.ip())
                .ok_or(Refused::Share(client.ip()))
                .map(Some),
            _ => Ok(None),
        }
    }

    /// Opens a connection that has its address' `share`.
    pub(in crate::server) async fn open(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        share: Option<Share>,
    ) -> Result<Opened, Refused> {
        timeout(OPENING_TIMEOUT, self.open_unhurried(stream, peer, share))
            .await
            .unwrap_or(Err(Refused::Timeout))
    }

    async fn open_unhurried(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        share: Option<Share>,
    ) -> Result<Opened, Refused> {
        let (client, share) = if self.names_client(peer) {
            Beginning::of_stream(&stream).await?;
            let client = proxy::read(&mut stream, peer)
                .await
                .map_err(|_| Refused::ProxyHeaderMissing)?;
            (client, self.share_of(client)?)
        } else {
            (peer, share)
        };

        let mut begun = Beginning::Other;
        if self.tls.is_some() || self.expects_preface {
            begun = Beginning::of_stream(&stream).await?;
        }
        if begun == Beginning::ProxyHeader {
            return Err(Refused::ProxyHeaderUnexpected);
        }

        let (mut stream, certificate) = match &self.tls {
            None => (Stream::from(stream), None),
            Some(tls) => {
                let accepted = tls.accept(stream).await;
                let (stream, certificate) =
                    accepted.map_err(|error| Refused::by_tls(&error, begun))?;
                (stream.into(), certificate)
            }
        };

        let protocol = if self.expects_preface {
            let read = preface::read(&mut stream).await;
            read.map_err(|_| match begun {
                Beginning::Tls if self.tls.is_none() => Refused::TlsUnexpected,
                _ => Refused::NotUnderstood,
            })?
        } else if stream.alpn() == Some(H2) {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        Ok(Opened {
            stream,
            client,
            certificate,
            protocol,
            share,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_has_its_share_is_refused_before_anything_is_spent_on_it() {
        let at = |address: &str| address.parse().unwrap();
        let entrance = Entrance::shared(2, &["192.0.2.0/24".parse().unwrap()], false, None);
        let held = [
            entrance.share(at("198.51.100.7:1")).unwrap(),
            entrance.share(at("198.51.100.7:2")).unwrap(),
        ];
        assert!(held.iter().all(Option::is_some));
        assert!(matches!(
            entrance.share(at("198.51.100.7:3")),
            Err(Refused::Share(_))
        ));
        assert!(
            entrance.share(at("198.51.100.8:1")).unwrap().is_some(),
            "another one has its own"
        );
        drop(held);
        assert!(entrance.share(at("198.51.100.7:3")).is_ok());
        // A proxy that stands for many clients is not counted, nor is a connection whose client has not been named yet.
        for names_client in [false, true] {
            let entrance = Entrance {
                proxy_protocol: names_client,
                ..entrance.clone()
            };
            assert!(entrance.share(at("192.0.2.1:1")).unwrap().is_none());
        }
    }
}
