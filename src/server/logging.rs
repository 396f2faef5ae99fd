//! The broker's own diagnostics: text for people, JSON for machines, always on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};

/// Starts logging, once per process.
pub fn init(config: &Logging) {
    // The store's library tells of its own house-keeping at "info"; who wants that names it: "info,fjall=info".
    let directives = format!("fjall=warn,lsm_tree=warn,{}", config.level);
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let text = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // A log that nobody reads any more is lost; the library would tell of it on standard error too, and panic.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_env_filter(filter).with_writer(std::io::stderr);
    if text {
        builder.with_ansi(terminal).with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_current_span(false).init();
    }
}
