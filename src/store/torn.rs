//! The torn end of the database's journal, which a power cut leaves when sectors reached the disk in any order.
//!
//! The journal is synced at checkpoints only, so a power cut may leave anything of what was written behind the last of them.
//! The database cuts off what ends too early, and refuses what has a wrong checksum, since it cannot know whether something
//! that was promised has been damaged. Here it is known: [`super::acknowledged`] has the number below which all is
//! synced. What is above can go, because the log tells it again; a hole below is damage. A synced end that is simply not there
//! any more is noticed when the database is open: it then knows fewer commits than were synced. Without a witness the database
//! decides alone.
//!
//! Reads the journal as fjall 3 writes it, uncompressed: a commit is its start (tag 1; the number of its items, 4 bytes; its
//! own number, 8), its items, and its end (tag 3; the checksum of the items, 8; four fixed bytes).

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use bytes::Buf;
use xxhash_rust::xxh3::xxh3_64;

const EXTENSION: &str = "jnl";
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const END_MARK: &[u8] = b"FJL\x03";
/// Of a keyspace.
const NUMBER_BYTES: usize = 8;

/// Cuts the newest journal in a data directory where its commits are no longer whole, and tells how many bytes that took; `None`
/// if it would take away what is synced, which is all with numbers below `synced_below`.
pub(super) fn cut(directory: &Path, synced_below: u64) -> io::Result<Option<u64>> {
    let Some(path) = newest_journal(directory)? else {
        return Ok(Some(0));
    };
    let journal = fs::read(&path)?;
    let Some(torn) = torn_end(&journal) else {
        return Ok(Some(0));
    };
    let first = torn.number.or_else(|| first_number(&journal[torn.start..]));
    if first.is_some_and(|number| number < synced_below) {
        return Ok(None);
    }
    let file = File::options().write(true).open(&path)?;
    file.set_len(torn.start as u64)?;
    file.sync_all()?;
    tracing::warn!(journal = %path.display(), at = torn.start, "the database's journal was torn by a crash, and is cut off");
    let written = journal
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    Ok(Some(written.saturating_sub(torn.start) as u64))
}

/// The one that the database was writing to: that with the highest number.
fn newest_journal(directory: &Path) -> io::Result<Option<PathBuf>> {
    let paths: Vec<_> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    let journals = paths.into_iter().filter(|path| {
        path.extension()
            .is_some_and(|extension| extension == EXTENSION)
    });
    Ok(journals.max_by_key(number))
}

/// Where a journal ends too early.
#[derive(Debug, PartialEq, Eq)]
struct TornEnd {
    start: usize,
    /// Of the commit that is not whole, if it can be told.
    number: Option<u64>,
}

/// `None` if all commits are whole. The file is longer than what was written to it.
fn torn_end(journal: &[u8]) -> Option<TornEnd> {
    let mut rest = journal;
    loop {
        let (start, from) = (journal.len() - rest.len(), rest);
        match pass_commit(&mut rest) {
            Some((_, true)) => {}
            Some((number, false)) => {
                return Some(TornEnd {
                    start,
                    number: Some(number),
                });
            }
            None if from.iter().all(|&byte| byte == 0) => return None,
            None => {
                return Some(TornEnd {
                    start,
                    number: None,
                });
            }
        }
    }
}

/// The number of the first whole commit that begins anywhere in these bytes. Numbers rise, so a synced one would be the first.
fn first_number(bytes: &[u8]) -> Option<u64> {
    let starts = (0..bytes.len()).filter(|&at| bytes[at] == START);
    starts
        .map(|at| pass_commit(&mut &bytes[at..]))
        .find_map(|found| found.filter(|(_, is_whole)| *is_whole))
        .map(|(n, _)| n)
}

