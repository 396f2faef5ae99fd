//! How many callbacks a second are answered 200, each of a task of its own, on 128 keep-alive connections.
//!
//! The limit is the same HTTP stack with an empty handler, and how much of that is left when bodies become durable and nothing
//! else is done. JetStream is given its messages by its own client, 128 at a time, without HTTP; and as most people would use it,
//! behind a handler.

use std::sync::Arc;

use anyhow::{Result, ensure};
use tokio::task::JoinSet;

use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    counters::{counters, total},
    load::{self, Load, Supply},
    peers::{
        append::{self, APPEND},
        blobcast,
        front::{EMPTY, Front},
        nats::{self, ALWAYS, DEFAULT, HANDLER, Nats, Sync},
    },
    report::{Better, Sample, Table},
};

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let mut table = Table::new(
        "durable ingest on 128 connections",
        "callbacks/s",
        Better::More,
    )
    .goal_against(EMPTY, 0.6)
    .goal_against(ALWAYS, 5.0);
    for round in bench.rounds("ingest") {
        for (who, build) in blobcast::builds(bench) {
            let who = round.turn(who);
            let front = blobcast::start(&build, &[]).await?;
            table.add(who, of_front(bench, front, None).await?);
        }
        if bench.beside.is_some() {
            continue;
        }
        table.add(
            round.turn(EMPTY),
            of_front(bench, Front::own(&["empty"]).await?, None).await?,
        );
        table.add(
            round.turn(APPEND),
            of_front(bench, append::start(bench).await?, None).await?,
        );
        table.add(round.turn(ALWAYS), of_jetstream(bench, Sync::Always).await?);
        table.add(
            round.turn(DEFAULT),
            of_jetstream(bench, Sync::Default).await?,
        );
        let nats = Nats::start(bench, Some(Sync::Always)).await?;
        let handler = Front::own(&["handler", &nats.url]).await?;
        table.add(
            round.turn(HANDLER),
            of_front(bench, handler, Some(&nats)).await?,
        );
    }
    Ok(vec![table])
}

async fn of_front(bench: &Bench, front: Front, behind: Option<&Nats>) -> Result<Sample> {
    let load = Load::start(
        front.ingest,
        INGEST_CONNECTIONS,
        PRODUCT,
        &Supply::unlimited(),
    )
    .await?;
    let servers: Vec<_> = [&front.process]
        .into_iter()
        .chain(behind.map(|nats| &nats.process))
        .collect();
    bench.rate(&servers, &[], || load.answered()).await
}

async fn of_jetstream(bench: &Bench, sync: Sync) -> Result<Sample> {
    let nats = Nats::start(bench, Some(sync)).await?;
    let context = nats::context(nats.client().await?);
    nats::stream(&context).await?;
    let (acknowledged, supply) = (counters(INGEST_CONNECTIONS), Supply::unlimited());
    let mut tasks = JoinSet::new();
    for number in 0..INGEST_CONNECTIONS {
        let (context, acknowledged, supply) = (
            context.clone(),
            Arc::clone(&acknowledged),
            Arc::clone(&supply),
        );
        tasks.spawn(async move {
            while nats::publish(&context, load::body(supply.take().await))
                .await
                .is_ok()
            {
                acknowledged[number].count();
            }
        });
    }
    let sample = bench
        .rate(&[&nats.process], &[], || Ok(total(&acknowledged)))
        .await?;
    ensure!(
        tasks.try_join_next().is_none(),
        "JetStream has refused a message"
    );
    Ok(sample)
}
