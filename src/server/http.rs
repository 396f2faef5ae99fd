//! HTTP/1.1 on a listener, and HTTP/2 where TLS has agreed on it: bounded connections, headers, header time and time to take an
//! answer, and answers that arrive.
//!
//! An accept loop of our own, because the usual `serve` waits for ever for a first byte and takes any number of connections.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    http::{
        HeaderValue, Method, StatusCode,
        header::{CONNECTION, CONTENT_LENGTH},
    },
    response::{IntoResponse, Response},
};
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus::IntCounterVec;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use tokio_io_timeout::TimeoutStream;

use super::{
    net::{
        self, Entrance, Opened, Refused, Stream,
        places::{Counted, Patience, Place, Places, Standing},
        tls::H2,
    },
    runtimes::Homes,
};
use crate::{
    config,
    ingest::LAST_REQUEST,
    metrics::Metrics,
    trace::{REQUEST_ID, RequestId},
};

/// Connections beyond the limit that are being told so. When these are used up, too, the rest waits in the kernel's queue.
const REFUSALS_MAX: usize = 256;
/// How long a closing connection reads on, so that its last answer is not lost to a reset.
const LINGER: Duration = Duration::from_millis(500);
/// How much it reads.
const LINGER_BYTES: usize = 256 * 1024;
/// The admin listener's connections: probes, scrapers and people, and a wide margin; no load balancer comes in here.
const ADMIN_CONNECTIONS_MAX: usize = 128;
/// When all places are taken, a connection has so long to ask something before it gives way to a new one: the handshake and the
/// head of a request take less, also from the other side of the world. Any longer, and who opens connections faster than they
/// grow old keeps others out. One that has brought a callback stays for longer, because the next may be on its way; but
/// not for ever, or a few senders would hold all places.
const PATIENCE: Patience =
    Patience { with_strangers: Some(Duration::from_secs(1)), with_clients: Some(Duration::from_secs(5)) };
