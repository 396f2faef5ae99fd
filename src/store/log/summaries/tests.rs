use std::{fs::File, ops::ControlFlow, path::PathBuf};

use uuid::Uuid;

use super::*;
use crate::{
    cluster::Totals,
    event::{Epoch, Filter, Fingerprint, Labels, Product, Record, RecordParts, TaskId, TaskStatus},
    store::{
        acknowledged::Acknowledged,
        directory::LOG,
        log::{FrameBuilder, Step},
    },
};

const EPOCH: Epoch = Epoch(7);
const SEGMENTS: u64 = 4;
const EACH: u64 = 200;

/// A log of some sealed segments, each event of which has a label of its own.
struct Kept {
    directory: tempfile::TempDir,
    log: Log,
    totals: Totals,
}

impl Kept {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let totals = Totals {
            first_available: 1,
            ..Totals::default()
        };
        let log = Log::create(directory.path(), EPOCH, totals).unwrap();
        let mut kept = Self {
            directory,
            log,
            totals,
        };
        for _ in 0..SEGMENTS {
            kept.append(EACH);
            kept.log.finish(&kept.totals).unwrap();
        }
        kept
    }

    fn append(&mut self, count: u64) {
        let (mut frame, before) = (FrameBuilder::new(), self.totals);
        for _ in 0..count {
            let record = record(self.totals.head().unwrap().next());
            frame.event(Uuid::nil(), Fingerprint::default(), &record);
            self.totals.event_count += 1;
            self.totals.event_bytes += record.len() as u64;
        }
        let written = self.log.append(frame, &before, &self.totals).unwrap();
        self.log.sync().unwrap();
        self.log.show(&written);
    }

    fn reopen(&mut self) {
        let acknowledged = Acknowledged {
            epoch: EPOCH,
            head: self.head().0,
            quarantine_next: 0,
            commit_next: self.log.next_commit(),
        };
        let opened = Log::open(self.directory.path(), Some(acknowledged), true);
        self.log = opened.unwrap().unwrap().log;
    }

    fn head(&self) -> Sequence {
        self.totals.head().unwrap()
    }

    /// Writes the summaries that are missing; how many, and how many of them were lost.
    fn write(&self) -> (usize, usize) {
        let written: Vec<_> = std::iter::from_fn(|| self.log.write_summary()).collect();
        let lost = written.iter().filter(|written| written.was_lost).count();
        (written.len(), lost)
    }

    fn file(&self, number: u64) -> PathBuf {
        let name = format!("{number:012}.{EXTENSION}");
        self.directory.path().join(LOG).join(name)
    }

    /// What is found of a label, and how many segments were passed over, forwards and backwards, which have to agree.
    fn find(&self, labels: Labels) -> (Vec<u64>, usize) {
        let filter = Filter {
            labels,
            ..Filter::default()
        };
        let [forwards, backwards] = [false, true].map(|is_back| {
            let (mut found, mut skipped) = (Vec::new(), 0);
            let each = |step| {
                match step {
                    Step::Event {
                        record,
                        is_selected,
                    } => found.extend(is_selected.then_some(record.sequence().0)),
                    Step::Skipped { .. } => skipped += 1,
                }
                ControlFlow::Continue(())
            };
            let places = Sequence(1)..=self.head();
            if is_back {
                self.log.scan_back_for(&filter, places, each).unwrap();
            } else {
                self.log.scan_for(&filter, places, 4_096, each).unwrap();
            }
            found.sort_unstable();
            (found, skipped)
        });
        assert_eq!(forwards, backwards);
        forwards
    }
}

fn label(number: u64) -> Labels {
    [("ref".to_owned(), format!("order-{number}"))].into()
}

fn record(sequence: Sequence) -> Record {
    let parts = RecordParts {
        product: &Product::parse("veo").unwrap(),
        task_id: &TaskId::parse("t1").unwrap(),
        status: TaskStatus::Completed,
        revision: 1,
        conflict: false,
        received_at_micros: 0,
        log_time_micros: 0,
        labels: &label(sequence.0),
        event: &[],
        raw: &[9; 300],
    };
    Record::new(sequence, &parts)
}

const ALL: usize = SEGMENTS as usize;

#[test]
fn a_rare_label_is_found_at_its_place_and_other_segments_are_passed_over() {
    let mut kept = Kept::new();
    kept.append(EACH);
    let places = || (1..=kept.head().0).step_by(67);
    for place in places() {
        assert_eq!(kept.find(label(place)), (vec![place], 0));
    }
    assert_eq!(kept.write(), (ALL, 0));
    for place in places() {
        let is_sealed = place <= SEGMENTS * EACH;
        let skipped = ALL - usize::from(is_sealed);
        assert_eq!(kept.find(label(place)), (vec![place], skipped));
    }
    assert_eq!(kept.find(label(0)), (vec![], ALL));
    assert_eq!(kept.find(Labels::new()), ((1..=kept.head().0).collect(), 0));
}

#[test]
fn a_lost_a_damaged_and_a_foreign_summary_cost_no_event_and_are_written_again() {
    let mut kept = Kept::new();
    assert_eq!(kept.write(), (ALL, 0));
    for is_opened_again in [false, true] {
        fs::remove_file(kept.file(1)).unwrap();
        let mut bytes = fs::read(kept.file(2)).unwrap();
        bytes[50] ^= 1;
        fs::write(kept.file(2), bytes).unwrap();
        fs::copy(kept.file(4), kept.file(3)).unwrap();
        if is_opened_again {
            kept.reopen();
        } else {
            assert_eq!(kept.find(label(5 * EACH)), (vec![], 1));
        }
        assert_eq!(kept.find(label(1)), (vec![1], 1));
        assert_eq!(kept.write(), (3, 3));
        assert_eq!(kept.find(label(1)), (vec![1], ALL - 1));
        assert_eq!(kept.write(), (0, 0));
    }
}

