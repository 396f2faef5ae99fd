//! Open subscriptions, as administrators see and end them.

use std::{collections::HashSet, mem};

use tonic::Status;

use super::{Context, errors, fields, page};
use crate::{
    audit::Entry,
    event::{Sequence, TaskId},
    subscription::{
        EndedSubscription, ListedSubscription, SubscriptionState, TASK_IDS_SHOWN, Wanted,
    },
    wire::{Malformed, status_to_wire, timestamp, v1},
};

/// What page tokens of these listings are bound to beside their requests, so that no other listing accepts them.
const LISTING: u64 = 1;
const ENDED_LISTING: u64 = 4;

/// One page of the open subscriptions.
pub(super) async fn list(
    context: &Context,
    mut request: v1::ListSubscriptionsRequest,
) -> Result<v1::ListSubscriptionsResponse, Status> {
    let page_size = page::size(mem::take(&mut request.page_size))?;
    let token = mem::take(&mut request.page_token);
    let binding = LISTING ^ page::binding(&request);
    let order = v1::SubscriptionOrder::try_from(request.order)
        .map_err(|_| Malformed::new("order", "no such order"))?;
    let wanted = Wanted {
        task_id: fields::optional("task_id", &request.task_id, TaskId::parse)?,
        client: request.client,
    };

    let (registry, hub) = (&context.sources.registry, &context.sources.hub);
    let by_lag = order == v1::SubscriptionOrder::LagFirst;
    let listed = if by_lag {
        let after = page::places(&token, binding)?;
        let after = after.map(|(position, number)| (Sequence(position), number));
        registry.most_behind(hub, after, page_size, &wanted).await
    } else {
        let after = page::place(&token, binding, u64::MAX)?.unwrap_or(0);
        registry.oldest(hub, after, page_size, &wanted).await
    };

    let last = listed.last().filter(|_| listed.len() == page_size);
    let token_of = |last: &ListedSubscription| match by_lag {
        true => page::token_of_two((last.position.0, last.number), binding),
        false => page::token(last.number, binding),
    };
    Ok(v1::ListSubscriptionsResponse {
        next_page_token: last.map(token_of).unwrap_or_default(),
        subscriptions: listed
            .into_iter()
            .map(|listed| open_on_wire(context, listed))
            .collect(),
    })
}

/// One page of the subscriptions that have ended.
pub(super) fn list_ended(
    context: &Context,
    mut request: v1::ListEndedSubscriptionsRequest,
    entry: &mut Entry,
) -> Result<v1::ListEndedSubscriptionsResponse, Status> {
    let page_size = page::size(mem::take(&mut request.page_size))?;
    let token = mem::take(&mut request.page_token);
    let binding = ENDED_LISTING ^ page::binding(&request);
    let before = page::place(&token, binding, u64::MAX)?.unwrap_or(u64::MAX);

    let registry = &context.sources.registry;
    let mut found = registry.ended(before, page_size + 1, &request.client);
    let has_more = found.len() > page_size;
    found.truncate(page_size);
    entry.note("count", found.len());

    let last = found.last().filter(|_| has_more);
    Ok(v1::ListEndedSubscriptionsResponse {
        next_page_token: last
            .map(|(number, _)| page::token(*number, binding))
            .unwrap_or_default(),
        subscriptions: found
            .iter()
            .map(|(_, ended)| ended_on_wire(context, ended))
            .collect(),
    })
}

fn ended_on_wire(context: &Context, ended: &EndedSubscription) -> v1::EndedSubscription {
    let subscription = v1::Subscription {
        task_id_count: u32::try_from(ended.task_id_count).unwrap_or(u32::MAX),
        ..on_wire(context, ended.last.clone(), ended.lag)
    };
    v1::EndedSubscription {
        subscription: Some(subscription),
        ended_at: Some(timestamp(ended.ended_at)),
        cause: ended.cause.to_owned(),
        filter_cut: ended.is_cut,
    }
}

/// Ends a subscription.
pub(super) fn end(
    context: &Context,
    request: &v1::EndSubscriptionRequest,
    entry: &mut Entry,
) -> Result<v1::EndSubscriptionResponse, Status> {
    let sources = &context.sources;
    let ended = sources.registry.end(&sources.hub, &request.subscription_id);
    let ended = ended.ok_or_else(errors::subscription_not_found)?;
    entry.note("ended_client", ended.client.as_deref().unwrap_or_default());
    Ok(v1::EndSubscriptionResponse {
        subscription: Some(open_on_wire(context, ended)),
    })
}

/// The wire's form of an open subscription.
pub(super) fn open_on_wire(context: &Context, listed: ListedSubscription) -> v1::Subscription {
    let head = context.sources.store.head();
    let lag = head.0.saturating_sub(listed.position.0);
    on_wire(context, listed, lag)
}

/// The wire's form of a subscription.
fn on_wire(context: &Context, listed: ListedSubscription, lag: u64) -> v1::Subscription {
    let store = &context.sources.store;
    let filter = &listed.filter;
    v1::Subscription {
        subscription_id: listed.id,
        client: listed
            .client
            .map(|client| client.to_string())
            .unwrap_or_default(),
        client_name: listed.client_name,
        peer: listed.peer,
        filter: Some(v1::Filter {
            task_ids: sorted(&filter.task_ids, TASK_IDS_SHOWN),
            products: filter.products.iter().map(ToString::to_string).collect(),
            statuses: filter
                .statuses
                .iter()
                .map(|&status| status_to_wire(status).into())
                .collect(),
            labels: filter.labels.clone().into_iter().collect(),
        }),
        bound_labels: filter
            .bound
            .iter()
            .flat_map(|bound| (**bound).clone())
            .collect(),
        task_id_count: u32::try_from(filter.task_ids.len()).unwrap_or(u32::MAX),
        state: match listed.state {
            SubscriptionState::CatchingUp => v1::SubscriptionState::CatchingUp.into(),
            SubscriptionState::Live => v1::SubscriptionState::Live.into(),
            SubscriptionState::Stalled => v1::SubscriptionState::Stalled.into(),
        },
        cursor: store.cursor(listed.position).to_string(),
        lag,
        delivered_count: listed.delivered,
        opened_at: Some(timestamp(listed.opened_at)),
    }
}

/// The first `count_max` of a set, in an order that does not change from call to call.
fn sorted<T: Ord + ToString>(set: &HashSet<T>, count_max: usize) -> Vec<String> {
    let mut values: Vec<_> = set.iter().collect();
    values.sort_unstable();
    values
        .into_iter()
        .take(count_max)
        .map(ToString::to_string)
        .collect()
}
