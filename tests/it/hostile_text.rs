//! Untrusted text is escaped by every verb that prints it, so that it can neither control nor
//! mislead an operator's terminal.

use serde_json::{Value, json};

use crate::support::{Ran, Server, completed, until, with};

/// Overrides, isolates, zero-width characters, separators, tags, variation selectors and controls of both kinds.
const ODD: &str = "\u{202e}\u{2066}\u{200b}\u{2028}\u{9b}31m\u{1b}[31m\u{7f}\u{85}\u{feff}\u{e0041}\u{fe01}\u{3164}";
/// The same as it is shown.
const SHOWN: &str = "\\u{202e}\\u{2066}\\u{200b}\\u{2028}\\u{9b}31m\\u{1b}[31m\\u{7f}\\u{85}\\u{feff}\\u{e0041}\\u{fe01}\\u{3164}";
/// Those of them that a URL may have: with a control or a blank in it, it is none.
const ODD_IN_URL: &str = "\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}\u{fe01}\u{3164}";
const SHOWN_IN_URL: &str = "\\u{202e}\\u{2066}\\u{200b}\\u{feff}\\u{e0041}\\u{fe01}\\u{3164}";

fn steers_or_hides(c: char) -> bool {
    let is_line_end = c == '\n' || c == '\r';
    (c.is_control() && !is_line_end) || ODD.contains(c) && !c.is_ascii_graphic()
}

#[track_caller]
fn assert_is_harmless(what: &str, ran: &Ran) {
    for text in [&ran.stdout, &ran.stderr] {
        let odd: String = text.chars().filter(|&c| steers_or_hides(c)).collect();
        assert!(
            odd.is_empty(),
            "{what} passes on {}: {text:?}",
            odd.escape_unicode()
        );
    }
}

/// A broker that knows callbacks of a stranger, and a client with an odd name.
async fn server() -> Server {
    let server = Server::start().await;
    let http = server.http();
    let odd = json!({"generation_id": "t\u{202e}1", "status": "failed", "error": format!("x{ODD}"),
        "prompt": format!("p{ODD}"), "completed_at": null});
    http.post_to("/webhook/veo", odd.to_string())
        .await
        .event_id();
    let url = format!("https://x/{ODD_IN_URL}");
    http.post_to(
        "/webhook/veo",
        with(completed("t2"), json!({"video_url": url})).to_string(),
    )
    .await
    .event_id();
    http.post_to(
        "/webhook/veo?team=%E2%80%AE%C2%9B31m",
        completed("t3").to_string(),
    )
    .await;
    let unknown = json!({"generation_id": "t4", "status": format!("odd{ODD}")});
    http.post_to("/webhook/veo", unknown.to_string()).await;
    // Into quarantine: a product that is none, and bodies that are no JSON, one of them not even text.
    let body = json!({"generation_id": "t5", "status": "completed", "x": ODD});
    http.post_to("/webhook/veo%E2%80%AE%C2%9B", body.to_string())
        .await;
    http.post_to("/webhook/veo", format!("{{\"bad\": {ODD}\r\nid        9\n"))
        .await;
    server
}

#[tokio::test]
async fn every_listing_shows_what_steers_or_hides_as_escapes() {
    let server = server().await;
    let name = format!("boss{ODD}\nx");
    let _listen = server.cli("listen").arg("--name").arg(&name).start();
    until("the subscription", async || {
        server.subscriptions().await.len() == 1
    })
    .await;
    for (line, shown) in [
        ("events", SHOWN),
        ("get t2", SHOWN_IN_URL),
        ("get t\u{202e}1", SHOWN),
        ("get \u{202e}", "\\u{202e}"),
        ("events --output json", "\\u202e"),
        ("get t2 --output json --include-raw", "\\u202e"),
        ("listen --from earliest --count 3", SHOWN),
        ("listen --from earliest --count 3 --output json", "\\u009b"),
        ("wait t2", SHOWN_IN_URL),
        ("wait t\u{202e}1", SHOWN),
        ("wait t2 --output json", "\\u200b"),
        ("wait t\u{2067}9 --timeout 0s", "not over"),
        ("quarantine list", "2  "),
        ("quarantine list --output json", "not_json"),
        ("quarantine show 2", SHOWN),
        ("quarantine show 2 --output json", "\\u2028"),
        ("quarantine show \u{202e}", "\\u{202e}"),
        ("quarantine release \u{202e}", "not a quarantine id"),
        ("subscriptions", "boss\\u{202e}"),
        ("subscriptions --output json", "boss\\u202e"),
        ("trigger --task-id t\u{202e}6", "t\\u{202e}6 200"),
        ("events --grpc-url http://127.0.0.1:1/\u{202e}", "error"),
    ] {
        let ran = server.cli(line).run().await;
        assert_is_harmless(line, &ran);
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(
            said.contains(shown),
            "`{line}` does not say {shown}: {said}"
        );
    }
}

