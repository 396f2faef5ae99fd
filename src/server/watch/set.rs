//! Files that are read together: decides when to look at them, when to give up, and what to do with what was read. Never waits.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};

use super::{
    files::{Applied, Change, Files, Reading, Watched, stamps},
    hanging::{HANGING_MAX, PAUSE_MAX, PAUSE_MIN, PAUSE_PART, READ_TIMEOUT, already_hanging},
};
use crate::{
    audit::{self, Audit, Entry},
    files::Stamp,
    metrics::Metrics,
    server::{
        aside,
        refusal::{Input, Refusal, Refusals, Source},
    },
};

/// How often files that cannot be used are read again although nothing about them has changed: a disk's error may have passed.
pub(super) const RETRY: Duration = Duration::from_secs(10);
/// How long files that do not belong together may stay so before that is a refusal: a certificate and its key are replaced one after
/// the other, by hand or by a slow mount.
pub(super) const SETTLE: Duration = Duration::from_secs(10);

/// Counts and records what becomes of files.
#[derive(Clone, Debug)]
pub(in crate::server) struct Recorder {
    pub refusals: Arc<Refusals>,
    pub audit: Arc<Audit>,
}

impl Recorder {
    /// Counts in `metrics`, and records in `audit`.
    pub(in crate::server) fn new(metrics: Arc<Metrics>, audit: &Arc<Audit>) -> Self {
        Self {
            refusals: Arc::new(Refusals::new(metrics)),
            audit: Arc::clone(audit),
        }
    }
}

/// What a look has found.
pub(super) enum Found {
    Unchanged,
    Changed(Vec<Stamp>, Result<Change, Vec<Refusal>>),
}

/// The end of a look.
pub(super) struct Report {
    pub place: usize,
    pub look: u64,
    pub found: Found,
}

/// A look that has not reported yet.
pub(super) struct Look {
    number: u64,
    begun: Instant,
    /// Reads, whether anything has changed or not.
    is_requested: bool,
}

/// Files that are read together.
pub(super) struct Set {
    /// Among all sets.
    place: usize,
    watched: Watched,
    report: mpsc::UnboundedSender<Report>,
    recorder: Recorder,
    pub(super) look: Option<Look>,
    /// The number of the last look. A report of a look that was given up is ignored.
    looks: u64,
    /// Held by each thread that looks, also by those that were given up.
    pub(super) threads: Arc<()>,
    /// To be read as soon as the present look has reported.
    is_requested: bool,
    pub(super) trouble: Option<Trouble>,
    /// When they are read again although nothing has changed, if there is trouble.
    pub(super) retry_at: Instant,
    hanging_pause: Duration,
    /// When the first of the looks began that have hung since the last report.
    hanging_since: Option<Instant>,
}

/// Why files cannot be used.
pub(super) struct Trouble {
    pub(super) refusals: Vec<Refusal>,
    since: Instant,
    /// Not while it may settle.
    is_reported: bool,
}

impl Set {
    pub(super) fn new(
        place: usize,
        watched: Watched,
        report: mpsc::UnboundedSender<Report>,
        recorder: Recorder,
    ) -> Self {
        Self {
            place,
            watched,
            report,
            recorder,
            look: None,
            looks: 0,
            threads: Arc::default(),
            is_requested: false,
            trouble: None,
            retry_at: Instant::now(),
            hanging_pause: PAUSE_MIN,
            hanging_since: None,
        }
    }

    /// Reads the files as soon as that is possible, whether they have changed or not.
    pub(super) fn reread(&mut self, now: Instant) {
        self.is_requested = true;
        self.begin_if_requested(now);
    }

    pub(super) fn is_rereading(&self) -> bool {
        self.is_requested || self.look.as_ref().is_some_and(|look| look.is_requested)
    }

    /// What is refused, as far as that was reported.
    pub(super) fn refused(&self) -> impl Iterator<Item = Input> {
        let reported = self.trouble.iter().filter(|trouble| trouble.is_reported);
        reported.flat_map(|trouble| trouble.refusals.iter().map(|refusal| refusal.input))
    }

