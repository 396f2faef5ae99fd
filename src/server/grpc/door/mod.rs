//! JSON on the gRPC listener, below `/v1/`: makes a gRPC call of each request, within the process, on the services and layers of any
//! other call, and JSON of its answer. So credentials, permissions, limits, request ids, metrics, traces and audit are the same.
//!
//! The call has gRPC's headers only when it passes the layers; its message is read and transcoded behind admission, so that no client
//! costs more than its headers before it is let in.

mod calls;
mod decode;
mod events;
mod lines;
mod reply;
mod tickets;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderName, StatusCode,
        header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, ORIGIN},
    },
    response::Response,
    routing::any,
};
use hyper::body::Body as _;
use tokio::time::Instant;

use super::{content::ContentRefusals, cors, cors::Cors, names::Names, origin::Origin};
use crate::{
    credentials::Client,
    door::{Asked, Input, Problem, Rpc, Shape, asked, openapi},
    rpc,
    server::http::Connection,
    trace::RequestId,
    wire::Reason,
};

pub(super) use calls::Calls;
use calls::Template;
pub(super) use decode::decode;
use tickets::{Ticket, Tickets};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// See the module's description.
#[derive(Debug)]
pub(super) struct Door {
    calls: Calls,
    refusals: ContentRefusals,
    names: Names,
    cors: Arc<Cors>,
    tickets: Tickets,
}

/// The door below the console's address.
#[derive(Debug)]
pub(in crate::server) struct ConsoleDoor(Door);

impl ConsoleDoor {
    /// Answers a request whose path is that of the door, with the rights of the client that is logged in.
    pub(in crate::server) async fn answer(
        &self,
        mut request: Request,
        connection: &Connection,
        client: Option<Arc<Client>>,
    ) -> Response {
        // The console has judged these by its own address and its session.
        for header in [AUTHORIZATION, HOST, ORIGIN, SEC_FETCH_SITE, SEC_FETCH_MODE] {
            request.headers_mut().remove(header);
        }
        let origin = Origin::of_console(connection, client);
        request.extensions_mut().insert(origin);
        self.0.answer_own(request).await
    }
}

/// Adds the door to the routes of gRPC.
pub(super) fn add(routes: Router, door: Door) -> Router {
    let door = Arc::new(door);
    let answer = move |request| {
        let door = Arc::clone(&door);
        async move { door.answer(request).await }
    };
    let answer = any(answer);
    // Of the first two there is none, which is said in the door's own way.
    let routes = routes
        .route("/v1", answer.clone())
        .route("/v1/", answer.clone());
    routes.route("/v1/{*rest}", answer)
}

impl Door {
    pub(super) fn new(
        calls: Calls,
        refusals: ContentRefusals,
        names: Names,
        cors: Arc<Cors>,
    ) -> Self {
        Self {
            calls,
            refusals,
            names,
            cors,
            tickets: Tickets::default(),
        }
    }

    /// The same for the console, which has checked the name, and knows the client. No other origin may use it.
    pub(super) fn of_console(&self) -> ConsoleDoor {
        ConsoleDoor(Self {
            calls: self.calls.clone(),
            refusals: self.refusals.clone(),
            names: Names::default(),
            cors: Arc::new(Cors::new(&[])),
            tickets: Tickets::default(),
        })
    }

    async fn answer(&self, mut request: Request) -> Response {
        let origin = self.cors.allow(&mut request);
        let mut answer = if origin.is_some() && cors::is_preflight(&request) {
            cors::preflight()
        } else {
            self.answer_own(request).await
        };
        self.cors.expose(&mut answer, origin);
        answer
    }

    /// Answers a request as one of its own origin.
    async fn answer_own(&self, request: Request) -> Response {
        match self.asked(&request) {
            Ok(asked) => self.call(asked, request).await,
            Err(problem) => {
                let id = RequestId::new();
                tracing::debug!(request_id = %id, detail = problem.detail, "request refused before any call");
                reply::problem(&problem, id.into())
            }
        }
    }

    /// What is asked for, if that can be answered.
    fn asked(&self, request: &Request) -> Result<Asked, Problem> {
        let (uri, headers) = (request.uri(), request.headers());
        let asked = asked(request.method(), uri.path(), uri.query(), headers)?;
        if !matches!(asked.input, Input::Ticket(_)) {
            self.check_name(request)?;
        }
        if matches!(asked.input, Input::Body | Input::Later(_)) {
            check_content(headers, request.body().is_end_stream())?;
        }
        Ok(asked)
    }

