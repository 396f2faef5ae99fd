//! What a cluster costs: callbacks a second, the way to a subscription at another node, and how fast an empty node catches up.
//!
//! The limit is what its NATS servers give on the same machine, with nothing else done: frames as a node writes them, and a message
//! for each callback. Three nodes make three copies of everything, so on one machine they cannot reach what one node does.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::StreamExt;
use tokio::task::JoinSet;

use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    counters::{counters, total},
    goals::latency::Watch,
    harness::{Cost, Meter, Process},
    load::{self, Load, Supply, send_on_schedule},
    peers::{
        blobcast,
        cluster::{
            FRAMES, MESSAGES, Node, ONE_NODE, Servers, THREE_NODES, publish, publish_frames,
            publish_on_schedule,
        },
    },
    report::{Better, Sample, Table, Who},
    statistics::{Latencies, percentile_millis},
    subscribers::{Seats, Subscribers},
};

/// Connections that fill a frame while another one is out.
const MANY_CONNECTIONS: usize = 512;
/// Callbacks a second of the way to another node.
const PER_SECOND: u32 = 1_000;
const TAIL: f64 = 99.0;
const PERCENTILES: [f64; 2] = [50.0, TAIL];

const ANOTHER_NODE: Who = Who {
    name: "blobcast",
    settings: "three nodes; callbacks are posted to one of them, and the subscription is at another",
};
const PUSH_CONSUMER: Who = Who {
    name: "JetStream",
    settings: "the same servers; messages are published at one of them, and a push consumer without acknowledgements is at another",
};
const JOINING: Who = Who {
    name: "blobcast",
    settings: "an empty node reads the whole stream into its log; from its start until it is ready",
};

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let ingest = |connections, nodes| {
        let title = format!("cluster: durable ingest by {nodes}, on {connections} connections");
        Table::new(title, "callbacks/s", Better::More)
    };
    let mut full = ingest(MANY_CONNECTIONS, "one node").goal_against(FRAMES, 0.6);
    let mut spread = ingest(MANY_CONNECTIONS, "three nodes").goal_against(FRAMES, 0.3);
    let mut few = ingest(INGEST_CONNECTIONS, "one node").goal_against(MESSAGES, 1.3);
    let mut elsewhere = PERCENTILES.map(|percent| {
        let title = format!(
            "cluster, {PER_SECOND} callbacks/s: p{percent} from callback to event at another node"
        );
        let table = Table::new(title, "ms", Better::Less);
        if percent == TAIL {
            table.goal_against(PUSH_CONSUMER, 2.0)
        } else {
            table
        }
    });
    let mut joining =
        Table::new("cluster: an empty node joins", "events/s", Better::More).goal(500_000.0);

    for round in bench.rounds("cluster") {
        let who = round.turn(ONE_NODE);
        let (sample, bytes_each) = of_nodes(bench, 1, MANY_CONNECTIONS).await?;
        full.add(who, sample);
        let who = round.turn(THREE_NODES);
        spread.add(who, of_nodes(bench, 3, MANY_CONNECTIONS).await?.0);
        let who = round.turn(FRAMES);
        let sample = of_frames(bench, bytes_each).await?;
        full.add(who, sample);
        spread.add(who, sample);

        let who = round.turn(ONE_NODE);
        few.add(who, of_nodes(bench, 1, INGEST_CONNECTIONS).await?.0);
        few.add(round.turn(MESSAGES), of_messages(bench).await?);

        let who = round.turn(ANOTHER_NODE);
        add(&mut elsewhere, who, &to_another_node(bench).await?);
        let who = round.turn(PUSH_CONSUMER);
        add(&mut elsewhere, who, &to_a_consumer(bench).await?);

        joining.add(round.turn(JOINING), of_joining(bench).await?);
    }
    let mut tables = vec![full, spread, few];
    tables.extend(elsewhere);
    tables.push(joining);
    Ok(tables)
}

fn add(tables: &mut [Table], who: Who, (latencies, cost): &(Latencies, Cost)) {
    let total = latencies.total();
    for (table, percent) in tables.iter_mut().zip(PERCENTILES) {
        let value = percentile_millis(&total, percent);
        table.add(who, Sample { value, cost: *cost });
    }
}

async fn nodes_of(bench: &Bench, servers: &Servers, count: usize) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"].iter().take(count) {
        nodes.push(servers.node(bench, name).await?);
    }
    Ok(nodes)
}

fn processes<'a>(servers: &'a Servers, nodes: &'a [Node]) -> Vec<&'a Process> {
    let nodes = nodes.iter().map(|node| &node.front.process);
    servers.processes.iter().chain(nodes).collect()
}

