//! Stored events. Any bytes are a record or an error; what is a record can be asked for everything, is delivered at the
//! length that is said beforehand, and is none any more when its end is missing.
//!
//! Input: where it is cut (2 bytes), then what the store has.

use blobcast::{
    event::{Epoch, Record, Selectable, Sequence},
    wire::Delivery,
};
use bytes::Bytes;

pub(crate) fn run(input: &[u8]) {
    let Some((&cut, stored)) = input.split_first_chunk::<2>() else {
        return;
    };
    let bytes = Bytes::copy_from_slice(stored);
    let Ok(record) = Record::from_stored(Sequence(7), bytes.clone()) else {
        return;
    };
    assert_eq!(
        (record.sequence(), record.bytes(), record.len()),
        (Sequence(7), &bytes, stored.len())
    );

    let (product, task_id) = (record.product(), record.task_id());
    let (event, raw) = (record.event(), record.raw());
    assert!(32 + product.len() + task_id.len() + event.len() + raw.len() <= stored.len());
    assert!(stored.ends_with(&[event, raw].concat()));
    let _ = (
        record.status(),
        record.revision(),
        record.conflict(),
        record.has_label("team", "ads"),
    );
    let _ = (record.received_at_micros(), record.log_time_micros());

    let without_raw = record.without_raw();
    assert_eq!(
        (without_raw.event(), without_raw.raw(), without_raw.len()),
        (event, &[][..], stored.len() - raw.len())
    );
    assert_eq!(
        (without_raw.product(), without_raw.task_id()),
        (product, task_id)
    );
    assert_eq!(
        without_raw.has_label("team", "ads"),
        record.has_label("team", "ads")
    );

    let cut = usize::from(u16::from_le_bytes(cut)) % stored.len();
    let left = Record::from_stored(Sequence(7), bytes.slice(..cut));
    assert_eq!(left.is_ok(), cut >= without_raw.len(), "cut to {cut} bytes");
    check_delivery(&record);
}

/// What it takes on the wire is what is counted for it: the bytes of the event, the body, and little else.
fn check_delivery(record: &Record) {
    let delivery = |include_raw| Delivery::new(Epoch(1), record.clone(), include_raw);
    let (bare, whole) = (delivery(false).encoded_len(), delivery(true).encoded_len());
    assert!((record.event().len()..record.event().len() + 64).contains(&bare));
    assert!((bare + record.raw().len()..=bare + record.raw().len() + 8).contains(&whole));
}
