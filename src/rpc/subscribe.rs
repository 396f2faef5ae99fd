//! `Subscribe`: from a request to the body of its answer.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Status};

use super::{
    Context,
    access::{Caller, ClientName},
    call, deadline, errors, peer,
    stream::EventBody,
};
use crate::{
    budget::Payer,
    event::{Cursor, LABELS_MAX},
    subscription::{OnExpired, Opening, Start, Subscription},
    wire::{
        Malformed, duration, instant_from_wire, positive_duration,
        v1::{self, subscribe_request},
    },
};

/// Interval of heartbeats by default: well below the idle time-outs of common proxies.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(15);
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
/// Proxies cut a stream that is silent for a minute.
const HEARTBEAT_MAX: Duration = Duration::from_secs(45);
/// A name for people need not be longer.
const CLIENT_NAME_CHARS_MAX: usize = 128;

/// Opens a subscription; the answer's body is what it delivers.
pub(super) async fn subscribe(
    context: &Context,
    request: Request<v1::SubscribeRequest>,
) -> Result<EventBody, Status> {
    let caller = context.gate.caller_of(&request)?;
    let (payer, call) = (Payer::of(&request, &caller), call(&request));
    let (deadline, (peer, heard)) = (deadline::of(&request), peer(&request));

    if request.get_ref().client_name.chars().count() > CLIENT_NAME_CHARS_MAX {
        let problem = format!("at most {CLIENT_NAME_CHARS_MAX} characters");
        return Err(Malformed::new("client_name", problem).into());
    }

    ClientName::note(&request, &request.get_ref().client_name);

    let request = request.into_inner();
    let start = start(request.start)?;
    let on_expired = on_expired(request.on_expired)?;
    let heartbeat_interval = heartbeat(request.heartbeat_interval)?;
    let filter = context.filter(request.filter, &caller)?;
    if request.until_terminal && filter.task_ids.is_empty() {
        let problem = "needs filter.task_ids: it ends the stream when those tasks are over";
        return Err(Malformed::new("until_terminal", problem).into());
    }

    let opening = Opening {
        filter,
        start,
        on_expired,
        until_terminal: request.until_terminal,
        heartbeat_interval,
        deadline,
        client: caller.0.clone(),
        payer,
        client_name: request.client_name,
        peer,
        heard,
        call,
    };

    let waits = context.waits_for(&opening.filter, &caller);
    let mut subscription = open(context, opening).await?;
    subscription.note_opened();

    let (sources, limits) = (
        Arc::clone(&context.sources),
        limits(context, &caller, heartbeat_interval),
    );

    Ok(EventBody::new(
        sources,
        subscription,
        request.include_raw,
        limits,
        waits,
    ))
}

/// Opens a subscription, unless the client's permission was withdrawn meanwhile.
pub(super) async fn open(context: &Context, opening: Opening) -> Result<Subscription, Status> {
    let sources = &context.sources;
    let subscription = Subscription::open(Arc::clone(sources), opening).await;
    let mut subscription = subscription.map_err(|error| errors::open(sources, &error))?;

    // Changed credentials are first put into force, then the open streams are reviewed. A stream that this review has missed is
    // found here.
    let reviewed = subscription.review(|client, filter| context.gate.review(client, filter));
    reviewed.map_err(|end| errors::end(sources, &end))?;
    Ok(subscription)
}

/// The limits in force, as the first message states them.
fn limits(
    context: &Context,
    caller: &Caller,
    heartbeat_interval: Duration,
) -> v1::SubscriptionLimits {
    let count = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
    v1::SubscriptionLimits {
        heartbeat_interval: Some(duration(heartbeat_interval)),
        task_ids_max: count(context.limits_of(caller).task_ids_max),
        products_max: count(context.filter_limits.products_max),
        labels_max: count(LABELS_MAX),
        subscriptions_max: count(context.sources.registry.limit(caller.0.as_deref())),
    }
}

fn start(start: Option<subscribe_request::Start>) -> Result<Start, Malformed> {
    match start {
        None => Ok(Start::Default),
        Some(subscribe_request::Start::AfterCursor(text)) => {
            let cursor = Cursor::parse(&text);
            cursor
                .map(Start::After)
                .map_err(|error| Malformed::new("after_cursor", error.to_string()))
        }
        Some(subscribe_request::Start::Since(time)) => {
            Ok(Start::Since(instant_from_wire("since", time)?))
        }
        Some(subscribe_request::Start::Position(number)) => {
            match v1::StartPosition::try_from(number) {
                Ok(v1::StartPosition::Unspecified) => Ok(Start::Default),
                Ok(v1::StartPosition::Earliest) => Ok(Start::Earliest),
                Ok(v1::StartPosition::Latest) => Ok(Start::Latest),
                Err(_) => Err(Malformed::new(
                    "position",
                    format!("no position has the number {number}"),
                )),
            }
        }
    }
}

fn on_expired(number: i32) -> Result<OnExpired, Malformed> {
    match v1::OnExpired::try_from(number) {
        Ok(v1::OnExpired::Unspecified | v1::OnExpired::Fail) => Ok(OnExpired::Fail),
        Ok(v1::OnExpired::Earliest) => Ok(OnExpired::Earliest),
        Ok(v1::OnExpired::Latest) => Ok(OnExpired::Latest),
        Err(_) => Err(Malformed::new(
            "on_expired",
            format!("no choice has the number {number}"),
        )),
    }
}

fn heartbeat(requested: Option<prost_types::Duration>) -> Result<Duration, Malformed> {
    match requested {
        None => Ok(HEARTBEAT_DEFAULT),
        Some(requested) => {
            Ok(positive_duration("heartbeat_interval", requested)?
                .clamp(HEARTBEAT_MIN, HEARTBEAT_MAX))
        }
    }
}
