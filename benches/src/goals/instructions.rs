//! How many instructions the broker executes for a callback, and for each delivery of its event: counted by callgrind, so it
//! does not depend on the machine's speed or on what else runs there, and a change that makes the broker slower is seen.
//!
//! Two runs of different length, of which only the difference counts; with and without subscriptions. The figures are held to
//! those in `instructions.json` beside this package's manifest.

use std::{fs, path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tokio::time::{Duration, sleep};

use crate::{
    bench::{Bench, PRODUCT},
    counters::{counters, slowest},
    harness::{self, Cost, Process, Says},
    load,
    peers::blobcast::{self, BLOBCAST},
    report::{Better, Sample, Table},
    subscribers::{Seats, Subscribers},
};

/// Callbacks of the two runs: valgrind is some fifty times slower than the machine.
const SHORTER: u64 = 1_000;
const LONGER: u64 = 3_000;
/// Connections of the callbacks: groups of commits are as large, which the figure depends on.
const CONNECTIONS: usize = 16;
const SUBSCRIPTIONS: usize = 10;

/// What was counted when it was last looked into, and by how much it may be exceeded.
#[derive(Debug, Deserialize)]
struct Committed {
    per_callback: f64,
    per_delivery: f64,
    margin_percent: f64,
}

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let Committed {
        per_callback,
        per_delivery,
        margin_percent,
    } = serde_json::from_str(&fs::read_to_string(file)?)?;
    let table = |what, committed| {
        let title = format!("for a {what}, up to {margin_percent} % more than what is committed");
        Table::new(title, "instructions", Better::Less)
            .goal(committed * (1.0 + margin_percent / 100.0))
    };
    let (mut callbacks, mut deliveries) = (
        table("callback", per_callback),
        table("delivery", per_delivery),
    );
    for round in bench.rounds("instructions") {
        let who = round.turn(BLOBCAST);
        let of_callback = per_event(bench, 0).await?;
        let of_delivery =
            (per_event(bench, SUBSCRIPTIONS).await? - of_callback) / SUBSCRIPTIONS as f64;
        callbacks.add(
            who,
            Sample {
                value: of_callback,
                cost: Cost::default(),
            },
        );
        deliveries.add(
            who,
            Sample {
                value: of_delivery,
                cost: Cost::default(),
            },
        );
    }
    let tables = vec![callbacks, deliveries];
    if let Some(missed) = tables.iter().find(|table| !table.is_met()) {
        bail!("more than what is committed:{}", missed.text());
    }
    Ok(tables)
}

async fn per_event(bench: &Bench, subscriptions: usize) -> Result<f64> {
    let (shorter, longer) = (
        count(bench, SHORTER, subscriptions).await?,
        count(bench, LONGER, subscriptions).await?,
    );
    Ok((longer - shorter) / (LONGER - SHORTER) as f64)
}

/// All instructions of a broker that takes so many callbacks, and delivers each to so many subscriptions.
async fn count(bench: &Bench, callbacks: u64, subscriptions: usize) -> Result<f64> {
    let directory = harness::directory(&bench.target)?;
    let broker = blobcast::command(&bench.server, directory.path(), &[]);
    let mut command = Command::new("valgrind");
    command
        .args([
            "--tool=callgrind",
            "--fair-sched=yes",
            "--callgrind-out-file=/dev/null",
        ])
        .arg(&bench.server)
        .args(broker.get_args());
    for (key, value) in broker.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    let mut process = Process::start(command, Says::Stderr).context("install valgrind")?;
    let [ingest, grpc] = process.hears(blobcast::addresses).await?;
    let received = counters(subscriptions);
    let counted = Arc::clone(&received);
    let count = move |number: usize, _: &[u8]| counted[number].count();
    let seats = Seats::new(grpc, 1, subscriptions);
    let subscribers = Subscribers::open(seats, |_| blobcast::of_product(PRODUCT), count).await?;
    load::fill(ingest, CONNECTIONS, PRODUCT, callbacks).await?;
    while subscriptions > 0 && slowest(&received) < callbacks {
        sleep(Duration::from_millis(1)).await;
    }
    drop(subscribers);
    process.terminate()?;
    process
        .hears(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
        .await
}
