//! Content encodings: bodies are decompressed from gzip or deflate. Bounded in bytes, in the memory of all bodies together, and in how
//! long it occupies a thread.

use std::io::{self, BufRead, ErrorKind, Read};

use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use tokio::{sync::Semaphore, task::yield_now};

use super::{
    answer::Reply,
    body::{InFlight, acquire},
};

/// Most encodings on top of each other. Real bodies have one; each costs as much as the largest body.
const LAYERS_MAX: usize = 3;
/// Memory of a decoder: its window of 32 KiB, its tables, and a chunk.
const DECODER_BYTES: usize = 64 * 1024;
/// Bytes that are decompressed before other tasks run: about a tenth of a millisecond.
const CHUNK_BYTES: usize = 16 * 1024;
/// The same for compressed bytes: an empty member of a gzip body has 20 bytes, yields nothing, and takes four microseconds.
const READ_BYTES: usize = 1024;

/// An encoding that changes the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    /// With zlib's header, as the standard says, or without it, as some clients send it.
    Deflate,
}

/// The encodings to decode, in this order; usually none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Encodings(Vec<Encoding>);

/// The encodings of a body, unless one is unknown. `utf-8` is no encoding, but some clients send it as one.
pub(super) fn of(headers: &HeaderMap) -> Result<Encodings, Reply> {
    let is_chunked = |value: &[u8]| value.eq_ignore_ascii_case(b"chunked");

    if !headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .all(|value| is_chunked(value.as_bytes()))
    {
        return Err(Reply::UnsupportedEncoding);
    }
    let mut encodings = Vec::new();

    for value in headers.get_all(header::CONTENT_ENCODING) {
        let names = value.to_str().map_err(|_| Reply::UnsupportedEncoding)?;
        for name in names.split(',').map(str::trim) {
            match name.to_ascii_lowercase().as_str() {
                "" | "identity" | "utf-8" | "utf8" => {}
                "gzip" | "x-gzip" => encodings.push(Encoding::Gzip),
                "deflate" => encodings.push(Encoding::Deflate),
                _ => return Err(Reply::UnsupportedEncoding),
            }
        }
    }

    if encodings.len() > LAYERS_MAX {
        return Err(Reply::UnsupportedEncoding);
    }
    encodings.reverse(); // the last one was put on last
    Ok(Encodings(encodings))
}

impl Encodings {
    /// The decoded body, or an error if it is longer than `bytes_max` or memory is short. `None` if there is no encoding, or if the body
    /// is not encoded as its headers say: the headers may be wrong.
    pub(super) async fn decode<'a>(
        &self,
        body: &Bytes,
        bytes_max: usize,
        inflight: &'a Semaphore,
    ) -> Result<Option<InFlight<'a>>, Reply> {
        let mut decoded: Option<InFlight<'a>> = None;
        for encoding in &self.0 {
            let bytes = decoded
                .as_ref()
                .map_or(body, |decoded| &decoded.bytes)
                .clone();
            // Boxed: most bodies have no encoding, and their futures should not carry a decoder's state.
            decoded = Box::pin(encoding.decode(&bytes, bytes_max, inflight)).await?;
            if decoded.is_none() {
                return Ok(None);
            }
        }
        Ok(decoded)
    }
}

impl Encoding {
    /// `None` if the bytes are not in this encoding.
    async fn decode<'a>(
        self,
        bytes: &[u8],
        bytes_max: usize,
        inflight: &'a Semaphore,
    ) -> Result<Option<InFlight<'a>>, Reply> {
        // No gzip or zlib stream begins with a brace, and raw deflate would make anything of it.
        if bytes.trim_ascii_start().starts_with(b"{") {
            return Ok(None);
        }
        let bytes = Slices::of(bytes);

        match self {
            Self::Gzip => decode(MultiGzDecoder::new(bytes), |_| true, bytes_max, inflight).await,
            Self::Deflate => {
                let zlib = ZlibDecoder::new(bytes.clone());
                let decoded =
                    decode(zlib, |zlib| zlib.get_ref().is_at_end(), bytes_max, inflight).await?;
                if decoded.is_some() {
                    return Ok(decoded);
                }
                // Raw deflate has no checksum: that it ends where the body ends is the only test.
                let raw = DeflateDecoder::new(bytes);
                decode(raw, |raw| raw.get_ref().is_at_end(), bytes_max, inflight).await
            }
        }
    }
}

