//! `wait`: waits until one task is over, prints its result URLs, and says by its exit code how the
//! task ended.
//!
//! Asks again after lost connections until its own timeout. Never waits for a result that was
//! erased.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Response, Status};

use super::{
    EXIT_TASK_FAILED, EXIT_TIMED_OUT, args,
    backoff::Backoff,
    client::{Connection, GrpcArgs, RetryPolicy},
    output::{self, note},
    render,
};
use crate::{
    event::{Product, TaskId},
    wire::{
        self,
        v1::{self, event_service_client::EventServiceClient},
    },
};

/// Longest wait of one call: below the 60 s after which proxies end a silent call.
const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(50);
/// Extra time for a call before it is given up: for the network, and a busy broker.
const CALL_SLACK: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  blobcast wait 7f3a… --product veo && echo done
  url=$(blobcast wait 7f3a… --product veo --timeout 15m) && curl -O \"$url\"
  blobcast wait 7f3a… --output json | jq '.product, .outputs'

Name the product: without it an event of any product with this task id ends the wait, and standard error names that product.

The task may have ended before, or may not be known yet. The broker is asked again every 50 s, and \
after a lost connection, until the timeout.

A late task is waited for on, with a note on standard error, until the broker gives it up.

Exit codes: 0 completed; 10 failed, with `CODE: message` on standard error; 124 not over in time, or \
given up by the broker; 1 other errors, also if the event that ended the task was erased, or if no broker answered before \
the timeout; 2 usage.";

/// The error if the terminal event was erased. It is final: every further call would give the same
/// answer at once.
const ERASED: &str = "the task is over, and the event that ended it was erased, so the broker no \
longer has its result: ask the vendor for it";

/// Waits until a task is over and prints its result URLs, one a line.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}", render::JSON_HELP))]
pub(super) struct WaitArgs {
    /// The vendor's id of the task, from the answer to the generate call.
    #[arg(value_parser = TaskId::parse)]
    task_id: TaskId,
    /// Only events of this product count, for example veo.
    #[arg(long, value_name = "PRODUCT", value_parser = Product::parse)]
    product: Option<Product>,
    /// How long to wait, for example 90s or 1h.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = args::duration)]
    timeout: Duration,
    /// What to print once the task is over.
    #[arg(long, value_name = "FORMAT", default_value = "urls")]
    output: WaitFormat,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WaitFormat {
    /// The result URLs, one a line.
    Urls,
    /// The task's last event as one JSON object, also if the task failed.
    Json,
}

pub(super) async fn run(args: WaitArgs) -> anyhow::Result<ExitCode> {
    let Some(event) = wait(&args).await? else {
        return Ok(ExitCode::from(EXIT_TIMED_OUT));
    };

    if args.product.is_none() {
        note(&format!("product: {}", event.product));
    }

    if args.output == WaitFormat::Json {
        output::emit(format!("{}\n", render::json(&event)?).as_bytes())?;
    } else if event.status() == v1::TaskStatus::Completed {
        for output in &event.outputs {
            output::emit_line(&output.url)?;
        }
        if event.outputs.is_empty() {
            note("the task completed without an output");
        }
    }

    if event.status() != v1::TaskStatus::Completed {
        note(
            &event
                .error
                .as_ref()
                .map_or_else(|| "UNSPECIFIED".to_owned(), render::error_line),
        );
    }

    Ok(ExitCode::from(exit_code(event.status())))
}

fn exit_code(status: v1::TaskStatus) -> u8 {
    if status == v1::TaskStatus::Completed {
        0
    } else {
        EXIT_TASK_FAILED
    }
}

/// The task's terminal event; `None` after the timeout, or if the broker has given the task up.
async fn wait(args: &WaitArgs) -> anyhow::Result<Option<v1::Event>> {
    let mut client = args.grpc.events()?;
    let started = Instant::now();

    // At most a century, which the clock can represent.
    let deadline = started + args.timeout.min(Duration::from_secs(100 * 366 * 86_400));
    let (mut backoff, mut retry_policy) = (Backoff::default(), RetryPolicy::default());
    let mut known = Err(anyhow::anyhow!("the timeout left no time to ask"));
    let mut noted = String::new();

    loop {
        let timeout = deadline
            .saturating_duration_since(Instant::now())
            .min(CALL_TIMEOUT_MAX);
        match ask(&mut client, args, timeout).await {
            Ok(answer) => match answer {
                v1::WaitTaskResponse {
                    event: Some(event),
                    done: true,
                } => return Ok(Some(event)),
                v1::WaitTaskResponse {
                    event: None,
                    done: true,
                } => bail!(ERASED),
                v1::WaitTaskResponse { event, done: false } => {
                    if note_overdue(event.as_ref(), &mut noted) {
                        return Ok(None);
                    }
                    known = Ok(event);
                    backoff.reset();
                    retry_policy.reset();
                }
            },
            Err(status) => {
                let error = args.grpc.error(&status);
                if retry_policy.is_final(&status) {
                    return Err(error);
                }
                let delay = backoff.next(args.grpc.retry_delay(&status));
                args.grpc.leave();
                note(&format!(
                    "{error:#}; trying again in {:.1} s",
                    delay.as_secs_f64()
                ));
                known = known.or(Err(error));
                sleep_until(deadline.min(Instant::now() + delay)).await;
            }
        }

        if Instant::now() >= deadline {
            let waited = humantime::format_duration(args.timeout);
            let latest = known.map_err(|error| {
                error.context(format!("no broker has answered within {waited}"))
            })?;
            note(&timed_out(args, latest.as_ref()));
            return Ok(None);
        }
    }
}

/// Says once of each overdue event that the task is late; true if the broker has given it up: then every further call would give the
/// same answer at once, until the vendor says something after all.
fn note_overdue(latest: Option<&v1::Event>, noted: &mut String) -> bool {
    let Some((event, overdue)) = latest.and_then(|event| Some((event, event.overdue.as_ref()?)))
    else {
        return false;
    };
    if *noted != event.event_id {
        noted.clone_from(&event.event_id);
        let known = render::overdue_line(overdue, Timestamp::now());
        let advice = if overdue.gave_up {
            "the broker no longer asks for it: ask the vendor yourself"
        } else {
            "waiting on"
        };
        note(&format!("overdue: {known}; {advice}"));
    }
    overdue.gave_up
}

/// One call, with a time-out of its own in case that the broker does not keep to the requested one.
async fn ask(
    client: &mut EventServiceClient<Connection>,
    args: &WaitArgs,
    timeout: Duration,
) -> Result<v1::WaitTaskResponse, Status> {
    let request = v1::WaitTaskRequest {
        task_id: args.task_id.to_string(),
        timeout: Some(wire::duration(timeout)),
        include_raw: false,
        product: args
            .product
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    };
    let give_up = Instant::now() + timeout + CALL_SLACK;
    match timeout_at(give_up, client.wait_task(request)).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::new(
            Code::DeadlineExceeded,
            "the broker does not answer",
        )),
    }
}

