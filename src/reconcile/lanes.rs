//! In which order tasks are checked that are due: a lane for each vendor key, because a key without
//! anything left to spend must not hold up another.
//!
//! Within a lane, tasks that somebody waits for go first; but one turn in [`TURNS`] is the others',
//! or enough clients that wait would starve them. Products take turns, so that a product with ten
//! thousand late tasks does not hold up one with a single late task. Within a product clients take
//! turns for the same reason, and of a client the task goes first that has been due for the longest
//! time.
//!
//! One list call shows up to 100 tasks. So it is preferred where more than [`SINGLE_MAX`] tasks of a
//! product are due. Tasks that a list did not show are then checked one by one.
//!
//! Each operation costs O(log n) for each task that it adds, removes or picks, and a pick looks at
//! each client that has due tasks of the product.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    ops::Bound,
    sync::Arc,
};

use crate::event::Product;

/// With more due tasks of a product than this, a list is asked for instead of each of them.
pub(super) const SINGLE_MAX: usize = 5;
/// One turn in so many is for tasks that nobody waits for, also while others are due.
const TURNS: u32 = 5;
/// Most tasks that one walk through a list looks for.
pub(super) const LISTED_MAX: usize = 10_000;

/// Names a task in the schedule. Never given to another one.
pub(super) type Id = u64;

/// The client whose turn a task takes. Of its name only a hash is kept, because there may be 100,000
/// tasks: two clients with the same one would share their turns. Those without a name are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Owner(u64);

impl Owner {
    pub(super) fn of(client: Option<&str>) -> Self {
        let mut hasher = DefaultHasher::new();
        client.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A task that is due.
#[derive(Clone, Debug)]
pub(super) struct Due {
    pub id: Id,
    /// Since when it is due.
    pub at: i64,
    pub product: Product,
    pub owner: Owner,
    /// Somebody waits for it now.
    pub is_waited_for: bool,
    /// A list has not shown it.
    pub is_single: bool,
}

/// What to ask next with a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Picked {
    /// For one task.
    One(Id),
    /// For the list of a product, which should show these.
    List(Product, Vec<Id>),
}

/// All tasks that are due, by the key with which they are checked.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<Arc<str>, Lane>,
    /// The key that was used last.
    last: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Lane {
    waited_for: Level,
    others: Level,
    /// Turns since the others had theirs.
    turn: u32,
}

/// Tasks of one urgency.
#[derive(Debug, Default)]
struct Level {
    products: BTreeMap<Product, OfProduct>,
    /// The product that had the last turn.
    last: Option<Product>,
}

/// Tasks of one product.
#[derive(Debug, Default)]
struct OfProduct {
    owners: BTreeMap<Owner, Queue>,
    /// The client that had the last turn.
    last: Option<Owner>,
}

/// Tasks of one client.
#[derive(Debug, Default)]
struct Queue {
    /// By the time since which they are due.
    listable: BTreeSet<(i64, Id)>,
    single: BTreeSet<(i64, Id)>,
}

impl Lanes {
    /// Adds a task.
    pub(super) fn add(&mut self, key: &Arc<str>, due: &Due) {
        let lane = self.lanes.entry(Arc::clone(key)).or_default();
        lane.level(due.is_waited_for).add(due);
    }

    /// Takes a task out that was added like this.
    pub(super) fn remove(&mut self, key: &str, due: &Due) {
        let Some(lane) = self.lanes.get_mut(key) else {
            return;
        };
        lane.level(due.is_waited_for).remove(due);
        if lane.is_empty() {
            self.lanes.remove(key);
        }
    }

    /// The keys with which something could be asked now.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.lanes.keys()
    }

