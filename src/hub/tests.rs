//! The hub against a plain list as the model: under any order of publishing, attaching and reading, no reader misses or repeats an
//! event.

use std::{collections::HashMap, sync::atomic::AtomicUsize, task::Wake};

use proptest::{collection, prelude::*};

use super::*;
use crate::event::{Labels, Product, RecordParts, Selectable, TaskId, TaskStatus};

fn record(sequence: u64, task: u8, padding: usize) -> Record {
    let parts = RecordParts {
        product: &Product::parse(["veo", "sora", "kling"][usize::from(task) % 3]).unwrap(),
        task_id: &TaskId::parse(&format!("t{task}")).unwrap(),
        status: TaskStatus::Completed,
        revision: 1,
        conflict: false,
        received_at_micros: 0,
        log_time_micros: 0,
        labels: &Labels::new(),
        event: &vec![0; padding],
        raw: b"",
    };
    Record::new(Sequence(sequence), &parts)
}

fn filter(tasks: &[u8], product: Option<&str>) -> Arc<Filter> {
    Arc::new(Filter {
        task_ids: tasks
            .iter()
            .map(|task| TaskId::parse(&format!("t{task}")).unwrap())
            .collect(),
        products: product
            .into_iter()
            .map(|slug| Product::parse(slug).unwrap())
            .collect(),
        ..Filter::default()
    })
}

#[derive(Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Counter {
    fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<u8>),
    Attach(Vec<u8>, Option<&'static str>),
    Read(usize),
    Leave(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    let product = prop_oneof![Just(None), Just(Some("veo")), Just(Some("sora"))];
    prop_oneof![
        4 => collection::vec(0u8..8, 1..6).prop_map(Step::Publish),
        2 => (collection::vec(0u8..8, 0..3), product).prop_map(|(tasks, product)| Step::Attach(tasks, product)),
        5 => (0usize..8).prop_map(Step::Read),
        1 => (0usize..8).prop_map(Step::Leave),
    ]
}

struct Reader {
    seat: Seat,
    filter: Arc<Filter>,
    position: Sequence,
    wake: Arc<Counter>,
    waits_since: Option<usize>,
}

impl Reader {
    // Reads once, from the plain list if the ring has moved past, and compares the events with the list.
    fn read(&mut self, hub: &Arc<Hub>, log: &[Record]) {
        let expected = |after: Sequence, to: Sequence| {
            log.iter()
                .filter(|r| r.sequence() > after && r.sequence() <= to && self.filter.matches(*r))
                .map(Record::sequence)
                .collect::<Vec<_>>()
        };
        self.waits_since = None;
        match self
            .seat
            .read(self.position, &Arc::clone(&self.wake).into())
        {
            Read::Records(records, at) => {
                let (to, matching) = (
                    last(&records),
                    records[at..].iter().filter(|r| self.filter.matches(*r)),
                );
                assert_eq!(
                    matching.map(Record::sequence).collect::<Vec<_>>(),
                    expected(self.position, to)
                );
                self.position = to;
            }
            Read::Waiting(head) => {
                assert_eq!(expected(self.position, head), []);
                self.position = head;
                self.waits_since = Some(self.wake.count());
            }
            Read::Closing => panic!("nobody closed the hub"),
            Read::Behind(to) => {
                assert_eq!(expected(self.position, to), []);
                let head = hub.head();
                self.seat = hub
                    .attach(&self.filter, head)
                    .expect("the head is always within the ring");
                self.position = head;
            }
        }
    }
}

proptest! {
    #[test]
    fn readers_see_exactly_what_matches_and_sleep_only_when_there_is_nothing(steps in collection::vec(any_step(), 1..80)) {
        let hub = Hub::new(Sequence(0), 1_000);
        let mut log: Vec<Record> = Vec::new();
        let mut readers: HashMap<usize, Reader> = HashMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Publish(tasks) => {
                    let first = log.len() as u64 + 1;
                    let batch: Vec<_> = (first..).zip(tasks).map(|(at, task)| record(at, task, 100)).collect();
                    for reader in readers.values_mut() {
                        let wanted = batch.iter().any(|record| reader.filter.matches(record));
                        reader.waits_since = reader.waits_since.map(|count| count + usize::from(wanted));
                    }
                    hub.publish(&batch);
                    log.extend(batch);
                    // A waiting reader was woken exactly once if a matching event came, and not otherwise.
                    for reader in readers.values_mut() {
                        if let Some(expected) = reader.waits_since {
                            prop_assert_eq!(reader.wake.count(), expected);
                        }
                        if reader.wake.count() > 0 {
                            reader.wake.0.store(0, std::sync::atomic::Ordering::Relaxed);
                            reader.waits_since = None;
                        }
                    }
                }
                Step::Attach(tasks, product) => {
                    let filter = filter(&tasks, product);
                    let position = hub.head();
                    let seat = hub.attach(&filter, position).expect("the head is always within the ring");
                    readers.insert(number % 8, Reader { seat, filter, position, wake: Arc::default(), waits_since: None });
                }
                Step::Read(which) => {
                    if let Some(reader) = readers.get_mut(&which) {
                        reader.read(&hub, &log);
                    }
                }
                Step::Leave(which) => {
                    readers.remove(&which);
                }
            }
        }
        drop(readers);
        let state = hub.lock();
        prop_assert!(state.seats.is_empty(), "a dropped seat is given back");
        prop_assert!(state.ring_bytes <= 1_000 || state.ring.len() == 1);
    }
}

