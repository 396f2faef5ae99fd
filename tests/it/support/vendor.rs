//! The vendor: bodies of callbacks, and an HTTP client that posts them.

use std::net::SocketAddr;

use blobcast::checker::Acknowledged;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

use super::within;

/// A completed veo task.
pub fn completed(task_id: &str) -> Value {
    json!({
        "generation_id": task_id,
        "status": "completed",
        "prompt": "a cat",
        "video_url": format!("https://cdn.runblob.io/videos/{task_id}.mp4"),
        "created_at": "2025-12-06T21:43:03.374000",
        "completed_at": "2025-12-06T21:44:06.143000",
        "seed": 7,
        "error": null,
    })
}

/// A failed veo task.
pub fn failed(task_id: &str) -> Value {
    with(
        completed(task_id),
        json!({"status": "failed", "video_url": null, "error": {"message": "UNSAFE_CONTENT"}}),
    )
}

/// A veo task that is not over.
pub fn processing(task_id: &str) -> Value {
    with(
        completed(task_id),
        json!({"status": "processing", "video_url": null}),
    )
}

/// `body` with some fields replaced.
pub fn with(mut body: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// The answer to a callback.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub json: Value,
}

impl Answer {
    /// The event's id; panics unless the answer was 200.
    pub fn event_id(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.json["event_id"].as_str().unwrap().to_owned()
    }

    /// Whether the answer says that the callback is a duplicate.
    pub fn duplicate(&self) -> bool {
        assert_eq!(self.status, 200, "{self:?}");
        self.json["duplicate"].as_bool().unwrap()
    }

    /// The reason of a refusal or a quarantine.
    pub fn reason(&self) -> &str {
        self.json["reason"].as_str().unwrap_or_default()
    }

    /// The acknowledgement, for the checker.
    pub fn acknowledged(&self, task_id: &str) -> Acknowledged {
        Acknowledged {
            event_id: self.event_id(),
            task_id: task_id.to_owned(),
        }
    }
}

/// An HTTP client that keeps its connections open.
#[derive(Clone, Debug)]
pub struct Http {
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Http {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// POSTs a callback for veo.
    pub async fn post(&self, body: &Value) -> Answer {
        self.post_to("/webhook/veo", body.to_string()).await
    }

    /// POSTs any bytes to any path.
    pub async fn post_to(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.try_post_to(path, body).await.unwrap()
    }

    /// Like [`Http::post_to`], where the connection may fail.
    pub async fn try_post_to(
        &self,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, hyper_util::client::legacy::Error> {
        let request = Request::post(format!("http://{}{path}", self.address));
        let request = request
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap();
        self.send(request).await
    }

    /// Sends any request.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, hyper_util::client::legacy::Error> {
        let response = within("an answer", self.client.request(request)).await?;
        let (parts, body) = response.into_parts();
        let bytes = within("the answer's body", body.collect())
            .await
            .unwrap_or_default()
            .to_bytes();
        let json = serde_json::from_slice(&bytes)
            .unwrap_or(Value::String(String::from_utf8_lossy(&bytes).into()));
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            json,
        })
    }

    /// GETs a path; returns status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let uri = format!("http://{}{path}", self.address);
        let request = Request::builder()
            .method(Method::GET)
            .uri(uri)
            .body(Full::default())
            .unwrap();
        let response = within("an answer", self.client.request(request))
            .await
            .unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.into()).unwrap())
    }
}
