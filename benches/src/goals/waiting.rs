//! What a task subscription that waits costs: the memory of the whole server by their number. Then some of the tasks end, and
//! each subscription to them has to get its event.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use tokio::time::{Duration, Instant, sleep};

use crate::{
    bench::{Bench, PRODUCT},
    counters::{Counters, counters, total},
    harness::{Cost, Meter, Process, resident_bytes},
    load::{self, send_each, task_id},
    peers::{
        blobcast::{self, BLOBCAST, MANY},
        broadcast::BROADCAST,
        etcd::{Etcd, Putter, WATCH, Watches},
        front::Front,
    },
    report::{Better, Sample, Table},
    subscribers::{Seats, Subscribers},
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

/// Ids in the filter of one stream: as many as the default allows.
const NAMED: usize = 10_000;
/// Streams that name so many each, and in the short mode.
const NAMING: usize = 100;
const NAMING_SHORT: usize = 10;

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    Ok(vec![one_each(bench).await?, many_each(bench).await?])
}

/// One stream for each task.
async fn one_each(bench: &Bench) -> Result<Table> {
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
    Ok(table)
}

/// Streams that name many tasks each. etcd has no such filter: there it is a watch for each task.
async fn many_each(bench: &Bench) -> Result<Table> {
    let streams = bench.either(NAMING, NAMING_SHORT);
    let title = format!("memory that each task id takes of the server, {NAMED} ids a stream");
    let mut table = Table::new(title, "bytes", Better::Less).goal(256.0);
    for round in bench.rounds("waiting, many ids a stream") {
        let broker = blobcast::start(bench, &MANY).await?;
        table.add(round.turn(BLOBCAST), of_ids(&broker, streams).await?);
        if let Some(etcd) = Etcd::start(bench).await? {
            let waiting = bench.either(WAITING, WAITING_SHORT);
            let before = resident_bytes(&etcd.process)?;
            let of_all = of_etcd(&etcd, waiting).await?;
            let value = of_all.value - before as f64 / waiting as f64;
            table.add(round.turn(WATCH), Sample { value, ..of_all });
        }
    }
    Ok(table)
}

async fn of_ids(broker: &Front, streams: usize) -> Result<Sample> {
    let (meter, before) = (
        Meter::start(&[&broker.process], &[])?,
        resident_bytes(&broker.process)?,
    );
    let received = counters(streams);
    let counted = Arc::clone(&received);
    let count = move |number: usize, _event: &[u8]| counted[number].count();
    let request = |number: usize| {
        let ids = number * NAMED..(number + 1) * NAMED;
        blobcast::of_tasks(ids.map(|id| task_id(id as u64)).collect())
    };
    let seats = Seats::new(broker.grpc, CONNECTIONS, streams / CONNECTIONS);
    let _subscribers = Subscribers::open(seats, request, count).await?;
    let grown = resident_bytes(&broker.process)?.saturating_sub(before);
    let sample = Sample {
        value: grown as f64 / (streams * NAMED) as f64,
        cost: meter.read()?,
    };

    send_each(broker.ingest, PRODUCT, ending(streams * NAMED)).await?;
    all_received(&received).await?;
    Ok(sample)
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
    all_received(&received).await?;
    Ok(sample)
}

/// Waits until everybody who waits for a task that has ended has its event.
async fn all_received(received: &Counters) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while total(received) < ENDING {
        ensure!(
            Instant::now() < deadline,
            "{} of {ENDING} events have come",
            total(received)
        );
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
