//! The broker's own diagnostics: text for people, JSON for machines, always on standard error. systemd's journal is told how grave
//! each line is, so that `journalctl -p err` finds the errors.

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::OnceLock,
};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{MakeWriter, writer::BoxMakeWriter},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::config::{LogFormat, Logging};

/// What is logged, changeable while the process runs.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging, once per process.
pub fn init(config: &Logging) {
    let (filter, handle) = reload::Layer::new(filter(config));
    let _ = LEVEL.set(handle).is_ok();
    let terminal = io::stderr().is_terminal();
    let text = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // A log that nobody reads any more is lost; the library would tell of it on standard error too, and panic.
    let writer = if journal_reads() { BoxMakeWriter::new(Graded) } else { BoxMakeWriter::new(io::stderr) };
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false).with_writer(writer);
    let registry = tracing_subscriber::registry().with(filter);
    if text {
        registry.with(lines.with_ansi(terminal).with_target(false)).init();
    } else {
        registry.with(lines.json().flatten_event(true).with_current_span(true).with_span_list(false)).init();
    }
}

/// Logs what `config` says from now on.
pub(super) fn set_level(config: &Logging) {
    if let Some(Err(error)) = LEVEL.get().map(|level| level.reload(filter(config))) {
        tracing::warn!(%error, "the log level stays as it was");
    }
}

fn filter(config: &Logging) -> EnvFilter {
    // The store's library tells of its own house-keeping at "info"; who wants that names it: "info,fjall=info".
    // Those of HTTP/2 and TLS warn of what strangers send, and quote it: they would decide how much is logged, and what.
    let directives = format!("fjall=warn,lsm_tree=warn,h2=error,rustls=off,{}", config.level);
    EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Whether standard error leads to systemd's journal, which says in a variable which file that is.
fn journal_reads() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Standard error, where each line begins with its syslog priority, as in sd-daemon(3).
struct Graded;

impl MakeWriter<'_> for Graded {
    type Writer = GradedLine;

    fn make_writer(&self) -> GradedLine {
        GradedLine("<6>")
    }

    fn make_writer_for(&self, line: &Metadata<'_>) -> GradedLine {
        GradedLine(match *line.level() {
            Level::ERROR => "<3>",
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            _ => "<7>",
        })
    }
}

struct GradedLine(&'static str);

impl Write for GradedLine {
    /// Takes a whole line, and writes it at once: lines of several threads must not mix.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(&[self.0.as_bytes(), line].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