/// Headers of one of its requests, in bytes and in number: what the ingest listener takes by default.
const ADMIN_HEADER_BYTES_MAX: usize = 16 * 1024;
const ADMIN_HEADERS_MAX: usize = 64;
/// Time for them to arrive, and for an idle connection to ask again: longer than the usual 15 s between two scrapes.
const ADMIN_HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to take some of an answer: they are small, so only one that does not read at all needs longer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 128;
/// What may be sent on one of them, and on all, before it is read: bodies are counted as they are read.
const H2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Requests that were reset and are not seen off yet; more of them is an attack (rapid reset), and closes the connection.
const H2_PENDING_RESETS_MAX: usize = 20;

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 30\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 100\r\n\r\n\
    {\"status\":\"refused\",\"reason\":\"too_many_connections\",\"message\":\"too many connections: send it again\"}";
const DRAINING: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 78\r\n\r\n\
    {\"status\":\"refused\",\"reason\":\"draining\",\"message\":\"restarting: send it again\"}";
const HEADER_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    connections_max: usize,
    patience: Patience,
    header_bytes_max: usize,
    headers_max: usize,
    header_timeout: Duration,
    linger: Duration,
    /// A client that has closed its sending side is still answered; if false, it counts as gone, and its requests are dropped.
    half_close: bool,
    /// How long a connection stays open for a request that may be on its way when the broker stops. Whoever is not being answered
    /// after that is left, so that nobody can hold up a restart by saying nothing, little, or too much.
    last_request: Duration,
}

impl Limits {
    pub(super) fn ingest(config: &config::Ingest) -> Self {
        Self {
            connections_max: super::usize_of(config.connections_max),
            patience: PATIENCE,
            header_bytes_max: super::usize_of(config.header_bytes_max),
            headers_max: super::usize_of(config.headers_max),
            header_timeout: config.header_timeout,
            linger: LINGER,
            half_close: true,
            last_request: LAST_REQUEST,
        }
    }

    /// Few, and not hurried.
    pub(super) fn admin() -> Self {
        Self {
            connections_max: ADMIN_CONNECTIONS_MAX,
            patience: PATIENCE,
            header_bytes_max: ADMIN_HEADER_BYTES_MAX,
            headers_max: ADMIN_HEADERS_MAX,
            header_timeout: ADMIN_HEADER_TIMEOUT,
            linger: LINGER,
            half_close: false,            // an answer may take as long as a disk that hangs
            last_request: Duration::ZERO, // scrapers and probes ask again by themselves
        }
    }

    async fn last_request_over(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        sleep(self.last_request).await;
    }
}

/// What one listener counts.
#[derive(Clone)]
pub(super) struct Counters {
    places: Counted,
    /// Connections that were not let in, by listener and cause.
    refused: IntCounterVec,
    /// Requests that ended before their headers were complete, by outcome; of the ingest listener only.
    callbacks: Option<IntCounterVec>,
    listener: &'static str,
}

impl Counters {
    pub(super) fn of(listener: &'static str, metrics: &Metrics) -> Self {
        Self {
            places: Counted::of(listener, metrics),
            refused: metrics.connections_refused.clone(),
            callbacks: None,
            listener,
        }
    }

    pub(super) fn of_ingest(metrics: &Metrics) -> Self {
        Self { callbacks: Some(metrics.callbacks.clone()), ..Self::of("ingest", metrics) }
    }

    fn refused(&self, refused: &Refused) {
        self.refused.with_label_values(&[self.listener, refused.cause()]).inc();
    }
}

/// Answers a request of a connection from that address.
pub(super) trait Responder: Fn(IpAddr, Request<Incoming>) -> Answer + Clone + Send + Sync + 'static {}
impl<F: Fn(IpAddr, Request<Incoming>) -> Answer + Clone + Send + Sync + 'static> Responder for F {}

/// On the heap from the start: it would be copied from layer to layer on its way there.
pub(super) type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// By routes, whoever asks.
pub(super) fn routed(router: Router) -> impl Responder {
    let service = TowerToHyperService::new(router);
    move |_, request| {
        let answer = service.call(request);
        Box::pin(async move {
            let Ok(answer) = answer.await;
            answer
        })
    }
}

/// Serves until `stop`, then lets the requests under way finish.
pub(super) async fn serve(
    listener: TcpListener,
    homes: Homes,
    entrance: Entrance,
    responder: impl Responder,
    limits: Limits,
    counters: Counters,
    stop: CancellationToken,
) {
    let places = Places::new(limits.connections_max, limits.patience, counters.places.clone());
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = TaskTracker::new();
    loop {
        // Not yet a stream of this runtime: it may have to live on another one.
        let accepted = async { listener.accept().await.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) };
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    net::accept_failed(&error).await;
                    continue;
                }
            },
        };
        // Answers are small and complete; waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true).is_ok();
        let share = match entrance.share(peer) {
            Ok(share) => share,
            Err(refused) => {
                counters.refused(&refused);
                continue;
            }
        };
        match places.try_take() {
            Some(place) => {
                let (entrance, counters) = (entrance.clone(), counters.clone());
                let service = Served { responder: responder.clone(), limits, callbacks: counters.callbacks.clone() };
                let stop = stop.clone();
                // Its silence begins when there is somebody to listen to it, which takes a while where there is much to do.
                let unheard = place.standing().begin();
                let served = async move {
                    drop(unheard);
                    let opening = async { entrance.open(TcpStream::from_std(stream)?, peer, share).await };
                    let opened = tokio::select! {
                        opened = opening => opened,
                        () = place.standing().until_shed() => return,
                        () = limits.last_request_over(&stop) => return,
                    };
                    match opened {
                        // On the heap: a connection that is never opened has no need of it.
                        Ok(opened) => Box::pin(service.serve(opened, &place, stop)).await,
                        Err(refused) => counters.refused(&refused),
                    }
                };
                connections.spawn_on(served, homes.next());
            }
            // Whoever expects TLS could not read it.
            None if entrance.has_tls() => {}
            None => {
                let Ok(refusal) = Arc::clone(&refusals).acquire_owned().await else { break };
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connections.spawn(refuse(stream, limits.linger, refusal));
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Why a request was refused before it was one.
#[derive(Clone, Copy, Debug)]
enum Unread {
    HeadersTooLarge,
    HeaderTimeout,
    Malformed,
    Draining,
}

impl Unread {
    /// From how the connection ended. `begun`: part of a request's head was read; `cut_off`: it would not be read further.
    fn of(ended: &hyper::Result<()>, begun: bool, cut_off: bool) -> Option<Self> {
        match ended {
            // An idle connection that times out has asked nothing, so it is owed no answer.
            Err(error) if error.is_timeout() => begun.then_some(Self::HeaderTimeout),
            Err(error) if error.is_parse_too_large() => Some(Self::HeadersTooLarge),
            Err(error) if error.is_parse() => Some(Self::Malformed),
            _ => (begun && cut_off).then_some(Self::Draining),
        }
    }

    /// The value of the metric's `outcome`.
    fn as_str(self) -> &'static str {
        match self {
            Self::HeadersTooLarge => "headers_too_large",
            Self::HeaderTimeout => "header_timeout",
            Self::Malformed => "malformed_request",
            Self::Draining => "draining",
        }
    }

    /// What is still to be answered.
    fn answer(self) -> &'static [u8] {
        match self {
            Self::HeaderTimeout => HEADER_TIMEOUT,
            Self::Draining => DRAINING,
            // hyper has answered these itself.
            Self::HeadersTooLarge | Self::Malformed => b"",
        }
    }
}

