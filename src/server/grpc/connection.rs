//! Connections of the gRPC listener: taken in one by one, handed to tonic when they have said that they speak HTTP/2.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use prometheus::{IntCounterVec, IntGauge};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::corked::Corked;
use crate::{
    rpc,
    server::net::{self, Entrance, Opened, PREFACE, Share, Stream},
};

/// Connections that are open and not yet taken by tonic.
const HANDED_ON_MAX: usize = 16;

/// What the listener counts.
#[derive(Clone, Debug)]
pub(in crate::server) struct Counters {
    /// Connections, from their accept on.
    pub open: IntGauge,
    /// Those that were not let in, by listener and cause.
    pub refused: IntCounterVec,
}

pub(super) type Incoming = mpsc::Receiver<io::Result<Connection>>;

/// Where connections come out, and what takes them in until `stop`.
pub(super) fn incoming(
    listener: TcpListener,
    entrance: Entrance,
    connections_max: usize,
    counters: Counters,
    stop: CancellationToken,
) -> (Incoming, impl Future<Output = ()>) {
    let (sender, incoming) = mpsc::channel(HANDED_ON_MAX);
    let accepting = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(listener, entrance, sender, connections_max, counters) => {}
        }
    };
    (incoming, accepting)
}

/// Takes connections in while there is room; the rest waits in the kernel's queue.
async fn accept(
    listener: TcpListener,
    entrance: Entrance,
    sender: mpsc::Sender<io::Result<Connection>>,
    connections_max: usize,
    counters: Counters,
) {
    let slots = Arc::new(Semaphore::new(connections_max));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                net::accept_failed(&error).await;
                continue;
            }
        };
        // Events are wanted now, not when a packet is full. One that is gone already will be noticed by its reader.
        let _ = stream.set_nodelay(true).is_ok();
        let open = Open::new(slot, counters.open.clone());
        let (entrance, sender, counters) = (entrance.clone(), sender.clone(), counters.clone());
        tokio::spawn(async move {
            match entrance.open(stream, address).await {
                // Nobody to hand it to if the listener is going away.
                Ok(opened) => drop(sender.send(Ok(Connection::new(opened, open))).await.is_ok()),
                Err(refused) => counters.refused.with_label_values(&["grpc", refused.cause()]).inc(),
            }
        });
    }
}

/// A place among the connections; given back when dropped.
#[derive(Debug)]
struct Open {
    count: IntGauge,
    _slot: OwnedSemaphorePermit,
}

impl Open {
    fn new(slot: OwnedSemaphorePermit, count: IntGauge) -> Self {
        count.inc();
        Self { count, _slot: slot }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.dec();
    }
}

/// A connection whose preface was read to see that it comes, and is read again by whom it is for.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Corked<Stream>,
    peer: rpc::Peer,
    replayed: usize,
    _held: (Open, Option<Share>),
}

impl Connection {
    fn new(opened: Opened, open: Open) -> Self {
        let peer = rpc::Peer { address: opened.client, certificate_names: Arc::clone(&opened.certificate_names) };
        let (stream, share) = opened.into_parts();
        Self { stream: Corked::new(stream), peer, replayed: 0, _held: (open, share) }
    }
}

impl Connected for Connection {
    type ConnectInfo = rpc::Peer;

    fn connect_info(&self) -> rpc::Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &PREFACE[self.replayed..];
        if !rest.is_empty() {
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            self.replayed += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
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
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
