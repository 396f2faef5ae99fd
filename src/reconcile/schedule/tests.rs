use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::{
    event::TaskId,
    reconcile::{
        entry::{INTERVAL_MAX, INTERVAL_MIN, LATE_GRACE},
        lanes::{Owner, SINGLE_MAX},
    },
};

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const GIVE_UP: Duration = Duration::from_secs(6 * 3_600);

fn schedule() -> Schedule {
    Schedule::new(GIVE_UP, 7)
}

fn task(product: &str, id: &str) -> TaskKey {
    TaskKey {
        product: Product::parse(product).unwrap(),
        task_id: TaskId::parse(id).unwrap(),
    }
}

fn key() -> Arc<str> {
    Arc::from("main")
}

fn stored(task: &TaskKey, deadline: i64) -> Expected {
    Expected {
        number: Some(1),
        task: task.clone(),
        owner: Owner::of(None),
        since: 0,
        deadline,
        is_overdue: false,
        named_key: None,
        key: Some(key()),
        why: Why::Stored,
    }
}

fn waited_for(task: &TaskKey, deadline: i64) -> Expected {
    Expected {
        number: None,
        why: Why::WaitedFor,
        ..stored(task, deadline)
    }
}

fn not_yet() -> Answered {
    Answered {
        http_status: 200,
        vendor_status: "processing".to_owned(),
        ..Answered::default()
    }
}

fn without_outputs() -> Answered {
    Answered {
        lacks_outputs: true,
        ..not_yet()
    }
}

/// Finds that no task which is only waited for is over.
fn look_up(schedule: &mut Schedule, now: i64) {
    for (id, _) in schedule.take_unsure(now) {
        schedule.looked_up(id, false);
    }
}

/// The task that is checked next, one by one.
fn next_one(schedule: &mut Schedule, now: i64) -> Option<Id> {
    look_up(schedule, now);
    match schedule.next(now, |_| true, |_, _| false) {
        Some((_, Picked::One(id))) => Some(id),
        Some(other) => panic!("{other:?}"),
        None => None,
    }
}

impl Schedule {
    /// Each entry is in the sets that its state says, and in no other.
    fn assert_in_step(&self) {
        let sleeping = |(id, entry): (&Id, &Entry)| match entry.state {
            State::Sleeping { until } => Some((until, *id)),
            _ => None,
        };
        let sleeping: BTreeSet<_> = self.entries.iter().filter_map(sleeping).collect();
        assert_eq!(self.sleeping, sleeping);

        let noted = self.entries.iter().filter(|(_, entry)| !entry.is_noting);
        let late: BTreeSet<_> = noted.map(|(id, entry)| (entry.late_at, *id)).collect();
        assert_eq!(self.late, late);
        let overdue = self.entries.values().filter(|entry| entry.is_overdue);
        assert_eq!(self.overdue, overdue.count());

        let ids: HashMap<_, _> = self
            .entries
            .iter()
            .map(|(id, entry)| (entry.task.clone(), *id))
            .collect();
        assert_eq!(self.ids, ids);

        let is_due = |entry: &&Entry| matches!(entry.state, State::Due { .. });
        let due = self.entries.values().filter(is_due);
        let keys: HashSet<_> = due.filter_map(|entry| entry.key.clone()).collect();
        assert_eq!(self.wanted_keys().cloned().collect::<HashSet<_>>(), keys);
    }
}

#[test]
fn a_task_is_checked_at_its_deadline_and_then_after_ever_longer_intervals() {
    let mut schedule = schedule();
    schedule.expect(stored(&task("veo", "t"), 12 * MINUTE));
    assert_eq!(schedule.next_at(), Some(12 * MINUTE));
    assert_eq!(next_one(&mut schedule, 12 * MINUTE - 1), None);

    let (mut now, mut interval) = (12 * MINUTE, INTERVAL_MIN);
    for _ in 0..20 {
        let id = next_one(&mut schedule, now).expect("it is due");
        assert_eq!(next_one(&mut schedule, now), None, "it is being checked");
        assert_eq!(schedule.unsettled(id, not_yet(), now), Follows::Again);

        let (&(until, _), before) = (schedule.sleeping.first().unwrap(), now);
        let range = interval * 9 / 10 - 1..=interval * 11 / 10 + 1;
        assert!(range.contains(&(until - before)), "{until} {before}");
        interval = (interval + interval / 2).min(INTERVAL_MAX);
        now = until;
    }
    assert_eq!(interval, INTERVAL_MAX);
}

