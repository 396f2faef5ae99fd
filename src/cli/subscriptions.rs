//! `subscriptions`: lists the open streams with their filters and lag, or ends some of them,
//! through the admin service.

use std::process::ExitCode;

use clap::{Args, builder::NonEmptyStringValueParser};
use jiff::Timestamp;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{
    EXIT_OTHER,
    brokers::{Broker, complete, stop_if_only},
    client::GrpcArgs,
    output::{self, Format, note},
    problem::Refusal,
    render::{clock, instant, name, status_word, time_json},
};
use crate::wire::v1;

/// Lists the open subscriptions, oldest first, or ends some of them.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast subscriptions
  blobcast subscriptions --end 2f1c… --end 77ab…
  blobcast subscriptions --end-client billing

With several addresses, the streams of each of these brokers are listed, one broker after the other: each node of a cluster has its own.

The client of an ended stream gets ABORTED SUBSCRIPTION_ENDED; the stream is printed as it was. If \
the client opens another one after its last cursor, it misses nothing: to keep it out, remove its \
line from the credentials file.

Exit codes: 0 done; 1 a stream to end was not found, or another error; 2 usage.")]
pub(super) struct SubscriptionsArgs {
    /// End the stream with this id instead; repeat it for more.
    #[arg(long, value_name = "ID")]
    end: Vec<String>,
    /// End all streams and waits of the client with this name in the credentials file.
    #[arg(long, value_name = "NAME", conflicts_with = "end", value_parser = NonEmptyStringValueParser::new())]
    end_client: Option<String>,
    /// How to print the list: a table, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: SubscriptionsArgs) -> anyhow::Result<ExitCode> {
    let mut brokers = Broker::each(&args.grpc)?;
    if let Some(name) = &args.end_client {
        return end_client(&args, &mut brokers, name).await;
    }
    if !args.end.is_empty() {
        return end(&args, &mut brokers, &args.end, Missing::IsError).await;
    }
    list(&args, &mut brokers).await
}

impl Broker {
    /// Calls `each` with every stream that is open here, page by page. The inner error is the broker's.
    async fn list(
        &mut self,
        mut each: impl FnMut(&v1::Subscription) -> anyhow::Result<()>,
    ) -> anyhow::Result<Result<(), Status>> {
        let mut request = v1::ListSubscriptionsRequest::default();
        loop {
            let page = match self.client.list_subscriptions(request.clone()).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => return Ok(Err(status)),
            };
            page.subscriptions.iter().try_for_each(&mut each)?;
            if page.next_page_token.is_empty() {
                return Ok(Ok(()));
            }
            request.page_token = page.next_page_token;
        }
    }
}

/// How to handle an id that is not found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// The user named it.
    IsError,
    /// It was listed a moment ago, so it has ended by itself.
    IsDone,
}

async fn end(
    args: &SubscriptionsArgs,
    brokers: &mut [Broker],
    ids: &[String],
    missing: Missing,
) -> anyhow::Result<ExitCode> {
    let (mut rows, mut all_were_there) = (Vec::new(), true);
    let now = Timestamp::now();
    for id in ids {
        match end_one(brokers, id).await {
            Ended::Stream(ended) => match args.output {
                Format::Json => output::emit_json(&as_json(&ended))?,
                Format::Pretty => rows.push(row(&ended, now)),
            },
            Ended::NotFound(_) if missing == Missing::IsDone => {}
            Ended::NotFound(status) => {
                note(&format!("{id}: {:#}", args.grpc.error(&status)));
                all_were_there = false;
            }
            Ended::Unknown(away) => {
                // The streams that were ended are printed in any case.
                print_table(args.output, &rows)?;
                complete(&args.grpc, &away)?;
            }
        }
    }

    print_table(args.output, &rows)?;
    Ok(if all_were_there {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_OTHER)
    })
}

/// What came of ending a stream.
enum Ended {
    Stream(Box<v1::Subscription>),
    /// No broker has it.
    NotFound(Status),
    /// These brokers did not answer, and the others do not have it.
    Unknown(Vec<Refusal>),
}

