//! One open stream of events: a cursor and a phase, driven by its poller. Not a task, and no queue of its own.
//!
//! ```text
//!            ┌────────────▶ scanning ─────────┐ position within the ring
//!   planning ┤  (no tasks)   log, in order     ├──▶ live ──▶ behind: the ring has moved past
//!      ▲     └────────────▶ looking up ───────┘      │
//!      │        (tasks)      index, then events      │
//!      └─────────────────────────────────────────────┘
//! ```
//!
//! The order of events is the order of the log in every phase, and `position` only rises: everything that matches up to it has
//! been handed out. A filter with tasks takes its seat first and then looks up what the index has up to the head of that
//! moment; any other filter reads the log until its place lies within the ring. Either way nothing falls between.
//!
//! Events that were read from the log are held in borrowed memory ([`Memory`]). Between two polls they lie on a shelf, from which
//! the memory may be taken back for others; the stream then reads them again.

mod heard;
mod lookup;
mod message;
mod open;
mod reading;
mod registry;
mod stream_log;

use std::{
    collections::{HashSet, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, spawn_blocking},
    time::{Instant, Sleep, sleep},
};
use tokio_util::task::AbortOnDropHandle;

pub use heard::Heard;
pub use message::{Control, Message, StreamEnd, Withdrawal};
pub use open::{OnExpired, Opening, Start, SubscribeError};
pub use reading::Memory;
pub use registry::{
    LimitReached, ListedSubscription, Registry, RegistryLimits, SubscriptionState, WAIT_NAME,
};

use crate::{
    budget::{Loan, Payer, Shelf},
    credentials::Client,
    event::{Filter, Record, Records, Selectable, Sequence, TaskId, WeakRecords},
    hub::{Hub, Read, Seat},
    metrics::Metrics,
    store::{ReadError, ReadLimits, Store, bytes_held},
};
use lookup::{FETCH, FETCH_RECORDS_MAX, Found, Lookup, Places, Question, look_up};
use reading::Reading;
use registry::Entry;

/// One read of the log: enough to amortise a thread hop, and a bound on what a stalled reader holds and a rare filter reads.
const SCAN: ReadLimits = ReadLimits {
    records_max: 512,
    bytes_max: 128 * 1024,
    scanned_max: 8_192,
    scanned_bytes_max: 8 * 1024 * 1024,
};
/// The same for a few at a time, which read several times as fast, and one read ahead of what they hand out.
const WIDE_SCAN: ReadLimits = ReadLimits {
    records_max: 2_048,
    bytes_max: 1024 * 1024,
    scanned_max: 8_192,
    scanned_bytes_max: 2 * 1024 * 1024,
};
/// So many: more of them would take turns at the memory for reads, and gain nothing by it.
const WIDE_READERS_MAX: usize = 32;

/// A stream that has taken nothing for so long gives its memory to one that waits for some. To read it again costs some
/// milliseconds; so it is short, and a crowd of stalled streams holds up the others for a moment only. Not shorter: streams that
/// share a line take turns at it, and a thousand that read at 250 MB/s read every second event again when this was 200 ms.
const IDLE: Duration = Duration::from_millis(500);
/// After so long it gives it back in any case.
const IDLE_MAX: Duration = Duration::from_secs(2);

/// How often it is looked whose client takes nothing. A look at a million streams takes some milliseconds.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What every subscription reads from.
#[derive(Debug)]
pub struct Sources {
    /// The log.
    pub store: Arc<Store>,
    /// The live path.
    pub hub: Arc<Hub>,
    /// Who is subscribed.
    pub registry: Registry,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who may read much of the log at once.
    pub wide_readers: WideReaders,
    /// What they may hold in memory.
    pub memory: Memory,
}

/// The places of those who read much of the log at once.
#[derive(Clone, Debug)]
pub struct WideReaders(Arc<Semaphore>);

impl Default for WideReaders {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WIDE_READERS_MAX)))
    }
}

enum Phase {
    Planning,
    Scanning(Reading<Scanned>),
    LookingUp(Lookup, Reading<Found>),
    Fetching(Lookup, Option<Reading<Records>>),
    Live(Seat),
}

/// What one read of the log found, and how far it looked.
struct Scanned {
    records: Records,
    to: Sequence,
}

/// What was read together, and the first of it that is not handed out.
#[derive(Default)]
struct Buffer {
    records: Option<Records>,
    next: usize,
    /// In place of the records while the client takes nothing.
    rested: Option<Rested>,
}

