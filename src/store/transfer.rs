//! All that a stopped broker's directory has, as frames: nodes that apply them to an empty log have the same events at the same places,
//! the same quarantine and expectations under the same numbers, and have forgotten the same. Works without a broker.
//!
//! The log begins with totals that say what is forgotten, and count what is in quarantine and expected, as if retention had removed the
//! frames before from the stream. Then come all events, and what is in quarantine and expected is written again, as it is for a node
//! that joins. So a node that has not read all of it lacks something by its own totals, and is not ready.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    vec,
};

use bytes::Bytes;

use super::{
    OpenError, ReadError, Store,
    clock::Source,
    directory::{LOG, USED_UP},
    expectation::Kept,
    layout::parse_quarantined,
    lock,
    log::{Events, Logged, Unread},
    quarantine_index::Held,
};
use crate::{
    cluster::{Author, Contents, Entries, Entry, Totals},
    event::{Epoch, Fingerprint, Sequence},
    files,
};

/// Memory for blocks of the index: nothing is looked up in it.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// Of an event's entry beside its record, which has more of them than the others: kind, length, id and fingerprint.
const ENTRY_BYTES: usize = 1 + 4 + 16 + Fingerprint::BYTES;

/// Why a directory cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// There is nothing to take.
    #[error("{0} has no log: name the data directory of a broker")]
    NoLog(PathBuf),
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The node had joined, and had not read all of the stream.
    #[error(
        "{0} is the directory of a node that had not read all of its stream: name the directory of one that was ready"
    )]
    Incomplete(PathBuf),
    /// What is in it cannot be read.
    #[error("{path} cannot be read as a whole ({problem}), and nothing was taken over: name another directory, or take a backup and restore it", path = path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What was found.
        problem: ReadError,
    },
    /// It cannot be kept from being used again.
    #[error("cannot write {path}: {source}; it keeps brokers from starting there", path = path.display())]
    Mark {
        /// The file.
        path: PathBuf,
        /// The system's complaint.
        source: io::Error,
    },
}

/// What a directory has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Retained events.
    pub events: u64,
    /// Callbacks in quarantine.
    pub quarantined: u64,
    /// Callbacks in quarantine that are damaged, and stay behind.
    pub damaged: u64,
    /// Open expectations.
    pub expectations: u64,
    /// Bytes of the largest of them as an entry of a frame.
    pub largest_bytes: usize,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// A directory that is open to be taken over, and was read once as a whole.
pub(crate) struct Transfer {
    store: Store,
    path: PathBuf,
    quarantined: Vec<(u64, Held)>,
    taken: Taken,
    /// As the log ends.
    totals: Totals,
}

impl Transfer {
    /// Opens a directory on which no broker runs, and reads all of it. `to` is where it is taken: a directory that was taken there
    /// before, as [`Self::mark_used_up`] notes, is opened again.
    pub(crate) fn open(path: &Path, to: &str) -> Result<Self, TransferError> {
        if !path.join(LOG).is_dir() {
            return Err(TransferError::NoLog(path.into()));
        }
        let store = match Store::open(path, CACHE_BYTES) {
            Err(OpenError::UsedUp { to: said, .. }) if said == to => {
                Store::open_unfinished(Source::system(), path, CACHE_BYTES)?
            }
            opened => opened?,
        };
        if !store.is_complete() {
            return Err(TransferError::Incomplete(path.into()));
        }

        let totals = *lock(&store.totals);
        let mut transfer = Self {
            quarantined: Vec::new(),
            taken: Taken::default(),
            totals,
            path: path.into(),
            store,
        };
        transfer
            .read()
            .map_err(|problem| TransferError::Unreadable {
                path: path.into(),
                problem,
            })?;
        Ok(transfer)
    }

    /// Reads all of it, and finds out what it is.
    fn read(&mut self) -> Result<(), ReadError> {
        let mut taken = Taken::default();
        let mut add = |bytes: usize| {
            taken.largest_bytes = taken.largest_bytes.max(bytes);
            taken.bytes += bytes as u64;
        };
        self.totals.event_bytes = 0;
        for event in self.events() {
            let event = event?;
            add(ENTRY_BYTES + event.record.len());
            // What was forgotten without being readable is counted there still.
            self.totals.event_bytes += event.record.len() as u64;
        }
        let expectations = lock(&self.store.expectations).all();
        for (_, kept) in &expectations {
            add(ENTRY_BYTES + kept.bytes().len());
        }

        let mut damaged = 0;
        let quarantined = lock(&self.store.quarantine).all();
        for (number, held) in quarantined {
            match self.quarantined(number, &held)? {
                Some(value) => {
                    add(ENTRY_BYTES + value.len());
                    self.quarantined.push((number, held));
                }
                None => {
                    damaged += 1;
                    self.totals.forget_quarantined(held.bytes)?;
                }
            }
        }
        self.taken = Taken {
            events: self.totals.event_count,
            quarantined: self.quarantined.len() as u64,
            damaged,
            expectations: expectations.len() as u64,
            ..taken
        };
        Ok(())
    }

    fn events(&self) -> Events {
        let first = Sequence(self.totals.first_available);
        self.store.log.events(first..=self.store.head())
    }

