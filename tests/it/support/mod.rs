//! The fixture: a broker process, a vendor that posts to it, and clients that read from it.
//!
//! Never sleeps in place of waiting: every wait is for a condition, with a limit that only a broken
//! broker reaches.

#![allow(dead_code, reason = "each module uses its part of the fixture")]

mod authority;
mod client;
mod cluster;
mod collector;
mod command;
mod credentials;
mod endpoint;
mod grpc;
mod library;
mod nats;
mod process;
mod reconciling;
mod server;
mod vendor;
mod watchdog;

use std::{fs, path::Path, time::Duration};

pub use authority::{Authority, Issued, replace};
pub use client::{AsObserved, Seen, Sub, reason, request, tasks};
pub use collector::{Collector, Manner, Span, SpanKind, StatusCode, attribute, hex};
pub use command::{Cli, Ran, Running, fatal};
pub use credentials::CredentialsFile;
pub use endpoint::Endpoint;
pub use grpc::*;
pub use library::{Node, draft, jetstream, node, stored};
pub use nats::{NatsNode, NatsOptions, NatsServer, nats_server, nats_settings};
pub use process::free_address;
pub use reconciling::{
    VENDOR_KEY, VendorCase, events_of, expect, expectation, is_recovered, key_line, recovers,
    wait_task,
};
pub use server::{ANY_PORT, Options, Server};
#[allow(unused_imports, reason = "each module uses its part of the fixture")]
pub use vendor::{Answer, Http, completed, failed, processing, with};

/// Longest wait for anything: far longer than a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `work`; panics with `what` after [`PATIENCE`].
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Polls a condition until it is true; panics with `what` after [`PATIENCE`].
pub async fn until(what: &str, mut asked: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !asked().await {
            tokio::time::sleep(Duration::from_millis(5)).await; // between two polls
        }
    })
    .await;
}

/// Whether a file below a directory contains a text. Files that are removed meanwhile are skipped.
pub fn is_on_disk(directory: &Path, text: &str) -> bool {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map_while(Result::ok).any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return is_on_disk(&path, text);
        }

        let bytes = fs::read(path).unwrap_or_default();
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    })
}