#[test]
fn a_task_takes_the_turn_of_the_client_that_waits_for_it_and_else_of_the_one_that_expects_it() {
    let mut schedule = schedule();
    let by = |owner: &str, expected: Expected| Expected {
        owner: Owner::of(Some(owner)),
        ..expected
    };
    for n in 0..4 {
        schedule.expect(by("a", stored(&task("veo", &format!("a{n}")), 0)));
    }
    schedule.expect(by("b", stored(&task("veo", "b"), MINUTE)));
    schedule.expect(by("c", waited_for(&task("veo", "a3"), 0)));
    schedule.expect(by("d", waited_for(&task("veo", "a2"), 0)));
    schedule.expect(by("d", waited_for(&task("veo", "a1"), 0)));

    let first = next_one(&mut schedule, MINUTE).unwrap();
    let second = next_one(&mut schedule, MINUTE).unwrap();
    let name = |id: Id| schedule.task(id).unwrap().0.task_id.to_string();
    let mut waits = [name(first), name(second)];
    waits.sort();
    assert_eq!(waits, ["a1", "a3"], "one of each client that waits");

    schedule.no_longer_waited_for(&task("veo", "a2"));
    let first = next_one(&mut schedule, MINUTE).unwrap();
    let second = next_one(&mut schedule, MINUTE).unwrap();
    let name = |id: Id| schedule.task(id).unwrap().0.task_id.to_string();
    let mut others = [name(first), name(second)];
    others.sort();
    assert_eq!(others, ["a0", "b"], "one of each client that expects");
    schedule.assert_in_step();
}

#[test]
fn a_task_is_overdue_once_and_given_up_once_each_after_a_check() {
    let mut schedule = schedule();
    schedule.expect(stored(&task("veo", "t"), MINUTE));
    let (mut now, mut events) = (MINUTE, Vec::new());
    while schedule.len() > 0 {
        if let Some(id) = next_one(&mut schedule, now) {
            schedule.unsettled(id, not_yet(), now);
        }
        while let Some(late) = schedule.next_late(now, |_| false) {
            schedule.noted(&late, now);
            events.push((now, late.gave_up, late.checked.count));
        }
        now = schedule.next_at().unwrap_or(now).max(now);
    }

    let [(first, false, 1), (last, true, checks)] = events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(
        first, MINUTE,
        "with the first check that does not settle it"
    );
    assert_eq!(last, MINUTE + 6 * HOUR, "the last check is at its time");
    assert!((70..90).contains(&checks), "{checks} checks in 6 hours");
}

#[test]
fn what_cannot_be_checked_is_overdue_and_given_up_without_a_check() {
    let mut schedule = schedule();
    schedule.expect(Expected {
        key: None,
        ..stored(&task("new-product", "t"), MINUTE)
    });
    let deadlines = [MINUTE, MINUTE + 6 * HOUR];
    for (at, gave_up) in deadlines.into_iter().zip([false, true]) {
        assert_eq!(next_one(&mut schedule, at + LATE_GRACE), None);
        assert_eq!(schedule.next_late(at + LATE_GRACE - 1, |_| false), None);

        let late = schedule.next_late(at + LATE_GRACE, |_| false).unwrap();
        assert_eq!((late.gave_up, late.checked.count), (gave_up, 0));
        assert_eq!(
            schedule.next_late(at + HOUR, |_| false),
            None,
            "it is on its way"
        );
        schedule.noted(&late, at + LATE_GRACE);
    }
    assert_eq!(schedule.len(), 0);
}

#[test]
fn an_event_that_could_not_be_appended_is_tried_again() {
    let mut schedule = schedule();
    schedule.expect(stored(&task("veo", "t"), 0));
    let late = schedule.next_late(LATE_GRACE, |_| false).unwrap();
    schedule.not_noted(&late, LATE_GRACE);
    assert_eq!(schedule.next_late(LATE_GRACE + AGAIN - 1, |_| false), None);
    let again = schedule.next_late(LATE_GRACE + AGAIN, |_| false).unwrap();
    assert!(!again.gave_up);
}

