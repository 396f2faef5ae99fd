//! A broker process, a vendor who posts to it, and clients who read: so that a test reads as what it proves.
//!
//! Nothing here sleeps to wait for something to happen: every wait is for a condition, with a limit that only a broken broker
//! reaches.

#![allow(dead_code, reason = "each module uses its part of the fixture")]

mod authority;
mod client;
mod collector;
mod command;
mod credentials;
mod endpoint;
mod grpc;
mod library;
mod server;
mod vendor;
mod watchdog;

use std::{fs, path::Path, time::Duration};

pub use authority::{Authority, Issued, replace};
pub use client::{AsObserved, Seen, Sub, reason, request, tasks};
pub use collector::{Collector, Manner, Span, SpanKind, StatusCode, attribute, hex};
pub use command::{Cli, Ran, Running, fatal, free_address};
pub use credentials::CredentialsFile;
pub use endpoint::Endpoint;
pub use grpc::*;
pub use library::{Node, draft, node, stored};
pub use server::{ANY_PORT, Options, Server};
#[allow(unused_imports, reason = "each module uses its part of the fixture")]
pub use vendor::{Answer, Http, completed, failed, processing, with};

/// Longest wait for anything. Far more than a loaded machine needs; reaching it means that it will never happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `work`, or says what was waited for.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Asks until the answer is yes.
pub async fn until(what: &str, mut asked: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !asked().await {
            tokio::time::sleep(Duration::from_millis(5)).await; // between two questions, not instead of one
        }
    })
    .await;
}

/// Whether a text is anywhere in the files below a directory, as it is. A file that goes meanwhile has nothing any more.
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
