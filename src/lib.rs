//! blobcast.
pub mod event;
