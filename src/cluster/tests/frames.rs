//! What the frame and the apply rule promise for any bytes.

use bytes::Bytes;
use proptest::{collection, prelude::*, sample::Index};
use uuid::Uuid;

use crate::{
    cluster::{
        Author, Beginning, Contents, Correction, Encoded, Entries, Entry, FORMAT, Frame,
        FrameError, Header, Hole, Join, Link, Position, StreamId, Totals, Trust, Verdict,
        forgotten_before, join, judge,
    },
    event::{Epoch, Labels, Product, Record, RecordParts, Sequence, TaskId, TaskStatus},
};

const EPOCH: Epoch = Epoch(7);

fn record(place: Sequence, raw: &[u8]) -> Record {
    let parts = RecordParts {
        product: &Product::parse("veo").unwrap(),
        task_id: &TaskId::parse("t1").unwrap(),
        status: TaskStatus::Completed,
        revision: 1,
        conflict: false,
        received_at_micros: 1,
        log_time_micros: 2,
        labels: &Labels::new(),
        event: b"event",
        raw,
    };
    Record::new(place, &parts)
}

fn event(raw: &[u8]) -> Entry {
    Entry::Event {
        event_id: Uuid::from_u128(raw.len() as u128),
        fingerprint: 7.into(),
        record: record(Sequence(0), raw),
    }
}

/// Contents that fit, behind totals.
fn contents(before: Totals, entries: &[Entry]) -> Contents {
    let entries = Entries::of(entries);
    Contents {
        author: Author(5),
        name: "a".to_owned(),
        commit_time_micros: 3,
        before,
        after: Totals {
            event_count: before.event_count + entries.event_count(),
            ..before
        },
        entries,
    }
}

fn encoded(link: Link, before: Totals, entries: &[Entry]) -> Encoded {
    contents(before, entries).encode(link).unwrap()
}

/// A node that has one event, by the frame at message 1.
fn behind_one() -> Position {
    let position = Position::start(EPOCH);
    let first = encoded(position.link(), position.totals, &[event(b"one")]);
    let Verdict::Apply(frame) = judge(&position, 1, &first.bytes) else {
        panic!("the first frame is applied");
    };
    position.behind(&frame)
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let value = collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    let place = any::<u64>().prop_map(Sequence);
    prop_oneof![
        collection::vec(any::<u8>(), 0..40).prop_map(|raw| event(&raw)),
        (any::<u64>(), value.clone())
            .prop_map(|(number, value)| Entry::Quarantined { number, value }),
        any::<(u64, bool)>().prop_map(|(number, is_erased)| Entry::Left { number, is_erased }),
        any::<u16>().prop_map(|format| Entry::FormatRaised { format }),
        place.prop_map(|place| Entry::Erased { place }),
        (any::<u64>(), value.clone()).prop_map(|(number, value)| Entry::Carried { number, value }),
        (any::<u64>(), value).prop_map(|(number, value)| Entry::Expected { number, value }),
        any::<u64>().prop_map(|number| Entry::ExpectationEnded { number }),
    ]
}

fn any_totals() -> impl Strategy<Value = Totals> {
    let trust = prop_oneof![
        Just(Trust::Known),
        Just(Trust::Waiting),
        Just(Trust::Doubted)
    ];
    let numbers = any::<([u32; 8], [i64; 3], [u64; 2])>();
    (numbers, trust).prop_map(|((counts, times, corrected), trust)| {
        let [first, count, bytes, next, waiting, size, expected, open] = counts.map(u64::from);
        Totals {
            first_available: first + 1,
            event_count: count,
            event_bytes: bytes,
            quarantine_next: next,
            quarantine_count: waiting,
            quarantine_bytes: size,
            expectation_next: expected,
            expectation_count: open,
            log_time_micros: times[0],
            trust,
            correction: Correction {
                events: corrected[0],
                quarantined: corrected[1],
                by_micros: times[1],
                at_micros: times[2],
            },
        }
    })
}

