//! Log lines about streams: opening, falling behind, stalling, losing events, ending, and damage that a read has met.
//!
//! Never a line about an event: a healthy stream has two lines, at its start and at its end. The lines of each client are limited,
//! because a client that reconnects in a loop must not crowd out the lines of others.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{credentials::Client, event::Sequence, metrics::Metrics, printable::printable};

/// Most lines of one kind about one client in an interval. The next line tells how many were left out. Enough for a service that
/// reconnects all of its streams once.
const LINES_MAX: u64 = 100;
const INTERVAL: Duration = Duration::from_secs(60);

/// The reader of a stream: its authenticated client, the name it gave itself, and its address.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamReader<'a> {
    pub client: Option<&'a Arc<Client>>,
    /// The name that the client gave itself in the request.
    pub client_name: &'a str,
    pub peer: &'a str,
}

impl StreamReader<'_> {
    fn client(&self) -> Option<&str> {
        self.client.map(|client| &*client.name)
    }
}

/// The numbers that the last line about a stream gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamSummary<'a> {
    pub subscription_id: &'a str,
    pub cause: &'static str,
    pub position: Sequence,
    pub lag: u64,
    pub delivered: u64,
    pub open_seconds: i64,
}

/// A stream and its position in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamPlace<'a> {
    pub reader: StreamReader<'a>,
    pub subscription_id: &'a str,
    pub position: Sequence,
    pub lag: u64,
}

/// Writes a line about a stream if it is due. A macro, because the level of a line has to be a constant.
macro_rules! stream_line {
    ($level:ident, $unlogged:expr, $at:expr, $message:literal) => {
        if let Some(unlogged) = $unlogged {
            let StreamPlace {
                reader,
                subscription_id,
                position: Sequence(position),
                lag,
            } = *$at;
            let (client, name, peer) =
                (reader.client(), printable(reader.client_name), reader.peer);
            tracing::$level!(
                client,
                client_name = &*name,
                peer,
                subscription_id,
                position,
                lag,
                unlogged,
                $message
            );
        }
    };
}

/// The lines of one kind about one client in the current interval, and those left out since the last line.
#[derive(Debug)]
struct RateWindow {
    began: Instant,
    lines: u64,
    unlogged: u64,
}

/// By kind of line and client.
type RateWindows = HashMap<(&'static str, Option<Arc<str>>), RateWindow>;

/// Writes the lines, and counts them for the limits.
#[derive(Debug, Default)]
pub(super) struct StreamLog(Mutex<RateWindows>);

impl StreamLog {
    /// The number of lines left out before this one; `None` if this one is left out too.
    fn due(&self, kind: &'static str, reader: &StreamReader<'_>) -> Option<u64> {
        self.due_at(kind, reader, Instant::now())
    }

    fn due_at(&self, kind: &'static str, reader: &StreamReader<'_>, now: Instant) -> Option<u64> {
        let key = (kind, reader.client.map(|client| Arc::clone(&client.name)));
        let mut windows = self.0.lock();
        let window = windows.entry(key).or_insert(RateWindow {
            began: now,
            lines: 0,
            unlogged: 0,
        });
        if now.duration_since(window.began) >= INTERVAL {
            (window.began, window.lines) = (now, 0);
        }
        window.lines += 1;
        if window.lines > LINES_MAX {
            window.unlogged += 1;
            return None;
        }
        Some(std::mem::take(&mut window.unlogged))
    }

    pub(super) fn subscribed(&self, at: &StreamPlace<'_>) {
        stream_line!(info, self.due("subscribed", &at.reader), at, "subscribed");
    }

    pub(super) fn ended(&self, reader: &StreamReader<'_>, ended: StreamSummary<'_>) {
        let StreamSummary {
            subscription_id,
            cause,
            position: Sequence(position),
            lag,
            delivered,
            open_seconds,
        } = ended;
        let Some(unlogged) = self.due("ended", reader) else {
            return;
        };

        let (client, name, peer) = (reader.client(), printable(reader.client_name), reader.peer);
        tracing::info!(
            client,
            client_name = &*name,
            peer,
            subscription_id,
            cause,
            position,
            lag,
            delivered,
            open_seconds,
            unlogged,
            "subscription ended"
        );
    }

    pub(super) fn fell_behind(&self, at: &StreamPlace<'_>) {
        stream_line!(
            info,
            self.due("fell_behind", &at.reader),
            at,
            "subscription fell behind: it reads more slowly than events arrive, and continues from the log"
        );
    }

    pub(super) fn stands_still(&self, at: &StreamPlace<'_>) {
        stream_line!(
            warn,
            self.due("stands_still", &at.reader),
            at,
            "subscription stands still: its client is connected but reads nothing; check that service"
        );
    }

    pub(super) fn reads_again(&self, at: &StreamPlace<'_>) {
        stream_line!(
            info,
            self.due("reads_again", &at.reader),
            at,
            "subscription reads again"
        );
    }

    /// Reports that a read has met a damaged part of the log. The limit is shared by all readers.
    pub(super) fn damaged(&self, problem: &str) {
        let everybody = StreamReader {
            client: None,
            client_name: "",
            peer: "",
        };
        let Some(unlogged) = self.due("damaged", &everybody) else {
            return;
        };
        tracing::error!(
            problem,
            unlogged,
            "a part of the log is damaged: stop the broker, copy its data directory, and check the disk before anything else is \
             written; then restore the last backup"
        );
    }

    /// Counts and logs that a client has missed the events between two places. These are places of the whole log; fewer of the events
    /// may match the client's filter.
    pub(super) fn lost(
        &self,
        reader: &StreamReader<'_>,
        kind: &'static str,
        after: Sequence,
        through: Sequence,
        metrics: &Metrics,
    ) {
        metrics
            .losses
            .with_label_values(&[reader.client().unwrap_or_default(), kind])
            .inc();
        let Some(unlogged) = self.due("lost", reader) else {
            return;
        };

        let (client, name, peer) = (reader.client(), printable(reader.client_name), reader.peer);
        let (after, through) = (after.0, through.0);
        tracing::warn!(
            client,
            client_name = &*name,
            peer,
            kind,
            after,
            through,
            unlogged,
            "events were forgotten before this client had read them: ask the vendor for what it missed, and raise \
             log.retention_age_max or log.retention_bytes_max above its longest outage"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_client_that_reconnects_in_a_loop_are_limited() {
        let log = StreamLog::default();
        let (reader, began) = (
            StreamReader {
                client: None,
                client_name: "loop",
                peer: "",
            },
            Instant::now(),
        );
        let due = |kind, after| log.due_at(kind, &reader, began + after);
        assert!((0..LINES_MAX).all(|_| due("ended", Duration::ZERO) == Some(0)));
        assert!((0..5).all(|_| due("ended", INTERVAL - Duration::from_millis(1)).is_none()));
        assert_eq!(due("subscribed", Duration::ZERO), Some(0), "another kind");
        assert_eq!(
            (due("ended", INTERVAL), due("ended", INTERVAL)),
            (Some(5), Some(0))
        );
    }
}
