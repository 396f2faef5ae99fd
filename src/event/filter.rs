//! The filter of a subscription or a listing: AND between its fields, OR within one field, and an empty field does not restrict.
//!
//! Owns matching, for stored records and for anything else that is [`Selectable`], and the size at which a filter counts against a
//! client's limits. Pure.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{Labels, Product, TaskId, TaskStatus};

/// The fields of an event that a filter compares. Borrowed, so that a stored record can be matched without decoding it.
pub trait Selectable {
    /// The task that the event is about.
    fn task_id(&self) -> &str;
    /// The product that the task belongs to.
    fn product(&self) -> &str;
    /// The state that the event reports.
    fn status(&self) -> TaskStatus;
    /// True if the event carries exactly this label.
    fn has_label(&self, key: &str, value: &str) -> bool;
}

/// A validated filter: its ids, products and labels are well-formed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The event is about one of these tasks.
    pub task_ids: HashSet<TaskId>,
    /// The event is of one of these products. A filter has few, mostly one, and every delivery compares them: a hash would cost more.
    pub products: BTreeSet<Product>,
    /// The event has one of these statuses.
    pub statuses: Vec<TaskStatus>,
    /// The event carries at least one of these labels.
    pub labels: Labels,
    /// The event carries all of these labels: the client's line in the credentials file binds it to them. Shared by all streams of
    /// the client.
    pub bound: Option<Arc<Labels>>,
}

impl Filter {
    /// True if the event passes every field.
    pub fn matches(&self, event: &impl Selectable) -> bool {
        (self.task_ids.is_empty() || self.task_ids.contains(event.task_id()))
            && (self.products.is_empty() || self.products.contains(event.product()))
            && (self.statuses.is_empty() || self.statuses.contains(&event.status()))
            && (self.labels.is_empty()
                || self
                    .labels
                    .iter()
                    .any(|(key, value)| event.has_label(key, value)))
            && self
                .bound
                .as_deref()
                .is_none_or(|bound| bound.iter().all(|(key, value)| event.has_label(key, value)))
    }

    /// True if every event that passes also carries all labels in `bound`, by the filter's own binding.
    pub fn is_within(&self, bound: Option<&Labels>) -> bool {
        let has = |(key, value): (&String, &String)| {
            self.bound.as_deref().and_then(|own| own.get(key)) == Some(value)
        };
        bound.is_none_or(|bound| bound.iter().all(has))
    }

    /// The filter's memory, counted in task ids: one for each task id, and one more for each 256 bytes of its text. Products and
    /// labels count one for each 256 bytes after the first KiB, which is free. The binding is shared and not counted.
    pub fn size_in_task_ids(&self) -> usize {
        const EACH: usize = 256;
        const FREE: usize = 4;
        let of_ids: usize = self
            .task_ids
            .iter()
            .map(|id| 1 + id.as_str().len() / EACH)
            .sum();

        let products: usize = self
            .products
            .iter()
            .map(|product| product.as_str().len() + 32)
            .sum();
        let labels: usize = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len() + 64)
            .sum();

        of_ids + ((products + labels) / EACH).saturating_sub(FREE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::*;

    #[derive(Debug)]
    struct Plain {
        task_id: &'static str,
        product: &'static str,
        status: TaskStatus,
        labels: Vec<(&'static str, &'static str)>,
    }

    impl Selectable for Plain {
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
            self.labels.contains(&(key, value))
        }
    }

    #[test]
    fn a_filter_counts_as_its_task_ids_and_more_if_it_is_large() {
        let ids = |of: &[String]| of.iter().map(|id| TaskId::parse(id).unwrap()).collect();
        let small = Filter {
            task_ids: ids(&["t1".into(), "t2".into()]),
            products: [Product::parse("veo").unwrap()].into(),
            labels: [("team".to_owned(), "ads".to_owned())].into(),
            ..Filter::default()
        };
        assert_eq!(
            (
                Filter::default().size_in_task_ids(),
                small.size_in_task_ids()
            ),
            (0, 2)
        );
        let long = Filter {
            task_ids: ids(&["😀".repeat(128), "x".repeat(128)]),
            ..Filter::default()
        };
        assert_eq!(long.size_in_task_ids(), 3 + 1);
        let labels = (0..16)
            .map(|n| (format!("{n:02}{}", "😀".repeat(62)), "😀".repeat(256)))
            .collect();
        let products = (0..64)
            .map(|n| Product::parse(&format!("p{n:062}")).unwrap())
            .collect();
        let largest = Filter {
            labels,
            products,
            ..Filter::default()
        };
        assert!(
            (100..110).contains(&largest.size_in_task_ids()),
            "{}",
            largest.size_in_task_ids()
        );
    }

