//! `blobcast.v1.AdminService`.

use std::{collections::HashSet, str::FromStr, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tonic::{Request, Response, Status};

use super::{
    Context,
    access::Caller,
    answers::{Prepaid, encoded},
    backup::{BackupStream, Begun},
    errors, page,
};
use crate::{
    audit::{self, Entry},
    budget::Payer,
    callback::{Callback, Corrections},
    credentials::{MintError, Minted, SECRET_PARAMETERS},
    event::{
        LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Product, Sequence, TaskId,
        Verification, labels_fit,
    },
    store::{ERASURE_PLACES_MAX, Erased, Erasure, Quarantined, WriteError},
    subscription::{ListedSubscription, Sources, SubscriptionState},
    wire::{
        Malformed, frame::EVENT_BYTES_MAX, positive_duration, service::admin_service_server,
        status_to_wire, timestamp, v1, verification_to_wire,
    },
};

/// Task ids of a subscription that a listing shows.
const TASK_IDS_SHOWN: usize = 16;

/// How long a minted URL is accepted if not told: a task and its retries take half an hour, and somebody may be debugging.
const URL_LIFETIME_DEFAULT: Duration = Duration::from_secs(86_400);
const URL_LIFETIME_MIN: Duration = Duration::from_secs(1);
/// Longer than keys should live.
const URL_LIFETIME_MAX: Duration = Duration::from_secs(366 * 86_400);

/// What the quarantine says of a callback that came by no credential.
const UNVERIFIED: &str = "unverified";

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

    fn listed(&self, listed: ListedSubscription) -> v1::Subscription {
        let store = &self.0.sources.store;
        let filter = &listed.filter;
        v1::Subscription {
            subscription_id: listed.id,
            client: listed
                .client
                .map(|client| client.to_string())
                .unwrap_or_default(),
            client_name: listed.client_name,
            peer: listed.peer,
            filter: Some(v1::Filter {
                task_ids: sorted(&filter.task_ids, TASK_IDS_SHOWN),
                products: filter.products.iter().map(ToString::to_string).collect(),
                statuses: filter
                    .statuses
                    .iter()
                    .map(|&status| status_to_wire(status).into())
                    .collect(),
                labels: filter.labels.clone().into_iter().collect(),
            }),
            bound_labels: filter
                .bound
                .iter()
                .flat_map(|bound| (**bound).clone())
                .collect(),
            task_id_count: u32::try_from(filter.task_ids.len()).unwrap_or(u32::MAX),
            state: match listed.state {
                SubscriptionState::CatchingUp => v1::SubscriptionState::CatchingUp.into(),
                SubscriptionState::Live => v1::SubscriptionState::Live.into(),
                SubscriptionState::Stalled => v1::SubscriptionState::Stalled.into(),
            },
            cursor: store.cursor(listed.position).to_string(),
            lag: store.head().0.saturating_sub(listed.position.0),
            delivered_count: listed.delivered,
            opened_at: Some(timestamp(listed.opened_at)),
        }
    }
}

impl Admin {
    /// Begins the record of a call, whose caller has to be an administrator. What comes behind it is only done if it could be recorded
    /// where it has to be.
    async fn begin<T>(
        &self,
        action: &'static str,
        request: &Request<T>,
        note: impl FnOnce(&mut Entry, &T),
    ) -> Result<(Caller, Entry), Status> {
        let (caller, entry) = self.allowed(action, request, note, Caller::require_admin)?;
        let entry = entry
            .begin()
            .await
            .map_err(|_| errors::audit_unavailable())?;
        Ok((caller, entry))
    }

    fn allowed<T>(
        &self,
        action: &'static str,
        request: &Request<T>,
        note: impl FnOnce(&mut Entry, &T),
        require: impl FnOnce(&Caller) -> Result<(), Status>,
    ) -> Result<(Caller, Entry), Status> {
        let caller = self.0.gate.caller_of(request)?;
        let mut entry = self.0.audit.entry(action).by(caller.who(request));
        note(&mut entry, request.get_ref());
        if let Err(denied) = require(&caller) {
            entry.deny(&errors::result(&denied));
            return Err(denied);
        }
        Ok((caller, entry))
    }

