//! One commit from its decisions to its replies: write to the log, fsync, update the index, move the head, publish, reply.

use std::{sync::atomic::Ordering, time::Instant};

use super::{
    batch::{Batch, Gone, Sealed, Write},
    command::{Command, PendingReply},
    error::WriteError,
    overwriting::Overwriting,
    publish::Publish,
    thread::Writer,
};
use crate::{
    event::Record,
    store::{Health, Totals, acknowledged::Acknowledged, lock},
};

impl<P: Publish> Writer<P> {
    /// Commits a group, and has retention forget some. Returns how much that was.
    pub(super) fn commit(&mut self, group: Vec<Command>) -> u64 {
        let sealed = self.decide(group);
        let trimmed = sealed.counts.trimmed();
        let has_news = sealed.write.is_some();
        let written = sealed
            .write
            .map_or(Ok(()), |write| self.write(write, &sealed.totals))
            .and_then(|()| self.forget_keys(&sealed.gone.unkept));
        if let Err(problem) = written {
            self.fail(problem, sealed.replies);
            return 0;
        }

        let head = sealed
            .records
            .last()
            .map_or(self.store.head().0, |last| last.sequence().0);
        *lock(&self.store.totals) = sealed.totals;
        if has_news {
            self.store.acknowledged_files.raise(Acknowledged {
                head,
                ..self.store.acknowledged()
            });
        }
        if !sealed.records.is_empty() {
            self.store.head.store(head, Ordering::Release);
            self.publish.publish(&sealed.records);
        }

        let (appended, erased) = (sealed.records.len(), sealed.gone.erased.len());
        sealed.counts.add_to(&self.metrics, appended, erased);
        self.reply(sealed.gone, sealed.replies);
        if let Some(maintenance) = &self.maintenance {
            maintenance.wake_if_needed(&self.store);
        }
        trimmed
    }

    fn decide(&mut self, group: Vec<Command>) -> Sealed {
        let Self {
            store,
            retention,
            trimmer,
            ..
        } = self;
        let adoption = self.adoption.take();
        if adoption.is_some() {
            trimmer.forget_times();
        }
        // An erased event is not overwritten yet: retention would count all of its bytes.
        let may_trim = !group
            .iter()
            .any(|command| matches!(command, Command::Erase(..)));

        let mut batch = Batch::new(store, group.len(), adoption);
        for command in group {
            batch.add(command);
        }
        if may_trim {
            trimmer.trim(&mut batch, retention);
        }
        if store.log.needs_commit() {
            batch.mark();
        }
        batch.seal()
    }

    fn fail(&self, problem: String, replies: Vec<PendingReply>) {
        tracing::error!(
            problem,
            "writing to the store failed: refusing callbacks until a restart"
        );
        *lock(&self.store.health) = Health::Failed(problem.clone());
        replies
            .into_iter()
            .for_each(|reply| reply.refuse(WriteError::Failed(problem.clone())));
    }

    /// Makes a commit durable in the log, and then known to the index, which could not take back a commit that is not durable.
    pub(super) fn write(&mut self, write: Write, totals: &Totals) -> Result<(), String> {
        let Write {
            frame,
            index,
            tasks,
        } = write;
        let before = *lock(&self.store.totals);
        let started = Instant::now();
        let written = self
            .store
            .log
            .append(frame, &before, totals)
            .map_err(|error| error.to_string())?;
        let appended = Instant::now();
        (self.sync)(&self.store)?;
        let synced = Instant::now();

        self.store.log.show(&written);
        index
            .commit()
            .and_then(|()| self.store.tasks.change(tasks))
            .map_err(|error| format!("{error:?}"))?;
        self.store.log.note_applied(&written);

        self.metrics
            .commit_seconds
            .observe((appended - started + synced.elapsed()).as_secs_f64());
        self.metrics
            .fsync_seconds
            .observe((synced - appended).as_secs_f64());
        Ok(())
    }

    fn forget_keys(&self, numbers: &[u64]) -> Result<(), String> {
        if numbers.is_empty() {
            return Ok(()); // almost always
        }
        self.store
            .quarantine_keys
            .forget(numbers)
            .map_err(|error| error.to_string())
    }

    /// Sends the replies of a durable commit. Those of erasures wait until the content is overwritten, which does not hold up
    /// other commits. If the overwriting fails or a crash comes before, the next start does it.
    fn reply(&mut self, gone: Gone, mut replies: Vec<PendingReply>) {
        let Gone { erased, found, .. } = gone;
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
            self.publish.erase(&erased);
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
