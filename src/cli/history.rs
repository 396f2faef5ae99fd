//! `get` and `events`: what is retained.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::{
    args::{FilterArgs, Moment},
    client::GrpcArgs,
    output::{Format, Usage},
    render::{EventPrinter, JSON_HELP},
};
use crate::{
    event::TaskId,
    wire::{timestamp, v1},
};

/// Most events in a page; the broker's own limit.
const PAGE_EVENTS_MAX: u64 = 256;

const RAW_NEEDS_JSON: &str = "--include-raw needs --output json";

/// Prints every retained event of one task, oldest first.
#[derive(Args, Debug)]
#[command(after_help = "Exit codes: 0 printed; 1 no event of the task is retained, or another error; 2 usage.",
    after_long_help = format!("{JSON_HELP}\n\nExit codes: 0 printed; 1 no event of the task is retained, or another error; 2 usage."))]
pub(super) struct GetArgs {
    /// The vendor's id of the task.
    #[arg(value_parser = TaskId::parse)]
    task_id: TaskId,
    /// How to print events.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    /// Also print each callback's body as received (only with --output json).
    #[arg(long)]
    include_raw: bool,
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
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub(super) struct EventsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only events received at or after this: a duration back from now (2h) or a time (RFC 3339).
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Only events received before this: a duration back from now (2h) or a time (RFC 3339).
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    until: Option<Moment>,
    /// Which end to begin with.
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
    let request = v1::GetTaskRequest { task_id: args.task_id.to_string(), include_raw: args.include_raw };
    let response = args.grpc.events()?.get_task(request).await.map_err(|status| args.grpc.error(&status))?;
    let mut printer = EventPrinter::new(args.output);
    response.into_inner().events.iter().try_for_each(|event| printer.print(event))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn events(args: EventsArgs) -> anyhow::Result<ExitCode> {
    let mut request = request(&args, Timestamp::now())?;
    let mut client = args.grpc.events()?;
    let mut printer = EventPrinter::new(args.output);
    let mut remaining = args.limit.unwrap_or(u64::MAX);
    loop {
        let answer = client.list_events(request.clone()).await;
        let page = answer.map_err(|status| args.grpc.error(&status))?.into_inner();
        for event in &page.events {
            printer.print(event)?;
            remaining -= 1;
            if remaining == 0 {
                return Ok(ExitCode::SUCCESS);
            }
        }
        if page.next_page_token.is_empty() {
            return Ok(ExitCode::SUCCESS);
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