    fn list(
        &self,
        request: v1::ListSubscriptionsRequest,
    ) -> Result<v1::ListSubscriptionsResponse, Status> {
        let v1::ListSubscriptionsRequest {
            page_size,
            page_token,
        } = request;
        let page_size = page::size(page_size).map_err(errors::malformed)?;
        let after = page::place(&page_token, SUBSCRIPTIONS, u64::MAX)
            .map_err(errors::malformed)?
            .unwrap_or(0);
        let sources = &self.0.sources;
        let listed = sources.registry.list(&sources.hub, after, page_size);
        let last = listed
            .last()
            .filter(|_| listed.len() == page_size)
            .map(|last| last.number);
        Ok(v1::ListSubscriptionsResponse {
            next_page_token: last
                .map(|number| page::token(number, SUBSCRIPTIONS))
                .unwrap_or_default(),
            subscriptions: listed
                .into_iter()
                .map(|listed| self.listed(listed))
                .collect(),
        })
    }

    fn end_subscription(
        &self,
        request: &v1::EndSubscriptionRequest,
        entry: &mut Entry,
    ) -> Result<v1::EndSubscriptionResponse, Status> {
        let sources = &self.0.sources;
        let ended = sources.registry.end(&sources.hub, &request.subscription_id);
        let ended = ended.ok_or_else(errors::subscription_not_found)?;
        entry.note("ended_client", ended.client.as_deref().unwrap_or_default());
        Ok(v1::EndSubscriptionResponse {
            subscription: Some(self.listed(ended)),
        })
    }

    async fn read_quarantine(
        &self,
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
        let page_size = page::size(page_size).map_err(errors::malformed)?;
        let after = page::place(&page_token, QUARANTINE, u64::MAX)
            .map_err(errors::malformed)?
            .unwrap_or(0);
        let granted = self.0.answers.take(payer, self.0.page_bytes_max()).await?;
        let read = move |sources: &Sources| {
            let found = sources
                .store
                .quarantined_after(after, page_size, page::PAGE_BYTES_MAX)?;
            // A page may have ended by count or by bytes; whether there is more, only a look tells.
            let more = match found.last() {
                Some(last) => !sources
                    .store
                    .quarantined_after(last.number, 1, 0)?
                    .is_empty(),
                None => false,
            };
            let (count, last) = (
                found.len(),
                found.last().filter(|_| more).map(|last| last.number),
            );
            let page = v1::ListQuarantineResponse {
                next_page_token: last
                    .map(|number| page::token(number, QUARANTINE))
                    .unwrap_or_default(),
                callbacks: found
                    .into_iter()
                    .map(|callback| quarantined(callback, body_bytes_max))
                    .collect(),
            };
            Ok((encoded(&page), count, granted))
        };
        let (page, count, granted) = self.0.read(read).await?;
        entry.note("count", count);
        Ok(self.0.answers.respond(page, granted))
    }

