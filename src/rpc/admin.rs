//! `blobcast.v1.AdminService`.

use tonic::{Request, Response, Status};

use super::{
    Context,
    access::{Caller, Peer},
    answers::Prepaid,
    backup::{BackupStream, Begun},
    configuration, credentials, erasure, errors, expectations, minting, overview, quarantine,
    refusals, subscriptions, test_callback,
};
use crate::{
    audit::{self, Entry},
    budget::Payer,
    wire::{service::admin_service_server, v1},
};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Admin(Context);

impl Admin {
    /// The service on `context`.
    pub(crate) fn new(context: Context) -> Self {
        Self(context)
    }

    /// Begins the record of a call whose caller must be an administrator. Fails if the record is required and cannot be written.
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

    /// The caller of a call and the record of it, if the caller has the permission that `require` checks.
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
            entry.deny(&errors::word(&denied));
            return Err(denied);
        }
        Ok((caller, entry))
    }
}

/// Records how a call has ended, before it is answered.
async fn end<T>(entry: Entry, answer: Result<T, Status>) -> Result<T, Status> {
    match &answer {
        Ok(_) => entry.end(audit::OK).await,
        Err(status) => {
            let reason = errors::word(status);
            entry.end(&reason).await;
        }
    }
    answer
}

/// Each call is recorded; what it does is in a file of its own.
#[tonic::async_trait]
impl admin_service_server::AdminService for Admin {
    type BackupStream = BackupStream;

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<BackupStream>, Status> {
        let (caller, entry) =
            self.allowed("Backup", &request, |_, _| (), Caller::require_backup)?;

        // A backup takes long. Its end is recorded when no call waits any more.
        let entry = entry
            .begin_in_any_case()
            .await
            .map_err(|_| errors::audit_unavailable())?;

        // A client that is refused a place tries again: no backup has failed.
        let place = match self.0.answers.take_backup(&Payer::of(&request, &caller)) {
            Ok(place) => place,
            Err(refused) => return end(entry, Err(refused)).await,
        };

        let begun = Begun::note(&self.0).await;
        let taken = match self.0.answered(self.0.journal.backup().await) {
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
        let note = |entry: &mut Entry, request: &v1::ListSubscriptionsRequest| {
            entry.note("of_client", request.client.as_str());
            entry.note("of_task", request.task_id.as_str());
        };
        let (_, mut entry) = self.begin("ListSubscriptions", &request, note).await?;
        let answer = subscriptions::list(&self.0, request.into_inner()).await;
        if let Ok(page) = &answer {
            entry.note("count", page.subscriptions.len());
        }
        end(entry, answer).await.map(Response::new)
    }

    async fn list_ended_subscriptions(
        &self,
        request: Request<v1::ListEndedSubscriptionsRequest>,
    ) -> Result<Response<v1::ListEndedSubscriptionsResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::ListEndedSubscriptionsRequest| {
            entry.note("of_client", request.client.as_str());
        };
        let (_, mut entry) = self.begin("ListEndedSubscriptions", &request, note).await?;
        let answer = subscriptions::list_ended(&self.0, request.into_inner(), &mut entry);
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
        let answer = subscriptions::end(&self.0, &request.into_inner(), &mut entry);
        end(entry, answer).await.map(Response::new)
    }

    async fn list_refusals(
        &self,
        request: Request<v1::ListRefusalsRequest>,
    ) -> Result<Response<v1::ListRefusalsResponse>, Status> {
        let (_, mut entry) = self.begin("ListRefusals", &request, |_, _| ()).await?;
        let answer = refusals::list(&self.0, &request.into_inner(), &mut entry);
        end(entry, answer).await.map(Response::new)
    }

    async fn get_overview(
        &self,
        request: Request<v1::GetOverviewRequest>,
    ) -> Result<Response<v1::GetOverviewResponse>, Status> {
        let (caller, mut entry) = self.begin("GetOverview", &request, |_, _| ()).await?;
        let answer = overview::describe(&self.0, &caller, &mut entry).await;
        end(entry, Ok(answer)).await.map(Response::new)
    }

