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
    sync::{mpsc, oneshot},
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
        if states(&self.paths) != self.seen {
            self.reload(metrics);
        }
    }

    fn reload(&mut self, metrics: &Metrics) {
        // Before they are read: what changes meanwhile is seen next time.
        self.seen = states(&self.paths);
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

/// Asks for everything to be read again.
#[derive(Clone, Debug)]
pub(super) struct Rereader(mpsc::Sender<oneshot::Sender<()>>);

impl Rereader {
    /// And where it is asked for.
    pub(super) fn new() -> (Self, Asked) {
        let (ask, asked) = mpsc::channel(1); // nobody asks twice at once
        (Self(ask), Asked(asked))
    }

    /// Returns when what the files say is in force.
    pub(super) async fn reread(&self) {
        let (done, is_done) = oneshot::channel();
        // Without a watcher the process is about to end.
        if self.0.send(done).await.is_ok() {
            let _ = is_done.await.is_ok();
        }
    }
}

/// Where a [`Rereader`]'s questions arrive.
#[derive(Debug)]
pub(super) struct Asked(mpsc::Receiver<oneshot::Sender<()>>);

/// Looks at everything until `stop`, and reads everything again when it is `asked` to; `tick` is called each time behind it.
pub(super) async fn watch(
    mut all: Vec<Watched>,
    mut tick: impl FnMut(),
    Asked(mut asked): Asked,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            () = stop.cancelled() => return,
            Some(done) = asked.recv() => Some(done),
            _ = ticks.tick() => None,
        };
        match done {
            Some(_) => all.iter_mut().for_each(|watched| watched.reload(&metrics)),
            None => all.iter_mut().for_each(|watched| watched.look(&metrics)),
        }
        tick();
        // Who has asked may be gone.
        let _ = done.is_none_or(|done| done.send(()).is_ok());
    }
}

/// What tells one state of a file from another without reading it; who may read it is a part of that.
#[derive(Debug, PartialEq)]
struct State(Result<(u64, u64, SystemTime, [u32; 3]), io::ErrorKind>);

fn states(paths: &[PathBuf]) -> Vec<State> {
    paths.iter().map(|path| state(path)).collect()
}

fn state(path: &Path) -> State {
    let read = || {
        let metadata = fs::metadata(path)?;
        let rights = [metadata.mode(), metadata.uid(), metadata.gid()];
        Ok::<_, io::Error>((metadata.ino(), metadata.len(), metadata.modified()?, rights))
    };
    State(read().map_err(|error| error.kind()))
}
