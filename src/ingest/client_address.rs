//! The client's address behind trusted proxies. Pure.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header::FORWARDED};
use ipnet::IpNet;

use crate::{config::ForwardedHeader, network};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies that are believed, and the header they are believed by. Only one header is believed: a proxy that writes the one
/// passes the other on as anybody wrote it.
#[derive(Clone, Debug)]
pub struct TrustedProxies {
    /// Their addresses.
    pub networks: Vec<IpNet>,
    /// The header in which they name the client.
    pub header: ForwardedHeader,
}

impl TrustedProxies {
    /// Whether `address` is a trusted proxy's.
    pub fn trust(&self, address: IpAddr) -> bool {
        network::contains(&self.networks, address)
    }

    /// The nearest address that is not a trusted proxy's. The header is read from its right end, where the nearest proxy writes, and only
    /// as far as its addresses are trusted proxies.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trust(client) {
            return client;
        }

        let hops = match self.header {
            ForwardedHeader::XForwardedFor => elements(headers, &X_FORWARDED_FOR)
                .map(node)
                .collect::<Vec<_>>(),
            ForwardedHeader::Forwarded => {
                elements(headers, &FORWARDED).map(forwarded_for).collect()
            }
        };

        for hop in hops.into_iter().rev() {
            // An unreadable element ends the walk: the proxy that wrote it is the last known one.
            let Some(hop) = hop else { break };
            client = hop;
            if !self.trust(client) {
                break;
            }
        }

        client
    }
}

/// The comma-separated elements of all headers of that name, in order. They are cut apart before they are parsed, so that nothing that a
/// client sends can spoil what its proxy has appended.
fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let elements = headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    elements.map(|element| str::from_utf8(element).unwrap_or("?").trim())
}

/// The `for` of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = element
        .split(';')
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs
        .into_iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    node(value.trim_matches('"'))
}

/// An address as proxies write it: with or without a port, IPv6 with or without brackets.
fn node(text: &str) -> Option<IpAddr> {
    let ip = || text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    ip().or_else(with_port)
        .or_else(bracketed)
        .map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(
        header: ForwardedHeader,
        peer: &str,
        headers: &[(&'static str, &'static str)],
    ) -> String {
        let networks = ["10.0.0.0/8", "fd00::/8"]
            .map(|network| network.parse().unwrap())
            .to_vec();
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let headers = headers.fold(HeaderMap::new(), |mut map, (name, value)| {
            map.append(name, value);
            map
        });
        TrustedProxies { networks, header }
            .client(peer.parse().unwrap(), &headers)
            .to_string()
    }

    #[test]
    fn x_forwarded_for_is_walked_from_the_right_while_proxies_are_trusted() {
        let client = |peer, headers: &[_]| client(ForwardedHeader::XForwardedFor, peer, headers);
        let xff = |value| [("x-forwarded-for", value)];
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &xff("198.51.100.7")), "198.51.100.7");
        assert_eq!(
            client("10.0.0.1", &xff("203.0.113.9, 198.51.100.7, 10.2.3.4")),
            "198.51.100.7"
        );
        assert_eq!(client("10.0.0.1", &xff("10.9.9.9,10.2.3.4")), "10.9.9.9");
        let two = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "198.51.100.7"),
        ];
        assert_eq!(client("10.0.0.1", &two), "198.51.100.7");
        assert_eq!(client("fd00::1", &xff("2001:db8::7")), "2001:db8::7");
        assert_eq!(
            client("10.0.0.1", &xff("[2001:db8::7]:443, 10.0.0.9:80")),
            "2001:db8::7"
        );
        assert_eq!(
            client("::ffff:10.0.0.1", &xff("::ffff:198.51.100.7")),
            "198.51.100.7"
        );
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let xff = [
            ("x-forwarded-for", "198.51.100.7"),
            ("forwarded", "for=198.51.100.7"),
        ];
        for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
            assert_eq!(client(header, "203.0.113.1", &xff), "203.0.113.1");
        }
    }

    #[test]
    fn only_the_header_that_the_proxies_write_is_believed() {
        let both = [
            ("x-forwarded-for", "198.51.100.7"),
            ("forwarded", "for=203.0.113.9"),
        ];
        assert_eq!(
            client(ForwardedHeader::XForwardedFor, "10.0.0.1", &both),
            "198.51.100.7"
        );
        assert_eq!(
            client(ForwardedHeader::Forwarded, "10.0.0.1", &both),
            "203.0.113.9"
        );
    }

    #[test]
    fn what_cannot_be_read_ends_the_walk() {
        let client = |value| {
            client(
                ForwardedHeader::XForwardedFor,
                "10.0.0.1",
                &[("x-forwarded-for", value)],
            )
        };
        assert_eq!(client("198.51.100.7, unknown"), "10.0.0.1");
        assert_eq!(client("198.51.100.7, unknown, 10.3.3.3"), "10.3.3.3");
        assert_eq!(client(""), "10.0.0.1");
    }

    #[test]
    fn nothing_that_a_client_sends_hides_it_behind_its_proxy() {
        let networks = vec!["10.0.0.0/8".parse().unwrap()];
        let proxies = TrustedProxies {
            networks,
            header: ForwardedHeader::XForwardedFor,
        };
        for sent in [
            &b"\xff"[..],
            "ümlaut".as_bytes(),
            b"10.0.0.7",
            b"\"",
            b"a\tb",
            b",",
            b"",
        ] {
            let value = HeaderValue::from_bytes(&[sent, b", 198.51.100.7"].concat()).unwrap();
            let headers = HeaderMap::from_iter([(X_FORWARDED_FOR, value)]);
            let client = proxies.client([10, 0, 0, 1].into(), &headers).to_string();
            assert_eq!(client, "198.51.100.7", "{}", sent.escape_ascii());
        }
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_has_it() {
        let client = |value| {
            client(
                ForwardedHeader::Forwarded,
                "10.0.0.1",
                &[("forwarded", value)],
            )
        };
        assert_eq!(
            client("for=198.51.100.7;proto=https;by=10.0.0.1"),
            "198.51.100.7"
        );
        assert_eq!(
            client("For=\"[2001:db8:cafe::17]:4711\""),
            "2001:db8:cafe::17"
        );
        assert_eq!(
            client("for=203.0.113.9, for=198.51.100.7, for=10.2.2.2"),
            "198.51.100.7"
        );
        assert_eq!(client("for=_hidden"), "10.0.0.1");
        assert_eq!(client("proto=https"), "10.0.0.1");
    }
}
