//! HTTP/2 as frames on a socket, for behaviour that no client library has.

use std::net::SocketAddr;

use blobcast::wire::service::event_service_server::SERVICE_NAME;
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::within;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;
const INITIAL_WINDOW_SIZE: u8 = 4;

/// One connection. It answers nothing by itself.
pub(super) struct Frames {
    stream: TcpStream,
    read: Vec<u8>,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frames {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address))
            .await
            .unwrap();
        Self::begin(stream, &[]).await
    }

    /// One that reads the heads of answers, and takes nothing of their bodies.
    pub(super) async fn without_window(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address))
            .await
            .unwrap();
        Self::begin(stream, &[0, INITIAL_WINDOW_SIZE, 0, 0, 0, 0]).await
    }

    async fn begin(stream: TcpStream, settings: &[u8]) -> Self {
        let mut frames = Self {
            stream,
            read: Vec::new(),
        };
        // Whatever the server sends on its streams fits.
        let window = frame(WINDOW_UPDATE, 0, 0, (1_u32 << 30).to_be_bytes());
        assert!(
            frames
                .send([PREFACE, &frame(SETTINGS, 0, 0, settings), &window].concat())
                .await
        );
        frames
    }

    /// Sends all at once; false if the other side has closed.
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        within(
            "the other side to take bytes",
            self.stream.write_all(bytes.as_ref()),
        )
        .await
        .is_ok()
    }

    /// Waits for the other side's next ping; what answers it.
    pub(super) async fn pinged(&mut self) -> Vec<u8> {
        let ping = self
            .find(|frame| frame.kind == PING && frame.flags & ACK == 0)
            .await
            .expect("a ping");
        frame(PING, ACK, 0, ping.payload)
    }

    /// True if the other side answers a ping.
    pub(super) async fn is_answered(&mut self) -> bool {
        let ours = *b"are you?";
        self.send(frame(PING, 0, 0, ours)).await
            && self
                .find(|frame| {
                    frame.kind == PING && frame.flags & ACK == ACK && frame.payload == ours
                })
                .await
                .is_some()
    }

    /// The first message that comes on a stream.
    pub(super) async fn message<M: Message + Default>(&mut self, stream: u32) -> M {
        let data = self
            .find(|frame| frame.kind == DATA && frame.stream == stream)
            .await
            .expect("a message");
        M::decode(&data.payload[5..]).unwrap()
    }

    /// The next messages, on whichever streams they come.
    pub(super) async fn messages<M: Message + Default>(&mut self, count: usize) -> Vec<M> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let data = self
                .find(|frame| frame.kind == DATA && !frame.payload.is_empty())
                .await
                .expect("a message");
            messages.push(M::decode(&data.payload[5..]).unwrap());
        }
        messages
    }

    /// Waits until so many answers have begun; of refusals that is all.
    pub(super) async fn hears(&mut self, count: usize) {
        for number in 0..count {
            let found = self.find(|frame| frame.kind == HEADERS).await;
            assert!(found.is_some(), "closed behind {number} of {count} answers");
        }
    }

    /// Waits until the other side has closed.
    pub(super) async fn closed(&mut self) {
        assert!(self.find(|_| false).await.is_none());
    }

    async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        // All in all: other frames may come for ever.
        within("a frame or the end", async {
            loop {
                let frame = self.next().await?;
                if wanted(&frame) {
                    return Some(frame);
                }
            }
        })
        .await
    }

    async fn next(&mut self) -> Option<Frame> {
        let length = loop {
            let length = self
                .read
                .first_chunk()
                .map(|&[a, b, c]| u32::from_be_bytes([0, a, b, c]) as usize);
            match length {
                Some(length) if self.read.len() >= 9 + length => break length,
                _ => {
                    let read = self.stream.read_buf(&mut self.read).await;
                    if read.is_err() || read.is_ok_and(|count| count == 0) {
                        return None;
                    }
                }
            }
        };
        let frame: Vec<_> = self.read.drain(..9 + length).collect();
        let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
        Some(Frame {
            kind: frame[3],
            flags: frame[4],
            stream,
            payload: frame[9..].to_vec(),
        })
    }
}

/// A whole call of the event service. Streams of clients have odd numbers, each above the one before.
pub(super) fn call(stream: u32, method: &str, request: &impl Message) -> Vec<u8> {
    let request = request.encode_to_vec();
    let length = u32::try_from(request.len()).unwrap().to_be_bytes();
    let message = [&[0], &length[..], &request].concat();
    [
        begun(stream, method),
        frame(DATA, END_STREAM, stream, message),
    ]
    .concat()
}

/// The head of a call whose request is still to come.
pub(super) fn begun(stream: u32, method: &str) -> Vec<u8> {
    begun_at(stream, &format!("/{SERVICE_NAME}/{method}"))
}

/// The same, of any service.
pub(super) fn begun_at(stream: u32, path: &str) -> Vec<u8> {
    begun_with(stream, path, b"")
}

/// The same, by a client that shows a token.
pub(super) fn begun_by(token: &str, stream: u32, path: &str) -> Vec<u8> {
    let bearer = format!("Bearer {token}");
    let length = u8::try_from(bearer.len()).unwrap();
    assert!(length < 127, "one byte of HPACK");
    begun_with(
        stream,
        path,
        &[&[0x0f, 0x08, length], bearer.as_bytes()].concat(),
    )
}

fn begun_with(stream: u32, path: &str, more: &[u8]) -> Vec<u8> {
    // Indices of HPACK's static table, and literals that are in no index.
    let mut headers = vec![0x83, 0x86];
    for (name, value) in [
        (&[0x04][..], path),
        (&[0x01], "test"),
        (&[0x0f, 0x10], "application/grpc"),
    ] {
        headers.extend(name);
        headers.push(u8::try_from(value.len()).unwrap());
        headers.extend(value.as_bytes());
    }
    headers.extend(b"\x00\x02te\x08trailers");
    headers.extend(more);
    frame(HEADERS, END_HEADERS, stream, headers)
}

/// The rest of a call whose head was sent: a request that says nothing.
pub(super) fn rest(stream: u32) -> Vec<u8> {
    frame(DATA, END_STREAM, stream, [0; 5])
}

/// A request that says more than it may.
pub(super) fn bytes(stream: u32, count: usize) -> Vec<u8> {
    frame(DATA, 0, stream, vec![0; count])
}

/// A whole message, with more to come.
pub(super) fn message(stream: u32, message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    frame(DATA, 0, stream, [&[0], &length[..], &message].concat())
}

/// The end of a call that nobody waits for any more.
pub(super) fn cancel(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, CANCEL.to_be_bytes())
}

fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}
