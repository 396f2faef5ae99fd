//! Events of tasks that are late: when the loop appends them, and what has to come before.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    run::{LATE_MAX, Loop},
    schedule::{Late, TaskKey},
};

impl Loop {
    /// After a time in which the broker could not check, checks come before events of late tasks.
    pub(super) fn notice_absence(&mut self) {
        let now = self.now();
        if self.presence.note_step(now) {
            self.shared.schedule.lock().back(now);
        }
    }

    /// Begins to append events of tasks that are late.
    pub(super) fn note_late(&mut self) {
        let is_silent = self.presence.is_silent(Instant::now());
        while self.late < LATE_MAX {
            let now = self.now();
            let next = {
                let mut schedule = self.shared.schedule.lock();
                schedule.next_late(now, |_| !is_silent)
            };
            let Some(late) = next else {
                return;
            };
            self.note_late_one(late, now);
        }
    }

    fn note_late_one(&mut self, late: Late, now: i64) {
        let parts = &self.shared.parts;
        let is_open = |task: &TaskKey| {
            parts
                .store
                .expectation(&task.product, &task.task_id)
                .is_some()
        };
        if late.number.is_some() && !is_open(&late.task) {
            let mut schedule = self.shared.schedule.lock();
            schedule.not_noted(&late, now);
            schedule.no_longer_stored(late.id);
            return;
        }

        let Some(subject) = parts.subject(&late.task) else {
            self.shared.schedule.lock().settled(late.id);
            return;
        };
        self.late += 1;
        self.in_flight
            .push(Arc::clone(parts).note_late(late, subject));
    }
}
