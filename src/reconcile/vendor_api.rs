//! Asks the vendor's status API. One request for each call: no retry, no redirect, no proxy, and limits on time and bytes.
//!
//! Each call has a connection of its own, which ends with it: there is about one call a second, so its handshake costs little. A pool
//! would go on connecting in the background for calls that have got another connection, without a limit on the handshake.
//!
//! The only host that it connects to is that of `reconcile.base_url`. The key goes into one header, which is marked as sensitive, and
//! into no error. Knows no schedule, and no meaning of an answer's body.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, DATE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::fmt::rfc2822;
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde::de::IgnoredAny;
use tokio::{sync::Semaphore, time::timeout};

use super::paths::Paths;
use crate::{
    causes::causes,
    credentials::{ApiKey, Products, VendorKey},
    event::{Product, TaskId},
};

/// Time for a request, from the first look for its host to the last byte of its answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Time to connect, of the time for a request: so the cause of a failure says that the host cannot be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest body of an answer: a list of 100 tasks has some 100 KiB, with long prompts several times that.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Largest head of an answer.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Requests at the same time, each with a connection. The vendor's limit for a key is one a second.
pub const REQUESTS_MAX: usize = 4;
/// The longest pause that the vendor may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// The id of no task: a key is tried with it.
const NO_TASK: &str = "00000000-0000-0000-0000-000000000000";
/// What a key is tried with if it is for every product.
const TRIED_PRODUCT: &str = "veo";

/// What the vendor has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 2xx.
    Body {
        /// The status.
        status: u16,
        /// At most 1 MiB.
        body: Bytes,
    },
    /// 404: the vendor does not know the task, or not by this key.
    NotFound,
    /// 401, or 403 with JSON: the key is not good.
    KeyRefused {
        /// The status.
        status: u16,
    },
    /// 408, 429 or 5xx, or 403 from something on the way: try again later.
    Later {
        /// The status.
        status: u16,
        /// When, if the vendor says so: at most an hour.
        retry_after: Option<Duration>,
    },
    /// There is no usable answer.
    Failed(Problem),
}

impl Answer {
    /// What it is, for people: nothing from its body.
    pub(super) fn word(&self) -> String {
        match self {
            Self::Body { status, .. }
            | Self::KeyRefused { status }
            | Self::Later { status, .. } => status.to_string(),
            Self::NotFound => "404".to_owned(),
            Self::Failed(problem) => problem.to_string(),
        }
    }
}

/// Why there is no usable answer. The text has the next step, and neither the key nor anything from a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No request was made.
    #[error("no path of product {0} is known: set reconcile.path.{0}")]
    NoPath(Product),
    /// No request was made.
    #[error("product {0} has no list")]
    NoList(Product),
    /// There is no connection, or it ended before the answer did.
    #[error("the request failed: {0}")]
    Broken(String),
    /// The answer did not arrive in time.
    #[error("no whole answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    /// The answer is too large.
    #[error(
        "the answer has more than {BODY_BYTES_MAX} bytes: is reconcile.base_url the vendor's API?"
    )]
    TooLarge,
    /// The answer is a redirect, which is not followed: the key must go to no other host.
    #[error(
        "the answer is a redirect ({0}), which is not followed: is reconcile.base_url the vendor's API?"
    )]
    Redirect(u16),
    /// Any other status.
    #[error("the vendor answers {0}, which nothing is known of")]
    Status(u16),
}

impl Problem {
    /// One word for a metric's label.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NoPath(_) | Self::NoList(_) => "no_path",
            Self::Broken(_) => "broken",
            Self::TimedOut => "timed_out",
            Self::TooLarge => "too_large",
            Self::Redirect(_) => "redirect",
            Self::Status(_) => "status",
        }
    }
}

/// The base URL is none that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the base URL is not http:// or https:// with a host")]
pub struct BaseUrlError;

type HttpClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// The vendor's status API.
#[derive(Debug)]
pub struct VendorApi {
    client: Mutex<HttpClient>,
    /// Without a slash at its end.
    base: String,
    paths: Paths,
    places: Semaphore,
    /// [`TIMEOUT`]; less in a test.
    timeout: Duration,
}

impl VendorApi {
    /// The API at `base_url`. `tls` is for https, and has to trust its host; http is spoken only if the URL says so.
    pub fn new(base_url: &str, paths: Paths, tls: ClientConfig) -> Result<Self, BaseUrlError> {
        let base = base_url.trim_end_matches('/');
        let uri: Uri = base.parse().map_err(|_| BaseUrlError)?;
        let scheme = uri.scheme_str().filter(|_| uri.host().is_some());

        if !matches!(scheme, Some("https" | "http")) {
            return Err(BaseUrlError);
        }
        Ok(Self {
            client: Mutex::new(client(base, tls)),
            base: base.to_owned(),
            paths,
            places: Semaphore::new(REQUESTS_MAX),
            timeout: TIMEOUT,
        })
    }

    /// Trusts other authorities from the next call on.
    pub fn trust(&self, tls: ClientConfig) {
        *self.client.lock() = client(&self.base, tls);
    }

