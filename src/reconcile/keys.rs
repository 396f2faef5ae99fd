//! Which key asks about which task, and which keys the vendor takes.
//!
//! A task is visible only to the key that made it. An expectation may name its key; otherwise it is the first in the credentials file
//! that is for the product, and that the vendor does not refuse; after a 404 it is the next one. A refusal for a task or a list may be
//! about that alone, so a trial decides: it asks for no task. A refused key is only tried, ever less often: the refusal may have come
//! from something on the way. Asks nothing itself.

use std::{collections::BTreeSet, mem, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::vendor_api::{Answer, Problem};
use crate::{
    credentials::{Credentials, VendorKey},
    event::Product,
    metrics::Metrics,
};

/// From a trial that says nothing of its key to the next one: twice as long each time, up to the second.
const TRIAL_PAUSE_MIN: Duration = Duration::from_secs(5);
const TRIAL_PAUSE_MAX: Duration = Duration::from_secs(300);
/// From a trial that decided a doubt to the next one: the vendor may refuse a key for thousands of tasks.
const DECIDED_FOR: Duration = Duration::from_secs(60);

/// From a trial that refuses a key to the next one: twice as long each time, up to the second.
const REFUSED_PAUSE_MIN: Duration = Duration::from_secs(300);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// Why no key can ask about a task.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// The credentials file has none for it.
    #[error("no key is for product {0}: add it to the `products` of one of [[vendor_keys]]")]
    ForProduct(Product),
    /// The credentials file has no line of that name, or that line is not for the product.
    #[error("no key {0} is for product {1}: add it to [[vendor_keys]], or to its `products`")]
    Named(String, Product),
    /// The vendor refuses all that there are for it.
    #[error("the vendor refuses key {0}: put another one into its line of [[vendor_keys]]")]
    Refused(Arc<str>),
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyState {
    Untried,
    /// The vendor has answered a trial with something that says nothing of the key. It is used.
    Unknown,
    Usable,
    /// The vendor has refused it for a task or a list. It is used until a trial decides.
    Doubted,
    Refused,
}

/// A key, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KnownKey {
    key: Arc<VendorKey>,
    state: KeyState,
    /// A trial of it is under way.
    is_tried: bool,
    /// From its next trial that says nothing, or refuses it again, to the one after it.
    trial_pause: Duration,
    /// When it may be tried again; `None` for at once.
    next_trial: Option<Instant>,
}

impl KnownKey {
    fn new(key: Arc<VendorKey>) -> Self {
        Self {
            key,
            state: KeyState::Untried,
            is_tried: false,
            trial_pause: TRIAL_PAUSE_MIN,
            next_trial: None,
        }
    }

    fn may_be_tried(&self, now: Instant) -> bool {
        let is_time = self.next_trial.is_none_or(|at| at <= now);
        let is_to_try = self.is_undecided() || self.state == KeyState::Refused;
        is_to_try && !self.is_tried && is_time
    }

    fn is_undecided(&self) -> bool {
        matches!(self.state, KeyState::Untried | KeyState::Doubted)
    }

    /// Notes what an answer for a task or a list says of it.
    fn note(&mut self, answer: &Answer) {
        match (answer, self.state) {
            // Only a trial lifts a refusal or decides a doubt: an answer that was under way may come after them.
            (_, KeyState::Refused | KeyState::Doubted) => {}
            (Answer::Body { .. } | Answer::NotFound, _) => self.found_good(),
            // A trial is due anyway.
            (Answer::KeyRefused { .. }, KeyState::Untried) => {}
            (Answer::KeyRefused { .. }, _) => self.state = KeyState::Doubted,
            // The vendor may not have looked at the key.
            (Answer::Later { .. } | Answer::Failed(_), _) => {}
        }
    }