#[test]
fn a_place_before_the_ring_gets_no_seat_and_its_first_place_does() {
    let size = record(1, 1, 200).len() as u64;
    let hub = Hub::new(Sequence(0), 1_000);
    (1..=20).for_each(|at| hub.publish(&[record(at, 1, 200)]));
    let kept = 1_000 / size;
    assert!(
        hub.attach(&filter(&[], None), Sequence(20 - kept - 1))
            .is_none()
    );
    let seat = hub
        .attach(&filter(&[], None), Sequence(20 - kept))
        .expect("the place before the ring's first event");
    for at in 20 - kept..20 {
        let Read::Records(records, 0) = seat.read(Sequence(at), Waker::noop()) else {
            panic!("nothing to read")
        };
        assert_eq!(last(&records), Sequence(at + 1));
    }
}

#[test]
fn one_read_is_bounded_by_count_and_by_bytes() {
    let hub = Hub::new(Sequence(0), 64 * 1024 * 1024);
    hub.publish(&(1..=100).map(|at| record(at, 1, 10)).collect::<Vec<_>>());
    hub.publish(
        &(101..=110)
            .map(|at| record(at, 2, 50_000))
            .collect::<Vec<_>>(),
    );
    let seat = hub.attach(&filter(&[], None), Sequence(0)).unwrap();
    let Read::Records(records, at) = seat.read(Sequence(0), Waker::noop()) else {
        panic!()
    };
    assert_eq!(
        (records.len(), at, last(&records)),
        (SHARED_RECORDS_MAX, 0, Sequence(64))
    );
    let Read::Records(records, at) = seat.read(Sequence(70), Waker::noop()) else {
        panic!()
    };
    assert_eq!((records.len(), at, last(&records)), (36, 6, Sequence(100)));
    let Read::Records(records, 0) = seat.read(Sequence(100), Waker::noop()) else {
        panic!()
    };
    assert_eq!(
        (records.len(), last(&records)),
        (1, Sequence(101)),
        "the second would exceed the bytes"
    );
    assert_eq!(records[0].task_id(), "t2");
}

#[test]
fn an_erased_event_loses_its_content_in_the_ring_and_keeps_its_place() {
    let hub = Hub::new(Sequence(0), 64 * 1024 * 1024);
    hub.publish(&(1..=100).map(|at| record(at, 1, 10)).collect::<Vec<_>>());
    let before = hub.ring_size();
    let (first, last_one) = (record(1, 1, 10), record(100, 1, 10));
    hub.erase(&[
        first.erased(),
        last_one.erased(),
        record(101, 1, 10).erased(),
    ]);
    let after = hub.ring_size();
    assert_eq!(
        (after.events, after.bytes),
        (before.events, before.bytes - 20)
    );
    let seat = hub.attach(&filter(&[1], None), Sequence(0)).unwrap();
    let mut position = Sequence(0);
    while let Read::Records(records, at) = seat.read(position, Waker::noop()) {
        for record in &records[at..] {
            assert_eq!(record.sequence(), position.next());
            assert_eq!(record.is_erased(), [1, 100].contains(&record.sequence().0));
            position = record.sequence();
        }
    }
    assert_eq!(position, Sequence(100));
}

#[test]
fn closing_wakes_everyone_and_is_seen_by_all() {
    let hub = Hub::new(Sequence(0), 1_000);
    let seat = hub.attach(&filter(&[1], None), Sequence(0)).unwrap();
    let wake = Arc::<Counter>::default();
    assert!(matches!(
        seat.read(Sequence(0), &Arc::clone(&wake).into()),
        Read::Waiting(Sequence(0))
    ));
    hub.close();
    assert_eq!(wake.count(), 1);
    assert!(matches!(
        seat.read(Sequence(0), Waker::noop()),
        Read::Closing
    ));
}