/// What a connection is served with.
struct Served<R> {
    responder: R,
    limits: Limits,
    callbacks: Option<IntCounterVec>,
}

type Timed = Pin<Box<TimeoutStream<Stream>>>;

impl<R: Responder> Served<R> {
    async fn serve(self, opened: Opened, place: &Place, stop: CancellationToken) {
        let (is_h2, peer, standing) = (opened.stream.alpn() == Some(H2), opened.client.ip(), place.standing());
        let (stream, _share) = opened.into_parts();
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let stream = Box::pin(stream);
        if is_h2 { self.h2(stream, peer, standing, stop).await } else { self.h1(stream, peer, standing, stop).await }
    }

    async fn h1(self, stream: Timed, peer: IpAddr, standing: &Arc<Standing>, stop: CancellationToken) {
        let Self { responder, limits, callbacks } = self;
        let activity = Arc::new(Activity::default());
        let counted = service_fn(|request: Request<Incoming>| {
            let (mut busy, mut answering) = (activity.begin(), Some(standing.begin()));
            let mut answer = responder(peer, request);
            let stop = &stop;
            poll_fn(move |cx| {
                let mut answer = ready!(answer.as_mut().poll(cx));
                drop((busy.take(), answering.take()));
                if answer.status().is_success() {
                    standing.is_known_now();
                }
                if stop.is_cancelled() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Poll::Ready(Ok::<_, Infallible>(answer))
            })
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .half_close(limits.half_close)
            .max_buf_size(limits.header_bytes_max)
            .max_headers(limits.headers_max)
            .serve_connection(TokioIo::new(stream), counted);
        let mut last_request_over = pin!(limits.last_request_over(&stop));
        let (mut is_closing, mut cut_off) = (false, false);
        // `None`: left with an answer that the client does not take.
        let ended = loop {
            tokio::select! {
                ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break Some(ended),
                () = &mut last_request_over, if !is_closing => {
                    // What has arrived meanwhile is taken up first.
                    let arrived = poll_fn(|cx| connection.poll_without_shutdown(cx));
                    if let Ok(ended) = timeout(Duration::ZERO, arrived).await {
                        break Some(ended);
                    }
                    is_closing = true;
                    cut_off = activity.quiet_since().is_some();
                    if activity.is_unasked() {
                        break Some(Ok(())); // hyper would wait for the rest of a first head
                    }
                    activity.close();
                    // hyper closes a connection between two requests at once, also when the next has begun to arrive.
                    Pin::new(&mut connection).graceful_shutdown();
                }
                () = activity.quiet_for(limits.linger), if is_closing => break None,
                () = standing.until_shed() => return,
            }
        };
        let parts = connection.into_parts();
        let unread = ended.and_then(|ended| Unread::of(&ended, !parts.read_buf.is_empty(), cut_off));
        if let (Some(unread), Some(callbacks)) = (unread, callbacks) {
            callbacks.with_label_values(&[unread.as_str()]).inc();
        }
        let mut stream = parts.io.into_inner();
        let answer = unread.map(|unread| identified(unread.answer(), unread.as_str())).unwrap_or_default();
        // Whoever has left answers unread may have no room for this one either.
        if timeout(limits.linger, stream.write_all(&answer)).await.is_ok_and(|written| written.is_ok()) {
            linger(stream, limits.linger).await;
        }
    }

    async fn h2(self, stream: Timed, peer: IpAddr, standing: &Arc<Standing>, stop: CancellationToken) {
        let Self { responder, limits, callbacks } = self;
        let activity = Arc::new(Activity::default());
        let counted = service_fn(|request: Request<Incoming>| {
            let (busy, answering) = (activity.begin(), standing.begin());
            let too_many = request.headers().len() > limits.headers_max;
            let is_head = request.method() == Method::HEAD;
            if too_many && let Some(callbacks) = &callbacks {
                callbacks.with_label_values(&[Unread::HeadersTooLarge.as_str()]).inc();
            }
            let (answer, standing) = (responder(peer, request), Arc::clone(standing));
            async move {
                let _held = (busy, answering);
                let answer = if too_many { too_many_headers() } else { answer.await };
                if answer.status().is_success() {
                    standing.is_known_now();
                }
                Ok::<_, Infallible>(if is_head { head_only(answer) } else { answer })
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
            .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
            .serve_connection(TokioIo::new(stream), counted);
        let mut connection = pin!(connection);
        let mut last_request_over = pin!(limits.last_request_over(&stop));
        let (mut is_told, mut is_closing) = (false, false);
        loop {
            let patience = if is_closing { limits.linger } else { limits.header_timeout };
            tokio::select! {
                _ = &mut connection => return,
                () = standing.until_shed() => return,
                () = stop.cancelled(), if !is_told => {
                    is_told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut last_request_over, if !is_closing => {
                    is_closing = true;
                    activity.close();
                }
                () = activity.quiet_for(patience) => {
                    if is_closing {
                        return; // it was told, and has had its time
                    }
                    (is_told, is_closing) = (true, true);
                    connection.as_mut().graceful_shutdown();
                    activity.close();
                }
            }
        }
    }
}

/// The requests that are being answered on one connection.
struct Activity(Mutex<Answering>);

struct Answering {
    count: usize,
    /// When `count` was changed last.
    since: Instant,
    is_unasked: bool,
    is_closed: bool,
}

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(Answering { count: 0, since: Instant::now(), is_unasked: true, is_closed: false }))
    }
}

impl Activity {
    /// One more; not counted any more when closed, so that a client that asks on and on is not waited for.
    fn begin(self: &Arc<Self>) -> Option<Busy> {
        let mut state = self.lock();
        state.is_unasked = false;
        if state.is_closed {
            return None;
        }
        state.count += 1;
        Some(Busy(Arc::clone(self)))
    }

    /// Waits only for what has begun before; the quiet begins now, if it has not to wait for that.
    fn close(&self) {
        let mut state = self.lock();
        (state.is_closed, state.since) = (true, Instant::now());
    }

    fn is_unasked(&self) -> bool {
        self.lock().is_unasked
    }

    fn quiet_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.count == 0).then_some(state.since)
    }

    async fn quiet_for(&self, patience: Duration) {
        loop {
            let quiet_until = self.quiet_since().and_then(|since| since.checked_add(patience));
            match quiet_until {
                Some(until) if until <= Instant::now() => return,
                Some(until) => sleep_until(until).await,
                None => sleep(patience).await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Answering> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being answered.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.count -= 1;
        state.since = Instant::now();
    }
}

async fn refuse(mut stream: TcpStream, patience: Duration, _refusal: OwnedSemaphorePermit) {
    if stream.write_all(&identified(REFUSAL, "too_many_connections")).await.is_ok() {
        linger(stream, patience).await;
    }
}

fn too_many_headers() -> Response {
    let mut response = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response();
    response.headers_mut().insert(REQUEST_ID, unread_id(Unread::HeadersTooLarge.as_str()).into());
    response
}

/// The answer to HEAD. hyper sees to it for HTTP/1.1 only.
fn head_only(mut answer: Response) -> Response {
    if let Some(length) = answer.body().size_hint().exact() {
        answer.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    answer.map(|_| Body::empty())
}

/// One of our own answers with an id in it. What hyper answers itself (400, 431) has none, and nothing is logged of it.
fn identified(answer: &[u8], outcome: &str) -> Vec<u8> {
    let Some(end) = answer.windows(2).position(|bytes| bytes == b"\r\n") else { return Vec::new() };
    let (status, rest) = answer.split_at(end);
    let id = format!("\r\n{REQUEST_ID}: {}", unread_id(outcome));
    [status, id.as_bytes(), rest].concat()
}

/// The id of a request that no route has seen.
fn unread_id(outcome: &str) -> RequestId {
    let id = RequestId::new();
    tracing::debug!(request_id = %id, outcome, "request refused before it was read");
    id
}

/// Closes so that what was written arrives: a socket closed with unread data resets the connection, answer and all.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, patience: Duration) {
    let mut discard = async || -> io::Result<()> {
        stream.shutdown().await?;
        let mut buffer = [0; 4096];
        let mut left = LINGER_BYTES;
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

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn so_many_are_told_that_there_is_no_room_and_the_rest_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::default();
        // There is no room, and a refused client keeps one of the refusals' places until it has closed.
        let limits = Limits { connections_max: 0, linger: Duration::MAX, ..Limits::admin() };
        let refused = metrics.connections_refused.with_label_values(&["test", "full"]);
        let (counters, stop) = (Counters::of("test", &metrics), CancellationToken::new());
        let entrance = Entrance::open_to_all(None);
        tokio::spawn(serve(listener, Homes::here(), entrance, routed(Router::new()), limits, counters, stop));
        let mut told = Vec::new();
        for _ in 0..REFUSALS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_refused(&mut stream).await;
            told.push(stream);
        }
        let mut waiting = TcpStream::connect(address).await.unwrap();
        let _behind = TcpStream::connect(address).await.unwrap();
        // One is taken out of the queue, and has to wait for a place before the next one is.
        for _ in 0..10_000 {
            yield_now().await;
        }
        assert_eq!(refused.get(), REFUSALS_MAX as u64 + 1);
        assert!(waiting.try_read(&mut [0]).is_err(), "it waits");
        told.pop();
        assert_refused(&mut waiting).await;
    }

    async fn assert_refused(stream: &mut TcpStream) {
        let mut answer = Vec::new();
        // Far longer than it takes.
        timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.expect("an answer").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let lines: Vec<_> = answer.split_inclusive("\r\n").filter(|line| !line.starts_with("x-request-id: ")).collect();
        assert_eq!((lines.concat().as_bytes(), lines.len() + 1), (REFUSAL, answer.split_inclusive("\r\n").count()));
    }

    /// A listener with these limits, and what stops it.
    async fn answering(limits: Limits) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        serving(limits, Router::new().fallback(|| std::future::ready("answered"))).await
    }

    async fn serving(
        limits: Limits,
        router: Router,
    ) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let (entrance, counters) = (Entrance::open_to_all(None), Counters::of("test", &Metrics::default()));
        (
            address,
            stop.clone(),
            tokio::spawn(serve(listener, Homes::here(), entrance, routed(router), limits, counters, stop)),
        )
    }

