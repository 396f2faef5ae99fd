//! Answers the console's requests below `/ui/` of the admin listener: its files, logins, and the JSON door with the rights of the client
//! that is logged in.
//!
//! Without clients in the credentials file, and where both listeners are reached from this machine only, nobody has to log in, as
//! for gRPC. Everybody else needs a session.

mod held;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{
            ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION,
            SET_COOKIE,
        },
    },
    response::{IntoResponse, Response},
    routing::any,
};
use hyper::body::Body as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use self::held::Held;
use super::{grpc::ConsoleDoor, http::Connection};
use crate::{
    config::Media,
    console::{
        Asset, PageHeaders, Places, Session, Sessions, asset, cookies, is_own, is_read_by_own_page,
    },
    credentials::Client,
    door::Problem,
    rpc,
    sampler::Sampler,
    trace::{REQUEST_ID, RequestId},
};

const PREFIX: &str = "/ui/";
const CALLS: &str = "/ui/v1/";
/// A token or a code in JSON, with a wide margin.
const LOGIN_BYTES_MAX: usize = 4 * 1024;
/// Logins that may arrive at once, and how long each may take: anybody can begin one, and probes come to this listener, too.
const LOGINS_MAX: usize = 8;
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);
/// What a browser keeps is asked for again, by its tag.
const ASK_AGAIN: HeaderValue = HeaderValue::from_static("no-cache");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NOT_KEPT: HeaderValue = HeaderValue::from_static("no-store");

/// See the module's description.
#[derive(Debug)]
pub(super) struct Console {
    gate: rpc::Gate,
    door: ConsoleDoor,
    sessions: Sessions,
    settings: Settings,
    headers: PageHeaders,
    places: Arc<Places>,
    logins: Semaphore,
    /// Logs refused logins: anybody who reaches the listener can cause them.
    refused: Sampler<()>,
}

/// The part of the configuration that concerns the console.
#[derive(Debug)]
pub(super) struct Settings {
    /// The admin listener is reached from this machine only, or anonymous clients are let in anywhere.
    pub may_be_open: bool,
    pub port: u16,
    /// Of a cluster, for the name of the cookie: several nodes may be behind one name, with the same port.
    pub node: String,
    pub has_tls: bool,
    pub media: Media,
    pub media_hosts: Vec<String>,
    /// Commands and addresses to show.
    pub shown: Value,
}

/// Who makes a request.
enum Caller {
    /// Nobody has to log in.
    Anybody,
    LoggedIn(Session),
    Unknown,
}

/// What a browser logs in with.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Proof {
    Token(String),
    Code(String),
}

/// The console's routes.
pub(super) fn routes(console: Console) -> Router {
    Router::new()
        .route("/ui", any(answer))
        .route("/ui/", any(answer))
        .route("/ui/{*path}", any(answer))
        .with_state(Arc::new(console))
}

/// Relative, so that it holds below a proxy's path.
fn to_the_page() -> Response {
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, "ui/")]).into_response()
}

async fn answer(State(console): State<Arc<Console>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let mut answer = match path.strip_prefix(PREFIX).unwrap_or_default() {
        _ if !path.starts_with(PREFIX) => to_the_page(),
        "session" => console.session(request).await,
        "link" => console.link(&request),
        _ if path.starts_with(CALLS) => console.call(request).await,
        path => file(path, &request),
    };
    console.headers.apply(answer.headers_mut());
    answer
}

impl Console {
    pub(super) fn new(gate: rpc::Gate, door: ConsoleDoor, settings: Settings) -> Self {
        Self {
            gate,
            door,
            sessions: Sessions::default(),
            headers: PageHeaders::new(settings.media, &settings.media_hosts),
            settings,
            places: Arc::default(),
            logins: Semaphore::new(LOGINS_MAX),
            refused: Sampler::default(),
        }
    }

    /// Reads, begins or ends a session.
    async fn session(&self, request: Request) -> Response {
        let method = request.method().clone();
        if method == Method::GET {
            return data(&self.about(&self.caller(request.headers())));
        }
        if !is_own(request.headers(), method != Method::DELETE) {
            return foreign();
        }
        match method {
            Method::POST => self.log_in(request).await,
            Method::DELETE => self.log_out(request.headers()),
            _ => not_allowed("GET, POST, DELETE"),
        }
    }

