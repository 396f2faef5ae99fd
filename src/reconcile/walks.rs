//! The walks through lists that are under way: for tasks that are due, or after an outage. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    lanes::Id,
    walk::{PAGE, Walk},
};
use crate::event::{Product, TaskId};

/// Most calls of one walk after an outage: 10,000 tasks of a product and key.
const OUTAGE_CALLS_MAX: u32 = 100;
/// Least calls of a walk for tasks that are due.
const DUE_CALLS_MIN: u32 = 2;
/// Tasks were created at most so much earlier than they were expected, by the vendor's clock: a client says that it expects a task
/// right after submitting it.
const EARLIER_MAX: i64 = 10 * 60 * 1_000_000;
/// A page is asked for so often. Then its tasks are asked for one by one.
const PAGE_FAILURES_MAX: u32 = 3;
/// A page of a walk after an outage is asked for so often: the network may come hours after the broker. It is asked for ever less
/// often, because the vendor is left alone for longer after each failure: for 5 minutes at most.
const OUTAGE_FAILURES_MAX: u32 = 100;
/// How many tasks a page is asked for: fewer if it has more bytes than an answer may have, as with long prompts.
const LIMITS: [u64; 3] = [PAGE, 20, 5];
/// After a walk whose ends could not be appended, its list is walked through again so much later.
const AGAIN: Duration = Duration::from_secs(60);
/// For the outputs of completed tasks that nobody expects, a list is walked through so often. Then they are taken as they are.
const EMPTY_WALKS_MAX: u32 = 6;
/// After a list could not be read, its tasks are checked one by one for so long.
const UNLISTED: Duration = Duration::from_secs(3_600);

/// Names a walk.
pub(super) type WalkId = u64;
/// A product's list, as a key shows it.
pub(super) type ListKey = (Arc<str>, Product);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Walks {
    walks: BTreeMap<WalkId, Active>,
    next_id: WalkId,
    /// The walk that had the last turn.
    last: WalkId,
    /// Lists through which walks after the outage were begun.
    looked: BTreeMap<ListKey, Looked>,
    /// Lists that the vendor has refused to show after the outage with keys that may be good. They are not asked for again unless the
    /// keys change: their tasks are checked at their deadlines.
    refused: BTreeSet<ListKey>,
    /// Products whose lists could not be read, and until when they are left alone. At most as many as have lists.
    unlisted: HashMap<Product, Instant>,
}

/// What is known of a list after the outage.
#[derive(Debug, Default)]
struct Looked {
    /// It was walked through: to its end, or as far as it can be.
    is_read: bool,
    /// Ends from it that are on their way into the log.
    appending: usize,
    /// It is walked through again then, because an end was not appended.
    again_at: Option<Instant>,
    /// Walks through it that were begun.
    walks: u32,
}

/// A walk.
#[derive(Debug)]
pub(super) struct Active {
    pub key: Arc<str>,
    pub product: Product,
    pub aim: Aim,
    walk: Walk,
    /// What the last page showed.
    shown: HashSet<TaskId>,
    /// How many tasks a page is asked for.
    limit: u64,
    is_asking: bool,
    /// Pages in a row that were not answered.
    failures: u32,
}

/// What a walk looks for.
#[derive(Debug)]
pub(super) enum Aim {
    /// These tasks, which are due.
    Due(HashMap<TaskId, Id>),
    /// Every task since then, in microseconds since 1970.
    Outage { since: i64 },
}

/// The next page to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub walk: WalkId,
    pub key: Arc<str>,
    pub product: Product,
    pub limit: u64,
    pub offset: u64,
}

impl Walks {
    /// Begins a walk for tasks that are due, the first of which has been expected since then. It takes at most half the calls that
    /// it would take to check each by itself: a key may have thousands of other tasks.
    pub(super) fn begin_due(
        &mut self,
        key: Arc<str>,
        product: Product,
        wanted: HashMap<TaskId, Id>,
        since: i64,
    ) {
        let half = u32::try_from(wanted.len() / 2).unwrap_or(u32::MAX);
        let walk = Walk::new(since.saturating_sub(EARLIER_MAX), half.max(DUE_CALLS_MIN));
        self.begin(key, product, Aim::Due(wanted), walk);
    }