fn timed_out(args: &WaitArgs, latest: Option<&v1::Event>) -> String {
    let waited = humantime::format_duration(args.timeout);
    match latest {
        Some(event) => {
            let status = render::status_word(event.status());
            format!(
                "not over after {waited}; latest status: {status} ({})",
                event.product
            )
        }
        None => format!("not over after {waited}; no event of this task yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::scripted::{Script, Scripted, refusal};

    fn args(timeout: Duration, url: &str) -> WaitArgs {
        let task_id = TaskId::parse("t").unwrap();
        WaitArgs {
            task_id,
            product: None,
            timeout,
            output: WaitFormat::Urls,
            grpc: GrpcArgs::at(url),
        }
    }

    async fn waited(
        timeout: Duration,
        waits: Vec<Result<v1::WaitTaskResponse, Status>>,
    ) -> anyhow::Result<Option<v1::Event>> {
        let (_broker, url) = Scripted::serve(Script {
            waits,
            ..Script::default()
        })
        .await;
        wait(&args(timeout, &url)).await
    }

    fn event(status: v1::TaskStatus) -> Option<v1::Event> {
        Some(v1::Event {
            event_id: "e".into(),
            status: status.into(),
            ..v1::Event::default()
        })
    }

    #[tokio::test]
    async fn a_wait_goes_on_after_lost_connections_and_early_answers() {
        let done = Ok(v1::WaitTaskResponse {
            event: event(v1::TaskStatus::Failed),
            done: true,
        });
        let early = Ok(v1::WaitTaskResponse {
            event: event(v1::TaskStatus::Processing),
            done: false,
        });
        let answers = vec![Err(Status::unavailable("restarting")), early, done];
        let event = waited(Duration::from_secs(60), answers)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (event.event_id.as_str(), event.status()),
            ("e", v1::TaskStatus::Failed)
        );
    }

    #[tokio::test]
    async fn a_wait_without_time_asks_once() {
        let early = Ok(v1::WaitTaskResponse {
            event: event(v1::TaskStatus::Processing),
            done: false,
        });
        assert_eq!(waited(Duration::ZERO, vec![early]).await.unwrap(), None);
    }

    fn overdue(gave_up: bool) -> Result<v1::WaitTaskResponse, Status> {
        let event = v1::Event {
            overdue: Some(v1::Overdue {
                gave_up,
                ..v1::Overdue::default()
            }),
            ..event(v1::TaskStatus::Overdue).unwrap()
        };
        Ok(v1::WaitTaskResponse {
            event: Some(event),
            done: false,
        })
    }

    #[tokio::test]
    async fn a_wait_goes_on_over_a_late_task_and_ends_with_one_that_is_given_up() {
        let done = || {
            Ok(v1::WaitTaskResponse {
                event: event(v1::TaskStatus::Completed),
                done: true,
            })
        };
        let patience = Duration::from_secs(60);
        let late = waited(patience, vec![overdue(false), overdue(false), done()]).await;
        assert_eq!(late.unwrap().unwrap().status(), v1::TaskStatus::Completed);
        let given_up = waited(patience, vec![overdue(false), overdue(true), done()]).await;
        assert_eq!(given_up.unwrap(), None);
    }

    #[test]
    fn a_late_task_is_noted_once_for_each_of_its_events() {
        let (mut noted, late, given_up) = (String::new(), overdue(false), overdue(true));
        let event = |answer: &Result<v1::WaitTaskResponse, Status>, id: &str| v1::Event {
            event_id: id.into(),
            ..answer.clone().unwrap().event.unwrap()
        };
        assert!(!note_overdue(None, &mut noted) && noted.is_empty());
        assert!(!note_overdue(Some(&event(&late, "e1")), &mut noted));
        assert_eq!(noted, "e1");
        assert!(note_overdue(Some(&event(&given_up, "e2")), &mut noted));
        assert_eq!(noted, "e2");
    }

    #[tokio::test]
    async fn a_wait_ends_at_once_where_a_retry_cannot_help() {
        let refused = waited(
            Duration::from_secs(60),
            vec![Err(refusal(Code::PermissionDenied, "no"))],
        )
        .await;
        assert_eq!(
            refused.unwrap_err().to_string(),
            "PERMISSION_DENIED SCRIPTED: no"
        );
    }

    #[tokio::test]
    async fn a_wait_asks_for_less_than_the_minute_that_proxies_give_it() {
        let not_yet = || {
            Ok(v1::WaitTaskResponse {
                event: None,
                done: false,
            })
        };
        let done = Ok(v1::WaitTaskResponse {
            event: event(v1::TaskStatus::Completed),
            done: true,
        });
        let script = Script {
            waits: vec![not_yet(), not_yet(), done],
            ..Script::default()
        };
        let (broker, url) = Scripted::serve(script).await;
        wait(&args(Duration::from_secs(3600), &url))
            .await
            .unwrap()
            .unwrap();
        let asked: Vec<_> = broker
            .script()
            .waited
            .iter()
            .map(|request| request.timeout.unwrap().seconds)
            .collect();
        assert_eq!(asked, [50; 3]);
    }

    #[tokio::test]
    async fn a_wait_that_no_broker_answered_does_not_say_that_there_was_no_event() {
        let gone = || Err(Status::unavailable("gone"));
        let error = waited(Duration::from_millis(100), vec![gone(), gone(), gone()])
            .await
            .unwrap_err();
        assert!(
            format!("{error:#}").starts_with("no broker has answered within 100ms: cannot reach "),
            "{error:#}"
        );
        // One answer is enough to know.
        let early = Ok(v1::WaitTaskResponse {
            event: None,
            done: false,
        });
        assert_eq!(
            waited(
                Duration::from_millis(100),
                vec![early, gone(), gone(), gone()]
            )
            .await
            .unwrap(),
            None
        );
    }

    #[tokio::test]
    async fn a_wait_for_a_task_whose_end_was_erased_ends_with_an_error() {
        let erased = Ok(v1::WaitTaskResponse {
            event: None,
            done: true,
        });
        let error = waited(Duration::from_secs(60), vec![erased])
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("the task is over, and the event that ended it was erased"),
            "{error}"
        );
    }

    #[test]
    fn the_exit_code_tells_how_the_task_ended() {
        assert_eq!(exit_code(v1::TaskStatus::Completed), 0);
        assert_eq!(exit_code(v1::TaskStatus::Failed), 10);
    }
}
