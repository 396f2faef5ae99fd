//! What has to be the same on every node, as each tells it of itself: by hashes, so that nothing of it can be read on the subject.
//! Pure.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::event::Epoch;

/// What is named where the credentials differ.
const CREDENTIALS: &str = "credentials";

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// A hash of each key's value, by the key's name.
    pub configuration: BTreeMap<String, String>,
    /// A keyed hash of all credentials.
    pub credentials: String,
}

impl Common {
    /// The keys whose values differ, and `credentials` if those do. A key that only one version has is none of them.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let differs = |(key, value): &(&String, &String)| {
            let theirs = other.configuration.get(*key);
            theirs.is_some_and(|theirs| theirs != *value)
        };
        let keys = self.configuration.iter().filter(differs);
        let credentials = self.credentials != other.credentials;
        keys.map(|(key, _)| key.clone())
            .chain(credentials.then(|| CREDENTIALS.to_owned()))
            .collect()
    }
}

/// Says what this node has now, keyed by the log's epoch.
#[derive(Clone)]
pub struct SayCommon(Arc<dyn Fn(Epoch) -> Common + Send + Sync>);

impl SayCommon {
    /// It is asked each two seconds, and must not wait.
    pub fn new(say: impl Fn(Epoch) -> Common + Send + Sync + 'static) -> Self {
        Self(Arc::new(say))
    }

    pub(super) fn at(&self, epoch: Epoch) -> Common {
        (self.0)(epoch)
    }
}

impl fmt::Debug for SayCommon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SayCommon").finish_non_exhaustive()
    }
}

/// What differs of what a node has, by `blobcast_cluster_mismatch`'s word for it.
pub(super) fn kind_of(difference: &str) -> &'static str {
    match difference {
        CREDENTIALS => CREDENTIALS,
        _ => "configuration",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_have_and_differs_is_named() {
        let common = |keys: &[(&str, &str)], credentials: &str| Common {
            configuration: keys
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            credentials: credentials.to_owned(),
        };
        let mine = common(&[("log.a", "1"), ("log.b", "2"), ("log.mine", "3")], "x");
        assert!(mine.differences(&mine).is_empty());
        let theirs = common(&[("log.a", "1"), ("log.b", "9"), ("log.theirs", "3")], "y");
        assert_eq!(mine.differences(&theirs), ["log.b", "credentials"]);
        assert_eq!(kind_of("log.b"), "configuration");
        assert_eq!(kind_of("credentials"), "credentials");
    }
}
