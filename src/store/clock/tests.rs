use std::{sync::Arc, time::Duration};

use proptest::{collection, prelude::*};

use super::*;
use crate::{cluster::Totals, event::Sequence};

const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;
/// When tests begin.
const BEGAN: i64 = 56 * YEAR;

/// The clocks of a machine, which a test can set.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct Machine {
    wall: Arc<AtomicI64>,
    monotonic: Arc<AtomicI64>,
}

impl Machine {
    /// A machine whose clock is right.
    pub(in crate::store) fn right() -> Self {
        let machine = Self::default();
        machine.set(BEGAN);
        machine
    }

    pub(in crate::store) fn source(&self) -> Source {
        let (wall, monotonic) = (Arc::clone(&self.wall), Arc::clone(&self.monotonic));
        Source {
            wall: Box::new(move || wall.load(Ordering::Relaxed)),
            monotonic: Box::new(move || monotonic.load(Ordering::Relaxed)),
        }
    }

    /// Time goes by.
    pub(in crate::store) fn pass(&self, time: Duration) {
        let micros = i64::try_from(time.as_micros()).unwrap();
        self.monotonic.fetch_add(micros, Ordering::Relaxed);
        self.wall.fetch_add(micros, Ordering::Relaxed);
    }

    /// Somebody changes the clock.
    pub(in crate::store) fn step(&self, by: i64) {
        self.wall.fetch_add(by, Ordering::Relaxed);
    }

    pub(in crate::store) fn set(&self, wall: i64) {
        self.wall.store(wall, Ordering::Relaxed);
    }

    pub(in crate::store) fn wall(&self) -> i64 {
        self.wall.load(Ordering::Relaxed)
    }
}

/// A judge, looked at each second by a machine's clocks.
struct Watched {
    machine: Machine,
    judge: Judge,
    adoptions: Vec<Adoption>,
}

impl Watched {
    fn start(machine: Machine, newest: Option<i64>) -> Self {
        Self::start_after(
            machine,
            newest.map(|micros| Newest {
                micros,
                trust: Trust::Known,
            }),
        )
    }

    fn start_after(machine: Machine, newest: Option<Newest>) -> Self {
        let judge = Judge::start(
            machine.wall(),
            machine.monotonic.load(Ordering::Relaxed),
            newest,
        );
        Self {
            machine,
            judge,
            adoptions: Vec::new(),
        }
    }

    fn monotonic(&self) -> i64 {
        self.machine.monotonic.load(Ordering::Relaxed)
    }

    fn now(&self) -> i64 {
        self.judge.offset + self.monotonic()
    }

    fn look(&mut self) {
        let adoption = self.judge.look(self.machine.wall(), self.monotonic(), true);
        self.adoptions.extend(adoption);
    }

    fn pass(&mut self, micros: i64) {
        for _ in 0..micros / SECOND {
            self.machine.pass(Duration::from_secs(1));
            self.look();
        }
    }
}

#[test]
fn seconds_in_which_the_clock_is_wrong_change_nothing() {
    for by in [
        YEAR,
        -2 * YEAR,
        i64::MAX / 2,
        i64::MIN / 2,
        11 * SECOND,
        -11 * SECOND,
    ] {
        let mut watched = Watched::start(Machine::right(), Some(BEGAN - MINUTE));
        watched.pass(HOUR);
        watched.machine.step(by);
        watched.pass(AGREEMENT - SECOND);
        assert_eq!(watched.now(), BEGAN + HOUR + AGREEMENT - SECOND);
        watched.machine.step(-by);
        watched.pass(HOUR);
        assert_eq!(
            (watched.now(), watched.adoptions.as_slice()),
            (watched.machine.wall(), &[][..]),
            "{by}"
        );
    }
}

