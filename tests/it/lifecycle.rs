//! The process from start to exit: refused starts, the banner and the log, draining, and the exit
//! code.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use blobcast::{
    checker::{History, Stream, check},
    simulator::{Plan, Vendor, VendorCallback},
    vendor::sample::SampleStatus,
};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{
    AsObserved, Cli, Collector, Http, Options, Running, Seen, Server, completed, failed, fatal,
    free_address, reason, request, tasks, until, with, within,
};

fn free() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Everything the broker has printed on its terminal once it holds `text`.
async fn banner_with(server: &Server, text: &str) -> String {
    until(text, || std::future::ready(server.printed().contains(text))).await;
    server.printed()
}

/// The line of the banner that begins with this word, without indentation.
fn command_of(banner: &str, word: &str) -> String {
    let line = banner
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with(word));
    line.unwrap_or_else(|| panic!("no {word} in {banner}"))
        .to_owned()
}

// --- the start ---

#[tokio::test]
async fn the_banner_names_every_address_with_its_audience_and_what_to_paste() {
    let server = Options::default().on_terminal().start().await;
    let banner = banner_with(&server, "EventService/Subscribe\n").await;
    let Server {
        ingest,
        grpc,
        admin,
        ..
    } = &server;
    let data = server.data_dir().display().to_string();
    for (what, audience) in [
        (format!("http://{ingest}/webhook/PRODUCT"), "for RunBlob"),
        (grpc.to_string(), "for your services"),
        (format!("http://{admin}/ui/"), "for people"),
        (format!("http://{admin} "), "for operators"),
        (data, "0 events"),
    ] {
        let line = banner
            .lines()
            .find(|line| line.contains(&what))
            .unwrap_or_else(|| panic!("no {what} in {banner}"));
        assert!(line.contains(audience), "{line}");
    }
    assert!(
        command_of(&banner, "callback_url").ends_with(&format!("  http://{ingest}/webhook/veo")),
        "{banner}"
    );
    assert!(
        banner.contains("--public-url"),
        "the way to a URL that RunBlob can reach: {banner}"
    );
    assert!(
        banner.contains(concat!("blobcast ", env!("CARGO_PKG_VERSION"))),
        "{banner}"
    );
}

#[tokio::test]
async fn the_banner_gives_the_callback_url_by_which_the_vendor_reaches_it() {
    let server = Options::default()
        .on_terminal()
        .set("public_url", "https://hooks.example.com/run/")
        .start()
        .await;
    let banner = banner_with(&server, "EventService/Subscribe\n").await;
    let line = command_of(&banner, "callback_url");
    assert!(
        line.ends_with("  https://hooks.example.com/run/webhook/veo"),
        "{line}"
    );
    // What is pasted on this machine goes to this machine.
    assert!(
        command_of(&banner, "curl").ends_with(&format!(" http://{}/webhook/veo", server.ingest)),
        "{banner}"
    );
}

#[tokio::test]
async fn the_banners_curl_line_sends_a_callback_and_its_other_lines_show_it() {
    let server = Options::default().on_terminal().start().await;
    let banner = banner_with(&server, "EventService/Subscribe\n").await;
    let path = std::env::var("PATH").unwrap_or_default();
    let has = |program: &str| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    };
    if !has("bash") || !has("curl") {
        eprintln!("skipped: no bash or no curl to paste the banner's line into");
        return;
    }
    let sent = Command::new("bash")
        .arg("-c")
        .arg(command_of(&banner, "curl"))
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&sent.stdout).unwrap_or_else(|_| panic!("{sent:?}"));
    assert_eq!(
        (&answer["status"], &answer["duplicate"]),
        (&json!("received"), &json!(false))
    );

    // The binary under test is not in PATH, so its line runs as what follows the name.
    let shown = command_of(&banner, "blobcast listen").replacen("blobcast ", "", 1);
    let listen = Cli::new(&shown)
        .arg("--count=1")
        .arg("--output=json")
        .run()
        .await;
    assert_eq!(
        listen.each("event_id"),
        [answer["event_id"].as_str().unwrap()]
    );

    if !has("grpcurl") {
        eprintln!("skipped: no grpcurl to paste the banner's line into");
        return;
    }
    // `exec`, so that what is killed is grpcurl and not the shell around it.
    let line = format!("exec {}", command_of(&banner, "grpcurl"));
    let mut grpcurl = Command::new("bash")
        .arg("-c")
        .arg(line)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(grpcurl.stdout.take().unwrap());
    let seen = tokio::task::spawn_blocking(move || {
        std::io::BufRead::lines(&mut out)
            .map_while(Result::ok)
            .find(|line| line.contains("eventId"))
    });
    let seen = within("the event in grpcurl", seen).await.unwrap();
    grpcurl.kill().unwrap();
    grpcurl.wait().unwrap();
    assert!(seen.is_some_and(|line| line.contains(answer["event_id"].as_str().unwrap())));
}