/// Passes over a commit, and tells its number and whether its checksum is right; `None` where there is none.
fn pass_commit(rest: &mut &[u8]) -> Option<(u64, bool)> {
    if rest.try_get_u8().ok()? != START {
        return None;
    }
    let count = rest.try_get_u32_le().ok()?;
    let number = rest.try_get_u64_le().ok()?;
    let begin = *rest;
    (0..count).try_for_each(|_| pass_item(rest))?;
    let items = &begin[..begin.len() - rest.len()];
    if rest.try_get_u8().ok()? != END {
        return None;
    }
    let checksum = rest.try_get_u64_le().ok()?;
    let mark = *rest;
    pass(rest, END_MARK.len())?;
    mark.starts_with(END_MARK)
        .then_some((number, checksum == xxh3_64(items)))
}

/// Passes over an item: tag, kind, compression, keyspace, three lengths, key, value; or the clearing of a keyspace.
fn pass_item(rest: &mut &[u8]) -> Option<()> {
    match rest.try_get_u8().ok()? {
        ITEM => {
            pass(rest, 2 + NUMBER_BYTES)?;
            let key_bytes = usize::from(rest.try_get_u16_le().ok()?);
            let _value_bytes_uncompressed = rest.try_get_u32_le().ok()?;
            let value_bytes = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
            pass(rest, key_bytes.checked_add(value_bytes)?)
        }
        CLEAR => pass(rest, NUMBER_BYTES),
        _ => None,
    }
}

fn pass(rest: &mut &[u8], bytes: usize) -> Option<()> {
    *rest = rest.get(bytes..)?;
    Some(())
}

#[cfg(test)]
mod tests {
    use fjall::{CompressionType, Database, KeyspaceCreateOptions, PersistMode};
    use proptest::prelude::*;

    use super::*;

    /// What the database writes for commits with so many items each.
    fn journal_of(commits: &[usize]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::builder(directory.path())
            .journal_compression(CompressionType::None)
            .open()
            .unwrap();
        let keyspace = database
            .keyspace("events", KeyspaceCreateOptions::default)
            .unwrap();
        for (number, &items) in commits.iter().enumerate() {
            let mut batch = database.batch();
            for item in 0..items {
                // A value may look like the end of a commit.
                batch.insert(
                    &keyspace,
                    format!("{number}-{item}"),
                    END_MARK.repeat(100 + item),
                );
            }
            batch.commit().unwrap();
        }
        database.persist(PersistMode::SyncAll).unwrap();
        fs::read(newest_journal(directory.path()).unwrap().unwrap()).unwrap()
    }

    fn starts(journal: &[u8]) -> Vec<usize> {
        let mut rest = journal;
        let mut starts = vec![0];
        while pass_commit(&mut rest).is_some_and(|(_, is_whole)| is_whole) {
            starts.push(journal.len() - rest.len());
        }
        starts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn the_first_damaged_commit_is_the_end(
            commits in prop::collection::vec(1..4usize, 2..5), damaged in any::<prop::sample::Index>(), at in 60..400usize,
        ) {
            let mut journal = journal_of(&commits);
            let starts = starts(&journal);
            prop_assert_eq!(starts.len(), commits.len() + 1, "each commit is read");
            prop_assert_eq!(torn_end(&journal), None, "nothing is torn");
            let damaged = damaged.index(commits.len());
            let number = |at: usize| u64::from_le_bytes(*journal[starts[at] + 5..].first_chunk().unwrap());
            let (own, next) = (number(damaged), (damaged + 1 < commits.len()).then(|| number(damaged + 1)));
            journal[starts[damaged] + at] ^= 1;
            let torn = torn_end(&journal).unwrap();
            prop_assert_eq!(torn.start, starts[damaged]);
            prop_assert!(torn.number.is_none_or(|number| number == own));
            journal[starts[damaged]] = 0;
            prop_assert_eq!(torn_end(&journal), Some(TornEnd { start: starts[damaged], number: None }));
            prop_assert_eq!(first_number(&journal[starts[damaged]..]), next, "what follows tells");
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = torn_end(&[&[START, 1, 0, 0, 0], &bytes[..]].concat());
        }
    }

    #[test]
    fn the_newest_journal_is_that_with_the_highest_number() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["9.jnl", "10.jnl", "11.torn", "acknowledged"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(
            newest_journal(directory.path()).unwrap(),
            Some(directory.path().join("10.jnl"))
        );
    }
}