    /// Takes out what to ask next, with a key that may be used. `has_list`: whether a list of the product's
    /// tasks may be asked for.
    pub(super) fn pick(
        &mut self,
        mut may_use: impl FnMut(&str) -> bool,
        has_list: impl Fn(&str, &Product) -> bool,
    ) -> Option<(Arc<str>, Picked)> {
        let key = next_of(&self.lanes, self.last.as_ref(), |key| may_use(key))?;
        let lane = self.lanes.get_mut(&key)?;
        let picked = lane.pick(|product| has_list(&key, product))?;
        if lane.is_empty() {
            self.lanes.remove(&key);
        }
        self.last = Some(Arc::clone(&key));
        Some((key, picked))
    }
}

impl Lane {
    fn level(&mut self, is_waited_for: bool) -> &mut Level {
        if is_waited_for {
            &mut self.waited_for
        } else {
            &mut self.others
        }
    }

    fn is_empty(&self) -> bool {
        self.waited_for.products.is_empty() && self.others.products.is_empty()
    }

    fn pick(&mut self, has_list: impl Fn(&Product) -> bool) -> Option<Picked> {
        let is_others_turn = if self.others.products.is_empty() {
            self.turn = 0;
            false
        } else {
            self.turn += 1;
            self.waited_for.products.is_empty() || self.turn >= TURNS
        };
        if is_others_turn {
            self.turn = 0;
        }

        let product = self.level(!is_others_turn).take_turn()?;
        if has_list(&product) && self.listable(&product) > SINGLE_MAX {
            let mut ids = self.waited_for.take_listable(&product, LISTED_MAX);
            ids.extend(self.others.take_listable(&product, LISTED_MAX - ids.len()));
            return Some(Picked::List(product, ids));
        }

        self.level(!is_others_turn)
            .take_one(&product)
            .map(Picked::One)
    }

    /// How many tasks of a product a list may show.
    fn listable(&self, product: &Product) -> usize {
        let levels = [&self.waited_for, &self.others];
        let products = levels.iter().filter_map(|it| it.products.get(product));
        products.map(OfProduct::listable).sum()
    }
}

impl Level {
    fn add(&mut self, due: &Due) {
        let tasks = self.products.entry(due.product.clone()).or_default();
        let queue = tasks.owners.entry(due.owner).or_default();
        queue.part(due.is_single).insert((due.at, due.id));
    }

    fn remove(&mut self, due: &Due) {
        self.change(&due.product, |tasks| {
            if let Some(queue) = tasks.owners.get_mut(&due.owner) {
                queue.part(due.is_single).remove(&(due.at, due.id));
                tasks.tidy(due.owner);
            }
        });
    }

    /// The product whose turn it is.
    fn take_turn(&mut self) -> Option<Product> {
        let product = next_of(&self.products, self.last.as_ref(), |_| true)?;
        self.last = Some(product.clone());
        Some(product)
    }

    fn take_one(&mut self, product: &Product) -> Option<Id> {
        self.change(product, OfProduct::take_one).flatten()
    }

    fn take_listable(&mut self, product: &Product, most: usize) -> Vec<Id> {
        let take = |tasks: &mut OfProduct| {
            let listable = std::iter::from_fn(|| tasks.take_listable());
            listable.take(most).collect()
        };
        self.change(product, take).unwrap_or_default()
    }

    /// Changes what there is of a product, which is forgotten if nothing is left of it.
    fn change<T>(
        &mut self,
        product: &Product,
        change: impl FnOnce(&mut OfProduct) -> T,
    ) -> Option<T> {
        let tasks = self.products.get_mut(product)?;
        let changed = change(tasks);
        if tasks.owners.is_empty() {
            self.products.remove(product);
        }
        Some(changed)
    }
}

impl OfProduct {
    /// The task that has been due for longest, of the client whose turn it is.
    fn take_one(&mut self) -> Option<Id> {
        self.take(|_| true, Queue::take_oldest)
    }

    /// The same among those that a list may show.
    fn take_listable(&mut self) -> Option<Id> {
        self.take(
            |queue| !queue.listable.is_empty(),
            |queue| queue.listable.pop_first(),
        )
    }

