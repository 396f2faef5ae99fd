//! `size`: how much disk and memory a broker needs for what comes, and which limit of a configuration comes first.
//!
//! The formulas and their constants are in [`sizing`](crate::sizing); this reads the question and prints the answer.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use serde_json::{Value, json};

use super::{
    args,
    output::{self, Format, Usage},
    serve::ServeArgs,
};
use crate::{
    config::{self, Config, parse_size},
    sizing::{
        bytes_text,
        disk::{self, Directory, Traffic},
        memory,
    },
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// More than any disk takes.
const RATE_MAX: f64 = 1e6;
/// As the configuration has it.
const DAYS_MAX: u64 = 3_650;
/// Units of 1,000, beside those of the configuration.
const DECIMAL_UNITS: [(&str, u64); 4] = [
    ("k", 1_000),
    ("kB", 1_000),
    ("M", 1_000_000),
    ("MB", 1_000_000),
];
/// What a limit of memory has above the sum, in tenths: the kernel counts buffers of sockets and files, too.
const MEMORY_TENTHS: u64 = 11;

const AFTER_HELP: &str = "\
Disk is what a full log and a full quarantine take, and memory what all limits allow together, by \
formulas whose constants were measured; docs/sizing.md says what comes on top, such as an open \
backup. Limits that are not asked for here are those of the configuration: --config, BLOBCAST_… \
and the defaults. It asks no broker and looks at no disk.

Examples:
  blobcast size --rate 50 --body 3k --days 7
  blobcast size --rate 0.5 --body 800 --days 30 --streams 2000 --config /etc/blobcast/blobcast.toml";

/// Says how much disk and memory a broker needs, and which limit comes first.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SizeArgs {
    /// Callbacks a second, on average over the time they are kept; decimals are allowed.
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: f64,
    /// Bytes of a body, on average: 800, 3k or 3kB (3,000 bytes), 3KiB (3,072 bytes).
    #[arg(long, value_name = "SIZE", value_parser = body)]
    body: u64,
    /// How long events are to be kept: a number of days, or a duration such as 12h [default: log.retention_age_max].
    #[arg(long, value_name = "DAYS", value_parser = days)]
    days: Option<Duration>,
    /// Streams that are open at most [default: grpc.subscriptions_max]. Their task ids count by grpc.task_ids_in_all_max.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    streams: Option<u64>,
    /// Configuration file whose limits count [default: none; the defaults].
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

/// Answers for the configuration as `serve` would have it.
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
            "--body: ingest.body_bytes_max refuses what has more than {most}: raise that one first"
        );
        return Err(Usage(problem).into());
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

/// What is needed to keep all that comes for a while, and what the configuration keeps.
#[derive(Debug)]
struct Answer {
    config: Config,
    traffic: Traffic,
    time: Duration,
    event_bytes: u64,
    events: u64,
    directory: Directory,
    /// `None` if no disk leaves enough free.
    disk_bytes: Option<u64>,
    memory_bytes: u64,
    /// With the limits as they are set: until there are as many bytes as may be.
    until_full: Duration,
    streams_before: u64,
}

impl Answer {
    fn new(config: Config, traffic: Traffic, time: Option<Duration>, streams_before: u64) -> Self {
        let time = time.unwrap_or(config.log.retention_age_max);
        let event_bytes = disk::event_bytes(traffic.body_bytes);
        let bytes = traffic.bytes_in(time);
        let directory = Directory::of(bytes, event_bytes, config.quarantine.retention_bytes_max);
        Self {
            event_bytes,
            events: bytes.div_ceil(event_bytes),
            disk_bytes: disk::disk_bytes(directory.bytes(), config.log.disk_free_min_percent),
            directory,
            memory_bytes: memory::bytes_max(&config),
            until_full: traffic.time_to_bring(config.log.retention_bytes_max),
            config,
            traffic,
            time,
            streams_before,
        }
    }

    /// What is kept with the limits as they are.
    fn kept(&self) -> Duration {
        self.until_full.min(self.config.log.retention_age_max)
    }

    fn bytes_come_first(&self) -> bool {
        self.until_full < self.config.log.retention_age_max
    }

