//! Requests that a web page makes its visitor's browser send to the gRPC listener.

use super::{
    calls::Calls,
    frames::{Frames, begun, rest},
    *,
};

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const REFUSED: &str = "blobcast_grpc_calls_refused_total";

#[tokio::test]
async fn nothing_but_grpcs_own_content_type_is_taken() {
    let server = Server::start().await;
    let mut calls = Calls::connect(&server).await;
    let ours = [
        "application/grpc",
        "application/grpc+proto",
        "Application/gRPC",
        "application/grpc; charset=utf-8",
    ];
    for content_type in ours {
        let (status, _) = calls
            .post(
                GET_LOG_INFO,
                &[("content-type", content_type), ("te", "trailers")],
            )
            .await;
        assert_eq!(status, 200, "{content_type}");
    }
    let others = [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
        "application/grpc-web+json",
    ];
    let more = [
        "application/grpc+json",
        "application/grpcx",
        "application/json",
        "text/plain; application/grpc",
    ];
    for content_type in others.into_iter().chain(more) {
        let (status, told, body) = calls
            .post_for_body(GET_LOG_INFO, &[("content-type", content_type)])
            .await;
        assert_eq!(status, 415, "{content_type}");
        assert!(
            told.contains("application/grpc") && told.contains("grpc-web"),
            "{told}"
        );
        assert_eq!(body, format!("{told}\n"), "for people, who see no headers");
    }
    assert_eq!(calls.post(GET_LOG_INFO, &[]).await.0, 415, "without any");
    // Also where nobody has to be known, and before it is said what there is.
    for path in ["/grpc.health.v1.Health/Check", "/nothing"] {
        assert_eq!(
            calls.post(path, &[("content-type", "text/plain")]).await.0,
            415,
            "{path}"
        );
    }
    assert_eq!(
        server
            .metric(&format!("{REFUSED}{{cause=\"content_type\"}}"))
            .await,
        12.0
    );
    let told = server.logged("call refused", 1).await;
    assert!(
        told[0].contains(r#""peer":"127.0.0.1"#) && told[0].contains(r#""cause":"content_type""#),
        "{told:?}"
    );
}

#[tokio::test]
async fn refusals_that_nobody_reads_wait_in_small_number() {
    let server = Server::start().await;
    let mut calls = Calls::connect(&server).await;
    let mut refusal = async || {
        calls
            .post_for_body(GET_LOG_INFO, &[("content-type", "application/json")])
            .await
    };
    let mut deaf = Frames::without_window(server.grpc).await;
    let json = |stream| {
        let mut call = begun(stream, "GetLogInfo");
        let at = call
            .windows(16)
            .position(|bytes| bytes == b"application/grpc")
            .unwrap();
        call[at..at + 16].copy_from_slice(b"application/json");
        [call, rest(stream)].concat()
    };
    assert!(
        deaf.send(
            (0..200)
                .map(|number| json(2 * number + 1))
                .collect::<Vec<_>>()
                .concat()
        )
        .await
    );
    deaf.hears(200).await;
    let (status, told, body) = refusal().await;
    assert_eq!(
        (status, told.is_empty(), body.as_str()),
        (415, false, ""),
        "the header says it all the same"
    );
    assert!(deaf.is_answered().await);
    drop(deaf);
    until("there to be room for bodies", async || {
        !refusal().await.2.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_call_of_another_sites_page_is_refused_whatever_it_shows() {
    let server = Server::start().await;
    let mut calls = Calls::connect(&server).await;
    let own = format!("http://{}", server.grpc);
    for header in [
        ("origin", own.as_str()),
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-site", "none"),
    ] {
        assert_eq!(
            calls.post(GET_LOG_INFO, &[GRPC, header]).await.0,
            200,
            "{header:?}"
        );
    }
    let foreign = [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:1"),
        ("sec-fetch-site", "cross-site"),
    ];
    for header in foreign {
        let (status, told) = calls.post(GET_LOG_INFO, &[GRPC, header]).await;
        assert_eq!(status, 403, "{header:?}");
        assert!(told.contains("a web page"), "{told}");
    }
    assert_eq!(
        server
            .metric(&format!("{REFUSED}{{cause=\"foreign_origin\"}}"))
            .await,
        4.0
    );
}
