//! All targets in one program, so that the broker is instrumented and linked once. FUZZ_TARGET names the one that runs.
#![no_main]

use std::{env, sync::LazyLock};

use libfuzzer_sys::{
    Corpus,
    arbitrary::{Arbitrary, Unstructured},
    fuzz_target,
};

mod address;
mod backup;
mod config;
mod credentials;
mod cursor;
mod frame;
mod payload;
mod proxy;
mod query;
mod record;
mod request;
mod signed_url;

static TARGET: LazyLock<fn(&[u8]) -> Corpus> = LazyLock::new(|| {
    let name = env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    match name.as_str() {
        "address" => |bytes| read(bytes, address::run),
        "backup" => |bytes| read(bytes, backup::run),
        "config" => |bytes| read(bytes, config::run),
        "credentials" => |bytes| read(bytes, credentials::run),
        "cursor" => |bytes| read(bytes, cursor::run),
        "frame" => |bytes| read(bytes, frame::run),
        "payload" => |bytes| read(bytes, payload::run),
        "proxy" => |bytes| read(bytes, proxy::run),
        "query" => |bytes| read(bytes, query::run),
        "record" => |bytes| read(bytes, record::run),
        "request" => |bytes| read(bytes, request::run),
        "signed_url" => |bytes| read(bytes, signed_url::run),
        _ => panic!("there is no target {name}"),
    }
});

fuzz_target!(|bytes: &[u8]| -> Corpus { TARGET(bytes) });

/// Makes the target's input of the bytes. Bytes that make none are not kept.
fn read<'a, I: Arbitrary<'a>>(bytes: &'a [u8], run: impl FnOnce(I)) -> Corpus {
    if bytes.len() < I::size_hint(0).0 {
        return Corpus::Reject;
    }
    match I::arbitrary_take_rest(Unstructured::new(bytes)) {
        Ok(input) => {
            run(input);
            Corpus::Keep
        }
        Err(_) => Corpus::Reject,
    }
}
