//! One HTTP/2 connection. On it several requests are answered at once, and a connection that closes is announced to the client.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
};

use axum::{
    body::{Body, HttpBody},
    http::{
        Method,
        header::{CONNECTION, CONTENT_LENGTH},
    },
    response::Response,
};
use hyper::{Request, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::{
    activity::Activity,
    limits::Limits,
    refusals::{Unread, too_many_headers},
    responder::{Answer, Connection, Responder, until_over},
    service::{Service, Timed},
    unread_body::Remainder,
};
use crate::server::net::{
    Floods,
    places::{Answering, Standing},
};

/// Requests at once on one connection.
const STREAMS_MAX: u32 = 128;
/// What a client may send on one stream, and on the connection, before it is read: bodies are counted as they are read.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Requests that were reset and are not cleaned up yet. More of them are an attack (rapid reset), and the connection is closed.
const PENDING_RESETS_MAX: usize = 20;

/// Serves a connection until it ends. `stop` cancelled: until nothing is being answered on it.
pub(super) async fn serve<R: Responder>(
    service: Service<R>,
    stream: Timed,
    client: SocketAddr,
    standing: &Arc<Standing>,
    stop: CancellationToken,
) {
    let limits = service.limits;
    let activity = Arc::new(Activity::default());
    let answered = service_fn(|request: Request<Incoming>| {
        let (busy, answering) = (activity.begin(), standing.begin());
        let exchange = Exchange::new(&request, &service, standing, answering, &stop);
        let remainder = Remainder::default();
        let mut request = remainder.of(request);
        if limits.tells_connection {
            request.extensions_mut().insert(Connection {
                address: client,
                standing: Arc::clone(standing),
            });
        }
        let answer = (service.responder)(client.ip(), request);
        async move {
            let answer = exchange.answer(answer, &remainder).await;
            answer.map(|answer| until_over(answer, busy))
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .serve_connection(TokioIo::new(stream), answered);
    let mut connection = pin!(connection);

    let mut last_request_over = pin!(limits.last_request_over(&stop));
    // The client was sent GOAWAY; its time is over, or the broker's is; only what is being answered is waited for.
    let (mut is_told, mut is_leaving, mut is_closing) = (false, false, false);
    loop {
        let quiet = async {
            if is_leaving {
                activity.quiet_for(limits.farewell).await;
            } else {
                activity.overdue(limits.quiet).await;
            }
        };
        tokio::select! {
            ended = &mut connection => return note_flood(&service.floods, client.ip(), &ended),
            () = standing.until_shed() => return,
            () = stop.cancelled(), if !is_told => {
                is_told = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut last_request_over, if !is_closing => {
                (is_leaving, is_closing) = (true, true);
                activity.close();
            }
            () = quiet => {
                if is_leaving {
                    return;
                }
                // A request that the client sends before it has seen GOAWAY is still answered.
                (is_told, is_leaving) = (true, true);
                activity.begin_quiet();
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// One request and its answer.
struct Exchange {
    limits: Limits,
    standing: Arc<Standing>,
    answering: Answering,
    too_many_headers: bool,
    is_head: bool,
    stop: CancellationToken,
}

impl Exchange {
    fn new<R>(
        request: &Request<Incoming>,
        service: &Service<R>,
        standing: &Arc<Standing>,
        answering: Answering,
        stop: &CancellationToken,
    ) -> Self {
        let too_many_headers = request.headers().len() > service.limits.headers_max;
        if too_many_headers && let Some(callbacks) = &service.callbacks {
            let outcome = Unread::HeadersTooLarge.as_str();
            callbacks.with_label_values(&[outcome]).inc();
        }
        Self {
            limits: service.limits,
            standing: Arc::clone(standing),
            answering,
            too_many_headers,
            is_head: request.method() == Method::HEAD,
            stop: stop.clone(),
        }
    }

    async fn answer(
        self,
        answer: Answer,
        remainder: &Remainder,
    ) -> Result<Response<Body>, Infallible> {
        let answer = if self.too_many_headers {
            too_many_headers()
        } else {
            answer.await
        };
        self.limits.note_client(&self.standing, &answer);
        drop(self.answering);

        // A body that is not read away is refused behind the answer, by a reset of the stream without an error.
        let mut answer = match remainder.settle(answer, &self.stop) {
            Ok(answer) => answer,
            Err(settling) => settling.await,
        };
        answer.headers_mut().remove(CONNECTION);
        Ok(if self.is_head {
            head_only(answer)
        } else {
            answer
        })
    }
}

/// The answer to HEAD. hyper leaves out the body for HTTP/1.1 only.
fn head_only(mut answer: Response) -> Response {
    if let Some(length) = answer.body().size_hint().exact() {
        answer
            .headers_mut()
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    answer.map(|_| Body::empty())
}

/// Counts and logs a connection that h2 has ended as a flood. Found by h2's own words, because this crate does not depend on it.
fn note_flood(floods: &Floods, client: IpAddr, ended: &hyper::Result<()>) {
    let Err(error) = ended else { return };
    let error = format!("{error:?}");
    if error.contains("ENHANCE_YOUR_CALM") && error.contains("Library") {
        floods.note(client);
    }
}
