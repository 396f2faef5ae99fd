//! `log-info`: the log of a broker, and how far behind a cursor is.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{
    client::GrpcArgs,
    output::{self, Format},
};
use crate::{event::Cursor, sizing::bytes_text, wire::v1};

/// Describes the log: its identity, its ends, how much it holds, and how far behind a cursor is.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast log-info
  blobcast log-info --after \"$(cat last-cursor)\"     how many events a reader has not seen

Exit codes: 0 printed; 1 an error, also a cursor of another log; 2 usage.")]
pub(super) struct LogInfoArgs {
    /// Also print how many events are behind this cursor, whether or not they match a filter.
    #[arg(long, value_name = "CURSOR", value_parser = Cursor::parse)]
    after: Option<Cursor>,
    /// How to print it: lines, or one JSON object.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: LogInfoArgs) -> anyhow::Result<ExitCode> {
    let request = v1::GetLogInfoRequest {
        after_cursor: args
            .after
            .map(|cursor| cursor.to_string())
            .unwrap_or_default(),
    };
    let answer = args.grpc.events()?.get_log_info(request).await;
    let info = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner();

    match args.output {
        Format::Json => output::emit_json(&json!({
            "epoch": info.epoch,
            "first_available": info.first_available,
            "head": info.head,
            "event_count": info.event_count,
            "event_bytes": info.event_bytes,
            "quarantine_count": info.quarantine_count,
            "retention_age_max_seconds": info.retention_age_max.map(|age| age.seconds),
            "retention_bytes_max": info.retention_bytes_max,
            "events_after": info.events_after,
        }))?,
        Format::Pretty => lines(&info)
            .into_iter()
            .try_for_each(|(what, text)| output::emit_line(&format!("{what:17}{text}")))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(info: &v1::GetLogInfoResponse) -> Vec<(&'static str, String)> {
    let days = info
        .retention_age_max
        .map_or(0.0, |age| age.seconds as f64 / 86_400.0);
    let first = match &*info.first_available {
        "" => "-",
        cursor => cursor,
    };
    let mut lines = vec![
        ("epoch", info.epoch.clone()),
        ("first available", first.to_owned()),
        ("head", info.head.clone()),
        (
            "events",
            format!("{}, {}", info.event_count, bytes_text(info.event_bytes)),
        ),
        ("quarantine", info.quarantine_count.to_string()),
        (
            "retention",
            format!("{days:.1} days, {}", bytes_text(info.retention_bytes_max)),
        ),
    ];
    lines.extend(
        info.events_after
            .map(|count| ("behind the cursor", format!("{count} events"))),
    );
    lines
}
