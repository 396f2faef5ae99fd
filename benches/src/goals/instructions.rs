//! How many instructions the broker executes for a callback, and for each delivery of its event: counted by callgrind, so it
//! does not depend on the machine's speed or on what else runs there, and a change that makes the broker slower is seen.
//!
//! Two runs of different length, of which only the difference counts; with and without subscriptions. The figures are held to
//! those in `instructions.json` beside this package's manifest. Callbacks beside open expectations are held to those without.

use std::{fs, path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::time::{Duration, sleep};

use crate::{
    bench::{Bench, PRODUCT},
    counters::{counters, slowest},
    harness::{self, Cost, Process, Says},
    load,
    peers::blobcast::{self, BLOBCAST},
    reconciling::Reconciling,
    report::{Better, Sample, Table, Who},
    subscribers::{Seats, Subscribers},
};

/// Callbacks of the two runs: valgrind is some fifty times slower than the machine.
const SHORTER: u64 = 1_000;
const LONGER: u64 = 3_000;
/// Connections of the callbacks: groups of commits are as large, which the figure depends on.
const CONNECTIONS: usize = 16;
const SUBSCRIPTIONS: usize = 10;
/// Open expectations, and in the short mode: what valgrind makes bearable.
const EXPECTED: u64 = 10_000;
const EXPECTED_SHORT: u64 = 1_000;
/// None of them ends: they are numbered beyond all that do.
const FIRST_EXPECTED: u64 = 500_000_000_000;

const EXPECTING: Who = Who {
    name: "blobcast, many expected",
    settings: "reconcile.enabled, with the simulated vendor; the tasks of the callbacks are expected by nobody",
};

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
    let expected = bench.either(EXPECTED, EXPECTED_SHORT);
    let title = format!("for a callback beside {expected} open expectations");
    let mut beside = Table::new(title, "instructions", Better::Less)
        .goal_against(BLOBCAST, 1.0 + margin_percent / 100.0);
    for round in bench.rounds("instructions") {
        let who = round.turn(BLOBCAST);
        let of_callback = per_event(bench, Beside::Nothing).await?;
        let with_deliveries = per_event(bench, Beside::Subscriptions(SUBSCRIPTIONS)).await?;
        let of_delivery = (with_deliveries - of_callback) / SUBSCRIPTIONS as f64;
        callbacks.add(who, counted(of_callback));
        deliveries.add(who, counted(of_delivery));

        let expecting = round.turn(EXPECTING);
        let of_callback_beside = per_event(bench, Beside::Expectations(expected)).await?;
        beside.add(expecting, counted(of_callback_beside));
        beside.add(who, counted(of_callback));
    }
    let tables = vec![callbacks, deliveries, beside];
    if let Some(missed) = tables.iter().find(|table| !table.is_met()) {
        bail!("more than what is committed:{}", missed.text());
    }
    Ok(tables)
}

fn counted(value: f64) -> Sample {
    Sample {
        value,
        cost: Cost::default(),
    }
}

/// What the broker has besides callbacks.
#[derive(Clone, Copy, Debug)]
enum Beside {
    Nothing,
    Subscriptions(usize),
    Expectations(u64),
}

async fn per_event(bench: &Bench, beside: Beside) -> Result<f64> {
    let (shorter, longer) = (
        count(bench, SHORTER, beside).await?,
        count(bench, LONGER, beside).await?,
    );
    Ok((longer - shorter) / (LONGER - SHORTER) as f64)
}

/// All instructions of a broker that takes so many callbacks, beside something else.
async fn count(bench: &Bench, callbacks: u64, beside: Beside) -> Result<f64> {
    let mut directory = harness::directory(&bench.target)?;
    let (mut subscriptions, mut reconciling) = (0, None);
    match beside {
        Beside::Nothing => {}
        Beside::Subscriptions(number) => subscriptions = number,
        Beside::Expectations(number) => {
            let with = Reconciling::new(bench, number).await?;
            directory = expecting(bench, &with, number).await?;
            reconciling = Some(with);
        }
    }
    let settings = reconciling
        .as_ref()
        .map(|reconciling| reconciling.settings(&[]))
        .unwrap_or_default();
    let mut process = under_valgrind(bench, directory.path(), &settings)?;
    let [ingest, grpc, _] = process.hears(blobcast::addresses).await?;

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

/// The directory of a broker that has ended with so many open expectations. The broker that is counted finds them at its start:
/// storing them costs more than the callbacks, and part of it would fall into the longer run alone.
async fn expecting(bench: &Bench, reconciling: &Reconciling, number: u64) -> Result<TempDir> {
    let mut broker = blobcast::start(bench, &reconciling.settings(&[])).await?;
    let tasks = FIRST_EXPECTED..FIRST_EXPECTED + number;
    reconciling.expect(broker.grpc, tasks).await?;
    broker.process.terminate()?;
    broker.directory.context("a broker has a directory")
}

fn under_valgrind(bench: &Bench, directory: &Path, settings: &[(&str, &str)]) -> Result<Process> {
    let broker = blobcast::command(&bench.server, directory, settings);
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
    Process::start(command, Says::Stderr).context("install valgrind")
}
