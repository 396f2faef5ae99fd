//! `get` and `events`: print retained events, of one task or by a filter, page by page.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::{
    args::{FilterArgs, Moment},
    client::{Connection, GrpcArgs},
    output::{self, Format, Usage, note},
    raw,
    render::{EventPrinter, JSON_HELP, JSON_HELP_OF_BODY, time_json},
};
use crate::{
    event::{Product, TaskId, TaskStatus},
    wire::{
        Reason, status_to_wire, timestamp,
        v1::{self, event_service_client::EventServiceClient},
    },
};

/// Most events in a page: the broker's limit.
const PAGE_EVENTS_MAX: u64 = 256;

const RAW_NEEDS_JSON: &str = "--include-raw needs --output json";

/// Prints every retained event of one task, oldest first; without --product, of every product that has the task id.
#[derive(Args, Debug)]
#[command(after_help = "Exit codes: 0 printed; 1 no event of the task is retained, or another error; 2 usage.",
    after_long_help = format!("{JSON_HELP} {JSON_HELP_OF_BODY}\n\nExit codes: 0 printed; 1 no event of the task is retained, or another error; 2 usage."))]
pub(super) struct GetArgs {
    /// The vendor's id of the task.
    #[arg(value_parser = TaskId::parse)]
    task_id: TaskId,
    /// Only events of this product, for example veo.
    #[arg(long, value_name = "PRODUCT", value_parser = Product::parse)]
    product: Option<Product>,
    /// How to print events.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    /// Also print each callback's body as received (only with --output json).
    #[arg(long)]
    include_raw: bool,
    /// Print the body of the task's newest callback as received, and nothing else. It may have any size. An answer of the vendor's
    /// status API counts as one.
    #[arg(long, conflicts_with_all = ["include_raw", "output"])]
    raw: bool,
    #[command(flatten)]
    grpc: GrpcArgs,
}

const EXAMPLES: &str = "\
Examples:
  blobcast events --since 1h --status failed
  blobcast events --product veo --order newest --limit 10
  blobcast events --label team=ads --output json | jq -r '.outputs[].url'

Exit codes: 0 printed, also if there was nothing; 1 an error; 2 usage.";

/// Prints retained events that match, and ends.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{JSON_HELP} {JSON_HELP_OF_BODY}"))]
pub(super) struct EventsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only events received at or after this: a duration back from now (2h) or a time (RFC 3339).
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Only events received before this: a duration back from now (2h) or a time (RFC 3339).
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    until: Option<Moment>,
    /// Which end of the log to begin with.
    #[arg(long, value_name = "ORDER", default_value = "oldest")]
    order: Order,
    /// Print at most N events [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// How to print events.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    /// Also print each callback's body as received (only with --output json).
    #[arg(long)]
    include_raw: bool,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    /// Oldest first.
    Oldest,
    /// Newest first.
    Newest,
}

pub(super) async fn get(args: GetArgs) -> anyhow::Result<ExitCode> {
    if args.include_raw && args.output != Format::Json {
        return Err(Usage(RAW_NEEDS_JSON.into()).into());
    }

    let (task_id, include_raw) = (args.task_id.to_string(), args.include_raw);
    let product = args.product.as_ref().map(ToString::to_string);
    let request = v1::GetTaskRequest {
        task_id: task_id.clone(),
        include_raw,
        product: product.clone().unwrap_or_default(),
    };

    let mut client = args.grpc.events()?;
    let mut printer = EventPrinter::new(args.output);
    let of_task = || v1::ListEventsRequest {
        filter: Some(v1::Filter {
            task_ids: vec![task_id.clone()],
            products: product.clone().into_iter().collect(),
            ..v1::Filter::default()
        }),
        include_raw,
        ..v1::ListEventsRequest::default()
    };

    if args.raw {
        return print_raw(&args.grpc, client, of_task()).await;
    }

    match client.get_task(request).await {
        Ok(response) => {
            let v1::GetTaskResponse {
                events,
                repetitions,
            } = response.into_inner();
            let notes = notes_of(&events, &repetitions);
            for event in events {
                print_event(&args.grpc, &mut client, &mut printer, event, include_raw).await?;
            }
            notes.iter().for_each(|text| note(text));
        }
        Err(status) if Reason::of(&status) == Some(Reason::ResponseTooLarge) => {
            print_pages(&args.grpc, client, of_task(), &mut printer, u64::MAX).await?;
        }
        Err(status) => return Err(args.grpc.error(&status)),
    }

    Ok(ExitCode::SUCCESS)
}

