//! The first bytes of a connection that has to speak HTTP/2. A client that speaks HTTP/1.1 gets an answer that says so, instead of a
//! reset.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::trace::{REQUEST_ID, RequestId};

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
pub(in crate::server) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const MESSAGE: &str = "this is blobcast's gRPC listener, which speaks HTTP/2 only: use a gRPC client; callbacks go to the ingest \
                       listener\n";
/// How long and how much of a request in HTTP/1.1 is read after the answer: a socket that is closed with unread bytes resets the
/// connection, and the answer is lost.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 * 1024;

/// Reads the preface. Anything else is an error; a request in HTTP/1.1 is answered first.
pub(super) async fn read(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let (mut read, mut count) = ([0; PREFACE.len()], 0);
    while count < read.len() {
        match stream.read(&mut read[count..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => count += more,
        }
        // Compared byte by byte: the shortest request in HTTP/1.1 is shorter than the preface.
        if read[..count] != PREFACE[..count] {
            if read[..count].is_ascii() && read[0].is_ascii_uppercase() {
                let _ = timeout(LINGER, answer(stream)).await.is_ok();
            }
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(())
}

async fn answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 426 Upgrade Required\r\nupgrade: HTTP/2.0\r\nconnection: upgrade, close\r\n{REQUEST_ID}: {}\r\n\
         content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n{MESSAGE}",
        RequestId::new(),
        MESSAGE.len(),
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink())
        .await
        .map(|_| ())
}
