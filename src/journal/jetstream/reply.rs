//! What the writer answers to a node that has handed it a group. Pure.
//!
//! ```text
//! kind     1: written, 2: this node does not write, 3: the group could not be read (u8)
//! through  of the first kind: the message of the stream by which it is in the log (u64, little-endian)
//! results  of the first kind: what became of each operation, as the store encodes it
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

const WRITTEN: u8 = 1;
const NOT_WRITER: u8 = 2;
const UNREADABLE: u8 = 3;

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HandoverReply {
    /// It is in the log, or was there already.
    Written {
        /// Through which message of the stream.
        through: u64,
        /// What became of its operations.
        results: Bytes,
    },
    /// That node is not the writer, or stops, or cannot write.
    NotWriter,
    /// Another version has made the group.
    Unreadable,
}

impl HandoverReply {
    pub(super) fn encode(&self) -> Bytes {
        let Self::Written { through, results } = self else {
            let kind = if *self == Self::NotWriter {
                NOT_WRITER
            } else {
                UNREADABLE
            };
            return Bytes::copy_from_slice(&[kind]);
        };
        let mut bytes = BytesMut::with_capacity(1 + 8 + results.len());
        bytes.put_u8(WRITTEN);
        bytes.put_u64_le(*through);
        bytes.put_slice(results);
        bytes.freeze()
    }

    /// `None` if it is no answer of this version.
    pub(super) fn parse(mut bytes: Bytes) -> Option<Self> {
        match bytes.try_get_u8().ok()? {
            WRITTEN => {
                let through = bytes.try_get_u64_le().ok()?;
                Some(Self::Written {
                    through,
                    results: bytes,
                })
            }
            NOT_WRITER => Some(Self::NotWriter),
            UNREADABLE => Some(Self::Unreadable),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_reply_is_read_as_it_was_written(through: u64, results: Vec<u8>) {
            let results = Bytes::from(results);
            for reply in [
                HandoverReply::Written { through, results },
                HandoverReply::NotWriter,
                HandoverReply::Unreadable,
            ] {
                prop_assert_eq!(HandoverReply::parse(reply.encode()), Some(reply));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = HandoverReply::parse(bytes.into());
        }
    }
}
