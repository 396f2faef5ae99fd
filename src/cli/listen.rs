//! `listen`: a subscription that reconnects and resumes until an error that a retry cannot help.
//!
//! Owns the client's half of resuming: the last cursor, and the request after a broken connection.
//! A cursor counts as reached only after its event was printed and forwarded, so a broken
//! connection may repeat events but never skips one.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use tonic::{Status, Streaming};

use super::{
    EXIT_INTERRUPTED,
    args::{FilterArgs, From},
    backoff::Backoff,
    client::{self, Connection, GrpcArgs, RetryPolicy},
    forward::{FORWARD_HELP, Forwarder},
    output::{Format, Usage, note},
    raw,
    render::{EventPrinter, JSON_HELP, JSON_HELP_OF_BODY},
};
use crate::wire::v1::{
    self, event_service_client::EventServiceClient, subscribe_request::Start,
    subscribe_response::Content,
};

/// Interval of heartbeats on a quiet stream, until the broker announces another one.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// After this many missing heartbeats a stream is dead, even if TCP still works or a proxy answers
/// pings.
const HEARTBEATS_MISSING_MAX: u32 = 3;

const EXAMPLES: &str = "\
Examples:
  blobcast listen                                            everything from now on
  blobcast listen --product veo --status failed --from 2h    failed veo tasks of two hours, and on
  blobcast listen --task 7f3a… --until-terminal              one task, until it is over
  blobcast listen --from earliest --output json | jq '.outputs[].url'
  blobcast listen --forward-to http://localhost:3000/hook    into a service under development

Without --from, a stream with --task begins with the retained events of those tasks; any other begins at the head.

Events are on standard output, one per line; everything else is on standard error. After a broken \
connection it resumes from the last cursor; an event may then come twice, with the same event_id.

Exit codes: 0 done (--count, --until-terminal), or standard output was closed; 1 an error that a \
retry cannot help; 2 usage; 130 Ctrl-C, with the cursor to continue from.";

/// Prints events as they come.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{FORWARD_HELP}\n\n{JSON_HELP} {JSON_HELP_OF_BODY}"))]
pub(super) struct ListenArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Where to start: latest, earliest, a duration back from now (2h), a time (RFC 3339) or a cursor (36 digits).
    #[arg(long, value_name = "WHERE", value_parser = From::parse)]
    from: Option<From>,
    /// What to do if the cursor to resume from is no longer retained; the latter two print the gap.
    #[arg(long, value_name = "WHAT", default_value = "fail")]
    on_expired: OnExpired,
    /// End once every --task is over.
    #[arg(long)]
    until_terminal: bool,
    /// End after N events [default: no end].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Also POST each event's original body to this http:// or https:// URL, in order, each until
    /// it is accepted (see --help).
    // Not parsed by clap, which prints values that it cannot parse: the URL may contain a password.
    #[arg(long, value_name = "URL")]
    forward_to: Option<String>,
    /// File with the secret to sign forwarded bodies with, as RunBlob does: X-RunBlob-Signature.
    #[arg(long, value_name = "PATH", requires = "forward_to")]
    forward_secret_file: Option<PathBuf>,
    /// How to print events.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    /// Also print each callback's body as received (only with --output json).
    #[arg(long)]
    include_raw: bool,
    /// Name of this subscription in `blobcast subscriptions` and the broker's logs.
    #[arg(long, value_name = "NAME", default_value = "blobcast listen")]
    name: String,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnExpired {
    /// End with an error.
    Fail,
    /// Continue with the oldest retained event.
    Earliest,
    /// Continue at the head.
    Latest,
}

pub(super) async fn run(args: ListenArgs) -> anyhow::Result<ExitCode> {
    let mut listener = Listener::new(args, Timestamp::now())?;
    let ended = tokio::select! {
        ended = listener.run() => ended.map(|()| ExitCode::SUCCESS)?,
        _ = tokio::signal::ctrl_c() => ExitCode::from(EXIT_INTERRUPTED),
    };
    if let (true, Some(cursor)) = (ended != ExitCode::SUCCESS, &listener.place.cursor) {
        note(&format!("continue with --from {cursor}"));
    }
    Ok(ended)
}

/// Why a stream ended, other than by an error that ends `listen`.
#[derive(Debug)]
enum End {
    Finished,
    Broken {
        why: String,
        reconnect_after: Option<Duration>,
    },
}

