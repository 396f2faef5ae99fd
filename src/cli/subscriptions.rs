//! `subscriptions`: lists the open streams with their filters and lag, or ends some of them,
//! through the admin service.

use std::process::ExitCode;

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};
use jiff::Timestamp;
use tonic::{Code, Status};

use super::{
    EXIT_OTHER,
    brokers::{Broker, complete, stop_if_only},
    client::GrpcArgs,
    ended_subscriptions::{self, Asked},
    output::{self, Format, note},
    problem::Refusal,
    render::{clock, instant},
    subscription_text::{as_json, client_text, filter_text},
};
use crate::{event::TaskId, wire::v1};

/// Lists the open subscriptions, or those that have ended, or ends some of them.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast subscriptions
  blobcast subscriptions --order lag --limit 10
  blobcast subscriptions --task-id 7f3a       who waits for a task
  blobcast subscriptions --ended --client billing
  blobcast subscriptions --end 2f1c… --end 77ab…
  blobcast subscriptions --end-client billing

With several addresses, the streams of each of these brokers are listed, one broker after the other: each node of a cluster has its own.

With --ended: the last 1,000 streams that ended since the broker started, newest first. CAUSE is \
client_gone if the connection broke or the call was cancelled; FOR is how long the stream was open.

The client of a stream that --end ends gets ABORTED SUBSCRIPTION_ENDED; the stream is printed as it was. If \
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
    /// List the streams that have ended, and why, newest first.
    #[arg(long, conflicts_with_all = ["end", "end_client", "order"])]
    ended: bool,
    /// Which come first: the oldest, or those with the greatest lag.
    #[arg(long, value_name = "ORDER", default_value = "age", conflicts_with_all = ["end", "end_client"])]
    order: Order,
    /// Only streams of this client: its name in the credentials file, or the name that it gave itself.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["end", "end_client"], value_parser = NonEmptyStringValueParser::new())]
    client: Option<String>,
    /// Only streams whose filter names this task, and waits for it.
    #[arg(long, value_name = "TASK_ID", conflicts_with_all = ["end", "end_client", "ended"], value_parser = TaskId::parse)]
    task_id: Option<TaskId>,
    /// Most streams to list, of each broker. Default: all.
    #[arg(long, value_name = "N", conflicts_with_all = ["end", "end_client"], value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// How to print the list: a table, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

/// Which streams come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    /// The oldest.
    Age,
    /// Those with the greatest lag.
    Lag,
}

impl SubscriptionsArgs {
    /// The request for a first page.
    fn request(&self) -> v1::ListSubscriptionsRequest {
        let order = match self.order {
            Order::Age => v1::SubscriptionOrder::OldestFirst,
            Order::Lag => v1::SubscriptionOrder::LagFirst,
        };
        v1::ListSubscriptionsRequest {
            order: order.into(),
            client: self.client.clone().unwrap_or_default(),
            task_id: self
                .task_id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            ..v1::ListSubscriptionsRequest::default()
        }
    }

    fn limit(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| limit as usize)
    }
}

pub(super) async fn run(args: SubscriptionsArgs) -> anyhow::Result<ExitCode> {
    let mut brokers = Broker::each(&args.grpc)?;
    if let Some(name) = &args.end_client {
        return end_client(&args, &mut brokers, name).await;
    }
    if !args.end.is_empty() {
        return end(&args, &mut brokers, &args.end, Missing::IsError).await;
    }
    if args.ended {
        let asked = Asked {
            grpc: &args.grpc,
            client: args.client.as_deref().unwrap_or_default(),
            limit: args.limit(),
            output: args.output,
        };
        return ended_subscriptions::list(&asked, &mut brokers).await;
    }
    list(&args, &mut brokers).await
}

impl Broker {
    /// Calls `each` with the first `limit` streams that are open here, page by page. The inner error is the broker's.
    async fn list(
        &mut self,
        mut request: v1::ListSubscriptionsRequest,
        mut limit: usize,
        mut each: impl FnMut(&v1::Subscription) -> anyhow::Result<()>,
    ) -> anyhow::Result<Result<(), Status>> {
        loop {
            let page = match self.client.list_subscriptions(request.clone()).await {
                Ok(answer) => answer.into_inner(),
                Err(status) => return Ok(Err(status)),
            };
            let shown = page.subscriptions.iter().take(limit);
            shown.clone().try_for_each(&mut each)?;
            limit -= shown.len();
            if limit == 0 || page.next_page_token.is_empty() {
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
        let all = v1::ListSubscriptionsRequest::default();
        let listed = broker.list(all, usize::MAX, |subscription| {
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
        let listed = broker.list(args.request(), args.limit(), |subscription| {
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
        note(match (&args.client, &args.task_id) {
            (Some(_), None) => "that client has no subscription open",
            (None, None) => "no subscription is open",
            (_, Some(_)) => "no open subscription names that task, and nobody waits for it",
        });
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
        client_text(subscription),
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
