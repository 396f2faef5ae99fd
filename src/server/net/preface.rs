//! The first bytes of a connection tell whether it speaks HTTP/2 or HTTP/1.1.

use std::io;

use tokio::io::AsyncReadExt;

use super::stream::Stream;

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
pub(in crate::server) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Protocol {
    Http1,
    /// Its preface was read.
    Http2,
}

/// Reads until the protocol is certain. What was read of HTTP/1.1 is put back. An error if it is neither.
pub(super) async fn read(stream: &mut Stream) -> io::Result<Protocol> {
    let (mut read, mut count) = ([0; PREFACE.len()], 0);
    while count < read.len() {
        match stream.read(&mut read[count..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => count += more,
        }
        // Compared byte by byte: the shortest request in HTTP/1.1 is shorter than the preface.
        if read[..count] != PREFACE[..count] {
            if read[..count].is_ascii() && read[0].is_ascii_uppercase() {
                stream.put_back(&read[..count]);
                return Ok(Protocol::Http1);
            }
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(Protocol::Http2)
}
