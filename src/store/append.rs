//! Adds what another data directory has behind a restored log: what a fresh broker took while the old one was being restored.
//!
//! The other directory is only read, until the end: then a file in it says that it is used up, and no broker starts on it. A
//! service manager or a socket unit that starts a broker there again would have it take callbacks into it that nobody appends. Opening a log
//! writes, so a copy of it is opened, which lies in the new directory until all of it is taken over. Its events get places behind the head, in their order, by the rules that callbacks are taken by: what repeats an
//! event that is there is a duplicate, and what is left of a task's story gets the next revisions. Everything else of them stays.
//!
//! Erased stays erased: a repetition of an event that was erased in the backup is a duplicate of it, and where the other broker has
//! erased a task, what the backup has of that task is erased, too.

use std::{
    collections::HashSet,
    fs::{self, File, TryLockError},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    AppendError, Draft, ERASURE_PLACES_MAX, Erasure, NewQuarantined, OpenError, ReadError,
    RestoreError, Retention, Store,
    directory::{self, APPEND_COPY, LOCK, LOG, USED_UP},
    layout::{Damaged, TaskEvent},
    lock,
    quarantine::Quarantined,
    same::Before,
    writer::{GROUP_BYTES_MAX, GROUP_MAX, Import, Imported, Writer, writer},
};
use crate::{
    event::{Fingerprint, Product, Record, Selectable, TaskId},
    files,
};

/// Tasks that a summary names.
const TASKS_NAMED_MAX: usize = 20;
/// Memory for blocks of the index: tasks are looked up in the order of their events.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// How often it is looked whether the other broker is stopped: callbacks are refused meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Quarantined callbacks that are read at once; each may be as large as a body.
const QUARANTINE_PAGE: usize = 16;

/// What was added behind a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendSummary {
    /// Events that the backup has not.
    pub event_count: u64,
    /// Events that repeat one of the backup, or one that was added.
    pub duplicate_count: u64,
    /// Callbacks in quarantine that the backup has not.
    pub quarantine_count: u64,
    /// Callbacks in quarantine that the backup has.
    pub quarantine_duplicate_count: u64,
    /// Events of the backup whose tasks the other log has erased, and which are erased now.
    pub erased_count: u64,
    /// Tasks of which something is erased, and to which new content was appended.
    pub after_erasure_count: u64,
    /// Some of these tasks.
    pub after_erasure: Vec<(Product, TaskId)>,
}

impl AppendSummary {
    /// The log is what the backup has.
    pub(super) fn is_nothing(&self) -> bool {
        self.event_count + self.quarantine_count + self.erased_count == 0
    }
}

/// What is done while a broker runs on the other directory.
#[derive(Clone, Copy)]
pub enum WhenRunning<'a> {
    /// It is refused, before anything is restored.
    Refuse,
    /// It may run until the backup is restored; then this says so, and it is waited for.
    Wait(&'a dyn Fn()),
}

/// A copy of another data directory, opened.
pub(super) struct Other {
    store: Store,
    /// What it is a copy of.
    path: PathBuf,
}

/// Another data directory whose broker is stopped, and cannot be started as long as this is held.
pub(super) struct Stopped {
    path: PathBuf,
    _lock: File,
}

impl Stopped {
    /// Refuses one that a broker runs on.
    pub(super) fn hold(path: &Path) -> Result<Self, AppendError> {
        Ok(Self {
            path: path.into(),
            _lock: locked(path)?,
        })
    }

    /// Waits until no broker runs on it; says so once if it has to.
    pub(super) fn wait(path: &Path, tell: &dyn Fn()) -> Result<Self, AppendError> {
        let mut has_told = false;
        loop {
            match Self::hold(path) {
                Err(AppendError::Running(_)) => {
                    if !std::mem::replace(&mut has_told, true) {
                        tell();
                    }
                    thread::sleep(LOOK_AGAIN);
                }
                held => return held,
            }
        }
    }

    /// Keeps brokers from starting on it, as all that it has is in the log at `to` now; durable when this returns.
    pub(super) fn mark_used_up(&self, to: &Path) -> Result<(), AppendError> {
        let marked = std::path::absolute(to).and_then(|to| {
            files::replace_private(&self.path, USED_UP, to.as_os_str().as_bytes())?;
            File::open(&self.path)?.sync_all()
        });
        marked.map_err(|source| AppendError::Mark {
            path: self.path.join(USED_UP),
            source,
        })
    }

