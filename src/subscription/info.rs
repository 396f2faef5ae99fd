//! The state of one open subscription that others may see: operators in the list, and the search for stalled clients.
//!
//! The stream writes it without locks at every delivery; readers may see values of slightly different moments.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    heard::Heard,
    message::Withdrawal,
    stream_log::{StreamLog, StreamPlace, StreamReader},
};
use crate::{
    credentials::Client,
    event::{Filter, Sequence, TaskId},
    hub::Hub,
    trace::Context,
};

/// A client that reads asks for more within milliseconds, on a bad line within seconds. After this time it is stalled.
const STALLED_AFTER_MILLIS: u64 = 10_000;

const NO_SEAT: usize = usize::MAX;

/// The state of a subscription, as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubscriptionState {
    /// The subscription reads the log.
    CatchingUp,
    /// The subscription follows the head.
    Live,
    /// The client reads nothing, whether the subscription is catching up or live.
    Stalled,
}

impl SubscriptionState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::CatchingUp => "catching_up",
            Self::Live => "live",
            Self::Stalled => "stalled",
        }
    }
}

/// One open subscription in the operators' list.
#[derive(Clone, Debug)]
pub(crate) struct ListedSubscription {
    /// The number in the order of opening, for paging.
    pub number: u64,
    /// The subscription id of logs, messages and commands.
    pub id: String,
    /// The name of the client's line in the credentials file; `None`: anonymous.
    pub client: Option<Arc<str>>,
    /// The name that the client gave itself in the request.
    pub client_name: String,
    /// The network address of the client.
    pub peer: String,
    /// The events that the subscription matches.
    pub filter: Arc<Filter>,
    /// When the subscription was opened, by the log's clock.
    pub opened_at: Timestamp,
    /// Catching up, live or stalled.
    pub state: SubscriptionState,
    /// Everything up to this place was handed to the transport.
    pub position: Sequence,
    /// The number of events delivered so far.
    pub delivered: u64,
}

impl ListedSubscription {
    /// Whether it is a client's, by either of its names. All are of the empty one.
    pub(super) fn is_of(&self, client: &str) -> bool {
        is_of(client, self.client.as_deref(), &self.client_name)
    }
}

fn is_of(wanted: &str, client: Option<&str>, client_name: &str) -> bool {
    wanted.is_empty() || client == Some(wanted) || client_name == wanted
}

/// Which open subscriptions a listing wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Only those of this client, by either of its names; empty: of any.
    pub client: String,
    /// Only those whose filter names this task.
    pub task_id: Option<TaskId>,
}

/// A subscription that is about to enter the registry.
pub(super) struct NewSubscription {
    pub id: Uuid,
    pub client: Option<Arc<Client>>,
    pub client_name: String,
    pub peer: String,
    pub heard: Heard,
    pub call: Option<Context>,
    pub filter: Arc<Filter>,
    pub position: Sequence,
}

/// The shared state of one open subscription.
#[derive(Debug)]
pub(super) struct SubscriptionInfo {
    pub id: String,
    pub client: Option<Arc<Client>>,
    pub client_name: String,
    pub heard: Heard,
    pub call: Option<Context>,
    pub filter: Arc<Filter>,
    pub opened_at: Timestamp,
    peer: String,
    position: AtomicU64,
    delivered: AtomicU64,
    state: AtomicU8,
    seat: AtomicUsize,
    /// A [`Withdrawal`] plus one; 0 while there is none.
    withdrawal: AtomicU8,
    turn: Turn,
    /// The value of [`Turn::waiting`] at the last check for stalled clients.
    turn_seen: AtomicU64,
    /// Since when that value is the same, in milliseconds.
    still_since: AtomicU64,
    is_stalled: AtomicBool,
}

/// Whose turn it is: the transport's to ask for more, or the stream's to send. Counts the frames that were sent, times two, plus one
/// while the transport has not asked for more. One number, so that a frame costs one store.
#[derive(Debug, Default)]
struct Turn(AtomicU64);

