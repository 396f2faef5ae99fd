//! A new store from a backup. Works without a broker, in a directory of its own.
//!
//! A marker file says that the directory is not complete yet. It is removed when everything has
//! been checked; until then every start is refused.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;
use xxhash_rust::xxh3::Xxh3;

use super::{
    AppendError, AppendSummary, RestoreError, Store,
    acknowledged::{Acknowledged, AcknowledgedFiles},
    append::{self, Other, Stopped, WhenRunning},
    backup::{Audit, BackupSummary, END, MAGIC, Part, parse_event},
    backup_results,
    clock::Source,
    directory::{APPEND_COPY, UNFINISHED},
    error::StartFailure,
    last_there,
    layout::{BACKUP_FORMAT, parse_sequence_key, parse_u64},
    lock,
    log::{FrameBuilder, Log, Logged},
    open::new_epoch,
    started,
};
use crate::cluster::Totals;

/// Memory for blocks while restoring: nothing is read twice.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// Written at once. It is also what is read at once of the log that is made.
const BATCH_BYTES: usize = 64 * 1024;
/// No key or value has more: the largest body twice, and some.
const LENGTH_MAX: u32 = 256 * 1024 * 1024;

/// Makes a new store of a backup, with an epoch of its own, in a directory that is empty or does
/// not exist; durable when this returns. If it fails, it leaves the directory empty.
pub fn restore(backup: impl Read, path: &Path) -> Result<BackupSummary, RestoreError> {
    make_empty(path)?;
    let restored = begin(path).and_then(|()| {
        let summary = fill(backup, path)?;
        end_of(path)?;
        Ok(summary)
    });
    finished(restored, path)
}

/// The same, and adds behind it what the data directory of another broker has, which must not run.
/// At the end a file in that directory says that it is used up; else nothing of it is changed.
pub(crate) fn restore_and_append(
    backup: impl Read,
    path: &Path,
    other: &Path,
    when_running: WhenRunning<'_>,
) -> Result<(BackupSummary, AppendSummary), RestoreError> {
    // Before the backup is read, which may take an hour.
    append::check_apart(path, other)?;
    append::check_usable(other)?;
    make_empty(path)?;
    let stopped = match when_running {
        WhenRunning::Refuse => Some(Stopped::hold(other)?),
        WhenRunning::Wait(_) => None,
    };
    finished(
        fill_and_append(backup, path, || {
            stopped_by_then(stopped, other, when_running)
        }),
        path,
    )
}

fn stopped_by_then(
    stopped: Option<Stopped>,
    other: &Path,
    when_running: WhenRunning<'_>,
) -> Result<Stopped, AppendError> {
    match (stopped, when_running) {
        (Some(stopped), _) => Ok(stopped),
        (None, WhenRunning::Wait(tell)) => Stopped::wait(other, tell),
        (None, WhenRunning::Refuse) => Stopped::hold(other),
    }
}

fn make_empty(path: &Path) -> Result<(), RestoreError> {
    let cannot = |error: io::Error| RestoreError::Store(StartFailure::from(error).at(path));
    fs::create_dir_all(path).map_err(cannot)?;
    if fs::read_dir(path).map_err(cannot)?.next().is_some() {
        return Err(RestoreError::NotEmpty(path.into()));
    }
    Ok(())
}

/// Makes a restored directory durable, or empties it.
fn finished<T>(restored: Result<T, RestoreError>, path: &Path) -> Result<T, RestoreError> {
    let cannot = |error: io::Error| RestoreError::Store(StartFailure::from(error).at(path));
    match &restored {
        Ok(_) => sync_directory(path.canonicalize().map_err(cannot)?.parent()).map_err(cannot)?,
        // What cannot be removed is still no store.
        Err(_) => drop(clear(path)),
    }
    restored
}

