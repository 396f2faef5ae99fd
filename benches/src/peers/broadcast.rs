//! What people write by hand: an axum handler that parses the callback into `tokio::sync::broadcast`, and a tonic service
//! whose streams take from it what their filter wants. Nothing is kept, nothing is durable, and who is slow loses events.

use std::pin::Pin;

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
    routing::post,
};
use futures_util::{Stream, StreamExt, future::ready, stream};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::broadcast};
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};

use super::front;
use crate::{
    report::Who,
    wire::{
        CancelExpectationsRequest, CancelExpectationsResponse, CaughtUp, Event, ExpectTasksRequest,
        ExpectTasksResponse, Filter, GetLogInfoRequest, GetLogInfoResponse, GetRawBodyRequest,
        GetRawBodyResponse, GetTaskRequest, GetTaskResponse, ListEventsRequest, ListEventsResponse,
        Output, OutputKind, SubscribeRequest, SubscribeResponse, TaskStatus, WaitTaskRequest,
        WaitTaskResponse,
        event_service_server::{EventService, EventServiceServer},
        subscribe_response::Content,
    },
};

/// The server of this file.
pub const BROADCAST: Who = Who {
    name: "by hand",
    settings: "axum, serde, tokio::sync::broadcast of 16,384 events, tonic; not durable: nothing is written to disk",
};
/// Events that a slow stream may be behind; then it loses some. More than the load runs ahead.
const CAPACITY: usize = 16_384;

/// The fields of a callback that are looked at.
#[derive(Debug, Deserialize)]
struct Callback {
    generation_id: String,
    status: String,
    prompt: String,
    video_url: Option<String>,
    seed: Option<i64>,
}

impl Callback {
    fn event(self, product: String) -> Event {
        let output = |url| Output {
            kind: OutputKind::Video.into(),
            url,
        };
        Event {
            task_id: self.generation_id,
            product,
            status: if self.status == "completed" {
                TaskStatus::Completed
            } else {
                TaskStatus::Failed
            }
            .into(),
            status_text: self.status,
            terminal: true,
            outputs: self.video_url.into_iter().map(output).collect(),
            prompt: self.prompt,
            seed: self.seed,
            received_at: Some(std::time::SystemTime::now().into()),
            ..Event::default()
        }
    }
}

async fn receive(
    State(events): State<broadcast::Sender<Event>>,
    Path(product): Path<String>,
    body: Bytes,
) -> Result<impl IntoResponse, StatusCode> {
    let callback: Callback = serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_REQUEST)?;
    // Nobody may be there to take it.
    let _ = events.send(callback.event(product)).is_ok();
    Ok(front::answer())
}

/// The server, as a process.
pub async fn serve() -> Result<()> {
    let (events, _) = broadcast::channel(CAPACITY);
    let (http, grpc) = (
        TcpListener::bind("127.0.0.1:0").await?,
        TcpListener::bind("127.0.0.1:0").await?,
    );
    front::announce(&http, &grpc)?;
    let router = Router::new()
        .route("/webhook/{product}", post(receive))
        .with_state(events.clone());
    let streams = Server::builder()
        .tcp_nodelay(true)
        .add_service(EventServiceServer::new(Events(events)))
        .serve_with_incoming(TcpListenerStream::new(grpc));
    tokio::select! {
        ended = front::serve(http, router) => ended,
        ended = streams => Ok(ended?),
    }
}

struct Events(broadcast::Sender<Event>);

fn wants(filter: &Filter, event: &Event) -> bool {
    let one_of = |wanted: &[String], value: &String| wanted.is_empty() || wanted.contains(value);
    one_of(&filter.task_ids, &event.task_id) && one_of(&filter.products, &event.product)
}

#[tonic::async_trait]
impl EventService for Events {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let events = BroadcastStream::new(self.0.subscribe());
        let wanted = events.filter_map(move |event| {
            ready(match event {
                Ok(event) if wants(&filter, &event) => Some(Ok(response(Content::Event(event)))),
                Ok(_) => None,
                Err(lagged) => Some(Err(Status::data_loss(lagged.to_string()))),
            })
        });
        let live = stream::iter([Ok(response(Content::CaughtUp(CaughtUp::default())))]);
        Ok(Response::new(Box::pin(live.chain(wanted))))
    }

    async fn wait_task(
        &self,
        _: Request<WaitTaskRequest>,
    ) -> Result<Response<WaitTaskResponse>, Status> {
        Err(Status::unimplemented("nothing is kept"))
    }

    async fn get_task(
        &self,
        _: Request<GetTaskRequest>,
    ) -> Result<Response<GetTaskResponse>, Status> {
        Err(Status::unimplemented("nothing is kept"))
    }

    async fn list_events(
        &self,
        _: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        Err(Status::unimplemented("nothing is kept"))
    }

    async fn get_raw_body(
        &self,
        _: Request<GetRawBodyRequest>,
    ) -> Result<Response<GetRawBodyResponse>, Status> {
        Err(Status::unimplemented("nothing is kept"))
    }

    async fn get_log_info(
        &self,
        _: Request<GetLogInfoRequest>,
    ) -> Result<Response<GetLogInfoResponse>, Status> {
        Err(Status::unimplemented("nothing is kept"))
    }

    async fn expect_tasks(
        &self,
        _: Request<ExpectTasksRequest>,
    ) -> Result<Response<ExpectTasksResponse>, Status> {
        Err(Status::unimplemented("nobody is asked"))
    }

    async fn cancel_expectations(
        &self,
        _: Request<CancelExpectationsRequest>,
    ) -> Result<Response<CancelExpectationsResponse>, Status> {
        Err(Status::unimplemented("nobody is asked"))
    }
}

fn response(content: Content) -> SubscribeResponse {
    SubscribeResponse {
        content: Some(content),
    }
}
