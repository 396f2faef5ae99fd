//! `blobcast.v1.AdminService`.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tonic::{Request, Response, Status};

use super::{
    Context,
    access::Caller,
    answers::{Payer, Prepaid, encoded},
    backup::BackupStream,
    errors, page,
};
use crate::{
    callback::{Callback, Corrections},
    credentials::{MintError, Minted},
    event::{LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Product, TaskId, Verification, labels_fit},
    store::{Quarantined, WriteError},
    subscription::{Listed, Sources, State},
    wire::{
        Malformed, positive_duration, service::admin_service_server, status_to_wire, timestamp, v1,
        verification_to_wire,
    },
};

/// Task ids of a subscription that a listing shows.
const TASK_IDS_SHOWN: usize = 16;

/// How long a minted URL is accepted if not told: a task and its retries take half an hour, and somebody may be debugging.
const URL_LIFETIME_DEFAULT: Duration = Duration::from_secs(86_400);
const URL_LIFETIME_MIN: Duration = Duration::from_secs(1);
/// Longer than keys should live.
const URL_LIFETIME_MAX: Duration = Duration::from_secs(366 * 86_400);

/// What the page tokens of each listing are bound to, so that one does not take the other's.
const SUBSCRIPTIONS: u64 = 1;
const QUARANTINE: u64 = 2;

/// The service.
#[derive(Clone, Debug)]
pub struct Admin(Context);

impl Admin {
    /// The service on `context`.
    pub fn new(context: Context) -> Self {
        Self(context)
    }

    fn listed(&self, listed: Listed) -> v1::Subscription {
        let store = &self.0.sources.store;
        let filter = &listed.filter;
        v1::Subscription {
            subscription_id: listed.id,
            client: listed.client.map(|client| client.to_string()).unwrap_or_default(),
            client_name: listed.client_name,
            peer: listed.peer,
            filter: Some(v1::Filter {
                task_ids: sorted(&filter.task_ids, TASK_IDS_SHOWN),
                products: filter.products.iter().map(ToString::to_string).collect(),
                statuses: filter.statuses.iter().map(|&status| status_to_wire(status).into()).collect(),
                labels: filter.labels.clone().into_iter().collect(),
            }),
            task_id_count: u32::try_from(filter.task_ids.len()).unwrap_or(u32::MAX),
            state: match listed.state {
                State::CatchingUp => v1::SubscriptionState::CatchingUp.into(),
                State::Live => v1::SubscriptionState::Live.into(),
            },
            cursor: store.cursor(listed.position).to_string(),
            lag: store.head().0.saturating_sub(listed.position.0),
            delivered_count: listed.delivered,
            opened_at: Some(timestamp(listed.opened_at)),
        }
    }
}

#[tonic::async_trait]
impl admin_service_server::AdminService for Admin {
    type BackupStream = BackupStream;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<BackupStream>, Status> {
        let caller = Caller::of(&request)?;
        caller.require_backup()?;
        let place = self.0.answers.take_backup(&Payer::of(&request, &caller))?;
        let backup = answered(self.0.appender.backup().await)?;
        tracing::info!(client = caller.0.as_ref().map(|client| &*client.name), "backup begun");
        let mut answer = Response::new(BackupStream::new(self.0.clone(), caller, backup, place));
        answer.extensions_mut().insert(Prepaid);
        Ok(answer)
    }

    async fn list_subscriptions(
        &self,
        request: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        Caller::of(&request)?.require_admin()?;
        let v1::ListSubscriptionsRequest { page_size, page_token } = request.into_inner();
        let page_size = page::size(page_size).map_err(errors::malformed)?;
        let after = page::place(&page_token, SUBSCRIPTIONS, u64::MAX).map_err(errors::malformed)?.unwrap_or(0);
        let sources = &self.0.sources;
        let listed = sources.registry.list(&sources.hub, after, page_size);
        let last = listed.last().filter(|_| listed.len() == page_size).map(|last| last.number);
        Ok(Response::new(v1::ListSubscriptionsResponse {
            next_page_token: last.map(|number| page::token(number, SUBSCRIPTIONS)).unwrap_or_default(),
            subscriptions: listed.into_iter().map(|listed| self.listed(listed)).collect(),
        }))
    }

