//! Calls whose message arrives long after their headers: the credentials in force at the message
//! decide.

use std::{
    fs,
    pin::Pin,
    task::{Context, Poll, ready},
};

use blobcast::wire::v1::{
    self, GetTaskRequest, GetTaskResponse, ListEventsRequest, ListEventsResponse, SubscribeRequest,
    SubscribeResponse, WaitTaskRequest, subscribe_response::Content,
};
use prost::Message;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_stream::Stream;
use tonic::{
    Request, Response, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::{
    permissions::{admin_as, events_as, told},
    support::{
        CredentialsFile, Options, Server, completed, reason, refusal, request, until, within,
    },
};

/// A call whose headers were sent.
struct Begun<A> {
    go: oneshot::Sender<()>,
    answer: JoinHandle<Result<Streaming<A>, Status>>,
}

/// Sends the headers of a call, of whatever kind.
async fn begin<A: Message + Default + 'static>(
    channel: &Channel,
    token: &str,
    method: &str,
    message: impl Message + Unpin + 'static,
) -> Begun<A> {
    let ((sent, is_sent), (go, told)) = (oneshot::channel(), oneshot::channel());
    let mut request = Request::new(Late {
        sent: Some(sent),
        told,
        message: Some(message),
    });
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse().unwrap());
    let path = PathAndQuery::try_from(format!("/blobcast.v1.{method}")).unwrap();

    let mut grpc = Grpc::new(channel.clone());
    let answer = tokio::spawn(async move {
        grpc.ready().await.unwrap();
        grpc.streaming(request, path, ProstCodec::default())
            .await
            .map(Response::into_inner)
    });
    // Not if they were refused before.
    let _ = within("its headers to be sent", is_sent).await.is_ok();
    Begun { go, answer }
}

impl<A: Message + Default + 'static> Begun<A> {
    /// Sends the message; the messages of the answer.
    async fn messages(self) -> Result<Streaming<A>, Status> {
        // Nobody waits for it if the call was refused before.
        let _ = self.go.send(()).is_ok();
        within("an answer", self.answer).await.unwrap()
    }

    /// The same, and the first of them.
    async fn first(self) -> Result<A, Status> {
        let first = within("a message", self.messages().await?.message()).await?;
        Ok(first.expect("a message"))
    }
}

/// One message, and when it is sent.
struct Late<M> {
    sent: Option<oneshot::Sender<()>>,
    told: oneshot::Receiver<()>,
    message: Option<M>,
}

impl<M: Unpin> Stream for Late<M> {
    type Item = M;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        // Nobody asks for a body before the headers are on their way.
        if let Some(sent) = self.sent.take() {
            let _ = sent.send(()).is_ok();
        }
        if self.message.is_some() {
            let _ = ready!(Pin::new(&mut self.told).poll(cx)).is_ok();
        }
        Poll::Ready(self.message.take())
    }
}

/// One call of each kind; an answer is read as a message without fields.
async fn begin_all(channel: &Channel, token: &str) -> Vec<(&'static str, Begun<()>)> {
    let wait = WaitTaskRequest {
        task_id: "t1".into(),
        ..Default::default()
    };
    let get = GetTaskRequest {
        task_id: "t1".into(),
        ..Default::default()
    };
    let list = ListEventsRequest::default();
    let erase = v1::EraseTaskRequest {
        product: "veo".into(),
        task_id: "t1".into(),
    };
    vec![
        (
            "Subscribe",
            begin(channel, token, "EventService/Subscribe", request()).await,
        ),
        (
            "WaitTask",
            begin(channel, token, "EventService/WaitTask", wait).await,
        ),
        (
            "GetTask",
            begin(channel, token, "EventService/GetTask", get).await,
        ),
        (
            "ListEvents",
            begin(channel, token, "EventService/ListEvents", list).await,
        ),
        (
            "GetLogInfo",
            begin(
                channel,
                token,
                "EventService/GetLogInfo",
                v1::GetLogInfoRequest::default(),
            )
            .await,
        ),
        (
            "EraseTask",
            begin(channel, token, "AdminService/EraseTask", erase).await,
        ),
        (
            "Backup",
            begin(channel, token, "AdminService/Backup", v1::BackupRequest {}).await,
        ),
    ]
}

/// Waits until the broker has the headers that were sent before on this connection: it takes calls one after the other.
async fn taken(channel: &Channel, token: &str) {
    let behind = begin::<()>(
        channel,
        token,
        "EventService/GetLogInfo",
        v1::GetLogInfoRequest::default(),
    )
    .await;
    behind.first().await.unwrap();
}

async fn refused_afresh(server: &Server, token: &str) {
    let is_refused = async || {
        events_as(server, Some(token))
            .await
            .get_log_info(v1::GetLogInfoRequest::default())
            .await
            .is_err()
    };
    until("a fresh call to be refused", is_refused).await;
}

