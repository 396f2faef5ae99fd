//! Which RPC a request asks for, what it says to it, and in which shape the answer is wanted.

use hyper::{HeaderMap, Method, StatusCode, header::ACCEPT};
use serde_json::{Map, Value};

use super::{
    catalog::Rpc,
    json::message_of,
    problem::Problem,
    query::{Field, Fields, request_of},
};
use crate::wire::Reason;

/// The beginning of every path of the door.
const PREFIX: &str = "/v1/";

/// Whether a path is one of the door.
pub(crate) fn is_below(path: &str) -> bool {
    path.starts_with(PREFIX) || path == PREFIX.trim_end_matches('/')
}

pub(super) const TASK: &Fields = &[
    ("product", Field::Text("product")),
    ("wait", Field::Seconds("timeout")),
    ("include_raw", Field::Flag("include_raw")),
];
pub(super) const EVENTS: &Fields = &[
    ("task_id", Field::Each("task_ids")),
    ("product", Field::Each("products")),
    ("status", Field::EachWord("statuses", "TASK_STATUS_")),
    ("label", Field::Label),
    ("order", Field::Word("order", "ORDER_")),
    ("since", Field::Text("since")),
    ("until", Field::Text("until")),
    ("page_size", Field::Number("page_size")),
    ("page_token", Field::Text("page_token")),
    ("include_raw", Field::Flag("include_raw")),
];

pub(super) const STREAM: &Fields = &[
    ("task_id", Field::Each("task_ids")),
    ("product", Field::Each("products")),
    ("status", Field::EachWord("statuses", "TASK_STATUS_")),
    ("label", Field::Label),
    ("after", Field::Text("after_cursor")),
    ("since", Field::Text("since")),
    ("position", Field::Word("position", "START_POSITION_")),
    ("on_expired", Field::Word("on_expired", "ON_EXPIRED_")),
    ("until_terminal", Field::Flag("until_terminal")),
    ("heartbeat_interval", Field::Seconds("heartbeat_interval")),
    ("include_raw", Field::Flag("include_raw")),
    ("client_name", Field::Text("client_name")),
];
/// Where a stream starts.
const STARTS: [&str; 3] = ["after_cursor", "since", "position"];
/// With it a browser resumes a stream, at the same address as before.
const LAST_EVENT_ID: &str = "last-event-id";

/// A call that a request asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub rpc: &'static Rpc,
    pub input: Input,
    pub shape: Shape,
}

/// Where the message of the call comes from.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The JSON in the request's body.
    Body,
    /// The same, but it is the request of this RPC, which is made later.
    Later(&'static Rpc),
    /// What was kept under a ticket.
    Ticket(String),
    /// The request's target; this is its encoding.
    Target(Vec<u8>),
}

/// What the answer looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One message.
    Json,
    /// One line for each event, over all pages.
    Lines,
    /// A ticket for a call that is made later.
    Ticket,
    /// What the door has, as OpenAPI, if the call is answered.
    Description,
    /// Server-sent events.
    Stream {
        /// It resumes a stream that ends with its tasks, so these may be over.
        may_be_over: bool,
        /// The client takes nothing else, as a browser's `EventSource` does.
        comes_back: bool,
    },
}

