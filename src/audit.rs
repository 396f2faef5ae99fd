//! The audit trail: a record of each call of `AdminService`, and of each change of credentials,
//! configuration and certificates that the broker applies.
//!
//! A record is a line of the log (target `blobcast::audit`) and, if `audit.file` is set, a line of
//! JSON in that file, which is on disk before the call is answered. This module builds the records
//! and queues them for the server's thread that writes the file. With `audit.required` a call is
//! also recorded before it does anything, and refused if that fails.
//!
//! A record never contains a secret: no token, no signature, no body, no prompt.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, mpsc::SyncSender},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    metrics::Metrics, printable::printable_json, sampler::Sampler, trace::RequestId, wire::Reason,
};

/// Longest queue for the thread that writes the file: more than the calls that run at once. If it
/// is full, a record is lost and counted.
pub(crate) const QUEUE_MAX: usize = 1_024;
/// How long a call waits for its record: a disk takes milliseconds, a busy one some hundred.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);
/// Late records are logged at most this often.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// Denied calls of one client get one record per RPC in this time; the others are counted. A client
/// without the admin right must not be able to fill the disk.
const DENIAL_INTERVAL: Duration = Duration::from_secs(10);
/// If more pairs of client and RPC are remembered, those whose interval is over are dropped.
const DENIALS_KEPT: usize = 1_024;
/// Most characters of one text in a record: the longest useful text is the value of a label.
const TEXT_CHARS_MAX: usize = 256;
/// Most items of one list: the most ids that a call may name.
const TEXTS_MAX: usize = 256;

/// Result of a call whose client disconnected before the answer: it may or may not have had its
/// effect.
pub(crate) const ABANDONED: &str = "abandoned";
/// Result in the record that is written before the call does anything.
const BEGUN: &str = "begun";
/// Result of a call or change that succeeded.
pub(crate) const OK: &str = "ok";
/// Result of a call that did nothing, because its first record was late.
const UNAVAILABLE: &str = Reason::AuditUnavailable.as_str();
/// Result of a change that was not applied.
pub(crate) const REFUSED: &str = "refused";

/// A command for the thread that writes the file.
#[derive(Debug)]
pub(crate) enum Command {
    /// Append this line, and answer whether it is on disk.
    Write(Vec<u8>, oneshot::Sender<bool>),
    /// Open the file anew, or answer why that failed.
    Reopen(oneshot::Sender<Result<(), String>>),
}

/// Why a record may not be on disk.
#[derive(Debug)]
pub(crate) enum Unrecorded {
    /// It could not be written.
    Lost,
    /// It was not written in time, and may be written later.
    Late,
}

/// Writes records to the log and the file.
pub(crate) struct Audit {
    file: Option<SyncSender<Command>>,
    is_required: bool,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    metrics: Arc<Metrics>,
    /// By client and RPC.
    denials: Sampler<(Arc<str>, &'static str)>,
    /// When a late record was logged last.
    warned: Mutex<Option<Instant>>,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit")
            .field("is_required", &self.is_required)
            .finish_non_exhaustive()
    }
}

