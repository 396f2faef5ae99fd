//! Open subscriptions, as administrators see and end them.

use std::collections::HashSet;

use tonic::Status;

use super::{Context, errors, page};
use crate::{
    audit::Entry,
    subscription::{ListedSubscription, SubscriptionState},
    wire::{status_to_wire, timestamp, v1},
};

/// Most task ids of a subscription that a listing shows.
const TASK_IDS_SHOWN: usize = 16;
/// What page tokens of this listing are bound to, so that no other listing accepts them.
const LISTING: u64 = 1;

/// One page of the open subscriptions.
pub(super) fn list(
    context: &Context,
    request: v1::ListSubscriptionsRequest,
) -> Result<v1::ListSubscriptionsResponse, Status> {
    let v1::ListSubscriptionsRequest {
        page_size,
        page_token,
    } = request;

    let page_size = page::size(page_size)?;
    let after = page::place(&page_token, LISTING, u64::MAX)?.unwrap_or(0);
    let sources = &context.sources;
    let listed = sources.registry.list(&sources.hub, after, page_size);
    let last = listed
        .last()
        .filter(|_| listed.len() == page_size)
        .map(|last| last.number);

    Ok(v1::ListSubscriptionsResponse {
        next_page_token: last
            .map(|number| page::token(number, LISTING))
            .unwrap_or_default(),
        subscriptions: listed
            .into_iter()
            .map(|listed| on_wire(context, listed))
            .collect(),
    })
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
        subscription: Some(on_wire(context, ended)),
    })
}

/// The wire's form of a subscription.
fn on_wire(context: &Context, listed: ListedSubscription) -> v1::Subscription {
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
        lag: store.head().0.saturating_sub(listed.position.0),
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