    async fn release(
        &self,
        request: v1::ReleaseQuarantinedRequest,
        entry: &mut Entry,
    ) -> Result<v1::ReleaseQuarantinedResponse, Status> {
        let v1::ReleaseQuarantinedRequest {
            quarantine_id,
            product,
            task_id,
            drop_labels,
            body,
            status,
        } = request;
        let number = number("quarantine_id", &quarantine_id)?;
        let corrections = Corrections {
            product: correction("product", &product, |raw| {
                Product::parse(raw).map_err(|e| e.to_string())
            })?,
            task_id: correction("task_id", &task_id, |raw| {
                TaskId::parse(raw).map_err(|e| e.to_string())
            })?,
            status: correction("status", &status, parsed)?,
            body: (!body.is_empty()).then_some(body),
            drop_labels,
        };
        let found = self
            .0
            .read(move |sources| sources.store.quarantined(number))
            .await?;
        let found = found.ok_or_else(|| errors::quarantine_not_found(&quarantine_id))?;
        let received_at =
            Timestamp::from_microsecond(found.header.received_at_micros).unwrap_or_default();
        let verification = Verification::from_number(found.header.verification);
        let credential = match &*found.header.credential {
            UNVERIFIED => "",
            shown => shown,
        };
        let callback = Callback::from_target(
            &found.header.target,
            found.body,
            received_at,
            verification,
            credential,
        );
        let callback = callback.bound_as_kept(&found.header.bound);
        let drafts = callback
            .released(&corrections)
            .map_err(|refusal| errors::not_understood(&refusal))?;
        let task_ids: Vec<_> = drafts
            .iter()
            .map(|draft| draft.task_id.to_string())
            .collect();
        let appended = match self.0.journal.release(number, drafts).await {
            Ok(Err(WriteError::NotInQuarantine)) => {
                return Err(errors::quarantine_not_found(&quarantine_id));
            }
            answer => self.answered(answer)?,
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
            });
        Ok(v1::ReleaseQuarantinedResponse {
            events: events.collect(),
        })
    }

    async fn discard(
        &self,
        request: v1::DiscardQuarantinedRequest,
        entry: &mut Entry,
    ) -> Result<v1::DiscardQuarantinedResponse, Status> {
        let v1::DiscardQuarantinedRequest { quarantine_ids } = request;
        if quarantine_ids.is_empty() || quarantine_ids.len() > page::PAGE_ITEMS_MAX {
            let problem = format!("name 1 to {} callbacks", page::PAGE_ITEMS_MAX);
            return Err(errors::malformed(Malformed::new("quarantine_ids", problem)));
        }
        let numbers = quarantine_ids
            .iter()
            .map(|id| number("quarantine_ids", id))
            .collect::<Result<_, _>>()?;
        let discarded_count = self.answered(self.0.journal.discard(numbers).await)?;
        entry.note("count", discarded_count);
        Ok(v1::DiscardQuarantinedResponse { discarded_count })
    }

    async fn erase(
        &self,
        caller: &Caller,
        request: v1::EraseTaskRequest,
        entry: &mut Entry,
    ) -> Result<v1::EraseTaskResponse, Status> {
        let v1::EraseTaskRequest { product, task_id } = request;
        let malformed = |field, problem: String| errors::malformed(Malformed::new(field, problem));
        let product =
            Product::parse(&product).map_err(|error| malformed("product", error.to_string()))?;
        let task_id =
            TaskId::parse(&task_id).map_err(|error| malformed("task_id", error.to_string()))?;
        // What erases an event could as well show it.
        if !caller.may_see_product(&product) {
            return Err(errors::product_denied(product.as_str()));
        }
        let (of_task, of_product) = (task_id.clone(), product.clone());
        let places = self
            .0
            .read(move |sources| sources.store.places_of_task(&of_task, &of_product))
            .await?;
        let is_known = !places.is_empty();
        let Erased { events, bytes } = self.erase_all(&task_id, &product, &places).await?;
        if events == 0 && !is_known {
            return Err(errors::task_not_found(task_id.as_str(), product.as_str()));
        }
        entry.note("count", events);
        Ok(v1::EraseTaskResponse {
            erased_count: events,
            erased_bytes: bytes,
        })
    }

    async fn erase_all(
        &self,
        task_id: &TaskId,
        product: &Product,
        places: &[Sequence],
    ) -> Result<Erased, Status> {
        let (mut rest, mut all) = (places, Erased::default());
        loop {
            let (places, behind) = rest.split_at(rest.len().min(ERASURE_PLACES_MAX));
            let erasure = Erasure {
                task_id: task_id.clone(),
                product: product.clone(),
                places: places.to_vec(),
            };
            let Erased { events, bytes } = self.answered(self.0.journal.erase(erasure).await)?;
            all.events += events;
            all.bytes += bytes;
            rest = behind;
            if rest.is_empty() {
                return Ok(all);
            }
        }
    }

    fn answered<T, E>(&self, answer: Result<Result<T, WriteError>, E>) -> Result<T, Status> {
        answer
            .map_err(|_| errors::draining())?
            .map_err(|error| errors::write(&self.0.sources, &error))
    }

    fn mint(
        &self,
        request: v1::MintCallbackUrlRequest,
        entry: &mut Entry,
    ) -> Result<v1::MintCallbackUrlResponse, Status> {
        let v1::MintCallbackUrlRequest {
            product,
            labels,
            ttl,
            key_id,
        } = request;
        let product = correction("product", &product, |raw| {
            Product::parse(raw).map_err(|e| e.to_string())
        })?;
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
        let minted = credentials.mint(
            &self.0.callback_base,
            product.as_ref(),
            &labels,
            ttl,
            key_id,
            now,
        );
        let Minted {
            url,
            expires,
            key_id,
        } = minted.map_err(|error| match error {
            MintError::NoKey | MintError::UnknownKey(_) | MintError::AllBound => {
                errors::signing_key_missing(error.to_string())
            }
            MintError::NoProduct { .. } => {
                errors::malformed(Malformed::new("product", error.to_string()))
            }
            MintError::OtherProduct { ref product, .. } => {
                errors::product_denied_by_key(product.as_str(), &error)
            }
            MintError::Reserved(_)
            | MintError::TooLong(_)
            | MintError::OtherLabel { .. }
            | MintError::TooManyLabels { .. } => {
                errors::malformed(Malformed::new("labels", error.to_string()))
            }
        })?;
        let key_id = key_id.to_string();
        entry.note("key_id", key_id.as_str());
        entry.note("expires", expires.to_string());
        Ok(v1::MintCallbackUrlResponse {
            callback_url: url,
            expire_time: Some(timestamp(expires)),
            key_id,
        })
    }
}

