//! `GetRawBody`: the body of one callback in pieces, since a large one does not fit into a message. Keeps nothing between two pieces.

use bytes::BytesMut;
use tonic::{Request, Response, Status};

use super::{Context, errors, fields, page::PAGE_BYTES_MAX};
use crate::{
    budget::Payer,
    event::{Cursor, Filter, Record},
    subscription::Sources,
    wire::{Frame, Malformed, put_message, v1},
};

/// The piece of a body that begins at an offset.
pub(super) async fn get(
    context: &Context,
    request: Request<v1::GetRawBodyRequest>,
) -> Result<Response<Frame>, Status> {
    let caller = context.gate.caller_of(&request)?;
    let payer = Payer::of(&request, &caller);
    let v1::GetRawBodyRequest { cursor, offset } = request.into_inner();
    let cursor = fields::parse("cursor", &cursor, Cursor::parse)?;
    let place = context
        .sources
        .place(cursor)
        .await
        .map_err(|error| errors::open(&context.sources, &error))?;

    let visible = caller.narrow_filter(Filter::default())?;

    // The record as it is stored, and the piece of it.
    let granted = context
        .answers
        .take(&payer, context.page_bytes_max())
        .await?;
    let read = move |sources: &Sources| Ok((sources.store.get(place)?, granted));
    let (record, granted) = context.read(read).await?;
    let is_there = |record: &Record| visible.matches(record) && !record.is_erased();
    let record = record
        .filter(is_there)
        .ok_or_else(errors::event_not_found)?;
    let piece = piece(&record, offset).ok_or_else(|| {
        let bytes = record.raw().len();
        Malformed::new(
            "offset",
            format!("is beyond the body, which has {bytes} bytes"),
        )
    })?;

    Ok(context.answers.respond(piece, granted))
}

/// The message with the piece; `None` if the offset is beyond the body.
fn piece(record: &Record, offset: u64) -> Option<bytes::Bytes> {
    let rest = record.raw().get(usize::try_from(offset).ok()?..)?;
    let chunk = rest[..rest.len().min(PAGE_BYTES_MAX)].to_vec().into();
    let (mut message, total_bytes) = (BytesMut::new(), record.raw().len() as u64);
    put_message(&v1::GetRawBodyResponse { chunk, total_bytes }, &mut message);
    Some(message.freeze())
}
