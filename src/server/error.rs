//! Why a broker does not start, and why a running one ends without a request.

use std::{io, net::SocketAddr};

use tokio::task::JoinError;

use super::refusal::{self, Refusal};
use crate::store::OpenError;

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A listener's address cannot be bound.
    #[error("cannot listen on {address} ({key}): {source}; {}choose another address with {flag}", holder(source, *address))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The configuration key.
        key: &'static str,
        /// The flag that overrides the key.
        flag: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The broker cannot be a node of the cluster.
    #[error("{0}")]
    Cluster(String),
    /// The files take too long to read.
    #[error("cannot read the credentials and certificates: {0}")]
    Files(String),
    /// The audit file cannot be opened.
    #[error("cannot open audit.file: {0}")]
    Audit(String),
    /// Files that the configuration names cannot be used.
    #[error("{}", refusal::joined(.0))]
    Refused(Vec<Refusal>),
    /// A socket that was inherited or bound cannot be used.
    #[error("cannot use a listening socket: {0}")]
    Socket(io::Error),
    /// The operating system gives no thread.
    #[error("cannot start the writer's thread: {0}")]
    Thread(io::Error),
}

/// What probably holds a port that is in use, and how to see it.
fn holder(error: &io::Error, address: SocketAddr) -> String {
    if error.kind() != io::ErrorKind::AddrInUse {
        return String::new();
    }

    format!(
        "another broker may be running there (`ss -ltnp 'sport = :{}'` shows the process): stop it, or ",
        address.port()
    )
}

/// Why a running broker ends without a request to stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The process should have started itself anew, and cannot.
    #[error("cannot start anew: {0}")]
    StartAnew(io::Error),
    /// A task that must live as long as the process has ended.
    #[error("{0} has ended unexpectedly")]
    Ended(&'static str),
    /// A task has panicked.
    #[error("a task has failed: {0}")]
    Task(#[from] JoinError),
}
