//! blobcast.
pub mod event;
pub mod wire;
