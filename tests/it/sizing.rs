//! The formulas for disk and memory, measured on real brokers; the warnings at a start; and
//! `blobcast size`.

use std::{
    fs,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use blobcast::sizing::disk::{Directory, event_bytes};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Cli, Options, Server};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The formula may say more than there is, by a quarter at most, and hardly less.
const TOLERATED: RangeInclusive<f64> = 0.9..=1.25;
const CALLBACKS: usize = 3_000;
const SENDERS: usize = 8;

/// Every example of the vendor: product and body.
fn examples() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vendor");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    paths.sort();
    let example = |path: &PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy();
        let product = name
            .rsplit_once('-')
            .unwrap()
            .0
            .trim_end_matches("-legacy")
            .to_owned();
        (
            product,
            serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap(),
        )
    };
    paths.iter().map(example).collect()
}

/// The vendor's examples, each for a task of its own, with a prompt of so many characters if it is not 0.
fn callbacks(prompt_chars: usize) -> Vec<(String, String)> {
    let examples = examples();
    let callback = |number: usize| {
        let (product, body) = &examples[number % examples.len()];
        let mut body = body.clone();
        let id = ["generation_id", "task_uuid", "task_id"]
            .into_iter()
            .find(|key| body.get(key).is_some())
            .unwrap();
        body[id] = uuid::Uuid::new_v4().to_string().into();
        if prompt_chars > 0 {
            body["prompt"] = "x".repeat(prompt_chars).into();
        }
        (format!("/webhook/{product}"), body.to_string())
    };
    (0..CALLBACKS).map(callback).collect()
}

