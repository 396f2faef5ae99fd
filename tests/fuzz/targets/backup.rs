//! Backup files. One that was written by the book is read as what it is; with anything changed, missing, added or out of
//! order it is refused. The book is the documentation of `store::backup`, `store::layout` and `event::record`, followed here
//! on its own.

use arbitrary::Arbitrary;
use blobcast::{
    event::{Labels, Product, Record, RecordParts, Sequence, TaskId, TaskStatus},
    fuzzing::read_backup,
};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

const EVENTS: u8 = 1;
const QUARANTINE: u8 = 2;
const EXPECTATIONS: u8 = 3;
/// Before an event's record: its id, and its fingerprint.
const BESIDE_RECORD: [u8; 48] = [0; 48];

#[derive(Arbitrary, Debug)]
pub(crate) struct Input<'a> {
    first_available: u16,
    /// One task each.
    events: Vec<(&'a [u8], &'a [u8])>,
    quarantined: Vec<(&'a str, &'a [u8])>,
    /// The client and a label of each.
    expected: Vec<(Option<&'a str>, &'a str)>,
    lie: Option<Lie>,
    damage: Damage,
    /// Taken for a backup as it is.
    anything: &'a [u8],
}

/// Wrong, with a checksum that is right.
#[derive(Arbitrary, Debug)]
enum Lie {
    Format(u64),
    FirstAvailable(u64),
    EventCount(u64),
    QuarantineCount(u64),
    ExpectationCount(u64),
    EntryCount(u64),
    WithoutEntry(u8),
    TwiceEntry(u8),
    Part(u8, u8),
    Key(u8, u8),
}

#[derive(Arbitrary, Debug)]
enum Damage {
    Changed { at: u16, by: u8 },
    Cut { at: u16 },
    Added { byte: u8 },
}

struct Entry {
    part: u8,
    key: Vec<u8>,
    value: Vec<u8>,
}

pub(crate) fn run(input: Input<'_>) {
    let _ = read_backup(input.anything);
    let backup = written(&input, None);
    let summary = read_backup(backup.as_slice()).expect("it was written by the book");
    assert_eq!(summary.event_count, input.events.len() as u64);
    assert_eq!(summary.quarantine_count, input.quarantined.len() as u64);
    assert_eq!(summary.backup_bytes, backup.len() as u64);

    if let Some(lie) = &input.lie {
        let lying = written(&input, Some(lie));
        assert_eq!(
            read_backup(lying.as_slice()).is_ok(),
            lying == backup,
            "{lie:?} is believed"
        );
    }
    let damaged = damaged(&backup, &input.damage);
    assert!(
        damaged == backup || read_backup(damaged.as_slice()).is_err(),
        "{:?} is not noticed",
        input.damage
    );
}

