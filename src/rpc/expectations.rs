//! Tasks whose end is expected: `ExpectTasks`, `CancelExpectations`, and `ListExpectations` for administrators.
//!
//! The journal decides and stores. The reconciler, which is off in most brokers, says by when a task should be over, and what its
//! checks have brought.

use std::{mem, ops::ControlFlow, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{Context, access::Caller, answers::encoded, errors, fields, page, task};
use crate::{
    audit::Entry,
    budget::Payer,
    event::{
        Filter, LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Labels, Product, Sequence,
        TaskId, labels_fit,
    },
    reconcile::{NotAsked, Reconciler},
    store::{EXPECTATION_LABEL_BYTES_MAX, Expectation, Expected, NewExpectation, ReadError, Whose},
    subscription::Sources,
    wire::{Delivery, Malformed, positive_duration, timestamp, v1},
};

/// Most tasks that one call names.
const TASKS_MAX: usize = 1_000;
/// No task is over sooner; a check before that would be wasted.
const WITHIN_MIN: Duration = Duration::from_secs(10);
/// The vendor forgets a task's outputs in the end.
const WITHIN_MAX: Duration = Duration::from_secs(6 * 3600);
/// Expectations that are looked at for a page before the lock is given back: the writer needs it, too.
const LOOKED_AT_ONCE: usize = 512;

impl Context {
    /// The one that can keep the promise to ask for a task.
    fn asking_reconciler(&self) -> Result<&Reconciler, Status> {
        let reconciler = self.reconciler.as_deref().filter(|it| it.has_keys());
        reconciler.ok_or_else(errors::reconcile_off)
    }
}

/// Expects tasks.
pub(super) async fn expect(
    context: &Context,
    request: Request<v1::ExpectTasksRequest>,
) -> Result<Response<v1::ExpectTasksResponse>, Status> {
    let caller = context.gate.caller_of(&request)?;
    let payer = Payer::of(&request, &caller);
    let reconciler = context.asking_reconciler()?;
    let v1::ExpectTasksRequest { expectations } = request.into_inner();
    check_count("expectations", expectations.len())?;
    let client = caller.0.as_ref().map(|client| Arc::clone(&client.name));
    let count = expectations.len() as u32; // at most TASKS_MAX
    context
        .expectation_pace
        .take(client, count, Instant::now())
        .map_err(errors::expects_too_fast)?;

    let now = context.sources.store.clock().now_micros();
    let new = expectations
        .into_iter()
        .enumerate()
        .map(|(index, expectation)| {
            let field = |name: &str| format!("expectations[{index}].{name}");
            new_expectation(reconciler, &caller, expectation, now, field)
        })
        .collect::<Result<Vec<_>, Status>>()?;
    let tasks: Vec<_> = new
        .iter()
        .map(|new| (new.product.clone(), new.task_id.clone()))
        .collect();
    let became = context.answered(context.journal.expect(new).await)?;

    if became
        .iter()
        .all(|became| matches!(became, Expected::Open(_)))
    {
        return Ok(Response::new(response(tasks, became, |_| {
            Ok::<_, Status>(None)
        })?));
    }

    // Once as it is stored, once as it is sent.
    let most = 2 * task::TASK_BYTES_MAX;
    let granted = context.answers.take(&payer, most).await?;
    let read = move |sources: &Sources| {
        let mut room = task::TASK_BYTES_MAX;
        let answer = response(tasks, became, |over| {
            terminal_event(sources, &caller, over, &mut room)
        })?;
        Ok((encoded(&answer), granted))
    };
    let (answer, granted) = context.read(read).await?;
    Ok(context.answers.respond(answer, granted))
}

/// A task of the request, as far as the client may expect it.
fn new_expectation(
    reconciler: &Reconciler,
    caller: &Caller,
    expectation: v1::Expectation,
    now_micros: i64,
    field: impl Fn(&str) -> String,
) -> Result<NewExpectation, Status> {
    let v1::Expectation {
        product,
        task_id,
        labels,
        expect_within,
        vendor_key,
    } = expectation;
    let (product, task_id) = task_key(caller, &product, &task_id, &field)?;
    let vendor_key = (!vendor_key.is_empty()).then_some(vendor_key);

    let default = reconciler.expect_within(&product, vendor_key.as_deref());
    let default = default.map_err(|reason| match reason {
        NotAsked::Product => Malformed::new(
            field("product"),
            "the vendor cannot be asked for its tasks: the broker has no key for it, or no path of its status API",
        ),
        NotAsked::Key => Malformed::new(
            field("vendor_key"),
            "the broker has no key of this name for the product",
        ),
    })?;
    let within = match expect_within {
        Some(within) => {
            positive_duration(&field("expect_within"), within)?.clamp(WITHIN_MIN, WITHIN_MAX)
        }
        None => default,
    };

    let new = NewExpectation {
        labels: bound(caller, labels.into_iter().collect())?,
        client: caller.0.as_ref().map(|client| client.name.to_string()),
        vendor_key,
        expected_at_micros: now_micros,
        // A few hours at most.
        expected_by_micros: now_micros.saturating_add(within.as_micros() as i64),
        product,
        task_id,
    };
    if !labels_fit(&new.labels) || !new.fits() {
        let problem = format!(
            "at most {LABELS_MAX}, with those that the client is bound to; a key has 1 to {LABEL_KEY_CHARS_MAX} characters, a value \
             {LABEL_VALUE_CHARS_MAX}, and all together {EXPECTATION_LABEL_BYTES_MAX} bytes"
        );
        return Err(Malformed::new(field("labels"), problem).into());
    }
    Ok(new)
}

fn task_key(
    caller: &Caller,
    product: &str,
    task_id: &str,
    field: impl Fn(&str) -> String,
) -> Result<(Product, TaskId), Status> {
    let product = fields::parse(&field("product"), product, Product::parse)?;
    let task_id = fields::parse(&field("task_id"), task_id, TaskId::parse)?;
    if !caller.may_see_product(&product) {
        return Err(errors::product_denied(product.as_str()));
    }
    Ok((product, task_id))
}

/// The labels with those that the client is bound to.
fn bound(caller: &Caller, mut labels: Labels) -> Result<Labels, Status> {
    let bound = caller
        .0
        .as_ref()
        .and_then(|client| client.labels.as_deref());
    for (key, value) in bound.into_iter().flatten() {
        let asked = labels.insert(key.clone(), value.clone());
        if asked.is_some_and(|asked| asked != *value) {
            return Err(errors::label_denied(key));
        }
    }
    Ok(labels)
}

fn check_count(field: &str, count: usize) -> Result<(), Malformed> {
    if (1..=TASKS_MAX).contains(&count) {
        return Ok(());
    }
    Err(Malformed::new(
        field,
        format!("name 1 to {TASKS_MAX} tasks"),
    ))
}

/// A task that is over.
#[derive(Clone, Copy)]
struct Over<'a> {
    product: &'a Product,
    task_id: &'a TaskId,
    place: Sequence,
}