fn fill_and_append(
    backup: impl Read,
    path: &Path,
    other: impl FnOnce() -> Result<Stopped, AppendError>,
) -> Result<(BackupSummary, AppendSummary), RestoreError> {
    let cannot = |error: io::Error| RestoreError::Store(StartFailure::from(error).at(path));
    begin(path)?;
    let summary = fill(backup, path)?;

    // Held until all of it is appended: nothing comes that would not be.
    let stopped = other()?;
    let other = Other::copy(&stopped, path)?;
    let store = Arc::new(Store::open_unfinished(Source::system(), path, CACHE_BYTES)?);
    let backed_up_micros = lock(&store.totals).log_time_micros;
    let appended = other.append_to(&store)?;
    let checkpoint = store
        .checkpoint()
        .map_err(|error| RestoreError::Store(StartFailure::from(error).at(path)));
    let epoch = store.epoch();
    drop((store, other));
    checkpoint?;

    started::note_restored(path, epoch).map_err(cannot)?;
    if !appended.is_nothing() {
        // No backup has what was appended: the newest is as old as the newest event of the one that
        // was restored. Not 0, which would say that there has been none.
        let at = Timestamp::from_microsecond(backed_up_micros.max(1_000_000)).unwrap_or_default();
        backup_results::note_restored(path, epoch, at, summary.backup_bytes).map_err(cannot)?;
    }
    fs::remove_dir_all(path.join(APPEND_COPY)).map_err(cannot)?;
    sync_directory(Some(path)).map_err(cannot)?;

    // Before this is a log, and while no other process can start there.
    if let Err(error) = stopped.mark_used_up(path) {
        stopped.unmark(); // it may be there although it is not durable
        return Err(error.into());
    }
    // From here on it is a log.
    end_of(path).inspect_err(|_| stopped.unmark())?;
    Ok((summary, appended))
}

/// Creates the marker durably.
fn begin(path: &Path) -> Result<(), RestoreError> {
    let begun = File::create(path.join(UNFINISHED))
        .and_then(|file| file.sync_all())
        .and_then(|()| sync_directory(Some(path)));
    begun.map_err(|error| RestoreError::Store(StartFailure::from(error).at(path)))
}

/// Removes the marker durably.
fn end_of(path: &Path) -> Result<(), RestoreError> {
    let ended = fs::remove_file(path.join(UNFINISHED)).and_then(|()| sync_directory(Some(path)));
    ended.map_err(|error| RestoreError::Store(StartFailure::from(error).at(path)))
}

fn fill(backup: impl Read, path: &Path) -> Result<BackupSummary, RestoreError> {
    let cannot = |error: StartFailure| RestoreError::Store(error.at(path));
    let mut input = Input::new(backup);
    let totals = header(&mut input)?;
    let (epoch, head) = (new_epoch(), totals.newest()?.0);
    let acknowledged_files = AcknowledgedFiles::open(path).map_err(|error| cannot(error.into()))?;
    let acknowledged = Acknowledged {
        epoch,
        head,
        quarantine_next: totals.quarantine_next,
        commit_next: 0,
    };
    acknowledged_files
        .begin(path, acknowledged)
        .map_err(|error| cannot(error.into()))?;
    let mut audit = Audit::new(totals);
    let log = Log::create(path, epoch, audit.found).map_err(|error| cannot(error.into()))?;

    let mut more = true;
    while more {
        let before = audit.found;
        let mut frame = FrameBuilder::new();
        more = read_batch(&mut input, &mut audit, &mut frame)?;
        if !frame.is_empty() {
            log.append(frame, &before, &audit.found)
                .map_err(|error| cannot(error.into()))?;
        }
    }
    log.sync().map_err(|error| cannot(error.into()))?;
    drop(log);

    // Starts as the broker would, with all its checks, and builds the index.
    let store = Store::open_unfinished(Source::system(), path, CACHE_BYTES)?;
    let (now, newest_micros) = (store.clock().now(), lock(&store.totals).log_time_micros);
    drop(store);
    backup_results::note_restored(path, epoch, now, input.read)
        .map_err(|error| cannot(error.into()))?;
    started::note_restored(path, epoch).map_err(|error| cannot(error.into()))?;
    last_there::note_restored(path, epoch, newest_micros).map_err(|error| cannot(error.into()))?;
    Ok(audit.summary(input.read))
}

fn header(input: &mut Input<impl Read>) -> Result<Totals, RestoreError> {
    match input.take(MAGIC.len()) {
        Ok(magic) if magic == MAGIC => {}
        Ok(_) | Err(RestoreError::CutShort) => return Err(RestoreError::NoBackup),
        Err(error) => return Err(error),
    }
    match input.number()? {
        BACKUP_FORMAT => Ok(Totals::parse(&input.take(Totals::BYTES)?)?),
        other => Err(RestoreError::Format(other)),
    }
}