#[test]
fn no_event_says_that_a_task_is_late_while_an_answer_is_on_its_way() {
    let mut schedule = schedule();
    schedule.expect(stored(&task("veo", "t"), 0));
    let id = next_one(&mut schedule, LATE_GRACE).unwrap();
    assert_eq!(schedule.next_late(LATE_GRACE, |_| false), None);
    schedule.settled(id);
    assert_eq!(schedule.next_late(HOUR, |_| false), None);
}

#[test]
fn after_a_restart_beyond_the_end_a_task_is_checked_before_it_is_given_up() {
    let mut schedule = schedule();
    schedule.expect(Expected {
        is_overdue: true,
        ..stored(&task("veo", "t"), MINUTE)
    });
    let now = MINUTE + 6 * HOUR + 1;
    assert_eq!(schedule.next_late(now, |_| false), None);
    let id = next_one(&mut schedule, now).unwrap();
    schedule.unsettled(id, not_yet(), now);
    let late = schedule.next_late(now, |_| false).unwrap();
    assert!(late.gave_up);
    assert_eq!(late.checked.count, 1);
}

#[test]
fn after_an_outage_longer_than_that_a_task_is_checked_before_it_is_overdue_or_given_up() {
    let late_start = MINUTE + 7 * HOUR;
    for is_overdue in [false, true] {
        let mut schedule = schedule();
        schedule.expect(Expected {
            is_overdue,
            ..stored(&task("veo", "t"), MINUTE)
        });
        schedule.back(late_start);
        assert_eq!(schedule.next_late(late_start, |_| true), None);
        let end = late_start + LATE_GRACE;
        assert_eq!(schedule.next_late(end - 1, |_| true), None);

        let mut now = end;
        if !is_overdue {
            let late = schedule.next_late(now, |_| true).unwrap();
            assert!(!late.gave_up);
            schedule.noted(&late, now);
            assert_eq!(schedule.next_late(now + LATE_GRACE - 1, |_| false), None);
            now += LATE_GRACE;
        }
        for _ in 0..100 {
            assert_eq!(
                schedule.next_late(now, |_| true),
                None,
                "a check comes first"
            );
            now = schedule.next_at().unwrap().max(now + 1);
        }
        schedule.assert_in_step();

        let id = next_one(&mut schedule, now).unwrap();
        schedule.unsettled(id, not_yet(), now);
        let late = schedule.next_late(now, |_| true).unwrap();
        assert_eq!((late.gave_up, late.checked.count), (true, 1));
    }
}

#[test]
fn a_task_with_a_silent_vendor_is_given_up_without_a_check() {
    let mut schedule = schedule();
    schedule.expect(Expected {
        is_overdue: true,
        ..stored(&task("veo", "t"), 0)
    });
    let late = schedule
        .next_late(6 * HOUR + LATE_GRACE, |_| false)
        .unwrap();
    assert_eq!((late.gave_up, late.checked.count), (true, 0));
}

#[test]
fn a_completed_task_without_outputs_is_checked_five_times_more() {
    let mut schedule = schedule();
    schedule.expect(stored(&task("veo", "t"), 0));
    let mut now = 0;
    for _ in 0..5 {
        let id = next_one(&mut schedule, now).unwrap();
        assert_eq!(
            schedule.unsettled(id, without_outputs(), now),
            Follows::Again
        );
        now += INTERVAL_MIN * 11 / 10 + 1;
    }
    let id = next_one(&mut schedule, now).unwrap();
    let follows = schedule.unsettled(id, without_outputs(), now);
    assert_eq!(follows, Follows::TakeAsItIs);
}

