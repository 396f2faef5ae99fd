//! The listener as its clients see it, at the limits and at the end.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Method, StatusCode, header::CONTENT_LENGTH},
    response::IntoResponse,
};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, yield_now},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use super::{
    Counters, Limits, Responder,
    activity::Quiet,
    h2,
    limits::PATIENCE,
    refusals::{DRAINING, HEADER_TIMEOUT, REFUSALS_MAX, TOO_MANY_CONNECTIONS},
    responder::Answer,
    routed, serve,
    service::Service,
};
use crate::{
    metrics::Metrics,
    server::{
        net::{
            Entrance, PREFACE,
            places::{Counted, Patience, Places},
        },
        runtimes::Homes,
    },
};

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_further_ones_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Metrics::default();
    // There is no room, and a refused client keeps one of the refusals' places until it has closed.
    let limits = Limits {
        connections_max: 0,
        farewell: Duration::MAX,
        ..Limits::admin()
    };
    let refused = metrics
        .connections_refused
        .with_label_values(&["test", "full"]);
    let (counters, stop) = (Counters::of("test", &metrics), CancellationToken::new());
    let entrance = Entrance::open_to_all(None);
    tokio::spawn(serve(
        listener,
        Homes::here(),
        entrance,
        routed(Router::new()),
        limits,
        counters,
        stop,
    ));

    let mut refused_clients = Vec::new();
    for _ in 0..REFUSALS_MAX {
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert_refused(&mut stream).await;
        refused_clients.push(stream);
    }

    let mut waiting = TcpStream::connect(address).await.unwrap();
    let _behind = TcpStream::connect(address).await.unwrap();
    // One is taken out of the queue, and has to wait for a place before the next one is.
    for _ in 0..10_000 {
        yield_now().await;
    }
    assert_eq!(refused.get(), REFUSALS_MAX as u64 + 1);
    assert!(waiting.try_read(&mut [0]).is_err(), "it waits");
    refused_clients.pop();
    assert_refused(&mut waiting).await;
}

async fn assert_refused(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    // Far longer than it takes.
    timeout(Duration::from_secs(60), stream.read_to_end(&mut answer))
        .await
        .expect("an answer")
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let lines: Vec<_> = answer
        .split_inclusive("\r\n")
        .filter(|line| !line.starts_with("x-request-id: "))
        .collect();
    assert_eq!(
        (lines.concat().as_bytes(), lines.len() + 1),
        (TOO_MANY_CONNECTIONS, answer.split_inclusive("\r\n").count())
    );
}

/// A listener with these limits, and what stops it.
async fn answering(limits: Limits) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    serving(
        limits,
        Router::new().fallback(|| std::future::ready("answered")),
    )
    .await
}

async fn serving(
    limits: Limits,
    router: Router,
) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let (entrance, counters) = (
        Entrance::open_to_all(None),
        Counters::of("test", &Metrics::default()),
    );
    (
        address,
        stop.clone(),
        tokio::spawn(serve(
            listener,
            Homes::here(),
            entrance,
            routed(router),
            limits,
            counters,
            stop,
        )),
    )
}

/// Two connections that are open: nothing was asked on the first one yet, and the last answer on the other one is read.
async fn one_fresh_and_one_used(address: SocketAddr) -> [TcpStream; 2] {
    let fresh = TcpStream::connect(address).await.unwrap();
    let mut used = TcpStream::connect(address).await.unwrap();
    used.write_all(REQUEST).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"answered") {
        assert_ne!(
            used.read_buf(&mut answer).await.unwrap(),
            0,
            "it stays open"
        );
    }
    [fresh, used] // they were taken up in this order
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_request_that_is_on_its_way_at_the_end_is_answered() {
    let (address, stop, served) = answering(Limits {
        last_request: Duration::MAX,
        ..Limits::admin()
    })
    .await;
    let connections = one_fresh_and_one_used(address).await;
    stop.cancel();
    for mut connection in connections {
        connection.write_all(REQUEST).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.contains("connection: close\r\n") && answer.ends_with("answered"),
            "{answer}"
        );
    }
    served.await.unwrap();
}

#[tokio::test]
async fn idle_connections_hold_up_the_end_for_a_moment_only() {
    let (address, stop, served) = answering(Limits {
        last_request: Duration::from_millis(1),
        ..Limits::admin()
    })
    .await;
    let connections = one_fresh_and_one_used(address).await;
    stop.cancel();
    for mut connection in connections {
        assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
    }
    served.await.unwrap();
}

