//! `refusals`: lists the last callbacks that were refused, and why.

use std::{collections::BTreeMap, process::ExitCode};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    brokers::{Broker, complete, stop_if_only},
    client::GrpcArgs,
    output::{self, Format, note},
    render::{clock, instant, time_json},
};
use crate::wire::v1;

/// Lists the last callbacks that were refused, newest first, and what to do about each cause.
#[derive(Args, Debug)]
#[command(after_help = "\
The broker keeps the last 1,000 in memory, since it started. A request that was refused before its \
headers were read is only counted, in metrics.

Examples:
  blobcast refusals --limit 20
  blobcast refusals --output json | jq 'select(.product == \"veo\")'

With several addresses, the refusals of each of these brokers are listed, one broker after the other.

Exit codes: 0 done; 1 an error; 2 usage.")]
pub(super) struct RefusalsArgs {
    /// Most refusals to list, of each broker. Default: all that it keeps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// How to print the list: a table, or one JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: RefusalsArgs) -> anyhow::Result<ExitCode> {
    let (mut listed, mut away) = (Vec::new(), Vec::new());
    for mut broker in Broker::each(&args.grpc)? {
        match list(&mut broker, args.limit).await {
            Ok(refusals) => listed.extend(refusals),
            Err(status) => {
                away.push(broker.refusal(status));
                stop_if_only(&args.grpc, &away)?;
            }
        }
    }

    match args.output {
        Format::Json => listed
            .iter()
            .try_for_each(|refusal| output::emit_json(&as_json(refusal)))?,
        Format::Pretty if listed.is_empty() && away.is_empty() => {
            note("no callback was refused since the broker started");
        }
        Format::Pretty => print_table(&listed)?,
    }
    complete(&args.grpc, &away)?;
    Ok(ExitCode::SUCCESS)
}

async fn list(broker: &mut Broker, limit: Option<u32>) -> Result<Vec<v1::Refusal>, tonic::Status> {
    let limit = limit.map_or(usize::MAX, |limit| limit as usize);
    let (mut listed, mut request) = (Vec::new(), v1::ListRefusalsRequest::default());
    loop {
        let page = broker.client.list_refusals(request.clone()).await?;
        let page = page.into_inner();
        listed.extend(page.refusals);
        if listed.len() >= limit || page.next_page_token.is_empty() {
            listed.truncate(limit);
            return Ok(listed);
        }
        request.page_token = page.next_page_token;
    }
}

/// The table, and below it what to do about each cause.
fn print_table(listed: &[v1::Refusal]) -> anyhow::Result<()> {
    if listed.is_empty() {
        return Ok(());
    }
    let now = Timestamp::now();
    let rows: Vec<_> = listed.iter().map(|refusal| row(refusal, now)).collect();
    let header = [
        "TIME",
        "CAUSE",
        "ANSWER",
        "PRODUCT",
        "FROM",
        "CREDENTIAL",
        "REQUEST",
        "PATH",
    ];
    output::emit_table(header, &rows)?;

    output::emit_line("")?;
    let causes: BTreeMap<_, _> = listed
        .iter()
        .map(|refusal| (&refusal.cause, &refusal.explanation))
        .collect();
    causes
        .into_iter()
        .try_for_each(|(cause, explanation)| output::emit_line(&format!("{cause}: {explanation}")))
}

fn row(refusal: &v1::Refusal, now: Timestamp) -> [String; 8] {
    let at = refusal.refused_at.and_then(instant);
    let credential = match (&*refusal.credential, &*refusal.key_id) {
        ("", "") => "-".to_owned(),
        ("", key_id) => format!("key {key_id}, not proved"),
        (credential, _) => credential.to_owned(),
    };
    let product = match &*refusal.product {
        "" => "-",
        product => product,
    };
    [
        at.map_or_else(|| "-".to_owned(), |time| clock(time, now)),
        refusal.cause.clone(),
        format!("{} {}", refusal.http_status, refusal.outcome),
        product.to_owned(),
        refusal.remote_address.clone(),
        credential,
        refusal.request_id.clone(),
        refusal.path.clone(),
    ]
}

fn as_json(refusal: &v1::Refusal) -> Value {
    json!({
        "refused_at": time_json(refusal.refused_at),
        "request_id": refusal.request_id,
        "cause": refusal.cause,
        "explanation": refusal.explanation,
        "outcome": refusal.outcome,
        "http_status": refusal.http_status,
        "product": refusal.product,
        "path": refusal.path,
        "remote_address": refusal.remote_address,
        "credential": refusal.credential,
        "key_id": refusal.key_id,
    })
}
