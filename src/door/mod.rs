//! The JSON door: every RPC as canonical protobuf JSON over plain HTTP, by the descriptors that reflection serves. So an RPC that is
//! added has its JSON at once, and there is no second implementation of any.
//!
//! Pure: requests become messages of gRPC, and messages and statuses become JSON. `server::grpc::door` makes the call in between, on
//! the same services, with the same limits.

mod catalog;
mod frames;
mod json;
mod openapi;
mod pages;
mod problem;
mod query;
mod route;
mod sse;

pub(crate) use catalog::Rpc;
pub(crate) use frames::{Frames, framed};
pub(crate) use json::{json_of, message_of};
pub(crate) use openapi::openapi;
pub(crate) use pages::lines_of;
pub(crate) use problem::Problem;
pub(crate) use route::{Asked, Input, Shape, asked, is_below};
pub(crate) use sse::{Sent, event_of, event_of_problem};
