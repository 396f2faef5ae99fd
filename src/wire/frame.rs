//! Messages that carry events, written straight from the stored bytes, and the codec of the generated services. Pure.
//!
//! Protobuf allows the fields of a message in any order. So an event on the wire is: the fields that only the log knows (cursor,
//! revision, conflict), the stored encoding as it is, and the raw body if it was requested.

use std::{borrow::Borrow, marker::PhantomData, ops::Range};

use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::{reason::Reason, v1};
use crate::event::{Cursor, Epoch, Record, SharedEncoding};

/// First size of an answer's buffer; a larger answer grows it once.
const BUFFER_BYTES: usize = 512;
/// A backup passes its buffer to HTTP/2 when it is this full: two frames of the protocol's default size.
const YIELD_BYTES: usize = 32 * 1024;
/// The prefix of each gRPC message: whether it is compressed, which none is, and its length.
const PREFIX_BYTES: usize = 1 + 4;
/// Most bytes of a field's key and length.
const KEY_BYTES_MAX: usize = 1 + 5;

// Field numbers of `proto/blobcast/v1`; the test below decodes what they write with the generated code.
const EVENT_CURSOR: u32 = 2;
const EVENT_REVISION: u32 = 16;
const EVENT_CONFLICT: u32 = 17;
const EVENT_RAW_BODY: u32 = 21;
const EVENT_TRUNCATED: u32 = 23;
const SUBSCRIBE_EVENT: u32 = 2;
const PAGE_EVENTS: u32 = 1;
const PAGE_NEXT_TOKEN: u32 = 2;
const TASK_REPETITIONS: u32 = 2;
const WAIT_EVENT: u32 = 1;
const WAIT_DONE: u32 = 2;

/// Most bytes of an event on the wire, a stored encoding and a raw body together. Clients accept messages of 4 MiB by default; the margin
/// has room for what is around an event.
pub const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024 - 128 * 1024;

/// Whether an event carries the callback's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw {
    /// It was not requested.
    Unwanted,
    /// It is part of the event.
    Sent,
    /// It was requested, and event and body together would be too large for a client.
    LeftOut,
}

/// One event on its way to one client.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<R = Record> {
    /// Identity of the log, for the cursor.
    pub epoch: Epoch,
    /// The stored event.
    pub record: R,
    /// Whether it carries the body as received.
    pub raw: Raw,
}

/// An answer that carries events.
#[derive(Debug)]
pub enum Frame {
    /// `WaitTaskResponse`.
    Waited {
        /// The task's latest event.
        event: Option<Delivery>,
        /// The task is over.
        done: bool,
    },
    /// `ListEventsResponse`.
    Page {
        /// In the requested order.
        events: Vec<Delivery>,
        /// Empty at the end.
        next_page_token: String,
    },
    /// `GetTaskResponse`.
    Task {
        /// Oldest first.
        events: Vec<Delivery>,
        /// Of some of them.
        repetitions: Vec<v1::Repetition>,
    },
}

impl<R: Borrow<Record>> Delivery<R> {
    /// A delivery with the body as received, if that is requested and not too large.
    pub fn new(epoch: Epoch, record: R, include_raw: bool) -> Self {
        let fits = |record: &Record| record.event().len() + record.raw().len() <= EVENT_BYTES_MAX;
        let raw = match include_raw {
            false => Raw::Unwanted,
            true if fits(record.borrow()) => Raw::Sent,
            true => Raw::LeftOut,
        };
        Self { epoch, record, raw }
    }

    /// Size of the event's encoding on the wire, in bytes.
    pub fn encoded_len(&self) -> usize {
        let record = self.record.borrow();
        let revision = u64::from(record.revision());
        let cursor = key_len(EVENT_CURSOR) + 1 + Cursor::TEXT_BYTES;
        let revision = key_len(EVENT_REVISION) + encoded_len_varint(revision);
        let conflict = if record.conflict() {
            key_len(EVENT_CONFLICT) + 1
        } else {
            0
        };

        let truncated = if self.raw == Raw::LeftOut {
            key_len(EVENT_TRUNCATED) + 1
        } else {
            0
        };

        cursor + revision + conflict + truncated + record.event().len() + self.raw_len()
    }

