//! `Backup`: a stream. Each chunk is read off the async threads when the client has read the one before. A backup whose client reads
//! nothing for too long is ended: while it is open, expired segments stay on the disk.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    runtime::Handle,
    task::{JoinHandle, spawn_blocking},
};
use tokio_stream::Stream;
use tonic::Status;

use super::{access::Caller, answers::Granted, errors};
use crate::{
    audit::{self, Entry},
    budget::Shelf,
    store::{Backup, BackupResult, BackupSummary, QuarantineDamage, ReadError},
    subscription::Sources,
    wire::{Reason, v1},
};

type Reading = JoinHandle<(OpenBackup, Result<Option<Bytes>, ReadError>)>;

/// An open backup, and its place among the open ones.
#[derive(Debug)]
struct OpenBackup {
    backup: Backup,
    _place: Granted,
}

/// What a backup waits for.
#[derive(Debug)]
enum State {
    /// The client has to read the last chunk. A backup that stays shelved for too long is dropped.
    Shelved(Shelf<OpenBackup>),
    Reading(Reading),
    /// Nothing: the last message was sent.
    Over,
}

/// A backup from its request to its end. Its result is counted, logged, and kept over a restart.
#[derive(Debug)]
pub(super) struct Begun {
    context: super::Context,
    at: Timestamp,
    is_over: bool,
}

impl Begun {
    /// Notes its beginning, before anything is sent.
    pub(super) async fn note(context: &super::Context) -> Self {
        let begun = Self {
            context: context.clone(),
            at: context.gate.clock.now(),
            is_over: false,
        };
        let sources = Arc::clone(&context.sources);
        // Before the wait: the call may end meanwhile, and then its end is noted.
        sources.store.backup_results().begin(begun.at);
        // Only a runtime that shuts down cancels this.
        let _ = spawn_blocking(move || sources.store.backup_results().save())
            .await
            .is_ok();
        begun
    }

    /// Notes that it was refused.
    pub(super) fn refused(mut self) {
        self.end(0, BackupResult::Refused);
    }

    fn end(&mut self, bytes: u64, result: BackupResult) {
        if mem::replace(&mut self.is_over, true) {
            return;
        }
        let (begun, now) = (self.at, self.context.gate.clock.now());
        let (word, seconds) = (
            result.as_str(),
            now.as_second().saturating_sub(begun.as_second()),
        );

        self.context
            .gate
            .metrics
            .backups_finished
            .with_label_values(&[word])
            .inc();

        if result == BackupResult::Ok {
            tracing::info!(bytes, seconds, "a backup is whole");
        } else {
            tracing::warn!(
                result = word,
                bytes,
                seconds,
                "a backup has failed: take another one"
            );
        }

        let sources = Arc::clone(&self.context.sources);
        let note = move || {
            sources
                .store
                .backup_results()
                .end(begun, now, bytes, result);
        };

        // If the broker stops before this is noted, the next start finds the backup open and counts it as interrupted.
        let _ = Handle::try_current()
            .map(|runtime| drop(runtime.spawn_blocking(note)))
            .is_ok();
    }

    /// Notes that it ended before all was sent.
    fn cut_off(&mut self, bytes: u64) {
        let is_stopping = self.context.sources.hub.is_closing();
        self.end(
            bytes,
            if is_stopping {
                BackupResult::Stopped
            } else {
                BackupResult::Abandoned
            },
        );
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.cut_off(0);
    }
}

/// The result of a backup that ended with this status.
fn failure(status: &Status) -> BackupResult {
    match Reason::of(status) {
        Some(Reason::AnswerStalled) => BackupResult::Stalled,
        Some(Reason::LogCorrupt) => BackupResult::Damaged,
        Some(Reason::TokenInvalid | Reason::AdminDenied | Reason::ProductDenied) => {
            BackupResult::Withdrawn
        }
        Some(Reason::Draining) => BackupResult::Stopped,
        _ => BackupResult::Failed,
    }
}

/// The stream of a `Backup` call.
#[derive(Debug)]
pub(crate) struct BackupStream {
    context: super::Context,
    caller: Caller,
    state: State,
    /// `None` once the end is recorded. A backup that is dropped before its end was abandoned.
    record: Option<Entry>,
    begun: Begun,
    backup_bytes: u64,
}

