//! The worst legal case for memory: a thousand streams that begin at the start of a log of 1 MB events, all read to the end at
//! full speed, or none of them read at all. The server has just started, so that its ring has none of the events. What counts is
//! the most memory that it ever had.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::{
    bench::{Bench, PRODUCT},
    harness::{Meter, peak_bytes},
    load::send_large,
    peers::blobcast::{self, BLOBCAST},
    report::{Better, Sample, Table},
    subscribers::{Seats, Subscribers},
    wire::{StartPosition, SubscribeRequest, subscribe_request::Start},
};

const STREAMS: usize = 1_000;
const STREAMS_SHORT: usize = 200;
const CONNECTIONS: usize = 10;
/// Events of 1 MB in the log, which has twice that of each: the body is kept, too. The first one that each stream reads is several
/// times what there is memory for; the next ones show that it stays so.
const EVENTS: u64 = 8;
const PROMPT_BYTES: usize = 1_000_000;
/// `grpc.reading_bytes_max`, and 256 MiB for everything else.
const BYTES_MAX: f64 = (512 + 256) as f64 * 1024.0 * 1024.0;
/// How long nothing is read: all streams have begun long before.
const UNREAD: Duration = Duration::from_secs(10);

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let table = |how| {
        let title = format!(
            "most memory of the server with {} streams over 1 MB events, {how}",
            streams(bench)
        );
        Table::new(title, "bytes", Better::Less).goal(BYTES_MAX)
    };
    let (mut read, mut unread) = (table("read"), table("unread"));
    for round in bench.rounds("worst-case-memory") {
        read.add(round.turn(BLOBCAST), of_streams(bench, true).await?);
        unread.add(round.turn(BLOBCAST), of_streams(bench, false).await?);
    }
    Ok(vec![read, unread])
}

fn streams(bench: &Bench) -> usize {
    bench.either(STREAMS, STREAMS_SHORT)
}

async fn of_streams(bench: &Bench, is_read: bool) -> Result<Sample> {
    let mut front = blobcast::start(bench, &[]).await?;
    send_large(front.ingest, PRODUCT, EVENTS, PROMPT_BYTES).await?;
    front.process.terminate()?;
    front.restart(bench, &[]).await?;
    let meter = Meter::start(&[&front.process], &[])?;
    let each = streams(bench) / CONNECTIONS;
    let (per_connection, stalled_per_connection) = if is_read { (each, 0) } else { (0, each) };
    let seats = Seats {
        stalled_per_connection,
        ..Seats::new(front.grpc, CONNECTIONS, per_connection)
    };
    // Opening waits until those that are read have read all of the log.
    let _subscribers = Subscribers::open(seats, |_| from_the_start(), |_, _| {}).await?;
    if !is_read {
        sleep(UNREAD).await;
    }
    Ok(Sample {
        value: peak_bytes(&front.process)? as f64,
        cost: meter.read()?,
    })
}

fn from_the_start() -> SubscribeRequest {
    let start = Some(Start::Position(StartPosition::Earliest.into()));
    SubscribeRequest {
        start,
        include_raw: true,
        ..SubscribeRequest::default()
    }
}
