//! `Place` alone, and `listen` against a scripted broker.

use std::{io, sync::Arc};

use clap::Parser;
use parking_lot::Mutex;
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::cli::scripted::{Script, Scripted};

fn place(task_ids: &[&str], start: Option<Start>) -> Place {
    let task_ids: Vec<_> = task_ids.iter().map(|&id| id.to_owned()).collect();
    let until_terminal = !task_ids.is_empty();
    let filter = Some(v1::Filter {
        task_ids,
        ..v1::Filter::default()
    });
    let request = v1::SubscribeRequest {
        filter,
        start,
        until_terminal,
        ..v1::SubscribeRequest::default()
    };
    Place {
        request,
        cursor: None,
    }
}

fn event(task_id: &str, cursor: &str, terminal: bool) -> v1::Event {
    v1::Event {
        task_id: task_id.into(),
        cursor: cursor.into(),
        terminal,
        ..v1::Event::default()
    }
}

fn completed(cursor: &str) -> Content {
    Content::Completed(v1::Completed {
        cursor: cursor.to_owned(),
    })
}

fn after(cursor: &str) -> Option<Start> {
    Some(Start::AfterCursor(cursor.to_owned()))
}

#[test]
fn after_a_break_the_stream_goes_on_behind_the_last_cursor() {
    let mut place = place(&[], Some(Start::Position(v1::StartPosition::Latest.into())));
    assert_eq!(place.next_request(), place.request);
    place.subscribed("head".into());
    assert_eq!(place.next_request().start, after("head"));
    place.reached("c1".into());
    place.reached(String::new());
    assert_eq!(place.next_request().start, after("c1"));
}

#[test]
fn a_stream_that_does_not_begin_at_the_head_is_asked_for_again_until_something_was_delivered() {
    let earliest = Some(Start::Position(v1::StartPosition::Earliest.into()));
    let since = Some(Start::Since(prost_types::Timestamp::default()));
    for (task_ids, start) in [
        (&["t"][..], None),
        (&[][..], earliest),
        (&[][..], since),
        (&[][..], after("c0")),
    ] {
        let mut place = place(task_ids, start.clone());
        place.subscribed("first".into());
        assert_eq!(place.next_request().start, start);
        place.reached("c1".into());
        place.subscribed("c1".into());
        assert_eq!(place.next_request().start, after("c1"));
    }
    let mut place = place(&[], None);
    place.subscribed("head".into());
    assert_eq!(place.next_request().start, after("head"));
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: ListenArgs,
}

#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Printed {
    fn cursors(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        let cursor = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["cursor"].to_string()
        };
        text.lines()
            .map(cursor)
            .map(|quoted| quoted.trim_matches('"').to_owned())
            .collect()
    }
}

/// Runs `listen FLAGS` against the script; returns its result, its output, and its requests.
async fn listen(
    flags: &str,
    script: Script,
) -> (anyhow::Result<()>, Vec<String>, Vec<v1::SubscribeRequest>) {
    let (broker, url) = Scripted::serve(script).await;
    let words = ["listen", "--grpc-url", &url]
        .into_iter()
        .chain(flags.split_whitespace());
    let args = Line::try_parse_from(words)
        .unwrap_or_else(|error| panic!("{error}"))
        .args;
    let mut listener = Listener::new(args, Timestamp::UNIX_EPOCH).unwrap();
    let printed = Printed::default();
    listener.printer = EventPrinter::json_to(printed.clone());
    let ended = listener.run().await;
    let subscribed = broker.script().subscribed.clone();
    (ended, printed.cursors(), subscribed)
}

fn subscribed(cursor: &str) -> Content {
    Content::Subscribed(v1::Subscribed {
        cursor: cursor.into(),
        ..v1::Subscribed::default()
    })
}

fn starts(requests: &[v1::SubscribeRequest]) -> Vec<Option<Start>> {
    requests
        .iter()
        .map(|request| request.start.clone())
        .collect()
}

