//! How long from start to ready, with a log of some size, after `kill -9` and after an orderly end.
//!
//! The logs are filled through the front door, callback by callback, so that they are as a life of callbacks would have left
//! them. The directory's files are in the system's cache, as they are after a crash or an upgrade.

use std::time::Instant;

use anyhow::Result;

use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    harness::Cost,
    load,
    peers::{
        blobcast::{self, BLOBCAST},
        nats::{Nats, Sync},
    },
    report::{Better, Sample, Table, Who},
};

/// Nothing is forgotten meanwhile.
pub const KEEP_ALL: [(&str, &str); 1] = [("log.retention_bytes_max", "1TiB")];

const KILLED: Who = Who {
    name: "blobcast, after kill -9",
    ..BLOBCAST
};
const ENDED: Who = Who {
    name: "blobcast, after SIGTERM",
    ..BLOBCAST
};
const JETSTREAM: Who = Who {
    name: "JetStream, after kill -9",
    settings: "file storage, sync_interval: always; filled with the default, which is faster",
};

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for count in bench.either([1_000_000, 10_000_000], [20_000, 100_000]) {
        let title = format!("start with {count} events kept");
        let mut table = Table::new(title, "s", Better::Less).goal(1.0);
        eprintln!("restart: {count} events into each log");
        let mut broker = blobcast::start(bench, &KEEP_ALL).await?;
        load::fill(broker.ingest, INGEST_CONNECTIONS, PRODUCT, count).await?;
        let mut nats = Nats::start(bench, Some(Sync::Default)).await?;
        nats.fill(count).await?;
        for round in bench.rounds("restart") {
            broker.process.kill()?;
            table.add(
                round.turn(KILLED),
                timed(broker.restart(bench, &KEEP_ALL)).await?,
            );
            broker.process.terminate()?;
            table.add(
                round.turn(ENDED),
                timed(broker.restart(bench, &KEEP_ALL)).await?,
            );
            nats.process.kill()?;
            table.add(
                round.turn(JETSTREAM),
                timed(nats.restart(bench, Sync::Always)).await?,
            );
        }
        tables.push(table);
    }
    Ok(tables)
}

/// How long a start takes.
pub async fn timed(start: impl Future<Output = Result<()>>) -> Result<Sample> {
    let begun = Instant::now();
    start.await?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Sample {
        value: seconds,
        cost: Cost {
            seconds,
            ..Cost::default()
        },
    })
}