    /// The event as a message, for an answer that has other things in it; `None` if the stored encoding is damaged.
    pub fn message(&self) -> Option<v1::Event> {
        let mut bytes = BytesMut::with_capacity(self.encoded_len());
        self.put_content(&mut bytes);
        v1::Event::decode(bytes).ok()
    }

    fn raw_len(&self) -> usize {
        let raw = if self.raw == Raw::Sent {
            self.record.borrow().raw().len()
        } else {
            0
        };
        if raw == 0 {
            0
        } else {
            key_len(EVENT_RAW_BODY) + encoded_len_varint(raw as u64) + raw
        }
    }

    /// Writes it as a message of `Subscribe`'s stream. Reserves room for `ahead` more that are about as large, up to `bytes_max`
    /// in total: a buffer that grows bit by bit is copied each time.
    pub fn put_streamed(&self, ahead: usize, bytes_max: usize, buf: &mut BytesMut) {
        let length = self.encoded_len();
        let most = PREFIX_BYTES + KEY_BYTES_MAX + length;
        if buf.capacity() - buf.len() < most {
            buf.reserve(
                most.saturating_mul(ahead + 1)
                    .min(bytes_max.saturating_sub(buf.len()))
                    .max(most),
            );
        }

        put_prefix(
            key_len(SUBSCRIBE_EVENT) + encoded_len_varint(length as u64) + length,
            buf,
        );

        self.put_with_length(SUBSCRIBE_EVENT, length, buf);
    }

    /// Size of its message in `Subscribe`'s stream, with the prefix.
    pub fn streamed_len(&self) -> usize {
        let length = self.encoded_len();
        PREFIX_BYTES + key_len(SUBSCRIBE_EVENT) + encoded_len_varint(length as u64) + length
    }

    /// Writes the bytes of that message in `range`.
    pub fn put_streamed_part(&self, range: Range<usize>, buf: &mut BytesMut) {
        let (length, record) = (self.encoded_len(), self.record.borrow());
        let (mut head, mut raw_head) = (BytesMut::new(), BytesMut::new());
        put_prefix(
            key_len(SUBSCRIBE_EVENT) + encoded_len_varint(length as u64) + length,
            &mut head,
        );

        put_length(SUBSCRIBE_EVENT, length, &mut head);
        self.put_known_by_the_log(&mut head);

        let raw: &[u8] = if self.raw_len() > 0 {
            record.raw()
        } else {
            b""
        };
        if !raw.is_empty() {
            put_length(EVENT_RAW_BODY, raw.len(), &mut raw_head);
        }

        buf.reserve(range.len());
        let mut start = 0;

        for piece in [&head, record.event(), &raw_head, raw] {
            let within = |at: usize| at.saturating_sub(start).min(piece.len());
            buf.put_slice(&piece[within(range.start)..within(range.end)]);
            start += piece.len();
        }
    }

    fn put(&self, field: u32, buf: &mut impl BufMut) {
        self.put_with_length(field, self.encoded_len(), buf);
    }

    fn put_with_length(&self, field: u32, length: usize, buf: &mut impl BufMut) {
        put_length(field, length, buf);
        self.put_content(buf);
    }

    fn put_content(&self, buf: &mut impl BufMut) {
        let record = self.record.borrow();
        self.put_known_by_the_log(buf);
        buf.put_slice(record.event());
        if self.raw_len() > 0 {
            put_length(EVENT_RAW_BODY, record.raw().len(), buf);
            buf.put_slice(record.raw());
        }
    }

    /// Writes the fields that the stored encoding lacks.
    #[inline]
    fn put_known_by_the_log(&self, buf: &mut impl BufMut) {
        let record = self.record.borrow();
        let cursor = Cursor {
            epoch: self.epoch,
            sequence: record.sequence(),
        };

        put_length(EVENT_CURSOR, Cursor::TEXT_BYTES, buf);
        buf.put_slice(&cursor.to_text());
        encode_key(EVENT_REVISION, WireType::Varint, buf);
        encode_varint(u64::from(record.revision()), buf);

        if record.conflict() {
            encode_key(EVENT_CONFLICT, WireType::Varint, buf);
            encode_varint(1, buf);
        }

        if self.raw == Raw::LeftOut {
            encode_key(EVENT_TRUNCATED, WireType::Varint, buf);
            encode_varint(1, buf);
        }
    }
}