    /// Begins a walk for all tasks since then. False if that list was read already and what it showed is in the log, or if it was
    /// refused. True without a new walk if ends from it are on their way, or if it is read again later.
    pub(super) fn begin_outage(
        &mut self,
        key: Arc<str>,
        product: Product,
        since: i64,
        now: Instant,
    ) -> bool {
        let list = (key, product);
        if self.refused.contains(&list) {
            return false;
        }
        let looked = self.looked.entry(list.clone()).or_default();
        if looked.appending > 0 || looked.again_at.is_some_and(|at| now < at) {
            return true;
        }
        if looked.is_read && looked.again_at.is_none() {
            return false;
        }

        looked.is_read = false;
        looked.again_at = None;
        looked.walks += 1;
        let walk = Walk::new(since, OUTAGE_CALLS_MAX);
        self.begin(list.0, list.1, Aim::Outage { since }, walk);
        true
    }

    /// An end that a walk after the outage has found is on its way into the log.
    pub(super) fn appending(&mut self, list: &ListKey) {
        self.looked.entry(list.clone()).or_default().appending += 1;
    }

    /// It is in the log, or could not be appended: then the list is read again. True if no other end from it is on its way.
    pub(super) fn appended(&mut self, list: &ListKey, is_in_log: bool, now: Instant) -> bool {
        let looked = self.looked.entry(list.clone()).or_default();
        looked.appending = looked.appending.saturating_sub(1);
        if !is_in_log {
            looked.again_at = Some(now + AGAIN);
        }
        looked.appending == 0
    }

    /// A list shows a completed task without outputs that nobody expects. Returns whether it is read again for them, which is so a few
    /// times.
    pub(super) fn lacks_outputs(&mut self, list: &ListKey, now: Instant) -> bool {
        let looked = self.looked.entry(list.clone()).or_default();
        let is_read_again = looked.walks < EMPTY_WALKS_MAX;
        if is_read_again {
            looked.again_at = Some(now + AGAIN);
        }
        is_read_again
    }

    fn begin(&mut self, key: Arc<str>, product: Product, aim: Aim, walk: Walk) {
        self.next_id += 1;
        let active = Active {
            key,
            product,
            aim,
            walk,
            shown: HashSet::new(),
            limit: PAGE,
            is_asking: false,
            failures: 0,
        };
        self.walks.insert(self.next_id, active);
    }

    /// Whether another walk through a product's list may begin. Those that are under way come first.
    pub(super) fn may_begin(&self, key: &str, product: &Product, now: Instant) -> bool {
        let is_unlisted = self.unlisted.get(product).is_some_and(|until| *until > now);
        let mut walks = self.walks.values();
        !is_unlisted && !walks.any(|walk| *walk.key == *key && walk.product == *product)
    }

    /// The next page to ask for with a key that may be used. Its walk waits for the answer.
    pub(super) fn next_page(&mut self, mut may_use: impl FnMut(&str) -> bool) -> Option<Page> {
        let behind = (Bound::Excluded(self.last), Bound::Unbounded);
        let mut in_turn = self
            .walks
            .range(behind)
            .chain(self.walks.range(..=self.last));
        let (id, offset) = in_turn.find_map(|(id, active)| {
            let offset = active.walk.offset()?;
            (!active.is_asking && may_use(&active.key)).then_some((*id, offset))
        })?;

        self.last = id;
        let active = self.walks.get_mut(&id)?;
        active.is_asking = true;
        Some(Page {
            walk: id,
            key: Arc::clone(&active.key),
            product: active.product.clone(),
            limit: active.limit,
            offset,
        })
    }