#[test]
fn a_task_that_is_only_waited_for_is_looked_up_before_each_check() {
    let (t, mut schedule) = (task("veo", "t"), schedule());
    schedule.expect(waited_for(&t, 0));
    assert!(schedule.next(0, |_| true, |_, _| false).is_none());
    let [(id, _)] = schedule.take_unsure(0)[..] else {
        panic!("one task is due");
    };
    assert!(schedule.take_unsure(0).is_empty(), "once");
    schedule.looked_up(id, false);
    assert_eq!(next_one(&mut schedule, 0), Some(id));

    schedule.unsettled(id, not_yet(), 0);
    let later = INTERVAL_MIN * 11 / 10 + 1;
    assert_eq!(schedule.take_unsure(later).len(), 1);
    schedule.looked_up(id, true);
    assert_eq!(schedule.len(), 0);
}

#[test]
fn a_stored_deadline_counts_before_that_of_somebody_who_waits() {
    let t = task("veo", "t");
    let mut waited_first = schedule();
    waited_first.expect(waited_for(&t, 12 * MINUTE));
    waited_first.expect(stored(&t, 20 * MINUTE));
    assert_eq!(waited_first.next_at(), Some(20 * MINUTE));

    let mut stored_first = schedule();
    stored_first.expect(stored(&t, 20 * MINUTE));
    stored_first.expect(waited_for(&t, 12 * MINUTE));
    assert_eq!(stored_first.next_at(), Some(20 * MINUTE));
}

#[test]
fn what_was_found_while_somebody_only_waited_does_not_count_against_a_stored_deadline() {
    let (mut schedule, t) = (schedule(), task("veo", "t"));
    schedule.expect(waited_for(&t, MINUTE));
    let id = next_one(&mut schedule, MINUTE).unwrap();
    schedule.unsettled(id, not_yet(), MINUTE);
    let late = schedule.next_late(MINUTE, |_| false).unwrap();
    schedule.noted(&late, MINUTE);

    let deadline = 10 * HOUR; // beyond the moment when the wait would have been given up
    schedule.expect(stored(&t, deadline));
    let (mut now, mut events) = (MINUTE, Vec::new());
    while schedule.len() > 0 {
        if let Some(id) = next_one(&mut schedule, now) {
            schedule.unsettled(id, not_yet(), now);
        }
        while let Some(late) = schedule.next_late(now, |_| false) {
            schedule.noted(&late, now);
            events.push((now, late.gave_up, late.deadline));
        }
        now = schedule.next_at().unwrap_or(now).max(now);
    }
    let [(first, false, expected_by), (last, true, _)] = events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(expected_by, deadline);
    assert!(
        (deadline..deadline + 6 * MINUTE).contains(&first),
        "{first}"
    );
    assert_eq!(last, deadline + 6 * HOUR);
}

#[test]
fn a_task_that_is_expected_while_its_wait_is_being_given_up_stays_expected() {
    let (mut schedule, t) = (schedule(), task("veo", "t"));
    schedule.expect(Expected {
        is_overdue: true,
        ..waited_for(&t, 0)
    });
    let now = 6 * HOUR;
    let id = next_one(&mut schedule, now).unwrap();
    schedule.unsettled(id, not_yet(), now);
    let late = schedule.next_late(now, |_| false).unwrap();
    assert!(late.gave_up);

    schedule.expect(stored(&t, 7 * HOUR));
    schedule.noted(&late, now);
    assert_eq!(schedule.len(), 1);
    assert_eq!(schedule.next_late(7 * HOUR, |_| false), None);
    let late = schedule.next_late(7 * HOUR + LATE_GRACE, |_| false);
    assert!(!late.unwrap().gave_up, "its own time begins then");
}

#[test]
fn a_task_is_expected_until_the_last_reason_ends() {
    let t = task("veo", "t");
    let mut schedule = schedule();
    schedule.expect(waited_for(&t, MINUTE));
    schedule.expect(stored(&t, MINUTE));
    schedule.no_longer_waited_for(&t);
    assert_eq!(schedule.len(), 1);
    schedule.no_longer_stored(schedule.id(&t).unwrap());
    assert_eq!(schedule.len(), 0);

    schedule.expect(stored(&t, MINUTE));
    schedule.expect(waited_for(&t, MINUTE));
    schedule.no_longer_stored(schedule.id(&t).unwrap());
    assert_eq!(schedule.len(), 1);
    schedule.no_longer_waited_for(&t);
    assert_eq!(schedule.len(), 0);
    schedule.assert_in_step();
}

