//! The quarantine, as administrators read it and clear it.

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use tonic::{Response, Status};

use super::{Context, answers::encoded, errors, fields, page, task::TASK_BYTES_MAX};
use crate::{
    audit::Entry,
    budget::Payer,
    callback::{Callback, Corrections},
    event::{Product, TaskId, Verification},
    store::{Draft, Foreseen, Quarantined, WriteError},
    subscription::Sources,
    wire::{Malformed, frame::EVENT_BYTES_MAX, timestamp, v1, verification_to_wire},
};

/// What page tokens of this listing are bound to, so that no other listing accepts them.
const LISTING: u64 = 2;
/// The credential of a quarantined callback that was sent without one.
const UNVERIFIED: &str = "unverified";

/// One page of it.
pub(super) async fn list(
    context: &Context,
    payer: &Payer,
    request: v1::ListQuarantineRequest,
    entry: &mut Entry,
) -> Result<Response<v1::ListQuarantineResponse>, Status> {
    let v1::ListQuarantineRequest {
        page_size,
        page_token,
        include_body,
        include_large_bodies,
    } = request;

    let body_bytes_max = match (include_body, include_large_bodies) {
        (false, _) => 0,
        (true, false) => EVENT_BYTES_MAX,
        (true, true) => usize::MAX,
    };

    let page_size = page::size(page_size)?;
    let after = page::place(&page_token, LISTING, u64::MAX)?.unwrap_or(0);

    let granted = context
        .answers
        .take(payer, context.page_bytes_max())
        .await?;

    let read = move |sources: &Sources| {
        let found = sources
            .store
            .quarantined_after(after, page_size, page::PAGE_BYTES_MAX)?;
        // The page may have ended by count or by bytes, so only a look tells whether there is more.
        let more = match found.last() {
            Some(last) => !sources
                .store
                .quarantined_after(last.number, 1, 0)?
                .is_empty(),
            None => false,
        };
        if let Some(problem) = found.iter().find_map(|callback| callback.damage.as_deref()) {
            errors::damage_met(sources, problem);
        }
        let (count, last) = (
            found.len(),
            found.last().filter(|_| more).map(|last| last.number),
        );
        let page = v1::ListQuarantineResponse {
            next_page_token: last
                .map(|number| page::token(number, LISTING))
                .unwrap_or_default(),
            callbacks: found
                .into_iter()
                .map(|callback| quarantined(callback, body_bytes_max))
                .collect(),
        };
        Ok((encoded(&page), count, granted))
    };

    let (page, count, granted) = context.read(read).await?;

    entry.note("count", count);
    Ok(context.answers.respond(page, granted))
}

/// A callback of the quarantine, and what it becomes with an administrator's corrections.
struct Corrected {
    id: String,
    number: u64,
    drafts: Vec<Draft>,
}

impl Corrected {
    async fn read(
        context: &Context,
        request: v1::ReleaseQuarantinedRequest,
    ) -> Result<Self, Status> {
        let v1::ReleaseQuarantinedRequest {
            quarantine_id: id,
            product,
            task_id,
            drop_labels,
            body,
            status,
            validate_only: _,
        } = request;

        let number = number("quarantine_id", &id)?;
        let corrections = Corrections {
            product: fields::optional("product", &product, Product::parse)?,
            task_id: fields::optional("task_id", &task_id, TaskId::parse)?,
            status: fields::optional("status", &status, str::parse)?,
            body: (!body.is_empty()).then_some(body),
            drop_labels,
        };

        let read = move |sources: &Sources| sources.store.quarantined(number);
        let found = context.read(read).await?;
        let found = found.ok_or_else(|| errors::quarantine_not_found(&id))?;
        if let Some(problem) = &found.damage {
            let refused = errors::quarantine_damaged(&context.sources, &id, problem);
            return Err(refused);
        }

        let drafts = callback_of(found)
            .released(&corrections)
            .map_err(|refusal| errors::not_understood(&refusal))?;
        Ok(Self { id, number, drafts })
    }
}

/// Appends the events that a callback becomes.
pub(super) async fn release(
    context: &Context,
    request: v1::ReleaseQuarantinedRequest,
    entry: &mut Entry,
) -> Result<v1::ReleaseQuarantinedResponse, Status> {
    let Corrected { id, number, drafts } = Corrected::read(context, request).await?;

    let task_ids: Vec<_> = drafts
        .iter()
        .map(|draft| draft.task_id.to_string())
        .collect();

    let appended = match context.journal.release(number, drafts).await {
        Ok(Err(WriteError::NotInQuarantine)) => {
            return Err(errors::quarantine_not_found(&id));
        }
        answer => context.answered(answer)?,
    };

    let event_ids: Vec<_> = appended
        .iter()
        .map(|appended| appended.event_id.to_string())
        .collect();
    entry.note("event_ids", event_ids);
    entry.note("task_ids", task_ids.clone());
    let events = appended
        .iter()
        .zip(task_ids)
        .map(|(appended, task_id)| v1::ReleasedEvent {
            event_id: appended.event_id.to_string(),
            task_id,
            duplicate: appended.duplicate,
            event: None,
        });

    Ok(v1::ReleaseQuarantinedResponse {
        events: events.collect(),
    })
}

