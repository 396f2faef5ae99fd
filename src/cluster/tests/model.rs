//! The protocol in every order of its steps, at small sizes: each run visits all states that two or three nodes can come to with so
//! many callbacks and faults. BLOBCAST_MODEL=1 has it visit more.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::{
    broken::{without_chain, without_condition},
    world::{Action, Faults, Settings, World},
};
use crate::cluster::protocol::Rule;

/// Two tasks, one of which is posted at two nodes.
const POSTS: [(usize, u8); 3] = [(0, 0), (1, 0), (1, 1)];

/// Only the task that is posted at two nodes, unless there is time.
fn posts() -> &'static [(usize, u8)] {
    if more() { &POSTS } else { &POSTS[..2] }
}

#[derive(Clone)]
struct Cluster {
    settings: Settings,
    faults: Faults,
}

impl Model for Cluster {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.settings, self.faults)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(world.actions());
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.act(&self.settings, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every promise holds", |_, world: &World| {
                world.broken.is_empty()
            }),
            Property::sometimes("every callback is answered", |_, world: &World| {
                world.is_settled()
            }),
        ]
    }
}

/// Visits every state.
fn check(name: &str, settings: Settings, faults: Faults) {
    let begun = Instant::now();
    let checker = Cluster { settings, faults }
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    if let Some(path) = checker.discovery("every promise holds") {
        let broken = path.last_state().broken.clone();
        panic!("{name}: {broken:?} after {:#?}", path.into_actions());
    }
    assert!(
        checker.discovery("every callback is answered").is_some(),
        "{name}: nothing is ever answered"
    );
    let (states, took) = (checker.unique_state_count(), begun.elapsed());
    println!("{name}: {states} states in {took:.1?}");
}

fn more() -> bool {
    std::env::var_os("BLOBCAST_MODEL").is_some()
}

/// Looks for a broken promise, which there must be.
fn find(settings: Settings, faults: Faults) {
    let checker = Cluster { settings, faults }
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let path = checker.discovery("every promise holds");
    let path = path.expect("the mistake is found");
    println!("{:?}", path.last_state().broken);
}

#[test]
fn two_nodes_keep_their_promises_while_messages_are_lost_and_late() {
    let faults = Faults {
        lost: 1,
        timeouts: 1,
        ..Faults::default()
    };
    check("lost", Settings::new(2, &POSTS), faults);
}

#[test]
fn two_nodes_keep_their_promises_while_one_crashes() {
    let faults = Faults {
        crashes: 1,
        timeouts: 1,
        ..Faults::default()
    };
    check("crash", Settings::new(2, posts()), faults);
}

#[test]
fn two_nodes_keep_their_promises_while_messages_are_repeated() {
    let faults = Faults {
        repeated: 1,
        timeouts: u32::from(more()),
        ..Faults::default()
    };
    check("repeated", Settings::new(2, &POSTS), faults);
}

#[test]
fn two_nodes_keep_their_promises_while_ticks_come() {
    let faults = Faults {
        ticks: 1,
        timeouts: u32::from(more()),
        ..Faults::default()
    };
    check("ticks", Settings::new(2, posts()), faults);
}

#[test]
fn nothing_rests_on_the_streams_own_check() {
    let faults = Faults {
        timeouts: u32::from(more()),
        ..Faults::default()
    };
    let settings = Settings {
        stream_checks: false,
        ..Settings::new(2, &POSTS)
    };
    check("unchecked", settings, faults);
}

#[test]
fn three_nodes_keep_their_promises() {
    let posts = [(0, 0), (1, 0), (2, 1)];
    let faults = Faults {
        timeouts: u32::from(more()),
        ..Faults::default()
    };
    check("three", Settings::new(3, &posts), faults);
}

#[test]
fn a_stream_that_loses_what_it_acknowledged_puts_no_event_on_another_log() {
    let faults = Faults {
        truncated: 1,
        ..Faults::default()
    };
    let settings = Settings {
        stream_lies: true,
        ..Settings::new(2, &POSTS)
    };
    check("truncated", settings, faults);
}

#[test]
fn a_stream_that_is_restored_from_an_older_copy_gives_out_no_place_again() {
    let faults = Faults {
        restored: 1,
        timeouts: u32::from(more()),
        crashes: u32::from(more()),
        ..Faults::default()
    };
    let settings = Settings {
        stream_lies: true,
        ..Settings::new(2, posts())
    };
    check("restored", settings, faults);
}

#[test]
fn what_nodes_say_at_any_time_breaks_no_promise() {
    let faults = Faults {
        heard: 1,
        crashes: 1,
        ..Faults::default()
    };
    check("heard", Settings::new(2, posts()), faults);
}

#[test]
fn a_node_that_does_not_listen_before_it_writes_is_found() {
    let faults = Faults {
        restored: 1,
        ..Faults::default()
    };
    let settings = Settings {
        stream_lies: true,
        listens: false,
        ..Settings::new(2, &POSTS)
    };
    find(settings, faults);
}

#[test]
fn larger_faults_together_break_no_promise() {
    if !more() {
        return; // minutes
    }
    let faults = Faults {
        lost: 1,
        repeated: 1,
        timeouts: 2,
        crashes: 1,
        ..Faults::default()
    };
    check("together", Settings::new(2, &POSTS), faults);
}

#[test]
fn a_rule_without_the_condition_is_found() {
    let settings = Settings {
        stream_checks: false,
        rule: Rule(without_condition),
        ..Settings::new(2, &POSTS)
    };
    find(settings, Faults::default());
}

#[test]
fn a_rule_without_the_chain_is_found() {
    let faults = Faults {
        truncated: 1,
        ..Faults::default()
    };
    let settings = Settings {
        stream_lies: true,
        rule: Rule(without_chain),
        ..Settings::new(2, &POSTS)
    };
    find(settings, faults);
}

#[test]
fn an_answer_before_the_frame_is_applied_is_found() {
    let settings = Settings {
        answers_before_applying: true,
        ..Settings::new(2, &POSTS)
    };
    find(settings, Faults::default());
}
