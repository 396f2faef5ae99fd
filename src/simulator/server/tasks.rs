//! The tasks that the simulated vendor knows, oldest first. Bounded: what has ended and is settled is forgotten first.

use std::collections::{BTreeMap, HashMap};

use hyper::Uri;
use jiff::Timestamp;

use super::settings::{ListOrder, TEXT_BYTES_MAX};
use crate::vendor::{sample::SampleStatus, task_sample::TaskSample};

/// The state of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits in the queue.
    Pending,
    /// It runs.
    Processing,
    /// It has outputs.
    Completed,
    /// It is completed, and its outputs are missing.
    CompletedWithoutOutputs,
    /// It has failed. Some products give the reason in the callback only.
    Failed,
}

impl State {
    /// True if the task has ended.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Pending | Self::Processing)
    }

    /// The vendor's word.
    pub fn as_str(self) -> &'static str {
        self.sample().as_str()
    }

    fn sample(self) -> SampleStatus {
        match self {
            Self::Pending => SampleStatus::Pending,
            Self::Processing => SampleStatus::Processing,
            Self::Completed | Self::CompletedWithoutOutputs => SampleStatus::Completed,
            Self::Failed => SampleStatus::Failed,
        }
    }
}

/// A task, as the vendor knows it.
#[derive(Clone, Debug)]
pub struct Task {
    /// The slug of its product.
    pub product: String,
    /// Its id.
    pub id: String,
    /// The only key that may see it; `None`: every key.
    pub key: Option<String>,
    /// The prompt of the request.
    pub prompt: String,
    /// The seed of the request.
    pub seed: Option<u64>,
    /// Where its callback goes; `None`: it has none.
    pub callback_url: Option<Uri>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it ended; `None`: it has not ended.
    pub ended_at: Option<Timestamp>,
    /// Its state.
    pub state: State,
}

impl Task {
    /// A pending task that every key may see.
    pub fn new(product: &str, id: &str, created_at: Timestamp) -> Self {
        Self {
            product: product.to_owned(),
            id: id.to_owned(),
            key: None,
            prompt: "A paper boat on a rainy street, seen from above".to_owned(),
            seed: None,
            callback_url: None,
            created_at,
            ended_at: None,
            state: State::Pending,
        }
    }

    /// The same task in another state.
    #[must_use]
    pub fn in_state(mut self, state: State, now: Timestamp) -> Self {
        self.state = state;
        self.ended_at = state.is_over().then(|| self.ended_at.unwrap_or(now));
        self
    }

    /// What the vendor says about it at a time, of a task that takes `after`.
    pub(super) fn sample(&self, now: Timestamp, after: std::time::Duration) -> TaskSample<'_> {
        let elapsed = now.duration_since(self.created_at).as_secs_f64();
        let progress = 100.0 * elapsed / after.as_secs_f64().max(0.001);
        TaskSample {
            product: &self.product,
            task_id: &self.id,
            prompt: &self.prompt,
            seed: self.seed,
            status: self.state.sample(),
            has_outputs: self.state != State::CompletedWithoutOutputs,
            // A cast of a float keeps within the type.
            progress_percent: progress.clamp(0.0, 99.0) as u8,
            created_at: self.created_at,
            at: self.ended_at.unwrap_or(now),
        }
    }

    fn text_bytes(&self) -> usize {
        let url = self.callback_url.as_ref().map_or(0, |url| {
            url.path().len() + url.query().map_or(0, str::len) + url.host().map_or(0, str::len)
        });
        self.prompt.len() + url
    }
}

/// No task can be accepted: all that are remembered are still open.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Tasks {
    by_number: BTreeMap<u64, Entry>,
    number_of: HashMap<(String, String), u64>,
    next: u64,
    text_bytes: usize,
    tasks_max: usize,
}

#[derive(Debug)]
struct Entry {
    task: Task,
    /// It has ended, and nothing more will be sent about it.
    is_settled: bool,
}

impl Tasks {
    pub(super) fn new(tasks_max: usize) -> Self {
        Self {
            by_number: BTreeMap::new(),
            number_of: HashMap::new(),
            next: 0,
            text_bytes: 0,
            tasks_max,
        }
    }

    /// The number that the next task will have.
    pub(super) fn next_number(&self) -> u64 {
        self.next
    }

    /// Adds a task, in place of one with the same product and id.
    pub(super) fn add(&mut self, task: Task, is_settled: bool) -> Result<u64, Full> {
        let key = (task.product.clone(), task.id.clone());
        if let Some(number) = self.number_of.get(&key).copied() {
            self.remove(number);
        }
        while self.by_number.len() >= self.tasks_max
            || self.text_bytes + task.text_bytes() > TEXT_BYTES_MAX
        {
            let mut entries = self.by_number.iter();
            let oldest = entries.find(|(_, entry)| entry.is_settled);
            let oldest = *oldest.ok_or(Full)?.0;
            self.remove(oldest);
        }

        let number = self.next;
        self.next += 1;
        self.text_bytes += task.text_bytes();
        self.number_of.insert(key, number);
        self.by_number.insert(number, Entry { task, is_settled });
        Ok(number)
    }

