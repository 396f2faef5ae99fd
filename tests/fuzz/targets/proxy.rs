//! PROXY headers, versions 1 and 2. The client is the one that the specification says; exactly the header is taken from the
//! connection, in however many pieces it comes; one that is cut is waited for.
//!
//! Input: where the connection pauses (1 byte), then what comes on it.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    task::{Context, Poll, Waker},
};

use blobcast::fuzzing::read_proxy_header;
use tokio::io::AsyncReadExt;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest headers that are read.
const V1_BYTES_MAX: usize = 107;
const V2_BYTES_MAX: usize = 16 + 1024;

pub(crate) fn run(input: &[u8]) {
    let Some((&pause, bytes)) = input.split_first() else {
        return;
    };
    let whole = read(bytes, 0);
    let pause = usize::from(pause).min(bytes.len());
    assert_eq!(read(bytes, pause), whole, "a pause behind {pause} bytes");
    let (result, taken) = whole;
    assert!(taken <= V2_BYTES_MAX);
    let [strictly, leniently] = if bytes.starts_with(SIGNATURE) {
        [version_2(bytes); 2]
    } else {
        // The parser takes a CR for a space and a sign before a number, which misleads nobody.
        [
            version_1(bytes, &[' '], canonical),
            version_1(bytes, &[' ', '\r'], lenient),
        ]
    };
    assert!(
        strictly.is_none() || result.is_ok(),
        "{result:?} instead of {strictly:?}"
    );
    match (result, strictly.or(leniently)) {
        (Ok(client), Some((expected, length))) => {
            assert_eq!((client, taken), (expected.unwrap_or(peer()), length));
            let cut = pause.min(length - 1);
            assert_eq!(
                read(&bytes[..cut], 0),
                (Err(io::ErrorKind::UnexpectedEof), cut),
                "cut to {cut} bytes"
            );
            let (client_alone, _) = read(&bytes[..length], 0);
            assert_eq!(client_alone, Ok(client), "with nothing behind it");
        }
        (Err(_), _) => {}
        (Ok(client), None) => panic!("{client} out of nothing"),
    }
}

fn peer() -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, 1), 9).into()
}

/// What is read, and how much of it is taken.
fn read(bytes: &[u8], pause: usize) -> (Result<SocketAddr, io::ErrorKind>, usize) {
    let (mut first, mut second) = bytes.split_at(pause);
    let result = {
        let mut stream = (&mut first).chain(&mut second);
        let mut read = pin!(read_proxy_header(&mut stream, peer()));
        match read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("nothing is left to wait for"),
        }
    };
    (
        result.map_err(|error| error.kind()),
        bytes.len() - first.len() - second.len(),
    )
}

/// The client, if the header names one, and the header's length.
type Header = Option<(Option<SocketAddr>, usize)>;

fn version_2(bytes: &[u8]) -> Header {
    let [version_and_command, family_and_transport, high, low] =
        *bytes.get(12..16)?.first_chunk()?;
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    if version_and_command >> 4 != 2 || version_and_command & 15 > 1 || length > V2_BYTES_MAX {
        return None;
    }
    let payload = bytes.get(16..length)?;
    let (family, transport) = (family_and_transport >> 4, family_and_transport & 15);
    if family > 3 || transport > 2 {
        return None;
    }
    let port = |at: usize| {
        Some(u16::from_be_bytes([
            *payload.get(at)?,
            *payload.get(at + 1)?,
        ]))
    };
    let client: Option<SocketAddr> = match family {
        1 => {
            payload.get(..12)?;
            Some((Ipv4Addr::from(*payload.first_chunk::<4>()?), port(8)?).into())
        }
        2 => {
            payload.get(..36)?;
            Some((Ipv6Addr::from(*payload.first_chunk::<16>()?), port(32)?).into())
        }
        3 => payload.get(..216).map(|_| None)?,
        _ => None,
    };
    // LOCAL: the load balancer itself.
    Some((client.filter(|_| version_and_command & 15 == 1), length))
}

fn version_1(bytes: &[u8], separators: &[char], port: fn(&str) -> Option<u16>) -> Header {
    let line = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let end = line.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &line[..end];
    // "The receiver must ignore anything presented before the CRLF is found."
    if line == b"PROXY UNKNOWN" || line.starts_with(b"PROXY UNKNOWN ") {
        return Some((None, end + 2));
    }
    let words: Vec<&str> = str::from_utf8(line).ok()?.split(separators).collect();
    let client: SocketAddr = match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Some((None, end + 2)),
        [
            "PROXY",
            "TCP4",
            source,
            destination,
            source_port,
            destination_port,
        ] => {
            let _: Ipv4Addr = destination.parse().ok()?;
            port(destination_port)?;
            (IpAddr::V4(source.parse().ok()?), port(source_port)?).into()
        }
        [
            "PROXY",
            "TCP6",
            source,
            destination,
            source_port,
            destination_port,
        ] => {
            let _: Ipv6Addr = destination.parse().ok()?;
            port(destination_port)?;
            (IpAddr::V6(source.parse().ok()?), port(source_port)?).into()
        }
        _ => return None,
    };
    Some((Some(client), end + 2))
}

/// Digits without leading zeros.
fn canonical(port: &str) -> Option<u16> {
    lenient(port).filter(|number| number.to_string() == port)
}

fn lenient(port: &str) -> Option<u16> {
    port.parse().ok()
}
