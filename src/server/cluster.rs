//! Makes this broker a node of a cluster: connects to NATS, finds the stream, and starts the thread that writes and follows it.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::{
    error::StartError,
    numbers::usize_of,
    storage::{self, Writing},
};
use crate::{
    cluster::{Author, Beginning, Join, Limits, Position, forgotten_before, join},
    config::{Config, StreamSync},
    event::Sequence,
    files,
    journal::jetstream::{ClusterState, Driver, Parts, Times},
    nats::{self, Nats, NatsError, StreamState, Synced},
    store::{Replica, Retention, Store},
    subscription::Sources,
};

/// A chain of certificates is much smaller.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Where Linux says the host's name.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";
/// Far more than it has.
const HOST_NAME_BYTES_MAX: u64 = 4_096;
/// How long a start waits for a NATS server. They may be starting, too; a supervisor tries again after that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How often it tries.
const CONNECT_AGAIN: Duration = Duration::from_millis(500);
/// How long a start waits for the first frame, so that most nodes are ready when they say so. One that has to catch up, or that
/// finds nobody writing, becomes ready later.
const FIRST_FRAME: Duration = Duration::from_secs(3);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);
/// The share of `ingest.answer_timeout` after which an operation is refused: soon enough that its caller learns why.
const PATIENCE: f64 = 0.95;
/// Most operations in one frame, as in one commit of a broker that is alone.
const FRAME_DRAFTS_MAX: usize = 512;
/// What a message may have beside the two forms of the largest callback.
const MESSAGE_BYTES_BASE: u64 = 256 * 1024;

/// A connection to NATS, and the stream that was found there.
pub(super) struct Joined {
    nats: Nats,
    stream: StreamState,
    beginning: Beginning,
    node: String,
}

/// This broker as a node.
#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    pub state: Arc<ClusterState>,
    /// As it was found at the start.
    pub stream: StreamState,
    /// What is known of whether the servers sync what they acknowledge.
    pub synced: Synced,
}

/// Why files that the section names cannot be read, each with its key. They are read again for each connection.
pub(super) fn problems_of_files(config: &Config) -> Vec<String> {
    let cluster = &config.cluster;
    let files = [
        ("cluster.password_file", &cluster.password_file),
        ("cluster.tls_ca_file", &cluster.tls_ca_file),
        (
            "cluster.tls_certificate_file",
            &cluster.tls_certificate_file,
        ),
        ("cluster.tls_key_file", &cluster.tls_key_file),
    ];
    files
        .into_iter()
        .filter_map(|(key, path)| {
            let path = path.as_ref()?;
            let error = files::read(path, FILE_BYTES_MAX).err()?;
            Some(format!("{key}: cannot read {}: {error}", path.display()))
        })
        .collect()
}

/// Connects, if the configuration names servers.
pub(super) async fn connect(config: &Config) -> Result<Option<Joined>, StartError> {
    if !config.cluster.is_on() {
        return Ok(None);
    }
    let node = node_name(config)?;
    let refused = |error: NatsError| StartError::Cluster(error.to_string());
    let mut settings = settings(config, &node);
    // A new stream would have another log.
    settings.create &= Store::may_begin(&config.data_dir);
    let mut nats = connect_to(settings).await.map_err(refused)?;
    let stream = nats.stream().await.map_err(|error| match error {
        NatsError::NoStream(name) if config.cluster.create => {
            let directory = config.data_dir.display();
            StartError::Cluster(format!(
                "there is no stream {name}, and {directory} has a log, which a new stream would not have: keep it, and bring the \
                 stream back from a backup of NATS; to begin a new log, start every node with another --data-dir, empty"
            ))
        }
        error => refused(error),
    })?;
    tracing::info!(
        node,
        epoch = %stream.epoch,
        messages = stream.last,
        replicas = stream.replicas,
        leader = stream.leader,
        "joined the cluster"
    );
    if stream.replicas == 1 {
        tracing::warn!(
            "cluster.replicas is 1: what was answered 200 is lost with the disk of that NATS server"
        );
    }
    let beginning = beginning(&mut nats, &stream).await?;
    Ok(Some(Joined {
        nats,
        stream,
        beginning,
        node,
    }))
}

/// What the stream says to a node that starts.
async fn beginning(nats: &mut Nats, stream: &StreamState) -> Result<Beginning, StartError> {
    if stream.first <= 1 {
        return Ok(Beginning::whole(stream.epoch));
    }
    Ok(Beginning {
        position: first_position(nats, stream).await?,
        first: stream.first,
        first_available: first_available(nats, stream).await?,
    })
}

/// Where a node without a log begins: behind the stream's first frame, as others were removed before it.
async fn first_position(nats: &mut Nats, stream: &StreamState) -> Result<Position, StartError> {
    let refused = |problem: String| StartError::Cluster(problem);
    for sequence in stream.first..=stream.last {
        let message = nats.message(sequence).await;
        let message = message.map_err(|error| refused(error.to_string()))?;
        let Some(message) = message else {
            continue; // removed meanwhile
        };
        match join(stream.epoch, sequence, &message) {
            Join::At(position) => return Ok(position),
            Join::Next => {}
            Join::Upgrade { format } => {
                return Err(refused(format!(
                    "the stream has a frame of format {format}, which a later version reads: upgrade this node"
                )));
            }
        }
    }
    Err(refused(
        "the stream has messages, and no frame of its log: it was changed by hand; use another cluster.name".to_owned(),
    ))
}

