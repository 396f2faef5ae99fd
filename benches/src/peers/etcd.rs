//! etcd: the real server, from PATH or out of Debian's package, and the few of its messages that are needed.
//!
//! Its clients put all watches of a connection into one stream, so these do, too.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use crate::{
    bench::Bench,
    counters::Counters,
    harness::{self, Process, Says},
    report::Who,
    subscribers,
};

/// etcd's watch.
pub const WATCH: Who = Who {
    name: "etcd watch",
    settings: "etcd from Debian, one member, defaults (durable); one stream with all watches for each connection, as its clients do",
};

const WATCH_PATH: &str = "/etcdserverpb.Watch/Watch";
const PUT_PATH: &str = "/etcdserverpb.KV/Put";

#[derive(Clone, PartialEq, prost::Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchCreateRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchResponse {
    #[prost(int64, tag = "2")]
    watch_id: i64,
    #[prost(bool, tag = "3")]
    created: bool,
    /// Left as they are.
    #[prost(bytes = "bytes", repeated, tag = "11")]
    events: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// A running server.
#[derive(Debug)]
pub struct Etcd {
    /// The process.
    pub process: Process,
    /// For clients.
    pub address: SocketAddr,
    _directory: TempDir,
}

impl Etcd {
    /// Starts a server with an empty directory; `None`, after saying so, if there is none for this machine.
    pub async fn start(bench: &Bench) -> Result<Option<Self>> {
        let Some(binary) = binary(bench) else {
            return Ok(None);
        };
        let directory = harness::directory(&bench.target)?;
        let (address, peer) = (harness::free_address()?, harness::free_address()?);
        let mut command = Command::new(binary);
        command.arg("--data-dir").arg(directory.path().join("data"));
        for (flag, address) in [
            ("--listen-client-urls", address),
            ("--advertise-client-urls", address),
            ("--listen-peer-urls", peer),
            ("--initial-advertise-peer-urls", peer),
        ] {
            command.arg(flag).arg(format!("http://{address}"));
        }
        command
            .arg("--initial-cluster")
            .arg(format!("default=http://{peer}"));
        // Room for every put of a run; by default it refuses more than 2 GiB.
        command
            .arg("--quota-backend-bytes")
            .arg((8u64 << 30).to_string());
        let mut process = Process::start(command, Says::Stderr)?;
        let is_ready = |line: &str| {
            line.contains("ready to serve client requests")
                .then_some(())
        };
        process.hears(is_ready).await.context("etcd")?;
        Ok(Some(Self {
            process,
            address,
            _directory: directory,
        }))
    }
}

/// The server's binary: what PATH has, or taken out of Debian's package, as nobody has asked for its service.
pub fn binary(bench: &Bench) -> Option<PathBuf> {
    if Command::new("etcd").arg("--version").output().is_ok() {
        return Some("etcd".into());
    }
    let directory = bench.target.join("benches/etcd");
    let binary = directory.join("usr/bin/etcd");
    if !binary.is_file()
        && let Err(error) = extract(&directory)
    {
        eprintln!("etcd is left out: it is neither in PATH nor to be had from Debian ({error:#})");
        return None;
    }
    Some(binary)
}

fn extract(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let script = "apt-get download -qq -o APT::Sandbox::User=root etcd-server && dpkg-deb -x etcd-server_*.deb . && rm etcd-server_*.deb";
    let status = Command::new("sh")
        .arg("-ec")
        .arg(script)
        .current_dir(directory)
        .status()?;
    ensure!(status.success(), "apt-get: {status}");
    Ok(())
}

/// Open watches; closed when dropped.
#[derive(Debug)]
pub struct Watches {
    _tasks: JoinSet<Result<(), Status>>,
    _requests: Vec<mpsc::UnboundedSender<WatchRequest>>,
}

impl Watches {
    /// Opens `per_connection` watches on each connection, numbered from 0, and counts the events of each.
    pub async fn open(
        etcd: SocketAddr,
        connections: usize,
        per_connection: usize,
        key: impl Fn(usize) -> String,
        received: &Counters,
    ) -> Result<Self> {
        let (mut tasks, mut requests) = (JoinSet::new(), Vec::new());
        for connection in 0..connections {
            let (sender, receiver) = mpsc::unbounded_channel();
            let mut client = client(&subscribers::connect(etcd).await?).await?;
            let first = connection * per_connection;
            for number in first..first + per_connection {
                let create = WatchCreateRequest {
                    key: key(number).into(),
                };
                sender.send(WatchRequest {
                    create: Some(create),
                })?;
            }
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let (path, receiver) = (
                PathAndQuery::from_static(WATCH_PATH),
                UnboundedReceiverStream::new(receiver),
            );
            let mut stream = client
                .streaming(Request::new(receiver), path, codec)
                .await?
                .into_inner();
            let (received, (all_open, is_open)) = (Arc::clone(received), oneshot::channel());
            tasks.spawn(async move {
                let mut to_open = Some((per_connection, all_open));
                while let Some(response) = stream.message().await? {
                    if response.created
                        && let Some((left, all_open)) = to_open.take()
                    {
                        // Nobody waits any more only if the bench has ended.
                        to_open = if left > 1 {
                            Some((left - 1, all_open))
                        } else {
                            all_open.send(()).err().and(None)
                        };
                    }
                    // Watch ids count from 0 on each stream, in the order of the requests.
                    let number = first + usize::try_from(response.watch_id).unwrap_or_default();
                    response
                        .events
                        .iter()
                        .for_each(|_| received[number].count());
                }
                Ok(())
            });
            is_open.await.context("the watches were not opened")?;
            requests.push(sender);
        }
        Ok(Self {
            _tasks: tasks,
            _requests: requests,
        })
    }
}

/// A client that puts values.
#[derive(Clone, Debug)]
pub struct Putter(Channel);

impl Putter {
    /// On a connection of its own.
    pub async fn connect(etcd: SocketAddr) -> Result<Self> {
        Ok(Self(subscribers::connect(etcd).await?))
    }

    /// Puts a value, and waits until it is durable.
    pub async fn put(&self, key: String, value: Bytes) -> Result<()> {
        let codec = ProstCodec::<PutRequest, PutResponse>::default();
        let request = Request::new(PutRequest {
            key: key.into(),
            value,
        });
        client(&self.0)
            .await?
            .unary(request, PathAndQuery::from_static(PUT_PATH), codec)
            .await?;
        Ok(())
    }
}

async fn client(channel: &Channel) -> Result<Grpc<Channel>> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await?;
    Ok(client)
}
