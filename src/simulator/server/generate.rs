//! Requests for new tasks: reading and checking them as the vendor documents its fields.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{StatusCode, Uri, body::Incoming};
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::{
    life::live,
    lot,
    replies::Reply,
    shared::Shared,
    tasks::{Full, Task},
};

/// Longest body: an image of 20 MB, as documented, in base64, and some more.
const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest prompt that any of the vendor's pages allows.
const PROMPT_CHARACTERS_MAX: usize = 20_000;
const CALLBACK_URL_BYTES_MAX: usize = 2_048;
/// Suggested while no task can be accepted.
const FULL_RETRY_SECONDS: u64 = 10;

/// Accepts a task, or says why not.
pub(super) async fn accept(
    shared: &Arc<Shared>,
    product: &str,
    key: &str,
    body: Incoming,
) -> Reply {
    let accepted = async {
        let fields = fields(&read(shared, body).await?)?;
        let wanted = Wanted::of(&fields)?;
        create(shared, product, key, wanted)
    };
    accepted.await.unwrap_or_else(|refusal| refusal)
}

async fn read(shared: &Shared, body: Incoming) -> Result<Bytes, Reply> {
    let _place = shared.bodies.acquire().await;
    let collected = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Reply::error(
            StatusCode::PAYLOAD_TOO_LARGE,
            "Request body too large",
            "send at most 32 MiB, or name images by their URLs",
        )),
        Ok(Err(_)) => Err(Reply::error(
            StatusCode::BAD_REQUEST,
            "Request body incomplete",
            "send all of the body",
        )),
        Err(_) => Err(Reply::error(
            StatusCode::REQUEST_TIMEOUT,
            "Request timeout",
            "send the body within 30 s",
        )),
    }
}

fn fields(body: &[u8]) -> Result<Map<String, Value>, Reply> {
    let hint = r#"send an object such as {"prompt":"a cat","callback_url":"http://127.0.0.1:8080/webhook/veo"}"#;
    serde_json::from_slice(body).map_err(|_| invalid("the body is not a JSON object", hint))
}

/// What a request asks for, beside fields that have no effect here.
#[derive(Debug)]
struct Wanted {
    prompt: String,
    seed: Option<u64>,
    callback_url: Option<Uri>,
}

impl Wanted {
    fn of(fields: &Map<String, Value>) -> Result<Self, Reply> {
        let prompt = fields.get("prompt").and_then(Value::as_str);
        let prompt = prompt.filter(|prompt| !prompt.trim().is_empty());
        let prompt = prompt.ok_or_else(|| {
            invalid(
                "prompt is required",
                "add \"prompt\" with a text that is not empty",
            )
        })?;
        if prompt.chars().count() > PROMPT_CHARACTERS_MAX {
            return Err(invalid(
                "prompt is too long",
                "send at most 20,000 characters",
            ));
        }

        Ok(Self {
            prompt: prompt.to_owned(),
            seed: fields.get("seed").and_then(Value::as_u64),
            callback_url: callback_url(fields.get("callback_url"))?,
        })
    }
}

fn callback_url(value: Option<&Value>) -> Result<Option<Uri>, Reply> {
    let url = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_str().unwrap_or_default(),
    };
    let valid = |url: &Uri| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.host().is_some_and(|host| !host.is_empty())
    };
    url.parse()
        .ok()
        .filter(valid)
        .filter(|_| url.len() <= CALLBACK_URL_BYTES_MAX)
        .map(Some)
        .ok_or_else(|| {
            invalid(
                "callback_url is not a URL",
                "name an http:// or https:// URL of at most 2,048 characters, or leave it out; the real vendor takes https only",
            )
        })
}

fn invalid(what: &str, hint: &str) -> Reply {
    Reply::error(
        StatusCode::UNPROCESSABLE_ENTITY,
        &format!("Validation error: {what}"),
        hint,
    )
}

fn create(shared: &Arc<Shared>, product: &str, key: &str, wanted: Wanted) -> Result<Reply, Reply> {
    let now = Shared::now();
    let mut tasks = shared.tasks.lock();
    let lot = lot::draw(&shared.settings, tasks.next_number(), product);
    let task = Task {
        key: Some(key.to_owned()),
        prompt: wanted.prompt,
        seed: wanted.seed,
        callback_url: wanted.callback_url,
        ..Task::new(product, &lot.id, now)
    };
    let number = tasks.add(task.clone(), false).map_err(|Full| full())?;
    drop(tasks);

    let after = shared.settings.after(product);
    let body = task.sample(now, after).accepted();
    shared.spawn(live(Arc::clone(shared), number, task, lot));
    Ok(Reply::new(StatusCode::CREATED, Value::Object(body)))
}

fn full() -> Reply {
    let hint =
        "too many tasks are open here: wait until some have ended and their callbacks are settled";
    Reply::error(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", hint)
        .retry_after(FULL_RETRY_SECONDS)
}