    async fn list_quarantine(
        &self,
        request: Request<v1::ListQuarantineRequest>,
    ) -> Result<Response<v1::ListQuarantineResponse>, Status> {
        let caller = Caller::of(&request)?;
        caller.require_admin()?;
        let payer = Payer::of(&request, &caller);
        let v1::ListQuarantineRequest { page_size, page_token, include_body } = request.into_inner();
        let page_size = page::size(page_size).map_err(errors::malformed)?;
        let after = page::place(&page_token, QUARANTINE, u64::MAX).map_err(errors::malformed)?.unwrap_or(0);
        let granted = self.0.answers.take(&payer, self.0.page_bytes_max()).await?;
        let read = move |sources: &Sources| {
            let found = sources.store.quarantined_after(after, page_size, page::PAGE_BYTES_MAX)?;
            // A page may have ended by count or by bytes; whether there is more, only a look tells.
            let more = match found.last() {
                Some(last) => !sources.store.quarantined_after(last.number, 1, 0)?.is_empty(),
                None => false,
            };
            let last = found.last().filter(|_| more).map(|last| last.number);
            let page = v1::ListQuarantineResponse {
                next_page_token: last.map(|number| page::token(number, QUARANTINE)).unwrap_or_default(),
                callbacks: found.into_iter().map(|callback| quarantined(callback, include_body)).collect(),
            };
            Ok((encoded(&page), granted))
        };
        let (page, granted) = self.0.read(read).await?;
        Ok(self.0.answers.respond(page, granted))
    }

    async fn release_quarantined(
        &self,
        request: Request<v1::ReleaseQuarantinedRequest>,
    ) -> Result<Response<v1::ReleaseQuarantinedResponse>, Status> {
        Caller::of(&request)?.require_admin()?;
        let v1::ReleaseQuarantinedRequest { quarantine_id, product, task_id, drop_labels } = request.into_inner();
        let number = number("quarantine_id", &quarantine_id)?;
        let corrections = Corrections {
            product: correction("product", &product, |raw| Product::parse(raw).map_err(|e| e.to_string()))?,
            task_id: correction("task_id", &task_id, |raw| TaskId::parse(raw).map_err(|e| e.to_string()))?,
            drop_labels,
        };
        let found = self.0.read(move |sources| sources.store.quarantined(number)).await?;
        let found = found.ok_or_else(|| errors::quarantine_not_found(&quarantine_id))?;
        let received_at = Timestamp::from_microsecond(found.header.received_at_micros).unwrap_or_default();
        let verification = Verification::from_number(found.header.verification);
        let callback = Callback::from_target(&found.header.target, found.body, received_at, verification);
        let draft = callback.draft(&corrections);
        let mut draft =
            draft.map_err(|rejection| errors::not_understood(rejection.reason(), &rejection.to_string()))?;
        draft.releases = Some(number);
        let appended = match self.0.journal.append(draft).await {
            Ok(Err(WriteError::NotInQuarantine)) => return Err(errors::quarantine_not_found(&quarantine_id)),
            answer => answered(answer)?,
        };
        tracing::info!(quarantine_id, event_id = %appended.event_id, "callback released from quarantine");
        Ok(Response::new(v1::ReleaseQuarantinedResponse {
            event_id: appended.event_id.to_string(),
            duplicate: appended.duplicate,
        }))
    }

    async fn discard_quarantined(
        &self,
        request: Request<v1::DiscardQuarantinedRequest>,
    ) -> Result<Response<v1::DiscardQuarantinedResponse>, Status> {
        Caller::of(&request)?.require_admin()?;
        let v1::DiscardQuarantinedRequest { quarantine_ids } = request.into_inner();
        if quarantine_ids.is_empty() || quarantine_ids.len() > page::PAGE_ITEMS_MAX {
            let problem = format!("name 1 to {} callbacks", page::PAGE_ITEMS_MAX);
            return Err(errors::malformed(Malformed::new("quarantine_ids", problem)));
        }
        let numbers = quarantine_ids.iter().map(|id| number("quarantine_ids", id)).collect::<Result<_, _>>()?;
        let discarded_count = answered(self.0.appender.discard(numbers).await)?;
        tracing::info!(discarded_count, "callbacks discarded from quarantine");
        Ok(Response::new(v1::DiscardQuarantinedResponse { discarded_count }))
    }

