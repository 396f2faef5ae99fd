//! Product and labels of a callback URL. What is kept of any URL holds nothing that authenticates, and says the same as the
//! URL did; labels and products are exactly what the documentation calls them.
//!
//! Input: path and query as they are sent.

use std::collections::BTreeMap;

use blobcast::{
    callback::{Callback, Corrections},
    event::Verification,
};
use bytes::Bytes;
use jiff::Timestamp;

const BODY: &[u8] = br#"{"generation_id":"t1","status":"completed"}"#;
const SECRETS: [&str; 4] = ["token", "exp", "kid", "sig"];

pub(crate) fn run(target: &str) {
    let callback = callback(target);
    let kept = callback.target();
    for (key, _) in pairs(kept.split_once('?').unwrap_or_default().1) {
        assert!(!SECRETS.contains(&key.as_str()), "{key} is kept");
    }
    // Also where the query was written into the path; of a near miss it is cut off there, and other paths are not kept.
    for secret in SECRETS.iter().filter(|_| callback.near_miss.is_none()) {
        let is_cut = |value: &str| value.is_empty() || value.starts_with(['&', ';', '?', '#', '%']);
        assert!(
            kept.split(&format!("&{secret}=")).skip(1).all(is_cut),
            "{kept}"
        );
    }
    let again = self::callback(&kept);
    assert_eq!(again.target(), kept, "kept twice");

    let labels: BTreeMap<_, _> = pairs(&callback.query)
        .into_iter()
        .filter(|(key, _)| !SECRETS.contains(&key.as_str()))
        .collect();
    let expected = match &callback.product {
        _ if callback.near_miss.is_some() => Err("bad_path"),
        Some(product) if !is_product(product) => Err("bad_product"),
        _ if !are_labels(&labels) => Err("bad_labels"),
        product => Ok((
            product.clone().unwrap_or_else(|| "unknown".to_owned()),
            labels,
        )),
    };
    // What is kept of a near miss has lost what looks like a query, and may read as a right path.
    let kept_alike = if callback.near_miss.is_some() {
        None
    } else {
        Some(again)
    };
    for callback in [Some(callback), kept_alike].into_iter().flatten() {
        let draft = callback.draft(&Corrections::default());
        let read = draft
            .map(|draft| (draft.product.to_string(), draft.labels))
            .map_err(|rejection| rejection.reason());
        assert_eq!(read, expected);
    }
}

fn callback(target: &str) -> Callback {
    Callback::from_target(
        target,
        Bytes::from_static(BODY),
        Timestamp::UNIX_EPOCH,
        Verification::Unverified,
        "",
    )
}

fn is_product(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(allowed)
}

fn are_labels(labels: &BTreeMap<String, String>) -> bool {
    let count = |text: &str| text.chars().count();
    labels.len() <= 16
        && labels
            .iter()
            .all(|(key, value)| (1..=64).contains(&count(key)) && count(value) <= 256)
}

/// `application/x-www-form-urlencoded`, read by the letter of its standard.
fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let (mut bytes, mut left) = (Vec::new(), text.as_bytes());
    while let [first, rest @ ..] = left {
        let digit = |at: usize| {
            rest.get(at)
                .and_then(|&digit| char::from(digit).to_digit(16))
        };
        (left, _) = match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => (&rest[2..], bytes.push((high * 16 + low) as u8)),
            (b'+', ..) => (rest, bytes.push(b' ')),
            (other, ..) => (rest, bytes.push(*other)),
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
