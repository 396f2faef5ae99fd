use std::{collections::BTreeMap, ops::ControlFlow, sync::mpsc, thread};

use proptest::{collection, prelude::*};
use uuid::Uuid;

use super::*;
use crate::{
    event::{Filter, Fingerprint, Labels, Product, Record, RecordParts, TaskId, TaskStatus},
    store::{
        acknowledged::Acknowledged,
        error::{ReadError, StartFailure},
    },
};

const EPOCH: Epoch = Epoch(7);

/// A log that is filled, closed and opened again, and what must be in it.
struct Kept {
    directory: tempfile::TempDir,
    log: Log,
    totals: Totals,
    /// The bodies, by place.
    bodies: BTreeMap<u64, Vec<u8>>,
}

impl Kept {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let totals = Totals {
            first_available: 1,
            ..Totals::default()
        };
        let log = Log::create(directory.path(), EPOCH, totals).unwrap();
        Self {
            directory,
            log,
            totals,
            bodies: BTreeMap::new(),
        }
    }

    /// Commits events with bodies of these sizes.
    fn commit(&mut self, sizes: &[usize]) {
        let (mut frame, before) = (FrameBuilder::new(), self.totals);
        for &size in sizes {
            let sequence = self.totals.head().unwrap().next();
            let body = vec![sequence.0 as u8 | 1; size];
            let record = record(sequence, &body);
            frame.event(Uuid::nil(), Fingerprint::default(), &record);
            self.totals.event_count += 1;
            self.totals.event_bytes += record.len() as u64;
            self.bodies.insert(sequence.0, body);
        }
        let written = self.log.append(frame, &before, &self.totals).unwrap();
        self.log.sync().unwrap();
        self.log.show(&written);
    }

    fn reopen(&mut self) {
        let opened = Log::open(self.directory.path(), Some(self.mark()), true);
        let opened = opened.unwrap().unwrap();
        assert_eq!(opened.totals, self.totals);
        self.log = opened.log;
    }

    fn mark(&self) -> Acknowledged {
        let (head, commit_next) = (self.totals.head().unwrap().0, self.log.next_commit());
        Acknowledged {
            epoch: EPOCH,
            head,
            quarantine_next: 0,
            commit_next,
        }
    }

    /// How many events a replay from a segment on hands over.
    fn replayed(&self, first: u64) -> u64 {
        let mut events = 0;
        let count = |replayed: Replayed<'_>| {
            if let Replayed::Commit(_, frame) = replayed {
                events += u64::from(frame.header.events);
            }
            Ok::<_, StartFailure>(())
        };
        self.log.replay(first, Sequence(1), count).unwrap();
        events
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.path().join(LOG)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort_unstable();
        paths
    }

    /// The places and bodies that reading gives; read backwards, they are put into the order of the log.
    fn read(&self, first: u64, last: u64, backwards: bool) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        let places = Sequence(first)..=Sequence(last);
        let each = |step| {
            if let Step::Event { record, .. } = step {
                found.push((record.sequence().0, record.raw().to_vec()));
            }
            ControlFlow::Continue(())
        };
        let all = Filter::default();
        if backwards {
            self.log.scan_back_for(&all, places, each).unwrap();
            found.reverse();
        } else {
            self.log.scan_for(&all, places, 30_000, each).unwrap();
        }
        found
    }
}

/// An event with this body at a place.
pub(super) fn record(sequence: Sequence, raw: &[u8]) -> Record {
    let parts = RecordParts {
        product: &Product::parse("veo").unwrap(),
        task_id: &TaskId::parse("t1").unwrap(),
        status: TaskStatus::Completed,
        revision: 1,
        conflict: false,
        received_at_micros: 0,
        log_time_micros: 0,
        labels: &Labels::new(),
        event: &[],
        raw,
    };
    Record::new(sequence, &parts)
}

