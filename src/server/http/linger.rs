//! Closing a connection so that its last answer arrives: a socket that is closed with unread data resets the connection, and the
//! answer is lost.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// How much a closing connection reads on: most senders look for an answer only when they have sent everything.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// Ends the sending side, and reads and drops what the client still sends, for `patience` at most.
pub(super) async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, patience: Duration) {
    let mut discard = async || -> io::Result<()> {
        stream.shutdown().await?;

        let mut buffer = [0; 4096];
        let mut left = BYTES_MAX;
        while left > 0 {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        Ok(())
    };
    // Either way the connection is over.
    let _ = timeout(patience, discard()).await.is_ok();
}
