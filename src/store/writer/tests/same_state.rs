//! Two stores take the same commands, and one of them is also restarted, restored and indexed anew at random places. Whatever
//! applies the commits (the writer, the replay of a start, a rebuild, a restore), the stores answer alike and end up alike.

use std::{fs::File, os::unix::fs::FileExt};

use proptest::{collection::vec, prelude::*};
use uuid::Uuid;

use super::{
    cached_index::{ended, segment},
    *,
};
use crate::store::{
    Expectation, NewExpectation, Whose, index_doubt::Doubt, layout::TaskEvent, restore,
};

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// One group of commands.
    Commit(Vec<Sent>),
    /// Limits for the commits that follow.
    Retain { event_bytes: u64, quarantined: u64 },
    /// Retention, as far as it is due.
    Trim,
    /// What happens to the second store only.
    Disturb(Disturbance),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Disturbance {
    /// The index is synced, and later starts replay less.
    Checkpoint,
    /// The log goes on in another segment.
    NewSegment,
    /// The process is killed, and the store is opened again.
    Crash,
    /// The same, and the index is built again from the log.
    Rebuild,
    /// The same, but the first start is cut off where it reads the newest segment but one.
    RebuildCutOff,
    /// A backup is taken, and restored in another directory.
    Restore,
}

/// Numbers choose among few values, so that commands concern the same tasks and callbacks.
#[derive(Clone, Debug)]
pub(super) enum Sent {
    Append(Event),
    /// So many terminal events of one task, each of which says something else.
    Flood {
        product: u8,
        count: u8,
    },
    Quarantine {
        credential: u8,
        bytes: u8,
    },
    Release {
        number: u8,
        events: Vec<Event>,
    },
    Discard {
        numbers: Vec<u8>,
    },
    Erase {
        task: u8,
        product: u8,
    },
    Expect {
        tasks: Vec<(u8, u8)>,
        client: u8,
    },
    EndExpectations {
        tasks: Vec<(u8, u8)>,
        client: u8,
    },
    Overdue {
        task: u8,
        product: u8,
        gives_up: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    task: u8,
    product: u8,
    status: u8,
    content: u8,
    is_answer: bool,
}

fn any_event() -> impl Strategy<Value = Event> {
    (0..4u8, 0..2u8, 0..6u8, 0..6u8, any::<bool>()).prop_map(
        |(task, product, status, content, is_answer)| Event {
            task,
            product,
            status,
            content,
            is_answer,
        },
    )
}

pub(super) fn any_sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        8 => any_event().prop_map(Sent::Append),
        2 => (0..4u8, 1..90u8).prop_map(|(product, count)| Sent::Flood { product, count }),
        4 => (0..3u8, 0..40u8).prop_map(|(credential, bytes)| Sent::Quarantine { credential, bytes }),
        1 => (0..20u8, vec(any_event(), 0..3))
            .prop_map(|(number, events)| Sent::Release { number, events }),
        1 => vec(0..20u8, 1..4).prop_map(|numbers| Sent::Discard { numbers }),
        1 => (0..4u8, 0..2u8).prop_map(|(task, product)| Sent::Erase { task, product }),
        3 => (any_tasks(), 0..3u8).prop_map(|(tasks, client)| Sent::Expect { tasks, client }),
        1 => (any_tasks(), 0..3u8).prop_map(|(tasks, client)| Sent::EndExpectations { tasks, client }),
        2 => (0..4u8, 0..2u8, any::<bool>())
            .prop_map(|(task, product, gives_up)| Sent::Overdue { task, product, gives_up }),
    ]
}

fn any_tasks() -> impl Strategy<Value = Vec<(u8, u8)>> {
    vec((0..4u8, 0..2u8), 1..5)
}

pub(super) fn any_step() -> impl Strategy<Value = Step> {
    let disturbance = prop_oneof![
        2 => Just(Disturbance::Checkpoint),
        2 => Just(Disturbance::NewSegment),
        3 => Just(Disturbance::Crash),
        2 => Just(Disturbance::Rebuild),
        2 => Just(Disturbance::RebuildCutOff),
        1 => Just(Disturbance::Restore),
    ];
    prop_oneof![
        10 => vec(any_sent(), 1..6).prop_map(Step::Commit),
        1 => (prop_oneof![Just(u64::MAX), 500..4_000u64, 10_000..40_000u64], prop_oneof![Just(u64::MAX), 0..8u64])
            .prop_map(|(event_bytes, quarantined)| Step::Retain { event_bytes, quarantined }),
        1 => Just(Step::Trim),
        4 => disturbance.prop_map(Step::Disturb),
    ]
}

/// The task that floods are of.
const FLOODED: u8 = 0;