/// Before which event retention has forgotten all, by the stream's newest frame.
async fn first_available(nats: &mut Nats, stream: &StreamState) -> Result<Sequence, StartError> {
    for sequence in (stream.first..=stream.last).rev() {
        let message = nats.message(sequence).await;
        let message = message.map_err(|error| StartError::Cluster(error.to_string()))?;
        if let Some(first) = message.and_then(|it| forgotten_before(stream.epoch, &it)) {
            return Ok(first);
        }
    }
    Ok(Sequence(0))
}

async fn connect_to(settings: nats::Settings) -> Result<Nats, NatsError> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match Nats::connect(settings.clone()).await {
            Err(NatsError::Unreachable(problem)) if Instant::now() < deadline => {
                tracing::warn!(problem, "no NATS server can be reached yet");
                sleep(CONNECT_AGAIN).await;
            }
            connected => return connected,
        }
    }
}

fn settings(config: &Config, node: &str) -> nats::Settings {
    let cluster = &config.cluster;
    nats::Settings {
        servers: cluster.servers.clone(),
        name: cluster.name.clone(),
        node: node.to_owned(),
        replicas: usize_of(cluster.replicas),
        create: cluster.create,
        user: cluster.user.clone(),
        password_file: cluster.password_file.clone(),
        tls_ca_file: cluster.tls_ca_file.clone(),
        tls_certificate_file: cluster.tls_certificate_file.clone(),
        tls_key_file: cluster.tls_key_file.clone(),
        monitoring_urls: cluster.monitoring_urls.clone(),
        sync: match cluster.sync {
            StreamSync::Require => nats::Sync::Require,
            StreamSync::Warn => nats::Sync::Warn,
            StreamSync::Off => nats::Sync::Off,
        },
        message_bytes_max: message_bytes_max(config),
        stream_bytes_max: config.stream_bytes_max(),
        publish_timeout: cluster.publish_timeout,
        forward_timeout: cluster.forward_timeout,
    }
}

/// Largest message that NATS has to take: the largest callback, raw and read.
fn message_bytes_max(config: &Config) -> usize {
    let body = config.ingest.body_bytes_max;
    usize_of(body.saturating_mul(2).saturating_add(MESSAGE_BYTES_BASE))
}

/// The node's name: as configured, or the host's up to its first dot.
fn node_name(config: &Config) -> Result<String, StartError> {
    if !config.cluster.node.is_empty() {
        return Ok(config.cluster.node.clone());
    }
    let host = files::read_text(Path::new(HOST_NAME), HOST_NAME_BYTES_MAX);
    let host = host.map_err(|error| {
        let problem = format!("{HOST_NAME}: {error}: set cluster.node, or --node");
        StartError::Cluster(problem)
    })?;
    let name = host.trim().split('.').next().unwrap_or_default();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    if !name.is_empty() && name.bytes().all(allowed) {
        return Ok(name.to_owned());
    }
    let problem =
        format!("the host's name {name:?} is no name of a node: set cluster.node, or --node");
    Err(StartError::Cluster(problem))
}

impl Joined {
    /// What the stream says to this node.
    pub(super) fn beginning(&self) -> &Beginning {
        &self.beginning
    }

    /// Refuses a data directory with another log.
    pub(super) fn check(&self, config: &Config, store: &Store) -> Result<(), StartError> {
        let (own, stream) = (store.epoch(), self.stream.epoch);
        if own == stream {
            return Ok(());
        }
        Err(StartError::Cluster(format!(
            "the log in {} is {own}, and that of the stream BLOBCAST_{} is {stream}: start with another --data-dir, empty, to take \
             over the stream's, or choose another --cluster-name",
            config.data_dir.display(),
            config.cluster.name
        )))
    }

    /// Starts the thread that writes and follows.
    pub(super) async fn start(
        self,
        config: &Config,
        retention: Retention,
        sources: &Arc<Sources>,
    ) -> Result<(Writing, Node), StartError> {
        let me = Author(Uuid::new_v4().as_u128());
        let limits = Limits {
            drafts_max: FRAME_DRAFTS_MAX,
            bytes_max: usize_of(config.cluster.frame_bytes_max),
        };
        let (appender, writer, maintaining) = storage::writer_of(retention, sources)?;
        let replica = Replica::new(writer, &appender, me, self.node.clone(), limits);
        let synced = self.nats.synced();
        let is_shown = i64::from(synced == Synced::Shown);
        sources.metrics.cluster_sync_shown.set(is_shown);
        let driver = Driver::start(Parts {
            me,
            node: self.node.clone(),
            replica,
            nats: self.nats,
            stream: self.stream.clone(),
            limits,
            message_bytes_max: message_bytes_max(config),
            times: Times {
                publish_timeout: config.cluster.publish_timeout,
                answer_timeout: config.ingest.answer_timeout.mul_f64(PATIENCE),
                read_wait: config.cluster.read_wait,
            },
            metrics: Arc::clone(&sources.metrics),
        });
        let driver = driver
            .await
            .map_err(|error| StartError::Cluster(error.to_string()))?;
        let node = Node {
            name: self.node,
            state: Arc::clone(driver.state()),
            stream: self.stream,
            synced,
        };
        let writing = Writing {
            journal: Arc::new(driver.journal(appender.clone())),
            thread: storage::spawn_writer(maintaining, || driver.run())?,
            appender,
        };
        Ok((writing, node))
    }
}

impl Node {
    /// Waits until the node is ready, for a short time.
    pub(super) async fn settle(&self) {
        let ready = async {
            while self.state.problem().is_some() {
                sleep(LOOK).await;
            }
        };
        if timeout(FIRST_FRAME, ready).await.is_err() {
            let problem = self.state.problem();
            tracing::warn!(problem, "this node is not ready yet");
        }
    }
}