#[test]
fn an_erased_event_leaves_nothing_in_a_summary() {
    let mut kept = Kept::new();
    kept.append(EACH);
    assert_eq!(kept.write(), (ALL, 0));
    // In a sealed segment, and in the one that is written to.
    let erased = [EACH + 1, SEGMENTS * EACH + 1];
    let before = fs::read(kept.file(2)).unwrap();
    kept.log.erase(&erased.map(Sequence), &[]).unwrap();
    assert!(!kept.file(2).exists());
    kept.log.finish(&kept.totals).unwrap();
    kept.append(1);

    assert_eq!(kept.find(label(EACH + 2)), (vec![EACH + 2], ALL - 1));
    assert_eq!(kept.write(), (2, 0));
    assert_ne!(fs::read(kept.file(2)).unwrap(), before);
    for place in erased {
        assert_eq!(kept.find(label(place)), (vec![], ALL + 1));
        assert_eq!(kept.find(label(place + 1)), (vec![place + 1], ALL));
    }
}

#[test]
fn what_was_gathered_before_an_erasure_is_in_no_summary() {
    let kept = Kept::new();
    let (segment, _) = kept.log.without_summary().unwrap();
    assert!(lock(&kept.log.summaries.sealed).is_some());
    let erased = segment.first_sequence();
    kept.log.erase(&[erased], &[]).unwrap();
    assert_eq!(kept.write(), (ALL, 0));
    assert_eq!(kept.find(label(erased.0)), (vec![], ALL));
}

#[test]
fn a_segment_that_is_written_to_again_loses_its_summary() {
    let mut kept = Kept::new();
    assert_eq!(kept.write(), (ALL, 0));
    // A crash has cut off the newest segment, and with it what sealed the one before.
    let number = kept.log.newest();
    let newest = kept
        .directory
        .path()
        .join(LOG)
        .join(format!("{number:012}.log"));
    File::options()
        .write(true)
        .open(newest)
        .unwrap()
        .set_len(10)
        .unwrap();
    kept.reopen();
    assert_eq!(kept.log.newest(), SEGMENTS);
    assert!(!kept.file(SEGMENTS).exists());
    kept.append(1);
    kept.log.finish(&kept.totals).unwrap();
    let added = kept.head().0;
    assert_eq!(kept.find(label(added)), (vec![added], ALL - 1));
    assert_eq!(kept.write(), (1, 0));
    assert_eq!(kept.find(label(added)), (vec![added], ALL - 1));
    assert_eq!(kept.find(label(1)), (vec![1], ALL - 1));
}

#[test]
fn a_stale_summary_of_the_same_segment_is_not_believed() {
    let mut kept = Kept::new();
    assert_eq!(kept.write(), (ALL, 0));
    let stale = fs::read(kept.file(SEGMENTS)).unwrap();
    let newest = kept
        .directory
        .path()
        .join(LOG)
        .join(format!("{:012}.log", kept.log.newest()));
    File::options()
        .write(true)
        .open(newest)
        .unwrap()
        .set_len(10)
        .unwrap();
    kept.reopen();
    kept.append(1);
    kept.log.finish(&kept.totals).unwrap();
    // As if its removal had not reached the disk.
    fs::write(kept.file(SEGMENTS), stale).unwrap();
    kept.reopen();
    let added = kept.head().0;
    assert_eq!(kept.find(label(added)), (vec![added], ALL - 1));
    assert_eq!(kept.write(), (1, 1));
    assert_eq!(kept.find(label(added)), (vec![added], ALL - 1));
}

#[test]
fn a_damaged_segment_gets_no_summary_and_one_with_a_summary_is_passed_over() {
    let kept = Kept::new();
    let damage = |number: u64| {
        let path = kept
            .directory
            .path()
            .join(LOG)
            .join(format!("{number:012}.log"));
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(4).position(|it| it == [9; 4]).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let (newest, _) = kept.log.without_summary().unwrap();
    damage(newest.header.number);
    *lock(&kept.log.summaries.sealed) = None;
    assert_eq!(kept.write(), (ALL - 1, 0));
    assert_eq!(newest.summary.state(), State::Unreadable);
    assert_eq!(kept.write(), (0, 0));
    damage(2);
    let filter = Filter {
        labels: label(1),
        ..Filter::default()
    };
    let mut found = Vec::new();
    let places = Sequence(1)..=Sequence(3 * EACH);
    let each = |step| {
        if let Step::Event {
            record,
            is_selected: true,
        } = step
        {
            found.push(record.sequence().0);
        }
        ControlFlow::Continue(())
    };
    kept.log.scan_for(&filter, places, 4_096, each).unwrap();
    assert_eq!(found, [1]);
}

#[test]
fn a_forgotten_segment_takes_its_summary_along() {
    let kept = Kept::new();
    assert_eq!(kept.write(), (ALL, 0));
    assert!(kept.file(1).exists());
    kept.log.note_checkpoint(2, Sequence(EACH + 1));
    kept.log.note_kept_from(None);
    kept.log.note_oldest(2);
    kept.log.remove_forgotten();
    assert!(!kept.file(1).exists() && kept.file(2).exists());
}
