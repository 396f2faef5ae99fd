//! `listen --forward-to`: posts each event's original body to an endpoint, as the vendor would, in
//! order, one at a time.
//!
//! Never skips an event because of a temporary failure: it posts the event again until the endpoint
//! accepts or refuses it. Never prints the user, the password or the query of a URL.

use std::{
    path::Path,
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER},
    http::uri::Scheme,
};
use jiff::{Timestamp, fmt::rfc2822};
use ring::hmac;

use super::{
    args,
    backoff::Backoff,
    http::{self, HttpClient},
    output::{self, Usage},
    user_info::{Shown, without_user},
};
use crate::{
    simulator::{labels_query, with_labels},
    wire::v1,
};

/// Part of the long help of `listen`.
pub(super) const FORWARD_HELP: &str = "\
--forward-to posts what RunBlob posted: the body byte for byte, and the labels of the callback's \
URL added to the query. http:// and https:// work; certificates are checked against the system's \
roots, or those in SSL_CERT_FILE. A user and a password in the URL are sent as `Authorization: \
Basic`. With --forward-secret-file the body is signed as RunBlob does it: X-RunBlob-Signature has \
its HMAC-SHA256 in lower-case hexadecimal. Each request also has:
  x-blobcast-event-id   the same when an event is posted again
  x-blobcast-cursor     the event's place, for --from
  x-blobcast-product    the product
  x-blobcast-task-id    the task
  x-blobcast-labels     the labels as in the query, if there are any: ref=42&team=ads
What the broker has learnt by asking the vendor is posted like a callback. An event with the status \
overdue is not posted: it is the broker's own.
An event is accepted when it is answered 2xx. After 408, 425, 429, 5xx or no answer it is posted \
again until it is accepted, not before the time in Retry-After; the next events wait. 307 and 308 \
to the same host are followed. Any other answer refuses the event: a note says so, and the next \
event follows.";

/// The vendor waits this long for an answer, too.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest delay that an endpoint can ask for: with a mistake in Retry-After the client must not
/// appear to hang.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Most redirects of one request; more are a loop.
const REDIRECTS_MAX: usize = 5;

/// One endpoint.
pub(super) struct Forwarder {
    client: HttpClient,
    /// For a redirect from http:// to https://. Made when it is needed: reading the trusted roots
    /// takes a while.
    secure_client: OnceLock<HttpClient>,
    /// Without user and password.
    url: Uri,
    authorization: Option<HeaderValue>,
    secret: Option<hmac::Key>,
}

/// The meaning of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Refused,
    TryAgain,
}

impl Forwarder {
    /// `url` may contain a user and a password; `secret_file` has the secret that signs bodies.
    pub(super) fn new(url: &str, secret_file: Option<&Path>) -> anyhow::Result<Self> {
        let problem = |problem| Usage(format!("--forward-to: {problem}"));
        let (url, authorization) = without_user(args::http_url(url).map_err(problem)?);
        let secret = secret_file.map(|path| {
            let read = std::fs::read(path)
                .map_err(|error| output::unreadable("the secret in", path, &error))?;
            let named = path.display();
            anyhow::ensure!(
                !read.trim_ascii().is_empty(),
                "the secret in {named} is empty: write the secret that signs bodies into it"
            );
            Ok(hmac::Key::new(hmac::HMAC_SHA256, read.trim_ascii()))
        });
        Ok(Self {
            client: http::client(&url),
            secure_client: OnceLock::new(),
            url,
            authorization,
            secret: secret.transpose()?,
        })
    }

    /// Returns when the endpoint has accepted or refused the event, which must have its raw body.
    pub(super) async fn forward(&self, event: &v1::Event) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let answer = self.post(event).await;
            let took = format!("{} ms", started.elapsed().as_millis());
            let (said, retry_after) = match answer {
                Ok(answer) => match verdict(answer.status()) {
                    Verdict::Accepted => {
                        output::note(&format!(
                            "forwarded {}: {} in {took}",
                            event.task_id,
                            answer.status()
                        ));
                        return Ok(());
                    }
                    Verdict::Refused => {
                        let answer = refusal(&answer);
                        output::note(&format!(
                            "refused {}: {answer} in {took}; going on with the next",
                            event.task_id
                        ));
                        return Ok(());
                    }
                    Verdict::TryAgain => (
                        format!("{} in {took}", answer.status()),
                        retry_after(&answer, Timestamp::now()),
                    ),
                },
                Err(error) => (format!("{error:#}"), None),
            };

