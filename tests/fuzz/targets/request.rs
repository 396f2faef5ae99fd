//! Requests of gRPC clients. Any bytes are decoded or refused; a filter that is taken is within its limits, and is what the
//! request says.
//!
//! Input: which message (1 byte), then its encoding.

use std::{collections::BTreeMap, time::Duration};

use blobcast::{
    event::{
        Cursor, Filter, LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, Labels, Product, Selectable,
        TaskId, TaskStatus,
    },
    wire::{
        FilterLimits, FilterRefusal, duration, filter_from_wire, instant_from_wire,
        positive_duration, status_to_wire, timestamp, v1,
    },
};
use prost::Message;

const LIMITS: FilterLimits = FilterLimits {
    task_ids_max: 3,
    products_max: 2,
};

pub(crate) fn run(input: &[u8]) {
    let Some((message, bytes)) = input.split_first() else {
        return;
    };
    match message % 3 {
        0 => decoded(bytes, |request: v1::SubscribeRequest| {
            check_filter(request.filter);
            request
                .heartbeat_interval
                .into_iter()
                .for_each(check_duration);
            match request.start {
                Some(v1::subscribe_request::Start::Since(time)) => check_instant(time),
                Some(v1::subscribe_request::Start::AfterCursor(text)) => {
                    assert!(
                        Cursor::parse(&text).is_ok_and(|cursor| cursor.to_string() == text)
                            || Cursor::parse(&text).is_err()
                    );
                }
                _ => {}
            }
        }),
        1 => decoded(bytes, |request: v1::ListEventsRequest| {
            check_filter(request.filter);
            [request.since, request.until]
                .into_iter()
                .flatten()
                .for_each(check_instant);
        }),
        _ => decoded(bytes, |request: v1::WaitTaskRequest| {
            request.timeout.into_iter().for_each(check_duration);
        }),
    }
}

/// Decoded, and encoded as the same again.
fn decoded<M: Message + Default + Clone + PartialEq>(bytes: &[u8], check: impl FnOnce(M)) {
    if let Ok(message) = M::decode(bytes) {
        assert!(M::decode(message.encode_to_vec().as_slice()).as_ref() == Ok(&message));
        check(message);
    }
}

fn check_filter(wire: Option<v1::Filter>) {
    match filter_from_wire(wire.clone(), LIMITS) {
        Ok(filter) => {
            assert!(
                filter.task_ids.len() <= LIMITS.task_ids_max
                    && filter.products.len() <= LIMITS.products_max
            );
            assert!(filter.labels.len() <= 16 && filter.statuses.len() <= TaskStatus::ALL.len());
            assert_eq!(
                filter_from_wire(Some(to_wire(&filter)), LIMITS).as_ref(),
                Ok(&filter)
            );
            check_matches(&filter);
        }
        Err(refusal) => assert!(has_cause(&wire.unwrap_or_default(), &refusal), "{refusal}"),
    }
}

fn to_wire(filter: &Filter) -> v1::Filter {
    v1::Filter {
        task_ids: filter.task_ids.iter().map(ToString::to_string).collect(),
        products: filter.products.iter().map(ToString::to_string).collect(),
        statuses: filter
            .statuses
            .iter()
            .map(|&status| status_to_wire(status).into())
            .collect(),
        labels: filter.labels.clone().into_iter().collect(),
    }
}

fn has_cause(wire: &v1::Filter, refusal: &FilterRefusal) -> bool {
    let too_long = |(key, value): (&String, &String)| {
        key.chars().count() > LABEL_KEY_CHARS_MAX || value.chars().count() > LABEL_VALUE_CHARS_MAX
    };
    match refusal {
        FilterRefusal::TooMany { field, limit } => {
            let count = match *field {
                "filter.task_ids" => wire.task_ids.len(),
                "filter.products" => wire.products.len(),
                "filter.statuses" => wire.statuses.len(),
                _ => wire.labels.len(),
            };
            count > *limit
        }
        FilterRefusal::Malformed(malformed) => {
            let (field, at) = malformed
                .field
                .split_once('[')
                .unwrap_or((&malformed.field, "0]"));
            let at: usize = at.trim_end_matches(']').parse().expect("an index");
            match field {
                "filter.task_ids" => TaskId::parse(&wire.task_ids[at]).is_err(),
                "filter.products" => Product::parse(&wire.products[at]).is_err(),
                "filter.statuses" => {
                    !(0..TaskStatus::ALL.len() as i32).contains(&wire.statuses[at])
                }
                _ => wire.labels.iter().any(too_long),
            }
        }
    }
}

/// An event with one of the values of each field passes, and one with none of them does not.
fn check_matches(filter: &Filter) {
    let first = Plain {
        task_id: filter.task_ids.iter().next().map_or("t", TaskId::as_str),
        product: filter.products.iter().next().map_or("p", Product::as_str),
        status: filter
            .statuses
            .first()
            .copied()
            .unwrap_or(TaskStatus::Completed),
        labels: filter
            .labels
            .iter()
            .take(1)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    };
    assert!(filter.matches(&first));
    let none = Plain {
        task_id: "",
        product: "",
        labels: BTreeMap::new(),
        ..first
    };
    let restricts =
        !(filter.task_ids.is_empty() && filter.products.is_empty() && filter.labels.is_empty());
    assert_eq!(filter.matches(&none), !restricts);
}

struct Plain<'a> {
    task_id: &'a str,
    product: &'a str,
    status: TaskStatus,
    labels: Labels,
}

impl Selectable for Plain<'_> {
    fn task_id(&self) -> &str {
        self.task_id
    }
    fn product(&self) -> &str {
        self.product
    }
    fn status(&self) -> TaskStatus {
        self.status
    }
    fn has_label(&self, key: &str, value: &str) -> bool {
        self.labels.get(key).is_some_and(|found| found == value)
    }
}

fn check_instant(wire: prost_types::Timestamp) {
    if let Ok(time) = instant_from_wire("since", wire) {
        let back = timestamp(time);
        // The one day of protobuf's range that is not in jiff's.
        assert!(
            back == wire || wire.seconds > back.seconds,
            "{wire:?} became {back:?}"
        );
    }
}

fn check_duration(wire: prost_types::Duration) {
    let negative = wire.seconds < 0 || wire.nanos < 0;
    match positive_duration("timeout", wire) {
        Ok(read) => {
            assert!(!negative);
            let exact = Duration::new(wire.seconds as u64, 0)
                .checked_add(Duration::from_nanos(wire.nanos as u64));
            assert!(
                exact == Some(read) || wire.seconds > 315_576_000_000,
                "{wire:?} became {read:?}"
            );
            assert!(duration(read).seconds <= 315_576_000_000);
        }
        Err(malformed) => assert!(negative, "{malformed}"),
    }
}
