//! The broker's own diagnostics: text for people, JSON for machines, always on standard error. [`LogWriter`] writes them on a thread
//! of its own, so that logging never blocks. For systemd's journal each line begins with its priority, so that
//! `journalctl -p err` finds the errors, also the one that ends the process.

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

/// How long the end of the process waits for a standard error that takes nothing.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The target of lines about what ends the process. They are written whatever `logging.level` says, and however full the queue is.
const FATAL: &str = "blobcast::fatal";

/// The one way to standard error while the broker runs.
static WRITER: LogWriter = LogWriter::new();

/// What is logged, changeable while the process runs.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging, once per process.
pub fn init(config: &Logging) -> io::Result<()> {
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
        .spawn(|| WRITER.run(io::stderr(), tell_lost))?;
    // The library would tell of its own errors on standard error, too.
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

/// Waits until what was logged is written, but for a second at most: for the end of the process.
pub fn flush() {
    let _ = WRITER.flush(FLUSH_TIMEOUT);
}

/// Writes a line that is none of the log's, in its turn.
pub fn note(line: &str) {
    WRITER.push("", format!("{line}\n").as_bytes());
}

/// Logs why the process ends, which may have served before.
pub fn log_fatal(has_served: bool, problem: &str) {
    let what = if has_served {
        "the broker ends"
    } else {
        "the broker does not start"
    };
    tracing::error!(target: FATAL, "{what}: {problem}");
}

/// Logs a panic, which ends the process.
pub fn log_panic(panic: &str, thread: &str, backtrace: Option<&str>) {
    let what = "a bug: the process ends so that it is not left half alive";
    tracing::error!(target: FATAL, panic, thread, backtrace, "{what}");
}

/// Writes last words that are no line of the log, in their turn. For a process that is about to abort.
pub fn last_words(text: &str) {
    WRITER.push_at_any_rate("", text.as_bytes());
}

/// Counts the lines that are lost there.
pub(super) fn count_lost_in(counter: &IntCounter) {
    WRITER.count_lost_in(counter.clone());
}

fn tell_lost(lines: u64) {
    tracing::warn!(
        lines,
        "log lines were lost here: standard error took none, or not fast enough; look at what reads it, or lower logging.level"
    );
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
    let directives = format!(
        "{FATAL}=error,fjall=warn,lsm_tree=warn,h2=error,rustls=off,{}",
        config.level
    );
    EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Whether standard error leads to systemd's journal, which says in a variable which file that is.
fn journal_reads() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Makes what takes a line. For the journal each begins with its syslog priority, as in sd-daemon(3).
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

/// Behind its priority.
struct Line {
    priority: &'static str,
    is_fatal: bool,
}

impl Write for Line {
    /// Takes a whole line: the library makes it first, and writes it at once.
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
