//! The PROXY protocol, versions 1 and 2: a header in which a trusted load balancer names the client whose connection it passes on.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest header of version 1, by its specification.
const V1_BYTES_MAX: usize = 107;
/// Longest header of version 2 that is read: addresses and some hundreds of bytes of extensions.
const V2_BYTES_MAX: usize = 16 + 1024;
/// The first bytes of version 2. A header of version 1 is longer, too.
const V2_PREFIX: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads exactly the header. Returns the client's address, or `peer` where the header names none (a health check of the load
/// balancer).
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    peer: SocketAddr,
) -> io::Result<SocketAddr> {
    let mut header = vec![0; V2_PREFIX.len()];
    stream.read_exact(&mut header).await?;
    if header == V2_PREFIX {
        header.resize(16, 0);
        stream.read_exact(&mut header[12..]).await?;
        let length = 16 + usize::from(u16::from_be_bytes([header[14], header[15]]));
        if length > V2_BYTES_MAX {
            return Err(malformed("the header is too long"));
        }
        header.resize(length, 0);
        stream.read_exact(&mut header[16..]).await?;
        let header = v2::Header::try_from(header.as_slice()).map_err(malformed)?;
        return Ok(if header.command == v2::Command::Local {
            peer
        } else {
            source_v2(&header.addresses, peer)
        });
    }

    while !header.ends_with(b"\r\n") {
        if header.len() == V1_BYTES_MAX {
            return Err(malformed("the header is too long"));
        }
        header.push(stream.read_u8().await?);
    }

    // The specification says to ignore everything after this word. The parser does not.
    if header.starts_with(b"PROXY UNKNOWN ") {
        return Ok(peer);
    }
    let header = v1::Header::try_from(header.as_slice()).map_err(malformed)?;
    Ok(match header.addresses {
        v1::Addresses::Tcp4(addresses) => (
            IpAddr::from(addresses.source_address),
            addresses.source_port,
        )
            .into(),
        v1::Addresses::Tcp6(addresses) => (
            IpAddr::from(addresses.source_address),
            addresses.source_port,
        )
            .into(),
        v1::Addresses::Unknown => peer,
    })
}

/// Whether bytes are the beginning of a header, of either version.
pub(super) fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PROXY ") || bytes.starts_with(V2_PREFIX)
}

fn source_v2(addresses: &v2::Addresses, peer: SocketAddr) -> SocketAddr {
    match addresses {
        v2::Addresses::IPv4(addresses) => (
            IpAddr::from(addresses.source_address),
            addresses.source_port,
        )
            .into(),
        v2::Addresses::IPv6(addresses) => (
            IpAddr::from(addresses.source_address),
            addresses.source_port,
        )
            .into(),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => peer,
    }
}

fn malformed(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "10.0.0.1:9";

    /// What is read of `bytes`, and what is left behind it.
    fn read_all(bytes: &[u8]) -> (Result<String, io::ErrorKind>, Vec<u8>) {
        let mut left = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let address = runtime.block_on(read(&mut left, PEER.parse().unwrap()));
        (
            address
                .map(|address| address.to_string())
                .map_err(|error| error.kind()),
            left.to_vec(),
        )
    }

    fn v2(command: v2::Command, addresses: impl Into<v2::Addresses>, extension: &[u8]) -> Vec<u8> {
        let builder = v2::Builder::with_addresses(
            v2::Version::Two | command,
            v2::Protocol::Stream,
            addresses,
        );
        builder
            .write_tlv(v2::Type::NoOp, extension)
            .unwrap()
            .build()
            .unwrap()
    }

    #[test]
    fn version_1_names_the_client_and_leaves_the_rest() {
        let read = |text: &str| read_all(text.as_bytes());
        let rest = b"GET / HTTP/1.1\r\n".to_vec();
        let header = "PROXY TCP4 198.51.100.7 10.0.0.1 4711 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(read(header), (Ok("198.51.100.7:4711".into()), rest.clone()));
        let header = "PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\nGET / HTTP/1.1\r\n";
        assert_eq!(
            read(header),
            (Ok("[2001:db8::7]:4711".into()), rest.clone())
        );
        assert_eq!(
            read("PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n"),
            (Ok(PEER.into()), rest)
        );
    }

    #[test]
    fn anything_may_follow_the_word_unknown() {
        for rest in [
            "",
            " ",
            " ffff::1 ffff::2 1 2",
            " ffff::1 ffff::2 1 2 and more",
            " \r \n",
            " \0",
            "  x",
        ] {
            let text = format!("PROXY UNKNOWN{rest}\r\nGET");
            assert_eq!(
                read_all(text.as_bytes()),
                (Ok(PEER.into()), b"GET".to_vec()),
                "{rest:?}"
            );
        }
        assert_eq!(
            read_all(b"PROXY UNKNOWN \xff\r\nGET"),
            (Ok(PEER.into()), b"GET".to_vec())
        );
        assert_eq!(
            read_all(b"PROXY UNKNOWNS\r\nGET").0,
            Err(io::ErrorKind::InvalidData)
        );
    }

    #[test]
    fn version_2_names_the_client_and_leaves_the_rest() {
        let addresses: (SocketAddr, SocketAddr) = (
            "198.51.100.7:4711".parse().unwrap(),
            "10.0.0.1:443".parse().unwrap(),
        );
        let mut header = v2(v2::Command::Proxy, addresses, b"an extension");
        header.extend(b"rest");
        assert_eq!(
            read_all(&header),
            (Ok("198.51.100.7:4711".into()), b"rest".to_vec())
        );
        let local = v2(v2::Command::Local, addresses, b"");
        assert_eq!(read_all(&local).0, Ok(PEER.into()), "a health check");
    }

    #[test]
    fn a_header_up_to_its_longest_is_read_and_no_longer_one() {
        let addresses: (SocketAddr, SocketAddr) = (
            "198.51.100.7:4711".parse().unwrap(),
            "10.0.0.1:443".parse().unwrap(),
        );
        let overhead = v2(v2::Command::Proxy, addresses, b"").len();
        for (length, fits) in [(V2_BYTES_MAX, true), (V2_BYTES_MAX + 1, false)] {
            let header = v2(v2::Command::Proxy, addresses, &vec![0; length - overhead]);
            assert_eq!(header.len(), length);
            assert_eq!(read_all(&header).0.is_ok(), fits, "{length} bytes");
        }
        let endless = format!("PROXY TCP4 {}", "1".repeat(2 * V1_BYTES_MAX));
        let (refused, left) = read_all(endless.as_bytes());
        assert_eq!(
            (refused, left.len()),
            (
                Err(io::ErrorKind::InvalidData),
                endless.len() - V1_BYTES_MAX
            )
        );
    }

    #[test]
    fn anything_but_a_header_is_refused() {
        for text in [
            "GET / HTTP/1.1\r\n",
            "PROXY TCP4 a b 1 2\r\n",
            "PROXY\r\nsomething\r\n",
        ] {
            assert_eq!(
                read_all(text.as_bytes()).0,
                Err(io::ErrorKind::InvalidData),
                "{text}"
            );
        }
        assert_eq!(read_all(b"PROXY").0, Err(io::ErrorKind::UnexpectedEof));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_refused(bytes: Vec<u8>, version_2: bool) {
            let prefix: &[u8] = if version_2 { V2_PREFIX } else { b"PROXY " };
            let _ = read_all(&[prefix, &bytes].concat());
        }
    }
}
