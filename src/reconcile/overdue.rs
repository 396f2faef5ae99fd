//! The event by which the broker says that a task is late. Pure.

use bytes::Bytes;
use uuid::Uuid;

use super::asked::Asked;
use crate::{
    event::{Fingerprint, Overdue, OverdueEvent, TaskStatus},
    store::Draft,
    wire,
};

/// Drafts it. It has no body, because nobody sent one.
pub fn draft(asked: &Asked<'_>, overdue: Overdue) -> Draft {
    let event = OverdueEvent {
        event_id: Uuid::now_v7(),
        product: asked.product.clone(),
        task_id: asked.task_id.clone(),
        labels: asked.labels.clone(),
        noticed_at: asked.at,
        credential: asked.credential(),
        overdue,
    };
    Draft {
        event_id: event.event_id,
        product: event.product.clone(),
        task_id: event.task_id.clone(),
        status: TaskStatus::Overdue,
        fingerprint: Fingerprint::of_overdue(&event.overdue),
        received_at_micros: asked.at.as_microsecond(),
        labels: event.labels.clone(),
        event: wire::encode_overdue(event),
        raw: Bytes::new(),
        is_answer: false,
        lacks_output: false,
        conceals_duplicates: false,
        origin: None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use prost::Message;

    use super::*;
    use crate::{
        event::{Labels, Product, TaskId},
        wire::v1,
    };

    #[test]
    fn a_late_task_becomes_an_event_with_what_is_known_and_the_labels_of_its_expectation() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let wire = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let (product, task_id) = (Product::parse("veo").unwrap(), TaskId::parse("t1").unwrap());
        let labels: Labels = [("team".to_owned(), "ads".to_owned())].into();
        let asked = Asked {
            product: &product,
            task_id: &task_id,
            labels: &labels,
            tenant: Some(&labels),
            vendor_key: Some("main"),
            at: at(9),
        };
        let overdue = Overdue {
            expected_by: at(5),
            checked_at: Some(at(8)),
            vendor_http_status: 200,
            vendor_status: "processing".into(),
            check_count: 3,
            gave_up: true,
        };
        let draft = draft(&asked, overdue);
        assert_eq!(
            (draft.status, draft.received_at_micros),
            (TaskStatus::Overdue, 9_000_000)
        );
        assert!(draft.raw.is_empty() && !draft.is_answer && draft.labels == labels);

        let expected = v1::Event {
            event_id: draft.event_id.to_string(),
            product: "veo".into(),
            task_id: "t1".into(),
            status: v1::TaskStatus::Overdue.into(),
            received_at: wire(9),
            labels: labels.clone().into_iter().collect(),
            credential: "vendor_key main".into(),
            overdue: Some(v1::Overdue {
                expected_by: wire(5),
                checked_at: wire(8),
                vendor_http_status: 200,
                vendor_status: "processing".into(),
                check_count: 3,
                gave_up: true,
            }),
            ..v1::Event::default()
        };
        assert_eq!(v1::Event::decode(&*draft.event), Ok(expected));
    }
}
