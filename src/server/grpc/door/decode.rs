//! Reads a request's JSON, and makes the message of the call out of it.

use std::sync::{Arc, OnceLock};

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use http_body_util::BodyExt;
use tokio::task::spawn_blocking;
use tonic::{Code, Status};

use crate::{
    door::{Rpc, framed, message_of},
    rpc,
    wire::Reason,
};

/// Transcoding takes about a millisecond for so many bytes; more of them are transcoded aside.
pub(super) const AT_ONCE_BYTES: usize = 64 * 1024;

/// Marks a call whose body is still JSON.
#[derive(Clone, Debug)]
pub(super) struct Awaited {
    /// Whose request the JSON is.
    pub rpc: &'static Rpc,
    pub bytes_max: usize,
    /// Where the message is kept for later. The call then has an empty one.
    pub kept: Option<Kept>,
}

/// A message that was let in.
pub(super) type Kept = Arc<OnceLock<Vec<u8>>>;

/// The innermost layer of the door's calls. What it reads has been admitted, and is counted and timed like any request.
pub(in crate::server::grpc) async fn decode(mut request: Request, next: Next) -> Response {
    let Some(awaited) = request.extensions_mut().remove::<Awaited>() else {
        return next.run(request).await;
    };
    let (head, body) = request.into_parts();
    match awaited.message(body).await {
        Ok(message) => {
            let body = Body::from(framed(&message));
            next.run(Request::from_parts(head, body)).await
        }
        Err(status) => status.into_http(),
    }
}

impl Awaited {
    async fn message(self, body: Body) -> Result<Vec<u8>, Status> {
        let kept = self.kept.clone();
        let message = self.read(body).await?;
        match kept {
            None => Ok(message),
            Some(kept) => {
                let _ = kept.set(message).is_ok(); // there is one request
                Ok(Vec::new())
            }
        }
    }

    fn too_large(&self) -> Status {
        if self.kept.is_none() {
            return rpc::request_too_large(self.bytes_max);
        }
        let most = self.bytes_max;
        let message = format!(
            "the request of a ticket has more than {most} bytes: name fewer tasks or ask for several tickets, or filter by product \
             or label"
        );
        Reason::RequestTooLarge.status_with(message, [("limit", most.to_string())])
    }

    async fn read(self, mut body: Body) -> Result<Vec<u8>, Status> {
        let mut json = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| unread(Status::from_error(error.into())))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if json.len() + data.len() > self.bytes_max {
                return Err(self.too_large());
            }
            json.extend_from_slice(&data);
        }

        transcoded(json, move |json| {
            message_of(&self.rpc.input, json).map_err(|error| {
                let name = self.rpc.input.name();
                let message = format!(
                    "the body is no JSON of {name}: {error}; docs/http-api.md has its fields"
                );
                Reason::InvalidRequest.status(message)
            })
        })
        .await
    }
}

/// Why a body could not be read. What is no status of ours is HTTP's: the body broke off, or is not framed as it says.
fn unread(status: Status) -> Status {
    if status.code() == Code::Unknown {
        Reason::InvalidRequest.status("the body cannot be read as HTTP: send it again, as a whole")
    } else {
        status
    }
}

/// Transcodes `bytes`, many of them on a thread that may take its time.
pub(super) async fn transcoded<B: AsRef<[u8]> + Send + 'static, T: Send + 'static>(
    bytes: B,
    transcode: impl FnOnce(&[u8]) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    if bytes.as_ref().len() <= AT_ONCE_BYTES {
        return transcode(bytes.as_ref());
    }
    let done = spawn_blocking(move || transcode(bytes.as_ref())).await;
    // Only a runtime that shuts down cancels it; a panic has ended the process.
    done.unwrap_or_else(|_| Err(rpc::overloaded()))
}
