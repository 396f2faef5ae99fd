//! What a commit records of expectations.

use super::Commit;
use crate::{
    event::{Product, TaskId},
    store::{
        Expectation, ReadError,
        apply::Change,
        expectation::{Kept, key},
        lock,
    },
};

impl Commit<'_> {
    /// The expectation of a task, as the commit leaves it so far.
    pub(in crate::store::writer) fn expectation(
        &self,
        product: &Product,
        task_id: &TaskId,
    ) -> Option<(u64, Kept)> {
        if self.totals.expectation_count == 0 {
            return None; // nothing of it costs a callback anything
        }
        self.overlay.expectation(&key(product, task_id))
    }

    /// How many expectations a client has, as the commit leaves it so far.
    pub(in crate::store::writer) fn expected_by(&self, client: &str) -> usize {
        let before = lock(&self.store.expectations).of_client(client);
        before.saturating_add_signed(self.of_clients.get(client).copied().unwrap_or(0))
    }

    /// Has a task expected, with the next number.
    pub(in crate::store::writer) fn expect(
        &mut self,
        expectation: Expectation,
    ) -> Result<Expectation, ReadError> {
        let number = self.totals.expectation_next + 1;
        let expectation = Expectation {
            number,
            ..expectation
        };
        self.put(number, Kept::new(&expectation))?;
        self.totals.expectation_next = number;
        self.totals.expectation_count += 1;
        self.count(expectation.client.as_deref(), 1);
        Ok(expectation)
    }

    /// Notes that an event says that a task is late.
    pub(in crate::store::writer) fn make_overdue(
        &mut self,
        number: u64,
        kept: &Kept,
    ) -> Result<(), ReadError> {
        self.put(number, kept.overdue())
    }

    /// Ends an expectation.
    pub(in crate::store::writer) fn end_expectation(
        &mut self,
        number: u64,
        kept: &Kept,
    ) -> Result<(), ReadError> {
        self.totals.end_expectation()?;
        self.overlay.apply(Change::ExpectationEnded { number })?;
        self.frame.expectation_ended(number);
        self.count(kept.client(), -1);
        Ok(())
    }

    /// Writes an expectation again, because the segment of its first copy goes; returns its bytes.
    /// It may have ended meanwhile.
    pub(in crate::store::writer) fn carry_expectation(
        &mut self,
        number: u64,
    ) -> Result<Option<u64>, ReadError> {
        let Some(kept) = self.overlay.numbered_expectation(number) else {
            return Ok(None);
        };
        let bytes = kept.bytes().len() as u64;
        self.put(number, kept)?;
        Ok(Some(bytes))
    }

    fn put(&mut self, number: u64, kept: Kept) -> Result<(), ReadError> {
        self.frame.expected(number, kept.bytes());
        Ok(self.overlay.apply(Change::Expected { number, kept })?)
    }

    fn count(&mut self, client: Option<&str>, by: isize) {
        if let Some(client) = client {
            *self.of_clients.entry(client.to_owned()).or_default() += by;
        }
    }
}
