//! What is made of answers, documented and otherwise.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*, sample::select};
use prost::Message;
use serde_json::{Map, Value, json};

use super::*;
use crate::{
    event::{Labels, Product},
    wire::v1,
};

/// Every answer that the vendor's pages document, by product and status.
const DOCUMENTED: &str = include_str!("../../../tests/data/vendor_status.json");

struct Question {
    product: Product,
    task_id: TaskId,
    labels: Labels,
}

impl Question {
    fn of(product: &str, task_id: &str) -> Self {
        Self {
            product: Product::parse(product).unwrap(),
            task_id: TaskId::parse(task_id).unwrap(),
            labels: [("team".to_owned(), "ads".to_owned())].into(),
        }
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            product: &self.product,
            task_id: &self.task_id,
            labels: &self.labels,
            tenant: None,
            vendor_key: Some("main"),
            at: Timestamp::from_second(9).unwrap(),
        }
    }

    fn answered(&self, body: &Value) -> Understood {
        understand(&self.asked(), 200, &Bytes::from(body.to_string()))
    }
}

/// A word for what was understood, the vendor's word with it, and the event if there is one.
fn told(understood: Understood) -> (&'static str, String, Option<v1::Event>) {
    let event = |draft: &Draft| Some(v1::Event::decode(&*draft.event).unwrap());
    match understood {
        Understood::Ended(draft) => ("ended", String::new(), event(&draft)),
        Understood::CompletedWithoutOutputs(draft) => ("empty", String::new(), event(&draft)),
        Understood::NotYet { vendor_status } => ("not yet", vendor_status, None),
        Understood::Unknown { vendor_status } => ("unknown", vendor_status, None),
    }
}

#[test]
fn every_documented_answer_is_understood_as_it_is_documented() {
    let documented: BTreeMap<String, Value> = serde_json::from_str(DOCUMENTED).unwrap();
    assert!(documented.len() > 20);
    for (name, body) in documented {
        let (product, status) = name.rsplit_once('-').unwrap();
        let id = ["generation_id", "task_uuid"]
            .iter()
            .find_map(|key| body[*key].as_str());
        let question = Question::of(product, id.unwrap());
        let (understood, word, event) = told(question.answered(&body));
        match status {
            "pending" | "processing" => {
                assert_eq!((understood, word.as_str()), ("not yet", status), "{name}");
            }
            _ => {
                let event = event.unwrap();
                let is_completed = event.status() == v1::TaskStatus::Completed;
                assert_eq!(
                    (understood, is_completed),
                    ("ended", status == "completed"),
                    "{name}"
                );
                assert_eq!(event.outputs.is_empty(), !is_completed, "{name}");
                assert_eq!(event.product, product);
            }
        }
    }
}

#[test]
fn an_answer_becomes_an_event_of_the_expectation() {
    let question = Question::of("kling", "t1");
    // The shape is gemini's. The request says what product it is.
    let body =
        json!({"task_uuid": "t1", "status": "completed", "result_image_url": "https://x/1.png"});
    let Understood::Ended(draft) = question.answered(&body) else {
        panic!("it is over");
    };
    assert!(draft.is_answer && !draft.lacks_output && !draft.conceals_duplicates);
    assert_eq!(
        (draft.status, draft.received_at_micros),
        (TaskStatus::Completed, 9_000_000)
    );
    assert_eq!(
        (&draft.labels, draft.raw),
        (&question.labels, Bytes::from(body.to_string()))
    );

    let event = v1::Event::decode(&*draft.event).unwrap();
    let expected = v1::Event {
        event_id: draft.event_id.to_string(),
        product: "kling".into(),
        task_id: "t1".into(),
        status: v1::TaskStatus::Completed.into(),
        status_text: "completed".into(),
        terminal: true,
        outputs: vec![v1::Output {
            kind: v1::OutputKind::Image.into(),
            url: "https://x/1.png".into(),
        }],
        received_at: Some(prost_types::Timestamp {
            seconds: 9,
            nanos: 0,
        }),
        verification: v1::Verification::VendorApi.into(),
        labels: [("team".to_owned(), "ads".to_owned())].into(),
        credential: "vendor_key main".into(),
        ..v1::Event::default()
    };
    assert_eq!(event, expected);
}

