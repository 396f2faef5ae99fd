//! Places for calls that last as long as their client likes: `Watch` streams of the health service, and reflection. If new calls were
//! refused when all places are taken, the first owner could keep all others out. Instead the oldest call of the owner that has most is
//! ended.
//!
//! A call whose client takes nothing of its answer does not react to that: it is stuck. Only closing its connection ends it, and that
//! ends every other call on the connection, so a call has some time to end by itself. Memory stays bounded meanwhile: an owner whose
//! own calls fill the places for ending calls is refused.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::oneshot, time::Instant};

use crate::{budget::Payer, network, server::net::places::Standing};

/// The places for one kind of call.
#[derive(Debug)]
pub(super) struct Streams {
    limits: Limits,
    clock: fn() -> Instant,
    state: Mutex<State>,
}

/// How many calls there may be, and how long one may take to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub open_max: usize,
    /// Calls beside them that were asked to end.
    pub ending_max: usize,
    /// A call that has been ending for so long is stuck: when its place is needed, its connection is closed.
    pub stuck_after: Duration,
}

/// The places for ending calls are full, and no owner has clearly more of them than the owner of the new call.
#[derive(Debug)]
pub(super) struct Full;

#[derive(Debug, Default)]
struct State {
    next: u64,
    count: usize,
    /// By owner, and then by age.
    open: HashMap<Payer, BTreeMap<u64, OpenCall>>,
    /// Calls that were asked to end, by age, which is not the order in which they were asked.
    ending: BTreeMap<u64, Ending>,
}

#[derive(Debug)]
struct Ending {
    owner: Payer,
    since: Instant,
    standing: Arc<Standing>,
}

#[derive(Debug)]
struct OpenCall {
    end: oneshot::Sender<()>,
    standing: Arc<Standing>,
}

impl Streams {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Self::by(Instant::now, limits)
    }

    fn by(clock: fn() -> Instant, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            clock,
            state: Mutex::default(),
        })
    }

    pub(super) fn max(&self) -> usize {
        self.limits.open_max
    }

    /// A place for a call, and what completes when the call has to end for another one.
    pub(super) fn begin(
        self: &Arc<Self>,
        payer: &Payer,
        standing: &Arc<Standing>,
    ) -> Result<(OpenStream, oneshot::Receiver<()>), Full> {
        let (owner, (end, is_over)) = (owner(payer), oneshot::channel());
        let mut state = self.lock();
        let (is_full, now) = (state.count >= self.limits.open_max, (self.clock)());
        let stuck = if is_full {
            state.make_room(&owner, &self.limits, now)?
        } else {
            None
        };
        let number = state.next;
        state.next += 1;
        state.count += 1;
        let call = OpenCall {
            end,
            standing: Arc::clone(standing),
        };
        state
            .open
            .entry(owner.clone())
            .or_default()
            .insert(number, call);
        let ended = if is_full { state.end_one(now) } else { None };
        drop(state);

        if let Some(end) = ended {
            let _ = end.send(()).is_ok(); // it may be ending by itself
        }
        if let Some(stuck) = stuck {
            stuck.standing.close_unread(true);
        }
        Ok((
            OpenStream {
                streams: Arc::clone(self),
                owner,
                number,
            },
            is_over,
        ))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Makes a place for one more ending call. Returns the call whose connection has to be closed for that, if there is one.
    fn make_room(
        &mut self,
        newcomer: &Payer,
        limits: &Limits,
        now: Instant,
    ) -> Result<Option<Ending>, Full> {
        if self.ending.len() < limits.ending_max {
            return Ok(None);
        }
        let longest = self
            .ending_longest(|_| true)
            .filter(|(_, since)| now - *since >= limits.stuck_after);
        if let Some((number, _)) = longest {
            return Ok(self.ending.remove(&number));
        }

        // No call is stuck for certain. An owner that fills all places must not keep others out until its calls are.
        let mut numbers: HashMap<&Payer, usize> = HashMap::new();
        self.ending
            .values()
            .for_each(|ending| *numbers.entry(&ending.owner).or_default() += 1);
        let own = numbers.get(newcomer).copied().unwrap_or_default();
        let crowd = numbers
            .into_iter()
            .filter(|&(_, count)| count > own + 1)
            .max_by_key(|&(_, count)| count);
        let crowd = crowd.ok_or(Full)?.0.clone();
        let longest = self.ending_longest(|owner| *owner == crowd);
        Ok(longest.and_then(|(number, _)| self.ending.remove(&number)))
    }

    /// Of the calls of such owners, the one that was asked first to end, and when.
    fn ending_longest(&self, is_such: impl Fn(&Payer) -> bool) -> Option<(u64, Instant)> {
        let such = self
            .ending
            .iter()
            .filter(|(_, ending)| is_such(&ending.owner));
        such.map(|(&number, ending)| (number, ending.since))
            .min_by_key(|&(_, since)| since)
    }

    /// Moves one call to the ending ones, because there is one too many. Returns what ends it.
    fn end_one(&mut self, now: Instant) -> Option<oneshot::Sender<()>> {
        let (owner, number, OpenCall { end, standing }) = self.take_one()?;
        self.ending.insert(
            number,
            Ending {
                owner,
                since: now,
                standing,
            },
        );
        Some(end)
    }

    /// The oldest call of the owner that has most; of several such owners, of the one with the oldest.
    fn take_one(&mut self) -> Option<(Payer, u64, OpenCall)> {
        let rank = |calls: &BTreeMap<u64, OpenCall>| {
            (
                calls.len(),
                Reverse(calls.first_key_value().map(|(&number, _)| number)),
            )
        };
        let owner = self
            .open
            .iter()
            .max_by_key(|(_, calls)| rank(calls))
            .map(|(owner, _)| owner.clone())?;
        let number = *self.open.get(&owner)?.first_key_value()?.0;
        let call = self.remove(&owner, number)?;
        Some((owner, number, call))
    }

    fn remove(&mut self, owner: &Payer, number: u64) -> Option<OpenCall> {
        let calls = self.open.get_mut(owner)?;
        let call = calls.remove(&number)?;
        if calls.is_empty() {
            self.open.remove(owner);
        }
        self.count -= 1;
        Some(call)
    }
}

