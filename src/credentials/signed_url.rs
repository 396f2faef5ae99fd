//! Signed callback URLs: like a token, but for one product, one set of labels and one time, and made without asking anyone.
//!
//! ```text
//! https://hooks.example.com/webhook/veo?team=ads&ref=42&exp=1900000000&kid=k1&sig=TAG
//!                          └──────────────── what is signed ────────────────┘
//! TAG = base64url without padding ( HMAC-SHA256 ( secret of key k1, "blobcast-url-v1\n" + what is signed ) )
//! ```
//!
//! What is signed is the text as it is sent, byte for byte, from `/webhook` to before `&sig=`; `sig` comes last. `exp` is in
//! seconds since 1970. `tests/data/signed_urls.json` has vectors for implementations in other languages.

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;

use super::{Credentials, SigningKey};
use crate::event::{Labels, Product};

/// Query parameters that authenticate a callback URL. They are never labels, and never kept.
pub const SECRET_PARAMETERS: [&str; 4] = ["token", "exp", "kid", "sig"];
/// Longest URL that is minted: what the vendor is known to keep unchanged.
pub const URL_BYTES_MAX: usize = 512;
/// Longest name of a key.
const KEY_ID_BYTES_MAX: usize = 32;
const CONTEXT: &[u8] = b"blobcast-url-v1\n";
const TAG_PARAMETER: &str = "&sig=";

/// Names a signing key: 1 to 32 characters of `a-z A-Z 0-9 . _ -`, so that it stands in a URL as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// Takes `text` as it is; `None` if it cannot be a key's name.
    pub fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        ((1..=KEY_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)).then(|| Self(text.into()))
    }
}

impl KeyId {
    /// The name, shared.
    pub fn name(&self) -> &Arc<str> {
        &self.0
    }
}

impl std::borrow::Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a URL's signature is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlRefusal {
    /// Signed by no key that is known, for something else, or not as it has to be.
    Invalid,
    /// Was good until its `exp`.
    Expired,
}

/// Why a URL cannot be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// Nothing to sign with.
    #[error("no signing key is there: add one under [signing_keys] in the credentials file")]
    NoKey,
    /// There, but not this one.
    #[error("no signing key {0} is there, or it has expired")]
    UnknownKey(String),
    /// A label that could not be told from what authenticates.
    #[error("a label cannot be called {0:?}: it has a meaning of its own in a callback URL")]
    Reserved(String),
    /// Too long.
    #[error("the URL would have {0} bytes, the most is {URL_BYTES_MAX}: use fewer or shorter labels")]
    TooLong(usize),
}

/// What [`Credentials::mint`] makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minted {
    /// The callback URL.
    pub url: String,
    /// Until when it is accepted.
    pub expires: Timestamp,
    /// What it is signed with.
    pub key_id: KeyId,
}

impl Credentials {
    /// Signs a callback URL below `base`, good for `ttl`, with the key of that name or the one made last.
    pub fn mint(
        &self,
        base: &str,
        product: Option<&Product>,
        labels: &Labels,
        ttl: Duration,
        key_id: Option<&str>,
        now: Timestamp,
    ) -> Result<Minted, MintError> {
        let (key_id, key) = self.signing_key(key_id, now)?;
        if let Some(name) = labels.keys().find(|name| SECRET_PARAMETERS.contains(&name.as_str())) {
            return Err(MintError::Reserved(name.clone()));
        }
        // In whole seconds, rounded up: never shorter than asked for.
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).saturating_add(now.as_second() + 1);
        let expires = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(labels);
        query.append_pair("exp", &expires.as_second().to_string());
        query.append_pair("kid", &key_id.0);
        let product = product.map(|product| format!("/{product}")).unwrap_or_default();
        let target = format!("/webhook{product}?{}", query.finish());
        let tag = URL_SAFE_NO_PAD.encode(key.secret.sign(&signed(&target)));
        let url = format!("{base}{target}{TAG_PARAMETER}{tag}");
        if url.len() > URL_BYTES_MAX {
            return Err(MintError::TooLong(url.len()));
        }
        Ok(Minted { url, expires, key_id: key_id.clone() })
    }

    fn signing_key(&self, wanted: Option<&str>, now: Timestamp) -> Result<(&KeyId, &SigningKey), MintError> {
        let usable = |(_, key): &(&KeyId, &SigningKey)| !key.lifetime.is_over(now);
        match wanted {
            Some(id) => {
                let key = self.signing_keys.get_key_value(id).filter(usable);
                key.ok_or_else(|| MintError::UnknownKey(id.to_owned()))
            }
            None => {
                let keys = self.signing_keys.iter().filter(usable);
                keys.max_by_key(|(id, key)| (key.lifetime.created, *id)).ok_or(MintError::NoKey)
            }
        }
    }

    /// Checks the signature of a request for `path` and `query`, as they were sent; the key's name.
    pub fn verify_url(&self, path: &str, query: &str, now: Timestamp) -> Result<&KeyId, UrlRefusal> {
        let (before, tag) = query.rsplit_once(TAG_PARAMETER).ok_or(UrlRefusal::Invalid)?;
        let exp = only(before, "exp").and_then(|exp| exp.parse::<i64>().ok()).ok_or(UrlRefusal::Invalid)?;
        let key_id = only(before, "kid").ok_or(UrlRefusal::Invalid)?;
        let (key_id, key) = self.signing_keys.get_key_value(key_id.as_str()).ok_or(UrlRefusal::Invalid)?;
        let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_| UrlRefusal::Invalid)?;
        if key.lifetime.is_over(now) || !key.secret.verify(&signed(&format!("{path}?{before}")), &tag) {
            return Err(UrlRefusal::Invalid);
        }
        // Behind the signature: only who could sign learns that it is too late.
        if exp <= now.as_second() { Err(UrlRefusal::Expired) } else { Ok(key_id) }
    }
}

fn signed(target: &str) -> Vec<u8> {
    [CONTEXT, target.as_bytes()].concat()
}

/// The value of a parameter that is there exactly once.
fn only(query: &str, name: &str) -> Option<String> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    let value = values.next()?.1.into_owned();
    values.next().is_none().then_some(value)
}