#[test]
fn an_answer_repeats_the_callback_of_its_own_tenant_alone() {
    let question = Question::of("veo", "t1");
    let body =
        json!({"generation_id": "t1", "status": "completed", "video_url": "https://x/1.mp4"});
    let fingerprint = |tenant: Option<&Labels>| {
        let asked = Asked {
            tenant,
            ..question.asked()
        };
        match understand(&asked, 200, &Bytes::from(body.to_string())) {
            Understood::Ended(draft) => draft.fingerprint,
            other => panic!("{other:?}"),
        }
    };
    let of_callback = vendor::read(body.to_string().as_bytes())
        .unwrap()
        .fingerprint(b"");
    assert!(fingerprint(None).repeats(of_callback));
    assert!(!fingerprint(Some(&question.labels)).repeats(of_callback));
    let of_tenant = of_callback.of_tenant(Some(&question.labels));
    assert!(fingerprint(Some(&question.labels)).repeats(of_tenant));
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn what_settles_nothing_is_named_by_the_vendors_word() {
    let question = Question::of("veo", "t1");
    let long = "x".repeat(1_000);
    let url = "https://x/1.mp4";
    for (body, expected, word) in [
        (json!({"id": "t1", "status": "queued"}), "not yet", "queued"),
        (
            json!({"id": "t1", "status": " Running "}),
            "not yet",
            "Running",
        ),
        (
            json!({"id": "t1", "status": "upscaling", "video_url": url}),
            "unknown",
            "upscaling",
        ),
        (
            json!({"id": "t1", "status": "overdue"}),
            "unknown",
            "overdue",
        ),
        (
            json!({"id": "t1", "status": long}),
            "unknown",
            &long[..WORD_CHARS_MAX],
        ),
        (json!({"id": "t1", "status": 200}), "unknown", "200"),
        (
            json!({"id": "t2", "status": "completed", "video_url": url}),
            "unknown",
            "",
        ),
        (json!({"id": "T1", "status": "failed"}), "unknown", ""),
        (json!({"status": "failed"}), "unknown", ""),
        (
            json!({"id": "t1", "success": false, "message": "rate limit"}),
            "unknown",
            "",
        ),
        (json!({"id": "t1", "success": true}), "unknown", ""),
        (json!({"id": "t1", "status": true}), "unknown", ""),
        (
            json!({"id": "t1", "error": {"message": "internal"}}),
            "unknown",
            "",
        ),
        (json!({"id": "t1", "video_url": url}), "unknown", ""),
        (json!({"detail": "Generation not found"}), "unknown", ""),
        (
            json!({"error": "Unauthorized", "message": "Invalid API key"}),
            "unknown",
            "",
        ),
        (json!([{"id": "t1", "status": "failed"}]), "unknown", ""),
        (
            json!({"id": "t1", "status": "completed", "video_url": null}),
            "empty",
            "",
        ),
        (
            json!({"id": "t1", "status": "completed", "video_url": url}),
            "ended",
            "",
        ),
        (json!({"id": "t1", "status": "failed"}), "ended", ""),
    ] {
        let (understood, vendor_status, _) = told(question.answered(&body));
        assert_eq!(
            (understood, vendor_status.as_str()),
            (expected, word),
            "{body}"
        );
    }
    for body in [
        "",
        "<html>502</html>",
        "{\"id\":\"t1\",\"status\":\"failed\"",
    ] {
        let understood = understand(&question.asked(), 200, &Bytes::from(body));
        assert_eq!(told(understood).0, "unknown", "{body}");
    }
}

#[test]
fn an_end_counts_only_in_an_answer_that_succeeded() {
    let question = Question::of("veo", "t1");
    let body = Bytes::from(json!({"id": "t1", "status": "failed"}).to_string());
    for (http_status, expected) in [
        (199, "unknown"),
        (200, "ended"),
        (299, "ended"),
        (300, "unknown"),
        (400, "unknown"),
        (503, "unknown"),
    ] {
        let understood = understand(&question.asked(), http_status, &body);
        assert_eq!(told(understood).0, expected, "{http_status}");
        let list = List::read(
            http_status,
            format!("[{}]", str::from_utf8(&body).unwrap()).as_bytes(),
        );
        assert_eq!(list.is_some(), expected == "ended", "{http_status}");
    }
}

#[test]
fn each_element_of_a_list_is_an_answer() {
    let elements = json!([
        {"generation_id": "t1", "status": "completed", "video_url": "https://x/1.mp4", "created_at": "1970-01-01T00:00:07"},
        {"status": "completed"},
        {"generation_id": "t3", "status": "processing"},
    ]);
    let list = List::read(200, elements.to_string().as_bytes()).unwrap();
    assert_eq!(list.count, 3);
    let mut tasks = list.tasks.into_iter();
    let (first, third) = (tasks.next().unwrap(), tasks.next().unwrap());
    assert!(tasks.next().is_none(), "one has no id");
    assert_eq!(first.created_at(), Timestamp::from_second(7).ok());
    assert_eq!(third.created_at(), None);

    let question = Question::of("sora", first.task_id().as_str());
    let Understood::Ended(draft) = first.understand(&question.asked()) else {
        panic!("it is over");
    };
    let raw: Value = serde_json::from_slice(&draft.raw).unwrap();
    assert_eq!((draft.product.as_str(), &raw), ("sora", &elements[0]));
    assert_eq!(
        told(third.understand(&question.asked())).0,
        "unknown",
        "another task"
    );

    for empty in ["[]", " [ \n ] "] {
        let list = List::read(200, empty.as_bytes()).unwrap();
        assert_eq!((list.count, list.tasks.len()), (0, 0));
    }
    for other in ["", "{}", "[", "]", "[1,]", "null", "{\"detail\":[]}"] {
        assert!(List::read(200, other.as_bytes()).is_none(), "{other}");
    }
    let most = PAGE as usize;
    let many = json!(vec![elements[0].clone(); most + 1]).to_string();
    let many = List::read(200, many.as_bytes()).unwrap();
    assert_eq!((many.count, many.tasks.len()), (most + 1, most));
}

/// A value that an answer may have somewhere.
fn any_value() -> impl Strategy<Value = Value> {
    let texts = select(vec![
        "t1",
        "t2",
        "completed",
        "Failed",
        "done",
        "nsfw",
        "processing",
        "queued",
        "upscaling",
        "overdue",
        "true",
        "",
        "https://x/1.mp4",
        "UNSAFE_CONTENT",
        "no such task",
    ]);
    let leaf = prop_oneof![
        6 => texts.prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => (0..600i64).prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        let keys = select(vec![
            "message",
            "code",
            "details",
            "url",
            "video_urls",
            "status",
        ]);
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec((keys, inner), 0..3).prop_map(|fields| {
                Value::from(
                    fields
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect::<Map<_, _>>(),
                )
            }),
        ]
    })
}

