//! The credentials file. Any text is taken as a whole or refused as a whole, always the same way, and no complaint repeats
//! a secret, wherever in the file it stands.
//!
//! Input: the file, with `SECRET` wherever it has one.

use blobcast::credentials::Credentials;
use toml::{Table, Value};
use xxhash_rust::xxh3::xxh3_128;

const PLACEHOLDER: &str = "SECRET";

pub(crate) fn run(input: &str) {
    // Another one for each input, so that no input can have it by itself. Two of them are a hash, or a key.
    let secret = format!("{:032x}", xxh3_128(input.as_bytes()));
    let text = input.replace(PLACEHOLDER, &secret);
    let parsed = Credentials::parse(&text);
    assert_eq!(Credentials::parse(&text), parsed, "read twice");
    match parsed {
        Ok(credentials) => check_accepted(&text, &credentials, &secret),
        Err(error) => {
            let complaint = error.to_string();
            assert!(!complaint.is_empty());
            assert!(
                !complaint.contains(&secret) || is_no_secret(&text, &secret),
                "{complaint}"
            );
        }
    }
}

fn check_accepted(text: &str, credentials: &Credentials, secret: &str) {
    let table: Table = text.parse().expect("it was accepted");
    let count = |name: &str| {
        table.get(name).map_or(0, |entries| {
            entries.as_table().expect("it was accepted").len()
        })
    };
    assert_eq!(
        credentials.counts(),
        ["callback_tokens", "signing_keys", "clients"].map(count)
    );
    assert_eq!(
        credentials.has_body_secret(),
        table.contains_key("body_signature")
    );
    assert_eq!(credentials.verify_clients(), count("clients") > 0);
    assert!(!format!("{credentials:?}").contains(secret) || is_no_secret(text, secret));
}

/// Whether the secret is also where something is named: an entry, a product, or a certificate.
fn is_no_secret(text: &str, secret: &str) -> bool {
    text.parse::<Table>()
        .is_ok_and(|table| names(&Value::Table(table), secret))
}

fn names(value: &Value, secret: &str) -> bool {
    match value {
        Value::Array(values) => values.iter().any(|value| names(value, secret)),
        Value::Table(table) => table.iter().any(|(key, value)| {
            let is_name = ["products", "certificate"].contains(&key.as_str());
            key.contains(secret)
                || is_name && value.to_string().contains(secret)
                || names(value, secret)
        }),
        _ => false,
    }
}
