//! The broker's log: text for people, JSON for machines, always on standard error. [`LogWriter`] writes it on a thread of its own, so
//! that logging never blocks. For systemd's journal each line begins with its priority, so that `journalctl -p err` finds the errors,
//! also the one that ends the process.

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::OnceLock,
    thread,
    time::Duration,
};

use prometheus::IntCounter;

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Registry, fmt::MakeWriter, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use super::log_writer::LogWriter;
use crate::config::{LogFormat, Logging};

/// How long the process waits at its end for a standard error that takes nothing.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The target of lines that say why the process ends. They are written whatever `logging.level` says, and however full the queue is.
const FATAL: &str = "blobcast::fatal";

/// Everything that is written to standard error while the broker runs goes through this.
static WRITER: LogWriter = LogWriter::new();

/// The filter of what is logged. Can be changed while the process runs.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging, once per process.
pub(crate) fn init(config: &Logging) -> io::Result<()> {
    let (filter, handle) = reload::Layer::new(filter(config));
    let _ = LEVEL.set(handle).is_ok();

    let terminal = io::stderr().is_terminal();
    let text = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    thread::Builder::new()
        .name("log".into())
        .spawn(|| WRITER.run(io::stderr(), report_lost))?;

    // The library would write its own errors to standard error directly.
    let lines = Lines {
        is_graded: journal_reads(),
    };
    let lines = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .with_writer(lines);

    let registry = tracing_subscriber::registry().with(filter);
    if text {
        registry
            .with(lines.with_ansi(terminal).with_target(false))
            .init();
    } else {
        registry
            .with(
                lines
                    .json()
                    .flatten_event(true)
                    .with_current_span(true)
                    .with_span_list(false),
            )
            .init();
    }
    Ok(())
}

/// Waits until what was logged is written, for a second at most. For the end of the process.
pub(crate) fn flush() {
    let _ = WRITER.flush(FLUSH_TIMEOUT);
}

/// Writes a line that is not one of the log, in order with the log's lines.
pub(crate) fn note(line: &str) {
    WRITER.push("", format!("{line}\n").as_bytes());
}

/// Logs why the process ends. `has_served`: it has served before.
pub(crate) fn log_fatal(has_served: bool, problem: &str) {
    let what = if has_served {
        "the broker ends"
    } else {
        "the broker does not start"
    };
    tracing::error!(target: FATAL, "{what}: {problem}");
}

/// Logs a panic, which ends the process.
pub(crate) fn log_panic(panic: &str, thread: &str, backtrace: Option<&str>) {
    let what = "a bug: the process ends so that it is not left half alive";
    tracing::error!(target: FATAL, panic, thread, backtrace, "{what}");
}

/// Writes last words that are not a line of the log, in order with the log's lines. For a process that is about to abort.
pub(crate) fn last_words(text: &str) {
    WRITER.push_at_any_rate("", text.as_bytes());
}

/// Counts the lost lines in this counter.
pub(super) fn count_lost_in(counter: &IntCounter) {
    WRITER.count_lost_in(counter.clone());
}

fn report_lost(lines: u64) {
    tracing::warn!(
        lines,
        "log lines were lost here: standard error took none, or not fast enough; look at what reads it, or lower logging.level"
    );
}

/// Puts the level of `config` into force.
pub(super) fn set_level(config: &Logging) {
    if let Some(Err(error)) = LEVEL.get().map(|level| level.reload(filter(config))) {
        tracing::warn!(%error, "the log level stays as it was");
    }
}

fn filter(config: &Logging) -> EnvFilter {
    // The store's library logs its own maintenance at "info". An operator who wants that names it: "info,fjall=info".
    // The libraries for HTTP/2 and TLS warn of what clients send, and quote it: unauthenticated clients could fill the log.
    let directives = format!(
        "{FATAL}=error,fjall=warn,lsm_tree=warn,h2=error,rustls=off,async_nats=error,{}",
        config.level
    );
    EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Whether systemd's journal reads standard error: a variable names the file that it reads.
fn journal_reads() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Makes the writer of each line. For the journal a line begins with its syslog priority, as in sd-daemon(3).
struct Lines {
    is_graded: bool,
}

impl MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line {
            priority: if self.is_graded { "<6>" } else { "" },
            is_fatal: false,
        }
    }

    fn make_writer_for(&self, line: &Metadata<'_>) -> Line {
        let priority = match *line.level() {
            _ if !self.is_graded => "",
            Level::ERROR => "<3>",
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            _ => "<7>",
        };
        Line {
            priority,
            is_fatal: line.target() == FATAL,
        }
    }
}

/// The writer of one line.
struct Line {
    priority: &'static str,
    is_fatal: bool,
}

impl Write for Line {
    /// `line` is a whole line: the library formats it first, and writes it at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.is_fatal {
            WRITER.push_at_any_rate(self.priority, line);
        } else {
            WRITER.push(self.priority, line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