fn any_answer() -> impl Strategy<Value = Value> {
    let keys = [
        "generation_id",
        "task_uuid",
        "id",
        "status",
        "success",
        "video_url",
        "output",
        "result",
        "error",
        "error_message",
        "message",
        "detail",
    ];
    let fields = keys.map(|key| {
        option::of(any_value()).prop_map(move |value| value.map(|value| (key.to_owned(), value)))
    });
    let id = option::weighted(0.7, Just(json!("t1")));
    (fields, id).prop_map(|(fields, id)| {
        let mut body: Map<_, _> = fields.into_iter().flatten().collect();
        if let Some(id) = id {
            body.insert("generation_id".into(), id);
        }
        Value::from(body)
    })
}

proptest! {
    /// A word for the end stands in the body, and so does the task.
    #[test]
    fn an_end_is_never_made_of_what_the_body_does_not_say(body in any_answer(), http_status in 100..600u16) {
        let question = Question::of("veo", "t1");
        let understood = understand(&question.asked(), http_status, &Bytes::from(body.to_string()));
        let (Understood::Ended(draft) | Understood::CompletedWithoutOutputs(draft)) = understood else {
            return Ok(());
        };
        prop_assert!((200..300).contains(&http_status));
        let said = |key: &str| body[key].as_str().unwrap_or_default().to_lowercase();
        let words = [said("status"), said("success")];
        let ends: &[&str] = if draft.status == TaskStatus::Completed { &["completed", "done"] } else { &["failed", "nsfw"] };
        prop_assert!(draft.status.is_terminal() && words.iter().any(|word| ends.contains(&word.as_str())), "{}", body);
        prop_assert!(["generation_id", "task_uuid", "id"].iter().any(|key| body[*key] == "t1"), "{}", body);
        prop_assert_eq!(draft.task_id, question.task_id);
    }

    #[test]
    fn any_bytes_are_understood_somehow(body in vec(any::<u8>(), 0..60), http_status: u16) {
        let question = Question::of("veo", "t1");
        let understood = understand(&question.asked(), http_status, &Bytes::from(body.clone()));
        prop_assert!(!matches!(told(understood), (.., Some(_))));
        if let Some(list) = List::read(http_status, &body) {
            prop_assert!(list.tasks.len() <= list.count);
        }
    }
}
