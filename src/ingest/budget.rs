//! Rate limit on the bytes that a credential may append to the log, by product. Pure, and bounded in memory. The budget of memory is
//! another one: `crate::budget`.
//!
//! Each (credential, product) has a token bucket: a full one allows a minute's bytes at once, and it refills steadily. A signed URL
//! names its product, so it has one bucket. The holder of a token, or an unauthenticated sender, chooses the product. So all products
//! of such a credential share another bucket of a few times the size: invented products bring no more budget.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use prometheus::IntCounter;
use tokio::time::Instant;

use crate::{event::Product, metrics::Metrics, store::CREDENTIAL_PRODUCTS_MAX};

/// Bytes that a callback costs besides its body and its event: about what the log and the index need around them.
pub(super) const CALLBACK_BYTES: u64 = 512;
/// Where the sender chooses the product, all products together have so many times the budget of one.
const PRODUCTS_SHARE: u64 = 4;
/// With this many credentials, those that were not used for a minute are dropped. The credentials file bounds their number.
const IDLE_CREDENTIALS_MAX: usize = 1_024;
const MINUTE: u64 = 60_000_000_000;
/// The label of products beyond [`CREDENTIAL_PRODUCTS_MAX`], and of malformed ones.
const OTHER: &str = "other products";

/// The credential of an event whose URL had none and whose body was signed.
const BODY_SIGNATURE: &str = "body_signature";

/// What a callback was authenticated by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Credential {
    /// Nothing: callbacks are not verified.
    Nothing,
    /// The token of this name.
    Token(Arc<str>),
    /// A URL signed with the key of this name.
    Key(Arc<str>),
}

impl Credential {
    /// The label of the metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nothing => "unverified",
            Self::Token(_) => "callback_token",
            Self::Key(_) => "signing_key",
        }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Nothing => "",
            Self::Token(name) | Self::Key(name) => name,
        }
    }

    /// As an event has it; empty if callbacks are not verified and the body was not signed.
    pub(super) fn on_event(&self, is_body_signed: bool) -> String {
        match self {
            Self::Nothing if is_body_signed => BODY_SIGNATURE.to_owned(),
            Self::Nothing => String::new(),
            Self::Token(name) | Self::Key(name) => [self.kind(), " ", name].concat(),
        }
    }

    /// Whether the sender chooses the product.
    fn is_for_all_products(&self) -> bool {
        !matches!(self, Self::Key(_))
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (self.kind(), self.name());
        if name.is_empty() {
            f.write_str(kind)
        } else {
            write!(f, "{kind} {name}")
        }
    }
}

/// The credential that a callback was authenticated by, and its budget.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub credential: Credential,
    /// Bytes a minute; 0 is no limit.
    pub bytes_per_minute_max: u64,
}

/// The budgets of all credentials.
#[derive(Debug)]
pub(super) struct Budgets {
    began: Instant,
    purses: RwLock<HashMap<Credential, Purse>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Purse {
    all: Bucket,
    products: HashMap<Box<str>, Account>,
    rest: Account,
}

#[derive(Debug)]
struct Account {
    bucket: Bucket,
    bytes: IntCounter,
}

/// The time at which the bucket is full again, in nanoseconds since [`Budgets::began`].
#[derive(Debug, Default)]
struct Bucket(AtomicU64);

impl Bucket {
    /// Takes `cost`, a part of a minute, or returns the time until it is there: a minute at most.
    fn take(&self, cost: u64, now: u64) -> Result<(), u64> {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let full_at = full_at.max(now);
                (lacking(full_at - now, cost) == 0).then(|| full_at.saturating_add(cost))
            });
        taken
            .map(drop)
            .map_err(|full_at| lacking(full_at.saturating_sub(now), cost))
    }

    fn has(&self, cost: u64, now: u64) -> Result<(), u64> {
        match lacking(self.0.load(Ordering::Relaxed).saturating_sub(now), cost) {
            0 => Ok(()),
            lacking => Err(lacking),
        }
    }

    fn give_back(&self, cost: u64) {
        self.0.fetch_sub(cost, Ordering::Relaxed); // it was taken a moment ago
    }

    fn is_full(&self, now: u64) -> bool {
        self.0.load(Ordering::Relaxed) <= now
    }
}