impl Audit {
    /// Records go to the log and, if given, to `file`. If `is_required`, calls that cannot be
    /// recorded are refused.
    pub(crate) fn new(
        file: Option<SyncSender<Command>>,
        is_required: bool,
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            file,
            is_required,
            now: Box::new(now),
            metrics,
            denials: Sampler::every(DENIAL_INTERVAL).keeping(DENIALS_KEPT),
            warned: Mutex::default(),
        })
    }

    /// Begins a record of `action`.
    pub(crate) fn entry(self: &Arc<Self>, action: &'static str) -> Entry {
        Entry {
            audit: Arc::clone(self),
            action,
            actor: Actor::default(),
            details: Map::new(),
            is_over: false,
        }
    }

    /// Opens the file anew; `None` if there is no file. Waits for [`RECORD_TIMEOUT`] at most.
    pub(crate) async fn reopen(&self) -> Option<Result<(), String>> {
        let file = self.file.as_ref()?;
        let (done, is_done) = oneshot::channel();
        if file.try_send(Command::Reopen(done)).is_err() {
            return Some(Err("too many records are queued for it".to_owned()));
        }
        Some(match timeout(RECORD_TIMEOUT, is_done).await {
            Ok(opened) => {
                opened.unwrap_or_else(|_| Err("the thread that writes it has ended".to_owned()))
            }
            Err(_) => Err(format!(
                "it was not opened within {} s: does its file system hang?",
                RECORD_TIMEOUT.as_secs()
            )),
        })
    }

    /// Waits until all records are on disk, for [`RECORD_TIMEOUT`] at most: for the end of the
    /// process.
    pub(crate) async fn flush(&self) {
        let _ = self.written(Vec::new()).await.is_ok(); // a failure was counted
    }

    /// Queues a line for the file's thread, which answers when it is on disk.
    fn write(&self, line: Vec<u8>) -> Option<oneshot::Receiver<bool>> {
        let is_record = !line.is_empty(); // `flush` sends an empty line
        let (done, is_done) = oneshot::channel();
        let taken = self
            .file
            .as_ref()
            .is_some_and(|file| file.try_send(Command::Write(line, done)).is_ok());
        if !taken && is_record {
            self.metrics
                .audit_records
                .with_label_values(&["lost"])
                .inc();
        }
        taken.then_some(is_done)
    }

    async fn written(&self, line: Vec<u8>) -> Result<(), Unrecorded> {
        if self.file.is_none() {
            return Ok(());
        }
        let is_done = self.write(line).ok_or(Unrecorded::Lost)?;
        match timeout(RECORD_TIMEOUT, is_done).await {
            Ok(Ok(true)) => Ok(()),
            Ok(_) => Err(Unrecorded::Lost), // counted and logged by the thread
            Err(_) => {
                self.metrics
                    .audit_records
                    .with_label_values(&["late"])
                    .inc();
                self.warn_of_late_records();
                Err(Unrecorded::Late)
            }
        }
    }

    fn warn_of_late_records(&self) {
        let mut warned = self.warned.lock();
        if warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            *warned = Some(Instant::now());
            tracing::error!(
                "audit records are not written within {} s: check whether the file system of \
                 audit.file hangs; blobcast_audit_records_total{{result=\"late\"}} counts them",
                RECORD_TIMEOUT.as_secs()
            );
        }
    }
}

/// The caller, as the broker has verified it: nothing that the caller claims about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Actor {
    /// Name of the authenticated client; `None` for anonymous access.
    pub client: Option<Arc<str>>,
    /// The name in the client's certificate, if it authenticated with one.
    pub certificate: Option<String>,
    /// The other end of the connection, which may be a proxy.
    pub peer: Option<SocketAddr>,
    pub request_id: Option<RequestId>,
}

/// A record that is being made. If it is dropped before its end, the record says that its call was
/// abandoned.
#[derive(Debug)]
pub(crate) struct Entry {
    audit: Arc<Audit>,
    action: &'static str,
    actor: Actor,
    details: Map<String, Value>,
    is_over: bool,
}

impl Entry {
    #[must_use]
    pub(crate) fn by(mut self, actor: Actor) -> Self {
        self.actor = actor;
        self
    }

    /// Adds a detail, unless its value is empty. Cuts texts and lists that are too long.
    pub(crate) fn note(&mut self, key: &str, value: impl Into<Value>) {
        let value = bounded(value.into());
        let is_empty = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        if !is_empty {
            self.details.insert(key.to_owned(), value);
        }
    }

    /// With `audit.required`: records that the call begins, and waits until that is on disk. Call
    /// it before the call has any effect.
    pub(crate) async fn begin(self) -> Result<Self, Unrecorded> {
        if self.audit.is_required {
            self.begin_in_any_case().await
        } else {
            Ok(self)
        }
    }