/// Posts all of them, some at a time, as callbacks come.
async fn post_all(server: &Server, callbacks: Vec<(String, String)>, status: u16) {
    let senders = (0..SENDERS).map(|sender| {
        let (http, part) = (
            server.http(),
            callbacks
                .iter()
                .skip(sender)
                .step_by(SENDERS)
                .cloned()
                .collect::<Vec<_>>(),
        );
        tokio::spawn(async move {
            for (path, body) in part {
                assert_eq!(http.post_to(&path, body).await.status, status);
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }
}

/// Bytes of the log's files that are in use: behind them are zeros.
fn log_bytes(data_dir: &Path) -> u64 {
    let files = fs::read_dir(data_dir.join("log"))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap());
    files
        .map(|bytes| {
            bytes
                .iter()
                .rposition(|&byte| byte != 0)
                .map_or(0, |last| last as u64 + 1)
        })
        .sum()
}

/// What a directory or a file takes of the disk.
fn disk_bytes(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    let below = metadata.is_dir().then(|| {
        fs::read_dir(path)
            .unwrap()
            .map(|entry| disk_bytes(&entry.unwrap().path()))
    });
    metadata.blocks() * 512 + below.into_iter().flatten().sum::<u64>()
}

fn check(what: &str, formula: u64, real: u64, tolerated: RangeInclusive<f64>) {
    let ratio = formula as f64 / real as f64;
    assert!(
        tolerated.contains(&ratio),
        "{what}: the formula says {formula}, and there are {real} bytes: {ratio:.3}"
    );
}

#[tokio::test]
async fn a_real_data_directory_is_as_large_as_the_formula_says() {
    // As the vendor documents them, and with prompts that make them 3 kB.
    for prompt_chars in [0, 2_800] {
        let mut server = Options::default()
            .set("ingest.bytes_per_minute_max", 0)
            .start()
            .await;
        let callbacks = callbacks(prompt_chars);
        let body_bytes: usize = callbacks.iter().map(|(_, body)| body.len()).sum();
        post_all(&server, callbacks, 200).await;
        let events = server.metric("blobcast_log_events").await as u64;
        let counted = server.metric("blobcast_log_bytes").await as u64;
        assert_eq!(events, CALLBACKS as u64);

        let each = event_bytes(body_bytes as u64 / events);
        check("events", each * events, counted, TOLERATED);

        assert!(server.terminate().await.success());
        let directory = Directory::of(counted, each, 0);
        check(
            "log",
            directory.events + directory.frames,
            log_bytes(&server.data_dir()),
            TOLERATED,
        );
        // The formula has room for tables that are being rewritten. Of few tasks the blocks of the files count, too.
        check(
            "index",
            directory.index,
            disk_bytes(&server.data_dir().join("index/keyspaces")),
            0.9..=3.5,
        );
        let real = disk_bytes(&server.data_dir());
        assert!(
            real <= directory.bytes(),
            "{real} bytes, and at most {directory:?}"
        );
        assert!(
            real + directory.fixed >= directory.bytes() / 5 * 4,
            "{real} bytes, and {directory:?}"
        );
    }
}

#[tokio::test]
async fn quarantined_callbacks_take_as_much_as_the_formula_says() {
    let mut server = Options::default()
        .set("ingest.bytes_per_minute_max", 0)
        .start()
        .await;
    let unreadable = |number| {
        (
            "/webhook/veo".to_owned(),
            format!("{number} {}", "x".repeat(3_000)),
        )
    };
    post_all(&server, (0..CALLBACKS).map(unreadable).collect(), 202).await;
    let counted = server.metric("blobcast_quarantine_bytes").await as u64;
    assert!(server.terminate().await.success());

    let data_dir = server.data_dir();
    let real = log_bytes(&data_dir) + disk_bytes(&data_dir.join("index/keyspaces"));
    // The formula has room for as much again that is forgotten, and goes with its segment.
    check(
        "quarantine",
        Directory::of(0, 1, counted).quarantine / 2,
        real,
        TOLERATED,
    );
}

// --- what a start warns of ---

#[tokio::test]
async fn a_log_that_is_larger_than_its_disk_is_reported_by_the_start_and_before() {
    let mut server = Options::default()
        .set("log.retention_bytes_max", "1048576TiB")
        .start()
        .await;
    let line = server
        .logged("the log is larger than its disk", 1)
        .await
        .remove(0);
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "WARN");
    let problem = line["problem"].as_str().unwrap();
    assert!(
        problem.contains("with log.retention_bytes_max = 1EiB") || problem.contains("1048576TiB"),
        "{problem}"
    );
    assert!(
        problem.contains("callbacks are refused before the log is full"),
        "{problem}"
    );

    let data_dir = server.data_dir();
    let check = async |bytes: &str| {
        let check = Cli::new("check-config").arg("--data-dir").arg(&data_dir);
        let check = check.env("BLOBCAST_LOG__DISK_FREE_MIN_PERCENT", 0);
        let ran = check
            .env("BLOBCAST_LOG__RETENTION_BYTES_MAX", bytes)
            .run()
            .await;
        ran.good();
        ran.stderr
            .contains("callbacks are refused before the log is full")
    };
    assert!(check("1048576TiB").await && !check("10MiB").await);

    assert!(server.terminate().await.success());
    let small = Options::default().set("log.retention_bytes_max", "10MiB");
    server
        .restart_with(small.set("log.disk_free_min_percent", 0))
        .await;
    assert!(
        !server.log().contains("larger than its disk"),
        "{}",
        server.log()
    );
}

#[tokio::test]
async fn a_reload_warns_of_the_disk_whichever_limit_of_it_was_raised() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    let raised = |section: &str, bytes: &str| {
        fs::write(
            &path,
            format!("[{section}]\nretention_bytes_max = \"{bytes}\"\n"),
        )
        .unwrap();
    };
    raised("log", "10MiB");
    let options = Options::default().set("log.disk_free_min_percent", 0);
    let server = options.set("config", path.display()).start().await;
    assert!(
        !server.log().contains("larger than its disk"),
        "{}",
        server.log()
    );

    for (number, section) in ["quarantine", "log"].into_iter().enumerate() {
        raised(section, "1048576TiB");
        server.signal(Signal::HUP);
        server
            .logged("the log is larger than its disk", number + 1)
            .await;
    }
}

#[tokio::test]
async fn the_sum_of_memory_and_the_cgroups_limit_are_metrics() {
    let server = Options::default()
        .set("grpc.subscriptions_max", 1_000)
        .start()
        .await;
    let by_command = sized("--rate 1 --body 1k --streams 1000").await["memory"]["bytes_max"]
        .as_f64()
        .unwrap();
    let sum = server.metric("blobcast_memory_bytes_max").await;
    let limit = server.metric("blobcast_memory_limit_bytes").await;
    // Where the tests run in a cgroup with little memory, caches are lower than they were set.
    assert!(
        sum == by_command || limit > 0.0 && limit < by_command && sum < by_command,
        "{sum}, {limit}, {by_command}"
    );
}

// --- blobcast size ---

async fn sized(line: &str) -> Value {
    let ran = Cli::new(&format!("size --output json {line}")).run().await;
    ran.json_lines().remove(0)
}

#[tokio::test]
async fn size_says_which_limit_comes_first_and_what_to_set() {
    let answer = sized("--rate 50 --body 3k --days 7").await;
    assert_eq!(answer["body_bytes"], 3_000, "k is 1,000");
    assert_eq!(answer["event_count"], 50 * 7 * 86_400);
    assert_eq!(answer["configured"]["first"], "log.retention_bytes_max");
    let kept_hours = answer["configured"]["kept_seconds"].as_f64().unwrap() / 3_600.0;
    assert!(
        (9.0..=9.9).contains(&kept_hours),
        "10 GiB were 9.9 h when it was measured: {kept_hours}"
    );
    assert_eq!(answer["set"], json!({"log.retention_bytes_max": "172GiB"}));

    // With what it says to set, the age comes first.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("blobcast.toml");
    fs::write(&file, "[log]\nretention_bytes_max = \"172GiB\"\n").unwrap();
    let line = format!("--rate 50 --body 3k --days 7 --config {}", file.display());
    let answer = sized(&line).await;
    assert_eq!(answer["configured"]["first"], "log.retention_age_max");
    assert_eq!(
        (&answer["configured"]["kept_seconds"], &answer["set"]),
        (&json!(604_800.0), &json!({}))
    );
    let disk = answer["disk"]["disk"].as_u64().unwrap();
    assert!((180 * GIB..220 * GIB).contains(&disk), "{disk}");

    let text = Cli::new(&format!("size {line}")).run().await;
    for part in [
        "50 callbacks a second with bodies of 3,000 bytes, kept for 7 days",
        "30,240,000 × 6,096 bytes",
        "log.retention_age_max comes first: events are removed after 7 days",
        "MemoryMax=5G; the limits are enough.",
    ] {
        assert!(text.good().contains(part), "no {part:?} in {}", text.stdout);
    }
    let text = Cli::new("size --rate 50 --body 3k --days 14 --streams 1000")
        .run()
        .await;
    let set = "and set:\n[log]\nretention_age_max = \"14d\"\nretention_bytes_max = \"344GiB\"\n[grpc]\nsubscriptions_max = 1000\n";
    assert!(text.good().ends_with(set), "{}", text.stdout);
}

/// The rows of a document's table that compares rates: rate, body, first, time, what to set.
fn rates(text: &str) -> Vec<[String; 5]> {
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('|'));
    let rows = lines.map(|line| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect::<Vec<_>>()
    });
    let rows = rows.filter_map(|cells| <[String; 5]>::try_from(cells).ok());
    rows.skip_while(|row| row[0] != "callbacks a second")
        .skip(2)
        .take_while(|row| row[0].parse::<f64>().is_ok())
        .collect()
}

