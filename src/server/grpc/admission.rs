//! Calls on their way in. The headers of a call decide whether it is let in, before anything else is spent on it: a call that is
//! not let in takes from no pool that clients need. Calls of the health service need no credential, so they have small pools of
//! their own.
//!
//! Memory of a client's call is counted from its first header until its message is whole, so that many calls that are never
//! finished cost no more than a few. Answers that nobody reads are counted until they have been handed to the transport: HTTP/2
//! does not ask for the body of an answer before there is a window for it, so that no timer of the body's could end it.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use prometheus::{IntCounter, IntGauge};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Sleep, sleep},
};
use tonic::Status;

use super::{
    backlog::{Backlog, Unseen},
    connection::Origin,
};
use crate::{
    metrics::Metrics,
    rpc,
    server::net::places::{Answering, Standing},
};

/// Time for a whole request; they are small, and only a connection that hardly works takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What a call takes beside its headers, with its stream and its task.
const CALL_BYTES: usize = 5 * 1024;
/// Reflection talks back and forth on one call, for as long as somebody looks around.
const UNHURRIED: &str = "/grpc.reflection.";

/// These two need no credential: probes have no tokens.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
/// Of a stranger's call to them: the name of a service, and a wide margin.
const HEALTH_BYTES_MAX: usize = 1024;
/// Time for it to be whole: it fits into the packet of its headers.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls of strangers that are not whole yet, or whose answers were not taken: on one connection, where a probe has one or a few,
/// and in all, 5 MiB. Beyond the latter the oldest is refused, or its connection closed if its answer is what is waited for: a
/// probe's is whole and taken at once, so that it is never the oldest for long.
pub(super) const HEALTH_CALLS_PER_CONNECTION_MAX: usize = 16;
const HEALTH_CALLS_MAX: usize = 1_024;
/// `Watch` streams: on one connection, where there are three names to watch; in all, of strangers, and of clients. Each takes 6 KiB.
pub(super) const WATCHES_PER_CONNECTION_MAX: usize = 8;
const WATCHES_OF_STRANGERS_MAX: usize = 1_024;
const WATCHES_OF_CLIENTS_MAX: usize = 8_192;
/// Answers that clients have not taken, in all, of 5 KiB and what `grpc.answers_bytes_max` counts; of one client there may be half
/// as many. Beyond it the connection with the oldest is closed, so that no few clients can have the others refused.
const UNREAD_MAX: usize = 2 * rpc::UNREAD_PER_CLIENT_MAX;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Admission {
    gate: rpc::Gate,
    /// One permit per byte.
    inflight: Arc<Semaphore>,
    answers: Arc<rpc::Answers>,
    turns: Arc<Turns>,
    unread: Arc<Turns>,
    watches_of_strangers: Pool,
    watches_of_clients: Pool,
    counted: Counted,
}

#[derive(Clone, Debug)]
struct Counted {
    overloaded: IntCounter,
    health_limit: IntCounter,
    watches: IntGauge,
}

#[derive(Debug)]
struct Pool {
    free: Arc<Semaphore>,
    max: usize,
}

impl Pool {
    fn new(max: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(max)), max }
    }
}

impl Admission {
    pub(super) fn new(
        gate: rpc::Gate,
        inflight_bytes_max: usize,
        answers: Arc<rpc::Answers>,
        metrics: &Metrics,
    ) -> Self {
        let refused = |cause| metrics.calls_refused.with_label_values(&[cause]);
        Self {
            gate,
            answers,
            inflight: Arc::new(Semaphore::new(inflight_bytes_max.min(Semaphore::MAX_PERMITS))),
            turns: Turns::new(HEALTH_CALLS_MAX, false),
            unread: Turns::new(UNREAD_MAX, true),
            watches_of_strangers: Pool::new(WATCHES_OF_STRANGERS_MAX),
            watches_of_clients: Pool::new(WATCHES_OF_CLIENTS_MAX),
            counted: Counted {
                overloaded: refused("overloaded"),
                health_limit: refused("health_limit"),
                watches: metrics.health_watches.clone(),
            },
        }
    }

