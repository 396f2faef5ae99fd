//! Refused callbacks, as administrators see them.

use tonic::Status;

use super::{Context, page};
use crate::{
    audit::Entry,
    refused::RefusedCallback,
    wire::{timestamp, v1},
};

/// What page tokens of this listing are bound to, so that no other listing accepts them.
const LISTING: u64 = 3;

/// One page of them.
pub(super) fn list(
    context: &Context,
    request: &v1::ListRefusalsRequest,
    entry: &mut Entry,
) -> Result<v1::ListRefusalsResponse, Status> {
    let page_size = page::size(request.page_size)?;
    let before = page::place(&request.page_token, LISTING, u64::MAX)?.unwrap_or(u64::MAX);
    let mut found = context.refused.newest(before, page_size + 1);
    let has_more = found.len() > page_size;
    found.truncate(page_size);
    entry.note("count", found.len());

    let last = found.last().filter(|_| has_more);
    Ok(v1::ListRefusalsResponse {
        next_page_token: last
            .map(|(number, _)| page::token(*number, LISTING))
            .unwrap_or_default(),
        refusals: found.iter().map(|(_, refused)| on_wire(refused)).collect(),
    })
}

fn on_wire(refused: &RefusedCallback) -> v1::Refusal {
    v1::Refusal {
        refused_at: Some(timestamp(refused.at)),
        request_id: refused.request_id.to_string(),
        cause: refused.cause.to_owned(),
        explanation: refused.explanation.to_owned(),
        outcome: refused.outcome.to_owned(),
        http_status: refused.http_status.into(),
        product: refused.product.to_string(),
        path: refused.path.to_string(),
        remote_address: refused.address.to_string(),
        credential: refused.credential.to_string(),
        key_id: refused.key_id.to_string(),
    }
}
