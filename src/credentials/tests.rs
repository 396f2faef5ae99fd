//! Credentials through the public items: parsing, authenticating, minting, refusing and replacing them.

#![allow(
    clippy::too_many_lines,
    reason = "a test is a story told from top to bottom"
)]

mod file;
mod signed_urls;
mod clients;
mod vendor_keys;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::event::{Labels, Product};

const BASE: &str = "https://hooks.example.com";
const VECTORS: &str = include_str!("../../tests/data/signed_urls.json");

/// A client of all products, with a token that nobody has.
pub(crate) fn client_for_tests(name: &str, admin: bool) -> Arc<Client> {
    let token = new_secret(true);
    let hash = TokenHash::of(&token);
    let line = format!(
        "[clients]\n{name} = {{ token = \"{hash}\", products = [\"*\"], admin = {admin} }}\n"
    );
    let credentials = Credentials::parse(&line).unwrap();
    Arc::clone(
        credentials
            .client_of_token(&token, Timestamp::UNIX_EPOCH)
            .unwrap(),
    )
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn refusal(text: &str) -> String {
    Credentials::parse(text).unwrap_err().to_string()
}

fn vectors() -> (Credentials, Vec<Value>) {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let line = |(id, secret): (&String, &Value)| format!("\"{id}\" = {{ secret = {secret} }}\n");
    let keys: String = vectors["keys"]
        .as_object()
        .unwrap()
        .iter()
        .map(line)
        .collect();
    let credentials = Credentials::parse(&format!("[signing_keys]\n{keys}")).unwrap();
    (credentials, vectors["vectors"].as_array().unwrap().clone())
}

/// Path and query of a URL below [`BASE`].
fn target(url: &str) -> (&str, &str) {
    url.strip_prefix(BASE).unwrap().split_once('?').unwrap()
}

fn key(created: &str, expires: &str) -> String {
    format!(
        "{{ secret = \"{}\", created = {created}, expires = {expires} }}",
        new_secret(false)
    )
}