/// Records that somebody else may let go of.
enum Rested {
    /// The ring has them, or has moved past.
    Ring(WeakRecords),
    /// They were read into memory that others may need.
    Log(Shelf<PutAway>),
}

/// What a stream that reads the log has in memory.
struct PutAway {
    records: Option<Records>,
    /// Of one that fetches what the index has named.
    places: Option<Places>,
}

impl Buffer {
    fn new(records: Records, next: usize) -> Self {
        Self {
            records: Some(records),
            next,
            rested: None,
        }
    }

    fn records(&self) -> &[Record] {
        self.records.as_deref().unwrap_or_default()
    }

    /// What was handed out last.
    fn last(&self) -> Option<&Record> {
        self.records().get(self.next.checked_sub(1)?)
    }
}

/// See the module's description.
pub struct Subscription {
    sources: Arc<Sources>,
    entry: Entry,
    /// Who takes turns with others at the memory for reads.
    payer: Payer,
    /// What the client wants to see.
    filter: Arc<Filter>,
    /// What is read: wider than `filter` where a task's end must be noticed although the client does not want to see it.
    scan_filter: Arc<Filter>,
    on_expired: OnExpired,
    /// Until an event has come that was received at this log time or later, those before are not wanted.
    since: Option<i64>,
    phase: Phase,
    position: Sequence,
    /// Records read and not yet handed out, and the place reached when they are.
    buffer: Buffer,
    buffer_end: Sequence,
    /// The event that was handed out last, if it has to be read again.
    again: Option<Box<Reading<Records>>>,
    /// How often events had been erased when what is in memory was read.
    erasures: u64,
    /// Held while the log is read, if there was one.
    wide: Option<OwnedSemaphorePermit>,
    /// Control messages that come before anything else.
    outbox: VecDeque<Control>,
    end: Option<Option<StreamEnd>>,
    /// Tasks that are not over yet, if the stream is to end with them.
    pending: Option<HashSet<TaskId>>,
    /// The last words up to here are looked at, if the index alone does not tell what they are.
    over_through: Sequence,
    /// When reached, the stream has caught up; `None` while it has.
    catch_up_to: Option<Sequence>,
    heartbeat: Pin<Box<Sleep>>,
    heartbeat_interval: Duration,
    deadline: Option<Instant>,
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
    /// Names the stream to people.
    pub fn id(&self) -> &str {
        self.entry.id()
    }

