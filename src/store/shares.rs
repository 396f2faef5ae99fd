//! The callbacks of each credential in quarantine, and the one that is forgotten first when there
//! are too many: the oldest of the credential that has most. Pure.
//!
//! Shares are by the credential that let a callback in, and within a credential by the URL's
//! product. So a flood by one credential takes nothing from another that has less than its share,
//! and a flood for one product nothing from another product. They are in memory, about 150 bytes
//! for each callback (and a hundred for its place), and are made anew from the callbacks when the
//! store is opened.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
};

use super::layout::QuarantineHeader;

/// Products of one credential that have a share of their own, here and in its budget for a minute;
/// several times as many as the vendor has. The others share one.
pub(crate) const CREDENTIAL_PRODUCTS_MAX: usize = 64;

/// The measure by which there may be too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    Bytes,
    Count,
}

/// One callback in quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub bytes: u64,
    pub received_at_micros: i64,
    /// Its place in `shares`.
    share: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    bytes: u64,
    count: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.count += 1;
    }

    fn remove(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.count -= 1;
    }

    fn by(self, measure: Measure) -> u64 {
        match measure {
            Measure::Bytes => self.bytes,
            Measure::Count => self.count,
        }
    }
}

/// The callbacks of one product of one credential.
#[derive(Debug)]
struct Share {
    credential: Box<str>,
    product: Box<str>,
    tally: Tally,
    numbers: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Credential {
    tally: Tally,
    /// Places in `shares`.
    products: HashMap<Box<str>, usize>,
    /// Of the products beyond [`CREDENTIAL_PRODUCTS_MAX`].
    rest: Option<usize>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Shares {
    kept: BTreeMap<u64, Kept>,
    credentials: HashMap<Box<str>, Credential>,
    shares: Vec<Share>,
    /// Unused places in `shares`.
    free: Vec<usize>,
}

impl Shares {
    /// Adds a callback.
    pub(super) fn add(
        &mut self,
        number: u64,
        credential: &str,
        product: &str,
        bytes: u64,
        received_at_micros: i64,
    ) {
        let share = self.share(credential, product);
        self.shares[share].tally.add(bytes);
        self.shares[share].numbers.insert(number);
        if let Some(credential) = self.credentials.get_mut(credential) {
            credential.tally.add(bytes);
        }
        self.kept.insert(
            number,
            Kept {
                bytes,
                received_at_micros,
                share,
            },
        );
    }

    /// Removes a callback.
    pub(super) fn remove(&mut self, number: u64) {
        let Some(Kept {
            bytes,
            share: place,
            ..
        }) = self.kept.remove(&number)
        else {
            return;
        };
        let share = &mut self.shares[place];
        share.tally.remove(bytes);
        share.numbers.remove(&number);
        let Some(credential) = self.credentials.get_mut(&share.credential) else {
            return;
        };
        credential.tally.remove(bytes);
        if !share.numbers.is_empty() {
            return;
        }
        if credential.rest == Some(place) {
            credential.rest = None;
        } else {
            credential.products.remove(&share.product);
        }
        if credential.tally.count == 0 {
            self.credentials.remove(&share.credential);
        }
        self.free.push(place);
    }

    /// The callback with this number.
    pub(super) fn get(&self, number: u64) -> Option<Kept> {
        self.kept.get(&number).copied()
    }

    /// What is known here of the header of a callback.
    pub(super) fn header_of(&self, number: u64) -> Option<QuarantineHeader> {
        let kept = self.kept.get(&number)?;
        let share = &self.shares[kept.share];
        Some(QuarantineHeader {
            received_at_micros: kept.received_at_micros,
            credential: share.credential.to_string(),
            product: share.product.to_string(),
            ..QuarantineHeader::default()
        })
    }

    /// The oldest of all.
    pub(super) fn oldest(&self) -> Option<(u64, Kept)> {
        self.kept
            .first_key_value()
            .map(|(&number, &kept)| (number, kept))
    }

    /// Numbers above `number`, oldest first.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = u64> {
        self.kept
            .range((Bound::Excluded(number), Bound::Unbounded))
            .map(|(&number, _)| number)
    }

    /// The callback that is forgotten first: the oldest of the product that has most, of the
    /// credential that has most.
    pub(super) fn first_to_go(&self, measure: Measure) -> Option<u64> {
        // Of equals the one whose name comes first, so that the order does not depend on a hash.
        let (_, credential) = self.credentials.iter().max_by(|(a, of_a), (b, of_b)| {
            let order = of_a.tally.by(measure).cmp(&of_b.tally.by(measure));
            order.then_with(|| b.cmp(a))
        })?;
        let shares = credential
            .products
            .values()
            .chain(&credential.rest)
            .map(|&place| &self.shares[place]);
        // Of equals the one with the oldest callback, for the same reason.
        let most = shares.max_by_key(|share| {
            (
                share.tally.by(measure),
                std::cmp::Reverse(share.numbers.first().copied().unwrap_or(u64::MAX)),
            )
        });
        most?.numbers.first().copied()
    }

    fn share(&mut self, credential: &str, product: &str) -> usize {
        if !self.credentials.contains_key(credential) {
            self.credentials
                .insert(credential.into(), Credential::default());
        }
        let of_credential = self
            .credentials
            .get_mut(credential)
            .expect("it was put there above");
        if let Some(&place) = of_credential.products.get(product) {
            return place;
        }
        let is_full = of_credential.products.len() >= CREDENTIAL_PRODUCTS_MAX;
        if let Some(place) = of_credential.rest.filter(|_| is_full) {
            return place;
        }
        let share = Share {
            credential: credential.into(),
            product: product.into(),
            tally: Tally::default(),
            numbers: BTreeSet::new(),
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.shares[place] = share;
                place
            }
            None => {
                self.shares.push(share);
                self.shares.len() - 1
            }
        };
        if is_full {
            of_credential.rest = Some(place);
        } else {
            of_credential.products.insert(product.into(), place);
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    /// Adds a callback and forgets what is too much; whose were forgotten.
    fn add(
        shares: &mut Shares,
        number: u64,
        whose: (u8, u8),
        bytes: u64,
        measure: Measure,
        most: u64,
    ) -> Vec<u64> {
        let (credential, product) = (format!("c{}", whose.0), format!("p{}", whose.1));
        shares.add(number, &credential, &product, bytes, 0);
        let total = |shares: &Shares| match measure {
            Measure::Bytes => shares.kept.values().map(|kept| kept.bytes).sum::<u64>(),
            Measure::Count => shares.kept.len() as u64,
        };
        let mut forgotten = Vec::new();
        while total(shares) > most {
            let number = shares.first_to_go(measure).unwrap();
            shares.remove(number);
            forgotten.push(number);
        }
        forgotten
    }

    proptest! {
        #[test]
        fn a_credential_with_less_than_its_fair_share_loses_nothing(
            callbacks in collection::vec(((0u8..4, 0u8..4), 1u64..100), 1..300), by_bytes: bool,
        ) {
            let (measure, most) = if by_bytes { (Measure::Bytes, 2_000) } else { (Measure::Count, 40) };
            let (mut shares, mut owners) = (Shares::default(), HashMap::new());
            // The most that each has ever had: of a credential, and of its products.
            let mut had: HashMap<(u8, Option<u8>), (u64, u64)> = HashMap::new();
            let mut lost = BTreeSet::new();
            for (number, (whose, bytes)) in (1u64..).zip(callbacks) {
                let amount = |bytes| if by_bytes { bytes } else { 1 };
                owners.insert(number, (whose, bytes));
                for key in [(whose.0, None), (whose.0, Some(whose.1))] {
                    let (now, peak) = had.entry(key).or_default();
                    *now += amount(bytes);
                    *peak = (*peak).max(*now);
                }
                for number in add(&mut shares, number, whose, bytes, measure, most) {
                    let (whose, bytes) = owners[&number];
                    lost.insert(whose);
                    for key in [(whose.0, None), (whose.0, Some(whose.1))] {
                        had.get_mut(&key).unwrap().0 -= amount(bytes);
                    }
                }
            }
            let credentials: BTreeSet<_> = had.keys().map(|(credential, _)| *credential).collect();
            for whose in lost {
                let products = had.keys().filter(|key| key.0 == whose.0 && key.1.is_some()).count() as u64;
                let share = most / credentials.len() as u64;
                prop_assert!(had[&(whose.0, None)].1 > share, "{whose:?}");
                prop_assert!(had[&(whose.0, Some(whose.1))].1 > share / products, "{whose:?}");
            }
            let first: Vec<_> = shares.after(0).collect();
            prop_assert_eq!(shares.oldest().map(|(number, _)| number), first.first().copied());
        }

        #[test]
        fn what_is_added_and_removed_leaves_nothing_behind(
            callbacks in collection::vec(((0u8..3, any::<u8>()), 1u64..100), 0..300),
        ) {
            let mut shares = Shares::default();
            for (number, ((credential, product), bytes)) in (1u64..).zip(&callbacks) {
                shares.add(number, &format!("c{credential}"), &format!("p{product}"), *bytes, 0);
            }
            prop_assert!(shares.credentials.values().all(|of| of.products.len() <= CREDENTIAL_PRODUCTS_MAX));
            (1..=callbacks.len() as u64).for_each(|number| shares.remove(number));
            prop_assert!(shares.credentials.is_empty() && shares.kept.is_empty());
            prop_assert_eq!(shares.free.len(), shares.shares.len());
        }
    }

    #[test]
    fn within_one_share_the_oldest_goes_first() {
        let mut shares = Shares::default();
        for number in 1..=4 {
            assert_eq!(
                add(&mut shares, number, (1, 1), 10, Measure::Bytes, 40),
                [0; 0]
            );
        }
        assert_eq!(
            add(&mut shares, 5, (1, 1), 25, Measure::Bytes, 40),
            [1, 2, 3]
        );
        assert_eq!(shares.after(4).collect::<Vec<_>>(), [5]);
        assert_eq!(
            (shares.get(4).map(|kept| kept.bytes), shares.get(1)),
            (Some(10), None)
        );
    }
}
