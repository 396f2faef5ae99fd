//! The guarantees as one pure function: from the acknowledgements, the log and the streams of a run to the list of violations.
//!
//! Tests of every kind pass their histories to it, so that "nothing lost, nothing twice, in order" has one meaning. It knows nothing
//! of the broker, and takes JSON from tests in other languages. [`cluster`] adds what holds between nodes, and [`recovery`] does the
//! same for what reconciling promises.

pub mod cluster;
pub mod recovery;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;

pub use cluster::NodeLog;

/// A callback that was answered 200.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Acknowledged {
    /// The event id in the answer.
    pub event_id: String,
    /// The task that the callback was about.
    pub task_id: String,
}

/// An event as one reader received it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Observed {
    /// The id by which clients dedupe.
    pub event_id: String,
    /// The cursor of the event. Within one log, cursors sort like the places of their events.
    pub cursor: String,
    /// The task that the event is about.
    pub task_id: String,
}

/// The events of one subscriber, in order. A reconnect with the last cursor continues the same stream.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Stream {
    /// The tasks in the subscriber's filter; absent if it asked for every event.
    #[serde(default)]
    pub task_ids: Option<HashSet<String>>,
    /// The events that the subscriber received.
    pub observed: Vec<Observed>,
}

/// Everything that happened in one run.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct History {
    /// Every callback that was answered 200.
    #[serde(default)]
    pub acknowledged: Vec<Acknowledged>,
    /// Every retained event, in log order, if the test has read the whole log; otherwise empty.
    #[serde(default)]
    pub log: Vec<Observed>,
    /// One stream for each subscriber.
    #[serde(default)]
    pub streams: Vec<Stream>,
    /// The ids of events that were erased before the log was read. Streams may have received them earlier.
    #[serde(default)]
    pub erased: HashSet<String>,
    /// What each node of a cluster has, instead of `log`. The longest of their logs is the log of the run.
    #[serde(default)]
    pub nodes: Vec<NodeLog>,
    /// For each task, how many different callbacks were posted; empty if the test has not counted them.
    #[serde(default)]
    pub posted: HashMap<String, usize>,
    /// The names of the callbacks that were answered 202.
    #[serde(default)]
    pub quarantined: HashSet<String>,
}

impl History {
    fn log(&self) -> &[Observed] {
        cluster::longest(&self.nodes).map_or(&self.log, |node| &node.log)
    }
}

/// A guarantee that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Cursors of one stream strictly rise: ordered, and none twice.
    #[error("stream {stream}: {cursor} does not come behind the cursor before it")]
    NotRising {
        /// The index of the stream; the log counts as the last one.
        stream: usize,
        /// The cursor that is not above the one before it.
        cursor: String,
    },
    /// A cursor never names another event.
    #[error("cursor {cursor} names both {one} and {other}")]
    CursorReused {
        /// The cursor that names two events.
        cursor: String,
        /// The id of the first event.
        one: String,
        /// The id of the second event.
        other: String,
    },
    /// An event keeps its cursor.
    #[error("event {event_id} is at both {one} and {other}")]
    EventMoved {
        /// The id of the event.
        event_id: String,
        /// The cursor where it was first seen.
        one: String,
        /// The cursor where it was seen later.
        other: String,
    },
    /// Durable before 200: an acknowledged event is in the log or in a stream.
    #[error("event {event_id} of task {task_id} was acknowledged and is nowhere")]
    Lost {
        /// The id of the event.
        event_id: String,
        /// The task of the event.
        task_id: String,
    },
    /// Complete: a stream has every matching event between its first and its last.
    #[error("stream {stream} left out event {event_id} at {cursor}")]
    LeftOut {
        /// The index of the stream.
        stream: usize,
        /// The id of the event.
        event_id: String,
        /// The event's cursor in the log.
        cursor: String,
    },
    /// An erased event is not in the log.
    #[error("event {event_id} was erased and is in the log")]
    NotErased {
        /// The id of the event.
        event_id: String,
    },
    /// A stream has only events that match its filter and that the log has.
    #[error(
        "stream {stream} saw event {event_id}, which it did not ask for or the log does not have"
    )]
    Uninvited {
        /// The index of the stream.
        stream: usize,
        /// The id of the event.
        event_id: String,
    },
    /// A callback is one event, however often and at however many nodes it is posted.
    #[error("task {task_id} has {found} events of {posted} different callbacks")]
    Doubled {
        /// The id of the task.
        task_id: String,
        /// How many different callbacks were posted.
        posted: usize,
        /// How many events the log has.
        found: usize,
    },
    /// There is one log: that of each node is a prefix of it.
    #[error("the logs of nodes {one} and {other} differ at index {index}")]
    LogsDiffer {
        /// The node with the longest log.
        one: String,
        /// The node whose log is not a prefix of it.
        other: String,
        /// The index of the first event that differs.
        index: usize,
    },
    /// The quarantine of each node is a prefix of the longest one.
    #[error("the quarantines of nodes {one} and {other} differ at index {index}")]
    QuarantinesDiffer {
        /// The node with the longest quarantine.
        one: String,
        /// The node whose quarantine is not a prefix of it.
        other: String,
        /// The index of the first callback that differs.
        index: usize,
    },
    /// Durable before 202: an acknowledged callback is in the quarantine.
    #[error("callback {name} was answered 202 and is not in quarantine")]
    NotKept {
        /// The name of the callback.
        name: String,
    },
}

