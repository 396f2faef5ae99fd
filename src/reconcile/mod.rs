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
mod waiting;
mod walk;

pub use asked::Asked;