    fn take(
        &mut self,
        fits: impl Fn(&Queue) -> bool,
        take: impl FnOnce(&mut Queue) -> Option<(i64, Id)>,
    ) -> Option<Id> {
        let is_next = |owner: &Owner| self.owners.get(owner).is_some_and(&fits);
        let owner = next_of(&self.owners, self.last.as_ref(), is_next)?;
        self.last = Some(owner);
        let (_, id) = take(self.owners.get_mut(&owner)?)?;
        self.tidy(owner);
        Some(id)
    }

    fn listable(&self) -> usize {
        self.owners.values().map(|queue| queue.listable.len()).sum()
    }

    /// Forgets a client without tasks.
    fn tidy(&mut self, owner: Owner) {
        let is_empty = |queue: &Queue| queue.listable.is_empty() && queue.single.is_empty();
        if self.owners.get(&owner).is_some_and(is_empty) {
            self.owners.remove(&owner);
        }
    }
}

impl Queue {
    fn part(&mut self, is_single: bool) -> &mut BTreeSet<(i64, Id)> {
        if is_single {
            &mut self.single
        } else {
            &mut self.listable
        }
    }

    fn take_oldest(&mut self) -> Option<(i64, Id)> {
        let is_single = match (self.listable.first(), self.single.first()) {
            (Some(listable), Some(single)) => single < listable,
            (None, _) => true,
            (_, None) => false,
        };
        self.part(is_single).pop_first()
    }
}

