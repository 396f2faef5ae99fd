//! What waiting subscriptions cost those callbacks that they do not wait for: the rate of ingest beside many of them, and
//! beside few.

use anyhow::Result;

use super::waiting::{WAITING, WAITING_SHORT};
use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    load::{Load, Supply},
    peers::{
        blobcast::{self, MANY},
        front::Front,
    },
    report::{Better, Sample, Table, Who},
    worker::Waiting,
};

const FEW: usize = 100;
/// Connections that share them.
const CONNECTIONS: usize = 10;
/// Tasks that are waited for and never end: numbered beyond all that do.
const FIRST_WAITING: u64 = 500_000_000_000;

const MANY_WAIT: Who = Who {
    name: "blobcast, many waiting",
    settings: "defaults; subscriptions_max raised",
};
const FEW_WAIT: Who = Who {
    name: "blobcast, 100 waiting",
    ..MANY_WAIT
};
const MANY_WAIT_BY_HAND: Who = Who {
    name: "by hand, many waiting",
    settings: "tokio::sync::broadcast, where each stream looks at each event",
};
const FEW_WAIT_BY_HAND: Who = Who {
    name: "by hand, 100 waiting",
    ..MANY_WAIT_BY_HAND
};

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let many = bench.either(WAITING, WAITING_SHORT);
    let title = format!("ingest beside {many} waiting task subscriptions");
    let mut table = Table::new(title, "callbacks/s", Better::More).goal_against(FEW_WAIT, 0.9);
    for round in bench.rounds("selectivity") {
        for (who, waiting) in [(MANY_WAIT, many), (FEW_WAIT, FEW)] {
            table.add(
                round.turn(who),
                of_front(bench, blobcast::start(bench, &MANY).await?, waiting).await?,
            );
        }
        for (who, waiting) in [(MANY_WAIT_BY_HAND, many), (FEW_WAIT_BY_HAND, FEW)] {
            table.add(
                round.turn(who),
                of_front(bench, Front::own(&["broadcast"]).await?, waiting).await?,
            );
        }
    }
    Ok(vec![table])
}

async fn of_front(bench: &Bench, front: Front, waiting: usize) -> Result<Sample> {
    let held = Waiting::open(front.grpc, FIRST_WAITING, waiting, waiting / CONNECTIONS).await?;
    let load = Load::start(
        front.ingest,
        INGEST_CONNECTIONS,
        PRODUCT,
        &Supply::unlimited(),
    )
    .await?;
    bench
        .rate(&[&front.process], &held.processes(), || load.answered())
        .await
}