    async fn list_credentials(
        &self,
        request: Request<v1::ListCredentialsRequest>,
    ) -> Result<Response<v1::ListCredentialsResponse>, Status> {
        let (_, mut entry) = self.begin("ListCredentials", &request, |_, _| ()).await?;
        let answer = credentials::list(&self.0, request.into_inner(), &mut entry);
        end(entry, answer).await.map(Response::new)
    }

    async fn get_configuration(
        &self,
        request: Request<v1::GetConfigurationRequest>,
    ) -> Result<Response<v1::GetConfigurationResponse>, Status> {
        let (_, mut entry) = self.begin("GetConfiguration", &request, |_, _| ()).await?;
        let answer = configuration::describe(&self.0, &mut entry);
        end(entry, Ok(answer)).await.map(Response::new)
    }

    async fn list_expectations(
        &self,
        request: Request<v1::ListExpectationsRequest>,
    ) -> Result<Response<v1::ListExpectationsResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::ListExpectationsRequest| {
            entry.note("product", request.product.as_str());
        };
        let (_, mut entry) = self.begin("ListExpectations", &request, note).await?;
        let answer = expectations::list(&self.0, request.into_inner(), &mut entry).await;
        end(entry, answer).await.map(Response::new)
    }

    async fn list_quarantine(
        &self,
        request: Request<v1::ListQuarantineRequest>,
    ) -> Result<Response<v1::ListQuarantineResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::ListQuarantineRequest| {
            entry.note("include_body", request.include_body);
        };
        let (caller, mut entry) = self.begin("ListQuarantine", &request, note).await?;
        let payer = Payer::of(&request, &caller);
        let answer = quarantine::list(&self.0, &payer, request.into_inner(), &mut entry).await;
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
            entry.note("validate_only", request.validate_only.then_some(true));
            entry.note(
                "body_bytes",
                (!request.body.is_empty()).then_some(request.body.len()),
            );
        };

        let (caller, mut entry) = self.begin("ReleaseQuarantined", &request, note).await?;
        if request.get_ref().validate_only {
            let payer = Payer::of(&request, &caller);
            let answer = quarantine::preview(&self.0, &payer, request.into_inner()).await;
            return end(entry, answer).await;
        }
        let answer = quarantine::release(&self.0, request.into_inner(), &mut entry).await;
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
        let answer = quarantine::discard(&self.0, request.into_inner(), &mut entry).await;
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
        let answer = erasure::erase(&self.0, &caller, request.into_inner(), &mut entry).await;
        end(entry, answer).await.map(Response::new)
    }

    async fn mint_callback_url(
        &self,
        request: Request<v1::MintCallbackUrlRequest>,
    ) -> Result<Response<v1::MintCallbackUrlResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::MintCallbackUrlRequest| {
            entry.note("product", request.product.as_str());
            entry.note("labels", minting::recorded(&request.labels));
            entry.note("key_id", request.key_id.as_str());
        };
        let (_, mut entry) = self.begin("MintCallbackUrl", &request, note).await?;
        let answer = minting::mint(&self.0, request.into_inner(), &mut entry);
        end(entry, answer).await.map(Response::new)
    }

    async fn send_test_callback(
        &self,
        request: Request<v1::SendTestCallbackRequest>,
    ) -> Result<Response<v1::SendTestCallbackResponse>, Status> {
        let note = |entry: &mut Entry, request: &v1::SendTestCallbackRequest| {
            entry.note("task_id", request.task_id.as_str());
            entry.note("status", request.status.as_str());
        };
        let (_, mut entry) = self.begin("SendTestCallback", &request, note).await?;
        let caller = request.extensions().get::<Peer>().map(|it| it.address.ip());
        let answer = test_callback::send(&self.0, caller, request.get_ref(), &mut entry).await;
        end(entry, answer).await.map(Response::new)
    }
}
