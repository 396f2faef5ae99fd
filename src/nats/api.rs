//! The requests to JetStream that a node makes, and their answers: JSON, by its API of version 1.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{
    asker::{Asker, NoAnswer},
    error::NatsError,
};

/// The servers answer within milliseconds, or not before an election.
const TIME: Duration = Duration::from_secs(2);

/// Errors of JetStream by their number (`jetstream_errors_generated.go` of the server).
pub(super) mod code {
    /// Only if the whole system has no leader.
    pub(in crate::nats) const SYSTEM_UNAVAILABLE: u64 = 10008;
    pub(in crate::nats) const NO_PEERS: u64 = 10005;
    pub(in crate::nats) const ACCOUNT_RESOURCES: u64 = 10002;
    pub(in crate::nats) const INSUFFICIENT_RESOURCES: u64 = 10023;
    pub(in crate::nats) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
    pub(in crate::nats) const STORAGE_RESOURCES: u64 = 10047;
    pub(in crate::nats) const NAME_IN_USE: u64 = 10058;
    pub(in crate::nats) const STREAM_NOT_FOUND: u64 = 10059;
    pub(in crate::nats) const SUBJECTS_OVERLAP: u64 = 10065;
    pub(in crate::nats) const WRONG_LAST_SEQUENCE: u64 = 10071;
    pub(in crate::nats) const REPLICAS_NOT_SUPPORTED: u64 = 10074;
    pub(in crate::nats) const NOT_ENABLED: u64 = 10076;
    pub(in crate::nats) const STORE_FAILED: u64 = 10077;
    pub(in crate::nats) const STREAM_BYTES_EXCEEDED: u64 = 10122;
}

/// An answer that is an error.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ApiError {
    #[serde(default, rename = "err_code")]
    pub(super) code: u64,
    #[serde(default)]
    pub(super) description: String,
}

/// Why a request has no result.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    NoAnswer(NoAnswer),
    Error(ApiError),
    /// Something else than it should answer.
    Odd(String),
}

impl Failure {
    pub(super) fn code(&self) -> Option<u64> {
        match self {
            Self::Error(error) => Some(error.code),
            Self::NoAnswer(_) | Self::Odd(_) => None,
        }
    }

