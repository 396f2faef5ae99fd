//! What the events of a segment have: a summary by which a reader passes over a segment that has nothing for it. Pure.
//!
//! ```text
//! checksum     XXH3 of the rest (u64)
//! magic        "summary\n"
//! format       of this layout (u64)
//! bound        XXH3 of the headers of the segment and of the one behind it (u64)
//! statuses     a bit for each status that an event has (u64)
//! filter       of the products and labels: blocks of 32 bytes
//! ```
//!
//! Integers are little-endian. The filter is a split block Bloom filter, as the Parquet format describes it, over the XXH3 of each
//! term. So a summary may name what no event has, which costs a reader time. It never leaves out what an event has, or the reader
//! would miss that event.
//!
//! A library would own both the hash and the places of the bits, and what it changes in them would have a file of the version
//! before leave out what is there. So the filter is written here, by a published layout.

use std::{collections::HashSet, iter};

use bytes::{Buf, BufMut, Bytes};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::event::{Filter, Record, Selectable, TaskStatus};

const MAGIC: &[u8; 8] = b"summary\n";
/// To be raised with every change of the layout, of a term's hash, or of which terms there are: a summary of another format is
/// not believed.
const FORMAT: u64 = 1;
const HEADER_BYTES: usize = 40;
const BLOCK_BYTES: usize = 32;
/// With 16 bits for each term, one segment in about 700 is read for nothing.
const BYTES_PER_TERM: usize = 2;
/// More terms share a filter of the size for so many, 128 KiB, and more segments are read for nothing. A full segment has 25,000
/// events of 600 bytes.
const TERMS_MAX: usize = 64 * 1024;
/// Of a file. A longer one is none.
pub(super) const SUMMARY_BYTES_MAX: u64 = (HEADER_BYTES + BYTES_PER_TERM * TERMS_MAX) as u64;
/// Of the Parquet format: <https://github.com/apache/parquet-format/blob/master/BloomFilter.md>.
const SALTS: [u32; 8] = [
    0x47b6_137b,
    0x4497_4d91,
    0x8824_ad5b,
    0xa2b7_289d,
    0x7054_95c7,
    0x2df1_424b,
    0x9efc_4947,
    0x5c6b_fb31,
];

/// Where the hashes of products end and those of labels begin: a product that reads like a label is another term.
const PRODUCT_SEED: u64 = 1;
const LABEL_SEED: u64 = 2;

fn of_product(product: &str) -> u64 {
    xxh3_64_with_seed(product.as_bytes(), PRODUCT_SEED)
}

fn of_label(key: &str, value: &str) -> u64 {
    xxh3_64_with_seed(value.as_bytes(), LABEL_SEED ^ xxh3_64(key.as_bytes()))
}

fn of_status(status: TaskStatus) -> u64 {
    1 << status as u8
}

/// Hands over the terms of an event in the filter.
fn each_term(record: &Record, mut each: impl FnMut(u64)) {
    each(of_product(record.product()));
    record
        .each_label()
        .for_each(|(key, value)| each(of_label(key, value)));
}

/// The terms of some events, gathered for a summary. Bounded: see [`TERMS_MAX`].
#[derive(Debug, Default)]
pub(super) struct Terms {
    statuses: u64,
    /// Until there are too many.
    hashes: HashSet<u64>,
    /// From then on.
    blocks: Option<Blocks>,
}

impl Terms {
    /// Adds those of an event. What was erased has none: no filter selects it.
    pub(super) fn add(&mut self, record: &Record) {
        if !record.is_erased() {
            self.statuses |= of_status(record.status());
            each_term(record, |hash| self.insert(hash));
        }
    }

    /// Adds what was gathered of the events of one commit.
    pub(super) fn add_gathered(&mut self, gathered: &Gathered) {
        self.statuses |= gathered.statuses;
        gathered.hashes.iter().for_each(|&hash| self.insert(hash));
    }

    fn insert(&mut self, hash: u64) {
        if let Some(blocks) = &mut self.blocks {
            blocks.insert(hash);
            return;
        }
        self.hashes.insert(hash);
        if self.hashes.len() == TERMS_MAX {
            self.blocks = Some(Blocks::of(&std::mem::take(&mut self.hashes)));
        }
    }

