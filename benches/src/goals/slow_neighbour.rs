//! What a subscription that is never read costs the others: nine on each of ten connections, alone, and with a tenth one on the
//! same connection that reads nothing.

use anyhow::Result;

use super::{
    fan_out,
    latency::{Watch, send_to},
};
use crate::{
    bench::{Bench, PRODUCT},
    peers::blobcast::{self, BLOBCAST},
    report::{Better, Sample, Table, Who},
    statistics::percentile_millis,
    subscribers::{Seats, Subscribers},
};

const CONNECTIONS: usize = 10;
const READ_PER_CONNECTION: usize = 9;
/// Callbacks a second while latency is counted: a small part of what can be delivered.
const PER_SECOND: u32 = 500;

const WITH_STALLED: Who = Who {
    name: "blobcast, 10 stalled",
    ..BLOBCAST
};
const WITHOUT: Who = Who {
    name: "blobcast, none stalled",
    ..BLOBCAST
};

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let mut rates = Table::new(
        "deliveries to the 90 that are read",
        "deliveries/s",
        Better::More,
    )
    .goal_against(WITHOUT, 0.95);
    let title = format!("callback to event at the 90 that are read, {PER_SECOND} callbacks/s: p99");
    let mut latencies = Table::new(title, "ms", Better::Less).goal_against(WITHOUT, 1.05);
    for round in bench.rounds("slow-neighbour") {
        for (who, stalled_per_connection) in [(WITH_STALLED, 1), (WITHOUT, 0)] {
            rates.add(round.turn(who), rate(bench, stalled_per_connection).await?);
            latencies.add(who, p99(bench, stalled_per_connection).await?);
        }
    }
    Ok(vec![rates, latencies])
}

async fn rate(bench: &Bench, stalled_per_connection: usize) -> Result<Sample> {
    let front = blobcast::start(bench, &[]).await?;
    let seats = Seats {
        stalled_per_connection,
        ..Seats::new(front.grpc, CONNECTIONS, READ_PER_CONNECTION)
    };
    fan_out::of_seats(bench, &front, seats).await
}

async fn p99(bench: &Bench, stalled_per_connection: usize) -> Result<Sample> {
    let front = blobcast::start(bench, &[]).await?;
    let seats = Seats {
        stalled_per_connection,
        ..Seats::new(front.grpc, CONNECTIONS, READ_PER_CONNECTION)
    };
    let watch = Watch::of(seats.count());
    let seen = watch.clone();
    let on_event = move |number: usize, event: &[u8]| seen.saw(number, event);
    let _subscribers =
        Subscribers::open(seats, |_| blobcast::of_product(PRODUCT), on_event).await?;
    let (latencies, cost) = watch
        .measure(bench, PER_SECOND, &[&front.process], |schedule| {
            send_to(front.ingest, schedule)
        })
        .await?;
    Ok(Sample {
        value: percentile_millis(&latencies.total(), 99.0),
        cost,
    })
}
