//! The plan by its properties, and the vendor against a small listener.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::post};
use bytes::Bytes;
use hyper::Uri;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::vendor::sample::SampleStatus;

fn callbacks(count: usize) -> Vec<VendorCallback> {
    let all = SampleStatus::ALL;
    let one = |n: usize| {
        VendorCallback::sample(
            "veo",
            &format!("task-{n}"),
            all[n % all.len()],
            Timestamp::UNIX_EPOCH,
        )
    };
    (0..count).map(one).collect()
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let gaps = proptest::collection::vec((0u64..600).prop_map(Duration::from_secs), 0..8);
    (
        any::<u64>(),
        0u64..1000,
        gaps,
        0usize..3,
        0u8..=100,
        0usize..10,
        0u8..=100,
    )
        .prop_map(
            |(
                seed,
                millis,
                retry_gaps,
                duplicates,
                conflict_percent,
                reorder_span,
                cut_percent,
            )| Plan {
                seed,
                spacing: Duration::from_millis(millis),
                retry_gaps,
                duplicates,
                conflict_percent,
                reorder_span,
                cut_percent,
            },
        )
}

fn bodies<'a>(callbacks: impl Iterator<Item = &'a VendorCallback>) -> BTreeMap<&'a [u8], usize> {
    let mut counts = BTreeMap::new();
    callbacks.for_each(|callback| *counts.entry(callback.body.as_ref()).or_default() += 1);
    counts
}

proptest! {
    #[test]
    fn the_same_seed_makes_the_same_plan(plan in any_plan(), count in 0usize..20) {
        prop_assert_eq!(plan.deliveries(&callbacks(count)), plan.deliveries(&callbacks(count)));
    }

    #[test]
    fn every_callback_is_sent_as_often_as_asked_for(plan in any_plan(), count in 0usize..20) {
        let callbacks = callbacks(count);
        let deliveries = plan.deliveries(&callbacks);
        let sent = bodies(deliveries.iter().map(|delivery| &delivery.callback));
        for callback in &callbacks {
            prop_assert_eq!(sent[callback.body.as_ref()], 1 + plan.duplicates);
        }
        let extra = deliveries.len() - callbacks.len() * (1 + plan.duplicates);
        let terminal = callbacks.iter().filter(|callback| callback.contradiction().is_some()).count();
        prop_assert!(extra <= terminal, "only an end can be contradicted, and once");
        prop_assert!(plan.conflict_percent < 100 || extra == terminal);
    }

    #[test]
    fn nothing_is_moved_further_than_asked_for(plan in any_plan(), count in 0usize..40) {
        let plan = Plan { duplicates: 0, conflict_percent: 0, ..plan };
        let callbacks = callbacks(count);
        for (place, delivery) in plan.deliveries(&callbacks).iter().enumerate() {
            let before = callbacks.iter().position(|callback| *callback == delivery.callback).unwrap();
            prop_assert!(place.abs_diff(before) <= plan.reorder_span);
        }
    }

    #[test]
    fn attempts_and_starts_are_as_planned(plan in any_plan(), count in 0usize..20) {
        for (place, delivery) in plan.deliveries(&callbacks(count)).iter().enumerate() {
            prop_assert_eq!(delivery.start, plan.spacing * place as u32);
            prop_assert_eq!(delivery.attempts.len(), (1 + plan.retry_gaps.len()).min(ATTEMPTS_MAX));
            let (first, later) = delivery.attempts.split_first().unwrap();
            prop_assert!(later.iter().zip(&plan.retry_gaps).all(|(attempt, gap)| attempt.wait == *gap));
            prop_assert!(later.iter().all(|attempt| attempt.cut_after.is_none()));
            let inside = |bytes| (1..delivery.callback.body.len()).contains(&bytes);
            prop_assert!(first.wait.is_zero() && first.cut_after.is_none_or(inside));
        }
    }

    #[test]
    fn any_label_makes_a_url_that_says_it(key in "\\PC{1,9}", value in "\\PC{0,9}") {
        let url = callback_url(&Uri::from_static("http://localhost"), "veo", &[(key.clone(), value.clone())]);
        prop_assert_eq!(url.path(), "/webhook/veo");
        let pairs: Vec<_> = form_urlencoded::parse(url.query().unwrap().as_bytes()).into_owned().collect();
        prop_assert_eq!(pairs, vec![(key, value)]);
    }
}

