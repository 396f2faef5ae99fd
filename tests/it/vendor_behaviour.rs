//! The vendor's real behaviour: short time-outs, repetitions, wrong order, contradictions, broken
//! connections. Every acknowledged callback becomes exactly one event, and no information is lost.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use blobcast::{
    checker::{self, History, Stream, check},
    simulator::{
        ATTEMPTS_MAX, Acknowledgement, DeliveryOutcome, Plan, Vendor, VendorCallback,
        VendorDelivery, retry_gaps,
    },
    vendor::sample::{PRODUCTS, SampleStatus},
    wire::v1::{Event, SubscribeRequest, subscribe_request::Start},
};
use jiff::Timestamp;

use crate::support::{AsObserved, Options, Server, request, until, within};

const ENDS: [SampleStatus; 2] = [SampleStatus::Completed, SampleStatus::Failed];
/// The same tests with other dice.
const SEEDS: [u64; 3] = [1, 2, 3];

/// One callback for each of `count` tasks, taking products and statuses in turn.
fn callbacks(count: usize, statuses: &[SampleStatus]) -> Vec<VendorCallback> {
    let callback = |number: usize| {
        let product = PRODUCTS[number % PRODUCTS.len()];
        VendorCallback::sample(
            product,
            &format!("task-{number}"),
            statuses[number % statuses.len()],
            Timestamp::UNIX_EPOCH,
        )
    };
    (0..count).map(callback).collect()
}

/// Makes the deliveries, a few at a time.
async fn send(server: &Server, deliveries: Vec<VendorDelivery>) -> Vec<DeliveryOutcome> {
    let vendor = Vendor::new(
        format!("http://{}", server.ingest).parse().unwrap(),
        vec![],
        8,
    );
    let mut outcomes = Vec::new();
    let sent = vendor.send_each(deliveries, |outcome: &DeliveryOutcome| {
        outcomes.push(outcome.clone());
        Ok::<(), Infallible>(())
    });
    let Ok(()) = within("the vendor to have sent all", sent).await;
    outcomes
}

/// Every outcome, all of which must be 200.
fn all_received(outcomes: &[DeliveryOutcome]) -> Vec<Acknowledgement> {
    let acknowledged = |outcome: &DeliveryOutcome| {
        outcome
            .acknowledged()
            .filter(|acknowledged| acknowledged.http_status == 200)
    };
    outcomes
        .iter()
        .map(|outcome| acknowledged(outcome).unwrap_or_else(|| panic!("{outcome:?}")))
        .collect()
}

/// The log, if it keeps what was promised.
async fn judged(
    server: &Server,
    acknowledged: &[Acknowledgement],
    streams: Vec<Stream>,
) -> Vec<Event> {
    let events = server.log_of_events().await;
    let acknowledged = acknowledged
        .iter()
        .map(|acknowledged| checker::Acknowledged {
            event_id: acknowledged.event_id.clone().unwrap(),
            task_id: acknowledged.task_id.clone(),
        });
    let log = events.iter().map(AsObserved::observed).collect();
    assert_eq!(
        check(&History {
            acknowledged: acknowledged.collect(),
            log,
            streams,
            ..History::default()
        }),
        []
    );
    events
}

/// Each task's events are revisions 1, 2, …, and of its ends all but the first are marked.
fn assert_histories_are_consistent(events: &[Event]) {
    let mut tasks: HashMap<_, Vec<_>> = HashMap::new();
    for event in events {
        tasks
            .entry((&event.product, &event.task_id))
            .or_default()
            .push(event);
    }
    for (task, events) in tasks {
        let revisions: Vec<_> = events.iter().map(|event| event.revision as usize).collect();
        assert_eq!(
            revisions,
            (1..=events.len()).collect::<Vec<_>>(),
            "{task:?}"
        );
        let ends: Vec<_> = events
            .iter()
            .filter(|event| event.terminal)
            .map(|event| event.conflict)
            .collect();
        assert!(
            ends.iter()
                .enumerate()
                .all(|(place, conflict)| *conflict == (place > 0)),
            "{task:?}: {ends:?}"
        );
    }
}

#[tokio::test]
async fn repeated_and_reordered_callbacks_become_one_event_each() {
    for seed in SEEDS {
        let server = Server::start().await;
        let callbacks = callbacks(60, &SampleStatus::ALL);
        let plan = Plan {
            seed,
            duplicates: 2,
            reorder_span: 10,
            ..Plan::default()
        };
        let acknowledged = all_received(&send(&server, plan.deliveries(&callbacks)).await);
        let events = judged(&server, &acknowledged, vec![]).await;
        assert_eq!((acknowledged.len(), events.len()), (180, 60), "seed {seed}");
        assert_eq!(
            acknowledged
                .iter()
                .filter(|acknowledged| acknowledged.duplicate)
                .count(),
            120,
            "seed {seed}"
        );
        assert!(
            events
                .iter()
                .all(|event| event.revision == 1 && !event.conflict),
            "seed {seed}"
        );
    }
}

