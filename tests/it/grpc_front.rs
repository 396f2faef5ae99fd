//! The gRPC listener with peers of every kind: each limit at its value and beyond, and a reason in
//! every refusal.

mod calls;
mod frames;
mod pages;
mod strangers;

use blobcast::wire::v1::{
    GetLogInfoRequest, GetLogInfoResponse, GetTaskRequest, SubscribeRequest, WaitTaskRequest,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::support::{
    Options, Server, Sub, completed, matching, of_tasks, refusal, request, tasks, told, until,
    within,
};
use calls::{Calls, framed};
use frames::{Frames, begun, call, cancel};

const GET_LOG_INFO: &str = "/blobcast.v1.EventService/GetLogInfo";
const WAIT_TASK: &str = "/blobcast.v1.EventService/WaitTask";
/// Of one call.
const HEADER_LIST_BYTES_MAX: usize = 16 * 1024;

async fn open_connections(server: &Server) -> f64 {
    server
        .metric("blobcast_connections{listener=\"grpc\"}")
        .await
}

async fn flooded(server: &Server, listener: &str) -> f64 {
    server
        .metric(&format!(
            "blobcast_connections_flooded_total{{listener=\"{listener}\"}}"
        ))
        .await
}

#[tokio::test]
async fn a_hundred_calls_cancelled_as_they_are_made_leave_their_connection_usable() {
    let server = Server::start().await;
    let mut frames = Frames::connect(server.grpc).await;
    let cancelled = |stream| [call(stream, "Subscribe", &request()), cancel(stream)].concat();
    assert!(
        frames
            .send(
                (0..100)
                    .map(|number| cancelled(2 * number + 1))
                    .collect::<Vec<_>>()
                    .concat()
            )
            .await
    );
    assert!(
        frames
            .send(call(201, "GetLogInfo", &GetLogInfoRequest::default()))
            .await
    );
    let info: GetLogInfoResponse = frames.message(201).await;
    assert_eq!(info, server.log_info().await);
    until("none to be left", async || {
        server.subscriptions().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_thousand_streams_dropped_at_once_leave_their_connection_usable() {
    let server = Server::start().await;
    let client = server.events().await;
    let mut open = Vec::new();
    for number in 0..1_000 {
        open.push(Sub::open(client.clone(), tasks([number])).await.unwrap());
    }
    let before = open_connections(&server).await;
    drop(open);
    until("none to be left", async || {
        server.subscriptions().await.is_empty()
    })
    .await;
    client
        .clone()
        .get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();
    assert_eq!(
        open_connections(&server).await,
        before,
        "the same connection"
    );
}

#[tokio::test]
async fn a_connection_that_only_opens_and_cancels_is_closed() {
    // Not because it answers no ping.
    let server = Options::default()
        .set("grpc.keepalive_interval", "1h")
        .start()
        .await;
    let mut frames = Frames::connect(server.grpc).await;
    within("the server's patience to end", async {
        let mut streams = (1..)
            .step_by(2)
            .map(|stream| [begun(stream, "Subscribe"), cancel(stream)].concat());
        while frames
            .send(streams.by_ref().take(2_000).collect::<Vec<_>>().concat())
            .await
        {}
    })
    .await;
    frames.closed().await;
    until("none to be left", async || {
        server.subscriptions().await.is_empty()
    })
    .await;
    server.log_info().await;
    until("it to be counted", async || {
        flooded(&server, "grpc").await == 1.0
    })
    .await;
    // Those that end otherwise are not.
    drop(Frames::connect(server.grpc).await);
    drop(server.subscribe(request()).await);
    until("them to end", async || {
        open_connections(&server).await == 0.0
    })
    .await;
    assert_eq!(flooded(&server, "grpc").await, 1.0);
    let told = server.logged("too many resets", 1).await;
    assert!(told[0].contains("127.0.0.1"), "{told:?}");
}

#[tokio::test]
async fn a_peer_is_pinged_and_kept_while_it_answers_and_its_streams_end_when_it_does_not() {
    let server = Options::default()
        .set("grpc.keepalive_interval", "1s")
        .set("grpc.keepalive_timeout", "1s")
        .start();
    let server = server.await;
    let mut frames = Frames::connect(server.grpc).await;
    assert!(frames.send(call(1, "Subscribe", &request())).await);
    for _ in 0..2 {
        let answer = frames.pinged().await;
        assert!(frames.send(answer).await);
    }
    frames.pinged().await;
    assert_eq!(server.subscriptions().await.len(), 1);
    frames.closed().await;
    until("its stream to end", async || {
        server.subscriptions().await.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_silent_peer_is_given_the_time_that_is_configured() {
    let with_timeout = |timeout: &str| {
        Options::default()
            .set("grpc.keepalive_interval", "1s")
            .set("grpc.keepalive_timeout", timeout)
            .start()
    };
    let (patient, hasty) = (with_timeout("5m").await, with_timeout("100ms").await);
    let mut kept = Frames::connect(patient.grpc).await;
    kept.pinged().await;
    // Pinged later, closed earlier.
    let mut closed = Frames::connect(hasty.grpc).await;
    closed.pinged().await;
    closed.closed().await;
    assert!(kept.is_answered().await);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_another_ends() {
    let server = Options::default()
        .set("grpc.connections_max", 2)
        .start()
        .await;
    let mut open = [server.events().await, server.events().await];
    for client in &mut open {
        client
            .get_log_info(GetLogInfoRequest::default())
            .await
            .unwrap();
    }
    let mut third = server.events().await;
    let waiting = tokio::spawn(async move {
        third
            .get_log_info(GetLogInfoRequest::default())
            .await
            .unwrap();
        third
    });
    for _ in 0..100 {
        for client in &mut open {
            client
                .get_log_info(GetLogInfoRequest::default())
                .await
                .unwrap();
        }
    }
    assert!(!waiting.is_finished());
    assert_eq!(open_connections(&server).await, 2.0);
    let [ended, mut kept] = open;
    drop(ended);
    let _third = within("the third to have its turn", waiting).await.unwrap();
    kept.get_log_info(GetLogInfoRequest::default())
        .await
        .unwrap();
    assert_eq!(open_connections(&server).await, 2.0);
}

#[tokio::test]
async fn headers_below_16_kib_are_taken_and_more_are_refused_without_ending_the_connection() {
    let server = Server::start().await;
    let mut calls = Calls::connect(&server).await;
    let body = framed(&GetLogInfoRequest::default());
    let around = calls.header_list_bytes(GET_LOG_INFO, &body) + "x".len() + 32;
    for (bytes, taken) in [
        (-1, true),
        (0, false),
        (1, false),
        (HEADER_LIST_BYTES_MAX as isize, false),
        (-1, true),
    ] {
        let filler = "y".repeat(HEADER_LIST_BYTES_MAX.checked_add_signed(bytes).unwrap() - around);
        let (http, status) = calls
            .call(GET_LOG_INFO, &[("x", &filler)], body.clone())
            .await;
        let expected = if taken {
            (200, Some(Code::Ok))
        } else {
            (431, None)
        };
        assert_eq!(
            (http, status.map(|status| status.code())),
            expected,
            "{bytes} beyond the limit"
        );
    }
}

#[tokio::test]
async fn an_unknown_method_or_service_is_unimplemented_with_its_reason() {
    let server = Server::start().await;
    let mut calls = Calls::connect(&server).await;
    for path in [
        "/blobcast.v1.EventService/Publish",
        "/blobcast.v2.EventService/Subscribe",
        "/nothing",
        "/",
    ] {
        let (http, status) = calls
            .call(path, &[], framed(&GetLogInfoRequest::default()))
            .await;
        let refused = refusal(&status.unwrap());
        assert_eq!(
            (http, refused),
            (200, (Code::Unimplemented, "UNKNOWN_METHOD".into())),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_compressed_request_is_refused_with_what_would_be_understood() {
    let server = Server::start().await;
    let mut calls = Calls::connect(&server).await;
    let (_, status) = calls
        .call(
            GET_LOG_INFO,
            &[("grpc-encoding", "gzip")],
            framed(&GetLogInfoRequest::default()),
        )
        .await;
    let status = status.unwrap();
    assert_eq!(
        refusal(&status),
        (Code::Unimplemented, "UNSUPPORTED_ENCODING".into())
    );
    assert_eq!(
        status.metadata().get("grpc-accept-encoding").unwrap(),
        "identity"
    );
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_the_clients_fault_and_named_so() {
    let server = Server::start().await;
    let mut calls = Calls::connect(&server).await;
    let unreadable: [&[u8]; 6] = [
        b"",                    // nothing where a message should be
        &[0, 0],                // cut off in the prefix
        &[0, 0, 0, 0, 9, 1],    // cut off in the message
        &[1, 0, 0, 0, 0],       // compressed, by nothing
        &[7, 0, 0, 0, 0],       // neither compressed nor not
        &[0, 0, 0, 0, 1, 0xff], // not protobuf
    ];
    for body in unreadable {
        let (_, status) = calls.call(WAIT_TASK, &[], body).await;
        let status = status.unwrap();
        assert_eq!(
            refusal(&status),
            (Code::InvalidArgument, "INVALID_REQUEST".into()),
            "{body:?}: {status:?}"
        );
        assert!(!status.message().is_empty());
    }
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_refused_and_the_connection_goes_on() {
    let server = Options::default()
        .set("grpc.request_bytes_max", "64KiB")
        .start()
        .await;
    server.http().post(&completed("t1")).await;
    let mut client = server.events().await;
    let of_bytes = |bytes: usize| {
        // Each id takes 100 bytes.
        let mut request = matching(of_tasks(
            (0..bytes / 100).map(|number| format!("{number:0>98}")),
        ));
        while prost::Message::encoded_len(&request) < bytes {
            request.client_name.push('n');
        }
        assert_eq!(prost::Message::encoded_len(&request), bytes);
        request
    };
    client.subscribe(of_bytes(65_536)).await.unwrap();
    let status = client.subscribe(of_bytes(65_537)).await.unwrap_err();
    assert_eq!(
        refusal(&status),
        (Code::ResourceExhausted, "REQUEST_TOO_LARGE".into())
    );
    assert_eq!(told(&status, "limit"), "65536");
    let task = GetTaskRequest {
        task_id: "t1".into(),
        ..Default::default()
    };
    assert_eq!(
        client
            .get_task(task)
            .await
            .unwrap()
            .into_inner()
            .events
            .len(),
        1
    );
}

#[tokio::test]
async fn a_call_whose_own_deadline_passes_ends_as_deadline_exceeded() {
    let server = Server::start().await;
    let calls = Calls::connect(&server).await;
    let timeout = Some(prost_types::Duration {
        seconds: 3_600,
        nanos: 0,
    });
    let request = framed(&WaitTaskRequest {
        task_id: "t1".into(),
        timeout,
        ..Default::default()
    });
    let mut waits = JoinSet::new();
    for millis in 0..200 {
        let (mut calls, request) = (calls.clone(), request.clone());
        waits.spawn(async move {
            calls
                .call(
                    WAIT_TASK,
                    &[("grpc-timeout", &format!("{millis}m"))],
                    request,
                )
                .await
        });
    }
    while let Some(wait) = within("the deadline", waits.join_next()).await {
        let (_, status) = wait.unwrap();
        // A wait ends a little before, if there is the time.
        let status = status.unwrap();
        let is_late = status.code() != Code::Ok;
        assert!(
            !is_late || refusal(&status) == (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()),
            "{status:?}"
        );
    }
    let (_, status) = calls
        .clone()
        .call(WAIT_TASK, &[("grpc-timeout", "0m")], request.clone())
        .await;
    assert_eq!(
        refusal(&status.unwrap()),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into())
    );
    until("no wait to be left", async || {
        server.subscriptions().await.is_empty()
    })
    .await;
    // A deadline that is far away changes nothing.
    server.http().post(&completed("t1")).await;
    let (_, status) = calls
        .clone()
        .call(WAIT_TASK, &[("grpc-timeout", "1H")], request)
        .await;
    assert_eq!(status.unwrap().code(), Code::Ok);
}

#[tokio::test]
async fn a_connection_that_never_says_http_2_gives_its_place_back() {
    let server = Options::default()
        .set("grpc.connections_max", 2)
        .start()
        .await;
    let silent = within("a connection", tokio::net::TcpStream::connect(server.grpc))
        .await
        .unwrap();
    let mut halfway = within("a connection", tokio::net::TcpStream::connect(server.grpc))
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut halfway, b"PRI * HTTP/2")
        .await
        .unwrap();
    until("both to be in", async || {
        open_connections(&server).await == 2.0
    })
    .await;
    // Waits in the kernel's queue until their time is up.
    server.log_info().await;
    let refused = "blobcast_connections_refused_total{cause=\"timeout\",listener=\"grpc\"}";
    assert!(server.metric(refused).await >= 1.0);
    drop((silent, halfway));
    let mut http_1 = within("a connection", tokio::net::TcpStream::connect(server.grpc))
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut http_1, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = within(
        "the end",
        tokio::io::AsyncReadExt::read_to_end(&mut http_1, &mut answer),
    )
    .await
    .is_ok();
    assert!(
        answer.starts_with(b"HTTP/1.1 426 "),
        "it is not kept waiting for its time to be up"
    );
}

#[tokio::test]
async fn http_1_learns_what_is_spoken_here() {
    let server = Server::start().await;
    let connect = async || {
        within("a connection", tokio::net::TcpStream::connect(server.grpc))
            .await
            .unwrap()
    };
    let large = [
        b"POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n",
        &[b'x'; 50_000][..],
    ]
    .concat();
    for request in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PUT / HTTP/1.0\r\nhost: x\r\n\r\n",
        &large,
    ] {
        let mut stream = connect().await;
        tokio::io::AsyncWriteExt::write_all(&mut stream, request)
            .await
            .unwrap();
        let mut answer = String::new();
        let read = within(
            "the end",
            tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer),
        )
        .await;
        assert!(read.is_ok(), "not a reset: {read:?}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(" 426 Upgrade Required\r\n")
                && head.contains("\r\nupgrade: HTTP/2.0\r\nconnection: upgrade, close\r\n"),
            "{head}"
        );
        assert!(
            head.contains("\r\nx-request-id: ")
                && head.contains(&format!("\r\ncontent-length: {}", body.len())),
            "{head}"
        );
        assert!(body.contains("gRPC") && body.contains("HTTP/2"), "{body}");
    }
    let mut nonsense = connect().await;
    tokio::io::AsyncWriteExt::write_all(&mut nonsense, b"\x16\x03\x01")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = within(
        "the end",
        tokio::io::AsyncReadExt::read_to_end(&mut nonsense, &mut answer),
    )
    .await
    .is_ok();
    assert_eq!(answer, b"");
}

#[tokio::test]
async fn a_new_stream_takes_the_place_of_one_of_its_name_whose_connection_has_missed_a_keepalive() {
    let options = Options::default()
        .set("grpc.keepalive_interval", "1s")
        .set("grpc.keepalive_timeout", "5m");
    let server = options.set("grpc.subscriptions_max", 1).start().await;
    let client = server.events().await;
    let named = |name: &str| SubscribeRequest {
        client_name: name.into(),
        ..request()
    };
    let open = async |name: &str| Sub::open(client.clone(), named(name)).await;
    // Answers its pings, so it keeps its place, however long it is.
    let mut alive = Frames::connect(server.grpc).await;
    assert!(alive.send(call(1, "Subscribe", &named("reader"))).await);
    until("it to be open", async || {
        server.subscriptions().await.len() == 1
    })
    .await;
    for _ in 0..4 {
        let answer = alive.pinged().await;
        assert!(alive.send(answer).await);
        let refused = open("reader").await.err().unwrap();
        assert_eq!(
            refusal(&refused),
            (Code::ResourceExhausted, "SUBSCRIPTION_LIMIT".into())
        );
    }

    // From now on it is silent.
    let mut reader = None;
    until("its place", async || {
        assert!(open("another").await.is_err(), "it has another name");
        reader = open("reader").await.ok();
        reader.is_some()
    })
    .await;
    let listed = server.subscriptions().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        listed[0].subscription_id,
        reader.as_ref().unwrap().subscribed.subscription_id
    );
    let replaced = "blobcast_subscriptions_ended_total{cause=\"replaced\"}";
    until("the old one to end", async || {
        server.metric(replaced).await == 1.0
    })
    .await;
    assert!(alive.is_answered().await, "its connection goes on");
    server.http().post(&completed("t1")).await;
    assert_eq!(reader.unwrap().next_event().await.task_id, "t1");
    until("the place to be free", async || {
        open("another").await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn only_a_name_takes_a_place_and_who_gives_way_to_one_that_does_not_fit_stays() {
    let options = Options::default()
        .set("grpc.keepalive_interval", "1s")
        .set("grpc.keepalive_timeout", "5m");
    let server = options
        .set("grpc.subscriptions_max", 3)
        .set("grpc.task_ids_in_all_max", 3)
        .start()
        .await;
    let client = server.events().await;
    let named = |name: &str| SubscribeRequest {
        client_name: name.into(),
        ..request()
    };
    let open = async |request| Sub::open(client.clone(), request).await;
    let mut silent = Frames::connect(server.grpc).await;
    for (number, name) in [(1, "first"), (3, "second"), (5, "")] {
        assert!(silent.send(call(number, "Subscribe", &named(name))).await);
    }
    until("all to be open", async || {
        server.subscriptions().await.len() == 3
    })
    .await;
    let mut first = None;
    until("the first one's place", async || {
        first = open(named("first")).await.ok();
        first.is_some()
    })
    .await;
    // From here on the connection of the others has missed a keepalive, too.
    let limited = |refused: Option<Status>| {
        assert_eq!(
            refusal(&refused.unwrap()),
            (Code::ResourceExhausted, "SUBSCRIPTION_LIMIT".into())
        );
    };
    limited(open(named("")).await.err());
    let large = SubscribeRequest {
        client_name: "second".into(),
        ..tasks(["t1", "t2", "t3", "t4"])
    };
    limited(open(large).await.err());
    let mut names: Vec<_> = server
        .subscriptions()
        .await
        .into_iter()
        .map(|listed| listed.client_name)
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["", "first", "second"],
        "it is counted and listed, as before"
    );
    assert!(open(named("second")).await.is_ok());
}

#[tokio::test]
async fn requests_that_never_arrive_hold_little_memory_and_not_for_long() {
    let options = Options::default()
        .set("grpc.inflight_bytes_max", "1MiB")
        .set("grpc.request_bytes_max", "1MiB");
    let server = options.start().await;
    let mut frames = Frames::connect(server.grpc).await;
    // Each says that a message comes, and none does: a hundred fit, four hundred do not.
    let begin = |number: u32| begun(2 * number + 1, "GetLogInfo");
    assert!(
        frames
            .send((0..100).map(begin).collect::<Vec<_>>().concat())
            .await
    );
    assert!(frames.is_answered().await);
    server.log_info().await;
    assert!(
        frames
            .send((100..400).map(begin).collect::<Vec<_>>().concat())
            .await
    );
    let overloaded = async || {
        let refused = server
            .events()
            .await
            .get_log_info(GetLogInfoRequest::default())
            .await
            .err();
        refused.is_some_and(|status| {
            refusal(&status) == (Code::ResourceExhausted, "OVERLOADED".into())
        })
    };
    until("no room to be left", overloaded).await;
    // Their time ends by itself, though the connection stays and answers.
    let answered = async || {
        server
            .events()
            .await
            .get_log_info(GetLogInfoRequest::default())
            .await
            .is_ok()
    };
    until("room for others", answered).await;
    assert!(frames.is_answered().await);
}

#[tokio::test]
async fn ten_thousand_subscriptions_in_one_piece_are_all_let_in() {
    const COUNT: u32 = 10_000;
    let server = Server::start().await;
    let mut frames = Frames::connect(server.grpc).await;
    let opened = |number| call(2 * number + 1, "Subscribe", &tasks([number]));
    assert!(
        frames
            .send((0..COUNT).map(opened).collect::<Vec<_>>().concat())
            .await
    );
    let live = || async {
        server
            .metric("blobcast_subscriptions{state=\"live\"}")
            .await
    };
    until("all of them to be live", async || {
        live().await == f64::from(COUNT)
    })
    .await;
    assert!(frames.is_answered().await);
}
