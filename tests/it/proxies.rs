//! The command line when a proxy cannot reach the broker, or when another kind of server answers.

use std::net::SocketAddr;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, StatusCode},
};
use hyper::body::Frame;

use crate::support::Cli;

/// What nginx says when it cannot reach what is behind it.
const PAGE: &str = "<html>\r\n<head><title>504 Gateway Time-out</title></head>\r\n</html>\r\n";

/// Answers every request, of HTTP/1.1 and HTTP/2, with a page.
pub(crate) async fn proxy(status: u16) -> SocketAddr {
    let headers = [("content-type", "text/html"), ("server", "nginx/1.22.1")];
    let answer = move || async move { (StatusCode::from_u16(status).unwrap(), headers, PAGE) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    address
}

#[tokio::test]
async fn a_proxys_answer_is_named_by_its_status() {
    for (status, told) in [
        (
            504,
            "the proxy (nginx/1.22.1) answered 504 Gateway Timeout; ",
        ),
        (502, "the proxy (nginx/1.22.1) answered 502 Bad Gateway; "),
        (
            404,
            "a proxy in front of it, (nginx/1.22.1) answered 404 Not Found; ",
        ),
        (
            200,
            "a proxy in front of it, (nginx/1.22.1) answered 200 OK with text/html, which is not gRPC; ",
        ),
    ] {
        let proxy = proxy(status).await;
        for line in [
            "get t1",
            "events",
            "subscriptions",
            "quarantine list",
            "url --product veo",
        ] {
            let ran = Cli::new(&format!("{line} --grpc-url {proxy}")).run().await;
            let said = ran.exited(1);
            assert!(
                said.starts_with(&format!("error: http://{proxy}: ")) && said.contains(told),
                "{line}: {said}"
            );
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}

#[tokio::test]
async fn wait_does_not_call_a_proxys_answer_a_task_that_is_not_over() {
    let proxy = proxy(504).await;
    let ran = Cli::new(&format!("wait t1 --timeout 1s --grpc-url {proxy}"))
        .run()
        .await;
    let said = ran.exited(1);
    let last = format!(
        "error: no broker has answered within 1s: http://{proxy}: the proxy (nginx/1.22.1) answered 504 "
    );
    assert!(said.lines().last().unwrap().starts_with(&last), "{said}");
    assert!(!said.contains("no event of this task yet"), "{said}");
}

#[tokio::test]
async fn listen_outlasts_a_proxy_without_a_broker_and_ends_where_it_is_refused_for_good() {
    let away = proxy(502).await;
    let listen = Cli::new(&format!("listen --grpc-url {away}")).start();
    for _ in 0..2 {
        listen.says("answered 502 Bad Gateway; the broker behind it is not reachable, or it is not set up for gRPC; connecting again").await;
    }
    // A route that is missing may still appear; after three failures the client reports it.
    let wrong = proxy(404).await;
    for line in ["listen", "wait t1"] {
        let ran = Cli::new(&format!("{line} --grpc-url {wrong}")).run().await;
        let said = ran.exited(1);
        assert_eq!(said.lines().count(), 3, "{said}");
        assert!(
            said.lines()
                .last()
                .unwrap()
                .starts_with(&format!("error: http://{wrong}: ")),
            "{said}"
        );
    }
}

/// Answers every call with a status that a proxy has garbled: at once, or as the trailers of a stream that has begun.
async fn garbler(in_trailers: bool) -> SocketAddr {
    let status = || {
        let told = [
            ("grpc-status", "14"),
            ("grpc-message", "upstream is away"),
            ("grpc-status-details-bin", "<html>"),
        ];
        told.into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    };
    let answer = move || async move {
        let mut answer = axum::response::Response::new(Body::empty());
        answer
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        if in_trailers {
            let frame = Frame::<axum::body::Bytes>::trailers(status());
            let trailers =
                http_body_util::StreamBody::new(tokio_stream::once(Ok::<_, std::io::Error>(frame)));
            *answer.body_mut() = Body::new(trailers);
        } else {
            answer.headers_mut().extend(status());
        }
        answer
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    address
}

#[tokio::test]
async fn details_that_a_proxy_has_garbled_end_no_client() {
    for in_trailers in [false, true] {
        let garbler = garbler(in_trailers).await;
        for line in ["get t1", "events", "subscriptions", "quarantine list"] {
            let ran = Cli::new(&format!("{line} --grpc-url {garbler}"))
                .run()
                .await;
            let said = ran.exited(1);
            assert!(
                said.starts_with("error: ") && said.contains("upstream is away"),
                "{line}: {said}"
            );
        }
        let listen = Cli::new(&format!("listen --grpc-url {garbler}")).start();
        for _ in 0..2 {
            listen.says("upstream is away; is `blobcast serve` running? use --grpc-url; connecting again").await;
        }
    }
}
