//! A frame: one commit of the log as a message of the stream. Pure.
//!
//! ```text
//! magic        "BCF1" (4 bytes)
//! flags        u16; none has a meaning in this format
//! format       u16
//! epoch        of the log (u64)
//! prev         sequence in the stream of the frame that it follows; 0 for the first, the genesis (u64)
//! chain        XXH3 of all that follows, seeded with prev's chain, or with the epoch for the genesis (u64)
//! author       the node that has written it, drawn at each of its starts (u128)
//! name         of that node: length (u8), text
//! commit time  of the author's clock, in microseconds since 1970 (i64)
//! before       the totals that it was decided on
//! after        the totals that it leaves
//! entries      to the end (see `entry`)
//! ```
//!
//! Integers are little-endian. Decoding is total and takes no memory by anything that the bytes say: lengths are compared with what
//! is there, and entries share the message's bytes.
//!
//! What lies before the chain is proven without it: epoch and prev are compared with the position, and so are the formats and flags
//! with those that are known. A flag is for compressed entries. None is written yet: the stream compresses what it replicates, and a
//! writer's time for one frame is what bounds all nodes.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    entry::{Entries, Entry, FrameError},
    totals::Totals,
};
use crate::event::{Epoch, Sequence};

/// The newest format that this version reads, and the one that it writes.
pub const FORMAT: u16 = 1;

const MAGIC: [u8; 4] = *b"BCF1";
/// Magic, flags, format, epoch, prev, chain.
const HEADER_BYTES: usize = 4 + 2 + 2 + 8 + 8 + 8;
/// Longest name of a node, in bytes: its length is one.
const NAME_BYTES_MAX: usize = u8::MAX as usize;

/// A node since its last start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Author(pub u128);

impl fmt::Debug for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Author({:x})", self.0)
    }
}

/// What a frame follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The log.
    pub epoch: Epoch,
    /// The sequence in the stream of the frame before; 0 if there is none.
    pub frame: u64,
    /// The chain of the frame before.
    pub chain: u64,
}

impl Link {
    /// What the first frame of a log follows.
    pub fn start(epoch: Epoch) -> Self {
        Self {
            epoch,
            frame: 0,
            chain: epoch.0,
        }
    }
}

/// What a node decides to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The node that has decided.
    pub author: Author,
    /// Its name.
    pub name: String,
    /// Its clock, in microseconds since 1970.
    pub commit_time_micros: i64,
    /// The totals that it has decided on.
    pub before: Totals,
    /// The totals that the frame leaves.
    pub after: Totals,
    /// What it does.
    pub entries: Entries,
}

/// A frame as a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The message.
    pub bytes: Bytes,
    /// By which its author knows it again.
    pub chain: u64,
}

/// How a message begins that is a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// None is known yet.
    pub flags: u16,
    /// At least 1.
    pub format: u16,
    /// The log that it belongs to.
    pub epoch: Epoch,
    /// The sequence in the stream of the frame that it follows.
    pub prev: u64,
    /// The hash of all that follows.
    pub chain: u64,
}

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// How it begins.
    pub header: Header,
    /// The rest.
    pub contents: Contents,
}

impl Header {
    /// The header of a message, whatever its format; `None` if it is no frame.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut rest = message
            .strip_prefix(&MAGIC)
            .filter(|_| message.len() >= HEADER_BYTES)?;
        let header = Self {
            flags: rest.get_u16_le(),
            format: rest.get_u16_le(),
            epoch: Epoch(rest.get_u64_le()),
            prev: rest.get_u64_le(),
            chain: rest.get_u64_le(),
        };
        (header.format > 0).then_some(header)
    }

    /// Only a later version can read the frame.
    pub fn is_newer(&self) -> bool {
        self.format > FORMAT || self.flags != 0
    }
}

impl Frame {
    /// What the chain of a message has to be behind a frame with this chain.
    pub fn chain_of(message: &[u8], before: u64) -> u64 {
        xxh3_64_with_seed(message.get(HEADER_BYTES..).unwrap_or_default(), before)
    }