    async fn mint_callback_url(
        &self,
        request: Request<v1::MintCallbackUrlRequest>,
    ) -> Result<Response<v1::MintCallbackUrlResponse>, Status> {
        Caller::of(&request)?.require_admin()?;
        let v1::MintCallbackUrlRequest { product, labels, ttl, key_id } = request.into_inner();
        let product = correction("product", &product, |raw| Product::parse(raw).map_err(|e| e.to_string()))?;
        let labels = labels.into_iter().collect();
        if !labels_fit(&labels) {
            let problem = format!(
                "at most {LABELS_MAX}; a key has 1 to {LABEL_KEY_CHARS_MAX} characters, a value {LABEL_VALUE_CHARS_MAX}"
            );
            return Err(errors::malformed(Malformed::new("labels", problem)));
        }
        let ttl = url_lifetime(ttl).map_err(errors::malformed)?;
        let key_id = (!key_id.is_empty()).then_some(key_id.as_str());
        let credentials = self.0.gate.credentials.get();
        let now = self.0.gate.clock.now();
        let minted = credentials.mint(&self.0.callback_base, product.as_ref(), &labels, ttl, key_id, now);
        let Minted { url, expires, key_id } = minted.map_err(|error| match error {
            MintError::NoKey | MintError::UnknownKey(_) => errors::signing_key_missing(error.to_string()),
            MintError::Reserved(_) | MintError::TooLong(_) => {
                errors::malformed(Malformed::new("labels", error.to_string()))
            }
        })?;
        let key_id = key_id.to_string();
        // Not louder: clients decide how many there are.
        tracing::debug!(key_id, %expires, "callback URL minted");
        Ok(Response::new(v1::MintCallbackUrlResponse {
            callback_url: url,
            expire_time: Some(timestamp(expires)),
            key_id,
        }))
    }
}

fn url_lifetime(requested: Option<prost_types::Duration>) -> Result<Duration, Malformed> {
    let Some(requested) = requested else { return Ok(URL_LIFETIME_DEFAULT) };
    let lifetime = positive_duration("ttl", requested)?;
    if (URL_LIFETIME_MIN..=URL_LIFETIME_MAX).contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err(Malformed::new("ttl", "not between 1 s and 366 days"))
    }
}

/// The first `count_max` of a set, in an order that does not change from call to call.
fn sorted<T: Ord + ToString>(set: &HashSet<T>, count_max: usize) -> Vec<String> {
    let mut values: Vec<_> = set.iter().collect();
    values.sort_unstable();
    values.into_iter().take(count_max).map(ToString::to_string).collect()
}

fn answered<T, E>(answer: Result<Result<T, WriteError>, E>) -> Result<T, Status> {
    answer.map_err(|_| errors::draining())?.map_err(|error| errors::write(&error))
}

fn quarantined(callback: Quarantined, include_body: bool) -> v1::QuarantinedCallback {
    let Quarantined { number, header, body } = callback;
    v1::QuarantinedCallback {
        quarantine_id: number.to_string(),
        reason: header.reason,
        detail: header.detail,
        target: header.target,
        received_at: Timestamp::from_microsecond(header.received_at_micros).ok().map(timestamp),
        body_bytes: body.len() as u64,
        verification: verification_to_wire(Verification::from_number(header.verification)).into(),
        credential: header.credential,
        body: if include_body { body } else { Bytes::new() },
    }
}

fn number(field: &str, id: &str) -> Result<u64, Status> {
    // Digits only: a number has one name.
    let number = id.bytes().all(|b| b.is_ascii_digit()).then(|| id.parse().ok()).flatten();
    number.ok_or_else(|| errors::malformed(Malformed::new(field, "not a quarantine id: take one from ListQuarantine")))
}

fn correction<T>(field: &str, raw: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Status> {
    if raw.is_empty() {
        return Ok(None);
    }
    parse(raw).map(Some).map_err(|problem| errors::malformed(Malformed::new(field, problem)))
}
