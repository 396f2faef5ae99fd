//! A cluster: three NATS servers that sync, nodes of the broker that have one log in their stream, and the same servers alone.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    HeaderMap, Subscriber,
    header::NATS_EXPECTED_LAST_SEQUENCE,
    jetstream::{Context, stream},
};
use axum::body::Bytes;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};

use super::{blobcast, front::Front, nats};
use crate::{
    bench::Bench,
    harness::{self, Process, Says},
    load::{self, Schedule},
    report::Who,
};

/// One node that takes everything.
pub const ONE_NODE: Who = Who {
    name: "blobcast, one node",
    settings: "three nats-servers with sync_interval: always, a stream with three replicas, and one node with its defaults",
};
/// Three nodes, each of which takes a third.
pub const THREE_NODES: Who = Who {
    name: "blobcast, three nodes",
    settings: "the same with three nodes, each of which has a third of the connections",
};
/// What the log of a cluster is made of, and nothing else is done.
pub const FRAMES: Who = Who {
    name: "JetStream, frames",
    settings: "the same servers; messages with as many bytes as 512 callbacks take in the stream of a node, which expect the last sequence; one in flight",
};
/// What one would do without frames.
pub const MESSAGES: Who = Who {
    name: "JetStream, a message each",
    settings: "the same servers; a message for each callback, as many in flight as there are connections",
};

/// Callbacks of a full frame: the protocol's.
const FRAME_CALLBACKS: u64 = 512;
const SERVERS: usize = 3;
/// The stream of the peers; that of nodes is below.
const STREAM: &str = "frames";
const STREAM_OF_NODES: &str = "BLOBCAST_main";
/// Time for servers to find each other, for a stream to have a leader, and for a node to have read all there is.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(2);

/// Three running servers.
#[derive(Debug)]
pub struct Servers {
    /// The processes.
    pub processes: Vec<Process>,
    urls: Vec<String>,
    monitoring_urls: Vec<String>,
    _directories: Vec<TempDir>,
}

impl Servers {
    /// Starts them with empty directories, and waits until they can keep a stream.
    pub async fn start(bench: &Bench) -> Result<Self> {
        let addresses = || -> Result<Vec<SocketAddr>> {
            (0..SERVERS).map(|_| harness::free_address()).collect()
        };
        let (clients, routes, monitoring) = (addresses()?, addresses()?, addresses()?);
        let with = |scheme: &str, addresses: &[SocketAddr]| -> Vec<String> {
            let addresses = addresses.iter();
            addresses
                .map(|address| format!("{scheme}://{address}"))
                .collect()
        };
        let all_routes = with("nats", &routes).join(", ");
        let (mut processes, mut directories) = (Vec::new(), Vec::new());
        for number in 0..SERVERS {
            let directory = harness::directory(&bench.target)?;
            let file = directory.path().join("nats.conf");
            let store = directory.path().join("jetstream");
            let configuration = format!(
                "server_name: nats-{number}\nlisten: \"{}\"\nhttp: \"{}\"\nmax_payload: 8MB\nmax_pending: 1GB\n\
                 jetstream {{ store_dir: \"{}\", sync_interval: always, max_file_store: 1TB }}\n\
                 cluster {{ name: benches, listen: \"{}\", routes: [ {all_routes} ] }}\n",
                clients[number],
                monitoring[number],
                store.display(),
                routes[number]
            );
            fs::write(&file, configuration)?;
            let mut command = Command::new(nats::binary(bench)?);
            command.arg("--config").arg(&file);
            processes.push(Process::start(command, Says::Stderr)?);
            directories.push(directory);
        }
        for process in &mut processes {
            let is_ready = |line: &str| line.contains("Server is ready").then_some(());
            process.hears(is_ready).await.context("nats-server")?;
        }
        let servers = Self {
            processes,
            urls: with("nats", &clients),
            monitoring_urls: with("http", &monitoring),
            _directories: directories,
        };
        servers.have_a_leader().await?;
        Ok(servers)
    }

