//! Values of the index and of the quarantine's entries. Pure.
//!
//! ```text
//! tasks         task id                    one entry per retained event of the task, oldest first
//! quarantine    number (u64, big-endian)   where it lies in the log (see `quarantine_index`)
//! expectations  number (u64, big-endian)   its segment (u64), and all of it (see `expectation`)
//! meta          "checkpoint"               up to where the index has the log (see `index`)
//! in the log    quarantined callback       header length (u32), header (JSON), body
//! ```

use bytes::{Buf, BufMut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::{Fingerprint, Labels, Product, Sequence, TaskStatus};

/// Version of this layout. A store of another version is refused.
pub(super) const FORMAT: u64 = 8;
/// The folder of the index below the data directory.
pub(super) const INDEX: &str = "index";
/// Of what a backup is made of, whatever a store is made of.
pub(super) const BACKUP_FORMAT: u64 = 6;

/// What the task index knows of one retained event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaskEvent {
    pub sequence: Sequence,
    pub event_id: Uuid,
    pub fingerprint: Fingerprint,
    pub revision: u32,
    pub status: TaskStatus,
    pub product: Product,
    /// Only its keys are left. It is kept so that a repetition is recognized.
    pub is_erased: bool,
}

/// In the byte with the status.
const ERASED: u8 = 0x80;

/// Bytes that this version cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged {0}")]
pub(super) struct Damaged(pub &'static str);

pub(super) fn sequence_key(sequence: Sequence) -> [u8; 8] {
    sequence.0.to_be_bytes()
}

pub(super) fn parse_sequence_key(key: &[u8]) -> Result<Sequence, Damaged> {
    key.try_into()
        .map(|key| Sequence(u64::from_be_bytes(key)))
        .map_err(|_| Damaged("event key"))
}

pub(super) fn parse_u64(value: &[u8]) -> Result<u64, Damaged> {
    value
        .try_into()
        .map(u64::from_le_bytes)
        .map_err(|_| Damaged("meta value"))
}

pub(super) fn encode_task(events: &[TaskEvent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(events.len() * 72);
    for event in events {
        bytes.put_u64_le(event.sequence.0);
        bytes.put_u128_le(event.event_id.as_u128());
        event.fingerprint.put(&mut bytes);
        bytes.put_u32_le(event.revision);
        bytes.put_u8(event.status as u8 | if event.is_erased { ERASED } else { 0 });
        bytes.put_u8(event.product.as_str().len() as u8); // at most 63
        bytes.put_slice(event.product.as_str().as_bytes());
    }
    bytes
}

pub(super) fn parse_task(mut bytes: &[u8]) -> Result<Vec<TaskEvent>, Damaged> {
    const DAMAGED: Damaged = Damaged("task index entry");
    let mut events = Vec::<TaskEvent>::with_capacity(1);
    while bytes.has_remaining() {
        let sequence = Sequence(bytes.try_get_u64_le().map_err(|_| DAMAGED)?);
        let event_id = Uuid::from_u128(bytes.try_get_u128_le().map_err(|_| DAMAGED)?);
        let fingerprint = Fingerprint::take(&mut bytes).ok_or(DAMAGED)?;
        let revision = bytes.try_get_u32_le().map_err(|_| DAMAGED)?;
        let status = bytes.try_get_u8().map_err(|_| DAMAGED)?;
        let event = TaskEvent {
            sequence,
            event_id,
            fingerprint,
            revision,
            status: TaskStatus::from_number(status & !ERASED).ok_or(DAMAGED)?,
            is_erased: status & ERASED != 0,
            product: {
                let length = usize::from(bytes.try_get_u8().map_err(|_| DAMAGED)?);
                let text = bytes
                    .get(..length)
                    .and_then(|text| std::str::from_utf8(text).ok())
                    .ok_or(DAMAGED)?;
                bytes = &bytes[length..];
                // Mostly that of the event before. Sharing it saves an allocation for each event of
                // a long entry.
                match events.last() {
                    Some(last) if last.product.as_str() == text => last.product.clone(),
                    _ => Product::parse(text).map_err(|_| DAMAGED)?,
                }
            },
        };
        events.push(event);
    }
    Ok(events)
}

/// Everything about a quarantined callback but its body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineHeader {
    /// Stable word for the cause.
    pub reason: String,
    /// A sentence for people.
    pub detail: String,
    /// Path and query of the callback URL, without secrets.
    pub target: String,
    /// When it was received, in microseconds since 1970.
    pub received_at_micros: i64,
    /// How it was authenticated, as the number of the `Verification`.
    #[serde(default)]
    pub verification: u8,
    /// The credential that let it in, by kind and name.
    #[serde(default)]
    pub credential: String,
    /// The product segment of the URL's path; empty if it had none.
    #[serde(default)]
    pub product: String,
    /// What the line of the credential bound it to, when it was received.
    #[serde(default, skip_serializing_if = "Bound::is_nothing")]
    pub bound: Bound,
    /// Drawn by the node of a cluster that has received it, which may ask others more than once to write it. `None` on a machine
    /// that is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<u64>,
}

/// What a quarantined callback is bound to, also when it is released.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Its events carry these labels.
    #[serde(default)]
    pub labels: Labels,
    /// They are of one of these products, unless an operator says otherwise; empty: of any.
    #[serde(default)]
    pub products: Vec<String>,
}

