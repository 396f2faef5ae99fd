//! What a task subscription that waits costs: the memory of the whole server by their number. Then some of the tasks end, and
//! each of those who wait for them has to be told.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    bench::{Bench, PRODUCT},
    counters::{counters, total},
    harness::{Cost, Meter, Process, resident_bytes},
    load::{self, send_each, task_id},
    peers::{
        blobcast::{self, BLOBCAST, MANY},
        broadcast::BROADCAST,
        etcd::{Etcd, Putter, WATCH, Watches},
        front::Front,
    },
    report::{Better, Sample, Table},
    worker::Waiting,
};

/// The goal's.
pub const WAITING: usize = 100_000;
/// In the short mode.
pub const WAITING_SHORT: usize = 10_000;
/// Tasks that end, evenly among those that are waited for.
const ENDING: u64 = 1_000;
/// Connections that share them.
const CONNECTIONS: usize = 10;
/// Time for events to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let waiting = bench.either(WAITING, WAITING_SHORT);
    let title = format!("memory of the server by its {waiting} waiting task subscriptions");
    let mut table = Table::new(title, "bytes", Better::Less).goal(5.0 * 1024.0);
    for round in bench.rounds("waiting") {
        table.add(
            round.turn(BLOBCAST),
            of_front(&blobcast::start(bench, &MANY).await?, waiting).await?,
        );
        table.add(
            round.turn(BROADCAST),
            of_front(&Front::own(&["broadcast"]).await?, waiting).await?,
        );
        if let Some(etcd) = Etcd::start(bench).await? {
            table.add(round.turn(WATCH), of_etcd(&etcd, waiting).await?);
        }
    }
    Ok(vec![table])
}

fn sample(server: &Process, cost: Cost, waiting: usize) -> Result<Sample> {
    Ok(Sample {
        value: resident_bytes(server)? as f64 / waiting as f64,
        cost,
    })
}

fn ending(waiting: usize) -> impl Iterator<Item = u64> {
    (0..waiting as u64).step_by(waiting / ENDING as usize)
}

async fn of_front(front: &Front, waiting: usize) -> Result<Sample> {
    let meter = Meter::start(&[&front.process], &[])?;
    let mut held = Waiting::open(front.grpc, 0, waiting, waiting / CONNECTIONS).await?;
    let sample = sample(&front.process, meter.read_with(&held.processes())?, waiting)?;
    send_each(front.ingest, PRODUCT, ending(waiting)).await?;
    held.have_received(ENDING).await?;
    Ok(sample)
}

async fn of_etcd(etcd: &Etcd, waiting: usize) -> Result<Sample> {
    let meter = Meter::start(&[&etcd.process], &[])?;
    let received = counters(waiting);
    let key = |number| task_id(number as u64);
    let _watches = Watches::open(
        etcd.address,
        CONNECTIONS,
        waiting / CONNECTIONS,
        key,
        &received,
    )
    .await?;
    let sample = sample(&etcd.process, meter.read()?, waiting)?;
    let putter = Arc::new(Putter::connect(etcd.address).await?);
    for number in ending(waiting) {
        putter
            .put(task_id(number), Bytes::from(load::body(number)))
            .await?;
    }
    let deadline = Instant::now() + PATIENCE;
    while total(&received) < ENDING {
        ensure!(
            Instant::now() < deadline,
            "{} of {ENDING} watches have seen their event",
            total(&received)
        );
        sleep(Duration::from_millis(1)).await;
    }
    Ok(sample)
}