    /// Notes what the answer to a trial says of it.
    fn tried(&mut self, answer: &Answer, now: Instant) {
        self.is_tried = false;
        let was_doubted = self.state == KeyState::Doubted;
        match answer {
            Answer::Body { .. } | Answer::NotFound => self.found_good(),
            Answer::KeyRefused { status } => {
                self.found_refused(*status, now);
                return;
            }
            _ if self.state == KeyState::Refused => {
                self.next_trial = Some(now + self.trial_pause);
                return;
            }
            // The key was good for another call meanwhile.
            _ if !self.is_undecided() => return,
            Answer::Failed(Problem::Status(_) | Problem::Redirect(_) | Problem::TooLarge) => {
                self.found_unknown(answer);
            }
            Answer::Later { .. } | Answer::Failed(_) => {
                self.back_off(answer, now);
                return;
            }
        }
        self.trial_pause = TRIAL_PAUSE_MIN;
        self.next_trial = was_doubted.then(|| now + DECIDED_FOR);
    }

    fn found_good(&mut self) {
        let name = &*self.key.name;
        match self.state {
            KeyState::Usable => return,
            KeyState::Doubted => tracing::warn!(
                key = name,
                "the vendor takes the key, and has refused it for a task or a list: look whether it is the key \
                 that made those tasks"
            ),
            _ => tracing::info!(key = name, "the vendor takes the key"),
        }
        self.state = KeyState::Usable;
        self.trial_pause = TRIAL_PAUSE_MIN;
        self.next_trial = None;
    }

    fn found_refused(&mut self, status: u16, now: Instant) {
        if self.state != KeyState::Refused {
            self.state = KeyState::Refused;
            self.trial_pause = REFUSED_PAUSE_MIN;
            tracing::warn!(
                key = &*self.key.name,
                status,
                "the vendor refuses the key, which is only tried now and then: put a good one into \
                 [[vendor_keys]] of the credentials file"
            );
        }
        self.next_trial = Some(now + self.trial_pause);
        self.trial_pause = (2 * self.trial_pause).min(REFUSED_PAUSE_MAX);
    }

    fn found_unknown(&mut self, answer: &Answer) {
        self.state = KeyState::Unknown;
        tracing::warn!(
            key = &*self.key.name,
            answer = answer.word(),
            "the vendor's answer to a trial of the key says nothing of it, so it is used: look whether \
             reconcile.base_url is the vendor's API"
        );
    }

    /// A trial said nothing of the key. The first time is worth a warning.
    fn back_off(&mut self, answer: &Answer, now: Instant) {
        if self.trial_pause == TRIAL_PAUSE_MIN {
            tracing::warn!(
                key = &*self.key.name,
                answer = answer.word(),
                "a trial of the key has no usable answer, so it is tried again, ever less often: look whether \
                 reconcile.base_url can be reached"
            );
        }
        self.next_trial = Some(now + self.trial_pause);
        self.trial_pause = (2 * self.trial_pause).min(TRIAL_PAUSE_MAX);
    }
}

/// The keys of the credentials file in force.
#[derive(Debug)]
pub struct Keys {
    metrics: Arc<Metrics>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// In the order of the file.
    keys: Vec<KnownKey>,
    /// The names that the metric has a series for.
    shown: BTreeSet<Arc<str>>,
}