/// Records how a call has ended, before it is answered.
async fn end<T>(entry: Entry, answer: Result<T, Status>) -> Result<T, Status> {
    match &answer {
        Ok(_) => entry.end(audit::OK).await,
        Err(status) => {
            let reason = errors::result(status);
            entry.end(&reason).await;
        }
    }
    answer
}

/// Each call is recorded; what it does is above.
#[tonic::async_trait]
impl admin_service_server::AdminService for Admin {
    type BackupStream = BackupStream;

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<BackupStream>, Status> {
        let (caller, entry) =
            self.allowed("Backup", &request, |_, _| (), Caller::require_backup)?;
        // It takes long, and its end is recorded when nobody waits any more.
        let entry = entry
            .begin_in_any_case()
            .await
            .map_err(|_| errors::audit_unavailable())?;
        // A client that is refused a place asks again: no backup has failed.
        let place = match self.0.answers.take_backup(&Payer::of(&request, &caller)) {
            Ok(place) => place,
            Err(refused) => return end(entry, Err(refused)).await,
        };
        let begun = Begun::note(&self.0).await;
        let taken = match self.answered(self.0.journal.backup().await) {
            Ok(backup) => (backup, place),
            Err(refused) => {
                begun.refused();
                return end(entry, Err(refused)).await;
            }
        };
        let mut answer = Response::new(BackupStream::new(
            self.0.clone(),
            caller,
            taken,
            entry,
            begun,
        ));
        answer.extensions_mut().insert(Prepaid);
        Ok(answer)
    }

    async fn list_subscriptions(
        &self,
        request: Request<v1::ListSubscriptionsRequest>,
    ) -> Result<Response<v1::ListSubscriptionsResponse>, Status> {
        let (_, mut entry) = self.begin("ListSubscriptions", &request, |_, _| ()).await?;
        let answer = self.list(request.into_inner());
        if let Ok(page) = &answer {
            entry.note("count", page.subscriptions.len());
        }
        end(entry, answer).await.map(Response::new)
    }

