//! Everything that speaks to NATS: bytes in, bytes out. Knows nothing of the log, of frames, or of who writes.
//!
//! A cluster's log is one stream of JetStream, `BLOBCAST_<name>`, with one subject. [`Nats`] connects, checks what the servers
//! are and may, and makes the stream or adopts it. Its [`Handle`] carries out what a node decides, and tells what happens as
//! [`Event`]s. The journal of a node drives it; a broker that is alone uses nothing of this.
//!
//! ```text
//! Handle ──publish──▶ publisher  one message at a time, on a condition; acked, refused, or in doubt
//!        ──fetch────▶ fetcher    one message of the stream, by its sequence           ┌─────────┐
//!        ──request──▶ requests   to another node, four at a time; and those of others │         │
//!        ──presence─▶ presence   this node's, and that of all nodes                   │ Events  │──▶ the journal's thread
//!        ──purge────▶ purger                                                          │         │
//!                     follower   every message of the stream in order, without a gap  │         │
//!                     watch      the connection, and what the stream's leader says    └─────────┘
//! ```
//!
//! **Nothing here decides what is true.** A message that is delivered twice, late or out of a foreign hand is for the apply rule
//! in `cluster` to judge; an answer that does not come is a doubt, and is reported as one.
//!
//! **The follower is the only one that waits.** Its messages take places in the queue of events, and it reads no further while
//! there is none; the server then holds the rest back. A method of the handle never waits: what it hands over lies in a slot,
//! where newer replaces older, or in a short queue that says when it is full.

mod settings;
mod error;
mod event;
mod backoff;
mod slot;

mod link;
mod servers;
mod asker;
mod api;
mod monitoring;
mod checks;
mod stream_config;
mod stream;

mod delivery;
mod follower;
mod direct;
mod publisher;
mod fetcher;
mod requests;
mod presence;
mod purger;
mod watch;

mod handle;
mod connect;
mod filling;

pub use connect::Nats;
pub use error::NatsError;
pub use event::{Doubt, Event, Events, NoReply, RequestId};
pub use handle::Handle;
pub use monitoring::Synced;
pub use settings::{Settings, Sync};
pub use stream::StreamState;
pub use watch::State;