/// A store with its writer, and how many events it was sent.
struct Taking {
    stepped: Stepped,
    sent: u128,
}

/// An answer, for comparison.
pub(super) type Answered = Result<String, WriteError>;

/// Who sends commands to a store.
pub(super) struct Caller<'a> {
    pub store: &'a Store,
    pub appender: &'a Appender,
    pub machine: &'a Machine,
    /// How many events were sent.
    pub sent: &'a mut u128,
}

impl Caller<'_> {
    fn draft(&mut self, event: &Event) -> Draft {
        *self.sent += 1;
        let Event {
            task,
            product,
            status,
            content,
            is_answer,
        } = *event;
        Draft {
            event_id: Uuid::from_u128(*self.sent),
            product: Product::parse(&format!("p{product}")).unwrap(),
            status: TaskStatus::from_number(status).unwrap(),
            // Of eight neighbours, those with the same status repeat each other.
            fingerprint: u128::from(content * 8 + status).into(),
            received_at_micros: self.machine.wall(),
            raw: vec![b'r'; usize::from(content) * 10].into(),
            event: vec![b'e'; usize::from(content)].into(),
            is_answer,
            ..draft(&format!("t{task}"), 0)
        }
    }

    fn task((task, product): (u8, u8)) -> (Product, TaskId) {
        (
            Product::parse(&format!("p{product}")).unwrap(),
            TaskId::parse(&format!("t{task}")).unwrap(),
        )
    }

    fn draft_of_flood(&mut self, product: u8) -> Draft {
        let event = Event {
            task: FLOODED,
            product,
            status: TaskStatus::Completed as u8,
            content: 0,
            is_answer: false,
        };
        let draft = self.draft(&event);
        Draft {
            // Behind those of the events that are sent one by one.
            fingerprint: ((*self.sent + 100) * 8).into(),
            ..draft
        }
    }

    /// Sends a command; returns what gives its answer.
    pub(super) fn send(&mut self, sent: &Sent) -> Box<dyn FnOnce() -> Answered> {
        fn answer<T: std::fmt::Debug + 'static>(
            answer: oneshot::Receiver<Result<T, WriteError>>,
        ) -> Box<dyn FnOnce() -> Answered> {
            Box::new(|| {
                answer
                    .blocking_recv()
                    .unwrap()
                    .map(|answer| format!("{answer:?}"))
            })
        }

        let appender = self.appender.clone();
        match sent {
            Sent::Append(event) => answer(appender.append(self.draft(event))),
            Sent::Flood { product, count } => {
                let answers: Vec<_> = (0..*count)
                    .map(|_| answer(appender.append(self.draft_of_flood(*product))))
                    .collect();
                Box::new(|| {
                    let answers: Result<Vec<_>, _> =
                        answers.into_iter().map(|answer| answer()).collect();
                    answers.map(|answers| answers.concat())
                })
            }
            Sent::Quarantine { credential, bytes } => {
                let header = QuarantineHeader {
                    credential: format!("c{credential}"),
                    received_at_micros: self.machine.wall(),
                    ..QuarantineHeader::default()
                };
                let body = vec![b'q'; usize::from(*bytes)].into();
                answer(appender.quarantine(NewQuarantined { header, body }))
            }
            Sent::Release { number, events } => {
                let drafts = events.iter().map(|event| self.draft(event)).collect();
                answer(appender.release(u64::from(*number), drafts))
            }
            Sent::Discard { numbers } => {
                answer(appender.discard(numbers.iter().copied().map(u64::from).collect()))
            }
            Sent::Expect { tasks, client } => {
                let now = self.machine.wall();
                let new = |task: &(u8, u8)| {
                    let (product, task_id) = Self::task(*task);
                    NewExpectation {
                        product,
                        task_id,
                        labels: [("client".to_owned(), client.to_string())].into(),
                        client: (*client > 0).then(|| format!("c{client}")),
                        vendor_key: (*client > 1).then(|| "key".to_owned()),
                        expected_at_micros: now,
                        expected_by_micros: now + 60_000_000,
                    }
                };
                answer(appender.expect(tasks.iter().map(new).collect()))
            }
            Sent::EndExpectations { tasks, client } => {
                let tasks = tasks.iter().copied().map(Self::task).collect();
                let whose = match client {
                    0 => Whose::Anybody,
                    _ => Whose::Client(Some(format!("c{client}"))),
                };
                answer(appender.end_expectations(tasks, whose))
            }
            Sent::Overdue {
                task,
                product,
                gives_up,
            } => {
                let draft = self.draft(&Event {
                    task: *task,
                    product: *product,
                    status: TaskStatus::Overdue as u8,
                    content: u8::from(*gives_up),
                    is_answer: false,
                });
                let open = self.store.expectation(&draft.product, &draft.task_id);
                let number = open.map_or(0, |open| open.number);
                answer(appender.overdue(number, draft, *gives_up))
            }
            Sent::Erase { task, product } => answer(appender.erase(Erasure {
                task_id: TaskId::parse(&format!("t{task}")).unwrap(),
                product: Product::parse(&format!("p{product}")).unwrap(),
                places: Vec::new(),
            })),
        }
    }
}

