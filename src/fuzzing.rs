//! The door for the targets in `tests/fuzz`: pure readers that are nobody else's business. Exists with `cfg(fuzzing)` only.

use std::{
    io::{self, Read},
    net::SocketAddr,
};

use tokio::io::AsyncRead;

use crate::{
    rpc::page,
    server::net::proxy,
    store::{BackupSummary, RestoreError, check_backup},
    wire::Malformed,
};

/// Reads a PROXY header from the front of a connection of `peer`.
pub async fn read_proxy_header(
    stream: &mut (impl AsyncRead + Unpin),
    peer: SocketAddr,
) -> io::Result<SocketAddr> {
    proxy::read(stream, peer).await
}

/// The page token that continues behind `place`.
pub fn page_token(place: u64, binding: u64) -> String {
    page::token(place, binding)
}

/// The place that a page token names.
pub fn page_place(token: &str, binding: u64, last: u64) -> Result<Option<u64>, Malformed> {
    page::place(token, binding, last)
}

/// Reads a backup to its end, and restores nothing.
pub fn read_backup(backup: impl Read) -> Result<BackupSummary, RestoreError> {
    check_backup(backup)
}
