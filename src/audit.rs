//! Who did what: a record of each call of `AdminService`, and of each change of credentials, configuration and certificates as the
//! broker takes it up.
//!
//! A record is a line of the log (target `blobcast::audit`) and, if `audit.file` is set, a line of JSON there, which is on the disk
//! before the call is answered. Here are the records, and the way to the thread of the server's that writes the file. With
//! `audit.required` a call is recorded before anything is done, too, and refused if it cannot be.
//!
//! Nothing secret is in a record: no token, no signature, no body, no prompt.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, mpsc::SyncSender},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{sync::oneshot, time::timeout};

use crate::{metrics::Metrics, printable::printable_json, sampler::Sampler, trace::RequestId};

/// Most commands that wait for the file's thread: more calls than are on their way at once. Beyond it a record is lost, and counted.
pub const QUEUE_MAX: usize = 1_024;
/// How long a call waits for its record: a disk takes milliseconds, a busy one some hundred.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is logged that records come too late.
const COMPLAINT: Duration = Duration::from_secs(60);
/// Calls of a client that is no administrator have a record in this time for each RPC; the rest is counted. Such a client must not
/// be able to fill the disk.
const DENIAL_INTERVAL: Duration = Duration::from_secs(10);
/// With more of them than this, those that are over are forgotten.
const DENIALS_KEPT: usize = 1_024;
/// Most characters of one text in a record: the longest that is good for anything is the value of a label.
const TEXT_CHARS_MAX: usize = 256;
/// Most texts of one list: what a call may name.
const TEXTS_MAX: usize = 256;

/// What a record says of a call that may or may not have been done: its client has gone away before the answer.
pub const ABANDONED: &str = "abandoned";
/// … of one that is about to be done.
const BEGUN: &str = "begun";
/// … of what was done.
pub const OK: &str = "ok";
/// … of what was not done, because the record of its beginning came too late.
const UNAVAILABLE: &str = "AUDIT_UNAVAILABLE";
/// … of a change that was not taken up.
pub const REFUSED: &str = "refused";

/// For the thread that writes the file.
#[derive(Debug)]
pub enum Command {
    /// Append this line, and say whether it is on the disk.
    Write(Vec<u8>, oneshot::Sender<bool>),
    /// Open the file anew, or say what is wrong.
    Reopen(oneshot::Sender<Result<(), String>>),
}

/// Why a record is not known to be on the disk.
#[derive(Debug)]
pub enum Unrecorded {
    /// It could not be written.
    Lost,
    /// It was not written in time, and may be later.
    Late,
}

/// Where records go.
pub struct Audit {
    file: Option<SyncSender<Command>>,
    is_required: bool,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    metrics: Arc<Metrics>,
    /// By client and RPC.
    denials: Sampler<(Arc<str>, &'static str)>,
    /// When it was logged last that a record came too late.
    complained: Mutex<Option<Instant>>,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit")
            .field("is_required", &self.is_required)
            .finish_non_exhaustive()
    }
}

impl Audit {
    /// Records go to the log and, if there is one, to `file`. If `is_required`, calls that cannot be recorded are refused.
    pub fn new(
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
            complained: Mutex::default(),
        })
    }

    /// Begins a record of `action`.
    pub fn entry(self: &Arc<Self>, action: &'static str) -> Entry {
        Entry {
            audit: Arc::clone(self),
            action,
            who: Who::default(),
            details: Map::new(),
            is_over: false,
        }
    }

    /// Has the file opened anew, or says what is wrong; `None` if there is no file. Waits a while at most.
    pub async fn reopen(&self) -> Option<Result<(), String>> {
        let file = self.file.as_ref()?;
        let (done, is_done) = oneshot::channel();
        if file.try_send(Command::Reopen(done)).is_err() {
            return Some(Err("too many records wait for it".to_owned()));
        }
        Some(match timeout(RECORD_TIMEOUT, is_done).await {
            Ok(opened) => opened.unwrap_or_else(|_| Err("nobody writes it any more".to_owned())),
            Err(_) => Err(format!(
                "it was not opened within {} s: does its file system hang?",
                RECORD_TIMEOUT.as_secs()
            )),
        })
    }

    /// Waits until what was recorded is on the disk, a while at most: for the end of the process.
    pub async fn flush(&self) {
        let _ = self.written(Vec::new()).await.is_ok(); // what could not be written was counted
    }

    /// Hands a line to the file's thread; the answer comes when it is on the disk.
    fn write(&self, line: Vec<u8>) -> Option<oneshot::Receiver<bool>> {
        let is_record = !line.is_empty(); // not what `flush` sends
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
            Ok(_) => Err(Unrecorded::Lost), // the thread has counted and logged it
            Err(_) => {
                self.metrics
                    .audit_records
                    .with_label_values(&["late"])
                    .inc();
                self.complain();
                Err(Unrecorded::Late)
            }
        }
    }

    fn complain(&self) {
        let mut complained = self
            .complained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|at| at.elapsed() >= COMPLAINT) {
            *complained = Some(Instant::now());
            tracing::error!(
                "audit records are not written within {} s: look whether the file system of audit.file hangs; \
                 blobcast_audit_records_total{{result=\"late\"}} counts them",
                RECORD_TIMEOUT.as_secs()
            );
        }
    }
}

