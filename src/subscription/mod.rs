//! Subscriptions: each open stream of events, from its start in the log to the live path, and the registry of all of them.
//!
//! A subscription is a position and a phase, driven by its poller. It is not a task and has no queue of its own.
//!
//! ```text
//!            ┌────────────▶ scanning ─────────┐ position within the ring
//!   planning ┤  (no tasks)   log, in order     ├──▶ live ──▶ behind: the ring has moved past
//!      ▲     └────────────▶ looking up ───────┘      │
//!      │        (tasks)      index, then events      │
//!      └─────────────────────────────────────────────┘
//! ```
//!
//! Events come in the order of the log in every phase. `position` only rises, and every matching event up to it was handed out.
//!
//! Events from the log are held in borrowed memory ([`Memory`]). Between two polls they lie on a shelf, from which the memory may be
//! taken back for other streams; the stream then reads the events again.
//!
//! `open` opens a subscription, `stream` is its poller's view, `catch_up` gets its events, and `fall_behind` switches it from live back
//! to the log. `registry` lists, limits and ends all of them, and each stream reports to it by its `entry`. Nothing here knows frames
//! or statuses: that is `rpc`.

mod awaited;
mod buffer;
mod catch_up;
mod ended;
mod entry;
mod fall_behind;
mod heard;
mod info;
mod limits;
mod lookup;
mod message;
mod open;
mod open_subscriptions;
mod reading;
mod registry;
mod sources;
mod start;
mod stream;
mod stream_log;

pub(crate) use awaited::Awaited;
pub(crate) use ended::{EndedSubscription, TASK_IDS_SHOWN};
pub(crate) use heard::Heard;
pub(crate) use info::{ListedSubscription, SubscriptionState, Wanted};
pub(crate) use limits::{LimitReached, RegistryLimits};
pub(crate) use message::{Control, StreamEnd, StreamMessage, Withdrawal};
pub(crate) use open::Opening;
pub(crate) use open_subscriptions::WAIT_NAME;
pub(crate) use reading::{Memory, read_aside};
pub(crate) use registry::Registry;
pub(crate) use sources::{Sources, WideReaders};
pub(crate) use start::{OnExpired, Start, SubscribeError};
pub(crate) use stream::Subscription;