    /// Keys to set so that all that comes is kept: section, key, value as TOML. Those that are right are left out.
    fn settings(&self) -> Vec<(&'static str, &'static str, String)> {
        let Config { log, grpc, .. } = &self.config;
        let mut settings = Vec::new();
        if log.retention_age_max != self.time {
            settings.push((
                "log",
                "retention_age_max",
                format!("\"{}\"", time_key(self.time)),
            ));
        }
        let bytes = disk::retention_bytes_for(&self.config, self.directory.events);
        if log.retention_bytes_max < bytes {
            settings.push((
                "log",
                "retention_bytes_max",
                format!("\"{}\"", size_key(bytes)),
            ));
        }
        if grpc.subscriptions_max != self.streams_before {
            settings.push((
                "grpc",
                "subscriptions_max",
                grpc.subscriptions_max.to_string(),
            ));
        }
        settings
    }

    /// A limit for the cgroup: the unit's has as much to spare.
    fn memory_max(&self) -> String {
        let gib = self
            .memory_bytes
            .saturating_mul(MEMORY_TENTHS)
            .div_ceil(10 * GIB);
        format!("{gib}G")
    }

    /// Which limit forgets first, and what that means.
    fn first(&self) -> String {
        let log = &self.config.log;
        let (bytes, age) = (
            bytes_text(log.retention_bytes_max),
            time_text(log.retention_age_max),
        );
        if self.bytes_come_first() {
            let kept = time_text(self.until_full);
            format!(
                "log.retention_bytes_max comes first: {bytes} are full after {kept}, and then the oldest events are forgotten before \
                 they are log.retention_age_max ({age}) old."
            )
        } else {
            let full = time_text(self.until_full);
            format!(
                "log.retention_age_max comes first: events are forgotten after {age}; log.retention_bytes_max ({bytes}) would be full \
                 after {full}."
            )
        }
    }

    /// What comes by one credential for one product may be more than its budget.
    fn budget(&self) -> Option<String> {
        let budget = self.config.ingest.bytes_per_minute_max;
        let each = self.event_bytes.saturating_add(512);
        let needed = self.traffic.per_second * each as f64 * MINUTE as f64;
        (budget > 0 && needed > budget as f64).then(|| {
            format!(
                "ingest.bytes_per_minute_max ({}) lets one credential bring {:.1} of these callbacks a second for one product, and the \
                 rest is refused (429): raise it, or spread the traffic over credentials or products.",
                bytes_text(budget),
                budget as f64 / each as f64 / MINUTE as f64
            )
        })
    }

    fn disk_rows(&self) -> Vec<[String; 3]> {
        let Directory {
            events,
            frames,
            index,
            quarantine,
            fixed,
        } = self.directory;
        let row = |what: &str, bytes: String, from: String| [what.to_owned(), bytes, from];
        let percent = self.config.log.disk_free_min_percent;
        let disk = self
            .disk_bytes
            .map_or_else(|| "none is enough".to_owned(), bytes_text);
        vec![
            row(
                "events, as retention counts them",
                bytes_text(events),
                format!(
                    "{} × {} bytes",
                    grouped(self.events),
                    grouped(self.event_bytes)
                ),
            ),
            row(
                "beside them in the log",
                bytes_text(frames),
                "by event".to_owned(),
            ),
            row("index by task", bytes_text(index), "by event".to_owned()),
            row(
                "quarantine, when it is full",
                bytes_text(quarantine),
                "2 × quarantine.retention_bytes_max".to_owned(),
            ),
            row(
                "files made ahead, journals",
                bytes_text(fixed),
                "at most".to_owned(),
            ),
            row(
                "data directory",
                bytes_text(self.directory.bytes()),
                "together".to_owned(),
            ),
            row(
                "disk",
                disk,
                format!("{percent} % stay free: log.disk_free_min_percent"),
            ),
        ]
    }

    fn print(&self) -> anyhow::Result<()> {
        let (rate, body) = (self.traffic.per_second, grouped(self.traffic.body_bytes));
        output::emit_line(&format!(
            "{rate} callbacks a second with bodies of {body} bytes, kept for {}, when each becomes an event:",
            time_text(self.time)
        ))?;
        output::emit_line("")?;
        output::emit_table(["DISK", "BYTES", "FROM"], &self.disk_rows())?;
        output::emit_line("")?;

        let rows = memory::parts(&self.config).into_iter();
        let rows = rows.map(|part| {
            [
                part.what.to_owned(),
                bytes_text(part.bytes),
                part.limit.to_owned(),
            ]
        });
        let total = [
            "together, when every limit is used up".to_owned(),
            bytes_text(self.memory_bytes),
            String::new(),
        ];
        output::emit_table(
            ["MEMORY", "BYTES", "LIMIT"],
            &rows.chain([total]).collect::<Vec<_>>(),
        )?;
        output::emit_line("")?;

        output::emit_line(&self.first())?;
        if let Some(budget) = self.budget() {
            output::emit_line(&budget)?;
        }
        output::emit_line(&self.advice())?;
        output::emit_lines(&self.toml())
    }

