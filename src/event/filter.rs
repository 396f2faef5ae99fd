//! Which events a client wants: AND between the fields, OR within one, an empty field does not restrict. Pure.

use std::collections::{BTreeSet, HashSet};

use super::{Labels, Product, TaskId, TaskStatus};

/// What a filter looks at. Borrowed, so that a stored record can be matched without decoding it.
pub trait Selectable {
    /// The event's task id.
    fn task_id(&self) -> &str;
    /// The event's product.
    fn product(&self) -> &str;
    /// The event's status.
    fn status(&self) -> TaskStatus;
    /// True if the event carries exactly this label.
    fn has_label(&self, key: &str, value: &str) -> bool;
}

/// A validated filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any of these tasks.
    pub task_ids: HashSet<TaskId>,
    /// Any of these products. Few, mostly one, and looked at for every delivery: not worth a hash.
    pub products: BTreeSet<Product>,
    /// Any of these statuses.
    pub statuses: Vec<TaskStatus>,
    /// Any of these labels.
    pub labels: Labels,
}

impl Filter {
    /// True if the event passes.
    pub fn matches(&self, event: &impl Selectable) -> bool {
        (self.task_ids.is_empty() || self.task_ids.contains(event.task_id()))
            && (self.products.is_empty() || self.products.contains(event.product()))
            && (self.statuses.is_empty() || self.statuses.contains(&event.status()))
            && (self.labels.is_empty() || self.labels.iter().any(|(key, value)| event.has_label(key, value)))
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
        label: (&'static str, &'static str),
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
            self.label == (key, value)
        }
    }

    const TASKS: [&str; 3] = ["t1", "t2", "t3"];
    const PRODUCTS: [&str; 3] = ["veo", "sora", "kling"];
    const LABELS: [(&str, &str); 3] = [("team", "ads"), ("team", "film"), ("ref", "42")];

    fn any_event() -> impl Strategy<Value = Plain> {
        (0..3usize, 0..3usize, 0..5u8, 0..3usize).prop_map(|(task, product, status, label)| Plain {
            task_id: TASKS[task],
            product: PRODUCTS[product],
            status: TaskStatus::from_number(status).unwrap(),
            label: LABELS[label],
        })
    }

    fn any_filter() -> impl Strategy<Value = Filter> {
        let subset = || collection::vec(0..3usize, 0..3);
        (subset(), subset(), collection::vec(0..5u8, 0..3), subset()).prop_map(|(tasks, products, statuses, labels)| {
            Filter {
                task_ids: tasks.into_iter().map(|i| TaskId::parse(TASKS[i]).unwrap()).collect(),
                products: products.into_iter().map(|i| Product::parse(PRODUCTS[i]).unwrap()).collect(),
                statuses: statuses.into_iter().map(|n| TaskStatus::from_number(n).unwrap()).collect(),
                labels: labels.into_iter().map(|i| (LABELS[i].0.into(), LABELS[i].1.into())).collect(),
            }
        })
    }

    proptest! {
        #[test]
        fn an_empty_filter_matches_everything(event in any_event()) {
            prop_assert!(Filter::default().matches(&event));
        }

        #[test]
        fn a_filter_is_the_conjunction_of_its_fields(filter in any_filter(), event in any_event()) {
            let Filter { task_ids, products, statuses, labels } = filter.clone();
            let only = Filter::default;
            let each = [
                Filter { task_ids, ..only() },
                Filter { products, ..only() },
                Filter { statuses, ..only() },
                Filter { labels, ..only() },
            ];
            prop_assert_eq!(filter.matches(&event), each.iter().all(|field| field.matches(&event)));
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
