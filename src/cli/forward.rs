//! `listen --forward-to`: posts each event's original body to an endpoint, as the vendor would, in order, one at a time.
//!
//! Never skips an event that the endpoint did not get: what may be better later is tried again until it is.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri, header};

use super::{backoff::Backoff, http, output};
use crate::wire::v1;

/// As long as the vendor waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// One endpoint.
#[derive(Debug)]
pub(super) struct Forwarder {
    client: http::HttpClient,
    url: Uri,
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    Refused,
    TryAgain,
}

impl Forwarder {
    pub(super) fn new(url: Uri) -> Self {
        Self { client: http::client(&url), url }
    }

    /// Returns when the endpoint has taken or refused the event. `event` must carry its raw body.
    pub(super) async fn forward(&self, event: &v1::Event) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let answer = http::send(&self.client, self.request(event)?, ANSWER_TIMEOUT).await;
            let took = format!("{} ms", started.elapsed().as_millis());
            let said = match answer {
                Ok((status, _)) => match verdict(status) {
                    Verdict::Taken => {
                        output::note(&format!("forwarded {}: {status} in {took}", event.task_id));
                        return Ok(());
                    }
                    Verdict::Refused => {
                        output::note(&format!("refused {}: {status} in {took}; going on with the next", event.task_id));
                        return Ok(());
                    }
                    Verdict::TryAgain => format!("{status} in {took}"),
                },
                Err(error) => format!("{error:#}"),
            };
            let delay = backoff.next(None);
            let again = format!("same event again in {:.1} s", delay.as_secs_f64());
            output::note(&format!("cannot forward {} to {}: {said}; {again}", event.task_id, self.url));
            tokio::time::sleep(delay).await;
        }
    }

    fn request(&self, event: &v1::Event) -> anyhow::Result<Request<Full<Bytes>>> {
        let request = Request::post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-blobcast-event-id", &event.event_id)
            .header("x-blobcast-cursor", &event.cursor)
            .header("x-blobcast-product", &event.product)
            // A task id is printable but maybe not ASCII; header values are bytes.
            .header("x-blobcast-task-id", event.task_id.as_bytes());
        Ok(request.body(Full::new(event.raw_body.clone()))?)
    }
}

fn verdict(status: StatusCode) -> Verdict {
    if status.is_server_error() {
        Verdict::TryAgain
    } else if status.is_success() {
        Verdict::Taken
    } else {
        Verdict::Refused
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Router, routing::post};

    use super::*;

    #[test]
    fn only_server_errors_are_worth_another_try() {
        let verdict = |code| verdict(StatusCode::from_u16(code).unwrap());
        assert_eq!([200, 204].map(verdict), [Verdict::Taken, Verdict::Taken]);
        assert_eq!([302, 404, 422, 429].map(verdict), [const { Verdict::Refused }; 4]);
        assert_eq!([500, 503].map(verdict), [Verdict::TryAgain, Verdict::TryAgain]);
    }

    #[test]
    fn a_forwarded_event_is_its_body_with_its_names_in_headers() {
        let event = v1::Event {
            event_id: "e".into(),
            cursor: "c".into(),
            product: "veo".into(),
            task_id: "tä".into(),
            ..v1::Event::default()
        };
        let request = Forwarder::new(Uri::from_static("http://localhost:3000/hook")).request(&event).unwrap();
        assert_eq!(request.headers()["x-blobcast-task-id"].as_bytes(), "tä".as_bytes());
        assert_eq!(request.headers()["content-type"], "application/json");
    }

    #[tokio::test]
    async fn an_event_that_the_endpoint_could_not_take_is_sent_again_before_the_next() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let answer = move |body: String| async move {
            let mut seen = record.lock().unwrap();
            seen.push(body);
            if seen.len() == 1 { StatusCode::BAD_GATEWAY } else { StatusCode::NO_CONTENT }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(answer))).await });
        let forwarder = Forwarder::new(url);
        for body in ["1", "2"] {
            let event = v1::Event { raw_body: body.into(), ..v1::Event::default() };
            forwarder.forward(&event).await.unwrap();
        }
        assert_eq!(*seen.lock().unwrap(), ["1", "1", "2"]);
    }
}
