//! A connection with or without TLS, as one type. It yields to other tasks after each turn, and it is not read while its peer does not
//! take what is written.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::{
        set_socket_keepalive, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout,
    },
};
use tokio::time::Instant;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

/// Bytes that are read before other tasks have their turn: room for a thousand frames. HTTP/2 reads as long as there is something to
/// read. Without this limit a few connections full of small frames hold every worker for seconds.
const TURN_BYTES: usize = 16 * 1024;

/// How often a peer is looked for on a connection where nothing moves, if it may have left.
pub(in crate::server) const LOOK: Duration = Duration::from_secs(5);

/// See the module's description.
#[derive(Debug)]
pub(in crate::server) struct Stream {
    kind: Kind,
    /// Bytes that were read to tell the protocol, and are read again.
    unread: Vec<u8>,
    /// Read in this turn.
    read_bytes: usize,
    /// The peer has taken nothing of the last write. A peer that keeps sending requests and reads no answer would fill the memory with
    /// answers; refusals need no credential. As soon as it reads, its requests are read again.
    is_blocked: bool,
    /// When something moved last, or the peer was looked for; `None` if its end is noticed by reading.
    moved: Option<Instant>,
}

#[derive(Debug)]
enum Kind {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self {
            kind: Kind::Plain(stream),
            unread: Vec::new(),
            read_bytes: 0,
            is_blocked: false,
            moved: None,
        }
    }
}

impl From<TlsStream<TcpStream>> for Stream {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Self {
            kind: Kind::Tls(Box::new(stream)),
            unread: Vec::new(),
            read_bytes: 0,
            is_blocked: false,
            moved: None,
        }
    }
}

impl Stream {
    /// The protocol that ALPN has agreed on.
    pub(in crate::server) fn alpn(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Plain(_) => None,
            Kind::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// Puts back what was read first, so that it is read again.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.unread = bytes.to_vec();
    }

    /// Ends the connection if the peer leaves while an answer is waited for. A reader would notice that only if nothing lay unread
    /// before the end. A peer that has vanished is asked for by the kernel after each `interval` in which nothing moves; it has left
    /// when it has acknowledged nothing for so long as `patience`.
    pub(in crate::server) fn end_if_left(&mut self, interval: Duration, patience: Duration) {
        self.moved = Some(Instant::now());
        let socket = self.socket();
        let millis = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        let seconds = interval.max(Duration::from_secs(1));
        // Without these the peer is given up later, by the kernel's own patience.
        let _ = set_tcp_user_timeout(socket, millis)
            .and_then(|()| set_tcp_keepidle(socket, seconds))
            .and_then(|()| set_tcp_keepintvl(socket, seconds))
            .and_then(|()| set_socket_keepalive(socket, true))
            .is_ok();
    }

    fn socket(&self) -> &TcpStream {
        match &self.kind {
            Kind::Plain(stream) => stream,
            Kind::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Fails if the peer has closed its side, and nothing has moved for a while.
    fn look_for_peer(&mut self) -> io::Result<()> {
        let Some(moved) = self.moved.filter(|moved| moved.elapsed() >= LOOK) else {
            return Ok(());
        };
        let mut looked = [PollFd::new(self.socket(), PollFlags::RDHUP)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let has_left = poll(&mut looked, Some(&at_once)).is_ok_and(|count| count > 0);
        self.moved = Some(moved + LOOK);
        if has_left {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }

    fn note_move(&mut self) {
        if let Some(moved) = &mut self.moved {
            *moved = Instant::now();
        }
    }

    /// Ready when the peer takes something.
    fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.kind {
            Kind::Plain(stream) => stream.poll_write_ready(cx),
            Kind::Tls(stream) => stream.get_ref().0.poll_write_ready(cx),
        }
    }
}

macro_rules! forward {
    ($self:ident, is_write: $is_write:literal, $stream:ident => $call:expr) => {{
        let this = $self.get_mut();
        let polled = match &mut this.kind {
            Kind::Plain($stream) => $call,
            Kind::Tls($stream) => $call,
        };
        // Plain TCP has nothing to flush, so a flush says nothing about the write before it.
        this.is_blocked = if $is_write {
            if polled.is_ready() {
                this.note_move();
            }
            polled.is_pending()
        } else {
            this.is_blocked || polled.is_pending()
        };
        polled
    }};
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unread.is_empty() {
            let count = this.unread.len().min(buf.remaining());
            buf.put_slice(&this.unread[..count]);
            this.unread.drain(..count);
            return Poll::Ready(Ok(()));
        }
        if this.is_blocked {
            ready!(this.poll_taken(cx))?;
            this.is_blocked = false;
        }
        if this.read_bytes >= TURN_BYTES {
            this.read_bytes = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let polled = match &mut this.kind {
            Kind::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if polled.is_ready() {
            this.note_move();
        }
        this.read_bytes = if polled.is_pending() {
            0
        } else {
            this.read_bytes + buf.filled().len() - before
        };
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self, is_write: true, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, is_write: true, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Plain(stream) => stream.is_write_vectored(),
            Kind::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.look_for_peer()?;
        forward!(self, is_write: false, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, is_write: false, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn a_client_that_takes_no_answer_is_read_again_when_it_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let mut stream = Stream::from(listener.accept().await.unwrap().0);
        client.write_all(b"asked").await.unwrap();
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).await.unwrap();

        // Until the kernel takes nothing more.
        let (answer, mut written) = (vec![0; 64 * 1024], 0);
        while let Ok(count) = timeout(Duration::from_millis(100), stream.write(&answer)).await {
            written += count.unwrap();
        }
        client.write_all(b"again").await.unwrap();
        let read = |stream: &mut Stream, cx: &mut Context<'_>| {
            Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut [0; 5]))
        };
        for _ in 0..100 {
            let polled = poll_fn(|cx| Poll::Ready(read(&mut stream, cx).is_pending())).await;
            assert!(polled, "it is listened to, though it listens to nothing");
            tokio::task::yield_now().await;
        }

        let taking = tokio::spawn(async move {
            let mut taken = vec![0; written];
            client.read_exact(&mut taken).await.unwrap();
            client
        });
        timeout(Duration::from_secs(60), stream.read_exact(&mut buffer))
            .await
            .expect("it is heard")
            .unwrap();
        assert_eq!(&buffer, b"again");
        drop(taking.await.unwrap());
    }
}
