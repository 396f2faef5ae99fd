//! Which tasks somebody waits for now: each of them is expected, for as long as it is waited for and
//! 2 minutes longer, in which a client reconnects. In memory only.
//!
//! Reference counted: several clients may wait for one task. At most [`WAITED_FOR_MAX`] tasks are
//! known, of which one client has at most a fifth: a task is that of the client which began to wait
//! for it. Those beyond are waited for as ever, and are not checked: `ExpectTasks` expects more.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::schedule::TaskKey;
use crate::event::{Labels, Product, TaskId};

/// So long a task is still waited for after the last client has left.
pub(super) const LINGER: Duration = Duration::from_secs(120);
/// Most tasks that are known as waited for (`sizing/memory`): with 50 checks a minute
/// for each key, checking so many once takes more than three hours.
pub const WAITED_FOR_MAX: usize = 10_000;
/// Most of them that are of one client with a name: others must have tasks checked, too. Clients
/// without a name may do everything anyway.
const WAITED_FOR_PER_CLIENT_MAX: usize = WAITED_FOR_MAX / 5;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Waiting {
    state: Mutex<State>,
    /// A task began or ceased to be waited for.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    tasks: HashMap<TaskKey, Waited>,
    /// How many of them each client has.
    shares: HashMap<Arc<str>, usize>,
    /// Tasks that are not waited for any more, by when they are forgotten.
    leaving: BTreeMap<(Instant, u64), TaskKey>,
    next_number: u64,
    /// Tasks that are new since the last look. Each once, so no more than `tasks`.
    begun: VecDeque<TaskKey>,
    /// Tasks that no key is for. Some of `tasks`.
    without_key: HashSet<TaskKey>,
}

#[derive(Debug)]
struct Waited {
    /// The client that began; `None` if it was let in without showing anything.
    client: Option<Arc<str>>,
    clients: usize,
    /// When the task is forgotten, while no client waits.
    leaves: Option<(Instant, u64)>,
    bound: Bound,
}

/// What the clients that wait for a task are bound to.
#[derive(Debug)]
enum Bound {
    /// None is bound.
    None,
    /// All that are bound are bound to these labels.
    Alike(Arc<Labels>),
    /// To different ones: a label of one tenant must not show the event to another.
    Different,
}

impl Bound {
    /// One more client waits. One that is not bound sees the event whatever it carries.
    fn join(&mut self, labels: Option<&Arc<Labels>>) {
        let Some(labels) = labels else {
            return;
        };
        match self {
            Self::None => *self = Self::Alike(Arc::clone(labels)),
            Self::Alike(known) if known != labels => *self = Self::Different,
            Self::Alike(_) | Self::Different => {}
        }
    }
}

/// One client's wait for some tasks. They are not waited for any more when it is dropped.
#[derive(Debug)]
pub struct Wait {
    waiting: Arc<Waiting>,
    tasks: Vec<TaskKey>,
}

impl Wait {
    /// Whether any of the tasks is checked: there may have been room for none.
    pub fn has_room(&self) -> bool {
        !self.tasks.is_empty()
    }
}

impl Waiting {
    /// Notes that a client waits for tasks. `labels` are those that the client is bound to.
    pub fn wait<'a>(
        self: &Arc<Self>,
        product: &Product,
        task_ids: impl IntoIterator<Item = &'a TaskId>,
        client: Option<&Arc<str>>,
        labels: Option<&Arc<Labels>>,
    ) -> Wait {
        let mut state = self.state.lock();
        let tasks = task_ids.into_iter().map(|task_id| TaskKey {
            product: product.clone(),
            task_id: task_id.clone(),
        });
        let tasks: Vec<_> = tasks
            .filter(|task| state.enter(task, client, labels))
            .collect();
        let has_begun = !state.begun.is_empty();
        drop(state);

        if has_begun {
            self.changed.notify_one();
        }
        Wait {
            waiting: Arc::clone(self),
            tasks,
        }
    }

    /// Completes when a task may have begun or ceased to be waited for since the last look.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The next task that somebody has begun to wait for, and the client that did.
    pub(super) fn next_begun(&self) -> Option<(TaskKey, Option<Arc<str>>)> {
        let mut state = self.state.lock();
        let task = state.begun.pop_front()?;
        let client = state.tasks.get(&task).and_then(|it| it.client.clone());
        Some((task, client))
    }

    /// No key is for a task that somebody has begun to wait for.
    pub(super) fn has_no_key(&self, task: TaskKey) {
        let mut state = self.state.lock();
        if state.tasks.contains_key(&task) {
            state.without_key.insert(task);
        }
    }

    /// There are other keys: the tasks that none was for are new once more.
    pub(super) fn keys_changed(&self) {
        let state = &mut *self.state.lock();
        state.begun.extend(state.without_key.drain());
    }

    /// The next task that nobody waits for any more.
    pub(super) fn next_ended(&self, now: Instant) -> Option<TaskKey> {
        self.state.lock().forget_next(now)
    }

    /// When the next task is forgotten.
    #[cfg(test)]
    pub(super) fn next_at(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.leaving.first_key_value().map(|((at, _), _)| *at)
    }

    /// The labels that a recovered event of a task carries: those that the clients which wait for it are bound to, unless two are
    /// bound to different ones. `None` if nobody waits for it.
    pub(super) fn labels(&self, task: &TaskKey) -> Option<Labels> {
        let state = self.state.lock();
        let waited = state.tasks.get(task)?;
        Some(match &waited.bound {
            Bound::Alike(labels) => Labels::clone(labels),
            Bound::None | Bound::Different => Labels::new(),
        })
    }

    /// How many tasks are waited for.
    pub(super) fn len(&self) -> usize {
        self.state.lock().tasks.len()
    }
}