impl Keys {
    /// None yet: see [`Keys::refresh`].
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            known: Mutex::default(),
        }
    }

    /// Takes over the keys of `credentials`. A key that is the same as before keeps what is known of it, also under another name.
    /// Returns true if anything differs.
    pub fn refresh(&self, credentials: &Credentials) -> bool {
        let mut known = self.known.lock();
        let new = credentials.vendor_keys().map(|key| {
            let same = known.keys.iter().find(|old| old.key.key == key.key);
            let key = Arc::new(key);
            match same {
                Some(old) => KnownKey { key, ..old.clone() },
                None => KnownKey::new(key),
            }
        });
        let new: Vec<_> = new.collect();

        let differs = known.keys != new;
        if differs {
            known.keys = new;
            known.show(&self.metrics);
        }
        differs
    }

    /// True if the credentials file has no key: then nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.known.lock().keys.is_empty()
    }

    /// The key to ask about a task of `product`; `named` is what its expectation names.
    pub fn choose(&self, product: &Product, named: Option<&str>) -> Result<Arc<VendorKey>, NoKey> {
        let known = self.known.lock();
        let fits = |key: &VendorKey| {
            key.products.allow(product.as_str()) && named.is_none_or(|named| *key.name == *named)
        };
        let mut refused = None;
        for of in known.keys.iter().filter(|of| fits(&of.key)) {
            if of.state != KeyState::Refused {
                return Ok(Arc::clone(&of.key));
            }
            refused.get_or_insert(&of.key.name);
        }

        Err(match (refused, named) {
            (Some(name), _) => NoKey::Refused(Arc::clone(name)),
            (None, Some(named)) => NoKey::Named(named.to_owned(), product.clone()),
            (None, None) => NoKey::ForProduct(product.clone()),
        })
    }

    /// The key to ask about a task of `product` after the vendor did not know it by the key `last`: the next one that is for the
    /// product and not refused, in the order of the file and then from its beginning.
    pub fn next(&self, product: &Product, last: &str) -> Option<Arc<VendorKey>> {
        let mut keys = self.good();
        keys.retain(|key| key.products.allow(product.as_str()));
        let behind = keys.iter().position(|key| *key.name == *last)?;
        let next = (behind + 1) % keys.len();
        Some(keys.swap_remove(next))
    }

    /// All keys, in the order of the file.
    pub fn all(&self) -> Vec<Arc<VendorKey>> {
        let known = self.known.lock();
        known.keys.iter().map(|of| Arc::clone(&of.key)).collect()
    }

    /// The keys that the vendor does not refuse, as far as is known, in the order of the file.
    pub fn good(&self) -> Vec<Arc<VendorKey>> {
        let known = self.known.lock();
        let good = known.keys.iter().filter(|of| of.state != KeyState::Refused);
        good.map(|of| Arc::clone(&of.key)).collect()
    }

    /// The key of this name, unless the vendor refuses it.
    pub fn named(&self, name: &str) -> Option<Arc<VendorKey>> {
        self.good().into_iter().find(|key| *key.name == *name)
    }

    /// Whether a trial is still to decide about the key of this name.
    pub fn is_undecided(&self, name: &str) -> bool {
        let known = self.known.lock();
        let mut keys = known.keys.iter();
        keys.any(|of| *of.key.name == *name && of.is_undecided())
    }

    /// The keys to try now, in the order of the file.
    pub fn to_try(&self, now: Instant) -> Vec<Arc<VendorKey>> {
        let known = self.known.lock();
        let to_try = known.keys.iter().filter(|of| of.may_be_tried(now));
        to_try.map(|of| Arc::clone(&of.key)).collect()
    }

    /// A trial of `key` begins.
    pub fn begin_trial(&self, key: &VendorKey) {
        if let Some(of) = self.known.lock().of(key) {
            of.is_tried = true;
        }
    }

    /// Takes note of what the vendor has answered to a trial of `key`. True if it is refused now and was not, or the reverse.
    pub fn tried(&self, key: &VendorKey, answer: &Answer, now: Instant) -> bool {
        self.change(key, |of| of.tried(answer, now))
    }

    /// Takes note of what the vendor has answered to a request with `key` for a task or a list.
    pub fn note(&self, key: &VendorKey, answer: &Answer) {
        self.change(key, |of| of.note(answer));
    }

    /// Nothing is known of a key that has changed meanwhile.
    fn change(&self, key: &VendorKey, change: impl FnOnce(&mut KnownKey)) -> bool {
        let mut known = self.known.lock();
        let Some(of) = known.of(key) else {
            return false;
        };
        let before = of.state;
        change(of);
        let after = of.state;
        if after != before {
            known.show(&self.metrics);
        }
        (after == KeyState::Refused) != (before == KeyState::Refused)
    }
}

impl Known {
    /// What is known of a key, by its secret.
    fn of(&mut self, key: &VendorKey) -> Option<&mut KnownKey> {
        self.keys.iter_mut().find(|of| of.key.key == key.key)
    }

