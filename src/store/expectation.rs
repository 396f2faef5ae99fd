//! A task whose end is expected, and how it lies in the log, in the index and in backups. Pure.
//!
//! ```text
//! task        length of the product (u8), product, length of the task id (u32), task id
//! flags       1: is overdue, 2: has a client, 4: names a key (u8)
//! times       expected at, expected by (i64 each, microseconds since 1970)
//! texts       client, vendor key, and the key and value of each label: length (u32), text
//! ```
//!
//! It is also kept like this in memory: a map of labels alone takes more than all of it.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::Arc,
};

use bytes::{Buf, BufMut};

use super::layout::Damaged;
use crate::event::{Labels, Product, TaskId};

/// Most expectations that are open at a time. Each takes some 400 bytes of memory with an id of 36
/// characters and two labels, and 2.5 KiB at most.
pub(crate) const EXPECTATIONS_MAX: usize = 100_000;
/// Most of them that are of one client: others must be able to expect something, too.
pub(crate) const EXPECTATIONS_PER_CLIENT_MAX: usize = EXPECTATIONS_MAX / 5;
/// Most bytes of the labels of one, keys and values together. A callback's URL may carry more,
/// which nobody does; but this is kept in memory.
pub(crate) const EXPECTATION_LABEL_BYTES_MAX: usize = 1_024;
/// Most bytes of a client's or a key's name.
const NAME_BYTES_MAX: usize = 256;

const OVERDUE: u8 = 1;
const HAS_CLIENT: u8 = 2;
const HAS_KEY: u8 = 4;
const DAMAGED: Damaged = Damaged("expectation");

/// A task to expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewExpectation {
    /// The vendor's product.
    pub product: Product,
    /// The vendor's id of the task.
    pub task_id: TaskId,
    /// What a recovered event will carry.
    pub labels: Labels,
    /// Who expects it; `None` if the call was not authenticated.
    pub client: Option<String>,
    /// The key with which to ask for it.
    pub vendor_key: Option<String>,
    /// By the log's clock, in microseconds since 1970.
    pub expected_at_micros: i64,
    /// When the task is late.
    pub expected_by_micros: i64,
}

/// A task that is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Its number: higher than those of all that were expected before, and never used again.
    pub number: u64,
    /// The vendor's product.
    pub product: Product,
    /// The vendor's id of the task.
    pub task_id: TaskId,
    /// What a recovered event will carry.
    pub labels: Labels,
    /// Who expects it; `None` if the call was not authenticated.
    pub client: Option<String>,
    /// The key with which to ask for it; `None`: the first that is for the product.
    pub vendor_key: Option<String>,
    /// When it was expected first, by the log's clock, in microseconds since 1970.
    pub expected_at_micros: i64,
    /// When the task is late.
    pub expected_by_micros: i64,
    /// An event says that it is late.
    pub is_overdue: bool,
}

/// What became of a task that a client expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It is expected, by this call or an earlier one.
    Open(Expectation),
    /// It is over already: its latest terminal event is here.
    Over(crate::event::Sequence),
}

/// Whose expectations a call may end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those of one client; `None`: those of unauthenticated calls.
    Client(Option<String>),
    /// Those of anybody.
    Anybody,
}

impl NewExpectation {
    /// Whether labels and names are within their limits.
    pub fn fits(&self) -> bool {
        let label_bytes: usize = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let names = [&self.client, &self.vendor_key];
        label_bytes <= EXPECTATION_LABEL_BYTES_MAX
            && names
                .into_iter()
                .flatten()
                .all(|name| name.len() <= NAME_BYTES_MAX)
    }

    /// The same with a number.
    pub(super) fn numbered(self, number: u64) -> Expectation {
        let Self {
            product,
            task_id,
            labels,
            client,
            vendor_key,
            expected_at_micros,
            expected_by_micros,
        } = self;
        Expectation {
            number,
            product,
            task_id,
            labels,
            client,
            vendor_key,
            expected_at_micros,
            expected_by_micros,
            is_overdue: false,
        }
    }
}

