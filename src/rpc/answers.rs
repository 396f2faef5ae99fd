//! Memory of answers. An answer reserves its bytes before it is made, and releases them when the client has read it. An answer whose
//! client reads nothing for a while is ended. The same holds for backups, of which only a few may be open.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::{
    HeaderMap,
    body::{Body, Frame},
};
use parking_lot::Mutex;
use prost::Message;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{Peer, access::Caller, errors};
use crate::{
    budget::{Budget, Loan, Payer, Shelf},
    metrics::Metrics,
    transit::{FLOOR_BYTES, Flow, Transit},
    wire::put_message,
};

/// One client, or one connection of anonymous clients, may hold one part in so many of all answers' bytes.
pub(super) const SHARE: usize = 4;
/// How long a call waits for memory: answers that are read take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most backups at a time. Each reads the whole log, holds up to 20 MiB (SECURITY.md), and keeps expired segments on the disk.
const BACKUPS_MAX: usize = 4;
/// Most backups of one client: one whose connection is lost, and one in its place.
const BACKUPS_PER_CLIENT_MAX: usize = 2;
/// Most unread answers, of any size, of one client, or of one connection of anonymous clients. Each takes 5 KiB beside its bytes. Eight
/// times what a connection has for calls that are answered at once.
pub(crate) const UNREAD_PER_CLIENT_MAX: usize = 8_192;
/// With more shares than this, the idle ones are dropped.
const SHARES_KEPT: usize = 1_024;

impl Payer {
    /// The client that the gate has admitted, or else the connection of the call.
    pub(crate) fn of_call<T>(request: &hyper::Request<T>) -> Self {
        Self::of_extensions(request.extensions().get(), request.extensions().get())
    }

    pub(super) fn of<T>(request: &Request<T>, caller: &Caller) -> Self {
        Self::of_extensions(Some(caller), request.extensions().get())
    }

    fn of_extensions(caller: Option<&Caller>, peer: Option<&Peer>) -> Self {
        match caller.and_then(|caller| caller.0.as_ref()) {
            Some(client) => Self::Client(Arc::clone(&client.name)),
            None => Self::Connection(peer.map(|peer| peer.address)),
        }
    }
}

/// A budget of which each client has a share at most.
#[derive(Debug)]
struct Shared {
    all: Budget,
    share_max: usize,
    shares: Mutex<HashMap<Payer, Budget>>,
}

/// A part of the budget and of a client's share.
#[derive(Debug)]
pub(super) struct Granted {
    all: Loan,
    share: Loan,
}

impl Granted {
    /// Sets it to the size of the answer.
    pub(super) fn resize(&mut self, bytes: usize) {
        self.all.resize(bytes);
        self.share.resize(bytes);
    }
}

impl Shared {
    fn new(all: usize, share_max: usize) -> Self {
        Self {
            all: Budget::new(all),
            share_max,
            shares: Mutex::default(),
        }
    }

    fn share(&self, payer: &Payer) -> Budget {
        // A panic while the lock is held ends the process, so a poisoned lock is never seen.
        let mut shares = self.shares.lock();
        if shares.len() >= SHARES_KEPT {
            shares.retain(|_, share| share.is_shared() || !share.is_idle());
        }
        shares
            .entry(payer.clone())
            .or_insert_with(|| Budget::new(self.share_max))
            .clone()
    }

    async fn take(&self, payer: &Payer, amount: usize) -> Granted {
        // The share first: a call that waits for its share must not hold up other clients.
        let share = self.share(payer).take(payer, amount).await;

        Granted {
            share,
            all: self.all.take(payer, amount).await,
        }
    }

    fn try_take(&self, payer: &Payer, amount: usize) -> Option<Granted> {
        Some(Granted {
            share: self.share(payer).try_take(amount)?,
            all: self.all.try_take(amount)?,
        })
    }
}

/// The memory of all answers, and the places of backups.
#[derive(Debug)]
pub(crate) struct Answers {
    bytes: Shared,
    backups: Shared,
    unread: Shared,
    stall_timeout: Duration,
    transit: Arc<Transit>,
    metrics: Arc<Metrics>,
}

