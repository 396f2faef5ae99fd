//! One behaviour at a time.

mod json;
mod ids;
mod statuses;
mod outputs;
mod errors;
mod fields;

use serde_json::json;

use super::*;
use crate::vendor::{NESTING_LEVELS_MAX, StatusWord, time};

fn report(body: &str) -> Report {
    read(body.as_bytes()).unwrap_or_else(|e| panic!("{e}: {body}"))
}

fn refusal(body: &str) -> Unreadable {
    read(body.as_bytes()).expect_err(body)
}

/// A completed task with more fields.
fn with(fields: &str) -> Report {
    report(&format!(
        r#"{{"id": "t", "status": "completed", {fields}}}"#
    ))
}

/// A failed task with more fields.
fn error(fields: &str) -> TaskError {
    report(&format!(r#"{{"id": "t", "status": "failed", {fields}}}"#))
        .error
        .unwrap()
}

fn reason(fields: &str) -> (String, String) {
    let TaskError { code, message, .. } = error(fields);
    (code, message)
}

fn pair(code: &str, message: &str) -> (String, String) {
    (code.into(), message.into())
}

fn task_id(fields: &str) -> Result<String, Unreadable> {
    let body = format!(r#"{{"status": "completed", {fields}}}"#);
    read(body.as_bytes()).map(|report| report.task_id.as_str().to_owned())
}

fn status(fields: &str) -> (TaskStatus, String) {
    let report = report(&format!(r#"{{"id": "t", {fields}}}"#));
    (report.status, report.status_text)
}

fn urls(fields: &str) -> Vec<String> {
    with(fields)
        .outputs
        .into_iter()
        .map(|output| output.url)
        .collect()
}

fn inferred(fields: &str) -> String {
    report(&format!(
        r#"{{"id": "t", "video_url": "https://a/v", {fields}}}"#
    ))
    .inferred_product
    .as_str()
    .to_owned()
}

#[test]
fn refusals_have_distinct_sentences_and_never_repeat_the_body() {
    let secret = "s3cret-prompt";
    let bodies = [
        secret.to_owned(),
        format!("[\"{secret}\"]"),
        format!(r#"{{"prompt": "{secret}"}}"#),
        format!(r#"{{"id": "{secret} {secret}"}}"#),
        format!(r#"{{"id": "t", "prompt": "{secret}"}}"#),
    ];
    for body in bodies {
        let refusal = refusal(&body);
        assert!(!format!("{refusal} {refusal:?} {}", refusal.reason()).contains(secret));
    }
    let sentences: std::collections::HashSet<_> =
        Unreadable::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(sentences.len(), Unreadable::ALL.len());
}
