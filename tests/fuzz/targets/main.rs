//! All targets in one program, so that the broker is instrumented and linked once. FUZZ_TARGET names the one that runs.
#![no_main]

use std::{env, sync::LazyLock};

use libfuzzer_sys::{Corpus, fuzz_target};

mod all;

static TARGET: LazyLock<all::Target> = LazyLock::new(|| {
    let name = env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    let known = all::TARGETS.iter().find(|(known, _)| *known == name);
    known
        .unwrap_or_else(|| panic!("there is no target {name}"))
        .1
});

fuzz_target!(|bytes: &[u8]| -> Corpus {
    if TARGET(bytes) {
        Corpus::Keep
    } else {
        Corpus::Reject
    }
});
