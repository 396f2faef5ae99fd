//! Calls on their way in. The headers of a call decide whether it is let in, before anything else is spent on it: a call that is
//! not let in takes from no pool that clients need. Calls of the health service need no credential, so they have small pools of
//! their own.
//!
//! Memory of a client's call is counted from its first header until its message is whole, so that many calls that are never
//! finished cost no more than a few ([`Inflight`]). Calls that last have places of their own ([`Streams`]). Answers that nobody
//! reads are counted until they have been handed to the transport: HTTP/2 does not ask for the body of an answer before there is
//! a window for it, so that no timer of the body's could end it.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, extract::Request, http::HeaderMap, response::Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use prometheus::{IntCounter, IntGauge};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Sleep, sleep},
};
use tonic::Status;

use super::{
    connection::Origin,
    inflight::{BytesTaken, Inflight},
    refused::{Call, RefusedCalls},
    streams::{Full, Limits, OpenStream, Streams},
};
use crate::{
    budget::Payer,
    metrics::Metrics,
    rpc,
    server::net::places::{Answering, Standing},
};

/// Time for a whole request; they are small, and only a connection that hardly works takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What a call takes beside its headers, with its stream and its task.
pub(super) const CALL_BYTES: usize = 5 * 1024;
/// Reflection talks back and forth on one call. It takes what HTTP/2 holds of the client's messages while nobody reads them.
const REFLECTION: &str = "/grpc.reflection.";
/// Its calls in all, of 384 KiB: people look around, and few at once. As many more may be ending, so that a tool which asks for
/// everything at once is served.
const REFLECTIONS_MAX: usize = 32;
/// What one that has to end for another has left to finish: a call of a burst is there before its message is.
const REFLECTION_GRACE: Duration = Duration::from_secs(1);
/// Time for one of them. Tools have asked all they want within a second, and call again later.
const REFLECTION_TIMEOUT: Duration = Duration::from_secs(60);

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
/// `Watch` streams, each of which takes 6 KiB: on one connection, of strangers, who have three names to watch, and of clients, of
/// which a proxy may put many on one; and in all.
const WATCHES_OF_STRANGERS_PER_CONNECTION_MAX: usize = 8;
const WATCHES_OF_CLIENTS_PER_CONNECTION_MAX: usize = 256;
const WATCHES_OF_STRANGERS_MAX: usize = 1_024;
const WATCHES_OF_CLIENTS_MAX: usize = 8_192;
/// Of these, a part of so many more may be ending. Nothing of their requests is waited for, and a status always fits a window: those
/// that have not ended when there are more are stuck.
const WATCHES_ENDING: usize = 8;
/// Answers that clients have not taken, in all, of 5 KiB and what `grpc.answers_bytes_max` counts; of one client there may be half
/// as many. Beyond it the connection with the oldest is closed, so that no few clients can have the others refused.
const UNREAD_MAX: usize = 2 * rpc::UNREAD_PER_CLIENT_MAX;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Admission {
    gate: rpc::Gate,
    inflight: Inflight,
    answers: Arc<rpc::Answers>,
    turns: Arc<Turns>,
    unread: Arc<Turns>,
    reflections: Arc<Streams>,
    watches_of_strangers: Arc<Streams>,
    watches_of_clients: Arc<Streams>,
    counted: Counted,
    pub(super) refused: RefusedCalls,
}

#[derive(Clone, Debug)]
struct Counted {
    overloaded: IntCounter,
    health_limit: IntCounter,
    watches: IntGauge,
}

impl Admission {
    pub(super) fn new(
        gate: rpc::Gate,
        inflight: Inflight,
        answers: Arc<rpc::Answers>,
        metrics: &Metrics,
    ) -> Self {
        let refused = |cause| metrics.calls_refused.with_label_values(&[cause]);
        Self {
            gate,
            inflight,
            turns: Turns::new(HEALTH_CALLS_MAX, false),
            unread: Turns::new(UNREAD_MAX, true),
            reflections: Streams::new(Limits {
                open_max: REFLECTIONS_MAX,
                ending_max: REFLECTIONS_MAX,
                stuck_after: REFLECTION_GRACE + answers.stall_timeout(),
            }),
            watches_of_strangers: watches(WATCHES_OF_STRANGERS_MAX),
            watches_of_clients: watches(WATCHES_OF_CLIENTS_MAX),
            answers,
            counted: Counted {
                overloaded: refused("overloaded"),
                health_limit: refused("health_limit"),
                watches: metrics.health_watches.clone(),
            },
            refused: RefusedCalls::default(),
        }
    }

