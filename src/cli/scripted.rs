//! A fake broker for tests of the client: answers each call from a script, and records the
//! requests.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use prost::Message;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    event::{Epoch, Labels, Product, Record, RecordParts, Sequence, TaskId, TaskStatus},
    wire::{
        Delivery, Frame,
        service::event_service_server::{EventService, EventServiceServer},
        v1::{self, subscribe_response::Content},
    },
};

type Stream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::SubscribeResponse, Status>>>;

/// The answers, call by call. A call after the end of the script gets an error that ends a client.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Messages of each stream, and its final status.
    pub(super) streams: Vec<(Vec<Content>, Result<(), Status>)>,
    /// Answers to `WaitTask`.
    pub(super) waits: Vec<Result<v1::WaitTaskResponse, Status>>,
    /// Requests of `Subscribe`.
    pub(super) subscribed: Vec<v1::SubscribeRequest>,
    /// Requests of `WaitTask`.
    pub(super) waited: Vec<v1::WaitTaskRequest>,
}

/// Shared with the test, which reads the recorded requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock()
    }

    /// Serves the script for as long as the test runs; returns the URL.
    pub(super) async fn serve(script: Script) -> (Self, String) {
        let scripted = Self(Arc::new(Mutex::new(script)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(EventServiceServer::new(scripted.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (scripted, url)
    }
}

/// An error with a reason, as from a broker.
pub(super) fn refusal(code: Code, message: &str) -> Status {
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info("SCRIPTED", "blobcast", HashMap::new()),
    )
}

fn next<T>(answers: &mut Vec<T>) -> Result<T, Status> {
    if answers.is_empty() {
        Err(refusal(Code::InvalidArgument, "the script is over"))
    } else {
        Ok(answers.remove(0))
    }
}

// Frames need a stored record. Its own fields are overwritten by those of the encoded event, which
// follow them.
fn delivery(event: &v1::Event) -> Delivery {
    let parts = RecordParts {
        product: &Product::parse("veo").unwrap(),
        task_id: &TaskId::parse("t").unwrap(),
        status: TaskStatus::Completed,
        revision: 1,
        conflict: false,
        received_at_micros: 0,
        log_time_micros: 0,
        labels: &Labels::new(),
        event: &event.encode_to_vec(),
        raw: &[],
    };
    Delivery::new(Epoch(1), Record::new(Sequence(1), &parts), false)
}

#[tonic::async_trait]
impl EventService for Scripted {
    type SubscribeStream = Stream;

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Stream>, Status> {
        let mut script = self.script();
        script.subscribed.push(request.into_inner());
        let (contents, end) = next(&mut script.streams)?;
        let message = |content| {
            Ok(v1::SubscribeResponse {
                content: Some(content),
            })
        };
        let messages: Vec<_> = contents
            .into_iter()
            .map(message)
            .chain(end.err().map(Err))
            .collect();
        Ok(Response::new(tokio_stream::iter(messages)))
    }

    async fn wait_task(
        &self,
        request: Request<v1::WaitTaskRequest>,
    ) -> Result<Response<Frame>, Status> {
        let mut script = self.script();
        script.waited.push(request.into_inner());
        let v1::WaitTaskResponse { event, done } = next(&mut script.waits)??;
        Ok(Response::new(Frame::Waited {
            event: event.as_ref().map(delivery),
            done,
        }))
    }

    async fn get_task(&self, _: Request<v1::GetTaskRequest>) -> Result<Response<Frame>, Status> {
        Err(refusal(Code::InvalidArgument, "not scripted"))
    }

    async fn list_events(
        &self,
        _: Request<v1::ListEventsRequest>,
    ) -> Result<Response<Frame>, Status> {
        Err(refusal(Code::InvalidArgument, "not scripted"))
    }

    async fn get_raw_body(
        &self,
        _: Request<v1::GetRawBodyRequest>,
    ) -> Result<Response<Frame>, Status> {
        Err(Status::invalid_argument("not scripted"))
    }

    async fn get_log_info(
        &self,
        _: Request<v1::GetLogInfoRequest>,
    ) -> Result<Response<v1::GetLogInfoResponse>, Status> {
        Err(refusal(Code::InvalidArgument, "not scripted"))
    }

    async fn expect_tasks(
        &self,
        _: Request<v1::ExpectTasksRequest>,
    ) -> Result<Response<v1::ExpectTasksResponse>, Status> {
        Err(refusal(Code::InvalidArgument, "not scripted"))
    }

    async fn cancel_expectations(
        &self,
        _: Request<v1::CancelExpectationsRequest>,
    ) -> Result<Response<v1::CancelExpectationsResponse>, Status> {
        Err(refusal(Code::InvalidArgument, "not scripted"))
    }
}
