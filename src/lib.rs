//! blobcast.
pub mod config;
pub mod event;
pub mod hub;
pub mod metrics;
pub mod store;
pub mod subscription;
pub mod vendor;
pub mod wire;