/// The time until a bucket of which `used` is taken has `cost`.
fn lacking(used: u64, cost: u64) -> u64 {
    used.saturating_add(cost).saturating_sub(MINUTE).min(used)
}

/// Bytes as a part of a minute. A body larger than the budget takes all of a full bucket, and no more. Otherwise a body sent under a
/// budget that was too low by mistake would block its credential for days, even after the budget is corrected.
fn cost(bytes: u64, per_minute_max: u64) -> u64 {
    if bytes >= per_minute_max {
        return MINUTE;
    }
    let cost = u128::from(bytes) * u128::from(MINUTE) / u128::from(per_minute_max);
    u64::try_from(cost).unwrap_or(MINUTE) // it is less
}

impl Purse {
    fn new(credential: &Credential, metrics: &Metrics) -> Self {
        let rest = Account::new(credential, OTHER, metrics);
        Self {
            all: Bucket::default(),
            products: HashMap::new(),
            rest,
        }
    }

    /// The account of a product; `None` if it has to be made first.
    fn account(&self, product: &str) -> Option<&Account> {
        let own = self.products.get(product);
        let has_none = || {
            self.products.len() >= CREDENTIAL_PRODUCTS_MAX
                || !(product.is_empty() || Product::parse(product).is_ok())
        };
        own.or_else(|| has_none().then_some(&self.rest))
    }

    fn is_idle(&self, now: u64) -> bool {
        self.all.is_full(now)
            && self.rest.bucket.is_full(now)
            && self.products.values().all(|of| of.bucket.is_full(now))
    }
}

impl Account {
    fn new(credential: &Credential, product: &str, metrics: &Metrics) -> Self {
        let labels = [credential.kind(), credential.name(), product];
        Self {
            bucket: Bucket::default(),
            bytes: metrics.callback_bytes.with_label_values(&labels),
        }
    }
}

impl Budgets {
    pub(super) fn new(now: Instant, metrics: Arc<Metrics>) -> Self {
        Self {
            began: now,
            purses: RwLock::default(),
            metrics,
        }
    }

    /// Takes a callback's bytes out of the budget, or returns the time until they fit. `product` is the URL's; empty if it names none.
    pub(super) fn take(
        &self,
        sender: &Sender,
        product: &str,
        bytes: u64,
        now: Instant,
    ) -> Result<(), Duration> {
        let (now, weight) = (self.nanoseconds(now), bytes.saturating_add(CALLBACK_BYTES));
        self.with_account(sender, product, now, |purse, account| {
            if sender.bytes_per_minute_max > 0 {
                let all = sender.bytes_per_minute_max.saturating_mul(PRODUCTS_SHARE);
                let (all, own) = (cost(weight, all), cost(weight, sender.bytes_per_minute_max));
                account.bucket.take(own, now)?;
                if sender.credential.is_for_all_products() {
                    purse
                        .all
                        .take(all, now)
                        .inspect_err(|_| account.bucket.give_back(own))?;
                }
            }
            account.bytes.inc_by(bytes);
            Ok(())
        })
    }

    /// Whether a callback's bytes would fit; takes nothing. The number may come from a header, so it may be any.
    pub(super) fn has(
        &self,
        sender: &Sender,
        product: &str,
        bytes: u64,
        now: Instant,
    ) -> Result<(), Duration> {
        if sender.bytes_per_minute_max == 0 {
            return Ok(());
        }
        let (now, weight) = (self.nanoseconds(now), bytes.saturating_add(CALLBACK_BYTES));
        self.with_account(sender, product, now, |purse, account| {
            let all = sender.bytes_per_minute_max.saturating_mul(PRODUCTS_SHARE);
            account
                .bucket
                .has(cost(weight, sender.bytes_per_minute_max), now)?;
            if sender.credential.is_for_all_products() {
                purse.all.has(cost(weight, all), now)?;
            }
            Ok(())
        })
    }