proptest! {
    #[test]
    fn a_frame_gives_back_what_it_was_made_of(
        entries in collection::vec(any_entry(), 0..6),
        before in any_totals(),
        (epoch, prev, chain, author) in any::<(u64, u64, u64, u128)>(),
        name in "\\PC{0,40}",
        commit_time_micros in any::<i64>(),
    ) {
        let written = Contents { author: Author(author), name, commit_time_micros, ..contents(before, &entries) };
        let link = Link { epoch: Epoch(epoch), frame: prev, chain };
        let Encoded { bytes, chain: new } = written.encode(link).unwrap();
        let read = Frame::parse(&bytes).unwrap();

        prop_assert_eq!(&read.contents, &written);
        prop_assert_eq!(read.header, Header { flags: 0, format: FORMAT, epoch: Epoch(epoch), prev, chain: new });
        prop_assert_eq!(Frame::chain_of(&bytes, chain), new);
        let head = before.head().unwrap();
        let places: Vec<_> = read.entries().filter_map(|entry| match entry {
            Entry::Event { record, .. } => Some(record.sequence().0),
            _ => None,
        }).collect();
        let expected: Vec<_> = (head.0 + 1..).take(places.len()).collect();
        prop_assert_eq!(places, expected);
        prop_assert_eq!(Entries::of(&read.entries().collect::<Vec<_>>()), written.entries);
    }

    #[test]
    fn any_bytes_have_a_verdict(bytes in any::<Vec<u8>>(), sequence in 0u64..4, prev in 0u64..3) {
        let position = behind_one();
        let bare = Bytes::from(bytes);
        let verdict = judge(&position, sequence, &bare);
        let is_passed_over = matches!(verdict, Verdict::Foreign | Verdict::Hole(Hole::Jumped { .. }));
        prop_assert!(is_passed_over, "{:?}", verdict);
        let _ = (join(EPOCH, sequence, &bare), Frame::parse(&bare).is_ok());

        // With the right beginning, and the right chain, too.
        let mut message = [&b"BCF1\0\0\x01\0"[..], &7u64.to_le_bytes(), &prev.to_le_bytes(), &[0; 8], &bare].concat();
        let chain = Frame::chain_of(&message, position.chain);
        message[24..32].copy_from_slice(&chain.to_le_bytes());
        let message = Bytes::from(message);
        let verdict = judge(&position, 2, &message);
        let is_right = match prev {
            0 => verdict == Verdict::Void,
            1 => matches!(verdict, Verdict::Hole(Hole::Malformed(_) | Hole::Totals)),
            _ => verdict == Verdict::Hole(Hole::NeverSeen { prev }),
        };
        prop_assert!(is_right, "{:?}", verdict);
        let _ = join(EPOCH, 2, &message);
    }

    #[test]
    fn a_frame_of_which_a_bit_was_changed_is_never_applied(
        entries in collection::vec(any_entry(), 0..4), at: Index, bit in 0u8..8,
    ) {
        let position = behind_one();
        let mut bytes = encoded(position.link(), position.totals, &entries).bytes.to_vec();
        let whole = judge(&position, 2, &bytes.clone().into());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let changed = judge(&position, 2, &bytes.into());
        let applied = [whole, changed].map(|verdict| matches!(verdict, Verdict::Apply(_)));
        prop_assert_eq!(applied, [true, false], "byte {}", at);
    }

    #[test]
    fn a_frame_that_was_cut_is_never_applied(entries in collection::vec(any_entry(), 0..4), at: Index) {
        let position = behind_one();
        let bytes = encoded(position.link(), position.totals, &entries).bytes;
        let cut = bytes.slice(..at.index(bytes.len()));
        let is_applied = matches!(judge(&position, 2, &cut), Verdict::Apply(_));
        prop_assert!(!is_applied);
    }
}

#[test]
fn only_the_frame_behind_the_last_one_is_applied() {
    let position = behind_one();
    let at = |frame, chain| Link {
        epoch: EPOCH,
        frame,
        chain,
    };
    let judged = |link: Link, before: Totals| {
        let message = encoded(link, before, &[event(b"two")]).bytes;
        judge(&position, 2, &message)
    };
    let totals = position.totals;

    assert!(matches!(judged(position.link(), totals), Verdict::Apply(_)));
    assert_eq!(judged(at(0, EPOCH.0), Totals::EMPTY), Verdict::Void);
    assert_eq!(
        judged(at(1, position.chain ^ 1), totals),
        Verdict::Hole(Hole::Chain)
    );
    let other = Totals {
        quarantine_next: 1,
        ..totals
    };
    assert_eq!(judged(position.link(), other), Verdict::Hole(Hole::Totals));
    assert_eq!(
        judged(at(2, position.chain), totals),
        Verdict::Hole(Hole::NeverSeen { prev: 2 })
    );
    let foreign = Link {
        epoch: Epoch(8),
        ..position.link()
    };
    assert_eq!(judged(foreign, totals), Verdict::Foreign);
}

#[test]
fn a_stream_that_jumps_is_a_hole() {
    let position = behind_one();
    let message = encoded(position.link(), position.totals, &[]).bytes;
    for (sequence, found) in [(1, 1), (3, 3), (u64::MAX, u64::MAX)] {
        let hole = Hole::Jumped { expected: 2, found };
        assert_eq!(judge(&position, sequence, &message), Verdict::Hole(hole));
    }
}

#[test]
fn a_frame_of_a_later_version_asks_for_an_upgrade_wherever_it_lies() {
    let position = behind_one();
    let message = encoded(position.link(), position.totals, &[]).bytes;
    for (at, value, format) in [(6, 2, 2), (4, 1, FORMAT)] {
        let mut newer = message.to_vec();
        newer[at] = value;
        let newer = Bytes::from(newer);
        let verdict = judge(&position, 2, &newer);
        assert_eq!(verdict, Verdict::Upgrade { format });
        assert_eq!(join(EPOCH, 9, &newer), Join::Upgrade { format });
    }
}