    /// The file of a summary of these.
    pub(super) fn encode(&self, bound: u64) -> Vec<u8> {
        let made;
        let Blocks(blocks) = match &self.blocks {
            Some(blocks) => blocks,
            None => {
                made = Blocks::of(&self.hashes);
                &made
            }
        };
        let mut bytes = vec![0; 8];
        bytes.put_slice(MAGIC);
        [FORMAT, bound, self.statuses]
            .into_iter()
            .for_each(|n| bytes.put_u64_le(n));
        blocks.iter().flatten().for_each(|&n| bytes.put_u32_le(n));
        let checksum = xxh3_64(&bytes[8..]);
        bytes[..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// The terms of a commit in the making, as they come.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    statuses: u64,
    hashes: Vec<u64>,
}

impl Gathered {
    pub(super) fn add(&mut self, record: &Record) {
        self.statuses |= of_status(record.status());
        each_term(record, |hash| self.hashes.push(hash));
    }
}

/// A filter in the making.
#[derive(Debug)]
struct Blocks(Vec<[u32; 8]>);

impl Blocks {
    fn of(hashes: &HashSet<u64>) -> Self {
        let count = (hashes.len() * BYTES_PER_TERM).div_ceil(BLOCK_BYTES);
        let mut blocks = Self(vec![[0; 8]; count]);
        hashes.iter().for_each(|&hash| blocks.insert(hash));
        blocks
    }

    fn insert(&mut self, hash: u64) {
        let at = block_of(hash, self.0.len());
        iter::zip(&mut self.0[at], bits_of(hash)).for_each(|(word, bit)| *word |= bit);
    }
}

fn block_of(hash: u64, blocks: usize) -> usize {
    (((hash >> 32) * blocks as u64) >> 32) as usize // below `blocks`
}

fn bits_of(hash: u64) -> impl Iterator<Item = u32> {
    SALTS
        .into_iter()
        .map(move |salt| 1 << ((hash as u32).wrapping_mul(salt) >> 27)) // the lower half, as the format says
}

/// What a summary must have for a reader to look into its segment.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Any of these bits.
    statuses: Option<u64>,
    /// Of each, any of these.
    any: Vec<Vec<u64>>,
}

impl Wanted {
    /// `None` if a summary tells nothing of what this filter selects. Tasks are in no summary: the index has them.
    pub(super) fn of(filter: &Filter) -> Option<Self> {
        let Filter {
            task_ids: _,
            products,
            statuses,
            labels,
            bound,
        } = filter;
        let hash = |(key, value): (&String, &String)| of_label(key, value);
        let mut any: Vec<Vec<u64>> = vec![
            products.iter().map(|it| of_product(it.as_str())).collect(),
            labels.iter().map(hash).collect(),
        ];
        any.retain(|terms| !terms.is_empty());
        any.extend(
            bound
                .iter()
                .flat_map(|bound| bound.iter())
                .map(|label| vec![hash(label)]),
        );
        let statuses = statuses
            .iter()
            .map(|&status| of_status(status))
            .reduce(|a, b| a | b);
        (statuses.is_some() || !any.is_empty()).then_some(Self { statuses, any })
    }
}

/// A summary as it was read.
#[derive(Debug)]
pub(super) struct Summary {
    statuses: u64,
    blocks: Bytes,
}

impl Summary {
    /// `None` for anything but a whole summary of this format that is bound so.
    pub(super) fn parse(bytes: &Bytes, bound: u64) -> Option<Self> {
        let mut rest = bytes.get(..HEADER_BYTES)?;
        let checksum = rest.get_u64_le();
        let magic = rest.get(..MAGIC.len())?;
        let is_magic = magic == MAGIC;
        rest.advance(MAGIC.len());
        let said = (rest.get_u64_le(), rest.get_u64_le());
        let statuses = rest.get_u64_le();
        let blocks = bytes.slice(HEADER_BYTES..);
        let is_good = is_magic
            && said == (FORMAT, bound)
            && blocks.len().is_multiple_of(BLOCK_BYTES)
            && checksum == xxh3_64(&bytes[8..]);
        is_good.then_some(Self { statuses, blocks })
    }

    /// Bytes of its file.
    pub(super) fn bytes(&self) -> usize {
        HEADER_BYTES + self.blocks.len()
    }

    /// Whether its segment may have an event that is wanted. If this says no, it has none.
    pub(super) fn may_have(&self, wanted: &Wanted) -> bool {
        wanted.statuses.is_none_or(|it| self.statuses & it != 0)
            && wanted
                .any
                .iter()
                .all(|terms| terms.iter().any(|&hash| self.may_contain(hash)))
    }

