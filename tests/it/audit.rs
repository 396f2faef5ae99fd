//! The audit trail: each call of `AdminService` and each change of credentials and configuration is
//! recorded before it is answered.

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process,
};

use blobcast::wire::v1::{
    self, DiscardQuarantinedRequest, ListQuarantineRequest, ReleaseQuarantinedRequest,
};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    process::Signal,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use crate::support::{CredentialsFile, Options, Server, completed, refusal, until};

/// A directory for the file, and where it is.
fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    (directory, path)
}

fn records(path: impl AsRef<Path>) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

/// The newest record of an action; it has to be there.
fn newest(path: &Path, action: &str) -> Value {
    let records = records(path);
    let found = records
        .iter()
        .rev()
        .find(|record| record["action"] == action);
    found
        .unwrap_or_else(|| panic!("no {action} in {records:?}"))
        .clone()
}

/// Runs a command of a client; its output.
async fn by(server: &Server, token: &str, line: &str) -> String {
    server
        .cli(line)
        .env("BLOBCAST_TOKEN", token)
        .run()
        .await
        .stdout
}

#[tokio::test]
async fn every_admin_call_has_a_record_of_who_from_where_what_and_how_it_ended() {
    let (_directory, path) = place();
    let mut file = CredentialsFile::new();
    let ops = file.add("client ops --all-products --admin").await;
    let reader = file.add("client reader --all-products").await;
    file.add("signing-key k1").await;
    let key = file.path();
    let options = Options::default()
        .set("credentials_file", key.display())
        .set("audit.file", path.display());
    let server = options.set("ingest.allow_unverified", true).start().await;
    let url = by(&server, &ops, "url --product veo --label team=ads --ttl 2h").await;
    let target = url.trim_end().split_once("/webhook").unwrap().1.to_owned();
    for _ in 0..2 {
        let path = format!("/webhook{target}");
        assert_eq!(
            server
                .http()
                .post_to(&path, r#"{"status":"completed"}"#)
                .await
                .status,
            202
        );
    }

    let minted = newest(&path, "MintCallbackUrl");
    assert_eq!(
        (&minted["client"], &minted["result"]),
        (&json!("ops"), &json!("ok"))
    );
    assert_eq!(
        (&minted["product"], &minted["labels"]),
        (&json!("veo"), &json!({"team": "ads"}))
    );
    assert_eq!(minted["key_id"], "k1");
    assert!(
        minted["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{minted}"
    );
    assert_eq!(minted["request_id"].as_str().unwrap().len(), 32);
    assert!(
        minted["time"].as_str().unwrap().starts_with("20") && minted["expires"].is_string(),
        "{minted}"
    );
    let signature = target.split("&sig=").nth(1).unwrap();
    assert!(
        !fs::read_to_string(&path).unwrap().contains(signature),
        "a reader of the log can use no URL"
    );

    for (line, action, details) in [
        (
            "subscriptions",
            "ListSubscriptions",
            json!({"count": 0, "result": "ok"}),
        ),
        (
            "subscriptions --ended --client ops",
            "ListEndedSubscriptions",
            json!({"count": 0, "of_client": "ops", "result": "ok"}),
        ),
        (
            "overview",
            "GetOverview",
            json!({"ready": true, "result": "ok"}),
        ),
        (
            "credentials",
            "ListCredentials",
            json!({"count": 3, "result": "ok"}),
        ),
        ("configuration", "GetConfiguration", json!({"result": "ok"})),
        (
            "refusals",
            "ListRefusals",
            json!({"count": 0, "result": "ok"}),
        ),
        (
            "quarantine list",
            "ListQuarantine",
            json!({"count": 2, "include_body": false, "result": "ok"}),
        ),
        (
            "quarantine show 2",
            "ListQuarantine",
            json!({"include_body": true, "result": "ok"}),
        ),
        (
            "quarantine release 2",
            "ReleaseQuarantined",
            json!({"quarantine_id": "2", "result": "NOT_UNDERSTOOD"}),
        ),
        (
            "quarantine release 2 --task-id t1",
            "ReleaseQuarantined",
            json!({"quarantine_id": "2", "task_id": "t1", "task_ids": ["t1"], "result": "ok"}),
        ),
        (
            "quarantine release 2 --task-id t1",
            "ReleaseQuarantined",
            json!({"quarantine_id": "2", "task_id": "t1", "result": "QUARANTINE_NOT_FOUND"}),
        ),
        (
            "quarantine discard 1",
            "DiscardQuarantined",
            json!({"quarantine_ids": ["1"], "count": 1, "result": "ok"}),
        ),
        (
            "erase veo nobody",
            "EraseTask",
            json!({"product": "veo", "task_id": "nobody", "result": "TASK_NOT_FOUND"}),
        ),
        (
            "url --label token=hush",
            "MintCallbackUrl",
            json!({"labels": {"token": "…"}, "result": "INVALID_REQUEST"}),
        ),
        (
            "subscriptions --end nobody",
            "EndSubscription",
            json!({"subscription_id": "nobody", "result": "SUBSCRIPTION_NOT_FOUND"}),
        ),
        (
            "backup -",
            "Backup",
            json!({"event_count": 1, "quarantine_count": 0, "result": "ok"}),
        ),
    ] {
        by(&server, &ops, line).await;
        // Of a backup the end is recorded when it was sent.
        until("the record", async || {
            newest(&path, action)["result"] == details["result"]
        })
        .await;
        let record = newest(&path, action);
        assert_eq!(record["client"], "ops");
        for (key, value) in details.as_object().unwrap() {
            assert_eq!(&record[key], value, "{line}: {record}");
        }
    }
    let event = server
        .cli("events --output json")
        .env("BLOBCAST_TOKEN", &ops)
        .run()
        .await
        .json_lines()
        .remove(0);
    let released = records(&path)
        .into_iter()
        .find(|it| it["action"] == "ReleaseQuarantined" && it["result"] == "ok");
    assert_eq!(released.unwrap()["event_ids"], json!([event["event_id"]]));
    assert_eq!(event["credential"], "signing_key k1");

    // A client that may not: each refusal is one of its own, and many of them are one record.
    for _ in 0..20 {
        by(&server, &reader, "quarantine list").await;
    }
    let denied: Vec<_> = records(&path)
        .into_iter()
        .filter(|record| record["client"] == "reader")
        .collect();
    assert!((1..10).contains(&denied.len()), "{denied:?}");
    assert_eq!(
        (&denied[0]["action"], &denied[0]["result"]),
        (&json!("ListQuarantine"), &json!("ADMIN_DENIED"))
    );
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn who_released_an_entry_is_answered_by_one_command_of_the_log_or_of_the_file() {
    let (_directory, path) = place();
    let mut file = CredentialsFile::new();
    let ops = file.add("client ops --all-products --admin").await;
    let options = Options::default().set("credentials_file", file.path().display());
    let server = options.set("audit.file", path.display()).start().await;
    for _ in 0..2 {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", r#"{"status":"completed"}"#)
                .await
                .status,
            202
        );
    }
    by(&server, &ops, "quarantine release 1 --task-id t1").await;
    by(&server, &ops, "quarantine release 2 --task-id t2").await;
    until("the line", async || server.log().contains("task_id=t2")).await;

    // The commands of docs/access.md, with the journal's and the file's place taken by this broker's.
    let (directory, page) = (
        tempfile::tempdir().unwrap(),
        include_str!("../../docs/access.md"),
    );
    let log = directory.path().join("log");
    fs::write(&log, server.log()).unwrap();
    let commands: Vec<_> = page
        .lines()
        .filter(|line| line.contains("# who released entry 2"))
        .collect();
    assert_eq!(commands.len(), 2, "{commands:?}");
    for command in commands {
        let command = command.replace(
            "journalctl -u blobcast -o cat",
            &format!("cat {}", log.display()),
        );
        let command = command.replace("/var/log/blobcast/audit.jsonl", &path.display().to_string());
        let done = process::Command::new("bash")
            .arg("-c")
            .arg(&command)
            .output()
            .unwrap();
        let said = String::from_utf8(done.stdout).unwrap();
        let [line] = &said.lines().collect::<Vec<_>>()[..] else {
            panic!("{command}: one line, not {said}")
        };
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&record["client"], &record["result"]),
            (&json!("ops"), &json!("ok")),
            "{command}"
        );
    }
    assert!(
        server.log().contains("\"target\":\"blobcast::audit\""),
        "it can be filtered by that"
    );
}

