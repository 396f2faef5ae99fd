//! Reads files again when they change while the broker runs. They are looked at every second. A file that cannot be used changes
//! nothing, and is tried again.
//!
//! Looking at a file and reading it may hang for ever on a dead mount, so both are done aside, for each set of files on its own.
//! Decisions never wait: when to look, when to give up, and what to do with what was read ([`set`]).

mod files;
mod hanging;
mod rereader;
mod set;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

pub(super) use self::{
    files::{Applied, Change, Files, Reading, Watched},
    rereader::{RereadRequests, Rereader},
    set::Recorder,
};
use self::{
    rereader::RereadRequest,
    set::{Report, Set},
};

/// How often the files are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// Looks at all files until `stop`, and reads everything again on request. `tick` is called after each look.
pub(super) async fn watch(
    all: Vec<Watched>,
    mut tick: impl FnMut(),
    RereadRequests(mut requests): RereadRequests,
    recorder: Recorder,
    stop: CancellationToken,
) {
    // Bounded by the threads that look: each reports once.
    let (report, mut reports) = mpsc::unbounded_channel();
    let set = |(place, watched)| Set::new(place, watched, report.clone(), recorder.clone());
    let mut sets: Vec<_> = all.into_iter().enumerate().map(set).collect();
    let mut waiting: Vec<RereadRequest> = Vec::new();
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(done) = requests.recv() => {
                waiting.push(done);
                sets.iter_mut().for_each(|set| set.reread(Instant::now()));
            }
            Some(Report { place, look, found }) = reports.recv() => {
                sets[place].take(look, found, Instant::now());
            }
            _ = ticks.tick() => sets.iter_mut().for_each(|set| set.tick(Instant::now())),
        }
        tick();

        if !sets.iter().any(Set::is_rereading) {
            for done in waiting.drain(..) {
                let refused = sets.iter().flat_map(Set::refused);
                let _ = done.send(refused.collect()).is_ok(); // the one that asked may be gone
            }
        }
    }
}