#[test]
fn a_clock_that_agrees_with_itself_for_minutes_is_believed_both_ways() {
    for by in [YEAR, -2 * YEAR, HOUR, -HOUR, 11 * SECOND, -11 * SECOND] {
        let mut watched = Watched::start(Machine::right(), Some(BEGAN - MINUTE));
        watched.pass(HOUR);
        watched.machine.step(by);
        watched.pass(AGREEMENT);
        assert_eq!(
            watched.adoptions,
            [],
            "{by}: it was first seen a second later"
        );
        watched.pass(SECOND);
        let at_micros = BEGAN + HOUR + by + AGREEMENT + SECOND;
        assert_eq!(
            watched.adoptions,
            [Adoption {
                at_micros,
                by_micros: by,
                earlier_by_micros: by
            }]
        );
        assert_eq!(
            (watched.now(), watched.machine.wall()),
            (at_micros, at_micros)
        );
    }
}

#[test]
fn small_differences_are_followed_but_not_faster_than_stated() {
    let mut watched = Watched::start(Machine::right(), None);
    watched.machine.step(TOLERANCE);
    watched.look();
    assert_eq!(watched.now(), watched.machine.wall());
    watched.machine.step(-TOLERANCE);
    watched.look();
    assert_eq!(watched.now(), watched.machine.wall());

    // A clock that runs twice as fast is not followed for long, and never adopted.
    let (before, began) = (watched.now(), watched.monotonic());
    for _ in 0..3_600 {
        watched.machine.step(SECOND);
        watched.pass(SECOND);
    }
    let gained = watched.now() - before - (watched.monotonic() - began);
    assert!((0..=TOLERANCE).contains(&gained), "{gained}");
    assert_eq!(watched.adoptions, []);
}

#[test]
fn a_start_stamps_by_the_wall_clock_unless_that_cannot_be_and_waits_with_forgetting_if_it_is_far() {
    // How long ago the newest event was by the wall clock; whether that is taken, and whether ages
    // count at once.
    for (downtime, taken, settled) in [
        (0, true, true),
        (FAR, true, true),
        (FAR + 1, true, false),
        (DOWNTIME_MAX, true, false),
        (DOWNTIME_MAX + 1, false, false),
        (-TOLERANCE, true, true),
        (-TOLERANCE - 1, false, true),
        (-FAR - 1, false, false),
        (-YEAR, false, false),
    ] {
        let newest = BEGAN - downtime;
        let mut watched = Watched::start(Machine::right(), Some(newest));
        assert_eq!(
            watched.now(),
            if taken { BEGAN } else { newest },
            "{downtime}"
        );
        assert_eq!(watched.judge.is_settled(), settled, "{downtime}");
        watched.pass(AGREEMENT - SECOND);
        assert_eq!(watched.judge.is_settled(), settled, "{downtime}");
        watched.pass(2 * SECOND);
        assert!(watched.judge.is_settled(), "{downtime}");
        assert_eq!(watched.now(), watched.machine.wall(), "{downtime}");
    }
    assert!(
        Watched::start(Machine::right(), None).judge.is_settled(),
        "there is nothing to forget"
    );
}

#[test]
fn a_start_with_a_wrong_clock_waits_until_it_has_been_right_for_minutes() {
    for wrong in [YEAR, -YEAR, -BEGAN] {
        let machine = Machine::right();
        machine.step(wrong);
        let mut watched = Watched::start(machine, Some(BEGAN - DAY));
        watched.pass(AGREEMENT - SECOND);
        watched.machine.step(-wrong);
        watched.pass(AGREEMENT - SECOND);
        assert!(!watched.judge.is_settled());
        watched.pass(2 * SECOND);
        assert!(watched.judge.is_settled());
        let [
            Adoption {
                earlier_by_micros: 0,
                ..
            },
        ] = watched.adoptions[..]
        else {
            panic!(
                "{wrong}: the day that the machine was off is believed: {:?}",
                watched.adoptions
            );
        };
    }
    let mut watched = Watched::start(Machine::right(), Some(DAY));
    watched.pass(AGREEMENT);
    let [
        Adoption {
            earlier_by_micros: i64::MAX,
            ..
        },
    ] = watched.adoptions[..]
    else {
        panic!("fifty years are no downtime: {:?}", watched.adoptions);
    };
}