impl Expectation {
    /// About its bytes in the log.
    pub(super) fn bytes(&self) -> usize {
        let names = [&self.client, &self.vendor_key];
        let names: usize = names.into_iter().flatten().map(String::len).sum();
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len());
        64 + self.product.as_str().len()
            + self.task_id.as_str().len()
            + names
            + labels.sum::<usize>()
    }

    /// As it lies in the log. The number is not in it.
    fn encode(&self) -> Vec<u8> {
        fn text(bytes: &mut Vec<u8>, text: &str) {
            bytes.put_u32_le(text.len() as u32); // bounded where it comes in
            bytes.put_slice(text.as_bytes());
        }

        let mut bytes = key(&self.product, &self.task_id);
        let (client, vendor_key) = (self.client.as_deref(), self.vendor_key.as_deref());
        bytes.put_u8(
            flag(self.is_overdue, OVERDUE)
                | flag(client.is_some(), HAS_CLIENT)
                | flag(vendor_key.is_some(), HAS_KEY),
        );
        bytes.put_i64_le(self.expected_at_micros);
        bytes.put_i64_le(self.expected_by_micros);
        text(&mut bytes, client.unwrap_or_default());
        text(&mut bytes, vendor_key.unwrap_or_default());
        for (key, value) in &self.labels {
            text(&mut bytes, key);
            text(&mut bytes, value);
        }
        bytes
    }

    fn parse(number: u64, mut bytes: &[u8]) -> Result<Self, Damaged> {
        fn text<'a>(from: &mut &'a [u8]) -> Result<&'a str, Damaged> {
            let length = from.try_get_u32_le().map_err(|_| DAMAGED)? as usize;
            let (text, rest) = from.split_at_checked(length).ok_or(DAMAGED)?;
            *from = rest;
            str::from_utf8(text).map_err(|_| DAMAGED)
        }

        let from = &mut bytes;
        let length = usize::from(from.try_get_u8().map_err(|_| DAMAGED)?);
        let (product, rest) = from.split_at_checked(length).ok_or(DAMAGED)?;
        *from = rest;
        let product = str::from_utf8(product).map_err(|_| DAMAGED)?;
        let task_id = text(from)?;
        let flags = from.try_get_u8().map_err(|_| DAMAGED)?;
        let expected_at_micros = from.try_get_i64_le().map_err(|_| DAMAGED)?;
        let expected_by_micros = from.try_get_i64_le().map_err(|_| DAMAGED)?;
        let (client, vendor_key) = (text(from)?, text(from)?);
        let mut labels = Labels::new();
        while !from.is_empty() {
            labels.insert(text(from)?.to_owned(), text(from)?.to_owned());
        }
        Ok(Self {
            number,
            product: Product::parse(product).map_err(|_| DAMAGED)?,
            task_id: TaskId::parse(task_id).map_err(|_| DAMAGED)?,
            labels,
            client: (flags & HAS_CLIENT != 0).then(|| client.to_owned()),
            vendor_key: (flags & HAS_KEY != 0).then(|| vendor_key.to_owned()),
            expected_at_micros,
            expected_by_micros,
            is_overdue: flags & OVERDUE != 0,
        })
    }
}

fn flag(is_set: bool, flag: u8) -> u8 {
    if is_set { flag } else { 0 }
}

/// What an expectation's bytes begin with: its task.
pub(super) fn key(product: &Product, task_id: &TaskId) -> Vec<u8> {
    let (product, task_id) = (product.as_str(), task_id.as_str());
    let mut bytes = Vec::with_capacity(5 + product.len() + task_id.len());
    bytes.put_u8(product.len() as u8); // at most 63
    bytes.put_slice(product.as_bytes());
    bytes.put_u32_le(task_id.len() as u32); // at most 512
    bytes.put_slice(task_id.as_bytes());
    bytes
}

/// An expectation as it is kept: its bytes, which were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept(Arc<[u8]>);

impl Kept {
    pub(super) fn new(expectation: &Expectation) -> Self {
        Self(expectation.encode().into())
    }

    /// Checks bytes that come from a file. Copies them, so that what they are a part of can go.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Damaged> {
        Expectation::parse(0, bytes)?;
        Ok(Self(bytes.into()))
    }

    pub(super) fn expectation(&self, number: u64) -> Expectation {
        Expectation::parse(number, &self.0).expect("it was checked when it was taken in")
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same, overdue.
    pub(super) fn overdue(&self) -> Self {
        let mut bytes = self.0.to_vec();
        bytes[self.key().len()] |= OVERDUE;
        Self(bytes.into())
    }

    pub(super) fn is_overdue(&self) -> bool {
        self.flags() & OVERDUE != 0
    }

    pub(super) fn client(&self) -> Option<&str> {
        let length = self.key().len() + 1 + 8 + 8;
        let (length, text) = self.0[length..].split_first_chunk()?;
        let text = text.get(..u32::from_le_bytes(*length) as usize)?;
        (self.flags() & HAS_CLIENT != 0).then(|| str::from_utf8(text).ok())?
    }

    /// Its task.
    pub(super) fn key(&self) -> &[u8] {
        let product = usize::from(self.0[0]);
        let length = self.0[1 + product..]
            .first_chunk()
            .map_or(0, |length| u32::from_le_bytes(*length) as usize);
        &self.0[..1 + product + 4 + length]
    }

    fn flags(&self) -> u8 {
        self.0[self.key().len()]
    }
}

