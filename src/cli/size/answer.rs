//! The answer of `size`: what a traffic needs, and what the configuration keeps, as tables or JSON. Pure, except for printing.

use std::time::Duration;

use serde_json::{Value, json};

use super::text::{GIB, MINUTE, grouped, size_key, time_key, time_text};
use crate::{
    cli::output,
    config::Config,
    sizing::{
        bytes_text,
        disk::{self, Directory, Traffic},
        memory,
    },
};

/// A memory limit needs 11 tenths of the sum: the kernel also counts buffers of sockets and files.
const MEMORY_TENTHS: u64 = 11;

/// The needs of a traffic whose events are kept for `time`, and what the configuration keeps.
#[derive(Debug)]
pub(super) struct Answer {
    config: Config,
    traffic: Traffic,
    time: Duration,
    event_bytes: u64,
    events: u64,
    directory: Directory,
    /// `None` if no disk leaves enough free.
    disk_bytes: Option<u64>,
    memory_bytes: u64,
    /// The time until the configured `log.retention_bytes_max` is reached.
    until_full: Duration,
    streams_before: u64,
}

impl Answer {
    pub(super) fn new(
        config: Config,
        traffic: Traffic,
        time: Option<Duration>,
        streams_before: u64,
    ) -> Self {
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

    /// How long the configured limits keep events.
    fn kept(&self) -> Duration {
        self.until_full.min(self.config.log.retention_age_max)
    }

    fn bytes_come_first(&self) -> bool {
        self.until_full < self.config.log.retention_age_max
    }

    /// Section, key and TOML value of the keys to change, so that all events are kept for `time`.
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

    /// A memory limit for the cgroup, with the same margin as in the systemd unit.
    fn memory_max(&self) -> String {
        let gib = self
            .memory_bytes
            .saturating_mul(MEMORY_TENTHS)
            .div_ceil(10 * GIB);
        format!("{gib}G")
    }

    /// A sentence about the limit that removes events first.
    fn first(&self) -> String {
        let log = &self.config.log;
        let (bytes, age) = (
            bytes_text(log.retention_bytes_max),
            time_text(log.retention_age_max),
        );
        if self.bytes_come_first() {
            let kept = time_text(self.until_full);
            format!(
                "log.retention_bytes_max comes first: {bytes} are full after {kept}, and then the \
                 oldest events are removed before they are log.retention_age_max ({age}) old."
            )
        } else {
            let full = time_text(self.until_full);
            format!(
                "log.retention_age_max comes first: events are removed after {age}; \
                 log.retention_bytes_max ({bytes}) would be full after {full}."
            )
        }
    }

    /// A warning if the traffic exceeds the budget of one credential for one product.
    fn budget(&self) -> Option<String> {
        let budget = self.config.ingest.bytes_per_minute_max;
        let each = self.event_bytes.saturating_add(512);
        let needed = self.traffic.per_second * each as f64 * MINUTE as f64;
        (budget > 0 && needed > budget as f64).then(|| {
            format!(
                "ingest.bytes_per_minute_max ({}) lets one credential bring {:.1} of these \
                 callbacks a second for one product, and the rest is refused (429): raise it, or \
                 spread the traffic over credentials or products.",
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

    pub(super) fn print(&self) -> anyhow::Result<()> {
        let (rate, body) = (self.traffic.per_second, grouped(self.traffic.body_bytes));
        output::emit_line(&format!(
            "{rate} callbacks a second with bodies of {body} bytes, kept for {}, when each \
             becomes an event:",
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

    pub(super) fn as_json(&self) -> Value {
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