    /// Takes a call whose headers have arrived; also what is to be held until its answer has ended.
    pub(super) fn admit(&self, mut request: Request) -> Result<(Request, Call, Held), Status> {
        let origin = request.extensions_mut().remove::<Origin>();
        let origin = origin.expect("each connection says what it is, see `Connected`");
        request.extensions_mut().insert(origin.peer.clone());
        let path = request.uri().path();
        let (is_check, is_watch) = (path == HEALTH_CHECK, path == HEALTH_WATCH);

        let is_client = match self.gate.let_in(&mut request) {
            Ok(()) => true,
            Err(_) if is_check || is_watch => false,
            Err(refused) => {
                self.gate.metrics.calls_unauthenticated.inc();
                self.refused
                    .note_denied(&Call::of(&mut request), &self.gate.denial(&request));
                return Err(refused);
            }
        };

        let call = Call::of(&mut request);
        let (request, held) = self
            .take_in(&origin, request, is_client, is_watch)
            .inspect_err(|refused| self.refused.note(&call, refused))?;
        Ok((request, call, held))
    }

    /// Takes a call of a client, or one that a stranger may make, if there is room for it.
    fn take_in(
        &self,
        origin: &Origin,
        request: Request,
        is_client: bool,
        is_watch: bool,
    ) -> Result<(Request, Held), Status> {
        let answering = is_client.then(|| {
            origin.standing.is_known_now();
            origin.standing.begin()
        });
        let payer = Payer::of_call(&request);
        let (watch, is_over) = is_watch
            .then(|| self.watch(origin, &payer, is_client))
            .transpose()?
            .unzip();
        let unread = (is_client && !is_watch)
            .then(|| (Arc::clone(&self.unread), Arc::clone(&origin.standing)));

        let mut ending = Ending {
            _answering: answering,
            _watch: watch,
            checked: None,
            reflection: None,
            unread: None,
        };
        let request = if is_client && request.uri().path().starts_with(REFLECTION) {
            let (request, reflection) = self.reflection(origin, &payer, request)?;
            ending.reflection = Some(reflection);
            request
        } else if is_client {
            self.of_client(&payer, request)?
        } else {
            let (request, checked) = self.of_stranger(origin, request)?;
            ending.checked = checked;
            request
        };
        Ok((
            request,
            Held {
                answers: Arc::clone(&self.answers),
                payer,
                unread,
                is_over,
                ending,
            },
        ))
    }

    /// A call of a client: its share, and its time.
    fn of_client(&self, payer: &Payer, request: Request) -> Result<Request, Status> {
        let headers: usize = request
            .headers()
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        let mut taken = self.inflight.of(payer);
        if !taken.take(headers + CALL_BYTES) {
            self.counted.overloaded.inc();
            return Err(rpc::overloaded());
        }
        Ok(self.arriving(request, Room::Client(taken), REQUEST_TIMEOUT))
    }

    /// A call of reflection: its place, which is held until both its request and its answer have ended.
    fn reflection(
        &self,
        origin: &Origin,
        payer: &Payer,
        request: Request,
    ) -> Result<(Request, Arc<OpenStream>), Status> {
        let (open, is_over) = self
            .reflections
            .begin(payer, &origin.standing)
            .map_err(|Full| {
                self.counted.overloaded.inc();
                rpc::overloaded()
            })?;
        let open = Arc::new(open);
        let room = Room::Reflection {
            ends: Ends::After(is_over),
            _open: Arc::clone(&open),
        };
        Ok((self.arriving(request, room, REFLECTION_TIMEOUT), open))
    }

    /// A call without a credential: small, soon whole, and few of them at once. Also what a check holds until its answer was taken.
    fn of_stranger(
        &self,
        origin: &Origin,
        request: Request,
    ) -> Result<(Request, Option<Checked>), Status> {
        let permit = Arc::clone(&origin.limits.health_calls)
            .try_acquire_owned()
            .map_err(|_| {
                self.counted.health_limit.inc();
                rpc::health_limit(HEALTH_CALLS_PER_CONNECTION_MAX)
            })?;
        let (turn, is_over) = self.turns.begin(&origin.standing);
        let checked = Checked {
            _turn: turn,
            _permit: permit,
        };
        // The answer to a `Watch` lasts, and is counted as one.
        let is_watch = request.uri().path() == HEALTH_WATCH;
        let (of_request, of_answer) = if is_watch {
            (Some(checked), None)
        } else {
            (None, Some(checked))
        };

        let room = Room::Stranger {
            left: HEALTH_BYTES_MAX,
            is_over,
            _checked: of_request,
        };
        Ok((self.arriving(request, room, HEALTH_TIMEOUT), of_answer))
    }

    fn arriving(&self, request: Request, room: Room, patience: Duration) -> Request {
        let (deadline, overloaded) = (Box::pin(sleep(patience)), self.counted.overloaded.clone());
        request.map(|body| {
            Body::new(Arriving {
                body,
                room,
                deadline,
                overloaded,
            })
        })
    }