/// Ends one stream, at the broker that has it.
async fn end_one(brokers: &mut [Broker], id: &str) -> Ended {
    let (mut away, mut not_found) = (Vec::new(), Status::not_found(""));
    for broker in brokers {
        let request = v1::EndSubscriptionRequest {
            subscription_id: id.to_owned(),
        };
        match broker.client.end_subscription(request).await {
            Ok(answer) => {
                let ended = answer.into_inner().subscription.unwrap_or_default();
                return Ended::Stream(Box::new(ended));
            }
            Err(status) if status.code() == Code::NotFound => not_found = status,
            Err(status) => away.push(broker.refusal(status)),
        }
    }

    if away.is_empty() {
        Ended::NotFound(not_found)
    } else {
        Ended::Unknown(away)
    }
}

async fn end_client(
    args: &SubscriptionsArgs,
    brokers: &mut [Broker],
    name: &str,
) -> anyhow::Result<ExitCode> {
    let (mut ids, mut away) = (Vec::new(), Vec::new());
    for broker in &mut *brokers {
        let listed = broker.list(|subscription| {
            if subscription.client == name {
                ids.push(subscription.subscription_id.clone());
            }
            Ok(())
        });
        if let Err(status) = listed.await? {
            away.push(broker.refusal(status));
            stop_if_only(&args.grpc, &away)?;
        }
    }

    if ids.is_empty() {
        complete(&args.grpc, &away)?;
        note(&format!("{name} has no stream open"));
        return Ok(ExitCode::from(EXIT_OTHER));
    }
    let ended = end(args, brokers, &ids, Missing::IsDone).await?;
    complete(&args.grpc, &away)?;
    Ok(ended)
}

async fn list(args: &SubscriptionsArgs, brokers: &mut [Broker]) -> anyhow::Result<ExitCode> {
    let (mut rows, mut away) = (Vec::new(), Vec::new());
    let now = Timestamp::now();
    for broker in brokers {
        let listed = broker.list(|subscription| {
            match args.output {
                Format::Json => output::emit_json(&as_json(subscription))?,
                Format::Pretty => rows.push(row(subscription, now)),
            }
            Ok(())
        });
        if let Err(status) = listed.await? {
            away.push(broker.refusal(status));
            stop_if_only(&args.grpc, &away)?;
        }
    }

    if args.output == Format::Pretty && rows.is_empty() && away.is_empty() {
        note("no subscription is open");
    }
    print_table(args.output, &rows)?;
    complete(&args.grpc, &away)?;
    Ok(ExitCode::SUCCESS)
}

fn print_table(format: Format, rows: &[[String; 8]]) -> anyhow::Result<()> {
    if format == Format::Json || rows.is_empty() {
        return Ok(());
    }
    let header = [
        "ID",
        "CLIENT",
        "PEER",
        "STATE",
        "LAG",
        "DELIVERED",
        "OPENED",
        "FILTER",
    ];
    output::emit_table(header, rows)
}

fn row(subscription: &v1::Subscription, now: Timestamp) -> [String; 8] {
    let state = match subscription.state() {
        v1::SubscriptionState::Unspecified => "-",
        v1::SubscriptionState::CatchingUp => "catching up",
        v1::SubscriptionState::Live => "live",
        v1::SubscriptionState::Stalled => "stalled",
    };

    [
        subscription.subscription_id.clone(),
        match (
            subscription.client.as_str(),
            subscription.client_name.as_str(),
        ) {
            ("", name) | (name, "") => name.to_owned(),
            (client, name) => format!("{client} ({name})"),
        },
        subscription.peer.clone(),
        state.to_owned(),
        subscription.lag.to_string(),
        subscription.delivered_count.to_string(),
        subscription
            .opened_at
            .and_then(instant)
            .map_or_else(|| "-".to_owned(), |time| clock(time, now)),
        filter_text(subscription),
    ]
}

/// `products=veo,sora statuses=failed`, with `bound=team:ads` if the client is bound to labels;
/// `everything` without any restriction.
fn filter_text(subscription: &v1::Subscription) -> String {
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

fn as_json(subscription: &v1::Subscription) -> Value {
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
