//! One callback URL in, typed event streams out: the broker, its command line, and the pieces they are made of.
//!
//! ```text
//! callback ─▶ ingest ─append─▶ journal ─▶ store ─publish─▶ hub ─▶ subscription ─▶ rpc ─▶ client
//!             read the body    order and   events,          ring of      catching up ⇄ live
//!             and the URL      durability  tasks, dedupe    recent events
//!                                            └──── read: catch-up, lag, lookup ────▲
//! ```
//!
//! **The log is the truth; the live path is only a shortcut.** A callback becomes an event when the store's one writer has
//! synced it to disk; only then is it answered, and only then can anybody see it. A subscription reads the log until it
//! has reached the recent events in memory, follows those, and goes back to the log when it falls behind. So a slow reader
//! needs no queue, and a restart loses nothing but the shortcut.
//!
//! To read the source, follow a callback: [`ingest`] takes the request, [`callback`] makes a draft of it with the rules in
//! [`vendor`], [`journal`] hands it to the writer in [`store`], which decides, commits, and publishes to the `hub`. Then
//! follow a reader: `rpc` opens a `subscription`, whose messages [`wire`] puts into frames. `server` builds all of it
//! and takes it down; [`cli`] is the way in.
//!
//! `docs/ARCHITECTURE.md` has both walks with their files, what is on the disk, the order of a start and a stop, what must never
//! be, and a glossary.

// In reading order, lowest layer first.
mod budget;
mod files;
pub mod metrics;
mod accounts;
mod causes;
mod network;
mod printable;
mod sampler;
mod size;
pub mod trace;
mod transit;
mod web;
mod minutes;
mod recent;
mod refused;
mod repetitions;

pub mod config;
pub mod event;

pub mod credentials;
pub mod vendor;
pub mod wire;

pub mod cluster;
pub mod nats;
pub mod store;

mod hub;
pub mod journal;

mod audit;
pub mod callback;
mod subscription;

pub mod reconcile;

pub mod ingest;
mod rpc;
mod console;
mod door;

pub mod sizing;
mod server;

pub mod checker;
pub mod simulator;

pub mod cli;

#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod fuzzing;
