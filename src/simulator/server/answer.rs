//! The answer to one request: the key, its limit, scripts, and the truth.

use std::{future::pending, io, sync::Arc};

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, AUTHORIZATION, HeaderName, LOCATION},
    http::uri::PathAndQuery,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    generate,
    happened::What,
    paths::{Route, generate_paths, route},
    replies::{self, Reply},
    requests::{SeenRequest, TEXT_BYTES_MAX, short},
    script::{Step, Target},
    shared::Shared,
    tasks::{State, Task},
};
use crate::simulator::bodies::Body;

/// Answers a request and keeps a record of it. An error breaks the connection.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let uri = request.uri();
    let method = short(request.method().as_str());
    let target = uri
        .path_and_query()
        .map_or_else(|| uri.path(), PathAndQuery::as_str);
    let target = short(target);
    let number = shared.record.lock().add(SeenRequest {
        at: Instant::now(),
        time: Shared::now(),
        method: method.clone(),
        target: target.clone(),
        key: bearer(request.headers()).ok(),
        http_status: 0,
    });

    let answer = respond(&shared, request).await;
    let http_status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
    shared.record.lock().answered(number, http_status);
    // A task that was accepted is reported as such.
    if http_status != StatusCode::CREATED.as_u16() {
        shared.report(What::Request {
            method,
            target,
            http_status,
        });
    }
    answer
}

async fn respond(shared: &Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let uri = request.uri();
    let route = route(request.method(), uri.path(), uri.query());
    let allowed = refused_by_path(&route)
        .map_or(Ok(()), Err)
        .and_then(|()| authenticated(shared, request.headers()));
    let key = match allowed {
        Ok(key) => key,
        Err(refusal) => return Ok(refusal.into_response()),
    };

    match route {
        Route::Generate { product } => {
            let step = shared.scripts.lock().next(&[Target::Generate]);
            let truth =
                async |_| generate::accept(shared, &product, &key, request.into_body()).await;
            play(step, truth).await
        }
        Route::Task { product, id } => {
            let targets = [Target::task(&product, &id), Target::Checks];
            check(shared, &key, &targets, |state| {
                task(shared, &product, &id, &key, state)
            })
            .await
        }
        Route::List {
            product,
            limit,
            offset,
        } => {
            let targets = [Target::list(&product), Target::Checks];
            check(shared, &key, &targets, |state| {
                list(shared, &product, &key, (limit, offset), state)
            })
            .await
        }
        // Refused by its path.
        _ => Ok(Reply::of_status(StatusCode::NOT_FOUND).into_response()),
    }
}

fn refused_by_path(route: &Route) -> Option<Reply> {
    Some(match route {
        Route::Elsewhere { path } => Reply::error(
            StatusCode::TEMPORARY_REDIRECT,
            "Temporary Redirect",
            "ask for the path in `location`; only sora's ends in a slash",
        )
        .with(LOCATION, path),
        Route::BadPage => Reply::error(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Validation error: limit or offset",
            "ask for limit=1 to 100 and offset=0 or more",
        ),
        Route::BadMethod { allowed } => Reply::error(
            StatusCode::METHOD_NOT_ALLOWED,
            "Method Not Allowed",
            &format!("use {allowed}"),
        )
        .with(ALLOW, allowed),
        Route::Unknown => Reply::error(
            StatusCode::NOT_FOUND,
            "Not Found",
            &format!(
                "POST to one of {}, or GET …/generations/ID or …/generations",
                generate_paths().join(", ")
            ),
        ),
        Route::Generate { .. } | Route::Task { .. } | Route::List { .. } => return None,
    })
}

/// The key of a request, if it is accepted.
fn authenticated(shared: &Shared, headers: &HeaderMap) -> Result<String, Reply> {
    let key = bearer(headers)?;
    let keys = shared.keys.lock();
    if keys.is_empty() || keys.contains(&key) {
        return Ok(key);
    }
    let hint = "use the key that this simulated vendor was started with";
    Err(Reply::error(
        StatusCode::UNAUTHORIZED,
        "Invalid API key",
        hint,
    ))
}

