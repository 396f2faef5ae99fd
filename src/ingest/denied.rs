//! Why a callback was refused, in the words of the metrics and of the log. Pure.

use std::sync::Arc;

use super::budget::Credential;
use crate::credentials::Denial;

/// Why a callback was refused. For the operator only: its sender must not learn it.
#[derive(Debug)]
pub(super) struct Denied {
    why: Why,
    /// The credential it was sent with, if that is proved.
    pub credential: Option<Credential>,
}

#[derive(Debug)]
enum Why {
    /// The URL's token or signature is at fault.
    Url(Denial),
    /// The credential is bound to other products.
    OtherProduct,
    /// The credential is bound to another value of one of the URL's labels.
    OtherLabel,
    NoBodySignature,
    BadBodySignature,
}

impl Denied {
    pub(super) fn of(denial: Denial, kind: impl FnOnce(Arc<str>) -> Credential) -> Box<Self> {
        let credential = denial.name().cloned().map(kind);
        Box::new(Self {
            why: Why::Url(denial),
            credential,
        })
    }

    pub(super) fn other_product(credential: Credential) -> Box<Self> {
        Box::new(Self {
            why: Why::OtherProduct,
            credential: Some(credential),
        })
    }

    pub(super) fn other_label(credential: Credential) -> Box<Self> {
        Box::new(Self {
            why: Why::OtherLabel,
            credential: Some(credential),
        })
    }

    pub(super) fn without_body_signature() -> Box<Self> {
        Box::new(Self {
            why: Why::NoBodySignature,
            credential: None,
        })
    }

    pub(super) fn by_body_signature() -> Box<Self> {
        Box::new(Self {
            why: Why::BadBodySignature,
            credential: None,
        })
    }

    /// The value of the metric's `cause`.
    pub(super) fn cause(&self) -> &'static str {
        match &self.why {
            Why::Url(denial) => denial.cause(),
            Why::OtherProduct => "product_denied",
            Why::OtherLabel => "label_denied",
            Why::NoBodySignature => "no_body_signature",
            Why::BadBodySignature => "bad_body_signature",
        }
    }

    /// The key that the URL names; unproved.
    pub(super) fn key_id(&self) -> Option<String> {
        match &self.why {
            Why::Url(Denial::UnknownKey(key_id) | Denial::BadSignature(Some(key_id))) => {
                Some(key_id.to_string())
            }
            _ => None,
        }
    }

    /// What the operator can do about it.
    pub(super) fn explanation(&self) -> &'static str {
        match &self.why {
            Why::Url(denial) => of_url(denial),
            Why::OtherProduct => {
                "its credential is bound to other products: correct the callback URL, or `products` in the credential's line"
            }
            Why::OtherLabel => {
                "its URL has a label with another value than its credential is bound to: leave that label out of the URL"
            }
            Why::NoBodySignature => {
                "it has no X-RunBlob-Signature, which ingest.body_signature requires: ask the vendor, or set it to \"observe\""
            }
            Why::BadBodySignature => {
                "the signature over its body does not fit the secret in [body_signature]: compare it with the vendor's, or \
                 somebody makes up callbacks"
            }
        }
    }
}

fn of_url(denial: &Denial) -> &'static str {
    match denial {
        Denial::Missing => {
            "its URL has neither a token nor a signature: use one from `blobcast url`, or one with a token"
        }
        Denial::UnknownToken => {
            "its URL's token is not in the credentials file: it was changed on the way, or removed before this start"
        }
        Denial::Expired(_) => {
            "what its URL shows has expired: renew `expires` in its line of the credentials file, or use a newer URL"
        }
        Denial::Removed(_) => {
            "what its URL shows was removed from the credentials file, or replaced: if that was because it leaked, leave it out, \
             for this is its finder, or the vendor with old URLs; else put it back beside the new one until all of its URLs are \
             out of use"
        }
        Denial::UnknownKey(_) => "its URL names a signing key that is not in the credentials file",
        Denial::BadSignature(_) => {
            "its URL's signature does not fit: the URL was changed on the way, made for another product, or signed with \
             another secret, perhaps by somebody who only knows the key's name"
        }
        Denial::Late(_) => {
            "its signed URL is past its `exp`: mint URLs for longer than the vendor takes (`blobcast url --ttl`)"
        }
        Denial::UnknownCertificate | Denial::Withdrawn(_) => "it is not let in by what it shows", // no URL shows a certificate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{credentials::KeyId, metrics::REFUSALS};

    #[test]
    fn every_cause_is_a_series_of_the_metric() {
        let name: Arc<str> = "a".into();
        let of_url = [
            Denial::Missing,
            Denial::UnknownToken,
            Denial::Expired(Arc::clone(&name)),
            Denial::Removed(Arc::clone(&name)),
            Denial::UnknownKey(KeyId::parse("k").unwrap()),
            Denial::BadSignature(None),
            Denial::Late(name),
        ];
        let others = [
            Denied::other_product(Credential::Nothing),
            Denied::other_label(Credential::Nothing),
            Denied::without_body_signature(),
            Denied::by_body_signature(),
        ];
        let causes: Vec<_> = of_url
            .map(|denial| Denied::of(denial, Credential::Token).cause())
            .into_iter()
            .chain(others.map(|denied| denied.cause()))
            .collect();
        assert_eq!(causes, REFUSALS);
    }
}