    /// Like [`Entry::begin`], but also records without `audit.required`: for calls that take long.
    /// Fails only with `audit.required`.
    pub(crate) async fn begin_in_any_case(mut self) -> Result<Self, Unrecorded> {
        self.log(BEGUN);
        match self.audit.written(self.line(BEGUN)).await {
            Err(Unrecorded::Lost) if self.audit.is_required => {
                self.is_over = true;
                Err(Unrecorded::Lost)
            }
            // The record may still be written: another one has to say that the call did nothing.
            Err(Unrecorded::Late) if self.audit.is_required => {
                self.finish(UNAVAILABLE);
                Err(Unrecorded::Late)
            }
            _ => Ok(self),
        }
    }

    /// Records the result, and waits until that is on disk. A failure is only counted: the call has
    /// had its effect already.
    pub(crate) async fn end(mut self, result: &str) {
        self.is_over = true;
        self.log(result);
        let _ = self.audit.written(self.line(result)).await.is_ok();
    }

    /// Like [`Entry::end`], without waiting.
    pub(crate) fn end_now(mut self, result: &str) {
        self.finish(result);
    }

    /// Records that the caller is not allowed to do this, at most once in [`DENIAL_INTERVAL`].
    pub(crate) fn deny(mut self, reason: &str) {
        self.is_over = true;
        let Some(client) = &self.actor.client else {
            return;
        };
        if let Some(unrecorded) = self.audit.denials.due((Arc::clone(client), self.action)) {
            if unrecorded > 0 {
                self.note("unrecorded", unrecorded);
            }
            self.finish(reason);
        }
    }

    fn finish(&mut self, result: &str) {
        self.is_over = true;
        self.log(result);
        if self.audit.file.is_some() {
            let _ = self.audit.write(self.line(result)); // without waiting
        }
    }

    fn log(&self, result: &str) {
        let Actor {
            client,
            certificate,
            peer,
            request_id,
        } = &self.actor;
        tracing::info!(
            target: "blobcast::audit",
            action = self.action,
            result,
            client = client.as_deref(),
            certificate = certificate.as_deref(),
            peer = peer.map(tracing::field::display),
            request_id = request_id.map(tracing::field::display),
            details = details_text(&self.details),
            "audit"
        );
    }

    fn line(&self, result: &str) -> Vec<u8> {
        let Actor {
            client,
            certificate,
            peer,
            request_id,
        } = &self.actor;
        let line = Line {
            time: (self.audit.now)().to_string(),
            action: self.action,
            result,
            client: client.as_deref(),
            certificate: certificate.as_deref(),
            peer: peer.map(|peer| peer.to_string()),
            request_id: request_id.map(|id| id.to_string()),
            details: &self.details,
        };
        let json = serde_json::to_string(&line).expect("texts, numbers and lists of them are JSON");
        format!("{}\n", printable_json(&json)).into_bytes()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.is_over {
            self.finish(ABANDONED);
        }
    }
}

/// A record as one JSON object of the file.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    action: &'static str,
    result: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    #[serde(flatten)]
    details: &'a Map<String, Value>,
}