    /// Notes a page: how many tasks it has, when they were created, and which they are, of those that can be read. Returns the walk, to
    /// take from it what it has found. A page that shows nothing but what the one before it did ends the walk: so does a vendor that
    /// shows the same page at every offset.
    pub(super) fn note(
        &mut self,
        id: WalkId,
        count: usize,
        created: &[i64],
        shown: HashSet<TaskId>,
    ) -> Option<&mut Active> {
        let active = self.walks.get_mut(&id)?;
        active.is_asking = false;
        active.failures = 0;
        active.walk.note(count, created);
        if count > 0 && shown.is_subset(&active.shown) {
            active.walk.end();
        }
        active.shown = shown;
        Some(active)
    }

    /// The page was not asked for: it is asked for again.
    pub(super) fn not_asked(&mut self, id: WalkId) {
        if let Some(active) = self.walks.get_mut(&id) {
            active.is_asking = false;
        }
    }

    /// The page was not answered: it is asked for again, unless that has failed too often. Returns whether it is.
    pub(super) fn try_again(&mut self, id: WalkId) -> bool {
        let Some(active) = self.walks.get_mut(&id) else {
            return false;
        };
        active.is_asking = false;
        active.failures += 1;
        let most = match active.aim {
            Aim::Due(_) => PAGE_FAILURES_MAX,
            Aim::Outage { .. } => OUTAGE_FAILURES_MAX,
        };
        active.failures < most
    }

    /// The page has more bytes than an answer may have: fewer tasks are asked for, if possible. Returns whether they are.
    pub(super) fn ask_for_less(&mut self, id: WalkId) -> bool {
        let Some(active) = self.walks.get_mut(&id) else {
            return false;
        };
        active.is_asking = false;
        let less = LIMITS.into_iter().find(|limit| *limit < active.limit);
        active.limit = less.unwrap_or(active.limit);
        less.is_some()
    }

    /// The vendor refuses to show a walk's list, or its key. Returns whether it is asked for again. After an outage the first refusal
    /// ends the walk, because nobody waits for it.
    pub(super) fn refused(&mut self, id: WalkId) -> bool {
        let active = self.walks.get(&id);
        let Some(active) = active.filter(|it| matches!(it.aim, Aim::Outage { .. })) else {
            return self.try_again(id);
        };
        let list = (Arc::clone(&active.key), active.product.clone());
        self.refused.insert(list);
        self.lose(id);
        false
    }

    /// Whether the vendor has refused to show a list after the outage.
    pub(super) fn is_refused(&self, key: &str, product: &Product) -> bool {
        let mut refused = self.refused.iter();
        refused.any(|(of, list)| **of == *key && list == product)
    }

    /// The keys have changed: the vendor may show them the lists that could not be read.
    pub(super) fn keys_changed(&mut self) {
        self.refused.clear();
        self.unlisted.clear();
    }

    /// Forgets the tasks that a walk looks for and that are not `is_open`, and the walk if that leaves none. Returns whether it goes on.
    pub(super) fn still_wants(&mut self, id: WalkId, mut is_open: impl FnMut(Id) -> bool) -> bool {
        let Some(active) = self.walks.get_mut(&id) else {
            return false;
        };
        let Aim::Due(wanted) = &mut active.aim else {
            return true;
        };
        wanted.retain(|_, id| is_open(*id));
        let goes_on = !wanted.is_empty();
        if !goes_on {
            self.walks.remove(&id);
        }
        goes_on
    }

    /// Ends a walk that has nothing left to look for or to look at. Returns the tasks that it has not found.
    pub(super) fn end_if_done(&mut self, id: WalkId) -> Vec<Id> {
        let is_done = |active: &Active| {
            let has_all = matches!(&active.aim, Aim::Due(wanted) if wanted.is_empty());
            has_all || active.walk.offset().is_none()
        };
        if self.walks.get(&id).is_some_and(is_done) {
            self.end(id)
        } else {
            Vec::new()
        }
    }

