//! Bodies that are compressed, that only claim to be compressed, or that begin with a byte order
//! mark.

use std::io::Write;

use blobcast::wire::v1::{Event, ListEventsRequest};
use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use serde_json::json;

use super::{
    counted, nothing_is_kept, quarantine,
    raw::{Raw, Reply, head, post},
};
use crate::support::{Options, Server, completed, with};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn send(server: &Server, encoding: &str, body: impl Into<Vec<u8>>) -> Reply {
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(post(
        "/webhook/veo",
        &format!("content-encoding: {encoding}\r\n"),
        body.into(),
    ))
    .await;
    raw.reply().await
}

/// The log with the bodies.
async fn events(server: &Server) -> Vec<Event> {
    let request = ListEventsRequest {
        include_raw: true,
        ..Default::default()
    };
    server
        .events()
        .await
        .list_events(request)
        .await
        .unwrap()
        .into_inner()
        .events
}

#[tokio::test]
async fn a_compressed_body_is_read_and_kept_decompressed() {
    let server = Server::start().await;
    let body = |task: &str| completed(task).to_string().into_bytes();
    let sent = [
        ("gzip", gzip(&body("t0"))),
        ("GZip", gzip(&body("t1"))),
        (
            "x-gzip",
            [gzip(&body("t2")[..9]), gzip(&body("t2")[9..])].concat(),
        ),
        ("deflate", zlib(&body("t3"))),
        ("deflate", raw_deflate(&body("t4"))),
        ("gzip, deflate", zlib(&gzip(&body("t5")))),
        ("identity, gzip,", gzip(&body("t6"))),
        ("gzip\r\ncontent-encoding: gzip", gzip(&gzip(&body("t7")))),
        ("utf-8", body("t8")),
        ("", body("t9")),
        ("Identity", body("t10")),
    ];
    for (encoding, body) in &sent {
        let reply = send(&server, encoding, body.clone()).await;
        assert_eq!(reply.status, 200, "{encoding}: {reply:?}");
    }
    let log = events(&server).await;
    for (number, event) in log.iter().enumerate() {
        assert_eq!(
            (event.task_id.as_str(), &event.raw_body[..]),
            (&*format!("t{number}"), &*body(&event.task_id))
        );
    }
    assert_eq!(log.len(), sent.len());
    // Chunks come in any size.
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(head(
        "/webhook/veo",
        "transfer-encoding: chunked\r\ncontent-encoding: gzip\r\n",
    ))
    .await;
    for byte in gzip(&body("t0")) {
        raw.send([b"1\r\n", &[byte][..], b"\r\n"].concat()).await;
    }
    raw.send("0\r\n\r\n").await;
    assert_eq!(raw.reply().await.json()["duplicate"], true);
}

#[tokio::test]
async fn an_encoding_that_is_not_known_is_refused() {
    let server = Server::start().await;
    let unknown = [
        "br",
        "zstd",
        "compress",
        "gzip, br",
        "deflate;q=1",
        "gzip, gzip, gzip, gzip",
    ];
    for encoding in unknown {
        let reply = send(&server, encoding, completed("t1").to_string()).await;
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (415, "unsupported_encoding"),
            "{encoding}"
        );
        assert_eq!(reply.header("accept-encoding"), "gzip, deflate");
    }
    let mut raw = Raw::connect(server.ingest).await;
    raw.send(head("/webhook/veo", "transfer-encoding: gzip, chunked\r\n"))
        .await;
    assert_eq!(raw.reply().await.status, 415, "whichever header says it");
    assert_eq!(
        counted(&server, "unsupported_encoding").await,
        unknown.len() as f64 + 1.0
    );
    nothing_is_kept(&server).await;
}

