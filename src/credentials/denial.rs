//! Why a credential was not accepted, for the operator's log and metrics. Whoever has shown it learns none of this: it would help
//! to guess. Looked for only after the refusal, so that accepting costs nothing more.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;

use super::{
    CallbackToken, Certificate, Client, Credentials, KeyId, Known, Proof, Secret, SigningKey,
    TokenHash, signed_url,
};

/// Most that are remembered of what was removed, of each kind; beyond it the first is forgotten. A file has a handful.
const REMOVED_MAX: usize = 256;

/// Why, and whose it is, if that is proved by what was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Nothing was shown.
    Missing,
    /// A token that is none of those there are, or were since the start.
    UnknownToken,
    /// The one of this name has expired.
    Expired(Arc<str>),
    /// The one of this name was removed, or got another secret, since the start.
    Removed(Arc<str>),
    /// A certificate whose names are no client's.
    UnknownCertificate,
    /// The certificate of the client of this name was revoked, or nobody who is trusted vouches for it any more.
    Withdrawn(Arc<str>),
    /// A URL that names a key which is not there. Anybody can name any.
    UnknownKey(KeyId),
    /// The signature is none of the key that the URL names, which anybody can; without a name, the URL names none.
    BadSignature(Option<KeyId>),
    /// A good signature by the key of this name, past its `exp`.
    Late(Arc<str>),
}

impl Denial {
    /// The value of the metric's `cause`, and of the field in the log.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::UnknownToken => "unknown_token",
            Self::Expired(_) => "expired",
            Self::Removed(_) => "removed",
            Self::UnknownCertificate => "unknown_certificate",
            Self::Withdrawn(_) => "withdrawn",
            Self::UnknownKey(_) => "unknown_key",
            Self::BadSignature(_) => "bad_signature",
            Self::Late(_) => "url_expired",
        }
    }

    /// The name of a credential that is, or was, in the file, and was shown: there are only so many.
    pub fn name(&self) -> Option<&Arc<str>> {
        match self {
            Self::Expired(name)
            | Self::Removed(name)
            | Self::Withdrawn(name)
            | Self::Late(name) => Some(name),
            Self::Missing
            | Self::UnknownToken
            | Self::UnknownCertificate
            | Self::UnknownKey(_)
            | Self::BadSignature(_) => None,
        }
    }
}

/// What was in force since the start, and is no more. Of tokens there are hashes only; a key that leaks is removed for that, so to
/// keep it in memory gives nothing away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Removed {
    callback_tokens: Vec<(Arc<str>, TokenHash)>,
    signing_keys: Vec<(KeyId, Secret)>,
    clients: Vec<(Arc<str>, TokenHash)>,
}

impl Removed {
    /// As it is when `new` takes the place of `old`.
    pub(super) fn between(old: &Credentials, new: &Credentials) -> Self {
        let Self {
            callback_tokens,
            signing_keys,
            clients,
        } = &old.removed;
        Self {
            callback_tokens: removed(
                callback_tokens,
                old.callback_hashes(),
                &new.callback_hashes(),
            ),
            signing_keys: removed(signing_keys, old.key_secrets(), &new.key_secrets()),
            clients: removed(clients, old.client_hashes(), &new.client_hashes()),
        }
    }
}

/// What was removed before, and what is now; of those that have come back none.
fn removed<N: Clone, S: Clone + PartialEq>(
    before: &[(N, S)],
    old: Vec<(N, S)>,
    new: &[(N, S)],
) -> Vec<(N, S)> {
    let is_back = |secret: &S| new.iter().any(|(_, there)| there == secret);
    let all = before.iter().cloned().chain(old);
    let mut removed: Vec<_> = all.filter(|(_, secret)| !is_back(secret)).collect();
    removed.drain(..removed.len().saturating_sub(REMOVED_MAX));
    removed
}

impl Credentials {
    /// Why a callback token was not accepted.
    pub fn denial_of_token(&self, token: Option<&str>) -> Denial {
        let Some(token) = token else {
            return Denial::Missing;
        };
        denial(
            &TokenHash::of(token),
            &self.callback_hashes(),
            &self.removed.callback_tokens,
        )
    }

    /// Why a client's token was not accepted.
    pub fn denial_of_client(&self, token: Option<&str>) -> Denial {
        let Some(token) = token else {
            return Denial::Missing;
        };
        denial(
            &TokenHash::of(token),
            &self.client_hashes(),
            &self.removed.clients,
        )
    }

