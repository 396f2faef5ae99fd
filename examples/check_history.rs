//! Judges histories by the guarantees: `check_history FILE…`, each file with one JSON object a line.
//!
//! A line is `{"acknowledged": [{"event_id", "task_id"}], "observed": [{"event_id", "cursor", "task_id"}]}`: what one client
//! knows was answered 200, and what it saw of it, in order. Instead of `observed` it may have the other fields of a
//! [`History`], such as `streams`, and `nodes` for the log of each node of a cluster.

use std::{env, fs, process::ExitCode};

use blobcast::checker::{History, Observed, Stream, check};
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    history: History,
    #[serde(default)]
    observed: Vec<Observed>,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut violations = 0;
    let mut events = 0;
    for path in env::args().skip(1) {
        for line in fs::read_to_string(&path)?.lines() {
            let Line {
                mut history,
                observed,
            } = serde_json::from_str(line)?;
            if !observed.is_empty() {
                history.streams.push(Stream {
                    task_ids: None,
                    observed,
                });
            }

            events += count(&history);
            for violation in check(&history) {
                println!("{path}: {violation}");
                violations += 1;
            }
        }
    }
    println!("{events} events checked, {violations} violations");
    Ok(if violations == 0 && events > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn count(history: &History) -> usize {
    let streams = history.streams.iter().map(|stream| stream.observed.len());
    let nodes = history.nodes.iter().map(|node| node.log.len());
    history.log.len() + streams.chain(nodes).sum::<usize>()
}
