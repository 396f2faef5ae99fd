//! What is configured of NATS, and the names that follow from it. Pure.

use std::{path::PathBuf, time::Duration};

use super::error::NatsError;
use crate::cluster::Author;

/// Longest name of a cluster: it is part of every subject.
const NAME_BYTES_MAX: usize = 64;

/// How to reach NATS, and what it has to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `nats://` or `tls://`, each with a host and perhaps a port. The first connection goes to any of them.
    pub servers: Vec<String>,
    /// The cluster's name, of letters, digits, `-` and `_`.
    pub name: String,
    /// This node's name.
    pub node: String,
    /// How many servers have a copy of the stream.
    pub replicas: usize,
    /// Whether to make the stream if there is none.
    pub create: bool,
    /// Empty without one.
    pub user: String,
    /// The user's password; read again for each connection.
    pub password_file: Option<PathBuf>,
    /// The authorities that are trusted, instead of the system's; read again for each connection.
    pub tls_ca_file: Option<PathBuf>,
    /// This node's certificate; read again for each connection.
    pub tls_certificate_file: Option<PathBuf>,
    /// Its key.
    pub tls_key_file: Option<PathBuf>,
    /// `http://` or `https://`: the monitoring port of each server, where `/varz` says whether it syncs.
    pub monitoring_urls: Vec<String>,
    /// Whether the servers have to show that they sync.
    pub sync: Sync,
    /// Largest message that a server has to take.
    pub message_bytes_max: usize,
    /// Most bytes in the stream.
    pub stream_bytes_max: u64,
    /// How long to wait for the answer to a message.
    pub publish_timeout: Duration,
    /// How long to wait for the answer of another node.
    pub forward_timeout: Duration,
}

/// What is asked of the servers' `sync_interval: always`, without which a crash of the system loses what was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Each server shows it, or the start fails.
    Require,
    /// A server that does not show it is worth a warning.
    Warn,
    /// It is not looked at.
    Off,
}

impl Settings {
    pub(super) fn check(&self) -> Result<(), NatsError> {
        if self.servers.is_empty() {
            return Err(NatsError::NoServers);
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_name = !self.name.is_empty() && self.name.len() <= NAME_BYTES_MAX;
        if !is_name || !self.name.chars().all(fits) {
            return Err(NatsError::Name(self.name.clone()));
        }
        Ok(())
    }

    pub(super) fn stream(&self) -> String {
        format!("BLOBCAST_{}", self.name)
    }

    /// Of the stream.
    pub(super) fn log_subject(&self) -> String {
        format!("blobcast.{}.log", self.name)
    }

    /// Where a node takes requests.
    pub(super) fn append_subject(&self, author: Author) -> String {
        format!("blobcast.{}.append.{:032x}", self.name, author.0)
    }

    /// Where a node shows its presence. Host names have dots, which would be levels here.
    pub(super) fn node_subject(&self) -> String {
        let token: String = (self.node.chars())
            .map(|c| {
                if c.is_alphanumeric() || c == '-' {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        format!("blobcast.{}.nodes.{token}", self.name)
    }

    pub(super) fn nodes_subject(&self) -> String {
        format!("blobcast.{}.nodes.*", self.name)
    }
}
