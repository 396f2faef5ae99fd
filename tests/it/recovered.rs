//! A callback and an answer of the vendor's status API about one end are one event, whichever comes first; what adds to an end without
//! contradicting it is no conflict. For every product, shape and end.

use std::sync::Arc;

use blobcast::{
    callback::{Callback, Corrections},
    credentials::{Binding, Products},
    event::{Labels, Product, TaskId, Verification},
    reconcile::{
        Asked,
        answer::{Understood, understand},
    },
    store::{Appended, Draft},
    vendor::sample::{PRODUCTS, Sample, SampleStatus, Shape},
    wire::v1,
};
use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::support::{Node, Server, node, stored, within};

const SHAPES: [Shape; 2] = [Shape::Documented, Shape::Legacy];

fn body(product: &str, shape: Shape, status: SampleStatus) -> Value {
    let sample = Sample {
        product,
        shape,
        status,
        task_id: "t1",
        at: Timestamp::UNIX_EPOCH,
    };
    sample.body().into()
}

/// The same end with URLs that were signed anew.
fn signed(body: &Value, query: &str) -> Value {
    match body {
        Value::String(text) if text.starts_with("https://") => json!(format!("{text}?{query}")),
        Value::Array(values) => values.iter().map(|value| signed(value, query)).collect(),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| (key.clone(), signed(value, query)));
            fields.collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// The same failure without its reason, as some answers have it.
fn without_reason(body: &Value) -> Value {
    let mut body = body.clone();
    for key in ["error", "error_message", "message", "description"] {
        if let Some(value) = body.get_mut(key) {
            *value = Value::Null;
        }
    }
    body
}

/// As the status API has it: with a status word, and with a price.
fn as_answer(body: &Value) -> Value {
    let mut body = body.clone();
    if body.get("status").is_none() {
        body["status"] = json!(if body["success"] == true {
            "completed"
        } else {
            "failed"
        });
    }
    body["price"] = json!("0.2500");
    body
}

fn callback(product: &str, body: &Value, tenant: Option<&Labels>) -> Draft {
    let bound = tenant.map(|labels| {
        Arc::new(Binding {
            products: Products::All,
            labels: labels.clone(),
        })
    });
    let callback = Callback {
        near_miss: None,
        product: Some(product.into()),
        query: String::new(),
        body: body.to_string().into(),
        received_at: Timestamp::now(),
        verification: Verification::UrlToken,
        credential: String::new(),
        bound,
    };
    callback.draft(&Corrections::default()).unwrap()
}

fn answered(product: &str, body: &Value, tenant: Option<&Labels>) -> Draft {
    let (product, task_id) = (
        Product::parse(product).unwrap(),
        TaskId::parse("t1").unwrap(),
    );
    let asked = Asked {
        product: &product,
        task_id: &task_id,
        labels: &tenant.cloned().unwrap_or_default(),
        tenant,
        vendor_key: Some("main"),
        at: Timestamp::now(),
    };
    match understand(&asked, 200, &Bytes::from(as_answer(body).to_string())) {
        Understood::Ended(draft) => *draft,
        other => panic!("{body}: {other:?}"),
    }
}

async fn append(node: &Node, draft: Draft) -> Appended {
    within("the append", node.journal.append(draft))
        .await
        .unwrap()
        .unwrap()
}

/// Whether each of these is a duplicate, and revision, conflict and verification of the events they have become.
async fn kept(
    drafts: impl IntoIterator<Item = Draft>,
) -> (Vec<bool>, Vec<(u32, bool, v1::Verification)>) {
    let directory = TempDir::new().unwrap();
    let node = node(directory.path());
    let mut duplicates = Vec::new();
    for draft in drafts {
        duplicates.push(append(&node, draft).await.duplicate);
    }
    let events = stored(&node.store);
    let events = events.iter().map(|record| {
        let event = v1::Event::decode(record.event()).unwrap();
        (record.revision(), record.conflict(), event.verification())
    });
    let events = events.collect();
    (node.stop)();
    (duplicates, events)
}

const CALLBACK: v1::Verification = v1::Verification::UrlToken;
const ANSWER: v1::Verification = v1::Verification::VendorApi;

#[tokio::test]
async fn a_callback_and_an_answer_about_the_same_end_are_one_event_whichever_comes_first() {
    let tenant = Labels::from([("tenant".into(), "a".into())]);
    for (product, shape) in PRODUCTS
        .iter()
        .flat_map(|product| SHAPES.map(|shape| (*product, shape)))
    {
        for status in [SampleStatus::Completed, SampleStatus::Failed] {
            for tenant in [None, Some(&tenant)] {
                let body = body(product, shape, status);
                let case = format!("{product} {shape:?} {status:?} {tenant:?}");
                let drafts = || {
                    (
                        callback(product, &body, tenant),
                        answered(product, &body, tenant),
                    )
                };
                let (first, second) = drafts();
                assert_eq!(
                    kept([first, second]).await,
                    (vec![false, true], vec![(1, false, CALLBACK)]),
                    "{case}"
                );
                let (second, first) = drafts();
                assert_eq!(
                    kept([first, second]).await,
                    (vec![false, true], vec![(1, false, ANSWER)]),
                    "{case}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_callback_adds_to_the_answer_before_it_and_an_answer_adds_nothing() {
    for (product, shape) in PRODUCTS
        .iter()
        .flat_map(|product| SHAPES.map(|shape| (*product, shape)))
    {
        let completed = body(product, shape, SampleStatus::Completed);
        let failed = body(product, shape, SampleStatus::Failed);
        for (answer, of_callback) in [
            (
                signed(&completed, "sig=a"),
                signed(&completed, "sig=b&exp=1"),
            ),
            (without_reason(&failed), failed.clone()),
        ] {
            let case = format!("{product} {shape:?} {answer}");
            let drafts = || {
                (
                    answered(product, &answer, None),
                    callback(product, &of_callback, None),
                )
            };
            let (first, second) = drafts();
            let both = vec![(1, false, ANSWER), (2, false, CALLBACK)];
            assert_eq!(
                kept([first, second]).await,
                (vec![false, false], both),
                "{case}"
            );
            let (second, first) = drafts();
            assert_eq!(
                kept([first, second]).await,
                (vec![false, true], vec![(1, false, CALLBACK)]),
                "{case}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_that_contradicts_the_status_of_an_end_is_the_next_revision_in_conflict() {
    for product in PRODUCTS {
        let [completed, failed] = [SampleStatus::Completed, SampleStatus::Failed]
            .map(|status| body(product, Shape::Documented, status));
        for (before, after) in [(&completed, &failed), (&failed, &completed)] {
            let both = [(1, false, CALLBACK), (2, true, ANSWER)];
            let drafts = [
                callback(product, before, None),
                answered(product, after, None),
                answered(product, before, None),
                answered(product, &signed(after, "sig=a"), None),
            ];
            assert_eq!(
                kept(drafts).await,
                (vec![false, false, true, true], both.to_vec()),
                "{product}"
            );
        }
    }
}

#[tokio::test]
async fn two_callbacks_that_add_to_an_end_are_revisions_without_conflict() {
    let server = Server::start().await;
    for (product, shape) in PRODUCTS
        .iter()
        .flat_map(|product| SHAPES.map(|shape| (*product, shape)))
    {
        let completed = body(product, shape, SampleStatus::Completed);
        let failed = body(product, shape, SampleStatus::Failed);
        for (number, (first, second, is_conflict)) in [
            (
                signed(&completed, "sig=a"),
                signed(&completed, "sig=b"),
                false,
            ),
            (completed.clone(), signed(&completed, "sig=a"), false),
            (without_reason(&failed), failed.clone(), false),
            (failed.clone(), without_reason(&failed), true),
            (completed.clone(), failed.clone(), true),
        ]
        .into_iter()
        .enumerate()
        {
            let task = format!("{product}-{}-{number}", shape.as_str());
            for body in [&first, &second] {
                let body = body.to_string().replace("\"t1\"", &format!("\"{task}\""));
                let answer = server
                    .http()
                    .post_to(&format!("/webhook/{product}"), body)
                    .await;
                assert!(!answer.duplicate(), "{task}");
            }
            let request = v1::GetTaskRequest {
                task_id: task.clone(),
                ..Default::default()
            };
            let task = server
                .events()
                .await
                .get_task(request)
                .await
                .unwrap()
                .into_inner();
            let events: Vec<_> = task
                .events
                .iter()
                .map(|event| (event.revision, event.conflict))
                .collect();
            assert_eq!(events, [(1, false), (2, is_conflict)], "{first} {second}");
        }
    }
}

/// An answer must not bring back what was erased.
#[tokio::test]
async fn an_answer_about_an_erased_end_is_no_event() {
    let directory = TempDir::new().unwrap();
    let node = node(directory.path());
    let body = body("veo", Shape::Documented, SampleStatus::Failed);
    let event = append(&node, callback("veo", &without_reason(&body), None)).await;
    let erasure = blobcast::store::Erasure {
        task_id: TaskId::parse("t1").unwrap(),
        product: Product::parse("veo").unwrap(),
        places: vec![event.sequence],
    };
    within("the erasure", node.journal.erase(erasure))
        .await
        .unwrap()
        .unwrap();
    assert!(append(&node, answered("veo", &body, None)).await.duplicate);
    assert_eq!(
        stored(&node.store)
            .iter()
            .filter(|record| !record.is_erased())
            .count(),
        0
    );
    (node.stop)();
}
