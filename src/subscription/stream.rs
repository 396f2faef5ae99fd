//! The subscription as its poller sees it: the next message, and what happens between two polls.
//!
//! Owns the order of messages: control messages before events, and the end of the stream never queued behind events. `catch_up` fills
//! the buffer from here on.

use std::{
    collections::{HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};

use super::{
    buffer::{Buffer, PutAway, Rested},
    entry::RegistryEntry,
    info::SubscriptionState,
    lookup::{FETCH, FETCH_RECORDS_MAX, Lookup, TaskEvents},
    message::{Control, StreamEnd, StreamMessage, Withdrawal},
    reading::Reading,
    sources::Sources,
    start::OnExpired,
};
use crate::{
    budget::Payer,
    credentials::Client,
    event::{Filter, Record, Records, Selectable, Sequence, TaskId},
    hub::Seat,
    store::ReadError,
};

/// The phase of a subscription; see the module's diagram.
pub(super) enum Phase {
    Planning,
    Scanning(Reading<Scanned>),
    LookingUp(Lookup, Reading<TaskEvents>),
    Fetching(Lookup, Option<Reading<Records>>),
    Live(Seat),
}

/// The result of one read of the log.
pub(super) struct Scanned {
    pub records: Records,
    /// The last place that the read scanned.
    pub to: Sequence,
}

/// One open stream of events: a position, a phase, and at most one batch of records.
pub(crate) struct Subscription {
    pub(super) sources: Arc<Sources>,
    pub(super) entry: RegistryEntry,
    /// The connection or client that takes turns with others at the memory for reads.
    pub(super) payer: Payer,
    /// The events that the client wants.
    pub(super) filter: Arc<Filter>,
    /// The events that are read. Wider than `filter` if a task's end counts although the client does not want the event.
    pub(super) scan_filter: Arc<Filter>,
    pub(super) on_expired: OnExpired,
    /// Events before this log time are skipped until the first event at or after it.
    pub(super) since: Option<i64>,
    pub(super) phase: Phase,
    /// Every matching event up to here was handed out.
    pub(super) position: Sequence,
    pub(super) buffer: Buffer,
    /// The position when the buffer is empty.
    pub(super) buffer_end: Sequence,
    /// A read of the event that was handed out last, if it is needed again.
    pub(super) reread: Option<Box<Reading<Records>>>,
    /// The store's count of erasures when the records in memory were read.
    pub(super) erasures: u64,
    /// The permit for wide reads, if one was free when the stream began to read the log.
    pub(super) wide_permit: Option<OwnedSemaphorePermit>,
    /// Control messages that come before any event.
    pub(super) controls: VecDeque<Control>,
    /// The end of the stream. The inner option is taken when it was handed out; it is `None` after `Completed`.
    pub(super) end: Option<Option<StreamEnd>>,
    /// The tasks that have not ended, if the stream ends with its tasks.
    pub(super) pending: Option<HashSet<TaskId>>,
    /// Terminal events up to here were read, if the index alone does not tell which tasks have ended.
    pub(super) ended_through: Sequence,
    /// The place at which the stream has caught up; `None` while it is live.
    pub(super) catch_up_to: Option<Sequence>,
    pub(super) heartbeat: Pin<Box<Sleep>>,
    pub(super) heartbeat_interval: Duration,
    pub(super) deadline: Option<Instant>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.id())
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    /// The subscription id of logs, messages and commands.
    pub(crate) fn id(&self) -> &str {
        self.entry.id()
    }

    /// Asks `verdict` whether the subscription may continue, like [`super::Registry::review`] for all of them.
    ///
    /// # Errors
    ///
    /// [`StreamEnd::Withdrawn`]; the caller then has to drop the subscription.
    pub(crate) fn review(
        &mut self,
        verdict: impl FnOnce(Option<&Client>, &Filter) -> Option<Withdrawal>,
    ) -> Result<(), StreamEnd> {
        let Some(withdrawal) = self.entry.review(verdict) else {
            return Ok(());
        };

        let end = StreamEnd::Withdrawn(withdrawal);
        self.entry.ended(Some(&end));
        Err(end)
    }

    /// The next message, then the end of the stream, then `None`. After `Completed` comes `None` at once.
    pub(crate) fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<StreamMessage<'_>, StreamEnd>>> {
        loop {
            if let Some(control) = self.controls.pop_front() {
                self.log_control(&control);
                return Poll::Ready(Some(Ok(StreamMessage::Control(control))));
            }
            if let Some(end) = &mut self.end {
                return Poll::Ready(end.take().map(Err));
            }

            // Before the buffer: the final status is never queued behind events.
            if self.sources.hub.is_closing() {
                self.go_away();
                continue;
            }
            if let Some(withdrawal) = self.entry.withdrawal() {
                self.finish(Some(StreamEnd::Withdrawn(withdrawal)));
                continue;
            }

            self.drop_erased();
            if let Some(at) = self.next_buffered() {
                // With a filter of a few tasks most records of a batch belong to other streams.
                let ahead = if self.filter.task_ids.is_empty() {
                    self.buffer.left()
                } else {
                    0
                };
                let records = self.buffer.records.as_ref().expect("there is one in it");
                return Poll::Ready(Some(Ok(StreamMessage::Event { records, at, ahead })));
            }

            self.check_milestones();
            if self.controls.is_empty() && self.heartbeat.as_mut().poll(cx).is_ready() {
                self.send_heartbeat();
            }
            if self.controls.is_empty()
                && self.end.is_none()
                && let Err(end) = ready!(self.poll_advance(cx))
            {
                self.finish(Some(end));
            }
        }
    }

    fn log_control(&self, control: &Control) {
        match *control {
            Control::FellBehind { position, lag } => self.entry.fell_behind(position, lag),
            Control::Gap { after, through } => self.entry.lost("gap", after, through),
            _ => {}
        }
    }

    /// Logs that the stream is open.
    pub(crate) fn note_opened(&mut self) {
        self.entry.subscribed(self.position);
    }

    /// A frame was handed to the transport. If the transport does not ask for more soon, the client is stalled.
    pub(crate) fn frame_sent(&self) {
        self.entry.frame_sent();
    }

    /// The transport has asked for more, and there is nothing to send.
    pub(crate) fn more_asked(&self) {
        self.entry.more_asked();
    }

    /// Takes back the records that [`Subscription::rest`] has put away; reads them again if they are gone.
    pub(crate) fn resume(&mut self) {
        let Some(rested) = self.buffer.rested.take() else {
            return;
        };
        let put_away = match rested {
            Rested::Ring(records) => records.upgrade().map(|records| PutAway {
                records: Some(records),
                places: None,
            }),
            Rested::Log(shelf) => shelf.take(),
        };
        let Some(PutAway { records, places }) = put_away else {
            return self.go_back();
        };

        self.buffer.records = records;
        if let (Phase::Fetching(lookup, _), Some(places)) = (&mut self.phase, places) {
            lookup.places = places;
        }
    }

    /// Puts the records in memory away, so that others may take the memory. To be called before the stream may not be polled for a
    /// while. `is_midway`: the event that was handed out last is still needed.
    pub(crate) fn rest(&mut self, is_midway: bool) {
        let records = self.buffer.records.take();
        let records = records.filter(|records| self.buffer.next < records.len() || is_midway);
        if records.is_none() {
            self.buffer.next = 0;
        }
        if let Some(records) = &records
            && !records.is_lent()
        {
            self.buffer.rested = Some(Rested::Ring(records.downgrade()));
            return;
        }

        let places = match &mut self.phase {
            // A few places are not worth putting away.
            Phase::Fetching(lookup, _) if lookup.places.ahead.len() > FETCH_RECORDS_MAX => {
                Some(std::mem::take(&mut lookup.places))
            }
            _ => None,
        };
        if records.is_some() || places.is_some() {
            let put_away = PutAway { records, places };
            self.buffer.rested = Some(Rested::Log(self.sources.memory.reading.shelve(put_away)));
        }
    }

    /// Drops what was read before an erasure, because it may contain the erased event.
    fn drop_erased(&mut self) {
        let erasures = self.sources.store.erasures();
        if erasures != self.erasures {
            self.erasures = erasures;
            self.reread = None;
            // The ring itself no longer has the erased event.
            if !matches!(self.phase, Phase::Live(_)) || self.buffer.left() > 0 {
                self.go_back();
            }
        }
    }

    /// Continues after the last event that was handed out, without the buffer, which is gone.
    fn go_back(&mut self) {
        self.buffer = Buffer::default();
        self.buffer_end = self.position;
        match std::mem::replace(&mut self.phase, Phase::Planning) {
            Phase::Live(_) => self.fall_behind(),
            Phase::Fetching(lookup, _) | Phase::LookingUp(lookup, _) => self.look_up(lookup),
            Phase::Planning | Phase::Scanning(_) => {}
        }
    }

    /// The event at `sequence`, which was handed out last, for a client that takes it in pieces. An error ends the stream, because
    /// the rest of the event is gone.
    pub(crate) fn poll_last(
        &mut self,
        sequence: Sequence,
        cx: &mut Context<'_>,
    ) -> Poll<Result<&Record, StreamEnd>> {
        let erasures = self.sources.store.erasures();
        if erasures != self.erasures {
            self.erasures = erasures;
            self.reread = None;
            self.go_back();
        }

        while self
            .buffer
            .last()
            .is_none_or(|last| last.sequence() != sequence)
        {
            let reread = self.reread.get_or_insert_with(|| {
                Box::new(self.sources.read_one(&self.payer, FETCH, sequence))
            });
            let read = ready!(reread.poll(cx));
            self.reread = None;
            let end = match read {
                Ok(Ok(Some(records))) if records[0].is_erased() => StreamEnd::Erased,
                Ok(Ok(Some(records))) => {
                    self.buffer = Buffer::new(records, 1);
                    continue;
                }
                Ok(Ok(None)) => continue,
                Ok(Err(ReadError::Expired)) => StreamEnd::Expired,
                Ok(Err(
                    ReadError::Corrupt(problem)
                    | ReadError::Io(problem)
                    | ReadError::Index(problem),
                )) => StreamEnd::Corrupt(problem),
                Err(end) => end,
            };

            self.position = sequence.previous(); // the client cannot use a part of an event
            self.entry.reached(self.position);
            self.finish(Some(end.clone()));
            return Poll::Ready(Err(end));
        }
        Poll::Ready(Ok(self.buffer.last().expect("it was just found there")))
    }

    /// The index in the buffer of the next event that the client wants. If there is none, empties the buffer and moves the position to
    /// the end of its read.
    fn next_buffered(&mut self) -> Option<usize> {
        let (records, next) = (
            self.buffer.records.as_deref().unwrap_or_default(),
            &mut self.buffer.next,
        );
        while let Some(record) = records.get(*next) {
            let at = *next;
            *next += 1;
            self.position = record.sequence();
            if !self.scan_filter.matches(record) {
                continue;
            }
            if let Some(pending) = &mut self.pending
                && record.status().is_terminal()
            {
                pending.remove(record.task_id());
            }
            if record.is_erased() {
                continue;
            }
            if let Some(since) = self.since {
                if record.log_time_micros() < since {
                    continue;
                }
                self.since = None;
            }
            if Arc::ptr_eq(&self.filter, &self.scan_filter) || self.filter.matches(record) {
                self.entry.delivered(record);
                return Some(at);
            }
        }

        self.buffer = Buffer::default();
        self.entry.end_batch();
        self.reach(self.buffer_end);
        self.entry.reached(self.position); // also after a last record that the client does not want
        None
    }

    pub(super) fn reach(&mut self, place: Sequence) {
        if place > self.position {
            self.position = place;
            self.entry.reached(place);
        }
    }

    /// Announces that the stream has caught up, or ends it as completed. Called with an empty buffer.
    pub(super) fn check_milestones(&mut self) {
        if !matches!(self.phase, Phase::Live(_)) {
            return;
        }

        if self.catch_up_to.is_some_and(|place| self.position >= place) {
            self.catch_up_to = None;
            self.entry.set_state(SubscriptionState::Live);
            self.controls.push_back(Control::CaughtUp {
                position: self.position,
            });
        }
        if self.pending.as_ref().is_some_and(HashSet::is_empty) {
            self.controls.push_back(Control::Completed {
                position: self.position,
            });
            self.finish(None);
        }
    }

    fn finish(&mut self, end: Option<StreamEnd>) {
        if matches!(end, Some(StreamEnd::Expired)) {
            self.entry.lost(
                "overtaken",
                self.position,
                self.sources.store.first_available().previous(),
            );
        }

        self.entry.ended(end.as_ref());
        self.entry.seated(None);
        self.buffer = Buffer::default();
        self.end = Some(end);
        self.wide_permit = None;
        self.phase = Phase::Planning; // gives the seat back
    }

    fn go_away(&mut self) {
        self.advance_idle();
        self.controls.push_back(Control::GoingAway {
            position: self.position,
        });
        self.finish(Some(StreamEnd::Draining));
    }

    /// Queues a heartbeat, or ends the stream if the deadline of its call has passed.
    fn send_heartbeat(&mut self) {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return self.finish(Some(StreamEnd::DeadlineExceeded));
        }

        self.advance_idle();
        let head = self.sources.hub.head().max(self.position);
        self.controls.push_back(Control::Progress {
            position: self.position,
            head,
        });
        let next = now + self.heartbeat_interval;
        self.heartbeat
            .as_mut()
            .reset(self.deadline.map_or(next, |deadline| deadline.min(next)));
    }

    /// Moves the position of a live stream with an empty buffer past the events that do not match, which did not wake it.
    fn advance_idle(&mut self) {
        if let Phase::Live(seat) = &self.phase
            && self.buffer.left() == 0
        {
            self.reach(seat.seen(self.position));
        }
    }
}