    /// Asks whether it may go on, as [`Registry::review`] asks for all of them; if not, how it ends.
    ///
    /// # Errors
    ///
    /// [`StreamEnd::Withdrawn`]; the subscription is then to be dropped.
    pub fn review(
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

    /// The next message, or how the stream ends; behind that `None`.
    pub fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message<'_>, StreamEnd>>> {
        loop {
            if let Some(control) = self.outbox.pop_front() {
                self.note(&control);
                return Poll::Ready(Some(Ok(Message::Control(control))));
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
            self.mind_erasures();
            if let Some(at) = self.next_buffered() {
                // What is read for the sake of a few tasks is mostly of others.
                let ahead = if self.filter.task_ids.is_empty() {
                    self.buffered()
                } else {
                    0
                };
                let records = self.buffer.records.as_ref().expect("there is one in it");
                return Poll::Ready(Some(Ok(Message::Event { records, at, ahead })));
            }
            self.check_milestones();
            if self.outbox.is_empty() && self.heartbeat.as_mut().poll(cx).is_ready() {
                self.beat();
            }
            if self.outbox.is_empty()
                && self.end.is_none()
                && let Err(end) = ready!(self.poll_advance(cx))
            {
                self.finish(Some(end));
            }
        }
    }

    /// Tells the log of what the client is told.
    fn note(&self, control: &Control) {
        match *control {
            Control::FellBehind { position, lag } => self.entry.fell_behind(position, lag),
            Control::Gap { after, through } => self.entry.lost("gap", after, through),
            _ => {}
        }
    }

    /// Tells the log that the stream is open.
    pub fn note_opened(&mut self) {
        self.entry.subscribed(self.position);
    }

    /// Something was handed to the transport: if that does not ask for more soon, the client takes nothing.
    pub fn handed_on(&self) {
        self.entry.handed_on();
    }

    /// The transport has asked for more, and there is nothing.
    pub fn handed_all(&self) {
        self.entry.handed_all();
    }

    /// Goes on after [`Subscription::rest`].
    pub fn resume(&mut self) {
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

    /// To be called before the stream may not be polled for a while: lets go of what is in memory for nobody else. A stream
    /// that comes back to find it gone reads it again. `is_midway`: the event that was handed out last is still needed.
    pub fn rest(&mut self, is_midway: bool) {
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
            // A few are not worth the while.
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

    /// Lets go of what was read before something was erased: it may be that.
    fn mind_erasures(&mut self) {
        let erasures = self.sources.store.erasures();
        if erasures != self.erasures {
            self.erasures = erasures;
            self.again = None;
            // The ring has nothing of it any more.
            if !matches!(self.phase, Phase::Live(_)) || self.buffered() > 0 {
                self.go_back();
            }
        }
    }

    /// What was in the buffer is gone: what is behind the last event that was handed out has to be found anew.
    fn go_back(&mut self) {
        self.buffer = Buffer::default();
        self.buffer_end = self.position;
        match std::mem::replace(&mut self.phase, Phase::Planning) {
            Phase::Live(_) => self.fall_behind(),
            Phase::Fetching(lookup, _) | Phase::LookingUp(lookup, _) => self.look_up(lookup),
            Phase::Planning | Phase::Scanning(_) => {}
        }
    }

    /// The event at `sequence`, which was handed out last, for a client that takes it in pieces; or how the stream ends, since
    /// there is no rest of it.
    pub fn poll_last(
        &mut self,
        sequence: Sequence,
        cx: &mut Context<'_>,
    ) -> Poll<Result<&Record, StreamEnd>> {
        let erasures = self.sources.store.erasures();
        if erasures != self.erasures {
            self.erasures = erasures;
            self.again = None;
            self.go_back();
        }
        while self
            .buffer
            .last()
            .is_none_or(|last| last.sequence() != sequence)
        {
            let again = self
                .again
                .get_or_insert_with(|| Box::new(read_again(&self.sources, &self.payer, sequence)));
            let read = ready!(again.poll(cx));
            self.again = None;
            let end = match read {
                Ok(Ok(Some(records))) if records[0].is_erased() => StreamEnd::Erased,
                Ok(Ok(Some(records))) => {
                    self.buffer = Buffer::new(records, 1);
                    continue;
                }
                Ok(Ok(None)) => continue,
                Ok(Err(ReadError::Expired)) => StreamEnd::Expired,
                Ok(Err(ReadError::Corrupt(problem))) => StreamEnd::Corrupt(problem),
                Err(end) => end,
            };
            self.position = sequence.previous(); // the client has no use for a part
            self.entry.reached(self.position);
            self.finish(Some(end.clone()));
            return Poll::Ready(Err(end));
        }
        Poll::Ready(Ok(self.buffer.last().expect("it was just found there")))
    }

    /// Where in the buffer the next event is that the client wants; an emptied one moves the position to where its read ended.
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
        self.entry.reached(self.position); // also of a last one that was not wanted
        None
    }

    fn buffered(&self) -> usize {
        self.buffer.records().len() - self.buffer.next
    }

    fn reach(&mut self, place: Sequence) {
        if place > self.position {
            self.position = place;
            self.entry.reached(place);
        }
    }

    /// Announces what an emptied buffer means: caught up, or completed.
    fn check_milestones(&mut self) {
        if !matches!(self.phase, Phase::Live(_)) {
            return;
        }
        if self.catch_up_to.is_some_and(|place| self.position >= place) {
            self.catch_up_to = None;
            self.entry.set_state(SubscriptionState::Live);
            self.outbox.push_back(Control::CaughtUp {
                position: self.position,
            });
        }
        if self.pending.as_ref().is_some_and(HashSet::is_empty) {
            self.outbox.push_back(Control::Completed {
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
        self.wide = None;
        self.phase = Phase::Planning; // gives the seat back
    }

    fn go_away(&mut self) {
        self.look_around();
        self.outbox.push_back(Control::GoingAway {
            position: self.position,
        });
        self.finish(Some(StreamEnd::Draining));
    }

    fn beat(&mut self) {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return self.finish(Some(StreamEnd::DeadlineExceeded));
        }
        self.look_around();
        let head = self.sources.hub.head().max(self.position);
        self.outbox.push_back(Control::Progress {
            position: self.position,
            head,
        });
        let next = now + self.heartbeat_interval;
        self.heartbeat
            .as_mut()
            .reset(self.deadline.map_or(next, |deadline| deadline.min(next)));
    }

    /// A live stream with an empty buffer has seen everything up to the head, also what did not wake it.
    fn look_around(&mut self) {
        if let Phase::Live(seat) = &self.phase
            && self.buffered() == 0
        {
            self.reach(seat.seen(self.position));
        }
    }

    /// Fills the buffer, or changes the phase, or waits. Called with an empty buffer.
    fn poll_advance(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamEnd>> {
        match &mut self.phase {
            Phase::Planning => {
                self.plan();
                Poll::Ready(Ok(()))
            }
            Phase::Scanning(read) => {
                let scanned = ready!(read.poll(cx))?;
                self.phase = Phase::Planning;
                Poll::Ready(self.accept(scanned, |this, scanned| {
                    // Planning again, if it was taken back.
                    let Some(Scanned { records, to }) = scanned else {
                        return;
                    };
                    this.buffer = Buffer::new(records, 0);
                    this.buffer_end = to;
                    // The next read is made while this one is handed out.
                    if this.wide.is_some() && !this.sources.hub.reaches(to) {
                        this.scan(to);
                    }
                }))
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
            Phase::Live(seat) => match seat.read(self.position, cx.waker()) {
                Read::Records(records, at) => {
                    // What is in the buffer is not handed out yet, so the seat knows better than what is true.
                    self.entry.seated(None);
                    self.entry.begin_batch();
                    self.buffer_end = records.last().map_or(self.position, Record::sequence);
                    self.buffer = Buffer::new(records, at);
                    Poll::Ready(Ok(()))
                }
                Read::Waiting(head) => {
                    self.entry.seated(Some(seat.number()));
                    self.reach(head);
                    self.check_milestones();
                    let must_look = !self.outbox.is_empty() || self.entry.withdrawal().is_some();
                    if must_look {
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
                Read::Closing => Poll::Ready(Ok(())), // `poll_message` looks for it first
            },
        }
    }

    fn fall_behind(&mut self) {
        let head = self.sources.hub.head();
        // A stream that had not caught up yet has nothing to take back.
        if self.catch_up_to.is_none() {
            let lag = head.0.saturating_sub(self.position.0);
            self.outbox.push_back(Control::FellBehind {
                position: self.position,
                lag,
            });
            self.sources.metrics.fell_behind.inc();
            self.entry.set_state(SubscriptionState::CatchingUp);
        }
        self.catch_up_to = Some(head);
        self.entry.seated(None);
        self.phase = Phase::Planning;
    }

    /// Decides how to get on from `position`.
    fn plan(&mut self) {
        if self.filter.task_ids.is_empty() {
            self.plan_scan()
        } else {
            self.plan_lookup()
        }
    }

    fn plan_scan(&mut self) {
        let hub = &self.sources.hub;
        if let Some(seat) = hub.attach(&self.scan_filter, self.position) {
            return self.go_live(seat);
        }
        if self.wide.is_none() {
            self.wide = Arc::clone(&self.sources.wide_readers.0)
                .try_acquire_owned()
                .ok();
        }
        self.scan(self.position);
    }

    /// Asks the log for what is behind `after`.
    fn scan(&mut self, after: Sequence) {
        let (store, filter) = (
            Arc::clone(&self.sources.store),
            Arc::clone(&self.scan_filter),
        );
        let (up_to, limits) = (
            self.sources.hub.head(),
            if self.wide.is_some() { WIDE_SCAN } else { SCAN },
        );
        self.phase = Phase::Scanning(self.sources.read(&self.payer, limits, move |loan| {
            let chunk = store.read_after(after, up_to, &filter, limits)?;
            Ok(Scanned {
                records: lent(chunk.records, loan),
                to: chunk.scanned_to,
            })
        }));
    }

    fn go_live(&mut self, seat: Seat) {
        self.wide = None;
        self.entry.seated(Some(seat.number()));
        self.phase = Phase::Live(seat);
        // The head has moved on while the log was read; what the ring has of it is still to come.
        self.catch_up_to = self.catch_up_to.map(|_| self.sources.hub.head());
    }

    fn plan_lookup(&mut self) {
        let hub = &self.sources.hub;
        // The seat first: what is published from now on is noted there, what was before is in the index. Should the ring
        // move between the two calls, the head has moved too, and the next attempt finds its place.
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

    /// Asks the index for what is behind `position`.
    fn look_up(&mut self, lookup: Lookup) {
        let store = Arc::clone(&self.sources.store);
        let question = Question {
            filter: Arc::clone(&self.scan_filter),
            after: self.position,
            end: lookup.end,
            over_behind: self.pending.as_ref().map(|_| self.over_through),
        };
        let found = self.sources.read(&self.payer, FETCH, move |loan| {
            look_up(&store, &question, loan)
        });
        self.phase = Phase::LookingUp(lookup, found);
    }

    fn begin_fetching(&mut self, found: Option<Found>) {
        let Some(found) = found else {
            return self.go_back_to_lookup();
        };
        self.over_through = self.over_through.max(found.over_through);
        if let Some(pending) = &mut self.pending {
            found.over.iter().for_each(|task_id| {
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

    /// The same again: what the index said was taken back.
    fn go_back_to_lookup(&mut self) {
        if let Phase::LookingUp(lookup, _) = std::mem::replace(&mut self.phase, Phase::Planning) {
            self.look_up(lookup);
        }
    }

    fn end_fetching(&mut self, records: Option<Records>) {
        let records = records.unwrap_or_else(|| Vec::new().into()); // taken back: it is fetched again
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

    /// Hands what a read found to `then`, or deals with the place being forgotten.
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
            Err(ReadError::Corrupt(problem)) => Err(StreamEnd::Corrupt(problem)),
            Err(ReadError::Expired) => {
                let to = self
                    .on_expired
                    .continue_at(&self.sources)
                    .ok_or(StreamEnd::Expired)?;
                self.skip_to(to);
                Ok(())
            }
        }
    }

    /// Makes the first read. A start that the client left to the log moves on with the log's oldest event until a read has
    /// got hold of it: retention must not turn down somebody who holds no cursor.
    async fn settle(&mut self) -> Result<(), StreamEnd> {
        let on_expired = std::mem::replace(&mut self.on_expired, OnExpired::Earliest);
        loop {
            self.plan();
            if !matches!(self.phase, Phase::Live(_)) {
                poll_fn(|cx| self.poll_advance(cx)).await?;
            }
            // A gap before the start is none.
            if self.outbox.pop_front().is_none() {
                break;
            }
        }
        self.on_expired = on_expired;
        Ok(())
    }

    fn skip_to(&mut self, to: Sequence) {
        let after = self.position;
        self.reach(to);
        self.outbox.push_back(Control::Gap {
            after,
            through: self.position,
        });
        self.phase = Phase::Planning;
    }
}

impl Sources {
    /// Looks now and then whose clients take nothing; never ends.
    pub async fn look_for_stalled(&self) {
        loop {
            sleep(LOOK_INTERVAL).await;
            self.registry.look_for_stalled(&self.hub).await;
        }
    }

    /// Takes memory back from streams whose clients take nothing; never ends.
    pub async fn tend_memory(&self) {
        let taken_back = || self.metrics.reads_taken_back.inc();
        self.memory.reading.tend(IDLE, IDLE_MAX, taken_back).await;
    }

    /// Reads into memory that it borrows first.
    fn read<T: Send + 'static>(
        &self,
        payer: &Payer,
        limits: ReadLimits,
        read: impl FnOnce(Loan) -> Result<T, ReadError> + Send + 'static,
    ) -> Reading<T> {
        Reading::new(
            &self.memory.reading,
            payer,
            self.memory.estimate(limits),
            read,
        )
    }
}

/// Records that hold their loan, which is made as large as they are.
fn lent(records: Vec<Record>, mut loan: Loan) -> Records {
    loan.resize(bytes_held(&records));
    Records::lent(records, loan)
}

fn read_again(sources: &Sources, payer: &Payer, sequence: Sequence) -> Reading<Records> {
    let store = Arc::clone(&sources.store);
    sources.read(payer, FETCH, move |loan| {
        let record = store.get(sequence)?.ok_or(ReadError::Expired)?;
        Ok(lent(vec![record], loan))
    })
}

fn joined<T>(
    joined: Result<Result<T, ReadError>, JoinError>,
) -> Result<Result<T, ReadError>, StreamEnd> {
    // Only a runtime that shuts down cancels a read; a panic has ended the process.
    joined.map_err(|_| StreamEnd::Draining)
}

/// Reads off the async threads; not at all if nobody waits any more before it begins.
pub fn read_aside<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(spawn_blocking(read))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_read_that_nobody_waits_for_any_more_is_not_made() {
        // One thread for reads, so that they are made one after the other.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let ((finish, finished), (made, reads)) = (mpsc::channel::<()>(), mpsc::channel());
            let under_way = read_aside(move || finished.recv());
            let read = |name: &'static str| {
                let made = made.clone();
                read_aside(move || made.send(name))
            };
            let (dropped, awaited) = (read("dropped"), read("awaited"));
            drop(dropped);
            finish.send(()).unwrap();
            under_way.await.unwrap().unwrap();
            awaited.await.unwrap().unwrap();
            assert_eq!(reads.try_iter().collect::<Vec<_>>(), ["awaited"]);
        });
    }
}