#[tokio::test]
async fn both_ends_of_a_contradicted_task_are_kept_and_the_later_one_is_marked() {
    for seed in SEEDS {
        let server = Server::start().await;
        let callbacks = callbacks(30, &ENDS);
        let plan = Plan {
            seed,
            duplicates: 1,
            conflict_percent: 100,
            reorder_span: 20,
            ..Plan::default()
        };
        let acknowledged = all_received(&send(&server, plan.deliveries(&callbacks)).await);
        let events = judged(&server, &acknowledged, vec![]).await;
        assert_histories_are_consistent(&events);
        let conflicts = events.iter().filter(|event| event.conflict).count();
        assert_eq!((events.len(), conflicts), (60, 30), "seed {seed}");
        assert_eq!(server.metric("blobcast_conflicts_total").await, 30.0);
    }
}

#[tokio::test]
async fn a_body_cut_by_a_broken_connection_is_made_good_by_the_next_attempt() {
    let server = Server::start().await;
    let plan = Plan {
        seed: 1,
        cut_percent: 100,
        retry_gaps: vec![Duration::from_millis(10)],
        ..Plan::default()
    };
    let outcomes = send(&server, plan.deliveries(&callbacks(40, &ENDS))).await;
    assert!(
        outcomes.iter().all(|outcome| outcome.attempts == 2),
        "{outcomes:?}"
    );
    let acknowledged = all_received(&outcomes);
    // Not even a duplicate: of a part of a body nothing was kept.
    assert!(
        acknowledged
            .iter()
            .all(|acknowledged| !acknowledged.duplicate)
    );
    assert_eq!(judged(&server, &acknowledged, vec![]).await.len(), 40);
    let aborted = "blobcast_callbacks_total{outcome=\"body_aborted\"}";
    until("40 cut bodies", || async {
        server.metric(aborted).await == 40.0
    })
    .await;
    assert_eq!(server.metric("blobcast_quarantine_callbacks").await, 0.0);
}

#[tokio::test]
async fn five_attempts_are_refused_while_the_disk_is_full_and_what_comes_later_is_new() {
    let mut server = Options::default()
        .set("log.disk_free_min_percent", 100)
        .start()
        .await;
    let callbacks = callbacks(4, &ENDS);
    // The vendor's own gaps, a thousand times faster.
    let gaps = retry_gaps("veo")
        .into_iter()
        .map(|gap| gap / 1_000)
        .collect();
    let plan = Plan {
        retry_gaps: gaps,
        ..Plan::default()
    };
    let outcomes = send(&server, plan.deliveries(&callbacks)).await;
    for outcome in &outcomes {
        let answer = outcome.answer.as_ref().unwrap();
        assert_eq!((outcome.attempts, answer.http_status), (ATTEMPTS_MAX, 503));
    }
    assert_eq!(
        server
            .metric("blobcast_callbacks_total{outcome=\"disk_low\"}")
            .await,
        (4 * ATTEMPTS_MAX) as f64
    );
    server.terminate().await;
    server
        .restart_with(Options::default().set("log.disk_free_min_percent", 0))
        .await;
    assert_eq!(server.log_of_events().await, []);
    let acknowledged = all_received(&send(&server, plan.deliveries(&callbacks)).await);
    assert!(
        acknowledged
            .iter()
            .all(|acknowledged| !acknowledged.duplicate)
    );
    assert_eq!(judged(&server, &acknowledged, vec![]).await.len(), 4);
}

#[tokio::test]
async fn retries_save_everything_from_a_broker_that_is_killed_in_the_middle_twice() {
    for seed in SEEDS {
        let mut server = Server::start().await;
        let plan = Plan {
            seed,
            spacing: Duration::from_millis(2),
            // Quick for a machine that is quick, and with patience for one that takes long to start a process.
            retry_gaps: [50, 250, 1_500, 20_000].map(Duration::from_millis).to_vec(),
            duplicates: 1,
            conflict_percent: 30,
            reorder_span: 10,
            cut_percent: 20,
        };
        let deliveries = plan.deliveries(&callbacks(120, &SampleStatus::ALL));
        let count = deliveries.len();
        let vendor = Vendor::new(
            format!("http://{}", server.ingest).parse().unwrap(),
            vec![],
            8,
        );
        let sending = tokio::spawn(async move { vendor.send(deliveries).await });
        let mut from = request();
        let mut observed = Vec::new();
        for wanted in [30, 50] {
            let mut sub = server.subscribe(from).await;
            observed.extend(
                sub.next_events(wanted)
                    .await
                    .iter()
                    .map(AsObserved::observed),
            );
            server.crash().await;
            from = SubscribeRequest {
                start: Some(Start::AfterCursor(sub.cursor)),
                ..request()
            };
        }
        let acknowledged = within("the vendor to have sent all", sending)
            .await
            .unwrap();
        assert_eq!(
            acknowledged.len(),
            count,
            "seed {seed}: every delivery was acknowledged in the end"
        );
        observed.extend(
            server
                .subscribe(from)
                .await
                .until_caught_up()
                .await
                .iter()
                .map(AsObserved::observed),
        );
        let seen = observed.len();
        let events = judged(
            &server,
            &acknowledged,
            vec![Stream {
                task_ids: None,
                observed,
            }],
        )
        .await;
        assert_eq!(
            seen,
            events.len(),
            "seed {seed}: the subscriber has seen the whole log"
        );
        assert_histories_are_consistent(&events);
        let news = acknowledged
            .iter()
            .map(|acknowledged| &acknowledged.event_id)
            .collect::<std::collections::HashSet<_>>();
        assert_eq!(
            news.len(),
            events.len(),
            "seed {seed}: nothing is in the log that was not acknowledged"
        );
    }
}
