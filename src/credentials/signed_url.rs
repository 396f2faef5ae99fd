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

use super::{Binding, Credentials, Generation, Lifetime, Products, Secret, SigningKey};
use crate::event::{LABELS_MAX, Labels, Product};

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
        ((1..=KEY_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed))
            .then(|| Self(text.into()))
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
    #[error(
        "no signing key {0} is there, or it has expired: name another of [signing_keys] in the credentials file, or none"
    )]
    UnknownKey(String),
    /// Each of them is bound to products or labels: the request has to name the key.
    #[error(
        "each signing key is bound to products or labels: name the one to sign with (`key_id`, --key-id)"
    )]
    AllBound,
    /// The key is bound to other products.
    #[error(
        "signing key {key_id} is bound to other products than {product}: name one of its own, or another key"
    )]
    OtherProduct {
        /// The key.
        key_id: KeyId,
        /// The product that was asked for.
        product: Product,
    },
    /// The key is bound to several products, and the URL would be for none of them in particular.
    #[error("signing key {key_id} is bound to several products: name the one that the URL is for")]
    NoProduct {
        /// The key.
        key_id: KeyId,
    },
    /// The key is bound to a label of this name with another value.
    #[error(
        "signing key {key_id} is bound to another value of a label that is asked for: leave it out"
    )]
    OtherLabel {
        /// The key.
        key_id: KeyId,
    },
    /// With those that the key is bound to there are too many.
    #[error(
        "with the labels that signing key {key_id} is bound to there are more than {LABELS_MAX}: use fewer"
    )]
    TooManyLabels {
        /// The key.
        key_id: KeyId,
    },
    /// A label that could not be told from what authenticates.
    #[error(
        "a label cannot be called {0:?}: it has a meaning of its own in a callback URL, so give it another name"
    )]
    Reserved(String),
    /// Too long.
    #[error(
        "the URL would have {0} bytes, the most is {URL_BYTES_MAX}: use fewer or shorter labels"
    )]
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
    /// Signs a callback URL below `base`, good for `ttl`, with the key of that name. Without a name it is the one made last of those
    /// that are bound to nothing, or the only one: no tenant's key signs because it happens to be the newest. The labels that a key is
    /// bound to are not in the URL: they are put on when a callback comes. The product is, so that none has to be inferred.
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
        if let Some(name) = labels
            .keys()
            .find(|name| SECRET_PARAMETERS.contains(&name.as_str()))
        {
            return Err(MintError::Reserved(name.clone()));
        }
        let product = product_of(key_id, key.bound.as_deref(), product)?;
        check_labels(key_id, key.bound.as_deref(), labels)?;
        // In whole seconds, rounded up: never shorter than asked for.
        let seconds = i64::try_from(ttl.as_secs())
            .unwrap_or(i64::MAX)
            .saturating_add(now.as_second() + 1);
        let expires = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(labels);
        query.append_pair("exp", &expires.as_second().to_string());
        query.append_pair("kid", &key_id.0);
        let product = product
            .map(|product| format!("/{product}"))
            .unwrap_or_default();
        let target = format!("/webhook{product}?{}", query.finish());
        let tag = URL_SAFE_NO_PAD.encode(key.secret.sign(&signed(&target)));
        let url = format!("{base}{target}{TAG_PARAMETER}{tag}");
        if url.len() > URL_BYTES_MAX {
            return Err(MintError::TooLong(url.len()));
        }
        Ok(Minted {
            url,
            expires,
            key_id: key_id.clone(),
        })
    }

    fn signing_key(
        &self,
        wanted: Option<&str>,
        now: Timestamp,
    ) -> Result<(&KeyId, &SigningKey), MintError> {
        let usable = |(_, key): &(&KeyId, &SigningKey)| !key.lifetime.is_over(now);
        match wanted {
            Some(id) => {
                let key = self.signing_keys.get_key_value(id).filter(usable);
                key.ok_or_else(|| MintError::UnknownKey(id.to_owned()))
            }
            None => {
                let keys: Vec<_> = self.signing_keys.iter().filter(usable).collect();
                if let [only] = keys[..] {
                    return Ok(only);
                }
                let error = if keys.is_empty() {
                    MintError::NoKey
                } else {
                    MintError::AllBound
                };
                let unbound = keys.into_iter().filter(|(_, key)| key.bound.is_none());
                unbound
                    .max_by_key(|(id, key)| (key.lifetime.created, *id))
                    .ok_or(error)
            }
        }
    }

    /// Checks the signature of a request for `path` and `query`, as they were sent: the key's name, and which of its secrets has
    /// signed it.
    pub fn verify_url(
        &self,
        path: &str,
        query: &str,
        now: Timestamp,
    ) -> Result<(&KeyId, Generation), UrlRefusal> {
        let (before, tag, exp, key_id) = parts(query).ok_or(UrlRefusal::Invalid)?;
        let (key_id, key) = self
            .signing_keys
            .get_key_value(key_id.as_str())
            .ok_or(UrlRefusal::Invalid)?;
        let tag = URL_SAFE_NO_PAD
            .decode(tag)
            .map_err(|_| UrlRefusal::Invalid)?;
        let signed = signed(&format!("{path}?{before}"));
        let is_by = |secret: &Secret, lifetime: &Lifetime| {
            !lifetime.is_over(now) && secret.verify(&signed, &tag)
        };
        let generation = if is_by(&key.secret, &key.lifetime) {
            Generation::Current
        } else if key
            .previous
            .as_ref()
            .is_some_and(|(secret, lifetime)| is_by(secret, lifetime))
        {
            Generation::Previous
        } else {
            return Err(UrlRefusal::Invalid);
        };
        // Behind the signature: only who could sign learns that it is too late.
        if exp <= now.as_second() {
            Err(UrlRefusal::Expired)
        } else {
            Ok((key_id, generation))
        }
    }
}

