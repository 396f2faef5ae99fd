//! Judges histories by the guarantees: `check_history FILE…`, each file with one JSON object a line.
//!
//! A line is `{"acknowledged": [{"event_id", "task_id"}], "observed": [{"event_id", "cursor", "task_id"}]}`: what one client
//! knows was answered 200, and what it saw of it, in order.

use std::{env, fs, process::ExitCode};

use blobcast::checker::{Acknowledged, History, Observed, Stream, check};
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    acknowledged: Vec<Acknowledged>,
    observed: Vec<Observed>,
}

fn main() -> anyhow::Result<ExitCode> {
    let mut violations = 0;
    let mut events = 0;
    for path in env::args().skip(1) {
        for line in fs::read_to_string(&path)?.lines() {
            let Line {
                acknowledged,
                observed,
            } = serde_json::from_str(line)?;
            events += observed.len();
            let streams = vec![Stream {
                task_ids: None,
                observed,
            }];
            for violation in check(&History {
                acknowledged,
                streams,
                ..History::default()
            }) {
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
