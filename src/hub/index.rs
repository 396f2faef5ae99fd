//! The index from events to the seats that may want them: by task, by product, and the seats that restrict neither. Pure.
//!
//! The index gives candidates only. The hub then applies each candidate's whole filter.

use std::collections::HashMap;

use crate::event::{Filter, Product, Record, Selectable, TaskId};

/// Seat numbers by the most selective field of their filters: task ids, or else products.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_task: HashMap<TaskId, Vec<usize>>,
    by_product: HashMap<Product, Vec<usize>>,
    rest: Vec<usize>,
}

impl Index {
    pub(super) fn insert(&mut self, filter: &Filter, number: usize) {
        if !filter.task_ids.is_empty() {
            for task_id in &filter.task_ids {
                // Most tasks have one waiter, so the list starts with room for one.
                self.by_task
                    .entry(task_id.clone())
                    .or_insert_with(|| Vec::with_capacity(1))
                    .push(number);
            }
        } else if !filter.products.is_empty() {
            for product in &filter.products {
                self.by_product
                    .entry(product.clone())
                    .or_default()
                    .push(number);
            }
        } else {
            self.rest.push(number);
        }
    }

    pub(super) fn remove(&mut self, filter: &Filter, number: usize) {
        if !filter.task_ids.is_empty() {
            for task_id in &filter.task_ids {
                if self
                    .by_task
                    .get_mut(task_id)
                    .is_some_and(|seats| remove_seat(seats, number))
                {
                    self.by_task.remove(task_id);
                }
            }
        } else if !filter.products.is_empty() {
            for product in &filter.products {
                if self
                    .by_product
                    .get_mut(product)
                    .is_some_and(|seats| remove_seat(seats, number))
                {
                    self.by_product.remove(product);
                }
            }
        } else {
            remove_seat(&mut self.rest, number);
        }
    }

    pub(super) fn for_each_candidate(&self, record: &Record, visit: impl FnMut(usize)) {
        let by_task = self.by_task.get(record.task_id()).into_iter().flatten();
        let by_product = self.by_product.get(record.product()).into_iter().flatten();

        by_task
            .chain(by_product)
            .chain(&self.rest)
            .copied()
            .for_each(visit);
    }
}

/// Removes a seat from a list; true if the list is empty then.
fn remove_seat(seats: &mut Vec<usize>, number: usize) -> bool {
    if let Some(at) = seats.iter().position(|&seat| seat == number) {
        seats.swap_remove(at);
    }
    seats.is_empty()
}