#[test]
fn a_task_that_is_waited_for_is_looked_up_when_its_stored_expectation_has_ended() {
    let (t, mut schedule) = (task("veo", "t"), schedule());
    schedule.expect(stored(&t, MINUTE));
    schedule.expect(waited_for(&t, MINUTE));
    let id = next_one(&mut schedule, MINUTE).unwrap();
    schedule.not_asked(id);
    schedule.no_longer_stored(id);
    schedule.assert_in_step();
    assert!(schedule.next(MINUTE, |_| true, |_, _| false).is_none());
    assert_eq!(schedule.take_unsure(MINUTE), [(id, t)]);
    schedule.looked_up(id, true);
    assert_eq!(schedule.len(), 0);
}

#[test]
fn a_task_that_is_expected_anew_has_the_new_deadline() {
    let (t, mut schedule) = (task("veo", "t"), schedule());
    schedule.expect(Expected {
        is_overdue: true,
        ..stored(&t, 10 * MINUTE)
    });
    schedule.expect(waited_for(&t, 12 * MINUTE));
    let (_, picked) = schedule.next(HOUR, |_| true, |_, _| false).unwrap();
    let anew = Expected {
        number: Some(2),
        ..stored(&t, 2 * HOUR)
    };
    schedule.expect(anew.clone());
    schedule.expect(anew);
    schedule.assert_in_step();
    let Picked::One(before) = picked else {
        panic!("{picked:?}");
    };
    assert_eq!(schedule.unsettled(before, not_yet(), HOUR), Follows::Again);

    assert_eq!(schedule.overdue(), 0);
    assert_eq!(schedule.next_at(), Some(2 * HOUR));
    assert!(next_one(&mut schedule, 2 * HOUR).is_some());
    let id = schedule.id(&t).unwrap();
    schedule.no_longer_stored(id);
    assert_eq!(schedule.len(), 1, "somebody waits for it still");
}

#[test]
fn a_task_is_not_checked_again_before_the_vendor_wants_it_for_up_to_five_minutes() {
    for (asked, least) in [(0, 27), (120, 120), (3_600, 300)] {
        let mut schedule = schedule();
        schedule.expect(stored(&task("veo", "t"), 0));
        let id = next_one(&mut schedule, 0).unwrap();
        let answered = Answered {
            retry_after: asked * SECOND,
            ..not_yet()
        };
        schedule.unsettled(id, answered, 0);
        assert_eq!(next_one(&mut schedule, least * SECOND - 1), None, "{asked}");
        assert_eq!(next_one(&mut schedule, 330 * SECOND), Some(id));
    }
}

#[test]
fn a_task_that_one_key_does_not_see_is_checked_with_another_unless_one_was_named() {
    for (named, used) in [(None, "other"), (Some(key()), "main")] {
        let mut schedule = schedule();
        schedule.expect(Expected {
            named_key: named,
            ..stored(&task("veo", "t"), 0)
        });
        let id = next_one(&mut schedule, 0).unwrap();
        schedule.use_key(id, Arc::from("other"));
        schedule.unsettled(id, not_yet(), 0);
        let next = schedule.next(MINUTE, |_| true, |_, _| false);
        assert_eq!(next, Some((Arc::from(used), Picked::One(id))));
    }
}

#[test]
fn new_keys_move_tasks_that_are_due() {
    let mut schedule = schedule();
    schedule.expect(Expected {
        key: None,
        ..stored(&task("veo", "t"), 0)
    });
    schedule.expect(Expected {
        named_key: Some(Arc::from("team-b")),
        ..stored(&task("veo", "u"), 0)
    });
    assert!(
        schedule
            .next(0, |key| key == "team-b", |_, _| false)
            .is_none()
    );

    schedule.choose_keys(|_, named| named.map(Arc::from));
    schedule.assert_in_step();
    let picked = schedule.next(0, |_| true, |_, _| false).map(|(key, _)| key);
    assert_eq!(picked.as_deref(), Some("team-b"));
    assert_eq!(next_one(&mut schedule, 0), None, "the other one has no key");
}