    /// Takes a call whose headers have arrived; also what is to be held until its answer has ended.
    pub(super) fn admit(&self, mut request: Request) -> Result<(Request, Held), Status> {
        let origin = request.extensions_mut().remove::<Origin>();
        let origin = origin.expect("each connection says what it is, see `Connected`");
        drop(request.extensions_mut().remove::<Unseen>());
        request.extensions_mut().insert(origin.peer.clone());
        let path = request.uri().path();
        let (is_check, is_watch) = (path == HEALTH_CHECK, path == HEALTH_WATCH);

        let is_client = match self.gate.let_in(&mut request) {
            Ok(()) => true,
            Err(_) if is_check || is_watch => false,
            Err(refused) => {
                self.gate.metrics.calls_unauthenticated.inc();
                return Err(refused);
            }
        };

        let answering = is_client.then(|| {
            origin.standing.is_known_now();
            origin.standing.begin()
        });
        let watch = is_watch.then(|| self.watch(&origin, is_client)).transpose()?;
        let payer = rpc::Payer::of_call(&request);
        let unread = (is_client && !is_watch).then(|| (Arc::clone(&self.unread), Arc::clone(&origin.standing)));

        let (request, checked) =
            if is_client { (self.of_client(&origin, request)?, None) } else { self.of_stranger(&origin, request)? };
        let ending = Ending { _answering: answering, _watch: watch, _checked: checked, unread: None };
        Ok((request, Held { answers: Arc::clone(&self.answers), payer, unread, ending }))
    }

    /// A call of a client: its share, and its time.
    fn of_client(&self, origin: &Origin, request: Request) -> Result<Request, Status> {
        let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let mut taken =
            Taken { all: Arc::clone(&self.inflight), share: Arc::clone(&origin.limits.inflight), permits: Vec::new() };
        if !taken.take(headers + CALL_BYTES) {
            self.counted.overloaded.inc();
            return Err(rpc::overloaded());
        }
        let is_hurried = !request.uri().path().starts_with(UNHURRIED);
        let deadline = is_hurried.then(|| Box::pin(sleep(REQUEST_TIMEOUT)));
        let room = Room::Client(taken);
        Ok(self.arriving(request, room, deadline))
    }

    /// A call without a credential: small, soon whole, and few of them at once. Also what a check holds until its answer was taken.
    fn of_stranger(&self, origin: &Origin, request: Request) -> Result<(Request, Option<Checked>), Status> {
        let permit = Arc::clone(&origin.limits.health_calls).try_acquire_owned().map_err(|_| {
            self.counted.health_limit.inc();
            rpc::health_limit(HEALTH_CALLS_PER_CONNECTION_MAX)
        })?;
        let (turn, is_over) = self.turns.begin(&origin.standing);
        let checked = Checked { _turn: turn, _permit: permit };
        // The answer to a `Watch` lasts, and is counted as one.
        let is_watch = request.uri().path() == HEALTH_WATCH;
        let (of_request, of_answer) = if is_watch { (Some(checked), None) } else { (None, Some(checked)) };

        let room = Room::Stranger { left: HEALTH_BYTES_MAX, is_over, _checked: of_request };
        Ok((self.arriving(request, room, Some(Box::pin(sleep(HEALTH_TIMEOUT)))), of_answer))
    }

    fn arriving(&self, request: Request, room: Room, deadline: Option<Pin<Box<Sleep>>>) -> Request {
        let overloaded = self.counted.overloaded.clone();
        request.map(|body| Body::new(Arriving { body, room, deadline, overloaded }))
    }