    /// Reads a message of a format that is not newer. It does not look at the chain.
    pub fn parse(message: &Bytes) -> Result<Self, FrameError> {
        const SHORT: FrameError = FrameError("it is shorter than its fields");
        let header = Header::parse(message).ok_or(FrameError("it has another beginning"))?;
        let mut rest = message.slice(HEADER_BYTES..);
        let author = Author(rest.try_get_u128_le().map_err(|_| SHORT)?);
        let length = usize::from(rest.try_get_u8().map_err(|_| SHORT)?);
        if length > rest.len() {
            return Err(SHORT);
        }
        let name = std::str::from_utf8(&rest.split_to(length))
            .map_err(|_| FrameError("the name of its author is no text"))?
            .to_owned();
        let commit_time_micros = rest.try_get_i64_le().map_err(|_| SHORT)?;
        let totals = |rest: &mut Bytes| {
            Totals::take(rest).ok_or(FrameError("its totals do not fit each other"))
        };
        let (before, after) = (totals(&mut rest)?, totals(&mut rest)?);
        let contents = Contents {
            author,
            name,
            commit_time_micros,
            before,
            after,
            entries: Entries::parse(rest)?,
        };
        contents.check()?;
        Ok(Self { header, contents })
    }

    /// What the next frame follows if this one is at `sequence` in the stream.
    pub fn link(&self, sequence: u64) -> Link {
        Link {
            epoch: self.header.epoch,
            frame: sequence,
            chain: self.header.chain,
        }
    }

    /// The place of its first event, if it has any.
    pub fn first_place(&self) -> Sequence {
        self.contents.before.head().unwrap_or_default().next()
    }

    /// What it does, in order; each event at its place.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + use<> {
        self.contents.entries.iter(self.first_place())
    }
}

impl Contents {
    /// Whether events or quarantined callbacks become fewer.
    pub fn removes_something(&self) -> bool {
        let (before, after) = (&self.before, &self.after);
        after.first_available > before.first_available
            || after.quarantine_count < before.quarantine_count
    }

    /// The message that follows `link`. An error means that the contents contradict themselves: no node would apply them.
    pub fn encode(&self, link: Link) -> Result<Encoded, FrameError> {
        if self.name.len() > NAME_BYTES_MAX {
            return Err(FrameError("the name of its author is too long"));
        }
        self.check()?;

        let fields = 16 + 1 + self.name.len() + 8 + 2 * Totals::BYTES;
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + fields + self.entries.bytes().len());
        bytes.put_slice(&MAGIC);
        bytes.put_u16_le(0);
        bytes.put_u16_le(FORMAT);
        bytes.put_u64_le(link.epoch.0);
        bytes.put_u64_le(link.frame);
        bytes.put_u64_le(0); // until the rest is there

        bytes.put_u128_le(self.author.0);
        bytes.put_u8(self.name.len() as u8); // checked above
        bytes.put_slice(self.name.as_bytes());
        bytes.put_i64_le(self.commit_time_micros);
        self.before.put(&mut bytes);
        self.after.put(&mut bytes);
        bytes.put_slice(self.entries.bytes());

        let chain = Frame::chain_of(&bytes, link.chain);
        bytes[HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&chain.to_le_bytes());
        Ok(Encoded {
            bytes: bytes.freeze(),
            chain,
        })
    }

    /// Places have no gap, and no number is given out twice.
    fn check(&self) -> Result<(), FrameError> {
        const UNFIT: FrameError = FrameError("its totals do not fit its entries");
        let (before, after) = (&self.before, &self.after);
        let head = before.head().ok_or(UNFIT)?;
        let events = self.entries.event_count();
        let rises = after.first_available >= before.first_available
            && after.quarantine_next >= before.quarantine_next
            && after.expectation_next >= before.expectation_next;
        if rises && after.head().map(|after| after.0) == head.0.checked_add(events) {
            Ok(())
        } else {
            Err(UNFIT)
        }
    }
}
