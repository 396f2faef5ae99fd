//! The configuration: every limit and address of the broker, typed and checked before anything starts.
//!
//! Owns the one default file, the four layers (defaults < file < environment < flags), the range of each key ([`KEYS`]) and the
//! rules between the keys. `default.toml` is the only place that states a default, documents a key, or makes one exist. Reads
//! one file, and never the process environment: the command line passes that in.

mod check;
mod keys;
mod layers;
mod load;
mod nearest;
mod problem;
mod settings;
#[cfg(test)]
mod tests;
mod units;

pub use crate::size::{SizeError, parse_size};
#[cfg(test)]
pub(crate) use check::answers_bytes_min;
pub use keys::{KEYS, Key, needs_restart};
pub use layers::{CLIENT_VARIABLES, DEFAULT, Sources};
pub use load::{load, logging};
pub use problem::{ConfigErrors, Origin, Problem};
pub use settings::{
    Acme, Admin, Allowlist, Audit, BodySignature, Config, ForwardedHeader, Grpc, Hub, Ingest, Log,
    LogFormat, Logging, Quarantine, Shutdown, Store, Traces,
};
pub(crate) use units::without_secrets as url_without_secrets;
pub use units::{Ratio, UnitError, parse_duration, parse_listen};