/// The call that a request asks for.
pub(crate) fn asked(
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Asked, Problem> {
    let (rest, query) = (
        path.strip_prefix(PREFIX).unwrap_or_default(),
        query.unwrap_or(""),
    );
    match resource(method, rest, query, headers)? {
        Some(asked) => Ok(asked),
        None => by_name(method, rest, query),
    }
}

/// The call for a resource; `None` if there is none at this path.
fn resource(
    method: &Method,
    rest: &str,
    query: &str,
    headers: &HeaderMap,
) -> Result<Option<Asked>, Problem> {
    if let Some(task_id) = rest.strip_prefix("tasks/") {
        only("GET", method)?;
        return task(task_id, query).map(Some);
    }
    if rest == "events" {
        only("GET", method)?;
        let shape = if accepts(headers, "application/x-ndjson") {
            Shape::Lines
        } else {
            Shape::Json
        };
        let request = request_of(query, EVENTS).map_err(invalid)?;
        return by_target("ListEvents", request, shape).map(Some);
    }

    if rest == "openapi.json" {
        only("GET", method)?;
        request_of(query, &[]).map_err(|_| invalid("this path takes no query".to_owned()))?;
        // A call that any client may make: the description is for clients only, as reflection is.
        return by_target("GetLogInfo", Map::new(), Shape::Description).map(Some);
    }
    if rest == "stream-tickets" {
        only("POST", method)?;
        request_of(query, &[])
            .map_err(|_| invalid("put the filter into the body, as JSON".to_owned()))?;
        // A call that any client may make.
        return Ok(Some(Asked {
            rpc: Rpc::named("GetLogInfo"),
            input: Input::Later(Rpc::named("Subscribe")),
            shape: Shape::Ticket,
        }));
    }
    if rest == "events/stream" {
        only("GET", method)?;
        return stream(query, headers).map(Some);
    }

    Ok(None)
}

/// The call of a unary RPC by its name.
fn by_name(method: &Method, name: &str, query: &str) -> Result<Asked, Problem> {
    let rpc = Rpc::find(name).ok_or_else(|| nothing_at(&format!("{PREFIX}{name}")))?;
    if !rpc.is_unary {
        let detail = if name == "Subscribe" {
            "Subscribe is a stream: GET /v1/events/stream, or use a gRPC client".to_owned()
        } else {
            format!("{name} is a stream: use a gRPC client")
        };
        return Err(Problem::of_reason(
            StatusCode::NOT_IMPLEMENTED,
            Reason::UnknownMethod,
            detail,
        ));
    }
    only("POST", method)?;
    request_of(query, &[]).map_err(|_| {
        invalid(format!(
            "{name} takes no query: put its fields into the body, as JSON"
        ))
    })?;
    Ok(Asked {
        rpc,
        input: Input::Body,
        shape: Shape::Json,
    })
}

/// `GetTask`, or `WaitTask` if the query says how long to wait.
fn task(task_id: &str, query: &str) -> Result<Asked, Problem> {
    // One that is encoded (%2F) is a part of the id.
    if task_id.is_empty() || task_id.contains('/') {
        return Err(nothing_at(&format!("{PREFIX}tasks/{task_id}")));
    }
    let task_id = percent_encoding::percent_decode_str(task_id).decode_utf8();
    let task_id = task_id.map_err(|_| invalid("the task id in the path is no UTF-8".to_owned()))?;

    let mut request = request_of(query, TASK).map_err(invalid)?;
    request.insert("task_id".into(), task_id.into());
    let rpc = if request.contains_key("timeout") {
        "WaitTask"
    } else {
        "GetTask"
    };
    by_target(rpc, request, Shape::Json)
}

/// `Subscribe`. The place that a browser resumes from comes before the one that its first request has named.
fn stream(query: &str, headers: &HeaderMap) -> Result<Asked, Problem> {
    let comes_back = accepts(headers, "text/event-stream");
    if let Some(ticket) = query.strip_prefix("ticket=") {
        if ticket.contains('&') {
            let detail = "a ticket has its filter: give nothing beside it";
            return Err(invalid(detail.to_owned()));
        }
        return Ok(Asked {
            rpc: Rpc::named("Subscribe"),
            input: Input::Ticket(ticket.to_owned()),
            shape: Shape::Stream {
                may_be_over: false,
                comes_back,
            },
        });
    }

    let mut request = request_of(query, STREAM).map_err(invalid)?;
    let last = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty());
    if let Some(id) = last {
        let id = id.to_str().unwrap_or_default(); // the service refuses what is no cursor
        STARTS.iter().for_each(|start| drop(request.remove(*start)));
        request.insert("after_cursor".into(), id.into());
    }

    let ends = request.get("until_terminal") == Some(&Value::Bool(true));
    let shape = Shape::Stream {
        may_be_over: ends && last.is_some(),
        comes_back,
    };
    by_target("Subscribe", request, shape)
}

fn by_target(rpc: &str, request: Map<String, Value>, shape: Shape) -> Result<Asked, Problem> {
    let rpc = Rpc::named(rpc);
    let message = message_of(&rpc.input, Value::from(request).to_string().as_bytes());
    let message = message.map_err(|error| {
        let error = error.to_string();
        // The place is one in JSON that the client has not seen.
        let error = error.split(" at line ").next().unwrap_or(&error);
        invalid(format!("a query parameter cannot be read: {error}"))
    })?;
    Ok(Asked {
        rpc,
        input: Input::Target(message),
        shape,
    })
}

fn only(allowed: &'static str, method: &Method) -> Result<(), Problem> {
    if method.as_str() == allowed {
        return Ok(());
    }
    let detail = format!("this path takes {allowed} only");
    let mut problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail);
    problem.allow = Some(allowed);
    Err(problem)
}

fn invalid(detail: String) -> Problem {
    Problem::of_reason(StatusCode::BAD_REQUEST, Reason::InvalidRequest, detail)
}

fn nothing_at(path: &str) -> Problem {
    let detail = format!(
        "nothing is at {}: there are /v1/tasks/ID, /v1/events, /v1/events/stream, /v1/openapi.json, and /v1/RPC for \
         every unary RPC of blobcast.v1, for example /v1/GetLogInfo",
        crate::printable::printable_beginning(path)
    );
    Problem::of_reason(StatusCode::NOT_FOUND, Reason::UnknownMethod, detail)
}

