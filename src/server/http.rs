//! HTTP/1.1 on a listener, and HTTP/2 where TLS has agreed on it: bounded connections, headers, header time, idle time and time to
//! take an answer, and answers that arrive.
//!
//! An accept loop of our own, because the usual `serve` waits for ever for a first byte and takes any number of connections.

mod activity;
mod rest;

use std::{
    convert::Infallible,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, HttpBody},
    http::{
        Method, StatusCode,
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
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use tokio_io_timeout::TimeoutStream;

pub(super) use self::rest::RequestBody;
use self::{
    activity::{Activity, Watched},
    rest::{Rest, Settling, linger},
};
use super::{
    net::{
        self, Entrance, Floods, Opened, Refused, Stream, TurnedAway,
        places::{Counted, Patience, Place, Places, Standing},
        tls::H2,
    },
    numbers::usize_of,
    runtimes::Homes,
};
use crate::{
    config,
    ingest::{LAST_REQUEST, ToAnybody},
    metrics::Metrics,
    trace::{REQUEST_ID, RequestId},
};

/// Connections beyond the limit that are being told so. When these are used up, too, the rest waits in the kernel's queue.
const REFUSALS_MAX: usize = 256;
/// How long a closing connection reads on, so that its last answer is not lost to a reset: a large body takes its time.
const LINGER: Duration = Duration::from_secs(2);
/// The same where others wait for it: when the broker stops, and where there was no place for the connection.
const FAREWELL: Duration = Duration::from_millis(500);
/// The admin listener's connections: probes, scrapers and people, and a wide margin; no load balancer comes in here.
const ADMIN_CONNECTIONS_MAX: usize = 128;
/// When all places are taken, a connection has so long to ask something before it gives way to a new one: the handshake and the
/// head of a request take less, also from the other side of the world. Any longer, and who opens connections faster than they
/// grow old keeps others out. One that has brought a callback stays for longer, because the next may be on its way; but
/// not for ever, or a few senders would hold all places.
const PATIENCE: Patience = Patience {
    with_strangers: Some(Duration::from_secs(1)),
    with_clients: Some(Duration::from_secs(5)),
};
/// Headers of one of its requests, in bytes and in number: what the ingest listener takes by default.
const ADMIN_HEADER_BYTES_MAX: usize = 16 * 1024;
const ADMIN_HEADERS_MAX: usize = 64;
/// Time for them to arrive, and for an idle connection to ask again: longer than the usual 15 s between two scrapes.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);
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
const DRAINING: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 78\r\n\r\n\
    {\"status\":\"refused\",\"reason\":\"draining\",\"message\":\"restarting: send it again\"}";
const HEADER_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What one listener allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    connections_max: usize,
    patience: Patience,
    header_bytes_max: usize,
    headers_max: usize,
    quiet: activity::Patience,
    linger: Duration,
    farewell: Duration,
    /// A success shows that its client was let in. If false, nobody has to show anything: all are strangers to each other.
    lets_in: bool,
    /// A client that has closed its sending side is still answered; if false, it counts as gone, and its requests are dropped.
    half_close: bool,
    /// How long a connection stays open for a request that may be on its way when the broker stops. A client that is not being answered
    /// after that is left, so that nobody can hold up a restart by saying nothing, little, or too much.
    last_request: Duration,
}

impl Limits {
    pub(super) fn ingest(config: &config::Ingest) -> Self {
        Self {
            connections_max: usize_of(config.connections_max),
            patience: PATIENCE,
            header_bytes_max: usize_of(config.header_bytes_max),
            headers_max: usize_of(config.headers_max),
            quiet: activity::Patience {
                header_timeout: config.header_timeout,
                idle_timeout: config.idle_timeout,
            },
            linger: LINGER,
            farewell: FAREWELL,
            lets_in: true,
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
            quiet: activity::Patience {
                header_timeout: ADMIN_TIMEOUT,
                idle_timeout: ADMIN_TIMEOUT,
            },
            linger: LINGER,
            farewell: FAREWELL,
            lets_in: false,
            half_close: false, // an answer may take as long as a disk that hangs
            last_request: Duration::ZERO, // scrapers and probes ask again by themselves
        }
    }

    /// A sender whose request was accepted is a known client from then on.
    fn note_client(&self, standing: &Standing, answer: &Response) {
        if self.lets_in
            && answer.status().is_success()
            && answer.extensions().get::<ToAnybody>().is_none()
        {
            standing.is_known_now();
        }
    }

    async fn last_request_over(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        sleep(self.last_request).await;
    }

    /// A connection that closes is not waited for any longer.
    async fn farewell_over(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        sleep(self.farewell).await;
    }
}

/// What one listener counts.
#[derive(Clone)]
pub(super) struct Counters {
    places: Counted,
    turned_away: TurnedAway,
    /// Requests that ended before their headers were complete, by outcome; of the ingest listener only.
    callbacks: Option<IntCounterVec>,
    floods: Floods,
}

impl Counters {
    pub(super) fn of(listener: &'static str, metrics: &Metrics) -> Self {
        Self {
            places: Counted::of(listener, metrics),
            turned_away: TurnedAway::of(listener, metrics),
            callbacks: None,
            floods: Floods::of(listener, metrics),
        }
    }

    pub(super) fn of_ingest(metrics: &Metrics) -> Self {
        Self {
            callbacks: Some(metrics.callbacks.clone()),
            ..Self::of("ingest", metrics)
        }
    }
}

/// Answers a request of a connection from that address.
pub(super) trait Responder:
    Fn(IpAddr, Request<RequestBody>) -> Answer + Clone + Send + Sync + 'static
{
}
impl<F: Fn(IpAddr, Request<RequestBody>) -> Answer + Clone + Send + Sync + 'static> Responder
    for F
{
}

/// On the heap from the start: it would be copied from layer to layer on its way there.
pub(super) type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

/// By routes, for every client.
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
    let places = Places::new(
        limits.connections_max,
        limits.patience,
        counters.places.clone(),
    );
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = TaskTracker::new();
    loop {
        // Not yet a stream of this runtime: it may have to live on another one.
        let accepted = async {
            listener
                .accept()
                .await
                .and_then(|(stream, peer)| Ok((stream.into_std()?, peer)))
        };
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
                counters.turned_away.note(&refused, peer);
                continue;
            }
        };
        match places.try_take() {
            Some(place) => {
                let (entrance, counters) = (entrance.clone(), counters.clone());
                let service = Served {
                    responder: responder.clone(),
                    limits,
                    callbacks: counters.callbacks.clone(),
                    floods: counters.floods.clone(),
                    turned_away: counters.turned_away.clone(),
                };
                let stop = stop.clone();
                // Its silence begins when there is somebody to listen to it, which takes a while where there is much to do.
                let unheard = place.standing().begin();
                let served = async move {
                    drop(unheard);
                    let Ok(stream) = TcpStream::from_std(stream) else {
                        return;
                    };
                    let opening = entrance.open(stream, peer, share);
                    let opened = tokio::select! {
                        opened = opening => opened,
                        () = place.standing().until_shed() => return,
                        () = limits.last_request_over(&stop) => return,
                    };
                    match opened {
                        // On the heap: a connection that is never opened has no need of it.
                        Ok(opened) => Box::pin(service.serve(opened, &place, stop)).await,
                        Err(refused) => counters.turned_away.note(&refused, peer),
                    }
                };
                connections.spawn_on(served, homes.next());
            }
            // A client that expects TLS could not read it.
            None if entrance.has_tls() => {}
            None => {
                let Ok(refusal) = Arc::clone(&refusals).acquire_owned().await else {
                    break;
                };
                if let Ok(stream) = TcpStream::from_std(stream) {
                    connections.spawn(refuse(stream, limits.farewell, refusal));
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
    fn of(ended: &Ended, begun: bool, cut_off: bool) -> Option<Self> {
        match ended {
            // An idle connection that times out has asked nothing, so it is owed no answer.
            Ended::Overdue => begun.then_some(Self::HeaderTimeout),
            Ended::ByHttp(Err(error)) if error.is_parse_too_large() => Some(Self::HeadersTooLarge),
            Ended::ByHttp(Err(error)) if error.is_parse() => Some(Self::Malformed),
            Ended::ByHttp(_) => (begun && cut_off).then_some(Self::Draining),
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

    /// For the log; `None`: what comes with every restart.
    fn explanation(self) -> Option<&'static str> {
        match self {
            Self::HeadersTooLarge => Some(
                "its headers are more than ingest.header_bytes_max or ingest.headers_max: raise these if they are a proxy's",
            ),
            Self::HeaderTimeout => Some(
                "its headers took longer than ingest.header_timeout: a stranger, or a line that hardly works",
            ),
            Self::Malformed => {
                Some("it is no HTTP/1.1: a scanner, or a proxy that is set up for something else")
            }
            Self::Draining => None,
        }
    }

    /// Counts and logs it, and also a client that speaks something else altogether.
    fn tell(
        self,
        read: &[u8],
        peer: SocketAddr,
        turned_away: &TurnedAway,
        callbacks: Option<&IntCounterVec>,
    ) {
        if matches!(self, Self::Malformed)
            && let Some(refused) = Refused::by_beginning(read)
        {
            turned_away.note(&refused, peer);
        }
        if let Some(callbacks) = callbacks {
            if let Some(explanation) = self.explanation() {
                turned_away.note_unread(self.as_str(), explanation, peer);
            }
            callbacks.with_label_values(&[self.as_str()]).inc();
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

/// How an HTTP/1.1 connection came to its end.
enum Ended {
    ByHttp(hyper::Result<()>),
    /// It was quiet for too long.
    Overdue,
}

/// What a connection is served with.
struct Served<R> {
    responder: R,
    limits: Limits,
    callbacks: Option<IntCounterVec>,
    floods: Floods,
    turned_away: TurnedAway,
}

type Timed = Pin<Box<TimeoutStream<Stream>>>;

impl<R: Responder> Served<R> {
    async fn serve(self, opened: Opened, place: &Place, stop: CancellationToken) {
        let (is_h2, peer, standing) = (
            opened.stream.alpn() == Some(H2),
            opened.client,
            place.standing(),
        );
        let (stream, _share) = opened.into_parts();
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let stream = Box::pin(stream);
        if is_h2 {
            self.h2(stream, peer.ip(), standing, stop).await;
        } else {
            self.h1(stream, peer, standing, stop).await;
        }
    }

    async fn h1(
        self,
        stream: Timed,
        peer: SocketAddr,
        standing: &Arc<Standing>,
        stop: CancellationToken,
    ) {
        let Self {
            responder,
            limits,
            callbacks,
            turned_away,
            ..
        } = self;
        let (activity, rest) = (Arc::new(Activity::default()), Rest::default());
        let counted = service_fn(|request: Request<Incoming>| {
            let (mut busy, mut answering) = (activity.begin(), Some(standing.begin()));
            let mut answer = responder(peer.ip(), rest.of(request));
            let (rest, stop, mut settling) = (&rest, &stop, None::<Settling>);
            poll_fn(move |cx| {
                let settled = match &mut settling {
                    Some(settling) => ready!(settling.as_mut().poll(cx)),
                    None => {
                        let answer = ready!(answer.as_mut().poll(cx));
                        limits.note_client(standing, &answer);
                        drop(answering.take());
                        match rest.settle(answer, stop) {
                            Ok(answer) => answer,
                            Err(later) => ready!(settling.insert(later).as_mut().poll(cx)),
                        }
                    }
                };
                drop(busy.take());
                Poll::Ready(Ok::<_, Infallible>(settled))
            })
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None) // it would be for the silence before a head, too
            .half_close(limits.half_close)
            .max_buf_size(limits.header_bytes_max)
            .max_headers(limits.headers_max)
            .serve_connection(
                TokioIo::new(Watched {
                    stream,
                    activity: Arc::clone(&activity),
                }),
                counted,
            );
        let mut last_request_over = pin!(limits.last_request_over(&stop));
        let mut timer = pin!(sleep(limits.quiet.header_timeout));
        let (mut is_closing, mut cut_off) = (false, false);
        // `None`: left with an answer that the client does not take.
        let ended = loop {
            let served = poll_fn(|cx| match connection.poll_without_shutdown(cx) {
                Poll::Pending => activity
                    .poll_overdue(limits.quiet, timer.as_mut(), cx)
                    .map(|()| Ended::Overdue),
                ended => ended.map(Ended::ByHttp),
            });
            tokio::select! {
                ended = served => break Some(ended),
                () = &mut last_request_over, if !is_closing => {
                    // What has arrived meanwhile is taken up first.
                    let arrived = poll_fn(|cx| connection.poll_without_shutdown(cx));
                    if let Ok(ended) = timeout(Duration::ZERO, arrived).await {
                        break Some(Ended::ByHttp(ended));
                    }
                    is_closing = true;
                    cut_off = activity.quiet_since().is_some();
                    if activity.is_unasked() {
                        break Some(Ended::ByHttp(Ok(()))); // hyper would wait for the rest of a first head
                    }
                    activity.close();
                    // hyper closes a connection between two requests at once, also when the next has begun to arrive.
                    Pin::new(&mut connection).graceful_shutdown();
                }
                () = activity.quiet_for(limits.farewell), if is_closing => break None,
                () = standing.until_shed() => return,
            }
        };
        let parts = connection.into_parts();
        let has_begun = parts
            .read_buf
            .iter()
            .any(|byte| !activity::LINE_END.contains(byte));
        let unread = ended.and_then(|ended| Unread::of(&ended, has_begun, cut_off));
        if let Some(unread) = unread {
            unread.tell(&parts.read_buf, peer, &turned_away, callbacks.as_ref());
        }
        tokio::select! {
            () = part(parts.io.into_inner().stream, unread, limits) => {}
            () = standing.until_shed() => {} // it holds its place meanwhile
            () = limits.farewell_over(&stop) => {}
        }
    }

    async fn h2(
        self,
        stream: Timed,
        peer: IpAddr,
        standing: &Arc<Standing>,
        stop: CancellationToken,
    ) {
        let Self {
            responder,
            limits,
            callbacks,
            floods,
            ..
        } = self;
        let activity = Arc::new(Activity::default());
        let counted = service_fn(|request: Request<Incoming>| {
            let (busy, answering) = (activity.begin(), standing.begin());
            let too_many = request.headers().len() > limits.headers_max;
            let is_head = request.method() == Method::HEAD;
            if too_many && let Some(callbacks) = &callbacks {
                callbacks
                    .with_label_values(&[Unread::HeadersTooLarge.as_str()])
                    .inc();
            }
            let rest = Rest::default();
            let answer = responder(peer, rest.of(request));
            let (standing, stop) = (Arc::clone(standing), stop.clone());
            async move {
                let _busy = busy;
                let answer = if too_many {
                    too_many_headers()
                } else {
                    answer.await
                };
                limits.note_client(&standing, &answer);
                drop(answering);
                // What is not read away is refused by a reset of the stream without an error, behind the answer.
                let mut answer = match rest.settle(answer, &stop) {
                    Ok(answer) => answer,
                    Err(settling) => settling.await,
                };
                answer.headers_mut().remove(CONNECTION);
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
        // It was told that the connection closes; it has had its time; nothing more is waited for.
        let (mut is_told, mut is_leaving, mut is_closing) = (false, false, false);
        loop {
            let quiet = async {
                if is_leaving {
                    activity.quiet_for(limits.farewell).await;
                } else {
                    activity.overdue(limits.quiet).await;
                }
            };
            tokio::select! {
                ended = &mut connection => return note_flood(&floods, peer, &ended),
                () = standing.until_shed() => return,
                () = stop.cancelled(), if !is_told => {
                    is_told = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut last_request_over, if !is_closing => {
                    (is_leaving, is_closing) = (true, true);
                    activity.close();
                }
                () = quiet => {
                    if is_leaving {
                        return;
                    }
                    // What it asks before it has heard is answered yet.
                    (is_told, is_leaving) = (true, true);
                    activity.begin_quiet();
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Counts and tells of a connection that was ended for what its client sent. By h2's own words: this crate does not use it by name.
fn note_flood(floods: &Floods, peer: IpAddr, ended: &hyper::Result<()>) {
    let Err(error) = ended else { return };
    let error = format!("{error:?}");
    if error.contains("ENHANCE_YOUR_CALM") && error.contains("Library") {
        floods.note(peer);
    }
}

/// Sends the last answer on a connection, if there is one, and closes it.
async fn part(mut stream: Timed, unread: Option<Unread>, limits: Limits) {
    let answer = unread
        .map(|unread| identified(unread.answer(), unread.as_str()))
        .unwrap_or_default();
    // A client that does not read its answers may not take this one either.
    if timeout(limits.farewell, stream.write_all(&answer))
        .await
        .is_ok_and(|written| written.is_ok())
    {
        linger(stream, limits.linger).await;
    }
}

async fn refuse(mut stream: TcpStream, patience: Duration, _refusal: OwnedSemaphorePermit) {
    if stream
        .write_all(&identified(REFUSAL, "too_many_connections"))
        .await
        .is_ok()
    {
        linger(stream, patience).await;
    }
}

fn too_many_headers() -> Response {
    let mut response = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response();
    response.headers_mut().insert(
        REQUEST_ID,
        unread_id(Unread::HeadersTooLarge.as_str()).into(),
    );
    response
}

/// The answer to HEAD. hyper sees to it for HTTP/1.1 only.
fn head_only(mut answer: Response) -> Response {
    if let Some(length) = answer.body().size_hint().exact() {
        answer
            .headers_mut()
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    answer.map(|_| Body::empty())
}

/// One of our own answers with an id in it. What hyper answers itself (400, 431) has none, and nothing is logged of it.
fn identified(answer: &[u8], outcome: &str) -> Vec<u8> {
    let Some(end) = answer.windows(2).position(|bytes| bytes == b"\r\n") else {
        return Vec::new();
    };
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

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, task::yield_now};

    use super::*;

    #[tokio::test]
    async fn so_many_are_told_that_there_is_no_room_and_the_rest_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::default();
        // There is no room, and a refused client keeps one of the refusals' places until it has closed.
        let limits = Limits {
            connections_max: 0,
            farewell: Duration::MAX,
            ..Limits::admin()
        };
        let refused = metrics
            .connections_refused
            .with_label_values(&["test", "full"]);
        let (counters, stop) = (Counters::of("test", &metrics), CancellationToken::new());
        let entrance = Entrance::open_to_all(None);
        tokio::spawn(serve(
            listener,
            Homes::here(),
            entrance,
            routed(Router::new()),
            limits,
            counters,
            stop,
        ));
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
        timeout(Duration::from_secs(60), stream.read_to_end(&mut answer))
            .await
            .expect("an answer")
            .unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let lines: Vec<_> = answer
            .split_inclusive("\r\n")
            .filter(|line| !line.starts_with("x-request-id: "))
            .collect();
        assert_eq!(
            (lines.concat().as_bytes(), lines.len() + 1),
            (REFUSAL, answer.split_inclusive("\r\n").count())
        );
    }

    /// A listener with these limits, and what stops it.
    async fn answering(
        limits: Limits,
    ) -> (
        std::net::SocketAddr,
        CancellationToken,
        tokio::task::JoinHandle<()>,
    ) {
        serving(
            limits,
            Router::new().fallback(|| std::future::ready("answered")),
        )
        .await
    }

    async fn serving(
        limits: Limits,
        router: Router,
    ) -> (
        std::net::SocketAddr,
        CancellationToken,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let (entrance, counters) = (
            Entrance::open_to_all(None),
            Counters::of("test", &Metrics::default()),
        );
        (
            address,
            stop.clone(),
            tokio::spawn(serve(
                listener,
                Homes::here(),
                entrance,
                routed(router),
                limits,
                counters,
                stop,
            )),
        )
    }

    /// Two connections that are open: nothing was asked on the first one yet, and the last answer on the other one is read.
    async fn one_fresh_and_one_used(address: std::net::SocketAddr) -> [TcpStream; 2] {
        let fresh = TcpStream::connect(address).await.unwrap();
        let mut used = TcpStream::connect(address).await.unwrap();
        used.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"answered") {
            assert_ne!(
                used.read_buf(&mut answer).await.unwrap(),
                0,
                "it stays open"
            );
        }
        [fresh, used] // they were taken up in this order
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    #[tokio::test]
    async fn a_request_that_is_on_its_way_at_the_end_is_answered() {
        let (address, stop, served) = answering(Limits {
            last_request: Duration::MAX,
            ..Limits::admin()
        })
        .await;
        let connections = one_fresh_and_one_used(address).await;
        stop.cancel();
        for mut connection in connections {
            connection.write_all(REQUEST).await.unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.contains("connection: close\r\n") && answer.ends_with("answered"),
                "{answer}"
            );
        }
        served.await.unwrap();
    }

    #[tokio::test]
    async fn connections_on_which_nothing_is_asked_hold_the_end_up_for_a_moment_only() {
        let (address, stop, served) = answering(Limits {
            last_request: Duration::from_millis(1),
            ..Limits::admin()
        })
        .await;
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
        quiet: activity::Patience {
            header_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
        },
        linger: Duration::from_secs(60),
        farewell: Duration::from_millis(10),
        lets_in: true,
        half_close: true,
        last_request: Duration::from_millis(10),
    };
    /// Far longer than it takes then.
    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn half_a_head_is_told_at_the_end_to_come_again() {
        let (address, stop, served) = answering(AT_THE_END).await;
        let mut trickling = TcpStream::connect(address).await.unwrap();
        trickling
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n")
            .await
            .unwrap();
        let _taken_up = one_fresh_and_one_used(address).await;
        stop.cancel();
        timeout(SOON, served)
            .await
            .expect("nobody is waited for")
            .unwrap();
        let mut answer = String::new();
        trickling.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("restarting: send it again\"}"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn a_connection_that_is_not_opened_yet_does_not_hold_the_end_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
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
        timeout(SOON, served)
            .await
            .expect("nobody is waited for")
            .unwrap();
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
        timeout(SOON, served)
            .await
            .expect("nobody is waited for")
            .unwrap();
    }

    /// Refuses everything, and reads no body.
    fn refusing() -> Router {
        Router::new().fallback(|| std::future::ready(StatusCode::NOT_FOUND))
    }

    /// A client that has read its answer, and goes on with a body that is too large to be read away.
    async fn refused_in_mid_body(address: std::net::SocketAddr) -> TcpStream {
        let mut client = TcpStream::connect(address).await.unwrap();
        client
            .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close\r\n"),
            "{answer}"
        );
        client.write_all(&[0; 4096]).await.unwrap();
        client
    }

    #[tokio::test]
    async fn who_sends_on_behind_a_refusal_does_not_hold_the_end_up() {
        let (address, stop, served) = serving(AT_THE_END, refusing()).await;
        let _client = refused_in_mid_body(address).await;
        stop.cancel();
        timeout(SOON, served)
            .await
            .expect("nobody is waited for")
            .unwrap();
    }

    #[tokio::test]
    async fn who_sends_on_behind_a_refusal_gives_way_to_others() {
        let patience = Patience {
            with_strangers: Some(Duration::from_millis(1)),
            with_clients: None,
        };
        let limits = Limits {
            connections_max: 1,
            patience,
            ..AT_THE_END
        };
        let (address, _stop, _served) = serving(limits, refusing()).await;
        let mut client = refused_in_mid_body(address).await;
        let others = async || while refused_status(address).await != "404" {};
        timeout(SOON, others()).await.expect("its place");
        // Until it is closed, what it sends is taken.
        let sent = async { while client.write_all(&[0; 4096]).await.is_ok() {} };
        timeout(SOON, sent).await.expect("closed");
    }

    async fn refused_status(address: std::net::SocketAddr) -> String {
        let (mut client, mut answer) = (TcpStream::connect(address).await.unwrap(), String::new());
        let _ = client
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .is_ok();
        let _ = client.read_to_string(&mut answer).await.is_ok();
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
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
        assert!(
            timeout(4 * (AT_THE_END.last_request + AT_THE_END.farewell), served)
                .await
                .is_err()
        );
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
            tokio::spawn(serve(
                listener,
                Homes::here(),
                entrance,
                routed(router),
                limits,
                counters,
                stop,
            ));
            let ask = async |path: &str| {
                let mut client = TcpStream::connect(address).await.unwrap();
                client
                    .write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
                client.shutdown().await.unwrap();
                client
            };
            let mut client = ask("/").await;
            if is_answered {
                // When this is answered, the end of the other connection, which came before, has been seen.
                ask("/open")
                    .await
                    .read_to_end(&mut Vec::new())
                    .await
                    .unwrap();
            }
            let mut answer = Vec::new();
            timeout(SOON, client.read_to_end(&mut answer))
                .await
                .expect("it goes on for nobody")
                .unwrap();
            assert_eq!(!answer.is_empty(), is_answered);
        }
    }

    /// The client's end of a connection that is served as HTTP/2, what stops it, and what ends with it.
    async fn h2_by(
        responder: impl Responder,
    ) -> (TcpStream, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let opened = Entrance::open_to_all(None)
            .open(stream, peer, None)
            .await
            .unwrap();
        let stream = Box::pin(TimeoutStream::new(opened.into_parts().0));
        let service = Served {
            responder,
            limits: AT_THE_END,
            callbacks: None,
            floods: Floods::of("ingest", &Metrics::default()),
            turned_away: TurnedAway::of("ingest", &Metrics::default()),
        };
        let stop = CancellationToken::new();
        let place = Places::new(1, PATIENCE, Counted::of("test", &Metrics::default()))
            .try_take()
            .unwrap();
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
        client
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap(); // SETTINGS
        client.readable().await.unwrap(); // the server's
        (client, stop, served)
    }

    #[tokio::test]
    async fn an_answer_to_head_has_no_body_over_http_2_either() {
        // As the ingest answers, without a router that would take the body away.
        let responder = |_, _| -> Answer { Box::pin(async { "answered".into_response() }) };
        let (client, _stop, _served) = h2_by(responder).await;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client))
                .await
                .unwrap();
        tokio::spawn(connection);
        for (method, bytes) in [(Method::HEAD, 0), (Method::GET, 8)] {
            let request = Request::builder()
                .method(method)
                .uri("http://x/")
                .body(Body::empty())
                .unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.headers()[CONTENT_LENGTH], "8");
            let body = http_body_util::BodyExt::collect(answer.into_body())
                .await
                .unwrap();
            assert_eq!(body.to_bytes().len(), bytes);
        }
    }

    #[tokio::test]
    async fn an_http_2_connection_that_says_nothing_does_not_hold_the_end_up() {
        let (_client, stop, served) = h2_connection().await;
        stop.cancel();
        timeout(SOON, served)
            .await
            .expect("nobody is waited for")
            .unwrap();
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
        timeout(SOON, ended)
            .await
            .expect("nobody is waited for")
            .unwrap();
    }

    #[test]
    fn our_own_answers_state_their_length() {
        for answer in [super::REFUSAL, super::DRAINING, super::HEADER_TIMEOUT] {
            let (head, body) = std::str::from_utf8(answer)
                .unwrap()
                .split_once("\r\n\r\n")
                .unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())));
        }
    }
}