impl State {
    /// False if the task has no room.
    fn enter(
        &mut self,
        task: &TaskKey,
        client: Option<&Arc<str>>,
        labels: Option<&Arc<Labels>>,
    ) -> bool {
        if let Some(waited) = self.tasks.get_mut(task) {
            if waited.clients == 0 {
                waited.bound = Bound::None; // who waited before does not say what those see who wait now
            }
            waited.clients += 1;
            waited.bound.join(labels);
            if let Some(leaves) = waited.leaves.take() {
                self.leaving.remove(&leaves);
            }
            return true;
        }

        let of_client = client.and_then(|name| self.shares.get(name)).copied();
        if self.tasks.len() >= WAITED_FOR_MAX
            || of_client.unwrap_or_default() >= WAITED_FOR_PER_CLIENT_MAX
        {
            return false;
        }
        if let Some(name) = client {
            *self.shares.entry(Arc::clone(name)).or_default() += 1;
        }
        let mut waited = Waited {
            client: client.cloned(),
            clients: 1,
            leaves: None,
            bound: Bound::None,
        };
        waited.bound.join(labels);
        self.tasks.insert(task.clone(), waited);
        self.begun.push_back(task.clone());
        true
    }

    fn leave(&mut self, task: &TaskKey, now: Instant) {
        let Some(waited) = self.tasks.get_mut(task) else {
            return;
        };
        waited.clients -= 1;
        if waited.clients == 0 {
            let leaves = (now + LINGER, self.next_number);
            self.next_number += 1;
            waited.leaves = Some(leaves);
            self.leaving.insert(leaves, task.clone());
        }
    }

    fn forget_next(&mut self, now: Instant) -> Option<TaskKey> {
        let next = self.leaving.first_entry()?;
        if next.key().0 > now {
            return None;
        }
        let task = next.remove();
        let waited = self.tasks.remove(&task);
        if let Some(name) = waited.and_then(|it| it.client) {
            self.leave_share(name);
        }
        self.without_key.remove(&task);
        Some(task)
    }

