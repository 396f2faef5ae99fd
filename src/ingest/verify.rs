//! Whether a callback is authentic: its client's address, its URL's token or signature, and the signature over its body.

use std::{net::IpAddr, sync::Arc};

use axum::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    answer::Reply,
    budget::{Credential, Sender},
    client_address::TrustedProxies,
    denied::Denied,
};
use crate::{
    callback::WebhookPath,
    config::{Allowlist, BodySignature},
    credentials::{Binding, Credentials, Generation, SharedCredentials, UrlRefusal},
    event::{Product, Verification},
    metrics::Metrics,
    network,
};

/// The header with the vendor's signature.
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("x-runblob-signature");

/// How callbacks are authenticated.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Tokens and keys.
    pub credentials: Arc<SharedCredentials>,
    /// What a signature over the body counts for.
    pub body_signature: BodySignature,
    /// What the client's address counts for.
    pub allowlist: Allowlist,
    /// The addresses that callbacks may come from.
    pub allowed: Vec<IpNet>,
    /// The proxies that may name their client.
    pub proxies: TrustedProxies,
    /// Bytes that each credential may bring in a minute for each product, unless its line in the credentials file says otherwise. 0 is
    /// no limit.
    pub bytes_per_minute_max: u64,
    /// The front's public URL, if it is known: web pages of other origins may send nothing.
    pub public_url: Option<String>,
}

/// What a callback's URL has proved.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    pub verification: Verification,
    pub sender: Sender,
    /// The products and labels that the credential is bound to.
    pub bound: Option<Arc<Binding>>,
}

impl Verified {
    /// Whether the credential's holder must not learn what others have sent.
    pub(super) fn conceals(&self) -> bool {
        self.verification == Verification::SignedUrl || self.bound.is_some()
    }

    /// Checks the URL's product and labels against what the credential is bound to. A malformed product is left to the quarantine, for
    /// an operator to name one. So is a URL without a product whose body looks like one that the credential is not bound to.
    fn within_bounds(self, read: &WebhookPath, query: &str) -> Result<Self, Reply> {
        let Some(bound) = &self.bound else {
            return Ok(self);
        };
        let product = read
            .product
            .as_deref()
            .and_then(|product| Product::parse(product).ok());

        let denied = if product.is_some_and(|product| !bound.products.allow(product.as_str())) {
            Denied::other_product
        } else if bound.is_contradicted_by(form_urlencoded::parse(query.as_bytes())) {
            Denied::other_label
        } else {
            return Ok(self);
        };

        Err(Reply::Unauthorized(denied(self.sender.credential)))
    }
}

impl Rules {
    /// Checks the client's address.
    pub(super) fn check_address(&self, client: IpAddr, metrics: &Metrics) -> Result<(), Reply> {
        if self.allowlist == Allowlist::Off || network::contains(&self.allowed, client) {
            return Ok(());
        }
        metrics.callbacks_from_unlisted_addresses.inc();
        if self.allowlist == Allowlist::Enforce {
            Err(Reply::AddressDenied)
        } else {
            Ok(())
        }
    }

