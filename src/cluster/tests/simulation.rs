//! The protocol at random: nodes, callbacks and faults by the hundred, each run by its seed. BLOBCAST_SEEDS has it run more seeds.

use std::time::Instant;

use fastrand::Rng;

use super::{
    broken::{without_chain, without_condition},
    world::{Action, Faults, Post, Settings, World},
};
use crate::cluster::protocol::Rule;

const SEEDS: u64 = 2_000;
/// Far more than any run takes to settle once nothing fails any more.
const STEPS_MAX: usize = 20_000;

fn seeds() -> u64 {
    let set = std::env::var("BLOBCAST_SEEDS").ok();
    set.map_or(SEEDS, |seeds| seeds.parse().expect("a number of seeds"))
}

/// Callbacks at random nodes; some tasks are posted more than once.
fn settings(rng: &mut Rng) -> Settings {
    let nodes = rng.usize(2..=4);
    let posts = (0..rng.usize(4..14)).map(|_| (rng.usize(0..nodes), rng.u8(0..8)));
    let posts: Vec<_> = posts.collect();
    Settings {
        stream_checks: rng.u8(0..4) > 0,
        ..Settings::new(nodes, &posts)
    }
}

fn faults(rng: &mut Rng) -> Faults {
    Faults {
        lost: rng.u32(0..12),
        repeated: rng.u32(0..8),
        timeouts: rng.u32(0..12),
        crashes: rng.u32(0..4),
        ticks: rng.u32(0..6),
        given_up: rng.u32(0..3),
        heard: rng.u32(0..8),
        ..Faults::default()
    }
}

/// One step at random. Faults are rarer than progress, so that runs come far.
fn step(world: &mut World, settings: &Settings, rng: &mut Rng) -> bool {
    let mut choices = world.progress();
    if choices.is_empty() || rng.u8(0..4) == 0 {
        choices = world.actions();
    }
    let action = (!choices.is_empty()).then(|| choices[rng.usize(0..choices.len())].clone());
    let Some(action) = action else { return false };
    world.act(settings, action);
    true
}

/// The stream elects: nothing that is published comes through, nobody is answered, and the callers' timeouts come.
fn election(world: &mut World, settings: &Settings, rng: &mut Rng) {
    let saved = world.faults;
    world.faults = Faults {
        lost: u32::MAX,
        timeouts: u32::MAX,
        ..Faults::default()
    };
    for _ in 0..rng.usize(1..10) {
        let harmful = |action: &Action| {
            matches!(
                action,
                Action::Lose(_) | Action::Unanswered(_) | Action::NoReply(..)
            )
        };
        let choices: Vec<_> = world.actions().into_iter().filter(harmful).collect();
        if choices.is_empty() {
            break;
        }
        world.act(settings, choices[rng.usize(0..choices.len())].clone());
    }
    world.faults = saved;
}

/// Runs with faults, and then without until everything is answered, or a promise is broken.
fn run(settings: &mut Settings, faults: Faults, seed: u64) -> World {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(settings, faults);
    for _ in 0..rng.usize(50..250) {
        if rng.u8(0..40) == 0 {
            election(&mut world, settings, &mut rng);
        }
        if !step(&mut world, settings, &mut rng) {
            break;
        }
        if !world.broken.is_empty() {
            return world;
        }
    }

    world.faults = Faults::default();
    // Nodes that are ahead of a stream never settle.
    let steps = if settings.stream_lies { 200 } else { STEPS_MAX };
    for _ in 0..steps {
        if world.is_settled() && world.is_still() {
            return world;
        }
        // The vendor comes again, and finds another node.
        for post in 0..world.posts.len() {
            if world.posts[post] == Post::Unanswered {
                world.posts[post] = Post::NotSent;
                settings.posts[post].0 = rng.usize(0..settings.nodes);
            }
        }
        let mut choices = world.progress();
        if choices.is_empty() {
            choices = (0..settings.nodes)
                .flat_map(|node| world.timeouts(node))
                .collect();
        }
        if choices.is_empty() {
            break; // nodes that have stopped
        }
        world.act(settings, choices[rng.usize(0..choices.len())].clone());
        if !world.broken.is_empty() {
            return world;
        }
    }
    if settings.stream_lies {
        return world;
    }
    panic!("seed {seed}: it does not settle: {world:#?}");
}

