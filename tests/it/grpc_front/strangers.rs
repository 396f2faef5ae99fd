//! Unauthenticated peers at the gRPC listener: the resources that they can take, and those that
//! stay reserved for clients and probes.

use blobcast::wire::v1::{
    GetLogInfoRequest, event_service_client::EventServiceClient, subscribe_response::Content,
};
use tonic::{Request, Status, service::interceptor::InterceptedService, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_request::MessageRequest,
};

use super::{
    frames::{Frames, begun, begun_at, begun_by, bytes, cancel, message, rest},
    *,
};
use crate::support::CredentialsFile;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// What the broker allows.
const CHECKS_PER_CONNECTION: usize = 16;
const CHECKS: usize = 1_024;
const WATCHES_PER_CONNECTION: usize = 8;
const WATCHES_OF_CLIENT_PER_CONNECTION: usize = 256;
const WATCHES_OF_STRANGERS: usize = 1_024;
const HEALTH_BYTES: usize = 1_024;

/// A broker that knows one client, and what that shows.
struct Guarded {
    server: Server,
    token: String,
    _file: CredentialsFile,
}

impl Guarded {
    async fn start(options: Options) -> Self {
        let mut file = CredentialsFile::new();
        let token = file.add("client known --all-products").await;
        let server = options
            .set("credentials_file", file.path().display())
            .start()
            .await;
        Self {
            server,
            token,
            _file: file,
        }
    }

    /// The client, on a connection of its own.
    async fn client(
        &self,
    ) -> EventServiceClient<
        InterceptedService<
            Channel,
            impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + use<>,
        >,
    > {
        EventServiceClient::with_interceptor(self.server.channel().await, self.shows_token())
    }

    fn shows_token(
        &self,
    ) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone + use<> {
        let bearer: tonic::metadata::AsciiMetadataValue =
            format!("Bearer {}", self.token).parse().unwrap();
        move |mut request| {
            request
                .metadata_mut()
                .insert("authorization", bearer.clone());
            Ok(request)
        }
    }

    async fn is_healthy(&self) -> bool {
        let mut health = HealthClient::new(self.server.channel().await);
        health.check(HealthCheckRequest::default()).await.is_ok()
    }

    async fn refused(&self, cause: &str) -> f64 {
        self.server
            .metric(&format!(
                "blobcast_grpc_calls_refused_total{{cause=\"{cause}\"}}"
            ))
            .await
    }
}

/// Streams of a connection, from the first.
fn streams(count: usize) -> impl Iterator<Item = u32> {
    (0..u32::try_from(count).unwrap()).map(|number| 2 * number + 1)
}

#[tokio::test]
async fn calls_of_strangers_take_nothing_of_the_memory_for_those_of_clients() {
    let options = Options::default()
        .set("grpc.inflight_bytes_max", "1MiB")
        .set("grpc.request_bytes_max", "1MiB");
    let house = Guarded::start(options).await;
    let mut client = house.client().await;
    let (mut guarded, mut health) = (
        Frames::connect(house.server.grpc).await,
        Frames::connect(house.server.grpc).await,
    );
    // Of a client's unfinished calls two hundred would fill it.
    assert!(
        guarded
            .send(
                streams(1_000)
                    .flat_map(|stream| begun(stream, "GetLogInfo"))
                    .collect::<Vec<_>>()
            )
            .await
    );
    guarded.hears(1_000).await;
    let begun = streams(1_000)
        .flat_map(|stream| begun_at(stream, CHECK))
        .collect::<Vec<_>>();
    assert!(health.send(begun).await);
    health.hears(1_000 - CHECKS_PER_CONNECTION).await;
    for _ in 0..50 {
        client
            .get_log_info(GetLogInfoRequest::default())
            .await
            .unwrap();
    }
    assert_eq!(
        house
            .server
            .metric("blobcast_grpc_unauthenticated_total")
            .await,
        1_000.0
    );
    assert_eq!(
        house.refused("health_limit").await,
        (1_000 - CHECKS_PER_CONNECTION) as f64
    );
    assert_eq!(house.refused("overloaded").await, 0.0);
    assert!(
        guarded.is_answered().await && health.is_answered().await,
        "the connections go on"
    );
}