    fn with_account(
        &self,
        sender: &Sender,
        product: &str,
        now: u64,
        look: impl Fn(&Purse, &Account) -> Result<(), u64>,
    ) -> Result<(), Duration> {
        let looked = {
            let purses = self.purses.read();
            let purse = purses.get(&sender.credential);
            purse.and_then(|purse| Some(look(purse, purse.account(product)?)))
        };

        let looked = looked.unwrap_or_else(|| {
            let mut purses = self.purses.write();
            let purse = self.purse_of(&mut purses, &sender.credential, now);
            if purse.account(product).is_none() {
                purse.products.insert(
                    product.into(),
                    Account::new(&sender.credential, product, &self.metrics),
                );
            }
            look(purse, purse.account(product).unwrap_or(&purse.rest))
        });

        looked.map_err(Duration::from_nanos)
    }

    fn purse_of<'a>(
        &self,
        purses: &'a mut HashMap<Credential, Purse>,
        credential: &Credential,
        now: u64,
    ) -> &'a mut Purse {
        if purses.len() >= IDLE_CREDENTIALS_MAX && !purses.contains_key(credential) {
            purses.retain(|credential, purse| {
                let stays = !purse.is_idle(now);
                if !stays {
                    purse
                        .products
                        .keys()
                        .map(|product| &**product)
                        .chain([OTHER])
                        .for_each(|product| {
                            let labels = [credential.kind(), credential.name(), product];
                            let _ = self
                                .metrics
                                .callback_bytes
                                .remove_label_values(&labels)
                                .is_ok(); // else it was never made
                        });
                }
                stays
            });
        }

        purses
            .entry(credential.clone())
            .or_insert_with(|| Purse::new(credential, &self.metrics))
    }

    /// Lets time pass.
    #[cfg(test)]
    pub(super) fn pass(&mut self, time: Duration) {
        self.began -= time;
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.began).as_nanos()).unwrap_or(u64::MAX) // in 584 years
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::{collection, prelude::*};

    use super::*;

    const BUDGET: u64 = 60_000;

    fn key(name: &str) -> Sender {
        Sender {
            credential: Credential::Key(name.into()),
            bytes_per_minute_max: BUDGET,
        }
    }

    fn token(name: &str) -> Sender {
        Sender {
            credential: Credential::Token(name.into()),
            bytes_per_minute_max: BUDGET,
        }
    }

    fn budgets() -> (Budgets, Instant) {
        let now = Instant::now();
        (Budgets::new(now, Arc::default()), now)
    }

    /// A body that counts so many bytes.
    const fn body(counts: u64) -> u64 {
        counts - CALLBACK_BYTES
    }

    #[test]
    fn a_budget_takes_a_minutes_bytes_and_not_one_more_and_says_when_there_is_room() {
        let (budgets, now) = budgets();
        let (one, seconds) = (key("k1"), Duration::from_secs);
        assert_eq!(budgets.take(&one, "veo", body(BUDGET / 2), now), Ok(()));
        assert_eq!(
            budgets.has(&one, "veo", body(BUDGET / 2), now),
            Ok(()),
            "asking takes nothing"
        );
        assert_eq!(
            budgets.has(&one, "veo", body(BUDGET / 2 + 1_000), now),
            Err(seconds(1))
        );
        assert_eq!(budgets.take(&one, "veo", body(BUDGET / 2), now), Ok(()));
        assert_eq!(budgets.take(&one, "veo", body(2_000), now), Err(seconds(2)));
        assert_eq!(
            budgets.take(&one, "veo", body(2_000), now + seconds(1)),
            Err(seconds(1))
        );
        assert_eq!(
            budgets.take(&one, "veo", body(2_000), now + seconds(2)),
            Ok(())
        );
        assert_eq!(
            budgets.take(&one, "veo", body(BUDGET), now + seconds(62)),
            Ok(()),
            "full again, and not fuller"
        );
        assert_eq!(
            budgets.take(&one, "veo", body(1_000), now + seconds(62)),
            Err(seconds(1))
        );
    }

    #[test]
    fn what_is_larger_than_the_budget_passes_when_there_is_all_of_it_and_takes_no_more() {
        let (budgets, now) = budgets();
        let (one, seconds) = (key("k1"), Duration::from_secs);
        assert_eq!(budgets.take(&one, "veo", body(1_000 * BUDGET), now), Ok(()));
        assert_eq!(budgets.take(&one, "veo", body(1_000), now), Err(seconds(1)));
        assert_eq!(
            budgets.take(&one, "veo", body(2 * BUDGET), now),
            Err(seconds(60))
        );
        assert_eq!(
            budgets.take(&one, "veo", body(2 * BUDGET), now + seconds(59)),
            Err(seconds(1))
        );
        assert_eq!(
            budgets.take(&one, "veo", body(2 * BUDGET), now + seconds(60)),
            Ok(())
        );
    }

    #[test]
    fn what_was_let_in_is_waited_for_a_minute_at_most_whatever_the_budget_is_by_then() {
        for (before, after) in [(1, BUDGET), (1, u64::MAX), (BUDGET, 1), (BUDGET, BUDGET)] {
            for sender in [key("k1"), token("t1")] {
                let (budgets, now) = budgets();
                let of = |bytes_per_minute_max| Sender {
                    bytes_per_minute_max,
                    ..sender.clone()
                };
                budgets.take(&of(before), "veo", 1_000_000, now).unwrap();
                let wait = budgets
                    .has(&of(after), "veo", 1_000_000, now)
                    .err()
                    .unwrap_or_default();
                assert!(
                    wait <= Duration::from_secs(60),
                    "{before} to {after}: {wait:?}"
                );
                assert_eq!(
                    budgets.take(&of(after), "veo", 1_000_000, now + wait),
                    Ok(()),
                    "{before} to {after}"
                );
            }
        }
    }

    #[test]
    fn any_number_of_bytes_can_be_asked_for() {
        let (budgets, now) = budgets();
        for bytes in [u64::MAX, u64::MAX - CALLBACK_BYTES, u64::MAX / 2] {
            for sender in [key("k1"), token("t1")] {
                assert_eq!(
                    budgets.has(&sender, "veo", bytes, now),
                    Ok(()),
                    "all of the budget is there"
                );
            }
        }
        assert_eq!(budgets.take(&key("k1"), "veo", u64::MAX, now), Ok(()));
        assert!(budgets.has(&key("k1"), "veo", u64::MAX, now).is_err());
    }

    #[test]
    fn each_credential_and_product_has_a_budget_of_its_own() {
        let (budgets, now) = budgets();
        for (sender, product) in [
            (key("k1"), "veo"),
            (key("k1"), "sora"),
            (key("k2"), "veo"),
            (token("k1"), "veo"),
        ] {
            assert_eq!(
                budgets.take(&sender, product, body(BUDGET), now),
                Ok(()),
                "{sender:?} {product}"
            );
            assert!(
                budgets.take(&sender, product, 0, now).is_err(),
                "{sender:?} {product}"
            );
        }
        let unlimited = Sender {
            bytes_per_minute_max: 0,
            ..key("k1")
        };
        assert_eq!(
            budgets.take(&unlimited, "veo", body(1_000 * BUDGET), now),
            Ok(()),
            "0 is no limit"
        );
    }

    #[test]
    fn making_up_products_makes_up_no_budget() {
        let (budgets, now) = budgets();
        let fill = |sender: &Sender| {
            let taken = |product: String| {
                budgets
                    .take(sender, &product, body(BUDGET / 2), now)
                    .is_ok()
            };
            (0..1_000)
                .map(|number| format!("p{number}"))
                .filter(|product| taken(product.clone()))
                .count() as u64
        };
        assert_eq!(fill(&token("t")), 2 * PRODUCTS_SHARE);
        assert_eq!(
            budgets.take(&token("other"), "veo", body(BUDGET), now),
            Ok(()),
            "nobody else's"
        );
        // A key has signed each; even so the table does not grow.
        assert_eq!(fill(&key("k")), CREDENTIAL_PRODUCTS_MAX as u64 + 2);
        let purses = budgets.purses.read();
        assert_eq!(
            purses[&key("k").credential].products.len(),
            CREDENTIAL_PRODUCTS_MAX
        );
    }

    #[test]
    fn what_is_refused_takes_nothing_of_any_bucket() {
        let (budgets, now) = budgets();
        for product in ["a", "b", "c", "d"] {
            assert_eq!(
                budgets.take(&token("t"), product, body(BUDGET), now),
                Ok(())
            );
        }
        assert!(
            (0..100).all(|_| budgets
                .take(&token("t"), "e", body(BUDGET / 2), now)
                .is_err()),
            "all of it is used up"
        );
        let later = now + Duration::from_secs(60);
        assert_eq!(budgets.take(&token("t"), "e", body(BUDGET), later), Ok(()));
    }

    #[test]
    fn what_is_no_product_shares_a_bucket_and_makes_no_entry() {
        let (budgets, now) = budgets();
        for number in 0..200 {
            let _ = budgets.take(&key("k"), &format!("Not/{number}"), body(1_000), now);
        }
        assert!(
            budgets
                .take(&key("k"), "Not/again", body(1_000), now)
                .is_err()
        );
        assert_eq!(
            budgets.take(&key("k"), "", body(BUDGET), now),
            Ok(()),
            "without a product is one of its own"
        );
        assert_eq!(
            budgets.purses.read()[&key("k").credential].products.len(),
            1
        );
    }

    #[test]
    fn credentials_that_are_idle_make_room_for_new_ones() {
        let (budgets, now) = budgets();
        for number in 0..IDLE_CREDENTIALS_MAX {
            budgets
                .take(&key(&format!("k{number}")), "veo", body(BUDGET), now)
                .unwrap();
        }
        let later = now + Duration::from_secs(61);
        budgets
            .take(&key("k0"), "veo", body(BUDGET), later)
            .unwrap();
        budgets
            .take(&key("new"), "veo", body(BUDGET), later)
            .unwrap();
        assert_eq!(budgets.purses.read().len(), 2);
        assert!(
            budgets.take(&key("k0"), "veo", body(1_000), later).is_err(),
            "who is not idle stays"
        );
    }

    #[test]
    fn threads_together_take_no_more_than_there_is() {
        let (budgets, now) = budgets();
        let taken: usize = thread::scope(|scope| {
            let take = || {
                (0..100)
                    .filter(|_| budgets.take(&token("t"), "veo", body(1_000), now).is_ok())
                    .count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(taken as u64, BUDGET / 1_000);
    }

    proptest! {
        #[test]
        fn in_no_time_more_is_taken_than_a_minutes_worth_and_what_has_come_since(
            bodies in collection::vec((0..2 * BUDGET, 0u64..20_000), 1..200),
        ) {
            let (budgets, began) = budgets();
            let (mut now, mut taken) = (began, 0);
            for (bytes, milliseconds) in bodies {
                now += Duration::from_millis(milliseconds);
                match budgets.take(&key("k"), "veo", bytes, now) {
                    // More than the budget counts as all of it.
                    Ok(()) => taken += (bytes + CALLBACK_BYTES).min(BUDGET),
                    Err(wait) => {
                        let fits = |wait| budgets.has(&key("k"), "veo", bytes, now + wait).is_ok();
                        prop_assert!(fits(wait) && !fits(wait - Duration::from_nanos(1)));
                        prop_assert!(wait <= Duration::from_secs(60));
                    }
                }
                let elapsed = now.duration_since(began).as_millis() as u64;
                prop_assert!(taken <= BUDGET + BUDGET * elapsed / 60_000 + 1);
            }
        }
    }
}
