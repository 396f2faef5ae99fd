//! The last subscriptions that ended, as operators see them. Bounded in number, and each in size: filters may be large.

use std::{collections::HashSet, sync::Arc};

use jiff::Timestamp;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::info::ListedSubscription;
use crate::{event::Filter, recent::Recent};

/// Task ids that are kept of a filter: as many as a listing shows.
pub(crate) const TASK_IDS_SHOWN: usize = 16;
/// Text that is kept of a filter, in bytes: eight products and two large labels.
const FILTER_BYTES_MAX: usize = 2_048;

/// A subscription that has ended.
#[derive(Clone, Debug)]
pub(crate) struct EndedSubscription {
    /// Its last state. Of a large filter only a part is there.
    pub last: ListedSubscription,
    /// The task ids of the whole filter.
    pub task_id_count: usize,
    /// True if products or labels of its filter were left out.
    pub is_cut: bool,
    /// Events between its position and the head.
    pub lag: u64,
    /// When it ended, by the log's clock.
    pub ended_at: Timestamp,
    /// Why, in the words of the metrics.
    pub cause: &'static str,
}

/// The last ends. The owner of one is a digest of both names of its client.
#[derive(Debug, Default)]
pub(crate) struct EndedSubscriptions(Recent<u64, EndedSubscription>);

impl EndedSubscriptions {
    /// Keeps the end of a subscription, in place of an older one if there is no room.
    pub(super) fn note(
        &self,
        mut last: ListedSubscription,
        lag: u64,
        ended_at: Timestamp,
        cause: &'static str,
    ) {
        let task_id_count = last.filter.task_ids.len();
        let is_cut = cut(&mut last.filter);
        let client = xxh3_64(last.client.as_deref().unwrap_or_default().as_bytes());
        let owner = xxh3_64_with_seed(last.client_name.as_bytes(), client);
        let ended = EndedSubscription {
            last,
            task_id_count,
            is_cut,
            lag,
            ended_at,
            cause,
        };
        self.0.note(owner, ended);
    }

    /// The newest `count_max` of those before number `before` that are of this client, the newest first, with their numbers.
    pub(crate) fn newest(
        &self,
        before: u64,
        count_max: usize,
        client: &str,
    ) -> Vec<(u64, Arc<EndedSubscription>)> {
        let is_meant = |ended: &EndedSubscription| ended.last.is_of(client);
        self.0.newest(before, count_max, is_meant)
    }
}

/// Puts a small filter in the place of a large one. True if more than task ids were left out.
fn cut(filter: &mut Arc<Filter>) -> bool {
    let of_labels = |(key, value): (&String, &String)| key.len() + value.len();
    let products: usize = filter.products.iter().map(|it| it.as_str().len()).sum();
    let labels: usize = filter.labels.iter().map(of_labels).sum();
    let is_large = products + labels > FILTER_BYTES_MAX;
    if !is_large && filter.task_ids.len() <= TASK_IDS_SHOWN {
        return false;
    }

    let mut room = FILTER_BYTES_MAX;
    let mut fits = |bytes: usize| {
        let left = room.checked_sub(bytes);
        room = left.unwrap_or(room);
        left.is_some()
    };
    *filter = Arc::new(Filter {
        task_ids: first(&filter.task_ids),
        products: filter
            .products
            .iter()
            .filter(|it| fits(it.as_str().len()))
            .cloned()
            .collect(),
        statuses: filter.statuses.clone(),
        labels: filter
            .labels
            .iter()
            .filter(|(key, value)| fits(key.len() + value.len()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        bound: filter.bound.clone(),
    });
    is_large
}

/// The first ids, in an order that does not change from call to call.
fn first<T: Ord + Clone + std::hash::Hash>(ids: &HashSet<T>) -> HashSet<T> {
    let mut ids: Vec<_> = ids.iter().collect();
    ids.sort_unstable();
    ids.into_iter().take(TASK_IDS_SHOWN).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Product, TaskId};

    #[test]
    fn of_a_large_filter_a_small_part_is_kept() {
        let product = |number| Product::parse(&format!("{number:063}")).unwrap();
        let small = Filter {
            products: (0..3).map(product).collect(),
            ..Filter::default()
        };
        let mut kept = Arc::new(small.clone());
        assert!(!cut(&mut kept));
        assert_eq!(*kept, small);

        let label = |number| (format!("key-{number}"), "x".repeat(256));
        let large = Filter {
            task_ids: (0..10_000)
                .map(|number| TaskId::parse(&format!("task-{number:05}")).unwrap())
                .collect(),
            products: (0..64).map(product).collect(),
            labels: (0..16).map(label).collect(),
            ..Filter::default()
        };
        let mut kept = Arc::new(large);
        assert!(cut(&mut kept));
        assert_eq!(kept.task_ids.len(), TASK_IDS_SHOWN);
        assert!(kept.task_ids.contains("task-00015"));
        assert_eq!((kept.products.len(), kept.labels.len()), (32, 0));
    }
}
