//! `subscriptions`: who is listening, to what, and how far behind.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    client::GrpcArgs,
    output::{self, Format, note},
    render::{clock, instant, name, status_word, time_json},
};
use crate::wire::v1;

/// Lists the open subscriptions, oldest first.
#[derive(Args, Debug)]
pub(super) struct SubscriptionsArgs {
    /// How to print the list: a table, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: SubscriptionsArgs) -> anyhow::Result<ExitCode> {
    let mut client = args.grpc.admin()?;
    let mut request = v1::ListSubscriptionsRequest::default();
    let mut rows = Vec::new();
    let now = Timestamp::now();
    loop {
        let answer = client.list_subscriptions(request.clone()).await;
        let page = answer.map_err(|status| args.grpc.error(&status))?.into_inner();
        for subscription in &page.subscriptions {
            match args.output {
                Format::Json => output::emit_json(&as_json(subscription))?,
                Format::Pretty => rows.push(row(subscription, now)),
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    match args.output {
        Format::Pretty if rows.is_empty() => note("nobody is subscribed"),
        Format::Pretty => {
            let header = ["ID", "CLIENT", "PEER", "STATE", "LAG", "DELIVERED", "OPENED", "FILTER"];
            output::emit_table(header, &rows)?;
        }
        Format::Json => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn row(subscription: &v1::Subscription, now: Timestamp) -> [String; 8] {
    let state = match subscription.state() {
        v1::SubscriptionState::Unspecified => "-",
        v1::SubscriptionState::CatchingUp => "catching up",
        v1::SubscriptionState::Live => "live",
    };
    [
        subscription.subscription_id.clone(),
        match (subscription.client.as_str(), subscription.client_name.as_str()) {
            ("", name) | (name, "") => name.to_owned(),
            (client, name) => format!("{client} ({name})"),
        },
        subscription.peer.clone(),
        state.to_owned(),
        subscription.lag.to_string(),
        subscription.delivered_count.to_string(),
        subscription.opened_at.and_then(instant).map_or_else(|| "-".to_owned(), |time| clock(time, now)),
        filter_text(subscription),
    ]
}

/// `products=veo,sora statuses=failed`; `everything` if nothing restricts it.
fn filter_text(subscription: &v1::Subscription) -> String {
    let filter = subscription.filter.clone().unwrap_or_default();
    let statuses: Vec<_> = filter.statuses().map(|status| status_word(status).to_owned()).collect();
    let mut labels: Vec<_> = filter.labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
    labels.sort();
    let tasks = match (filter.task_ids.as_slice(), subscription.task_id_count) {
        ([], 0) => vec![],
        ([one], 0 | 1) => vec![one.clone()],
        (_, count) => vec![format!("{count} ids")],
    };
    let fields = [("tasks", tasks), ("products", filter.products), ("statuses", statuses), ("labels", labels)];
    let set = fields.iter().filter(|(_, values)| !values.is_empty());
    let text = set.map(|(name, values)| format!("{name}={}", values.join(","))).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "everything".to_owned() } else { text }
}

fn as_json(subscription: &v1::Subscription) -> Value {
    let filter = subscription.filter.clone().unwrap_or_default();
    let statuses: Vec<_> = filter.statuses.iter().map(|&status| name(status, v1::TaskStatus::as_str_name)).collect();
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
    fn a_filter_is_told_in_few_words() {
        assert_eq!(filter_text(&subscription()), "products=veo,sora statuses=failed");
        assert_eq!(filter_text(&v1::Subscription::default()), "everything");
        let task_ids = (0..16).map(|n| n.to_string()).collect();
        let many = v1::Filter { task_ids, ..v1::Filter::default() };
        let many = v1::Subscription { filter: Some(many), task_id_count: 9000, ..v1::Subscription::default() };
        assert_eq!(filter_text(&many), "tasks=9000 ids");
    }

    #[test]
    fn json_uses_the_names_of_the_proto() {
        let value = as_json(&subscription());
        assert_eq!(value["state"], "SUBSCRIPTION_STATE_LIVE");
        assert_eq!(value["filter"]["statuses"], json!(["TASK_STATUS_FAILED"]));
    }
}