    /// Takes that back: nothing was restored.
    pub(super) fn unmark(&self) {
        let path = self.path.join(USED_UP);
        let removed = fs::remove_file(&path).and_then(|()| File::open(&self.path)?.sync_all());
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, path = %path.display(), "cannot remove it: remove it before a broker is started there");
        }
    }

    /// Copies it into the directory at `to`, and opens the copy.
    pub(super) fn copy(&self, to: &Path) -> Result<Other, AppendError> {
        let path = &self.path;
        let copied = |source| AppendError::Copy {
            path: path.clone(),
            source,
        };
        let copy = to.join(APPEND_COPY);
        fs::create_dir(&copy).map_err(copied)?;
        for entry in fs::read_dir(path).map_err(copied)? {
            let entry = entry.map_err(copied)?;
            let name = entry.file_name();
            if directory::is_part(&name) && name != USED_UP {
                // A part may lie on another disk, behind a link.
                let from = entry.path().canonicalize().map_err(copied)?;
                copy_all(&from, &copy.join(name)).map_err(copied)?;
            }
        }

        let store = Store::open(&copy, CACHE_BYTES).map_err(|error| match error {
            OpenError::Format { found, .. } => AppendError::Format {
                path: path.clone(),
                found,
            },
            OpenError::Corrupt { problem, .. } => AppendError::Damaged {
                path: path.clone(),
                problem,
            },
            OpenError::Io { source, .. } => AppendError::Copy {
                path: path.clone(),
                source,
            },
            other => AppendError::Damaged {
                path: path.clone(),
                problem: other.to_string(),
            },
        })?;
        Ok(Other {
            store,
            path: path.clone(),
        })
    }
}

impl Other {
    /// Adds all of it to a store that nobody else writes to.
    pub(super) fn append_to(&self, store: &Arc<Store>) -> Result<AppendSummary, RestoreError> {
        // The broker forgets what is too old when it starts.
        let (_, mut writer) = writer(
            Arc::clone(store),
            Retention::KEEP_ALL,
            |_: &[Record]| {},
            Arc::default(),
        );
        let mut before = Before::new(store, &self.store);
        let correction = lock(&self.store.totals).correction;
        let (mut appending, mut pending) = (
            Appending::new(store, &mut writer),
            Pending::new(&self.store),
        );
        while let Some(next) = pending.next().map_err(|error| self.damaged(&error))? {
            match next {
                Next::Event(record) => {
                    let (imported, known) = self
                        .imported(&record)
                        .map_err(|error| self.damaged(&error))?;
                    appending.event(&record, imported, &known, &mut before)?;
                }
                Next::Quarantined(callback) => {
                    if before
                        .has_quarantined(&callback)
                        .map_err(|error| not_written(&error))?
                    {
                        appending.summary.quarantine_duplicate_count += 1;
                        continue;
                    }
                    let Quarantined {
                        number,
                        mut header,
                        body,
                        ..
                    } = callback;
                    header.received_at_micros =
                        correction.of_quarantined(number, header.received_at_micros);
                    let bytes = body.len();
                    appending.add(
                        Import::Quarantined(Box::new(NewQuarantined { header, body })),
                        bytes,
                    )?;
                }
            }
        }
        appending.flush()?;
        Ok(appending.into_summary())
    }

    fn damaged(&self, error: &ReadError) -> RestoreError {
        AppendError::Damaged {
            path: self.path.clone(),
            problem: error.to_string(),
        }
        .into()
    }

    /// An event as its callback was, with what the log has made of it; and what its index has of the task.
    fn imported(&self, record: &Record) -> Result<(Imported, Vec<TaskEvent>), ReadError> {
        let task_id =
            TaskId::parse(record.task_id()).map_err(|_| Damaged("task id of an event"))?;
        let product =
            Product::parse(record.product()).map_err(|_| Damaged("product of an event"))?;
        let known = self.store.tasks.get::<ReadError>(&task_id)?;
        let (event_id, fingerprint) = self.identity(record, &known)?;
        let correction = lock(&self.store.totals).correction;
        let imported = Imported {
            log_time_micros: correction.of_event(record.sequence(), record.log_time_micros()),
            is_erased: record.is_erased(),
            draft: Draft {
                event_id,
                product,
                task_id,
                status: record.status(),
                fingerprint,
                received_at_micros: record.received_at_micros(),
                labels: record.labels(),
                event: Bytes::copy_from_slice(record.event()),
                raw: Bytes::copy_from_slice(record.raw()),
                lacks_output: false,
                conceals_duplicates: false,
                origin: None,
            },
        };
        Ok((imported, known))
    }