impl QuarantineHeader {
    /// Stands in for a header that cannot be read, of a callback whose commit was made at that log
    /// time, in microseconds since 1970. It is of no credential.
    pub(super) fn unreadable(log_time_micros: i64) -> Self {
        Self {
            received_at_micros: log_time_micros,
            ..Self::default()
        }
    }
}

impl Bound {
    fn is_nothing(&self) -> bool {
        self.labels.is_empty() && self.products.is_empty()
    }

    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        let labels: usize = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        labels + self.products.iter().map(String::len).sum::<usize>()
    }
}

pub(super) fn encode_quarantined(header: &QuarantineHeader, body: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).expect("a struct of texts and a number is always JSON");
    let mut bytes = Vec::with_capacity(4 + header.len() + body.len());
    bytes.put_u32_le(header.len() as u32); // the target is bounded by the header limit
    bytes.put_slice(&header);
    bytes.put_slice(body);
    bytes
}

pub(super) fn parse_quarantined(bytes: &[u8]) -> Result<(QuarantineHeader, &[u8]), Damaged> {
    const DAMAGED: Damaged = Damaged("quarantine entry");
    let (length, rest) = bytes.split_first_chunk().ok_or(DAMAGED)?;
    let (header, body) = rest
        .split_at_checked(u32::from_le_bytes(*length) as usize)
        .ok_or(DAMAGED)?;
    Ok((serde_json::from_slice(header).map_err(|_| DAMAGED)?, body))
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn any_task_event() -> impl Strategy<Value = TaskEvent> {
        let product = "[a-z0-9][a-z0-9-]{0,62}";
        (any::<(u64, u128, u128, u32, bool)>(), 0u8..6, product).prop_map(
            |(numbers, status, product)| TaskEvent {
                sequence: Sequence(numbers.0),
                event_id: Uuid::from_u128(numbers.1),
                fingerprint: numbers.2.into(),
                revision: numbers.3,
                status: TaskStatus::from_number(status).unwrap(),
                product: Product::parse(&product).unwrap(),
                is_erased: numbers.4,
            },
        )
    }

    proptest! {
        #[test]
        fn a_task_entry_gives_back_its_events(events in collection::vec(any_task_event(), 0..5)) {
            prop_assert_eq!(parse_task(&encode_task(&events)), Ok(events));
        }

        #[test]
        fn any_bytes_are_values_or_damaged(bytes: Vec<u8>) {
            let _ = (parse_task(&bytes), parse_quarantined(&bytes).is_ok());
        }

        #[test]
        fn a_quarantine_entry_gives_back_header_and_body(
            reason: String,
            target: String,
            at: i64,
            labels in collection::btree_map("\\PC{0,9}", "\\PC{0,9}", 0..3),
            products in collection::vec("[a-z]{1,9}", 0..3),
            idempotency_key: Option<u64>,
            body: Vec<u8>,
        ) {
            let (credential, product) = (reason.clone(), target.clone());
            let header = QuarantineHeader {
                reason, detail: String::new(), target, received_at_micros: at, verification: 2, credential, product,
                bound: Bound { labels, products }, idempotency_key,
            };
            let bytes = encode_quarantined(&header, &body);
            prop_assert_eq!(parse_quarantined(&bytes), Ok((header, body.as_slice())));
        }

        #[test]
        fn keys_sort_like_sequences(a: u64, b: u64) {
            prop_assert_eq!(sequence_key(Sequence(a)).cmp(&sequence_key(Sequence(b))), a.cmp(&b));
        }
    }
}