/// Short beside what a client is given otherwise, so that a test that waits for that fails.
const AT_THE_END: Limits = Limits {
    connections_max: 10,
    patience: PATIENCE,
    header_bytes_max: 16 * 1024,
    headers_max: 64,
    quiet: Quiet {
        header_timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
    },
    write_timeout: Duration::from_secs(10),
    linger: Duration::from_secs(60),
    farewell: Duration::from_millis(10),
    lets_in: true,
    half_close: true,
    tells_connection: false,
    last_request: Duration::from_millis(10),
};
/// Far longer than it takes then.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn half_a_head_is_answered_with_503_at_the_end() {
    let (address, stop, served) = answering(AT_THE_END).await;
    let mut trickling = TcpStream::connect(address).await.unwrap();
    trickling
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n")
        .await
        .unwrap();
    let _taken_up = one_fresh_and_one_used(address).await;
    stop.cancel();
    timeout(SOON, served)
        .await
        .expect("the end does not wait")
        .unwrap();
    let mut answer = String::new();
    trickling.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("restarting: send it again\"}"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_connection_that_is_not_opened_yet_does_not_hold_up_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (metrics, stop) = (Metrics::default(), CancellationToken::new());
    // It is to send a PROXY header first.
    let entrance = Entrance::shared(1, &["127.0.0.1/32".parse().unwrap()], true, None);
    let counters = Counters::of("test", &metrics);
    let served = tokio::spawn(serve(
        listener,
        Homes::here(),
        entrance,
        routed(Router::new()),
        AT_THE_END,
        counters,
        stop.clone(),
    ));
    while metrics.connections.with_label_values(&["test"]).get() == 0 {
        yield_now().await;
    }

    stop.cancel();
    timeout(SOON, served)
        .await
        .expect("the end does not wait")
        .unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn answers_that_are_not_read_do_not_hold_up_the_end() {
    // More than the kernel takes for a connection.
    let large = || std::future::ready(vec![0; 64 << 20]);
    let (address, stop, served) = serving(AT_THE_END, Router::new().fallback(large)).await;
    let mut unread = TcpStream::connect(address).await.unwrap();
    unread.write_all(&REQUEST.repeat(2)).await.unwrap();
    unread.readable().await.unwrap(); // the answer has begun
    stop.cancel();
    timeout(SOON, served)
        .await
        .expect("the end does not wait")
        .unwrap();
}

/// Refuses everything, and reads no body.
fn refusing() -> Router {
    Router::new().fallback(|| std::future::ready(StatusCode::NOT_FOUND))
}

/// A client that has read its answer, and goes on with a body that is too large to be read away.
async fn refused_in_mid_body(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    client
        .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close\r\n"),
        "{answer}"
    );
    client.write_all(&[0; 4096]).await.unwrap();
    client
}

#[tokio::test]
async fn a_client_that_sends_on_after_a_refusal_does_not_hold_up_the_end() {
    let (address, stop, served) = serving(AT_THE_END, refusing()).await;
    let _client = refused_in_mid_body(address).await;
    stop.cancel();
    timeout(SOON, served)
        .await
        .expect("the end does not wait")
        .unwrap();
}

#[tokio::test]
async fn a_client_that_sends_on_after_a_refusal_gives_way_to_others() {
    let patience = Patience {
        unauthenticated: Some(Duration::from_millis(1)),
        authenticated: None,
    };
    let limits = Limits {
        connections_max: 1,
        patience,
        ..AT_THE_END
    };
    let (address, _stop, _served) = serving(limits, refusing()).await;
    let mut client = refused_in_mid_body(address).await;
    let others = async || while refused_status(address).await != "404" {};
    timeout(SOON, others()).await.expect("its place");
    // Until it is closed, what it sends is taken.
    let sent = async { while client.write_all(&[0; 4096]).await.is_ok() {} };
    timeout(SOON, sent).await.expect("closed");
}

async fn refused_status(address: SocketAddr) -> String {
    let (mut client, mut answer) = (TcpStream::connect(address).await.unwrap(), String::new());
    let _ = client
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .is_ok();
    let _ = client.read_to_string(&mut answer).await.is_ok();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_request_that_is_being_answered_at_the_end_is_waited_for() {
    let (asked, go_on) = (CancellationToken::new(), CancellationToken::new());
    let (begun, wait) = (asked.clone(), go_on.clone());
    let answer = move || {
        begun.cancel();
        let wait = wait.clone();
        async move {
            wait.cancelled().await;
            "answered"
        }
    };
    let (address, stop, served) = serving(AT_THE_END, Router::new().fallback(answer)).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(REQUEST).await.unwrap();
    asked.cancelled().await;
    stop.cancel();
    assert!(
        timeout(4 * (AT_THE_END.last_request + AT_THE_END.farewell), served)
            .await
            .is_err()
    );
    go_on.cancel();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("answered"), "{answer}");
}