    async fn have_a_leader(&self) -> Result<()> {
        let (context, began) = (self.context(0).await?, Instant::now());
        while let Err(problem) = context.query_account().await {
            ensure!(began.elapsed() < PATIENCE, "JetStream: {problem}");
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Starts a node with an empty directory, and waits until it has read the stream and is ready.
    pub async fn node(&self, bench: &Bench, name: &str) -> Result<Node> {
        let directory = harness::directory(&bench.target)?;
        let (servers, monitoring) = (self.urls.join(","), self.monitoring_urls.join(","));
        let settings = [
            ("cluster.servers", servers.as_str()),
            ("cluster.monitoring_urls", &monitoring),
            ("cluster.node", name),
        ];
        let began = Instant::now();
        let mut process = Process::start(
            blobcast::command(&bench.server, directory.path(), &settings),
            Says::Stderr,
        )?;
        let [ingest, grpc, admin] = process
            .hears(blobcast::addresses)
            .await
            .with_context(|| format!("node {name}"))?;
        while !is_ready(admin).await? {
            ensure!(began.elapsed() < PATIENCE, "node {name} is not ready");
            sleep(POLL).await;
        }
        Ok(Node {
            front: Front {
                process,
                ingest,
                grpc,
                directory: Some(directory),
            },
            ready_after: began.elapsed(),
        })
    }

    /// A connection to one of the servers.
    pub async fn context(&self, number: usize) -> Result<Context> {
        let client = nats::connect(&self.urls[number % SERVERS]).await?;
        Ok(nats::context(client))
    }

    /// The stream of the peers, made as soon as the servers can.
    pub async fn stream(&self) -> Result<stream::Stream> {
        let context = self.context(0).await?;
        let config = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![STREAM.to_owned()],
            num_replicas: SERVERS,
            ..Default::default()
        };
        let began = Instant::now();
        loop {
            match context.get_or_create_stream(config.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(problem) if began.elapsed() > PATIENCE => return Err(problem.into()),
                Err(_) => sleep(POLL).await,
            }
        }
    }

    /// Everything that is published from now on, at one of the servers.
    pub async fn follow(&self, number: usize) -> Result<Subscriber> {
        let client = nats::connect(&self.urls[number % SERVERS]).await?;
        let stream = nats::context(client.clone()).get_stream(STREAM).await?;
        nats::follow(&client, &stream).await
    }

    /// Bytes of the nodes' stream.
    pub async fn bytes_of_nodes(&self) -> Result<u64> {
        let context = self.context(0).await?;
        let stream = context.get_stream(STREAM_OF_NODES).await?;
        Ok(stream.cached_info().state.bytes)
    }
}

/// A node, and what it took to become one.
#[derive(Debug)]
pub struct Node {
    /// Where it listens.
    pub front: Front,
    /// From the start of its process on.
    pub ready_after: Duration,
}

/// Publishes a message for one callback, and waits until it is acknowledged.
pub async fn publish(context: &Context, number: u64) -> Result<()> {
    let body = Bytes::from(load::body(number));
    context.publish(STREAM, body).await?.await?;
    Ok(())
}

/// Publishes a message for each callback when it is due, and returns when all are acknowledged.
pub async fn publish_on_schedule(context: Context, schedule: Schedule) -> Result<()> {
    let (sender, mut due) = mpsc::unbounded_channel();
    // A thread, because the runtime's timers are right to a millisecond only.
    thread::spawn(move || {
        for number in schedule.numbers() {
            let until = schedule.due(number);
            thread::sleep(until.saturating_duration_since(Instant::now()));
            if sender.send(number).is_err() {
                return; // publishing has failed, and returns the error
            }
        }
    });
    let mut tasks = JoinSet::new();
    while let Some(number) = due.recv().await {
        let context = context.clone();
        tasks.spawn(async move { publish(&context, number).await });
    }
    tasks.join_all().await.into_iter().collect()
}

/// Publishes frames, one after the other, and counts their callbacks. Returns only with an error.
pub async fn publish_frames(
    context: Context,
    mut last: u64,
    bytes_each: u64,
    count: impl Fn(u64),
) -> Result<()> {
    let body = load::body(0);
    let bytes = body.iter().copied().cycle();
    let frame: Bytes = bytes
        .take((bytes_each * FRAME_CALLBACKS) as usize)
        .collect();
    loop {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SEQUENCE, last.to_string().as_str());
        let publishing = context.publish_with_headers(STREAM, headers, frame.clone());
        last = publishing.await?.await?.sequence;
        count(FRAME_CALLBACKS);
    }
}

/// What `/readyz` says.
async fn is_ready(admin: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect(admin).await?;
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
