//! Whether a callback is authentic: where it comes from, what its URL carries, and who has signed its body.

use std::{net::IpAddr, sync::Arc};

use axum::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    Outcome,
    answer::Denied,
    budget::{Credential, Sender},
    client_address::TrustedProxies,
};
use crate::{
    callback::WebhookPath,
    config::{Allowlist, BodySignature},
    credentials::{Binding, Credentials, Generation, SharedCredentials, UrlRefusal},
    event::{Product, Verification},
    metrics::Metrics,
    network,
};

/// What the vendor puts its signature into.
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("x-runblob-signature");

/// What callbacks have to show.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Tokens and keys.
    pub credentials: Arc<SharedCredentials>,
    /// About the signature over the body.
    pub body_signature: BodySignature,
    /// About addresses.
    pub allowlist: Allowlist,
    /// The addresses that are none of a stranger's.
    pub allowed: Vec<IpNet>,
    /// Who may say for whom a callback is passed on.
    pub proxies: TrustedProxies,
    /// Bytes that each credential may bring in a minute for each product, unless its line says otherwise; 0: any.
    pub bytes_per_minute_max: u64,
    /// Where the front is known to be reached; no page of another site may send anything.
    pub public_url: Option<String>,
}

/// What a callback has shown by its URL.
#[derive(Clone, Debug)]
pub(super) struct LetIn {
    pub verification: Verification,
    pub sender: Sender,
    /// What the credential is bound to.
    pub bound: Option<Arc<Binding>>,
}

impl LetIn {
    /// Whether its holder is not to learn what others have sent.
    pub(super) fn conceals(&self) -> bool {
        self.verification == Verification::SignedUrl || self.bound.is_some()
    }

    /// Looks at what the URL says of product and labels. A product that is none waits in quarantine, for an operator to name one; so
    /// does a callback without any, if the body is taken for another product than those that it may be of.
    fn within_bounds(self, read: &WebhookPath, query: &str) -> Result<Self, Outcome> {
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
        Err(Outcome::Unauthorized(denied(self.sender.credential)))
    }
}

impl Rules {
    /// Looks at the address.
    pub(super) fn check_address(&self, client: IpAddr, metrics: &Metrics) -> Result<(), Outcome> {
        if self.allowlist == Allowlist::Off || network::contains(&self.allowed, client) {
            return Ok(());
        }
        metrics.callbacks_from_strangers.inc();
        if self.allowlist == Allowlist::Enforce {
            Err(Outcome::AddressDenied)
        } else {
            Ok(())
        }
    }

    /// Looks at the URL, as it was sent. One that carries a signature is known by that alone. `read` is what the callback is taken
    /// for: a signature for that is as good, since proxies add slashes.
    pub(super) fn check_url(
        &self,
        path: &str,
        read: &WebhookPath,
        query: &str,
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<LetIn, Outcome> {
        let credentials = self.credentials.get();
        let let_in =
            |verification, credential, budget: Option<u64>, bound: Option<&Arc<Binding>>| {
                let bytes_per_minute_max = budget.unwrap_or(self.bytes_per_minute_max);
                let sender = Sender {
                    credential,
                    bytes_per_minute_max,
                };
                LetIn {
                    verification,
                    sender,
                    bound: bound.map(Arc::clone),
                }
            };
        if !credentials.verify_urls() {
            return Ok(let_in(
                Verification::Unverified,
                Credential::Nothing,
                None,
                None,
            ));
        }
        if parameter(query, "sig").is_some() {
            let verified = credentials.verify_url(path, query, now);
            let verified = match verified {
                Err(UrlRefusal::Invalid) => credentials.verify_url(&read.canonical(), query, now),
                verified => verified,
            };
            let denied = || {
                let denial = credentials.denial_of_url(&[path, &read.canonical()], query, now);
                Denied::of(denial, Credential::Key)
            };
            return match verified {
                Ok((key_id, generation)) => {
                    metrics.credential_used("signing_key", key_id.name(), generation.as_str(), now);
                    let credential = Credential::Key(Arc::clone(key_id.name()));
                    let bound = credentials.signing_key_binding(key_id);
                    let let_in = let_in(
                        Verification::SignedUrl,
                        credential,
                        credentials.signing_key_budget(key_id),
                        bound,
                    );
                    let_in.within_bounds(read, query)
                }
                Err(UrlRefusal::Invalid) => Err(Outcome::Unauthorized(denied())),
                Err(UrlRefusal::Expired) => Err(Outcome::UrlExpired(denied())),
            };
        }
        let token = parameter(query, "token");
        let shown = token
            .as_deref()
            .and_then(|token| credentials.callback_token(token, now));
        let Some((name, generation)) = shown else {
            let denial = credentials.denial_of_token(token.as_deref());
            return Err(Outcome::Unauthorized(Denied::of(denial, Credential::Token)));
        };
        metrics.credential_used("callback_token", name, generation.as_str(), now);
        let credential = Credential::Token(Arc::clone(name));
        let bound = credentials.callback_token_binding(name);
        let let_in = let_in(
            Verification::UrlToken,
            credential,
            credentials.callback_token_budget(name),
            bound,
        );
        let_in.within_bounds(read, query)
    }

    /// Looks at the signature over the body; true if it is a good one. Nobody says whether the vendor would sign a body before it is
    /// compressed or after, so `bodies` are what came and what it was decompressed to.
    pub(super) fn check_body(
        &self,
        signature: Option<&HeaderValue>,
        bodies: [Option<&Bytes>; 2],
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<bool, Outcome> {
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
                Err(Outcome::Unauthorized(Denied::without_body_signature()))
            }
            (_, BodySignature::Require) => Err(Outcome::Unauthorized(Denied::by_body_signature())),
            _ => Ok(false),
        }
    }
}

/// By which secret a body is signed. The vendor's signature is hexadecimal digits of either case, perhaps behind `sha256=`.
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
