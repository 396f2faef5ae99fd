//! One file of the log: a header, commits one behind another, and zeros up to its end.
//!
//! ```text
//! checksum     XXH3 of the rest of the header (u64)
//! magic        "blobcast"
//! format       of the store (u64)
//! epoch        of the log (u64)
//! number       of the segment (u64)
//! commit       number of its first commit (u64)
//! oldest       the oldest segment that the log needed when this one was begun (u64)
//! streamed     the frame that the last commit before it came from: see `frame` (twice u64)
//! totals       as the commits before it have left them
//! ```
//!
//! The zeros are written before the commits that replace them: to sync a commit, the disk has to
//! write its bytes, and neither a new length nor where they are.

use std::{
    fs::{self, File},
    io::{self, Seek, Write},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::RwLock;
use rustix::{buffer::spare_capacity, fs::OFlags, io::Errno};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    entry,
    frame::{self, Frame, Streamed},
    summary_file::SummaryFile,
};
use crate::{
    cluster::Totals,
    event::{Epoch, Sequence},
    store::layout::FORMAT,
};

/// Where the commits begin.
pub(super) const HEADER_BYTES: usize = 256;
const MAGIC: &[u8; 8] = b"blobcast";
/// Commits closer together than this are found together.
const BLOCK_BYTES: u64 = 16 * 1024;
/// What the kernel keeps files in: to replace a part of one that is not in memory, it would have to
/// read it first.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Aligned as writing past the kernel's cache demands.
#[repr(align(4096))]
struct Zeros([u8; 256 * 1024]);
static ZEROS: Zeros = Zeros([0; 256 * 1024]);

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub epoch: Epoch,
    pub number: u64,
    /// Number of its first commit.
    pub commit: u64,
    /// The oldest segment that the log needed when this one was begun.
    pub oldest: u64,
    /// Of the commit before it.
    pub streamed: Streamed,
    /// As the commits before it have left them.
    pub totals: Totals,
}

/// Why a file is no segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It was made ahead, and never used.
    Unused,
    /// Of another format.
    Format(u64),
    Damaged,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = &mut bytes[8..];
        rest.put_slice(MAGIC);
        [FORMAT, self.epoch.0, self.number, self.commit, self.oldest]
            .into_iter()
            .for_each(|n| rest.put_u64_le(n));
        self.streamed.put(&mut rest);
        self.totals.put(&mut rest);
        let checksum = xxh3_64(&bytes[8..]);
        bytes[..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The first event that may be in it.
    pub(super) fn first_sequence(&self) -> Sequence {
        self.totals.head().unwrap_or_default().next() // checked when it was parsed
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Unreadable> {
        let whole = bytes.get(..HEADER_BYTES).ok_or(Unreadable::Damaged)?;
        if whole.iter().all(|&byte| byte == 0) {
            return Err(Unreadable::Unused);
        }
        let mut rest = whole;
        let (checksum, body) = (rest.get_u64_le(), &whole[8..]);
        if checksum != xxh3_64(body) || !rest.starts_with(MAGIC) {
            return Err(Unreadable::Damaged);
        }
        rest.advance(MAGIC.len());
        match rest.get_u64_le() {
            FORMAT => {}
            other => return Err(Unreadable::Format(other)),
        }
        let mut number = || rest.get_u64_le();
        let (epoch, number, commit, oldest) = (Epoch(number()), number(), number(), number());
        let streamed = Streamed::take(&mut rest);
        let totals = Totals::take(&mut rest).ok_or(Unreadable::Damaged)?;
        Ok(Self {
            epoch,
            number,
            commit,
            oldest,
            streamed,
            totals,
        })
    }
}

/// Where events are: commits that lie close together are one block.
#[derive(Debug)]
struct Blocks {
    /// None of what they say falls.
    starts: Vec<Start>,
    /// Behind the last commit.
    end: u64,
}

/// Where a block starts.
#[derive(Clone, Copy, Debug)]
struct Start {
    at: u64,
    /// The first event behind.
    first: Sequence,
}

impl Blocks {
    /// Of a segment without commits.
    fn none() -> Self {
        Self {
            starts: Vec::new(),
            end: HEADER_BYTES as u64,
        }
    }

    fn add(&mut self, at: u64, frame: &frame::Header) {
        if self
            .starts
            .last()
            .is_none_or(|start| at - start.at >= BLOCK_BYTES)
        {
            self.starts.push(Start {
                at,
                first: frame.first_sequence(),
            });
        }
        self.end = at + frame.length as u64;
    }

    /// The last block that starts so, and those behind it as far as it takes for so many bytes.
    fn span(&self, starts_before: impl Fn(&Start) -> bool, bytes: u64) -> Option<Span> {
        let block = self.starts.partition_point(starts_before).checked_sub(1)?;
        let Start { at: start, first } = self.starts[block];
        let behind = &self.starts[block + 1..];
        let end = behind
            .iter()
            .map(|next| next.at)
            .find(|at| at - start >= bytes)
            .unwrap_or(self.end);
        (start < end).then_some(Span { first, start, end })
    }

    fn spans_from(&self, sequence: Sequence) -> Vec<Span> {
        let behind = self.starts.partition_point(|start| start.first <= sequence);
        let starts = &self.starts[behind.saturating_sub(1)..];
        let ends = starts.iter().skip(1).map(|next| next.at);
        let spans = starts.iter().zip(ends.chain([self.end]));
        spans
            .map(|(&Start { at: start, first }, end)| Span { first, start, end })
            .collect()
    }
}

/// Whole commits that lie one behind another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// The first event in it, if it has any.
    pub first: Sequence,
    pub start: u64,
    pub end: u64,
}