#[test]
fn many_nodes_keep_their_promises_whatever_the_network_does() {
    let begun = Instant::now();
    let (mut events, mut messages) = (0, 0);
    for seed in 0..seeds() {
        let mut rng = Rng::with_seed(!seed);
        let (mut settings, faults) = (settings(&mut rng), faults(&mut rng));
        let world = run(&mut settings, faults, seed);
        assert!(world.broken.is_empty(), "seed {seed}: {world:#?}");
        events += world.log_len();
        messages += world.messages().len();
    }
    let took = begun.elapsed();
    println!("{events} events in {messages} messages in {took:.1?}");
    assert!(events > seeds() as usize, "the runs come to something");
}

#[test]
fn a_seed_says_everything_about_a_run() {
    for seed in 0..20 {
        let run = || {
            let mut rng = Rng::with_seed(!seed);
            let (mut settings, faults) = (settings(&mut rng), faults(&mut rng));
            run(&mut settings, faults, seed)
        };
        assert!(run() == run(), "seed {seed}");
    }
}

#[test]
fn no_event_lands_on_another_log_when_the_stream_loses_what_it_acknowledged() {
    for seed in 0..seeds() / 4 {
        let mut rng = Rng::with_seed(!seed);
        let (mut settings, faults) = lying(&mut rng);
        let world = run(&mut settings, faults, seed);
        assert!(world.broken.is_empty(), "seed {seed}: {world:#?}");
    }
}

fn lying(rng: &mut Rng) -> (Settings, Faults) {
    let settings = Settings {
        stream_checks: true,
        stream_lies: true,
        ..settings(rng)
    };
    let faults = Faults {
        truncated: rng.u32(1..4),
        ..faults(rng)
    };
    (settings, faults)
}

#[test]
fn no_place_is_given_out_again_when_the_stream_is_restored_from_an_older_copy() {
    for seed in 0..seeds() / 4 {
        let mut rng = Rng::with_seed(!seed);
        let (mut settings, faults) = restored(&mut rng);
        let world = run(&mut settings, faults, seed);
        assert!(world.broken.is_empty(), "seed {seed}: {world:#?}");
    }
}

fn restored(rng: &mut Rng) -> (Settings, Faults) {
    let (settings, faults) = lying(rng);
    let faults = Faults {
        restored: faults.truncated,
        truncated: 0,
        ..faults
    };
    (settings, faults)
}

/// The first seed that shows the mistake.
fn find(name: &str, make: impl Fn(&mut Rng) -> (Settings, Faults)) {
    let shows = |seed: &u64| {
        let (mut settings, faults) = make(&mut Rng::with_seed(!seed));
        !run(&mut settings, faults, *seed).broken.is_empty()
    };
    let seed = (0..500).find(shows).expect("the mistake is found");
    println!("{name}: seed {seed}");
}

#[test]
fn a_rule_without_the_condition_is_found() {
    find("condition", |rng| {
        let settings = Settings {
            stream_checks: false,
            rule: Rule(without_condition),
            ..settings(rng)
        };
        (settings, faults(rng))
    });
}

#[test]
fn a_rule_without_the_chain_is_found() {
    find("chain", |rng| {
        let (settings, faults) = lying(rng);
        let rule = Rule(without_chain);
        (Settings { rule, ..settings }, faults)
    });
}

#[test]
fn an_answer_before_the_frame_is_applied_is_found() {
    find("answer", |rng| {
        let settings = Settings {
            answers_before_applying: true,
            ..settings(rng)
        };
        (settings, faults(rng))
    });
}

#[test]
fn a_node_that_does_not_listen_before_it_writes_is_found() {
    find("listens", |rng| {
        let (settings, faults) = restored(rng);
        let listens = false;
        (
            Settings {
                listens,
                ..settings
            },
            faults,
        )
    });
}