fn bearer(headers: &HeaderMap) -> Result<String, Reply> {
    let missing = |detail| {
        let hint =
            "add the header `Authorization: Bearer KEY`, with a key of at most 1,024 characters";
        Reply::error(StatusCode::UNAUTHORIZED, detail, hint)
    };
    let value = headers
        .get(AUTHORIZATION)
        .ok_or_else(|| missing("Missing credentials"))?;
    let text = value.to_str().unwrap_or_default();
    text.split_once(' ')
        .map(|(scheme, key)| (scheme, key.trim()))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .filter(|(_, key)| (1..=TEXT_BYTES_MAX).contains(&key.len()))
        .map(|(_, key)| key.to_owned())
        .ok_or_else(|| missing("Invalid authorization format. Use: Bearer YOUR_API_KEY"))
}

/// Answers a request of the status API within the limit of its key.
async fn check(
    shared: &Shared,
    key: &str,
    targets: &[Target],
    truth: impl Fn(Option<State>) -> Reply,
) -> io::Result<Response<Body>> {
    let most = shared.settings.checks_per_minute_max;
    let allowed = shared.budgets.lock().take(key, Instant::now(), most);
    if let Err(wait) = allowed {
        let seconds = wait.as_secs_f64().ceil().max(1.0);
        let hint = format!("a key has {most} checks a minute: wait {seconds} s");
        let too_many = Reply::error(StatusCode::TOO_MANY_REQUESTS, "Rate limit exceeded", &hint);
        let too_many = too_many.with(hyper::header::RETRY_AFTER, &seconds.to_string());
        return Ok(too_many.into_response());
    }

    let step = shared.scripts.lock().next(targets);
    play(step, async |state| truth(state)).await
}

/// Answers as the script wants it. `truth` is asked only if the step needs it, with the state that it wants.
async fn play(
    mut step: Step,
    truth: impl AsyncFnOnce(Option<State>) -> Reply,
) -> io::Result<Response<Body>> {
    while let Step::Slow(wait, later) = step {
        sleep(wait).await;
        step = *later;
    }
    Ok(match step {
        Step::Truth | Step::Slow(..) => truth(None).await.into_response(),
        Step::State(state) => truth(Some(state)).await.into_response(),
        Step::Fields(fields) => {
            let mut reply = truth(None).await;
            let each = |object: &mut Value| {
                if let Value::Object(object) = object {
                    object.extend(fields.clone());
                }
            };
            match &mut reply.body {
                Value::Array(tasks) => tasks.iter_mut().for_each(each),
                object => each(object),
            }
            reply.into_response()
        }
        Step::Answer(status, body) => replies::raw(known(status), body),
        Step::Header(status, name, value) => Reply::of_status(known(status))
            .with(HeaderName::from_static(name), &value)
            .into_response(),
        Step::Truncated => truth(None).await.into_truncated(),
        Step::Huge(bytes) => replies::huge(bytes),
        Step::Silence => pending().await,
        Step::Broken => return Err(io::Error::other("the script breaks the connection")),
    })
}

fn known(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn task(shared: &Shared, product: &str, id: &str, key: &str, state: Option<State>) -> Reply {
    let tasks = shared.tasks.lock();
    // A task of another key does not exist for this one.
    let task = tasks.get(product, id).filter(|task| task.is_seen_by(key));
    match task {
        Some(task) => Reply::new(StatusCode::OK, body(shared, task, state)),
        None => Reply::error(
            StatusCode::NOT_FOUND,
            "Generation not found",
            "a task is known by its product's path and by the key that created it, until this simulated vendor ends or forgets it",
        ),
    }
}

fn list(
    shared: &Shared,
    product: &str,
    key: &str,
    (limit, offset): (usize, usize),
    state: Option<State>,
) -> Reply {
    let order = *shared.list_order.lock();
    let tasks = shared.tasks.lock();
    let page = tasks.page(product, key, order, limit, offset);
    let page = page.into_iter().map(|task| body(shared, task, state));
    Reply::new(StatusCode::OK, Value::Array(page.collect()))
}

/// What the status API says about a task, in its own state or in another one.
fn body(shared: &Shared, task: &Task, state: Option<State>) -> Value {
    let now = Shared::now();
    let other = state.map(|state| task.clone().in_state(state, now));
    let after = shared.settings.after(&task.product);
    Value::Object(other.as_ref().unwrap_or(task).sample(now, after).answer())
}