/// A segment as its readers know it. Its file is removed when it is forgotten and has no reader
/// left.
#[derive(Debug)]
pub(in crate::store) struct Segment {
    path: PathBuf,
    pub(super) header: Header,
    /// Of its file.
    bytes: u64,
    /// None until they are needed.
    blocks: RwLock<Option<Blocks>>,
    /// Held to write while a part of the file is overwritten, so that a read never finds one half
    /// of that.
    overwriting: RwLock<()>,
    pub(super) summary: SummaryFile,
    is_forgotten: AtomicBool,
}

impl Segment {
    /// One without commits as yet.
    pub(super) fn empty(path: PathBuf, header: Header, bytes: u64) -> Self {
        Self {
            summary: SummaryFile::none_yet(&path),
            path,
            header,
            bytes,
            blocks: RwLock::new(Some(Blocks::none())),
            overwriting: RwLock::default(),
            is_forgotten: false.into(),
        }
    }

    /// One that was written before.
    pub(super) fn known(path: PathBuf, header: Header, bytes: u64) -> Self {
        Self {
            summary: SummaryFile::perhaps(&path),
            path,
            header,
            bytes,
            blocks: RwLock::default(),
            overwriting: RwLock::default(),
            is_forgotten: false.into(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Size of its file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first event that may be in it.
    pub(super) fn first_sequence(&self) -> Sequence {
        self.header.first_sequence()
    }

    /// Lets readers find a commit. It must be durable.
    pub(super) fn show(&self, at: u64, frame: &frame::Header) {
        let mut blocks = self.blocks.write();
        blocks.get_or_insert_with(Blocks::none).add(at, frame);
    }

    /// Has the file removed as soon as it has no reader.
    pub(super) fn forget(&self) {
        self.is_forgotten.store(true, Ordering::Release);
    }

    /// Everything that has been written to it, zeros included.
    pub(super) fn read_whole(&self) -> io::Result<Bytes> {
        Ok(fs::read(&self.path)?.into())
    }

    /// Where to read to find the event at `sequence`, if it is here: from the start of its block,
    /// for at least so many bytes.
    pub(super) fn span(&self, sequence: Sequence, bytes: u64) -> io::Result<Option<Span>> {
        self.with_blocks(|blocks| blocks.span(|start| start.first <= sequence, bytes))
    }

    /// The block that has the byte at `at`.
    pub(super) fn span_at(&self, at: u64) -> io::Result<Option<Span>> {
        self.with_blocks(|blocks| blocks.span(|start| start.at <= at, 0))
    }

    /// All blocks from that on in which the event at `sequence` should be.
    pub(super) fn spans_from(&self, sequence: Sequence) -> io::Result<Vec<Span>> {
        let spans = self.with_blocks(|blocks| Some(blocks.spans_from(sequence)))?;
        Ok(spans.unwrap_or_default())
    }

    /// Reads a part of it.
    pub(super) fn read(&self, span: &Span) -> io::Result<Bytes> {
        self.read_at(span.start, span.end - span.start)
    }

    /// Reads so many bytes from `at` on. They are not filled with zeros first, which took a fifth of the time that reading a log took.
    pub(super) fn read_at(&self, at: u64, bytes: u64) -> io::Result<Bytes> {
        let wanted = bytes as usize; // a segment fits into memory
        let mut read = Vec::with_capacity(wanted);
        let _whole = self.overwriting.read();
        let file = File::open(&self.path)?;
        while read.len() < wanted {
            let from = at + read.len() as u64;
            match rustix::io::pread(&file, spare_capacity(&mut read), from) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        read.truncate(wanted);
        Ok(read.into())
    }

    /// Erases bodies, each with where its mark goes, durably: all marks are written and synced
    /// first, so that a crash cannot leave damage.
    pub(in crate::store) fn erase(&self, bodies: &[(u64, Range<u64>)]) -> io::Result<()> {
        let file = File::options().write(true).open(&self.path)?;
        {
            let _alone = self.overwriting.write();
            bodies
                .iter()
                .try_for_each(|(mark, _)| file.write_all_at(&entry::MARK, *mark))?;
        }
        file.sync_data()?;
        {
            let _alone = self.overwriting.write();
            bodies
                .iter()
                .try_for_each(|(_, body)| overwrite(&file, body))?;
        }
        file.sync_data()?;
        self.summary.erase()
    }

    fn with_blocks<T>(&self, look: impl Fn(&Blocks) -> Option<T>) -> io::Result<Option<T>> {
        if let Some(blocks) = &*self.blocks.read() {
            return Ok(look(blocks));
        }
        let mut blocks = self.blocks.write();
        if blocks.is_none() {
            *blocks = Some(find_blocks(&self.path)?);
        }
        Ok(blocks.as_ref().and_then(look))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !self.is_forgotten.load(Ordering::Acquire) {
            return;
        }
        self.summary.remove();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a segment of forgotten events");
        }
    }
}

/// Goes from commit to commit. What is damaged is noticed when it is read.
fn find_blocks(path: &Path) -> io::Result<Blocks> {
    let file = File::open(path)?;
    let mut blocks = Blocks::none();
    let bytes = file.metadata()?.len();
    let mut header = [0; frame::HEADER_BYTES];
    while blocks.end + frame::HEADER_BYTES as u64 <= bytes {
        file.read_exact_at(&mut header, blocks.end)?;
        match frame::Header::parse(&header) {
            Some(header) if header.length as u64 <= bytes - blocks.end => {
                blocks.add(blocks.end, &header);
            }
            _ => break,
        }
    }
    Ok(blocks)
}

/// How far a walk came.
pub(super) struct Walked {
    /// Behind the last whole commit.
    pub end: usize,
    /// The number of the commit that would be next.
    pub next_commit: u64,
    /// The oldest segment that the log needed then.
    pub oldest: u64,
    /// Of the last whole commit.
    pub streamed: Streamed,
    pub totals: Totals,
}

/// Hands over the commits of a segment, one by one, as far as each is whole and follows the one
/// before.
pub(super) fn walk<E>(
    header: &Header,
    bytes: &Bytes,
    mut each: impl FnMut(usize, Frame) -> Result<(), E>,
) -> Result<Walked, E> {
    let mut walked = Walked {
        end: HEADER_BYTES,
        next_commit: header.commit,
        oldest: header.oldest,
        streamed: header.streamed,
        totals: header.totals,
    };
    while let Some(frame) = Frame::parse(header.epoch, bytes, walked.end) {
        let said = frame.header;
        if said.commit != walked.next_commit
            || Some(said.first_sequence()) != walked.totals.head().map(Sequence::next)
        {
            break;
        }
        each(walked.end, frame)?;
        let end = walked.end + said.length;
        let oldest = walked.oldest.max(said.oldest);
        walked = Walked {
            end,
            next_commit: said.commit + 1,
            oldest,
            streamed: said.streamed,
            totals: said.totals,
        };
    }
    Ok(walked)
}

/// Makes a file of zeros, durable with its name; `bytes` is a multiple of [`PAGE_BYTES`].
pub(super) fn create(path: &Path, bytes: u64) -> io::Result<File> {
    let made = fill_new(path, bytes).and_then(|()| sync_names(path));
    made.and_then(|()| File::options().read(true).write(true).open(path))
        .inspect_err(|_| {
            // It would look like a segment that was made ahead, and takes room.
            let _ = fs::remove_file(path).is_ok();
        })
}

/// Past the kernel's cache where the file system can: the zeros would only be copied into it, and
/// then wait for the disk in the way of commits.
fn fill_new(path: &Path, bytes: u64) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    let direct = options
        .clone()
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(path);
    let filled = direct.and_then(|mut file| fill(&mut file, bytes).and_then(|()| file.sync_all()));
    match filled {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let mut file = options.open(path)?;
            fill(&mut file, bytes)?;
            file.sync_all()
        }
        filled => filled,
    }
}

/// Takes back everything from `at` on.
pub(super) fn zero_from(file: &mut File, at: u64) -> io::Result<()> {
    let bytes = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(at))?;
    fill(file, bytes.saturating_sub(at))?;
    file.sync_all()
}

