//! What a running broker says of its configuration and its credentials file: values with their origins, names with their rights,
//! and never a secret.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{CredentialsFile, Options, Server, completed, until};

/// The line of a listing whose `field` is `value`.
#[track_caller]
fn line<'a>(lines: &'a [Value], field: &str, value: &str) -> &'a Value {
    let found = lines.iter().find(|line| line[field] == value);
    found.unwrap_or_else(|| panic!("no {field} {value} in {lines:?}"))
}

async fn configuration(server: &Server, flags: &str) -> Vec<Value> {
    let ran = server
        .cli(&format!("configuration --output json {flags}"))
        .run()
        .await;
    ran.good();
    ran.json_lines()
}

#[tokio::test]
async fn each_key_is_shown_with_its_value_and_where_that_comes_from() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("blobcast.toml");
    fs::write(
        &file,
        "[log]\nretention_age_max = \"2d\"\n[hub]\nring_bytes_max = \"8MiB\"\n",
    )
    .unwrap();
    let server = Options::default()
        .variable("BLOBCAST_CONFIG", file.display())
        .set("ingest.body_bytes_max", "2MiB")
        .start()
        .await;

    let all = configuration(&server, "").await;
    let documented = include_str!("../../src/config/default.toml");
    let keys = documented
        .lines()
        .filter(|line| !line.starts_with('#') && line.contains(" = "));
    assert_eq!(all.len(), keys.count());
    for (key, value, source) in [
        (
            "quarantine.retention_age_max",
            "30d",
            "SETTING_SOURCE_DEFAULT_FILE",
        ),
        ("log.retention_age_max", "2d", "SETTING_SOURCE_FILE"),
        (
            "ingest.body_bytes_max",
            "2MiB",
            "SETTING_SOURCE_ENVIRONMENT",
        ),
        (
            "ingest.listen",
            &server.ingest.to_string(),
            "SETTING_SOURCE_FLAG",
        ),
    ] {
        let shown = line(&all, "key", key);
        // A test listens on port 0, and that is how it is written.
        if key != "ingest.listen" {
            assert_eq!(shown["value"], value, "{shown}");
        }
        assert_eq!(shown["source"], source, "{shown}");
    }
    let age = line(&all, "key", "log.retention_age_max");
    assert_eq!(age["origin"], format!("{}:2", file.display()));
    assert_eq!(
        (&age["default_value"], &age["reloadable"]),
        (&json!("7d"), &json!(true))
    );

    // A reload takes up one key; the other one waits for a restart.
    fs::write(
        &file,
        "[hub]\nring_bytes_max = \"16MiB\"\n[log]\nretention_age_max = \"3d\"\n",
    )
    .unwrap();
    server.signal(Signal::HUP);
    until("the reload", async || {
        line(
            &configuration(&server, "").await,
            "key",
            "log.retention_age_max",
        )["value"]
            == "3d"
    })
    .await;
    let all = configuration(&server, "--changed").await;
    let age = line(&all, "key", "log.retention_age_max");
    assert_eq!(age["origin"], format!("{}:4", file.display()));
    let ring = line(&all, "key", "hub.ring_bytes_max");
    assert_eq!(
        (&ring["value"], &ring["pending_value"]),
        (&json!("8MiB"), &json!("16MiB"))
    );
    assert_eq!(ring["pending_origin"], format!("{}:2", file.display()));
    assert!(
        all.iter()
            .all(|line| line["key"] != "quarantine.retention_age_max")
    );

    let table = server.cli("configuration --changed").run().await;
    let rows: Vec<_> = table.good().lines().collect();
    assert!(
        rows[0].starts_with("KEY ") && rows[0].contains("  VALUE "),
        "{table:?}"
    );
    assert!(
        rows.iter()
            .any(|row| row.starts_with("log.retention_age_max ")),
        "{table:?}"
    );
    let restart = "hub.ring_bytes_max is \"16MiB\" after a restart, by ";
    assert!(table.stderr.contains(restart), "{table:?}");
}

#[tokio::test]
async fn credentials_are_listed_with_rights_expiry_and_last_use_and_without_secrets() {
    let mut file = CredentialsFile::new();
    let token = file.add("callback runblob --expires-in 90d").await;
    file.add("callback unused --product veo --label team=ads")
        .await;
    let key = file.add("signing-key k1").await;
    let ops = file.add("client ops --all-products --admin --backup").await;
    let reader = file.add("client reader --product veo").await;
    let server = Options::default()
        .set("credentials_file", file.path().display())
        .start()
        .await;
    let posted = server
        .http()
        .post_to(
            &format!("/webhook/veo?token={token}"),
            completed("t1").to_string(),
        )
        .await;
    assert_eq!(posted.status, 200);

    let cli = async |line: &str| server.cli(line).env("BLOBCAST_TOKEN", &ops).run().await;
    let ran = cli("credentials --output json").await;
    assert_eq!(
        ran.each("name"),
        ["runblob", "unused", "k1", "ops", "reader"]
    );
    let lines = ran.json_lines();
    let used = line(&lines, "name", "runblob");
    assert_eq!(used["kind"], "CREDENTIAL_KIND_CALLBACK_TOKEN");
    assert!(
        used["last_used_at"].is_string() && used["expires_at"].is_string(),
        "{used}"
    );
    let unused = line(&lines, "name", "unused");
    assert_eq!(
        (&unused["last_used_at"], &unused["expires_at"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (&unused["products"], &unused["labels"]),
        (&json!(["veo"]), &json!({"team": "ads"}))
    );
    let admin = line(&lines, "name", "ops");
    assert_eq!(
        (&admin["admin"], &admin["backup"], &admin["products"]),
        (&json!(true), &json!(true), &json!(["*"]))
    );
    assert!(
        admin["last_used_at"].is_string(),
        "by this very call: {admin}"
    );
    let hashes = fs::read_to_string(file.path()).unwrap();
    let hash = hashes
        .split('"')
        .find(|text| text.starts_with("sha256:"))
        .unwrap();
    for secret in [&*token, &*key, &*ops, &*reader, hash, "sha256"] {
        assert!(!ran.stdout.contains(secret), "{secret}");
    }

    // During a rotation there are two rows, which say who still uses the old one.
    file.change("rotate client reader").await;
    until("the rotation", async || {
        cli("credentials --kind client")
            .await
            .good()
            .contains("reader (previous)")
    })
    .await;
    let table = cli("credentials --kind client").await;
    let rows: Vec<_> = table.good().lines().collect();
    assert!(
        rows[0].starts_with("NAME ") && rows[0].ends_with("  RIGHTS"),
        "{table:?}"
    );
    assert!(
        rows[1].starts_with("ops ") && rows[1].ends_with("  *         admin backup"),
        "{table:?}"
    );
    assert_eq!(rows.len(), 4, "{table:?}");
    let none = cli("credentials --kind vendor-key").await;
    assert_eq!(
        (none.good(), &*none.stderr),
        ("", "the broker knows no such credential\n")
    );
}
