//! Short forms of gRPC requests, filters, errors and cursors, so that test cases fit into tables.

use blobcast::{
    event::{Cursor, Sequence},
    wire::v1::{self, Event, Filter, SubscribeRequest, TaskStatus, subscribe_request::Start},
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{Http, Server, completed, request, until, with};

/// A request for everything after a cursor.
pub fn after(cursor: &str) -> SubscribeRequest {
    SubscribeRequest {
        start: Some(Start::AfterCursor(cursor.into())),
        ..request()
    }
}

/// A request for future events.
pub fn latest() -> SubscribeRequest {
    SubscribeRequest {
        start: Some(Start::Position(v1::StartPosition::Latest.into())),
        ..request()
    }
}

/// A request for the events of the whole log that match a filter.
pub fn matching(filter: Filter) -> SubscribeRequest {
    SubscribeRequest {
        filter: Some(filter),
        ..request()
    }
}

/// A filter by tasks.
pub fn of_tasks<T: ToString>(task_ids: impl IntoIterator<Item = T>) -> Filter {
    Filter {
        task_ids: task_ids.into_iter().map(|id| id.to_string()).collect(),
        ..Filter::default()
    }
}

/// A filter by products.
pub fn of_products<T: ToString>(products: impl IntoIterator<Item = T>) -> Filter {
    Filter {
        products: products
            .into_iter()
            .map(|product| product.to_string())
            .collect(),
        ..Filter::default()
    }
}

/// A filter by statuses.
pub fn of_statuses(statuses: impl IntoIterator<Item = TaskStatus>) -> Filter {
    Filter {
        statuses: statuses.into_iter().map(Into::into).collect(),
        ..Filter::default()
    }
}

/// A filter by labels.
pub fn of_labels<T: ToString>(labels: impl IntoIterator<Item = (T, T)>) -> Filter {
    let labels = labels
        .into_iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    Filter {
        labels,
        ..Filter::default()
    }
}

/// The field that an INVALID_ARGUMENT names.
pub fn violation(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status
        .get_details_bad_request()
        .expect("a BadRequest")
        .field_violations;
    let [violation] = &violations[..] else {
        panic!("one violation, not {violations:?}")
    };
    assert!(!violation.description.is_empty());
    violation.field.clone()
}

/// Code and reason of an error.
pub fn refusal(status: &Status) -> (Code, String) {
    (status.code(), super::reason(status))
}

/// A value in the metadata of the ErrorInfo.
pub fn told(status: &Status, key: &str) -> String {
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    info.metadata
        .get(key)
        .unwrap_or_else(|| panic!("no {key} in {info:?}"))
        .clone()
}

/// The sequence number in a cursor.
pub fn place(cursor: &str) -> u64 {
    Cursor::parse(cursor)
        .unwrap_or_else(|_| panic!("not a cursor: {cursor}"))
        .sequence
        .0
}

/// The cursor of another sequence number in the same log.
pub fn cursor_at(cursor: &str, place: u64) -> String {
    Cursor {
        sequence: Sequence(place),
        ..Cursor::parse(cursor).unwrap()
    }
    .to_string()
}

/// The sequence numbers of events.
pub fn places(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| place(&event.cursor)).collect()
}

/// The task ids of events.
pub fn tasks_of(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.task_id.as_str()).collect()
}

/// A completed task with a prompt of `prompt_chars`. Its event is stored in about twice as many
/// bytes.
pub fn bulky(task_id: &str, prompt_chars: usize) -> Value {
    with(
        completed(task_id),
        json!({"prompt": "x".repeat(prompt_chars)}),
    )
}

impl Http {
    /// POSTs completed tasks `t{number}` with large prompts, one after the other.
    pub async fn post_bulky(&self, numbers: std::ops::Range<usize>, prompt_chars: usize) {
        for number in numbers {
            self.post(&bulky(&format!("t{number}"), prompt_chars))
                .await
                .event_id();
        }
    }
}

impl Server {
    /// `GetLogInfo`.
    pub async fn log_info(&self) -> v1::GetLogInfoResponse {
        self.events()
            .await
            .get_log_info(v1::GetLogInfoRequest::default())
            .await
            .unwrap()
            .into_inner()
    }

    /// Waits until retention by bytes has removed all it should.
    pub async fn trimmed(&self) -> v1::GetLogInfoResponse {
        let mut client = self.events().await;
        let mut info = v1::GetLogInfoResponse::default();
        until("retention", async || {
            info = client
                .get_log_info(v1::GetLogInfoRequest::default())
                .await
                .unwrap()
                .into_inner();
            info.event_bytes <= info.retention_bytes_max && place(&info.head) > info.event_count
        })
        .await;
        info
    }
}
