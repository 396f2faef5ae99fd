//! The connections of a simulated vendor: HTTP/1.1, a bounded number of them.

use std::{sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};

use super::{answer::answer, shared::Shared};

/// Connections at the same time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 512;
/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long the head of a request may take, the silence before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a connection that could not be accepted, most likely because open files are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for ever.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };

        let of_requests = Arc::clone(&shared);
        shared.spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&of_requests), request));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            // A client that goes away, or a script that breaks the connection.
            let _ = served.is_ok();
            drop(place);
        });
    }
}