#[tokio::test]
async fn sighup_opens_the_file_anew_and_one_that_cannot_be_opened_goes_on_to_be_written() {
    let (directory, path) = place();
    let server = Options::default()
        .set("audit.file", path.display())
        .start()
        .await;
    let reopened = async |result: &str, count: f64| {
        server.signal(Signal::HUP);
        let metric = format!("blobcast_reloads_total{{result=\"{result}\",what=\"audit_file\"}}");
        until("the reload", async || server.metric(&metric).await == count).await;
    };
    server.cli("subscriptions").run().await.good();
    let moved = directory.path().join("audit.jsonl.1");
    fs::rename(&path, &moved).unwrap();
    server.cli("subscriptions").run().await.good();
    let before = fs::read_to_string(&moved).unwrap();
    reopened("done", 1.0).await;
    server.cli("quarantine list").run().await.good();
    assert_eq!(newest(&path, "ListQuarantine")["result"], "ok");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(
        fs::read_to_string(&moved).unwrap().starts_with(&before),
        "nothing is lost between the two"
    );

    // A directory is in the file's place: the broker goes on with the open file, and logs that.
    let second = directory.path().join("audit.jsonl.2");
    fs::rename(&path, &second).unwrap();
    fs::create_dir(&path).unwrap();
    reopened("refused", 1.0).await;
    server.cli("subscriptions").run().await.good();
    assert_eq!(newest(&second, "ListSubscriptions")["result"], "ok");
    until("the complaint", async || {
        server
            .log()
            .contains("the audit file stays the one that was open")
    })
    .await;
}

