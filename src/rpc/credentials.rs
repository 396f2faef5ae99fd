//! The lines of the credentials file, as administrators see them.

use std::{collections::HashMap, mem};

use jiff::Timestamp;
use tonic::Status;

use super::{Context, page};
use crate::{
    audit::Entry,
    credentials::{Generation, ListedCredential, product_list},
    wire::{Malformed, timestamp, v1},
};

/// What page tokens of this listing are bound to beside its request, so that no other listing accepts them.
const LISTING: u64 = 5;

/// When each credential was last accepted: by kind, name and secret.
type Uses = HashMap<[String; 3], i64>;

/// One page of them.
pub(super) fn list(
    context: &Context,
    mut request: v1::ListCredentialsRequest,
    entry: &mut Entry,
) -> Result<v1::ListCredentialsResponse, Status> {
    let page_size = page::size(mem::take(&mut request.page_size))?;
    let token = mem::take(&mut request.page_token);
    let binding = LISTING ^ page::binding(&request);
    let kind = v1::CredentialKind::try_from(request.kind)
        .map_err(|_| Malformed::new("kind", "no such kind"))?;
    let after = page::place(&token, binding, u64::MAX)?.unwrap_or(0);

    let uses = context.sources.metrics.credential_uses();
    let lines = context.gate.credentials.get().listed();
    let is_meant =
        |line: &ListedCredential| kind == v1::CredentialKind::Unspecified || kind == kind_of(line);
    let mut found: Vec<_> = lines
        .iter()
        .filter(|line| is_meant(line))
        .zip(1..)
        .skip_while(|(_, number)| *number <= after)
        .take(page_size + 1)
        .collect();
    let has_more = found.len() > page_size;
    found.truncate(page_size);
    entry.note("count", found.len());

    let last = found.last().filter(|_| has_more);
    Ok(v1::ListCredentialsResponse {
        next_page_token: last
            .map(|(_, number)| page::token(*number, binding))
            .unwrap_or_default(),
        credentials: found.iter().map(|(line, _)| on_wire(line, &uses)).collect(),
    })
}

fn kind_of(line: &ListedCredential) -> v1::CredentialKind {
    match line.kind {
        "callback_token" => v1::CredentialKind::CallbackToken,
        "signing_key" => v1::CredentialKind::SigningKey,
        "body_signature" => v1::CredentialKind::BodySignature,
        "client" => v1::CredentialKind::Client,
        _ => v1::CredentialKind::VendorKey,
    }
}

fn on_wire(line: &ListedCredential, uses: &Uses) -> v1::Credential {
    let previous = line.previous.unwrap_or_default();
    v1::Credential {
        kind: kind_of(line).into(),
        name: line.name.to_string(),
        created_at: line.lifetime.created.map(timestamp),
        expires_at: line.lifetime.expires.map(timestamp),
        last_used_at: last_use(line, Generation::Current, uses),
        has_previous: line.previous.is_some(),
        previous_expires_at: previous.expires.map(timestamp),
        previous_last_used_at: last_use(line, Generation::Previous, uses)
            .filter(|_| line.previous.is_some()),
        products: product_list(&line.products),
        labels: line.labels.clone().into_iter().collect(),
        admin: line.admin,
        backup: line.backup,
        certificate_name: line.certificate_name.clone(),
        bytes_per_minute_max: line.bytes_per_minute_max,
        subscriptions_max: line.subscriptions_max.map(|max| max as u64),
        task_ids_max: line.task_ids_max.map(|max| max as u64),
    }
}

fn last_use(
    line: &ListedCredential,
    secret: Generation,
    uses: &Uses,
) -> Option<prost_types::Timestamp> {
    let by = [line.kind, &*line.name, secret.as_str()].map(str::to_owned);
    let used = uses.get(&by).filter(|used| **used > 0)?;
    Timestamp::from_second(*used).ok().map(timestamp)
}