    /// Why a client's certificate was not accepted.
    pub fn denial_of_certificate(&self, certificate: &Certificate) -> Denial {
        let is_its = |client: &&Arc<Client>| match &client.proof {
            Proof::Certificate(name) => certificate.names().contains(name),
            Proof::Token(_) => false,
        };
        let client = self
            .clients
            .values()
            .map(|known| &known.client)
            .find(is_its);
        let denial = if certificate.is_withdrawn() {
            Denial::Withdrawn
        } else {
            Denial::Expired
        };
        client.map_or(Denial::UnknownCertificate, |client| {
            denial(Arc::clone(&client.name))
        })
    }

    /// Why the signature of a request for one of these `paths` and `query` was not accepted.
    pub fn denial_of_url(&self, paths: &[&str], query: &str, now: Timestamp) -> Denial {
        let Some((before, tag, exp, key_id)) = signed_url::parts(query) else {
            return Denial::BadSignature(None);
        };
        let tag = URL_SAFE_NO_PAD.decode(tag).unwrap_or_default();
        let is_by = |secret: &Secret| {
            let signed =
                |path: &&str| secret.verify(&signed_url::signed(&format!("{path}?{before}")), &tag);
            paths.iter().any(signed)
        };
        let found = self.signing_keys.get_key_value(key_id.as_str());
        let by = found
            .and_then(|(id, key)| Some((id, key.secrets().find(|(secret, _)| is_by(secret))?.1)));
        match by {
            Some((id, lifetime)) if lifetime.is_over(now) => Denial::Expired(Arc::clone(id.name())),
            Some((id, _)) if exp <= now.as_second() => Denial::Late(Arc::clone(id.name())),
            Some((id, _)) => Denial::BadSignature(Some(id.clone())),
            None => {
                let removed = self.removed.signing_keys.iter();
                let by_removed = removed
                    .rev()
                    .find(|(id, secret)| **id.name() == *key_id && is_by(secret));
                match (by_removed, found, KeyId::parse(&key_id)) {
                    (Some((id, _)), ..) => Denial::Removed(Arc::clone(id.name())),
                    (None, Some((id, _)), _) => Denial::BadSignature(Some(id.clone())),
                    (None, None, Some(claimed)) => Denial::UnknownKey(claimed),
                    (None, None, None) => Denial::BadSignature(None),
                }
            }
        }
    }

    fn callback_hashes(&self) -> Vec<(Arc<str>, TokenHash)> {
        let of = |(name, token): (&Arc<str>, &CallbackToken)| {
            let previous = token.previous.as_ref().map(|(hash, _)| hash);
            let all = [Some(&token.hash), previous].into_iter().flatten();
            all.map(|hash| (Arc::clone(name), hash.clone()))
                .collect::<Vec<_>>()
        };
        self.callback_tokens.iter().flat_map(of).collect()
    }

    fn key_secrets(&self) -> Vec<(KeyId, Secret)> {
        let of = |(id, key): (&KeyId, &SigningKey)| {
            key.secrets()
                .map(|(secret, _)| (id.clone(), secret.clone()))
                .collect::<Vec<_>>()
        };
        self.signing_keys.iter().flat_map(of).collect()
    }

    fn client_hashes(&self) -> Vec<(Arc<str>, TokenHash)> {
        let of = |client: &Arc<Client>| match &client.proof {
            Proof::Token(hash) => Some((Arc::clone(&client.name), hash.clone())),
            Proof::Certificate(_) => None,
        };
        self.clients
            .values()
            .flat_map(Known::all)
            .filter_map(of)
            .collect()
    }
}

/// A token that is in the file, and was refused, has expired.
fn denial(
    shown: &TokenHash,
    there: &[(Arc<str>, TokenHash)],
    removed: &[(Arc<str>, TokenHash)],
) -> Denial {
    // Every entry is compared, so that the time tells nothing of which one it was.
    let find = |all: &[(Arc<str>, TokenHash)]| {
        all.iter().fold(None, |found, (name, hash)| {
            if hash.equals(shown) {
                Some(Arc::clone(name))
            } else {
                found
            }
        })
    };
    match (find(there), find(removed)) {
        (Some(name), _) => Denial::Expired(name),
        (None, Some(name)) => Denial::Removed(name),
        (None, None) => Denial::UnknownToken,
    }
}
