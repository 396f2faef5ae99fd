//! Integration tests: a real broker process on free ports, real HTTP and gRPC clients, `kill -9`
//! for crashes.
//!
//! One binary, so that it is linked once. `support` is the fixture; every other module is named
//! after what it tests.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "a test binary has no users, a panic is how a test fails, and a test is a story told from top to bottom"
)]

mod addresses;
mod admin_service;
mod answering_log;
mod audit;
mod backup;
mod callback_authentication;
mod cluster;
mod command_line;
mod configuration;
mod console;
mod described;
mod damage_while_running;
mod documents;
mod door;
mod door_pages;
mod door_stream;
mod ended_streams;
mod erasure;
mod expectation_turns;
mod expectations;
mod forwarding;
mod generated_code;
mod grpc_front;
mod grpc_web;
mod guarantees;
mod history;
mod hostile_text;
mod http_front;
mod journal_contract;
mod large_events;
mod late_messages;
mod late_tasks;
mod log_info;
mod layering;
mod lifecycle;
mod memory;
mod nats_follower;
mod nats_requests;
mod nats_start;
mod nats_tls;
mod nats_writing;
mod outage_lists;
mod outages;
mod overview;
mod permissions;
mod private_files;
mod proxies;
mod recovered;
mod rehearsal;
mod reconcile;
mod refusals;
mod request_ids;
mod restore_and_append;
mod retention;
mod rotation;
mod segment_summaries;
mod server_contract;
mod sizing;
mod store_damage;
mod store_door;
mod stuck_files;
mod stuck_log;
mod subscribe;
mod supervision;
mod support;
mod tenant_callbacks;
mod tenants;
mod test_callbacks;
mod tls;
mod traces;
mod url_reach;
mod vendor_answers;
mod vendor_behaviour;
mod vendor_keys;
mod vendor_lists;
mod vendor_trouble;
mod vendor_verb;
mod watched_backups;