impl End {
    fn broken(why: impl Into<String>) -> Self {
        Self::Broken {
            why: why.into(),
            reconnect_after: None,
        }
    }
}

struct Listener {
    grpc: GrpcArgs,
    client: EventServiceClient<Connection>,
    place: Place,
    remaining: Option<u64>,
    printer: EventPrinter,
    print_raw: bool,
    forwarder: Option<Forwarder>,
    backoff: Backoff,
    retry_policy: RetryPolicy,
    heartbeat: Duration,
}

impl Listener {
    fn new(args: ListenArgs, now: Timestamp) -> anyhow::Result<Self> {
        let request = request(&args, now)?;
        let forwarder = args
            .forward_to
            .as_deref()
            .map(|url| Forwarder::new(url, args.forward_secret_file.as_deref()));

        let forwarder = forwarder.transpose()?;
        Ok(Self {
            client: args.grpc.events()?,
            grpc: args.grpc,
            place: Place {
                request,
                cursor: None,
            },
            remaining: args.count,
            printer: EventPrinter::new(args.output),
            print_raw: args.include_raw,
            forwarder,
            backoff: Backoff::default(),
            retry_policy: RetryPolicy::default(),
            heartbeat: HEARTBEAT,
        })
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        loop {
            match self.follow().await? {
                End::Finished => return Ok(()),
                End::Broken {
                    why,
                    reconnect_after,
                } => {
                    self.grpc.leave();
                    let delay = self.backoff.next(reconnect_after);
                    let at = if self.grpc.has_others() {
                        format!(" at {}", self.grpc.broker())
                    } else {
                        String::new()
                    };
                    let from = self
                        .place
                        .cursor
                        .as_ref()
                        .map(|cursor| format!(" from {cursor}"))
                        .unwrap_or_default();
                    note(&format!(
                        "{why}; connecting again in {:.1} s{at}{from}",
                        delay.as_secs_f64()
                    ));
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// One stream, from its opening to its end.
    async fn follow(&mut self) -> anyhow::Result<End> {
        let request = self.place.next_request();
        self.heartbeat = HEARTBEAT;
        let mut stream = match within(self.silence_max(), self.client.subscribe(request)).await {
            Some(Ok(response)) => response.into_inner(),
            Some(Err(status)) => return self.ended_by(&status),
            None => return Ok(End::broken("the broker does not answer")),
        };

        loop {
            let content = match within(self.silence_max(), Streaming::message(&mut stream)).await {
                Some(Ok(Some(message))) => message.content,
                Some(Ok(None)) => return Ok(End::broken("the stream ended early")),
                Some(Err(status)) => return self.ended_by(&status),
                None => return Ok(End::broken("the stream has fallen silent")),
            };
            // A newer broker may send content that this client does not know; it is `None` here.
            if let Some(content) = content
                && let Some(end) = self.take(content).await?
            {
                return Ok(end);
            }
        }
    }

    async fn take(&mut self, content: Content) -> anyhow::Result<Option<End>> {
        self.retry_policy.reset();
        // A broker that only accepts streams and then ends them is still failing.
        if !matches!(content, Content::Subscribed(_) | Content::GoingAway(_)) {
            self.backoff.reset();
        }

        match content {
            Content::Event(event) => return self.take_event(event).await,
            Content::Subscribed(subscribed) => {
                let told = subscribed
                    .limits
                    .and_then(|limits| limits.heartbeat_interval);
                self.heartbeat = told
                    .and_then(|interval| interval.try_into().ok())
                    .unwrap_or(HEARTBEAT);
                self.place.subscribed(subscribed.cursor);
            }
            Content::CaughtUp(caught_up) => {
                note(&format!("caught up at {}", caught_up.cursor));
                self.place.reached(caught_up.cursor);
            }
            Content::FellBehind(fell_behind) => {
                note(&format!(
                    "fell behind by {} events; reading them from the log",
                    fell_behind.lag
                ));
                self.place.reached(fell_behind.cursor);
            }
            Content::Progress(progress) => self.place.reached(progress.cursor),
            Content::Gap(gap) => {
                note(&format!(
                    "gap: events after {} up to {} are gone ({})",
                    gap.after, gap.through, gap.reason
                ));
                self.place.reached(gap.through);
            }
            Content::GoingAway(going_away) => {
                self.place.reached(going_away.cursor);
                // It asks for that while it restarts; the next broker is there.
                let reconnect_after = going_away
                    .reconnect_after
                    .filter(|_| !self.grpc.has_others())
                    .and_then(|after| after.try_into().ok());
                return Ok(Some(End::Broken {
                    why: "the broker is going away".to_owned(),
                    reconnect_after,
                }));
            }
            Content::Completed(completed) => {
                self.place.reached(completed.cursor);
                return Ok(Some(End::Finished));
            }
        }

        Ok(None)
    }

    async fn take_event(&mut self, mut event: v1::Event) -> anyhow::Result<Option<End>> {
        if self.place.request.include_raw
            && let Err(status) = raw::complete(&mut self.client, &mut event).await
        {
            return self.ended_by(&status).map(Some);
        }
        // The vendor has posted nothing by which a task is late.
        if let Some(forwarder) = &self.forwarder
            && event.status() != v1::TaskStatus::Overdue
        {
            forwarder.forward(&event).await?;
        }
        if !self.print_raw {
            event.raw_body.clear();
        }
        self.printer.print(&event)?;
        self.place.reached(event.cursor);
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(1));
        Ok((self.remaining == Some(0)).then_some(End::Finished))
    }

    fn silence_max(&self) -> Duration {
        self.heartbeat.saturating_mul(HEARTBEATS_MISSING_MAX)
    }

    /// The end of a stream by an error: final, or to be resumed.
    fn ended_by(&mut self, status: &Status) -> anyhow::Result<End> {
        let error = self.grpc.error(status);
        if self.retry_policy.is_final(status) {
            if let (true, Some(cursor)) = (client::is_ended(status), &self.place.cursor) {
                note(&format!("continue with --from {cursor}"));
            }
            return Err(error);
        }
        Ok(End::Broken {
            why: format!("{error:#}"),
            reconnect_after: self.grpc.retry_delay(status),
        })
    }
}

/// The client's position in the log, and the request that continues from it. Pure.
struct Place {
    request: v1::SubscribeRequest,
    cursor: Option<String>,
}

impl Place {
    /// The first request, or one that resumes it. With `until_terminal` the broker also counts
    /// terminal events before the cursor.
    fn next_request(&self) -> v1::SubscribeRequest {
        let mut request = self.request.clone();
        if let Some(cursor) = &self.cursor {
            request.start = Some(Start::AfterCursor(cursor.clone()));
        }
        request
    }

    fn reached(&mut self, cursor: String) {
        if !cursor.is_empty() {
            self.cursor = Some(cursor);
        }
    }

    /// Remembers the starting cursor of a stream that begins at the head: after a broken connection
    /// the head would be a later one. Any other stream is requested again as before until it has
    /// delivered something, since retention may pass its starting cursor.
    fn subscribed(&mut self, cursor: String) {
        let names_tasks = self
            .request
            .filter
            .as_ref()
            .is_some_and(|filter| !filter.task_ids.is_empty());
        let begins_at_head = match &self.request.start {
            Some(Start::Position(position)) => *position == i32::from(v1::StartPosition::Latest),
            Some(_) => false,
            None => !names_tasks,
        };
        if begins_at_head && self.cursor.is_none() {
            self.reached(cursor);
        }
    }
}

fn request(args: &ListenArgs, now: Timestamp) -> anyhow::Result<v1::SubscribeRequest> {
    let filter = args.filter.to_wire()?;
    if args.until_terminal && filter.task_ids.is_empty() {
        return Err(
            Usage("--until-terminal needs --task: name the tasks to wait for".into()).into(),
        );
    }

    if args.include_raw && args.output != Format::Json {
        return Err(Usage("--include-raw needs --output json".into()).into());
    }

    let on_expired = match args.on_expired {
        OnExpired::Fail => v1::OnExpired::Fail,
        OnExpired::Earliest => v1::OnExpired::Earliest,
        OnExpired::Latest => v1::OnExpired::Latest,
    };

    Ok(v1::SubscribeRequest {
        filter: Some(filter),
        start: args.from.as_ref().map(|from| from.to_wire(now)),
        on_expired: on_expired.into(),
        until_terminal: args.until_terminal,
        heartbeat_interval: None,
        include_raw: args.include_raw || args.forward_to.is_some(),
        client_name: args.name.clone(),
    })
}

async fn within<T>(silence_max: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(silence_max, work).await.ok()
}

#[cfg(test)]
mod tests;