#[tokio::test]
async fn a_line_that_a_crash_has_torn_hides_no_other() {
    let (_directory, path) = place();
    fs::write(&path, "{\"time\":\"2026-").unwrap();
    let server = Options::default()
        .set("audit.file", path.display())
        .start()
        .await;
    server.cli("subscriptions").run().await.good();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().map(serde_json::from_str::<Value>).collect();
    assert!(
        lines[0].is_err() && lines[1..].iter().all(Result::is_ok),
        "{text}"
    );
    assert_eq!(
        lines.last().unwrap().as_ref().unwrap()["action"],
        "ListSubscriptions"
    );
}

/// A regular file in memory, which can be made to take nothing any more.
fn limited() -> (OwnedFd, PathBuf) {
    let file = memfd_create("audit", MemfdFlags::ALLOW_SEALING).unwrap();
    let path = format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd());
    (file, path.into())
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done_if_it_has_to_be_recorded() {
    for is_required in [true, false] {
        let (file, path) = limited();
        let options = Options::default()
            .set("audit.file", path.display())
            .set("audit.required", is_required);
        let server = options.start().await;
        for _ in 0..2 {
            assert_eq!(
                server
                    .http()
                    .post_to("/webhook/veo", r#"{"status":"completed"}"#)
                    .await
                    .status,
                202
            );
        }
        let mut admin = server.admin_service().await;
        let release = |id: &str| ReleaseQuarantinedRequest {
            quarantine_id: id.into(),
            task_id: "t1".into(),
            ..Default::default()
        };
        admin.release_quarantined(release("1")).await.unwrap();
        let of_release = records(&path)
            .into_iter()
            .filter(|record| record["action"] == "ReleaseQuarantined");
        let results: Vec<_> = of_release
            .map(|record| record["result"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            results,
            if is_required {
                &["begun", "ok"][..]
            } else {
                &["ok"]
            }
        );

        // As if the disk were full.
        fcntl_add_seals(&file, SealFlags::GROW).unwrap();
        let whole = records(&path);
        let released = admin.release_quarantined(release("2")).await;
        let discard = DiscardQuarantinedRequest {
            quarantine_ids: vec!["2".into()],
        };
        let discarded = admin.discard_quarantined(discard).await;
        let listed = admin
            .list_quarantine(ListQuarantineRequest::default())
            .await;
        let backup = admin.backup(v1::BackupRequest {}).await;
        let log = server.log_of_events().await;
        if is_required {
            let refused = [released.err(), discarded.err(), listed.err(), backup.err()];
            for refused in refused {
                let refused = refused.expect("it was refused");
                assert_eq!(
                    refusal(&refused),
                    (Code::Unavailable, "AUDIT_UNAVAILABLE".into())
                );
            }
            assert_eq!(log.len(), 1, "readers go on, and nothing was released");
            assert_eq!(server.log_info().await.quarantine_count, 1, "nor discarded");
        } else {
            assert_eq!(
                (
                    released.is_ok(),
                    discarded.is_ok(),
                    listed.is_ok(),
                    backup.is_ok()
                ),
                (true, true, true, true)
            );
        }
        assert_eq!(
            records(&path),
            whole,
            "nothing of what could not be written is left there"
        );
        assert!(
            server
                .metric("blobcast_audit_records_total{result=\"lost\"}")
                .await
                >= 4.0
        );
        until("the complaint", async || {
            server.log().contains("audit records cannot be written")
        })
        .await;
        assert_eq!(
            server.http().post(&completed("t9")).await.status,
            200,
            "callbacks have nothing to do with it"
        );
    }
}

#[tokio::test]
async fn a_change_of_credentials_and_of_the_configuration_is_recorded_with_what_has_changed() {
    let (directory, path) = place();
    let config = directory.path().join("blobcast.toml");
    fs::write(&config, "").unwrap();
    let mut file = CredentialsFile::new();
    file.add("callback runblob").await;
    file.add("callback old").await;
    let options = Options::default()
        .set("config", config.display())
        .set("audit.file", path.display());
    let server = options
        .set("credentials_file", file.path().display())
        .start()
        .await;
    until("the start", async || {
        path.exists() && records(&path).iter().any(|it| it["action"] == "start")
    })
    .await;
    assert_eq!(
        newest(&path, "start")["credentials"],
        json!(["callback_token old", "callback_token runblob"])
    );

    let until_recorded = async |action: &str, key: &str, value: &Value| {
        let is_it = |record: &Value| record["action"] == action && record[key] == *value;
        until("the record", async || records(&path).iter().any(is_it)).await;
        records(&path).into_iter().rev().find(is_it).unwrap()
    };
    file.remove("old");
    let changes = json!(["callback_token old removed"]);
    let record = until_recorded("credentials", "changes", &changes).await;
    assert_eq!(
        (&record["result"], &record["by"]),
        (&json!("ok"), &json!("a changed file"))
    );
    assert_eq!(record["files"], json!([file.path().display().to_string()]));

    // The log distinguishes a binding that is removed from a token that is replaced.
    let bound = fs::read_to_string(file.path()).unwrap();
    file.write(&bound.replace(" }", ", labels = { team = \"ads\" } }"));
    until_recorded(
        "credentials",
        "changes",
        &json!(["callback_token runblob changed: labels"]),
    )
    .await;
    let other = format!("sha256:{}", "5".repeat(64));
    file.write(&format!(
        "[callback_tokens]\nrunblob = {{ token = \"{other}\", bytes_per_minute_max = \"1MiB\" }}\n"
    ));
    let changes =
        json!(["callback_token runblob changed: token, created, bytes_per_minute_max, labels"]);
    let record = until_recorded("credentials", "changes", &changes)
        .await
        .to_string();
    assert!(
        !record.contains(&other) && !record.contains("ads"),
        "no values: {record}"
    );
    file.write("[callback_tokens]\nrunblob = { token = \"hush-hush\" }\n");
    let record = until_recorded("credentials", "result", &json!("refused")).await;
    assert!(
        record["problem"].as_str().unwrap().contains("runblob")
            && !record.to_string().contains("hush"),
        "{record}"
    );

    fs::write(
        &config,
        "[log]\nretention_age_max = \"9d\"\n[grpc]\ntask_ids_max = 7\n",
    )
    .unwrap();
    server.signal(Signal::HUP);
    let record = until_recorded("configuration", "result", &json!("ok")).await;
    assert_eq!(
        record["changes"],
        json!(["log.retention_age_max: 604800s -> 777600s"])
    );
    assert_eq!(record["need_a_restart"], json!(["grpc.task_ids_max"]));
    fs::write(&config, "[log]\nretention_age_mx = \"9d\"\n").unwrap();
    server.signal(Signal::HUP);
    let record = until_recorded("configuration", "result", &json!("refused")).await;
    assert!(
        record["problems"][0]
            .as_str()
            .unwrap()
            .contains("retention_age_mx"),
        "{record}"
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_ends_the_start_with_what_to_do() {
    let (directory, _) = place();
    for (path, problem, step) in [
        (
            directory.path().join("missing/audit.jsonl"),
            "No such file or directory",
            " has to write in it: `install -d -o ",
        ),
        (
            directory.path().to_owned(),
            "Is a directory",
            "; name a regular file",
        ),
    ] {
        let mut command = Options::default()
            .set("audit.file", path.display())
            .command(
                &directory.path().join("data"),
                [crate::support::ANY_PORT; 3],
            );
        let done = command.output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(
            !done.status.success()
                && said.contains("cannot open audit.file")
                && said.contains(problem),
            "{said}"
        );
        assert!(said.contains(step), "{said}");
    }
}