    fn remove(&mut self, number: u64) {
        if let Some(Entry { task, .. }) = self.by_number.remove(&number) {
            self.text_bytes -= task.text_bytes();
            self.number_of.remove(&(task.product, task.id));
        }
    }

    pub(super) fn get(&self, product: &str, id: &str) -> Option<&Task> {
        let number = self.number_of.get(&(product.to_owned(), id.to_owned()))?;
        Some(&self.by_number.get(number)?.task)
    }

    /// Puts a task into another state. Returns it, or `None` if it is forgotten.
    pub(super) fn set_state(
        &mut self,
        product: &str,
        id: &str,
        state: State,
        now: Timestamp,
    ) -> Option<Task> {
        let number = self.number_of.get(&(product.to_owned(), id.to_owned()))?;
        let entry = self.by_number.get_mut(number)?;
        entry.task = entry.task.clone().in_state(state, now);
        Some(entry.task.clone())
    }

    /// Notes that nothing more will be sent about a task.
    pub(super) fn settle(&mut self, number: u64) {
        if let Some(entry) = self.by_number.get_mut(&number) {
            entry.is_settled = true;
        }
    }

    /// A page of the tasks of a product that a key may see.
    pub(super) fn page(
        &self,
        product: &str,
        key: &str,
        order: ListOrder,
        limit: usize,
        offset: usize,
    ) -> Vec<&Task> {
        let mut tasks: Vec<_> = self
            .by_number
            .values()
            .map(|entry| &entry.task)
            .filter(|task| task.product == product && task.is_seen_by(key))
            .collect();
        // Tasks that tests add need not be added in the order of their times.
        tasks.sort_by_key(|task| task.created_at);
        if order == ListOrder::NewestFirst {
            tasks.reverse();
        }
        tasks.into_iter().skip(offset).take(limit).collect()
    }

    /// The numbers of tasks that are remembered, and of those that are still open.
    pub(super) fn counts(&self) -> (usize, usize) {
        let open = self.by_number.values().filter(|entry| !entry.is_settled);
        (self.by_number.len(), open.count())
    }
}

impl Task {
    pub(super) fn is_seen_by(&self, key: &str) -> bool {
        self.key.as_deref().is_none_or(|owner| owner == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, second: i64) -> Task {
        Task::new("veo", id, Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_oldest_settled_task_is_forgotten_and_an_open_one_never() {
        let mut tasks = Tasks::new(2);
        let open = tasks.add(task("open", 1), false).unwrap();
        tasks.add(task("settled", 2), true).unwrap();
        tasks.add(task("third", 3), false).unwrap();
        let known = |tasks: &Tasks, id| tasks.get("veo", id).is_some();
        assert!(known(&tasks, "open") && !known(&tasks, "settled") && known(&tasks, "third"));
        assert_eq!(tasks.add(task("fourth", 4), true), Err(Full));
        tasks.settle(open);
        assert!(tasks.add(task("fourth", 4), true).is_ok());
        assert!(!known(&tasks, "open"));
        assert_eq!(tasks.counts(), (2, 1));
    }

    #[test]
    fn texts_are_bounded_as_tasks_are() {
        let mut tasks = Tasks::new(100);
        let long = |id| Task {
            prompt: "x".repeat(TEXT_BYTES_MAX / 2),
            ..task(id, 1)
        };
        tasks.add(long("a"), true).unwrap();
        tasks.add(long("b"), true).unwrap();
        assert_eq!((tasks.counts().0, tasks.text_bytes), (2, TEXT_BYTES_MAX));
        tasks.add(task("c", 1), true).unwrap();
        assert!(tasks.get("veo", "a").is_none() && tasks.get("veo", "b").is_some());
    }

    #[test]
    fn a_page_is_of_one_product_and_one_key_in_the_order_of_creation() {
        let mut tasks = Tasks::new(100);
        for second in [3, 1, 2] {
            let mut task = task(&second.to_string(), second);
            task.key = (second == 2).then(|| "theirs".to_owned());
            tasks.add(task, true).unwrap();
        }
        tasks
            .add(Task::new("sora", "s", Timestamp::UNIX_EPOCH), true)
            .unwrap();
        let ids = |key, order, limit, offset| {
            let page = tasks.page("veo", key, order, limit, offset);
            page.iter().map(|task| task.id.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(ids("mine", ListOrder::NewestFirst, 9, 0), ["3", "1"]);
        assert_eq!(ids("theirs", ListOrder::OldestFirst, 9, 0), ["1", "2", "3"]);
        assert_eq!(ids("theirs", ListOrder::NewestFirst, 1, 1), ["2"]);
    }
}
