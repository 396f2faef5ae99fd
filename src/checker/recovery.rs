//! What reconciling promises, as one pure function: from the expectations, the log and the vendor's record of a run to the list of
//! violations.
//!
//! It is for runs in which the vendor says one thing of each task and never another: then no event may be in conflict.

use std::collections::{BTreeMap, HashMap, HashSet};

/// The time to which the vendor's limit of calls applies.
const WINDOW_MILLIS: u64 = 60_000;

/// A task that a client has asked the broker to expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The task.
    pub task_id: String,
    /// The labels of the request.
    pub labels: BTreeMap<String, String>,
    /// The broker has answered the request, so it must not forget the task. It may know the task otherwise, too.
    pub is_answered: bool,
}

/// What an event says of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Says {
    /// It is over, by a callback.
    CalledBack,
    /// It is over, by an answer of the vendor's status API.
    Answered,
    /// It is late.
    Late,
    /// It was given up.
    GivenUp,
}

impl Says {
    fn is_end(self) -> bool {
        matches!(self, Self::CalledBack | Self::Answered)
    }
}

/// An event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedEvent {
    /// The id of the event.
    pub event_id: String,
    /// The task that it is about.
    pub task_id: String,
    /// The labels that it carries.
    pub labels: BTreeMap<String, String>,
    /// What it says.
    pub says: Says,
    /// It contradicts an earlier event.
    pub is_conflict: bool,
}

/// A call of the vendor's status API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VendorCall {
    /// The key.
    pub key: String,
    /// When it came, from any beginning.
    pub at_millis: u64,
    /// The task that it asks for; `None` for a list, and for the trial of a key.
    pub task_id: Option<String>,
}

/// Everything that happened in one run.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Every task that was asked to be expected, answered or not.
    pub expected: Vec<Submission>,
    /// The tasks that are expected still. Read before `events`, because a task may end meanwhile.
    pub open: HashSet<String>,
    /// The tasks that are over, by the vendor.
    pub over: HashSet<String>,
    /// The events of all tasks, in log order.
    pub events: Vec<LoggedEvent>,
    /// Every call that the vendor has seen.
    pub calls: Vec<VendorCall>,
    /// Most calls with one key in 60 s.
    pub calls_per_minute_max: usize,
}

/// A promise of reconciling that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenPromise {
    /// An expectation that was answered is open until the task has ended or was given up.
    #[error("task {task_id} is not expected any more, and has neither ended nor was given up")]
    Gone {
        /// The task.
        task_id: String,
    },
    /// A task has one end. Only a callback may add to it.
    #[error("event {event_id} is another end of task {task_id}")]
    EndedTwice {
        /// The task.
        task_id: String,
        /// The later event.
        event_id: String,
    },
    /// Only the vendor ends a task.
    #[error("task {task_id} has ended by event {event_id}, and not by the vendor")]
    MadeUp {
        /// The task.
        task_id: String,
        /// The event.
        event_id: String,
    },
    /// The vendor does not contradict itself.
    #[error("event {event_id} of task {task_id} is in conflict")]
    InConflict {
        /// The task.
        task_id: String,
        /// The event.
        event_id: String,
    },
    /// What the broker appends for an expectation has its labels.
    #[error("event {event_id} of task {task_id} has other labels than the expectation")]
    OtherLabels {
        /// The task.
        task_id: String,
        /// The event.
        event_id: String,
    },
    /// A task is late once, and is given up once.
    #[error("event {event_id} says of task {task_id} what an earlier one has said")]
    LateTwice {
        /// The task.
        task_id: String,
        /// The later event.
        event_id: String,
    },
    /// Nothing that nobody expects is asked for.
    #[error("the vendor was asked for task {task_id}, which nobody expects")]
    Uninvited {
        /// The task.
        task_id: String,
    },
    /// No 60 s have more calls with a key than its limit.
    #[error("{count} calls with one key in the 60 s from {from_millis} ms on")]
    TooManyCalls {
        /// The number of calls.
        count: usize,
        /// When the first of them came.
        from_millis: u64,
    },
}