/// An expectation as the key of a map: found by its task.
#[derive(Clone, Debug)]
pub(super) struct ByTask(pub Kept);

impl Borrow<[u8]> for ByTask {
    fn borrow(&self) -> &[u8] {
        self.0.key()
    }
}

impl Hash for ByTask {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key().hash(state);
    }
}

impl PartialEq for ByTask {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for ByTask {}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection, option, prelude::*};

    use super::*;

    /// An expectation of a task, by nobody.
    pub(in crate::store) fn expectation(number: u64, task_id: &str) -> Expectation {
        Expectation {
            number,
            product: Product::parse("veo").unwrap(),
            task_id: TaskId::parse(task_id).unwrap(),
            labels: Labels::new(),
            client: None,
            vendor_key: None,
            expected_at_micros: 1,
            expected_by_micros: 2,
            is_overdue: false,
        }
    }

    fn any_expectation() -> impl Strategy<Value = Expectation> {
        let names = (option::of("\\PC{0,20}"), option::of("\\PC{0,20}"));
        let labels = collection::btree_map("\\PC{1,9}", "\\PC{0,9}", 0..4);
        (
            any::<(u64, i64, i64, bool)>(),
            "[a-z0-9][a-z0-9-]{0,62}",
            "[a-zA-Z0-9äö]{1,128}",
            names,
            labels,
        )
            .prop_map(|(numbers, product, task_id, names, labels)| Expectation {
                number: numbers.0,
                product: Product::parse(&product).unwrap(),
                task_id: TaskId::parse(&task_id).unwrap(),
                labels,
                client: names.0,
                vendor_key: names.1,
                expected_at_micros: numbers.1,
                expected_by_micros: numbers.2,
                is_overdue: numbers.3,
            })
    }

    proptest! {
        #[test]
        fn what_is_kept_gives_back_what_was_expected(it in any_expectation(), cut: prop::sample::Index) {
            let kept = Kept::new(&it);
            prop_assert_eq!(kept.client(), it.client.as_deref());
            prop_assert_eq!(kept.is_overdue(), it.is_overdue);
            prop_assert_eq!(kept.key(), key(&it.product, &it.task_id));
            prop_assert_eq!(kept.overdue().expectation(it.number), Expectation { is_overdue: true, ..it.clone() });
            prop_assert_eq!(Kept::parse(kept.bytes()), Ok(kept.clone()));
            prop_assert_eq!(kept.expectation(it.number), it);

            // A cut at the end of a label leaves a whole expectation with fewer: the log and the
            // backup know the length.
            if let Ok(shorter) = Kept::parse(&kept.bytes()[..cut.index(kept.bytes().len())]) {
                prop_assert_eq!(shorter.key(), kept.key());
            }
        }

        #[test]
        fn any_bytes_are_an_expectation_or_damaged(bytes: Vec<u8>) {
            if let Ok(kept) = Kept::parse(&bytes) {
                let _ = (kept.expectation(1), kept.client(), kept.overdue());
            }
        }
    }

    #[test]
    fn labels_and_names_are_bounded_in_bytes() {
        let with = |labels: usize, name: usize| NewExpectation {
            product: Product::parse("veo").unwrap(),
            task_id: TaskId::parse("t").unwrap(),
            labels: [("k".to_owned(), "v".repeat(labels - 1))].into(),
            client: Some("c".repeat(name)),
            vendor_key: Some("k".repeat(name)),
            expected_at_micros: 0,
            expected_by_micros: 0,
        };
        assert!(with(EXPECTATION_LABEL_BYTES_MAX, NAME_BYTES_MAX).fits());
        assert!(!with(EXPECTATION_LABEL_BYTES_MAX + 1, 1).fits());
        assert!(!with(1, NAME_BYTES_MAX + 1).fits());
    }
}
