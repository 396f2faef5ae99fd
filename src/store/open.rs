//! Opening a store: the log first, then its index, which is built again from the log if anything
//! about it is in doubt.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;
use uuid::Uuid;

use super::{
    BackupResults, Health, OpenError, Store,
    acknowledged::{Acknowledged, AcknowledgedFiles},
    apply::State,
    clock::{Clock, Newest, Source},
    database,
    directory::{self, DirectoryLock, UNFINISHED, check_expected, check_not_used_up},
    disk::identity,
    error::{IndexError, StartFailure},
    expectation_index::ExpectationIndex,
    has_log,
    index::{self, Checkpoint, Index, Unsynced},
    index_doubt,
    layout::{Damaged, INDEX},
    lock,
    log::{self, Log, Streamed, older},
    quarantine_index::QuarantineIndex,
    replay::{
        Reached, ReplayFrom, ToErase, load_expectations, load_quarantine, replay, replay_from,
    },
    shares::Shares,
    started::{self, Cut},
    task_entry::may_lack,
};
use crate::{
    cluster::Totals,
    event::{Epoch, Selectable, Sequence, TaskId},
};

impl Store {
    /// Opens the store under `path`, creating it if there is none. `cache_bytes` bounds the block
    /// cache.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        Self::open_by(Source::system(), path, cache_bytes)
    }

    /// The same for a broker: refuses a directory whose log is not there any more, and notes beside
    /// it that it has one. `is_expected`: the log must be there in any case.
    pub fn open_to_serve(
        path: &Path,
        cache_bytes: u64,
        is_expected: bool,
    ) -> Result<Self, OpenError> {
        check_expected(path, is_expected)?;
        let store = Self::open(path, cache_bytes)?;
        has_log::mark(path, store.epoch());
        Ok(store)
    }

    /// The same by other clocks than the machine's.
    pub(super) fn open_by(
        source: Source,
        path: &Path,
        cache_bytes: u64,
    ) -> Result<Self, OpenError> {
        if path.join(UNFINISHED).symlink_metadata().is_ok() {
            return Err(OpenError::Unfinished(path.into()));
        }
        check_not_used_up(path)?;
        let store = Self::open_unfinished(source, path, cache_bytes)?;
        // Again: a restore may have let go of the lock only now.
        check_not_used_up(path)?;
        Ok(store)
    }

    /// The same of one that is being restored.
    pub(super) fn open_unfinished(
        source: Source,
        path: &Path,
        cache_bytes: u64,
    ) -> Result<Self, OpenError> {
        let opened = fs::create_dir_all(path)
            .map_err(StartFailure::from)
            .and_then(|()| directory::lock(path))
            .and_then(|lock| Self::open_locked(source, path, cache_bytes, lock));
        opened.map_err(|error| error.at(path))
    }

    fn open_locked(
        source: Source,
        path: &Path,
        cache_bytes: u64,
        directory_lock: DirectoryLock,
    ) -> Result<Self, StartFailure> {
        // First, because another version may do everything below otherwise.
        log::check_format(path)?;
        older::check_whole(path)?;
        let acknowledged = AcknowledgedFiles::read(path)?;
        let acknowledged_files = AcknowledgedFiles::open(path)?;
        let (opened, is_new_log) = open_or_begin(path, acknowledged)?;
        let log::Opened {
            log,
            totals,
            torn_bytes,
        } = opened;
        let cut = Cut {
            log_bytes: torn_bytes,
        };
        let started = started::judge(path, log.epoch(), is_new_log, cut);

        let Indexed {
            index,
            quarantine,
            expectations,
            shares,
            to_erase: ToErase { places, copies },
        } = Indexed::open(path, cache_bytes, &log, &totals)?;
        // What is damaged is no reason to refuse everything else: it has been logged.
        log.erase(&places, &copies)?;
        log.note_kept_from(kept_from(&quarantine, &expectations));

        let is_new = totals.newest()?.0 == 0 && totals.quarantine_next == 0;
        let newest = (!is_new).then(|| newest(&totals));
        let clock = Arc::new(Clock::start(source, newest));
        let store = Self {
            path: path.into(),
            acknowledged_files,
            started,
            backup_results: BackupResults::open(path, log.epoch(), clock.now()),
            clock,
            epoch: log.epoch(),
            head: totals.newest()?.0.into(),
            // A node that has joined others lacks what they are about to forget.
            first_available: totals.first_available.max(log.oldest().0).into(),
            shares,
            quarantine,
            expectations,
            erasures: 0.into(),
            identity: identity(path),
            totals: totals.into(),
            health: Health::Writable.into(),
            log,
            index,
            _directory_lock: directory_lock,
        };

        store.checkpoint()?;
        store.log.remove_forgotten();
        if acknowledged.is_none() && store.head().0 > 0 {
            tracing::warn!(
                "nothing tells whether the log is whole: the file `acknowledged` and its copy are missing"
            );
        }
        store.acknowledged_files.begin(path, store.acknowledged())?;
        started::note_open(path, store.epoch())?;
        sync_names(path)?;
        Ok(store)
    }

    /// Has the index take in what it does not have yet, durably, so that no start has to replay it;
    /// then forgotten segments can go.
    pub(super) fn checkpoint(&self) -> Result<(), IndexError> {
        // In this order: what is committed meanwhile is synced, too, but not counted; and all
        // commits before that segment have been applied.
        let replay_from = self.log.checkpoint_max();
        let first_available = Sequence(lock(&self.totals).first_available);
        let checkpoint = Checkpoint {
            epoch: self.epoch,
            commit: self.log.applied(),
            replay_from,
            forgotten_before: first_available,
            is_on_the_way: false,
        };
        let unsynced = Unsynced {
            quarantine: lock(&self.quarantine).take_changes(),
            expectations: lock(&self.expectations).take_changes(),
        };
        self.index
            .sync(checkpoint, unsynced, || Ok(self.log.catch_up()?))?;
        self.log.note_checkpoint(replay_from, first_available);
        Ok(())
    }
}

