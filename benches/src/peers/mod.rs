//! Everyone who is measured: the broker, and what one would use instead of it.

pub mod append;
pub mod blobcast;
pub mod broadcast;
pub mod cluster;
pub mod etcd;
pub mod front;
pub mod loopback;
pub mod nats;
