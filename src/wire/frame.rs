//! Responses that carry events, written straight from stored bytes, and the codec that writes them. Pure.
//!
//! Protobuf lets the fields of a message come in any order, so an event on the wire is: what only the log knows (cursor,
//! revision, conflict), the stored encoding as it is, and the raw body if asked for.

use std::{collections::HashMap, marker::PhantomData};

use bytes::BufMut;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{
    Code, Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use tonic_types::{ErrorDetails, StatusExt};

use super::v1;
use crate::event::{Cursor, Epoch, Record};

/// First buffer of a stream: an idle subscription costs this much, and a busy one grows it once.
const BUFFER_BYTES: usize = 512;
/// A stream hands its buffer to HTTP/2 when it is this full; two frames of the protocol's default size.
const YIELD_BYTES: usize = 32 * 1024;

// Field numbers of `proto/blobcast/v1`; the test below decodes what they write with the generated code.
const EVENT_CURSOR: u32 = 2;
const EVENT_REVISION: u32 = 16;
const EVENT_CONFLICT: u32 = 17;
const EVENT_RAW_BODY: u32 = 21;
const SUBSCRIBE_EVENT: u32 = 2;
const PAGE_EVENTS: u32 = 1;
const PAGE_NEXT_TOKEN: u32 = 2;
const WAIT_EVENT: u32 = 1;
const WAIT_DONE: u32 = 2;

/// One event on its way to one client.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Identity of the log, for the cursor.
    pub epoch: Epoch,
    /// The stored event.
    pub record: Record,
    /// Also carry the body as received.
    pub include_raw: bool,
}

/// A response that carries events, or a control message of a stream.
#[derive(Debug)]
pub enum Frame {
    /// `SubscribeResponse` with anything but an event. Boxed: these are rare, and larger than an event's handle.
    Control(Box<v1::SubscribeResponse>),
    /// `SubscribeResponse` with an event.
    Streamed(Delivery),
    /// `WaitTaskResponse`.
    Waited {
        /// The task's latest event.
        event: Option<Delivery>,
        /// The task is over.
        done: bool,
    },
    /// `GetTaskResponse` and `ListEventsResponse`: they number their fields alike.
    Page {
        /// In the order asked for.
        events: Vec<Delivery>,
        /// Empty at the end, and always for `GetTaskResponse`.
        next_page_token: String,
    },
}

impl Delivery {
    /// Size of the event's encoding on the wire, in bytes.
    pub fn encoded_len(&self) -> usize {
        let revision = u64::from(self.record.revision());
        let cursor = key_len(EVENT_CURSOR) + 1 + Cursor::TEXT_BYTES;
        let revision = key_len(EVENT_REVISION) + encoded_len_varint(revision);
        let conflict = if self.record.conflict() { key_len(EVENT_CONFLICT) + 1 } else { 0 };
        cursor + revision + conflict + self.record.event().len() + self.raw_len()
    }

    fn raw_len(&self) -> usize {
        let raw = if self.include_raw { self.record.raw().len() } else { 0 };
        if raw == 0 { 0 } else { key_len(EVENT_RAW_BODY) + encoded_len_varint(raw as u64) + raw }
    }

    fn put(&self, field: u32, buf: &mut impl BufMut) {
        put_length(field, self.encoded_len(), buf);
        let cursor = Cursor { epoch: self.epoch, sequence: self.record.sequence() };
        put_length(EVENT_CURSOR, Cursor::TEXT_BYTES, buf);
        buf.put_slice(&cursor.to_text());
        encode_key(EVENT_REVISION, WireType::Varint, buf);
        encode_varint(u64::from(self.record.revision()), buf);
        if self.record.conflict() {
            encode_key(EVENT_CONFLICT, WireType::Varint, buf);
            encode_varint(1, buf);
        }
        buf.put_slice(self.record.event());
        if self.raw_len() > 0 {
            put_length(EVENT_RAW_BODY, self.record.raw().len(), buf);
            buf.put_slice(self.record.raw());
        }
    }
}

fn put_length(field: u32, length: usize, buf: &mut impl BufMut) {
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint(length as u64, buf);
}

