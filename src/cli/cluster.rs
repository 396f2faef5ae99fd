//! `cluster`: what operators of several brokers with one log need. Each verb has a file in `cluster/`.

mod status;
mod transfer;

use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Looks after several brokers with one log.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast cluster status
  blobcast cluster status --grpc-url http://10.0.0.2:50051 --output json
  blobcast cluster import --from blobcast-data --config blobcast.toml
  blobcast cluster heal --from node-a --config blobcast.toml

Exit codes: 0 done; 1 something went wrong; 2 usage.")]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show which nodes there are, which of them writes, how far each is behind, and what is wrong.
    Status(status::StatusArgs),
    /// Take the log of a broker that was alone into the empty stream of a cluster.
    Import(transfer::ImportArgs),
    /// Take the log of a node into a new stream, when the old one is lost.
    Heal(transfer::HealArgs),
}

pub(super) use status::as_json as status_json;

pub(super) async fn run(args: ClusterArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        ClusterCommand::Status(args) => status::run(args).await,
        ClusterCommand::Import(args) => transfer::import(args).await,
        ClusterCommand::Heal(args) => transfer::heal(args).await,
    }
}