#[test]
fn tasks_that_a_list_does_not_show_are_checked_by_themselves() {
    let mut schedule = schedule();
    for n in 0..=SINGLE_MAX {
        schedule.expect(stored(&task("veo", &format!("t{n}")), 0));
    }
    let Some((_, Picked::List(_, ids))) = schedule.next(0, |_| true, |_, _| true) else {
        panic!("a list for more than {SINGLE_MAX}");
    };
    assert_eq!(schedule.next_at(), Some(LATE_GRACE), "nothing else is due");

    for id in &ids {
        schedule.not_listed(*id);
    }
    for _ in &ids {
        let picked = schedule.next(0, |_| true, |_, _| true);
        assert!(matches!(picked, Some((_, Picked::One(_)))), "{picked:?}");
    }
}

#[test]
fn the_schedule_holds_at_most_a_third_more_than_is_expected() {
    let mut schedule = schedule();
    let (mut open, open_max) = (std::collections::VecDeque::new(), 100);
    for n in 0..10_000 {
        let t = task("veo", &format!("t{n}"));
        open.push_back(t.clone());
        if open.len() > open_max {
            open.pop_front(); // it has ended by a callback
        }
        schedule.expect(stored(&t, 12 * MINUTE));
        let is_open: HashSet<_> = open.iter().cloned().collect();
        schedule.sweep(|t| is_open.contains(t));
        let most = open_max * SWEPT / (SWEPT - 1) + SWEPT;
        assert!(schedule.len() <= most, "{}", schedule.len());
    }
}

/// What a test does with a schedule.
#[derive(Clone, Copy, Debug)]
enum Step {
    Expect { n: u8, within: i64, waits: bool },
    StopsWaiting(u8),
    Ends(u8),
    Pass(i64),
    Check { has_list: bool, answer: u8 },
    Late { is_appended: bool },
    NewKeys { for_all: bool },
}

fn any_step() -> impl Strategy<Value = Step> {
    let n = 0..24_u8;
    prop_oneof![
        4 => (n.clone(), 0..20 * MINUTE, any::<bool>())
            .prop_map(|(n, within, waits)| Step::Expect { n, within, waits }),
        1 => n.clone().prop_map(Step::StopsWaiting),
        1 => n.prop_map(Step::Ends),
        4 => (0..10 * MINUTE).prop_map(Step::Pass),
        1 => Just(Step::Pass(3 * HOUR)),
        6 => (any::<bool>(), 0..5_u8)
            .prop_map(|(has_list, answer)| Step::Check { has_list, answer }),
        2 => any::<bool>().prop_map(|is_appended| Step::Late { is_appended }),
        1 => any::<bool>().prop_map(|for_all| Step::NewKeys { for_all }),
    ]
}

fn nth(n: u8) -> TaskKey {
    task(
        ["veo", "kling", "sora"][usize::from(n % 3)],
        &format!("t{n}"),
    )
}

/// A schedule, and what it has said of each entry.
struct Model {
    schedule: Schedule,
    now: i64,
    overdue: HashSet<Id>,
    checked_at: HashMap<Id, i64>,
}

impl Model {
    fn step(&mut self, step: Step) {
        match step {
            Step::Expect { n, within, waits } => {
                let why = if waits { Why::WaitedFor } else { Why::Stored };
                let deadline = self.now + within;
                let new = stored(&nth(n), deadline);
                let number = (!waits).then_some(within.unsigned_abs() % 3);
                let known = self.schedule.id(&nth(n));
                let only_waits = |id: &Id| !self.schedule.entries[id].is_stored;
                if let Some(id) = known.filter(|id| !waits && only_waits(id)) {
                    self.overdue.remove(&id); // what is promised now is late at its own time
                }
                self.schedule.expect(Expected { number, why, ..new });
            }
            Step::StopsWaiting(n) => self.schedule.no_longer_waited_for(&nth(n)),
            Step::Ends(n) => {
                if let Some(id) = self.schedule.id(&nth(n)) {
                    self.schedule.settled(id);
                }
            }
            Step::Pass(time) => self.now += time,
            Step::Check { has_list, answer } => self.check(has_list, answer),
            Step::Late { is_appended } => self.late(is_appended),
            Step::NewKeys { for_all } => self
                .schedule
                .choose_keys(|product, _| (for_all || product.as_str() == "veo").then(key)),
        }
    }

