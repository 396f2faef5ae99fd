//! How costs grow with the log, up to ten million events: its start, its reading from the beginning, a task and pages out of it,
//! and ingest; at the end also while the oldest events are forgotten.

use std::{fmt::Debug, time::Instant};

use anyhow::{Result, ensure};
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use super::{
    catch_up::{LIVE_COUNT_MAX, Reading},
    restart::{KEEP_ALL, timed},
};
use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    harness::Cost,
    load::{self, Load, Supply, task_id},
    peers::{
        blobcast::{self, BLOBCAST},
        front::Front,
    },
    report::{Better, Sample, Table, Who},
    statistics::Spread,
    subscribers,
    wire::{GetTaskRequest, GetTaskResponse, ListEventsRequest, ListEventsResponse, Order},
};

/// Half of the log has to go, and each event of more than 1 KB with its body.
const KEPT_BYTES_EACH: u64 = 500;
/// Calls of which the middle one is taken.
const CALLS: usize = 101;
const PAGE_SIZE: i32 = 100;
const GET_TASK_PATH: &str = "/blobcast.v1.EventService/GetTask";
const LIST_EVENTS_PATH: &str = "/blobcast.v1.EventService/ListEvents";

/// Tasks whose callbacks do not belong to the log's size, numbered beyond all others.
const FIRST_OTHERS: u64 = 500_000_000_000;
/// More than that many never come in one measurement of ingest.
const INGEST_COUNT_MAX: u64 = 10_000_000;

const TRIMMING: Who = Who {
    name: "trimming the largest",
    ..BLOBCAST
};

/// Sizes of the log, and what they are called.
const SIZES: [(u64, Who); 4] = [
    (
        10_000,
        Who {
            name: "10,000 events",
            ..BLOBCAST
        },
    ),
    (
        100_000,
        Who {
            name: "100,000 events",
            ..BLOBCAST
        },
    ),
    (
        1_000_000,
        Who {
            name: "1,000,000 events",
            ..BLOBCAST
        },
    ),
    (
        10_000_000,
        Who {
            name: "10,000,000 events",
            ..BLOBCAST
        },
    ),
];
const SIZES_SHORT: usize = 2;

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let table = |title: &str, unit, better| {
        Table::new(format!("by size of the log: {title}"), unit, better)
    };
    let mut start = table("start after kill -9", "s", Better::Less);
    let mut reading = table("one subscription reads all", "events/s", Better::More);
    let mut get_task = table("GetTask in the middle", "ms", Better::Less);
    let mut oldest = table("ListEvents, the oldest 100", "ms", Better::Less);
    let mut newest = table("ListEvents, the newest 100", "ms", Better::Less);
    let mut ingest = table("ingest", "callbacks/s", Better::More);
    let mut broker = blobcast::start(bench, &KEEP_ALL).await?;
    let supply = Supply::up_to(0);
    let (mut others, mut kept) = (FIRST_OTHERS, 0);
    for (count, size) in &SIZES[..bench.either(SIZES.len(), SIZES_SHORT)] {
        eprintln!("scale-log: {}", size.name);
        load::fill_from(broker.ingest, INGEST_CONNECTIONS, PRODUCT, &supply, *count).await?;
        for round in bench.rounds("scale-log") {
            broker.process.kill()?;
            start.add(
                round.turn(*size),
                timed(broker.restart(bench, &KEEP_ALL)).await?,
            );
            reading.add(
                *size,
                Reading {
                    first_live: others,
                    count: *count,
                }
                .on_blobcast(&broker)
                .await?,
            );
            others += LIVE_COUNT_MAX;
            let caller = Caller(subscribers::connect(broker.grpc).await?);
            get_task.add(*size, caller.get_task(count / 2).await?);
            oldest.add(*size, caller.list_events(Order::OldestFirst).await?);
            newest.add(*size, caller.list_events(Order::NewestFirst).await?);
            ingest.add(*size, rate(bench, &broker, others).await?);
            others += INGEST_COUNT_MAX;
        }
        kept = *count;
    }
    // Once: what is forgotten cannot be forgotten again.
    broker.process.terminate()?;
    broker
        .restart(
            bench,
            &[(
                "log.retention_bytes_max",
                &(kept * KEPT_BYTES_EACH).to_string(),
            )],
        )
        .await?;
    ingest.add(TRIMMING, rate(bench, &broker, others).await?);
    Ok(vec![start, reading, get_task, oldest, newest, ingest])
}

async fn rate(bench: &Bench, broker: &Front, first: u64) -> Result<Sample> {
    let load = Load::start(
        broker.ingest,
        INGEST_CONNECTIONS,
        PRODUCT,
        &Supply::from(first),
    )
    .await?;
    bench
        .rate(&[&broker.process], &[], || load.answered())
        .await
}

struct Caller(Channel);

impl Caller {
    async fn get_task(&self, number: u64) -> Result<Sample> {
        let request = GetTaskRequest {
            task_id: task_id(number),
            ..GetTaskRequest::default()
        };
        self.timed(GET_TASK_PATH, request, |response: &GetTaskResponse| {
            response.events.len() == 1
        })
        .await
    }

    async fn list_events(&self, order: Order) -> Result<Sample> {
        let request = ListEventsRequest {
            page_size: PAGE_SIZE,
            order: order.into(),
            ..ListEventsRequest::default()
        };
        let is_full = |response: &ListEventsResponse| response.events.len() == PAGE_SIZE as usize;
        self.timed(LIST_EVENTS_PATH, request, is_full).await
    }

    /// The middle of many calls.
    async fn timed<Q, R>(
        &self,
        path: &'static str,
        request: Q,
        is_right: impl Fn(&R) -> bool,
    ) -> Result<Sample>
    where
        Q: prost::Message + Clone + 'static,
        R: prost::Message + Debug + Default + 'static,
    {
        let begun = Instant::now();
        let mut millis = Vec::new();
        for _ in 0..CALLS {
            let mut client = Grpc::new(self.0.clone());
            client.ready().await?;
            let called = Instant::now();
            let codec = ProstCodec::<Q, R>::default();
            let response = client
                .unary(
                    Request::new(request.clone()),
                    PathAndQuery::from_static(path),
                    codec,
                )
                .await?;
            millis.push(called.elapsed().as_secs_f64() * 1_000.0);
            ensure!(
                is_right(response.get_ref()),
                "{path} answers {:?}",
                response.get_ref()
            );
        }
        let value = Spread::of(millis).map_or(0.0, |spread| spread.median);
        Ok(Sample {
            value,
            cost: Cost {
                seconds: begun.elapsed().as_secs_f64(),
                ..Cost::default()
            },
        })
    }
}