#[tokio::test]
async fn a_body_is_as_large_as_it_is_once_decompressed() {
    let server = Server::start().await;
    let large = vec![b' '; 64 << 20];
    for (encoding, body) in [
        ("gzip", gzip(&large)),
        ("deflate", zlib(&large)),
        ("deflate", raw_deflate(&large)),
        ("gzip, gzip", gzip(&gzip(&large))),
        ("gzip, deflate", zlib(&gzip(&large))),
        ("gzip", gzip(&large[..(1 << 20) + 1])),
    ] {
        let reply = send(&server, encoding, body).await;
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (413, "body_too_large"),
            "{encoding}"
        );
    }
    nothing_is_kept(&server).await;
    let mut largest = completed("t1").to_string().into_bytes();
    largest.resize(1 << 20, b' ');
    for (encoding, body) in [("gzip", gzip(&largest)), ("deflate", zlib(&largest))] {
        assert_eq!(
            send(&server, encoding, body).await.status,
            200,
            "{encoding}"
        );
    }
}

#[tokio::test]
async fn a_body_that_is_not_what_its_encoding_says_is_taken_as_it_came() {
    let server = Server::start().await;
    for (number, encoding) in ["gzip", "deflate", "gzip, deflate"].into_iter().enumerate() {
        let plain = with(
            completed(&format!("t{number}")),
            json!({"prompt": "x".repeat(5_000)}),
        )
        .to_string();
        assert_eq!(
            send(&server, encoding, plain).await.status,
            200,
            "{encoding}"
        );
    }
    assert_eq!(server.log_of_events().await.len(), 3);
    let body = completed("t9").to_string();
    let (gzipped, zlibbed) = (gzip(body.as_bytes()), zlib(body.as_bytes()));
    let mut wrong_sum = gzipped.clone();
    *wrong_sum.last_mut().unwrap() ^= 1;
    let broken = [
        ("gzip", gzipped[..gzipped.len() - 9].to_vec()),
        ("gzip", wrong_sum),
        ("gzip", zlibbed.clone()),
        ("deflate", gzipped),
        ("deflate", zlibbed[..zlibbed.len() - 1].to_vec()),
        ("deflate", [zlibbed, b"x".to_vec()].concat()),
        ("gzip", Vec::new()),
    ];
    for (encoding, body) in &broken {
        let reply = send(&server, encoding, body.clone()).await;
        assert_eq!(
            (reply.status, reply.reason().as_str()),
            (202, "not_json"),
            "{encoding}"
        );
    }
    let kept: Vec<_> = quarantine(&server)
        .await
        .into_iter()
        .map(|callback| callback.body.to_vec())
        .collect();
    assert_eq!(kept, broken.map(|(_, body)| body), "byte for byte");
}

#[tokio::test]
async fn decompressed_bodies_count_as_in_flight() {
    // Room for the compressed body many times, and for no more than one largest body.
    let options = Options::default()
        .set("ingest.body_bytes_max", "1MiB")
        .set("ingest.inflight_bytes_max", "1MiB");
    let server = options.start().await;
    let mut largest = completed("t1").to_string().into_bytes();
    largest.resize(1 << 20, b' ');
    let reply = send(&server, "gzip", gzip(&largest)).await;
    assert_eq!((reply.status, reply.reason().as_str()), (503, "overloaded"));
    largest.truncate((1 << 20) - 128 * 1024);
    assert_eq!(
        send(&server, "gzip", gzip(&largest)).await.status,
        200,
        "and what is given back is there again"
    );
    assert_eq!(send(&server, "gzip", gzip(&largest)).await.status, 200);
}

#[tokio::test]
async fn a_byte_order_mark_is_skipped_and_the_raw_body_keeps_it() {
    let server = Server::start().await;
    let text = |task: &str| with(completed(task), json!({"prompt": "кот"})).to_string();
    let utf16 = |task: &str, unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        [0xfeff]
            .into_iter()
            .chain(text(task).encode_utf16())
            .flat_map(unit)
            .collect()
    };
    let bodies = [
        format!("\u{feff}{}", text("t0")).into_bytes(),
        utf16("t1", u16::to_be_bytes),
        utf16("t2", u16::to_le_bytes),
    ];
    for body in &bodies {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", body.clone())
                .await
                .status,
            200
        );
    }
    assert_eq!(
        send(&server, "gzip", gzip(&bodies[1])).await.json()["duplicate"],
        true
    );
    for ((number, event), body) in events(&server).await.iter().enumerate().zip(&bodies) {
        assert_eq!(
            (event.task_id.as_str(), event.prompt.as_str()),
            (&*format!("t{number}"), "кот")
        );
        assert_eq!(&event.raw_body, body);
    }
}
