//! `blobcast.v1.EventService`: what each call does is in the file of its name.

use tonic::{Request, Response, Status};

use super::{
    Context, expectations, listing, log_info, raw_body, stream::HandedOver, subscribe, task, wait,
};
use crate::wire::{Frame, service::event_service_server, v1};

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Events(Context);

impl Events {
    /// The service on `context`.
    pub(crate) fn new(context: Context) -> Self {
        Self(context)
    }
}

#[tonic::async_trait]
impl event_service_server::EventService for Events {
    /// The body with the events is in the answer's extensions; see [`HandedOver`].
    type SubscribeStream = tokio_stream::Once<Result<v1::SubscribeResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let body = subscribe::subscribe(&self.0, request).await?;

        let not_handed_over = Status::internal("the events were not handed over");
        let mut answer = Response::new(tokio_stream::once(Err(not_handed_over)));
        answer.extensions_mut().insert(HandedOver::new(body));
        Ok(answer)
    }

    async fn wait_task(
        &self,
        request: Request<v1::WaitTaskRequest>,
    ) -> Result<Response<Frame>, Status> {
        wait::wait(&self.0, request).await
    }

    async fn get_task(
        &self,
        request: Request<v1::GetTaskRequest>,
    ) -> Result<Response<Frame>, Status> {
        task::get(&self.0, request).await
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<Frame>, Status> {
        listing::list(&self.0, request).await
    }

    async fn get_raw_body(
        &self,
        request: Request<v1::GetRawBodyRequest>,
    ) -> Result<Response<Frame>, Status> {
        raw_body::get(&self.0, request).await
    }

    async fn get_log_info(
        &self,
        request: Request<v1::GetLogInfoRequest>,
    ) -> Result<Response<v1::GetLogInfoResponse>, Status> {
        let caller = self.0.gate.caller_of(&request)?;
        let described = log_info::describe(&self.0, &caller, request.get_ref()).await;
        described.map(Response::new)
    }

    async fn expect_tasks(
        &self,
        request: Request<v1::ExpectTasksRequest>,
    ) -> Result<Response<v1::ExpectTasksResponse>, Status> {
        expectations::expect(&self.0, request).await
    }

    async fn cancel_expectations(
        &self,
        request: Request<v1::CancelExpectationsRequest>,
    ) -> Result<Response<v1::CancelExpectationsResponse>, Status> {
        expectations::cancel(&self.0, request).await
    }
}
