//! `size`: computes the disk and memory that a broker needs for a given traffic, and which
//! retention limit is reached first.
//!
//! The formulas and their constants are in [`sizing`](crate::sizing). Asks no broker and looks at
//! no disk.

mod answer;
mod text;

use std::{process::ExitCode, time::Duration};

use clap::Args;

use self::{
    answer::Answer,
    text::{DAY, grouped, time_key},
};
use super::{
    args,
    output::{self, Format, Usage},
    serve::ServeArgs,
};
use crate::{
    config::{self, ConfigSources, parse_size},
    sizing::{bytes_text, disk::Traffic},
};

/// More than any disk can write.
const RATE_MAX: f64 = 1e6;
/// The configuration's limit of `log.retention_age_max`.
const DAYS_MAX: u64 = 3_650;
/// Decimal units, beside the binary ones of the configuration.
const DECIMAL_UNITS: [(&str, u64); 4] = [
    ("k", 1_000),
    ("kB", 1_000),
    ("M", 1_000_000),
    ("MB", 1_000_000),
];

const AFTER_HELP: &str = "\
Computes the disk for a full log and a full quarantine, and the memory that all limits allow \
together, by formulas with measured constants; docs/sizing.md lists what comes on top, such as an \
open backup. Other limits come from the configuration: --config, BLOBCAST_… and the defaults. It \
asks no broker and looks at no disk.

Examples:
  blobcast size --rate 50 --body 3k --days 7
  blobcast size --rate 0.5 --body 800 --days 30 --streams 2000 --config /etc/blobcast/blobcast.toml";

/// Says how much disk and memory a broker needs, and which limit comes first.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SizeArgs {
    /// Callbacks per second, averaged over the time that events are kept; decimals are allowed.
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: f64,
    /// Bytes of a body, on average: 800, 3k or 3kB (3,000 bytes), 3KiB (3,072 bytes).
    #[arg(long, value_name = "SIZE", value_parser = body)]
    body: u64,
    /// How long to keep events: a number of days, or a duration such as 12h [default:
    /// log.retention_age_max].
    #[arg(long, value_name = "DAYS", value_parser = days)]
    days: Option<Duration>,
    /// Most open streams [default: grpc.subscriptions_max]. Their task ids are limited by
    /// grpc.task_ids_in_all_max.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    streams: Option<u64>,
    /// Configuration file to take other limits from [default: none; the defaults].
    #[arg(long, value_name = "PATH", env = "BLOBCAST_CONFIG")]
    config: Option<String>,
    /// How to print the answer: tables, or one JSON object.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text
        .parse()
        .ok()
        .filter(|rate| *rate > 0.0 && *rate <= RATE_MAX);
    rate.ok_or_else(|| {
        format!(
            "it is a number of callbacks a second, above 0 and up to {}",
            grouped(RATE_MAX as u64)
        )
    })
}

fn body(text: &str) -> Result<u64, String> {
    let decimal = DECIMAL_UNITS.iter().find_map(|(unit, factor)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(*factor)
    });
    let bytes = decimal.map_or_else(|| parse_size(text), Ok).map_err(|_| {
        "it is a whole number of bytes: 800, 3k or 3kB (3,000 bytes), 3KiB (3,072 bytes), 1MiB"
            .to_owned()
    })?;
    if bytes == 0 {
        Err("a callback has a body".to_owned())
    } else {
        Ok(bytes)
    }
}

fn days(text: &str) -> Result<Duration, String> {
    let by_number = text
        .parse::<f64>()
        .ok()
        .map(|days| Duration::try_from_secs_f64(days * DAY as f64));
    let time = match by_number {
        Some(time) => time.ok(),
        None => args::duration(text).ok(),
    };
    let range = Duration::from_secs(1)..=Duration::from_secs(DAYS_MAX * DAY);
    let time = time.filter(|time| range.contains(time));
    time.ok_or_else(|| {
        format!(
            "it is a number of days up to {}, or a duration such as 12h",
            grouped(DAYS_MAX)
        )
    })
}

/// Computes the answer for the configuration that `serve` would use.
pub(super) fn run(args: SizeArgs) -> anyhow::Result<ExitCode> {
    let sources = ServeArgs {
        config: args.config,
        ..ServeArgs::default()
    }
    .sources();

    let mut config = config::load(&sources)?;
    if args.body > config.ingest.body_bytes_max {
        let most = bytes_text(config.ingest.body_bytes_max);
        let problem = format!(
            "--body: ingest.body_bytes_max refuses bodies of more than {most}: raise it first"
        );
        return Err(Usage(problem).into());
    }

    if let Some(time) = args.days {
        check_retention(sources, time)?;
    }

    let streams_before = config.grpc.subscriptions_max;
    config.grpc.subscriptions_max = args.streams.unwrap_or(streams_before);
    let traffic = Traffic {
        per_second: args.rate,
        body_bytes: args.body,
    };

    let answer = Answer::new(config, traffic, args.days, streams_before);
    match args.output {
        Format::Json => output::emit_json(&answer.as_json())?,
        Format::Pretty => answer.print()?,
    }

    Ok(ExitCode::SUCCESS)
}

/// Refuses a retention that the configuration would refuse, so that the printed settings can be
/// used as they are.
fn check_retention(mut sources: ConfigSources, time: Duration) -> Result<(), Usage> {
    let retention = ("log.retention_age_max".to_owned(), time_key(time));
    sources.flags.push(retention);
    match config::load(&sources) {
        Ok(_) => Ok(()),
        Err(errors) => Err(Usage(format!("--days: {}", errors.problems[0]))),
    }
}
