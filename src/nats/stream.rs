//! Makes the stream, or adopts the one that is there.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    api::{self, ApiError, Failure, StreamInfo, code},
    asker::Asker,
    backoff::Backoff,
    error::NatsError,
    settings::Settings,
    stream_config,
};
use crate::{cluster::StreamId, event::Epoch};

/// Longer than an election of the servers takes.
const TIME: Duration = Duration::from_secs(15);

/// The stream, by its leader's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Which stream it is.
    pub id: StreamId,
    /// Of the log in it.
    pub epoch: Epoch,
    /// Of its frames.
    pub format: u16,
    /// The sequence of its first message; one more than `last` if it has none.
    pub first: u64,
    /// The sequence of its last message; 0 if there was never one.
    pub last: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// How many it may have.
    pub bytes_max: u64,
    /// How many servers are to have a copy.
    pub replicas: usize,
    /// How many of them have all of it.
    pub replicas_current: usize,
    /// The server that leads it. A single server has no leader.
    pub leader: Option<String>,
}

impl StreamState {
    /// `None` if it is not a log.
    pub(super) fn of(info: &StreamInfo) -> Option<Self> {
        let (epoch, format) = stream_config::identity(&info.config)?;
        let number = |key: &str| info.config.get(key)?.as_u64();
        let replicas = number("num_replicas").and_then(|it| it.try_into().ok());
        let cluster = info.cluster.as_ref();
        let followers = cluster.and_then(|it| it.replicas.as_deref());
        let current = followers.unwrap_or_default().iter().filter(|it| it.current);

        Some(Self {
            id: stream_config::id(&info.config),
            epoch,
            format,
            first: info.state.first_seq,
            last: info.state.last_seq,
            bytes: info.state.bytes,
            bytes_max: number("max_bytes").unwrap_or_default(),
            replicas: replicas.unwrap_or(1),
            replicas_current: 1 + current.count(),
            leader: cluster.and_then(|it| it.leader.clone()),
        })
    }
}

/// The stream as it has to be, and whether this call has made it. Of two nodes that make it at once one wins, and the other reads the winner's epoch.
pub(super) async fn get_or_create(
    asker: &mut Asker,
    settings: &Settings,
) -> Result<(StreamState, bool), NatsError> {
    let (stream, deadline) = (settings.stream(), Instant::now() + TIME);
    let id = draw();
    let config = stream_config::wanted(settings, id, Epoch(Uuid::new_v4().as_u64_pair().0));
    let mut backoff = Backoff::default();
    loop {
        let (what, failure) = match api::stream_info(asker, &stream).await {
            Ok(info) => {
                let stream = adopt(settings, &info)?;
                let is_made = stream.id == id;
                return Ok((stream, is_made));
            }
            Err(failure) if failure.code() == Some(code::STREAM_NOT_FOUND) => {
                if !settings.create {
                    return Err(NatsError::NoStream(stream));
                }
                let made = api::create_stream(asker, &stream, &config).await;
                ("make the stream", made.err())
            }
            Err(failure) => ("show the stream", Some(failure)),
        };
        match failure {
            // It is made, or another node was faster: the next round shows what there is.
            None => {}
            Some(failure) if failure.code() == Some(code::NAME_IN_USE) => {}
            Some(failure) if failure.is_passing() && Instant::now() < deadline => {}
            Some(failure) if failure.is_passing() => return Err(failure.into_error(what)),
            Some(Failure::Error(error)) => return Err(refused(settings, error)),
            Some(failure) => return Err(failure.into_error(what)),
        }
        if Instant::now() >= deadline {
            let why = "another stream is in its place, which it does not show".to_owned();
            return Err(NatsError::NoAnswer { what, why });
        }
        sleep(backoff.next()).await;
    }
}

/// The identity of a stream that is made now.
pub(super) fn draw() -> StreamId {
    StreamId(Uuid::new_v4().as_u64_pair().0)
}

fn adopt(settings: &Settings, info: &StreamInfo) -> Result<StreamState, NatsError> {
    stream_config::check(settings, &info.config)?;
    let foreign = || NatsError::Foreign {
        what: format!("stream {}", settings.stream()),
    };
    StreamState::of(info).ok_or_else(foreign)
}

fn refused(settings: &Settings, error: ApiError) -> NatsError {
    let ApiError { code, description } = error;
    let step = match code {
        code::REPLICAS_NOT_SUPPORTED | code::NO_PEERS => {
            "it needs as many servers with JetStream in one NATS cluster as cluster.replicas says"
        }
        code::SUBJECTS_OVERLAP => "another stream has its subject: use another cluster.name",
        code::INSUFFICIENT_RESOURCES
        | code::ACCOUNT_RESOURCES
        | code::STORAGE_RESOURCES
        | code::STREAM_BYTES_EXCEEDED => {
            "lower cluster.stream_bytes_max, or raise max_file_store of the servers and the limits \
             of the account"
        }
        _ => {
            return NatsError::Api {
                what: "show or make the stream",
                code,
                description,
            };
        }
    };
    NatsError::NotMade {
        stream: settings.stream(),
        problem: description,
        step,
    }
}
