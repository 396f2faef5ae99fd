//! A stream as listings show it: the names of its client, its filter, and all of it as JSON. Pure.

use serde_json::{Value, json};

use super::render::{name, status_word, time_json};
use crate::wire::v1;

/// Both names of a stream's client.
pub(super) fn client_text(subscription: &v1::Subscription) -> String {
    match (
        subscription.client.as_str(),
        subscription.client_name.as_str(),
    ) {
        ("", name) | (name, "") => name.to_owned(),
        (client, name) => format!("{client} ({name})"),
    }
}

/// `products=veo,sora statuses=failed`, with `bound=team:ads` if the client is bound to labels;
/// `everything` without any restriction.
pub(super) fn filter_text(subscription: &v1::Subscription) -> String {
    let filter = subscription.filter.clone().unwrap_or_default();
    let statuses: Vec<_> = filter
        .statuses()
        .map(|status| status_word(status).to_owned())
        .collect();

    let mut labels: Vec<_> = filter
        .labels
        .iter()
        .map(|(key, value)| format!("{key}:{value}"))
        .collect();

    labels.sort();
    let tasks = match (filter.task_ids.as_slice(), subscription.task_id_count) {
        ([], 0) => vec![],
        ([one], 0 | 1) => vec![one.clone()],
        (_, count) => vec![format!("{count} ids")],
    };

    let mut bound: Vec<_> = subscription
        .bound_labels
        .iter()
        .map(|(key, value)| format!("{key}:{value}"))
        .collect();

    bound.sort();
    let fields = [
        ("tasks", tasks),
        ("products", filter.products),
        ("statuses", statuses),
        ("labels", labels),
        ("bound", bound),
    ];

    let set = fields.iter().filter(|(_, values)| !values.is_empty());
    let text = set
        .map(|(name, values)| format!("{name}={}", values.join(",")))
        .collect::<Vec<_>>()
        .join(" ");
    if text.is_empty() {
        "everything".to_owned()
    } else {
        text
    }
}

pub(super) fn as_json(subscription: &v1::Subscription) -> Value {
    let filter = subscription.filter.clone().unwrap_or_default();
    let statuses: Vec<_> = filter
        .statuses
        .iter()
        .map(|&status| name(status, v1::TaskStatus::as_str_name))
        .collect();
    json!({
        "subscription_id": subscription.subscription_id,
        "client": subscription.client,
        "client_name": subscription.client_name,
        "peer": subscription.peer,
        "filter": {
            "task_ids": filter.task_ids,
            "products": filter.products,
            "statuses": statuses,
            "labels": filter.labels,
        },
        "bound_labels": subscription.bound_labels,
        "task_id_count": subscription.task_id_count,
        "state": name(subscription.state, v1::SubscriptionState::as_str_name),
        "cursor": subscription.cursor,
        "lag": subscription.lag,
        "delivered_count": subscription.delivered_count,
        "opened_at": time_json(subscription.opened_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription() -> v1::Subscription {
        let filter = v1::Filter {
            products: vec!["veo".into(), "sora".into()],
            statuses: vec![v1::TaskStatus::Failed.into()],
            ..v1::Filter::default()
        };
        v1::Subscription {
            subscription_id: "s1".into(),
            filter: Some(filter),
            state: v1::SubscriptionState::Live.into(),
            lag: 3,
            ..v1::Subscription::default()
        }
    }

    #[test]
    fn a_filter_is_shown_as_a_short_text() {
        assert_eq!(
            filter_text(&subscription()),
            "products=veo,sora statuses=failed"
        );
        assert_eq!(filter_text(&v1::Subscription::default()), "everything");
        let bound_labels = [("team".to_owned(), "ads".to_owned())].into();
        assert_eq!(
            filter_text(&v1::Subscription {
                bound_labels,
                ..subscription()
            }),
            "products=veo,sora statuses=failed bound=team:ads"
        );
        let task_ids = (0..16).map(|n| n.to_string()).collect();
        let many = v1::Filter {
            task_ids,
            ..v1::Filter::default()
        };
        let many = v1::Subscription {
            filter: Some(many),
            task_id_count: 9000,
            ..v1::Subscription::default()
        };
        assert_eq!(filter_text(&many), "tasks=9000 ids");
    }

    #[test]
    fn json_uses_the_names_of_the_proto() {
        let value = as_json(&subscription());
        assert_eq!(value["state"], "SUBSCRIPTION_STATE_LIVE");
        assert_eq!(value["filter"]["statuses"], json!(["TASK_STATUS_FAILED"]));
    }
}