    /// It may go away by itself, as when a leader is elected.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::Error(error) => error.code == code::SYSTEM_UNAVAILABLE,
            Self::Odd(_) => false,
        }
    }

    pub(super) fn into_error(self, what: &'static str) -> NatsError {
        match self {
            Self::NoAnswer(why) => NatsError::NoAnswer {
                what,
                why: why.to_string(),
            },
            Self::Odd(why) => NatsError::NoAnswer { what, why },
            Self::Error(error) if error.code == code::SYSTEM_UNAVAILABLE => NatsError::NoAnswer {
                what,
                why: error.description,
            },
            Self::Error(ApiError { code, description }) => NatsError::Api {
                what,
                code,
                description,
            },
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: Map<String, Value>,
    pub(super) state: Held,
    pub(super) cluster: Option<Replication>,
}

impl StreamInfo {
    /// A server that is in no cluster has nobody to name.
    fn is_of_leader(&self) -> bool {
        let leader = |it: &Replication| it.leader.as_deref().is_some_and(|name| !name.is_empty());
        self.cluster.as_ref().is_none_or(leader)
    }
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Held {
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Replication {
    #[serde(default)]
    pub(super) leader: Option<String>,
    #[serde(default)]
    pub(super) replicas: Option<Vec<Replica>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Replica {
    #[serde(default)]
    pub(super) current: bool,
}

/// The answer to a message that was published.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Ack {
    pub(super) stream: String,
    #[serde(rename = "seq")]
    pub(super) sequence: u64,
}

/// A consumer to make. It lives as long as somebody listens, in the memory of one server.
#[derive(Clone, Debug)]
pub(super) struct NewConsumer<'a> {
    pub(super) stream: &'a str,
    pub(super) name: &'a str,
    pub(super) description: &'a str,
    pub(super) deliver_to: &'a str,
    pub(super) start: u64,
}

/// How often a consumer says that there is nothing.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a consumer without a listener stays.
const INACTIVE: Duration = Duration::from_secs(5);

pub(super) async fn account(asker: &mut Asker) -> Result<(), Failure> {
    call::<Value>(asker, "$JS.API.INFO", Bytes::new())
        .await
        .map(drop)
}

/// The stream by its leader's word. While it has no leader, any server answers with what it has itself, which may be less than what
/// was acknowledged: that counts as no answer.
pub(super) async fn stream_info(asker: &mut Asker, stream: &str) -> Result<StreamInfo, Failure> {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let info: StreamInfo = call(asker, &subject, Bytes::new()).await?;
    if info.is_of_leader() {
        Ok(info)
    } else {
        Err(Failure::NoAnswer(NoAnswer::NobodyThere))
    }
}

pub(super) async fn create_stream(
    asker: &mut Asker,
    stream: &str,
    config: &Map<String, Value>,
) -> Result<(), Failure> {
    let subject = format!("$JS.API.STREAM.CREATE.{stream}");
    call::<Value>(asker, &subject, json(config)).await.map(drop)
}

/// Sets the stream otherwise.
pub(super) async fn update_stream(
    asker: &mut Asker,
    stream: &str,
    config: &Map<String, Value>,
) -> Result<(), Failure> {
    let subject = format!("$JS.API.STREAM.UPDATE.{stream}");
    call::<Value>(asker, &subject, json(config)).await.map(drop)
}

/// Deletes the stream with everything in it.
pub(super) async fn delete_stream(asker: &mut Asker, stream: &str) -> Result<(), Failure> {
    let subject = format!("$JS.API.STREAM.DELETE.{stream}");
    call::<Value>(asker, &subject, Bytes::new()).await.map(drop)
}

/// Removes the messages before `sequence`.
pub(super) async fn purge(asker: &mut Asker, stream: &str, sequence: u64) -> Result<(), Failure> {
    let subject = format!("$JS.API.STREAM.PURGE.{stream}");
    let request = json(&json!({ "seq": sequence }));
    call::<Value>(asker, &subject, request).await.map(drop)
}

pub(super) async fn create_consumer(
    asker: &mut Asker,
    new: &NewConsumer<'_>,
) -> Result<(), Failure> {
    let subject = format!("$JS.API.CONSUMER.CREATE.{}.{}", new.stream, new.name);
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let request = json!({
        "stream_name": new.stream,
        "action": "create",
        "config": {
            "name": new.name,
            "description": new.description,
            "deliver_subject": new.deliver_to,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": new.start,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": true,
            "idle_heartbeat": nanoseconds(HEARTBEAT),
            "inactive_threshold": nanoseconds(INACTIVE),
            "num_replicas": 1,
            "mem_storage": true,
        },
    });
    call::<Value>(asker, &subject, json(&request))
        .await
        .map(drop)
}

async fn call<T: DeserializeOwned>(
    asker: &mut Asker,
    subject: &str,
    request: Bytes,
) -> Result<T, Failure> {
    let answer = asker.ask(subject, HeaderMap::new(), request, TIME).await;
    read(&answer.map_err(Failure::NoAnswer)?.payload)
}

/// Reads an answer of the API, which is an error if it has the field for one.
pub(super) fn read<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Failure> {
    #[derive(Deserialize)]
    struct Refused {
        error: Option<ApiError>,
    }

    let odd = |error: serde_json::Error| Failure::Odd(format!("an odd answer: {error}"));
    let refused: Refused = serde_json::from_slice(answer).map_err(odd)?;
    match refused.error {
        Some(error) => Err(Failure::Error(error)),
        None => serde_json::from_slice(answer).map_err(odd),
    }
}

pub(super) fn json(value: &impl Serialize) -> Bytes {
    let text = serde_json::to_vec(value).expect("its keys are text, and its numbers are numbers");
    text.into()
}
