//! gRPC-Web on the gRPC listener, by clients that can do no more than a browser's page: no trailers, and HTTP/1.1 or HTTP/2.

use base64::{Engine, engine::general_purpose::STANDARD};
use blobcast::wire::v1::{
    self, GetLogInfoRequest, GetLogInfoResponse, GetTaskRequest, SubscribeRequest,
    SubscribeResponse, subscribe_response::Content,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, body::Incoming};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, Status};

use crate::support::{CredentialsFile, Options, Server, completed, reason, request, tasks, within};

const GET_LOG_INFO: &str = "/blobcast.v1.EventService/GetLogInfo";
const GET_TASK: &str = "/blobcast.v1.EventService/GetTask";
const SUBSCRIBE: &str = "/blobcast.v1.EventService/Subscribe";
const APP: &str = "https://app.example.com";
const BINARY: (&str, &str) = ("content-type", "application/grpc-web+proto");
const TEXT: (&str, &str) = ("content-type", "application/grpc-web-text");

/// A message in its frame.
fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &bytes].concat()
}

/// What a page's client has of an answer.
struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Answered {
    /// The messages, and the status behind them, or the one in the headers of an answer without a body.
    fn read<M: Message + Default>(&self) -> (Vec<M>, Status) {
        assert_eq!(self.status, 200, "{:?}", self.headers);
        let content_type = self.headers["content-type"].to_str().unwrap();
        let bytes = if content_type == "application/grpc-web-text+proto" {
            of_text(&self.body)
        } else {
            assert_eq!(content_type, "application/grpc-web+proto");
            self.body.to_vec()
        };
        if bytes.is_empty() {
            return (Vec::new(), Status::from_header_map(&self.headers).unwrap());
        }

        let (mut messages, mut rest) = (Vec::new(), &bytes[..]);
        loop {
            let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            let (frame, behind) = rest[5..].split_at(length);
            if rest[0] == 0x80 {
                assert!(behind.is_empty(), "something is behind the trailers");
                return (messages, Status::from_header_map(&trailers(frame)).unwrap());
            }
            assert_eq!(rest[0], 0);
            messages.push(M::decode(frame).unwrap());
            rest = behind;
        }
    }
}

/// Bytes of base64 that was made in pieces, of which each may be padded.
fn of_text(text: &[u8]) -> Vec<u8> {
    let quads = text.chunks(4);
    quads
        .flat_map(|quad| STANDARD.decode(quad).unwrap())
        .collect()
}

fn trailers(frame: &[u8]) -> HeaderMap {
    let lines = std::str::from_utf8(frame).unwrap().lines();
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (
                name.parse::<hyper::header::HeaderName>().unwrap(),
                value.trim().parse().unwrap(),
            )
        })
        .collect()
}