#[test]
fn while_the_clocks_disagree_a_time_of_either_is_understood() {
    for wrong in [YEAR, -YEAR] {
        let mut watched = Watched::start(Machine::right(), None);
        watched.pass(HOUR);
        watched.machine.step(wrong);
        watched.pass(MINUTE);
        let (wall, now) = (watched.machine.wall(), watched.now());
        let meant = |time: i64| watched.judge.meant(time, wall, watched.monotonic());
        assert_eq!(
            meant(wall - SECOND),
            now - SECOND,
            "a second ago by this machine"
        );
        assert_eq!(meant(now - SECOND), now - SECOND, "a second ago by another");
        assert_eq!(meant(now - HOUR), now - HOUR);
        watched.machine.step(-wrong);
        watched.look();
        let meant = |time: i64| {
            watched
                .judge
                .meant(time, watched.machine.wall(), watched.monotonic())
        };
        for time in [now - HOUR, now, now + HOUR, now + wrong] {
            assert_eq!(meant(time), time, "they agree");
        }
    }
}

#[test]
fn no_time_that_a_clock_can_show_overflows() {
    for wall in [i64::MIN, -1, 0, i64::MAX] {
        for newest in [None, Some(i64::MIN), Some(0), Some(i64::MAX)] {
            let newest = newest.map(|micros| Newest {
                micros,
                trust: if micros == 0 {
                    Trust::Doubted
                } else {
                    Trust::Waiting
                },
            });
            let machine = Machine::default();
            machine.set(wall);
            let mut judge = Judge::start(wall, 0, newest);
            for monotonic in [SECOND, AGREEMENT + SECOND] {
                for wall in [i64::MIN, 0, i64::MAX] {
                    judge.look(wall, monotonic, true);
                    judge.meant(wall, i64::MAX, monotonic);
                }
            }
        }
    }
    assert_eq!(
        [timestamp(i64::MIN), timestamp(i64::MAX)],
        [Timestamp::MIN, Timestamp::MAX]
    );
}

/// An event, and the true time at which it came.
struct Kept {
    log_time: i64,
    came: i64,
}

/// A log whose clock is watched; `true_time` is what a clock that is always right would say.
struct Aged {
    watched: Watched,
    totals: Totals,
    events: Vec<Kept>,
    true_time: i64,
    starts: i64,
}

impl Aged {
    fn new() -> Self {
        let watched = Watched::start(Machine::right(), None);
        let totals = Totals {
            first_available: 1,
            ..Totals::default()
        };
        Self {
            watched,
            totals,
            events: Vec::new(),
            true_time: BEGAN,
            starts: 0,
        }
    }

    /// So many seconds go by, with an event in each.
    fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.true_time += SECOND;
            self.watched.pass(SECOND);
            for adoption in self.watched.adoptions.drain(..) {
                self.totals
                    .correct(Sequence(self.events.len() as u64), &adoption);
            }
            self.totals.trust = self
                .watched
                .judge
                .trust(self.watched.machine.wall(), self.watched.monotonic());
            self.totals.log_time_micros = self.watched.now().max(self.totals.log_time_micros);
            self.events.push(Kept {
                log_time: self.totals.log_time_micros,
                came: self.true_time,
            });
        }
    }

    /// The broker is down so long, and starts with a clock that is so far ahead.
    fn restart(&mut self, down: i64, ahead: i64) {
        self.starts += 1;
        self.true_time += down;
        self.watched.machine.set(self.true_time + ahead);
        let newest = Newest {
            micros: self.totals.log_time_micros,
            trust: self.totals.trust,
        };
        self.watched = Watched::start_after(self.watched.machine.clone(), Some(newest));
    }

    /// By how much the age of the event that looks oldest is overestimated; 0 while ages do not
    /// count.
    fn too_old_by(&self) -> i64 {
        if !self.watched.judge.is_settled() {
            return 0;
        }
        let (now, correction) = (self.watched.now(), self.totals.correction);
        let by = |(sequence, event): (u64, &Kept)| {
            let age = now - correction.of_event(Sequence(sequence), event.log_time);
            age - (self.true_time - event.came)
        };
        (1..).zip(&self.events).map(by).max().unwrap_or(0)
    }

    /// What following small changes may have gained, and a downtime of minutes that a start
    /// believes at once.
    fn allowed(&self) -> i64 {
        2 * TOLERANCE
            + self.events.len() as i64 * SECOND / AGREEMENT * TOLERANCE
            + self.starts * FAR
    }
}

