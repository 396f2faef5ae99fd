//! The HTTP client of `listen --forward-to`, `healthcheck` and `console`.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, Uri};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use crate::{
    causes::{innermost, untrusted},
    simulator::{Connector, connector},
};

/// Largest answer that is read: larger than any health check or acknowledgement.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A client that reuses its connections.
pub(super) type HttpClient = Client<Connector, Full<Bytes>>;

pub(super) fn client(url: &Uri) -> HttpClient {
    Client::builder(TokioExecutor::new()).build(connector(url))
}

/// Sends a request and reads the whole answer. If its body is too large or cut short, the body is
/// empty.
pub(super) async fn send(
    client: &HttpClient,
    request: Request<Full<Bytes>>,
    timeout: Duration,
) -> anyhow::Result<Response<Bytes>> {
    let exchange = async {
        let answer = client.request(request).await.map_err(|error| {
            let step = untrusted(&error);
            let cause = innermost(&error);
            step.map_or_else(
                || anyhow::anyhow!("{error}: {cause}"),
                |step| anyhow::anyhow!("{error}: {cause}; {step}"),
            )
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        Ok(Response::from_parts(
            head,
            body.map(|body| body.to_bytes()).unwrap_or_default(),
        ))
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(done) => done,
        Err(_) => anyhow::bail!("no answer within {}", humantime::format_duration(timeout)),
    }
}