#[test]
fn the_first_frame_says_where_the_log_begins() {
    let imported = Totals {
        first_available: 100,
        event_count: 20,
        ..Totals::EMPTY
    };
    let position = Position::start(EPOCH);
    let genesis = encoded(position.link(), imported, &[event(b"one")]).bytes;
    let Verdict::Apply(frame) = judge(&position, 1, &genesis) else {
        panic!("it is applied");
    };
    assert_eq!(frame.first_place(), Sequence(120));
    assert_eq!(position.behind(&frame).totals.head(), Some(Sequence(120)));
}

#[test]
fn a_node_without_a_log_begins_behind_the_first_frame_that_is_left() {
    let position = behind_one();
    let second = encoded(position.link(), position.totals, &[event(b"two")]);
    let Verdict::Apply(frame) = judge(&position, 2, &second.bytes) else {
        panic!("it is applied");
    };
    let whole = position.behind(&frame);
    assert_eq!(join(EPOCH, 2, &second.bytes), Join::At(whole));
    assert_eq!(join(EPOCH, 2, &Bytes::from("else")), Join::Next);

    let third = encoded(whole.link(), whole.totals, &[event(b"three")]).bytes;
    assert!(matches!(judge(&whole, 3, &third), Verdict::Apply(_)));
}

#[test]
fn a_node_without_a_log_applies_the_genesis() {
    let start = Position::start(EPOCH);
    let genesis = encoded(start.link(), start.totals, &[]).bytes;
    let Join::At(position) = join(EPOCH, 4, &genesis) else {
        panic!("the log begins there");
    };
    assert_eq!(position.seen, 3);
    assert!(matches!(judge(&position, 4, &genesis), Verdict::Apply(_)));
}

/// The local log's kind 4 names segments of one node, and a later version may have kinds that this one would drop.
#[test]
fn an_entry_of_a_kind_that_no_frame_has_is_refused() {
    let numbered = |kind: u8, value: &[u8]| {
        let length = (value.len() as u32).to_le_bytes();
        Bytes::from([&[kind][..], &length, value].concat())
    };
    for kind in [0, 9, 255] {
        let unknown = FrameError("it has an entry of a kind that no frame has");
        assert_eq!(Entries::parse(numbered(kind, &[0; 8])), Err(unknown));
    }
    assert!(
        Entries::parse(numbered(4, &[0; 40])).is_err(),
        "with copies"
    );
    assert!(
        Entries::parse(numbered(3, &[0; 8])).is_err(),
        "retention or not?"
    );
    assert!(Entries::parse(numbered(5, &[0; 9])).is_err(), "too long");
}

#[test]
fn contents_that_contradict_themselves_are_not_written() {
    let good = contents(Totals::EMPTY, &[event(b"one")]);
    let link = Link::start(EPOCH);
    assert!(good.encode(link).is_ok());

    let gap = Totals {
        event_count: 2,
        ..good.after
    };
    let bad = Contents {
        after: gap,
        ..good.clone()
    };
    assert!(bad.encode(link).is_err(), "places have no gap");
    let bad = Contents {
        name: "n".repeat(256),
        ..good
    };
    assert!(bad.encode(link).is_err(), "the name is too long");
}

#[test]
fn a_format_stays_as_it_is() {
    let start = Position::start(EPOCH);
    let entries = [
        event(b"raw"),
        Entry::Left {
            number: 1,
            is_erased: true,
        },
    ];
    let Encoded { bytes, chain } = encoded(start.link(), start.totals, &entries);
    // Other numbers are another format: nodes of two versions would not agree.
    assert_eq!((bytes.len(), chain), (394, 16_679_605_438_051_554_872));
}

#[test]
fn a_log_is_left_behind_only_when_retention_has_forgotten_all_of_it() {
    let at = |frame: u64, event_count: u64| Position {
        frame,
        totals: Totals {
            event_count,
            ..Totals::EMPTY
        },
        ..Position::start(EPOCH)
    };
    let stream = Beginning {
        stream: StreamId(1),
        position: at(9, 0),
        first: 9,
        first_available: Sequence(5),
    };
    assert!(stream.leaves_behind(&at(7, 4)));
    assert!(!stream.leaves_behind(&at(7, 5)), "event 5 is retained");
    assert!(!stream.leaves_behind(&at(8, 4)), "it goes on with frame 9");
    let other = Position {
        epoch: Epoch(8),
        ..at(7, 4)
    };
    assert!(!stream.leaves_behind(&other));
    assert!(!Beginning::whole(StreamId(1), EPOCH).leaves_behind(&at(0, 0)));
}

#[test]
fn what_is_forgotten_is_what_a_frame_was_decided_on() {
    let before = Totals {
        first_available: 3,
        ..Totals::EMPTY
    };
    let frame = encoded(Link::start(EPOCH), before, &[event(b"raw")]).bytes;
    assert_eq!(forgotten_before(EPOCH, &frame), Some(Sequence(3)));
    assert_eq!(forgotten_before(Epoch(8), &frame), None);
    assert_eq!(forgotten_before(EPOCH, &Bytes::from_static(b"BCF1")), None);
}