impl Taking {
    fn new() -> Self {
        Self {
            stepped: Stepped::new(),
            sent: 0,
        }
    }

    /// Commits a group, and returns the answer to each command.
    fn commit(&mut self, group: &[Sent]) -> Vec<Answered> {
        self.stepped.machine.pass(Duration::from_secs(1));
        let answers: Vec<_> = group.iter().map(|sent| self.send(sent)).collect();
        self.stepped.step();
        answers.into_iter().map(|answer| answer()).collect()
    }

    fn send(&mut self, sent: &Sent) -> Box<dyn FnOnce() -> Answered> {
        let Self {
            stepped,
            sent: count,
        } = self;
        let mut caller = Caller {
            store: &stepped.store,
            appender: &stepped.appender,
            machine: &stepped.machine,
            sent: count,
        };
        caller.send(sent)
    }

    fn retain(&mut self, event_bytes: u64, quarantined: u64) {
        self.stepped.writer.retention = Retention {
            event_bytes_max: event_bytes,
            quarantine_count_max: quarantined,
            ..Retention::KEEP_ALL
        };
    }

    fn trim(&mut self) {
        while self.stepped.writer.trim_is_due() && self.stepped.trim() > 0 {}
    }

    fn disturb(self, disturbance: Disturbance) -> Self {
        let Self { mut stepped, sent } = self;
        let retention = stepped.writer.retention;
        match disturbance {
            Disturbance::Checkpoint => {
                stepped.store.checkpoint().unwrap();
                stepped.store.log.remove_forgotten();
            }
            Disturbance::NewSegment => begin_segment(&mut stepped),
            Disturbance::Crash => stepped = stepped.reopen(),
            Disturbance::Rebuild => {
                Doubt::of(&stepped.store.path).write();
                stepped = stepped.reopen();
            }
            Disturbance::RebuildCutOff => {
                begin_segment(&mut stepped);
                stepped = cut_off(stepped);
            }
            Disturbance::Restore => stepped = restored(stepped),
        }
        stepped.writer.retention = retention;
        Self { stepped, sent }
    }

    fn state(&self) -> State {
        State::of(&self.stepped.store)
    }
}

/// The directory of a store that has taken these steps and is closed, and what is in it.
pub(super) fn taken(steps: Vec<Step>) -> (tempfile::TempDir, Machine, State) {
    let mut taking = Taking::new();
    for step in steps {
        match step {
            Step::Commit(group) => drop(taking.commit(&group)),
            Step::Retain {
                event_bytes,
                quarantined,
            } => taking.retain(event_bytes, quarantined),
            Step::Trim => taking.trim(),
            Step::Disturb(disturbance) => taking = taking.disturb(disturbance),
        }
    }
    let state = taking.state();
    let (directory, machine) = ended(taking.stepped);
    (directory, machine, state)
}

fn begin_segment(stepped: &mut Stepped) {
    let log = &stepped.store.log;
    log.look_at_age(stepped.machine.wall(), Duration::ZERO);
    log.make_ahead().unwrap();
    stepped.writer.retention = Retention::KEEP_ALL;
    stepped.trim();
}

/// A store that is built again by two starts: the first finds a damaged segment before the newest, as long as it is damaged.
fn cut_off(stepped: Stepped) -> Stepped {
    let number = stepped.store.log.newest() - 1;
    let (directory, machine) = ended(stepped);
    let path = directory.path();
    Doubt::of(path).write();
    let file = File::options()
        .read(true)
        .write(true)
        .open(segment(path, number));
    if let Ok(file) = file {
        // Of the header of its first commit, if it has any.
        const AT: u64 = 300;
        let mut byte = [0];
        file.read_exact_at(&mut byte, AT).unwrap();
        file.write_all_at(&[byte[0] ^ 1], AT).unwrap();
        drop(Store::open_by(machine.source(), path, 1 << 20));
        file.write_all_at(&byte, AT).unwrap();
    }
    Stepped::on(directory, machine)
}

