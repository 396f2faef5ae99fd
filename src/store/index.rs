//! The index of the log: which events each task has, where the quarantined callbacks lie, and which
//! tasks are expected. A cache: the log has all of it.
//!
//! It lies in a folder of its own and says up to where it has the log (its checkpoint). If that
//! does not fit the log, or the index cannot be read, it is emptied and built again from the log.
//! No copy of the old index is kept: everything in it is in the log, and a full disk may be the
//! cause of its damage.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use bytes::{Buf, BufMut};
use fjall::{Database, Keyspace, PersistMode};

use super::{
    database::{self, Opened},
    error::{IndexError, StartFailure},
    expectation_index::Held,
    index_doubt::{self, Doubt},
    layout::{Damaged, FORMAT, INDEX, parse_sequence_key, sequence_key},
    quarantine_index::Stored,
    task_index::{RECENT_MAX, Tasks},
};
use crate::{
    event::{Epoch, Sequence},
    files,
};

/// What a file system of its own has in its first folder.
const LOST_AND_FOUND: &str = "lost+found";

const CHECKPOINT: &str = "checkpoint";

/// Up to where an index has the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Of this log.
    pub epoch: Epoch,
    /// Everything up to this commit.
    pub commit: u64,
    /// The segment with which a start begins to replay: what its commits have announced to be
    /// erased may not be overwritten.
    pub replay_from: u64,
    /// It has forgotten all events before this one, as retention has.
    pub forgotten_before: Sequence,
    /// A replay was on its way here, and has not come to its end.
    pub is_on_the_way: bool,
}

impl Checkpoint {
    const BYTES: usize = 48;

    fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        let numbers = [
            FORMAT,
            self.epoch.0,
            self.commit,
            self.replay_from,
            self.forgotten_before.0,
            u64::from(self.is_on_the_way),
        ];
        numbers
            .into_iter()
            .for_each(|number| bytes.put_u64_le(number));
        bytes
    }

    fn parse(mut bytes: &[u8]) -> Result<Self, IndexError> {
        if bytes.len() != Self::BYTES || bytes.get_u64_le() != FORMAT {
            return Err(Damaged("checkpoint").into());
        }
        Ok(Self {
            epoch: Epoch(bytes.get_u64_le()),
            commit: bytes.get_u64_le(),
            replay_from: bytes.get_u64_le(),
            forgotten_before: Sequence(bytes.get_u64_le()),
            is_on_the_way: bytes.get_u64_le() != 0,
        })
    }
}

/// New values of numbered things; `None` where one is gone.
type Changes = BTreeMap<u64, Option<Vec<u8>>>;

/// What is in memory and not in the index yet.
#[derive(Default)]
pub(super) struct Unsynced {
    pub quarantine: Changes,
    pub expectations: Changes,
}

/// The open index.
pub(super) struct Index {
    pub tasks: Tasks,
    database: Database,
    meta: Keyspace,
    quarantine: Keyspace,
    expectations: Keyspace,
    doubt: Arc<Doubt>,
    /// The checkpoint found when it was opened; `None` if it was just created.
    pub checkpoint: Option<Checkpoint>,
}

impl Index {
    /// Opens the index of a data directory, or makes an empty one where there is none.
    pub(super) fn open(directory: &Path, cache_bytes: u64) -> Result<Self, IndexError> {
        let doubt = Arc::new(Doubt::of(directory));
        // If the process ends in here, the file stays, and the next start builds the index instead
        // of opening it.
        doubt.write();
        let opened = database::open(&directory.join(INDEX), cache_bytes).inspect_err(|error| {
            if !error.is_doubt() {
                doubt.remove();
            }
        });
        let Opened {
            database,
            meta,
            tasks,
            quarantine,
            expectations,
            was_whole,
        } = opened?;
        let said = meta.get(CHECKPOINT)?;
        doubt.remove();

        if !was_whole && said.is_some() {
            return Err(IndexError::Doubt("a keyspace is missing".into()));
        }
        Ok(Self {
            tasks: Tasks::new(database.clone(), tasks, RECENT_MAX, Arc::clone(&doubt)),
            database,
            meta,
            quarantine,
            expectations,
            doubt,
            checkpoint: said.map(|said| Checkpoint::parse(&said)).transpose()?,
        })
    }