/// The events that a callback would become now. Writes nothing.
pub(super) async fn preview(
    context: &Context,
    payer: &Payer,
    request: v1::ReleaseQuarantinedRequest,
) -> Result<Response<v1::ReleaseQuarantinedResponse>, Status> {
    // Once as it is read, once as it is sent.
    let granted = context.answers.take(payer, 2 * TASK_BYTES_MAX).await?;
    let Corrected { drafts, .. } = Corrected::read(context, request).await?;
    let read = move |sources: &Sources| {
        let foreseen = sources.store.foresee(&drafts)?;
        let events = previewed(&drafts, &foreseen);
        Ok((encoded(&v1::ReleaseQuarantinedResponse { events }), granted))
    };
    let (answer, granted) = context.read(read).await?;
    Ok(context.answers.respond(answer, granted))
}

fn previewed(drafts: &[Draft], foreseen: &[Foreseen]) -> Vec<v1::ReleasedEvent> {
    let mut room = TASK_BYTES_MAX;
    let preview = |(draft, foreseen): (&Draft, &Foreseen)| {
        let fits = draft.event.len() <= room;
        room -= if fits { draft.event.len() } else { 0 };
        let (event_id, revision, conflict) = match *foreseen {
            Foreseen::New { revision, conflict } => (String::new(), revision, conflict),
            Foreseen::Duplicate(of) => (of.map_or_else(String::new, |id| id.to_string()), 0, false),
        };
        let event = fits.then(|| v1::Event::decode(draft.event.clone()).ok());
        v1::ReleasedEvent {
            event_id,
            task_id: draft.task_id.to_string(),
            duplicate: matches!(foreseen, Foreseen::Duplicate(_)),
            event: event.flatten().map(|event| v1::Event {
                event_id: String::new(),
                revision,
                conflict,
                ..event
            }),
        }
    };
    drafts.iter().zip(foreseen).map(preview).collect()
}

/// Removes callbacks from it.
pub(super) async fn discard(
    context: &Context,
    request: v1::DiscardQuarantinedRequest,
    entry: &mut Entry,
) -> Result<v1::DiscardQuarantinedResponse, Status> {
    let v1::DiscardQuarantinedRequest { quarantine_ids } = request;
    if quarantine_ids.is_empty() || quarantine_ids.len() > page::PAGE_ITEMS_MAX {
        let problem = format!("name 1 to {} callbacks", page::PAGE_ITEMS_MAX);
        return Err(Malformed::new("quarantine_ids", problem).into());
    }

    let numbers = quarantine_ids
        .iter()
        .map(|id| number("quarantine_ids", id))
        .collect::<Result<_, _>>()?;
    let discarded_count = context.answered(context.journal.discard(numbers).await)?;
    entry.note("count", discarded_count);
    Ok(v1::DiscardQuarantinedResponse { discarded_count })
}

/// The callback as it was received.
fn callback_of(quarantined: Quarantined) -> Callback {
    let header = &quarantined.header;
    let received_at = Timestamp::from_microsecond(header.received_at_micros).unwrap_or_default();
    let verification = Verification::from_number(header.verification);
    let credential = match &*header.credential {
        UNVERIFIED => "",
        shown => shown,
    };

    let body = quarantined.body;
    Callback::from_target(&header.target, body, received_at, verification, credential)
        .bound_as_kept(&header.bound)
}

/// The wire's form, without the body if that is larger than `body_bytes_max`.
fn quarantined(callback: Quarantined, body_bytes_max: usize) -> v1::QuarantinedCallback {
    let Quarantined {
        number,
        header,
        body,
        ..
    } = callback;

    v1::QuarantinedCallback {
        quarantine_id: number.to_string(),
        reason: header.reason,
        detail: header.detail,
        target: header.target,
        received_at: Timestamp::from_microsecond(header.received_at_micros)
            .ok()
            .map(timestamp),
        body_bytes: body.len() as u64,
        verification: verification_to_wire(Verification::from_number(header.verification)).into(),
        credential: header.credential,
        bound_labels: header.bound.labels.into_iter().collect(),
        bound_products: header.bound.products,
        body: if body.len() <= body_bytes_max {
            body
        } else {
            Bytes::new()
        },
    }
}

fn number(field: &str, id: &str) -> Result<u64, Malformed> {
    // Digits only: a number has one name.
    let number = id
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| id.parse().ok())
        .flatten();
    number.ok_or_else(|| Malformed::new(field, "not a quarantine id: take one from ListQuarantine"))
}