    /// True if the product's tasks can be asked about.
    pub fn has_status(&self, product: &Product) -> bool {
        let id = TaskId::parse(NO_TASK).expect("it is one");
        self.paths.status(product, &id).is_some()
    }

    /// True if the product has a list of recent tasks.
    pub fn has_list(&self, product: &Product) -> bool {
        self.paths.list(product, 1, 0).is_some()
    }

    /// Asks for the status of a task.
    pub async fn status(&self, product: &Product, task_id: &TaskId, key: &ApiKey) -> Answer {
        match self.paths.status(product, task_id) {
            Some(path) => self.ask(&path, key).await,
            None => Answer::Failed(Problem::NoPath(product.clone())),
        }
    }

    /// Asks for up to `limit` of a product's tasks, of which the vendor gives 100 at most, after leaving out `offset` of them. Their order
    /// is not documented.
    pub async fn list(&self, product: &Product, key: &ApiKey, limit: u64, offset: u64) -> Answer {
        match self.paths.list(product, limit, offset) {
            Some(path) => self.ask(&path, key).await,
            None => Answer::Failed(Problem::NoList(product.clone())),
        }
    }

    /// Asks for a task that does not exist: the answer says whether the key is good ([`super::keys::Keys::note`]).
    pub async fn try_key(&self, key: &VendorKey) -> Answer {
        let any = Product::parse(TRIED_PRODUCT).expect("it is one");
        let product = match &key.products {
            Products::All => Some(&any),
            Products::Only(some) => some.iter().find(|product| self.has_status(product)),
        };
        let product = product.unwrap_or(&any);
        let id = TaskId::parse(NO_TASK).expect("it is one");
        self.status(product, &id, &key.key).await
    }

    async fn ask(&self, path: &str, key: &ApiKey) -> Answer {
        let exchange = async {
            let _place = self.places.acquire().await.expect("it is never closed");
            self.exchange(path, key).await
        };
        let answer = timeout(self.timeout, exchange).await;
        answer
            .unwrap_or(Err(Problem::TimedOut))
            .unwrap_or_else(Answer::Failed)
    }

    async fn exchange(&self, path: &str, key: &ApiKey) -> Result<Answer, Problem> {
        let broken = |error: &(dyn Error + 'static)| Problem::Broken(causes(error));
        let request = self.request(path, key).map_err(|error| broken(&error))?;
        let client = self.client.lock().clone();
        let response = client.request(request).await;
        let response = response.map_err(|error| broken(&error))?;

        let status = response.status();
        let code = status.as_u16();
        Ok(match status {
            _ if status.is_success() => Answer::Body {
                status: code,
                body: body(response).await?,
            },
            StatusCode::NOT_FOUND => Answer::NotFound,
            StatusCode::UNAUTHORIZED => Answer::KeyRefused { status: code },
            StatusCode::FORBIDDEN => forbidden(response).await,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => later(&response),
            _ if status.is_server_error() => later(&response),
            _ if status.is_redirection() => return Err(Problem::Redirect(code)),
            _ => return Err(Problem::Status(code)),
        })
    }

    fn request(
        &self,
        path: &str,
        key: &ApiKey,
    ) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
        let mut authorization = HeaderValue::try_from(format!("Bearer {}", key.reveal()))?;
        authorization.set_sensitive(true);
        Request::get(format!("{}{path}", self.base))
            .header(AUTHORIZATION, authorization)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("blobcast/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
    }
}

/// A client without a pool.
fn client(base: &str, tls: ClientConfig) -> HttpClient {
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls);
    let connector = if base.starts_with("https:") {
        connector.https_only()
    } else {
        connector.https_or_http()
    };
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .http1_max_buf_size(HEAD_BYTES_MAX)
        .build(connector.enable_http1().wrap_connector(tcp))
}

fn later(response: &Response<Incoming>) -> Answer {
    Answer::Later {
        status: response.status().as_u16(),
        retry_after: retry_after(response.headers()),
    }
}

/// The vendor's errors are JSON. Anything else comes from a proxy on the way, which says nothing of the key.
async fn forbidden(response: Response<Incoming>) -> Answer {
    let (status, later) = (response.status().as_u16(), later(&response));
    match body(response).await {
        Ok(body) if serde_json::from_slice::<IgnoredAny>(&body).is_ok() => {
            Answer::KeyRefused { status }
        }
        Ok(_) | Err(_) => later,
    }
}

/// The whole body. What is beyond the limit is not read: the connection is closed.
async fn body(response: Response<Incoming>) -> Result<Bytes, Problem> {
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX);
    match body.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::TooLarge),
        Err(error) => Err(Problem::Broken(causes(&*error))),
    }
}

/// The pause that the vendor asks for, in seconds or until a time (RFC 9110, section 10.2.3). A time is compared with the answer's own
/// `Date`, so the clock here does not matter; without one it is not understood, nor is any obsolete form of a time.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(RETRY_AFTER)?;
    if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are a long time, too.
        let seconds = asked.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }

    let time = |text: &str| Some(rfc2822::parse(text).ok()?.timestamp());
    let (until, now) = (time(asked)?, time(text(DATE)?)?);
    let pause = Duration::try_from(until.duration_since(now)).unwrap_or_default();
    Some(pause.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests;