    /// Ends a walk that has seen what it can. Returns the tasks that it has not found.
    pub(super) fn end(&mut self, id: WalkId) -> Vec<Id> {
        let active = self.walks.get(&id);
        if let Some(active) = active.filter(|it| matches!(it.aim, Aim::Outage { .. })) {
            let list = (Arc::clone(&active.key), active.product.clone());
            self.looked.entry(list).or_default().is_read = true;
        }
        self.lose(id)
    }

    /// Ends a walk that has not got to its end. Returns the tasks that it has not found.
    pub(super) fn lose(&mut self, id: WalkId) -> Vec<Id> {
        match self.walks.remove(&id).map(|active| active.aim) {
            Some(Aim::Due(wanted)) => wanted.into_values().collect(),
            Some(Aim::Outage { .. }) | None => Vec::new(),
        }
    }

    /// A product's list cannot be read: it is left alone for a while.
    pub(super) fn leave_alone(&mut self, product: &Product, now: Instant) {
        self.unlisted.insert(product.clone(), now + UNLISTED);
    }

    /// Ends the walks with keys that are not good any more. Returns the tasks that they have not found.
    pub(super) fn keep_keys(&mut self, is_good: impl Fn(&str) -> bool) -> Vec<Id> {
        let lost = |(id, active): (&WalkId, &Active)| (!is_good(&active.key)).then_some(*id);
        let lost: Vec<_> = self.walks.iter().filter_map(lost).collect();
        lost.into_iter().flat_map(|id| self.lose(id)).collect()
    }

    /// Whether it is a walk after an outage.
    pub(super) fn is_outage(&self, id: WalkId) -> bool {
        let active = self.walks.get(&id);
        active.is_some_and(|active| matches!(active.aim, Aim::Outage { .. }))
    }

    /// Whether a walk after an outage is under way.
    pub(super) fn has_outage(&self) -> bool {
        let mut walks = self.walks.values();
        walks.any(|active| matches!(active.aim, Aim::Outage { .. }))
    }

