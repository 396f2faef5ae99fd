//! The addresses of the brokers: one, or several nodes of a cluster, of which a command asks one at a time.
//!
//! Owns which broker is asked. A call goes on at the next one if this one cannot be reached or says
//! that it is not available. A call that changes something does so only if this broker has certainly
//! not done it. With one address nothing is sent twice.

use std::{
    error::Error,
    fmt,
    future::poll_fn,
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, Uri};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tonic::{
    Code, ConnectError, Status,
    body::Body,
    codegen::{BoxFuture, Service, StdError},
    transport::{Channel, Endpoint},
};

use super::{
    args,
    output::note,
    problem::{Refusal, problems},
    proxy::{ForeignAnswer, GrpcOnly, Readable},
    user_info::Shown,
};
use crate::{config::url_without_secrets, wire::Reason};

/// For so long a call goes round again while nodes are behind: three times what a node waits by
/// itself (`cluster.read_wait`).
const BEHIND_PATIENCE: Duration = Duration::from_secs(15);
/// Before it goes round again: what a node that is behind asks for.
const BEHIND_PAUSE: Duration = Duration::from_secs(1);

/// Calls that may reach two brokers: they change nothing, or the same however often they come.
const REPEATABLE: [&str; 17] = [
    "Backup",
    "ExpectTasks",
    "GetConfiguration",
    "GetLogInfo",
    "GetOverview",
    "GetRawBody",
    "GetTask",
    "ListCredentials",
    "ListEndedSubscriptions",
    "ListEvents",
    "ListExpectations",
    "ListQuarantine",
    "ListRefusals",
    "ListSubscriptions",
    "MintCallbackUrl",
    "Subscribe",
    "WaitTask",
];

/// The value of a flag that names brokers: one URL, or several with commas between them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Urls(Vec<Uri>);