impl Turn {
    fn sent(&self) {
        self.0.store((self.0.load(Relaxed) | 1) + 2, Relaxed); // only the stream writes it
    }

    fn asked(&self) {
        self.0.store(self.0.load(Relaxed) & !1, Relaxed);
    }

    /// A number that changes with each frame; `None` if the transport has asked for more since the last frame.
    fn waiting(&self) -> Option<u64> {
        let turn = self.0.load(Relaxed);
        (turn & 1 == 1).then_some(turn)
    }
}

impl SubscriptionInfo {
    pub(super) fn new(new: NewSubscription, opened_at: Timestamp) -> Self {
        Self {
            id: new.id.to_string(),
            client: new.client,
            client_name: new.client_name,
            peer: new.peer,
            heard: new.heard,
            call: new.call,
            filter: new.filter,
            opened_at,
            position: AtomicU64::new(new.position.0),
            delivered: AtomicU64::new(0),
            state: AtomicU8::new(SubscriptionState::CatchingUp as u8),
            seat: AtomicUsize::new(NO_SEAT),
            withdrawal: AtomicU8::new(0),
            turn: Turn::default(),
            turn_seen: AtomicU64::new(0),
            still_since: AtomicU64::new(0),
            is_stalled: AtomicBool::new(false),
        }
    }

    /// Whether a listing wants it.
    pub(super) fn is_wanted(&self, wanted: &Wanted) -> bool {
        let own = self.client.as_ref().map(|client| &*client.name);
        let names = |task_id| self.filter.task_ids.contains(task_id);
        is_of(&wanted.client, own, &self.client_name) && wanted.task_id.as_ref().is_none_or(names)
    }