/// Takes some entries over; false behind the last one, when the end has been checked.
fn read_batch(
    input: &mut Input<impl Read>,
    audit: &mut Audit,
    frame: &mut FrameBuilder,
) -> Result<bool, RestoreError> {
    let mut bytes = 0;
    while bytes < BATCH_BYTES {
        let Some((part, key, value)) = read_entry(input, audit)? else {
            return Ok(false);
        };
        bytes += key.len() + value.len();
        match part {
            Part::Events => {
                let Logged {
                    event_id,
                    fingerprint,
                    record,
                } = parse_event(parse_sequence_key(&key)?, value.into())?;
                frame.event(event_id, fingerprint, &record);
            }
            // It was erased while the backup was taken.
            Part::Quarantine if value.is_empty() => {}
            Part::Quarantine => frame.quarantined(parse_sequence_key(&key)?.0, &value),
            Part::Expectations => frame.expected(parse_sequence_key(&key)?.0, &value),
        }
    }
    Ok(true)
}

/// Where something belongs, its key, and its value.
type Entry = (Part, Vec<u8>, Vec<u8>);

/// The next entry, checked; `None` behind the last one, when the end has been checked.
fn read_entry(
    input: &mut Input<impl Read>,
    audit: &mut Audit,
) -> Result<Option<Entry>, RestoreError> {
    let tag = input.take(1)?[0];
    if tag == END {
        end(input, audit)?;
        return Ok(None);
    }
    let part = Part::from_number(tag).ok_or(RestoreError::Damaged("entry"))?;
    let [key_length, value_length] = [input.length()?, input.length()?];
    let (key, value) = (input.take(key_length)?, input.take(value_length)?);
    audit.entry(part, &key, &value)?;
    Ok(Some((part, key, value)))
}

/// Reads a backup to its end, and restores nothing.
#[cfg(debug_assertions)]
pub(crate) fn check(backup: impl Read) -> Result<BackupSummary, RestoreError> {
    let mut input = Input::new(backup);
    let mut audit = Audit::new(header(&mut input)?);
    while read_entry(&mut input, &mut audit)?.is_some() {}
    Ok(audit.summary(input.read))
}

fn end(input: &mut Input<impl Read>, audit: &Audit) -> Result<(), RestoreError> {
    let entries = input.number()?;
    let checksum = input.checksum.digest();
    if input.number()? != checksum {
        return Err(RestoreError::Damaged("its checksum is wrong"));
    }
    if entries != audit.entries {
        return Err(RestoreError::Damaged("entries are missing"));
    }
    if input.from.read(&mut [0])? > 0 {
        return Err(RestoreError::Damaged("something follows its end"));
    }
    Ok(audit.end()?)
}

/// The backup, with the checksum of what was read of it.
struct Input<R> {
    from: BufReader<R>,
    checksum: Xxh3,
    read: u64,
}

impl<R: Read> Input<R> {
    fn new(backup: R) -> Self {
        Self {
            from: BufReader::new(backup),
            checksum: Xxh3::new(),
            read: 0,
        }
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, RestoreError> {
        // Grows with what comes, not with what a damaged length claims.
        let mut bytes = Vec::new();
        if self
            .from
            .by_ref()
            .take(length as u64)
            .read_to_end(&mut bytes)?
            < length
        {
            return Err(RestoreError::CutShort);
        }
        self.checksum.update(&bytes);
        self.read += length as u64;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, RestoreError> {
        Ok(parse_u64(&self.take(8)?)?)
    }

    fn length(&mut self) -> Result<usize, RestoreError> {
        let bytes = self
            .take(4)?
            .try_into()
            .map_err(|_| RestoreError::CutShort)?;
        match u32::from_le_bytes(bytes) {
            length if length <= LENGTH_MAX => Ok(length as usize),
            _ => Err(RestoreError::Damaged("length")),
        }
    }
}

/// Removes what was put into a directory that was empty before; last what refuses a start until
/// then.
fn clear(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else if ![AcknowledgedFiles::FILE, UNFINISHED]
            .iter()
            .any(|last| entry.file_name() == *last)
        {
            fs::remove_file(entry.path())?;
        }
    }
    for last in [AcknowledgedFiles::FILE, UNFINISHED] {
        match fs::remove_file(path.join(last)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn sync_directory(path: Option<&Path>) -> io::Result<()> {
    path.map_or(Ok(()), |path| File::open(path)?.sync_all())
}