#[tokio::test]
async fn json_is_the_same_json_although_it_is_escaped() {
    let server = server().await;
    let events = server
        .cli("events --output json --include-raw")
        .run()
        .await
        .json_lines();
    let log = server.log_of_events().await;
    let texts = |of: &Value| {
        (
            of["task_id"].clone(),
            of["prompt"].clone(),
            of["outputs"].clone(),
        )
    };
    for (line, event) in events.iter().zip(&log) {
        let outputs: Vec<_> = event.outputs.iter().map(|one| one.url.as_str()).collect();
        let (task_id, prompt, shown) = texts(line);
        assert_eq!(
            (task_id, prompt),
            (event.task_id.clone().into(), event.prompt.clone().into())
        );
        let shown: Vec<_> = shown
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["url"].as_str().unwrap())
            .collect();
        assert_eq!(shown, outputs);
    }
    assert_eq!(events[0]["prompt"], format!("p{ODD}"));
    let quarantined = server
        .cli("quarantine show 2 --output json")
        .run()
        .await
        .json_lines();
    assert_eq!(
        quarantined[0]["raw_body"],
        format!("{{\"bad\": {ODD}\r\nid        9\n")
    );
}

#[tokio::test]
async fn on_a_terminal_nothing_steers_and_tables_fit_it() {
    let server = server().await;
    server
        .http()
        .post_to(&format!("/webhook/{}", "A".repeat(8_000)), "x")
        .await;
    let label = format!("team={}", "日".repeat(200));
    let _listen = server
        .cli("listen --product veo --label")
        .arg(label)
        .start();
    until("the subscription", async || {
        server.subscriptions().await.len() == 1
    })
    .await;
    for line in [
        "events",
        "events --output json",
        "quarantine show 2 --output json",
        "get t2",
        "wait t2",
    ] {
        let ran = server
            .cli(line)
            .env("NO_COLOR", 1)
            .start_on_terminal(120)
            .ended()
            .await;
        assert!(!ran.good().is_empty(), "{ran:?}");
        assert_is_harmless(line, &ran);
    }
    for (line, columns) in ["quarantine list", "subscriptions"]
        .into_iter()
        .flat_map(|line| [(line, 120), (line, 80), (line, 50)])
    {
        let ran = server.cli(line).start_on_terminal(columns).ended().await;
        assert!(ran.good().contains('…'), "{line}: {ran:?}");
        // Wide characters are in no row but as an even number of columns, so none can stand over the edge.
        for row in ran.stdout.lines() {
            let width: usize = row.chars().map(|c| if c == '日' { 2 } else { 1 }).sum();
            assert!(
                width <= columns.into(),
                "{line}: {width} columns of {columns}: {row}"
            );
        }
    }
    // Into a pipe, where nobody says how wide it is, the other rows are as short as without the long one.
    let piped = server.cli("quarantine list").run().await;
    assert!(
        piped.good().lines().all(|row| row.chars().count() < 180),
        "{piped:?}"
    );
    let whole = server.cli("quarantine list --output json").run().await;
    assert!(
        whole
            .each("target")
            .iter()
            .any(|target| target.len() > 8_000)
    );
}

#[tokio::test]
async fn a_body_that_a_terminal_would_obey_is_not_written_to_one() {
    let server = server().await;
    server
        .http()
        .post_to("/webhook/veo", "not json,\nbut harmless")
        .await;
    let steering = server.cli("quarantine show 2 --output body");
    let refused = steering.start_on_terminal(80).ended().await;
    assert!(
        refused
            .exited(1)
            .contains("write it to a file, or use --output pretty"),
        "{refused:?}"
    );
    assert_eq!(refused.stdout, "");
    let harmless = server
        .cli("quarantine show 3 --output body")
        .start_on_terminal(80)
        .ended()
        .await;
    assert_eq!(harmless.good(), "not json,\r\nbut harmless");
    let piped = server.cli("quarantine show 2 --output body").run().await;
    assert!(piped.good().contains(ODD));
}
