//! Takes a data directory into the empty stream of a cluster, from which nodes that start with an empty directory have its log.

use std::path::PathBuf;

use uuid::Uuid;

use super::{cluster, error::StartError, numbers::usize_of};
use crate::{
    cluster::{Author, Link},
    config::Config,
    event::Epoch,
    nats::{Nats, NatsError},
    store::{Taken, Transfer, TransferError},
};

/// Bytes of a message beside a frame's entries: far more than there are.
const ENVELOPE_BYTES: usize = 1_024;
/// The share of the stream's room that a log may take: nodes write, too.
const ROOM: f64 = 0.9;

/// What is taken over, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferKind {
    /// The log of a broker that was alone.
    Import,
    /// The log of a node, whose stream is lost.
    Heal {
        /// The log keeps its identity, so cursors stay good.
        keeps_epoch: bool,
    },
}

/// What to take where.
#[derive(Clone, Debug)]
pub(crate) struct TransferRequest {
    pub kind: TransferKind,
    /// The data directory.
    pub from: PathBuf,
    /// The stream may have what a transfer has left that was cut off.
    pub anew: bool,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transferred {
    pub taken: Taken,
    pub epoch: Epoch,
    /// Messages of the stream.
    pub messages: u64,
    pub stream: String,
}

/// Why nothing was taken over, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferFailure {
    #[error(
        "cluster.servers is empty: name the NATS servers by --cluster, or in the configuration"
    )]
    NoServers,
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Directory(#[from] TransferError),
    #[error("{} is the directory of a node of a cluster: if its stream is lost, use `blobcast cluster heal`", .0.display())]
    OfNode(PathBuf),
    #[error("{} is the directory of a broker that is alone: use `blobcast cluster import`", .0.display())]
    OfOne(PathBuf),
    #[error(
        "something in the directory takes {found} bytes, and NATS takes messages of {taken}: raise max_payload of the servers"
    )]
    TooLarge { found: usize, taken: usize },
    #[error(
        "the directory has {found} bytes, and the stream takes {taken}, of which nodes need some: raise cluster.stream_bytes_max"
    )]
    NoRoom { found: u64, taken: u64 },
    #[error(
        "the directory can be read no more ({0}): the stream is not whole; run this again with --anew"
    )]
    Unreadable(String),
}

/// Takes the directory over. `tell` gets lines for people.
pub(crate) async fn transfer(
    config: &Config,
    request: TransferRequest,
    tell: impl Fn(&str),
) -> Result<Transferred, TransferFailure> {
    if !config.cluster.is_on() {
        return Err(TransferFailure::NoServers);
    }
    let settings = cluster::settings_of_command(config)?;
    let stream = format!("BLOBCAST_{}", config.cluster.name);
    let to = format!("the stream {stream}");
    // Servers that cannot be used should not cost the reading of a log.
    let mut nats = Nats::connect(settings).await?;

    tell(&format!("reading {}", request.from.display()));
    let transfer = open(&request, to.clone()).await?;
    check(config, &request, &transfer, nats.message_bytes_max())?;
    let epoch = match request.kind {
        TransferKind::Import | TransferKind::Heal { keeps_epoch: true } => transfer.epoch(),
        TransferKind::Heal { keeps_epoch: false } => Epoch(Uuid::new_v4().as_u64_pair().0),
    };

    let mark = mark(&request);
    nats.begin_filling(epoch, &mark, request.anew).await?;
    tell(&format!(
        "writing {} bytes into {to}",
        transfer.taken().bytes
    ));
    let messages = fill(config, &mut nats, &transfer, epoch).await?;
    // In this order: the log must never be served at both places.
    transfer.mark_used_up(&to)?;
    nats.end_filling(&mark, messages).await?;
    Ok(Transferred {
        taken: *transfer.taken(),
        epoch,
        messages,
        stream,
    })
}

async fn open(request: &TransferRequest, to: String) -> Result<Transfer, TransferFailure> {
    let from = request.from.clone();
    let opened = tokio::task::spawn_blocking(move || Transfer::open(&from, &to)).await;
    let opened = opened.map_err(|error| TransferFailure::Unreadable(error.to_string()))?;
    Ok(opened?)
}

/// Refuses what could not be done to its end, before anything is written.
fn check(
    config: &Config,
    request: &TransferRequest,
    transfer: &Transfer,
    message_bytes_max: usize,
) -> Result<(), TransferFailure> {
    let from = || request.from.clone();
    match (request.kind, transfer.is_of_node()) {
        (TransferKind::Import, true) => return Err(TransferFailure::OfNode(from())),
        (TransferKind::Heal { .. }, false) => return Err(TransferFailure::OfOne(from())),
        _ => {}
    }
    let taken = transfer.taken();
    let fits = message_bytes_max.saturating_sub(ENVELOPE_BYTES);
    if taken.largest_bytes > fits {
        return Err(TransferFailure::TooLarge {
            found: taken.largest_bytes,
            taken: fits,
        });
    }
    let room = config.stream_bytes_max();
    if taken.bytes as f64 > room as f64 * ROOM {
        return Err(TransferFailure::NoRoom {
            found: taken.bytes,
            taken: room,
        });
    }
    Ok(())
}

/// What the stream says of itself until it is whole.
fn mark(request: &TransferRequest) -> String {
    let verb = match request.kind {
        TransferKind::Import => "import",
        TransferKind::Heal { .. } => "heal",
    };
    let from = request.from.display();
    format!("blobcast cluster {verb} --from {from} ({})", Uuid::new_v4())
}

/// Writes everything; how many messages it is.
async fn fill(
    config: &Config,
    nats: &mut Nats,
    transfer: &Transfer,
    epoch: Epoch,
) -> Result<u64, TransferFailure> {
    let author = Author(Uuid::new_v4().as_u128());
    let fits = nats.message_bytes_max().saturating_sub(ENVELOPE_BYTES);
    let bytes_max = usize_of(config.cluster.frame_bytes_max).min(fits);
    let unreadable = |problem: &dyn ToString| TransferFailure::Unreadable(problem.to_string());
    let mut link = Link::start(epoch);
    for contents in transfer.frames(author, "transfer", bytes_max) {
        let contents = contents.map_err(|error| unreadable(&error))?;
        let frame = contents.encode(link).map_err(|error| unreadable(&error))?;
        let sequence = link.frame + 1;
        nats.fill(sequence, frame.bytes).await?;
        link = Link {
            epoch,
            frame: sequence,
            chain: frame.chain,
        };
    }
    Ok(link.frame)
}