/// All violations in a run. An empty list means that the promises held.
pub fn check(recovery: &Recovery) -> Vec<BrokenPromise> {
    let mut broken = Vec::new();
    check_open(recovery, &mut broken);
    check_events(recovery, &mut broken);
    check_calls(recovery, &mut broken);
    broken
}

fn check_open(recovery: &Recovery, broken: &mut Vec<BrokenPromise>) {
    let events = recovery.events.iter();
    let settled: HashSet<_> = events
        .filter(|event| event.says != Says::Late)
        .map(|event| &event.task_id)
        .collect();
    for Submission { task_id, .. } in recovery.expected.iter().filter(|it| it.is_answered) {
        if !settled.contains(task_id) && !recovery.open.contains(task_id) {
            let task_id = task_id.clone();
            broken.push(BrokenPromise::Gone { task_id });
        }
    }
}

fn check_events(recovery: &Recovery, broken: &mut Vec<BrokenPromise>) {
    let expected = recovery.expected.iter();
    let labels: HashMap<_, _> = expected.map(|it| (&it.task_id, &it.labels)).collect();
    let (mut ended, mut late) = (HashSet::new(), HashSet::new());

    for event in &recovery.events {
        let (task_id, event_id) = (event.task_id.clone(), event.event_id.clone());
        let is_again = event.says.is_end() && !ended.insert(&event.task_id);
        if is_again && event.says == Says::Answered {
            broken.push(BrokenPromise::EndedTwice { task_id, event_id });
        } else if event.says.is_end() && !recovery.over.contains(&event.task_id) {
            broken.push(BrokenPromise::MadeUp { task_id, event_id });
        } else if event.is_conflict {
            broken.push(BrokenPromise::InConflict { task_id, event_id });
        } else if !event.says.is_end() && !late.insert((&event.task_id, event.says)) {
            broken.push(BrokenPromise::LateTwice { task_id, event_id });
        } else if event.says != Says::CalledBack
            && labels
                .get(&event.task_id)
                .is_some_and(|of| **of != event.labels)
        {
            broken.push(BrokenPromise::OtherLabels { task_id, event_id });
        }
    }
}