/// The product that a URL is for, if it is for one: one that the key is bound to, and the only one if none is asked for.
fn product_of<'a>(
    key_id: &KeyId,
    bound: Option<&'a Binding>,
    wanted: Option<&'a Product>,
) -> Result<Option<&'a Product>, MintError> {
    let Some(products) = bound.map(|bound| &bound.products) else {
        return Ok(wanted);
    };
    let key_id = key_id.clone();
    match (wanted, products) {
        (Some(product), products) if !products.allow(product.as_str()) => {
            Err(MintError::OtherProduct {
                key_id,
                product: product.clone(),
            })
        }
        (Some(product), _) => Ok(Some(product)),
        (None, Products::All) => Ok(None),
        (None, products) => products
            .only()
            .map(Some)
            .ok_or(MintError::NoProduct { key_id }),
    }
}

/// Whether a callback by a URL with these labels would be let in.
fn check_labels(key_id: &KeyId, bound: Option<&Binding>, labels: &Labels) -> Result<(), MintError> {
    let (Some(bound), key_id) = (bound, key_id.clone()) else {
        return Ok(());
    };
    if bound.is_contradicted_by(labels.iter().map(|(key, value)| (key.into(), value.into()))) {
        return Err(MintError::OtherLabel { key_id });
    }
    if bound.with(labels.clone()).len() > LABELS_MAX {
        return Err(MintError::TooManyLabels { key_id });
    }
    Ok(())
}

/// What is signed of a query, its tag, its `exp`, and the name of its key.
pub(super) fn parts(query: &str) -> Option<(&str, &str, i64, String)> {
    let (before, tag) = query.rsplit_once(TAG_PARAMETER)?;
    let exp = only(before, "exp").and_then(|exp| exp.parse().ok())?;
    Some((before, tag, exp, only(before, "kid")?))
}

pub(super) fn signed(target: &str) -> Vec<u8> {
    [CONTEXT, target.as_bytes()].concat()
}

/// The value of a parameter that is there exactly once.
fn only(query: &str, name: &str) -> Option<String> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    let value = values.next()?.1.into_owned();
    values.next().is_none().then_some(value)
}
