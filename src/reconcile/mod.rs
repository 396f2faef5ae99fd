//! Every expected task ends in an answer: asks the vendor's status API for those that are late, and
//! puts what it says into the log like a callback.
//!
//! Off by default: then nothing of this runs, and no socket is opened. Never decides about events:
//! an answer goes through the same rules as a callback's body, and the store decides whether it is
//! new.

// In reading order.
mod asked;
pub mod answer;
pub mod overdue;

mod entry;
mod lanes;
mod schedule;

pub mod keys;
pub mod paths;
pub mod vendor_api;

mod breaker;
mod budget;
mod limits;
mod presence;

mod waiting;
mod walk;
mod walks;
mod outage;

mod in_flight;
mod asking;
mod reconciler;
mod run;
mod follow_up;
mod late;
mod after_outage;

pub use asked::Asked;
pub(crate) use asking::Parts;
pub use reconciler::{NotAsked, Reconciler, Settings};
pub use schedule::Checked;
pub use waiting::{WAITED_FOR_MAX, Wait, Waiting};
