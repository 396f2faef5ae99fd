//! Connections of the gRPC listener: taken in one by one, handed to tonic when they have said that they speak HTTP/2.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use prometheus::IntCounterVec;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{admission::ConnectionLimits, corked::Corked};
use crate::{
    config,
    metrics::Metrics,
    rpc,
    server::{
        net::{
            self, Entrance, Opened, PREFACE, Refused, Share, Stream,
            places::{Counted, Patience, Place, Places, Standing},
        },
        usize_of,
    },
};

/// Connections that are open and not yet taken by tonic.
const HANDED_ON_MAX: usize = 16;

/// How long a connection may go without a call that was let in, before it has to give way to a new one: a client calls as soon as
/// it is connected, also over a bad line.
const PATIENCE: Patience =
    Patience { with_strangers: Some(Duration::from_secs(10)), with_clients: Some(Duration::from_secs(10)) };

/// What the listener counts.
#[derive(Clone, Debug)]
pub(in crate::server) struct Counters {
    places: Counted,
    /// Connections that were not let in, by listener and cause.
    refused: IntCounterVec,
}

impl Counters {
    pub(in crate::server) fn new(metrics: &Metrics) -> Self {
        Self { places: Counted::of("grpc", metrics), refused: metrics.connections_refused.clone() }
    }

    fn refused(&self, refused: &Refused) {
        self.refused.with_label_values(&["grpc", refused.cause()]).inc();
    }
}

pub(super) type Incoming = mpsc::Receiver<io::Result<Connection>>;

/// Where connections come out, and what takes them in until `stop`.
pub(super) fn incoming(
    listener: TcpListener,
    entrance: Entrance,
    config: config::Grpc,
    counters: Counters,
    stop: CancellationToken,
) -> (Incoming, impl Future<Output = ()>) {
    let (sender, incoming) = mpsc::channel(HANDED_ON_MAX);
    let accepting = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(listener, entrance, sender, config, counters) => {}
        }
    };
    (incoming, accepting)
}

/// Takes connections in while there is room, or room can be made; the rest waits in the kernel's queue.
async fn accept(
    listener: TcpListener,
    entrance: Entrance,
    sender: mpsc::Sender<io::Result<Connection>>,
    config: config::Grpc,
    counters: Counters,
) {
    let places = Places::new(usize_of(config.connections_max), PATIENCE, counters.places.clone());
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                net::accept_failed(&error).await;
                continue;
            }
        };
        // Before the place: an address that has its share is not to wait for one in front of others.
        let share = match entrance.share(address) {
            Ok(share) => share,
            Err(refused) => {
                counters.refused(&refused);
                continue;
            }
        };
        let place = places.take().await;
        // Events are wanted now, not when a packet is full. One that is gone already will be noticed by its reader.
        let _ = stream.set_nodelay(true).is_ok();

        let limits = ConnectionLimits::new(usize_of(config.inflight_bytes_max), usize_of(config.request_bytes_max));
        let (entrance, sender, counters) = (entrance.clone(), sender.clone(), counters.clone());
        tokio::spawn(async move {
            let opened = tokio::select! {
                opened = entrance.open(stream, address, share) => opened,
                () = place.standing().until_shed() => return,
            };
            match opened {
                // Nobody to hand it to if the listener is going away.
                Ok(opened) => drop(sender.send(Ok(Connection::new(opened, place, limits))).await.is_ok()),
                Err(refused) => counters.refused(&refused),
            }
        });
    }
}

/// Where a call comes from; part of each request.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub peer: rpc::Peer,
    pub standing: Arc<Standing>,
    pub limits: ConnectionLimits,
}

/// A connection whose preface was read to see that it comes, and is read again by whom it is for. It breaks off when it has to
/// give way to another one.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Corked<Stream>,
    origin: Origin,
    replayed: usize,
    /// Who is woken when it has to give way.
    registered: Option<Waker>,
    _held: (Place, Option<Share>),
}

impl Connection {
    fn new(opened: Opened, place: Place, limits: ConnectionLimits) -> Self {
        let peer = rpc::Peer { address: opened.client, certificate: opened.certificate.clone() };
        let origin = Origin { peer, standing: Arc::clone(place.standing()), limits };
        let (stream, share) = opened.into_parts();
        Self { stream: Corked::new(stream), origin, replayed: 0, registered: None, _held: (place, share) }
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
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
        let Self { origin, registered, .. } = &mut *self;
        if origin.standing.poll_shed(cx, registered).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        ready!(origin.limits.backlog.poll_room(cx));
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
