//! Decides about expectations: which tasks are open, over or too many, whose may be ended, and what
//! is late.

use std::collections::HashSet;

use super::{Decisions, Source, failed};
use crate::{
    event::{Product, Sequence, TaskId},
    store::{
        Appended, EXPECTATIONS_MAX, EXPECTATIONS_PER_CLIENT_MAX, Expectation, Expected, ReadError,
        Whose,
        expectation::Kept,
        layout::TaskEvent,
        writer::{
            command::{Expecting, Late},
            error::WriteError,
        },
    },
};

impl Decisions<'_> {
    /// Has tasks expected, unless they are over: all of them, or none.
    pub(super) fn expect(&mut self, expecting: &Expecting) -> Result<Vec<Expected>, WriteError> {
        // Everything that can fail comes first.
        let mut over = Vec::with_capacity(expecting.expectations.len());
        for expectation in &expecting.expectations {
            over.push(self.over(expectation).map_err(failed)?);
        }
        if expecting.is_limited {
            self.check_limits(&expecting.expectations, &over)?;
        }

        let mut became = Vec::with_capacity(over.len());
        for (expectation, over) in expecting.expectations.iter().zip(over) {
            became.push(match over {
                Some(place) => Expected::Over(place),
                None => Expected::Open(self.expect_one(expectation).map_err(failed)?),
            });
        }
        Ok(became)
    }

    /// The first deadline, labels and client of a task stay.
    fn expect_one(&mut self, expectation: &Expectation) -> Result<Expectation, ReadError> {
        let Expectation {
            product, task_id, ..
        } = expectation;
        if let Some((number, kept)) = self.commit.expectation(product, task_id) {
            return Ok(kept.expectation(number));
        }
        self.commit
            .stamp(expectation.expected_at_micros, self.moment.now_micros);
        self.commit.expect(expectation.clone())
    }

    /// The place of a task's latest terminal event, if it has one.
    fn over(&mut self, expectation: &Expectation) -> Result<Option<Sequence>, ReadError> {
        let events = self.commit.events(&expectation.task_id)?.iter();
        let is_end =
            |event: &&TaskEvent| event.product == expectation.product && event.status.is_terminal();
        Ok(events.rev().find(is_end).map(|event| event.sequence))
    }

    /// Whether there is room for those of these expectations that are new. They are of one client, as those of each call are.
    fn check_limits(
        &self,
        expectations: &[Expectation],
        over: &[Option<Sequence>],
    ) -> Result<(), WriteError> {
        let is_new = |expectation: &Expectation| {
            let Expectation {
                product, task_id, ..
            } = expectation;
            self.commit.expectation(product, task_id).is_none()
        };
        let new: HashSet<_> = expectations
            .iter()
            .zip(over)
            .filter(|(expectation, over)| over.is_none() && is_new(expectation))
            .map(|(new, _)| (&new.product, &new.task_id))
            .collect();
        if new.is_empty() {
            return Ok(());
        }

        let check = |open: usize, limit: usize| {
            if open + new.len() > limit {
                Err(WriteError::TooManyExpectations { limit, open })
            } else {
                Ok(())
            }
        };
        let open = self.commit.totals().expectation_count as usize;
        check(open, EXPECTATIONS_MAX)?;
        match expectations.first().and_then(|it| it.client.as_deref()) {
            Some(client) => check(self.commit.expected_by(client), EXPECTATIONS_PER_CLIENT_MAX),
            None => Ok(()), // an unauthenticated call has no share
        }
    }

    /// Ends those of these tasks that are open and may be ended; returns how many.
    pub(super) fn end_expectations(
        &mut self,
        tasks: &[(Product, TaskId)],
        whose: &Whose,
    ) -> Result<u32, ReadError> {
        let mut count = 0;
        for (product, task_id) in tasks {
            let Some((number, kept)) = self.commit.expectation(product, task_id) else {
                continue;
            };
            let may_end = match whose {
                Whose::Anybody => true,
                Whose::Client(client) => client.as_deref() == kept.client(),
            };
            if may_end {
                self.commit.end_expectation(number, &kept)?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Ends the expectation of a task that is over.
    pub(super) fn end_expectation_of(
        &mut self,
        product: &Product,
        task_id: &TaskId,
    ) -> Result<(), ReadError> {
        match self.commit.expectation(product, task_id) {
            Some((number, kept)) => self.commit.end_expectation(number, &kept),
            None => Ok(()), // mostly
        }
    }

    /// Appends the event that a task is late; `None` if its expectation is not open any more, if there
    /// is such an event of it already, or if it has too many. Of too many there is none more, but what
    /// follows from it is the same.
    pub(super) fn overdue(&mut self, late: &Late) -> Result<Option<Appended>, WriteError> {
        let Late {
            number,
            draft,
            gives_up,
        } = late;
        let open = self.commit.expectation(&draft.product, &draft.task_id);
        let is_late = |open: &(u64, Kept)| open.0 == *number && (*gives_up || !open.1.is_overdue());
        let Some((number, kept)) = open.filter(is_late) else {
            return Ok(None);
        };
        let appended = match self.append_as(draft, Source::Broker) {
            Ok(appended) => Some(appended),
            // It was expected and late again and again. That must not keep it open for ever.
            Err(WriteError::TooManyEvents) => None,
            Err(error) => return Err(error),
        };
        if *gives_up {
            self.commit.end_expectation(number, &kept)
        } else {
            self.commit.make_overdue(number, &kept)
        }
        .map_err(failed)?;
        Ok(appended)
    }
}