#[test]
fn what_is_erased_is_gone_from_its_file_and_all_else_is_read_as_before() {
    let mut kept = Kept::new();
    // Over several segments, of which one begins with a commit of several events.
    for _ in 0..12 {
        kept.commit(&[200_000, 3, 0, 70_000]);
    }
    assert!(kept.files().len() > 2);
    let marked = |kept: &Kept| {
        let mut left = Vec::new();
        kept.log
            .scan(
                Sequence(1)..=kept.totals.head().unwrap(),
                30_000,
                |record| {
                    left.push((record.is_erased(), record.raw().to_vec()));
                    Ok(ControlFlow::Continue(()))
                },
            )
            .unwrap();
        left
    };
    let erased = [1, 2, 3, 17, 25, 48].map(Sequence);
    kept.log.erase(&erased, &[]).unwrap();
    for is_opened_again in [false, true] {
        if is_opened_again {
            kept.log.erase(&erased, &[]).unwrap(); // also twice
            kept.reopen();
        }
        for (place, (is_erased, raw)) in (1..).zip(marked(&kept)) {
            assert_eq!(is_erased, erased.contains(&Sequence(place)), "{place}");
            assert_eq!(
                raw,
                if is_erased {
                    Vec::new()
                } else {
                    kept.bodies[&place].clone()
                }
            );
        }
        assert!(
            kept.log.get(Sequence(17)).unwrap().is_erased()
                && !kept.log.get(Sequence(18)).unwrap().is_erased()
        );
    }
    // Each body repeats a byte of its own.
    let files: Vec<u8> = kept
        .files()
        .into_iter()
        .flat_map(|path| fs::read(path).unwrap())
        .collect();
    let count = |byte: u8| files.iter().filter(|&&found| found == byte).count();
    // (and so does the event before it, of 70,000 bytes)
    assert!(
        count(17) < 80_000 && count(25) < 80_000 && count(21) > 260_000,
        "{} {}",
        count(17),
        count(25)
    );
}