impl BackupStream {
    pub(super) fn new(
        context: super::Context,
        caller: Caller,
        (backup, place): (Backup, Granted),
        record: Entry,
        begun: Begun,
    ) -> Self {
        let state = State::Reading(read(OpenBackup {
            backup,
            _place: place,
        }));
        Self {
            context,
            caller,
            state,
            record: Some(record),
            begun,
            backup_bytes: 0,
        }
    }

    fn message(&mut self, open: OpenBackup, chunk: Option<Bytes>) -> v1::BackupResponse {
        match chunk {
            Some(chunk) => {
                self.backup_bytes += chunk.len() as u64;
                self.state = State::Shelved(self.context.answers.put_away(open));
                v1::BackupResponse {
                    chunk,
                    summary: None,
                }
            }
            None => {
                let summary = summary(&self.context.sources, &open.backup.summary());
                if let Some(damage) = open.backup.damage() {
                    self.tell_damage(damage);
                }
                if let Some(record) = &mut self.record {
                    record.note("event_count", summary.event_count);
                    record.note("quarantine_count", summary.quarantine_count);
                }
                self.end(audit::OK);
                self.begun.end(self.backup_bytes, BackupResult::Ok);
                v1::BackupResponse {
                    chunk: Bytes::new(),
                    summary: Some(summary),
                }
            }
        }
    }

    /// The backup is whole without them: to have none at all because of them would be worse.
    fn tell_damage(&mut self, damage: &QuarantineDamage) {
        let QuarantineDamage { count, problem } = damage;
        self.context.sources.metrics.log_damage_met.inc_by(*count);
        tracing::error!(
            count,
            problem,
            "quarantined callbacks are damaged in the log, and are not in the backup: `blobcast quarantine list` shows which"
        );
        if let Some(record) = &mut self.record {
            record.note("quarantine_damaged_count", *count);
        }
    }

    /// Records its end. Nothing waits for that record: the beginning was recorded before anything was sent.
    fn end(&mut self, result: &str) {
        if let Some(mut record) = self.record.take() {
            record.note("backup_bytes", self.backup_bytes);
            record.end_now(result);
        }
    }

    fn fail(&mut self, status: &Status) {
        self.end(&errors::word(status));
        self.begun.end(self.backup_bytes, failure(status));
    }
}

impl Drop for BackupStream {
    fn drop(&mut self) {
        // The client may disconnect long after the backup has stalled.
        let is_stalled = match mem::replace(&mut self.state, State::Over) {
            State::Shelved(shelf) => shelf.take().is_none(),
            State::Reading(_) | State::Over => false,
        };
        self.end(audit::ABANDONED);
        if is_stalled {
            self.begun.end(self.backup_bytes, BackupResult::Stalled);
        }
        self.begun.cut_off(self.backup_bytes);
    }
}

fn read(mut open: OpenBackup) -> Reading {
    spawn_blocking(move || {
        let chunk = open.backup.next_chunk();
        (open, chunk)
    })
}

fn summary(sources: &Arc<Sources>, summary: &BackupSummary) -> v1::BackupSummary {
    let BackupSummary {
        event_count,
        quarantine_count,
        head,
        backup_bytes,
    } = *summary;
    v1::BackupSummary {
        event_count,
        quarantine_count,
        head: sources.store.cursor(head).to_string(),
        backup_bytes,
    }
}

impl Stream for BackupStream {
    type Item = Result<v1::BackupResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let State::Shelved(_) = self.state
            && let State::Shelved(shelf) = mem::replace(&mut self.state, State::Over)
        {
            let Some(open) = shelf.take() else {
                let stalled = self.context.answers.stalled();
                self.fail(&stalled);
                return Poll::Ready(Some(Err(stalled)));
            };
            self.state = State::Reading(read(open));
        }

        let State::Reading(reading) = &mut self.state else {
            return Poll::Ready(None);
        };
        let joined = ready!(Pin::new(reading).poll(cx));
        self.state = State::Over;
        let message = self
            .context
            .gate
            .review_backup(&self.caller)
            .and_then(|()| {
                // Only a runtime that shuts down cancels a read; a panic has ended the process.
                let (open, chunk) = joined.map_err(|_| errors::draining())?;
                let chunk = chunk.map_err(|error| errors::read(&self.context.sources, &error))?;
                Ok(self.message(open, chunk))
            });

        if let Err(status) = &message {
            self.fail(status);
        }
        Poll::Ready(Some(message))
    }
}
