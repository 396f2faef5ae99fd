//! How fast one subscription reads a whole log from its beginning, while callbacks go on coming in.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt;
use tokio::task::JoinSet;

use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    counters::{counters, total},
    harness::Meter,
    load::{self, Schedule, send_on_schedule},
    peers::{
        blobcast,
        front::Front,
        nats::{self, Nats, Sync},
    },
    report::{Better, Sample, Table, Who},
    subscribers::{Seats, Subscribers},
    wire::{StartPosition, SubscribeRequest, subscribe_request::Start},
};

/// Callbacks a second that come in meanwhile: the goal's.
const LIVE_PER_SECOND: u32 = 1_000;
/// For so long they do; longer than any reading takes.
const LIVE: Duration = Duration::from_secs(60);
/// More than that many never come in one round.
pub const LIVE_COUNT_MAX: u64 = 1_000_000;
/// Connections that carry them.
const LIVE_CONNECTIONS: usize = 16;

const ORDERED: Who = Who {
    name: "JetStream",
    settings: "file storage, sync_interval: always; an ordered push consumer of async-nats",
};

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let count = bench.either(1_000_000, 100_000);
    let title = format!(
        "catch-up of one subscription with {count} events, {LIVE_PER_SECOND} more a second"
    );
    let mut table = Table::new(title, "events/s", Better::More).goal(500_000.0);
    eprintln!("catch-up: {count} events into each log");
    let mut brokers = Vec::new();
    for (who, build) in blobcast::builds(bench) {
        let front = blobcast::start(&build, &[]).await?;
        load::fill(front.ingest, INGEST_CONNECTIONS, PRODUCT, count).await?;
        brokers.push((who, front));
    }
    let peer = match bench.beside {
        None => Some(jetstream(bench, count).await?),
        Some(_) => None,
    };
    for (place, round) in bench.rounds("catch-up").enumerate() {
        let reading = Reading {
            first_live: count + place as u64 * LIVE_COUNT_MAX,
            count,
        };
        for (who, front) in &brokers {
            table.add(round.turn(*who), reading.on_blobcast(front).await?);
        }
        if let Some((nats, handler)) = &peer {
            table.add(
                round.turn(ORDERED),
                reading.on_jetstream(nats, handler).await?,
            );
        }
    }
    Ok(vec![table])
}

/// JetStream with so many messages, and a handler before it.
async fn jetstream(bench: &Bench, count: u64) -> Result<(Nats, Front)> {
    let mut nats = Nats::start(bench, Some(Sync::Default)).await?;
    nats.fill(count).await?;
    nats.process.terminate()?;
    nats.restart(bench, Sync::Always).await?;
    let handler = Front::own(&["handler", &nats.url]).await?;
    Ok((nats, handler))
}

/// A reading of `count` events, and what comes in meanwhile.
#[derive(Clone, Copy)]
pub struct Reading {
    /// Number of the first task that comes in meanwhile.
    pub first_live: u64,
    /// Events that are there.
    pub count: u64,
}

impl Reading {
    /// From a broker.
    pub async fn on_blobcast(self, front: &Front) -> Result<Sample> {
        let _live = self.live(front.ingest);
        let received = counters(1);
        let counted = Arc::clone(&received);
        let from_the_beginning = Start::Position(StartPosition::Earliest.into());
        let request = |_| SubscribeRequest {
            start: Some(from_the_beginning.clone()),
            ..blobcast::of_product(PRODUCT)
        };
        let meter = Meter::start(&[&front.process], &[])?;
        // It returns when the stream has caught up; what has come live until then is read, too.
        let seats = Seats::new(front.grpc, 1, 1);
        let _subscriber =
            Subscribers::open(seats, request, move |_, _: &[u8]| counted[0].count()).await?;
        self.sample(&meter, total(&received))
    }

    async fn on_jetstream(self, nats: &Nats, handler: &Front) -> Result<Sample> {
        let _live = self.live(handler.ingest);
        let meter = Meter::start(&[&nats.process, &handler.process], &[])?;
        let mut messages = nats::read_all(&nats.client().await?).await?;
        let mut received = 0;
        while received < self.count {
            messages.next().await.context("the consumer has ended")??;
            received += 1;
        }
        self.sample(&meter, received)
    }

    fn live(self, ingest: SocketAddr) -> JoinSet<Result<()>> {
        let schedule = Schedule::new(self.first_live, LIVE_PER_SECOND, LIVE);
        let mut live = JoinSet::new();
        live.spawn(send_on_schedule(
            ingest,
            LIVE_CONNECTIONS,
            PRODUCT,
            schedule,
        ));
        live
    }

    fn sample(self, meter: &Meter, received: u64) -> Result<Sample> {
        ensure!(
            received >= self.count,
            "{received} events of {} have come",
            self.count
        );
        let cost = meter.read()?;
        Ok(Sample {
            value: received as f64 / cost.seconds,
            cost,
        })
    }
}