    /// The keys that pages wait for.
    pub(super) fn wanted_keys(&self) -> impl Iterator<Item = &Arc<str>> {
        let waits = |active: &&Active| !active.is_asking;
        self.walks.values().filter(waits).map(|active| &active.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn veo() -> Product {
        Product::parse("veo").unwrap()
    }

    fn wanted(count: u64) -> HashMap<TaskId, Id> {
        (0..count)
            .map(|n| (TaskId::parse(&format!("t{n}")).unwrap(), n))
            .collect()
    }

    fn walks(count: u64) -> Walks {
        let mut walks = Walks::default();
        walks.begin_due("main".into(), veo(), wanted(count), 0);
        walks
    }

    fn begin(walks: &mut Walks, key: &str) -> bool {
        walks.begin_outage(key.into(), veo(), 0, Instant::now())
    }

    /// Notes a page whose tasks no other page shows, but those that it shows again.
    fn note(walks: &mut Walks, id: WalkId, count: u64) -> Option<&mut Active> {
        let offset = walks.walks.get(&id)?.walk.offset()?;
        let shown = offset..offset + count;
        let shown = shown.map(|n| TaskId::parse(&format!("t{n}")).unwrap());
        walks.note(id, count as usize, &[9], shown.collect())
    }

    /// Walks through the only list to its end, which is behind three tasks.
    fn read(walks: &mut Walks) {
        for count in [3, 0] {
            let page = walks.next_page(|_| true).unwrap();
            note(walks, page.walk, count);
            walks.end_if_done(page.walk);
        }
        assert!(!walks.has_outage());
    }

    #[test]
    fn a_list_is_read_when_all_that_it_showed_is_in_the_log() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        let list: ListKey = ("main".into(), veo());
        let is_left =
            |walks: &mut Walks, at: Duration| walks.begin_outage("main".into(), veo(), 0, now + at);
        assert!(is_left(&mut walks, Duration::ZERO));
        walks.appending(&list);
        walks.appending(&list);
        assert!(!walks.appended(&list, false, now), "one is on its way");
        read(&mut walks);
        assert!(is_left(&mut walks, AGAIN) && !walks.has_outage());
        assert!(walks.appended(&list, true, now));
        assert!(is_left(&mut walks, Duration::ZERO) && !walks.has_outage());

        assert!(is_left(&mut walks, AGAIN) && walks.has_outage());
        walks.appending(&list);
        assert!(walks.appended(&list, true, now));
        read(&mut walks);
        assert!(!is_left(&mut walks, AGAIN));
    }

    #[test]
    fn for_missing_outputs_a_list_is_read_six_times() {
        let (mut walks, mut at) = (Walks::default(), Instant::now());
        let list: ListKey = ("main".into(), veo());
        for n in 1..=EMPTY_WALKS_MAX {
            assert!(walks.begin_outage("main".into(), veo(), 0, at));
            assert_eq!(walks.lacks_outputs(&list, at), n < EMPTY_WALKS_MAX);
            read(&mut walks);
            at += AGAIN;
        }
        assert!(!walks.begin_outage("main".into(), veo(), 0, at));
    }

    #[test]
    fn a_page_that_is_too_large_is_asked_for_with_fewer_tasks() {
        let mut walks = walks(1_000);
        for (limit, is_asked_again) in [(100, true), (20, true), (5, false)] {
            let page = walks.next_page(|_| true).unwrap();
            assert_eq!((page.limit, page.offset), (limit, 0));
            assert_eq!(walks.ask_for_less(page.walk), is_asked_again);
        }
    }

    #[test]
    fn a_page_that_shows_nothing_new_ends_its_walk() {
        let mut walks = walks(1_000);
        let page = |of: u64| wanted(of).into_keys().collect::<HashSet<_>>();
        for (shown, goes_on) in [(100, true), (101, true), (101, false)] {
            let asked = walks.next_page(|_| true).unwrap();
            walks.note(asked.walk, 100, &[9], page(shown));
            assert_eq!(walks.end_if_done(asked.walk).is_empty(), goes_on);
        }
        assert_eq!(walks.next_page(|_| true), None);

        walks.begin_due("main".into(), veo(), wanted(1_000), 0);
        let asked = walks.next_page(|_| true).unwrap();
        walks.note(asked.walk, 100, &[9], HashSet::new());
        assert_eq!(walks.next_page(|_| true), None, "none of it can be read");
    }

    #[test]
    fn a_walk_asks_for_one_page_after_the_other() {
        let mut walks = walks(1_000);
        let page = walks.next_page(|_| true).unwrap();
        assert_eq!(page.offset, 0);
        assert_eq!(walks.next_page(|_| true), None, "its answer tells the next");
        note(&mut walks, page.walk, 100);
        assert_eq!(walks.next_page(|_| false), None);
        assert_eq!(walks.next_page(|_| true).unwrap().offset, 95);
        walks.not_asked(page.walk);
        assert_eq!(walks.next_page(|_| true).unwrap().offset, 95);
    }

    #[test]
    fn a_walk_for_due_tasks_costs_at_most_half_of_what_checks_of_each_would() {
        for (count, calls_max) in [(6, 3), (1_000, 500)] {
            let mut walks = walks(count);
            let mut calls = 0;
            while let Some(page) = walks.next_page(|_| true) {
                note(&mut walks, page.walk, 100);
                calls += 1;
            }
            assert_eq!(calls, calls_max);
            assert_eq!(walks.end_if_done(1).len(), count as usize);
        }
    }

    #[test]
    fn a_walk_ends_when_it_has_found_all() {
        let mut walks = walks(6);
        let page = walks.next_page(|_| true).unwrap();
        let active = note(&mut walks, page.walk, 100).unwrap();
        let Aim::Due(wanted) = &mut active.aim else {
            panic!("it was begun for due tasks");
        };
        wanted.clear();
        assert!(!walks.may_begin("main", &veo(), Instant::now()));
        assert!(walks.end_if_done(page.walk).is_empty());
        assert!(walks.may_begin("main", &veo(), Instant::now()));
    }

    #[test]
    fn a_walk_ends_when_all_that_it_looks_for_are_over() {
        let mut walks = walks(6);
        begin(&mut walks, "main");
        assert!(walks.still_wants(1, |id| id == 3));
        assert!(
            !walks.still_wants(1, |id| id != 3),
            "the others are forgotten"
        );
        assert!(walks.still_wants(2, |_| false), "it looks for everything");
        let pages = [(); 2].map(|()| walks.next_page(|_| true).map(|page| page.walk));
        assert_eq!(pages, [Some(2), None]);
    }

    #[test]
    fn a_page_that_is_not_answered_is_asked_for_three_times() {
        let mut walks = walks(1_000);
        for is_tried_again in [true, true, false] {
            let page = walks.next_page(|_| true).unwrap();
            assert_eq!(walks.try_again(page.walk), is_tried_again);
        }
    }

    #[test]
    fn a_walk_after_an_outage_waits_for_the_network_and_for_a_good_key() {
        let mut walks = Walks::default();
        assert!(begin(&mut walks, "main"));
        for _ in 1..OUTAGE_FAILURES_MAX {
            let page = walks.next_page(|_| true).unwrap();
            assert!(walks.try_again(page.walk));
        }
        walks.keep_keys(|_| false);
        assert!(begin(&mut walks, "main"), "the key is another one now");

        read(&mut walks);
        assert!(!begin(&mut walks, "main"), "the list was read");
        assert!(!walks.has_outage());
        assert!(begin(&mut walks, "other"));
        for n in 1..=OUTAGE_FAILURES_MAX {
            let page = walks.next_page(|_| true).unwrap();
            assert_eq!(walks.try_again(page.walk), n < OUTAGE_FAILURES_MAX);
        }
    }

    #[test]
    fn a_list_that_is_refused_after_an_outage_is_asked_for_again_when_the_keys_change() {
        let mut walks = walks(1_000);
        assert!(walks.refused(1), "tasks are due");
        assert!(!walks.is_refused("main", &veo()));

        assert!(begin(&mut walks, "main"));
        assert!(!walks.refused(2));
        assert!(walks.is_refused("main", &veo()));
        assert!(!walks.has_outage() && !begin(&mut walks, "main"));
        assert!(begin(&mut walks, "other"));

        walks.leave_alone(&veo(), Instant::now());
        walks.keys_changed();
        assert!(!walks.is_refused("main", &veo()) && begin(&mut walks, "main"));
        assert!(walks.may_begin("third", &veo(), Instant::now()));
    }

    #[test]
    fn walks_take_turns() {
        let mut walks = walks(1_000);
        begin(&mut walks, "main");
        let mut turn = || {
            let page = walks.next_page(|_| true).unwrap();
            note(&mut walks, page.walk, 100);
            page.walk
        };
        assert_eq!([turn(), turn(), turn(), turn()], [1, 2, 1, 2]);
    }

    #[test]
    fn a_list_that_cannot_be_read_is_left_alone_for_an_hour() {
        let (mut walks, now) = (Walks::default(), Instant::now());
        walks.leave_alone(&veo(), now);
        assert!(!walks.may_begin("main", &veo(), now + UNLISTED - Duration::from_secs(1)));
        assert!(walks.may_begin("main", &veo(), now + UNLISTED));
    }

    #[test]
    fn walks_with_a_key_that_is_gone_end() {
        let mut walks = walks(6);
        begin(&mut walks, "other");
        assert_eq!(walks.keep_keys(|key| key == "other").len(), 6);
        assert_eq!(walks.wanted_keys().count(), 1);
        assert!(walks.has_outage());
        walks.keep_keys(|_| false);
        assert!(!walks.has_outage());
    }
}
