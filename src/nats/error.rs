//! Why NATS cannot be used, and what to change.

use std::{io, path::PathBuf};

/// Why a node cannot use these servers, or this stream. Its text names the next step.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// None is configured.
    #[error("cluster.servers is empty")]
    NoServers,
    /// It cannot be part of a subject.
    #[error(
        "cluster.name {0:?} has something else than letters, digits, '-' and '_', or more than 64 of them"
    )]
    Name(String),
    /// It is no address.
    #[error("{server:?} in cluster.servers is no address of a NATS server: {problem}")]
    Address {
        /// As configured.
        server: String,
        /// In words.
        problem: String,
    },
    /// A file that is needed to connect cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// None of the servers could be connected to.
    #[error("no NATS server of cluster.servers could be reached: {0}")]
    Unreachable(String),
    /// A server refuses the user.
    #[error(
        "the NATS server refuses to let this node in: check cluster.user, cluster.password_file and the certificate ({0})"
    )]
    Login(String),
    /// Its Raft loses data.
    #[error(
        "NATS server {server} has version {found}, and 2.14.0 or newer is needed: older ones can lose acknowledged messages"
    )]
    Version {
        /// Its name.
        server: String,
        /// What it has.
        found: String,
    },
    /// A large callback would not fit.
    #[error(
        "NATS server {server} takes messages of {found} bytes, and {needed} are needed: raise its max_payload, or lower ingest.body_bytes_max"
    )]
    Payload {
        /// Its name.
        server: String,
        /// What it takes.
        found: usize,
        /// What a message may have.
        needed: usize,
    },
    /// There is nothing to hold a stream.
    #[error("JetStream is not enabled for this account of the NATS servers: {0}")]
    NoJetStream(String),
    /// The account's user may not do what a node does.
    #[error("the NATS account has no permission to {0}: give it to the user")]
    Permission(String),
    /// It was asked not to make one.
    #[error("there is no stream {0}, and cluster.create is false")]
    NoStream(String),
    /// The stream is not a log of this broker.
    #[error("{what}: it was not made by a blobcast cluster; use another cluster.name")]
    Foreign {
        /// In words.
        what: String,
    },
    /// A log is taken into it, or was and not to its end.
    #[error(
        "stream {stream} is not whole: `{what}` fills it, or was cut off; wait until that has ended, or run it again with --anew"
    )]
    Unfinished {
        /// Its name.
        stream: String,
        /// As the stream's metadata say.
        what: String,
    },
    /// There is a log in it.
    #[error(
        "stream {stream} has a log, of {count} messages so far: stop the nodes and delete the stream if nobody needs it, or use another cluster.name"
    )]
    NotEmpty {
        /// Its name.
        stream: String,
        /// Its last sequence.
        count: u64,
    },
    /// Somebody else writes to it.
    #[error(
        "something else has written to stream {0} meanwhile: stop all nodes, and run this again with --anew"
    )]
    Overtaken(String),
    /// There is no room.
    #[error(
        "the stream is full ({0}): raise cluster.stream_bytes_max, or make room on the servers"
    )]
    Full(String),
    /// The stream is not as it has to be.
    #[error("stream {stream} has {setting} = {found}, and {wanted} is needed: {step}")]
    Setting {
        /// Its name.
        stream: String,
        /// Which setting.
        setting: String,
        /// What it has.
        found: String,
        /// What it has to have.
        wanted: String,
        /// What to change.
        step: String,
    },
    /// A later version has made it.
    #[error(
        "stream {stream} has frames of format {found}, and this version reads {known}: upgrade this node"
    )]
    Format {
        /// Its name.
        stream: String,
        /// What it has.
        found: u16,
        /// What this version reads.
        known: u16,
    },
    /// The servers cannot hold the stream as it is asked for.
    #[error("the NATS servers refuse stream {stream}: {problem}; {step}")]
    NotMade {
        /// Its name.
        stream: String,
        /// What they say.
        problem: String,
        /// What to change.
        step: &'static str,
    },
    /// A server does not sync what it acknowledges.
    #[error(
        "the NATS server at {url} does not have sync_interval: always in its jetstream section, so a crash can lose acknowledged callbacks: set it, or cluster.sync to \"warn\" or \"off\""
    )]
    NotSynced {
        /// Its monitoring URL.
        url: String,
    },
    /// A server's monitoring port does not answer.
    #[error(
        "cannot see whether the NATS servers have sync_interval: always: {url} does not say it: {problem}; start that server, or set cluster.sync to \"warn\" or \"off\""
    )]
    Unmonitored {
        /// Its monitoring URL.
        url: String,
        /// In words.
        problem: String,
    },
    /// It cannot be known whether a server syncs.
    #[error(
        "cannot see whether the NATS servers have sync_interval: always: {0}; set cluster.monitoring_urls to the monitoring port of each, or cluster.sync to \"warn\" or \"off\""
    )]
    SyncUnknown(String),
    /// JetStream answers with an error that is not expected.
    #[error("JetStream refuses to {what}: {description} (error {code})")]
    Api {
        /// What was asked for.
        what: &'static str,
        /// Its number.
        code: u64,
        /// What it says.
        description: String,
    },
    /// JetStream does not answer.
    #[error("JetStream does not answer, when asked to {what}: {why}")]
    NoAnswer {
        /// What was asked for.
        what: &'static str,
        /// In words.
        why: String,
    },
}

impl NatsError {
    /// It may go away by itself, as when servers start or elect a leader.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::NoAnswer { .. } | Self::Unmonitored { .. }
        )
    }
}