    fn watch(
        &self,
        origin: &Origin,
        payer: &Payer,
        is_client: bool,
    ) -> Result<(Watch, IsOver), Status> {
        let limits = &origin.limits;
        let (streams, on_connection, most) = if is_client {
            (
                &self.watches_of_clients,
                &limits.watches_of_clients,
                WATCHES_OF_CLIENTS_PER_CONNECTION_MAX,
            )
        } else {
            (
                &self.watches_of_strangers,
                &limits.watches_of_strangers,
                WATCHES_OF_STRANGERS_PER_CONNECTION_MAX,
            )
        };
        let permit = Arc::clone(on_connection).try_acquire_owned().map_err(|_| {
            self.counted.health_limit.inc();
            rpc::health_limit(most)
        })?;
        let (open, is_over) = streams.begin(payer, &origin.standing).map_err(|Full| {
            self.counted.health_limit.inc();
            rpc::health_limit(streams.max())
        })?;
        self.counted.watches.inc();
        let watch = Watch {
            counted: self.counted.watches.clone(),
            _held: (permit, open),
        };
        Ok((
            watch,
            IsOver {
                is_over,
                limit: streams.max(),
                refused: self.counted.health_limit.clone(),
            },
        ))
    }
}

fn watches(open_max: usize) -> Arc<Streams> {
    Streams::new(Limits {
        open_max,
        ending_max: open_max / WATCHES_ENDING,
        stuck_after: Duration::ZERO,
    })
}

/// What one connection may have.
#[derive(Clone, Debug)]
pub(super) struct ConnectionLimits {
    /// Health calls of strangers that are not whole, or whose answers were not taken.
    health_calls: Arc<Semaphore>,
    watches_of_strangers: Arc<Semaphore>,
    watches_of_clients: Arc<Semaphore>,
}

impl ConnectionLimits {
    pub(super) fn new() -> Self {
        Self {
            health_calls: Arc::new(Semaphore::new(HEALTH_CALLS_PER_CONNECTION_MAX)),
            watches_of_strangers: Arc::new(Semaphore::new(WATCHES_OF_STRANGERS_PER_CONNECTION_MAX)),
            watches_of_clients: Arc::new(Semaphore::new(WATCHES_OF_CLIENTS_PER_CONNECTION_MAX)),
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
        Arc::new(Self {
            max,
            closes_clients,
            waiting: Mutex::default(),
        })
    }

    /// A place, and what completes when it was given to another call while this one's request arrives.
    fn begin(self: &Arc<Self>, standing: &Arc<Standing>) -> (Turn, oneshot::Receiver<()>) {
        let (begun, is_over) = oneshot::channel();
        let mut waiting = self.lock();
        let oldest = if waiting.calls.len() >= self.max {
            waiting.calls.pop_first()
        } else {
            None
        };
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
        (
            Turn {
                turns: Arc::clone(self),
                number,
            },
            is_over,
        )
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

/// Where a request has room while it arrives.
#[derive(Debug)]
enum Room {
    Client(BytesTaken),
    Stranger {
        left: usize,
        is_over: oneshot::Receiver<()>,
        _checked: Option<Checked>,
    },
    /// It has a place, and its messages are small.
    Reflection {
        ends: Ends,
        _open: Arc<OpenStream>,
    },
}

/// When a call ends for another one.
#[derive(Debug)]
enum Ends {
    /// Some time after this completes.
    After(oneshot::Receiver<()>),
    At(Pin<Box<Sleep>>),
}

impl Ends {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                Self::After(is_over) => {
                    let _ = ready!(Pin::new(is_over).poll(cx)).is_ok(); // either way it is over
                    *self = Self::At(Box::pin(sleep(REFLECTION_GRACE)));
                }
                Self::At(end) => return end.as_mut().poll(cx),
            }
        }
    }
}

/// A request's body; gives back what it has taken when it is read, or nobody reads it any more.
struct Arriving {
    body: Body,
    room: Room,
    deadline: Pin<Box<Sleep>>,
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
                *left = left
                    .checked_sub(bytes)
                    .ok_or_else(|| rpc::request_too_large(HEALTH_BYTES_MAX))?;
                Ok(())
            }
            Room::Reflection { .. } => Ok(()),
        }
    }

    /// Why the rest is not waited for any longer, if it is not.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(rpc::request_late());
        }
        match &mut self.room {
            Room::Client(_) => return Poll::Pending,
            Room::Stranger { is_over, .. } => {
                let _ = ready!(Pin::new(is_over).poll(cx)).is_ok(); // either way it is over
            }
            Room::Reflection { ends, .. } => ready!(ends.poll(cx)),
        }
        self.overloaded.inc();
        Poll::Ready(rpc::overloaded())
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
            Poll::Pending => {
                return self
                    .poll_given_up(cx)
                    .map(|refused| Some(Err(refused.into())));
            }
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
    counted: IntGauge,
    _held: (OwnedSemaphorePermit, OpenStream),
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.counted.dec();
    }
}

