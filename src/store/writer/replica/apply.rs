//! Applies a frame, which the stream has: one commit of this node's log, shown before it is synced.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{Behind, Newest, Replica, entries::Applying};
use crate::{
    cluster::{Frame, Totals},
    event::Sequence,
    store::{
        apply::Changes,
        lock,
        log::{FrameBuilder, Streamed},
        writer::{
            commit::take_up, counts::Counts, error::WriteError, moment::Moment, publish::Publish,
        },
    },
};

impl<P: Publish> Replica<P> {
    /// Applies a frame, which is the next one, and shows it. It is not synced yet. After an error this node must not go on.
    pub fn apply(&mut self, sequence: u64, frame: &Frame) -> Result<(), WriteError> {
        if let Some(error @ WriteError::Failed(_)) = self.writer.refusal() {
            return Err(error);
        }
        let store = Arc::clone(&self.writer.store);
        let mut applying = Applying::new(&store, self.is_complete);
        let mut carried = 0;
        let applied = applying.run(frame, &self.origins).map(|()| {
            carried = self.carry(&mut applying, &frame.contents.after);
        });
        let Applying {
            overlay,
            mut builder,
            records,
            erased,
            found,
            ..
        } = applying;
        let changes = overlay.into_changes();
        if let Err(problem) = applied {
            changes.take_back(store.state());
            let problem = problem.to_string();
            tracing::error!(problem, "cannot apply a frame of the stream");
            return Err(WriteError::Failed(problem));
        }
        builder.streamed = Some(Streamed {
            frame: sequence,
            chain: frame.header.chain,
        });
        if let Err(problem) = self.write(builder, changes, &frame.contents.after) {
            self.writer.fail(&problem, Vec::new());
            return Err(WriteError::Failed(problem));
        }

        *lock(&store.totals) = frame.contents.after;
        if let Some(last) = records.last() {
            store.head.store(last.sequence().0, Ordering::Release);
            self.writer.publish.publish(&records);
        }
        self.note(frame, records.len(), erased.len(), carried);
        if !found.is_empty() {
            // A start must find the announcement of what is overwritten.
            self.sync()?;
        }
        self.writer.reply(found, &erased, Vec::new());
        if let Some(maintenance) = &self.writer.maintenance {
            maintenance.wake_if_needed(&store);
        }
        Ok(())
    }

    /// Takes note of who has written, and of what this node has decided.
    fn note(&mut self, frame: &Frame, appended: usize, erased: usize, carried: u64) {
        let contents = &frame.contents;
        let own = self
            .proposal
            .take()
            .filter(|own| contents.author == self.author && own.after == contents.after);
        let mut counts = Counts::default();
        if let Some(own) = own {
            if own.has_adoption {
                self.writer.adoption = None;
            }
            counts = own.counts;
        }
        if contents.author != self.author {
            self.writer.adoption = None; // it was about what this node has stamped
        }
        self.newest = Some(Newest {
            author: contents.author,
            at_micros: self.writer.store.clock.monotonic_micros(),
        });
        counts.carried += carried;
        counts.add_to(&self.writer.metrics, appended, erased);
    }

    /// Has it write again what is in the oldest segment of this log.
    fn carry(&mut self, applying: &mut Applying<'_>, after: &Totals) -> u64 {
        let moment = Moment::now(&self.writer.store.clock, None);
        let age_max = self.writer.retention.event_age_max;
        let first_available = Sequence(after.first_available);
        let due = self
            .writer
            .trimmer
            .due_here(applying.store, first_available, age_max, &moment);
        applying.carry(&due)
    }

    /// The same as of the writer, but without a sync.
    fn write(
        &mut self,
        builder: FrameBuilder,
        changes: Changes,
        after: &Totals,
    ) -> Result<(), String> {
        let store = Arc::clone(&self.writer.store);
        let before = *lock(&store.totals);
        let (started, newest) = (Instant::now(), store.log.newest());
        let written = store
            .log
            .append(builder, &before, after)
            .map_err(|error| error.to_string())?;
        self.behind = Some(Behind {
            oldest: written.oldest(),
            since: self.behind.map_or(started, |behind| behind.since),
        });
        // What is not the newest segment must be durable, and so must be what the index takes in for good.
        if written.segment() != newest || store.index.tasks.is_full_with(changes.weight()) {
            self.sync().map_err(|error| error.to_string())?;
        }
        store.log.show_ahead(&written);
        take_up(&store, &written, changes, after)?;
        self.writer
            .metrics
            .commit_seconds
            .observe(started.elapsed().as_secs_f64());
        Ok(())
    }
}