    /// Checks the URL, as it was sent. One that carries a signature is known by that alone. `read` is the callback that is read from
    /// the path: a signature for its canonical form is as good, since proxies add slashes.
    pub(super) fn check_url(
        &self,
        path: &str,
        read: &WebhookPath,
        query: &str,
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<Verified, Reply> {
        let credentials = self.credentials.get();
        if !credentials.verify_urls() {
            return Ok(self.verified(Verification::Unverified, Credential::Nothing, None, None));
        }

        let verified = if parameter(query, "sig").is_some() {
            self.check_signature(&credentials, path, read, query, now, metrics)?
        } else {
            self.check_token(&credentials, query, now, metrics)?
        };
        verified.within_bounds(read, query)
    }

    fn check_signature(
        &self,
        credentials: &Credentials,
        path: &str,
        read: &WebhookPath,
        query: &str,
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<Verified, Reply> {
        let verified = match credentials.verify_url(path, query, now) {
            Err(UrlRefusal::Invalid) => credentials.verify_url(&read.canonical(), query, now),
            verified => verified,
        };

        let (key_id, generation) = verified.map_err(|refusal| {
            let denial = credentials.denial_of_url(&[path, &read.canonical()], query, now);
            let denied = Denied::of(denial, Credential::Key);
            match refusal {
                UrlRefusal::Invalid => Reply::Unauthorized(denied),
                UrlRefusal::Expired => Reply::UrlExpired(denied),
            }
        })?;

        metrics.credential_used("signing_key", key_id.name(), generation.as_str(), now);
        Ok(self.verified(
            Verification::SignedUrl,
            Credential::Key(Arc::clone(key_id.name())),
            credentials.signing_key_budget(key_id),
            credentials.signing_key_binding(key_id),
        ))
    }

    fn check_token(
        &self,
        credentials: &Credentials,
        query: &str,
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<Verified, Reply> {
        let token = parameter(query, "token");
        let known = token
            .as_deref()
            .and_then(|token| credentials.callback_token(token, now));
        let Some((name, generation)) = known else {
            let denial = credentials.denial_of_token(token.as_deref());
            return Err(Reply::Unauthorized(Denied::of(denial, Credential::Token)));
        };

        metrics.credential_used("callback_token", name, generation.as_str(), now);
        Ok(self.verified(
            Verification::UrlToken,
            Credential::Token(Arc::clone(name)),
            credentials.callback_token_budget(name),
            credentials.callback_token_binding(name),
        ))
    }

    fn verified(
        &self,
        verification: Verification,
        credential: Credential,
        budget: Option<u64>,
        bound: Option<&Arc<Binding>>,
    ) -> Verified {
        Verified {
            verification,
            sender: Sender {
                credential,
                bytes_per_minute_max: budget.unwrap_or(self.bytes_per_minute_max),
            },
            bound: bound.map(Arc::clone),
        }
    }

    /// Checks the signature over the body; true if it is valid. The vendor does not document whether it signs a body before or after
    /// compression, so `bodies` are the body as sent and as decompressed.
    pub(super) fn check_body(
        &self,
        signature: Option<&HeaderValue>,
        bodies: [Option<&Bytes>; 2],
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<bool, Reply> {
        if self.body_signature == BodySignature::Off {
            return Ok(false);
        }
        let credentials = self.credentials.get();
        let by = |signature| {
            bodies
                .iter()
                .flatten()
                .find_map(|body| signed_by(&credentials, signature, body, now))
        };

        let result = match signature.map(by) {
            None => "missing",
            Some(Some(generation)) => {
                metrics.credential_used("body_signature", "", generation.as_str(), now);
                "valid"
            }
            Some(None) => "invalid",
        };

        metrics.body_signatures.with_label_values(&[result]).inc();

        match (result, self.body_signature) {
            ("valid", _) => Ok(true),
            ("missing", BodySignature::Require) => {
                Err(Reply::Unauthorized(Denied::without_body_signature()))
            }
            (_, BodySignature::Require) => Err(Reply::Unauthorized(Denied::by_body_signature())),
            _ => Ok(false),
        }
    }
}

/// Which secret a body is signed by. The vendor's signature is hexadecimal digits of either case, perhaps behind `sha256=`.
fn signed_by(
    credentials: &Credentials,
    signature: &HeaderValue,
    body: &[u8],
    now: Timestamp,
) -> Option<Generation> {
    let tag = signature.to_str().ok().and_then(|text| {
        let hex = text.strip_prefix("sha256=").unwrap_or(text);
        let digits = hex.bytes().all(|b| b.is_ascii_hexdigit()) && hex.len() == 64;
        let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).ok();
        digits
            .then(|| (0..64).step_by(2).map(pair).collect::<Option<Vec<_>>>())
            .flatten()
    });
    credentials.verify_body(body, &tag?, now)
}

fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}
