//! The messages of a handover. Fields are only added, and no tag is used again.

use bytes::Bytes;
use prost::{Message, Oneof};

use crate::event::Labels;

#[derive(Clone, PartialEq, Message)]
pub(super) struct GroupMessage {
    #[prost(message, repeated, tag = "1")]
    pub commands: Vec<CommandMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct CommandMessage {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub kind: Option<Kind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Kind {
    #[prost(message, tag = "1")]
    Append(DraftMessage),
    #[prost(message, tag = "2")]
    Release(ReleaseMessage),
    /// Header and body, as the log has them.
    #[prost(bytes = "bytes", tag = "3")]
    Quarantine(Bytes),
    #[prost(message, tag = "4")]
    Discard(NumbersMessage),
    #[prost(message, tag = "5")]
    Erase(ErasureMessage),
    #[prost(message, tag = "6")]
    Expect(ExpectingMessage),
    #[prost(message, tag = "7")]
    EndExpectations(EndMessage),
    #[prost(message, tag = "8")]
    Overdue(OverdueMessage),
    #[prost(message, tag = "9")]
    Probe(NothingMessage),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NothingMessage {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DraftMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub event_id: Bytes,
    #[prost(string, tag = "2")]
    pub product: String,
    #[prost(string, tag = "3")]
    pub task_id: String,
    #[prost(uint32, tag = "4")]
    pub status: u32,
    #[prost(bytes = "bytes", tag = "5")]
    pub fingerprint: Bytes,
    #[prost(sint64, tag = "6")]
    pub received_at_micros: i64,
    #[prost(btree_map = "string, string", tag = "7")]
    pub labels: Labels,
    #[prost(bytes = "bytes", tag = "8")]
    pub event: Bytes,
    #[prost(bytes = "bytes", tag = "9")]
    pub raw: Bytes,
    #[prost(bool, tag = "10")]
    pub is_answer: bool,
    #[prost(bool, tag = "11")]
    pub lacks_output: bool,
    #[prost(bool, tag = "12")]
    pub conceals_duplicates: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReleaseMessage {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(message, repeated, tag = "2")]
    pub drafts: Vec<DraftMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NumbersMessage {
    #[prost(uint64, repeated, tag = "1")]
    pub numbers: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TaskMessage {
    #[prost(string, tag = "1")]
    pub product: String,
    #[prost(string, tag = "2")]
    pub task_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ErasureMessage {
    #[prost(message, optional, tag = "1")]
    pub task: Option<TaskMessage>,
    #[prost(uint64, repeated, tag = "2")]
    pub places: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExpectingMessage {
    /// As the log has them.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub expectations: Vec<Bytes>,
    #[prost(bool, tag = "2")]
    pub is_limited: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EndMessage {
    #[prost(message, repeated, tag = "1")]
    pub tasks: Vec<TaskMessage>,
    /// Otherwise only those of the client.
    #[prost(bool, tag = "2")]
    pub of_anybody: bool,
    #[prost(string, optional, tag = "3")]
    pub client: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OverdueMessage {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(message, optional, tag = "2")]
    pub draft: Option<DraftMessage>,
    #[prost(bool, tag = "3")]
    pub gives_up: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResultsMessage {
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<ResultMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResultMessage {
    #[prost(oneof = "Became", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 15")]
    pub became: Option<Became>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Became {
    #[prost(message, tag = "1")]
    Append(AppendedMessage),
    #[prost(message, tag = "2")]
    Release(ReleasedMessage),
    #[prost(uint64, tag = "3")]
    Quarantine(u64),
    #[prost(uint32, tag = "4")]
    Discard(u32),
    #[prost(message, tag = "5")]
    Erase(ErasedMessage),
    #[prost(message, tag = "6")]
    Expect(ExpectedsMessage),
    #[prost(uint32, tag = "7")]
    EndExpectations(u32),
    /// One, or none.
    #[prost(message, tag = "8")]
    Overdue(ReleasedMessage),
    #[prost(message, tag = "9")]
    Probe(NothingMessage),
    #[prost(message, tag = "15")]
    Error(ErrorMessage),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AppendedMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub event_id: Bytes,
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    #[prost(bool, tag = "3")]
    pub duplicate: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReleasedMessage {
    #[prost(message, repeated, tag = "1")]
    pub appended: Vec<AppendedMessage>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ErasedMessage {
    #[prost(uint32, tag = "1")]
    pub events: u32,
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExpectedsMessage {
    #[prost(message, repeated, tag = "1")]
    pub expected: Vec<ExpectedMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ExpectedMessage {
    /// The place of its end, if it is over.
    #[prost(uint64, optional, tag = "1")]
    pub over: Option<u64>,
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// As the log has it.
    #[prost(bytes = "bytes", tag = "3")]
    pub expectation: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ErrorMessage {
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(string, tag = "2")]
    pub text: String,
    #[prost(uint64, repeated, tag = "3")]
    pub numbers: Vec<u64>,
}
