//! The lines of the credentials file that authenticate callbacks: tokens in URLs, keys that sign URLs, and the vendor's secret for
//! bodies. Pure.

use std::{borrow::Borrow, fmt, sync::Arc};

use super::{
    binding::Binding,
    lifetime::{Lifetime, Previous},
    secret::{Secret, TokenHash},
};

/// Longest name of a signing key in bytes: the name stands in every URL that the key signs.
const KEY_ID_BYTES_MAX: usize = 32;

/// One line of `[callback_tokens]`: a secret that stands in the URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CallbackToken {
    pub hash: TokenHash,
    pub lifetime: Lifetime,
    pub previous: Previous<TokenHash>,
    pub bytes_per_minute_max: Option<u64>,
    pub bound: Option<Arc<Binding>>,
}

/// One line of `[signing_keys]`: a key for signed callback URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SigningKey {
    pub secret: Secret,
    pub lifetime: Lifetime,
    pub previous: Previous<Secret>,
    pub bytes_per_minute_max: Option<u64>,
    pub bound: Option<Arc<Binding>>,
}

impl SigningKey {
    /// The current and the previous secret, each with its lifetime.
    pub(super) fn secrets(&self) -> impl Iterator<Item = (&Secret, Lifetime)> {
        let previous = self
            .previous
            .as_ref()
            .map(|(secret, lifetime)| (secret, *lifetime));
        [Some((&self.secret, self.lifetime)), previous]
            .into_iter()
            .flatten()
    }
}

/// The table `[body_signature]`: the secret with which the vendor signs bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BodySecret {
    pub secret: Secret,
    pub lifetime: Lifetime,
    pub previous: Previous<Secret>,
}

/// The name of a signing key: 1 to 32 characters of `a-z A-Z 0-9 . _ -`, so that a URL needs no escapes for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// Takes `text` unchanged; `None` if it cannot be a key's name.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        ((1..=KEY_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed))
            .then(|| Self(text.into()))
    }

    /// The name as shared text.
    pub fn name(&self) -> &Arc<str> {
        &self.0
    }
}

impl Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