    fn leave_share(&mut self, name: Arc<str>) {
        if let Entry::Occupied(mut count) = self.shares.entry(name) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.waiting.state.lock();
        for task in &self.tasks {
            state.leave(task, now);
        }
        drop(state);
        self.waiting.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn veo() -> Product {
        Product::parse("veo").unwrap()
    }

    fn id(text: &str) -> TaskId {
        TaskId::parse(text).unwrap()
    }

    fn task(text: &str) -> TaskKey {
        TaskKey {
            product: veo(),
            task_id: id(text),
        }
    }

    fn labels(tenant: &str) -> Arc<Labels> {
        Arc::new([("tenant".to_owned(), tenant.to_owned())].into())
    }

    fn wait(waiting: &Arc<Waiting>, text: &str) -> Wait {
        waiting.wait(&veo(), [&id(text)], None, None)
    }

    fn next_begun(waiting: &Waiting) -> Option<TaskKey> {
        waiting.next_begun().map(|(task, _)| task)
    }

    #[test]
    fn a_task_is_waited_for_until_two_minutes_after_the_last_client_left() {
        let waiting = Arc::new(Waiting::default());
        let (first, second) = (wait(&waiting, "t"), wait(&waiting, "t"));
        assert_eq!(next_begun(&waiting), Some(task("t")));
        assert_eq!(next_begun(&waiting), None, "once for all clients");

        drop(first);
        assert_eq!(waiting.next_at(), None);
        let before = Instant::now();
        drop(second);
        let left = waiting.next_at().unwrap() - LINGER;
        assert!(before <= left && left <= Instant::now());
        assert_eq!(
            waiting.next_ended(left + LINGER - Duration::from_nanos(1)),
            None
        );
        assert_eq!(waiting.next_ended(left + LINGER), Some(task("t")));
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn a_client_that_comes_back_in_time_goes_on_waiting() {
        let waiting = Arc::new(Waiting::default());
        drop(wait(&waiting, "t"));
        assert_eq!(next_begun(&waiting), Some(task("t")));

        let back = wait(&waiting, "t");
        assert_eq!(next_begun(&waiting), None, "it never ceased");
        let later = Instant::now() + 10 * LINGER;
        assert_eq!(waiting.next_ended(later), None);
        drop(back);
        assert_eq!(waiting.next_ended(later), Some(task("t")));
    }

    #[tokio::test]
    async fn beginning_and_leaving_wakes_the_loop() {
        let waiting = Arc::new(Waiting::default());
        let waits = wait(&waiting, "t");
        waiting.changed().await;
        drop(waits);
        waiting.changed().await;
    }

    #[test]
    fn no_more_tasks_are_known_than_there_is_room_for() {
        let waiting = Arc::new(Waiting::default());
        let ids: Vec<_> = (0..=WAITED_FOR_MAX).map(|n| id(&format!("t{n}"))).collect();
        let all = waiting.wait(&veo(), &ids, None, None);
        assert_eq!(waiting.len(), WAITED_FOR_MAX);
        let begun = std::iter::from_fn(|| next_begun(&waiting)).count();
        assert_eq!(begun, WAITED_FOR_MAX);

        drop(all);
        let later = Instant::now() + LINGER;
        let ended = std::iter::from_fn(|| waiting.next_ended(later)).count();
        assert_eq!(ended, WAITED_FOR_MAX);
        let _now = wait(&waiting, &format!("t{WAITED_FOR_MAX}"));
        assert_eq!(waiting.len(), 1, "there is room again");
    }

    #[test]
    fn a_client_has_a_fifth_of_all_tasks_that_are_waited_for() {
        let waiting = Arc::new(Waiting::default());
        let ids = |from: usize, count: usize| -> Vec<_> {
            (from..from + count).map(|n| id(&format!("t{n}"))).collect()
        };
        let (crowd, other) = (Arc::from("crowd"), Arc::from("other"));
        let of = |client: &Arc<str>, ids: &[TaskId]| waiting.wait(&veo(), ids, Some(client), None);
        let many = of(&crowd, &ids(0, WAITED_FOR_PER_CLIENT_MAX + 7));
        assert_eq!(waiting.len(), WAITED_FOR_PER_CLIENT_MAX);

        let both = of(&other, &ids(WAITED_FOR_PER_CLIENT_MAX - 1, 2));
        assert_eq!(waiting.len(), WAITED_FOR_PER_CLIENT_MAX + 1, "one is new");
        let _also = of(&crowd, &ids(WAITED_FOR_PER_CLIENT_MAX, 1));
        drop(both);
        let later = Instant::now() + LINGER;
        assert_eq!(waiting.next_ended(later), None, "the crowd waits for both");

        drop(many);
        let ended = std::iter::from_fn(|| waiting.next_ended(Instant::now() + LINGER)).count();
        assert_eq!(ended, WAITED_FOR_PER_CLIENT_MAX);
        let _again = of(&crowd, &ids(0, WAITED_FOR_PER_CLIENT_MAX + 7));
        assert_eq!(waiting.len(), WAITED_FOR_PER_CLIENT_MAX + 1);
    }

    #[test]
    fn a_recovered_event_has_the_labels_that_all_bound_clients_are_bound_to() {
        let waiting = Arc::new(Waiting::default());
        let of = |labels: Option<&Arc<Labels>>| waiting.wait(&veo(), [&id("t")], None, labels);
        let (a, b) = (labels("a"), labels("b"));
        let _operator = of(None);
        assert_eq!(waiting.labels(&task("t")), Some(Labels::new()));
        let _first = of(Some(&a));
        let _second = of(Some(&a));
        let _another_operator = of(None);
        assert_eq!(waiting.labels(&task("t")), Some(Labels::clone(&a)));
        let _other = of(Some(&b));
        assert_eq!(waiting.labels(&task("t")), Some(Labels::new()));
        let _again = of(Some(&a));
        assert_eq!(waiting.labels(&task("t")), Some(Labels::new()));
    }

    #[test]
    fn the_labels_of_a_wait_that_is_over_do_not_count_for_the_next() {
        let waiting = Arc::new(Waiting::default());
        let of = |labels: &Arc<Labels>| waiting.wait(&veo(), [&id("t")], None, Some(labels));
        let (a, b) = (labels("a"), labels("b"));
        drop(of(&a));
        assert_eq!(waiting.labels(&task("t")), Some(Labels::clone(&a)));
        let _next = of(&b);
        assert_eq!(waiting.labels(&task("t")), Some(Labels::clone(&b)));
    }

    #[test]
    fn a_task_that_no_key_is_for_is_new_when_the_keys_change_while_it_is_waited_for() {
        let waiting = Arc::new(Waiting::default());
        let (_waits, gone) = (wait(&waiting, "t"), wait(&waiting, "gone"));
        while let Some(task) = next_begun(&waiting) {
            waiting.has_no_key(task);
        }
        drop(gone);
        let later = Instant::now() + LINGER;
        assert_eq!(waiting.next_ended(later), Some(task("gone")));

        waiting.has_no_key(task("gone"));
        waiting.keys_changed();
        assert_eq!(next_begun(&waiting), Some(task("t")));
        assert_eq!(next_begun(&waiting), None);
        waiting.keys_changed();
        assert_eq!(next_begun(&waiting), None, "it has a key");
    }
}