#[tokio::test]
async fn the_table_of_the_sizing_page_is_what_size_says() {
    let rows = rates(include_str!("../../docs/sizing.md"));
    assert_eq!(rows.len(), 6);
    for row in rows {
        let [rate, body, first, kept, set] = row;
        let line = format!("--rate {rate} --body {} --days 7", body.replace(' ', ""));
        let answer = sized(&line).await;
        let expected = if answer["configured"]["first"] == "log.retention_bytes_max" {
            "10 GiB"
        } else {
            "7 days"
        };
        let bytes = answer["set"]["log.retention_bytes_max"]
            .as_str()
            .unwrap_or_default();
        assert_eq!(
            (first.as_str(), set.replace([',', ' '], "").as_str()),
            (expected, bytes),
            "{line}"
        );

        let text = Cli::new(&format!("size {line}")).run().await;
        assert!(
            text.good().contains(&format!("after {kept}")),
            "{line}: {kept} in {}",
            text.stdout
        );
    }
}

#[tokio::test]
async fn what_size_says_to_set_is_a_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("blobcast.toml");
    for line in [
        "--rate 50 --body 3k --days 0.3",
        "--rate 1000 --body 100KiB --days 30.5 --streams 3",
        "--rate 0.001 --body 1 --days 1s",
    ] {
        let text = Cli::new(&format!("size {line}"))
            .run()
            .await
            .good()
            .to_owned();
        fs::write(&file, text.split_once("and set:\n").unwrap().1).unwrap();
        let checked = Cli::new("check-config --config")
            .arg(&file)
            .current_dir(directory.path())
            .run()
            .await;
        checked.good();
        let answer = sized(&format!("{line} --config {}", file.display())).await;
        assert_eq!(
            (&answer["set"], &answer["configured"]["first"]),
            (&json!({}), &json!("log.retention_age_max")),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_retention_that_the_configuration_would_refuse_is_refused() {
    let ask = |line: &str| {
        Cli::new(&format!("size --rate 1 --body 1k --days {line}"))
            .env("BLOBCAST_LOG__SEGMENT_AGE_MAX", "2d")
            .run()
    };
    let refused = ask("2").await;
    let problem = "--days: environment variable BLOBCAST_LOG__SEGMENT_AGE_MAX: `log.segment_age_max`: 2d is not less than";
    assert!(refused.exited(2).contains(problem), "{refused:?}");
    ask("2.1").await.good();
}

#[tokio::test]
async fn one_second_is_in_the_singular() {
    let ran = Cli::new("size --rate 1 --body 1k --days 1s").run().await;
    assert!(ran.good().contains("kept for 1 second, when"), "{ran:?}");
}

#[tokio::test]
async fn units_are_read_as_they_are_written() {
    for (body, bytes) in [
        ("800", 800),
        ("3k", 3_000),
        ("3kB", 3_000),
        ("3KiB", 3_072),
        ("1MiB", MIB),
        ("1M", 1_000_000),
    ] {
        assert_eq!(
            sized(&format!("--rate 0.5 --body {body}")).await["body_bytes"],
            bytes,
            "{body}"
        );
    }
    for (days, seconds) in [
        ("7", 604_800.0),
        ("0.5", 43_200.0),
        ("12h", 43_200.0),
        ("3650", 3650.0 * 86_400.0),
    ] {
        assert_eq!(
            sized(&format!("--rate 0.5 --body 1k --days {days}")).await["seconds"],
            seconds,
            "{days}"
        );
    }
    assert_eq!(
        sized("--rate 0.5 --body 1k").await["seconds"],
        604_800.0,
        "as configured"
    );
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_refused_with_what_would() {
    for (line, told) in [
        (
            "--rate 0 --body 3k",
            "a number of callbacks a second, above 0 and up to 1,000,000",
        ),
        ("--rate -1 --body 3k", "a number of callbacks a second"),
        ("--rate 1000001 --body 3k", "up to 1,000,000"),
        ("--rate NaN --body 3k", "a number of callbacks a second"),
        ("--rate 10/min --body 3k", "a number of callbacks a second"),
        (
            "--rate 1 --body 3.5k",
            "800, 3k or 3kB (3,000 bytes), 3KiB (3,072 bytes)",
        ),
        ("--rate 1 --body 0", "a callback has a body"),
        (
            "--rate 1 --body 99999999999999999999k",
            "a whole number of bytes",
        ),
        (
            "--rate 1 --body 2MiB",
            "ingest.body_bytes_max refuses bodies of more than 1.00 MiB",
        ),
        (
            "--rate 1 --body 1k --days 0",
            "a number of days up to 3,650, or a duration such as 12h",
        ),
        ("--rate 1 --body 1k --days 3651", "up to 3,650"),
        ("--rate 1 --body 1k --days week", "a duration such as 12h"),
        ("--rate 1 --body 1k --streams 0", "1..=10000000"),
        ("--rate 1", "--body <SIZE>"),
    ] {
        let ran = Cli::new(&format!("size {}", line.replace("--rate -1", "--rate=-1")))
            .run()
            .await;
        assert!(ran.exited(2).contains(told), "{line}: {}", ran.stderr);
    }
    let directory = tempfile::tempdir().unwrap();
    let ran = Cli::new("size --rate 1 --body 1k --config nowhere.toml")
        .current_dir(directory.path())
        .run()
        .await;
    assert!(ran.exited(1).contains("nowhere.toml"), "{}", ran.stderr);
}

#[tokio::test]
async fn no_answer_overflows() {
    for line in [
        "--rate 1000000 --body 1MiB --days 3650",
        "--rate 1e-300 --body 1 --days 1s",
    ] {
        let answer = sized(line).await;
        assert!(
            answer["disk"]["disk"].as_u64().unwrap() >= answer["disk"]["events"].as_u64().unwrap(),
            "{answer}"
        );
        Cli::new(&format!("size {line}")).run().await.good();
    }
    let never = Cli::new("size --rate 1 --body 1k")
        .env("BLOBCAST_LOG__DISK_FREE_MIN_PERCENT", 100)
        .run()
        .await;
    assert!(
        never
            .good()
            .contains("provide a lower log.disk_free_min_percent"),
        "{}",
        never.stdout
    );
}