    /// Two connections that are open: nothing was asked on the first one yet, and the last answer on the other one is read.
    async fn one_fresh_and_one_used(address: std::net::SocketAddr) -> [TcpStream; 2] {
        let fresh = TcpStream::connect(address).await.unwrap();
        let mut used = TcpStream::connect(address).await.unwrap();
        used.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"answered") {
            assert_ne!(used.read_buf(&mut answer).await.unwrap(), 0, "it stays open");
        }
        [fresh, used] // they were taken up in this order
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    #[tokio::test]
    async fn a_request_that_is_on_its_way_at_the_end_is_answered() {
        let (address, stop, served) = answering(Limits { last_request: Duration::MAX, ..Limits::admin() }).await;
        let connections = one_fresh_and_one_used(address).await;
        stop.cancel();
        for mut connection in connections {
            connection.write_all(REQUEST).await.unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains("connection: close\r\n") && answer.ends_with("answered"), "{answer}");
        }
        served.await.unwrap();
    }

    #[tokio::test]
    async fn connections_on_which_nothing_is_asked_hold_the_end_up_for_a_moment_only() {
        let (address, stop, served) =
            answering(Limits { last_request: Duration::from_millis(1), ..Limits::admin() }).await;
        let connections = one_fresh_and_one_used(address).await;
        stop.cancel();
        for mut connection in connections {
            assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
        }
        served.await.unwrap();
    }

    /// Short beside what a client is given otherwise, so that a test that waits for that fails.
    const AT_THE_END: Limits = Limits {
        connections_max: 10,
        patience: PATIENCE,
        header_bytes_max: 16 * 1024,
        headers_max: 64,
        header_timeout: Duration::from_secs(60),
        linger: Duration::from_millis(10),
        half_close: true,
        last_request: Duration::from_millis(10),
    };
    /// Far longer than it takes then.
    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn half_a_head_is_told_at_the_end_to_come_again() {
        let (address, stop, served) = answering(AT_THE_END).await;
        let mut trickling = TcpStream::connect(address).await.unwrap();
        trickling.write_all(b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n").await.unwrap();
        let _taken_up = one_fresh_and_one_used(address).await;
        stop.cancel();
        timeout(SOON, served).await.expect("nobody is waited for").unwrap();
        let mut answer = String::new();
        trickling.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("restarting: send it again\"}"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_that_is_not_opened_yet_does_not_hold_the_end_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (metrics, stop) = (Metrics::default(), CancellationToken::new());
        // It is to send a PROXY header first.
        let entrance = Entrance::shared(1, &["127.0.0.1/32".parse().unwrap()], true, None);
        let counters = Counters::of("test", &metrics);
        let served = tokio::spawn(serve(
            listener,
            Homes::here(),
            entrance,
            routed(Router::new()),
            AT_THE_END,
            counters,
            stop.clone(),
        ));
        while metrics.connections.with_label_values(&["test"]).get() == 0 {
            yield_now().await;
        }
        stop.cancel();
        timeout(SOON, served).await.expect("nobody is waited for").unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_do_not_hold_the_end_up() {
        // More than the kernel takes for a connection.
        let large = || std::future::ready(vec![0; 64 << 20]);
        let (address, stop, served) = serving(AT_THE_END, Router::new().fallback(large)).await;
        let mut unread = TcpStream::connect(address).await.unwrap();
        unread.write_all(&REQUEST.repeat(2)).await.unwrap();
        unread.readable().await.unwrap(); // the answer has begun
        stop.cancel();
        timeout(SOON, served).await.expect("nobody is waited for").unwrap();
    }

    #[tokio::test]
    async fn a_request_that_is_being_answered_at_the_end_is_waited_for() {
        let (asked, go_on) = (CancellationToken::new(), CancellationToken::new());
        let (begun, wait) = (asked.clone(), go_on.clone());
        let answer = move || {
            begun.cancel();
            let wait = wait.clone();
            async move {
                wait.cancelled().await;
                "answered"
            }
        };
        let (address, stop, served) = serving(AT_THE_END, Router::new().fallback(answer)).await;
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(REQUEST).await.unwrap();
        asked.cancelled().await;
        stop.cancel();
        assert!(timeout(4 * (AT_THE_END.last_request + AT_THE_END.linger), served).await.is_err());
        go_on.cancel();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("answered"), "{answer}");
    }

    #[tokio::test]
    async fn for_who_sends_no_more_only_callbacks_are_gone_on_with() {
        let metrics = Metrics::default();
        for (limits, is_answered) in [(AT_THE_END, true), (Limits::admin(), false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (counters, stop) = (Counters::of("test", &metrics), CancellationToken::new());
            let gate = CancellationToken::new();
            let (waiting, opening) = (gate.clone(), gate);
            let open = async move || opening.cancel();
            let router = Router::new()
                .route("/", axum::routing::get(move || waiting.cancelled_owned()))
                .route("/open", axum::routing::get(open));
            let entrance = Entrance::open_to_all(None);
            tokio::spawn(serve(listener, Homes::here(), entrance, routed(router), limits, counters, stop));
            let ask = async |path: &str| {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
                client.shutdown().await.unwrap();
                client
            };
            let mut client = ask("/").await;
            if is_answered {
                // When this is answered, the end of the other connection, which came before, has been seen.
                ask("/open").await.read_to_end(&mut Vec::new()).await.unwrap();
            }
            let mut answer = Vec::new();
            timeout(SOON, client.read_to_end(&mut answer)).await.expect("it goes on for nobody").unwrap();
            assert_eq!(!answer.is_empty(), is_answered);
        }
    }

    /// The client's end of a connection that is served as HTTP/2, what stops it, and what ends with it.
    async fn h2_by(responder: impl Responder) -> (TcpStream, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let opened = Entrance::open_to_all(None).open(stream, peer, None).await.unwrap();
        let stream = Box::pin(TimeoutStream::new(opened.into_parts().0));
        let service = Served { responder, limits: AT_THE_END, callbacks: None };
        let stop = CancellationToken::new();
        let place = Places::new(1, PATIENCE, Counted::of("test", &Metrics::default())).try_take().unwrap();
        let served = {
            let stop = stop.clone();
            async move { service.h2(stream, peer.ip(), place.standing(), stop).await }
        };
        (client, stop, tokio::spawn(served))
    }

    /// The same, when the preface is sent.
    async fn h2_connection() -> (TcpStream, CancellationToken, tokio::task::JoinHandle<()>) {
        let router = Router::new().fallback(|| std::future::ready("answered"));
        let (mut client, stop, served) = h2_by(routed(router)).await;
        client.write_all(net::PREFACE).await.unwrap();
        client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap(); // SETTINGS
        client.readable().await.unwrap(); // the server's
        (client, stop, served)
    }

    #[tokio::test]
    async fn an_answer_to_head_has_no_body_over_http_2_either() {
        // As the ingest answers, without a router that would take the body away.
        let responder = |_, _| -> Answer { Box::pin(async { "answered".into_response() }) };
        let (client, _stop, _served) = h2_by(responder).await;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        for (method, bytes) in [(Method::HEAD, 0), (Method::GET, 8)] {
            let request = Request::builder().method(method).uri("http://x/").body(Body::empty()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.headers()[CONTENT_LENGTH], "8");
            let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
            assert_eq!(body.to_bytes().len(), bytes);
        }
    }

    #[tokio::test]
    async fn an_http_2_connection_that_says_nothing_does_not_hold_the_end_up() {
        let (_client, stop, served) = h2_connection().await;
        stop.cancel();
        timeout(SOON, served).await.expect("nobody is waited for").unwrap();
    }

    #[tokio::test]
    async fn an_http_2_connection_that_asks_on_and_on_does_not_hold_the_end_up() {
        let (mut client, stop, served) = h2_connection().await;
        stop.cancel();
        let asking = async {
            for stream in (1_u32..).step_by(2) {
                let mut headers = vec![0, 0, 3, 1, 0x05]; // HEADERS, with END_STREAM and END_HEADERS
                headers.extend(stream.to_be_bytes());
                headers.extend([0x82, 0x84, 0x86]); // GET, /, http
                if client.write_all(&headers).await.is_err() {
                    return;
                }
                let _ = client.try_read(&mut [0; 4096]).is_ok();
                sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = async { tokio::join!(asking, served).1 };
        timeout(SOON, ended).await.expect("nobody is waited for").unwrap();
    }

    #[test]
    fn our_own_answers_state_their_length() {
        for answer in [super::REFUSAL, super::DRAINING, super::HEADER_TIMEOUT] {
            let (head, body) = std::str::from_utf8(answer).unwrap().split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())));
        }
    }
}