/// By how much a clock is stepped.
fn any_step() -> impl Strategy<Value = i64> {
    prop_oneof![
        -20 * SECOND..20 * SECOND,
        -HOUR..HOUR,
        -60 * YEAR..60 * YEAR
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn however_a_running_brokers_clock_jumps_nothing_is_aged_faster_than_time_passes(
        steps in collection::vec((any_step(), 1..900_i64), 1..12),
    ) {
        let mut log = Aged::new();
        for (by, seconds) in steps {
            log.watched.machine.step(by);
            log.pass(seconds);
            prop_assert!(log.too_old_by() <= log.allowed(), "{} s too old", log.too_old_by() / SECOND);
        }
        // It recovers: the last time is believed.
        log.pass(AGREEMENT / SECOND + 1);
        prop_assert!((log.watched.now() - log.watched.machine.wall()).abs() <= TOLERANCE);
        prop_assert!(log.watched.judge.is_settled());
        prop_assert!(log.too_old_by() <= log.allowed());
    }

    #[test]
    fn whatever_clock_a_start_finds_nothing_is_aged_faster_if_it_is_set_right_in_time(
        starts in collection::vec((0..30 * DAY, any_step(), 1..AGREEMENT / SECOND, 1..900_i64), 1..6),
    ) {
        let mut log = Aged::new();
        log.pass(60);
        for (down, ahead, wrong_for, right_for) in starts {
            log.restart(down, ahead);
            log.pass(wrong_for - 1);
            prop_assert!(log.too_old_by() <= log.allowed(), "{} s too old", log.too_old_by() / SECOND);
            log.watched.machine.set(log.true_time);
            log.pass(right_for);
            prop_assert!(log.too_old_by() <= log.allowed(), "{} s too old", log.too_old_by() / SECOND);
        }
    }

    #[test]
    fn a_clock_that_is_ahead_over_several_starts_ages_nothing_until_it_has_agreed_for_minutes(
        starts in collection::vec((prop_oneof![Just(0), 0..30 * DAY], prop_oneof![Just(YEAR), 0..60 * YEAR], 1..AGREEMENT / SECOND), 1..6),
        right_for in 1..900_i64,
    ) {
        let mut log = Aged::new();
        log.pass(60);
        for (down, ahead, wrong_for) in starts {
            log.restart(down, ahead);
            log.pass(wrong_for);
            prop_assert!(log.too_old_by() <= log.allowed(), "{} s too old", log.too_old_by() / SECOND);
        }
        log.watched.machine.set(log.true_time);
        log.pass(right_for);
        prop_assert!(log.too_old_by() <= log.allowed(), "{} s too old", log.too_old_by() / SECOND);
    }

    #[test]
    fn after_one_change_ages_are_exact_and_times_rise_on_either_side(by in any_step().prop_filter("it is a change", |by| by.abs() > TOLERANCE), before in 1..60_i64, behind in 1..60_i64) {
        let mut log = Aged::new();
        log.pass(before);
        log.watched.machine.step(by);
        log.pass(AGREEMENT / SECOND + 1 + behind);
        let correction = log.totals.correction;
        prop_assert_eq!(correction.by_micros, by);
        let received: Vec<_> = (1..).zip(&log.events).map(|(at, kept)| correction.of_event(Sequence(at), kept.log_time)).collect();
        let ages: Vec<_> = received.iter().map(|at| log.watched.now() - at).collect();
        let true_ages: Vec<_> = log.events.iter().map(|kept| log.true_time - kept.came).collect();
        prop_assert_eq!(ages, true_ages);
        prop_assert!(received.is_sorted());
        let (older, newer) = log.events.split_at(correction.events as usize);
        prop_assert!(older.is_sorted_by_key(|kept| kept.log_time) && newer.is_sorted_by_key(|kept| kept.log_time));
        prop_assert!(newer.iter().all(|kept| kept.log_time >= correction.at_micros));
    }
}