    const TASKS: [&str; 3] = ["t1", "t2", "t3"];
    const PRODUCTS: [&str; 3] = ["veo", "sora", "kling"];
    const LABELS: [(&str, &str); 3] = [("team", "ads"), ("team", "film"), ("ref", "42")];

    fn any_event() -> impl Strategy<Value = Plain> {
        let labels = collection::vec(0..3usize, 0..3);
        (0..3usize, 0..3usize, 0..6u8, labels).prop_map(|(task, product, status, labels)| Plain {
            task_id: TASKS[task],
            product: PRODUCTS[product],
            status: TaskStatus::from_number(status).unwrap(),
            labels: labels.into_iter().map(|label| LABELS[label]).collect(),
        })
    }

    fn subset() -> impl Strategy<Value = Vec<usize>> {
        collection::vec(0..3usize, 0..3)
    }

    fn labels(chosen: Vec<usize>) -> Labels {
        chosen
            .into_iter()
            .map(|i| (LABELS[i].0.into(), LABELS[i].1.into()))
            .collect()
    }

    fn any_filter() -> impl Strategy<Value = Filter> {
        let asked = (subset(), subset(), collection::vec(0..6u8, 0..3), subset());
        (asked, subset()).prop_map(|((tasks, products, statuses, chosen), bound)| Filter {
            task_ids: tasks
                .into_iter()
                .map(|i| TaskId::parse(TASKS[i]).unwrap())
                .collect(),
            products: products
                .into_iter()
                .map(|i| Product::parse(PRODUCTS[i]).unwrap())
                .collect(),
            statuses: statuses
                .into_iter()
                .map(|n| TaskStatus::from_number(n).unwrap())
                .collect(),
            labels: labels(chosen),
            bound: (!bound.is_empty()).then(|| Arc::new(labels(bound))),
        })
    }

    proptest! {
        #[test]
        fn an_empty_filter_matches_everything(event in any_event()) {
            prop_assert!(Filter::default().matches(&event));
        }

        #[test]
        fn a_filter_is_the_conjunction_of_its_fields(filter in any_filter(), event in any_event()) {
            let Filter { task_ids, products, statuses, labels, bound } = filter.clone();
            let only = Filter::default;
            let each = [
                Filter { task_ids, ..only() },
                Filter { products, ..only() },
                Filter { statuses, ..only() },
                Filter { labels, ..only() },
                Filter { bound, ..only() },
            ];
            prop_assert_eq!(filter.matches(&event), each.iter().all(|field| field.matches(&event)));
        }

        #[test]
        fn a_bound_filter_passes_the_same_events_if_they_carry_all_bound_labels(
            filter in any_filter(),
            event in any_event(),
        ) {
            let free = Filter { bound: None, ..filter.clone() };
            let bound = filter.bound.clone().unwrap_or_default();
            let carries_all = bound.iter().all(|(key, value)| event.has_label(key, value));
            prop_assert_eq!(filter.matches(&event), free.matches(&event) && carries_all);
        }

        #[test]
        fn a_filter_within_a_binding_passes_no_event_without_its_labels(
            filter in any_filter(),
            bound in subset().prop_map(labels),
            event in any_event(),
        ) {
            let is_within = filter.is_within(Some(&bound));
            let carries_all = bound.iter().all(|(key, value)| event.has_label(key, value));
            prop_assert!(!(is_within && filter.matches(&event)) || carries_all);
            prop_assert_eq!(is_within, bound.iter().all(|(key, value)| {
                filter.bound.as_ref().is_some_and(|own| own.get(key) == Some(value))
            }));
            prop_assert!(filter.is_within(None) && filter.is_within(filter.bound.as_deref()));
        }

        #[test]
        fn one_more_value_in_a_restricting_field_never_loses_an_event(filter in any_filter(), event in any_event()) {
            let mut wider = filter.clone();
            if !wider.task_ids.is_empty() {
                wider.task_ids.insert(TaskId::parse("another").unwrap());
            }
            if !wider.statuses.is_empty() {
                wider.statuses.push(TaskStatus::Pending);
            }
            prop_assert!(!filter.matches(&event) || wider.matches(&event));
        }
    }
}