/// Begins a call by HTTP/1.1 or HTTP/2.
async fn begin(
    server: &Server,
    http2: bool,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> hyper::Response<Incoming> {
    let client = Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build_http::<Full<Bytes>>();
    let request = Request::post(format!("http://{}{path}", server.grpc));
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let request = request.body(Full::from(body)).unwrap();
    within("an answer", client.request(request)).await.unwrap()
}

async fn call(
    server: &Server,
    http2: bool,
    path: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answered {
    let answer = begin(server, http2, path, headers, body).await;
    let (head, body) = answer.into_parts();
    let body = within("its end", body.collect()).await.unwrap();
    assert!(body.trailers().is_none(), "a page would not see them");
    Answered {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.to_bytes(),
    }
}

#[tokio::test]
async fn a_call_is_answered_with_its_trailers_in_the_body() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await;
    let info = server.log_info().await;
    let message = framed(&GetLogInfoRequest::default());
    let text = STANDARD.encode(&message).into_bytes();
    let wants_text = [TEXT, ("accept", "application/grpc-web-text")];
    for http2 in [false, true] {
        for (headers, body) in [
            (&[BINARY][..], &message),
            (&[("content-type", "application/grpc-web")], &message),
            (&[TEXT], &text),
            (&wants_text, &text),
            (
                &[("content-type", "application/grpc-web-text+proto")],
                &text,
            ),
        ] {
            let answer = call(&server, http2, GET_LOG_INFO, headers, body.clone()).await;
            let is_text = headers[0].1.contains("text");
            let content_type = answer.headers["content-type"].to_str().unwrap();
            assert_eq!(content_type.contains("text"), is_text, "{content_type}");
            assert!(answer.headers.contains_key("x-request-id"));
            let (messages, status) = answer.read::<GetLogInfoResponse>();
            assert_eq!(status.code(), Code::Ok, "{status:?}");
            assert_eq!((messages.len(), &messages[0].head), (1, &info.head));
        }
    }
}

#[tokio::test]
async fn a_stream_comes_as_it_happens_and_ends_with_its_status() {
    let server = Server::start().await;
    for (http2, headers) in [(false, BINARY), (true, BINARY), (false, TEXT), (true, TEXT)] {
        let task_id = format!("{http2}-{}", headers.1.len());
        let wanted = framed(&SubscribeRequest {
            until_terminal: true,
            ..tasks([&task_id])
        });
        let body = if headers == TEXT {
            STANDARD.encode(&wanted).into_bytes()
        } else {
            wanted
        };
        let answer = begin(&server, http2, SUBSCRIBE, &[headers], body).await;
        assert_eq!(answer.headers()["x-accel-buffering"], "no");
        let (head, mut body) = answer.into_parts();
        let first = within("the first message", body.frame()).await;
        let first = first.unwrap().unwrap().into_data().unwrap();
        server.http().post(&completed(&task_id)).await;
        let rest = within("the end", body.collect()).await.unwrap().to_bytes();

        let answer = Answered {
            status: head.status.as_u16(),
            headers: head.headers,
            body: [first, rest].concat().into(),
        };
        let (messages, status) = answer.read::<SubscribeResponse>();
        assert_eq!(status.code(), Code::Ok, "{status:?}");
        let mut contents = messages.into_iter().filter_map(|message| message.content);
        assert!(matches!(contents.next(), Some(Content::Subscribed(_))));
        assert!(
            contents.any(
                |content| matches!(content, Content::Event(event) if event.task_id == task_id)
            )
        );
        assert!(matches!(contents.last(), Some(Content::Completed(_))));
    }

    // One that fails has its status behind what was sent.
    for http2 in [false, true] {
        let late = [BINARY, ("grpc-timeout", "300m")];
        let answer = call(&server, http2, SUBSCRIBE, &late, framed(&request())).await;
        let (messages, status) = answer.read::<SubscribeResponse>();
        assert!(!messages.is_empty());
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into())
        );
    }
}

#[tokio::test]
async fn errors_limits_and_credentials_are_those_of_grpc() {
    let mut file = CredentialsFile::new();
    let token = format!("Bearer {}", file.add("client team --product veo").await);
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .set("grpc.request_bytes_max", "1KiB")
        .start()
        .await;
    let shown = [BINARY, ("authorization", token.as_str())];
    let unknown = framed(&GetTaskRequest {
        task_id: "t1".into(),
        product: "veo".into(),
        ..Default::default()
    });
    let foreign = framed(&GetTaskRequest {
        task_id: "t1".into(),
        product: "kling".into(),
        ..Default::default()
    });
    let large = framed(&GetTaskRequest {
        task_id: "x".repeat(2_000),
        ..Default::default()
    });
    for http2 in [false, true] {
        for (headers, body, code, why) in [
            (
                &shown[..1],
                &unknown,
                Code::Unauthenticated,
                "TOKEN_INVALID",
            ),
            (&shown, &unknown, Code::NotFound, "TASK_NOT_FOUND"),
            (&shown, &foreign, Code::PermissionDenied, "PRODUCT_DENIED"),
            (&shown, &large, Code::ResourceExhausted, "REQUEST_TOO_LARGE"),
            (
                &[TEXT, shown[1]],
                &b"%%%%".to_vec(),
                Code::InvalidArgument,
                "INVALID_REQUEST",
            ),
        ] {
            let answer = call(&server, http2, GET_TASK, headers, body.clone()).await;
            let (messages, status) = answer.read::<v1::GetTaskResponse>();
            assert_eq!((messages.len(), status.code()), (0, code), "{status:?}");
            assert_eq!(reason(&status), why);
        }
    }
    let answer = call(
        &server,
        false,
        "/nothing.Service/Nothing",
        &shown,
        framed(&()),
    )
    .await;
    assert_eq!(reason(&answer.read::<()>().1), "UNKNOWN_METHOD");
    let other = [("content-type", "application/grpc-web+json"), shown[1]];
    for http2 in [false, true] {
        let answer = call(&server, http2, GET_TASK, &other, Vec::new()).await;
        assert_eq!(answer.status, 415);
    }

    // A request that never comes is not waited for: this one of a probe for 2 s.
    let mut slow = TcpStream::connect(server.grpc).await.unwrap();
    let head = "POST /grpc.health.v1.Health/Check HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\
                content-type: application/grpc-web\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        let count = within("an answer", slow.read_buf(&mut read)).await;
        assert!(count.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
    }
    let answer = String::from_utf8(read).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("grpc-status: 3\r\n"), "{answer}");
}