#[test]
fn a_whole_callback_url_is_used_as_it_is() {
    let url = |base: &'static str, labels| {
        callback_url(&Uri::from_static(base), "veo", labels).to_string()
    };
    let label = [("team".to_owned(), "a b".to_owned())];
    assert_eq!(url("http://h:1/", &[]), "http://h:1/webhook/veo");
    assert_eq!(
        url("http://h?token=x", &label),
        "http://h/webhook/veo?token=x&team=a%20b"
    );
    assert_eq!(
        url("http://h/webhook?token=x", &[]),
        "http://h/webhook?token=x"
    );
}

#[test]
fn the_vendors_waits_depend_on_the_product() {
    let seconds = |product| {
        retry_gaps(product)
            .iter()
            .map(Duration::as_secs)
            .collect::<Vec<_>>()
    };
    assert_eq!(seconds("veo"), [30; 4]);
    assert_eq!(seconds("kling"), [30, 60, 120, 240]);
    assert_eq!(seconds("kling-o1-video"), [30; 4]);
    assert_eq!(seconds("gemini"), [30, 30]);
}

/// Answers 503 to the first `failures` requests that arrive whole, and 200 to the rest.
async fn broker(failures: usize) -> (Uri, Arc<AtomicUsize>) {
    let whole = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&whole);
    let answer = move |_: Bytes| async move {
        if seen.fetch_add(1, Ordering::SeqCst) < failures {
            return (StatusCode::SERVICE_UNAVAILABLE, "{}");
        }
        (
            StatusCode::OK,
            r#"{"status":"received","event_id":"e1","duplicate":true}"#,
        )
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        axum::serve(listener, Router::new().route("/webhook/veo", post(answer))).await
    });
    (format!("http://{address}").parse().unwrap(), whole)
}

#[tokio::test]
async fn a_callback_is_tried_again_until_it_is_acknowledged() {
    let (url, whole) = broker(2).await;
    let plan = Plan {
        retry_gaps: vec![Duration::ZERO; 9],
        ..Plan::default()
    };
    let acknowledged = Vendor::new(url, vec![], 1)
        .send(plan.deliveries(&callbacks(1)))
        .await;
    let expected = Acknowledgement {
        task_id: "task-0".into(),
        product: "veo".into(),
        event_id: Some("e1".into()),
        duplicate: true,
        http_status: 200,
    };
    assert_eq!(
        (acknowledged, whole.load(Ordering::SeqCst)),
        (vec![expected], 3)
    );
}

#[tokio::test]
async fn a_callback_that_is_never_taken_is_given_up_after_five_attempts() {
    let (url, whole) = broker(usize::MAX).await;
    let plan = Plan {
        retry_gaps: vec![Duration::ZERO; 9],
        ..Plan::default()
    };
    assert_eq!(
        Vendor::new(url, vec![], 1)
            .send(plan.deliveries(&callbacks(1)))
            .await,
        []
    );
    assert_eq!(whole.load(Ordering::SeqCst), ATTEMPTS_MAX);
}

#[tokio::test]
async fn a_body_that_is_cut_never_arrives_whole() {
    let (url, whole) = broker(0).await;
    let cut = Plan {
        cut_percent: 100,
        ..Plan::default()
    };
    let vendor = Vendor::new(url, vec![], 4);
    assert_eq!(vendor.send(cut.deliveries(&callbacks(5))).await, []);
    assert_eq!(whole.load(Ordering::SeqCst), 0);
    let retried = Plan {
        retry_gaps: vec![Duration::ZERO],
        ..cut
    };
    assert_eq!(
        vendor.send(retried.deliveries(&callbacks(5))).await.len(),
        5
    );
}

#[tokio::test]
async fn a_broker_that_is_not_there_acknowledges_nothing_and_says_why() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Uri = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    drop(listener);
    let mut said = vec![];
    let deliveries = Plan::default().deliveries(&callbacks(1));
    let tell = |outcome: &DeliveryOutcome| -> Result<(), Infallible> {
        said.push(outcome.clone());
        Ok(())
    };
    let Ok(()) = Vendor::new(url, vec![], 1)
        .send_each(deliveries, tell)
        .await;
    assert!(
        said[0].answer.as_ref().unwrap_err().contains("refused"),
        "{said:?}"
    );
}
