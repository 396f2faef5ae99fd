//! `WaitTask`: a subscription to one task, read until the task is over or the time is up.

use std::{
    future::poll_fn,
    task::{self, Poll},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

use super::{Context, access::Caller, call, deadline, errors, peer, subscribe, task::one_task};
use crate::{
    budget::Payer,
    event::{Filter, Record, Selectable, Sequence, TaskStatus},
    store::ReadError,
    subscription::{
        Control, Heard, OnExpired, Opening, Sources, Start, StreamEnd, StreamMessage, Subscription,
        WAIT_NAME,
    },
    trace,
    wire::{Delivery, Frame, Malformed, gave_up, positive_duration, v1},
};

/// How long a call waits by default: proxies cut a call that is not answered within a minute.
const WAIT_DEFAULT: Duration = Duration::from_secs(50);
/// How long a call waits at most: longer than any generation takes (RunBlob gives up after 15 minutes).
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// A call is answered this long before its own deadline, or a tenth of the remaining time if that is less. The client's clock began to
/// run before the call arrived, and runs on until the answer has arrived.
const WAIT_MARGIN_MAX: Duration = Duration::from_secs(1);

/// The task's terminal event; or its latest one when the time is up, or when the broker has given the task up.
pub(super) async fn wait(
    context: &Context,
    request: Request<v1::WaitTaskRequest>,
) -> Result<Response<Frame>, Status> {
    let caller = context.gate.caller_of(&request)?;
    let (payer, call) = (Payer::of(&request, &caller), call(&request));
    let (peer, call_deadline) = (peer(&request), deadline::of(&request));
    let v1::WaitTaskRequest {
        task_id,
        timeout,
        include_raw,
        product,
    } = request.into_inner();

    let filter = one_task(&task_id, &product)?;
    let deadline = wait_until(Instant::now(), patience(timeout)?, call_deadline);
    let filter = caller.narrow_filter(filter)?;

    let expecting = caller.clone();
    let opening = opening(filter.clone(), caller, payer.clone(), peer, call);
    let waits = context.waits_for(&filter, &expecting);
    let task = Watched {
        is_expected: context.asks_for(&filter, waits.as_ref()),
        ..Watched::default()
    };
    let mut subscription = subscribe::open(context, opening).await?;
    let over = read(context, &mut subscription, &filter, task, deadline).await?;
    drop(subscription);

    answer(context, payer, over, include_raw).await
}

/// The subscription that a wait is: everything retained of the task, then what comes.
fn opening(
    filter: Filter,
    caller: Caller,
    payer: Payer,
    (peer, heard): (String, Heard),
    call: Option<trace::Context>,
) -> Opening {
    Opening {
        filter,
        client: caller.0,
        payer,
        start: Start::Default,
        on_expired: OnExpired::Earliest,
        until_terminal: false,
        heartbeat_interval: WAIT_MAX,
        deadline: None,
        client_name: WAIT_NAME.to_owned(),
        peer,
        heard,
        call,
    }
}

/// Where a wait has ended.
struct Over {
    found: Found,
    done: bool,
}

/// Reads until the task is over or given up, or until the deadline. The retained events are read to their end also when the time-out is
/// zero, so a client can ask whether the task is over now.
async fn read(
    context: &Context,
    subscription: &mut Subscription,
    filter: &Filter,
    mut task: Watched,
    deadline: Instant,
) -> Result<Over, Status> {
    while !task.is_settled() {
        let seen = match poll_fn(|cx| Poll::Ready(poll_next(subscription, cx))).await {
            Poll::Ready(seen) => seen,
            Poll::Pending => {
                // Many calls may wait for tasks with large events.
                task.let_go();
                if task.caught_up {
                    let Ok(seen) = timeout_at(deadline, next(subscription)).await else {
                        break;
                    };
                    seen
                } else {
                    next(subscription).await
                }
            }
        };

        match seen {
            Some(Ok(Seen::Event(record))) => task.take(record),
            Some(Ok(Seen::CaughtUp)) => {
                task.caught_up = true;
                // An erased event is not delivered, but it has ended its task.
                if !task.terminal.is_some() && has_ended_by_erased_event(context, filter).await? {
                    let found = Found::None;
                    return Ok(Over { found, done: true });
                }
            }
            Some(Ok(Seen::Other)) => {}
            Some(Err(end)) => return Err(errors::end(&context.sources, &end)),
            None => return Err(errors::draining()),
        }
    }
    Ok(task.into_over())
}

/// What a wait has seen of its task.
#[derive(Default)]
struct Watched {
    /// The vendor is, or will be, asked for it, whether or not the broker has given it up before.
    is_expected: bool,
    terminal: Found,
    /// The latest event that is not terminal.
    latest: Found,
    /// That event says that the broker no longer asks the vendor.
    is_given_up: bool,
    /// All retained events were seen.
    caught_up: bool,
}

impl Watched {
    fn take(&mut self, record: Record) {
        if record.status().is_terminal() {
            self.terminal = Found::Here(record);
            return;
        }
        // Over the first overdue event the wait goes on: the vendor is asked again. So it is over an event of before by which the
        // task was given up, if it is expected anew.
        let is_current = self.caught_up || !self.is_expected;
        self.is_given_up =
            is_current && record.status() == TaskStatus::Overdue && gave_up(record.event());
        self.latest = Found::Here(record);
    }

    /// There is nothing to wait for.
    fn is_settled(&self) -> bool {
        self.caught_up && (self.terminal.is_some() || self.is_given_up)
    }

    fn let_go(&mut self) {
        self.latest.let_go();
        self.terminal.let_go();
    }

    fn into_over(self) -> Over {
        let done = self.terminal.is_some();
        let found = if done { self.terminal } else { self.latest };
        Over { found, done }
    }
}

async fn has_ended_by_erased_event(context: &Context, filter: &Filter) -> Result<bool, Status> {
    let filter = filter.clone();
    context
        .read(move |sources| was_terminal_event_erased(sources, &filter))
        .await
}

async fn answer(
    context: &Context,
    payer: Payer,
    Over { found, done }: Over,
    include_raw: bool,
) -> Result<Response<Frame>, Status> {
    let epoch = context.sources.store.epoch();
    let frame = move |record: Option<Record>| Frame::Waited {
        event: record.map(|record| Delivery::new(epoch, record, include_raw)),
        done,
    };

    let place = match found {
        Found::None => return Ok(Response::new(frame(None))),
        Found::InTheLog(place) => place,
        Found::Here(record) => {
            let (place, frame) = (record.sequence(), frame(Some(record)));
            if let Some(granted) = context.answers.try_take(&payer, frame.encoded_len()) {
                return Ok(context.answers.respond(frame.encoded(), granted));
            }
            place // the record is not held while the answer waits for memory
        }
    };

    let bytes_max = 2 * context.sources.memory.event_bytes_max;
    let granted = context.answers.take(&payer, bytes_max).await?;

    // Retention may have taken the event meanwhile, or it was erased: the task is over all the same.
    let read = move |sources: &Sources| {
        let record = sources.store.get(place)?;
        let record = record.filter(|record| !record.is_erased());
        Ok((frame(record).encoded(), granted))
    };
    let (message, granted) = context.read(read).await?;
    Ok(context.answers.respond(message, granted))
}

/// An event of the task.
#[derive(Default)]
enum Found {
    #[default]
    None,
    Here(Record),
    /// Its record is not held while the call waits, and is read again.
    InTheLog(Sequence),
}

impl Found {
    fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    fn let_go(&mut self) {
        if let Self::Here(record) = self {
            *self = Self::InTheLog(record.sequence());
        }
    }
}

/// A message of the subscription, as far as a wait is concerned.
enum Seen {
    Event(Record),
    CaughtUp,
    Other,
}

async fn next(subscription: &mut Subscription) -> Option<Result<Seen, StreamEnd>> {
    poll_fn(|cx| poll_next(subscription, cx)).await
}

fn poll_next(
    subscription: &mut Subscription,
    cx: &mut task::Context<'_>,
) -> Poll<Option<Result<Seen, StreamEnd>>> {
    let seen = |message: StreamMessage<'_>| match message {
        StreamMessage::Event { records, at, .. } => Seen::Event(records[at].clone()),
        StreamMessage::Control(Control::CaughtUp { .. }) => Seen::CaughtUp,
        StreamMessage::Control(_) => Seen::Other,
    };
    subscription
        .poll_message(cx)
        .map(|next| next.map(|message| message.map(seen)))
}