            let delay = backoff.next(retry_after);
            let again = format!("same event again in {:.1} s", delay.as_secs_f64());
            output::note(&format!(
                "cannot forward {} to {}: {said}; {again}",
                event.task_id,
                Shown(&self.url)
            ));

            tokio::time::sleep(delay).await;
        }
    }

    /// Posts the event once and follows redirects.
    async fn post(&self, event: &v1::Event) -> anyhow::Result<Response<Bytes>> {
        let labels = labels(event);
        let mut url = with_labels(&self.url, &labels);
        for _ in 0..=REDIRECTS_MAX {
            let answer = http::send(
                self.client_for(&url),
                self.request(&url, &labels, event)?,
                ANSWER_TIMEOUT,
            )
            .await?;
            match redirect(&url, &answer) {
                Some(target) => url = target,
                None => return Ok(answer),
            }
        }
        anyhow::bail!("redirected more than {REDIRECTS_MAX} times")
    }

    fn client_for(&self, url: &Uri) -> &HttpClient {
        if url.scheme() == self.url.scheme() {
            return &self.client;
        }
        self.secure_client.get_or_init(|| http::client(url))
    }

    fn request(
        &self,
        url: &Uri,
        labels: &[(String, String)],
        event: &v1::Event,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::post(url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("x-blobcast-event-id", &event.event_id)
            .header("x-blobcast-cursor", &event.cursor)
            .header("x-blobcast-product", &event.product)
            // As bytes: a task id is printable, but not always ASCII.
            .header("x-blobcast-task-id", event.task_id.as_bytes());

        if !labels.is_empty() {
            request = request.header("x-blobcast-labels", labels_query(labels));
        }

        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }

        if let Some(secret) = &self.secret {
            let tag = hmac::sign(secret, &event.raw_body);
            let hex: String = tag
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            request = request.header("x-runblob-signature", hex);
        }

        Ok(request.body(Full::new(event.raw_body.clone()))?)
    }
}

fn verdict(status: StatusCode) -> Verdict {
    match status.as_u16() {
        200..=299 => Verdict::Accepted,
        // Too slow, too early, too many, or a broken server: temporary, and not about this event.
        408 | 425 | 429 | 500..=599 => Verdict::TryAgain,
        _ => Verdict::Refused,
    }
}

fn refusal(answer: &Response<Bytes>) -> String {
    let status = answer.status();
    let target = answer
        .headers()
        .get(LOCATION)
        .and_then(|target| target.to_str().ok()?.parse().ok());
    match target {
        Some(target) if status.is_redirection() => {
            format!("{status} to {}, which is not followed,", Shown(&target))
        }
        _ => status.to_string(),
    }
}

/// The delay that the endpoint asks for, in seconds or as a date.
fn retry_after(answer: &Response<Bytes>, now: Timestamp) -> Option<Duration> {
    let text = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let then = rfc2822::parse(text).ok()?.timestamp();
            then.duration_since(now).try_into().unwrap_or_default()
        }
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

/// The target of a 307 or 308 to the same host and port, or from http:// to https:// with their
/// default ports.
fn redirect(from: &Uri, answer: &Response<Bytes>) -> Option<Uri> {
    if !matches!(
        answer.status(),
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
    ) {
        return None;
    }

    let location = answer.headers().get(LOCATION)?.to_str().ok()?;
    let (scheme, host) = (from.scheme_str()?, from.authority()?.as_str());
    let has_scheme = location
        .split(['/', '?', '#'])
        .next()
        .is_some_and(|begin| begin.ends_with(':'));

    let absolute = if has_scheme {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{host}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{host}{}{location}", from.path())
    } else {
        let folder = &from.path()[..=from.path().rfind('/')?];
        format!("{scheme}://{host}{folder}{location}")
    };

    let (target, _) = without_user(args::http_url(&absolute).ok()?);

    let is_secured =
        from.scheme() == Some(&Scheme::HTTP) && target.scheme() == Some(&Scheme::HTTPS);
    let same_host = from.host()?.eq_ignore_ascii_case(target.host()?);
    let (old, new) = (port(from), port(&target));
    let same_place = from.scheme() == target.scheme() && old == new;

    (same_host && (same_place || (is_secured && (old, new) == (80, 443)))).then_some(target)
}

fn port(url: &Uri) -> u16 {
    url.port_u16()
        .unwrap_or(if url.scheme() == Some(&Scheme::HTTPS) {
            443
        } else {
            80
        })
}