    /// Why it has to be built again; `None` if no error was met.
    pub(super) fn problem(&self) -> Option<&str> {
        self.doubt.problem()
    }

    /// Has it built again, as it does not fit the log.
    pub(super) fn put_in_doubt(&self, problem: String) -> IndexError {
        let error = IndexError::Doubt(problem);
        self.doubt.raise(&error.to_string());
        error
    }

    /// Everything that it has of the quarantine, in the order of the numbers.
    pub(super) fn quarantined(
        &self,
    ) -> impl Iterator<Item = Result<(u64, Stored), IndexError>> + use<> {
        self.quarantine.iter().map(|entry| {
            let (key, value) = entry.into_inner()?;
            Ok((parse_sequence_key(&key)?.0, Stored::parse(&value)?))
        })
    }

    /// Everything that it has of the expectations, in the order of the numbers.
    pub(super) fn expectations(
        &self,
    ) -> impl Iterator<Item = Result<(u64, Held), IndexError>> + use<> {
        self.expectations.iter().map(|entry| {
            let (key, value) = entry.into_inner()?;
            Ok((parse_sequence_key(&key)?.0, Held::parse(&value)?))
        })
    }

    /// How often the database was written to.
    #[cfg(test)]
    pub(super) fn seqno(&self) -> u64 {
        self.database.seqno()
    }

    /// Makes all changes durable, and then the checkpoint. `make_durable` has the log sync all that it has so far.
    pub(super) fn sync(
        &self,
        checkpoint: Checkpoint,
        unsynced: Unsynced,
        make_durable: impl FnOnce() -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        self.tasks.flush_behind(make_durable)?;
        self.doubt.look(self.write(checkpoint, unsynced))
    }

    fn write(&self, checkpoint: Checkpoint, unsynced: Unsynced) -> Result<(), IndexError> {
        let Unsynced {
            quarantine,
            expectations,
        } = unsynced;
        let mut batch = self.database.batch();
        for (keyspace, changes) in [
            (&self.quarantine, quarantine),
            (&self.expectations, expectations),
        ] {
            for (number, stored) in changes {
                let key = sequence_key(Sequence(number));
                match stored {
                    Some(stored) => batch.insert(keyspace, key, stored),
                    None => batch.remove(keyspace, key),
                }
            }
        }
        batch.insert(&self.meta, CHECKPOINT, checkpoint.encode());
        batch.commit()?;
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}

/// Empties the index of a data directory. In place: its folder may be a link or a mount point.
/// Removes nothing if anything in it is not the database's.
///
/// Until it is empty, the file of the doubt is there: a crash must not leave a part of the index
/// where all of it should be.
pub(super) fn empty(directory: &Path) -> Result<(), StartFailure> {
    match foreign(&directory.join(INDEX)).map_err(StartFailure::Emptying)? {
        Some(name) => Err(StartFailure::Foreign(name)),
        None => empty_of_its_own(directory).map_err(StartFailure::Emptying),
    }
}

/// What an index has in its folder that is not the database's.
fn foreign(folder: &Path) -> io::Result<Option<OsString>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !database::is_part(&name) && name != LOST_AND_FOUND {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn empty_of_its_own(directory: &Path) -> io::Result<()> {
    index_doubt::mark(directory)?;
    let folder = directory.join(INDEX);
    match fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if !database::is_part(&entry.file_name()) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            // Before anything is built there.
            File::open(&folder)?.sync_all()?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(&folder)?,
        Err(error) => return Err(error),
    }
    files::if_there(fs::remove_file(directory.join(index_doubt::FILE)))?;
    File::open(directory)?.sync_all()
}