fn refusal(opened: Result<Option<Opened>, StartFailure>) -> String {
    match opened {
        Err(StartFailure::Corrupt(problem)) => problem,
        _ => panic!("it must be refused"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn what_was_committed_is_read_in_both_directions_also_after_opening_it_again(
        // Some in a row are more than a segment; a commit may have no event.
        commits in collection::vec((collection::vec(0..200_000usize, 0..5), any::<bool>()), 1..25),
        from: prop::sample::Index, to: prop::sample::Index,
    ) {
        let mut kept = Kept::new();
        for (sizes, is_opened_again) in &commits {
            kept.commit(sizes);
            if *is_opened_again {
                kept.reopen();
            }
        }
        let count = kept.bodies.len();
        if count > 0 {
            let (one, other) = (from.index(count) as u64 + 1, to.index(count) as u64 + 1);
            let (first, last) = (one.min(other), one.max(other));
            let expected: Vec<_> = kept.bodies.range(first..=last).map(|(at, body)| (*at, body.clone())).collect();
            for backwards in [false, true] {
                prop_assert_eq!(&kept.read(first, last, backwards), &expected);
            }
            let one = kept.log.get(Sequence(first)).unwrap();
            prop_assert_eq!(one.raw(), &expected[0].1[..]);
            let all: Vec<_> = kept.log.events(Sequence(1)..=Sequence(count as u64)).map(|event| event.unwrap().record.sequence().0).collect();
            prop_assert_eq!(all, (1..=count as u64).collect::<Vec<_>>());
        }
        prop_assert_eq!(kept.replayed(0) as usize, count);
    }

    #[test]
    fn a_log_that_was_cut_anywhere_has_whole_commits_or_is_refused(
        commits in collection::vec(collection::vec(0..3_000usize, 1..4), 2..6), cut: prop::sample::Index, zeroed: bool,
    ) {
        let mut kept = Kept::new();
        let mut ends = vec![(HEADER_BYTES, 0)];
        for sizes in &commits {
            kept.commit(sizes);
            ends.push((lock(&kept.log.active).end as usize, kept.bodies.len() as u64));
        }
        let path = &kept.files()[0];
        let mut bytes = fs::read(path).unwrap();
        let cut = HEADER_BYTES + cut.index(ends[commits.len()].0 - HEADER_BYTES);
        if zeroed { bytes[cut..].fill(0) } else { bytes.truncate(cut) }
        fs::write(path, &bytes).unwrap();
        let left = ends.iter().rev().find(|(end, _)| *end <= cut).unwrap().1;
        refusal(Log::open(kept.directory.path(), Some(kept.mark()), true));
        let Opened { log, totals, .. } = Log::open(kept.directory.path(), None, true).unwrap().unwrap();
        prop_assert_eq!(totals.head().unwrap().0, left);
        // The log continues from there, and what was cut off never comes back.
        kept.bodies.retain(|&place, _| place <= left);
        (kept.log, kept.totals) = (log, totals);
        kept.commit(&[10, 20]);
        kept.reopen();
        let expected: Vec<_> = kept.bodies.clone().into_iter().collect();
        prop_assert_eq!(kept.read(1, left + 2, false), expected);
    }
}

#[test]
fn segments_grow_and_go_when_they_are_forgotten_and_nobody_reads_them() {
    let mut kept = Kept::new();
    (0..60).for_each(|_| kept.commit(&[100_000]));
    assert_eq!(kept.files().len(), 3, "one of 1 MiB, one of 2, one of 4");
    let newest = kept.log.newest();
    let checkpoint = |kept: &mut Kept, first_available: u64| {
        kept.log.note_checkpoint(newest, Sequence(first_available));
        kept.log.note_kept_from(None);
        kept.log.remove_forgotten();
        kept.totals.first_available = first_available;
        kept.totals.event_count = kept.bodies.len() as u64 + 1 - first_available;
    };
    assert!(kept.log.needs_checkpoint(Sequence(1)));
    checkpoint(&mut kept, 1);
    assert_eq!(kept.files().len(), 3, "nothing is forgotten");
    assert!(!kept.log.needs_checkpoint(Sequence(1)) && kept.log.needs_checkpoint(Sequence(11)));
    let reader = kept.log.events(Sequence(1)..=Sequence(60));
    checkpoint(&mut kept, 31);
    assert_eq!(
        kept.files().len(),
        3,
        "no commit has said that it is not needed"
    );
    kept.commit(&[1]);
    assert!(kept.log.needs_care(Sequence(31)) && !kept.log.needs_checkpoint(Sequence(31)));
    kept.log.remove_forgotten();
    assert_eq!(kept.files().len(), 3, "somebody reads them");
    assert_eq!(reader.map(Result::unwrap).count(), 60);
    assert_eq!(kept.files().len(), 1);
    assert!(matches!(
        kept.log.get(Sequence(1)),
        Err(ReadError::Corrupt(_))
    ));
    assert_eq!(kept.log.get(Sequence(31)).unwrap().sequence(), Sequence(31));
    checkpoint(&mut kept, 62);
    assert_eq!(kept.files().len(), 1, "that which is written to stays");
    kept.commit(&[1]);
    kept.reopen();
    assert_eq!(kept.log.get(Sequence(62)).unwrap().raw().len(), 1);
    assert_eq!(kept.replayed(0), 62 - kept.log.oldest().0 + 1);
}

#[test]
fn a_segment_is_made_ahead_when_the_newest_is_half_full_and_used_when_it_is_full() {
    let mut kept = Kept::new();
    (0..4).for_each(|_| kept.commit(&[100_000]));
    kept.log.make_ahead().unwrap();
    assert_eq!(kept.files().len(), 1);
    kept.commit(&[200_000]);
    kept.log.make_ahead().unwrap();
    assert_eq!(kept.files().len(), 2);
    kept.reopen();
    assert_eq!(kept.files().len(), 1, "who opens the log makes it again");
    kept.log.make_ahead().unwrap();
    kept.log.make_ahead().unwrap();
    assert_eq!(kept.files().len(), 2);
    (0..6).for_each(|_| kept.commit(&[100_000]));
    assert_eq!((kept.files().len(), kept.log.newest()), (2, 2));
    // A segment that is too small for a commit is made again.
    (0..10).for_each(|_| kept.commit(&[100_000]));
    kept.log.make_ahead().unwrap();
    kept.commit(&[5_000_000]);
    assert_eq!((kept.files().len(), kept.log.newest()), (3, 3));
    kept.reopen();
    assert_eq!(kept.read(1, 22, false).len(), 22);
}

#[test]
fn a_first_commit_that_was_cut_off_with_its_segment_is_taken_back_unless_it_was_acknowledged() {
    let mut kept = Kept::new();
    (0..10).for_each(|_| kept.commit(&[100_000]));
    let before = kept.mark();
    kept.commit(&[100_000]);
    let after = kept.mark();
    let path = kept.files()[1].clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[50..10_000].fill(9);
    fs::write(&path, &bytes).unwrap();
    let told = refusal(Log::open(kept.directory.path(), Some(after), true));
    assert_eq!(
        told,
        "11 events were acknowledged, and the log ends behind 10"
    );
    assert_eq!(kept.files().len(), 2, "what is refused is left as it is");
    let opened = Log::open(kept.directory.path(), Some(before), true);
    let totals = opened.unwrap().unwrap().totals;
    assert_eq!((totals.event_count, kept.files().len()), (10, 1));
}

#[test]
fn damage_before_a_whole_commit_is_found_without_the_acknowledged_file_too() {
    let mut kept = Kept::new();
    (0..16).for_each(|_| kept.commit(&[80_000]));
    for (file, at) in [(1, 200), (1, 90_000), (1, 30), (0, 500_000), (0, 30)] {
        let path = kept.files()[file].clone();
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        let opened = Log::open(kept.directory.path(), None, true)
            .and_then(|opened| opened.unwrap().log.replay(0, Sequence(1), |_| Ok(())));
        assert!(
            matches!(opened, Err(StartFailure::Corrupt(problem)) if problem.contains("not as it was written")),
            "{file} {at}"
        );
        fs::write(&path, whole).unwrap();
    }
    assert!(Log::open(kept.directory.path(), None, true).is_ok());
}

#[test]
fn a_lost_segment_is_named() {
    for (lost, told) in [
        (0, "a segment before "),
        (1, "a segment before "),
        (2, "events were acknowledged"),
    ] {
        let mut kept = Kept::new();
        (0..60).for_each(|_| kept.commit(&[100_000]));
        fs::remove_file(&kept.files()[lost]).unwrap();
        let problem = refusal(Log::open(kept.directory.path(), Some(kept.mark()), true));
        assert!(problem.contains(told), "{problem}");
    }
    let mut kept = Kept::new();
    (0..3).for_each(|_| kept.commit(&[1]));
    fs::remove_file(&kept.files()[0]).unwrap();
    assert_eq!(
        refusal(Log::open(kept.directory.path(), None, true)),
        "the log is lost"
    );
}

#[test]
fn files_of_forgotten_events_may_be_left_in_any_order() {
    let mut kept = Kept::new();
    (0..60).for_each(|_| kept.commit(&[100_000]));
    kept.log.note_checkpoint(kept.log.newest(), Sequence(40));
    kept.log.note_kept_from(None);
    (kept.totals.first_available, kept.totals.event_count) = (40, 21);
    kept.commit(&[1]);
    fs::remove_file(&kept.files()[1]).unwrap();
    kept.reopen();
    assert_eq!(kept.files().len(), 1, "the first was left, and is removed");
    assert_eq!(kept.read(40, 61, false).len(), 22);
}

#[test]
fn a_log_that_was_begun_and_not_finished_is_begun_anew() {
    for content in [&[][..], &[0; 5_000], &[7; 5_000]] {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(LOG)).unwrap();
        fs::write(path_of(&directory.path().join(LOG), 1), content).unwrap();
        let problem = refusal(Log::open(directory.path(), None, true));
        assert!(
            problem == "the log is lost" || problem.contains("is not as it was written"),
            "{problem}"
        );
        assert!(matches!(Log::open(directory.path(), None, false), Ok(None)));
        assert_eq!(fs::read_dir(directory.path().join(LOG)).unwrap().count(), 0);
    }
}

#[test]
fn a_segment_whose_header_reads_as_zeros_is_not_taken_for_one_that_was_made_ahead() {
    let mut kept = Kept::new();
    (0..16).for_each(|_| kept.commit(&[80_000]));
    let path = kept.files()[1].clone();
    let mut bytes = fs::read(&path).unwrap();
    bytes[..HEADER_BYTES].fill(0);
    fs::write(&path, bytes).unwrap();
    let problem = refusal(Log::open(kept.directory.path(), None, true));
    assert!(problem.contains("is not as it was written"), "{problem}");
    assert_eq!(kept.files().len(), 2, "what is refused is left as it is");
}

#[test]
fn a_segment_goes_when_no_quarantined_callback_has_its_newest_copy_there() {
    let mut kept = Kept::new();
    let put = |kept: &mut Kept, number: u64, is_first: bool| {
        let (mut frame, before) = (FrameBuilder::new(), kept.totals);
        let value = vec![number as u8; 400_000];
        if is_first {
            frame.quarantined(number, &value);
            kept.totals.quarantine_next = number;
        } else {
            frame.carried(number, &value);
        }
        let written = kept.log.append(frame, &before, &kept.totals).unwrap();
        kept.log.sync().unwrap();
        kept.log.show(&written);
        written.quarantined().next().unwrap().place
    };
    let mut places: Vec<_> = (1..=5).map(|it| put(&mut kept, it, true)).collect();
    let segments: Vec<_> = places.iter().map(|place| place.segment).collect();
    assert_eq!(segments, [1, 1, 2, 2, 2]);

    // Until it is known where the quarantine begins, nothing is removed.
    kept.log.note_checkpoint(2, Sequence(1));
    kept.commit(&[1]);
    kept.log.remove_forgotten();
    kept.log.note_kept_from(Some(1));
    kept.commit(&[1]);
    kept.log.remove_forgotten();
    assert_eq!(kept.files().len(), 2);

    for number in [1, 2] {
        places[number as usize - 1] = put(&mut kept, number, false);
    }
    kept.log.note_kept_from(Some(2));
    assert!(kept.log.needs_commit(), "a commit has to say so");
    kept.commit(&[1]);
    kept.log.remove_forgotten();
    assert_eq!(kept.log.without_events(Sequence(1)).len(), 0);
    assert!(!kept.files()[0].ends_with("000000000001.log"));

    for is_opened_again in [false, true] {
        if is_opened_again {
            let opened = Log::open(kept.directory.path(), None, true);
            kept.log = opened.unwrap().unwrap().log;
        }
        for (number, &place) in (1..).zip(&places) {
            let value = kept.log.quarantined(number, place).unwrap().unwrap();
            assert_eq!(value, vec![number as u8; 400_000]);
            assert!(kept.log.quarantined(number + 1, place).is_err());
        }
    }
    // An erased one is gone from its file, and the others are read as before.
    kept.log.erase(&[], &[(3, places[2])]).unwrap();
    assert_eq!(kept.log.quarantined(3, places[2]).unwrap(), None);
    assert!(kept.log.quarantined(4, places[3]).unwrap().is_some());
    let files = kept.files();
    let bytes: Vec<u8> = files.iter().flat_map(|it| fs::read(it).unwrap()).collect();
    assert!(bytes.iter().filter(|&&byte| byte == 3).count() < 300_000);
}

#[test]
fn a_header_that_hides_its_events_is_found_in_both_directions() {
    let mut kept = Kept::new();
    let mut ends = Vec::new();
    for _ in 0..5 {
        kept.commit(&[10]);
        ends.push(lock(&kept.log.active).end);
    }
    // The number of events of the third and of the last commit.
    for hidden in [2, 4] {
        let file = File::options().write(true).open(&kept.files()[0]).unwrap();
        file.write_all_at(&[0], ends[hidden - 1] + 12).unwrap();
        let places = || Sequence(1)..=Sequence(5);
        let go_on = |_| Ok(ControlFlow::Continue(()));
        assert!(
            matches!(
                kept.log.scan(places(), 0, go_on),
                Err(ReadError::Corrupt(_))
            ),
            "{hidden}"
        );
        assert!(
            matches!(
                kept.log
                    .scan_back_for(&Filter::default(), places(), |_| ControlFlow::Continue(())),
                Err(ReadError::Corrupt(_))
            ),
            "{hidden}"
        );
        file.write_all_at(&[1], ends[hidden - 1] + 12).unwrap();
        assert_eq!(kept.read(1, 5, true).len(), 5);
    }
}

#[test]
fn a_segment_is_old_by_the_content_in_it_and_by_no_clock_that_was_wrong() {
    let mut kept = Kept::new();
    let hour = Duration::from_secs(3_600);
    let micros = |duration: Duration| duration.as_micros() as i64;
    let is_old = |kept: &Kept, now: i64| {
        kept.log.look_at_age(now, hour);
        kept.log.is_old.load(Ordering::Acquire)
    };
    kept.totals.log_time_micros = 1;
    let mut frame = FrameBuilder::new();
    frame.expired(1);
    kept.log.append(frame, &kept.totals, &kept.totals).unwrap();
    assert!(!is_old(&kept, i64::MAX), "it has no content");
    let stamped = micros(10 * hour);
    kept.totals.log_time_micros = stamped;
    let before = kept.totals;
    kept.totals.quarantine_next += 1;
    let mut frame = FrameBuilder::new();
    frame.quarantined(1, b"body");
    kept.log.append(frame, &before, &kept.totals).unwrap();
    assert!(!is_old(&kept, stamped + micros(hour) - 1) && is_old(&kept, stamped + micros(hour)));
    // Within its tolerance the clock may go back a little.
    assert!(!is_old(&kept, stamped - TOLERANCE) && is_old(&kept, stamped - TOLERANCE - 1));
}

#[test]
fn a_segment_that_is_full_while_the_next_is_made_ahead_blocks_nobody() {
    let Kept {
        directory: _directory,
        log,
        mut totals,
        ..
    } = Kept::new();
    let log = Arc::new(log);
    let (ended, end) = mpsc::channel();
    let keeper = thread::spawn({
        let log = Arc::clone(&log);
        // Each segment is old at once, so none becomes large.
        move || {
            while end.try_recv() == Err(mpsc::TryRecvError::Empty) {
                log.look_at_age(i64::MAX, Duration::ZERO);
                log.make_ahead().unwrap();
            }
        }
    });
    let (worked, works) = mpsc::channel();
    let writer = thread::spawn({
        let log = Arc::clone(&log);
        move || {
            // The second fills half a segment, and the third does not fit any more.
            for size in [10_000, 700_000, 700_000].into_iter().cycle().take(90) {
                let (mut frame, before) = (FrameBuilder::new(), totals);
                let record = record(totals.head().unwrap().next(), &vec![1; size]);
                frame.event(Uuid::nil(), Fingerprint::default(), &record);
                totals.event_count += 1;
                totals.event_bytes += record.len() as u64;
                let written = log.append(frame, &before, &totals).unwrap();
                log.sync().unwrap();
                log.show(&written);
                worked.send(()).unwrap();
            }
        }
    });
    // By the time since the last commit: the disk may be slow.
    let commits = std::iter::from_fn(|| works.recv_timeout(Duration::from_secs(30)).ok()).count();
    assert_eq!(commits, 90, "the writer and the keeper wait for each other");
    writer.join().unwrap();
    ended.send(()).unwrap();
    keeper.join().unwrap();
    assert!(log.newest() > 3, "segments were begun");
}

#[test]
fn damage_costs_what_is_damaged_and_says_how_far_it_goes() {
    let readable = |kept: &Kept| {
        let all = (1..=4).map(|place| kept.log.get(Sequence(place)).is_ok());
        all.collect::<Vec<_>>()
    };
    let gap = |kept: &Kept, first: u64| {
        let gap = kept.log.gap(Sequence(first), Sequence(4)).unwrap()?;
        let known: Vec<_> = gap
            .known
            .iter()
            .map(|(keys, _)| keys.sequence().0)
            .collect();
        Some((gap.behind.0, gap.events(), known))
    };
    let filled = || {
        let mut kept = Kept::new();
        kept.commit(&[100, 200, 300]);
        kept.commit(&[10]);
        kept
    };
    let flip = |kept: &Kept, at: usize| {
        let path = &kept.files()[0];
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let find = |kept: &Kept, text: &[u8]| {
        let bytes = fs::read(&kept.files()[0]).unwrap();
        let mut windows = bytes.windows(text.len());
        windows.position(|window| window == text).unwrap()
    };

    let kept = filled();
    assert_eq!((readable(&kept), gap(&kept, 1)), (vec![true; 4], None));
    flip(&kept, find(&kept, &[3; 200]));
    assert_eq!(readable(&kept), [true, false, true, true]);
    assert_eq!(gap(&kept, 1), None);
    assert_eq!(gap(&kept, 2), Some((3, 1, vec![2])));

    // Its keys, without which nothing of the commit is proven.
    let kept = filled();
    flip(&kept, find(&kept, b"t1"));
    assert_eq!(readable(&kept), [false, false, false, true]);
    assert_eq!(gap(&kept, 1), Some((4, 3, vec![])));
    assert_eq!(gap(&kept, 2), Some((4, 2, vec![])));

    // What a commit says of its head: that it has events which are in the next one.
    let kept = filled();
    let event_count = HEADER_BYTES + 8 + 4 + 4 + 8 + 8 + 8;
    flip(&kept, event_count + 1);
    assert_eq!(readable(&kept), [false, false, false, true]);
    assert_eq!(gap(&kept, 1), Some((4, 3, vec![])));

    // The last one: nothing that can be read is behind it.
    let kept = filled();
    flip(&kept, find(&kept, &[5; 10]));
    assert_eq!(readable(&kept), [true, true, true, false]);
    assert_eq!(gap(&kept, 4), Some((5, 1, vec![4])));
}
