//! A million task subscriptions on a thousand connections, held by twenty processes; then ten thousand of the tasks end, in no
//! order, and each of those who wait for them is told.

use std::time::Instant;

use anyhow::Result;

use crate::{
    bench::{Bench, PRODUCT},
    harness::{Cost, Meter, resident_bytes},
    load::send_each,
    peers::blobcast::{self, BLOBCAST, MANY},
    report::{Better, Sample, Table},
    worker::Waiting,
};

const PER_CONNECTION: usize = 1_000;
/// One in a hundred ends.
const ONE_IN: usize = 100;
/// Prime to the numbers of subscriptions, so that its multiples visit all of them in no order.
const STRIDE: u64 = 7_919;

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let waiting = bench.either(1_000_000, 50_000);
    let ending = (waiting / ONE_IN) as u64;
    let mut memory =
        Table::new(format!("memory of the server by its {waiting} waiting task subscriptions"), "bytes", Better::Less);
    let mut opening = Table::new("time to open them", "s", Better::Less);
    let mut telling =
        Table::new(format!("time until {ending} of them have been told, callback after callback"), "s", Better::Less);
    for round in bench.rounds("scale-waiting") {
        let who = round.turn(BLOBCAST);
        let front = blobcast::start(bench, &MANY).await?;
        let meter = Meter::start(&[&front.process], &[])?;
        let mut held = Waiting::open(front.grpc, 0, waiting, PER_CONNECTION).await?;
        let cost = meter.read_with(&held.processes())?;
        opening.add(who, Sample { value: cost.seconds, cost });
        memory.add(who, Sample { value: resident_bytes(&front.process)? as f64 / waiting as f64, cost });
        let begun = Instant::now();
        send_each(front.ingest, PRODUCT, (0..ending).map(|number| number * STRIDE % waiting as u64)).await?;
        held.have_received(ending).await?;
        let seconds = begun.elapsed().as_secs_f64();
        telling.add(who, Sample { value: seconds, cost: Cost { seconds, ..Cost::default() } });
    }
    Ok(vec![memory, opening, telling])
}