#[tokio::test]
async fn the_kernel_gives_the_broker_no_large_pages_whose_zeros_a_delivery_would_wait_for() {
    let server = Server::start().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    // A kernel that has none has no such line.
    let enabled = status
        .lines()
        .find_map(|line| line.strip_prefix("THP_enabled:"));
    assert_eq!(enabled.map_or("0", str::trim), "0");
}

#[tokio::test]
async fn a_busy_port_is_named_with_the_flag_that_changes_it() {
    let server = Server::start().await;
    let directory = tempfile::tempdir().unwrap();
    for (place, (key, address)) in [
        ("ingest", server.ingest),
        ("grpc", server.grpc),
        ("admin", server.admin),
    ]
    .into_iter()
    .enumerate()
    {
        let mut listen = [free(); 3];
        listen[place] = address;
        let done = Options::default()
            .command(&directory.path().join("data"), listen)
            .output()
            .unwrap();
        let said = fatal(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{said}");
        let expected =
            format!("cannot listen on {address} ({key}.listen): Address already in use (os error ");
        assert!(said.starts_with(&expected), "{said}");
        let step = format!(
            "); another broker may be running there (`ss -ltnp 'sport = :{}'` shows the process): stop it, or choose another \
             address with --{key}-listen\n",
            address.port()
        );
        assert!(said.ends_with(&step), "{said}");
        assert_eq!(done.stdout, b"", "no banner of a broker that is not there");
    }
}

/// What the log and the metrics say of how this start found its log.
async fn found(server: &Server) -> (Value, String) {
    let opened = |log: String| {
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .collect::<Vec<_>>();
        lines
            .into_iter()
            .find(|line| line["message"] == "log opened")
    };
    until("the line about the log", || {
        std::future::ready(opened(server.log()).is_some())
    })
    .await;
    let (_, metrics) = server.admin_get("/metrics").await;
    let info = metrics
        .lines()
        .find(|line| line.starts_with("blobcast_start_info{"))
        .unwrap_or_default()
        .to_owned();
    (opened(server.log()).unwrap(), info)
}

#[tokio::test]
async fn a_start_says_how_it_found_the_log_and_whose_it_is() {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let mut server = Server::start().await;
    let epoch = server.log_info().await.epoch;
    let told = async |server: &Server, expected: &str, version_before: &str, events: u64| {
        let (line, info) = found(server).await;
        assert_eq!(
            (&line["found"], &line["epoch"]),
            (&json!(expected), &json!(epoch)),
            "{line}"
        );
        let before = if version_before.is_empty() {
            "none"
        } else {
            version_before
        };
        assert_eq!(
            (&line["events"], &line["version_before"]),
            (&json!(events), &json!(before)),
            "{line}"
        );
        let labels = [
            ("epoch", &*epoch),
            ("found", expected),
            ("version", VERSION),
            ("version_before", version_before),
        ];
        let labels = labels
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .join(",");
        assert_eq!(info, format!("blobcast_start_info{{{labels}}} 1"));
        line["cut"].as_str().unwrap().to_owned()
    };
    assert_eq!(told(&server, "new", "", 0).await, "nothing");
    server.http().post(&completed("t1")).await.event_id();
    assert!(server.terminate().await.success());
    server.restart().await;
    assert_eq!(told(&server, "clean", VERSION, 1).await, "nothing");
    server.crash().await;
    assert_eq!(told(&server, "recovered", VERSION, 1).await, "nothing");
    server.kill();
    // A last commit that a power cut has torn.
    let segment = server.data_dir().join("log/000000000001.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    bytes[end + 64..end + 80].fill(7);
    std::fs::write(&segment, bytes).unwrap();
    server.restart().await;
    let cut = told(&server, "recovered", VERSION, 1).await;
    assert!(cut.ends_with(" bytes of a torn last commit"), "{cut}");

    assert!(server.terminate().await.success());
    let last = server.data_dir().join("last-start.json");
    let text = std::fs::read_to_string(&last).unwrap();
    assert!(text.contains(r#""left":"closed""#), "{text}");
    std::fs::write(&last, text.replace(VERSION, "0.0.1")).unwrap();
    server.restart().await;
    told(&server, "upgraded", "0.0.1", 1).await;
}

#[tokio::test]
async fn a_restored_log_says_so_once_and_has_an_epoch_of_its_own() {
    let server = Server::start().await;
    server.http().post(&completed("t1")).await.event_id();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup");
    let backup = Cli::new("backup")
        .arg(&file)
        .arg(format!("--grpc-url=http://{}", server.grpc))
        .run()
        .await;
    assert_eq!(backup.code, Some(0), "{}", backup.stderr);
    let restore = Cli::new("restore")
        .arg(&file)
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .run()
        .await;
    assert_eq!(restore.code, Some(0), "{}", restore.stderr);
    let mut restored = Options::default().start_in(directory).await;
    let (line, _) = found(&restored).await;
    assert_eq!(
        (&line["found"], &line["events"]),
        (&json!("restored"), &json!(1)),
        "{line}"
    );
    assert_ne!(line["epoch"], server.log_info().await.epoch);
    assert!(restored.terminate().await.success());
    restored.restart().await;
    assert_eq!(found(&restored).await.0["found"], "clean");
}

#[tokio::test]
async fn an_empty_data_directory_where_the_last_start_had_a_log_is_refused_with_the_next_step() {
    let mut server = Server::start().await;
    let epoch = server.log_info().await.epoch;
    server.http().post(&completed("t1")).await.event_id();
    assert!(server.terminate().await.success());
    // As if the disk that it is on were not mounted.
    let (data_dir, aside) = (server.data_dir(), server.data_dir().with_extension("aside"));
    std::fs::rename(&data_dir, &aside).unwrap();
    let refused = |options: Options| {
        let done = options.command(&data_dir, [free(); 3]).output().unwrap();
        assert_eq!(done.status.code(), Some(1));
        fatal(&done.stderr)
    };
    let marker = data_dir.with_file_name(".data.has-log");
    for exists in [false, true] {
        if exists {
            std::fs::create_dir(&data_dir).unwrap();
        }
        let said = refused(Options::default());
        for part in [
            "has no log, and it had one",
            &epoch,
            "mount the disk",
            &format!("remove {}", marker.display()),
        ] {
            assert!(said.contains(part), "no {part} in {said}");
        }
        let rehearsed = Cli::new("check-config")
            .arg("--data-dir")
            .arg(&data_dir)
            .run()
            .await;
        assert!(
            rehearsed.exited(1).contains("has no log, and it had one"),
            "{rehearsed:?}"
        );
        std::fs::remove_file(&marker).unwrap();
        let said = refused(Options::default().set("log.expect_existing", true));
        assert!(
            said.contains("log.expect_existing") && said.contains("restore a backup"),
            "{said}"
        );
        assert_eq!(data_dir.exists(), exists, "nothing was created");
        std::fs::write(&marker, format!("blobcast had log {epoch}")).unwrap();
    }
    std::fs::remove_dir(&data_dir).unwrap();
    std::fs::rename(&aside, &data_dir).unwrap();
    server
        .restart_with(Options::default().set("log.expect_existing", true))
        .await;
    assert_eq!(server.log_info().await.epoch, epoch);

    // An operator who means it removes the file that the message names.
    assert!(server.terminate().await.success());
    std::fs::rename(&data_dir, &aside).unwrap();
    std::fs::remove_file(&marker).unwrap();
    server.restart_with(Options::default()).await;
    assert_eq!(found(&server).await.0["found"], "new");
    assert_ne!(server.log_info().await.epoch, epoch);
}

#[tokio::test]
async fn an_address_that_others_can_reach_is_refused_unless_it_is_asked_for_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
    for (place, flag, consent) in [
        (0, "--ingest-listen", "ingest.allow_unverified"),
        (1, "--grpc-listen", "grpc.allow_anonymous"),
        (2, "--admin-listen", "admin.allow_anonymous"),
    ] {
        let mut listen = [free(); 3];
        listen[place] = any;
        let done = Options::default()
            .command(directory.path(), listen)
            .output()
            .unwrap();
        let said = fatal(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{said}");
        assert!(said.starts_with(&format!("{flag}: ")), "{said}");
        assert!(said.contains(&format!("set `{consent} = true`")), "{said}");
    }
    let server = Options::default()
        .on_terminal()
        .set("ingest.allow_unverified", true)
        .start_on([any, free(), free()])
        .await;
    assert_eq!(server.ingest.ip(), any.ip());
    let banner = banner_with(&server, "EventService/Subscribe\n").await;
    assert!(command_of(&banner, "curl").ends_with(&format!(
        " http://127.0.0.1:{}/webhook/veo",
        server.ingest.port()
    )));
    server.http().post(&completed("t1")).await.event_id();
}

#[tokio::test]
async fn a_second_process_on_a_directory_is_refused_and_harms_nothing() {
    let server = Server::start().await;
    let done = Options::default()
        .command(&server.data_dir(), [free(); 3])
        .output()
        .unwrap();
    let said = fatal(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    let expected = format!(
        "{} is in use by another process: ",
        server.data_dir().display()
    );
    assert!(
        said.starts_with(&expected) && said.contains("--data-dir"),
        "{said}"
    );
    server.http().post(&completed("t1")).await.event_id();
}

#[tokio::test]
async fn standard_output_and_error_that_nobody_reads_do_not_end_the_broker() {
    let directory = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut broker =
        Running::unread(Options::default().command(directory.path(), [address, free(), free()]));
    let http = Http::new(address);
    let post = || http.try_post_to("/webhook/veo", "not json");
    until("the broker to answer", || async { post().await.is_ok() }).await;
    for _ in 0..3 {
        // Each one is a line in the log.
        assert_eq!(post().await.unwrap().status, 202);
    }
    assert!(broker.is_running());
}

#[tokio::test]
async fn a_fatal_error_is_a_line_of_the_log_whatever_is_logged_and_standard_output_stays_empty() {
    let server = Server::start().await;
    let refused = |options: Options| {
        options
            .command(&server.data_dir(), [free(); 3])
            .output()
            .unwrap()
    };
    for level in ["info", "off", "blobcast=off"] {
        let ended = refused(Options::default().set("logging.level", level));
        assert!(
            fatal(&ended.stderr).contains("in use by another process"),
            "{level}"
        );
        assert_eq!((ended.status.code(), &*ended.stdout), (Some(1), &b""[..]));
    }
    // A configuration that is refused still sets the format of the log, with one mistake on each line.
    let mistakes = Options::default()
        .set("grpc.task_ids_max", "many")
        .set("grpc.nothing", 1);
    assert_eq!(fatal(&refused(mistakes.clone()).stderr).lines().count(), 2);
    let told = String::from_utf8(refused(mistakes.set("logging.format", "text")).stderr).unwrap();
    let is_line = |line: &str| {
        line.contains(" ERROR the broker does not start: environment variable BLOBCAST_GRPC__")
    };
    assert!(
        told.lines().count() == 2 && told.lines().all(is_line),
        "{told}"
    );

    let misread = Command::new(env!("CARGO_BIN_EXE_blobcast"))
        .args(["serve", "--data-dri", "d"])
        .output()
        .unwrap();
    assert_eq!(misread.status.code(), Some(2));
    assert!(
        fatal(&misread.stderr).starts_with("unexpected argument '--data-dri' found"),
        "{misread:?}"
    );
    assert_eq!(server.printed(), "", "there is no terminal");
}

// --- what it tells operators ---

#[tokio::test]
async fn the_admin_listener_says_alive_ready_and_which_version() {
    let server = Server::start().await;
    assert_eq!(server.admin_get("/livez").await, (200, "ok\n".into()));
    for path in ["/readyz", "/readyz/ingest", "/readyz/grpc"] {
        assert_eq!(
            server.admin_get(path).await,
            (200, "ready\n".into()),
            "{path} of an empty log"
        );
    }
    server.http().post(&completed("t1")).await;
    let (status, version) = server.admin_get("/version").await;
    let version: Value = serde_json::from_str(&version).unwrap();
    let event = &server.log_of_events().await[0];
    let epoch = server.subscribe(request()).await.subscribed.epoch;
    assert_eq!(status, 200);
    let (release, revision) = (
        env!("CARGO_PKG_VERSION"),
        option_env!("BLOBCAST_REVISION").unwrap_or_default(),
    );
    let expected = json!({
        "name": "blobcast", "version": release, "revision": revision, "epoch": epoch, "head": event.cursor,
    });
    assert_eq!(version, expected);
    let build = format!("blobcast_build_info{{revision=\"{revision}\",version=\"{release}\"}}");
    assert_eq!(server.metric(&build).await, 1.0);
    let (status, index) = server.admin_get("/").await;
    assert_eq!(status, 200);
    for path in [
        "/livez",
        "/readyz",
        "/readyz/ingest",
        "/readyz/grpc",
        "/metrics",
        "/version",
    ] {
        assert!(index.contains(path), "{index}");
    }
    assert_eq!(server.admin_get("/nothing").await, (404, index));
}

/// Every metric of the contract, as its samples begin.
const METRICS: [&str; 21] = [
    "blobcast_build_info{",
    "blobcast_callbacks_total{",
    "blobcast_commit_seconds_bucket{",
    "blobcast_fsync_seconds_bucket{",
    "blobcast_append_batch_events_bucket{",
    "blobcast_log_events ",
    "blobcast_log_bytes ",
    "blobcast_quarantine_callbacks ",
    "blobcast_quarantine_bytes ",
    "blobcast_subscriptions{state=\"catching_up\"} ",
    "blobcast_subscriptions{state=\"live\"} ",
    "blobcast_deliveries_total ",
    "blobcast_subscription_lag_events_max ",
    "blobcast_duplicates_total ",
    "blobcast_webhook_to_delivery_seconds_bucket{",
    "blobcast_subscriptions_ended_total{",
    "blobcast_reloads_total{result=\"refused\",what=\"certificates\"} 0",
    "blobcast_reload_refused{what=\"acme_ca\"} 0",
    "blobcast_disk_total_bytes ",
    "process_resident_memory_bytes ",
    "process_start_time_seconds ",
];

#[tokio::test]
async fn every_metric_is_there_from_the_first_scrape_on_and_says_what_it_is() {
    let server = Server::start().await;
    let (status, text) = server.admin_get("/metrics").await;
    assert_eq!(status, 200);
    for metric in METRICS {
        assert!(
            text.lines().any(|line| line.starts_with(metric)),
            "no {metric} in {text}"
        );
        let name = metric
            .trim_end()
            .split('{')
            .next()
            .unwrap()
            .trim_end_matches("_bucket");
        assert!(
            text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} ")),
            "{name}"
        );
    }
    let prefixes = ["#", "blobcast_", "process_"];
    assert!(
        text.lines()
            .all(|line| prefixes.iter().any(|prefix| line.starts_with(prefix))),
        "{text}"
    );
}

#[tokio::test]
async fn metrics_count_what_their_names_say() {
    let server = Server::start().await;
    let http = server.http();
    // Three events, of which one is delivered from the log and two live; a repeat; a contradiction that nobody asked for.
    http.post(&completed("t1")).await.event_id();
    let mut sub = server.subscribe(tasks(["t1", "t2", "t3"])).await;
    assert_eq!(sub.until_caught_up().await.len(), 1);
    http.post(&completed("t2")).await.event_id();
    http.post(&completed("t3")).await.event_id();
    assert!(http.post(&completed("t3")).await.duplicate());
    http.post(&completed("t4")).await.event_id();
    http.post(&failed("t4")).await.event_id();
    sub.next_events(2).await;
    let (broken, nowhere) = ("not json", "/elsewhere");
    assert_eq!(http.post_to("/webhook/veo", broken).await.status, 202);
    assert_eq!(http.post_to(nowhere, "{}").await.status, 404);
    assert_eq!(http.get("/webhook/veo").await.0, 405);
    for (name, value) in [
        ("blobcast_callbacks_total{outcome=\"accepted\"}", 5.0),
        ("blobcast_callbacks_total{outcome=\"duplicate\"}", 1.0),
        ("blobcast_callbacks_total{outcome=\"quarantined\"}", 1.0),
        ("blobcast_callbacks_total{outcome=\"not_found\"}", 1.0),
        (
            "blobcast_callbacks_total{outcome=\"method_not_allowed\"}",
            1.0,
        ),
        ("blobcast_callback_seconds_count", 7.0),
        ("blobcast_duplicates_total", 1.0),
        ("blobcast_conflicts_total", 1.0),
        ("blobcast_events_appended_total", 5.0),
        ("blobcast_append_batch_events_sum", 5.0),
        // One at a time, so one commit each.
        ("blobcast_append_batch_events_count", 5.0),
        ("blobcast_events_trimmed_total{reason=\"age\"}", 0.0),
        ("blobcast_log_bytes_max", 10.0 * 1024.0 * 1024.0 * 1024.0),
        ("blobcast_log_age_max_seconds", 7.0 * 86_400.0),
        ("blobcast_log_events", 5.0),
        ("blobcast_quarantine_callbacks", 1.0),
        ("blobcast_subscriptions{state=\"live\"}", 1.0),
        ("blobcast_subscriptions{state=\"catching_up\"}", 0.0),
        ("blobcast_deliveries_total", 3.0),
        ("blobcast_webhook_to_delivery_seconds_count", 2.0),
        ("blobcast_subscription_lag_events_max", 0.0),
        ("blobcast_subscriptions_fell_behind_total", 0.0),
        ("blobcast_ring_events", 5.0),
        ("blobcast_store_writable", 1.0),
        (
            "blobcast_connections_refused_total{cause=\"full\",listener=\"ingest\"}",
            0.0,
        ),
    ] {
        assert_eq!(server.metric(name).await, value, "{name}");
    }
    let (commits, fsyncs) = (
        server.metric("blobcast_commit_seconds_count").await,
        server.metric("blobcast_fsync_seconds_count").await,
    );
    assert!(
        commits >= 6.0 && fsyncs >= 6.0,
        "five events and one in quarantine: {commits} {fsyncs}"
    );
    assert!(
        server.metric("blobcast_log_bytes").await >= 5.0 * completed("t1").to_string().len() as f64
    );
    assert!(server.metric("blobcast_quarantine_bytes").await >= broken.len() as f64);
    assert!(
        server
            .metric("blobcast_connections{listener=\"grpc\"}")
            .await
            >= 1.0
    );
    let oldest = server.metric("blobcast_log_oldest_timestamp_seconds").await;
    assert!(
        (0.0..600.0).contains(&(Timestamp::now().as_second() as f64 - oldest)),
        "{oldest}"
    );
    let started = server.metric("process_start_time_seconds").await;
    assert!(
        (0.0..600.0).contains(&(Timestamp::now().as_second() as f64 - started)),
        "{started}"
    );
    drop(sub);
    let ended = || async {
        server
            .metric("blobcast_subscriptions_ended_total{cause=\"client_gone\"}")
            .await
            == 1.0
    };
    until("the end of the subscription to be counted", ended).await;
    assert_eq!(
        server
            .metric("blobcast_subscriptions{state=\"live\"}")
            .await,
        0.0
    );
}

#[tokio::test]
async fn the_log_is_json_on_a_pipe_and_neither_it_nor_a_trace_holds_a_prompt_a_body_or_a_secret() {
    let collector = Collector::start().await;
    let mut server = collector
        .options()
        .set("logging.level", "trace")
        .start()
        .await;
    let http = server.http();
    let marked = |task: &str| {
        with(
            completed(task),
            json!({"prompt": "MARKED-PROMPT", "video_url": "https://MARKED-URL/1.mp4"}),
        )
    };
    let target = "/webhook/veo?token=MARKED-TOKEN&sig=MARKED-SIGNATURE&team=ads";
    let mut sub = server.subscribe(request()).await;
    assert_eq!(
        http.post_to(target, marked("t1").to_string()).await.status,
        200
    );
    assert_eq!(
        http.post_to(target, marked("t1").to_string()).await.status,
        200
    );
    assert_eq!(
        http.post_to(
            target,
            with(marked("t1"), json!({"status": "failed"})).to_string()
        )
        .await
        .status,
        200
    );
    for body in [
        "MARKED-BODY",
        "[\"MARKED-BODY\"]",
        "{\"prompt\":\"MARKED-BODY\"}",
        "{\"id\":\"MARKED BODY\"}",
    ] {
        assert_eq!(http.post_to(target, body).await.status, 202);
    }
    let encoded = hyper::Request::post(format!("http://{}{target}", server.ingest))
        .header("content-encoding", "br");
    assert_eq!(
        http.send(encoded.body("MARKED-BODY".into()).unwrap())
            .await
            .unwrap()
            .status,
        415
    );
    let bearer = hyper::Request::post(format!("http://{}{target}", server.ingest))
        .header("authorization", "MARKED-KEY");
    assert_eq!(
        http.send(bearer.body("MARKED-BODY".into()).unwrap())
            .await
            .unwrap()
            .status,
        202
    );
    sub.next_events(2).await;
    assert!(server.terminate().await.success());
    until("the last line", || {
        std::future::ready(server.log().contains("\"drained\""))
    })
    .await;
    let log = server.log();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(
            line["timestamp"].is_string()
                && line["level"].is_string()
                && line["target"].is_string(),
            "{line}"
        );
    }
    assert!(
        log.contains("callback quarantined"),
        "a log that says nothing proves nothing: {log}"
    );
    assert!(
        !log.contains("MARKED"),
        "{}",
        log.lines()
            .filter(|line| line.contains("MARKED"))
            .collect::<String>()
    );
    let spans = collector.spans();
    assert!(
        spans.len() > 9 && !format!("{spans:?}").contains("MARKED"),
        "{spans:?}"
    );
}

// --- the end ---

/// A connection that has sent this much and waits.
fn half_sent(address: SocketAddr, part: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(part.as_bytes()).unwrap();
    stream
}

#[tokio::test]
async fn sigterm_under_load_loses_nothing_that_was_answered_and_tells_every_stream() {
    let mut server = Server::start().await;
    let mut readers = Vec::new();
    for _ in 0..4 {
        let mut sub = server.subscribe(request()).await;
        readers.push(tokio::spawn(async move { sub.end().await.unwrap_err() }));
    }
    let callbacks: Vec<_> = (0..3_000)
        .map(|number| {
            VendorCallback::sample(
                "veo",
                &format!("t{number}"),
                SampleStatus::Completed,
                Timestamp::UNIX_EPOCH,
            )
        })
        .collect();
    let base = format!("http://{}", server.ingest).parse().unwrap();
    let deliveries = Plan::default().deliveries(&callbacks);
    let vendor = tokio::spawn(async move { Vendor::new(base, vec![], 32).send(deliveries).await });
    until("some load", || async {
        server.metric("blobcast_events_appended_total").await > 200.0
    })
    .await;
    assert!(server.terminate().await.success());
    let acknowledged = within("the vendor", vendor).await.unwrap();
    assert!(
        (200..3_000).contains(&acknowledged.len()),
        "it was to end in the middle: {}",
        acknowledged.len()
    );
    let mut streams = Vec::new();
    for reader in readers {
        let (seen, status) = within("the stream's end", reader).await.unwrap();
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::Unavailable, "DRAINING".into())
        );
        assert!(
            matches!(seen.last(), Some(Seen::GoingAway(_))),
            "{:?}",
            seen.last()
        );
        let observed = seen.iter().filter_map(|seen| match seen {
            Seen::Event(event) => Some(event.observed()),
            _ => None,
        });
        streams.push(Stream {
            task_ids: None,
            observed: observed.collect(),
        });
    }
    server.restart().await;
    let log = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    let acknowledged = acknowledged
        .into_iter()
        .map(|one| blobcast::checker::Acknowledged {
            event_id: one.event_id.unwrap(),
            task_id: one.task_id,
        });
    assert_eq!(
        check(&History {
            acknowledged: acknowledged.collect(),
            log,
            streams,
            ..History::default()
        }),
        []
    );
}

#[tokio::test]
async fn a_drain_is_not_ready_takes_no_more_finishes_what_it_has_and_then_says_goodbye() {
    let mut server = Options::default()
        .set("ingest.body_timeout", "1m")
        .start()
        .await;
    let mut sub = server.subscribe(request()).await;
    assert_eq!(sub.until_caught_up().await, []);
    let idle = server.http();
    idle.post(&completed("t1")).await.event_id();
    sub.next_event().await;
    let mut health = HealthClient::new(server.channel().await);
    let body = completed("t2").to_string();
    let head = format!(
        "POST /webhook/veo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut under_way = half_sent(server.ingest, &format!("{head}{}", &body[..10]));
    until("the half-sent callback", || async {
        server
            .metric("blobcast_connections{listener=\"ingest\"}")
            .await
            >= 2.0
    })
    .await;
    server.signal(Signal::TERM);

    until("not ready", || async {
        server.admin_get("/readyz").await.0 == 503
    })
    .await;
    for path in ["/readyz", "/readyz/ingest", "/readyz/grpc"] {
        assert_eq!(
            server.admin_get(path).await,
            (503, "not ready: draining\n".into()),
            "{path}"
        );
    }
    assert_eq!(server.admin_get("/livez").await.0, 200);
    until("new connections to be refused", || async {
        TcpStream::connect(server.ingest).is_err()
    })
    .await;
    let answer = within("health", health.check(HealthCheckRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        answer.status(),
        tonic_health::pb::health_check_response::ServingStatus::NotServing
    );

    // What was under way is finished, and its event is the last thing before the goodbye.
    under_way.write_all(&body.as_bytes()[10..]).unwrap();
    let event = sub.next_event().await;
    assert_eq!(event.task_id, "t2");
    let mut answer = String::new();
    let read = tokio::task::spawn_blocking(move || {
        std::io::Read::read_to_string(&mut under_way, &mut answer).map(|_| answer)
    });
    let answer = within("the answer", read).await.unwrap().unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(&event.event_id),
        "{answer}"
    );
    let (seen, status) = sub.end().await.unwrap_err();
    let [Seen::GoingAway(going_away)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(going_away.cursor, event.cursor);
    assert_eq!(reason(&status), "DRAINING");
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn a_dead_peer_and_a_half_sent_request_do_not_hold_the_end_up_beyond_its_deadline() {
    let slow = Options::default()
        .set("ingest.header_timeout", "1m")
        .set("shutdown.drain_timeout", "2s");
    let mut server = slow.start().await;
    let mut healthy = server.subscribe(request()).await;
    let dead = server.subscribe(request()).await;
    let filler = "x".repeat(500_000);
    // 15 MB: more than the windows and buffers on its way hold, so the stream that is not read is stuck.
    for number in 0..30 {
        let body = with(completed(&format!("t{number}")), json!({"prompt": filler}));
        server.http().post(&body).await.event_id();
        healthy.next_event().await;
    }
    let lag = || async { server.metric("blobcast_subscription_lag_events_max").await > 0.0 };
    until("the dead peer to lag", lag).await;
    let _half = half_sent(server.ingest, "POST /webhook/veo HTTP/1.1\r\nhost: ");
    let open = || async {
        server
            .metric("blobcast_connections{listener=\"ingest\"}")
            .await
            >= 1.0
    };
    until("the half-sent request", open).await;
    let told = Instant::now();
    let end = tokio::spawn(async move { healthy.end().await.unwrap_err() });
    assert!(server.terminate().await.success());
    // The deadline, and what a busy machine needs to notice it; far less than the minute the half-sent request may take.
    assert!(
        told.elapsed() < Duration::from_secs(10),
        "{:?}",
        told.elapsed()
    );
    assert!(
        told.elapsed() >= Duration::from_secs(1),
        "nothing held it up, so nothing was tested: {:?}",
        told.elapsed()
    );
    // And still every other client gets its goodbye.
    let (seen, status) = within("the goodbye", end).await.unwrap();
    assert!(
        seen.iter().any(|seen| matches!(seen, Seen::GoingAway(_))),
        "{status:?} after {seen:?}"
    );
    until("the last line", || {
        std::future::ready(
            server
                .log()
                .contains("the deadline has cut the drain short"),
        )
    })
    .await;
    drop(dead);
    server.restart().await;
    assert_eq!(server.log_of_events().await.len(), 30);
}

#[tokio::test]
async fn a_second_interrupt_ends_a_drain_at_once() {
    for first in [Signal::INT, Signal::TERM] {
        let mut server = Options::default()
            .set("ingest.header_timeout", "1m")
            .start()
            .await;
        let http = server.http();
        http.post(&completed("t1")).await.event_id();
        let _half = half_sent(server.ingest, "POST /webhook/veo HTTP/1.1\r\nhost: ");
        let open = || async {
            server
                .metric("blobcast_connections{listener=\"ingest\"}")
                .await
                >= 2.0
        };
        until("the half-sent request", open).await;
        server.signal(first);
        until("the drain", || async {
            server.admin_get("/readyz").await.0 == 503
        })
        .await;
        let told = Instant::now();
        server.signal(Signal::INT);
        assert_eq!(server.ended().await.code(), Some(130), "after {first:?}");
        assert!(
            told.elapsed() < Duration::from_secs(5),
            "{:?}",
            told.elapsed()
        );
        assert!(
            server
                .log()
                .lines()
                .all(|line| serde_json::from_str::<Value>(line).is_ok()),
            "{}",
            server.log()
        );
        server.restart().await;
        assert_eq!(server.log_of_events().await.len(), 1);
    }
}

#[tokio::test]
async fn one_interrupt_drains_like_sigterm() {
    let mut server = Server::start().await;
    let mut sub = server.subscribe(request()).await;
    server.signal(Signal::INT);
    let (seen, _) = sub.end().await.unwrap_err();
    assert!(matches!(seen.last(), Some(Seen::GoingAway(_))), "{seen:?}");
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn the_same_ports_and_directory_are_free_again_right_after_the_end() {
    let mut server = Server::start().await;
    for round in 0..3 {
        // Connections that the broker closes first linger in the kernel.
        let (http, mut sub) = (server.http(), server.subscribe(request()).await);
        http.post(&completed(&format!("t{round}"))).await.event_id();
        sub.next_events(round + 1).await;
        let addresses = (server.ingest, server.grpc, server.admin);
        assert!(server.terminate().await.success());
        server.restart().await;
        assert_eq!((server.ingest, server.grpc, server.admin), addresses);
    }
    assert_eq!(server.log_of_events().await.len(), 3);
}