#[tokio::test]
async fn after_a_half_close_only_callbacks_are_still_answered() {
    let metrics = Metrics::default();
    for (limits, is_answered) in [(AT_THE_END, true), (Limits::admin(), false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counters, stop) = (Counters::of("test", &metrics), CancellationToken::new());
        let gate = CancellationToken::new();
        let (waiting, opening) = (gate.clone(), gate);
        let open = async move || opening.cancel();
        let router = Router::new()
            .route("/", axum::routing::get(move || waiting.cancelled_owned()))
            .route("/open", axum::routing::get(open));
        let entrance = Entrance::open_to_all(None);
        tokio::spawn(serve(
            listener,
            Homes::here(),
            entrance,
            routed(router),
            limits,
            counters,
            stop,
        ));

        let ask = async |path: &str| {
            let mut client = TcpStream::connect(address).await.unwrap();
            client
                .write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes())
                .await
                .unwrap();
            client.shutdown().await.unwrap();
            client
        };

        let mut client = ask("/").await;
        if is_answered {
            // When this is answered, the end of the other connection, which came before, has been seen.
            ask("/open")
                .await
                .read_to_end(&mut Vec::new())
                .await
                .unwrap();
        }

        let mut answer = Vec::new();
        timeout(SOON, client.read_to_end(&mut answer))
            .await
            .expect("it goes on for nobody")
            .unwrap();
        assert_eq!(!answer.is_empty(), is_answered);
    }
}

/// The client's end of a connection that is served as HTTP/2, what stops it, and what ends with it.
async fn h2_by(responder: impl Responder) -> (TcpStream, CancellationToken, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let opened = Entrance::open_to_all(None)
        .open(stream, peer, None)
        .await
        .unwrap();
    let stream = Box::pin(TimeoutStream::new(opened.into_parts().0));
    let counters = Counters::of("ingest", &Metrics::default());
    let service = Service::new(&responder, AT_THE_END, &counters);
    let stop = CancellationToken::new();
    let place = Places::new(1, PATIENCE, Counted::of("test", &Metrics::default()))
        .try_take()
        .unwrap();
    let served = {
        let stop = stop.clone();
        async move { h2::serve(service, stream, peer, place.standing(), stop).await }
    };
    (client, stop, tokio::spawn(served))
}

/// The same, when the preface is sent.
async fn h2_connection() -> (TcpStream, CancellationToken, JoinHandle<()>) {
    let router = Router::new().fallback(|| std::future::ready("answered"));
    let (mut client, stop, served) = h2_by(routed(router)).await;
    client.write_all(PREFACE).await.unwrap();
    client
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap(); // SETTINGS
    client.readable().await.unwrap(); // the server's
    (client, stop, served)
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_over_http_2_either() {
    // As the ingest answers, without a router that would take the body away.
    let responder = |_, _| -> Answer { Box::pin(async { "answered".into_response() }) };
    let (client, _stop, _served) = h2_by(responder).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client))
            .await
            .unwrap();
    tokio::spawn(connection);
    for (method, bytes) in [(Method::HEAD, 0), (Method::GET, 8)] {
        let request = Request::builder()
            .method(method)
            .uri("http://x/")
            .body(Body::empty())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.headers()[CONTENT_LENGTH], "8");
        let body = http_body_util::BodyExt::collect(answer.into_body())
            .await
            .unwrap();
        assert_eq!(body.to_bytes().len(), bytes);
    }
}

#[tokio::test]
async fn an_idle_http_2_connection_does_not_hold_up_the_end() {
    let (_client, stop, served) = h2_connection().await;
    stop.cancel();
    timeout(SOON, served)
        .await
        .expect("the end does not wait")
        .unwrap();
}

#[tokio::test]
async fn an_http_2_connection_that_keeps_sending_requests_does_not_hold_up_the_end() {
    let (mut client, stop, served) = h2_connection().await;
    stop.cancel();
    let asking = async {
        for stream in (1_u32..).step_by(2) {
            let mut headers = vec![0, 0, 3, 1, 0x05]; // HEADERS, with END_STREAM and END_HEADERS
            headers.extend(stream.to_be_bytes());
            headers.extend([0x82, 0x84, 0x86]); // GET, /, http
            if client.write_all(&headers).await.is_err() {
                return;
            }
            let _ = client.try_read(&mut [0; 4096]).is_ok();
            sleep(Duration::from_millis(1)).await;
        }
    };
    let ended = async { tokio::join!(asking, served).1 };
    timeout(SOON, ended)
        .await
        .expect("the end does not wait")
        .unwrap();
}

#[test]
fn our_own_answers_state_their_length() {
    for answer in [TOO_MANY_CONNECTIONS, DRAINING, HEADER_TIMEOUT] {
        let (head, body) = std::str::from_utf8(answer)
            .unwrap()
            .split_once("\r\n\r\n")
            .unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
    }
}
