//! From a callback to the log: an event, or a place in quarantine, before the deadline.

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    Ingest,
    answer::{Failure, Reply},
    budget::Sender,
    verify::Verified,
};
use crate::{
    callback::{Callback, Corrections, Rejection},
    event::Product,
    store::{Appended, NewQuarantined, QuarantineHeader, WriteError},
    trace::{RequestId, Span},
};

impl Ingest {
    pub(super) async fn keep(
        &self,
        callback: &Callback,
        verified: &Verified,
        deadline: Instant,
        span: &mut Span,
        id: RequestId,
    ) -> Reply {
        let (sender, conceals) = (&verified.sender, verified.conceals());
        let draft = callback.draft(&Corrections::default());

        // The budget is about bytes of the log, which gets the body and the event made of it.
        let bytes = callback.body.len() + draft.as_ref().map_or(0, |draft| draft.event.len());
        let product = callback.product.as_deref().unwrap_or_default();
        if let Err(wait) = self
            .budgets
            .take(sender, product, bytes as u64, Instant::now())
        {
            return Reply::BudgetExceeded(wait);
        }

        let mut draft = match draft {
            Ok(draft) => draft,
            Err(rejection) => {
                return self
                    .quarantine(callback, sender, &rejection, deadline, id)
                    .await;
            }
        };

        span.set("blobcast.product", draft.product.as_str());
        span.set("blobcast.task_id", draft.task_id.as_str());
        span.note("commit begun");
        draft.origin = span.origin();
        draft.conceals_duplicates = conceals;

        let lacks_output = draft.lacks_output.then(|| draft.product.clone());
        let reply = match durable(self.journal.append(draft), deadline).await {
            Ok(appended) => {
                if let Some(product) = lacks_output.filter(|_| !appended.duplicate) {
                    self.note_lacking_output(&product, &appended, id);
                }
                if appended.duplicate {
                    self.repetitions
                        .note(appended.sequence, callback.received_at);
                }
                Reply::Received(appended)
            }
            Err(Failure::Write(WriteError::TooManyEvents)) => {
                let rejection = Rejection::TooManyEvents;
                self.quarantine(callback, sender, &rejection, deadline, id)
                    .await
            }
            Err(failure) => Reply::NotKept(failure),
        };

        match reply {
            Reply::Received(_) | Reply::Quarantined { .. } if conceals => {
                Reply::Concealed(Box::new(reply))
            }
            reply => reply,
        }
    }

    /// Legal, and perhaps the first sign that the vendor has moved the outputs within its payloads.
    fn note_lacking_output(&self, product: &Product, appended: &Appended, request_id: RequestId) {
        self.metrics
            .count_completed_without_output(product.as_str());
        if let Some(unlogged) = self.lacking_output.due("completed_without_output") {
            let event_id = appended.event_id;
            tracing::warn!(
                %request_id, %product, %event_id, unlogged,
                "task completed, and its callback has no output: look at the raw body, and whether the vendor has changed its shape"
            );
        }
    }

    async fn quarantine(
        &self,
        callback: &Callback,
        sender: &Sender,
        rejection: &Rejection,
        deadline: Instant,
        request_id: RequestId,
    ) -> Reply {
        let header = QuarantineHeader {
            reason: rejection.reason().to_owned(),
            detail: format!("{rejection}; {}", rejection.remedy()),
            target: callback.target(),
            received_at_micros: callback.received_at.as_microsecond(),
            verification: callback.verification as u8,
            credential: match &*callback.credential {
                "" => sender.credential.to_string(),
                shown => shown.to_owned(),
            },
            product: callback.kept_product().unwrap_or_default().into_owned(),
            bound: callback.kept_bound(),
            idempotency_key: None,
        };

        let new = NewQuarantined {
            header,
            body: callback.body.clone(),
        };

        match durable(self.journal.quarantine(new), deadline).await {
            Ok(number) => {
                let reason = rejection.reason();
                if let Some(unlogged) = self.quarantines.due(reason) {
                    tracing::warn!(%request_id, quarantine_id = number, reason, unlogged, "callback quarantined");
                }
                Reply::Quarantined { reason }
            }
            Err(failure) => Reply::NotKept(failure),
        }
    }
}

async fn durable<T>(
    answer: oneshot::Receiver<Result<T, WriteError>>,
    deadline: Instant,
) -> Result<T, Failure> {
    match timeout_at(deadline, answer).await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(Failure::Write(error)),
        Ok(Err(_)) => Err(Failure::Write(WriteError::Closed)),
        Err(_) => Err(Failure::Late),
    }
}
