//! The machine's own limit for fan-out: the bytes of deliveries over loopback connections, with nothing done to them.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::front;
use crate::{counters::Counters, report::Who};

/// The server of this file.
pub const LOOPBACK: Who = Who {
    name: "loopback",
    settings: "as many bytes as blobcast's deliveries have, without HTTP/2's headers, written and read in pieces of 64 KiB; no protocol, no callbacks, nothing kept",
};
/// Written and read at a time: fewer, and system calls are measured; more, and the processor's caches are.
const PIECE_BYTES: usize = 64 * 1024;

/// The server, as a process: writes to every connection as fast as its client reads.
pub async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    front::announce(&listener, &listener)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let piece = vec![b'x'; PIECE_BYTES];
            while stream.write_all(&piece).await.is_ok() {}
        });
    }
}

/// Reads everything on one connection for each counter, which counts the bytes. Ends when dropped.
pub async fn read(server: SocketAddr, received: &Counters) -> Result<JoinSet<()>> {
    let mut readers = JoinSet::new();
    for number in 0..received.len() {
        let (mut stream, received) = (TcpStream::connect(server).await?, Arc::clone(received));
        readers.spawn(async move {
            let mut piece = vec![0; PIECE_BYTES];
            while let Ok(bytes @ 1..) = stream.read(&mut piece).await {
                received[number].add(bytes as u64);
            }
        });
    }
    Ok(readers)
}