/// Records as messages of `Subscribe`'s streams, without the bodies as received.
pub fn encode_streamed(epoch: Epoch, records: &[Record]) -> SharedEncoding {
    const FIELDS_BYTES: usize = PREFIX_BYTES + KEY_BYTES_MAX + 64; // more than the fields take that only the log knows
    let bytes = records
        .iter()
        .map(|record| FIELDS_BYTES + record.event().len())
        .sum();

    let (mut buf, mut ends) = (
        BytesMut::with_capacity(bytes),
        Vec::with_capacity(records.len()),
    );

    for record in records {
        Delivery {
            epoch,
            record,
            raw: Raw::Unwanted,
        }
        .put_streamed(0, 0, &mut buf);
        ends.push(buf.len());
    }

    SharedEncoding {
        bytes: buf.into(),
        ends,
        charge: None,
    }
}

/// Writes a message with its gRPC prefix.
pub fn put_message(message: &impl Message, buf: &mut BytesMut) {
    put_prefix(message.encoded_len(), buf);
    message.encode(buf).expect("the buffer grows as needed");
}

fn put_prefix(length: usize, buf: &mut BytesMut) {
    buf.put_u8(0);
    buf.put_u32(u32::try_from(length).expect("an event is bounded by the largest body"));
}

fn put_length(field: u32, length: usize, buf: &mut impl BufMut) {
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint(length as u64, buf);
}

