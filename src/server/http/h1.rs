//! One HTTP/1.1 connection, from its first request to its last answer.

use std::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use axum::{body::Body, response::Response};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as HyperService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::AsyncWriteExt,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    activity::{Activity, LINE_END, Tracked},
    limits::Limits,
    linger::linger,
    refusals::Unread,
    responder::{Connection, Responder, until_over},
    service::{Service, Timed},
    unread_body::{Remainder, Settling},
};
use crate::server::net::{LOOK, places::Standing};

/// How a connection came to its end.
enum Ended {
    ByHttp(hyper::Result<()>),
    /// It was quiet for too long.
    Overdue,
    /// The broker stops, and the client does not take its answer.
    AnswerNotTaken,
    /// It has to give its place to another connection.
    Shed,
}

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
    let requests = Requests {
        responder: &service.responder,
        limits,
        client,
        standing,
        activity: &activity,
        remainder: Remainder::default(),
        stop: &stop,
    };
    let tracked = Tracked {
        stream,
        activity: Arc::clone(&activity),
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None) // it would include the silence before a head
        .half_close(limits.half_close)
        .max_buf_size(limits.header_bytes_max)
        .max_headers(limits.headers_max)
        .serve_connection(
            TokioIo::new(tracked),
            service_fn(|request| requests.answer(request)),
        );

    let mut cut_off = false;
    let ended = drive(
        &mut connection,
        &activity,
        limits,
        standing,
        &stop,
        &mut cut_off,
    )
    .await;
    if matches!(ended, Ended::Shed) {
        return;
    }

    let parts = connection.into_parts();
    let has_begun = parts.read_buf.iter().any(|byte| !LINE_END.contains(byte));
    let unread = unread(&ended, has_begun, cut_off);
    if let Some(unread) = unread {
        let callbacks = service.callbacks.as_ref();
        unread.note(&parts.read_buf, client, &service.turned_away, callbacks);
    }
    tokio::select! {
        () = close(parts.io.into_inner().stream, unread, limits) => {}
        () = standing.until_shed() => {} // it holds its place meanwhile
        () = limits.farewell_over(&stop) => {}
    }
}

/// What the requests of one connection share.
struct Requests<'a, R> {
    responder: &'a R,
    limits: Limits,
    client: SocketAddr,
    standing: &'a Arc<Standing>,
    activity: &'a Arc<Activity>,
    remainder: Remainder,
    stop: &'a CancellationToken,
}

impl<R: Responder> Requests<'_, R> {
    /// Answers a request. The answer is held back until the rest of the request's body has been read away, where that is due.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response, Infallible>> + Unpin {
        let (mut busy, mut answering) = (self.activity.begin(), Some(self.standing.begin()));
        let mut request = self.remainder.of(request);
        if self.limits.tells_connection {
            request.extensions_mut().insert(Connection {
                address: self.client,
                standing: Arc::clone(self.standing),
            });
        }
        let mut answer = (self.responder)(self.client.ip(), request);
        let mut settling = None::<Settling>;
        poll_fn(move |cx| {
            let settled = match &mut settling {
                Some(settling) => ready!(settling.as_mut().poll(cx)),
                None => {
                    let answer = ready!(answer.as_mut().poll(cx));
                    self.limits.note_client(self.standing, &answer);
                    drop(answering.take());
                    match self.remainder.settle(answer, self.stop) {
                        Ok(answer) => answer,
                        Err(later) => ready!(settling.insert(later).as_mut().poll(cx)),
                    }
                }
            };
            Poll::Ready(Ok::<_, Infallible>(until_over(settled, busy.take())))
        })
    }
}

type Io = TokioIo<Tracked<Timed>>;

/// Drives a connection to its end. `cut_off` is set if a request may have begun to arrive and would not be read further.
async fn drive<S>(
    connection: &mut http1::Connection<Io, S>,
    activity: &Activity,
    limits: Limits,
    standing: &Standing,
    stop: &CancellationToken,
    cut_off: &mut bool,
) -> Ended
where
    S: HyperService<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Unpin,
    S::Future: Unpin,
{
    let mut last_request_over = pin!(limits.last_request_over(stop));
    let mut timer = pin!(sleep(limits.quiet.header_timeout));
    let mut is_closing = false;
    loop {
        let served = poll_fn(|cx| match connection.poll_without_shutdown(cx) {
            Poll::Pending => activity
                .poll_overdue(limits.quiet, timer.as_mut(), cx)
                .map(|()| Ended::Overdue),
            ended => ended.map(Ended::ByHttp),
        });
        tokio::select! {
            ended = served => return ended,
            () = &mut last_request_over, if !is_closing => {
                // A request that has arrived meanwhile is begun first.
                let arrived = poll_fn(|cx| connection.poll_without_shutdown(cx));
                if let Ok(ended) = timeout(Duration::ZERO, arrived).await {
                    return Ended::ByHttp(ended);
                }

                is_closing = true;
                *cut_off = activity.quiet_since().is_some();
                if activity.is_unasked() {
                    return Ended::ByHttp(Ok(())); // hyper would wait for the rest of a first head
                }

                activity.close();
                // hyper closes a connection between two requests at once, also when the next has begun to arrive.
                std::pin::Pin::new(&mut *connection).graceful_shutdown();
            }
            () = activity.quiet_for(limits.farewell), if is_closing => return Ended::AnswerNotTaken,
            () = standing.until_shed() => return Ended::Shed,
            // Polled again, hyper flushes, and the stream looks for its peer.
            () = sleep(LOOK), if !limits.half_close => {}
        }
    }
}

/// The request that was refused unread, if the connection ended with one. `has_begun`: a part of its head was read.
fn unread(ended: &Ended, has_begun: bool, cut_off: bool) -> Option<Unread> {
    match ended {
        // On an idle connection that times out nothing was asked, so no answer is owed.
        Ended::Overdue => has_begun.then_some(Unread::HeaderTimeout),
        Ended::ByHttp(Err(error)) if error.is_parse_too_large() => Some(Unread::HeadersTooLarge),
        Ended::ByHttp(Err(error)) if error.is_parse() => Some(Unread::Malformed),
        Ended::ByHttp(_) => (has_begun && cut_off).then_some(Unread::Draining),
        Ended::AnswerNotTaken | Ended::Shed => None,
    }
}

/// Sends the last answer on a connection, if there is one, and closes it.
async fn close(mut stream: Timed, unread: Option<Unread>, limits: Limits) {
    let answer = unread.map(Unread::answer).unwrap_or_default();
    // A client that does not read its answers may not take this one either.
    let written = timeout(limits.farewell, stream.write_all(&answer)).await;
    if written.is_ok_and(|written| written.is_ok()) {
        linger(stream, limits.linger).await;
    }
}