/// Who calls, and from where. Nothing of it is what the caller says of itself.
#[derive(Clone, Debug, Default)]
pub struct Who {
    /// Name of the client that the call was let in as; `None` if nothing is asked.
    pub client: Option<Arc<str>>,
    /// The name in its certificate by which it is known, if it is known by one.
    pub certificate: Option<String>,
    /// The other end of the connection; a proxy's, if there is one.
    pub peer: Option<SocketAddr>,
    /// Of the call.
    pub request_id: Option<RequestId>,
}

/// A record in the making. One that is dropped before its end says that its call was abandoned.
#[derive(Debug)]
pub struct Entry {
    audit: Arc<Audit>,
    action: &'static str,
    who: Who,
    details: Map<String, Value>,
    is_over: bool,
}

impl Entry {
    /// Says who does it.
    #[must_use]
    pub fn by(mut self, who: Who) -> Self {
        self.who = who;
        self
    }

    /// Adds what it is about, if there is something. A text that is too long is cut.
    pub fn note(&mut self, key: &str, value: impl Into<Value>) {
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

    /// Before anything is done: records that it is about to be, if it has to be recorded, and waits for that.
    pub async fn begin(self) -> Result<Self, Unrecorded> {
        if self.audit.is_required {
            self.begin_in_any_case().await
        } else {
            Ok(self)
        }
    }

    /// The same of what takes long. Only what has to be recorded can fail.
    pub async fn begin_in_any_case(mut self) -> Result<Self, Unrecorded> {
        self.log(BEGUN);
        match self.audit.written(self.line(BEGUN)).await {
            Err(Unrecorded::Lost) if self.audit.is_required => {
                self.is_over = true;
                Err(Unrecorded::Lost)
            }
            // The record may be written yet: then it has to be told that nothing was done.
            Err(Unrecorded::Late) if self.audit.is_required => {
                self.finish(UNAVAILABLE);
                Err(Unrecorded::Late)
            }
            _ => Ok(self),
        }
    }

    /// Records how it has ended, and waits until that is on the disk. It has been done by now, whether it could be recorded or not.
    pub async fn end(mut self, result: &str) {
        self.is_over = true;
        self.log(result);
        let _ = self.audit.written(self.line(result)).await.is_ok();
    }

    /// The same without waiting.
    pub fn end_now(mut self, result: &str) {
        self.finish(result);
    }

    /// Records that it was refused because of who calls.
    pub fn deny(mut self, reason: &str) {
        self.is_over = true;
        let Some(client) = &self.who.client else {
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
            let _ = self.audit.write(self.line(result)); // nobody waits for it
        }
    }

    fn log(&self, result: &str) {
        let Who {
            client,
            certificate,
            peer,
            request_id,
        } = &self.who;
        tracing::info!(
            target: "blobcast::audit",
            action = self.action,
            result,
            client = client.as_deref(),
            certificate = certificate.as_deref(),
            peer = peer.map(tracing::field::display),
            request_id = request_id.map(tracing::field::display),
            details = shown(&self.details),
            "audit"
        );
    }

    fn line(&self, result: &str) -> Vec<u8> {
        let Who {
            client,
            certificate,
            peer,
            request_id,
        } = &self.who;
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

/// As it stands in the file.
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

/// `key=value` in turn, for the log, whose fields have to be known beforehand. What is no plain word is quoted, and what steers a
/// terminal is escaped.
fn shown(details: &Map<String, Value>) -> String {
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

/// A record has some hundred bytes, whatever a request holds.
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
        audit.entry("Discard").by(Who {
            client: Some(name.into()),
            peer,
            ..Who::default()
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
    fn a_call_that_nobody_waits_for_any_more_has_a_record_all_the_same() {
        let (audit, commands) = audit(false);
        drop(of_client(&audit, "ops"));
        assert_eq!(taken(&commands, true)["result"], "abandoned");
        assert!(commands.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_has_to_be_recorded_is_so_before_it_is_done_and_cannot_be_done_otherwise() {
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
    async fn what_has_to_be_recorded_and_is_not_in_time_is_counted_and_its_record_says_that_nothing_was_done()
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
    async fn what_need_not_be_recorded_is_done_whatever_the_file_takes() {
        let (audit, commands) = audit(false);
        let entry = of_client(&audit, "ops").begin().await.unwrap();
        assert!(commands.try_recv().is_err(), "one record is enough");
        drop(commands);
        entry.end(OK).await;
        assert_eq!(lost(&audit), 1);
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_what_it_does_not_take_is_counted() {
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
    fn a_client_that_is_no_administrator_fills_no_disk() {
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
    fn a_record_is_short_and_shows_what_it_says_whatever_was_asked_for() {
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
            shown(&entry.details),
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
