//! Decides from a call's headers whether the call is let in, before anything else is spent on it. A call that is not let in takes
//! from no pool that clients need. Calls of the health service need no credential, so they have small pools of their own.
//!
//! Memory of a client's call is counted from its first header until its message has arrived, so that many calls that are never
//! finished cost no more than a few ([`Inflight`]). Calls that last have places of their own ([`Streams`]). An answer that is not
//! read is counted until it has been handed to the transport: HTTP/2 does not ask for the body of an answer before there is a
//! window for it, so no timer in the body could end it.

use std::{sync::Arc, time::Duration};

use axum::extract::Request;
use prometheus::{IntCounter, IntGauge};
use tonic::Status;

use super::{
    arriving::{End, HEALTH_BYTES_MAX, HealthCall, REFLECTION_GRACE, Room, bounded},
    held::{Held, UntilEnd, Watch, WatchOver},
    inflight::Inflight,
    origin::{self, Origin},
    refused::{Call, RefusedCalls},
    streams::{Full, Limits, OpenStream, Streams},
    unfinished::Unfinished,
};
use crate::{budget::Payer, metrics::Metrics, rpc};

/// Time for a whole request; they are small, and only a connection that hardly works takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// What a call takes beside its headers, with its stream and its task.
pub(super) const CALL_BYTES: usize = 5 * 1024;
/// Reflection talks back and forth on one call. It takes what HTTP/2 holds of the client's messages until they are read.
const REFLECTION: &str = "/grpc.reflection.";
/// Reflection calls in all, of 384 KiB each: few people look around at once. As many more may be ending, so that a tool which asks
/// for everything at once is served.
const REFLECTIONS_MAX: usize = 32;
/// Time for one of them. Tools have asked everything within a second, and call again later.
const REFLECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// These two need no credential: probes have no tokens.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
/// Time for such a call's request: it fits into the packet of its headers.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// Health calls without a credential in all (5 MiB) that have not arrived whole, or whose answers were not taken. Beyond it the
/// oldest is refused, or its connection is closed if its answer is what is waited for. A probe's call is whole and its answer taken
/// at once, so that it is never the oldest for long.
const HEALTH_CALLS_MAX: usize = 1_024;
/// `Watch` streams in all, of 6 KiB each.
const UNAUTHENTICATED_WATCHES_MAX: usize = 1_024;
const CLIENT_WATCHES_MAX: usize = 8_192;
/// One part in so many more may be ending. Nothing of their requests is waited for, and a status always fits a window: those that
/// have not ended when there are more are stuck.
const WATCHES_ENDING: usize = 8;
/// Answers that clients have not taken, in all, of 5 KiB and what `grpc.answers_bytes_max` counts; one client may have half as many.
/// Beyond it the connection with the oldest is closed, so that a few clients cannot have the others refused.
const UNREAD_MAX: usize = 2 * rpc::UNREAD_PER_CLIENT_MAX;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Admission {
    gate: rpc::Gate,
    inflight: Inflight,
    answers: Arc<rpc::Answers>,
    health_calls: Arc<Unfinished>,
    unread: Arc<Unfinished>,
    reflections: Arc<Streams>,
    unauthenticated_watches: Arc<Streams>,
    client_watches: Arc<Streams>,
    counted: Counters,
    pub(super) refused: RefusedCalls,
}