    fn watch(&self, origin: &Origin, is_client: bool) -> Result<Watch, Status> {
        let pool = if is_client { &self.watches_of_clients } else { &self.watches_of_strangers };
        let take = |free: &Arc<Semaphore>, limit| {
            Arc::clone(free).try_acquire_owned().map_err(|_| {
                self.counted.health_limit.inc();
                rpc::health_limit(limit)
            })
        };
        let permits = [take(&origin.limits.watches, WATCHES_PER_CONNECTION_MAX)?, take(&pool.free, pool.max)?];
        self.counted.watches.inc();
        Ok(Watch { open: self.counted.watches.clone(), _permits: permits })
    }
}

/// What one connection may have.
#[derive(Clone, Debug)]
pub(super) struct ConnectionLimits {
    /// Bytes of its requests on their way in.
    inflight: Arc<Semaphore>,
    /// Health calls of strangers that are not whole, or whose answers were not taken.
    health_calls: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    /// Calls that nothing has looked at yet.
    pub backlog: Arc<Backlog>,
}

impl ConnectionLimits {
    /// No connection takes more than half of the memory for requests, unless one request needs it.
    pub(super) fn new(inflight_bytes_max: usize, request_bytes_max: usize) -> Self {
        let one_request = request_bytes_max.saturating_add(CALL_BYTES + super::HEADER_LIST_BYTES as usize);
        let share = (inflight_bytes_max / 2).max(one_request).min(Semaphore::MAX_PERMITS);
        Self {
            inflight: Arc::new(Semaphore::new(share)),
            health_calls: Arc::new(Semaphore::new(HEALTH_CALLS_PER_CONNECTION_MAX)),
            watches: Arc::new(Semaphore::new(WATCHES_PER_CONNECTION_MAX)),
            backlog: Arc::default(),
        }
    }
}

/// Calls that are not done with, in the order in which they began. Strangers can fill any pool, so one that refuses new calls
/// when it is full would refuse the probes; this one ends its oldest call instead.
#[derive(Debug)]
struct Turns {
    max: usize,
    closes_clients: bool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    calls: BTreeMap<u64, (oneshot::Sender<()>, Arc<Standing>)>,
}

impl Turns {
    fn new(max: usize, closes_clients: bool) -> Arc<Self> {
        Arc::new(Self { max, closes_clients, waiting: Mutex::default() })
    }

    /// A place, and what completes when it was given to another call while this one's request arrives.
    fn begin(self: &Arc<Self>, standing: &Arc<Standing>) -> (Turn, oneshot::Receiver<()>) {
        let (begun, is_over) = oneshot::channel();
        let mut waiting = self.lock();
        let oldest = if waiting.calls.len() >= self.max { waiting.calls.pop_first() } else { None };
        let number = waiting.next;
        waiting.next += 1;
        waiting.calls.insert(number, (begun, Arc::clone(standing)));
        drop(waiting);

        // Of a call that has arrived nobody hears: only with its connection its answer goes.
        if let Some((_, (begun, standing))) = oldest
            && begun.send(()).is_err()
        {
            standing.close_unread(self.closes_clients);
        }
        (Turn { turns: Arc::clone(self), number }, is_over)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one call among them.
#[derive(Debug)]
struct Turn {
    turns: Arc<Turns>,
    number: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let removed = self.turns.lock().calls.remove(&self.number);
        drop(removed); // not within the lock
    }
}

/// A stranger's check.
#[derive(Debug)]
struct Checked {
    _turn: Turn,
    _permit: OwnedSemaphorePermit,
}

/// Bytes of a client's call.
#[derive(Debug)]
struct Taken {
    all: Arc<Semaphore>,
    share: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Taken {
    /// False if there is no room for so many more.
    fn take(&mut self, bytes: usize) -> bool {
        let Ok(bytes) = u32::try_from(bytes) else { return false };
        let take = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_many_owned(bytes).ok();
        let (Some(of_share), Some(of_all)) = (take(&self.share), take(&self.all)) else { return false };
        match &mut self.permits[..] {
            [share, all] => {
                share.merge(of_share);
                all.merge(of_all);
            }
            _ => self.permits = vec![of_share, of_all],
        }
        true
    }
}

/// Where a request has room while it arrives.
#[derive(Debug)]
enum Room {
    Client(Taken),
    Stranger { left: usize, is_over: oneshot::Receiver<()>, _checked: Option<Checked> },
}

/// A request's body; gives back what it has taken when it is read, or nobody reads it any more.
struct Arriving {
    body: Body,
    room: Room,
    deadline: Option<Pin<Box<Sleep>>>,
    overloaded: IntCounter,
}

impl Arriving {
    /// Whether there is room for so many more bytes.
    fn take(&mut self, bytes: usize) -> Result<(), Status> {
        match &mut self.room {
            Room::Client(taken) => taken.take(bytes).then_some(()).ok_or_else(|| {
                self.overloaded.inc();
                rpc::overloaded()
            }),
            Room::Stranger { left, .. } => {
                *left = left.checked_sub(bytes).ok_or_else(|| rpc::request_too_large(HEALTH_BYTES_MAX))?;
                Ok(())
            }
        }
    }

