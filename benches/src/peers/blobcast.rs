//! The broker: the real binary, with its defaults but for what a goal names.

use std::{env, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

use super::front::Front;
use crate::{
    bench::Bench,
    harness::{self, Process, Says},
    report::Who,
    wire::{Filter, SubscribeRequest},
};

/// The broker with its defaults.
pub const BLOBCAST: Who = Who {
    name: "blobcast",
    settings: "defaults; every callback is synced to disk before it is answered or seen",
};
/// Another build of it.
pub const OTHER_BUILD: Who = Who {
    name: "another build",
    settings: "the binary of --beside, set as blobcast is",
};
/// The limits that a hundred thousand subscriptions of one client meet.
pub const MANY: [(&str, &str); 2] = [
    ("grpc.subscriptions_max", "2000000"),
    ("grpc.subscriptions_per_client_max", "2000000"),
];

/// The builds that have turns: two if another one is compared, in place of the peers.
pub fn builds(bench: &Bench) -> Vec<(Who, Bench)> {
    let this = (BLOBCAST, bench.clone());
    let other = bench.beside.clone().map(|server| {
        let bench = Bench {
            server,
            ..bench.clone()
        };
        (OTHER_BUILD, bench)
    });
    [this].into_iter().chain(other).collect()
}

/// Starts a broker with an empty log.
pub async fn start(bench: &Bench, settings: &[(&str, &str)]) -> Result<Front> {
    let directory = harness::directory(&bench.target)?;
    launch(bench, directory, settings).await
}

async fn launch(bench: &Bench, directory: TempDir, settings: &[(&str, &str)]) -> Result<Front> {
    let mut process = Process::start(
        command(&bench.server, directory.path(), settings),
        Says::Stderr,
    )?;
    let [ingest, grpc, _] = process.hears(addresses).await.context("blobcast")?;
    Ok(Front {
        process,
        ingest,
        grpc,
        directory: Some(directory),
    })
}

impl Front {
    /// Starts a broker that has ended on the log it has left.
    pub async fn restart(&mut self, bench: &Bench, settings: &[(&str, &str)]) -> Result<()> {
        let directory = self.directory.take().context("a broker has a directory")?;
        *self = launch(bench, directory, settings).await?;
        Ok(())
    }
}

/// The command that starts it; `program` may be what runs the binary.
pub fn command(server: &Path, directory: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(server);
    // What the machine sets for itself must not reach the broker under measurement.
    for (key, _) in env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("BLOBCAST_"))
    {
        command.env_remove(key);
    }
    command
        .arg("serve")
        .arg("--data-dir")
        .arg(directory.join("data"));
    for flag in ["--ingest-listen", "--grpc-listen", "--admin-listen"] {
        command.arg(flag).arg("127.0.0.1:0");
    }
    // More than any load here: what a URL may bring is not what is measured. Not 0, so that it is counted.
    command.env("BLOBCAST_INGEST__BYTES_PER_MINUTE_MAX", "1TiB");
    let variable = |key: &str| format!("BLOBCAST_{}", key.replace('.', "__").to_uppercase());
    command.envs(settings.iter().map(|(key, value)| (variable(key), value)));
    command
}

/// Where it listens for callbacks, clients and operators, from the line of its log that says that it is ready.
pub fn addresses(line: &str) -> Option<[SocketAddr; 3]> {
    let line: Value = serde_json::from_str(line).ok()?;
    let address = |key: &str| line[key].as_str()?.parse().ok();
    let is_ready = line["message"] == "ready";
    is_ready.then_some([address("ingest")?, address("grpc")?, address("admin")?])
}

/// Everything of one product from now on.
pub fn of_product(product: &str) -> SubscribeRequest {
    let filter = Filter {
        products: vec![product.to_owned()],
        ..Filter::default()
    };
    SubscribeRequest {
        filter: Some(filter),
        ..SubscribeRequest::default()
    }
}

/// The longest interval that a subscription to a task may ask for. By default every stream gets a heartbeat every 15 seconds, and
/// a million streams would keep two cores busy with that alone.
const HEARTBEAT_INTERVAL: prost_types::Duration = prost_types::Duration {
    seconds: 60,
    nanos: 0,
};

/// One task.
pub fn of_task(task_id: String) -> SubscribeRequest {
    of_tasks(vec![task_id])
}

/// Some tasks.
pub fn of_tasks(task_ids: Vec<String>) -> SubscribeRequest {
    let filter = Filter {
        task_ids,
        ..Filter::default()
    };
    SubscribeRequest {
        filter: Some(filter),
        heartbeat_interval: Some(HEARTBEAT_INTERVAL),
        ..SubscribeRequest::default()
    }
}
