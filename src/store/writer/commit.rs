//! One commit from its decisions to its replies: write to the log, fsync, update the index, move the head, publish, reply.

use std::{sync::atomic::Ordering, time::Instant};

use super::{
    command::{Command, PendingReply},
    decide::{Decided, decide},
    error::WriteError,
    moment::Moment,
    overwriting::Overwriting,
    publish::Publish,
    thread::Writer,
};
use crate::{
    cluster::Totals,
    event::Record,
    store::{
        Health, Store,
        acknowledged::Acknowledged,
        apply::Changes,
        lock,
        log::{Found, FrameBuilder, Written},
        open::kept_from,
    },
};

impl<P: Publish> Writer<P> {
    /// Commits a group, and has retention forget some. Returns how much that was.
    pub(super) fn commit(&mut self, group: Vec<Command>) -> u64 {
        let moment = Moment::now(&self.store.clock, self.adoption.take());
        let Decided {
            commit,
            found,
            replies,
            counts,
        } = decide(
            &self.store,
            group,
            moment,
            &self.retention,
            &mut self.trimmer,
        );
        let has_news = commit.write.is_some();
        if let Some((frame, changes)) = commit.write
            && let Err(problem) = self.write(frame, changes, &commit.totals)
        {
            self.fail(&problem, replies);
            return 0;
        }

        let head = commit
            .records
            .last()
            .map_or(self.store.head().0, |last| last.sequence().0);
        *lock(&self.store.totals) = commit.totals;
        if has_news {
            self.store.acknowledged_files.raise(Acknowledged {
                head,
                ..self.store.acknowledged()
            });
        }
        if !commit.records.is_empty() {
            self.store.head.store(head, Ordering::Release);
            self.publish.publish(&commit.records);
        }

        counts.add_to(&self.metrics, commit.records.len(), commit.erased.len());
        self.reply(found, &commit.erased, replies);
        if let Some(maintenance) = &self.maintenance {
            maintenance.wake_if_needed(&self.store);
        }
        counts.trimmed()
    }

    pub(super) fn fail(&self, problem: &str, replies: Vec<PendingReply>) {
        tracing::error!(
            problem,
            "writing to the store failed: refusing callbacks until a restart"
        );
        *lock(&self.store.health) = Health::Failed(problem.to_owned());
        replies
            .into_iter()
            .for_each(|reply| reply.refuse(WriteError::Failed(problem.to_owned())));
    }

    /// Makes a commit durable in the log, and then known to the index, which could not take back a commit that is not durable.
    pub(super) fn write(
        &mut self,
        frame: FrameBuilder,
        changes: Changes,
        totals: &Totals,
    ) -> Result<(), String> {
        let store = &self.store;
        let before = *lock(&store.totals);
        let started = Instant::now();
        let written = store
            .log
            .append(frame, &before, totals)
            .map_err(|error| error.to_string())?;
        let appended = Instant::now();
        (self.sync)(store)?;
        let synced = Instant::now();

        store.log.show(&written);
        take_up(store, &written, changes, totals)?;

        self.metrics
            .commit_seconds
            .observe((appended - started + synced.elapsed()).as_secs_f64());
        self.metrics
            .fsync_seconds
            .observe((synced - appended).as_secs_f64());
        Ok(())
    }

    /// Sends the replies of a durable commit. Those of erasures wait until the content is overwritten, which does not hold up
    /// other commits. If the overwriting fails or a crash comes before, the next start does it.
    pub(super) fn reply(
        &mut self,
        found: Found,
        erased: &[Record],
        mut replies: Vec<PendingReply>,
    ) {
        // A repeated erasure waits for the overwriting of the first.
        let is_announced = !found.is_empty() || self.store.log.announced() > 0;
        let waiting: Vec<_> = if is_announced {
            replies
                .extract_if(.., |reply| reply.is_of_erasure())
                .collect()
        } else {
            Vec::new()
        };
        replies.into_iter().for_each(PendingReply::send);
        if found.is_empty() && waiting.is_empty() {
            return; // almost always
        }

        self.store
            .log
            .note_announced(erased.iter().map(Record::sequence).collect());
        if !erased.is_empty() {
            self.publish.erase(erased);
        }
        let overwriting = Overwriting {
            found,
            has_events: !erased.is_empty(),
            replies: waiting,
        };
        match &self.maintenance {
            Some(maintenance) => maintenance.overwrite(overwriting),
            None => {
                overwriting.run(&self.store, || Ok(()));
            }
        }
    }
}

/// Has the index know a commit that readers can find.
pub(super) fn take_up(
    store: &Store,
    written: &Written,
    changes: Changes,
    totals: &Totals,
) -> Result<(), String> {
    // Before the index forgets them, so that no reader takes a forgotten event for a hole.
    store
        .first_available
        .fetch_max(totals.first_available, Ordering::AcqRel);
    changes
        .write(
            store.state(),
            written.segment(),
            written.frame(),
            written.quarantined(),
        )
        .map_err(|error| error.to_string())?;
    store
        .log
        .note_kept_from(kept_from(&store.quarantine, &store.expectations));
    store.log.note_applied(written);
    Ok(())
}
