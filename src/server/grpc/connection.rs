//! Connections of the gRPC listener: accepted one by one, and handed to tonic when HTTP/2's preface has arrived. Those of HTTP/1.1 are
//! served beside it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::Connected;

use super::{backlog::Turn, corked::Corked, http1::Http1, origin::Origin};
use crate::server::net::{
    Acceptor, Counters, Entrance, Floods, Opened, PREFACE, Protocol, Share, Stream,
    places::{Patience, Place},
};

/// Connections that are open and that tonic has not taken yet.
const HANDED_ON_MAX: usize = 16;

/// How long a connection may be without a call that was let in before it gives way to a new one. A client calls as soon as it is
/// connected, also over a bad line.
const PATIENCE: Patience = Patience {
    unauthenticated: Some(Duration::from_secs(10)),
    authenticated: Some(Duration::from_secs(10)),
};

pub(super) type Incoming = mpsc::Receiver<io::Result<Connection>>;

/// Opened connections, and what accepts them until `stop`.
pub(super) fn incoming(
    listener: TcpListener,
    entrance: Entrance,
    connections_max: usize,
    counters: Counters,
    http1: Http1,
    stop: CancellationToken,
) -> (Incoming, impl Future<Output = ()>) {
    let (sender, incoming) = mpsc::channel(HANDED_ON_MAX);
    let acceptor = Acceptor::new(listener, entrance, connections_max, PATIENCE, &counters);
    let accepting = accept(acceptor, sender, counters.floods, http1, stop);
    (incoming, accepting)
}

/// Accepts connections while there is a place for them, or one can be freed; later ones wait in the kernel's queue.
async fn accept(
    acceptor: Acceptor,
    sender: mpsc::Sender<io::Result<Connection>>,
    floods: Floods,
    http1: Http1,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    while let Some(arrival) = acceptor.next(&stop).await {
        let place = tokio::select! {
            () = stop.cancelled() => return,
            place = acceptor.places().take() => place,
        };

        let (sender, floods, http1) = (sender.clone(), floods.clone(), http1.clone());
        connections.spawn(async move {
            let opened = tokio::select! {
                opened = arrival.open(&place) => opened,
                () = http1.stop.cancelled() => None,
            };
            let Some(opened) = opened else {
                return;
            };
            if opened.protocol == Protocol::Http1 {
                // On the heap: HTTP/2 needs no room for this.
                return Box::pin(http1.serve(opened, &place)).await;
            }
            let connection = Connection::new(opened, place, floods);
            // If the listener is going away, the connection is not taken, and is closed here.
            let _ = sender.send(Ok(connection)).await.is_ok();
        });
    }

    // Tonic waits for its connections when no more can come.
    drop((acceptor, sender));
    connections.close();
    connections.wait().await;
}

/// A connection on which the preface has arrived. It is replayed to tonic, which reads it again. Reads fail once the connection has to
/// give its place to another one.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Corked<Stream>,
    origin: Origin,
    replayed: usize,
    turn: Turn,
    /// The waker for when it has to give way.
    registered: Option<Waker>,
    floods: Floods,
    /// Whether its end was looked at.
    has_ended: bool,
    _held: (Place, Option<Share>),
}

impl Connection {
    fn new(opened: Opened, place: Place, floods: Floods) -> Self {
        let origin = Origin::of(&opened, &place);
        let (stream, share) = opened.into_parts();
        Self {
            stream: Corked::new(stream),
            origin,
            replayed: 0,
            turn: Turn::default(),
            registered: None,
            floods,
            has_ended: false,
            _held: (place, share),
        }
    }

    /// Counts and logs a connection that h2 ends as a flood.
    fn note_flood(&mut self) {
        if !std::mem::replace(&mut self.has_ended, true) && ends_with_calm(self.stream.unsent()) {
            self.floods.note(self.origin.peer.address.ip());
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &PREFACE[self.replayed..];
        if !rest.is_empty() {
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            self.replayed += count;
            return Poll::Ready(Ok(()));
        }

        let Self {
            stream,
            origin,
            turn,
            registered,
            ..
        } = &mut *self;
        if origin.standing.poll_shed(cx, registered).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }

        ready!(turn.poll_room(origin.waiting.backlog(), cx));
        let before = buf.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buf))?;
        turn.has_read(buf.filled().len() - before);
        origin.peer.heard.note();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.note_flood();
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Whether the last frame that is sent is GOAWAY with ENHANCE_YOUR_CALM (RFC 9113, sections 6.8 and 7). That is how h2 ends what it
/// takes for a flood; it reports that to its peer only.
fn ends_with_calm(sent: &[u8]) -> bool {
    const KIND: u8 = 7;
    const CALM: [u8; 4] = [0, 0, 0, 11];
    const HEAD_BYTES: usize = 9;
    const DEBUG_BYTES_MAX: usize = 64; // h2 names the cause in a word or two

    let shortest = HEAD_BYTES + 8;
    let longest = sent.len().min(shortest + DEBUG_BYTES_MAX);
    (shortest..=longest).any(|length| {
        let frame = &sent[sent.len() - length..];
        let payload = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
        payload + HEAD_BYTES == length
            && frame[3..HEAD_BYTES] == [KIND, 0, 0, 0, 0, 0]
            && frame[13..17] == CALM
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_ends_as_a_flood_is_distinguished_from_others() {
        let goaway = |code: u8, debug: &[u8]| {
            let length = u8::try_from(8 + debug.len()).unwrap();
            [
                &[0, 0, length, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, code],
                debug,
            ]
            .concat()
        };
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        for debug in [&b""[..], b"too_many_resets", &[b'x'; 64]] {
            assert!(ends_with_calm(&goaway(11, debug)));
            assert!(ends_with_calm(&[&ping, &goaway(11, debug)[..]].concat()));
            assert!(!ends_with_calm(&goaway(0, debug)), "it is only over");
            assert!(
                !ends_with_calm(&[&goaway(11, debug)[..], &ping].concat()),
                "something came behind it"
            );
        }
        assert!(!ends_with_calm(b"") && !ends_with_calm(&ping));
    }
}
