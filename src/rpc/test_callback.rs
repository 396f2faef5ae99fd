//! `SendTestCallback`: a made-up callback through everything that a real one passes, but the network.

use std::{
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use hyper::{Response, Uri};
use serde_json::Value;
use tonic::Status;
use uuid::Uuid;

use super::{Context, fields};
use crate::{
    audit::Entry,
    callback::{WebhookPath, shown_path},
    event::TaskId,
    trace::REQUEST_ID,
    vendor::sample::{Sample, SampleStatus, Shape},
    wire::{Malformed, v1},
};

/// Takes a callback to a path and query, with a body, as the public listener does. The address is the
/// administrator's.
pub(crate) type TakeCallback = Arc<dyn Fn(IpAddr, Uri, Bytes) -> Taken + Send + Sync>;
/// The answer.
pub(crate) type Taken = Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>;

/// Where a callback goes if no URL is named. Its product's body is also that of URLs which name none.
const TARGET: &str = "/webhook/veo";
const PRODUCT: &str = "veo";
/// What the ids of made-up tasks begin with.
const TASK_ID_PREFIX: &str = "test-";

/// Sends a callback.
pub(super) async fn send(
    context: &Context,
    caller: Option<IpAddr>,
    request: &v1::SendTestCallbackRequest,
    entry: &mut Entry,
) -> Result<v1::SendTestCallbackResponse, Status> {
    let target = target(&context.callback_base, &request.callback_url)?;
    let status = fields::optional("status", &request.status, str::parse::<SampleStatus>)?;
    let task_id = fields::optional("task_id", &request.task_id, TaskId::parse)?;
    let task_id = task_id.map_or_else(
        || format!("{TASK_ID_PREFIX}{}", Uuid::new_v4()),
        |task_id| task_id.to_string(),
    );
    entry.note("path", shown_path(target.path()));
    entry.note("task_id", task_id.as_str());

    let named = WebhookPath::parse(target.path()).and_then(|path| path.product);
    let sample = Sample {
        product: named.as_deref().unwrap_or(PRODUCT),
        shape: Shape::Documented,
        status: status.unwrap_or(SampleStatus::Completed),
        task_id: &task_id,
        at: context.gate.clock.now(),
    };
    let body = Value::Object(sample.body()).to_string();

    let caller = caller.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let answer = (context.take_callback)(caller, target, body.into()).await;
    let http_status = answer.status().as_u16().into();
    entry.note("http_status", http_status);

    let request_id = answer.headers().get(REQUEST_ID);
    let request_id = request_id.and_then(|id| id.to_str().ok());
    Ok(v1::SendTestCallbackResponse {
        http_status,
        request_id: request_id.unwrap_or_default().to_owned(),
        body: String::from_utf8_lossy(answer.body()).into_owned(),
        task_id,
    })
}

/// Path and query of a callback URL below `base`.
fn target(base: &str, url: &str) -> Result<Uri, Malformed> {
    let not_ours = || {
        let problem = format!("no callback URL of this broker: these begin with {base}/webhook");
        Malformed::new("callback_url", problem)
    };
    let target = match url {
        "" => TARGET,
        // Two slashes begin the name of another server.
        path if path.starts_with('/') && !path.starts_with("//") => path,
        url => url
            .strip_prefix(base)
            .filter(|path| path.starts_with('/'))
            .ok_or_else(not_ours)?,
    };
    let target: Uri = target.parse().map_err(|_| not_ours())?;
    let is_webhook = WebhookPath::parse(target.path()).is_some();
    is_webhook.then_some(target).ok_or_else(not_ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_callback_urls_of_this_broker_are_tried() {
        let target = |url| target("https://hooks.example.com", url).map(|uri| uri.to_string());
        assert_eq!(target("").unwrap(), "/webhook/veo");
        for (url, expected) in [
            (
                "https://hooks.example.com/webhook/sora?token=a",
                "/webhook/sora?token=a",
            ),
            ("https://hooks.example.com/webhook", "/webhook"),
            ("/webhook/veo?team=ads", "/webhook/veo?team=ads"),
        ] {
            assert_eq!(target(url).unwrap(), expected, "{url}");
        }
        for url in [
            "https://hooks.example.com.evil.test/webhook/veo",
            "https://hooks.example.com:444/webhook/veo",
            "https://hooks.example.com",
            "https://hooks.example.com/",
            "https://other.example.com/webhook/veo",
            "//other.example.com/webhook/veo",
            "/metrics",
            "webhook/veo",
            "/webhook/veo\r\nx: y",
        ] {
            let refused = target(url).unwrap_err();
            assert_eq!(refused.field, "callback_url", "{url}");
        }
    }
}
