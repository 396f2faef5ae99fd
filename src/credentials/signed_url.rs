//! Signed callback URLs: minting and verifying them. A signed URL is valid for one product, one set of labels and a limited time, and
//! anybody with the key can mint one without calling the broker.
//!
//! ```text
//! https://hooks.example.com/webhook/veo?team=ads&ref=42&exp=1900000000&kid=k1&sig=TAG
//!                          └──────────────── signed text ───────────────────┘
//! TAG = base64url without padding ( HMAC-SHA256 ( secret of key k1, "blobcast-url-v1\n" + signed text ) )
//! ```
//!
//! The signed text is the URL as it is sent, byte for byte, from `/webhook` up to `&sig=`; `sig` comes last. `exp` is in seconds
//! since 1970. `tests/data/signed_urls.json` has test vectors for implementations in other languages. Pure.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;

use super::{
    binding::{Binding, Products},
    callback_lines::{KeyId, SigningKey},
    lifetime::{Generation, Lifetime},
    lookup::Credentials,
    secret::{SECRET_PARAMETERS, Secret},
};
use crate::event::{LABELS_MAX, Labels, Product};

/// Longest URL that is minted: the vendor is known to keep URLs of this length unchanged.
pub const URL_BYTES_MAX: usize = 512;
/// Separates these signatures from any other use of the same key.
const CONTEXT: &[u8] = b"blobcast-url-v1\n";
const TAG_PARAMETER: &str = "&sig=";

/// A signed URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlRefusal {
    /// The URL is malformed, or its signature is not by a key of the file, or is for another text.
    Invalid,
    /// The signature is valid, but `exp` has passed.
    Expired,
}

/// A URL cannot be minted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The file has no signing key that has not expired.
    #[error("there is no signing key: add one under [signing_keys] in the credentials file")]
    NoKey,
    /// The file has no such key, or it has expired.
    #[error(
        "there is no signing key {0}, or it has expired: name another of [signing_keys] in the credentials file, or none"
    )]
    UnknownKey(String),
    /// Every key is bound to products or labels, so the request has to name one.
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
        "signing key {key_id} is bound to another value of one of the labels: leave that label out"
    )]
    OtherLabel {
        /// The key.
        key_id: KeyId,
    },
    /// The labels of the request and of the key's binding are together more than an event may have.
    #[error(
        "with the labels that signing key {key_id} is bound to there are more than {LABELS_MAX}: use fewer"
    )]
    TooManyLabels {
        /// The key.
        key_id: KeyId,
    },
    /// A label has the name of a parameter that authenticates the URL.
    #[error(
        "a label cannot be named {0:?}: that name has a meaning of its own in a callback URL, so choose another"
    )]
    Reserved(String),
    /// The URL would be longer than [`URL_BYTES_MAX`].
    #[error(
        "the URL would have {0} bytes, the most is {URL_BYTES_MAX}: use fewer or shorter labels"
    )]
    TooLong(usize),
}

/// A signed callback URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minted {
    /// The callback URL, to be given to the vendor as it is.
    pub url: String,
    /// The URL is refused from this moment on.
    pub expires: Timestamp,
    /// The key that signed the URL.
    pub key_id: KeyId,
}

impl Credentials {
    /// Signs a callback URL below `base`, valid for `ttl`, with the key `key_id`.
    ///
    /// Without `key_id` the newest key that is not bound to products or labels signs, or the only key: a tenant's key must not sign
    /// just because it is the newest. The URL names the product, also one that the key is bound to, so that it need not be inferred.
    /// It does not name the labels of the key's binding; they are added when a callback arrives.
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

        // Whole seconds, rounded up: never shorter than asked for.
        let seconds = i64::try_from(ttl.as_secs())
            .unwrap_or(i64::MAX)
            .saturating_add(now.as_second() + 1);
        let expires = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);

        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(labels);
        query.append_pair("exp", &expires.as_second().to_string());
        query.append_pair("kid", key_id.name());
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

    /// Verifies the signature of a request. `path` and `query` are as they were sent. Returns the key, and which of its secrets signed.
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

        // After the signature: only a caller with a valid signature learns that it has expired.
        if exp <= now.as_second() {
            Err(UrlRefusal::Expired)
        } else {
            Ok((key_id, generation))
        }
    }
}

/// The product that the URL names: the wanted one if the key allows it. If none is wanted, the only product that the key is bound to,
/// or none for a key that allows every product.
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

/// Refuses labels with which a callback by this URL would be refused.
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

/// The signed part of a query, its tag, its `exp`, and the name of its key.
pub(super) fn parts(query: &str) -> Option<(&str, &str, i64, String)> {
    let (before, tag) = query.rsplit_once(TAG_PARAMETER)?;
    let exp = only(before, "exp").and_then(|exp| exp.parse().ok())?;
    Some((before, tag, exp, only(before, "kid")?))
}

pub(super) fn signed(target: &str) -> Vec<u8> {
    [CONTEXT, target.as_bytes()].concat()
}

/// The value of a parameter; `None` unless it occurs exactly once.
fn only(query: &str, name: &str) -> Option<String> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    let value = values.next()?.1.into_owned();
    values.next().is_none().then_some(value)
}
