//! Samples of what the vendor says about a task, against the documented answers of its status API.

use std::{fs, mem::discriminant};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::{
    read,
    sample::{PRODUCTS, SampleStatus},
    task_sample::TaskSample,
};
use crate::event::TaskStatus;

const STATUSES: [SampleStatus; 4] = [
    SampleStatus::Pending,
    SampleStatus::Processing,
    SampleStatus::Completed,
    SampleStatus::Failed,
];

fn task(product: &str, status: SampleStatus) -> TaskSample<'_> {
    TaskSample {
        product,
        task_id: "t-1",
        prompt: "a lighthouse",
        seed: Some(7),
        status,
        has_outputs: true,
        progress_percent: 45,
        created_at: "2026-01-31T12:00:00.5Z".parse().unwrap(),
        at: "2026-01-31T12:05:00Z".parse().unwrap(),
    }
}

fn documented() -> Map<String, Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vendor_status.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn read_map(body: Map<String, Value>) -> crate::event::Report {
    read(Value::Object(body).to_string().as_bytes()).unwrap()
}

#[test]
fn an_answer_has_the_documented_fields_with_values_of_their_types() {
    for (name, example) in documented() {
        let (product, status) = name.rsplit_once('-').unwrap();
        let answer = task(product, status.parse().unwrap()).answer();
        let example = example.as_object().unwrap();
        let keys = |body: &Map<String, Value>| body.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&answer), keys(example), "{name}");
        for (key, value) in example {
            assert_eq!(
                discriminant(value),
                discriminant(&answer[key]),
                "{name}: {key}"
            );
        }
        assert_eq!(answer["status"], example["status"], "{name}");
    }
}

#[test]
fn every_answer_and_callback_is_read_as_what_it_says() {
    for product in PRODUCTS.into_iter().chain(["new-product"]) {
        for status in STATUSES {
            let task = task(product, status);
            for body in [task.answer(), task.callback()] {
                let report = read_map(body);
                assert_eq!(report.task_id.as_str(), "t-1", "{product}");
                assert_eq!(report.status, status.task_status(), "{product}");
                let has_outputs = !report.outputs.is_empty();
                assert_eq!(has_outputs, status == SampleStatus::Completed, "{product}");
            }
        }
    }
}

#[test]
fn several_products_give_the_reason_of_a_failure_in_the_callback_only() {
    let without_reason = |body: fn(&TaskSample<'_>) -> Map<String, Value>| {
        PRODUCTS
            .into_iter()
            .filter(|product| {
                let report = read_map(body(&task(product, SampleStatus::Failed)));
                let error = report.error.unwrap();
                error.code == "UNSPECIFIED" && error.message.is_empty()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(without_reason(|task| task.callback()), [""; 0]);
    assert_eq!(
        without_reason(|task| task.answer()),
        [
            "kling",
            "kling-o1-video",
            "kling-o3-video",
            "kling-o3-photo"
        ]
    );
}

#[test]
fn prompt_seed_and_times_are_those_of_the_task() {
    let report = read_map(task("veo", SampleStatus::Completed).callback());
    assert_eq!(
        (report.prompt.as_str(), report.seed),
        ("a lighthouse", Some(7))
    );
    let time = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    assert_eq!(report.created_at, time("2026-01-31T12:00:00.5Z"));
    assert_eq!(report.completed_at, time("2026-01-31T12:05:00Z"));
    let running = read_map(task("sora", SampleStatus::Processing).answer());
    assert_eq!(running.completed_at, None);
}

#[test]
fn outputs_may_be_missing_from_a_completed_task() {
    for product in PRODUCTS {
        let task = TaskSample {
            has_outputs: false,
            ..task(product, SampleStatus::Completed)
        };
        let report = read_map(task.answer());
        assert_eq!(report.status, TaskStatus::Completed, "{product}");
        assert_eq!(report.outputs, [], "{product}");
    }
}

#[test]
fn a_task_is_accepted_under_the_id_that_its_callback_has() {
    for product in PRODUCTS.into_iter().chain(["new-product"]) {
        let task = task(product, SampleStatus::Completed);
        let accepted = task.accepted();
        assert_eq!(accepted["status"], "pending");
        assert_eq!(accepted.get("price").is_none(), product == "seedance");
        let (callback, is_id) = (task.callback(), |(_, value): &(&String, &Value)| {
            *value == "t-1"
        });
        let (key, _) = callback.iter().find(is_id).unwrap();
        assert_eq!(accepted[key], "t-1", "{product}");
    }
    assert_eq!(
        Value::Object(task("veo", SampleStatus::Pending).accepted()),
        json!({"generation_id": "t-1", "status": "pending", "seed": 7, "price": "0.2500"})
    );
}