/// The next key of a map that `fits`, in a circle that begins behind `last`.
fn next_of<K: Ord + Clone, V>(
    map: &BTreeMap<K, V>,
    last: Option<&K>,
    mut fits: impl FnMut(&K) -> bool,
) -> Option<K> {
    let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
    let until = last.map_or(Bound::Unbounded, Bound::Included);
    let first_half = map.range((behind, Bound::Unbounded));
    let second_half = last
        .map(|_| map.range((Bound::Unbounded, until)))
        .into_iter()
        .flatten();
    first_half
        .chain(second_half)
        .map(|(key, _)| key)
        .find(|key| fits(key))
        .cloned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn due(id: Id, at: i64, product: &str) -> Due {
        Due {
            id,
            at,
            product: Product::parse(product).unwrap(),
            owner: Owner::of(None),
            is_waited_for: false,
            is_single: false,
        }
    }

    fn waited_for(due: Due) -> Due {
        Due {
            is_waited_for: true,
            ..due
        }
    }

    fn single(due: Due) -> Due {
        Due {
            is_single: true,
            ..due
        }
    }

    fn of(owner: &str, due: Due) -> Due {
        Due {
            owner: Owner::of(Some(owner)),
            ..due
        }
    }

    fn key() -> Arc<str> {
        Arc::from("main")
    }

    fn lanes(tasks: impl IntoIterator<Item = Due>) -> Lanes {
        let mut lanes = Lanes::default();
        for due in tasks {
            lanes.add(&key(), &due);
        }
        lanes
    }

    /// What is picked until nothing is left.
    fn all(lanes: &mut Lanes, has_list: bool) -> Vec<Picked> {
        std::iter::from_fn(|| lanes.pick(|_| true, |_, _| has_list))
            .map(|(_, picked)| picked)
            .collect()
    }

    fn ones(ids: impl IntoIterator<Item = Id>) -> Vec<Picked> {
        ids.into_iter().map(Picked::One).collect()
    }

    #[test]
    fn the_task_that_is_due_longest_goes_first_and_products_take_turns() {
        let mut lanes = lanes([
            due(1, 30, "veo"),
            due(2, 10, "veo"),
            due(3, 20, "veo"),
            due(4, 40, "kling"),
            due(5, 50, "sora"),
        ]);
        assert_eq!(all(&mut lanes, true), ones([4, 5, 2, 3, 1]));
    }

    /// Whose tasks are picked, in order: those from 1,000 are of b.
    fn whose(picked: &[Picked]) -> String {
        let ids = picked.iter().flat_map(|picked| match picked {
            Picked::One(id) => std::slice::from_ref(id),
            Picked::List(_, ids) => ids,
        });
        ids.map(|id| if *id < 1_000 { 'a' } else { 'b' }).collect()
    }

    #[test]
    fn within_a_product_clients_take_turns() {
        let crowd = || (0..8).map(|id| of("a", due(id, 0, "veo")));
        let few = || (1_000..1_002).map(|id| of("b", due(id, 9, "veo")));
        let order = |tasks: Vec<Due>, has_list| whose(&all(&mut lanes(tasks), has_list));
        let begins = |order: &str| ["abab", "baba"].contains(&&order[..4]);

        let one_by_one = order(crowd().chain(few()).map(single).collect(), true);
        assert!(begins(&one_by_one), "{one_by_one}");
        let listed = order(crowd().chain(few()).collect(), true);
        assert!(begins(&listed), "{listed}");

        let waits = crowd().chain(few()).map(waited_for);
        let others = crowd().map(|due| Due {
            id: due.id + 500,
            ..due
        });
        let waited = order(waits.chain(others).collect(), false);
        assert!(begins(&waited), "{waited}");
    }

    #[test]
    fn a_client_whose_tasks_no_list_shows_holds_up_none_that_are_in_one() {
        let crowd = (0..8).map(|id| single(of("a", due(id, 0, "veo"))));
        let few = (1_000..1_006).map(|id| of("b", due(id, 9, "veo")));
        let mut lanes = lanes(crowd.chain(few));
        let picked = all(&mut lanes, true);
        assert!(matches!(&picked[0], Picked::List(_, ids) if ids.len() == 6));
        assert_eq!(whose(&picked), "bbbbbbaaaaaaaa");
    }

    #[test]
    fn a_task_that_somebody_waits_for_goes_before_one_that_is_due_longer() {
        let mut lanes = lanes([due(1, 10, "veo"), waited_for(due(2, 20, "veo"))]);
        assert_eq!(all(&mut lanes, true), ones([2, 1]));
    }

    #[test]
    fn one_turn_in_five_is_for_tasks_that_nobody_waits_for() {
        let waited = (1..=12).map(|id| waited_for(single(due(id, 0, "veo"))));
        let mut lanes = lanes(waited.chain((20..=21).map(|id| single(due(id, 0, "veo")))));
        let expected = ones([1, 2, 3, 4, 20, 5, 6, 7, 8, 21, 9, 10, 11, 12]);
        assert_eq!(all(&mut lanes, true), expected);
    }

    #[test]
    fn a_list_is_preferred_for_more_than_five() {
        let veo = Product::parse("veo").unwrap();
        let five = || (1..=5).map(|id| due(id, 0, "veo"));
        assert_eq!(all(&mut lanes(five()), true), ones(1..=5));

        let six = || five().chain([waited_for(due(6, 9, "veo"))]);
        let list = Picked::List(veo, vec![6, 1, 2, 3, 4, 5]);
        assert_eq!(all(&mut lanes(six()), true), [list]);

        let none = all(&mut lanes(six()), false);
        assert_eq!(none, ones([6, 1, 2, 3, 4, 5]), "the vendor has no list");

        let shown_by_none = all(&mut lanes(six().map(single)), true);
        assert_eq!(shown_by_none, ones([6, 1, 2, 3, 4, 5]));
    }

    #[test]
    fn a_walk_looks_for_ten_thousand_at_most() {
        let mut lanes = lanes((0..10_004).map(|id| due(id, 0, "veo")));
        let picked = all(&mut lanes, true);
        assert!(matches!(&picked[0], Picked::List(_, ids) if ids.len() == LISTED_MAX));
        assert_eq!(picked[1..], ones(10_000..10_004));
    }

    #[test]
    fn a_key_that_may_not_be_used_holds_up_no_other() {
        let (spent, good): (Arc<str>, Arc<str>) = (Arc::from("a"), Arc::from("b"));
        let mut lanes = Lanes::default();
        lanes.add(&spent, &due(1, 0, "veo"));
        lanes.add(&good, &due(2, 9, "veo"));

        let picked = lanes.pick(|key| key == "b", |_, _| true);
        assert_eq!(picked, Some((good, Picked::One(2))));
        assert_eq!(lanes.pick(|key| key == "b", |_, _| true), None);
        assert_eq!(lanes.keys().collect::<Vec<_>>(), [&spent]);
    }

    fn any_due() -> impl Strategy<Value = Due> {
        let product = prop::sample::select(vec!["veo", "kling", "sora", "gemini", "x-1"]);
        let owner = prop::sample::select(vec!["a", "b", "c"]);
        let flags = any::<(bool, bool)>();
        (0..200_u64, 0..50_i64, product, owner, flags).prop_map(
            |(id, at, product, owner, (is_waited_for, is_single))| Due {
                is_waited_for,
                is_single,
                ..of(owner, due(id, at, product))
            },
        )
    }

    proptest! {
        #[test]
        fn each_task_is_picked_once_and_none_that_was_removed(
            tasks in prop::collection::vec((any_due(), any::<bool>()), 0..200),
            has_list: bool,
        ) {
            let mut seen = HashSet::new();
            let tasks: Vec<_> = tasks
                .into_iter()
                .filter(|(due, _)| seen.insert(due.id))
                .collect();
            let mut lanes = lanes(tasks.iter().map(|(due, _)| due.clone()));
            for (due, stays) in &tasks {
                if !stays {
                    lanes.remove(&key(), due);
                }
            }

            let mut picked: Vec<Id> = all(&mut lanes, has_list)
                .into_iter()
                .flat_map(|picked| match picked {
                    Picked::One(id) => vec![id],
                    Picked::List(_, ids) => {
                        assert!(ids.len() > SINGLE_MAX);
                        ids
                    }
                })
                .collect();
            picked.sort_unstable();
            let mut expected: Vec<Id> = tasks
                .iter()
                .filter(|(_, stays)| *stays)
                .map(|(due, _)| due.id)
                .collect();
            expected.sort_unstable();
            prop_assert_eq!(picked, expected);
            prop_assert_eq!(lanes.keys().count(), 0);
        }

        /// However many tasks with waiting clients become due, and however many of other products.
        #[test]
        fn no_task_starves(
            before in 0..20_u64,
            products in 1..5_u64,
            flood in prop::collection::vec((0..5_u64, any::<bool>()), 3_000),
        ) {
            let product = |n: u64| format!("p-{n}");
            let mut lanes = lanes((0..before).map(|id| due(id, 0, &product(0))));
            lanes.add(&key(), &due(999, 1, &product(0)));

            // Of each other product and of waiting clients there is always more.
            let mut next = 1_000;
            let mut more = |lanes: &mut Lanes, n: u64, is_waited_for: bool| {
                next += 1;
                let more = due(next, 2 + next.cast_signed(), &product(n % products));
                lanes.add(&key(), &Due { is_waited_for, ..more });
            };
            let mut turns = 0;
            for (n, is_waited_for) in flood {
                more(&mut lanes, n, true);
                more(&mut lanes, n, is_waited_for);
                turns += 1;
                match lanes.pick(|_| true, |_, _| false) {
                    Some((_, Picked::One(999))) => break,
                    picked => prop_assert!(picked.is_some()),
                }
            }
            let most = u64::from(TURNS) * products * (before + 1);
            prop_assert!(turns <= most, "{} turns, and {} were expected at most", turns, most);
        }
    }
}