    /// A callback in quarantine; `None` if it is damaged.
    fn quarantined(&self, number: u64, held: &Held) -> Result<Option<Bytes>, ReadError> {
        match self.store.log.quarantined(number, held.newest) {
            Ok(value) => Ok(value.filter(|value| parse_quarantined(value).is_ok())),
            Err(Unread::Damaged(problem)) => {
                tracing::warn!(number, problem, "a callback in quarantine is damaged");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whose log it is.
    pub(crate) fn epoch(&self) -> Epoch {
        self.store.epoch()
    }

    /// What it has.
    pub(crate) fn taken(&self) -> &Taken {
        &self.taken
    }

    /// Whether it is a node's: its places are given out by a cluster.
    pub(crate) fn is_of_node(&self) -> bool {
        self.store.follows_stream()
    }

    /// All of it, in frames of this author with so many bytes of entries, or with one that has more.
    pub(crate) fn frames(&self, author: Author, name: &str, bytes_max: usize) -> Frames<'_> {
        let base = Totals {
            event_count: 0,
            event_bytes: 0,
            ..self.totals
        };
        Frames {
            transfer: self,
            author,
            name: name.to_owned(),
            bytes_max,
            entries: self.entries(),
            next: None,
            totals: base,
            is_over: false,
        }
    }

    fn entries(&self) -> Unwritten<'_> {
        Unwritten {
            transfer: self,
            events: self.events(),
            quarantined: self.quarantined.clone().into_iter(),
            expectations: lock(&self.store.expectations).all().into_iter(),
        }
    }

    /// Keeps brokers from starting on the directory, because all that it has is in `to`. Durable when this returns.
    pub(crate) fn mark_used_up(&self, to: &str) -> Result<(), TransferError> {
        let marked = files::replace_private(&self.path, USED_UP, to.as_bytes())
            .and_then(|()| File::open(&self.path)?.sync_all());
        marked.map_err(|source| TransferError::Mark {
            path: self.path.join(USED_UP),
            source,
        })
    }
}

/// What is not in a frame yet.
struct Unwritten<'a> {
    transfer: &'a Transfer,
    events: Events,
    quarantined: vec::IntoIter<(u64, Held)>,
    expectations: vec::IntoIter<(u64, Kept)>,
}

impl Iterator for Unwritten<'_> {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(event) = self.events.next() {
            return Some(event.map(event_entry));
        }
        if let Some((number, held)) = self.quarantined.next() {
            let value = self.transfer.quarantined(number, &held);
            let missing = || ReadError::Corrupt(format!("quarantined callback {number}"));
            return Some(value.and_then(|value| {
                let value = value.ok_or_else(missing)?;
                Ok(Entry::Carried { number, value })
            }));
        }
        let (number, kept) = self.expectations.next()?;
        let value = Bytes::copy_from_slice(kept.bytes());
        Some(Ok(Entry::Expected { number, value }))
    }
}

fn event_entry(logged: Logged) -> Entry {
    let Logged {
        event_id,
        fingerprint,
        record,
    } = logged;
    Entry::Event {
        event_id,
        fingerprint,
        record,
    }
}

/// See [`Transfer::frames`]. The last one has no entries. In those before, the log's time is that of their events: by it nodes know how
/// old a segment is.
pub(crate) struct Frames<'a> {
    transfer: &'a Transfer,
    author: Author,
    name: String,
    bytes_max: usize,
    entries: Unwritten<'a>,
    /// It did not fit into the last frame.
    next: Option<Entry>,
    totals: Totals,
    is_over: bool,
}

/// Most entries of one frame, as many as a commit has.
const FRAME_ENTRIES_MAX: usize = 512;

impl Frames<'_> {
    fn gather(&mut self) -> Result<Vec<Entry>, ReadError> {
        let (mut gathered, mut bytes) = (Vec::new(), 0);
        while gathered.len() < FRAME_ENTRIES_MAX {
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.entries.next() {
                    Some(next) => next?,
                    None => break,
                },
            };
            bytes += bytes_of(&next);
            if bytes > self.bytes_max && !gathered.is_empty() {
                self.next = Some(next);
                break;
            }
            gathered.push(next);
        }
        Ok(gathered)
    }

    fn contents(&mut self, entries: &[Entry]) -> Contents {
        let (before, end) = (self.totals, self.transfer.totals);
        self.totals.log_time_micros = end.log_time_micros;
        for entry in entries {
            if let Entry::Event { record, .. } = entry {
                self.totals.event_count += 1;
                self.totals.event_bytes += record.len() as u64;
                let (place, stamped) = (record.sequence(), record.log_time_micros());
                self.totals.log_time_micros = end.correction.of_event(place, stamped);
            }
        }
        Contents {
            author: self.author,
            name: self.name.clone(),
            commit_time_micros: self.transfer.store.clock().now_micros(),
            before,
            after: self.totals,
            entries: Entries::of(entries),
        }
    }
}

impl Iterator for Frames<'_> {
    type Item = Result<Contents, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let entries = match self.gather() {
            Ok(entries) => entries,
            Err(error) => return Some(Err(error)),
        };
        self.is_over = entries.is_empty();
        Some(Ok(self.contents(&entries)))
    }
}

fn bytes_of(entry: &Entry) -> usize {
    let value = match entry {
        Entry::Event { record, .. } => record.len(),
        Entry::Carried { value, .. } | Entry::Expected { value, .. } => value.len(),
        _ => 0, // no others are made here
    };
    ENTRY_BYTES + value
}
