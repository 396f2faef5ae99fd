//! Messages in gRPC's frames: a byte that says whether the message is compressed, four bytes of length, the message.

use bytes::{Buf, BufMut, Bytes, BytesMut};

const HEAD_BYTES: usize = 5;

/// A message in its frame.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("a request has a limit far below 4 GiB"));
    frame.put_slice(message);
    frame.freeze()
}

/// The messages of an answer, whose frames may arrive in any pieces. The broker compresses none.
#[derive(Debug, Default)]
pub(crate) struct Frames(BytesMut);

impl Frames {
    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The next message that is complete.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        let length = self.0.get(1..HEAD_BYTES)?.get_u32() as usize;
        if self.0.len() - HEAD_BYTES < length {
            return None;
        }
        self.0.advance(HEAD_BYTES);
        let message = self.0.split_to(length).freeze();
        if self.0.is_empty() {
            self.0 = BytesMut::new(); // a large message must not stay in memory behind a small rest
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_whatever_the_pieces() {
        let bytes = [framed(b"one"), framed(b""), framed(&[7; 300])].concat();
        for piece in [1, 2, 5, 8, 1_000] {
            let (mut frames, mut messages) = (Frames::default(), Vec::new());
            for piece in bytes.chunks(piece) {
                frames.push(piece);
                messages.extend(std::iter::from_fn(|| frames.next()));
            }
            assert_eq!(messages, [&b"one"[..], b"", &[7; 300]], "{piece}");
        }
        let mut frames = Frames::default();
        frames.push(&bytes[..3]);
        assert!(frames.next().is_none());
    }
}
