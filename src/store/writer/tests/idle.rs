//! What the writer looks at while nothing comes: it may forget and write again for minutes.

use super::*;

#[test]
fn a_quarantined_callback_is_written_again_with_96_mib_free_and_not_with_less() {
    const ENOUGH: u64 = 96 * 1024 * 1024;
    for (free_bytes, carried) in [(ENOUGH - 1, 0), (ENOUGH, 1)] {
        let mut stepped = Stepped::new();
        let number = stepped.quarantine();
        let totals = *lock(&stepped.store.totals);
        stepped.store.log.finish(&totals).unwrap();
        stepped.writer.retention.disk_free_min_percent = 100;
        stepped.free_bytes.store(free_bytes, Ordering::Relaxed);
        stepped.writer.check_disk();
        assert!(matches!(stepped.store.health(), Health::DiskLow { .. }));

        assert_eq!(stepped.writer.trim_is_due(), carried > 0, "{free_bytes}");
        assert_eq!(stepped.trim(), carried, "{free_bytes}");
        assert_eq!(
            stepped.store.copies_of(number).len() as u64,
            1 + carried,
            "{free_bytes}"
        );
    }
}

/// What a store has when the writer looks at its disk.
type Seen = (u64, Totals);

/// Runs an idle writer that has more to forget than two commits may; `look` is called at each look at the disk, with its number,
/// and says how many bytes are free. Returns what the first looks have seen.
fn looks<const COUNT: usize>(
    look: impl Fn(u64, &Machine) -> u64 + Send + 'static,
) -> [Seen; COUNT] {
    let mut stepped = Stepped::new();
    let answers: Vec<_> = (0..600)
        .map(|number| stepped.appender.append(draft(&format!("t{number}"), 0)))
        .collect();
    stepped.step();
    stepped.step();
    for answer in answers {
        answer.blocking_recv().unwrap().unwrap();
    }
    let Stepped {
        store,
        appender,
        mut writer,
        machine,
        directory,
        ..
    } = stepped;
    writer.retention = Retention {
        event_bytes_max: 0,
        disk_free_min_percent: 100,
        ..Retention::KEEP_ALL
    };
    let (seen, sees) = mpsc::channel();
    let number = AtomicU64::new(0);
    writer.disk = Box::new(move |store| {
        let number = number.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = seen
            .send((store.summary().event_count, *lock(&store.totals)))
            .is_ok();
        Ok((look(number, &machine), Stepped::DISK_BYTES))
    });
    let writing = thread::spawn(|| writer.run());
    let seen = std::array::from_fn(|_| sees.recv().unwrap());
    appender.stop();
    writing.join().unwrap();
    drop((store, directory));
    seen
}

#[test]
fn an_idle_writer_looks_at_the_disk_before_each_commit_that_forgets() {
    // At the start, before two commits, and when it has waited because there is no room.
    let seen = looks::<4>(|number, _| {
        if number < 3 {
            FORGET_FREE_BYTES_MIN
        } else {
            FORGET_FREE_BYTES_MIN - 1
        }
    });
    assert_eq!(seen.map(|(events, _)| events), [600, 600, 344, 344]);
}

#[test]
fn an_idle_writer_looks_at_the_clock_before_each_commit_that_forgets() {
    let seen = looks::<4>(|number, machine| {
        match number {
            2 => machine.step(YEAR_MICROS),
            3 => machine.pass(BELIEVED),
            _ => {}
        }
        FORGET_FREE_BYTES_MIN
    });
    let corrected = seen.map(|(events, totals)| (events, totals.correction.by_micros > 0));
    assert_eq!(
        corrected,
        [(600, false), (600, false), (344, false), (88, true)],
        "its change is noted while there is more to forget"
    );
}