/// All violations of the guarantees in a history. An empty list means that the guarantees held.
pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let log = Stream {
        task_ids: None,
        observed: history.log().to_vec(),
    };
    for (number, stream) in history.streams.iter().chain([&log]).enumerate() {
        check_rising(number, stream, &mut violations);
    }

    check_names(history, &mut violations);
    check_acknowledged(history, &mut violations);
    check_erased(history, &mut violations);
    check_doubled(history, &mut violations);
    cluster::check(&history.nodes, &history.quarantined, &mut violations);
    if !history.log().is_empty() {
        for (number, stream) in history.streams.iter().enumerate() {
            check_complete(number, stream, history, &mut violations);
        }
    }
    violations
}

fn check_rising(number: usize, stream: &Stream, violations: &mut Vec<Violation>) {
    for pair in stream
        .observed
        .windows(2)
        .filter(|pair| pair[0].cursor >= pair[1].cursor)
    {
        violations.push(Violation::NotRising {
            stream: number,
            cursor: pair[1].cursor.clone(),
        });
    }
}

fn everything(history: &History) -> impl Iterator<Item = &Observed> {
    history
        .streams
        .iter()
        .flat_map(|stream| &stream.observed)
        .chain(&history.log)
        .chain(history.nodes.iter().flat_map(|node| &node.log))
}

fn check_names(history: &History, violations: &mut Vec<Violation>) {
    let (mut by_cursor, mut by_event) = (HashMap::new(), HashMap::new());
    for seen in everything(history) {
        let one = *by_cursor.entry(&seen.cursor).or_insert(&seen.event_id);
        if *one != seen.event_id {
            let (cursor, one, other) = (seen.cursor.clone(), one.clone(), seen.event_id.clone());
            violations.push(Violation::CursorReused { cursor, one, other });
        }
        let one = *by_event.entry(&seen.event_id).or_insert(&seen.cursor);
        if *one != seen.cursor {
            let (event_id, one, other) = (seen.event_id.clone(), one.clone(), seen.cursor.clone());
            violations.push(Violation::EventMoved {
                event_id,
                one,
                other,
            });
        }
    }
}

fn check_acknowledged(history: &History, violations: &mut Vec<Violation>) {
    let seen: HashSet<_> = everything(history)
        .map(|seen| (&seen.event_id, &seen.task_id))
        .collect();
    for Acknowledged { event_id, task_id } in &history.acknowledged {
        if !seen.contains(&(event_id, task_id)) && !history.erased.contains(event_id) {
            violations.push(Violation::Lost {
                event_id: event_id.clone(),
                task_id: task_id.clone(),
            });
        }
    }
}

fn check_erased(history: &History, violations: &mut Vec<Violation>) {
    for Observed { event_id, .. } in history
        .log()
        .iter()
        .filter(|seen| history.erased.contains(&seen.event_id))
    {
        violations.push(Violation::NotErased {
            event_id: event_id.clone(),
        });
    }
}

fn check_doubled(history: &History, violations: &mut Vec<Violation>) {
    if history.posted.is_empty() {
        return;
    }

    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for seen in history.log() {
        *found.entry(&seen.task_id).or_default() += 1;
    }
    for (task_id, found) in found {
        let posted = history.posted.get(task_id).copied().unwrap_or(0);
        if found > posted {
            violations.push(Violation::Doubled {
                task_id: task_id.to_owned(),
                posted,
                found,
            });
        }
    }
}