    /// Refuses what the page of a foreign name may have made a browser send. Such a page has no token.
    fn check_name(&self, request: &Request) -> Result<(), Problem> {
        if self.names.allow(request) {
            return Ok(());
        }
        let message = "without a token this listener answers in JSON by an IP address or localhost only: send `authorization: \
                       Bearer TOKEN`, or add the name to grpc.hosts and restart";
        self.refusals.note(request, "host", message);
        Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, message))
    }

    async fn call(&self, asked: Asked, request: Request) -> Response {
        let (head, body) = request.into_parts();
        let template = Template::of(asked.rpc, head);
        match asked.input {
            Input::Body => {
                let answer = self.calls.with_body(&template, body).await;
                reply::json(asked.rpc, answer).await
            }
            Input::Later(rpc) => self.ticket(&template, rpc, body).await,
            Input::Ticket(text) => self.redeem(template, &text, asked.shape).await,
            Input::Target(message) => {
                let answer = self.calls.with_message(&template, &message).await;
                self.shaped(template, message, answer, asked.shape).await
            }
        }
    }

    /// Answers the request of a ticket. It is good again if the call was refused for a while only.
    async fn redeem(&self, template: Template, text: &str, shape: Shape) -> Response {
        let Some(issued) = self.tickets.redeem(text, Instant::now()) else {
            return reply::problem(&used_ticket(), RequestId::new().into());
        };
        let template = template.shows(issued.ticket.authorization.clone());
        let message = issued.ticket.message.clone();
        let answer = self.calls.with_message(&template, &message).await;
        if reply::is_refused_for_now(&answer) {
            self.tickets.put_back(text, issued);
        }
        self.shaped(template, message, answer, shape).await
    }

    /// The answer to a request without a body.
    async fn shaped(
        &self,
        template: Template,
        message: Vec<u8>,
        answer: Response,
        shape: Shape,
    ) -> Response {
        match shape {
            Shape::Json | Shape::Ticket => reply::json(template.rpc, answer).await,
            Shape::Lines => lines::answer(&self.calls, template, message, answer).await,
            Shape::Description => reply::in_place_of(answer, openapi()).await,
            Shape::Stream {
                may_be_over,
                comes_back,
            } => {
                let manner = events::Manner {
                    may_be_over,
                    comes_back,
                };
                events::answer(answer, manner).await
            }
        }
    }

    /// A ticket for the request in `body`.
    async fn ticket(&self, template: &Template, rpc: &'static Rpc, body: Body) -> Response {
        let bytes_max = tickets::REQUEST_BYTES_MAX;
        let (answer, kept) = self.calls.keeping(template, rpc, bytes_max, body).await;
        let id = reply::id_of(&answer);
        let account = match reply::message_of(answer).await {
            Ok((_, account)) => account,
            Err(refused) => return reply::problem(&refused, id),
        };

        let ticket = Ticket {
            message: kept.get().cloned().unwrap_or_default(),
            authorization: template.authorization().cloned(),
        };
        match self.tickets.issue(ticket, account.payer(), Instant::now()) {
            Some(text) => {
                let life = format!("{}s", tickets::LIFE.as_secs());
                let json = serde_json::json!({"ticket": text, "expires_in": life}).to_string();
                reply::of_type(reply::JSON, Body::from(json), id)
            }
            None => reply::problem(&Problem::of_status(&rpc::overloaded()), id),
        }
    }
}

fn used_ticket() -> Problem {
    let detail = "this ticket was used, is older than 60 s, or another node has issued it: POST /v1/stream-tickets for another";
    Problem::of_reason(StatusCode::UNAUTHORIZED, Reason::TokenInvalid, detail)
}

/// A page can make a browser send bodies of other types without asking first.
fn check_content(headers: &HeaderMap, is_empty: bool) -> Result<(), Problem> {
    let unsupported = |detail| Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(encoding) = text(CONTENT_ENCODING)
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return unsupported("send the body without compression");
    }

    let essence = text(CONTENT_TYPE).map(|value| value.split(';').next().unwrap_or(value).trim());
    match essence {
        None if is_empty => Ok(()),
        Some(essence) if essence.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => unsupported("send the body as JSON, with `content-type: application/json`"),
    }
}

/// The connection that a request came on, which every call needs.
fn origin_of(head: &mut axum::http::request::Parts) -> Origin {
    let origin = head.extensions.remove();
    origin.expect("each connection says what it is, see `Connected`")
}