fn check_calls(recovery: &Recovery, broken: &mut Vec<BrokenPromise>) {
    let expected = recovery.expected.iter();
    let expected: HashSet<_> = expected.map(|it| &it.task_id).collect();
    let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for call in &recovery.calls {
        by_key.entry(&call.key).or_default().push(call.at_millis);
        if let Some(task_id) = call.task_id.as_ref().filter(|id| !expected.contains(id)) {
            let task_id = task_id.clone();
            broken.push(BrokenPromise::Uninvited { task_id });
        }
    }

    for mut times in by_key.into_values() {
        times.sort_unstable();
        for (first, &from_millis) in times.iter().enumerate() {
            let rest = &times[first..];
            let count = rest.partition_point(|at| *at < from_millis + WINDOW_MILLIS);
            if count > recovery.calls_per_minute_max {
                broken.push(BrokenPromise::TooManyCalls { count, from_millis });
                break; // the next ones overlap
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(team: &str) -> BTreeMap<String, String> {
        [("team".to_owned(), team.to_owned())].into()
    }

    fn event(number: usize, says: Says) -> LoggedEvent {
        LoggedEvent {
            event_id: format!("e{number}"),
            task_id: "t".into(),
            labels: labels("a"),
            says,
            is_conflict: false,
        }
    }

    fn call(at_millis: u64) -> VendorCall {
        VendorCall {
            key: "k".into(),
            at_millis,
            task_id: Some("t".into()),
        }
    }

    /// One task that was late, was answered, and then called back.
    fn good() -> Recovery {
        let says = [Says::Late, Says::GivenUp, Says::Answered, Says::CalledBack];
        let events = says.into_iter().enumerate();
        Recovery {
            expected: vec![Submission {
                task_id: "t".into(),
                labels: labels("a"),
                is_answered: true,
            }],
            open: HashSet::new(),
            over: ["t".to_owned()].into(),
            events: events.map(|(number, says)| event(number, says)).collect(),
            calls: vec![call(0), call(59_999), call(60_000)],
            calls_per_minute_max: 2,
        }
    }

    fn broken(change: impl FnOnce(&mut Recovery)) -> Vec<BrokenPromise> {
        let mut recovery = good();
        change(&mut recovery);
        check(&recovery)
    }

    fn of_event(event_id: &str) -> (String, String) {
        ("t".to_owned(), event_id.to_owned())
    }

    #[test]
    fn a_good_run_passes() {
        assert_eq!(check(&good()), []);
        let open = broken(|run| {
            run.events.truncate(1);
            run.open.insert("t".into());
        });
        assert_eq!(open, [], "it is expected still");
        let given_up = broken(|run| run.events.truncate(2));
        assert_eq!(given_up, []);
        let unanswered = broken(|run| {
            run.events.clear();
            run.expected[0].is_answered = false;
        });
        assert_eq!(unanswered, [], "the client has to ask again");
    }

    #[test]
    fn an_expectation_that_is_gone_is_noticed() {
        let gone = broken(|run| run.events.truncate(1));
        let task_id = "t".to_owned();
        assert_eq!(gone, [BrokenPromise::Gone { task_id }]);
    }

    #[test]
    fn a_second_end_is_noticed_unless_a_callback_adds_to_the_first() {
        let twice = broken(|run| run.events.push(event(9, Says::Answered)));
        let (task_id, event_id) = of_event("e9");
        assert_eq!(twice, [BrokenPromise::EndedTwice { task_id, event_id }]);
        let added = broken(|run| run.events.push(event(9, Says::CalledBack)));
        assert_eq!(added, []);
    }

    #[test]
    fn an_end_that_is_made_up_or_in_conflict_is_noticed() {
        let made_up = broken(|run| {
            run.over.clear();
            run.events.truncate(3);
        });
        let (task_id, event_id) = of_event("e2");
        assert_eq!(made_up, [BrokenPromise::MadeUp { task_id, event_id }]);
        let in_conflict = broken(|run| run.events[3].is_conflict = true);
        let (task_id, event_id) = of_event("e3");
        assert_eq!(
            in_conflict,
            [BrokenPromise::InConflict { task_id, event_id }]
        );
    }

    #[test]
    fn labels_that_are_lost_are_noticed_but_those_of_a_callback_are_its_own() {
        for number in 0..3 {
            let lost = broken(|run| run.events[number].labels.clear());
            let (task_id, event_id) = of_event(&format!("e{number}"));
            assert_eq!(lost, [BrokenPromise::OtherLabels { task_id, event_id }]);
        }
        assert_eq!(broken(|run| run.events[3].labels.clear()), []);
    }

    #[test]
    fn a_task_that_is_late_twice_is_noticed() {
        for says in [Says::Late, Says::GivenUp] {
            let twice = broken(|run| run.events.push(event(9, says)));
            let (task_id, event_id) = of_event("e9");
            assert_eq!(twice, [BrokenPromise::LateTwice { task_id, event_id }]);
        }
    }

    #[test]
    fn a_call_for_what_nobody_expects_is_noticed() {
        let task_id = || "other".to_owned();
        let uninvited = broken(|run| run.calls[0].task_id = Some(task_id()));
        assert_eq!(uninvited, [BrokenPromise::Uninvited { task_id: task_id() }]);
        assert_eq!(broken(|run| run.calls[0].task_id = None), []);
    }

    #[test]
    fn a_minute_with_too_many_calls_is_noticed_wherever_it_lies() {
        let many = broken(|run| run.calls.push(call(60_001)));
        let (count, from_millis) = (3, 59_999);
        assert_eq!(many, [BrokenPromise::TooManyCalls { count, from_millis }]);
        let of_two_keys = broken(|run| {
            run.calls.push(VendorCall {
                key: "other".into(),
                ..call(60_001)
            });
        });
        assert_eq!(of_two_keys, []);
    }
}