/// Between its first and its last event a stream has exactly the matching events of the log. It may also have events that were erased
/// later.
fn check_complete(
    number: usize,
    stream: &Stream,
    history: &History,
    violations: &mut Vec<Violation>,
) {
    let wanted = |seen: &&Observed| {
        stream
            .task_ids
            .as_ref()
            .is_none_or(|ids| ids.contains(&seen.task_id))
    };
    let (Some(first), Some(last)) = (stream.observed.first(), stream.observed.last()) else {
        return;
    };

    let within = |seen: &&Observed| seen.cursor >= first.cursor && seen.cursor <= last.cursor;
    let expected: HashSet<_> = history.log().iter().filter(wanted).filter(within).collect();
    let got: HashSet<_> = stream.observed.iter().collect();

    for &Observed {
        event_id, cursor, ..
    } in expected.difference(&got)
    {
        violations.push(Violation::LeftOut {
            stream: number,
            event_id: event_id.clone(),
            cursor: cursor.clone(),
        });
    }
    for seen in got
        .difference(&expected)
        .filter(|seen| !history.erased.contains(&seen.event_id))
    {
        violations.push(Violation::Uninvited {
            stream: number,
            event_id: seen.event_id.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    fn event(number: usize) -> Observed {
        Observed {
            event_id: format!("e{number}"),
            cursor: format!("c{number:04}"),
            task_id: format!("t{}", number % 5),
        }
    }

    /// A run in which every guarantee held.
    fn good(size: usize) -> History {
        let log: Vec<_> = (0..size).map(event).collect();
        let acknowledged = log.iter().map(|e| Acknowledged {
            event_id: e.event_id.clone(),
            task_id: e.task_id.clone(),
        });
        let of_task = |task: &str| log.iter().filter(|e| e.task_id == task).cloned().collect();
        let streams = vec![
            Stream {
                task_ids: None,
                observed: log.clone(),
            },
            Stream {
                task_ids: None,
                observed: log[size / 2..].to_vec(),
            },
            Stream {
                task_ids: Some(["t1".to_owned()].into()),
                observed: of_task("t1"),
            },
        ];
        History {
            acknowledged: acknowledged.collect(),
            streams,
            log,
            ..History::default()
        }
    }

    proptest! {
        #[test]
        fn a_good_history_passes(size in 6usize..60) {
            prop_assert_eq!(check(&good(size)), []);
        }

        #[test]
        fn a_lost_event_is_noticed(size in 6usize..60, which: prop::sample::Index) {
            let mut history = good(size);
            let lost = history.log.remove(which.index(size));
            history.streams.iter_mut().for_each(|stream| stream.observed.retain(|seen| *seen != lost));
            let lost = Violation::Lost { event_id: lost.event_id, task_id: lost.task_id };
            prop_assert_eq!(check(&history), [lost]);
        }

        #[test]
        fn an_erased_event_may_have_been_seen_and_is_not_in_the_log(size in 6usize..60, which: prop::sample::Index) {
            let mut history = good(size);
            let erased = history.log[which.index(size)].clone();
            history.erased.insert(erased.event_id.clone());
            prop_assert_eq!(check(&history), [Violation::NotErased { event_id: erased.event_id.clone() }]);
            history.log.retain(|seen| *seen != erased);
            prop_assert_eq!(check(&history), []);
            history.streams.iter_mut().for_each(|stream| stream.observed.retain(|seen| *seen != erased));
            prop_assert_eq!(check(&history), []);
        }

        #[test]
        fn a_skipped_event_is_noticed(size in 6usize..60, which: prop::sample::Index) {
            let mut history = good(size);
            let skipped = history.streams[0].observed.remove(which.index(size - 2) + 1);
            let left_out = Violation::LeftOut { stream: 0, event_id: skipped.event_id, cursor: skipped.cursor };
            prop_assert_eq!(check(&history), [left_out]);
        }

        #[test]
        fn a_repeated_or_reordered_event_is_noticed(size in 6usize..60, from: prop::sample::Index, to: prop::sample::Index) {
            let mut history = good(size);
            let (from, to) = (from.index(size), to.index(size));
            let copy = history.streams[0].observed[from].clone();
            history.streams[0].observed.insert(to, copy);
            let noticed = check(&history);
            let expected = noticed.iter().any(|violation| matches!(violation, Violation::NotRising { stream: 0, .. }));
            prop_assert!(expected);
        }

        #[test]
        fn a_reused_cursor_is_noticed(size in 6usize..60, which: prop::sample::Index) {
            let mut history = good(size);
            history.streams[0].observed[which.index(size)].event_id = "another".into();
            let noticed = check(&history);
            let expected = noticed.iter().any(|violation| matches!(violation, Violation::CursorReused { .. }));
            prop_assert!(expected);
        }

        #[test]
        fn an_event_more_than_was_posted_is_noticed(size in 6usize..60, which: prop::sample::Index) {
            let mut history = good(size);
            for seen in &history.log {
                *history.posted.entry(seen.task_id.clone()).or_default() += 1;
            }
            prop_assert_eq!(check(&history), []);

            let task_id = history.log[which.index(size)].task_id.clone();
            let found = history.posted[&task_id];
            history.posted.insert(task_id.clone(), found - 1);
            prop_assert_eq!(check(&history), [Violation::Doubled { task_id, posted: found - 1, found }]);
        }

        #[test]
        fn an_event_at_two_places_is_noticed(events in collection::vec(0usize..9, 2..3)) {
            let mut seen: Vec<_> = events.iter().map(|&number| event(number)).collect();
            seen[1] = Observed { cursor: "c9999".into(), ..seen[0].clone() };
            let history = History { streams: vec![Stream { task_ids: None, observed: seen }], ..History::default() };
            let noticed = check(&history).iter().any(|violation| matches!(violation, Violation::EventMoved { .. }));
            prop_assert!(noticed);
        }
    }

    #[test]
    fn an_event_of_another_task_is_noticed() {
        let mut history = good(20);
        history.streams[2].observed.insert(1, event(2));
        assert_eq!(
            check(&history),
            [Violation::Uninvited {
                stream: 2,
                event_id: "e2".into()
            }]
        );
    }
}