    /// Has a series for each key that the vendor takes or refuses, and for no other.
    fn show(&mut self, metrics: &Metrics) {
        let gone = mem::take(&mut self.shown);
        for KnownKey { key, state, .. } in &self.keys {
            if matches!(state, KeyState::Untried | KeyState::Unknown) {
                continue;
            }
            metrics
                .vendor_key_usable
                .with_label_values(&[&*key.name])
                .set((*state != KeyState::Refused).into());
            self.shown.insert(Arc::clone(&key.name));
        }
        for name in gone.difference(&self.shown) {
            let _ = metrics
                .vendor_key_usable
                .remove_label_values(&[&**name])
                .is_ok(); // it was there
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const REFUSED: Answer = Answer::KeyRefused { status: 401 };

    fn credentials(lines: &[(&str, &str, &str)]) -> Credentials {
        let line = |(name, key, products): &(&str, &str, &str)| {
            format!("[[vendor_keys]]\nname = {name:?}\nkey = {key:?}\nproducts = [{products}]\n")
        };
        Credentials::parse(&lines.iter().map(line).collect::<String>()).unwrap()
    }

    fn keys(lines: &[(&str, &str, &str)]) -> Keys {
        let keys = Keys::new(Arc::default());
        assert!(keys.is_empty());
        assert!(keys.refresh(&credentials(lines)));
        keys
    }

    fn chosen(keys: &Keys, product: &str, named: Option<&str>) -> Result<String, String> {
        keys.choose(&Product::parse(product).unwrap(), named)
            .map(|key| key.name.to_string())
            .map_err(|error| error.to_string())
    }

    fn shown(keys: &Keys) -> Vec<String> {
        let text = String::from_utf8(keys.metrics.render()).unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix("blobcast_vendor_key_usable"))
            .map(str::to_owned)
            .collect()
    }

    fn untried(keys: &Keys) -> Vec<String> {
        let untried = keys.to_try(Instant::now());
        untried.iter().map(|key| key.name.to_string()).collect()
    }

    #[test]
    fn the_first_key_for_the_product_is_used_unless_one_is_named() {
        let keys = keys(&[
            ("video", "k1", "\"veo\", \"sora\""),
            ("all", "k2", "\"*\""),
            ("late", "k3", "\"veo\""),
        ]);
        assert_eq!(chosen(&keys, "veo", None).unwrap(), "video");
        assert_eq!(chosen(&keys, "gemini", None).unwrap(), "all");
        assert_eq!(chosen(&keys, "veo", Some("late")).unwrap(), "late");
        let wrong = chosen(&keys, "gemini", Some("late")).unwrap_err();
        assert!(
            wrong.contains("no key late is for product gemini"),
            "{wrong}"
        );
        let wrong = chosen(&keys, "veo", Some("x")).unwrap_err();
        assert!(wrong.contains("no key x is for product veo"), "{wrong}");
    }

    #[test]
    fn without_a_key_for_the_product_the_next_step_is_said() {
        let keys = keys(&[("video", "k1", "\"veo\"")]);
        let wrong = chosen(&keys, "gemini", None).unwrap_err();
        assert!(
            wrong.contains("product gemini") && wrong.contains("[[vendor_keys]]"),
            "{wrong}"
        );
    }

    #[test]
    fn a_refused_key_is_not_used_until_it_changes_or_a_trial_is_answered() {
        let lines = [("a", "k1", "\"veo\""), ("b", "k2", "\"*\"")];
        let keys = keys(&lines);
        assert_eq!(untried(&keys), ["a", "b"]);
        assert!(shown(&keys).is_empty(), "nothing is known yet");

        let a = keys.choose(&Product::parse("veo").unwrap(), None).unwrap();
        assert!(keys.tried(&a, &REFUSED, Instant::now()));
        assert_eq!(untried(&keys), ["b"]);
        assert_eq!(chosen(&keys, "veo", None).unwrap(), "b");
        let wrong = chosen(&keys, "veo", Some("a")).unwrap_err();
        assert!(wrong.contains("the vendor refuses key a"), "{wrong}");
        assert_eq!(shown(&keys), ["{key=\"a\"} 0"]);

        // Neither a late answer nor a change of something else lifts it.
        keys.note(&a, &Answer::NotFound);
        assert!(!keys.refresh(&credentials(&lines)));
        assert!(keys.refresh(&credentials(&[("c", "k1", "\"*\""), lines[1]])));
        assert_eq!(chosen(&keys, "sora", None).unwrap(), "b");
        assert_eq!(shown(&keys), ["{key=\"c\"} 0"]);

        // A new key does, and an answer to the old one says nothing of it.
        assert!(keys.refresh(&credentials(&[("c", "k9", "\"*\""), lines[1]])));
        assert!(shown(&keys).is_empty());
        keys.note(&a, &REFUSED);
        assert_eq!(untried(&keys), ["c", "b"]);
        assert_eq!(chosen(&keys, "sora", None).unwrap(), "c");
    }

    #[test]
    fn a_refused_key_is_tried_ever_less_often_and_used_again_once_the_vendor_takes_it() {
        let keys = keys(&[("a", "k1", "\"*\"")]);
        let mut now = Instant::now();
        let key = keys.to_try(now).remove(0);
        assert!(keys.tried(&key, &REFUSED, now));
        for minutes in [5, 10, 20, 40, 60, 60] {
            let next = now + Duration::from_secs(60 * minutes);
            assert!(keys.to_try(next - Duration::from_nanos(1)).is_empty());
            assert_eq!(keys.to_try(next).len(), 1, "after {minutes} minutes");
            now = next;
            keys.begin_trial(&key);
            assert!(keys.to_try(now).is_empty(), "it is under way");
            assert!(!keys.tried(&key, &REFUSED, now));
        }

        // A trial that says nothing changes nothing.
        now += REFUSED_PAUSE_MAX;
        assert!(!keys.tried(&key, &Answer::Failed(Problem::TimedOut), now));
        assert!(!keys.tried(&key, &Answer::Failed(Problem::Status(400)), now));
        assert!(chosen(&keys, "veo", None).is_err());

        now += REFUSED_PAUSE_MAX;
        assert_eq!(keys.to_try(now).len(), 1);
        assert!(keys.tried(&key, &Answer::NotFound, now));
        assert_eq!(chosen(&keys, "veo", None).unwrap(), "a");
        assert_eq!(shown(&keys), ["{key=\"a\"} 1"]);
        assert!(keys.to_try(now + REFUSED_PAUSE_MAX).is_empty());

        // The next refusal begins anew.
        assert!(keys.tried(&key, &REFUSED, now));
        assert_eq!(keys.to_try(now + REFUSED_PAUSE_MIN).len(), 1);
    }

    #[test]
    fn after_a_404_it_is_the_next_key_for_the_product_that_is_not_refused() {
        let keys = keys(&[
            ("a", "k1", "\"veo\""),
            ("b", "k2", "\"sora\""),
            ("c", "k3", "\"*\""),
            ("d", "k4", "\"*\""),
        ]);
        let veo = Product::parse("veo").unwrap();
        let next = |last: &str| keys.next(&veo, last).map(|key| key.name.to_string());
        assert_eq!(next("a").unwrap(), "c");
        assert_eq!(next("c").unwrap(), "d");
        assert_eq!(next("d").unwrap(), "a");
        assert_eq!(next("gone"), None);

        let d = keys.named("d").unwrap();
        keys.tried(&d, &REFUSED, Instant::now());
        assert_eq!(next("c").unwrap(), "a");
        assert_eq!(next("d"), None);
    }

    #[test]
    fn every_answer_that_looked_at_the_key_says_whether_it_is_good() {
        for (answer, usable) in [
            (Answer::NotFound, Some(true)),
            (
                Answer::Body {
                    status: 200,
                    body: Bytes::new(),
                },
                Some(true),
            ),
            (REFUSED, Some(false)),
            (Answer::KeyRefused { status: 403 }, Some(false)),
            (
                Answer::Later {
                    status: 503,
                    retry_after: None,
                },
                None,
            ),
            (Answer::Failed(Problem::TimedOut), None),
        ] {
            let keys = keys(&[("a", "k1", "\"*\"")]);
            let key = keys.to_try(Instant::now()).remove(0);
            keys.tried(&key, &answer, Instant::now());
            let expected = usable.map(|usable| format!("{{key=\"a\"}} {}", u8::from(usable)));
            assert_eq!(shown(&keys), Vec::from_iter(expected), "{answer:?}");
            let soon = Instant::now() + TRIAL_PAUSE_MIN;
            assert_eq!(keys.to_try(soon).len(), usize::from(usable.is_none()));
        }
    }

    #[test]
    fn a_removed_key_has_no_series() {
        let keys = keys(&[("a", "k1", "\"*\"")]);
        keys.note(&keys.to_try(Instant::now())[0], &Answer::NotFound);
        assert_eq!(shown(&keys), ["{key=\"a\"} 1"]);
        assert!(keys.refresh(&Credentials::default()));
        assert!(shown(&keys).is_empty() && keys.is_empty());
    }

    #[test]
    fn a_trial_that_says_nothing_is_repeated_ever_less_often() {
        let keys = keys(&[("a", "k1", "\"*\"")]);
        let mut now = Instant::now();
        let answer = Answer::Failed(Problem::TimedOut);
        for pause in [5, 10, 20, 40, 80, 160, 300, 300] {
            let key = keys.to_try(now).remove(0);
            keys.begin_trial(&key);
            assert!(keys.to_try(now).is_empty(), "it is under way");
            keys.tried(&key, &answer, now);
            let next = now + Duration::from_secs(pause);
            assert!(keys.to_try(next - Duration::from_nanos(1)).is_empty());
            assert_eq!(keys.to_try(next).len(), 1, "after {pause} s");
            now = next;
        }

        // Another secret is tried at once.
        assert!(keys.refresh(&credentials(&[("a", "k2", "\"*\"")])));
        assert_eq!(untried(&keys), ["a"]);
    }

    #[test]
    fn an_odd_answer_to_a_trial_ends_it_and_the_key_is_used() {
        for problem in [
            Problem::Status(400),
            Problem::Redirect(302),
            Problem::TooLarge,
        ] {
            let keys = keys(&[("a", "k1", "\"*\"")]);
            let key = keys.to_try(Instant::now()).remove(0);
            keys.begin_trial(&key);
            let now = Instant::now();
            keys.tried(&key, &Answer::Failed(problem), now);
            let much_later = now + 2 * TRIAL_PAUSE_MAX;
            assert!(keys.to_try(much_later).is_empty());
            assert!(shown(&keys).is_empty());
            assert_eq!(chosen(&keys, "veo", None).unwrap(), "a");

            keys.note(&key, &Answer::NotFound);
            assert_eq!(shown(&keys), ["{key=\"a\"} 1"]);
        }
    }

    #[test]
    fn a_refusal_for_a_task_has_the_key_tried_and_no_more() {
        let keys = keys(&[("a", "k1", "\"*\"")]);
        let mut now = Instant::now();
        let key = keys.to_try(now).remove(0);
        keys.note(&key, &REFUSED);
        assert!(shown(&keys).is_empty(), "it is tried anyway");

        for answer in [Answer::NotFound, Answer::Failed(Problem::Status(400))] {
            keys.note(&key, &Answer::NotFound);
            keys.note(&key, &REFUSED);
            assert_eq!(keys.to_try(now).len(), 1);
            assert_eq!(chosen(&keys, "veo", None).unwrap(), "a");
            keys.begin_trial(&key);
            keys.tried(&key, &answer, now);

            // Thousands of such tasks do not have it tried each time.
            keys.note(&key, &REFUSED);
            assert!(keys.to_try(now).is_empty());
            now += DECIDED_FOR;
            assert_eq!(keys.to_try(now).len(), 1);
        }

        keys.tried(&key, &REFUSED, now);
        assert!(chosen(&keys, "veo", None).is_err());
        assert_eq!(shown(&keys), ["{key=\"a\"} 0"]);
    }
}