/// Every held call is refused as a fresh one is.
async fn all_are_refused(
    held: Vec<(&'static str, Begun<()>)>,
    fresh: Vec<(&'static str, Begun<()>)>,
) {
    for ((method, held), (_, fresh)) in held.into_iter().zip(fresh) {
        let (held, fresh) = (held.first().await, fresh.first().await.unwrap_err());
        assert_eq!(reason(&fresh), "TOKEN_INVALID", "{method}");
        let held = held.err().unwrap_or_else(|| panic!("{method} is answered"));
        assert_eq!(
            (refusal(&held), held.message()),
            (refusal(&fresh), fresh.message()),
            "{method}"
        );
    }
}

#[tokio::test]
async fn a_client_that_was_removed_since_the_headers_is_refused_as_by_a_fresh_call() {
    let mut file = CredentialsFile::new();
    let root = file.add("client root --all-products --admin").await;
    let other = file.add("client other --all-products").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    server.http().post(&completed("t1")).await.event_id();

    let channel = server.channel().await;
    let held = begin_all(&channel, &root).await;
    taken(&channel, &root).await;
    file.remove("root =");
    refused_afresh(&server, &root).await;

    let refused = "blobcast_grpc_unauthenticated_total";
    let before = server.metric(refused).await;
    let count = held.len() as f64;
    all_are_refused(held, begin_all(&channel, &root).await).await;
    assert_eq!(
        server.metric(refused).await,
        before + 2.0 * count,
        "each is counted, held and fresh"
    );

    let list = events_as(&server, Some(&other))
        .await
        .list_events(ListEventsRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().events.len(), 1, "nothing was erased");
}

#[tokio::test]
async fn a_client_whose_token_has_expired_since_the_headers_is_refused_as_by_a_fresh_call() {
    let mut file = CredentialsFile::new();
    let brief = file.add("client brief --all-products --admin").await;
    let text = fs::read_to_string(file.path()).unwrap();
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    server.http().post(&completed("t1")).await.event_id();

    // In force within a second. The file does not change afterwards, and a message may come 10 s after its headers.
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(5);
    file.write(&text.replace(" }", &format!(", expires = {expires:.0} }}")));
    server.logged("reloaded the credentials", 1).await;

    let channel = server.channel().await;
    let held = begin_all(&channel, &brief).await;
    taken(&channel, &brief).await;
    refused_afresh(&server, &brief).await;
    all_are_refused(held, begin_all(&channel, &brief).await).await;
}

#[tokio::test]
async fn a_client_that_was_narrowed_since_the_headers_sees_what_a_fresh_call_sees() {
    let mut file = CredentialsFile::new();
    let ads = file.add("client ads --all-products --label team=ads").await;
    let boss = file.add("client boss --all-products --admin").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    for (team, task) in [("ads", "a1"), ("other", "o1")] {
        server
            .http()
            .post_to(
                &format!("/webhook/veo?team={team}"),
                completed(task).to_string(),
            )
            .await
            .event_id();
    }

    let channel = server.channel().await;
    let subscribe = SubscribeRequest {
        filter: None,
        ..request()
    };
    let stream =
        begin::<SubscribeResponse>(&channel, &ads, "EventService/Subscribe", subscribe).await;
    let get = GetTaskRequest {
        task_id: "a1".into(),
        ..Default::default()
    };
    let got = begin::<GetTaskResponse>(&channel, &ads, "EventService/GetTask", get).await;
    let list = ListEventsRequest::default();
    let listed = begin::<ListEventsResponse>(&channel, &ads, "EventService/ListEvents", list).await;
    let subscriptions = v1::ListSubscriptionsRequest::default();
    let administered = begin::<()>(
        &channel,
        &boss,
        "AdminService/ListSubscriptions",
        subscriptions.clone(),
    )
    .await;
    taken(&channel, &ads).await;

    let text = fs::read_to_string(file.path()).unwrap();
    let changed = text
        .replace("team = \"ads\"", "team = \"other\"")
        .replace("admin = true", "admin = false");
    assert_ne!(changed.len(), text.len());
    file.write(&changed);
    let is_demoted = async || {
        admin_as(&server, Some(&boss))
            .await
            .list_subscriptions(subscriptions.clone())
            .await
            .is_err()
    };
    until("the change", is_demoted).await;

    let listed = listed.first().await.unwrap();
    assert_eq!(
        listed
            .events
            .iter()
            .map(|event| &*event.task_id)
            .collect::<Vec<_>>(),
        ["o1"]
    );
    assert_eq!(told(got.first().await), "NotFound TASK_NOT_FOUND");
    assert_eq!(
        told(administered.first().await),
        "PermissionDenied ADMIN_DENIED"
    );

    let mut stream = stream.messages().await.unwrap();
    let mut seen = Vec::new();
    while let Some(content) = within("a message", stream.message())
        .await
        .unwrap()
        .unwrap()
        .content
    {
        match content {
            Content::Event(event) => seen.push(event.task_id),
            Content::CaughtUp(_) => break,
            _ => {}
        }
    }
    assert_eq!(seen, ["o1"]);
}