impl Answers {
    /// Answers of `bytes_max` together. One whose client reads nothing for `stall_timeout` is ended.
    pub(crate) fn new(
        bytes_max: usize,
        stall_timeout: Duration,
        transit: &Arc<Transit>,
        metrics: &Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            stall_timeout,
            bytes: Shared::new(bytes_max, bytes_max / SHARE),
            backups: Shared::new(BACKUPS_MAX, BACKUPS_PER_CLIENT_MAX),
            // Across clients, unread answers are counted by connection, in the order in which they began (`server::grpc`).
            unread: Shared::new(usize::MAX, UNREAD_PER_CLIENT_MAX),
            transit: Arc::clone(transit),
            metrics: Arc::clone(metrics),
        })
    }

    /// Bytes of answers that are being made or that clients have not read yet.
    pub(crate) fn bytes_held(&self) -> usize {
        self.bytes.all.lent()
    }

    /// Counts an answer, of any size, until it is read.
    pub(crate) fn begin(&self, payer: &Payer) -> Result<Unread, Status> {
        self.unread
            .share(payer)
            .try_take(1)
            .map(Unread)
            .ok_or_else(|| {
                self.metrics.answers_refused.inc();
                errors::unread_limit(UNREAD_PER_CLIENT_MAX)
            })
    }

    /// How long an answer may stay unread before it is ended.
    pub(crate) fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    /// Open backups.
    pub(crate) fn backups(&self) -> usize {
        self.backups.all.lent()
    }

    /// Reserves memory for an answer of at most `bytes`.
    pub(super) async fn take(&self, payer: &Payer, bytes: usize) -> Result<Granted, Status> {
        let granted = timeout(PATIENCE, self.bytes.take(payer, bytes)).await;
        granted.map_err(|_| self.refused())
    }

    /// The same, if that needs no waiting.
    pub(super) fn try_take(&self, payer: &Payer, bytes: usize) -> Option<Granted> {
        self.bytes.try_take(payer, bytes)
    }

    /// Reserves a place for a backup.
    pub(super) fn take_backup(&self, payer: &Payer) -> Result<Granted, Status> {
        self.backups.try_take(payer, 1).ok_or_else(|| {
            self.metrics.answers_refused.inc();
            errors::backup_limit(BACKUPS_MAX, BACKUPS_PER_CLIENT_MAX)
        })
    }

    fn refused(&self) -> Status {
        self.metrics.answers_refused.inc();
        errors::answers_limit(self.bytes.all.bytes_max(), self.bytes.share_max)
    }

    /// Shelves an item until its client reads on, for `stall_timeout` at most.
    pub(super) fn put_away<T: Send + 'static>(&self, item: T) -> Shelf<T> {
        self.bytes.all.shelve(item)
    }

    /// Ends stalled answers and backups. Runs for ever.
    pub(crate) async fn tend(&self) {
        let stalled = || self.metrics.answers_stalled.inc();
        self.bytes
            .all
            .tend(self.stall_timeout, self.stall_timeout, stalled)
            .await;
    }

    /// The status of a stalled answer.
    pub(super) fn stalled(&self) -> Status {
        errors::answer_stalled(self.stall_timeout)
    }

    /// A response with an encoded message, in place of the one that tonic would encode of `M`.
    pub(super) fn respond<M: Default>(
        self: &Arc<Self>,
        message: Bytes,
        mut granted: Granted,
    ) -> Response<M> {
        granted.resize(message.len());
        let whole = Outgoing {
            bytes: message,
            _granted: Some(granted),
        };
        let mut answer = Response::new(M::default());
        answer
            .extensions_mut()
            .insert(Made(Arc::new(Mutex::new(Some(whole)))));
        answer
    }
}

/// A message as an answer's body has it.
pub(super) fn encoded(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.encoded_len() + 5);
    put_message(message, &mut bytes);
    bytes.freeze()
}

/// An encoded answer, in the extensions of the response whose body it replaces.
#[derive(Clone, Debug)]
struct Made(Arc<Mutex<Option<Outgoing>>>);

/// Marks a response whose memory was reserved before it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prepaid;

/// Whether a response with these extensions reserved its memory before it began.
pub(crate) fn is_prepaid(extensions: &hyper::http::Extensions) -> bool {
    extensions.get::<Prepaid>().is_some()
}

