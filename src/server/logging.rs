//! The broker's own diagnostics: text for people, JSON for machines, always on standard error.

use std::{io::IsTerminal, sync::OnceLock};

use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::config::{LogFormat, Logging};

/// What is logged, changeable while the process runs.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging, once per process.
pub fn init(config: &Logging) {
    let (filter, handle) = reload::Layer::new(filter(config));
    let _ = LEVEL.set(handle).is_ok();
    let terminal = std::io::stderr().is_terminal();
    let text = match config.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    // A log that nobody reads any more is lost; the library would tell of it on standard error too, and panic.
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false).with_writer(std::io::stderr);
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
    // That of HTTP/2 warns of each connection that it closes for an attack: the attacker would decide how much is logged.
    let directives = format!("fjall=warn,lsm_tree=warn,h2=error,{}", config.level);
    EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new("info"))
}