fn labels(event: &v1::Event) -> Vec<(String, String)> {
    let mut labels: Vec<_> = event
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    labels.sort();
    labels
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &str)]) -> Response<Bytes> {
        let with = |answer: hyper::http::response::Builder, &(name, value): &(_, &str)| {
            answer.header(name, value)
        };
        headers
            .iter()
            .fold(Response::builder().status(status), with)
            .body(Bytes::new())
            .unwrap()
    }

    #[test]
    fn temporary_failures_are_retried() {
        let verdict = |code| verdict(StatusCode::from_u16(code).unwrap());
        assert_eq!([200, 204].map(verdict), [const { Verdict::Accepted }; 2]);
        assert_eq!(
            [302, 307, 400, 404, 413, 422].map(verdict),
            [const { Verdict::Refused }; 6]
        );
        assert_eq!(
            [408, 425, 429, 500, 503].map(verdict),
            [const { Verdict::TryAgain }; 5]
        );
    }

    #[test]
    fn retry_after_is_in_seconds_or_a_date_and_has_an_end() {
        let now = "2026-01-31T12:00:00Z".parse().unwrap();
        let cases = [
            ("7", Some(7)),
            ("Sat, 31 Jan 2026 12:01:00 GMT", Some(60)),
            ("Sat, 31 Jan 2026 11:00:00 GMT", Some(0)),
            ("86400", Some(3600)),
            ("soon", None),
            ("-1", None),
        ];
        for (text, seconds) in cases {
            let asked = retry_after(&answer(429, &[("retry-after", text)]), now);
            assert_eq!(asked, seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&answer(429, &[]), now), None);
    }

    #[test]
    fn only_redirects_that_keep_the_method_and_the_host_are_followed() {
        let from = Uri::from_static("http://example.com/a/hook?x=1");
        let followed = |status, location: &str| {
            redirect(&from, &answer(status, &[("location", location)]))
                .map(|target| target.to_string())
        };
        for (location, target) in [
            ("http://example.com/b?y=2", "http://example.com/b?y=2"),
            ("http://EXAMPLE.com:80/b", "http://EXAMPLE.com:80/b"),
            ("https://example.com/b", "https://example.com/b"),
            ("//example.com/b", "http://example.com/b"),
            ("/b?y=2", "http://example.com/b?y=2"),
            ("b", "http://example.com/a/b"),
            (
                "/b?next=https://example.org/",
                "http://example.com/b?next=https://example.org/",
            ),
            (
                "b?next=https://example.org/",
                "http://example.com/a/b?next=https://example.org/",
            ),
            ("?y=2", "http://example.com/a/hook?y=2"),
            ("http://u:p@example.com/b", "http://example.com/b"),
        ] {
            assert_eq!(
                followed(307, location).as_deref(),
                Some(target),
                "{location}"
            );
            assert_eq!(
                followed(308, location).as_deref(),
                Some(target),
                "{location}"
            );
            assert_eq!(followed(302, location), None, "{location}");
        }
        for location in [
            "http://example.org/b",
            "http://example.com:81/b",
            "https://example.com:8443/b",
            "ftp://example.com",
        ] {
            assert_eq!(followed(308, location), None, "{location}");
        }
        let secure = Uri::from_static("https://example.com/hook");
        assert_eq!(
            redirect(
                &secure,
                &answer(308, &[("location", "http://example.com/hook")])
            ),
            None
        );
        assert_eq!(redirect(&secure, &answer(308, &[])), None);
    }

    #[test]
    fn a_user_and_a_password_become_a_header_and_are_not_shown() {
        let forwarder =
            Forwarder::new("https://us%3Aer:p%40ss+w@example.com:1/hook?token=t", None).unwrap();
        assert_eq!(forwarder.url, "https://example.com:1/hook?token=t");
        assert_eq!(
            Shown(&forwarder.url).to_string(),
            "https://example.com:1/hook?…"
        );
        let header = forwarder.authorization.as_ref().unwrap();
        assert_eq!(
            header,
            &format!("Basic {}", BASE64_STANDARD.encode("us:er:p@ss+w"))
        );
        assert_eq!(format!("{header:?}"), "Sensitive");
        assert_eq!(
            Forwarder::new("example.com", None).unwrap().authorization,
            None
        );
        let wrong = Forwarder::new("ftp://user:hunter2@example.com", None)
            .err()
            .unwrap();
        assert!(
            wrong.is::<Usage>() && !wrong.to_string().contains("hunter2"),
            "{wrong}"
        );
    }
}