/// A response that the codec can write: every prost message, and frames.
pub trait Payload {
    /// Writes the message's encoding.
    fn write(&self, buf: &mut EncodeBuf<'_>) -> Result<(), Status>;
}

impl<M: prost::Message> Payload for M {
    fn write(&self, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        self.encode(buf)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Payload for Frame {
    fn write(&self, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        self.put(buf);
        Ok(())
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::Waited {
            event: None,
            done: false,
        }
    }
}

impl Frame {
    /// The message with its gRPC prefix.
    pub fn encoded(&self) -> Bytes {
        let mut buf = BytesMut::with_capacity(PREFIX_BYTES + self.encoded_len());
        put_prefix(self.encoded_len(), &mut buf);
        self.put(&mut buf);
        buf.freeze()
    }

    /// Size of the message, without its prefix.
    pub fn encoded_len(&self) -> usize {
        let field = |number: u32, length: usize| {
            key_len(number) + encoded_len_varint(length as u64) + length
        };

        match self {
            Self::Waited { event, done } => {
                let event = event
                    .as_ref()
                    .map_or(0, |event| field(WAIT_EVENT, event.encoded_len()));
                event + if *done { key_len(WAIT_DONE) + 1 } else { 0 }
            }
            Self::Page {
                events,
                next_page_token,
            } => {
                let events: usize = events
                    .iter()
                    .map(|event| field(PAGE_EVENTS, event.encoded_len()))
                    .sum();
                let token = next_page_token.len();
                events
                    + if token > 0 {
                        field(PAGE_NEXT_TOKEN, token)
                    } else {
                        0
                    }
            }
            Self::Task {
                events,
                repetitions,
            } => {
                let events = events
                    .iter()
                    .map(|event| field(PAGE_EVENTS, event.encoded_len()));
                let repetitions = repetitions
                    .iter()
                    .map(|repetition| field(TASK_REPETITIONS, repetition.encoded_len()));
                events.chain(repetitions).sum()
            }
        }
    }

    fn put(&self, buf: &mut impl BufMut) {
        match self {
            Self::Waited { event, done } => {
                if let Some(event) = event {
                    event.put(WAIT_EVENT, buf);
                }
                if *done {
                    encode_key(WAIT_DONE, WireType::Varint, buf);
                    encode_varint(1, buf);
                }
            }
            Self::Page {
                events,
                next_page_token,
            } => {
                for event in events {
                    event.put(PAGE_EVENTS, buf);
                }
                if !next_page_token.is_empty() {
                    put_length(PAGE_NEXT_TOKEN, next_page_token.len(), buf);
                    buf.put_slice(next_page_token.as_bytes());
                }
            }
            Self::Task {
                events,
                repetitions,
            } => {
                for event in events {
                    event.put(PAGE_EVENTS, buf);
                }
                for repetition in repetitions {
                    put_length(TASK_REPETITIONS, repetition.encoded_len(), buf);
                    repetition.encode_raw(buf);
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
        // The client has sent the bytes, so bytes that cannot be decoded are its mistake, not our bug.
        U::decode(buf).map(Some).map_err(|error| {
            let message = format!("the request is not what the proto says: {error}");
            Reason::InvalidRequest.status(message)
        })
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::{
        event::{Labels, Product, RecordParts, Sequence, TaskId, TaskStatus},
        wire::v1,
    };

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
        Delivery::new(Epoch(7), Record::new(Sequence(9), &parts), include_raw)
    }

    fn written<M: Message + Default>(frame: &Frame) -> M {
        let mut bytes = frame.encoded();
        assert_eq!(
            (bytes.get_u8(), bytes.get_u32() as usize),
            (0, bytes.remaining())
        );
        M::decode(bytes).unwrap()
    }

    /// The messages of a stream.
    fn messages(mut bytes: BytesMut) -> Vec<v1::SubscribeResponse> {
        let next = || {
            let compressed = bytes.try_get_u8().ok()?;
            assert_eq!(compressed, 0);
            let length = bytes.get_u32() as usize;
            Some(v1::SubscribeResponse::decode(bytes.split_to(length)).unwrap())
        };
        std::iter::from_fn(next).collect()
    }

    proptest! {
        #[test]
        fn frames_read_back_as_the_generated_messages(
            prompt: String, revision in 1u32.., conflict: bool, include_raw: bool, done: bool, token: String,
            piece in 1..40_usize,
        ) {
            let stored = v1::Event { task_id: "t1".into(), prompt, seed: Some(-1), ..Default::default() };
            let cursor = Cursor { epoch: Epoch(7), sequence: Sequence(9) }.to_string();
            let raw_body = bytes::Bytes::from_static(if include_raw { b"{}" } else { b"" });
            let event = v1::Event { cursor, revision, conflict, raw_body, ..stored.clone() };
            let delivery = || delivery(&stored, revision, conflict, include_raw);
            prop_assert_eq!(delivery().encoded_len(), event.encoded_len());

            let mut streamed = BytesMut::new();
            delivery().put_streamed(1, 1_000, &mut streamed);
            let (length, mut pieces) = (delivery().streamed_len(), BytesMut::new());
            for start in (0..length).step_by(piece) {
                delivery().put_streamed_part(start..(start + piece).min(length), &mut pieces);
            }
            prop_assert_eq!(&pieces, &streamed);
            put_message(&v1::SubscribeResponse::default(), &mut streamed);
            let content = Some(v1::subscribe_response::Content::Event(event.clone()));
            prop_assert_eq!(messages(streamed), [v1::SubscribeResponse { content }, v1::SubscribeResponse::default()]);

            let record = delivery().record;
            let shared = encode_streamed(Epoch(7), &[record.clone(), record]);
            let (first, second) = shared.bytes.split_at(shared.ends[0]);
            let mut single = BytesMut::new();
            Delivery { raw: Raw::Unwanted, ..delivery() }.put_streamed(0, 0, &mut single);
            prop_assert_eq!((first, second, shared.ends[1]), (&single[..], &single[..], shared.bytes.len()));

            let waited: v1::WaitTaskResponse = written(&Frame::Waited { event: Some(delivery()), done });
            prop_assert_eq!(waited, v1::WaitTaskResponse { event: Some(event.clone()), done });

            let page = Frame::Page { events: vec![delivery(), delivery()], next_page_token: token.clone() };
            let listed: v1::ListEventsResponse = written(&page);
            prop_assert_eq!(&listed.events, &vec![event.clone(), event]);
            prop_assert_eq!(&listed.next_page_token, &token);
            let repetition = v1::Repetition { cursor: token, count: revision, last_received_at: None };
            let repetitions = vec![repetition.clone(), v1::Repetition::default(), repetition];
            let task = Frame::Task { events: vec![delivery(), delivery()], repetitions: repetitions.clone() };
            let task: v1::GetTaskResponse = written(&task);
            prop_assert_eq!((task.events, task.repetitions), (listed.events, repetitions));
        }
    }
}
