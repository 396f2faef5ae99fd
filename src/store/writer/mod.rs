//! The one writer: takes the commands that have queued up while the last commit ran, and commits them together with one fsync.
//!
//! A group of commands goes through these files: [`appender`] queues it, [`thread`] takes it, [`decide`] decides what each
//! command becomes (duplicate, revision, conflict), [`retention`] adds what is forgotten, [`recording`] records both, and
//! [`commit`] writes and syncs the log, updates the index, moves the head, publishes and replies.
//!
//! A reply is sent only after the fsync, for duplicates too. When a write fails, the store takes no more commands until a
//! restart, because only recovery can tell what reached the disk. A second thread does what commits should not wait for
//! ([`maintenance`]).

mod appender;
mod carry;
mod command;
mod commit;
mod counts;
mod decide;
mod disk;
mod error;
mod import;
mod maintenance;
mod moment;
mod age_warning;
mod overwriting;
mod publish;
mod recording;
mod replica;
mod retention;
mod thread;

pub use appender::{Appender, Waker};
pub(crate) use command::ERASURE_PLACES_MAX;
pub(super) use command::Imported;
pub use command::{Erased, Erasure};
pub use decide::Foreseen;
pub use error::WriteError;
pub(super) use import::Import;
pub(crate) use publish::Publish;
pub use replica::{HandoverError, Replica, Waited};
pub use retention::Retention;
pub(super) use thread::{GROUP_BYTES_MAX, GROUP_MAX};
pub use thread::{Writer, writer};

#[cfg(test)]
mod tests;