/// Bytes that are read slice by slice: behind each slice the reader reports that it would block, once. A decoder would otherwise read on
/// as long as nothing comes out.
#[derive(Clone, Debug)]
struct Slices<'a> {
    rest: &'a [u8],
    /// Bytes left of the current slice.
    left: usize,
}

impl<'a> Slices<'a> {
    fn of(rest: &'a [u8]) -> Self {
        Self {
            rest,
            left: READ_BYTES,
        }
    }

    fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

impl BufRead for Slices<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && !self.rest.is_empty() {
            self.left = READ_BYTES;
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(&self.rest[..self.left.min(self.rest.len())])
    }

    fn consume(&mut self, count: usize) {
        self.rest = &self.rest[count..];
        self.left -= count;
    }
}

impl Read for Slices<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}

/// All output of `decoder`; `None` if it fails, or if `is_whole` finds at its end that something is wrong.
async fn decode<'a, D: Read>(
    mut decoder: D,
    is_whole: impl FnOnce(&D) -> bool,
    bytes_max: usize,
    inflight: &'a Semaphore,
) -> Result<Option<InFlight<'a>>, Reply> {
    let _decoder = acquire(inflight, DECODER_BYTES)?;
    let mut permit = acquire(inflight, 0)?;
    let (mut decoded, mut chunk) = (BytesMut::new(), vec![0; CHUNK_BYTES]);

    loop {
        let length = match decoder.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                yield_now().await;
                continue;
            }
            Err(_) => return Ok(None),
        };
        if decoded.len() + length > bytes_max {
            return Err(Reply::BodyTooLarge);
        }
        permit.merge(acquire(inflight, length)?);
        decoded.extend_from_slice(&chunk[..length]);
        yield_now().await;
    }

    Ok(is_whole(&decoder).then(|| InFlight::new(decoded.freeze(), permit)))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const MANY: usize = 50_000;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// What a gzip body is, and how often others had their turn meanwhile.
    fn decoded(body: Vec<u8>) -> (Option<Bytes>, usize) {
        let (inflight, encodings) = (Semaphore::new(1 << 24), Encodings(vec![Encoding::Gzip]));
        let body = Bytes::from(body);
        let mut decoding = pin!(encodings.decode(&body, 1 << 20, &inflight));
        for turns in 0.. {
            if let Poll::Ready(decoded) = decoding
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
            {
                return (decoded.unwrap().map(|decoded| decoded.bytes), turns);
            }
        }
        unreachable!("it ends")
    }

    #[test]
    fn members_that_give_nothing_keep_a_thread_from_others_no_longer_than_others() {
        let body = [gzip(b"").repeat(MANY), gzip(b"{}"), gzip(b"").repeat(MANY)].concat();
        let slices = body.len() / READ_BYTES;
        let (decoded, turns) = decoded(body);
        assert_eq!(decoded.unwrap(), "{}");
        assert!(turns >= slices, "{turns} turns for {slices} slices");
    }

    #[test]
    fn a_slice_may_end_anywhere_in_a_member() {
        // Of no compression, and so of a known length: the end of the first slice falls on each byte of a head and of a tail.
        for length in READ_BYTES - 60..READ_BYTES + 20 {
            let stored = |length| {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
                encoder.write_all(&vec![b'x'; length]).unwrap();
                encoder.finish().unwrap()
            };
            let (decoded, _) = decoded([stored(length), gzip(b"y")].concat());
            assert_eq!(
                decoded.unwrap(),
                [vec![b'x'; length], b"y".to_vec()].concat(),
                "{length}"
            );
        }
    }
}
