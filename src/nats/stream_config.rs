//! How the stream of a cluster is set, and whether one that is there is so. Pure.

use serde_json::{Map, Value, json};

use super::{error::NatsError, settings::Settings};
use crate::{
    cluster::{FORMAT, StreamId},
    event::Epoch,
};

const FORMAT_KEY: &str = "blobcast-format";
const EPOCH_KEY: &str = "blobcast-epoch";
/// Which stream it is: drawn by what makes it, and kept by a copy that is restored.
const STREAM_KEY: &str = "blobcast-stream";
/// There while the stream is filled with a log that exists already: what fills it.
const UNFINISHED_KEY: &str = "blobcast-unfinished";

/// The configuration to make the stream with.
pub(super) fn wanted(settings: &Settings, stream: StreamId, epoch: Epoch) -> Map<String, Value> {
    let mut config: Map<String, Value> = (settings_of(settings).into_iter())
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let description = format!("the log of the blobcast cluster {}", settings.name);
    config.insert("name".to_owned(), settings.stream().into());
    config.insert("description".to_owned(), description.into());
    let metadata = json!({
        FORMAT_KEY: FORMAT.to_string(),
        EPOCH_KEY: epoch.0.to_string(),
        STREAM_KEY: stream.to_string(),
    });
    config.insert("metadata".to_owned(), metadata);
    config
}

/// Everything that decides what the stream keeps, and what may get into it. A null is a feature that is not used.
fn settings_of(settings: &Settings) -> Vec<(&'static str, Value)> {
    vec![
        ("subjects", json!([settings.log_subject()])),
        ("retention", json!("limits")),
        ("storage", json!("file")),
        ("num_replicas", json!(settings.replicas)),
        // Full: refuse what is new, never drop what nobody has read.
        ("discard", json!("new")),
        ("max_bytes", json!(settings.stream_bytes_max)),
        ("max_msgs", json!(-1)),
        ("max_msgs_per_subject", json!(-1)),
        ("max_msg_size", json!(-1)),
        ("max_consumers", json!(-1)),
        // By the servers' clocks, which differ: the writer purges instead.
        ("max_age", json!(0)),
        ("deny_delete", json!(true)),
        ("deny_purge", json!(false)),
        ("allow_direct", json!(true)),
        // The servers compress what they replicate.
        ("compression", json!("none")),
        // It acknowledges before it has synced.
        ("persist_mode", Value::Null),
        ("no_ack", json!(false)),
        ("sealed", json!(false)),
        ("allow_rollup_hdrs", json!(false)),
        ("allow_msg_ttl", json!(false)),
        ("allow_msg_counter", json!(false)),
        ("allow_msg_schedules", json!(false)),
        ("allow_atomic", json!(false)),
        ("allow_batched", json!(false)),
        ("discard_new_per_subject", json!(false)),
        ("subject_delete_marker_ttl", json!(0)),
        ("mirror", Value::Null),
        ("sources", Value::Null),
        ("subject_transform", Value::Null),
        ("republish", Value::Null),
    ]
}

/// The log in a stream, if the stream is as it has to be.
pub(super) fn check(
    settings: &Settings,
    config: &Map<String, Value>,
) -> Result<(Epoch, u16), NatsError> {
    let stream = settings.stream();
    let (epoch, format) = identity(config).ok_or_else(|| NatsError::Foreign {
        what: format!("stream {stream} has no {EPOCH_KEY} and {FORMAT_KEY} in its metadata"),
    })?;
    if format > FORMAT {
        return Err(NatsError::Format {
            stream,
            found: format,
            known: FORMAT,
        });
    }

    if let Some(what) = unfinished(config) {
        let what = what.to_owned();
        return Err(NatsError::Unfinished { stream, what });
    }

    for (key, wanted) in settings_of(settings) {
        let found = config.get(key).unwrap_or(&Value::Null);
        if !is_same(found, &wanted) {
            return Err(NatsError::Setting {
                step: step(&stream, key, found, &wanted),
                setting: key.to_owned(),
                found: found.to_string(),
                wanted: wanted.to_string(),
                stream,
            });
        }
    }
    Ok((epoch, format))
}

/// Whose log it is.
pub(super) fn identity(config: &Map<String, Value>) -> Option<(Epoch, u16)> {
    let metadata = config.get("metadata")?;
    let number = |key: &str| metadata.get(key)?.as_str();
    let epoch = number(EPOCH_KEY)?.parse().ok()?;
    let format = number(FORMAT_KEY)?.parse().ok()?;
    Some((Epoch(epoch), format))
}

/// Which stream it is, if it says so.
pub(super) fn id(config: &Map<String, Value>) -> StreamId {
    let said = config.get("metadata").and_then(|it| it.get(STREAM_KEY));
    let id = said.and_then(Value::as_str).and_then(StreamId::parse);
    id.unwrap_or(StreamId::NONE)
}

/// What fills the stream, if it is not whole.
pub(super) fn unfinished(config: &Map<String, Value>) -> Option<&str> {
    config.get("metadata")?.get(UNFINISHED_KEY)?.as_str()
}

/// Notes what fills the stream.
pub(super) fn mark_unfinished(config: &mut Map<String, Value>, what: &str) {
    set(config, UNFINISHED_KEY, what.to_owned());
}

/// Notes that the stream is whole.
pub(super) fn mark_finished(config: &mut Map<String, Value>) {
    if let Some(Value::Object(metadata)) = config.get_mut("metadata") {
        metadata.remove(UNFINISHED_KEY);
    }
}

/// Notes which stream it is from now on, and whose log.
pub(super) fn set_identity(config: &mut Map<String, Value>, stream: StreamId, epoch: Epoch) {
    set(config, STREAM_KEY, stream.to_string());
    set(config, EPOCH_KEY, epoch.0.to_string());
}

fn set(config: &mut Map<String, Value>, key: &str, value: String) {
    let metadata = config.entry("metadata").or_insert_with(|| json!({}));
    if let Value::Object(metadata) = metadata {
        metadata.insert(key.to_owned(), value.into());
    }
}

/// Servers leave out what has the default.
fn is_same(found: &Value, wanted: &Value) -> bool {
    let is_default = |value: &Value| {
        matches!(value, Value::Null | Value::Bool(false)) || value.as_i64() == Some(0)
    };
    let without_limit = |value: &Value| is_default(value) || value.as_i64() == Some(-1);
    found == wanted
        || is_default(found) && is_default(wanted)
        || wanted.as_i64() == Some(-1) && without_limit(found)
        || wanted.is_null() && (found == "default" || found == &json!([]))
}

fn step(stream: &str, key: &str, found: &Value, wanted: &Value) -> String {
    match key {
        "max_bytes" => format!(
            "change it with `nats stream edit {stream} --max-bytes={wanted}`, or set \
             cluster.stream_bytes_max to \"{found}\""
        ),
        "num_replicas" => format!(
            "change it with `nats stream edit {stream} --replicas={wanted}`, or set \
             cluster.replicas to {found}"
        ),
        _ => format!("change it with `nats stream edit {stream}`, or use another cluster.name"),
    }
}
