//! Reads another log in the order in which its events and quarantined callbacks came.

use crate::store::{
    Quarantined, ReadError, Store, lock,
    log::{Events, Logged},
    writer::GROUP_BYTES_MAX,
};

/// Quarantined callbacks that are read at once; each may be as large as a body.
const QUARANTINE_PAGE: usize = 16;

/// The next in time.
pub(super) enum Next {
    Event(Logged),
    Quarantined(Quarantined),
}

/// The rest of a log: its events and its quarantine, each in order, and both together in the order
/// in which they came.
pub(super) struct Pending<'a> {
    store: &'a Store,
    events: Events,
    event: Option<Logged>,
    quarantined: std::vec::IntoIter<Quarantined>,
    callback: Option<Quarantined>,
    /// The newest number of the quarantine that was read.
    read_to: u64,
}

impl<'a> Pending<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        let events = store.log.events(store.first_available()..=store.head());
        Self {
            store,
            events,
            event: None,
            quarantined: Vec::new().into_iter(),
            callback: None,
            read_to: 0,
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Next>, ReadError> {
        if self.event.is_none() {
            self.event = self.events.next().transpose()?;
        }
        if self.callback.is_none() {
            self.callback = self.next_quarantined()?;
        }
        let correction = lock(&self.store.totals).correction;
        let is_callback_first = match (&self.event, &self.callback) {
            (Some(event), Some(callback)) => {
                let Quarantined { number, header, .. } = callback;
                let received = correction.of_quarantined(*number, header.received_at_micros);
                let event = &event.record;
                received < correction.of_event(event.sequence(), event.log_time_micros())
            }
            (None, _) => true,
            (_, None) => false,
        };
        Ok(if is_callback_first {
            self.callback.take().map(Next::Quarantined)
        } else {
            self.event.take().map(Next::Event)
        })
    }

    fn next_quarantined(&mut self) -> Result<Option<Quarantined>, ReadError> {
        if let Some(next) = self.quarantined.next() {
            return Ok(Some(next));
        }
        let page = self
            .store
            .quarantined_after(self.read_to, QUARANTINE_PAGE, GROUP_BYTES_MAX)?;
        if let Some(last) = page.last() {
            self.read_to = last.number;
        }
        // Nothing of the other log may be missing in the restored one.
        if let Some(problem) = page.iter().find_map(|callback| callback.damage.clone()) {
            return Err(ReadError::Corrupt(problem));
        }
        self.quarantined = page.into_iter();
        Ok(self.quarantined.next())
    }
}
