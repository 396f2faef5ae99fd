//! How long it takes to find one event by a rare filter in a large log: pages of `ListEvents` up to the first with an event, and a
//! subscription from the beginning until it has caught up. Each event has a label of its own.

use std::time::Instant;

use anyhow::{Result, ensure};
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use super::restart::KEEP_ALL;
use crate::{
    bench::{Bench, INGEST_CONNECTIONS, PRODUCT},
    harness::Cost,
    load::{self, task_id},
    peers::{blobcast, front::Front},
    report::{Better, Sample, Table, Who},
    subscribers::{self, Seats, Subscribers},
    wire::{
        Filter, ListEventsRequest, ListEventsResponse, Order, StartPosition, SubscribeRequest,
        TaskStatus, subscribe_request::Start,
    },
};

const LIST_EVENTS_PATH: &str = "/blobcast.v1.EventService/ListEvents";
const LABEL: &str = "ref";
/// Of one event, in the middle of the log.
const RARE_PRODUCT: &str = "sora";
/// Between the events that two rounds look for, so that no round finds what the one before has read.
const STRIDE: u64 = 40_009;
/// The goals, for a full log of 10 GiB.
const PAGE_MS_MAX: f64 = 100.0;
const CAUGHT_UP_MS_MAX: f64 = 1_000.0;

/// See the file's description.
pub async fn run(bench: &Bench) -> Result<Vec<Table>> {
    let count = bench.either(2_000_000, 100_000);
    let table = |what: &str, goal: f64| {
        let title = format!("rare filter in a log of {count} events: {what}");
        Table::new(title, "ms", Better::Less).goal(goal)
    };
    let mut pages = [
        table("page with a label's event, newest first", PAGE_MS_MAX),
        table("page with a label's event, oldest first", PAGE_MS_MAX),
        table("page with a product's event, newest first", PAGE_MS_MAX),
        table("pages of a status that no event has", PAGE_MS_MAX),
    ];
    let mut caught_up = table(
        "subscription from the beginning by label, to caught_up",
        CAUGHT_UP_MS_MAX,
    );
    let mut brokers = Vec::new();
    for (who, build) in blobcast::builds(bench) {
        eprintln!("rare-filter: {count} events into the log of {}", who.name);
        brokers.push((who, filled(&build, count).await?));
    }
    for (place, round) in bench.rounds("rare-filter").enumerate() {
        let rare = count / 2 + place as u64 * STRIDE % (count / 4);
        let filters = [
            (of_label(rare), Order::NewestFirst, 1),
            (of_label(rare + 1), Order::OldestFirst, 1),
            (of_rare_product(), Order::NewestFirst, 1),
            (of_no_status(), Order::NewestFirst, 0),
        ];
        for (who, broker) in &brokers {
            let who = round.turn(*who);
            for (table, (filter, order, events)) in pages.iter_mut().zip(filters.clone()) {
                let caller = Caller(subscribers::connect(broker.grpc).await?);
                add(table, who, caller.find(filter, order, events)).await?;
            }
            let reading = read_all(broker, of_label(rare + 2));
            add(&mut caught_up, who, reading).await?;
        }
    }
    Ok(pages.into_iter().chain([caught_up]).collect())
}

/// A broker with a log of so many events, and none of them in memory.
async fn filled(bench: &Bench, count: u64) -> Result<Front> {
    let mut broker = blobcast::start(bench, &KEEP_ALL).await?;
    // The task's number is put into the URL, too.
    let labelled = format!("{PRODUCT}?{LABEL}={}", task_id(0));
    let supply = load::Supply::up_to(0);
    let fill =
        |count| load::fill_from(broker.ingest, INGEST_CONNECTIONS, &labelled, &supply, count);
    fill(count / 2).await?;
    load::send_each(broker.ingest, RARE_PRODUCT, [count]).await?;
    fill(count).await?;
    broker.process.terminate()?;
    broker.restart(bench, &KEEP_ALL).await?;
    Ok(broker)
}

fn of_label(number: u64) -> Filter {
    Filter {
        labels: [(LABEL.to_owned(), task_id(number))].into(),
        ..Filter::default()
    }
}

fn of_rare_product() -> Filter {
    Filter {
        products: vec![RARE_PRODUCT.to_owned()],
        ..Filter::default()
    }
}

fn of_no_status() -> Filter {
    Filter {
        statuses: vec![TaskStatus::Failed.into()],
        ..Filter::default()
    }
}

async fn add(table: &mut Table, who: Who, work: impl Future<Output = Result<()>>) -> Result<()> {
    let begun = Instant::now();
    work.await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cost = Cost {
        seconds,
        ..Cost::default()
    };
    table.add(
        who,
        Sample {
            value: seconds * 1_000.0,
            cost,
        },
    );
    Ok(())
}

async fn read_all(broker: &Front, filter: Filter) -> Result<()> {
    let request = |_| SubscribeRequest {
        filter: Some(filter.clone()),
        start: Some(Start::Position(StartPosition::Earliest.into())),
        ..SubscribeRequest::default()
    };
    // It returns when the stream has caught up.
    Subscribers::open(Seats::new(broker.grpc, 1, 1), request, |_, _: &[u8]| ()).await?;
    Ok(())
}

struct Caller(Channel);

impl Caller {
    /// Asks for pages until one has an event, or there are no more.
    async fn find(&self, filter: Filter, order: Order, expected: usize) -> Result<()> {
        let mut request = ListEventsRequest {
            filter: Some(filter),
            order: order.into(),
            ..ListEventsRequest::default()
        };
        loop {
            let mut client = Grpc::new(self.0.clone());
            client.ready().await?;
            let codec = ProstCodec::<ListEventsRequest, ListEventsResponse>::default();
            let path = PathAndQuery::from_static(LIST_EVENTS_PATH);
            let called = client.unary(Request::new(request.clone()), path, codec);
            let page = called.await?.into_inner();
            if !page.events.is_empty() || page.next_page_token.is_empty() {
                let found = page.events.len();
                ensure!(found == expected, "{found} events of {request:?}");
                return Ok(());
            }
            request.page_token = page.next_page_token;
        }
    }
}