fn response<E>(
    tasks: Vec<(Product, TaskId)>,
    became: Vec<Expected>,
    mut event: impl FnMut(Over<'_>) -> Result<Option<v1::Event>, E>,
) -> Result<v1::ExpectTasksResponse, E> {
    let mut answers = Vec::with_capacity(tasks.len());
    for ((product, task_id), became) in tasks.into_iter().zip(became) {
        let (over, event, expected_by) = match became {
            Expected::Open(open) => (false, None, instant(open.expected_by_micros)),
            Expected::Over(place) => {
                let over = Over {
                    product: &product,
                    task_id: &task_id,
                    place,
                };
                (true, event(over)?, None)
            }
        };
        answers.push(v1::ExpectedTask {
            product: product.to_string(),
            task_id: task_id.to_string(),
            over,
            event,
            expected_by,
        });
    }
    Ok(v1::ExpectTasksResponse { tasks: answers })
}

/// The event that says that a task is over, if the client may see it and there is room for it. The first one that does not fit takes
/// the rest of the room, and the others are not read.
fn terminal_event(
    sources: &Sources,
    caller: &Caller,
    over: Over<'_>,
    room: &mut usize,
) -> Result<Option<v1::Event>, ReadError> {
    if *room == 0 {
        return Ok(None);
    }
    let filter = Filter {
        task_ids: [over.task_id.clone()].into(),
        products: [over.product.clone()].into(),
        ..Filter::default()
    };
    let Ok(filter) = caller.narrow_filter(filter) else {
        return Ok(None);
    };
    let store = &sources.store;
    // Retention may have taken it meanwhile.
    let found = store.get(over.place)?;
    let Some(record) = found.filter(|record| filter.matches(record) && !record.is_erased()) else {
        return Ok(None);
    };
    let event = Delivery::new(store.epoch(), record, false);
    let left = room.checked_sub(event.encoded_len());
    *room = left.unwrap_or_default();
    Ok(left.and_then(|_| event.message()))
}

/// Ends expectations.
pub(super) async fn cancel(
    context: &Context,
    request: Request<v1::CancelExpectationsRequest>,
) -> Result<Response<v1::CancelExpectationsResponse>, Status> {
    let caller = context.gate.caller_of(&request)?;
    let v1::CancelExpectationsRequest { tasks } = request.into_inner();
    check_count("tasks", tasks.len())?;

    let tasks = tasks
        .iter()
        .enumerate()
        .map(|(index, task)| {
            let field = |name: &str| format!("tasks[{index}].{name}");
            task_key(&caller, &task.product, &task.task_id, field)
        })
        .collect::<Result<Vec<_>, Status>>()?;
    let whose = match &caller.0 {
        Some(client) if !client.admin => Whose::Client(Some(client.name.to_string())),
        _ => Whose::Anybody,
    };
    let cancelled_count = context.answered(context.journal.end_expectations(tasks, whose).await)?;
    Ok(Response::new(v1::CancelExpectationsResponse {
        cancelled_count,
    }))
}

/// One page of the expectations.
pub(super) async fn list(
    context: &Context,
    mut request: v1::ListExpectationsRequest,
    entry: &mut Entry,
) -> Result<v1::ListExpectationsResponse, Status> {
    let reconciler = context.reconciler.as_deref();
    let page_size = page::size(mem::take(&mut request.page_size))?;
    let token = mem::take(&mut request.page_token);
    let binding = page::binding(&request);
    let after = page::place(&token, binding, u64::MAX)?.unwrap_or(0);
    let product = fields::optional("product", &request.product, Product::parse)?;
    let state = v1::ExpectationState::try_from(request.state)
        .map_err(|_| Malformed::new("state", "no such state"))?;

    let now = context.sources.store.clock().now_micros();
    let is_meant = move |expectation: &Expectation| {
        product
            .as_ref()
            .is_none_or(|product| *product == expectation.product)
            && (state == v1::ExpectationState::Unspecified || state == state_of(expectation, now))
    };
    let read = move |sources: &Sources| Ok(find(sources, after, page_size, is_meant));
    let (found, has_more) = context.read(read).await?;

    entry.note("count", found.len());
    let last = found.last().filter(|_| has_more).map(|last| last.number);
    Ok(v1::ListExpectationsResponse {
        next_page_token: last
            .map(|number| page::token(number, binding))
            .unwrap_or_default(),
        expectations: found
            .into_iter()
            .map(|expectation| on_wire(reconciler, expectation, now))
            .collect(),
    })
}

/// The next expectations that are meant, and whether there is another one.
fn find(
    sources: &Sources,
    mut after: u64,
    most: usize,
    is_meant: impl Fn(&Expectation) -> bool,
) -> (Vec<Expectation>, bool) {
    let mut found = Vec::new();
    loop {
        let next = sources.store.expectations_after(after, LOOKED_AT_ONCE);
        let Some(last) = next.last() else {
            return (found, false);
        };
        after = last.number;
        let put = next
            .into_iter()
            .filter(&is_meant)
            .try_for_each(|expectation| {
                if found.len() == most {
                    return ControlFlow::Break(());
                }
                found.push(expectation);
                ControlFlow::Continue(())
            });
        if put.is_break() {
            return (found, true);
        }
    }
}

fn state_of(expectation: &Expectation, now_micros: i64) -> v1::ExpectationState {
    if expectation.expected_by_micros <= now_micros {
        v1::ExpectationState::Overdue
    } else {
        v1::ExpectationState::Waiting
    }
}

/// The wire's form of an expectation.
fn on_wire(
    reconciler: Option<&Reconciler>,
    expectation: Expectation,
    now_micros: i64,
) -> v1::ExpectationInfo {
    let state = state_of(&expectation, now_micros);
    let Expectation {
        product,
        task_id,
        labels,
        client,
        vendor_key,
        expected_at_micros,
        expected_by_micros,
        ..
    } = expectation;
    let key = reconciler.and_then(|it| it.key_of(&product, vendor_key.as_deref()));
    let checked = reconciler.map(|it| it.checked(&product, &task_id));
    let checked = checked.unwrap_or_default();
    v1::ExpectationInfo {
        product: product.to_string(),
        task_id: task_id.to_string(),
        labels: labels.into_iter().collect(),
        client: client.unwrap_or_default(),
        vendor_key: key.map(|key| key.to_string()).unwrap_or_default(),
        state: state.into(),
        expected_at: instant(expected_at_micros),
        expected_by: instant(expected_by_micros),
        check_count: checked.count,
        checked_at: checked.at_micros.and_then(instant),
        vendor_http_status: checked.http_status.into(),
        vendor_status: checked.vendor_status,
    }
}

fn instant(micros: i64) -> Option<prost_types::Timestamp> {
    Timestamp::from_microsecond(micros).ok().map(timestamp)
}
