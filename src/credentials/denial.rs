//! The cause of a refused credential, for the operator's log and metrics. The caller never learns it, because it would help to guess.
//!
//! The cause is looked up only after the refusal, so that accepting a credential costs nothing more. Pure.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;

use super::{
    callback_lines::KeyId,
    client::{Certificate, Client, Proof},
    lookup::Credentials,
    secret::{Secret, TokenHash},
    signed_url,
};

/// The cause of a refusal. It names a line only if the caller has proved to have that line's secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The request carried no credential.
    Missing,
    /// The token matches no line, neither now nor since the start.
    UnknownToken,
    /// The secret of this line has expired.
    Expired(Arc<str>),
    /// The line was removed, or got another secret, since the start.
    Removed(Arc<str>),
    /// No client's line has one of the certificate's names.
    UnknownCertificate,
    /// The certificate of this client was revoked, or its authority is no longer trusted.
    Withdrawn(Arc<str>),
    /// The URL claims a key that does not exist. The claim proves nothing: anybody can write any name.
    UnknownKey(KeyId),
    /// The signature is not valid for the key that the URL claims; `None` if it claims none.
    BadSignature(Option<KeyId>),
    /// The signature of this key is valid, but the URL's `exp` has passed.
    Late(Arc<str>),
}

impl Denial {
    /// The value of the label `cause` of the metric, and of the field in the log.
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

    /// The line whose secret was presented. Safe as a metric label: only lines that are or were in the file are named.
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

impl Credentials {
    /// The cause for which a callback token was refused.
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

    /// The cause for which a client's token was refused.
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

    /// The cause for which a client's certificate was refused.
    pub fn denial_of_certificate(&self, certificate: &Certificate) -> Denial {
        let is_named = |client: &&Arc<Client>| match &client.proof {
            Proof::Certificate(name) => certificate.names().contains(name),
            Proof::Token(_) => false,
        };
        let client = self
            .clients
            .values()
            .map(|line| &line.client)
            .find(is_named);

        let denial = if certificate.is_withdrawn() {
            Denial::Withdrawn
        } else {
            Denial::Expired
        };
        client.map_or(Denial::UnknownCertificate, |client| {
            denial(Arc::clone(&client.name))
        })
    }

    /// The cause for which the signature of a URL was refused; the URL has one of the `paths`, and the `query`.
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
}

/// The cause for a refused token. A token of `in_force` can only have been refused because it has expired.
fn denial(
    presented: &TokenHash,
    in_force: &[(Arc<str>, TokenHash)],
    removed: &[(Arc<str>, TokenHash)],
) -> Denial {
    // Every entry is compared, so that the time does not reveal which one matches.
    let find = |all: &[(Arc<str>, TokenHash)]| {
        all.iter().fold(None, |found, (name, hash)| {
            if hash.equals(presented) {
                Some(Arc::clone(name))
            } else {
                found
            }
        })
    };

    match (find(in_force), find(removed)) {
        (Some(name), _) => Denial::Expired(name),
        (None, Some(name)) => Denial::Removed(name),
        (None, None) => Denial::UnknownToken,
    }
}
