//! blobcast.
pub mod callback;
pub mod checker;
pub mod cli;
pub mod config;
pub mod event;
pub mod hub;
pub mod ingest;
pub mod journal;
pub mod metrics;
pub mod rpc;
pub mod server;
pub mod simulator;
pub mod store;
pub mod subscription;
pub mod vendor;
pub mod wire;
