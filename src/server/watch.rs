//! Files that may change while the broker runs: looked at every second, read again when they have changed. What cannot be used
//! changes nothing.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// Files that are read together.
pub(super) struct Watched {
    /// Names them to people and in the metric.
    what: &'static str,
    paths: Vec<PathBuf>,
    seen: Vec<State>,
    reload: Box<dyn Fn() -> Result<String, String> + Send>,
}

impl Watched {
    /// `reload` puts what the files say into force, and tells what that is, or why it cannot.
    pub(super) fn new(
        what: &'static str,
        paths: Vec<PathBuf>,
        reload: impl Fn() -> Result<String, String> + Send + 'static,
    ) -> Self {
        Self { what, seen: states(&paths), paths, reload: Box::new(reload) }
    }

    fn look(&mut self, metrics: &Metrics) {
        let now = states(&self.paths);
        if now != self.seen {
            self.seen = now;
            self.reload(metrics);
        }
    }

    fn reload(&self, metrics: &Metrics) {
        let Self { what, reload, .. } = self;
        let outcome = reload();
        // Before it is told: who reads of it may look at the count.
        metrics.reloads.with_label_values(&[*what, if outcome.is_ok() { "done" } else { "refused" }]).inc();
        match outcome {
            Ok(news) => tracing::info!(news, "reloaded the {what}"),
            Err(problem) => tracing::error!(problem, "the {what} stay as they were: correct the file"),
        }
    }
}

/// Looks at everything until `stop`, and reads everything again when `asked`; `tick` is called each time behind it.
pub(super) async fn watch(
    mut all: Vec<Watched>,
    mut tick: impl FnMut(),
    asked: Arc<Notify>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = asked.notified() => all.iter().for_each(|watched| watched.reload(&metrics)),
            _ = ticks.tick() => all.iter_mut().for_each(|watched| watched.look(&metrics)),
        }
        tick();
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, PartialEq)]
struct State(Result<(u64, u64, SystemTime), io::ErrorKind>);

fn states(paths: &[PathBuf]) -> Vec<State> {
    paths.iter().map(|path| state(path)).collect()
}

fn state(path: &Path) -> State {
    let read = || {
        let metadata = fs::metadata(path)?;
        Ok::<_, io::Error>((metadata.ino(), metadata.len(), metadata.modified()?))
    };
    State(read().map_err(|error| error.kind()))
}