#[tokio::test]
async fn only_pages_of_known_origins_and_of_our_own_names_may_call() {
    let server = Options::default()
        .set("grpc.cors_origins", APP)
        .set("grpc.hosts", "named.internal")
        .start()
        .await;
    let message = framed(&GetLogInfoRequest::default());
    for http2 in [false, true] {
        let page = [
            BINARY,
            ("origin", APP),
            ("sec-fetch-site", "cross-site"),
            ("x-grpc-web", "1"),
        ];
        let answer = call(&server, http2, GET_LOG_INFO, &page, message.clone()).await;
        assert_eq!(answer.headers["access-control-allow-origin"], APP);
        assert_eq!(answer.headers["vary"], "origin");
        let exposed = answer.headers["access-control-expose-headers"]
            .to_str()
            .unwrap();
        for header in [
            "grpc-status",
            "grpc-message",
            "grpc-status-details-bin",
            "x-request-id",
        ] {
            assert!(exposed.contains(header), "{exposed}");
        }
        assert_eq!(answer.read::<GetLogInfoResponse>().1.code(), Code::Ok);

        for origin in ["https://evil.example", "null"] {
            let answer = call(
                &server,
                http2,
                GET_LOG_INFO,
                &[BINARY, ("origin", origin)],
                message.clone(),
            )
            .await;
            assert_eq!(answer.status, 403, "{origin}");
            assert!(!answer.headers.contains_key("access-control-allow-origin"));
            assert!(answer.headers.contains_key("x-request-id"));
        }
    }
    for (host, status) in [("evil.example:50051", 421), ("named.internal:1", 200)] {
        let answer = call(
            &server,
            false,
            GET_LOG_INFO,
            &[BINARY, ("host", host)],
            message.clone(),
        )
        .await;
        assert_eq!(answer.status, status, "{host}");
    }

    for (origin, status) in [(APP, 204), ("https://evil.example", 403)] {
        let asked = Request::options(format!("http://{}{GET_LOG_INFO}", server.grpc))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "content-type,grpc-timeout,x-grpc-web,x-user-agent",
            );
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let asked = client.request(asked.body(Full::default()).unwrap());
        let answer = within("an answer", asked).await.unwrap();
        assert_eq!(answer.status(), status, "{origin}");
        let headers = answer.headers();
        assert_eq!(
            headers.contains_key("access-control-allow-origin"),
            status == 204
        );
        if status == 204 {
            let allowed = headers["access-control-allow-headers"].to_str().unwrap();
            for header in [
                "authorization",
                "content-type",
                "grpc-timeout",
                "x-grpc-web",
                "x-user-agent",
            ] {
                assert!(allowed.contains(header), "{allowed}");
            }
        }
    }
    for (cause, count) in [("foreign_origin", 5.0), ("host", 1.0)] {
        let name = format!("blobcast_grpc_calls_refused_total{{cause=\"{cause}\"}}");
        assert_eq!(server.metric(&name).await, count);
    }
}