    /// To be called every period: gives up a look that hangs, and begins one that is due.
    pub(super) fn tick(&mut self, now: Instant) {
        let hangs = |look: &mut Look| now.duration_since(look.begun) >= READ_TIMEOUT;
        if let Some(look) = self.look.take_if(hangs) {
            self.give_up(&look, now);
            self.begin_if_requested(now);
        }

        let is_to_look = !self.watched.files.paths.is_empty() || self.trouble.is_some();
        if is_to_look && self.look.is_none() && (self.hanging() == 0 || now >= self.retry_at) {
            self.begin(false, now);
        }
    }

    fn give_up(&mut self, look: &Look, now: Instant) {
        let since = *self.hanging_since.get_or_insert(look.begun);
        self.hanging_pause = (self.hanging_pause * 2).min(PAUSE_MAX);
        let pause = self
            .hanging_pause
            .max(now.duration_since(since) / PAUSE_PART);
        self.retry_at = now + pause;

        let refusals = self.all_refused(&aside::too_slow(READ_TIMEOUT));
        self.refuse(refusals, look.is_requested, now);
    }

    /// The same refusal of everything in the files: it is not known which of them it is.
    fn all_refused(&self, why: &str) -> Vec<Refusal> {
        let inputs = self.watched.files.inputs.iter();
        inputs.map(|&input| Refusal::new(input, why)).collect()
    }

    /// Threads of looks that were given up. That of the present look may end before its report arrives.
    fn hanging(&self) -> usize {
        (Arc::strong_count(&self.threads) - 1).saturating_sub(self.look.is_some().into())
    }

    fn begin_if_requested(&mut self, now: Instant) {
        if self.look.is_some() || !std::mem::take(&mut self.is_requested) {
            return;
        }

        let hanging = self.hanging();
        if hanging < HANGING_MAX || now >= self.retry_at {
            self.begin(true, now);
        } else {
            let pause = self.retry_at.duration_since(now);
            let refusals = self.all_refused(&already_hanging(hanging, pause));
            self.refuse(refusals, true, now);
        }
    }

    /// Begins a look on a thread of its own.
    fn begin(&mut self, is_requested: bool, now: Instant) {
        self.looks += 1;
        let (place, look, report) = (self.place, self.looks, self.report.clone());
        let Watched {
            files: Files {
                paths, named, seen, ..
            },
            read,
        } = &self.watched;
        let (paths, named, read) = (Arc::clone(paths), named.clone(), Arc::clone(read));
        let thread = Arc::clone(&self.threads);
        let must_read = is_requested || self.trouble.is_some() && now >= self.retry_at;
        let seen = (!must_read).then(|| seen.clone());

        let looking = aside::spawn(move || {
            // Before they are read: a change meanwhile is seen by the next look.
            let stamps = stamps(&paths, named.as_ref());
            let found = if seen.is_some_and(|seen| seen == stamps) {
                Found::Unchanged
            } else {
                Found::Changed(stamps, read())
            };
            drop(thread);
            let _ = report.send(Report { place, look, found }).is_ok(); // at the end nothing receives it
        });
        match looking {
            Ok(_) => {
                self.look = Some(Look {
                    number: look,
                    begun: now,
                    is_requested,
                });
            }
            Err(error) => {
                let refusals = self.all_refused(&format!("no thread to read them: {error}"));
                self.refuse(refusals, is_requested, now);
            }
        }
    }

    /// Takes the report of a look.
    pub(super) fn take(&mut self, number: u64, found: Found, now: Instant) {
        // A look that was given up may be older than what has been read since.
        let Some(look) = self.look.take_if(|look| look.number == number) else {
            return;
        };

        let hung = self.hanging_since.take().is_some();
        self.hanging_pause = PAUSE_MIN;
        if hung && self.trouble.is_some() {
            // It hangs no more. That nothing has changed is no reason to leave a refusal standing.
            self.retry_at = now;
        }
        if let Found::Changed(stamps, outcome) = found {
            let changed = self.changed(&stamps, look.is_requested);
            self.watched.files.seen = stamps;
            match outcome {
                Ok(change) => self.put_into_force(change, &changed, look.is_requested),
                Err(refusals) if self.may_settle(&refusals, &look, now) => {
                    self.wait_for_the_other(refusals, now);
                }
                Err(refusals) => {
                    self.retry_at = now + RETRY;
                    self.refuse(refusals, !changed.is_empty(), now);
                }
            }
        }
        self.begin_if_requested(now);
    }

