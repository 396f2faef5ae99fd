//! Builds the broker from its configuration, runs it, and takes it down in order. The only module that spawns what lives long.

// In reading order.
mod start;
mod running;
mod reload;
mod drain;

mod error;
mod addresses;
mod listeners;
mod from_files;
mod console;
mod credentials;
mod certificates;
mod acme;
mod cluster;
mod storage;
mod transfer;
mod services;
mod tasks;
mod runtimes;

pub(crate) mod net;
mod http;
mod grpc;
mod operations;
mod banner;

mod vendor_api;
mod reconcile;
mod watch;
mod refusal;
mod review_schedule;
mod reopen_after_failure;
mod liveness;
mod systemd;
mod otlp;

mod rehearsal;
mod exposure;
mod resources;
mod cgroup;
mod socket_units;

mod logging;
mod log_writer;
mod audit;
mod aside;
mod numbers;

pub(crate) use addresses::Addresses;
pub(crate) use error::RunError;
pub(crate) use exposure::{Reader, exposed_directory, exposures, warn as warn_of_exposure};
pub(crate) use logging::init as init_logging;
pub(crate) use logging::{flush as flush_log, last_words, log_fatal, log_panic, note};
pub(crate) use rehearsal::{Rehearsal, rehearse};
pub(crate) use running::{Ended, Server};
pub(crate) use runtimes::{Homes, Runtimes};
pub(crate) use transfer::{TransferKind, TransferRequest, Transferred, transfer};