/// What the codec can write: every prost message, and frames.
pub trait Payload {
    /// Writes the message's encoding.
    fn write(&self, buf: &mut EncodeBuf<'_>) -> Result<(), Status>;
}

impl<M: prost::Message> Payload for M {
    fn write(&self, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        self.encode(buf).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Payload for Frame {
    fn write(&self, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if let Self::Streamed(event) = self {
            buf.reserve(event.encoded_len() + 8); // one growth at most, key and length included
        }
        self.put(buf);
        Ok(())
    }
}

impl Frame {
    fn put(&self, buf: &mut impl BufMut) {
        match self {
            Self::Control(message) => message.encode(buf).expect("the buffers here grow as needed"),
            Self::Streamed(event) => event.put(SUBSCRIBE_EVENT, buf),
            Self::Waited { event, done } => {
                if let Some(event) = event {
                    event.put(WAIT_EVENT, buf);
                }
                if *done {
                    encode_key(WAIT_DONE, WireType::Varint, buf);
                    encode_varint(1, buf);
                }
            }
            Self::Page { events, next_page_token } => {
                for event in events {
                    event.put(PAGE_EVENTS, buf);
                }
                if !next_page_token.is_empty() {
                    put_length(PAGE_NEXT_TOKEN, next_page_token.len(), buf);
                    buf.put_slice(next_page_token.as_bytes());
                }
            }
        }
    }
}

/// The codec of the generated services: decodes requests with prost, writes [`Payload`]s.
#[derive(Debug)]
pub struct FrameCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for FrameCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for FrameCodec<T, U>
where
    T: Payload + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = FrameCodec<T, ()>;
    type Decoder = FrameCodec<(), U>;

    fn encoder(&mut self) -> Self::Encoder {
        FrameCodec::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        FrameCodec::default()
    }
}

impl<T: Payload> Encoder for FrameCodec<T, ()> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.write(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

impl<U: prost::Message + Default> Decoder for FrameCodec<(), U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The bytes are the client's, so what cannot be read is its argument, not our bug.
        U::decode(buf).map(Some).map_err(|error| {
            let details = ErrorDetails::with_error_info("INVALID_REQUEST", "blobcast", HashMap::new());
            let message = format!("the request is not what the proto says: {error}");
            Status::with_error_details(Code::InvalidArgument, message, details)
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::event::{Labels, Product, RecordParts, Sequence, TaskId, TaskStatus};

    fn delivery(event: &v1::Event, revision: u32, conflict: bool, include_raw: bool) -> Delivery {
        let parts = RecordParts {
            product: &Product::parse("veo").unwrap(),
            task_id: &TaskId::parse("t1").unwrap(),
            status: TaskStatus::Completed,
            revision,
            conflict,
            received_at_micros: 0,
            log_time_micros: 0,
            labels: &Labels::new(),
            event: &event.encode_to_vec(),
            raw: b"{}",
        };
        Delivery { epoch: Epoch(7), record: Record::new(Sequence(9), &parts), include_raw }
    }

    fn written<M: Message + Default>(frame: &Frame) -> M {
        let mut bytes = Vec::new();
        frame.put(&mut bytes);
        M::decode(bytes.as_slice()).unwrap()
    }

    proptest! {
        #[test]
        fn frames_read_back_as_the_generated_messages(
            prompt: String, revision in 1u32.., conflict: bool, include_raw: bool, done: bool, token: String,
        ) {
            let stored = v1::Event { task_id: "t1".into(), prompt, seed: Some(-1), ..Default::default() };
            let cursor = Cursor { epoch: Epoch(7), sequence: Sequence(9) }.to_string();
            let raw_body = bytes::Bytes::from_static(if include_raw { b"{}" } else { b"" });
            let event = v1::Event { cursor, revision, conflict, raw_body, ..stored.clone() };
            let delivery = || delivery(&stored, revision, conflict, include_raw);
            prop_assert_eq!(delivery().encoded_len(), event.encoded_len());

            let streamed: v1::SubscribeResponse = written(&Frame::Streamed(delivery()));
            let content = v1::subscribe_response::Content::Event(event.clone());
            prop_assert_eq!(streamed.content, Some(content));

            let waited: v1::WaitTaskResponse = written(&Frame::Waited { event: Some(delivery()), done });
            prop_assert_eq!(waited, v1::WaitTaskResponse { event: Some(event.clone()), done });

            let page = Frame::Page { events: vec![delivery(), delivery()], next_page_token: token.clone() };
            let listed: v1::ListEventsResponse = written(&page);
            prop_assert_eq!(&listed.events, &vec![event.clone(), event]);
            prop_assert_eq!(listed.next_page_token, token);
            let task: v1::GetTaskResponse = written(&page);
            prop_assert_eq!(task.events, listed.events);
        }
    }
}
