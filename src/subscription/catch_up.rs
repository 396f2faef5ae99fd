//! How a subscription gets its next events: from the log by scanning, by the task index, or from the live path.
//!
//! No event falls between two phases. A filter with tasks takes its seat first, and then looks up what the index has up to the head of
//! that moment. Any other filter reads the log until its position lies within the ring.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    buffer::Buffer,
    lookup::{FETCH, FETCH_RECORDS_MAX, Lookup, Places, TaskEvents, TaskQuery, look_up},
    message::{Control, StreamEnd},
    reading::lent,
    sources::{SCAN, WIDE_SCAN},
    start::OnExpired,
    stream::{Phase, Scanned, Subscription},
};
use crate::{
    event::{Record, Records, Sequence},
    hub::{Read, Seat},
    store::ReadError,
};

impl Subscription {
    /// Fills the buffer, changes the phase, or waits. Called with an empty buffer.
    pub(super) fn poll_advance(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamEnd>> {
        match &mut self.phase {
            Phase::Planning => {
                self.plan();
                Poll::Ready(Ok(()))
            }
            Phase::Scanning(read) => {
                let scanned = ready!(read.poll(cx))?;
                self.phase = Phase::Planning;
                Poll::Ready(self.accept(scanned, Self::end_scan))
            }
            Phase::LookingUp(_, lookup) => {
                let found = ready!(lookup.poll(cx))?;
                Poll::Ready(self.accept(found, Self::begin_fetching))
            }
            Phase::Fetching(_, Some(fetch)) => {
                let records = ready!(fetch.poll(cx))?;
                Poll::Ready(self.accept(records, Self::end_fetching))
            }
            Phase::Fetching(..) => {
                self.fetch_more();
                Poll::Ready(Ok(()))
            }
            Phase::Live(seat) => {
                let read = seat.read(self.position, cx.waker());
                let number = seat.number();
                self.advance_live(read, number)
            }
        }
    }

    fn advance_live(&mut self, read: Read, seat: usize) -> Poll<Result<(), StreamEnd>> {
        match read {
            Read::Records(records, at) => {
                // The seat is past the records in the buffer, which are not handed out yet, so it must not report the position.
                self.entry.seated(None);
                self.entry.begin_batch();
                self.buffer_end = records.last().map_or(self.position, Record::sequence);
                self.buffer = Buffer::new(records, at);
                Poll::Ready(Ok(()))
            }
            Read::Waiting(head) => {
                self.entry.seated(Some(seat));
                self.reach(head);
                self.check_milestones();
                let has_more = !self.controls.is_empty() || self.entry.withdrawal().is_some();
                if has_more {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Pending
                }
            }
            Read::Behind(seen) => {
                self.reach(seen);
                self.fall_behind();
                Poll::Ready(Ok(()))
            }
            Read::Closing => Poll::Ready(Ok(())), // `poll_message` checks for it first
        }
    }

    /// Chooses the phase that continues from `position`.
    fn plan(&mut self) {
        if self.filter.task_ids.is_empty() {
            self.plan_scan();
        } else {
            self.plan_lookup();
        }
    }

    fn plan_scan(&mut self) {
        let hub = &self.sources.hub;
        if let Some(seat) = hub.attach(&self.scan_filter, self.position) {
            return self.go_live(seat);
        }

        if self.wide_permit.is_none() {
            self.wide_permit = Arc::clone(&self.sources.wide_readers.0)
                .try_acquire_owned()
                .ok();
        }
        self.scan(self.position);
    }

    /// Starts a read of the log after the place `after`.
    fn scan(&mut self, after: Sequence) {
        let (store, filter, metrics) = (
            Arc::clone(&self.sources.store),
            Arc::clone(&self.scan_filter),
            Arc::clone(&self.sources.metrics),
        );
        let up_to = self.sources.hub.head();
        let limits = if self.wide_permit.is_some() {
            WIDE_SCAN
        } else {
            SCAN
        };

        self.phase = Phase::Scanning(self.sources.read(&self.payer, limits, move |loan| {
            let chunk = store.read_after(after, up_to, &filter, limits)?;
            metrics.log_segments_skipped.inc_by(chunk.segments_skipped);
            Ok(Scanned {
                records: lent(chunk.records, loan),
                to: chunk.scanned_to,
            })
        }));
    }

    fn end_scan(&mut self, scanned: Option<Scanned>) {
        // Its memory was taken back: planning starts the same read again.
        let Some(Scanned { records, to }) = scanned else {
            return;
        };

        self.buffer = Buffer::new(records, 0);
        self.buffer_end = to;
        // A wide reader reads the next batch while this one is handed out.
        if self.wide_permit.is_some() && !self.sources.hub.reaches(to) {
            self.scan(to);
        }
    }

    fn go_live(&mut self, seat: Seat) {
        self.wide_permit = None;
        self.entry.seated(Some(seat.number()));
        self.phase = Phase::Live(seat);
        // The head has moved while the log was read. The ring still has events up to it to hand out.
        self.catch_up_to = self.catch_up_to.map(|_| self.sources.hub.head());
    }

    fn plan_lookup(&mut self) {
        let hub = &self.sources.hub;
        // The seat first: it notes events that are published from now on, and the index has those before. If the ring moves between
        // the two calls, so has the head, and the next attempt finds its place.
        let (seat, end) = loop {
            let head = hub.head().max(self.position);
            if let Some(seat) = hub.attach(&self.scan_filter, head) {
                break (seat, head);
            }
        };
        self.look_up(Lookup {
            seat,
            end,
            places: Places::default(),
        });
    }

    /// Asks the index for the events after `position`.
    pub(super) fn look_up(&mut self, lookup: Lookup) {
        let store = Arc::clone(&self.sources.store);
        let query = TaskQuery {
            filter: Arc::clone(&self.scan_filter),
            after: self.position,
            end: lookup.end,
            ended_after: self.pending.as_ref().map(|_| self.ended_through),
        };
        let found = self.sources.read(&self.payer, FETCH, move |loan| {
            look_up(&store, &query, loan)
        });
        self.phase = Phase::LookingUp(lookup, found);
    }

    fn begin_fetching(&mut self, found: Option<TaskEvents>) {
        let Some(found) = found else {
            return self.repeat_lookup();
        };
        self.ended_through = self.ended_through.max(found.ended_through);
        if let Some(pending) = &mut self.pending {
            found.ended.iter().for_each(|task_id| {
                pending.remove(task_id);
            });
        }

        if let Phase::LookingUp(mut lookup, _) = std::mem::replace(&mut self.phase, Phase::Planning)
        {
            lookup.places = found.places;
            self.phase = Phase::Fetching(lookup, None);
        }
        self.take_fetched(found.records);
    }

    /// Asks again, because the memory of the answer was taken back.
    fn repeat_lookup(&mut self) {
        if let Phase::LookingUp(lookup, _) = std::mem::replace(&mut self.phase, Phase::Planning) {
            self.look_up(lookup);
        }
    }

    fn fetch_more(&mut self) {
        let Phase::Fetching(lookup, _) = std::mem::replace(&mut self.phase, Phase::Planning) else {
            return;
        };
        let Places { ahead, is_cut } = &lookup.places;
        if ahead.is_empty() && *is_cut {
            return self.look_up(lookup);
        }
        if ahead.is_empty() {
            self.reach(lookup.end);
            self.go_live(lookup.seat);
            return;
        }

        let store = Arc::clone(&self.sources.store);
        let places: Vec<_> = ahead.iter().take(FETCH_RECORDS_MAX).copied().collect();
        let fetch = self.sources.read(&self.payer, FETCH, move |loan| {
            Ok(lent(store.get_all(&places, FETCH.bytes_max)?, loan))
        });
        self.phase = Phase::Fetching(lookup, Some(fetch));
    }

    fn end_fetching(&mut self, records: Option<Records>) {
        // Without records their memory was taken back: the same places are fetched again.
        let records = records.unwrap_or_else(|| Vec::new().into());
        if let Phase::Fetching(lookup, fetch) = &mut self.phase {
            let ahead = &mut lookup.places.ahead;
            ahead.drain(..records.len().min(ahead.len()));
            *fetch = None;
        }
        self.take_fetched(records);
    }

    fn take_fetched(&mut self, records: Records) {
        self.buffer_end = records.last().map_or(self.position, Record::sequence);
        self.buffer = Buffer::new(records, 0);
    }

    /// Passes the result of a read to `then`. If retention has passed the place, continues after a gap or fails, as the client chose.
    fn accept<T>(
        &mut self,
        read: Result<T, ReadError>,
        then: impl FnOnce(&mut Self, T),
    ) -> Result<(), StreamEnd> {
        match read {
            Ok(found) => {
                then(self, found);
                Ok(())
            }
            Err(
                ReadError::Corrupt(problem) | ReadError::Io(problem) | ReadError::Index(problem),
            ) => Err(StreamEnd::Corrupt(problem)),
            Err(ReadError::Expired) => {
                let to = self
                    .on_expired
                    .continue_at(&self.sources)
                    .ok_or(StreamEnd::Expired)?;
                self.skip_with_gap(to);
                Ok(())
            }
        }
    }

    /// Makes the first read of a stream that starts without a cursor. Its start moves along with the oldest event of the log until a
    /// read succeeds: retention must not refuse a client that has not read anything yet.
    pub(super) async fn first_read(&mut self) -> Result<(), StreamEnd> {
        let on_expired = std::mem::replace(&mut self.on_expired, OnExpired::Earliest);
        loop {
            self.plan();
            if !matches!(self.phase, Phase::Live(_)) {
                poll_fn(|cx| self.poll_advance(cx)).await?;
            }
            // A gap before the start is no loss, so it is not announced.
            if self.controls.pop_front().is_none() {
                break;
            }
        }
        self.on_expired = on_expired;
        Ok(())
    }

    pub(super) fn skip_with_gap(&mut self, to: Sequence) {
        let after = self.position;
        self.reach(to);
        self.controls.push_back(Control::Gap {
            after,
            through: self.position,
        });
        self.phase = Phase::Planning;
    }
}
