//! Messages of a cluster's stream. Any bytes have a verdict; what is applied follows the last frame, fits its totals, is written
//! again as the same bytes, and is not applied any more when its end is missing or it comes again.
//!
//! Input: whether to make a beginning and a chain that fit (1 byte), which frame it follows (1 byte), then the message.

use blobcast::{
    cluster::{
        Author, Contents, Entries, Entry, Frame, Join, Position, Totals, Verdict, join, judge,
    },
    event::Epoch,
};
use bytes::Bytes;

const EPOCH: Epoch = Epoch(7);

pub(crate) fn run(input: &[u8]) {
    let Some((&[fits, prev], rest)) = input.split_first_chunk::<2>() else {
        return;
    };
    let position = behind_genesis();
    let message = if fits & 1 == 0 {
        Bytes::copy_from_slice(rest)
    } else {
        fitting(&position, u64::from(prev), rest)
    };

    let joined = join(EPOCH, 2, &message);
    let verdict = judge(&position, 2, &message);
    let Verdict::Apply(frame) = verdict else {
        assert!(fits & 1 == 0 || prev == 1 || verdict == expected(prev, &verdict));
        return;
    };
    check_applied(&position, &message, &frame);
    assert_eq!(joined, Join::At(position.behind(&frame)));
}

/// A node that has the genesis.
fn behind_genesis() -> Position {
    let start = Position::start(EPOCH);
    let genesis = Contents {
        author: Author(1),
        name: String::new(),
        commit_time_micros: 0,
        before: Totals::EMPTY,
        after: Totals::EMPTY,
        entries: Entries::default(),
    };
    let encoded = genesis.encode(start.link()).expect("it is empty");
    match judge(&start, 1, &encoded.bytes) {
        Verdict::Apply(frame) => start.behind(&frame),
        other => panic!("the genesis is {other:?}"),
    }
}

fn fitting(position: &Position, prev: u64, rest: &[u8]) -> Bytes {
    let beginning = b"BCF1\0\0\x01\0";
    let fields = [EPOCH.0, prev, 0].map(u64::to_le_bytes).concat();
    let mut message = [&beginning[..], &fields, rest].concat();
    let chain = Frame::chain_of(&message, position.chain);
    message[24..32].copy_from_slice(&chain.to_le_bytes());
    message.into()
}

/// What a frame is that follows another one than the last.
fn expected(prev: u8, verdict: &Verdict) -> Verdict {
    match (prev, verdict) {
        (0, _) => Verdict::Void,
        (_, Verdict::Hole(hole)) => Verdict::Hole(*hole),
        (_, other) => panic!("a frame behind {prev} is {other:?}"),
    }
}

fn check_applied(position: &Position, message: &Bytes, frame: &Frame) {
    assert_eq!(frame.header.prev, position.frame);
    assert_eq!(frame.contents.before, position.totals);
    let again = frame.contents.encode(position.link()).expect("it was read");
    assert_eq!((&again.bytes, again.chain), (message, frame.header.chain));

    let entries: Vec<_> = frame.entries().collect();
    assert_eq!(Entries::of(&entries), frame.contents.entries);
    let is_event = |entry: &&Entry| matches!(entry, Entry::Event { .. });
    let events = entries.iter().filter(is_event).count() as u64;
    let heads = [&frame.contents.before, &frame.contents.after].map(|totals| totals.head());
    assert_eq!(
        heads[0].map(|head| head.0 + events),
        heads[1].map(|head| head.0)
    );

    let cut = message.slice(..message.len() - 1);
    assert!(!matches!(judge(position, 2, &cut), Verdict::Apply(_)));
    let behind = position.behind(frame);
    assert_eq!(judge(&behind, 3, message), Verdict::Void);
}