/// A store that was restored from a backup of another.
fn restored(mut stepped: Stepped) -> Stepped {
    let backup = stepped.appender.backup();
    stepped.step();
    let mut backup = backup.blocking_recv().unwrap().unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = backup.next_chunk().unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    let directory = tempfile::tempdir().unwrap();
    restore(&bytes[..], directory.path()).unwrap();
    Stepped::on(directory, stepped.machine.clone())
}

/// Everything that readers and the writer depend on.
#[derive(Debug, PartialEq)]
pub(super) struct State {
    totals: Totals,
    head: Sequence,
    first_available: Sequence,
    /// With their revisions, conflicts, times and contents.
    events: Vec<(Sequence, Bytes)>,
    tasks: Vec<(TaskId, Vec<TaskEvent>)>,
    quarantine: Vec<(u64, QuarantineHeader, Bytes)>,
    expectations: Vec<Expectation>,
}

impl State {
    pub(super) fn of(store: &Store) -> Self {
        let tasks = (0..4).map(|task| TaskId::parse(&format!("t{task}")).unwrap());
        let tasks = tasks.map(|task_id| {
            let events = store.index.tasks.get(&task_id).unwrap();
            (task_id, events)
        });
        let quarantine = store.quarantined_after(0, usize::MAX, usize::MAX).unwrap();
        let quarantine = quarantine
            .into_iter()
            .map(|callback| (callback.number, callback.header, callback.body));
        State {
            totals: Totals {
                // A start waits until it trusts the machine's clock.
                trust: Default::default(),
                // What is written again is stamped, and one of the stores has more segments to remove.
                log_time_micros: 0,
                ..*lock(&store.totals)
            },
            head: store.head(),
            first_available: store.first_available(),
            events: store
                .log
                .events(store.first_available()..=store.head())
                .map(|logged| logged.unwrap().record)
                .map(|record| (record.sequence(), record.bytes().clone()))
                .collect(),
            tasks: tasks.collect(),
            quarantine: quarantine.collect(),
            expectations: store.expectations_after(0, usize::MAX),
        }
    }

    /// What each store must satisfy by itself: the totals count what is there, and the index names each event once; of the flooded
    /// task it may name some only.
    pub(super) fn check(&self) {
        let Self {
            totals,
            head,
            events,
            tasks,
            quarantine,
            expectations,
            ..
        } = self;
        assert_eq!(totals.head(), Some(*head));
        assert_eq!(totals.first_available, self.first_available.0);
        assert_eq!(totals.event_count, events.len() as u64);
        let bytes: usize = events.iter().map(|(_, record)| record.len()).sum();
        assert_eq!(totals.event_bytes, bytes as u64);
        assert_eq!(totals.quarantine_count, quarantine.len() as u64);

        assert_eq!(totals.expectation_count, expectations.len() as u64);
        for expectation in expectations {
            assert!(expectation.number <= totals.expectation_next);
            let mut events = tasks
                .iter()
                .filter(|(task_id, _)| *task_id == expectation.task_id)
                .flat_map(|(_, events)| events);
            let is_over = events
                .any(|event| event.product == expectation.product && event.status.is_terminal());
            assert!(!is_over, "{expectation:?} is over");
        }

        let named = || tasks.iter().flat_map(|(_, events)| events);
        let mut places: Vec<_> = named().map(|event| event.sequence).collect();
        places.sort_unstable();
        let count = places.len();
        places.dedup();
        assert_eq!(places.len(), count);
        let flooded = TaskId::parse(&format!("t{FLOODED}")).unwrap();
        for (place, record) in events {
            let is_named = places.binary_search(place).is_ok();
            assert!(is_named || has(record, flooded.as_str()), "{place:?}");
        }
        assert!(
            places
                .iter()
                .all(|place| (self.first_available..=*head).contains(place))
        );
    }
}

proptest! {
    // Each case syncs some hundred times.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn stores_that_take_the_same_commands_are_equal_whatever_happens_to_one_of_them_in_between(
        steps in vec(any_step(), 1..40),
    ) {
        let (mut plain, mut disturbed) = (Taking::new(), Taking::new());
        for step in steps.into_iter().chain([Step::Disturb(Disturbance::Crash)]) {
            match step {
                Step::Commit(group) => prop_assert_eq!(plain.commit(&group), disturbed.commit(&group)),
                Step::Retain { event_bytes, quarantined } => {
                    plain.retain(event_bytes, quarantined);
                    disturbed.retain(event_bytes, quarantined);
                }
                Step::Trim => {
                    plain.trim();
                    disturbed.trim();
                }
                Step::Disturb(disturbance) => {
                    disturbed = disturbed.disturb(disturbance);
                    let state = disturbed.state();
                    state.check();
                    prop_assert_eq!(plain.state(), state);
                }
            }
        }
    }
}
