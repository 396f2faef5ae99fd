//! How many deliveries a second: events of one product to ten connections with ten subscriptions each, which count them.
//!
//! Callbacks come as fast as the slowest subscription follows, so that nobody drops events or goes back to its log.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    task::JoinSet,
    time::{Duration, sleep},
};

use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    counters::{counters, slowest, total},
    load::{self, Load, Window},
    peers::{
        blobcast,
        broadcast::BROADCAST,
        etcd::{Etcd, Putter, WATCH, Watches},
        front::Front,
        loopback::{self, LOOPBACK},
        nats::{self, CORE, Nats},
    },
    report::{Better, Sample, Table},
    subscribers::{Seats, Subscribers},
};

const CONNECTIONS: usize = 10;
const PER_CONNECTION: usize = 10;
/// Of each message: whether it is compressed, and its length.
const GRPC_HEADER_BYTES: u64 = 5;

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let mut table = Table::new("fan-out to 100 subscriptions", "deliveries/s", Better::More)
        .goal_against(CORE, 1.5)
        .goal_against(LOOPBACK, 0.5);
    for round in bench.rounds("fan-out") {
        let mut bytes = 0;
        for (who, build) in blobcast::builds(bench) {
            let who = round.turn(who);
            let broker = blobcast::start(&build, &[]).await?;
            bytes = delivery_bytes(&broker).await?;
            table.add(who, of_front(bench, broker).await?);
        }
        if bench.beside.is_some() {
            continue;
        }
        table.add(round.turn(CORE), of_nats(bench).await?);
        table.add(
            round.turn(BROADCAST),
            of_front(bench, Front::own(&["broadcast"]).await?).await?,
        );
        if let Some(etcd) = Etcd::start(bench).await? {
            table.add(round.turn(WATCH), of_etcd(bench, &etcd).await?);
        }
        table.add(round.turn(LOOPBACK), of_loopback(bench, bytes).await?);
    }
    Ok(vec![table])
}

async fn of_front(bench: &Bench, front: Front) -> Result<Sample> {
    of_seats(
        bench,
        &front,
        Seats::new(front.grpc, CONNECTIONS, PER_CONNECTION),
    )
    .await
}

/// Bytes of one delivery: the message, and its gRPC header. HTTP/2's headers are left out, because a frame may hold many.
async fn delivery_bytes(broker: &Front) -> Result<u64> {
    let largest = Arc::<AtomicU64>::default();
    let seen = Arc::clone(&largest);
    let look = move |_, message: &[u8]| {
        seen.fetch_max(message.len() as u64, Ordering::Relaxed);
    };
    let seats = Seats::new(broker.grpc, 1, 1);
    let _subscriber = Subscribers::open(seats, |_| blobcast::of_product(PRODUCT), look).await?;

    load::send_each(broker.ingest, PRODUCT, [0]).await?;
    while largest.load(Ordering::Relaxed) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    Ok(largest.load(Ordering::Relaxed) + GRPC_HEADER_BYTES)
}

async fn of_loopback(bench: &Bench, delivery_bytes: u64) -> Result<Sample> {
    let server = Front::own(&["loopback"]).await?;
    let received = counters(CONNECTIONS);
    let _readers = loopback::read(server.ingest, &received).await?;
    bench
        .rate(&[&server.process], &[], || {
            Ok(total(&received) / delivery_bytes)
        })
        .await
}

/// Deliveries to these seats; also for the goal about slow neighbours.
pub async fn of_seats(bench: &Bench, front: &Front, seats: Seats) -> Result<Sample> {
    let received = counters(seats.count());
    let counted = Arc::clone(&received);
    let count = move |number: usize, _event: &[u8]| counted[number].count();
    let _subscribers = Subscribers::open(seats, |_| blobcast::of_product(PRODUCT), count).await?;
    let window = Window::ahead_of(&received);
    let load = Load::start(front.ingest, INGEST_CONNECTIONS, PRODUCT, &window.supply).await?;
    bench
        .rate(&[&front.process], &[], || {
            load.answered().map(|_| total(&received))
        })
        .await
}

async fn of_nats(bench: &Bench) -> Result<Sample> {
    let nats = Nats::start(bench, None).await?;
    let received = counters(CONNECTIONS * PER_CONNECTION);
    let mut tasks = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let client = nats.client().await?;
        for place in 0..PER_CONNECTION {
            let (received, number) = (Arc::clone(&received), connection * PER_CONNECTION + place);
            let mut subscriber = client.subscribe(nats::subject(PRODUCT)).await?;
            tasks.spawn(async move {
                while subscriber.next().await.is_some() {
                    received[number].count();
                }
            });
        }
    }
    // A subscription has no answer: they are all there when all have had an event.
    let (publisher, payload) = (nats.client().await?, Bytes::from(load::body(0)));
    while slowest(&received) == 0 {
        publisher
            .publish(nats::subject(PRODUCT), payload.clone())
            .await?;
        sleep(Duration::from_millis(1)).await;
    }
    let window = Window::ahead_of(&received);
    let supply = Arc::clone(&window.supply);
    tasks.spawn(async move {
        let subject = async_nats::Subject::from(nats::subject(PRODUCT));
        loop {
            supply.take().await;
            if publisher
                .publish(subject.clone(), payload.clone())
                .await
                .is_err()
            {
                return;
            }
        }
    });
    bench
        .rate(&[&nats.process], &[], || Ok(total(&received)))
        .await
}

async fn of_etcd(bench: &Bench, etcd: &Etcd) -> Result<Sample> {
    let received = counters(CONNECTIONS * PER_CONNECTION);
    let key = |_| PRODUCT.to_owned();
    let _watches = Watches::open(etcd.address, CONNECTIONS, PER_CONNECTION, key, &received).await?;
    let window = Window::ahead_of(&received);
    let mut tasks = JoinSet::new();
    for _ in 0..INGEST_CONNECTIONS {
        let (putter, supply) = (
            Putter::connect(etcd.address).await?,
            Arc::clone(&window.supply),
        );
        tasks.spawn(async move {
            loop {
                let value = load::body(supply.take().await).into();
                if putter.put(PRODUCT.to_owned(), value).await.is_err() {
                    return;
                }
            }
        });
    }
    bench
        .rate(&[&etcd.process], &[], || Ok(total(&received)))
        .await
}