fn written(input: &Input<'_>, lie: Option<&Lie>) -> Vec<u8> {
    let first = u64::from(input.first_available) + 1;
    let mut entries = entries(input, first);
    let counts = [
        first,
        input.events.len() as u64,
        0,
        input.quarantined.len() as u64,
        input.quarantined.len() as u64,
        0,
        input.expected.len() as u64,
        input.expected.len() as u64,
    ];
    // The newest time, whether the clocks disagreed, and the four numbers of a correction.
    let mut header = [&[6][..], &counts, &[0; 6]].concat();
    let mut entry_count = None;
    let position = |at: u8| usize::from(at) % entries.len().max(1);
    match lie {
        None => {}
        Some(Lie::Format(number)) => header[0] = *number,
        // A log that has no events may begin anywhere.
        Some(Lie::FirstAvailable(number)) if !input.events.is_empty() => header[1] = *number,
        Some(Lie::FirstAvailable(_)) => {}
        Some(Lie::EventCount(number)) => header[2] = *number,
        Some(Lie::QuarantineCount(number)) => header[5] = *number,
        Some(Lie::ExpectationCount(number)) => header[8] = *number,
        Some(Lie::EntryCount(number)) => entry_count = Some(*number),
        Some(_) if entries.is_empty() => {}
        Some(Lie::WithoutEntry(at)) => drop(entries.remove(position(*at))),
        Some(Lie::TwiceEntry(at)) => {
            let Entry { part, key, value } = &entries[position(*at)];
            entries.push(Entry {
                part: *part,
                key: key.clone(),
                value: value.clone(),
            });
        }
        Some(Lie::Part(at, part)) => {
            let at = position(*at);
            entries[at].part = *part;
        }
        Some(Lie::Key(at, byte)) => {
            let at = position(*at);
            if entries[at].part == EVENTS {
                entries[at].key[7] = *byte;
            }
        }
    }
    let mut backup = b"blobcast backup\n".to_vec();
    header
        .iter()
        .for_each(|number| backup.extend(number.to_le_bytes()));
    for Entry { part, key, value } in &entries {
        backup.push(*part);
        [key, value]
            .iter()
            .for_each(|text| backup.extend((text.len() as u32).to_le_bytes()));
        backup.extend([key.as_slice(), value.as_slice()].concat());
    }
    backup.push(0);
    backup.extend(entry_count.unwrap_or(entries.len() as u64).to_le_bytes());
    backup.extend(xxh3_64(&backup).to_le_bytes());
    backup
}

fn entries(input: &Input<'_>, first: u64) -> Vec<Entry> {
    let (product, labels) = (Product::parse("veo").unwrap(), Labels::new());
    let mut events = Vec::new();
    for (sequence, (event, raw)) in (first..).zip(&input.events) {
        let task_id = TaskId::parse(&format!("task-{sequence:08}")).unwrap();
        let parts = RecordParts {
            product: &product,
            task_id: &task_id,
            status: TaskStatus::Completed,
            revision: 1,
            conflict: false,
            received_at_micros: 0,
            log_time_micros: 0,
            labels: &labels,
            event,
            raw,
        };
        let record = Record::new(Sequence(sequence), &parts);
        events.push(Entry {
            part: EVENTS,
            key: sequence.to_be_bytes().into(),
            value: [&BESIDE_RECORD[..], record.bytes()].concat(),
        });
    }
    let quarantined = input.quarantined.iter().zip(1u64..).map(|((target, body), number)| {
        let header = json!({ "reason": "not_json", "detail": "", "target": target, "received_at_micros": number });
        let header = header.to_string().into_bytes();
        let value = [&(header.len() as u32).to_le_bytes()[..], &header, body].concat();
        Entry { part: QUARANTINE, key: number.to_be_bytes().into(), value }
    });
    let expected = input
        .expected
        .iter()
        .zip(1u64..)
        .map(|((client, label), number)| Entry {
            part: EXPECTATIONS,
            key: number.to_be_bytes().into(),
            value: expectation(number, *client, label),
        });
    events
        .into_iter()
        .chain(quarantined)
        .chain(expected)
        .collect()
}

fn expectation(number: u64, client: Option<&str>, label: &str) -> Vec<u8> {
    let task_id = format!("task-{number:08}");
    let text = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    [
        &b"\x03veo"[..],
        &text(&task_id),
        &[if client.is_some() { 2 } else { 0 }],
        &1u64.to_le_bytes(),
        &2u64.to_le_bytes(),
        &text(client.unwrap_or_default()),
        &text(""),
        &text("label"),
        &text(label),
    ]
    .concat()
}

fn damaged(backup: &[u8], damage: &Damage) -> Vec<u8> {
    let mut damaged = backup.to_vec();
    let at = |at: &u16| usize::from(*at) % backup.len();
    match damage {
        Damage::Changed { at: place, by } => damaged[at(place)] ^= by,
        Damage::Cut { at: place } => damaged.truncate(at(place)),
        Damage::Added { byte } => damaged.push(*byte),
    }
    damaged
}