fn accepts(headers: &HeaderMap, essence: &str) -> bool {
    let accepted = headers.get_all(ACCEPT).iter();
    let mut ranges = accepted
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    ranges.any(|range| {
        let range = range.split(';').next().unwrap_or(range).trim();
        range.eq_ignore_ascii_case(essence)
    })
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost::Message;

    use super::*;
    use crate::wire::v1;

    fn get(target: &str) -> Result<Asked, Problem> {
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        asked(&Method::GET, path, query, &HeaderMap::new())
    }

    fn target_of(asked: Asked) -> (String, Vec<u8>) {
        let Input::Target(message) = asked.input else {
            panic!("{:?}", asked.input)
        };
        (asked.rpc.name.clone(), message)
    }

    #[test]
    fn a_path_and_its_query_are_a_call() {
        let (rpc, message) = target_of(get("/v1/tasks/t%201?product=veo").unwrap());
        let request = v1::GetTaskRequest::decode(&message[..]).unwrap();
        assert_eq!(rpc, "GetTask");
        assert_eq!((&*request.task_id, &*request.product), ("t 1", "veo"));

        let (_, message) = target_of(get("/v1/tasks/a%2Fb%20c").unwrap());
        let request = v1::GetTaskRequest::decode(&message[..]).unwrap();
        assert_eq!(request.task_id, "a/b c");

        let (rpc, message) = target_of(get("/v1/tasks/t1?wait=50s").unwrap());
        let request = v1::WaitTaskRequest::decode(&message[..]).unwrap();
        assert_eq!(rpc, "WaitTask");
        assert_eq!(request.timeout.unwrap().seconds, 50);

        let (rpc, message) = target_of(get("/v1/events?status=failed&order=newest_first").unwrap());
        let request = v1::ListEventsRequest::decode(&message[..]).unwrap();
        assert_eq!(rpc, "ListEvents");
        assert_eq!(request.order(), v1::Order::NewestFirst);
        assert_eq!(request.filter.unwrap().statuses, [4]);

        let posted = asked(&Method::POST, "/v1/GetLogInfo", None, &HeaderMap::new()).unwrap();
        assert_eq!(posted.rpc.name, "GetLogInfo");
        assert!(matches!(posted.input, Input::Body));
    }

    #[test]
    fn a_stream_resumes_where_the_browser_was_whatever_its_address_says() {
        let target = "/v1/events/stream?task_id=t1&until_terminal=true&position=earliest";
        let (rpc, message) = target_of(get(target).unwrap());
        let request = v1::SubscribeRequest::decode(&message[..]).unwrap();
        assert_eq!(rpc, "Subscribe");
        let earliest = v1::StartPosition::Earliest.into();
        assert_eq!(
            request.start,
            Some(v1::subscribe_request::Start::Position(earliest))
        );

        let headers = HeaderMap::from_iter([
            (LAST_EVENT_ID.parse().unwrap(), "c7".parse().unwrap()),
            (ACCEPT, "text/event-stream".parse().unwrap()),
        ]);
        let (path, query) = target.split_once('?').unwrap();
        let resumed = asked(&Method::GET, path, Some(query), &headers).unwrap();
        assert_eq!(
            resumed.shape,
            Shape::Stream {
                may_be_over: true,
                comes_back: true
            }
        );
        let (_, message) = target_of(resumed);
        let request = v1::SubscribeRequest::decode(&message[..]).unwrap();
        assert_eq!(
            request.start,
            Some(v1::subscribe_request::Start::AfterCursor("c7".into()))
        );
        assert!(get("/v1/events/stream?after=a&position=latest").is_err());
    }

    #[test]
    fn lines_are_an_accepted_type_among_others() {
        for (accept, shape) in [
            ("application/x-ndjson", Shape::Lines),
            ("text/html, Application/X-NDJSON;q=0.9", Shape::Lines),
            ("*/*", Shape::Json),
            ("application/json", Shape::Json),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            let asked = asked(&Method::GET, "/v1/events", None, &headers).unwrap();
            assert_eq!(asked.shape, shape, "{accept}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_with_the_next_step() {
        for (target, status, named) in [
            ("/v1/nothing", 404, "/v1/RPC"),
            ("/v1", 404, "/v1/RPC"),
            ("/v1/", 404, "/v1/RPC"),
            ("/v1/tasks/", 404, "/v1/tasks/ID"),
            ("/v1/tasks/a/b", 404, "/v1/tasks/ID"),
            ("/v1/GetLogInfo", 405, "POST"),
            ("/v1/Subscribe", 501, "/v1/events/stream"),
            ("/v1/Backup", 501, "gRPC client"),
            ("/v1/events?prodcut=veo", 400, "use task_id, product"),
            ("/v1/events?status=over", 400, "cannot be read"),
            ("/v1/events?since=yesterday", 400, "cannot be read"),
        ] {
            let problem = get(target).unwrap_err();
            assert_eq!(problem.status.as_u16(), status, "{target}: {problem:?}");
            assert!(problem.detail.contains(named), "{target}: {problem:?}");
        }
        for (path, query) in [("/v1/events", None), ("/v1/GetLogInfo", Some("a=b"))] {
            assert!(asked(&Method::POST, path, query, &HeaderMap::new()).is_err());
        }
    }
}
