//! What holds between the nodes of a cluster: there is one log and one quarantine, and what a node has is a prefix of them.

use std::collections::HashSet;

use serde::Deserialize;

use super::{Observed, Violation};

/// What one node of a cluster has at the end of a run, in which retention has forgotten nothing.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeLog {
    /// The name of the node.
    pub node: String,
    /// Every event in its log, in order.
    pub log: Vec<Observed>,
    /// The names of the callbacks in its quarantine, in order.
    #[serde(default)]
    pub quarantine: Vec<String>,
}

/// The node that has the longest log.
pub(super) fn longest(nodes: &[NodeLog]) -> Option<&NodeLog> {
    nodes.iter().max_by_key(|node| node.log.len())
}

pub(super) fn check(
    nodes: &[NodeLog],
    quarantined: &HashSet<String>,
    violations: &mut Vec<Violation>,
) {
    let Some(longest) = longest(nodes) else {
        violations.extend(not_kept(quarantined, &[]));
        return;
    };
    for node in nodes {
        if let Some(index) = first_difference(&longest.log, &node.log) {
            let (one, other) = (longest.node.clone(), node.node.clone());
            violations.push(Violation::LogsDiffer { one, other, index });
        }
    }

    // Another node may have the longest quarantine, while one is behind.
    let longest = nodes
        .iter()
        .max_by_key(|node| node.quarantine.len())
        .unwrap_or(longest);
    for node in nodes {
        if let Some(index) = first_difference(&longest.quarantine, &node.quarantine) {
            let (one, other) = (longest.node.clone(), node.node.clone());
            violations.push(Violation::QuarantinesDiffer { one, other, index });
        }
    }
    violations.extend(not_kept(quarantined, &longest.quarantine));
}

/// Where the shorter of two lists stops being a prefix of the longer one.
fn first_difference<T: PartialEq>(longest: &[T], other: &[T]) -> Option<usize> {
    longest.iter().zip(other).position(|(one, two)| one != two)
}

fn not_kept(quarantined: &HashSet<String>, kept: &[String]) -> Vec<Violation> {
    let kept: HashSet<_> = kept.iter().collect();
    let mut missing: Vec<_> = quarantined
        .iter()
        .filter(|name| !kept.contains(name))
        .cloned()
        .collect();
    missing.sort();
    missing
        .into_iter()
        .map(|name| Violation::NotKept { name })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;
    use crate::checker::{Acknowledged, History, Stream};

    fn event(number: usize) -> Observed {
        Observed {
            event_id: format!("e{number}"),
            cursor: format!("c{number:04}"),
            task_id: format!("t{number}"),
        }
    }

    fn quarantine(size: usize) -> Vec<String> {
        (0..size).map(|number| format!("q{number}")).collect()
    }

    /// A run in which every guarantee held, with nodes that are behind the first one by so many events.
    fn good(size: usize, behind: &[usize]) -> History {
        let log: Vec<_> = (0..size).map(event).collect();
        let mut nodes = vec![NodeLog {
            node: "a".into(),
            log: log.clone(),
            quarantine: quarantine(size),
        }];
        for (number, &behind) in behind.iter().enumerate() {
            let length = size.saturating_sub(behind);
            nodes.push(NodeLog {
                node: format!("n{number}"),
                log: log[..length].to_vec(),
                quarantine: quarantine(length),
            });
        }
        let acknowledged = log.iter().map(|seen| Acknowledged {
            event_id: seen.event_id.clone(),
            task_id: seen.task_id.clone(),
        });
        History {
            acknowledged: acknowledged.collect(),
            posted: log.iter().map(|seen| (seen.task_id.clone(), 1)).collect(),
            quarantined: quarantine(size).into_iter().collect(),
            streams: vec![Stream {
                task_ids: None,
                observed: log[size / 2..].to_vec(),
            }],
            nodes,
            ..History::default()
        }
    }

    fn check(history: &History) -> Vec<Violation> {
        crate::checker::check(history)
    }

    proptest! {
        #[test]
        fn nodes_that_are_behind_are_good(size in 6usize..60, behind in collection::vec(0usize..60, 0..4)) {
            prop_assert_eq!(check(&good(size, &behind)), []);
        }

        #[test]
        fn another_event_at_one_node_is_noticed(size in 6usize..60, behind in 0usize..6, which: prop::sample::Index) {
            let mut history = good(size, &[0, behind]);
            let log = &mut history.nodes[2].log;
            let index = which.index(log.len());
            log[index].event_id = "another".into();
            let noticed = check(&history);
            let differs = noticed.iter().any(|violation| matches!(violation, Violation::LogsDiffer { .. }));
            let is_reused = noticed.iter().any(|violation| matches!(violation, Violation::CursorReused { .. }));
            prop_assert!(differs && is_reused);
        }

        #[test]
        fn an_event_that_a_node_left_out_is_noticed(size in 7usize..60, which: prop::sample::Index) {
            let mut history = good(size, &[0]);
            let index = which.index(size - 1);
            history.nodes[0].log.remove(index);
            let (one, other) = ("n0".into(), "a".into());
            prop_assert_eq!(check(&history), [Violation::LogsDiffer { one, other, index }]);
        }

        #[test]
        fn an_event_that_every_node_has_lost_is_noticed(size in 6usize..60, which: prop::sample::Index) {
            let mut history = good(size, &[0, 0]);
            let index = which.index(size);
            let lost = event(index);
            history.nodes.iter_mut().for_each(|node| { node.log.remove(index); });
            history.streams.clear();
            let lost = Violation::Lost { event_id: lost.event_id, task_id: lost.task_id };
            prop_assert_eq!(check(&history), [lost]);
        }

        #[test]
        fn an_event_that_a_stream_saw_and_no_node_has_is_noticed(size in 6usize..60) {
            let mut history = good(size, &[0]);
            history.acknowledged.pop();
            history.nodes.iter_mut().for_each(|node| { node.log.pop(); });
            let event_id = event(size - 1).event_id;
            prop_assert_eq!(check(&history), [Violation::Uninvited { stream: 0, event_id }]);
        }

        #[test]
        fn a_callback_that_became_two_events_is_noticed(size in 6usize..60, which: prop::sample::Index) {
            let mut history = good(size, &[0]);
            let task_id = event(which.index(size)).task_id;
            let twice = Observed { task_id: task_id.clone(), ..event(size) };
            history.nodes.iter_mut().for_each(|node| node.log.push(twice.clone()));
            prop_assert_eq!(check(&history), [Violation::Doubled { task_id, posted: 1, found: 2 }]);
        }

        #[test]
        fn a_quarantined_callback_that_is_gone_is_noticed(size in 7usize..60, which: prop::sample::Index) {
            let index = which.index(size - 1);
            let name = format!("q{index}");
            let mut history = good(size, &[0]);
            history.nodes[0].quarantine.remove(index);
            let (one, other) = ("n0".into(), "a".into());
            prop_assert_eq!(check(&history), [Violation::QuarantinesDiffer { one, other, index }]);

            history.nodes[1].quarantine.remove(index);
            prop_assert_eq!(check(&history), [Violation::NotKept { name }]);
        }
    }

    #[test]
    fn an_acknowledgement_without_any_node_is_noticed() {
        let history = History {
            quarantined: ["q".to_owned()].into(),
            ..History::default()
        };
        assert_eq!(check(&history), [Violation::NotKept { name: "q".into() }]);
    }
}
