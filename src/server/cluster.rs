//! Makes this broker a node of a cluster: connects to NATS, finds the stream, and starts the thread that writes and follows it.

use std::{io, path::Path, pin::Pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{
    error::StartError,
    numbers::usize_of,
    storage::{self, ToHub, Writing},
};
use crate::{
    cluster::{Author, Beginning, Join, Limits, Position, forgotten_before, join as join_at},
    config::{Config, StreamSync},
    credentials::SharedCredentials,
    event::Sequence,
    files,
    journal::jetstream::{ClusterState, Common, Driver, Parts, SayCommon, Times, Waiting},
    metrics::Metrics,
    nats::{self, Nats, NatsError, StreamState, Synced},
    store::{Appender, Replica, Retention, Store, Writer},
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

/// A look for the stream.
type Looking = Pin<Box<dyn Future<Output = Result<(Nats, StreamState), String>> + Send>>;

/// A node that begins: with the stream, or without it if it has a log to serve meanwhile.
pub(super) struct Joining {
    node: String,
    settings: nats::Settings,
    found: Result<Found, String>,
}

/// The stream, as it was found.
struct Found {
    nats: Nats,
    stream: StreamState,
    beginning: Beginning,
}

/// This broker as a node.
#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    pub state: Arc<ClusterState>,
    /// As it was found at the start, and whether the servers have shown that they sync what they acknowledge; `None` if it was not.
    pub stream: Option<(StreamState, Synced)>,
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

/// Looks for the stream, if the configuration names servers. A node that has a log waits for it while it serves.
pub(super) async fn join(config: &Config) -> Result<Option<Joining>, StartError> {
    if !config.cluster.is_on() {
        return Ok(None);
    }
    let node = node_name(config)?;
    let has_log = has_log(config).await?;
    let settings = nats::Settings {
        // A new stream would have another log.
        create: config.cluster.create && Store::may_begin(&config.data_dir),
        ..settings(config, &node)
    };

    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let (nats, stream) = loop {
        match find(&settings).await {
            Ok(found) => break found,
            Err(error) if !error.is_passing() => {
                return Err(StartError::Cluster(said(&error, config)));
            }
            Err(error) if has_log => {
                let why = error.to_string();
                tracing::warn!(
                    problem = why,
                    "the cluster's stream is not found: this node serves what it has, and takes no callbacks until it is"
                );
                let found = Err(why);
                return Ok(Some(Joining {
                    node,
                    settings,
                    found,
                }));
            }
            Err(error) if Instant::now() < deadline => {
                tracing::warn!(problem = %error, "the cluster's stream is not found yet");
                sleep(CONNECT_AGAIN).await;
            }
            Err(error) => return Err(StartError::Cluster(error.to_string())),
        }
    };
    note_found(&node, &stream);
    let found = found(nats, stream).await?;
    Ok(Some(Joining {
        node,
        settings,
        found: Ok(found),
    }))
}

async fn has_log(config: &Config) -> Result<bool, StartError> {
    let path = config.data_dir.clone();
    let looked = tokio::task::spawn_blocking(move || Store::is_of_node(&path)).await;
    let looked = looked.map_err(|error| StartError::Thread(io::Error::other(error)))?;
    Ok(looked?)
}

async fn find(settings: &nats::Settings) -> Result<(Nats, StreamState), NatsError> {
    let mut nats = Nats::connect(settings.clone()).await?;
    let stream = nats.stream().await?;
    Ok((nats, stream))
}

/// The text of an error, and of a missing stream what it means for a directory with a log.
fn said(error: &NatsError, config: &Config) -> String {
    match error {
        NatsError::NoStream(name) if config.cluster.create => format!(
            "there is no stream {name}, and {} has a log, which a new stream would not have: keep it, and bring the \
             stream back from a backup of NATS, or make it from the log by `blobcast cluster heal`; to begin a new log, start \
             every node with another --data-dir, empty",
            config.data_dir.display()
        ),
        error => error.to_string(),
    }
}

fn note_found(node: &str, stream: &StreamState) {
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
}

async fn found(mut nats: Nats, stream: StreamState) -> Result<Found, StartError> {
    let beginning = beginning(&mut nats, &stream).await?;
    Ok(Found {
        nats,
        stream,
        beginning,
    })
}

/// What the stream says to a node that starts.
async fn beginning(nats: &mut Nats, stream: &StreamState) -> Result<Beginning, StartError> {
    let whole = Beginning::whole(stream.id, stream.epoch);
    let is_whole = stream.first <= 1;
    if stream.last == 0 {
        return Ok(whole); // it has no message yet
    }
    let Some(position) = first_position(nats, stream).await? else {
        return if is_whole {
            Ok(whole) // it has no frame yet
        } else {
            let problem = "the stream has messages, and no frame of its log: it was changed by hand; use another cluster.name";
            Err(StartError::Cluster(problem.to_owned()))
        };
    };
    if is_whole {
        return Ok(Beginning { position, ..whole });
    }
    Ok(Beginning {
        position,
        stream: stream.id,
        first: stream.first,
        first_available: first_available(nats, stream).await?,
    })
}

/// Where a node without a log begins: with the log's first frame, or behind the stream's first one if others were removed before it.
async fn first_position(
    nats: &mut Nats,
    stream: &StreamState,
) -> Result<Option<Position>, StartError> {
    let refused = |problem: String| StartError::Cluster(problem);
    for sequence in stream.first..=stream.last {
        let message = nats.message(sequence).await;
        let message = message.map_err(|error| refused(error.to_string()))?;
        let Some(message) = message else {
            continue; // removed meanwhile
        };
        match join_at(stream.epoch, sequence, &message) {
            Join::At(position) => return Ok(Some(position)),
            Join::Next => {}
            Join::Upgrade { format } => {
                return Err(refused(format!(
                    "the stream has a frame of format {format}, which a later version reads: upgrade this node"
                )));
            }
        }
    }
    Ok(None)
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

/// How to reach NATS for a command, which is no node.
pub(super) fn settings_of_command(config: &Config) -> Result<nats::Settings, StartError> {
    Ok(settings(config, &node_name(config)?))
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

impl Joining {
    /// What the stream says to this node, if it is found.
    pub(super) fn beginning(&self) -> Option<&Beginning> {
        self.found.as_ref().ok().map(|found| &found.beginning)
    }

    /// Refuses a data directory with another log than the stream's.
    pub(super) fn check(&self, config: &Config, store: &Store) -> Result<(), StartError> {
        let Some(beginning) = self.beginning() else {
            return Ok(()); // judged when the stream is found
        };
        let (own, stream) = (store.epoch(), beginning.position.epoch);
        if own == stream && store.stream() == beginning.stream {
            return Ok(());
        }
        if own == stream {
            return Err(StartError::Cluster(format!(
                "the log in {} was read from another stream than BLOBCAST_{}, which was made anew: start with another --data-dir, \
                 empty, to read this one",
                config.data_dir.display(),
                config.cluster.name
            )));
        }
        Err(StartError::Cluster(format!(
            "the log in {} is {own}, and that of the stream BLOBCAST_{} is {stream}: start with another --data-dir, empty, to take \
             over the stream's, or choose another --cluster-name",
            config.data_dir.display(),
            config.cluster.name
        )))
    }

    /// Starts the thread that writes and follows, or that waits for the stream.
    pub(super) async fn start(
        self,
        config: &Config,
        retention: Retention,
        sources: &Arc<Sources>,
        common: SayCommon,
    ) -> Result<(Writing, Node), StartError> {
        let Self {
            node: name,
            settings,
            found,
        } = self;
        let (appender, writer, maintaining) = storage::writer_of(retention, sources)?;
        let metrics = &sources.metrics;
        let parts = parts(config, &name, writer, &appender, metrics, common);
        match found {
            Ok(Found { nats, stream, .. }) => {
                let found = Some((stream.clone(), nats.synced()));
                note_synced(&sources.metrics, nats.synced());
                let driver = Driver::start(parts, nats, stream).await;
                let driver = driver.map_err(|error| StartError::Cluster(error.to_string()))?;
                let node = Node {
                    name,
                    state: Arc::clone(driver.state()),
                    stream: found,
                };
                let writing = Writing {
                    journal: Arc::new(driver.journal(appender.clone())),
                    thread: storage::spawn_writer(maintaining, || driver.run())?,
                    appender,
                };
                Ok((writing, node))
            }
            Err(why) => {
                let mut waiting = Waiting::new(parts, why);
                let looking = waiting.looking(look(settings, config, &sources.metrics));
                let looking = AbortOnDropHandle::new(tokio::spawn(looking));
                let node = Node {
                    name,
                    state: Arc::clone(waiting.state()),
                    stream: None,
                };
                let writing = Writing {
                    journal: Arc::new(waiting.journal(appender.clone())),
                    thread: storage::spawn_writer(maintaining, || {
                        waiting.run();
                        drop(looking); // it ends with the thread, if not before
                    })?,
                    appender,
                };
                Ok((writing, node))
            }
        }
    }
}

/// What looks for the stream once.
fn look(
    settings: nats::Settings,
    config: &Config,
    metrics: &Arc<Metrics>,
) -> impl Fn() -> Looking + use<> {
    let (config, metrics) = (Arc::new(config.clone()), Arc::clone(metrics));
    move || {
        let (settings, config) = (settings.clone(), Arc::clone(&config));
        let metrics = Arc::clone(&metrics);
        Box::pin(async move {
            let found = find(&settings).await;
            let (nats, stream) = found.map_err(|error| said(&error, &config))?;
            note_found(&settings.node, &stream);
            note_synced(&metrics, nats.synced());
            Ok((nats, stream))
        })
    }
}

fn note_synced(metrics: &Metrics, synced: Synced) {
    let is_shown = i64::from(synced == Synced::Shown);
    metrics.cluster_sync_shown.set(is_shown);
}

fn parts(
    config: &Config,
    node: &str,
    writer: Writer<ToHub>,
    appender: &Appender,
    metrics: &Arc<Metrics>,
    common: SayCommon,
) -> Parts<ToHub> {
    let me = Author(Uuid::new_v4().as_u128());
    let limits = Limits {
        drafts_max: FRAME_DRAFTS_MAX,
        bytes_max: usize_of(config.cluster.frame_bytes_max),
    };
    Parts {
        me,
        node: node.to_owned(),
        replica: Replica::new(writer, appender, me, node.to_owned(), limits),
        limits,
        message_bytes_max: message_bytes_max(config),
        times: Times {
            publish_timeout: config.cluster.publish_timeout,
            answer_timeout: config.ingest.answer_timeout.mul_f64(PATIENCE),
            read_wait: config.cluster.read_wait,
        },
        metrics: Arc::clone(metrics),
        common,
    }
}

/// What this node says of what has to be the same on all. It does not wait for a reload, and says then what it said before.
pub(super) fn common(
    config: &Arc<Mutex<Config>>,
    credentials: &Arc<SharedCredentials>,
) -> SayCommon {
    let (config, credentials) = (Arc::clone(config), Arc::clone(credentials));
    let last = Mutex::new(config.lock().of_all_nodes());
    SayCommon::new(move |epoch| {
        let mut last = last.lock();
        if let Some(config) = config.try_lock() {
            *last = config.of_all_nodes();
        }
        Common {
            configuration: last.clone(),
            credentials: credentials.get().fingerprint(epoch.to_string().as_bytes()),
        }
    })
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
