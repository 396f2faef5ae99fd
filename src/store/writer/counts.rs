//! What one commit did, for the metrics.

use crate::metrics::Metrics;

/// What one commit did.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub duplicates: u64,
    pub conflicts: u64,
    pub after_erasure: AfterErasure,
    pub events_trimmed: ByReason<Forgotten>,
    pub quarantine_trimmed: ByReason<u64>,
    /// Quarantined callbacks and expectations that were written again.
    pub carried: u64,
    /// Times that something damaged was given up: events, one behind another, or a quarantined callback.
    pub damage: u64,
}

/// Callbacks of tasks that have an erased event.
#[derive(Debug, Default)]
pub(super) struct AfterErasure {
    /// They have brought content again.
    pub new: u64,
    /// They have repeated an erased event, and brought nothing.
    pub duplicates: u64,
}

/// Why retention has forgotten something.
#[derive(Debug, Default)]
pub(super) struct ByReason<T> {
    /// It was too old.
    pub age: T,
    /// There were too many bytes.
    pub bytes: T,
    /// There were too many.
    pub count: T,
}

/// Why events are forgotten.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reason {
    Age,
    Bytes,
}

impl ByReason<Forgotten> {
    pub(super) fn add(&mut self, reason: Reason, events: u64, bytes: u64) {
        let forgotten = match reason {
            Reason::Age => &mut self.age,
            Reason::Bytes => &mut self.bytes,
        };
        forgotten.events += events;
        forgotten.bytes += bytes;
    }
}

/// Events that retention has forgotten.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    pub events: u64,
    pub bytes: u64,
}

impl Counts {
    /// How much retention has done: forgotten, of events and of the quarantine, written again, and given up.
    pub(super) fn trimmed(&self) -> u64 {
        let Self {
            events_trimmed,
            quarantine_trimmed,
            carried,
            damage,
            ..
        } = self;
        let events = events_trimmed.age.events + events_trimmed.bytes.events;
        events
            + quarantine_trimmed.age
            + quarantine_trimmed.bytes
            + quarantine_trimmed.count
            + carried
            + damage
    }

    /// Adds it to the metrics; `appended` and `erased` count the commit's events.
    pub(super) fn add_to(&self, metrics: &Metrics, appended: usize, erased: usize) {
        metrics.duplicates.inc_by(self.duplicates);
        metrics.conflicts.inc_by(self.conflicts);
        metrics.callbacks_after_erasure(self.after_erasure.new, self.after_erasure.duplicates);
        metrics.events_erased.inc_by(erased as u64);
        metrics.log_damage_met.inc_by(self.damage);
        if appended > 0 {
            metrics.events_appended.inc_by(appended as u64);
            metrics.batch_events.observe(appended as f64);
        }
        if self.trimmed() > 0 {
            self.add_trimmed(metrics);
        }
    }

    fn add_trimmed(&self, metrics: &Metrics) {
        let ByReason { age, bytes, .. } = &self.events_trimmed;
        for (reason, forgotten) in [("age", age), ("bytes", bytes)] {
            metrics
                .events_trimmed
                .with_label_values(&[reason])
                .inc_by(forgotten.events);
            metrics
                .bytes_trimmed
                .with_label_values(&[reason])
                .inc_by(forgotten.bytes);
        }

        let ByReason { age, bytes, count } = self.quarantine_trimmed;
        for (reason, forgotten) in [("age", age), ("bytes", bytes), ("count", count)] {
            metrics
                .quarantine_trimmed
                .with_label_values(&[reason])
                .inc_by(forgotten);
        }
    }
}
