//! `GetTask`: every retained event of one task, in one answer.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::{Context, errors, fields};
use crate::{
    budget::Payer,
    event::{Filter, Product, Sequence, TaskId},
    repetitions::Repetitions,
    store::{Keep, ReadError},
    subscription::Sources,
    wire::{Delivery, Frame, Malformed, Raw, timestamp, v1},
};

/// Most bytes of the events in an answer, which is one message. Clients accept 4 MiB by default; the rest is for framing.
pub(super) const TASK_BYTES_MAX: usize = 4 * 1024 * 1024 - 64 * 1024;

/// The events of a task, oldest first.
pub(super) async fn get(
    context: &Context,
    request: Request<v1::GetTaskRequest>,
) -> Result<Response<Frame>, Status> {
    let caller = context.gate.caller_of(&request)?;
    let payer = Payer::of(&request, &caller);
    let v1::GetTaskRequest {
        task_id,
        include_raw,
        product,
    } = request.into_inner();

    let filter = caller.narrow_filter(one_task(&task_id, &product)?)?;

    // Once as it is stored, once as it is sent.
    let take = || context.answers.take(&payer, 2 * TASK_BYTES_MAX);
    let read = async |filter, granted| read(context, filter, include_raw, granted).await;
    let (mut page, mut granted) = read(filter.clone(), take().await?).await?;
    // Another node may have answered a callback of the task.
    if page == Some(None)
        && let Some(caught_up) = context.journal.catch_up()
    {
        drop(granted); // others need the memory meanwhile
        let has_caught_up = caught_up.await;
        (page, granted) = read(filter, take().await?).await?;
        if page == Some(None) && !has_caught_up {
            return Err(errors::behind(&context.sources));
        }
    }
    match page.ok_or_else(|| errors::task_too_large(TASK_BYTES_MAX, &product, include_raw))? {
        None => Err(errors::task_not_found(&task_id, &product)),
        Some(page) => Ok(context.answers.respond(page, granted)),
    }
}

/// The answer, if there is an event of the task; `None` if it is too large.
async fn read<T: Send + 'static>(
    context: &Context,
    filter: Filter,
    include_raw: bool,
    granted: T,
) -> Result<(Option<Option<Bytes>>, T), Status> {
    let known = Arc::clone(&context.repetitions);
    let read = move |sources: &Sources| {
        let events = task_events(sources, &filter, include_raw)?;
        let page = |events: Vec<Delivery>| {
            (!events.is_empty()).then(|| {
                let repetitions = repetitions(sources, &known, &events);
                Frame::Task {
                    events,
                    repetitions,
                }
                .encoded()
            })
        };
        Ok((events.map(page), granted))
    };
    context.read(read).await
}

/// How often callbacks have repeated these events.
fn repetitions(sources: &Sources, known: &Repetitions, events: &[Delivery]) -> Vec<v1::Repetition> {
    let of_event = |event: &Delivery| {
        let place = event.record.sequence();
        known.of(place).map(|repetition| v1::Repetition {
            cursor: sources.store.cursor(place).to_string(),
            count: repetition.count,
            last_received_at: Some(timestamp(repetition.last_at)),
        })
    };
    events.iter().filter_map(of_event).collect()
}

/// Every event of the filter's task and products; `None` if they are more than one answer holds. A raw body that is not sent is not
/// held either.
fn task_events(
    sources: &Sources,
    filter: &Filter,
    include_raw: bool,
) -> Result<Option<Vec<Delivery>>, ReadError> {
    let store = &sources.store;
    let places = store.task_events(&filter.task_ids, Sequence(1)..=store.head(), Keep::All)?;
    let (mut events, mut bytes) = (Vec::new(), 0);
    let is_selected =
        |product: &Product| filter.products.is_empty() || filter.products.contains(product);
    for place in places
        .into_iter()
        .filter(|place| is_selected(&place.product))
    {
        // Retention may take one between the two reads; it is then no longer retained.
        let found = store.get(place.sequence)?;
        let Some(record) = found.filter(|record| filter.matches(record) && !record.is_erased())
        else {
            continue;
        };
        let mut event = Delivery::new(store.epoch(), record, include_raw);
        if event.raw != Raw::Sent {
            event.record = event.record.without_raw();
        }
        bytes += event.encoded_len();
        if bytes > TASK_BYTES_MAX {
            return Ok(None);
        }
        events.push(event);
    }

    Ok(Some(events))
}

/// One task, of one product if it is named.
pub(super) fn one_task(task_id: &str, product: &str) -> Result<Filter, Malformed> {
    let task_id = fields::parse("task_id", task_id, TaskId::parse)?;
    let product = fields::optional("product", product, Product::parse)?;
    Ok(Filter {
        task_ids: [task_id].into(),
        products: product.into_iter().collect(),
        ..Filter::default()
    })
}