    fn check(&mut self, has_list: bool, answer: u8) {
        look_up(&mut self.schedule, self.now);
        let picked = self.schedule.next(self.now, |_| true, |_, _| has_list);
        let ids = match picked {
            Some((_, Picked::One(id))) => vec![id],
            Some((_, Picked::List(_, ids))) => ids,
            None => return,
        };
        for id in ids {
            let entry = &self.schedule.entries[&id];
            assert!(entry.deadline <= self.now, "no check before the deadline");
            if let Some(before) = self.checked_at.get(&id) {
                let least = (INTERVAL_MIN * 9 / 10 - 1).min(entry.gives_up_at - before);
                assert!(self.now - before >= least, "no check too soon");
            }
            match answer {
                0 => self.schedule.not_asked(id),
                1 => self.schedule.not_listed(id),
                2 => self.schedule.settled(id),
                3 => {
                    self.schedule.unsettled(id, without_outputs(), self.now);
                    if matches!(
                        self.schedule.entries.get(&id).map(|entry| entry.state),
                        Some(State::Busy { .. })
                    ) {
                        self.schedule.settled(id); // taken as it is
                    }
                    self.checked_at.insert(id, self.now);
                }
                _ => {
                    self.schedule.unsettled(id, not_yet(), self.now);
                    self.checked_at.insert(id, self.now);
                }
            }
        }
    }

    fn late(&mut self, is_appended: bool) {
        let Some(late) = self.schedule.next_late(self.now, |_| true) else {
            return;
        };
        assert!(late.deadline <= self.now);
        assert_eq!(late.gave_up, self.overdue.contains(&late.id), "each once");
        let has_key = self.schedule.entries[&late.id].key.is_some();
        assert!(!late.gave_up || !has_key || late.checked.count > 0);
        if is_appended {
            self.schedule.noted(&late, self.now);
            self.overdue.insert(late.id);
            assert!(!late.gave_up || self.schedule.task(late.id).is_none());
        } else {
            self.schedule.not_noted(&late, self.now);
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_each_task_is_in_its_place_and_late_at_most_twice(
        steps in prop::collection::vec(any_step(), 0..300),
    ) {
        let mut model = Model {
            schedule: schedule(),
            now: 0,
            overdue: HashSet::new(),
            checked_at: HashMap::new(),
        };
        for step in steps {
            model.step(step);
            model.schedule.assert_in_step();
        }

        // Left alone, everything ends: no task stays for ever.
        for _ in 0..10_000 {
            if model.schedule.len() == 0 {
                break;
            }
            model.check(true, 4);
            model.late(true);
            if let Some(next) = model.schedule.next_at() {
                model.now = model.now.max(next);
            }
        }
        prop_assert_eq!(model.schedule.len(), 0);
    }

    /// With a key that may be used so often, a task is checked for the first time at the latest when all others had their turns.
    #[test]
    fn a_spent_key_delays_each_task_by_no_more_than_the_others_take(
        waits in prop::collection::vec(any::<bool>(), 1..60),
    ) {
        let mut schedule = schedule();
        for (n, waits) in waits.iter().enumerate() {
            let why = if *waits { Why::WaitedFor } else { Why::Stored };
            let new = stored(&task(["veo", "kling"][n % 2], &format!("t{n}")), 0);
            schedule.expect(Expected { why, ..new });
        }

        // One check a second, so that checked tasks are due again before all others had a turn.
        let mut unchecked: HashSet<Id> = (0..waits.len() as u64).collect();
        let mut turns = 0;
        while !unchecked.is_empty() {
            let now = turns * 30 * SECOND;
            let id = next_one(&mut schedule, now).unwrap();
            schedule.unsettled(id, not_yet(), now);
            unchecked.remove(&id);
            turns += 1;
            // Four turns of five may be those of tasks with waiting clients, and every other one of the rest of one product.
            prop_assert!(turns <= 10 * waits.len() as i64 + 10, "{} turns", turns);
        }
    }
}