    /// Why the rest is not waited for any longer, if it is not.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(rpc::request_late());
        }
        if let Room::Stranger { is_over, .. } = &mut self.room
            && Pin::new(is_over).poll(cx).is_ready()
        {
            self.overloaded.inc();
            return Poll::Ready(rpc::overloaded());
        }
        Poll::Pending
    }
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(ended) => return Poll::Ready(ended.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => return self.poll_given_up(cx).map(|refused| Some(Err(refused.into()))),
        };
        if let Some(data) = frame.data_ref()
            && let Err(refused) = self.take(data.len())
        {
            return Poll::Ready(Some(Err(refused.into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An open `Watch` stream.
#[derive(Debug)]
struct Watch {
    open: IntGauge,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// What a call holds until its answer has ended.
#[derive(Debug)]
pub(super) struct Held {
    answers: Arc<rpc::Answers>,
    payer: rpc::Payer,
    /// Where the answer to a client is counted while it is unread.
    unread: Option<(Arc<Turns>, Arc<Standing>)>,
    ending: Ending,
}

/// The part of it that is only there to be dropped.
#[derive(Debug)]
struct Ending {
    _answering: Option<Answering>,
    _watch: Option<Watch>,
    _checked: Option<Checked>,
    #[allow(dead_code, reason = "it is there to be dropped")]
    unread: Option<(rpc::Unread, Turn)>,
}

impl Held {
    /// The answer, with what is held: to `Subscribe` with the body that was handed over with it, and every other one with one
    /// that holds it to its share of memory, and to its time.
    pub(super) fn until_its_end(self, answer: Response) -> Response {
        let Self { answers, payer, unread, ending: mut held } = self;
        let (mut head, body) = answer.into_parts();
        let body = match head.extensions.remove::<rpc::HandedOver>().and_then(|handed_over| handed_over.take()) {
            Some(body) => Body::new(Holding { body, _held: held }),
            // A refusal is all in its headers.
            None if hyper::body::Body::is_end_stream(&body) => body,
            None => {
                // A backup has a place of its own.
                if let Some((turns, standing)) = unread.filter(|_| !rpc::is_prepaid(&head.extensions)) {
                    match answers.begin(&payer) {
                        Ok(unread) => held.unread = Some((unread, turns.begin(&standing).0)),
                        Err(refused) => return refused.into_http(),
                    }
                }
                let body = rpc::AnswerBody::new(&answers, payer, &mut head.extensions, body);
                Body::new(Holding { body, _held: held })
            }
        };
        Response::from_parts(head, body)
    }
}

/// A body that holds something until it is dropped.
struct Holding<B> {
    body: B,
    _held: Ending,
}

impl<B: hyper::body::Body + Unpin> hyper::body::Body for Holding<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
