//! `cluster import` and `cluster heal`: they take a data directory into the empty stream of a cluster. Neither needs a running broker.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Args;

use crate::{
    cli::{keep_files_private, output::note, serve::ServeArgs},
    config,
    server::{self, TransferKind, TransferRequest, Transferred},
    store::Taken,
};

/// Takes the log of a broker that was alone into an empty stream.
#[derive(Args, Debug)]
#[command(after_help = "\
The broker on the directory must be stopped. Events, quarantine and expectations keep their places \
and numbers, and the log its identity, so cursors stay good. At the end a file in the directory \
(appended-to) keeps brokers from starting there. Nodes begin with a new directory each, once \
this has ended: until then they refuse the stream.

The stream must be missing or empty. What a transfer that was cut off has left in it is never \
used: run it again with --anew.

Examples:
  blobcast cluster import --from blobcast-data --config blobcast.toml
  blobcast cluster import --from blobcast-data --cluster nats://10.0.0.1:4222,nats://10.0.0.2:4222

Exit codes: 0 the stream has all of it; 1 an error; 2 usage.")]
pub(in crate::cli) struct ImportArgs {
    /// Data directory of the broker.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
}

/// Takes the log of a node into a new stream, because the old one is lost or damaged.
#[derive(Args, Debug)]
#[command(after_help = "\
Stop all nodes first, keep their directories, and name the one with the highest place. The stream \
must be missing or empty: delete what is left of the old one (`nats stream rm`). The log gets a new \
identity: cursors of the old one are refused with EPOCH_MISMATCH, and their readers start again \
with `--from earliest` or a time. At the end a file in the directory (appended-to) keeps nodes from \
starting there. All nodes begin with a new directory.

With --keep-epoch cursors stay good. That is right only if no client has seen an event that the \
directory does not have: other events would get the same places.

Examples:
  blobcast cluster heal --from node-a --config blobcast.toml
  blobcast cluster heal --from node-a --keep-epoch --cluster nats://10.0.0.1:4222

Exit codes: 0 the stream has all of it; 1 an error; 2 usage.")]
pub(in crate::cli) struct HealArgs {
    /// Data directory of the node.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Keep the log's identity, and with it all cursors.
    #[arg(long)]
    keep_epoch: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// The cluster whose stream is filled.
#[derive(Args, Debug)]
struct TargetArgs {
    /// The stream may have what a transfer has left that was cut off: make it again.
    #[arg(long)]
    anew: bool,
    /// Configuration file of the nodes (TOML).
    #[arg(long, value_name = "PATH", env = "BLOBCAST_CONFIG")]
    config: Option<String>,
    /// NATS servers, comma-separated: nats://HOST:PORT or tls://HOST:PORT.
    #[arg(long, value_name = "SERVERS")]
    cluster: Option<String>,
    /// Name of the cluster [default: main].
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
}

pub(in crate::cli) async fn import(args: ImportArgs) -> anyhow::Result<ExitCode> {
    run(TransferKind::Import, args.from, args.target).await
}

pub(in crate::cli) async fn heal(args: HealArgs) -> anyhow::Result<ExitCode> {
    let kind = TransferKind::Heal {
        keeps_epoch: args.keep_epoch,
    };
    run(kind, args.from, args.target).await
}

async fn run(kind: TransferKind, from: PathBuf, target: TargetArgs) -> anyhow::Result<ExitCode> {
    keep_files_private();
    let began = Instant::now();
    let TargetArgs {
        anew,
        config,
        cluster,
        cluster_name,
    } = target;
    let flags = ServeArgs {
        config,
        cluster,
        cluster_name,
        ..ServeArgs::default()
    };
    let config = config::load(&flags.sources())?;
    let request = TransferRequest { kind, from, anew };
    let from = request.from.clone();
    let transferred = server::transfer(&config, request, note).await?;
    tell(&transferred, began);
    note(&format!(
        "no broker will start on {} any more: start the nodes with a new --data-dir each",
        from.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn tell(transferred: &Transferred, began: Instant) {
    let Transferred {
        taken,
        epoch,
        messages,
        stream,
    } = transferred;
    let Taken {
        events,
        quarantined,
        damaged,
        expectations,
        bytes,
        ..
    } = taken;
    let seconds = began.elapsed().as_secs_f64();
    note(&format!(
        "{events} events, {quarantined} quarantined callbacks and {expectations} expectations are in the stream {stream}, as log \
         {epoch}: {bytes} bytes in {messages} messages, in {seconds:.1} s"
    ));
    if *damaged > 0 {
        note(&format!(
            "{damaged} quarantined callbacks are damaged in the directory, and stay behind"
        ));
    }
}