/// Why an index does not fit its log.
enum Misfit {
    /// Something is missing in quarantine, or among what is expected.
    Lacks(String),
    Other(String),
}

impl From<Misfit> for String {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Lacks(problem) | Misfit::Other(problem) => problem,
        }
    }
}

/// What the log knows of its clock.
fn newest(totals: &Totals) -> Newest {
    Newest {
        micros: totals.log_time_micros,
        trust: totals.trust,
    }
}

/// Opens the log, or begins one where none is and none has to be; true if it begins.
fn open_or_begin(
    path: &Path,
    acknowledged: Option<Acknowledged>,
) -> Result<(log::Opened, bool), StartFailure> {
    // The log is made before its index.
    let is_begun = acknowledged.is_some() || database::is_in(&path.join(INDEX))?;
    if let Some(opened) = Log::open(path, acknowledged, is_begun)? {
        return Ok((opened, false));
    }

    let totals = Totals::EMPTY;
    let opened = log::Opened {
        log: Log::create(path, new_epoch(), totals)?,
        totals,
        torn_bytes: 0,
    };
    Ok((opened, true))
}

/// An index, and what a replay has brought to memory beside it.
struct Indexed {
    index: Index,
    quarantine: Mutex<QuarantineIndex>,
    expectations: Mutex<ExpectationIndex>,
    shares: Mutex<Shares>,
    to_erase: ToErase,
}

impl Indexed {
    /// The index of the log, brought to where the log is. At any doubt it is built again: it has
    /// nothing that the log has not.
    fn open(
        path: &Path,
        cache_bytes: u64,
        log: &Log,
        totals: &Totals,
    ) -> Result<Self, StartFailure> {
        let tried = match index_doubt::said_in(path) {
            Some(problem) => Err(IndexError::Doubt(problem).into()),
            None => Self::caught_up(path, cache_bytes, log, totals),
        };
        match tried {
            Err(StartFailure::Index(error)) if error.is_doubt() => {
                tracing::warn!(problem = %error, commits = log.applied(), "the index is built again from the log");
                Self::built(path, cache_bytes, log, totals)
            }
            tried => tried,
        }
    }

    /// That which is there, with the commits that it does not have yet.
    fn caught_up(
        path: &Path,
        cache_bytes: u64,
        log: &Log,
        totals: &Totals,
    ) -> Result<Self, StartFailure> {
        let index = Index::open(path, cache_bytes)?;
        let from = replay_from(index.checkpoint, log, totals).map_err(IndexError::Doubt)?;
        if index.checkpoint.is_some_and(|it| it.is_on_the_way) {
            tracing::info!(
                segment = from.segment,
                "the index is built on from its last checkpoint"
            );
        }
        let mut indexed = Self::of(index);
        load_quarantine(&indexed.index, indexed.state())?;
        load_expectations(&indexed.index, indexed.state())?;
        indexed.replay(log, totals, &from)?;
        match indexed.misfit(log, totals)? {
            Some(misfit) => Err(IndexError::Doubt(misfit.into()).into()),
            None => Ok(indexed),
        }
    }

    /// A new one in its place, with all commits.
    fn built(
        path: &Path,
        cache_bytes: u64,
        log: &Log,
        totals: &Totals,
    ) -> Result<Self, StartFailure> {
        index::empty(path)?;
        let mut indexed = Self::of(Index::open(path, cache_bytes)?);
        let from = ReplayFrom {
            segment: log.noted_oldest(),
            forgotten_before: Sequence(totals.first_available),
        };
        indexed.replay(log, totals, &from)?;
        // What does not fit now is not the index's fault.
        match indexed.misfit(log, totals) {
            Ok(None) => {}
            // A node that has joined others lacks what they are about to forget, or write again.
            Ok(Some(Misfit::Lacks(problem))) if log.streamed() != Streamed::default() => {
                tracing::warn!(
                    problem,
                    "the log lacks what other nodes have, until this one has caught up"
                );
            }
            Ok(Some(misfit)) => return Err(StartFailure::Corrupt(misfit.into())),
            Err(failure) => return Err(failure),
        }
        tracing::info!("the index is built");
        Ok(indexed)
    }