/// The details as one field of the log, whose field names are fixed: `key=value key=value`. Texts
/// other than plain words are quoted and escaped.
fn details_text(details: &Map<String, Value>) -> String {
    let word = |text: &str| {
        let is_plain = !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"\"',=".contains(&b));
        if is_plain {
            text.to_owned()
        } else {
            format!("{text:?}")
        }
    };

    let one = |value: &Value| match value {
        Value::String(text) => word(text),
        other => other.to_string(),
    };

    let value = |value: &Value| match value {
        Value::Array(values) => values.iter().map(one).collect::<Vec<_>>().join(","),
        Value::Object(values) => {
            let pair = |(key, value): (&String, &Value)| format!("{}:{}", word(key), one(value));
            values.iter().map(pair).collect::<Vec<_>>().join(",")
        }
        other => one(other),
    };

    details
        .iter()
        .map(|(key, found)| format!("{key}={}", value(found)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Cuts long texts and lists, so that a record is short whatever the request contains.
fn bounded(value: Value) -> Value {
    let cut = |text: String| match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };

    match value {
        Value::String(text) => Value::String(cut(text)),
        Value::Array(mut values) => {
            let left_out = values.len().saturating_sub(TEXTS_MAX);
            values.truncate(TEXTS_MAX);
            let rest = (left_out > 0).then(|| Value::String(format!("… and {left_out} more")));
            Value::Array(values.into_iter().map(bounded).chain(rest).collect())
        }
        Value::Object(values) => {
            let left_out = values.len().saturating_sub(TEXTS_MAX);
            let rest = (left_out > 0).then(|| {
                (
                    "…".to_owned(),
                    Value::String(format!("and {left_out} more")),
                )
            });
            let kept = values
                .into_iter()
                .take(TEXTS_MAX)
                .map(|(key, value)| (cut(key), bounded(value)));
            kept.chain(rest).collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use serde_json::json;

    use super::*;

    fn audit(is_required: bool) -> (Arc<Audit>, Receiver<Command>) {
        let (file, commands) = sync_channel(QUEUE_MAX);
        (
            Audit::new(
                Some(file),
                is_required,
                || Timestamp::UNIX_EPOCH,
                Arc::default(),
            ),
            commands,
        )
    }

    fn of_client(audit: &Arc<Audit>, name: &str) -> Entry {
        let peer = Some("192.0.2.7:4711".parse().unwrap());
        audit.entry("Discard").by(Actor {
            client: Some(name.into()),
            peer,
            ..Actor::default()
        })
    }

    /// The next record, which the file takes or not.
    fn taken(commands: &Receiver<Command>, is_written: bool) -> Value {
        let Ok(Command::Write(line, done)) = commands.try_recv() else {
            panic!("a record")
        };
        let _ = done.send(is_written);
        assert!(line.ends_with(b"\n"));
        serde_json::from_slice(&line).unwrap()
    }

    fn lost(audit: &Audit) -> u64 {
        audit
            .metrics
            .audit_records
            .with_label_values(&["lost"])
            .get()
    }

    #[test]
    fn a_record_says_who_from_where_what_and_how_it_ended() {
        let (audit, commands) = audit(false);
        let mut entry = of_client(&audit, "ops");
        entry.note("quarantine_ids", vec!["1", "2"]);
        entry.note("count", 2);
        entry.note("product", "");
        entry.end_now(OK);
        let expected = json!({
            "time": "1970-01-01T00:00:00Z", "action": "Discard", "result": "ok", "client": "ops", "peer": "192.0.2.7:4711",
            "quarantine_ids": ["1", "2"], "count": 2,
        });
        assert_eq!(
            taken(&commands, true),
            expected,
            "and nothing that it does not know"
        );
    }

    #[test]
    fn a_call_whose_client_has_disconnected_is_recorded_as_abandoned() {
        let (audit, commands) = audit(false);
        drop(of_client(&audit, "ops"));
        assert_eq!(taken(&commands, true)["result"], "abandoned");
        assert!(commands.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_required_record_is_written_before_the_call_and_else_the_call_is_refused() {
        for (is_written, is_begun) in [(true, true), (false, false)] {
            let (audit, commands) = audit(true);
            let entry = tokio::spawn(of_client(&audit, "ops").begin());
            let (line, done) = loop {
                match commands.try_recv() {
                    Ok(Command::Write(line, done)) => break (line, done),
                    _ => tokio::task::yield_now().await,
                }
            };
            assert!(String::from_utf8(line).unwrap().contains("\"begun\""));
            done.send(is_written).unwrap();
            let entry = entry.await.unwrap();
            assert_eq!(entry.is_ok(), is_begun);
            drop(entry);
            assert_eq!(
                commands.try_recv().is_ok(),
                is_begun,
                "only what was begun can be abandoned"
            );
        }
    }

    #[tokio::test]
    async fn a_late_required_record_is_counted_and_followed_by_one_that_says_that_nothing_was_done()
    {
        let (audit, commands) = audit(true);
        assert!(matches!(
            of_client(&audit, "ops").begin().await,
            Err(Unrecorded::Late)
        ));
        assert_eq!(
            audit
                .metrics
                .audit_records
                .with_label_values(&["late"])
                .get(),
            1
        );
        let results = commands.try_iter().map(|command| match command {
            Command::Write(line, _) => {
                serde_json::from_slice::<Value>(&line).unwrap()["result"].clone()
            }
            Command::Reopen(_) => panic!("nobody asks for that"),
        });
        assert_eq!(results.collect::<Vec<_>>(), ["begun", "AUDIT_UNAVAILABLE"]);
    }

    #[tokio::test]
    async fn without_required_records_a_call_succeeds_although_the_file_fails() {
        let (audit, commands) = audit(false);
        let entry = of_client(&audit, "ops").begin().await.unwrap();
        assert!(commands.try_recv().is_err(), "one record is enough");
        drop(commands);
        entry.end(OK).await;
        assert_eq!(lost(&audit), 1);
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_records_beyond_it_are_counted_as_lost() {
        let (audit, commands) = audit(true);
        for _ in 0..QUEUE_MAX {
            of_client(&audit, "ops").end_now(OK);
        }
        assert_eq!(lost(&audit), 0);
        of_client(&audit, "ops").end_now(OK);
        assert!(of_client(&audit, "ops").begin().await.is_err());
        audit.flush().await;
        assert_eq!(
            (lost(&audit), commands.try_iter().count()),
            (2, QUEUE_MAX),
            "what is no record cannot be lost"
        );
    }

    #[test]
    fn denied_calls_cannot_fill_the_disk() {
        let (audit, _commands) = audit(false);
        let (client, began) = (Arc::<str>::from("billing"), Instant::now());
        let denied = |client: &Arc<str>, action, seconds| {
            audit.denials.due_at(
                (Arc::clone(client), action),
                began + Duration::from_secs(seconds),
            )
        };
        assert_eq!(denied(&client, "Backup", 0), Some(0));
        assert_eq!(
            (denied(&client, "Backup", 1), denied(&client, "Backup", 9)),
            (None, None)
        );
        assert_eq!(
            (
                denied(&client, "Discard", 9),
                denied(&"other".into(), "Backup", 9)
            ),
            (Some(0), Some(0))
        );
        assert_eq!(
            denied(&client, "Backup", 10),
            Some(2),
            "and it is told how many there were"
        );
    }

    #[test]
    fn a_record_is_short_and_printable_whatever_the_request_contains() {
        let (audit, commands) = audit(false);
        let mut entry = of_client(&audit, "ops");
        entry.note("quarantine_ids", vec!["x".repeat(1 << 20); 1_000]);
        entry.note("product", "veo\u{202e}\n");
        entry.note("labels", json!({"team": "a b", "ref": "42"}));
        assert_eq!(
            entry.details["quarantine_ids"].as_array().unwrap().len(),
            TEXTS_MAX + 1
        );
        assert_eq!(entry.details["quarantine_ids"][TEXTS_MAX], "… and 744 more");
        assert_eq!(
            entry.details["quarantine_ids"][0]
                .as_str()
                .unwrap()
                .chars()
                .count(),
            TEXT_CHARS_MAX + 1
        );
        entry.details.remove("quarantine_ids");
        assert_eq!(
            details_text(&entry.details),
            r#"labels=ref:42,team:"a b" product="veo\u{202e}\n""#
        );
        assert!(
            String::from_utf8(entry.line(OK))
                .unwrap()
                .contains(r#""product":"veo\u202e\n""#)
        );
        drop(entry);
        drop(commands);
    }
}