    /// What is news: it has changed, or it was requested.
    fn changed(&self, stamps: &[Stamp], is_requested: bool) -> Vec<Input> {
        let Files {
            inputs,
            paths,
            seen,
            ..
        } = &self.watched.files;
        // More or fewer files are named: that was news when it was read.
        let named_differ =
            seen.len() == stamps.len() && seen[paths.len()..] != stamps[paths.len()..];
        let differs = |input: Input| {
            let mut stamps = paths.iter().zip(seen.iter().zip(stamps));
            stamps.any(|((of, _), (old, new))| *of == input && old != new)
        };
        let inputs = inputs.iter().copied();
        inputs
            .filter(|&input| is_requested || named_differ || differs(input))
            .collect()
    }

    fn may_settle(&self, refusals: &[Refusal], look: &Look, now: Instant) -> bool {
        let is_in_time = self
            .trouble
            .as_ref()
            .is_none_or(|it| !it.is_reported && now.duration_since(it.since) < SETTLE);
        is_in_time && !look.is_requested && refusals.iter().all(|refusal| refusal.may_settle)
    }

    /// Waits quietly until the other file is replaced, too: that is seen as a change.
    fn wait_for_the_other(&mut self, refusals: Vec<Refusal>, now: Instant) {
        let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
        for Refusal { input, why, .. } in &refusals {
            tracing::info!(
                problem = why,
                "the {} stay as they were until the other file is there, too",
                input.name()
            );
        }

        self.retry_at = since + SETTLE;
        self.trouble = Some(Trouble {
            refusals,
            since,
            is_reported: false,
        });
    }

    fn put_into_force(&mut self, change: Change, changed: &[Input], is_requested: bool) {
        let was_refused: Vec<_> = self.refused().collect();
        let reading = if changed.is_empty() && was_refused.is_empty() {
            Reading::Again
        } else {
            Reading::News
        };
        let Applied {
            summary: news,
            changes,
        } = change(reading);
        self.trouble = None;
        let source = Source::Files(self.place);
        self.recorder.refusals.set(source, Vec::new());

        let by = if is_requested {
            "SIGHUP"
        } else {
            "a changed file"
        };
        for &input in &self.watched.files.inputs {
            if changed.contains(&input) || was_refused.contains(&input) {
                let mut entry = self.entry(input);
                entry.note("by", by);
                entry.note("changes", changes.clone());
                entry.end_now(audit::OK);
                // Before it is logged: a reader of the line may look at the count.
                self.recorder.refusals.count(input, "done");
                tracing::info!(news, "reloaded the {}", input.name());
            }
        }
    }

    fn entry(&self, input: Input) -> Entry {
        let paths = self.watched.files.paths.iter();
        let paths: Vec<_> = paths
            .filter(|(of, _)| *of == input)
            .map(|(_, path)| path.display().to_string())
            .collect();

        let mut entry = self.recorder.audit.entry(input.label());
        entry.note("files", paths);
        entry
    }

    /// Counts and logs refusals, each once unless it `is_news` again.
    fn refuse(&mut self, refusals: Vec<Refusal>, is_news: bool, now: Instant) {
        let reported = self.trouble.as_ref().filter(|trouble| trouble.is_reported);
        let is_new = |refusal: &Refusal| {
            is_news || !reported.is_some_and(|reported| reported.refusals.contains(refusal))
        };
        for refusal in refusals.iter().filter(|refusal| is_new(refusal)) {
            let mut entry = self.entry(refusal.input);
            entry.note("problem", refusal.why.as_str());
            entry.end_now(audit::REFUSED);
            self.recorder.refusals.count(refusal.input, "refused");
            tracing::error!(
                problem = refusal.why,
                "the {} stay as they were: correct the file",
                refusal.input.name()
            );
        }

        let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
        let source = Source::Files(self.place);
        self.recorder.refusals.set(source, refusals.clone());
        self.trouble = Some(Trouble {
            refusals,
            since,
            is_reported: true,
        });
    }
}