/// The rate of so many nodes, and the bytes that a callback takes in their stream.
async fn of_nodes(bench: &Bench, count: usize, connections: usize) -> Result<(Sample, u64)> {
    let servers = Servers::start(bench).await?;
    let nodes = nodes_of(bench, &servers, count).await?;
    let (mut loads, supply) = (Vec::new(), Supply::unlimited());
    for node in &nodes {
        let ingest = node.front.ingest;
        loads.push(Load::start(ingest, connections / count, PRODUCT, &supply).await?);
    }
    let answered = || loads.iter().map(Load::answered).sum::<Result<u64>>();
    let sample = bench
        .rate(&processes(&servers, &nodes), &[], answered)
        .await?;
    let callbacks = answered()?;
    Ok((sample, servers.bytes_of_nodes().await? / callbacks))
}

async fn of_frames(bench: &Bench, bytes_each: u64) -> Result<Sample> {
    let servers = Servers::start(bench).await?;
    let mut stream = servers.stream().await?;
    let last = stream.info().await?.state.last_sequence;
    let (acknowledged, mut tasks) = (counters(1), JoinSet::new());
    let counted = Arc::clone(&acknowledged);
    let context = servers.context(0).await?;
    tasks.spawn(publish_frames(context, last, bytes_each, move |count| {
        counted[0].add(count);
    }));
    rate_while(bench, &servers, tasks, || total(&acknowledged)).await
}

async fn of_messages(bench: &Bench) -> Result<Sample> {
    let servers = Servers::start(bench).await?;
    servers.stream().await?;
    let context = servers.context(0).await?;
    let (acknowledged, supply) = (counters(INGEST_CONNECTIONS), Supply::unlimited());
    let mut tasks = JoinSet::new();
    for number in 0..INGEST_CONNECTIONS {
        let (context, supply) = (context.clone(), Arc::clone(&supply));
        let acknowledged = Arc::clone(&acknowledged);
        tasks.spawn(async move {
            loop {
                publish(&context, supply.take().await).await?;
                acknowledged[number].count();
            }
        });
    }
    rate_while(bench, &servers, tasks, || total(&acknowledged)).await
}

/// The rate of tasks that end by an error alone.
async fn rate_while(
    bench: &Bench,
    servers: &Servers,
    mut tasks: JoinSet<Result<()>>,
    count: impl Fn() -> u64,
) -> Result<Sample> {
    let sample = bench
        .rate(&processes(servers, &[]), &[], || Ok(count()))
        .await?;
    match tasks.try_join_next() {
        Some(ended) => ended?.context("JetStream has refused a message")?,
        None => return Ok(sample),
    }
    Ok(sample)
}

async fn to_another_node(bench: &Bench) -> Result<(Latencies, Cost)> {
    let servers = Servers::start(bench).await?;
    let nodes = nodes_of(bench, &servers, 3).await?;
    let watch = Watch::of(1);
    let seen = watch.clone();
    let seats = Seats::new(nodes[1].front.grpc, 1, 1);
    let on_event = move |number: usize, event: &[u8]| seen.saw(number, event);
    let _subscriber = Subscribers::open(seats, |_| blobcast::of_product(PRODUCT), on_event).await?;
    let ingest = nodes[0].front.ingest;
    watch
        .measure(
            bench,
            PER_SECOND,
            &processes(&servers, &nodes),
            |schedule| send_on_schedule(ingest, INGEST_CONNECTIONS, PRODUCT, schedule),
        )
        .await
}

async fn to_a_consumer(bench: &Bench) -> Result<(Latencies, Cost)> {
    let servers = Servers::start(bench).await?;
    servers.stream().await?;
    let (watch, mut tasks) = (Watch::of(1), JoinSet::new());
    let seen = watch.clone();
    let mut messages = servers.follow(1).await?;
    tasks.spawn(async move {
        while let Some(message) = messages.next().await {
            seen.saw(0, &message.payload);
        }
    });
    let context = servers.context(0).await?;
    watch
        .measure(bench, PER_SECOND, &processes(&servers, &[]), |schedule| {
            publish_on_schedule(context, schedule)
        })
        .await
}

/// A node that finds a log of others.
async fn of_joining(bench: &Bench) -> Result<Sample> {
    let servers = Servers::start(bench).await?;
    let nodes = nodes_of(bench, &servers, 1).await?;
    let count = bench.either(500_000, 50_000);
    load::fill(nodes[0].front.ingest, MANY_CONNECTIONS, PRODUCT, count).await?;
    let meter = Meter::start(&processes(&servers, &nodes), &[])?;
    let joined = servers.node(bench, "b").await?;
    let cost = meter.read()?;
    Ok(Sample {
        value: count as f64 / joined.ready_after.as_secs_f64(),
        cost,
    })
}
