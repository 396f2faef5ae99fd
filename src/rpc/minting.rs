//! `MintCallbackUrl`: signed callback URLs.

use std::time::Duration;

use serde_json::{Map, Value};
use tonic::Status;

use super::{Context, errors, fields};
use crate::{
    audit::Entry,
    credentials::{MintError, Minted, SECRET_PARAMETERS},
    event::{LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Product, labels_fit},
    wire::{Malformed, positive_duration, timestamp, v1},
};

/// How long a URL is accepted by default: a task and its retries take half an hour, and somebody may be debugging.
const URL_LIFETIME_DEFAULT: Duration = Duration::from_secs(86_400);
const URL_LIFETIME_MIN: Duration = Duration::from_secs(1);
/// Longer than keys should live.
const URL_LIFETIME_MAX: Duration = Duration::from_secs(366 * 86_400);

/// A URL that is accepted for a while, for one product and with fixed labels if they are named.
pub(super) fn mint(
    context: &Context,
    request: v1::MintCallbackUrlRequest,
    entry: &mut Entry,
) -> Result<v1::MintCallbackUrlResponse, Status> {
    let v1::MintCallbackUrlRequest {
        product,
        labels,
        ttl,
        key_id,
    } = request;

    let product = fields::optional("product", &product, Product::parse)?;
    let labels = labels.into_iter().collect();
    if !labels_fit(&labels) {
        let problem = format!(
            "at most {LABELS_MAX}; a key has 1 to {LABEL_KEY_CHARS_MAX} characters, a value {LABEL_VALUE_CHARS_MAX}"
        );
        return Err(Malformed::new("labels", problem).into());
    }

    let ttl = url_lifetime(ttl)?;

    let key_id = (!key_id.is_empty()).then_some(key_id.as_str());
    let credentials = context.gate.credentials.get();
    let now = context.gate.clock.now();
    let minted = credentials.mint(
        &context.callback_base,
        product.as_ref(),
        &labels,
        ttl,
        key_id,
        now,
    );

    let Minted {
        url,
        expires,
        key_id,
    } = minted.map_err(|error| refused(&error))?;

    let key_id = key_id.to_string();
    entry.note("key_id", key_id.as_str());
    entry.note("expires", expires.to_string());
    Ok(v1::MintCallbackUrlResponse {
        callback_url: url,
        expire_time: Some(timestamp(expires)),
        key_id,
    })
}

fn refused(error: &MintError) -> Status {
    match error {
        MintError::NoKey | MintError::UnknownKey(_) | MintError::AllBound => {
            errors::signing_key_missing(error.to_string())
        }
        MintError::NoProduct { .. } => Malformed::new("product", error.to_string()).into(),
        MintError::OtherProduct { product, .. } => {
            errors::product_denied_by_key(product.as_str(), error)
        }
        MintError::Reserved(_)
        | MintError::TooLong(_)
        | MintError::OtherLabel { .. }
        | MintError::TooManyLabels { .. } => Malformed::new("labels", error.to_string()).into(),
    }
}

/// Labels as the audit records them. A reserved label is refused; its value may be the secret that it is reserved for.
pub(super) fn recorded<'a>(
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Map<String, Value> {
    let value = |(key, value): (&String, &String)| {
        let is_secret = SECRET_PARAMETERS.contains(&key.as_str());
        (
            key.clone(),
            if is_secret {
                "…".into()
            } else {
                value.clone().into()
            },
        )
    };
    labels.into_iter().take(LABELS_MAX).map(value).collect()
}

fn url_lifetime(requested: Option<prost_types::Duration>) -> Result<Duration, Malformed> {
    let Some(requested) = requested else {
        return Ok(URL_LIFETIME_DEFAULT);
    };
    let lifetime = positive_duration("ttl", requested)?;
    if (URL_LIFETIME_MIN..=URL_LIFETIME_MAX).contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err(Malformed::new("ttl", "not between 1 s and 366 days"))
    }
}