    pub(super) fn reader(&self) -> StreamReader<'_> {
        StreamReader {
            client: self.client.as_ref(),
            client_name: &self.client_name,
            peer: &self.peer,
        }
    }

    pub(super) fn at(&self, position: Sequence, lag: u64) -> StreamPlace<'_> {
        StreamPlace {
            reader: self.reader(),
            subscription_id: &self.id,
            position,
            lag,
        }
    }

    /// Everything up to this place was handed out; while the stream waits at its seat, also the events that do not match.
    pub(super) fn position(&self, hub: &Hub) -> Sequence {
        hub.seen(
            self.seat.load(Relaxed),
            Sequence(self.position.load(Relaxed)),
        )
    }

    pub(super) fn set_position(&self, position: Sequence) {
        self.position.store(position.0, Relaxed);
    }

    pub(super) fn set_seat(&self, seat: Option<usize>) {
        self.seat.store(seat.unwrap_or(NO_SEAT), SeqCst);
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    pub(super) fn count_delivery(&self) {
        // Only the stream writes it, so a plain addition is enough.
        self.delivered
            .store(self.delivered.load(Relaxed) + 1, Relaxed);
    }

    /// Catching up or live, whether or not the client is stalled.
    pub(super) fn state(&self) -> SubscriptionState {
        if self.state.load(Relaxed) == SubscriptionState::Live as u8 {
            SubscriptionState::Live
        } else {
            SubscriptionState::CatchingUp
        }
    }

    pub(super) fn set_state(&self, state: SubscriptionState) {
        self.state.store(state as u8, Relaxed);
    }

    /// A frame was handed to the transport.
    pub(super) fn frame_sent(&self) {
        self.turn.sent();
    }

    /// The transport has asked for more.
    pub(super) fn more_asked(&self) {
        self.turn.asked();
    }

    /// Checks whether the client is stalled, and logs a change. Called by one task only, so a check is never interleaved with another.
    pub(super) fn check_stalled(&self, now_millis: u64, hub: &Hub, log: &StreamLog) {
        let is_still = self
            .turn
            .waiting()
            .is_some_and(|turn| self.turn_seen.swap(turn, Relaxed) == turn);
        if !is_still {
            self.still_since.store(now_millis, Relaxed);
        }
        let is_stalled =
            is_still && now_millis - self.still_since.load(Relaxed) >= STALLED_AFTER_MILLIS;
        if self.is_stalled.load(Relaxed) == is_stalled {
            return;
        }

        let position = self.position(hub);
        let lag = hub.head().0.saturating_sub(position.0);
        if is_stalled && lag == 0 {
            return; // the transport has everything, and may be busy with another stream of its connection
        }

        self.is_stalled.store(is_stalled, Relaxed);
        let at = self.at(position, lag);
        if is_stalled {
            log.stands_still(&at);
        } else {
            log.reads_again(&at);
        }
    }

    /// Asks the stream to end. A stream that waits is woken; one that is about to wait checks again after it has taken its seat.
    pub(super) fn withdraw(&self, withdrawal: Withdrawal, hub: &Hub) {
        self.withdrawal.store(withdrawal as u8 + 1, SeqCst);
        hub.wake(self.seat.load(SeqCst));
    }

    /// The reason for which the stream has to end, if there is one.
    pub(super) fn withdrawal(&self) -> Option<Withdrawal> {
        match self.withdrawal.load(SeqCst) {
            0 => None,
            number if number == Withdrawal::Products as u8 + 1 => Some(Withdrawal::Products),
            number if number == Withdrawal::Labels as u8 + 1 => Some(Withdrawal::Labels),
            number if number == Withdrawal::Place as u8 + 1 => Some(Withdrawal::Place),
            number if number == Withdrawal::Stream as u8 + 1 => Some(Withdrawal::Stream),
            _ => Some(Withdrawal::Identity),
        }
    }

    pub(super) fn listed(&self, number: u64, hub: &Hub) -> ListedSubscription {
        ListedSubscription {
            number,
            id: self.id.clone(),
            client: self.client.as_ref().map(|client| Arc::clone(&client.name)),
            client_name: self.client_name.clone(),
            peer: self.peer.clone(),
            filter: Arc::clone(&self.filter),
            opened_at: self.opened_at,
            state: if self.is_stalled.load(Relaxed) {
                SubscriptionState::Stalled
            } else {
                self.state()
            },
            position: self.position(hub),
            delivered: self.delivered(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> SubscriptionInfo {
        let new = NewSubscription {
            id: Uuid::nil(),
            client: None,
            client_name: String::new(),
            peer: String::new(),
            heard: Heard::default(),
            call: None,
            filter: Arc::default(),
            position: Sequence(1),
        };
        let info = SubscriptionInfo::new(new, Timestamp::UNIX_EPOCH);
        info.set_state(SubscriptionState::Live);
        info
    }

    /// Whether the client is stalled by a check at `seconds`, with the log's head at `head`.
    fn check(info: &SubscriptionInfo, seconds: u64, head: u64) -> bool {
        info.check_stalled(
            seconds * 1_000,
            &Hub::new(Sequence(head), 1_024),
            &StreamLog::default(),
        );
        info.is_stalled.load(Relaxed)
    }

    #[test]
    fn a_client_is_stalled_ten_seconds_after_it_stops_reading_and_recovers_when_it_reads() {
        let info = info();
        assert!(!check(&info, 100, 9), "no frame was sent to it");
        info.frame_sent();
        assert!([101, 110].iter().all(|&seconds| !check(&info, seconds, 9)));
        info.frame_sent();
        assert!(
            [111, 113, 120]
                .iter()
                .all(|&seconds| !check(&info, seconds, 9)),
            "it has read something"
        );
        assert!(check(&info, 121, 9) && check(&info, 200, 9));
        info.frame_sent();
        assert!(!check(&info, 201, 9));
        assert!(check(&info, 211, 9));
        info.more_asked();
        assert!(!check(&info, 212, 9));
    }

    #[test]
    fn a_client_that_lacks_nothing_is_not_stalled() {
        let info = info();
        info.frame_sent();
        assert!(
            [100, 110, 1_000]
                .iter()
                .all(|&seconds| !check(&info, seconds, 1))
        );
        assert!(
            check(&info, 1_002, 2),
            "now there is an event that it does not read"
        );
    }
}
