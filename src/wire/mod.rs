//! Protobuf: the generated code, and the conversions between it and the domain.
//!
//! Wire types stop here and in `rpc`; no layer below knows them. An event is encoded once, when it is appended
//! ([`encode_event`]); every delivery copies those bytes behind a prefix ([`Delivery`]). Never does I/O.

mod convert;
pub mod frame;
mod reason;
mod request;
mod status;

pub use convert::{
    duration, encode_event, encode_overdue, gave_up, status_to_wire, timestamp,
    verification_to_wire,
};
pub use frame::{Delivery, Frame, Raw, encode_streamed, put_message};
pub use reason::{DOMAIN, Reason, Retry};
pub use request::{
    FilterLimits, FilterRefusal, Malformed, filter_from_wire, instant_from_wire, positive_duration,
};

/// Messages and clients, generated from `proto/blobcast/v1`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("blobcast.v1");
}

/// Service traits and servers, generated with [`Frame`] in place of the answers that carry events.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod service {
    include!(concat!(env!("OUT_DIR"), "/services/blobcast.v1.rs"));
}

/// The compiled `FileDescriptorSet` of the package and its imports, for server reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));