#[tokio::test]
async fn a_broken_stream_is_continued_from_the_last_cursor_of_any_kind() {
    let broken = || Err(Status::unavailable("gone"));
    let progress = v1::Progress {
        cursor: "c2".into(),
        ..v1::Progress::default()
    };
    let going_away = v1::GoingAway {
        cursor: "c4".into(),
        ..v1::GoingAway::default()
    };
    let script = Script {
        streams: vec![
            (vec![subscribed("c0")], broken()),
            (
                vec![
                    subscribed("c0"),
                    Content::Event(event("a", "c1", true)),
                    Content::Progress(progress),
                ],
                broken(),
            ),
            (
                vec![
                    Content::Event(event("a", "c3", true)),
                    Content::GoingAway(going_away),
                ],
                broken(),
            ),
            (vec![Content::Event(event("b", "c5", true))], Ok(())),
        ],
        ..Script::default()
    };
    let (ended, printed, requests) = listen("--count 3", script).await;
    ended.unwrap();
    assert_eq!(printed, ["c1", "c3", "c5"]);
    assert_eq!(
        starts(&requests),
        [None, after("c0"), after("c2"), after("c4")]
    );
}

#[tokio::test]
async fn until_terminal_ends_across_a_break() {
    let script = Script {
        streams: vec![
            (
                vec![subscribed("c0"), Content::Event(event("a", "c1", true))],
                Err(Status::unknown("reset")),
            ),
            (
                vec![
                    subscribed("c1"),
                    Content::Event(event("b", "c2", true)),
                    completed("c2"),
                ],
                Ok(()),
            ),
        ],
        ..Script::default()
    };
    let (ended, printed, requests) = listen("--task a --task b --until-terminal", script).await;
    ended.unwrap();
    assert_eq!(printed, ["c1", "c2"]);
    assert_eq!(starts(&requests), [None, after("c1")]);
    assert!(
        requests.iter().all(|request| request.until_terminal),
        "the broker counts what was before the cursor"
    );
}

#[tokio::test]
async fn an_error_that_a_retry_cannot_help_ends_it_with_the_reason() {
    let details = ErrorDetails::with_error_info(
        "CURSOR_EXPIRED",
        "blobcast",
        [("head".to_owned(), "c9".to_owned())],
    );
    let expired = Status::with_error_details(Code::OutOfRange, "too old", details);
    let script = Script {
        streams: vec![(vec![], Err(expired))],
        ..Script::default()
    };
    let (ended, _, requests) = listen("", script).await;
    assert!(
        ended
            .unwrap_err()
            .to_string()
            .starts_with("OUT_OF_RANGE CURSOR_EXPIRED: too old [head=c9]; ")
    );
    assert_eq!(requests.len(), 1);
}

#[test]
fn flags_that_make_no_sense_together_are_refused() {
    for flags in ["--until-terminal", "--include-raw"] {
        let args = Line::try_parse_from(["listen", flags])
            .unwrap_or_else(|error| panic!("{error}"))
            .args;
        assert!(
            request(&args, Timestamp::UNIX_EPOCH)
                .unwrap_err()
                .is::<Usage>(),
            "{flags}"
        );
    }
}

#[tokio::test]
async fn an_error_without_a_brokers_reason_is_a_break_like_any_other() {
    // Answers of proxies without their broker: nginx, HAProxy, and a route that does not exist yet.
    let broken = [
        Status::internal("reset"),
        Status::unknown("no trailers"),
        Status::unimplemented("404"),
    ];
    let streams = broken
        .into_iter()
        .map(|status| (vec![subscribed("c0")], Err(status)));
    let last = (vec![Content::Event(event("a", "c1", true))], Ok(()));
    let script = Script {
        streams: streams.chain([last]).collect(),
        ..Script::default()
    };
    let (ended, printed, requests) = listen("--count 1", script).await;
    ended.unwrap();
    assert_eq!(
        (printed.as_slice(), requests.len()),
        (&["c1".to_owned()][..], 4)
    );
}