impl Urls {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parts = split(text);
        let is_one = parts.len() == 1;
        let url = |part: &str| {
            let part = part.trim();
            args::http_url(part).map_err(|problem| match (is_one, part) {
                (true, _) => problem,
                (false, "") => "there is nothing between two commas".to_owned(),
                (false, part) => format!("{}: {problem}", url_without_secrets(part)),
            })
        };
        parts
            .into_iter()
            .map(url)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn one(url: Uri) -> Self {
        Self(vec![url])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Uri> {
        self.0.iter()
    }
}

/// Splits at commas, except at those of a password: a comma with an `@` behind it, before another
/// URL begins. A comma of a path or a query separates only if a scheme follows.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut begin = 0;
    for (at, _) in text.match_indices(',') {
        let rest = &text[at + 1..];
        let url = &rest[..rest.find("://").unwrap_or(rest.len())];
        let has_scheme = rest.split_once("://").is_some_and(|(scheme, _)| {
            let scheme = scheme.trim_start();
            !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphabetic())
        });
        let is_of_password = url.contains('@');
        if !is_of_password && (has_scheme || !has_target(&text[begin..at])) {
            parts.push(&text[begin..at]);
            begin = at + 1;
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// Whether a URL has a path or a query.
fn has_target(url: &str) -> bool {
    let address = url.split_once("://").map_or(url, |(_, address)| address);
    address
        .find(['/', '?'])
        .is_some_and(|at| &address[at..] != "/")
}

/// Counts how often a command has turned to another broker. All its clients share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(Arc<AtomicUsize>);

impl Turn {
    /// Turns to the next broker.
    pub(super) fn pass(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Which of so many brokers is asked now.
    pub(super) fn index(&self, count: usize) -> usize {
        self.count() % count
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A channel to the broker whose turn it is.
#[derive(Clone, Debug)]
pub(super) struct Brokers {
    endpoints: Arc<[Endpoint]>,
    turn: Turn,
    /// The channel of a turn. The next turn has a new one, also if it is the same broker's: the old
    /// connection may be dead without a word.
    open: Arc<Mutex<(usize, GrpcOnly<Channel>)>>,
}

type Answer = Response<Readable<Body>>;

impl Brokers {
    /// Connects at the first call, and again after a failure.
    pub(super) fn new(endpoints: Vec<Endpoint>, turn: Turn) -> Self {
        let now = turn.count();
        let first = GrpcOnly(endpoints[now % endpoints.len()].connect_lazy());
        Self {
            endpoints: endpoints.into(),
            turn,
            open: Arc::new(Mutex::new((now, first))),
        }
    }

    /// The channel of this turn, and the URL that it leads to.
    fn channel(&self) -> (GrpcOnly<Channel>, String) {
        let now = self.turn.count();
        let endpoint = &self.endpoints[now % self.endpoints.len()];
        let mut open = self.open.lock();
        if open.0 != now {
            *open = (now, GrpcOnly(endpoint.connect_lazy()));
        }
        (open.1.clone(), shown(endpoint.uri()))
    }

    /// Sends a call to one broker after the other until one takes it.
    async fn send(&self, request: Request<Body>) -> Result<Answer, StdError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let again = || Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
        let is_repeatable = is_repeatable(head.uri.path());
        let began = Instant::now();

        loop {
            let mut refusals = Vec::new();
            for _ in 0..self.endpoints.len() {
                let (channel, url) = self.channel();
                match Tried::of(send(channel, again()).await) {
                    Tried::Refused { status, in_doubt } if is_repeatable || !in_doubt => {
                        refusals.push(Refusal { url, status });
                        self.turn.pass();
                    }
                    Tried::Refused { status, .. } => return Err(status.into()),
                    Tried::Answered(answer) => {
                        if !refusals.is_empty() {
                            let (why, _) = problems(&refusals);
                            note(&format!("{why}; going on at {url}"));
                        }
                        return answer;
                    }
                }
            }

            let has_behind = refusals.iter().any(|refusal| is_behind(&refusal.status));
            if !has_behind || began.elapsed() >= BEHIND_PATIENCE {
                return Err(NoBroker(refusals).into_status().into());
            }
            let (why, _) = problems(&refusals);
            note(&format!(
                "{why}; trying again in {:.1} s",
                BEHIND_PAUSE.as_secs_f64()
            ));
            sleep(BEHIND_PAUSE).await;
        }
    }
}

impl Service<Request<Body>> for Brokers {
    type Response = Answer;
    type Error = StdError;
    type Future = BoxFuture<Answer, StdError>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(())) // only when a call comes is it known which broker it goes to
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let brokers = self.clone();
        Box::pin(async move {
            if brokers.endpoints.len() == 1 {
                return send(brokers.channel().0, request).await;
            }
            brokers.send(request).await
        })
    }
}

async fn send(mut channel: GrpcOnly<Channel>, request: Request<Body>) -> Result<Answer, StdError> {
    poll_fn(|cx| channel.poll_ready(cx)).await?;
    channel.call(request).await
}

/// What came of a call at one broker.
enum Tried {
    /// An answer, or an error that is not about this broker alone.
    Answered(Result<Answer, StdError>),
    /// The broker is away, or says that it is not available.
    Refused {
        status: Status,
        /// Whether it may have done what the call asks for.
        in_doubt: bool,
    },
}

impl Tried {
    fn of(answer: Result<Answer, StdError>) -> Self {
        match answer {
            Ok(answer) => {
                let refused = Status::from_header_map(answer.headers())
                    .filter(|status| status.code() == Code::Unavailable);
                match refused {
                    Some(status) => Self::Refused {
                        in_doubt: !is_behind(&status),
                        status,
                    },
                    None => Self::Answered(Ok(answer)),
                }
            }
            Err(error) => {
                let in_doubt = !chain(&*error).any(|cause| cause.is::<ConnectError>());
                let status = Status::from_error(error);
                // A page of another kind of server says nothing about the brokers.
                let is_away =
                    ForeignAnswer::behind(&status).is_none_or(ForeignAnswer::is_a_gateways);
                if is_away {
                    Self::Refused { status, in_doubt }
                } else {
                    Self::Answered(Err(status.into()))
                }
            }
        }
    }
}

/// No broker has taken a call: the source of its status.
#[derive(Debug)]
pub(super) struct NoBroker(Vec<Refusal>);

impl NoBroker {
    pub(super) fn behind(status: &Status) -> Option<&Self> {
        status.source()?.downcast_ref()
    }

    pub(super) fn refusals(&self) -> &[Refusal] {
        &self.0
    }

    /// The last status that a broker gave; without one, the last of all.
    fn into_status(self) -> Status {
        let by_broker = |refusal: &&Refusal| Reason::of(&refusal.status).is_some();
        let told = self.0.iter().rfind(by_broker).or(self.0.last());
        let mut status = told.map_or_else(
            || Status::unavailable("there is no broker"),
            |refusal| refusal.status.clone(),
        );
        status.set_source(Arc::new(self));
        status
    }
}

impl Error for NoBroker {}

impl fmt::Display for NoBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "none of {} brokers took the call", self.0.len())
    }
}

