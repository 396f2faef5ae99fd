//! The front with a store behind it: what each request is answered.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, header},
};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::*;
use crate::{
    config::{Allowlist, BodySignature, ForwardedHeader},
    journal::Local,
    store::{Appender, Retention, Store, writer},
};

const LIMITS: Limits = Limits {
    body_bytes_max: 1_000,
    body_timeout: Duration::from_secs(10),
    answer_timeout: Duration::from_millis(20),
    inflight_bytes_max: 10_000,
    refusals_per_minute_max: 1,
};
/// Far more than most tests send.
const BUDGET: u64 = 6_000;
const READABLE: &str = r#"{"generation_id":"t1","status":"completed"}"#;

fn rules() -> Rules {
    Rules {
        credentials: Arc::default(),
        body_signature: BodySignature::Off,
        allowlist: Allowlist::Off,
        allowed: Vec::new(),
        proxies: TrustedProxies {
            networks: Vec::new(),
            header: ForwardedHeader::XForwardedFor,
        },
        bytes_per_minute_max: BUDGET,
        public_url: None,
    }
}

/// A front whose writer never runs or is gone, and what the test has to hold meanwhile.
fn front(prepare: impl FnOnce(&Appender), writer_is_there: bool) -> (Arc<Ingest>, impl Sized) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path(), 1 << 20).unwrap());
    let metrics = Arc::new(Metrics::default());
    let clock = Arc::clone(store.clock());
    let (appender, writer) = writer(
        store,
        Retention::KEEP_ALL,
        |_: &[_]| {},
        Arc::clone(&metrics),
    );
    let writer = writer_is_there.then_some(writer);
    prepare(&appender);
    let journal = Arc::new(Local::new(appender));
    (
        Ingest::new(journal, clock, LIMITS, rules(), metrics, Tracer::default()),
        (writer, directory),
    )
}

async fn receive(ingest: &Ingest, body: Body) -> Result<Reply, Reply> {
    let request = Request::post("/webhook/veo").body(body).unwrap();
    let mut context = RequestContext {
        id: RequestId::new(),
        path: String::new(),
        is_test: false,
        verified: None,
        span: Span::default(),
    };
    ingest
        .receive(
            request,
            &ingest.rules(),
            [127, 0, 0, 1].into(),
            &mut context,
        )
        .await
}

/// What a front answers to a callback that can be read and to one that cannot, if its writer never runs or is gone.
async fn answers(
    prepare: impl FnOnce(&Appender),
    writer_is_there: bool,
) -> Vec<(&'static str, Response)> {
    let (ingest, _held) = front(prepare, writer_is_there);
    let mut answers = Vec::new();
    for body in [READABLE, "nonsense"] {
        let outcome = receive(&ingest, Body::from(body)).await.unwrap();
        answers.push((outcome.outcome().as_str(), outcome.response()));
    }
    answers
}

fn assert_refused(answers: Vec<(&'static str, Response)>, expected: &str) {
    for (outcome, response) in answers {
        assert_eq!((outcome, response.status().as_u16()), (expected, 503));
        assert_eq!(response.headers()[header::RETRY_AFTER], "30");
    }
}

#[tokio::test]
async fn the_sender_repeats_what_is_not_durable_in_time() {
    assert_refused(answers(|_| {}, true).await, "late");
}

#[tokio::test]
async fn the_sender_repeats_what_the_writer_has_no_room_for() {
    let fill = |appender: &Appender| {
        while appender
            .probe()
            .try_recv()
            .is_err_and(|empty| empty == oneshot::error::TryRecvError::Empty)
        {}
    };
    assert_refused(answers(fill, true).await, "overloaded");
}

#[tokio::test]
async fn a_body_that_is_still_arriving_at_the_end_has_a_moment() {
    let (ingest, _held) = front(|_| {}, true);
    let never = Body::from_stream(tokio_stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let drain = async {
        tokio::task::yield_now().await; // it is being read by now
        ingest.drain();
    };
    let (outcome, ()) = tokio::join!(receive(&ingest, never), drain);
    assert_eq!(outcome.unwrap_err().outcome().as_str(), "draining");
    assert_eq!(
        receive(&ingest, Body::from(READABLE))
            .await
            .unwrap_err()
            .outcome()
            .as_str(),
        "draining"
    );
}

#[tokio::test]
async fn a_budget_that_is_used_up_says_when_there_is_room_and_there_is() {
    let (mut ingest, _held) = front(|_| {}, false);
    let seconds = |ingest: &mut Arc<Ingest>, seconds| {
        Arc::get_mut(ingest)
            .unwrap()
            .budgets
            .pass(Duration::from_secs(seconds));
    };
    let outcome = async |ingest: &Ingest, body| {
        receive(ingest, body)
            .await
            .unwrap_or_else(|refused| refused)
    };
    let body = || Body::from(vec![b'x'; 1_000 - budget::CALLBACK_BYTES as usize]);
    let said = |response: Response| {
        let header = |name| response.headers()[name].to_str().unwrap().to_owned();
        (response.status().as_u16(), header(header::RETRY_AFTER))
    };
    for _ in 0..6 {
        assert_eq!(
            outcome(&ingest, body()).await.outcome().as_str(),
            "store_failed",
            "it was let in"
        );
    }
    let refused = outcome(&ingest, body()).await;
    assert_eq!(refused.outcome().as_str(), "budget_exceeded");
    assert_eq!(said(refused.response()), (429, "10".into()));
    seconds(&mut ingest, 9);
    let refused = outcome(&ingest, body()).await;
    assert_eq!(said(refused.response()), (429, "1".into()), "rounded up");
    seconds(&mut ingest, 1);
    assert_eq!(
        outcome(&ingest, body()).await.outcome().as_str(),
        "store_failed"
    );
    // Also of a body of unknown length.
    seconds(&mut ingest, 6);
    let chunks = tokio_stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 400]))]);
    assert_eq!(
        outcome(&ingest, Body::from_stream(chunks))
            .await
            .outcome()
            .as_str(),
        "budget_exceeded"
    );
    assert_eq!(
        ingest
            .metrics
            .callback_bytes
            .with_label_values(&["unverified", "", "veo"])
            .get(),
        7 * 488
    );
}

#[tokio::test]
async fn the_sender_repeats_what_no_writer_takes() {
    assert_refused(answers(|_| {}, false).await, "store_failed");
}