    async fn log_in(&self, request: Request) -> Response {
        let peer = request
            .extensions()
            .get::<Connection>()
            .map(|connection| connection.address);
        let Ok(place) = self.logins.try_acquire() else {
            return refusal(
                StatusCode::TOO_MANY_REQUESTS,
                "too many are logging in: try again in some seconds",
            );
        };
        let body = to_bytes(request.into_body(), LOGIN_BYTES_MAX);
        let Ok(body) = timeout(LOGIN_TIMEOUT, body).await else {
            return refusal(
                StatusCode::REQUEST_TIMEOUT,
                "the login did not arrive within 5 s: try again",
            );
        };
        drop(place);
        let Ok(body) = body else {
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, "that is no token");
        };
        let client = match serde_json::from_slice(&body) {
            Ok(Proof::Token(token)) => self.gate.client_of(&token).ok_or("the token is not known, or has expired"),
            Ok(Proof::Code(code)) => self.redeem(&code).ok_or(
                "the link was used before, or is older than a minute: `blobcast console` prints another one",
            ),
            Err(_) => return refusal(StatusCode::BAD_REQUEST, "send {\"token\": …} or {\"code\": …}"),
        };
        match client {
            Ok(client) => {
                tracing::info!(
                    client = &*client.name,
                    peer = peer.map(tracing::field::display),
                    "logged in to the console"
                );
                let secret = self.sessions.begin(client, Instant::now());
                self.with_cookie(&secret, "")
            }
            Err(why) => {
                if let Some(unlogged) = self.refused.due(()) {
                    tracing::warn!(
                        peer = peer.map(tracing::field::display),
                        unlogged,
                        "login to the console refused: {why}"
                    );
                }
                refusal(StatusCode::FORBIDDEN, why)
            }
        }
    }

    fn redeem(&self, code: &str) -> Option<Arc<Client>> {
        let client = self.sessions.redeem(code, Instant::now())?;
        self.gate.still(&client)
    }

    fn log_out(&self, headers: &HeaderMap) -> Response {
        for secret in cookies(headers, &self.cookie_name()) {
            self.sessions.end(secret);
        }
        self.with_cookie("", "; Max-Age=0")
    }

    /// Makes a code for a link, for a client that sends its token. A browser's page cannot: it has no token.
    fn link(&self, request: &Request) -> Response {
        if request.method() != Method::POST {
            return not_allowed("POST");
        }
        if self.is_open() {
            return data(&json!({ "code": "" }));
        }
        let token = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = token
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let Some(client) = token.and_then(|(_, token)| self.gate.client_of(token.trim())) else {
            return refusal(
                StatusCode::UNAUTHORIZED,
                "send the token of a client: `authorization: Bearer TOKEN`",
            );
        };
        data(&json!({ "code": self.sessions.code(client, Instant::now()) }))
    }

    /// A call of the JSON door.
    async fn call(&self, request: Request) -> Response {
        let (method, headers) = (request.method(), request.headers());
        if !is_read_by_own_page(method, headers)
            && !is_own(headers, !request.body().is_end_stream())
        {
            return foreign();
        }
        let session = match self.caller(headers) {
            Caller::Anybody => None,
            Caller::LoggedIn(session) => Some(session),
            Caller::Unknown => return refusal(StatusCode::UNAUTHORIZED, "log in first"),
        };
        let client = session.as_ref().map(|session| &session.client);
        let place = match self.places.try_take(client) {
            Ok(place) => place,
            Err(why) => return refusal(StatusCode::TOO_MANY_REQUESTS, &why),
        };

        let Some((mut request, connection)) = as_call(request) else {
            return refusal(StatusCode::NOT_FOUND, "nothing is here");
        };
        if let Some(session) = &session {
            request.extensions_mut().insert(rpc::Deadline(session.ends));
        }
        let answer = self
            .door
            .answer(request, &connection, client.cloned())
            .await;
        answer.map(|body| Body::new(Held::new(body, session.as_ref(), place)))
    }

    fn is_open(&self) -> bool {
        self.settings.may_be_open && self.gate.is_open()
    }

    fn caller(&self, headers: &HeaderMap) -> Caller {
        if self.is_open() {
            return Caller::Anybody;
        }
        let name = self.cookie_name();
        let mut sessions = cookies(headers, &name).filter_map(|secret| {
            let session = self.sessions.find(secret, Instant::now())?;
            let client = self.gate.still(&session.client);
            if client.is_none() {
                // For good: a line that is put back is another one.
                self.sessions.end(secret);
            }
            Some(Session {
                client: client?,
                ..session
            })
        });
        sessions.next().map_or(Caller::Unknown, Caller::LoggedIn)
    }

    /// What the page needs to know before anything else.
    fn about(&self, caller: &Caller) -> Value {
        let client = match caller {
            Caller::LoggedIn(session) => Some(&session.client),
            Caller::Anybody | Caller::Unknown => None,
        };
        let mut about = json!({
            "open": matches!(caller, Caller::Anybody),
            "client": client.map_or("", |client| &*client.name),
            "admin": matches!(caller, Caller::Anybody) || client.is_some_and(|client| client.admin),
            "hasClients": self.gate.has_clients(),
        });
        if !matches!(caller, Caller::Unknown) {
            about["media"] = media_word(self.settings.media).into();
            about["mediaHosts"] = json!(self.settings.media_hosts);
            about["shown"] = self.settings.shown.clone();
        }
        about
    }

    /// Cookies of one host are common to all its ports and paths, so the broker is in the name.
    fn cookie_name(&self) -> String {
        let Settings {
            has_tls,
            port,
            node,
            ..
        } = &self.settings;
        let prefix = if *has_tls { "__Host-" } else { "" };
        format!("{prefix}blobcast_session_{port}{node}")
    }

    /// An answer that sets the session's cookie.
    fn with_cookie(&self, value: &str, more: &str) -> Response {
        let secure = if self.settings.has_tls {
            "; Secure"
        } else {
            ""
        };
        let cookie = format!(
            "{}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{more}",
            self.cookie_name()
        );
        let headers = [(CACHE_CONTROL, NOT_KEPT)];
        (StatusCode::NO_CONTENT, headers, [(SET_COOKIE, cookie)]).into_response()
    }
}