/// Counts an answer as unread until it is dropped.
#[derive(Debug)]
pub(crate) struct Unread(#[allow(dead_code, reason = "it is there to be dropped")] Loan);

/// Bytes that the client has not read, and the memory reserved for them.
#[derive(Debug)]
struct Outgoing {
    bytes: Bytes,
    _granted: Option<Granted>,
}

/// The body of any answer but event streams: the data of `body`, in pieces.
pub(crate) struct AnswerBody<B> {
    answers: Arc<Answers>,
    payer: Payer,
    is_prepaid: bool,
    body: Option<B>,
    /// Bytes to send before the body's.
    ready: Option<Outgoing>,
    put_away: Option<Shelf<Outgoing>>,
    flow: Flow,
    /// The status behind `ready`, if that is all.
    last: Option<Status>,
}

impl<B> AnswerBody<B> {
    /// The body of an answer with these extensions.
    pub(crate) fn new(
        answers: &Arc<Answers>,
        payer: Payer,
        extensions: &mut hyper::http::Extensions,
        body: B,
    ) -> Self {
        let made = extensions.remove::<Made>();
        let ready = made.and_then(|made| made.0.lock().take());
        let is_prepaid = extensions.remove::<Prepaid>().is_some();
        Self {
            answers: Arc::clone(answers),
            payer,
            is_prepaid,
            body: ready.is_none().then_some(body),
            last: ready.is_some().then(|| Status::ok("")),
            ready,
            put_away: None,
            flow: Flow::new(&answers.transit),
        }
    }

    /// The body of an answer that is all there.
    pub(crate) fn whole(
        answers: &Arc<Answers>,
        payer: Payer,
        bytes: Bytes,
    ) -> Result<Self, Status> {
        let granted = if bytes.len() <= FLOOR_BYTES {
            None
        } else {
            let granted = answers.try_take(&payer, bytes.len());
            Some(granted.ok_or_else(|| answers.refused())?)
        };
        Ok(Self {
            answers: Arc::clone(answers),
            payer,
            is_prepaid: false,
            body: None,
            ready: Some(Outgoing {
                bytes,
                _granted: granted,
            }),
            put_away: None,
            flow: Flow::new(&answers.transit),
            last: None,
        })
    }

    /// The next piece of the bytes that are there, as far as there is room.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ready.is_none() && self.put_away.is_none() {
            return Poll::Ready(None);
        }

        let room = ready!(self.flow.poll_room(cx));
        let mut outgoing = match (self.ready.take(), self.put_away.take()) {
            (Some(whole), _) if whole.bytes.len() <= room => {
                return Poll::Ready(Some(self.flow.hand(whole.bytes)));
            }
            (Some(whole), _) => whole,
            (None, put_away) => match put_away.and_then(Shelf::take) {
                Some(rest) => rest,
                None => {
                    // The client has read nothing of it for too long.
                    self.body = None;
                    self.last = Some(self.answers.stalled());
                    return Poll::Ready(None);
                }
            },
        };

        // Copied: a slice would keep the memory of the whole.
        let piece = outgoing.bytes.split_to(room.min(outgoing.bytes.len()));
        let piece = self.flow.hand(piece.to_vec());
        if !outgoing.bytes.is_empty() {
            self.put_away = Some(self.answers.put_away(outgoing));
        }
        Poll::Ready(Some(piece))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        loop {
            if let Some(piece) = ready!(self.poll_piece(cx)) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if let Some(status) = self.last.take() {
                let mut trailers = HeaderMap::new();
                // Our own statuses have no characters that a header refuses.
                let _ = status.add_header(&mut trailers).is_ok();
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }

            let Some(body) = &mut self.body else {
                return Poll::Ready(None);
            };
            let Some(frame) = ready!(Pin::new(body).poll_frame(cx)) else {
                self.body = None;
                return Poll::Ready(None);
            };
            let bytes = match frame?.into_data() {
                Ok(bytes) => bytes,
                Err(trailers) => {
                    self.body = None;
                    return Poll::Ready(Some(Ok(trailers)));
                }
            };

            // A small answer reserves no memory: it is counted, and fits into what each stream may hold.
            let is_small = bytes.len() <= FLOOR_BYTES || self.is_prepaid;
            let granted = if is_small {
                None
            } else {
                self.answers.try_take(&self.payer, bytes.len())
            };
            if granted.is_none() && !is_small {
                self.body = None;
                self.last = Some(self.answers.refused());
                continue;
            }
            self.ready = Some(Outgoing {
                bytes,
                _granted: granted,
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_all_taken = self.ready.is_none() && self.put_away.is_none() && self.last.is_none();
        is_all_taken && self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}
