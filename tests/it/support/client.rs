//! A subscriber: opens streams, and reads events and control messages from them.

use blobcast::{
    checker::Observed,
    wire::v1::{
        self, Event, Filter, SubscribeRequest, SubscribeResponse, subscribe_request::Start,
        subscribe_response::Content,
    },
};
use bytes::Bytes;
use hyper::body::Body;
use tonic::{Status, Streaming, client::GrpcService, codegen::StdError, transport::Endpoint};
use tonic_types::StatusExt;

use super::{Server, within};

/// The content of a message of a stream.
pub type Seen = Content;

/// A request for all events, from the oldest.
pub fn request() -> SubscribeRequest {
    let position = v1::StartPosition::Earliest.into();
    SubscribeRequest {
        start: Some(Start::Position(position)),
        client_name: "a test".into(),
        ..Default::default()
    }
}

/// A request for some tasks, from the default start.
pub fn tasks<T: ToString>(task_ids: impl IntoIterator<Item = T>) -> SubscribeRequest {
    let task_ids = task_ids.into_iter().map(|id| id.to_string()).collect();
    SubscribeRequest {
        filter: Some(Filter {
            task_ids,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The reason in the ErrorInfo of a status.
pub fn reason(status: &Status) -> String {
    let info = status
        .get_details_error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "blobcast");
    info.reason
}

/// An open stream, after its `subscribed` message.
pub struct Sub {
    stream: Streaming<SubscribeResponse>,
    pub subscribed: v1::Subscribed,
    /// The last cursor of any message, from which a client would resume.
    pub cursor: String,
}

impl Server {
    /// Opens a stream; panics if it is refused.
    pub async fn subscribe(&self, request: SubscribeRequest) -> Sub {
        self.try_subscribe(request).await.unwrap()
    }

    /// Opens a stream; the error is the call's or the stream's first.
    pub async fn try_subscribe(&self, request: SubscribeRequest) -> Result<Sub, Status> {
        Sub::open(self.events().await, request).await
    }

    /// Opens a stream over a connection with small windows, so that a reader that stalls also
    /// stalls the server.
    pub async fn subscribe_narrowly(&self, request: SubscribeRequest) -> Sub {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535);
        let client =
            v1::event_service_client::EventServiceClient::new(endpoint.connect().await.unwrap());
        Sub::open(client, request).await.unwrap()
    }

    /// Every open subscription, oldest first, by `ListSubscriptions`.
    pub async fn subscriptions(&self) -> Vec<v1::Subscription> {
        let request = v1::ListSubscriptionsRequest::default();
        self.admin_service()
            .await
            .list_subscriptions(request)
            .await
            .unwrap()
            .into_inner()
            .subscriptions
    }

    /// Every retained event, in log order, by `ListEvents`.
    pub async fn log_of_events(&self) -> Vec<Event> {
        let mut client = self.events().await;
        let (mut events, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListEventsRequest {
                page_token,
                ..Default::default()
            };
            let page = client.list_events(request).await.unwrap().into_inner();
            events.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return events;
            }
        }
    }
}

impl Sub {
    pub async fn open<S>(
        mut client: v1::event_service_client::EventServiceClient<S>,
        request: SubscribeRequest,
    ) -> Result<Self, Status>
    where
        S: GrpcService<tonic::body::Body, Error: Into<StdError>>,
        S::ResponseBody: Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
    {
        let mut stream = within("the stream", client.subscribe(request))
            .await?
            .into_inner();
        let first = within("the first message", stream.message())
            .await?
            .expect("a stream begins with `subscribed`");
        let Some(Content::Subscribed(subscribed)) = first.content else {
            panic!("the first message is {first:?}")
        };
        let cursor = subscribed.cursor.clone();
        Ok(Self {
            stream,
            subscribed,
            cursor,
        })
    }

    /// The next message; `None` if the stream ends with OK.
    pub async fn next(&mut self) -> Result<Option<Seen>, Status> {
        let message = within("a message", self.stream.message()).await?;
        let content = message.map(|message| message.content.expect("a message has content"));
        match &content {
            Some(Content::Event(event)) => self.cursor.clone_from(&event.cursor),
            Some(
                Content::CaughtUp(v1::CaughtUp { cursor, .. })
                | Content::FellBehind(v1::FellBehind { cursor, .. })
                | Content::Progress(v1::Progress { cursor, .. })
                | Content::GoingAway(v1::GoingAway { cursor, .. })
                | Content::Completed(v1::Completed { cursor, .. })
                | Content::Gap(v1::Gap {
                    through: cursor, ..
                }),
            ) => self.cursor.clone_from(cursor),
            Some(Content::Subscribed(again)) => panic!("subscribed twice: {again:?}"),
            None => {}
        }
        Ok(content)
    }

    /// The next event; skips other messages.
    pub async fn next_event(&mut self) -> Event {
        loop {
            match self.next().await.unwrap() {
                Some(Content::Event(event)) => return event,
                Some(_) => {}
                None => panic!("the stream has ended"),
            }
        }
    }

    /// The next `count` events.
    pub async fn next_events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::with_capacity(count);
        for _ in 0..count {
            events.push(self.next_event().await);
        }
        events
    }

    /// All events until the stream has caught up.
    pub async fn until_caught_up(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Some(Content::Event(event)) => events.push(event),
                Some(Content::CaughtUp(_)) => return events,
                Some(_) => {}
                None => panic!("the stream has ended"),
            }
        }
    }

    /// Reads to the end of the stream; the error has its status.
    pub async fn end(&mut self) -> Result<Vec<Seen>, (Vec<Seen>, Status)> {
        let mut seen = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(content)) => seen.push(content),
                Ok(None) => return Ok(seen),
                Err(status) => return Err((seen, status)),
            }
        }
    }
}

/// Converts an event for the checker.
pub trait AsObserved {
    fn observed(&self) -> Observed;
}

impl AsObserved for Event {
    fn observed(&self) -> Observed {
        Observed {
            event_id: self.event_id.clone(),
            cursor: self.cursor.clone(),
            task_id: self.task_id.clone(),
        }
    }
}