    fn advice(&self) -> String {
        let disk = self.disk_bytes.map_or_else(
            || "a lower log.disk_free_min_percent, as 100 takes nothing".to_owned(),
            |bytes| format!("a disk of {}", bytes_text(bytes)),
        );
        let all = format!(
            "To keep all of it for {}, provide {disk} and MemoryMax={}",
            time_text(self.time),
            self.memory_max()
        );
        if self.settings().is_empty() {
            format!("{all}; the limits are enough.")
        } else {
            format!("{all}, and set:")
        }
    }

    fn toml(&self) -> String {
        let (mut text, mut open) = (String::new(), "");
        for (section, key, value) in self.settings() {
            if section != open {
                text.push_str(&format!("[{section}]\n"));
                open = section;
            }
            text.push_str(&format!("{key} = {value}\n"));
        }
        text
    }

    fn as_json(&self) -> Value {
        let Directory {
            events,
            frames,
            index,
            quarantine,
            fixed,
        } = self.directory;
        let log = &self.config.log;
        let parts = memory::parts(&self.config).into_iter();
        let parts =
            parts.map(|part| json!({"what": part.what, "limit": part.limit, "bytes": part.bytes}));
        let settings = self.settings().into_iter();
        let settings = settings.map(|(section, key, value)| {
            (format!("{section}.{key}"), value.trim_matches('"').into())
        });
        json!({
            "rate": self.traffic.per_second,
            "body_bytes": self.traffic.body_bytes,
            "seconds": self.time.as_secs_f64(),
            "event_count": self.events,
            "event_bytes": self.event_bytes,
            "disk": {
                "events": events,
                "frames": frames,
                "index": index,
                "quarantine": quarantine,
                "fixed": fixed,
                "data_dir": self.directory.bytes(),
                "disk": self.disk_bytes,
            },
            "memory": {"parts": parts.collect::<Vec<_>>(), "bytes_max": self.memory_bytes},
            "configured": {
                "log.retention_bytes_max": log.retention_bytes_max,
                "log.retention_age_max_seconds": log.retention_age_max.as_secs_f64(),
                "first": if self.bytes_come_first() { "log.retention_bytes_max" } else { "log.retention_age_max" },
                "kept_seconds": self.kept().as_secs_f64(),
            },
            "set": settings.collect::<serde_json::Map<_, _>>(),
            "memory_max": self.memory_max(),
        })
    }
}

/// A size as the configuration takes it.
fn size_key(bytes: u64) -> String {
    let units = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let exact = units
        .into_iter()
        .find(|(unit, _)| bytes.is_multiple_of(*unit));
    exact.map_or_else(
        || bytes.to_string(),
        |(unit, name)| format!("{}{name}", bytes / unit),
    )
}

/// A duration as the configuration takes it, in whole seconds at least as long.
fn time_key(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (1, "s")];
    let exact = units
        .into_iter()
        .find(|(unit, _)| seconds.is_multiple_of(*unit));
    exact.map_or_else(String::new, |(unit, name)| {
        format!("{}{name}", seconds / unit)
    })
}

/// A duration for people: one unit, and a digit behind the point where it is not whole.
fn time_text(time: Duration) -> String {
    const YEAR: u64 = 365 * DAY;
    if time > Duration::from_secs(1_000 * YEAR) {
        return "more than 1,000 years".to_owned();
    }
    let seconds = time.as_secs_f64();
    let units = [
        (2 * YEAR, YEAR, "years"),
        (2 * DAY, DAY, "days"),
        (2 * HOUR, HOUR, "hours"),
        (2 * MINUTE, MINUTE, "minutes"),
    ];
    let (factor, unit) = units
        .into_iter()
        .find(|(from, ..)| seconds >= *from as f64)
        .map_or((1, "seconds"), |(_, factor, unit)| (factor, unit));
    let number = format!("{:.1}", seconds / factor as f64);
    format!("{} {unit}", number.trim_end_matches(".0"))
}

/// A number with commas.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let comma = |at: usize| at > 0 && (digits.len() - at).is_multiple_of(3);
    digits
        .char_indices()
        .flat_map(|(at, digit)| comma(at).then_some(',').into_iter().chain([digit]))
        .collect()
}
