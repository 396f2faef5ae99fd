//! A backup as a gRPC stream. Each chunk is read off the async threads when the client has taken the one before. If the client
//! takes nothing for too long, the backup is ended: as long as it is open, the disk keeps what retention forgets.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_stream::Stream;
use tonic::Status;

use super::{access::Caller, answers::Granted, errors};
use crate::{
    budget::Shelf,
    store::{Backup, BackupSummary, ReadError},
    subscription::Sources,
    wire::v1,
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

/// The body of a `Backup` call.
#[derive(Debug)]
pub struct BackupStream {
    context: super::Context,
    caller: Caller,
    state: State,
}

impl BackupStream {
    pub(super) fn new(context: super::Context, caller: Caller, backup: Backup, place: Granted) -> Self {
        let state = State::Reading(read(InTheMaking { backup, _place: place }));
        Self { context, caller, state }
    }

    fn message(&mut self, making: InTheMaking, chunk: Option<Bytes>) -> v1::BackupResponse {
        match chunk {
            Some(chunk) => {
                self.state = State::PutAway(self.context.answers.put_away(making));
                v1::BackupResponse { chunk, summary: None }
            }
            None => {
                let summary = summary(&self.context.sources, &making.backup.summary());
                v1::BackupResponse { chunk: Bytes::new(), summary: Some(summary) }
            }
        }
    }
}

fn read(mut making: InTheMaking) -> Reading {
    spawn_blocking(move || {
        let chunk = making.backup.next_chunk();
        (making, chunk)
    })
}

fn summary(sources: &Arc<Sources>, summary: &BackupSummary) -> v1::BackupSummary {
    let BackupSummary { event_count, quarantine_count, head, backup_bytes } = *summary;
    v1::BackupSummary { event_count, quarantine_count, head: sources.store.cursor(head).to_string(), backup_bytes }
}

impl Stream for BackupStream {
    type Item = Result<v1::BackupResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let State::PutAway(_) = self.state
            && let State::PutAway(shelf) = mem::replace(&mut self.state, State::Over)
        {
            let Some(making) = shelf.take() else {
                return Poll::Ready(Some(Err(self.context.answers.stalled())));
            };
            self.state = State::Reading(read(making));
        }
        let State::Reading(reading) = &mut self.state else { return Poll::Ready(None) };
        let joined = ready!(Pin::new(reading).poll(cx));
        self.state = State::Over;
        let message = self.context.gate.review_backup(&self.caller).and_then(|()| {
            // Only a runtime that shuts down cancels a read; a panic has ended the process.
            let (making, chunk) = joined.map_err(|_| errors::draining())?;
            let chunk = chunk.map_err(|error| errors::read(&self.context.sources, &error))?;
            Ok(self.message(making, chunk))
        });
        Poll::Ready(Some(message))
    }
}
