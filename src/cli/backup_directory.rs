//! A directory of backups for scheduled runs: names files after their time and log, and finds the
//! ones to remove.
//!
//! Never touches a file without such a name.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

use crate::event::Epoch;

const PREFIX: &str = "blobcast-";
const SUFFIX: &str = ".backup";
/// UTC, so that names sort by time.
const TIME: &str = "%Y%m%dT%H%M%SZ";
/// Length of such a time.
const TIME_BYTES: usize = 16;

/// Digits of a log's epoch in a name: enough to distinguish the logs of one directory.
const LOG_DIGITS: usize = 8;

/// The name of a backup that begins at `time`, before its log is known.
pub(super) fn name_of_begun(time: Timestamp) -> String {
    format!("{PREFIX}{}{SUFFIX}", stamp(time))
}

/// The name of a complete backup that began at `time`.
pub(super) fn name(time: Timestamp, epoch: Epoch) -> String {
    format!(
        "{PREFIX}{}-{}{SUFFIX}",
        stamp(time),
        &epoch.to_string()[..LOG_DIGITS]
    )
}

fn stamp(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime(TIME).to_string()
}

/// The time in a name, and the text after it; `None` if it is not a valid time.
fn time_of(text: &str) -> Option<(Timestamp, &str)> {
    let (time, rest) = text
        .strip_prefix(PREFIX)?
        .strip_suffix(SUFFIX)?
        .split_at_checked(TIME_BYTES)?;
    let at = DateTime::strptime(TIME, time)
        .ok()?
        .to_zoned(TimeZone::UTC)
        .ok()?
        .timestamp();
    (stamp(at) == time).then_some((at, rest))
}

/// The time and the digits of the log in the name of a complete backup; `None` for any other name.
fn parts_of(text: &str) -> Option<(Timestamp, &str)> {
    let (at, rest) = time_of(text)?;
    let digits = rest.strip_prefix('-')?;
    let are_digits = digits.len() == LOG_DIGITS
        && digits
            .bytes()
            .all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    are_digits.then_some((at, digits))
}

/// The names to remove, oldest first, so that `keep` backups are left with `new` among them. Only
/// backups of the same log count, so that a new log does not displace an old one. Backups from the
/// future do not count: the clock was wrong, then or now.
fn surplus(names: &[String], new: &str, keep: usize, now: Timestamp) -> Vec<String> {
    let Some((_, log)) = parts_of(new) else {
        return Vec::new();
    };
    let counts = |name: &String| {
        name != new && parts_of(name).is_some_and(|(at, of)| at <= now && of == log)
    };
    let mut others: Vec<_> = names.iter().filter(|name| counts(name)).cloned().collect();
    others.sort_unstable();
    // The new one stays, whatever the clock says.
    others.truncate((others.len() + 1).saturating_sub(keep));
    others
}

/// Removes the oldest backups of the log of `new` until `keep` are left with it. Returns the
/// removed ones.
pub(super) fn remove_surplus(new: &Path, keep: usize) -> anyhow::Result<Vec<PathBuf>> {
    let directory = new.parent().unwrap_or(Path::new("."));
    let new = new.file_name().unwrap_or_default().to_string_lossy();
    let mut removed = Vec::new();
    for name in surplus(&names(directory)?, &new, keep, Timestamp::now()) {
        let path = directory.join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        removed.push(path);
    }
    Ok(removed)
}

/// The partial files of earlier runs: the names of [`name_of_begun`] with the suffix `partial`.
pub(super) fn interrupted(directory: &Path, partial: &str) -> anyhow::Result<Vec<PathBuf>> {
    let names = names(directory)?;
    let of_backups = names
        .iter()
        .filter(|name| name.strip_suffix(partial).is_some_and(is_begun));
    Ok(of_backups.map(|name| directory.join(name)).collect())
}

/// Whether [`name_of_begun`] made this name.
fn is_begun(name: &str) -> bool {
    time_of(name).is_some_and(|(_, rest)| rest.is_empty())
}

/// Names of regular files.
fn names(directory: &Path) -> anyhow::Result<Vec<String>> {
    let cannot = || {
        format!(
            "cannot read {}: name an existing directory",
            directory.display()
        )
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        if entry.file_type().with_context(cannot)?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOG: Epoch = Epoch(0x0123_4567_89ab_cdef);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_name_has_a_time_and_a_log_and_no_other_name_is_a_backup() {
        let time: Timestamp = "2026-01-31T04:05:06.9Z".parse().unwrap();
        assert_eq!(name(time, LOG), "blobcast-20260131T040506Z-01234567.backup");
        assert_eq!(name_of_begun(time), "blobcast-20260131T040506Z.backup");
        assert_eq!(parts_of(&name(time, LOG)).unwrap().1, "01234567");
        assert!(is_begun(&name_of_begun(time)) && !is_begun(&name(time, LOG)));
        for other in [
            "blobcast-20260131T040506Z.backup",
            "blobcast-20260131T040506Z-01234567.backup.partial",
            "blobcast-20260131T040506Z-01234567.backup.zst",
            "blobcast-20260131T040506Z-0123456.backup",
            "blobcast-20260131T040506Z-0123456G.backup",
            "blobcast-20260231T040506Z-01234567.backup",
            "blobcast-99999999T999999Z-01234567.backup",
            "blobcast-20261301T000000Z-01234567.backup",
            "blobcast-20260131T040560Z-01234567.backup",
            "blobcast-2026-01-31.backup",
            "blobcast-20260131T04050é-01234567.backup",
            "events.backup",
            "blobcast-.backup",
            "",
        ] {
            assert!(parts_of(other).is_none(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn the_newest_backups_of_a_log_stay_and_no_other_file_is_touched(
            seconds in proptest::collection::btree_set(0i64..4_000_000_000, 0..12), new in 0i64..4_000_000_000, keep in 1usize..6,
            now in 0i64..4_000_000_000,
        ) {
            let of = |second: i64| name(at(second), LOG);
            let mut names: Vec<_> = seconds.iter().map(|&second| of(second)).collect();
            names.extend(seconds.iter().map(|&second| name(at(second), Epoch(7))));
            names.extend([of(new), "notes.txt".to_owned(), "blobcast-00000000T000000Z-01234567.backup".to_owned()]);
            let gone = surplus(&names, &of(new), keep, at(now));
            let others: Vec<_> =
                seconds.iter().filter(|&&second| second != new && second <= now).map(|&second| of(second)).collect();
            prop_assert_eq!(&gone, &others[..(others.len() + 1).saturating_sub(keep).min(others.len())]);
            prop_assert!(!gone.contains(&of(new)));
        }
    }

    #[test]
    fn only_regular_files_with_such_names_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for second in 0..4 {
            fs::write(path(&name(at(second), LOG)), "x").unwrap();
        }
        let own = path(&name(at(1), LOG));
        fs::remove_file(&own).unwrap();
        fs::create_dir(&own).unwrap();
        fs::write(path("notes.txt"), "x").unwrap();
        let new = path(&name(at(3), LOG));
        let gone = remove_surplus(&new, 1).unwrap();
        assert_eq!(gone, [0, 2].map(|second| path(&name(at(second), LOG))));
        assert!(own.is_dir() && path("notes.txt").exists() && new.exists());
    }
}
