//! The configuration: every limit and address of the broker, typed and checked before anything starts.
//!
//! Owns the default file, the four layers (defaults < file < environment < flags), the range of
//! each key (`keys`) and the rules between keys. `default.toml` is the only place that defines a
//! key, its default and its documentation. Reads one file, and never the process environment: the
//! command line passes that in.

mod check;
mod check_cluster;
mod described;
mod keys;
mod layers;
mod load;
mod nearest;
mod problem;
mod settings;
#[cfg(test)]
mod tests;
mod units;
mod urls;

pub(crate) use crate::size::parse_size;
#[cfg(test)]
pub(crate) use check::answers_bytes_min;
pub(crate) use described::{Setting, Settings};
pub(crate) use keys::needs_restart;
pub use keys::{KEYS, Key};
pub use layers::ConfigSources;
pub(crate) use layers::DEFAULT;
pub use load::load;
pub(crate) use load::{Loaded, load_described, logging};
pub use problem::{ConfigErrors, Origin, Problem};
pub(crate) use settings::{
    Acme, Grpc, Ingest, LogFormat, Logging, Reconcile, StreamSync, Traces, UnknownTasks,
};
pub use settings::{Allowlist, BodySignature, Config, ForwardedHeader, Media};
pub(crate) use urls::without_secrets as url_without_secrets;