/// A URL as it may be printed.
pub(super) fn shown(url: &Uri) -> String {
    Shown(url).to_string().trim_end_matches('/').to_owned()
}

fn is_repeatable(path: &str) -> bool {
    let method = path.rsplit('/').next().unwrap_or_default();
    REPEATABLE.contains(&method)
}

/// Whether a node of a cluster does not have yet what the call is about. It has done nothing then.
fn is_behind(status: &Status) -> bool {
    Reason::of(status) == Some(Reason::StoreBehind)
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<String>, String> {
        Urls::parse(text).map(|urls| urls.iter().map(shown).collect())
    }

    #[test]
    fn urls_are_separated_by_commas() {
        let all = ["http://a:1", "https://b", "http://c:3"].map(str::to_owned);
        assert_eq!(parsed("a:1,https://b, http://c:3"), Ok(all.to_vec()));
        assert_eq!(parsed("http://a:1/"), Ok(vec!["http://a:1".to_owned()]));
        for (wrong, problem) in [
            ("", "not a URL"),
            ("a,", "nothing between two commas"),
            ("a,,b", "nothing between two commas"),
            (
                "a,ftp://u:secret@b",
                "ftp://…@b: not an http:// or https://",
            ),
        ] {
            let error = parsed(wrong).unwrap_err();
            assert!(
                error.contains(problem) && !error.contains("secret"),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn a_comma_in_a_password_separates_nothing() {
        for (text, parts) in [
            ("http://u:p,w@a:1", &["http://u:p,w@a:1"][..]),
            ("u:p,w@a:1", &["u:p,w@a:1"]),
            (
                "http://u:p,w@a,http://v:q@b,c:3",
                &["http://u:p,w@a", "http://v:q@b", "c:3"],
            ),
        ] {
            assert_eq!(split(text), parts, "{text}");
        }
    }

    #[test]
    fn a_comma_in_a_callback_url_separates_only_before_a_scheme() {
        for (text, parts) in [
            ("http://a/webhook?x=1,2", &["http://a/webhook?x=1,2"][..]),
            ("a:1/webhook,b:2", &["a:1/webhook,b:2"]),
            ("a:1?token=x,y", &["a:1?token=x,y"]),
            ("http://a/w,ftp://b", &["http://a/w", "ftp://b"]),
            ("http://a:1/,b:2", &["http://a:1/", "b:2"]),
            (
                "http://a/w?x=1,2, https://b/w?x=1,2,http://c",
                &["http://a/w?x=1,2", " https://b/w?x=1,2", "http://c"],
            ),
        ] {
            assert_eq!(split(text), parts, "{text}");
        }
    }

    #[test]
    fn only_calls_that_change_nothing_are_sent_to_two_brokers() {
        assert!(is_repeatable("/blobcast.v1.EventService/ListEvents"));
        for method in [
            "CancelExpectations",
            "DiscardQuarantined",
            "EndSubscription",
            "EraseTask",
            "ReleaseQuarantined",
            "SendTestCallback",
        ] {
            assert!(
                !is_repeatable(&format!("/blobcast.v1.AdminService/{method}")),
                "{method}"
            );
        }
    }
}
