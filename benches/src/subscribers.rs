//! Streams of `EventService.Subscribe` that look at each event's bytes and decode nothing: a client as cheap as one can be.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Buf;
use futures_util::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder, Streaming},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

use crate::wire::SubscribeRequest;

const SUBSCRIBE: &str = "/blobcast.v1.EventService/Subscribe";
/// What `SubscribeResponse` begins with if it holds an event, or says that the stream is live: key of the field.
const EVENT: u8 = 2 << 3 | 2;
const CAUGHT_UP: u8 = 3 << 3 | 2;
/// A stream may have so much under way; below, the round trips of window updates would be measured.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// First buffer of a stream: waiting ones are many.
const BUFFER_BYTES: usize = 512;
/// Streams of one connection that are opened at once.
const OPENING_MAX: usize = 128;
/// Time for streams to become live: a million on one machine take theirs.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is done with the bytes of an event that one of the subscriptions has received.
pub trait OnEvent: Fn(usize, &[u8]) + Clone + Send + Sync + 'static {}
impl<F: Fn(usize, &[u8]) + Clone + Send + Sync + 'static> OnEvent for F {}

/// Open streams; closed when dropped.
#[derive(Debug)]
pub struct Subscribers {
    live: Arc<AtomicUsize>,
    count: usize,
    tasks: JoinSet<Result<(), Status>>,
    /// Streams that are open and never read.
    stalled: Vec<Streaming<()>>,
}

/// How many, and where.
#[derive(Clone, Copy, Debug)]
pub struct Seats {
    /// The server.
    pub grpc: SocketAddr,
    /// TCP connections.
    pub connections: usize,
    /// Streams on each of them.
    pub per_connection: usize,
    /// Further ones on each of them, which are never read.
    pub stalled_per_connection: usize,
}

impl Seats {
    /// Streams that are all read.
    pub fn new(grpc: SocketAddr, connections: usize, per_connection: usize) -> Self {
        Self {
            grpc,
            connections,
            per_connection,
            stalled_per_connection: 0,
        }
    }

    /// How many are read.
    pub fn count(&self) -> usize {
        self.connections * self.per_connection
    }
}

impl Subscribers {
    /// Opens all streams, and waits until those that are read are live; they are numbered from 0.
    pub async fn open(
        seats: Seats,
        request: impl Fn(usize) -> SubscribeRequest,
        on_event: impl OnEvent,
    ) -> Result<Self> {
        let live = Arc::<AtomicUsize>::default();
        let mut this = Self {
            live: Arc::clone(&live),
            count: seats.count(),
            tasks: JoinSet::new(),
            stalled: Vec::new(),
        };
        for connection in 0..seats.connections {
            let channel = connect(seats.grpc).await?;
            let open = |number| subscribe(&channel, number, request(number), &live, &on_event);
            let first = connection * seats.per_connection;
            let mut opened = stream::iter(first..first + seats.per_connection)
                .map(open)
                .buffer_unordered(OPENING_MAX);
            while let Some(stream) = opened.try_next().await? {
                this.tasks.spawn(read(stream));
            }
            for _ in 0..seats.stalled_per_connection {
                // A stream that is not read shows no event, so its number does not matter.
                this.stalled.push(open(first).await?);
            }
        }
        this.all_live().await?;
        Ok(this)
    }

    async fn all_live(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.live.load(Ordering::Relaxed) < self.count {
            ensure!(
                Instant::now() < deadline,
                "only {:?} of {} streams are live",
                self.live,
                self.count
            );
            if let Some(ended) = self.tasks.try_join_next() {
                ended?.context("a stream was refused")?;
            }
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

/// A connection with wide windows.
pub async fn connect(grpc: SocketAddr) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{grpc}"))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true);
    Ok(endpoint.connect().await?)
}

async fn subscribe(
    channel: &Channel,
    number: usize,
    request: SubscribeRequest,
    live: &Arc<AtomicUsize>,
    on_event: &impl OnEvent,
) -> Result<Streaming<()>> {
    let codec = Looking {
        number,
        live: Arc::clone(live),
        on_event: on_event.clone(),
    };
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    let path = PathAndQuery::from_static(SUBSCRIBE);
    Ok(client
        .server_streaming(Request::new(request), path, codec)
        .await?
        .into_inner())
}

async fn read(mut stream: Streaming<()>) -> Result<(), Status> {
    while stream.message().await?.is_some() {}
    Ok(())
}

/// Encodes requests, and shows the bytes of events where they are.
#[derive(Clone)]
struct Looking<F> {
    number: usize,
    live: Arc<AtomicUsize>,
    on_event: F,
}

impl<F: OnEvent> Codec for Looking<F> {
    type Encode = SubscribeRequest;
    type Decode = ();
    type Encoder = Requests;
    type Decoder = Self;

    fn encoder(&mut self) -> Requests {
        Requests
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl<F: OnEvent> Decoder for Looking<F> {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        match buf.chunk().first() {
            Some(&EVENT) => (self.on_event)(self.number, buf.chunk()),
            Some(&CAUGHT_UP) => {
                self.live.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        buf.advance(buf.remaining());
        Ok(Some(()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}

/// Encodes requests.
struct Requests;

impl Encoder for Requests {
    type Item = SubscribeRequest;
    type Error = Status;

    fn encode(&mut self, item: SubscribeRequest, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buf)
            .map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}
