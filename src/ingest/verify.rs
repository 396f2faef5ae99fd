//! Whether a callback is authentic: where it comes from, what its URL carries, and who has signed its body.

use std::{net::IpAddr, sync::Arc};

use axum::http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    Outcome,
    address::TrustedProxies,
    budget::{Credential, Sender},
};
use crate::{
    credentials::{Credentials, SharedCredentials, UrlRefusal},
    event::Verification,
    metrics::Metrics,
    network,
};

/// What the vendor puts its signature into.
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("x-runblob-signature");

/// What is made of the vendor's signature over the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodySignature {
    /// Not looked at.
    Off,
    /// Noted and counted; refuses nothing.
    Observe,
    /// Without a good one: 401.
    Require,
}

/// What is made of the address a callback comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowlist {
    /// Not looked at.
    Off,
    /// Strangers are counted; refuses nothing.
    Report,
    /// Strangers: 403.
    Enforce,
}

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
}

impl Rules {
    /// Looks at the address.
    pub(super) fn check_address(&self, client: IpAddr, metrics: &Metrics) -> Result<(), Outcome> {
        if self.allowlist == Allowlist::Off || network::contains(&self.allowed, client) {
            return Ok(());
        }
        metrics.callbacks_from_strangers.inc();
        if self.allowlist == Allowlist::Enforce { Err(Outcome::AddressDenied) } else { Ok(()) }
    }

    /// Looks at the URL, as it was sent. One that carries a signature is known by that alone.
    pub(super) fn check_url(
        &self,
        path: &str,
        query: &str,
        now: Timestamp,
        metrics: &Metrics,
    ) -> Result<LetIn, Outcome> {
        let credentials = self.credentials.get();
        let let_in = |verification, credential, budget: Option<u64>| {
            let bytes_per_minute_max = budget.unwrap_or(self.bytes_per_minute_max);
            LetIn { verification, sender: Sender { credential, bytes_per_minute_max } }
        };
        if !credentials.verify_urls() {
            return Ok(let_in(Verification::Unverified, Credential::Nothing, None));
        }
        if parameter(query, "sig").is_some() {
            return match credentials.verify_url(path, query, now) {
                Ok(key_id) => {
                    metrics.credential_used("signing_key", key_id.name(), now);
                    let credential = Credential::Key(Arc::clone(key_id.name()));
                    Ok(let_in(Verification::SignedUrl, credential, credentials.signing_key_budget(key_id)))
                }
                Err(UrlRefusal::Invalid) => Err(Outcome::Unauthorized),
                Err(UrlRefusal::Expired) => Err(Outcome::UrlExpired),
            };
        }
        let token = parameter(query, "token").ok_or(Outcome::Unauthorized)?;
        let name = credentials.callback_token(&token, now).ok_or(Outcome::Unauthorized)?;
        metrics.credential_used("callback_token", name, now);
        let credential = Credential::Token(Arc::clone(name));
        Ok(let_in(Verification::UrlToken, credential, credentials.callback_token_budget(name)))
    }

    /// Looks at the signature over the body; true if it is a good one.
    pub(super) fn check_body(
        &self,
        signature: Option<&HeaderValue>,
        body: &[u8],
        metrics: &Metrics,
    ) -> Result<bool, Outcome> {
        if self.body_signature == BodySignature::Off {
            return Ok(false);
        }
        let result = match signature {
            None => "missing",
            Some(signature) if is_signature(&self.credentials.get(), signature, body) => "valid",
            Some(_) => "invalid",
        };
        metrics.body_signatures.with_label_values(&[result]).inc();
        match (result, self.body_signature) {
            ("valid", _) => Ok(true),
            (_, BodySignature::Require) => Err(Outcome::Unauthorized),
            _ => Ok(false),
        }
    }
}

/// The vendor's: hexadecimal digits of either case, perhaps behind `sha256=`.
fn is_signature(credentials: &Credentials, signature: &HeaderValue, body: &[u8]) -> bool {
    let tag = signature.to_str().ok().and_then(|text| {
        let hex = text.strip_prefix("sha256=").unwrap_or(text);
        let digits = hex.bytes().all(|b| b.is_ascii_hexdigit()) && hex.len() == 64;
        let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).ok();
        digits.then(|| (0..64).step_by(2).map(pair).collect::<Option<Vec<_>>>()).flatten()
    });
    match (credentials.body_secret(), tag) {
        (Some(secret), Some(tag)) => secret.verify(body, &tag),
        _ => false,
    }
}

fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}