/// Completes when a `Watch` stream has to end for another one.
#[derive(Debug)]
struct IsOver {
    is_over: oneshot::Receiver<()>,
    limit: usize,
    refused: IntCounter,
}

impl IsOver {
    /// How the stream ends then.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        Pin::new(&mut self.is_over).poll(cx).map(|_| {
            self.refused.inc();
            rpc::health_limit(self.limit)
        })
    }
}

/// What a call holds until its answer has ended.
#[derive(Debug)]
pub(super) struct Held {
    answers: Arc<rpc::Answers>,
    payer: Payer,
    /// Where the answer to a client is counted while it is unread.
    unread: Option<(Arc<Turns>, Arc<Standing>)>,
    is_over: Option<IsOver>,
    ending: Ending,
}

/// The part of it that is only there to be dropped.
#[derive(Debug)]
struct Ending {
    _answering: Option<Answering>,
    _watch: Option<Watch>,
    #[allow(dead_code, reason = "it is there to be dropped")]
    checked: Option<Checked>,
    #[allow(dead_code, reason = "it is there to be dropped")]
    reflection: Option<Arc<OpenStream>>,
    #[allow(dead_code, reason = "it is there to be dropped")]
    unread: Option<(rpc::Unread, Turn)>,
}

impl Held {
    /// The answer, with what is held: to `Subscribe` with the body that was handed over with it, and every other one with one
    /// that holds it to its share of memory, and to its time.
    pub(super) fn until_its_end(self, answer: Response) -> Response {
        let Self {
            answers,
            payer,
            unread,
            is_over,
            ending: mut held,
        } = self;
        let (mut head, body) = answer.into_parts();
        let body = match head
            .extensions
            .remove::<rpc::HandedOver>()
            .and_then(|handed_over| handed_over.take())
        {
            Some(body) => Body::new(Holding {
                body,
                is_over,
                _held: held,
            }),
            // A refusal is all in its headers.
            None if hyper::body::Body::is_end_stream(&body) => body,
            None => {
                // A backup has a place of its own.
                if let Some((turns, standing)) =
                    unread.filter(|_| !rpc::is_prepaid(&head.extensions))
                {
                    match answers.begin(&payer) {
                        Ok(unread) => held.unread = Some((unread, turns.begin(&standing).0)),
                        Err(refused) => return refused.into_http(),
                    }
                }
                let body = rpc::AnswerBody::new(&answers, payer, &mut head.extensions, body);
                Body::new(Holding {
                    body,
                    is_over,
                    _held: held,
                })
            }
        };
        Response::from_parts(head, body)
    }
}

/// A body that holds something until it is dropped, and may have to end before its time.
struct Holding<B> {
    body: B,
    is_over: Option<IsOver>,
    _held: Ending,
}

impl<B: hyper::body::Body + Unpin> hyper::body::Body for Holding<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let (Poll::Pending, Some(is_over)) = (&frame, &mut self.is_over) else {
            return frame;
        };
        let status = ready!(is_over.poll(cx));
        self.is_over = None;
        let mut trailers = HeaderMap::new();
        // A status of ours has nothing that could not be a header.
        let _ = status.add_header(&mut trailers).is_ok();
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::server::net::places::{Counted, Patience, Places};

    #[test]
    fn one_unread_answer_too_many_closes_the_connection_with_the_oldest_one() {
        let patience = Patience {
            with_strangers: None,
            with_clients: None,
        };
        let places = Places::new(3, patience, Counted::of("test", &Metrics::default()));
        let connections = [(); 3].map(|()| places.try_take().unwrap());
        let is_closed = || {
            let cx = &Context::from_waker(Waker::noop());
            connections
                .each_ref()
                .map(|place| place.standing().poll_shed(cx, &mut None).is_ready())
        };
        connections
            .iter()
            .for_each(|place| place.standing().is_known_now());
        let unread = Turns::new(UNREAD_MAX, true);
        // Its request has arrived, so that nobody waits to hear that it has to go.
        let begin = |connection: usize| unread.begin(connections[connection].standing()).0;

        let taken = begin(0);
        let mut answers: Vec<_> = (1..UNREAD_MAX)
            .map(|number| begin(1 + number / (UNREAD_MAX / 2)))
            .collect();
        drop(taken);
        answers.push(begin(2));
        assert_eq!((answers.len(), is_closed()), (UNREAD_MAX, [false; 3]));
        answers.push(begin(0));
        assert_eq!(is_closed(), [false, true, false]);
    }
}