#[derive(Clone, Debug)]
struct Counters {
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
            health_calls: Unfinished::new(HEALTH_CALLS_MAX, false),
            unread: Unfinished::new(UNREAD_MAX, true),
            reflections: Streams::new(Limits {
                open_max: REFLECTIONS_MAX,
                ending_max: REFLECTIONS_MAX,
                stuck_after: REFLECTION_GRACE + answers.stall_timeout(),
            }),
            unauthenticated_watches: watches(UNAUTHENTICATED_WATCHES_MAX),
            client_watches: watches(CLIENT_WATCHES_MAX),
            answers,
            counted: Counters {
                overloaded: refused("overloaded"),
                health_limit: refused("health_limit"),
                watches: metrics.health_watches.clone(),
            },
            refused: RefusedCalls::default(),
        }
    }

    /// Lets in a call whose headers have arrived. Also returns what has to be held until its answer has ended.
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

    /// Takes a call of a client, or one that needs no credential, if there is room for it.
    fn take_in(
        &self,
        origin: &Origin,
        request: Request,
        is_client: bool,
        is_watch: bool,
    ) -> Result<(Request, Held), Status> {
        let answering = is_client.then(|| {
            origin.standing.mark_authenticated();
            origin.standing.begin()
        });
        let payer = Payer::of_call(&request);
        let (watch, watch_over) = is_watch
            .then(|| self.watch(origin, &payer, is_client))
            .transpose()?
            .unzip();
        let unread = (is_client && !is_watch)
            .then(|| (Arc::clone(&self.unread), Arc::clone(&origin.standing)));

        let mut until_end = UntilEnd {
            answering,
            watch,
            ..UntilEnd::default()
        };
        let request = if is_client && request.uri().path().starts_with(REFLECTION) {
            let (request, reflection) = self.reflection(origin, &payer, request)?;
            until_end.reflection = Some(reflection);
            request
        } else if is_client {
            self.of_client(&payer, request)?
        } else {
            let (request, health_call) = self.without_credential(origin, request)?;
            until_end.health_call = health_call;
            request
        };

        Ok((
            request,
            Held {
                answers: Arc::clone(&self.answers),
                payer,
                unread,
                watch_over,
                until_end,
            },
        ))
    }

    /// A call of a client: in its share of memory, and within its time.
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

        let room = Room::Client(taken);
        Ok(self.arriving(request, room, REQUEST_TIMEOUT))
    }

    /// A call of reflection: in a place that is held until both its request and its answer have ended.
    fn reflection(
        &self,
        origin: &Origin,
        payer: &Payer,
        request: Request,
    ) -> Result<(Request, Arc<OpenStream>), Status> {
        let begun = self.reflections.begin(payer, &origin.standing);
        let (open, is_over) = begun.map_err(|Full| {
            self.counted.overloaded.inc();
            rpc::overloaded()
        })?;

        let open = Arc::new(open);
        let room = Room::Reflection {
            end: End::After(is_over),
            _open: Arc::clone(&open),
        };
        Ok((self.arriving(request, room, REFLECTION_TIMEOUT), open))
    }

    /// A call without a credential: small, soon whole, and few of them at once. Also returns what a check holds until its answer
    /// was taken.
    fn without_credential(
        &self,
        origin: &Origin,
        request: Request,
    ) -> Result<(Request, Option<HealthCall>), Status> {
        let permit = Arc::clone(&origin.limits.health_calls).try_acquire_owned();
        let permit = permit.map_err(|_| {
            self.counted.health_limit.inc();
            rpc::health_limit(origin::HEALTH_CALLS_MAX)
        })?;
        let (unfinished, is_over) = self.health_calls.begin(&origin.standing);
        let health_call = HealthCall {
            _unfinished: unfinished,
            _permit: permit,
        };

        // The answer to a `Watch` lasts, and is counted as one.
        let is_watch = request.uri().path() == HEALTH_WATCH;
        let (of_request, of_answer) = if is_watch {
            (Some(health_call), None)
        } else {
            (None, Some(health_call))
        };
        let room = Room::Unauthenticated {
            left: HEALTH_BYTES_MAX,
            is_over,
            _held: of_request,
        };
        Ok((self.arriving(request, room, HEALTH_TIMEOUT), of_answer))
    }

    fn arriving(&self, request: Request, room: Room, patience: Duration) -> Request {
        bounded(request, room, patience, &self.counted.overloaded)
    }

    /// Takes a place for a `Watch` stream, on its connection and in all.
    fn watch(
        &self,
        origin: &Origin,
        payer: &Payer,
        is_client: bool,
    ) -> Result<(Watch, WatchOver), Status> {
        let limits = &origin.limits;
        let (streams, on_connection, connection_max) = if is_client {
            (
                &self.client_watches,
                &limits.client_watches,
                origin::CLIENT_WATCHES_MAX,
            )
        } else {
            (
                &self.unauthenticated_watches,
                &limits.unauthenticated_watches,
                origin::UNAUTHENTICATED_WATCHES_MAX,
            )
        };

        let permit = Arc::clone(on_connection).try_acquire_owned();
        let permit = permit.map_err(|_| {
            self.counted.health_limit.inc();
            rpc::health_limit(connection_max)
        })?;
        let begun = streams.begin(payer, &origin.standing);
        let (open, is_over) = begun.map_err(|Full| {
            self.counted.health_limit.inc();
            rpc::health_limit(streams.max())
        })?;

        let watch_over = WatchOver {
            is_over,
            limit: streams.max(),
            refused: self.counted.health_limit.clone(),
        };
        Ok((Watch::new(&self.counted.watches, permit, open), watch_over))
    }
}

fn watches(open_max: usize) -> Arc<Streams> {
    Streams::new(Limits {
        open_max,
        ending_max: open_max / WATCHES_ENDING,
        stuck_after: Duration::ZERO,
    })
}