    fn may_contain(&self, hash: u64) -> bool {
        let count = self.blocks.len() / BLOCK_BYTES;
        if count == 0 {
            return false;
        }
        let at = block_of(hash, count) * BLOCK_BYTES;
        let words = self.blocks[at..at + BLOCK_BYTES].chunks_exact(4);
        iter::zip(words, bits_of(hash)).all(|(mut word, bit)| word.get_u32_le() & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::{collection, prelude::*};

    use super::*;
    use crate::event::{Labels, Product, RecordParts, Sequence, TaskId};

    const BOUND: u64 = 7;
    const PRODUCTS: [&str; 4] = ["veo", "sora", "kling", "flux"];
    const KEYS: [&str; 2] = ["team", "ref"];
    const VALUES: [&str; 3] = ["ads", "film", "42"];

    type Label = (usize, usize);

    fn labels(chosen: &[Label]) -> Labels {
        let text = |&(key, value): &Label| (KEYS[key].to_owned(), VALUES[value].to_owned());
        chosen.iter().map(text).collect()
    }

    fn record(product: &str, status: TaskStatus, labels: &Labels) -> Record {
        let parts = RecordParts {
            product: &Product::parse(product).unwrap(),
            task_id: &TaskId::parse("t1").unwrap(),
            status,
            revision: 1,
            conflict: false,
            received_at_micros: 0,
            log_time_micros: 0,
            labels,
            event: b"event",
            raw: b"raw",
        };
        Record::new(Sequence(1), &parts)
    }

    fn any_labels() -> impl Strategy<Value = Vec<Label>> {
        collection::vec((0..KEYS.len(), 0..VALUES.len()), 0..3)
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let parts = (0..PRODUCTS.len(), 0..TaskStatus::ALL.len(), any_labels());
        parts.prop_map(|(product, status, chosen)| {
            record(PRODUCTS[product], TaskStatus::ALL[status], &labels(&chosen))
        })
    }

    fn any_filter() -> impl Strategy<Value = Filter> {
        let products = collection::vec(0..PRODUCTS.len(), 0..3);
        let statuses = collection::vec(0..TaskStatus::ALL.len(), 0..3);
        let parts = (products, statuses, any_labels(), any_labels());
        parts.prop_map(|(products, statuses, chosen, bound)| Filter {
            task_ids: [].into(),
            products: products
                .into_iter()
                .map(|it| Product::parse(PRODUCTS[it]).unwrap())
                .collect(),
            statuses: statuses.into_iter().map(|it| TaskStatus::ALL[it]).collect(),
            labels: labels(&chosen),
            bound: Some(Arc::new(labels(&bound))),
        })
    }

    /// As a commit gathers them, or as a segment is read.
    fn terms_of(records: &[Record], is_read: bool) -> Terms {
        let (mut terms, mut gathered) = (Terms::default(), Gathered::default());
        for record in records {
            if is_read {
                terms.add(record);
            } else {
                gathered.add(record);
            }
        }
        terms.add_gathered(&gathered);
        terms
    }

    fn summary_of(terms: &Terms) -> Summary {
        Summary::parse(&terms.encode(BOUND).into(), BOUND).unwrap()
    }

    fn may_have(summary: &Summary, filter: &Filter) -> bool {
        Wanted::of(filter).is_none_or(|wanted| summary.may_have(&wanted))
    }

    proptest! {
        #[test]
        fn a_summary_never_rules_out_what_a_filter_selects(
            records in collection::vec(any_record(), 0..4),
            filter in any_filter(),
            is_read: bool,
        ) {
            let summary = summary_of(&terms_of(&records, is_read));
            let selects_one = records.iter().any(|record| filter.matches(record));
            prop_assert!(!selects_one || may_have(&summary, &filter));
        }

        // With so few terms it is exact, so each field has to rule out what it excludes.
        #[test]
        fn each_field_of_a_filter_rules_out_a_segment(record in any_record(), filter in any_filter()) {
            let summary = summary_of(&terms_of(std::slice::from_ref(&record), true));
            prop_assert_eq!(may_have(&summary, &filter), filter.matches(&record));
        }

        #[test]
        fn no_damaged_or_foreign_summary_is_believed(records in collection::vec(any_record(), 1..3), at: prop::sample::Index, bit in 0..8u32) {
            let mut bytes = terms_of(&records, true).encode(BOUND);
            prop_assert!(Summary::parse(&bytes.clone().into(), BOUND).is_some());
            prop_assert!(Summary::parse(&bytes.clone().into(), BOUND + 1).is_none());
            let at = at.index(bytes.len());
            prop_assert!(Summary::parse(&bytes[..at].to_vec().into(), BOUND).is_none());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(Summary::parse(&bytes.into(), BOUND).is_none());
        }
    }

    #[test]
    fn what_was_erased_is_in_no_summary() {
        let labels = labels(&[(0, 0)]);
        let record = record("veo", TaskStatus::Completed, &labels).erased();
        let summary = summary_of(&terms_of(&[record], true));
        let of_product = Filter {
            products: [Product::parse("veo").unwrap()].into(),
            ..Filter::default()
        };
        let of_label = Filter {
            labels,
            ..Filter::default()
        };
        assert!(!may_have(&summary, &of_product) && !may_have(&summary, &of_label));
    }

    fn of_number(number: usize) -> Labels {
        [("ref".to_owned(), format!("order-{number}"))].into()
    }

    #[test]
    fn few_segments_are_read_for_nothing_and_too_many_terms_cost_no_event() {
        for (terms, false_max) in [(25_000, 100), (2 * TERMS_MAX, 2_000)] {
            let mut gathered = Terms::default();
            for number in 0..terms {
                gathered.add(&record("veo", TaskStatus::Completed, &of_number(number)));
            }
            let bytes = gathered.encode(BOUND);
            assert!(
                bytes.len() <= HEADER_BYTES + BLOCK_BYTES + BYTES_PER_TERM * terms.min(TERMS_MAX)
            );
            let summary = Summary::parse(&bytes.into(), BOUND).unwrap();
            let has = |number: &usize| {
                let filter = Filter {
                    labels: of_number(*number),
                    ..Filter::default()
                };
                may_have(&summary, &filter)
            };
            assert!((0..terms).all(|number| has(&number)), "{terms}");
            let wrong = (terms..terms + 10_000).filter(has).count();
            assert!(wrong < false_max, "{terms}: {wrong}");
        }
    }
}