/// Whether a terminal event of the filter's task and products was erased. Its labels were erased, too, so to a client that is bound to
/// labels it never was there.
fn was_terminal_event_erased(sources: &Sources, filter: &Filter) -> Result<bool, ReadError> {
    if filter.bound.is_some() {
        return Ok(false);
    }
    let mut was_erased = false;
    sources.store.each_task_event(
        &filter.task_ids,
        Sequence(1)..=sources.store.head(),
        |event| {
            let is_selected =
                filter.products.is_empty() || filter.products.contains(&event.product);
            was_erased |= is_selected && event.is_erased && event.status.is_terminal();
        },
    )?;

    Ok(was_erased)
}

/// How long the call waits.
fn patience(requested: Option<prost_types::Duration>) -> Result<Duration, Malformed> {
    match requested {
        None => Ok(WAIT_DEFAULT),
        Some(requested) => Ok(positive_duration("timeout", requested)?.min(WAIT_MAX)),
    }
}

/// When the call stops waiting.
fn wait_until(now: Instant, patience: Duration, call_deadline: Option<Instant>) -> Instant {
    let Some(call_deadline) = call_deadline else {
        return now + patience;
    };
    let left = call_deadline.saturating_duration_since(now);
    now + patience.min(left - WAIT_MARGIN_MAX.min(left / 10))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::{
        event::{Labels, Overdue, OverdueEvent, Product, RecordParts, TaskId},
        wire::encode_overdue,
    };

    /// The task's event at a place; an overdue one by which it is given up or not.
    fn record(place: u64, status: TaskStatus, gave_up: bool) -> Record {
        let (product, task_id) = (Product::parse("veo").unwrap(), TaskId::parse("t").unwrap());
        let overdue = OverdueEvent {
            event_id: Uuid::nil(),
            product: product.clone(),
            task_id: task_id.clone(),
            labels: Labels::new(),
            noticed_at: Timestamp::UNIX_EPOCH,
            credential: String::new(),
            overdue: Overdue {
                expected_by: Timestamp::UNIX_EPOCH,
                checked_at: None,
                vendor_http_status: 0,
                vendor_status: String::new(),
                check_count: 0,
                gave_up,
            },
        };
        let parts = RecordParts {
            product: &product,
            task_id: &task_id,
            status,
            revision: 1,
            conflict: false,
            received_at_micros: 0,
            log_time_micros: 0,
            labels: &Labels::new(),
            event: &encode_overdue(overdue),
            raw: &[],
        };
        Record::new(Sequence(place), &parts)
    }

    #[test]
    fn a_wait_ends_with_the_task_or_when_its_newest_event_gives_it_up() {
        use TaskStatus::{Completed, Overdue, Processing};
        let (late, given_up) = ((Overdue, false), (Overdue, true));
        let (going_on, over) = ((Processing, false), (Completed, false));
        for (events, place) in [
            (vec![], None),
            (vec![going_on, late], None),
            (vec![late, given_up], Some((2, false))),
            (vec![given_up], Some((1, false))),
            (vec![late, given_up, late], None),
            (vec![late, given_up, going_on], None),
            (vec![late, given_up, over], Some((3, true))),
            (vec![late, over], Some((2, true))),
            (vec![(Processing, true)], None),
        ] {
            let mut task = Watched::default();
            for (place, &(status, gave_up)) in (1..).zip(&events) {
                task.take(record(place, status, gave_up));
                assert!(!task.is_settled(), "more may be retained");
            }
            task.caught_up = true;
            let is_settled = task.is_settled();
            task.let_go();
            let Over { found, done } = task.into_over();
            let found = match found {
                Found::InTheLog(place) => place.0,
                _ => 0,
            };
            assert_eq!(is_settled.then_some((found, done)), place, "{events:?}");
        }
    }

    #[test]
    fn a_wait_for_a_task_that_is_expected_anew_goes_on_until_it_is_given_up_anew() {
        let mut task = Watched {
            is_expected: true,
            ..Watched::default()
        };
        task.take(record(1, TaskStatus::Overdue, true));
        task.caught_up = true;
        assert!(!task.is_settled());

        task.take(record(2, TaskStatus::Overdue, false));
        assert!(!task.is_settled());
        task.take(record(3, TaskStatus::Overdue, true));
        assert!(task.is_settled());
    }

    #[test]
    fn a_wait_has_a_default_and_a_maximum_and_is_not_negative() {
        let asked = |seconds, nanos| patience(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(patience(None), Ok(Duration::from_secs(50)));
        let cases = [
            ((0, 0), Duration::ZERO),
            ((0, 1), Duration::from_nanos(1)),
            ((3_599, 999_999_999), Duration::new(3_599, 999_999_999)),
            ((3_600, 0), Duration::from_secs(3_600)),
            ((3_600, 1), Duration::from_secs(3_600)),
            ((i64::MAX, i32::MAX), Duration::from_secs(3_600)),
        ];
        for ((seconds, nanos), waited) in cases {
            assert_eq!(asked(seconds, nanos), Ok(waited), "{seconds} s {nanos} ns");
        }
        for (seconds, nanos) in [(-1, 0), (0, -1), (i64::MIN, i32::MIN)] {
            assert_eq!(
                asked(seconds, nanos).unwrap_err().field,
                "timeout",
                "{seconds} s {nanos} ns"
            );
        }
    }

    #[test]
    fn a_wait_ends_a_little_before_the_deadline_of_its_call() {
        let now = Instant::now();
        let waited = |patience: u64, deadline: Option<u64>| {
            let deadline = deadline.map(|millis| now + Duration::from_millis(millis));
            wait_until(now, Duration::from_millis(patience), deadline)
                .duration_since(now)
                .as_millis()
        };
        assert_eq!(
            (waited(50_000, None), waited(50_000, Some(60_000))),
            (50_000, 50_000)
        );
        assert_eq!(
            (waited(50_000, Some(30_000)), waited(50_000, Some(2_000))),
            (29_000, 1_800)
        );
        assert_eq!(
            (
                waited(50_000, Some(10)),
                waited(0, Some(10)),
                waited(50_000, Some(0))
            ),
            (9, 0, 0)
        );
    }
}
