//! HTTP as bytes on a socket, for requests that no client library would send.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::support::within;

/// One connection.
pub(super) struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Reply {
    /// A header's value; empty if there is none.
    pub(super) fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map_or("", |(_, value)| value)
    }

    pub(super) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }

    pub(super) fn reason(&self) -> String {
        self.json()["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }
}

impl Raw {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        within("a connection", Self::try_connect(address))
            .await
            .unwrap()
    }

    pub(super) async fn try_connect(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            stream: TcpStream::connect(address).await?,
            read: Vec::new(),
        })
    }

    /// Sends; the other side may have stopped to listen, which its answer will tell.
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within(
            "the other side to take bytes",
            self.stream.write_all(bytes.as_ref()),
        )
        .await
        .is_ok();
    }

    /// Sends all of it, or says why not.
    pub(super) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Sends no more, but listens on.
    pub(super) async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    pub(super) async fn reply(&mut self) -> Reply {
        self.try_reply()
            .await
            .unwrap_or_else(|| panic!("closed behind {:?}", String::from_utf8_lossy(&self.read)))
    }

    /// `None` if the connection ends before a whole answer.
    pub(super) async fn try_reply(&mut self) -> Option<Reply> {
        self.try_reply_to("POST").await
    }

    pub(super) async fn try_reply_to(&mut self, method: &str) -> Option<Reply> {
        let head_length = loop {
            match self
                .read
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                Some(place) => break place + 4,
                None => self.more().await?,
            }
        };
        let head = String::from_utf8(self.read[..head_length].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut reply = Reply {
            status,
            head,
            body: String::new(),
        };
        // Neither has a body, whatever length is announced.
        let length = match (method, status) {
            ("HEAD", _) | (_, 100) => 0,
            _ => reply.header("content-length").parse().unwrap(),
        };
        while self.read.len() < head_length + length {
            self.more().await?;
        }
        // Only now, so that a caller may stop to wait, and ask again.
        self.read.drain(..head_length);
        reply.body = String::from_utf8(self.read.drain(..length).collect()).unwrap();
        Some(reply)
    }

    /// Sends a byte every now and then until there is an answer.
    pub(super) async fn trickle(&mut self) -> Reply {
        within("the other side to lose its patience", async {
            loop {
                tokio::select! {
                    reply = self.try_reply() => return reply.expect("an answer"),
                    () = sleep(Duration::from_millis(10)) => {}
                }
                self.send("a").await;
            }
        })
        .await
    }

    async fn more(&mut self) -> Option<()> {
        match within("bytes or the end", self.stream.read_buf(&mut self.read)).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }

    /// Waits until the other side has closed; panics if it says anything more.
    pub(super) async fn closed(&mut self) {
        assert!(
            self.more().await.is_none(),
            "more: {:?}",
            String::from_utf8_lossy(&self.read)
        );
        assert_eq!(self.read, b"");
    }
}

/// A POST of `body` with its length.
pub(super) fn post(target: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut request = head(
        target,
        &format!("{headers}content-length: {}\r\n", body.len()),
    );
    request.extend_from_slice(body);
    request
}

/// The head of a POST.
pub(super) fn head(target: &str, headers: &str) -> Vec<u8> {
    format!("POST {target} HTTP/1.1\r\nhost: test\r\n{headers}\r\n").into_bytes()
}

/// A body in chunks of at most `size`, with its end.
pub(super) fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut chunks = Vec::new();
    for chunk in body.chunks(size) {
        chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunks.extend_from_slice(chunk);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    chunks
}
