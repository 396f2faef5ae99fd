//! The broker through its public doors: a real process on free ports, real HTTP and gRPC clients, `kill -9` for crashes.
//!
//! One binary, so that it is linked once. `support` is the fixture; every other module is named after what it proves.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test binary has no users, and a panic is how a test fails"
)]

mod admin_service;
mod backup;
mod callback_authentication;
mod command_line;
mod configuration;
mod grpc_front;
mod guarantees;
mod history;
mod hostile_text;
mod http_front;
mod journal_contract;
mod layering;
mod lifecycle;
mod memory;
mod permissions;
mod private_files;
mod request_ids;
mod retention;
mod server_contract;
mod store_damage;
mod store_door;
mod stuck_files;
mod stuck_log;
mod subscribe;
mod supervision;
mod support;
mod tls;
mod traces;
mod url_reach;
mod vendor_behaviour;
