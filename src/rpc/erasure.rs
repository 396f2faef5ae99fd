//! `EraseTask`: the content of a task's events is overwritten, and the task is not expected any more.

use tonic::Status;

use super::{Context, access::Caller, errors, fields};
use crate::{
    audit::Entry,
    event::{Product, Sequence, TaskId},
    store::{ERASURE_PLACES_MAX, Erased, Erasure},
    subscription::Sources,
    wire::v1,
};

/// Erases every event of a task.
pub(super) async fn erase(
    context: &Context,
    caller: &Caller,
    request: v1::EraseTaskRequest,
    entry: &mut Entry,
) -> Result<v1::EraseTaskResponse, Status> {
    let v1::EraseTaskRequest { product, task_id } = request;
    let product = fields::parse("product", &product, Product::parse)?;
    let task_id = fields::parse("task_id", &task_id, TaskId::parse)?;

    // Whether there was something to erase shows whether events are there.
    if !caller.may_see_product(&product) {
        return Err(errors::product_denied(product.as_str()));
    }

    let (of_task, of_product) = (task_id.clone(), product.clone());
    let read = move |sources: &Sources| {
        let is_expected = sources.store.expectation(&of_product, &of_task).is_some();
        let places = sources.store.places_of_task(&of_task, &of_product)?;
        Ok((places, is_expected))
    };
    let (places, is_expected) = context.read(read).await?;

    let is_known = is_expected || !places.is_empty();
    let Erased { events, bytes } = erase_all(context, &task_id, &product, &places).await?;
    if events == 0 && !is_known {
        return Err(errors::task_not_found(task_id.as_str(), product.as_str()));
    }
    entry.note("count", events);
    Ok(v1::EraseTaskResponse {
        erased_count: events,
        erased_bytes: bytes,
    })
}

/// In commits of a bounded size.
async fn erase_all(
    context: &Context,
    task_id: &TaskId,
    product: &Product,
    places: &[Sequence],
) -> Result<Erased, Status> {
    let (mut rest, mut all) = (places, Erased::default());

    loop {
        let (places, behind) = rest.split_at(rest.len().min(ERASURE_PLACES_MAX));
        let erasure = Erasure {
            task_id: task_id.clone(),
            product: product.clone(),
            places: places.to_vec(),
        };
        let Erased { events, bytes } = context.answered(context.journal.erase(erasure).await)?;
        all.events += events;
        all.bytes += bytes;
        rest = behind;
        if rest.is_empty() {
            return Ok(all);
        }
    }
}