    async fn end_subscription(
        &self,
        request: Request<v1::EndSubscriptionRequest>,
    ) -> Result<Response<v1::EndSubscriptionResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::EndSubscriptionRequest| {
            entry.note("subscription_id", request.subscription_id.as_str());
        };
        let (_, mut entry) = self.begin("EndSubscription", &request, note).await?;
        let answer = self.end_subscription(&request.into_inner(), &mut entry);
        end(entry, answer).await.map(Response::new)
    }

    async fn list_quarantine(
        &self,
        request: Request<v1::ListQuarantineRequest>,
    ) -> Result<Response<v1::ListQuarantineResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::ListQuarantineRequest| {
            entry.note("include_body", request.include_body)
        };
        let (caller, mut entry) = self.begin("ListQuarantine", &request, note).await?;
        let payer = Payer::of(&request, &caller);
        let answer = self
            .read_quarantine(&payer, request.into_inner(), &mut entry)
            .await;
        end(entry, answer).await
    }

    async fn release_quarantined(
        &self,
        request: Request<v1::ReleaseQuarantinedRequest>,
    ) -> Result<Response<v1::ReleaseQuarantinedResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::ReleaseQuarantinedRequest| {
            entry.note("quarantine_id", request.quarantine_id.as_str());
            entry.note("product", request.product.as_str());
            entry.note("task_id", request.task_id.as_str());
            entry.note("status", request.status.as_str());
            entry.note("drop_labels", request.drop_labels.then_some(true));
            entry.note(
                "body_bytes",
                (!request.body.is_empty()).then_some(request.body.len()),
            );
        };
        let (_, mut entry) = self.begin("ReleaseQuarantined", &request, note).await?;
        let answer = self.release(request.into_inner(), &mut entry).await;
        end(entry, answer).await.map(Response::new)
    }

    async fn discard_quarantined(
        &self,
        request: Request<v1::DiscardQuarantinedRequest>,
    ) -> Result<Response<v1::DiscardQuarantinedResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::DiscardQuarantinedRequest| {
            entry.note("quarantine_ids", request.quarantine_ids.clone());
        };
        let (_, mut entry) = self.begin("DiscardQuarantined", &request, note).await?;
        let answer = self.discard(request.into_inner(), &mut entry).await;
        end(entry, answer).await.map(Response::new)
    }

    async fn erase_task(
        &self,
        request: Request<v1::EraseTaskRequest>,
    ) -> Result<Response<v1::EraseTaskResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::EraseTaskRequest| {
            entry.note("product", request.product.as_str());
            entry.note("task_id", request.task_id.as_str());
        };
        let (caller, mut entry) = self.begin("EraseTask", &request, note).await?;
        let answer = self.erase(&caller, request.into_inner(), &mut entry).await;
        end(entry, answer).await.map(Response::new)
    }

    async fn mint_callback_url(
        &self,
        request: Request<v1::MintCallbackUrlRequest>,
    ) -> Result<Response<v1::MintCallbackUrlResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::MintCallbackUrlRequest| {
            entry.note("product", request.product.as_str());
            entry.note("labels", recorded(&request.labels));
            entry.note("key_id", request.key_id.as_str());
        };
        let (_, mut entry) = self.begin("MintCallbackUrl", &request, note).await?;
        let answer = self.mint(request.into_inner(), &mut entry);
        end(entry, answer).await.map(Response::new)
    }
}

/// Labels as a record has them. A reserved one is refused, and its value may be the secret that it is reserved for.
fn recorded<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Map<String, Value> {
    let value = |(key, value): (&String, &String)| {
        let is_secret = SECRET_PARAMETERS.contains(&key.as_str());
        (
            key.clone(),
            if is_secret {
                "…".into()
            } else {
                value.clone().into()
            },
        )
    };
    labels.into_iter().take(LABELS_MAX).map(value).collect()
}

fn url_lifetime(requested: Option<prost_types::Duration>) -> Result<Duration, Malformed> {
    let Some(requested) = requested else {
        return Ok(URL_LIFETIME_DEFAULT);
    };
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
    values
        .into_iter()
        .take(count_max)
        .map(ToString::to_string)
        .collect()
}

/// Without its body if that is larger than `body_bytes_max`.
fn quarantined(callback: Quarantined, body_bytes_max: usize) -> v1::QuarantinedCallback {
    let Quarantined {
        number,
        header,
        body,
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

fn number(field: &str, id: &str) -> Result<u64, Status> {
    // Digits only: a number has one name.
    let number = id
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| id.parse().ok())
        .flatten();
    number.ok_or_else(|| {
        errors::malformed(Malformed::new(
            field,
            "not a quarantine id: take one from ListQuarantine",
        ))
    })
}

fn parsed<T: FromStr<Err: ToString>>(raw: &str) -> Result<T, String> {
    raw.parse().map_err(|error: T::Err| error.to_string())
}

fn correction<T>(
    field: &str,
    raw: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Status> {
    if raw.is_empty() {
        return Ok(None);
    }
    parse(raw)
        .map(Some)
        .map_err(|problem| errors::malformed(Malformed::new(field, problem)))
}
