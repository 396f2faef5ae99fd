//! How long from when a callback is due until its event is in the hands of each subscription, at a fixed rate.
//!
//! The other side is what most people would write: a handler that publishes to JetStream, as durable as the broker, and a push
//! consumer for each subscription.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::StreamExt;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    counters::{Counters, counters, total},
    harness::{Cost, Meter, Process},
    load::{Schedule, send_on_schedule, task_number},
    peers::{
        blobcast,
        front::Front,
        nats::{self, HANDLER, Nats, Sync},
    },
    report::{Better, Sample, Table, Who},
    statistics::{Latencies, percentile_millis},
    subscribers::{Seats, Subscribers},
};

/// Subscriptions, and callbacks a second: what either side can take on two cores.
const SIZES: [(usize, u32); 3] = [(1, 1_000), (100, 100), (1_000, 50)];
const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];
/// Subscriptions share so many connections.
const CONNECTIONS_MAX: usize = 10;
/// The first events find cold caches and connections that were never used.
const WARM_UP_EVENTS: u64 = 20;
/// Percentiles far out need many samples, so this runs as many times longer than a rate is measured.
const DURATIONS: u32 = 2;
/// After the last callback was answered, time for its deliveries.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for (subscriptions, per_second) in SIZES {
        let mut of_size = PERCENTILES.map(|percent| {
            let title =
                format!("{subscriptions} subscriptions, {per_second} callbacks/s: p{percent} from callback to event");
            Table::new(title, "ms", Better::Less).goal_against(HANDLER, 1.0)
        });
        let load = Open {
            subscriptions,
            per_second,
        };
        for round in bench.rounds("latency") {
            for (who, build) in blobcast::builds(bench) {
                let who = round.turn(who);
                add(&mut of_size, who, &load.on_blobcast(&build).await?);
            }
            if bench.beside.is_some() {
                continue;
            }
            add(
                &mut of_size,
                round.turn(HANDLER),
                &load.on_jetstream(bench).await?,
            );
        }
        tables.extend(of_size);
    }
    Ok(tables)
}

fn add(tables: &mut [Table], who: Who, (latencies, cost): &(Latencies, Cost)) {
    let total = latencies.total();
    for (table, percent) in tables.iter_mut().zip(PERCENTILES) {
        table.add(
            who,
            Sample {
                value: percentile_millis(&total, percent),
                cost: *cost,
            },
        );
    }
}

/// Posts each callback when it is due.
pub async fn send_to(ingest: SocketAddr, schedule: Schedule) -> Result<()> {
    send_on_schedule(ingest, INGEST_CONNECTIONS, PRODUCT, schedule).await
}

/// A load that waits for nobody.
#[derive(Clone, Copy)]
struct Open {
    subscriptions: usize,
    per_second: u32,
}

impl Open {
    async fn on_blobcast(self, bench: &Bench) -> Result<(Latencies, Cost)> {
        let front = blobcast::start(bench, &[]).await?;
        let connections = self.subscriptions.min(CONNECTIONS_MAX);
        let seats = Seats::new(front.grpc, connections, self.subscriptions / connections);
        let watch = Watch::of(self.subscriptions);
        let seen = watch.clone();
        let on_event = move |number: usize, event: &[u8]| seen.saw(number, event);
        let _subscribers =
            Subscribers::open(seats, |_| blobcast::of_product(PRODUCT), on_event).await?;
        watch
            .measure(bench, self.per_second, &[&front.process], |schedule| {
                send_to(front.ingest, schedule)
            })
            .await
    }

    async fn on_jetstream(self, bench: &Bench) -> Result<(Latencies, Cost)> {
        let nats = Nats::start(bench, Some(Sync::Always)).await?;
        let front = Front::own(&["handler", &nats.url]).await?;
        let connections = self.subscriptions.min(CONNECTIONS_MAX);
        let (watch, mut tasks) = (Watch::of(self.subscriptions), JoinSet::new());
        for connection in 0..connections {
            let client = nats.client().await?;
            let stream = nats::stream(&nats::context(client.clone())).await?;
            for number in (connection..self.subscriptions).step_by(connections) {
                let mut messages = nats::follow(&client, &stream).await?;
                let seen = watch.clone();
                tasks.spawn(async move {
                    while let Some(message) = messages.next().await {
                        seen.saw(number, &message.payload);
                    }
                });
            }
        }
        watch
            .measure(
                bench,
                self.per_second,
                &[&front.process, &nats.process],
                |schedule| send_to(front.ingest, schedule),
            )
            .await
    }
}

/// What all subscriptions see, and when it was due.
#[derive(Clone)]
pub struct Watch {
    schedule: Arc<OnceLock<Schedule>>,
    latencies: Latencies,
    received: Counters,
}

impl Watch {
    /// Of so many subscriptions.
    pub fn of(subscriptions: usize) -> Self {
        Self {
            schedule: Arc::default(),
            latencies: Latencies::new(),
            received: counters(subscriptions),
        }
    }

    /// One of them has received an event.
    pub fn saw(&self, subscription: usize, event: &[u8]) {
        let now = Instant::now();
        self.received[subscription].count();
        if let (Some(schedule), Some(number)) = (self.schedule.get(), task_number(event))
            && number >= WARM_UP_EVENTS
        {
            self.latencies.record(
                subscription,
                now.saturating_duration_since(schedule.due(number)),
            );
        }
    }

    /// Has callbacks sent when they are due, and waits until every subscription has every event.
    pub async fn measure(
        self,
        bench: &Bench,
        per_second: u32,
        servers: &[&Process],
        send: impl AsyncFnOnce(Schedule) -> Result<()>,
    ) -> Result<(Latencies, Cost)> {
        let meter = Meter::start(servers, &[])?;
        let schedule = *self
            .schedule
            .get_or_init(|| Schedule::new(0, per_second, bench.measured() * DURATIONS));
        send(schedule).await?;
        let (deadline, due) = (
            Instant::now() + PATIENCE,
            schedule.numbers().end * self.received.len() as u64,
        );
        while total(&self.received) < due {
            ensure!(
                Instant::now() < deadline,
                "{} of {due} deliveries have come",
                total(&self.received)
            );
            sleep(Duration::from_millis(1)).await;
        }
        Ok((self.latencies, meter.read()?))
    }
}
