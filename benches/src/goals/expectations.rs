//! What open expectations cost: memory of the server, ingest beside them, and the start after `kill -9`, each against a broker that
//! reconciles as well and expects nothing. Then the expected tasks end, and each end removes its expectation.
//!
//! The vendor is the simulated one. It knows none of the tasks. Beside tasks that are not yet late it is asked for nothing; beside
//! late ones it is asked as often as the broker may ask.

use anyhow::{Result, ensure};
use tokio::time::Duration;

use super::restart::timed;
use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    harness::{Meter, resident_bytes},
    load::{self, Load, Supply},
    peers::{blobcast, front::Front},
    reconciling::Reconciling,
    report::{Better, Sample, Table, Who},
};

/// As many as a broker takes; and in the short mode.
const EXPECTED: u64 = 100_000;
const EXPECTED_SHORT: u64 = 10_000;
/// Tasks that end and that nobody expects: numbered beyond all others.
const FIRST_UNEXPECTED: u64 = 500_000_000_000;
/// The broker's shortest: all tasks are late when the rate is measured.
const LATE: [(&str, &str); 1] = [("reconcile.expect_within", "veo=1s")];
/// Longer than that, with the rest of the warm-up.
const UNTIL_LATE: Duration = Duration::from_secs(2);

const OPEN: Who = Who {
    name: "blobcast, many expected",
    settings: "reconcile.enabled, with the simulated vendor, which knows none of the tasks; 20,000 tasks a client, with two labels each",
};
const NONE: Who = Who {
    name: "blobcast, none expected",
    ..OPEN
};
const OVERDUE: Who = Who {
    name: "blobcast, many late",
    settings: "the same, and all tasks are late: reconcile.expect_within is 1 s, and the vendor is asked 50 times a minute",
};

/// What is measured of a broker.
#[derive(Clone, Copy, Debug)]
struct Samples {
    memory: Sample,
    start: Sample,
    beside: Sample,
    ending: Sample,
}

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let expected = bench.either(EXPECTED, EXPECTED_SHORT);
    let rate = |title: String| Table::new(title, "callbacks/s", Better::More);
    let mut memory = Table::new(
        format!("memory of the server by its {expected} open expectations"),
        "bytes",
        Better::Less,
    );
    let mut start = Table::new(
        format!("start after kill -9 with {expected} open expectations"),
        "s",
        Better::Less,
    )
    .goal(1.0);
    let mut beside =
        rate(format!("ingest beside {expected} open expectations")).goal_against(NONE, 0.9);
    let mut beside_late =
        rate(format!("ingest beside {expected} tasks that are late")).goal_against(NONE, 0.9);
    let mut ending = rate(format!("ingest of the {expected} ends that were expected"));

    let reconciling = Reconciling::new(bench, expected).await?;
    for round in bench.rounds("expectations") {
        let who = round.turn(OPEN);
        let open = of_broker(bench, &reconciling, expected, expected).await?;
        memory.add(who, open.memory);
        start.add(who, open.start);
        beside.add(who, open.beside);
        ending.add(who, open.ending);

        let who = round.turn(OVERDUE);
        beside_late.add(who, beside_late_tasks(bench, &reconciling, expected).await?);

        let who = round.turn(NONE);
        let none = of_broker(bench, &reconciling, 0, expected).await?;
        start.add(who, none.start);
        beside.add(who, none.beside);
        beside_late.add(who, none.beside);
        ending.add(who, none.ending);
    }
    Ok(vec![memory, start, beside, beside_late, ending])
}

/// A broker with so many open expectations; at last so many tasks end, the expected ones among them.
async fn of_broker(
    bench: &Bench,
    reconciling: &Reconciling,
    expected: u64,
    ending: u64,
) -> Result<Samples> {
    let settings = reconciling.settings(&[]);
    let mut front = blobcast::start(bench, &settings).await?;
    let meter = Meter::start(&[&front.process], &[])?;
    reconciling.expect(front.grpc, 0..expected).await?;
    // To list them takes longer than the broker takes to schedule them.
    let open = reconciling.count_open(front.grpc).await?;
    ensure!(open == expected, "{open} of {expected} are expected");
    let memory = Sample {
        value: resident_bytes(&front.process)? as f64 / expected.max(1) as f64,
        cost: meter.read()?,
    };

    front.process.kill()?;
    let start = timed(front.restart(bench, &settings)).await?;
    let open = reconciling.count_open(front.grpc).await?;
    ensure!(open == expected, "{open} of {expected} have outlived it");

    let beside = ingest(bench, &front, bench.warm_up()).await?;
    let meter = Meter::start(&[&front.process], &[])?;
    load::fill(front.ingest, INGEST_CONNECTIONS, PRODUCT, ending).await?;
    let cost = meter.read()?;
    let value = ending as f64 / cost.seconds;
    let open = reconciling.count_open(front.grpc).await?;
    ensure!(open == 0, "{open} are open, though all tasks have ended");
    Ok(Samples {
        memory,
        start,
        beside,
        ending: Sample { value, cost },
    })
}

async fn beside_late_tasks(
    bench: &Bench,
    reconciling: &Reconciling,
    expected: u64,
) -> Result<Sample> {
    let front = blobcast::start(bench, &reconciling.settings(&LATE)).await?;
    reconciling.expect(front.grpc, 0..expected).await?;
    ingest(bench, &front, bench.warm_up().max(UNTIL_LATE)).await
}

/// Callbacks of other tasks.
async fn ingest(bench: &Bench, front: &Front, warm_up: Duration) -> Result<Sample> {
    let others = Supply::from(FIRST_UNEXPECTED);
    let load = Load::start(front.ingest, INGEST_CONNECTIONS, PRODUCT, &others).await?;
    bench
        .rate_after(warm_up, &[&front.process], &[], || load.answered())
        .await
}
