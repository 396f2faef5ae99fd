//! A backup as a gRPC stream. Each chunk is read off the async threads when the client has taken the one before. If the client
//! takes nothing for too long, the backup is ended: as long as it is open, the disk keeps what retention forgets.

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
    store::{Backup, BackupResult, BackupSummary, ReadError},
    subscription::Sources,
    wire::{Reason, v1},
};

type Reading = JoinHandle<(InTheMaking, Result<Option<Bytes>, ReadError>)>;

/// A backup, and its place among those that are open.
#[derive(Debug)]
struct InTheMaking {
    backup: Backup,
    _place: Granted,
}

/// Where a backup is.
#[derive(Debug)]
enum State {
    /// Until the client has taken what was read; it may not come back.
    PutAway(Shelf<InTheMaking>),
    Reading(Reading),
    /// Behind the last message.
    Over,
}

/// A backup that somebody has asked for, until it has ended: what becomes of it is counted, logged, and kept over a restart.
#[derive(Debug)]
pub(super) struct Begun {
    context: super::Context,
    at: Timestamp,
    is_over: bool,
}

impl Begun {
    /// Notes that it begins, before anything is sent.
    pub(super) async fn note(context: &super::Context) -> Self {
        let begun = Self {
            context: context.clone(),
            at: context.gate.clock.now(),
            is_over: false,
        };
        let sources = Arc::clone(&context.sources);
        // Before the wait, during which the call may end: its end has to find it.
        sources.store.backup_results().begin(begun.at);
        // Only a runtime that shuts down cancels it.
        let _ = spawn_blocking(move || sources.store.backup_results().save())
            .await
            .is_ok();
        begun
    }

    /// Notes that it did not begin.
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
                .end(begun, now, bytes, result)
        };
        // What is not noted because the broker ends is found open by the next start, and has failed, too.
        let _ = Handle::try_current()
            .map(|runtime| drop(runtime.spawn_blocking(note)))
            .is_ok();
    }

    /// Ends it before all was sent.
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

/// The body of a `Backup` call.
#[derive(Debug)]
pub struct BackupStream {
    context: super::Context,
    caller: Caller,
    state: State,
    /// Until it has ended; a backup that is dropped before was abandoned.
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
        let state = State::Reading(read(InTheMaking {
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

    fn message(&mut self, making: InTheMaking, chunk: Option<Bytes>) -> v1::BackupResponse {
        match chunk {
            Some(chunk) => {
                self.backup_bytes += chunk.len() as u64;
                self.state = State::PutAway(self.context.answers.put_away(making));
                v1::BackupResponse {
                    chunk,
                    summary: None,
                }
            }
            None => {
                let summary = summary(&self.context.sources, &making.backup.summary());
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
}

impl BackupStream {
    /// Records how it has ended. Nobody waits for that here: its begin was recorded before anything was sent.
    fn end(&mut self, result: &str) {
        if let Some(mut record) = self.record.take() {
            record.note("backup_bytes", self.backup_bytes);
            record.end_now(result);
        }
    }
}

impl BackupStream {
    fn fail(&mut self, status: &Status) {
        self.end(&errors::word(status));
        self.begun.end(self.backup_bytes, failure(status));
    }
}

impl Drop for BackupStream {
    fn drop(&mut self) {
        // Its client may go away long after it has taken nothing for too long.
        let is_stalled = match mem::replace(&mut self.state, State::Over) {
            State::PutAway(shelf) => shelf.take().is_none(),
            State::Reading(_) | State::Over => false,
        };
        self.end(audit::ABANDONED);
        if is_stalled {
            self.begun.end(self.backup_bytes, BackupResult::Stalled);
        }
        self.begun.cut_off(self.backup_bytes);
    }
}

fn read(mut making: InTheMaking) -> Reading {
    spawn_blocking(move || {
        let chunk = making.backup.next_chunk();
        (making, chunk)
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
        if let State::PutAway(_) = self.state
            && let State::PutAway(shelf) = mem::replace(&mut self.state, State::Over)
        {
            let Some(making) = shelf.take() else {
                let stalled = self.context.answers.stalled();
                self.fail(&stalled);
                return Poll::Ready(Some(Err(stalled)));
            };
            self.state = State::Reading(read(making));
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
                let (making, chunk) = joined.map_err(|_| errors::draining())?;
                let chunk = chunk.map_err(|error| errors::read(&self.context.sources, &error))?;
                Ok(self.message(making, chunk))
            });
        if let Err(status) = &message {
            self.fail(status);
        }
        Poll::Ready(Some(message))
    }
}