    /// What tells a repetition. The index has it, but for some of very many terminal events of a task; of those the log has it, unless
    /// they came from a backup. What neither has repeats nothing but itself.
    fn identity(
        &self,
        record: &Record,
        known: &[TaskEvent],
    ) -> Result<(Uuid, Fingerprint), ReadError> {
        if let Some(event) = known
            .iter()
            .find(|event| event.sequence == record.sequence())
        {
            return Ok((event.event_id, event.fingerprint));
        }
        let (event_id, fingerprint) = self.store.log.identity(record.sequence())?;
        let is_told = fingerprint != Fingerprint::default();
        Ok((
            event_id,
            if is_told {
                fingerprint
            } else {
                Fingerprint::of_bytes(record.bytes())
            },
        ))
    }
}

/// Takes the lock of a data directory, as a broker does; it is only read.
fn locked(path: &Path) -> Result<File, AppendError> {
    let file = match File::open(path.join(LOCK)) {
        Ok(file) if path.join(LOG).is_dir() => file,
        Ok(_) => return Err(AppendError::NoLog(path.into())),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Err(AppendError::NoLog(path.into()));
        }
        Err(source) => {
            return Err(AppendError::Copy {
                path: path.into(),
                source,
            });
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AppendError::Running(path.into())),
        Err(TryLockError::Error(source)) => Err(AppendError::Copy {
            path: path.into(),
            source,
        }),
    }
}

/// Refuses what can never be appended, as far as that can be told while a broker may run on it.
pub(super) fn check_usable(other: &Path) -> Result<(), AppendError> {
    if other.join(directory::UNFINISHED).symlink_metadata().is_ok() {
        return Err(AppendError::Unfinished(other.into()));
    }
    match locked(other) {
        Err(AppendError::Running(_)) => Ok(()),
        looked => looked.map(drop),
    }
}

/// Refuses a directory without a log, and a place where restoring would write into what is to be read.
pub(super) fn check_apart(path: &Path, other: &Path) -> Result<(), AppendError> {
    let Ok(whole_other) = other.canonicalize() else {
        return Err(AppendError::NoLog(other.into()));
    };
    if !whole_other.join(LOG).is_dir() {
        return Err(AppendError::NoLog(other.into()));
    }
    let whole = std::path::absolute(path).map_err(|source| AppendError::Copy {
        path: other.into(),
        source,
    })?;
    // What is not there yet will be in the first of these that is.
    let there = whole
        .ancestors()
        .find_map(|ancestor| ancestor.canonicalize().ok());
    if there.is_some_and(|there| there.starts_with(whole_other)) {
        return Err(AppendError::Within(path.into(), other.into()));
    }
    Ok(())
}

/// Regular files and folders. Nothing else is a log's.
fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_file() {
        fs::copy(from, to)?;
    } else if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_all(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// What is next in time.
enum Next {
    Event(Record),
    Quarantined(Quarantined),
}

/// What is still to be read of a log: its events and its quarantine, each in order, and both together in the order in which they came.
struct Pending<'a> {
    store: &'a Store,
    events: super::log::Events,
    event: Option<Record>,
    quarantined: std::vec::IntoIter<Quarantined>,
    callback: Option<Quarantined>,
    /// Behind this number the quarantine was not read.
    read_to: u64,
}

impl<'a> Pending<'a> {
    fn new(store: &'a Store) -> Self {
        let events = store.log.events(store.first_available()..=store.head());
        Self {
            store,
            events,
            event: None,
            quarantined: Vec::new().into_iter(),
            callback: None,
            read_to: 0,
        }
    }

    fn next(&mut self) -> Result<Option<Next>, ReadError> {
        if self.event.is_none() {
            self.event = self.events.next().transpose()?;
        }
        if self.callback.is_none() {
            self.callback = self.next_quarantined()?;
        }
        let correction = lock(&self.store.totals).correction;
        let is_callback_first = match (&self.event, &self.callback) {
            (Some(event), Some(callback)) => {
                let Quarantined { number, header, .. } = callback;
                let received = correction.of_quarantined(*number, header.received_at_micros);
                received < correction.of_event(event.sequence(), event.log_time_micros())
            }
            (None, _) => true,
            (_, None) => false,
        };
        Ok(if is_callback_first {
            self.callback.take().map(Next::Quarantined)
        } else {
            self.event.take().map(Next::Event)
        })
    }

    fn next_quarantined(&mut self) -> Result<Option<Quarantined>, ReadError> {
        if let Some(next) = self.quarantined.next() {
            return Ok(Some(next));
        }
        let page = self
            .store
            .quarantined_after(self.read_to, QUARANTINE_PAGE, GROUP_BYTES_MAX)?;
        if let Some(last) = page.last() {
            self.read_to = last.number;
        }
        self.quarantined = page.into_iter();
        Ok(self.quarantined.next())
    }
}