#[tokio::test]
async fn a_client_takes_no_more_than_half_of_the_memory_for_requests_by_one_connection() {
    let options = Options::default()
        .set("grpc.inflight_bytes_max", "4MiB")
        .set("grpc.request_bytes_max", "1MiB");
    let server = options.start().await;
    let mut client = server.events().await;
    let mut frames = Frames::connect(server.grpc).await;
    // Each takes 5 KiB and its headers: half of the memory is filled by some four hundred.
    assert!(
        frames
            .send(
                streams(1_000)
                    .flat_map(|stream| begun(stream, "GetLogInfo"))
                    .collect::<Vec<_>>()
            )
            .await
    );
    frames.hears(590).await;
    client
        .get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();
    let refused = server
        .metric("blobcast_grpc_calls_refused_total{cause=\"overloaded\"}")
        .await;
    assert!((590.0..=600.0).contains(&refused), "{refused}");
}

#[tokio::test]
async fn a_stranger_may_begin_some_checks_on_a_connection_and_finish_any_number() {
    let house = Guarded::start(Options::default()).await;
    let mut frames = Frames::connect(house.server.grpc).await;
    let all = CHECKS_PER_CONNECTION + 1;
    assert!(
        frames
            .send(
                streams(all)
                    .flat_map(|stream| begun_at(stream, CHECK))
                    .collect::<Vec<_>>()
            )
            .await
    );
    until("one to be refused", async || {
        house.refused("health_limit").await == 1.0
    })
    .await;
    // The others are answered, and give their places back.
    assert!(
        frames
            .send(streams(all).flat_map(rest).collect::<Vec<_>>())
            .await
    );
    frames.hears(all).await;
    for stream in (101..).step_by(2).take(100) {
        assert!(
            frames
                .send([begun_at(stream, CHECK), rest(stream)].concat())
                .await
        );
        frames.hears(1).await;
    }
    assert_eq!(house.refused("health_limit").await, 1.0);
    assert!(house.server.logged("call refused", 1).await[0].contains(r#""reason":"HEALTH_LIMIT""#));
}

#[tokio::test]
async fn probes_are_answered_beside_more_unfinished_checks_than_there_may_be() {
    let house = Guarded::start(Options::default()).await;
    let unfinished = streams(CHECKS_PER_CONNECTION)
        .flat_map(|stream| begun_at(stream, CHECK))
        .collect::<Vec<_>>();
    let mut strangers = Vec::new();
    for number in 1..=CHECKS / CHECKS_PER_CONNECTION + 4 {
        let mut frames = Frames::connect(house.server.grpc).await;
        assert!(frames.send(&unfinished).await && frames.is_answered().await);
        strangers.push(frames);
        if number * CHECKS_PER_CONNECTION == CHECKS {
            assert_eq!(
                house.refused("overloaded").await,
                0.0,
                "they are as many as there may be"
            );
        }
    }
    assert!(house.is_healthy().await);
    // The oldest had to give way. The others have not long, either.
    until("the oldest to be refused", async || {
        house.refused("overloaded").await >= 64.0
    })
    .await;
    strangers
        .last_mut()
        .unwrap()
        .hears(CHECKS_PER_CONNECTION)
        .await;
    assert!(house.is_healthy().await);
}

#[tokio::test]
async fn a_strangers_check_is_small() {
    let house = Guarded::start(Options::default()).await;
    let mut frames = Frames::connect(house.server.grpc).await;
    let sent = [
        begun_at(1, CHECK),
        bytes(1, HEALTH_BYTES),
        begun_at(3, CHECK),
        bytes(3, HEALTH_BYTES + 1),
    ]
    .concat();
    assert!(frames.send(sent).await);
    // A message of no bytes, and more behind it.
    let calls = &mut Calls::connect(&house.server).await;
    let long = framed(&HealthCheckRequest {
        service: "x".repeat(HEALTH_BYTES - 8),
    });
    let longer = framed(&HealthCheckRequest {
        service: "x".repeat(HEALTH_BYTES - 7),
    });
    assert_eq!((long.len(), longer.len()), (HEALTH_BYTES, HEALTH_BYTES + 1));
    assert_eq!(
        calls.call(CHECK, &[], long).await.1.unwrap().code(),
        Code::NotFound,
        "it is read"
    );
    let refused = calls.call(CHECK, &[], longer).await.1.unwrap();
    assert_eq!(
        refusal(&refused),
        (Code::ResourceExhausted, "REQUEST_TOO_LARGE".into())
    );
    assert_eq!(told(&refused, "limit"), HEALTH_BYTES.to_string());
}

#[tokio::test]
async fn watches_are_few_on_each_connection_and_counted() {
    let open = "blobcast_grpc_health_watches";
    // Who is let in without a credential is a client.
    let anyone = Server::start().await;
    let house = Guarded::start(Options::default()).await;
    for (server, most) in [
        (&anyone, WATCHES_OF_CLIENT_PER_CONNECTION),
        (&house.server, WATCHES_PER_CONNECTION),
    ] {
        let mut frames = Frames::connect(server.grpc).await;
        let watch = |stream| [begun_at(stream, WATCH), rest(stream)].concat();
        assert!(
            frames
                .send(streams(most).flat_map(watch).collect::<Vec<_>>())
                .await
        );
        frames.hears(most).await;
        assert_eq!(server.metric(open).await, most as f64);

        let (_, refused) = Calls::connect(server)
            .await
            .call(CHECK, &[], framed(&HealthCheckRequest::default()))
            .await;
        assert_eq!(refused.unwrap().code(), Code::Ok, "that is none of these");
        assert!(
            frames
                .send(streams(1_000).skip(300).flat_map(watch).collect::<Vec<_>>())
                .await
        );
        frames.hears(700).await;
        assert_eq!(server.metric(open).await, most as f64);

        assert!(frames.send(cancel(1)).await);
        until("one to end", async || {
            server.metric(open).await == (most - 1) as f64
        })
        .await;
        assert!(frames.send(watch(9_001)).await);
        frames.hears(1).await;
        assert_eq!(server.metric(open).await, most as f64);
        drop(frames);
        until("all to end", async || server.metric(open).await == 0.0).await;
    }
}

#[tokio::test]
async fn strangers_have_so_many_watches_in_all_of_which_the_oldest_ends_and_clients_their_own() {
    let house = Guarded::start(Options::default()).await;
    let watch = |stream| [begun_at(stream, WATCH), rest(stream)].concat();
    let all = streams(WATCHES_PER_CONNECTION)
        .flat_map(watch)
        .collect::<Vec<_>>();
    let mut strangers = Vec::new();
    for _ in 0..WATCHES_OF_STRANGERS / WATCHES_PER_CONNECTION {
        let mut frames = Frames::connect(house.server.grpc).await;
        assert!(frames.send(&all).await);
        frames.hears(WATCHES_PER_CONNECTION).await;
        strangers.push(frames);
    }
    let open = async || house.server.metric("blobcast_grpc_health_watches").await;
    assert_eq!(
        (open().await, house.refused("health_limit").await),
        (WATCHES_OF_STRANGERS as f64, 0.0)
    );

    // The oldest one ends for a new one.
    let mut one_more = HealthClient::new(house.server.channel().await);
    let mut watching = one_more
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(watching.message().await.unwrap().is_some());
    strangers[0].hears(1).await;
    until("one to end", async || {
        open().await == WATCHES_OF_STRANGERS as f64
    })
    .await;
    assert_eq!(house.refused("health_limit").await, 1.0);
    // Those that take nothing do not hear of it: their connections are closed.
    for _ in 0..2 * WATCHES_OF_STRANGERS / WATCHES_PER_CONNECTION {
        let mut frames = Frames::without_window(house.server.grpc).await;
        assert!(frames.send(&all).await);
        frames.hears(WATCHES_PER_CONNECTION).await;
        strangers.push(frames);
    }
    until("no more to be open than may be", async || {
        open().await <= (WATCHES_OF_STRANGERS * 9 / 8) as f64
    })
    .await;
    assert!(
        house
            .server
            .metric("blobcast_connections_shed_total{listener=\"grpc\"}")
            .await
            > 100.0
    );
    drop(strangers);
    until("their streams to end", async || open().await <= 1.0).await;
    assert!(house.is_healthy().await);
    let mut known =
        HealthClient::with_interceptor(house.server.channel().await, house.shows_token());
    let mut watching = known
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(watching.message().await.unwrap().is_some());
    assert!(open().await >= 1.0);
}

#[tokio::test]
async fn silent_connections_give_way_to_a_client_which_keeps_its_place() {
    let house = Guarded::start(Options::default().set("grpc.connections_max", 5)).await;
    let mut first = house.client().await;
    let mut open = first.subscribe(request()).await.unwrap().into_inner();
    open.message().await.unwrap().unwrap();
    // One of them watches, which nobody has to be known for.
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(Frames::connect(house.server.grpc).await);
    }
    assert!(silent[0].send([begun_at(1, WATCH), rest(1)].concat()).await);
    silent[0].hears(1).await;
    until("all places to be taken", async || {
        open_connections(&house.server).await == 5.0
    })
    .await;

    let counted = async |name: &str| {
        house
            .server
            .metric(&format!("{name}{{listener=\"grpc\"}}"))
            .await
    };
    let full = "blobcast_connections_refused_total{cause=\"full\",listener=\"grpc\"}";
    let mut others = Vec::new();
    for count in 1..=4 {
        let mut client = within("a place", house.client()).await;
        within(
            "an answer",
            client.get_log_info(GetLogInfoRequest::default()),
        )
        .await
        .unwrap();
        others.push(client);
        assert_eq!(
            counted("blobcast_connections_shed_total").await,
            f64::from(count)
        );
    }
    assert!(
        house.server.metric(full).await >= 1.0,
        "the first had to wait"
    );
    for mut frames in silent {
        frames.closed().await;
    }

    // Of the accepted connections only a quiet one gives way, and only when no stranger is left.
    let mut health = HealthClient::new(house.server.channel().await);
    within(
        "one that is quiet to give way",
        health.check(HealthCheckRequest::default()),
    )
    .await
    .unwrap();
    assert_eq!(counted("blobcast_connections_shed_total").await, 5.0);
    house.server.http().post(&completed("t1")).await;
    while !matches!(
        open.message().await.unwrap().unwrap().content,
        Some(Content::Event(_))
    ) {}
}

/// Whole calls on so many streams from the given one, by a peer that takes no bodies.
async fn ask(frames: &mut Frames, path: &str, from: u32, count: usize) {
    let whole = |stream| [begun_at(stream, path), rest(stream)].concat();
    let calls = streams(count)
        .flat_map(|stream| whole(2 * from + stream))
        .collect::<Vec<_>>();
    assert!(frames.send(calls).await);
    frames.hears(count).await;
}

#[tokio::test]
async fn checks_whose_answers_are_not_taken_count_until_they_are() {
    let house = Guarded::start(Options::default()).await;
    let mut frames = Frames::without_window(house.server.grpc).await;
    ask(&mut frames, CHECK, 0, CHECKS_PER_CONNECTION).await;
    assert_eq!(house.refused("health_limit").await, 0.0);
    ask(&mut frames, CHECK, 100, 1_000).await;
    assert_eq!(house.refused("health_limit").await, 1_000.0);

    // Of many connections the one with the oldest is closed, and only that.
    let shed = async || {
        house
            .server
            .metric("blobcast_connections_shed_total{listener=\"grpc\"}")
            .await
    };
    let mut others = Vec::new();
    for _ in 1..CHECKS / CHECKS_PER_CONNECTION {
        let mut frames = Frames::without_window(house.server.grpc).await;
        ask(&mut frames, CHECK, 0, CHECKS_PER_CONNECTION).await;
        others.push(frames);
    }
    assert!(frames.is_answered().await);
    assert_eq!(shed().await, 0.0);
    assert!(house.is_healthy().await);
    frames.closed().await;
    assert_eq!(shed().await, 1.0);
    assert!(others[0].is_answered().await);
    house
        .client()
        .await
        .get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_may_leave_so_many_small_answers_unread_and_others_get_theirs() {
    let server = Options::default().start().await;
    let refused = async || server.metric("blobcast_answers_refused_total").await;
    let path = "/blobcast.v1.EventService/GetLogInfo";
    let mut frames = Frames::without_window(server.grpc).await;
    let (batch, unread) = (512, 8_192);
    for number in 0..unread / batch {
        ask(
            &mut frames,
            path,
            u32::try_from(number * batch).unwrap(),
            batch,
        )
        .await;
    }
    assert_eq!(refused().await, 0.0);
    ask(&mut frames, path, u32::try_from(unread).unwrap(), batch).await;
    assert_eq!(refused().await, batch as f64);

    // Answers that are taken are no burden, however many are asked for at once.
    let mut reader = Frames::connect(server.grpc).await;
    for number in 0..20 {
        ask(&mut reader, path, number * 1_000, 1_000).await;
    }
    assert_eq!(refused().await, batch as f64);
    drop(frames);
}

#[tokio::test]
async fn a_client_takes_no_more_than_half_of_the_memory_for_requests_by_any_number_of_connections()
{
    let mut file = CredentialsFile::new();
    let [taking, other] = [
        file.add("client taking --all-products").await,
        file.add("client other --all-products").await,
    ];
    let options = Options::default()
        .set("grpc.inflight_bytes_max", "4MiB")
        .set("grpc.request_bytes_max", "1MiB");
    let server = options
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut frames = Frames::connect(server.grpc).await;
        let begun = streams(500)
            .flat_map(|stream| begun_by(&taking, stream, GET_LOG_INFO))
            .collect::<Vec<_>>();
        assert!(frames.send(begun).await && frames.is_answered().await);
        connections.push(frames);
    }
    let refused = async || {
        server
            .metric("blobcast_grpc_calls_refused_total{cause=\"overloaded\"}")
            .await
    };
    until("the share to be used up", async || {
        refused().await >= 1_500.0
    })
    .await;
    let mut frames = Frames::connect(server.grpc).await;
    for stream in streams(50) {
        assert!(
            frames
                .send([begun_by(&other, stream, GET_LOG_INFO), rest(stream)].concat())
                .await
        );
        let _: GetLogInfoResponse = frames.message(stream).await;
    }
}

#[tokio::test]
async fn calls_of_reflection_are_few_and_the_oldest_ends_for_a_new_one() {
    const PATH: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    const CALLS: usize = 32;
    let house = Guarded::start(Options::default().set("grpc.stall_timeout", "1s")).await;
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let ask = |stream| [begun_by(&house.token, stream, PATH), message(stream, &list)].concat();
    let mut frames = Frames::connect(house.server.grpc).await;
    assert!(
        frames
            .send(streams(CALLS).flat_map(ask).collect::<Vec<_>>())
            .await
    );
    frames.hears(CALLS).await;

    let mut newer = Frames::connect(house.server.grpc).await;
    assert!(newer.send(ask(1)).await);
    let answer: tonic_reflection::pb::v1::ServerReflectionResponse = newer.message(1).await;
    assert!(answer.message_response.is_some());
    frames.hears(1).await; // trailers
    assert!(newer.send(message(1, &list)).await, "it goes on");
    let _: tonic_reflection::pb::v1::ServerReflectionResponse = newer.message(1).await;

    // A client that reads no answers loses its connection in time when its places are needed.
    let mut unread = Frames::without_window(house.server.grpc).await;
    let talk = |stream| [ask(stream), message(stream, &list).repeat(9)].concat();
    assert!(
        unread
            .send(streams(CALLS).flat_map(talk).collect::<Vec<_>>())
            .await
    );
    unread.hears(CALLS).await;
    let mut asked = streams(10_000).skip(CALLS);
    until("the stuck connection to be closed", async || {
        assert!(frames.send(ask(asked.next().unwrap())).await);
        house
            .server
            .metric("blobcast_connections_shed_total{listener=\"grpc\"}")
            .await
            == 1.0
    })
    .await;
    unread.closed().await;
    assert!(frames.is_answered().await);
    house
        .client()
        .await
        .get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();

    // A message is small.
    let mut large = Frames::connect(house.server.grpc).await;
    let long = ServerReflectionRequest {
        host: "x".repeat(4 * 1024),
        ..list.clone()
    };
    assert!(
        large
            .send([begun_by(&house.token, 1, PATH), message(1, &long)].concat())
            .await
    );
    large.hears(2).await;
}

#[tokio::test]
async fn a_burst_of_reflection_by_a_client_that_reads_its_answers_is_served() {
    const PATH: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    const BURST: usize = 60;
    let house = Guarded::start(Options::default()).await;
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut frames = Frames::connect(house.server.grpc).await;
    // As libraries send it: all heads, then the messages.
    let heads = streams(BURST)
        .flat_map(|stream| begun_by(&house.token, stream, PATH))
        .collect::<Vec<_>>();
    assert!(frames.send(heads).await);
    frames.hears(BURST).await;
    assert!(
        frames
            .send(
                streams(BURST)
                    .flat_map(|stream| message(stream, &list))
                    .collect::<Vec<_>>()
            )
            .await
    );
    let answers = frames
        .messages::<tonic_reflection::pb::v1::ServerReflectionResponse>(BURST)
        .await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.message_response.is_some())
    );
    assert_eq!(
        house
            .server
            .metric("blobcast_connections_shed_total{listener=\"grpc\"}")
            .await,
        0.0
    );
    assert!(frames.is_answered().await);
}

#[tokio::test]
async fn calls_of_reflection_beyond_those_that_may_be_ending_are_refused_and_their_connection_goes_on()
 {
    const PATH: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let house = Guarded::start(Options::default()).await;
    let mut unread = Frames::without_window(house.server.grpc).await;
    let ask = |stream| begun_by(&house.token, stream, PATH);
    assert!(
        unread
            .send(streams(66).flat_map(ask).collect::<Vec<_>>())
            .await
    );
    until("two to be refused", async || {
        house.refused("overloaded").await >= 2.0
    })
    .await;
    assert!(unread.is_answered().await);
    house
        .client()
        .await
        .get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();
}
