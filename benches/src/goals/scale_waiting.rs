//! How costs grow with the task subscriptions that wait, up to a million on a thousand connections, held by twenty processes; then
//! one in a hundred of the tasks ends, in no order, and each subscription to them gets its event.

use anyhow::Result;

use crate::{
    bench::{Bench, PRODUCT},
    harness::{Cost, Meter, resident_bytes},
    load::send_each,
    peers::blobcast::{self, BLOBCAST, MANY},
    report::{Better, Sample, Table, Who},
    statistics::Spread,
    worker::Waiting,
};

const PER_CONNECTION: usize = 1_000;
/// One in a hundred ends.
const ONE_IN: usize = 100;
/// Prime to the numbers of subscriptions, so that its multiples visit all of them in no order.
const STRIDE: u64 = 7_919;

/// How many wait, and what they are called.
const SIZES: [(usize, Who); 4] = [
    (
        1_000,
        Who {
            name: "1,000 waiting",
            ..BLOBCAST
        },
    ),
    (
        10_000,
        Who {
            name: "10,000 waiting",
            ..BLOBCAST
        },
    ),
    (
        100_000,
        Who {
            name: "100,000 waiting",
            ..BLOBCAST
        },
    ),
    (
        1_000_000,
        Who {
            name: "1,000,000 waiting",
            ..BLOBCAST
        },
    ),
];
const SIZES_SHORT: usize = 2;

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let table = |title: &str, unit| {
        Table::new(
            format!("by waiting task subscriptions: {title}"),
            unit,
            Better::Less,
        )
    };
    let mut memory = table("memory of the server for all", "MB");
    let mut opening = table("time to open all", "s");
    let mut telling = table(
        "callback to event, one after the other, the middle of one in a hundred",
        "ms",
    );
    let mut slowest = table("callback to event, the slowest of them", "ms");
    for (waiting, size) in &SIZES[..bench.either(SIZES.len(), SIZES_SHORT)] {
        let ending = (waiting / ONE_IN) as u64;
        for round in bench.rounds("scale-waiting") {
            let who = round.turn(*size);
            let front = blobcast::start(bench, &MANY).await?;
            let meter = Meter::start(&[&front.process], &[])?;
            let mut held = Waiting::open(front.grpc, 0, *waiting, PER_CONNECTION).await?;
            let cost = meter.read_with(&held.processes())?;
            opening.add(
                who,
                Sample {
                    value: cost.seconds,
                    cost,
                },
            );
            memory.add(
                who,
                Sample {
                    value: resident_bytes(&front.process)? as f64 / 1e6,
                    cost,
                },
            );
            send_each(
                front.ingest,
                PRODUCT,
                (0..ending).map(|number| number * STRIDE % *waiting as u64),
            )
            .await?;
            let Spread { median, max, .. } = held.have_received(ending).await?;
            telling.add(
                who,
                Sample {
                    value: median,
                    cost: Cost::default(),
                },
            );
            slowest.add(
                who,
                Sample {
                    value: max,
                    cost: Cost::default(),
                },
            );
        }
    }
    Ok(vec![memory, opening, telling, slowest])
}