/// Adds to a store, in groups.
struct Appending<'a, P> {
    store: &'a Store,
    writer: &'a mut Writer<P>,
    group: Vec<Import>,
    group_bytes: usize,
    /// Of the events of the group, in their order: the task, if something of it is erased and this one is not.
    group_after_erasure: Vec<Option<(Product, TaskId)>>,
    /// Tasks of which the backup has nothing any more that could be read.
    erased: HashSet<(Product, TaskId)>,
    after_erasure: HashSet<(Product, TaskId)>,
    summary: AppendSummary,
}

impl<'a, P: super::Publish> Appending<'a, P> {
    fn new(store: &'a Store, writer: &'a mut Writer<P>) -> Self {
        Self {
            store,
            writer,
            group: Vec::new(),
            group_bytes: 0,
            group_after_erasure: Vec::new(),
            erased: HashSet::new(),
            after_erasure: HashSet::new(),
            summary: AppendSummary::default(),
        }
    }

    /// `known`: what the index of the other log has of the event's task.
    fn event(
        &mut self,
        record: &Record,
        imported: Imported,
        known: &[TaskEvent],
        before: &mut Before<'_>,
    ) -> Result<(), RestoreError> {
        let Draft {
            product,
            task_id,
            event,
            raw,
            fingerprint,
            ..
        } = &imported.draft;
        let task = (product.clone(), task_id.clone());
        if imported.is_erased && self.erased.insert(task.clone()) {
            self.erase(product, task_id)?;
        }
        let restored = self
            .store
            .tasks
            .get::<ReadError>(task_id)
            .map_err(|error| not_written(&error))?;
        if before
            .has_event(record, *fingerprint, [known, &restored])
            .map_err(|error| not_written(&error))?
        {
            self.summary.duplicate_count += 1;
            return Ok(());
        }

        let was_erased = self.erased.contains(&task)
            || restored
                .iter()
                .any(|event| event.is_erased && event.product == *product);
        self.group_after_erasure
            .push((was_erased && !imported.is_erased).then_some(task));
        let bytes = event.len() + raw.len();
        self.add(Import::Event(Box::new(imported)), bytes)
    }

    fn into_summary(self) -> AppendSummary {
        let after_erasure_count = self.after_erasure.len() as u64;
        let after_erasure = self
            .after_erasure
            .into_iter()
            .take(TASKS_NAMED_MAX)
            .collect();
        AppendSummary {
            after_erasure_count,
            after_erasure,
            ..self.summary
        }
    }

    fn add(&mut self, import: Import, bytes: usize) -> Result<(), RestoreError> {
        self.group.push(import);
        self.group_bytes += bytes;
        if self.group.len() >= GROUP_MAX || self.group_bytes >= GROUP_BYTES_MAX {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<(), RestoreError> {
        if self.group.is_empty() {
            return Ok(());
        }
        self.group_bytes = 0;
        let taken = self
            .writer
            .import(std::mem::take(&mut self.group))
            .map_err(|error| not_written(&error))?;
        for (is_new, after_erasure) in taken
            .are_new
            .into_iter()
            .zip(std::mem::take(&mut self.group_after_erasure))
        {
            let count = if is_new {
                &mut self.summary.event_count
            } else {
                &mut self.summary.duplicate_count
            };
            *count += 1;
            self.after_erasure.extend(after_erasure.filter(|_| is_new));
        }
        self.summary.quarantine_count += taken.quarantined;
        // Otherwise a start would have to replay all of it.
        if self
            .store
            .log
            .needs_checkpoint(self.store.first_available())
        {
            self.store
                .checkpoint()
                .map_err(|error| not_written(&format!("{error:?}")))?;
        }
        Ok(())
    }

    /// Erases all that is there of a task which the other log has erased.
    fn erase(&mut self, product: &Product, task_id: &TaskId) -> Result<(), RestoreError> {
        self.flush()?;
        let places = self
            .store
            .places_of_task(task_id, product)
            .map_err(|error| not_written(&error))?;
        for places in places.chunks(ERASURE_PLACES_MAX) {
            let erasure = Erasure {
                task_id: task_id.clone(),
                product: product.clone(),
                places: places.to_vec(),
            };
            let erased = self
                .writer
                .erase(erasure)
                .map_err(|error| not_written(&error))?;
            self.summary.erased_count += u64::from(erased.events);
        }
        Ok(())
    }
}

fn not_written(problem: &impl ToString) -> RestoreError {
    AppendError::Write(problem.to_string()).into()
}