    fn of(index: Index) -> Self {
        Self {
            index,
            quarantine: Mutex::default(),
            expectations: Mutex::default(),
            shares: Mutex::default(),
            to_erase: ToErase::default(),
        }
    }

    /// Applies what it does not have yet, with checkpoints on the way.
    fn replay(
        &mut self,
        log: &Log,
        totals: &Totals,
        from: &ReplayFrom,
    ) -> Result<(), StartFailure> {
        // What an index has beyond the log must show, also after a start that was cut off.
        let known = self.index.checkpoint.map_or(0, |it| it.commit);
        self.to_erase = replay(log, self.state(), totals, from, |reached| {
            let Reached {
                segment,
                commit,
                to_erase: ToErase { places, copies },
            } = reached;
            log.erase(&places, &copies)?;
            let checkpoint = Checkpoint {
                epoch: log.epoch(),
                commit: commit.max(known),
                replay_from: segment,
                forgotten_before: Sequence(totals.first_available),
                is_on_the_way: true,
            };
            let unsynced = Unsynced {
                quarantine: lock(&self.quarantine).take_changes(),
                expectations: lock(&self.expectations).take_changes(),
            };
            self.index.sync(checkpoint, unsynced, || Ok(()))?;
            tracing::debug!(
                segment,
                "a start that is cut off from here on goes on with this segment"
            );
            Ok(())
        })?;
        Ok(())
    }

    fn state(&self) -> State<'_> {
        State {
            tasks: &self.index.tasks,
            quarantine: &self.quarantine,
            expectations: &self.expectations,
            shares: &self.shares,
        }
    }

    /// What it must have and has not, by a few reads that do not grow with the log.
    fn misfit(&self, log: &Log, totals: &Totals) -> Result<Option<Misfit>, StartFailure> {
        let (count, bytes) = lock(&self.quarantine).count_and_bytes();
        if (count, bytes) != (totals.quarantine_count, totals.quarantine_bytes) {
            let problem = format!(
                "{} callbacks must be in quarantine, and {count} are",
                totals.quarantine_count
            );
            let lacks = count <= totals.quarantine_count && bytes <= totals.quarantine_bytes;
            return Ok(Some(if lacks {
                Misfit::Lacks(problem)
            } else {
                Misfit::Other(problem)
            }));
        }

        let open = lock(&self.expectations).counts().open as u64;
        if open != totals.expectation_count {
            let problem = format!(
                "{} tasks must be expected, and {open} are",
                totals.expectation_count
            );
            return if open < totals.expectation_count {
                Ok(Some(Misfit::Lacks(problem)))
            } else {
                Err(IndexError::Doubt(problem).into())
            };
        }

        // An index that has lost its tasks knows neither.
        let ends = if totals.event_count > 0 {
            let first = Sequence(totals.first_available).max(log.oldest());
            &[first.min(totals.newest()?), totals.newest()?][..]
        } else {
            &[]
        };
        for &place in ends {
            let record = match log.get(place) {
                Ok(record) => record,
                // Reads of it say so; everything else can be served.
                Err(error) => {
                    tracing::error!(place = place.0, %error, "the oldest or newest event cannot be read");
                    continue;
                }
            };
            let task_id =
                TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))?;
            let events = self.index.tasks.get(&task_id)?;
            let is_known = events.iter().any(|event| event.sequence == place)
                || (record.status().is_terminal() && may_lack(&events, record.product(), place));
            if !is_known {
                let problem = format!("it does not know event {}", place.0);
                return Ok(Some(Misfit::Other(problem)));
            }
        }
        Ok(None)
    }
}

/// The oldest segment with the newest copy of something that outlives events.
pub(super) fn kept_from(
    quarantine: &Mutex<QuarantineIndex>,
    expectations: &Mutex<ExpectationIndex>,
) -> Option<u64> {
    let quarantined = lock(quarantine).first_segment();
    let expected = lock(expectations).segments().first();
    [quarantined, expected].into_iter().flatten().min()
}

/// Makes the names of what is there durable. A file's own sync does so on most file systems, but
/// none has promised it.
pub(super) fn sync_names(path: &Path) -> io::Result<()> {
    let folders = [Some(path), path.parent()];
    folders
        .into_iter()
        .flatten()
        .filter(|folder| !folder.as_os_str().is_empty())
        .try_for_each(|folder| File::open(folder)?.sync_all())
}

pub(super) fn new_epoch() -> Epoch {
    Epoch(Uuid::new_v4().as_u64_pair().0)
}