/// The owner of a call. A client without a name is its address, by however many connections.
fn owner(payer: &Payer) -> Payer {
    match payer {
        Payer::Connection(Some(peer)) => {
            Payer::Connection(Some(SocketAddr::new(network::of(peer.ip()), 0)))
        }
        known => known.clone(),
    }
}

/// The place of one call; given back when dropped.
#[derive(Debug)]
pub(super) struct OpenStream {
    streams: Arc<Streams>,
    owner: Payer,
    number: u64,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut state = self.streams.lock();
        let removed = (
            state.remove(&self.owner, self.number),
            state.ending.remove(&self.number),
        );
        drop(state);
        drop(removed); // not within the lock
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        task::{Context, Waker},
    };

    use super::*;
    use crate::{
        metrics::Metrics,
        server::net::places::{Counted, Patience, Place, Places},
    };

    const LIMITS: Limits = Limits {
        open_max: 16,
        ending_max: 4,
        stuck_after: Duration::from_secs(30),
    };
    const MAX: usize = LIMITS.open_max;
    const ENDING: usize = LIMITS.ending_max;

    thread_local! {
        static NOW: Cell<Instant> = Cell::new(Instant::now());
    }

    type Begun = (OpenStream, oneshot::Receiver<()>);

    fn connection() -> Place {
        let patience = Patience {
            unauthenticated: None,
            authenticated: None,
        };
        Places::new(1, patience, Counted::of("test", &Metrics::default()))
            .try_take()
            .unwrap()
    }

    fn is_closed(connection: &Place) -> bool {
        connection
            .standing()
            .poll_shed(&Context::from_waker(Waker::noop()), &mut None)
            .is_ready()
    }

    fn at(address: &str) -> Payer {
        Payer::Connection(Some(address.parse().unwrap()))
    }

    fn client(name: &str) -> Payer {
        Payer::Client(name.into())
    }

    /// So many calls of one owner that never end, each on a connection of its own.
    fn begin_many(streams: &Arc<Streams>, owner: &Payer, count: usize) -> Vec<(Place, Begun)> {
        let connections = (0..count).map(|_| connection());
        let begin = |connection: Place| {
            let begun = streams.begin(owner, connection.standing()).unwrap();
            (connection, begun)
        };
        connections.map(begin).collect()
    }

    fn closed(calls: &[(Place, Begun)]) -> Vec<usize> {
        let is_closed = |(number, (connection, _)): (usize, &(Place, _))| {
            is_closed(connection).then_some(number)
        };
        calls.iter().enumerate().filter_map(is_closed).collect()
    }

    #[test]
    fn an_owner_that_takes_all_places_loses_its_oldest_to_others_and_to_itself() {
        let (streams, connection) = (Streams::new(LIMITS), connection());
        let begin = |peer: &str| streams.begin(&at(peer), connection.standing()).unwrap();
        let mut other = begin("192.0.2.1:1");
        let mut many: Vec<_> = (1..MAX)
            .map(|port| begin(&format!("192.0.2.2:{port}")))
            .collect();
        assert!(
            many.iter_mut()
                .all(|(_, is_over)| is_over.try_recv().is_err()),
            "so many there may be"
        );

        let mut newcomer = begin("192.0.2.3:1");
        many.push(begin("192.0.2.2:9"));
        let ended: Vec<_> = many
            .iter_mut()
            .map(|(_, is_over)| is_over.try_recv().is_ok())
            .collect();
        assert_eq!((&ended[..3], ended.len()), (&[true, true, false][..], MAX));
        assert!(ended[2..].iter().all(|ended| !ended));
        assert!(
            [&mut other, &mut newcomer]
                .into_iter()
                .all(|(_, is_over)| is_over.try_recv().is_err())
        );
        drop((many, other, newcomer));
        let state = streams.lock();
        assert!(state.open.is_empty() && state.ending.is_empty() && state.count == 0);
    }

    #[test]
    fn of_owners_with_one_each_the_oldest_is_ended() {
        let (streams, connection) = (Streams::new(LIMITS), connection());
        let begin = |number| {
            streams
                .begin(&at(&format!("192.0.2.{number}:1")), connection.standing())
                .unwrap()
        };
        let mut calls: Vec<_> = (0..=MAX).map(begin).collect();
        let ended: Vec<_> = calls
            .iter_mut()
            .map(|(_, is_over)| is_over.try_recv().is_ok())
            .collect();
        assert_eq!(
            (ended[0], ended.iter().filter(|ended| **ended).count()),
            (true, 1)
        );
    }

    #[test]
    fn connections_of_calls_that_do_not_end_in_time_are_closed_oldest_first() {
        let (streams, one) = (Streams::by(|| NOW.get(), LIMITS), client("one"));
        let mut calls = begin_many(&streams, &one, MAX + ENDING);
        assert!(
            streams.begin(&one, connection().standing()).is_err(),
            "so many may be ending"
        );
        NOW.set(NOW.get() + LIMITS.stuck_after - Duration::from_millis(1));
        assert!(
            streams.begin(&one, connection().standing()).is_err(),
            "they have a moment left"
        );
        assert!(closed(&calls).is_empty());

        NOW.set(NOW.get() + Duration::from_millis(1));
        calls.extend(begin_many(&streams, &one, 2));
        assert_eq!(closed(&calls), [0, 1]);

        // Those that end in time keep their connections.
        calls.drain(..MAX);
        calls.extend(begin_many(&streams, &one, MAX + ENDING - calls.len()));
        assert!(closed(&calls).is_empty());
    }

    #[test]
    fn the_call_that_was_asked_first_to_end_is_stuck_first_however_young_it_is() {
        let streams = Streams::by(|| NOW.get(), LIMITS);
        let patient = begin_many(&streams, &client("patient"), MAX / 2 - 2);
        let mut stuck = begin_many(&streams, &client("stuck"), MAX / 2 + 2);
        let mut others = begin_many(&streams, &client("first"), 1); // of `stuck` the oldest has to end
        stuck.truncate(1);
        NOW.set(NOW.get() + Duration::from_millis(1));
        let newcomers = (0..MAX / 2 + ENDING).map(|number| client(&number.to_string()));
        others.extend(newcomers.flat_map(|one| begin_many(&streams, &one, 1)));
        assert_eq!(
            streams.lock().ending.len(),
            ENDING,
            "three of `patient`, which are older, were told later"
        );
        assert!(closed(&stuck).is_empty() && closed(&patient).is_empty());

        NOW.set(NOW.get() + LIMITS.stuck_after - Duration::from_millis(1));
        others.extend(begin_many(&streams, &client("last"), 1));
        assert_eq!((closed(&stuck), closed(&patient)), (vec![0], vec![]));
    }

    #[test]
    fn an_owner_whose_calls_do_not_end_does_not_keep_others_out() {
        let (streams, many) = (Streams::new(LIMITS), client("many"));
        let calls = begin_many(&streams, &many, MAX + ENDING);
        let _few = begin_many(&streams, &client("few"), 1);
        assert_eq!(closed(&calls), [0]);
        assert!(streams.begin(&many, connection().standing()).is_err());
    }

    #[test]
    fn a_new_call_is_refused_where_no_owner_has_more_than_others() {
        let streams = Streams::new(LIMITS);
        let all: Vec<_> = (0..MAX + ENDING)
            .flat_map(|number| begin_many(&streams, &client(&number.to_string()), 1))
            .collect();
        assert!(
            streams
                .begin(&client("new"), connection().standing())
                .is_err()
        );
        assert!(closed(&all).is_empty());
    }

    #[test]
    fn calls_that_have_no_time_to_end_are_never_waited_for() {
        let streams = Streams::new(Limits {
            stuck_after: Duration::ZERO,
            ..LIMITS
        });
        let calls = begin_many(&streams, &client("one"), 2 * MAX);
        assert_eq!(closed(&calls), (0..MAX - ENDING).collect::<Vec<_>>());
    }
}
