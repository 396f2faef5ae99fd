//! The targets by their names.

use arbitrary::{Arbitrary, Unstructured};

#[path = "address.rs"]
mod address;
#[path = "backup.rs"]
mod backup;
#[path = "config.rs"]
mod config;
#[path = "credentials.rs"]
mod credentials;
#[path = "cursor.rs"]
mod cursor;
#[path = "frame.rs"]
mod frame;
#[path = "payload.rs"]
mod payload;
#[path = "proxy.rs"]
mod proxy;
#[path = "query.rs"]
mod query;
#[path = "record.rs"]
mod record;
#[path = "request.rs"]
mod request;
#[path = "signed_url.rs"]
mod signed_url;

/// Reads bytes; panics if a promise does not hold. False if they make no input.
pub(crate) type Target = fn(&[u8]) -> bool;

pub(crate) const TARGETS: [(&str, Target); 12] = [
    ("address", |bytes| read(bytes, address::run)),
    ("backup", |bytes| read(bytes, backup::run)),
    ("config", |bytes| read(bytes, config::run)),
    ("credentials", |bytes| read(bytes, credentials::run)),
    ("cursor", |bytes| read(bytes, cursor::run)),
    ("frame", |bytes| read(bytes, frame::run)),
    ("payload", |bytes| read(bytes, payload::run)),
    ("proxy", |bytes| read(bytes, proxy::run)),
    ("query", |bytes| read(bytes, query::run)),
    ("record", |bytes| read(bytes, record::run)),
    ("request", |bytes| read(bytes, request::run)),
    ("signed_url", |bytes| read(bytes, signed_url::run)),
];

/// Makes the target's input of the bytes. Bytes that make none are not kept.
fn read<'a, I: Arbitrary<'a>>(bytes: &'a [u8], run: impl FnOnce(I)) -> bool {
    if bytes.len() < I::size_hint(0).0 {
        return false;
    }
    let input = I::arbitrary_take_rest(Unstructured::new(bytes));
    input.map(run).is_ok()
}
