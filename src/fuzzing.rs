//! Opens parsers that are private to the crate to the fuzz targets in `tests/fuzz`. No release has it: it is compiled with debug
//! assertions only.

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

/// Reads a PROXY protocol header from the beginning of a connection from `peer`.
pub async fn read_proxy_header(
    stream: &mut (impl AsyncRead + Unpin),
    peer: SocketAddr,
) -> io::Result<SocketAddr> {
    proxy::read(stream, peer).await
}

/// The page token that continues after `place`.
pub fn page_token(place: u64, binding: u64) -> String {
    page::token(place, binding)
}

/// Reads a page token.
pub fn page_place(token: &str, binding: u64, last: u64) -> Result<Option<u64>, Malformed> {
    page::place(token, binding, last)
}

/// Reads a whole backup without restoring it.
pub fn read_backup(backup: impl Read) -> Result<BackupSummary, RestoreError> {
    check_backup(backup)
}