/// With zeros; what is behind it stays.
fn overwrite(file: &File, range: &Range<u64>) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let piece = ZEROS
            .0
            .len()
            .min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        file.write_all_at(&ZEROS.0[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

fn fill(file: &mut File, mut bytes: u64) -> io::Result<()> {
    while bytes > 0 {
        let piece = ZEROS
            .0
            .len()
            .min(usize::try_from(bytes).unwrap_or(usize::MAX));
        file.write_all(&ZEROS.0[..piece])?;
        bytes -= piece as u64;
    }
    Ok(())
}

fn sync_names(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_gives_back_its_numbers_and_no_flipped_bit_passes(numbers: [u32; 10], bit in 0..8 * HEADER_BYTES) {
            let [epoch, number, commit, oldest, first, count, bytes, next, frame, chain] = numbers.map(u64::from);
            let totals = Totals {
                first_available: first + 1, event_count: count, event_bytes: bytes, quarantine_next: next, ..Totals::default()
            };
            let streamed = Streamed { frame, chain };
            let header = Header { epoch: Epoch(epoch), number, commit, oldest, streamed, totals };
            let mut bytes = header.encode();
            prop_assert_eq!(Header::parse(&bytes), Ok(header));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Header::parse(&bytes), Err(Unreadable::Damaged));
        }
    }

    #[test]
    fn what_was_made_ahead_is_unused() {
        assert_eq!(Header::parse(&[0; HEADER_BYTES]), Err(Unreadable::Unused));
        assert_eq!(
            Header::parse(&[0; HEADER_BYTES - 1]),
            Err(Unreadable::Damaged)
        );
    }
}
