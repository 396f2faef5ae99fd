//! A backup as a gRPC stream. Each chunk is read off the async threads, and no more than one ahead of the client.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_stream::Stream;
use tonic::Status;

use super::{access::Caller, errors};
use crate::{
    store::{Backup, BackupSummary, ReadError},
    subscription::Sources,
    wire::v1,
};

type Reading = JoinHandle<(Backup, Result<Option<Bytes>, ReadError>)>;

/// The body of a `Backup` call.
#[derive(Debug)]
pub struct BackupStream {
    context: super::Context,
    caller: Caller,
    /// None behind the last message.
    reading: Option<Reading>,
}

impl BackupStream {
    pub(super) fn new(context: super::Context, caller: Caller, backup: Backup) -> Self {
        Self { context, caller, reading: Some(read(backup)) }
    }

    fn message(&mut self, backup: Backup, chunk: Option<Bytes>) -> v1::BackupResponse {
        match chunk {
            Some(chunk) => {
                self.reading = Some(read(backup));
                v1::BackupResponse { chunk, summary: None }
            }
            None => {
                let summary = summary(&self.context.sources, &backup.summary());
                v1::BackupResponse { chunk: Bytes::new(), summary: Some(summary) }
            }
        }
    }
}

fn read(mut backup: Backup) -> Reading {
    spawn_blocking(move || {
        let chunk = backup.next_chunk();
        (backup, chunk)
    })
}

fn summary(sources: &Arc<Sources>, summary: &BackupSummary) -> v1::BackupSummary {
    let BackupSummary { event_count, quarantine_count, head, backup_bytes } = *summary;
    v1::BackupSummary { event_count, quarantine_count, head: sources.store.cursor(head).to_string(), backup_bytes }
}

impl Stream for BackupStream {
    type Item = Result<v1::BackupResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let joined = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        let message = self.context.gate.review_backup(&self.caller).and_then(|()| {
            // Only a runtime that shuts down cancels a read; a panic has ended the process.
            let (backup, chunk) = joined.map_err(|_| errors::draining())?;
            let chunk = chunk.map_err(|error| errors::read(&self.context.sources, &error))?;
            Ok(self.message(backup, chunk))
        });
        Poll::Ready(Some(message))
    }
}