/// Which events came more than once.
fn notes_of(events: &[v1::Event], repetitions: &[v1::Repetition]) -> Vec<String> {
    let note = |repetition: &v1::Repetition| {
        let event = events
            .iter()
            .find(|event| event.cursor == repetition.cursor)?;
        let last_at = time_json(repetition.last_received_at).unwrap_or_default();
        let (product, revision, count) = (&event.product, event.revision, repetition.count);
        let times = if count == 1 { "once" } else { "times" };
        let count = if count == 1 {
            String::new()
        } else {
            format!("{count} ")
        };
        Some(format!(
            "{product} revision {revision} was repeated {count}{times}, the last time at {last_at}"
        ))
    };
    repetitions.iter().filter_map(note).collect()
}

/// Prints the raw body of the newest event, in chunks.
async fn print_raw(
    grpc: &GrpcArgs,
    mut client: EventServiceClient<Connection>,
    of_task: v1::ListEventsRequest,
) -> anyhow::Result<ExitCode> {
    // Every status but the broker's own: such an event has no body.
    let of_vendor = TaskStatus::ALL
        .into_iter()
        .filter(|&status| status != TaskStatus::Overdue);
    let statuses = of_vendor.map(|status| status_to_wire(status).into());
    let newest = v1::ListEventsRequest {
        filter: of_task.filter.map(|filter| v1::Filter {
            statuses: statuses.collect(),
            ..filter
        }),
        page_size: 1,
        order: v1::Order::NewestFirst.into(),
        ..of_task
    };
    let page = client
        .list_events(newest)
        .await
        .map_err(|status| grpc.error(&status))?
        .into_inner();
    let event = page
        .events
        .first()
        .ok_or_else(|| anyhow::anyhow!("no event of the task with a body is retained"))?;
    let mut pieces = raw::Pieces::new(&mut client, &event.cursor);
    while let Some(piece) = pieces.next().await.map_err(|status| grpc.error(&status))? {
        output::emit(&piece)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn print_event(
    grpc: &GrpcArgs,
    client: &mut EventServiceClient<Connection>,
    printer: &mut EventPrinter,
    mut event: v1::Event,
    include_raw: bool,
) -> anyhow::Result<()> {
    if include_raw {
        raw::complete(client, &mut event)
            .await
            .map_err(|status| grpc.error(&status))?;
    }
    printer.print(&event)
}

pub(super) async fn events(args: EventsArgs) -> anyhow::Result<ExitCode> {
    let request = request(&args, Timestamp::now())?;
    let mut printer = EventPrinter::new(args.output);
    let limit = args.limit.unwrap_or(u64::MAX);
    print_pages(
        &args.grpc,
        args.grpc.events()?,
        request,
        &mut printer,
        limit,
    )
    .await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a listing page by page, up to `limit` events.
async fn print_pages(
    grpc: &GrpcArgs,
    mut client: EventServiceClient<Connection>,
    mut request: v1::ListEventsRequest,
    printer: &mut EventPrinter,
    limit: u64,
) -> anyhow::Result<()> {
    let mut remaining = limit;
    loop {
        let answer = client.list_events(request.clone()).await;
        let page = answer.map_err(|status| grpc.error(&status))?.into_inner();
        for event in page.events {
            print_event(grpc, &mut client, printer, event, request.include_raw).await?;
            remaining -= 1;
            if remaining == 0 {
                return Ok(());
            }
        }
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        request.page_token = page.next_page_token;
    }
}

fn request(args: &EventsArgs, now: Timestamp) -> anyhow::Result<v1::ListEventsRequest> {
    if args.include_raw && args.output != Format::Json {
        return Err(Usage(RAW_NEEDS_JSON.into()).into());
    }
    let time = |moment: Option<Moment>| moment.map(|moment| timestamp(moment.resolve(now)));
    let order = match args.order {
        Order::Oldest => v1::Order::OldestFirst,
        Order::Newest => v1::Order::NewestFirst,
    };
    let page_size = args.limit.unwrap_or(PAGE_EVENTS_MAX).min(PAGE_EVENTS_MAX);
    Ok(v1::ListEventsRequest {
        filter: Some(args.filter.to_wire()?),
        page_size: page_size as i32, // at most 256
        page_token: String::new(),
        order: order.into(),
        since: time(args.since),
        until: time(args.until),
        include_raw: args.include_raw,
    })
}
