//! The broker's own diagnostics: text for people, JSON for machines, always on standard error. [`LogWriter`] writes them on a thread
//! of its own, so that logging never blocks. For systemd's journal each line begins with its priority, so that
//! `journalctl -p err` finds the errors.

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::OnceLock,
    thread,
    time::Duration,
};

use prometheus::IntCounter;

use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, Registry, fmt::MakeWriter, layer::SubscriberExt, reload, util::SubscriberInitExt};

use super::log_writer::LogWriter;
use crate::config::{LogFormat, Logging};

/// How long the end of the process waits for a standard error that takes nothing.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

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
    thread::Builder::new().name("log".into()).spawn(|| WRITER.run(io::stderr(), tell_lost))?;
    // The library would tell of its own errors on standard error, too.
    let lines = Lines { is_graded: journal_reads() };
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false).with_writer(lines);
    let registry = tracing_subscriber::registry().with(filter);
    if text {
        registry.with(lines.with_ansi(terminal).with_target(false)).init();
    } else {
        registry.with(lines.json().flatten_event(true).with_current_span(true).with_span_list(false)).init();
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

/// Writes last words in their turn, and waits for them as [`flush`] does. For a process that is about to abort.
pub fn last_words(text: &str) {
    WRITER.push_at_any_rate(text);
    flush();
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
    let directives = format!("fjall=warn,lsm_tree=warn,h2=error,rustls=off,{}", config.level);
    EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Whether standard error leads to systemd's journal, which says in a variable which file that is.
fn journal_reads() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Makes what takes a line. For the journal each begins with its syslog priority, as in sd-daemon(3).
struct Lines {
    is_graded: bool,
}

impl MakeWriter<'_> for Lines {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(if self.is_graded { "<6>" } else { "" })
    }

    fn make_writer_for(&self, line: &Metadata<'_>) -> Line {
        if !self.is_graded {
            return Line("");
        }
        Line(match *line.level() {
            Level::ERROR => "<3>",
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            _ => "<7>",
        })
    }
}

/// Behind its priority.
struct Line(&'static str);

impl Write for Line {
    /// Takes a whole line: the library makes it first, and writes it at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        WRITER.push(self.0, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