fn media_word(media: Media) -> &'static str {
    match media {
        Media::Click => "click",
        Media::Auto => "auto",
        Media::Off => "off",
    }
}

/// The request as the door knows it, and the connection that it came on.
fn as_call(mut request: Request) -> Option<(Request, Connection)> {
    let connection = request.extensions_mut().remove::<Connection>()?;
    let target = request.uri().path_and_query()?.as_str();
    let target: Uri = target
        .strip_prefix(PREFIX.trim_end_matches('/'))?
        .parse()
        .ok()?;
    *request.uri_mut() = target;
    Some((request, connection))
}

fn file(path: &str, request: &Request) -> Response {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return not_allowed("GET, HEAD");
    }
    let Some(Asset {
        content_type,
        text,
        etag,
    }) = asset(path)
    else {
        return refusal(StatusCode::NOT_FOUND, "the console has no such file");
    };
    let headers = [
        (CACHE_CONTROL, ASK_AGAIN),
        (ETAG, HeaderValue::from_static(etag)),
    ];
    let known = request
        .headers()
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let is_known = known
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim().trim_start_matches("W/") == etag);
    if is_known {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, [(CONTENT_TYPE, *content_type)], *text).into_response()
}

fn data(value: &Value) -> Response {
    let headers = [(CACHE_CONTROL, NOT_KEPT), (CONTENT_TYPE, JSON)];
    (headers, value.to_string()).into_response()
}

fn foreign() -> Response {
    refusal(
        StatusCode::FORBIDDEN,
        "only the console's own page may ask this, in JSON",
    )
}

fn not_allowed(methods: &'static str) -> Response {
    let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("use {methods}"));
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn refusal(status: StatusCode, detail: &str) -> Response {
    let id = RequestId::new();
    tracing::debug!(request_id = %id, %status, detail, "request to the console refused");
    let body = Problem::new(status, detail).json(&id.to_string());
    let headers = [
        (CONTENT_TYPE, "application/problem+json"),
        (CACHE_CONTROL, "no-store"),
    ];
    (status, headers, [(REQUEST_ID, id.to_string())], body).into_response()
}
