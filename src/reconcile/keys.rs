//! Which key asks about which task, and which keys the vendor takes.
//!
//! A task is visible only to the key that made it. An expectation may name its key; otherwise it is the first in the credentials file
//! that is for the product, and that the vendor does not refuse. A refused key is not used until it changes. Asks nothing itself.

use std::{collections::BTreeSet, mem, sync::Arc};

use parking_lot::Mutex;

use super::vendor_api::Answer;
use crate::{
    credentials::{Credentials, VendorKey},
    event::Product,
    metrics::Metrics,
};

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
    Usable,
    Refused,
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
    keys: Vec<(Arc<VendorKey>, KeyState)>,
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
        let state_of = |new: &VendorKey| {
            let same = known.keys.iter().find(|(old, _)| old.key == new.key);
            same.map_or(KeyState::Untried, |(_, state)| *state)
        };
        let new: Vec<_> = credentials
            .vendor_keys()
            .map(|key| (state_of(&key), key))
            .map(|(state, key)| (Arc::new(key), state))
            .collect();

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
        for (key, state) in known.keys.iter().filter(|(key, _)| fits(key)) {
            if *state != KeyState::Refused {
                return Ok(Arc::clone(key));
            }
            refused.get_or_insert(&key.name);
        }

        Err(match (refused, named) {
            (Some(name), _) => NoKey::Refused(Arc::clone(name)),
            (None, Some(named)) => NoKey::Named(named.to_owned(), product.clone()),
            (None, None) => NoKey::ForProduct(product.clone()),
        })
    }

    /// The keys that the vendor does not refuse, as far as is known, in the order of the file.
    pub fn good(&self) -> Vec<Arc<VendorKey>> {
        let known = self.known.lock();
        let good = known
            .keys
            .iter()
            .filter(|(_, state)| *state != KeyState::Refused);
        good.map(|(key, _)| Arc::clone(key)).collect()
    }

    /// The key of this name, unless the vendor refuses it.
    pub fn named(&self, name: &str) -> Option<Arc<VendorKey>> {
        self.good().into_iter().find(|key| *key.name == *name)
    }

    /// The keys of which nothing is known yet, in the order of the file.
    pub fn untried(&self) -> Vec<Arc<VendorKey>> {
        let known = self.known.lock();
        let untried = known
            .keys
            .iter()
            .filter(|(_, state)| *state == KeyState::Untried);
        untried.map(|(key, _)| Arc::clone(key)).collect()
    }

    /// Takes note of what the vendor has answered to a request with `key`. Says nothing of a key that has changed meanwhile.
    pub fn note(&self, key: &VendorKey, answer: &Answer) {
        let state = match answer {
            Answer::Body { .. } | Answer::NotFound => KeyState::Usable,
            Answer::KeyRefused { .. } => KeyState::Refused,
            // The vendor may not have looked at the key.
            Answer::Later { .. } | Answer::Failed(_) => return,
        };
        let mut known = self.known.lock();
        let Some((of, before)) = known.keys.iter_mut().find(|(of, _)| of.key == key.key) else {
            return;
        };
        // An answer that was under way may come after a refusal, and does not lift it.
        if *before == state || *before == KeyState::Refused {
            return;
        }

        *before = state;
        let name = &*of.name;
        match answer {
            Answer::KeyRefused { status } => tracing::warn!(
                key = name,
                status,
                "the vendor refuses the key, which is not used until it changes: put a good one into \
                 [[vendor_keys]] of the credentials file"
            ),
            _ => tracing::info!(key = name, "the vendor takes the key"),
        }
        known.show(&self.metrics);
    }
}

impl Known {
    /// Has a series for each key that was tried, and for no other.
    fn show(&mut self, metrics: &Metrics) {
        let gone = mem::take(&mut self.shown);
        let tried = self
            .keys
            .iter()
            .filter(|(_, state)| *state != KeyState::Untried);
        for (key, state) in tried {
            metrics
                .vendor_key_usable
                .with_label_values(&[&*key.name])
                .set((*state == KeyState::Usable).into());
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
    use crate::reconcile::vendor_api::Problem;

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
        let untried = keys.untried();
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
    fn a_refused_key_is_not_used_until_it_changes() {
        let lines = [("a", "k1", "\"veo\""), ("b", "k2", "\"*\"")];
        let keys = keys(&lines);
        assert_eq!(untried(&keys), ["a", "b"]);
        assert!(shown(&keys).is_empty(), "nothing is known yet");

        let a = keys.choose(&Product::parse("veo").unwrap(), None).unwrap();
        keys.note(&a, &REFUSED);
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
            keys.note(&keys.untried()[0], &answer);
            let expected = usable.map(|usable| format!("{{key=\"a\"}} {}", u8::from(usable)));
            assert_eq!(shown(&keys), Vec::from_iter(expected), "{answer:?}");
            assert_eq!(keys.untried().len(), usize::from(usable.is_none()));
        }
    }

    #[test]
    fn a_removed_key_has_no_series() {
        let keys = keys(&[("a", "k1", "\"*\"")]);
        keys.note(&keys.untried()[0], &Answer::NotFound);
        assert_eq!(shown(&keys), ["{key=\"a\"} 1"]);
        assert!(keys.refresh(&Credentials::default()));
        assert!(shown(&keys).is_empty() && keys.is_empty());
    }
}
