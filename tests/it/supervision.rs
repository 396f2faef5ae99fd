//! The broker under systemd: readiness, watchdog, inherited sockets, and reloading the
//! configuration.

use std::{
    fs,
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net::UnixDatagram},
    },
    process::{Command, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal};

use crate::support::{
    ANY_PORT, Authority, Cli, CredentialsFile, Http, Options, completed, request, until, within,
};

/// The messages that a supervisor gets, one after the other.
struct Supervisor(UnixDatagram);

impl Supervisor {
    fn new(directory: &std::path::Path) -> Self {
        let socket = UnixDatagram::bind(directory.join("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
}

/// The first message: it replaces the status of the process before.
const FIRST: &str = "READY=1\nSTATUS=everything that was read is in force\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_learns_of_readiness_reloads_life_and_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(directory.path());
    let options =
        Options::default().variable("NOTIFY_SOCKET", directory.path().join("notify").display());
    let mut server = options.variable("WATCHDOG_USEC", 200_000).start().await;
    // The watchdog's messages come at their own pace, between the others.
    let told = || loop {
        match supervisor.next() {
            message if message == "WATCHDOG=1\n" => {}
            message => return message,
        }
    };
    assert_eq!(told(), FIRST);
    assert_eq!(supervisor.next(), "WATCHDOG=1\n");
    server.signal(Signal::HUP);
    let reloading = told();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(told(), "READY=1\n");
    server.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1\n");
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn sockets_are_inherited_by_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = sockets
        .each_ref()
        .map(|socket| socket.local_addr().unwrap());
    // Who connects before the broker runs is served when it does.
    let [admin, ingest, _] = addresses;
    let early = tokio::spawn(async move { Http::new(ingest).post(&completed("t1")).await });
    let mut command = Command::new("sh");
    let script = format!(
        "LISTEN_PID=$$ exec {} serve --data-dir {}/data",
        env!("CARGO_BIN_EXE_blobcast"),
        directory.path().display()
    );
    command
        .args(["-c", &script])
        .env("LISTEN_FDS", "3")
        .env("LISTEN_FDNAMES", "admin:ingest:grpc");
    // Nobody listens on the configured ports: a broker of somebody else's may.
    command
        .env("BLOBCAST_INGEST__LISTEN", "127.0.0.1:1")
        .env("BLOBCAST_GRPC__LISTEN", "127.0.0.1:2");
    command
        .env("BLOBCAST_ADMIN__LISTEN", "127.0.0.1:3")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mappings = sockets.into_iter().zip(3..);
    let mappings = mappings
        .map(|(socket, child_fd)| FdMapping {
            parent_fd: OwnedFd::from(socket),
            child_fd,
        })
        .collect();
    let mut broker = command.fd_mappings(mappings).unwrap().spawn().unwrap();
    drop(command);
    assert!(!within("the answer", early).await.unwrap().duplicate());
    assert_eq!(Http::new(admin).get("/readyz").await.0, 200);
    rustix::process::kill_process(rustix::process::Pid::from_child(&broker), Signal::TERM).unwrap();
    until("it to end", async || broker.try_wait().unwrap().is_some()).await;
}

#[tokio::test]
async fn an_inherited_socket_is_judged_by_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    for (name, told) in [
        ("ingest", "nothing is asked of callbacks"),
        ("grpc", "nobody is known"),
        ("admin", "set admin.allow_anonymous"),
    ] {
        let exposed = TcpListener::bind("0.0.0.0:0").unwrap();
        let mut command = Command::new("sh");
        let any =
            "--ingest-listen 127.0.0.1:0 --grpc-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0";
        let (broker, data) = (env!("CARGO_BIN_EXE_blobcast"), directory.path().display());
        command.args([
            "-c",
            &format!("LISTEN_PID=$$ exec {broker} serve {any} --data-dir {data}/data"),
        ]);
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
        let mapping = FdMapping {
            parent_fd: OwnedFd::from(exposed),
            child_fd: 3,
        };
        let ended = tokio::task::spawn_blocking(move || {
            command
                .fd_mappings(vec![mapping])
                .unwrap()
                .output()
                .unwrap()
        });
        let said = String::from_utf8(within("its end", ended).await.unwrap().stderr).unwrap();
        assert!(said.contains(told), "{said}");
    }
}

#[tokio::test]
async fn the_journal_gets_the_priority_of_each_line() {
    let directory = tempfile::tempdir().unwrap();
    let (config, log) = (
        directory.path().join("blobcast.toml"),
        directory.path().join("log"),
    );
    fs::write(&config, "").unwrap();
    let stderr = fs::File::create(&log).unwrap();
    let stat = stderr.metadata().unwrap();
    let options = Options::default().set("config", config.display());
    let options = options.variable("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino()));
    let mut command = options.command(
        &directory.path().join("data"),
        ["127.0.0.1:0".parse().unwrap(); 3],
    );
    let mut broker = command
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let signal = |signal| {
        rustix::process::kill_process(rustix::process::Pid::from_child(&broker), signal).unwrap();
    };
    let told = || fs::read_to_string(&log).unwrap();
    until("it to be ready", async || told().contains("\"ready\"")).await;
    fs::write(&config, "[log]\nretention_age_mx = \"1d\"\n").unwrap();
    signal(Signal::HUP);
    until("the complaint", async || {
        told().contains("did you mean `log.retention_age_max`?")
    })
    .await;
    signal(Signal::TERM);
    until("it to end", async || broker.try_wait().unwrap().is_some()).await;
    // The last line of one that cannot start is as grave.
    let again = options.set("grpc.nothing", 1);
    let appended = fs::File::options().append(true).open(&log).unwrap();
    let mut command = again.command(
        &directory.path().join("data"),
        ["127.0.0.1:0".parse().unwrap(); 3],
    );
    assert_eq!(
        command
            .stdout(Stdio::null())
            .stderr(appended)
            .status()
            .unwrap()
            .code(),
        Some(1)
    );
    assert!(
        told().lines().last().unwrap().starts_with("<3>{"),
        "{}",
        told()
    );
    let mut grades = Vec::new();
    for line in told().lines() {
        let (grade, line) = line.split_at(3);
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let message = line["message"].as_str().unwrap_or_default();
        // This machine's disk or memory may be small.
        if ["larger than its disk", "the cgroup has", "a cache is lower"]
            .iter()
            .any(|part| message.contains(part))
        {
            continue;
        }
        grades.push((grade.to_owned(), line["level"].as_str().unwrap().to_owned()));
    }
    grades.sort();
    grades.dedup();
    assert_eq!(
        grades,
        [
            ("<3>".to_owned(), "ERROR".to_owned()),
            ("<6>".to_owned(), "INFO".to_owned())
        ]
    );
}

#[tokio::test]
async fn sighup_takes_up_what_it_can_and_names_what_it_cannot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    fs::write(&path, "").unwrap();
    let server = Options::default()
        .set("config", path.display())
        .start()
        .await;
    let mut sub = server.subscribe(request()).await;
    server.http().post(&completed("t1")).await;
    let change = "[logging]\nlevel = \"debug\"\n[log]\nretention_age_max = \"9d\"\n[grpc]\ntask_ids_max = 7\n\
                  [ingest]\nallowlist = \"enforce\"\nallowed_networks = [\"198.51.100.0/24\"]\n";
    fs::write(&path, change).unwrap();
    server.signal(Signal::HUP);
    until("the reload", async || {
        server.log().contains("configuration reloaded")
    })
    .await;
    until("what needs a restart", async || {
        server.log().contains("[\\\"grpc.task_ids_max\\\"]")
    })
    .await;
    let info = server.log_info().await;
    assert_eq!(info.retention_age_max.unwrap().seconds, 9 * 86_400);
    assert_eq!(server.http().post(&completed("t2")).await.status, 403);
    assert_eq!(sub.next_event().await.task_id, "t1", "streams go on");
    assert_eq!(
        server
            .subscribe(request())
            .await
            .subscribed
            .limits
            .unwrap()
            .task_ids_max,
        10_000,
        "as it was"
    );
    until("the new level", async || server.log().contains("\"DEBUG\"")).await;

    // A mistake changes nothing and is reported.
    fs::write(&path, "[log]\nretention_age_mx = \"1d\"\n").unwrap();
    server.signal(Signal::HUP);
    until("the complaint", async || {
        server
            .log()
            .contains("did you mean `log.retention_age_max`?")
    })
    .await;
    assert_eq!(
        server.log_info().await.retention_age_max.unwrap().seconds,
        9 * 86_400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_is_done_when_every_watched_file_is_read_again_and_the_configuration_behind_them() {
    let directory = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(directory.path());
    let authority = Authority::new();
    let issued = authority.issue("server", "localhost");
    let mut file = CredentialsFile::new();
    let (old, kept) = (
        file.add("callback old").await,
        file.add("callback kept").await,
    );
    let config = directory.path().join("blobcast.toml");
    fs::write(&config, "").unwrap();
    let options =
        Options::default().variable("NOTIFY_SOCKET", directory.path().join("notify").display());
    let options = options
        .set("config", config.display())
        .set("credentials_file", file.path().display());
    let options = options.set("grpc.tls_certificate_file", issued.certificate.display());
    let server = options
        .set("grpc.tls_key_file", issued.key.display())
        .start()
        .await;
    assert_eq!(supervisor.next(), FIRST);
    let post = async |token: &str| {
        let target = format!("/webhook/veo?token={token}");
        server
            .http()
            .post_to(&target, completed("t1").to_string())
            .await
            .status
    };
    assert_eq!(post(&old).await, 200);

    // Neither is any good without the other.
    file.remove("old");
    file.add_line("body_signature", "secret = \"hunter2\"");
    fs::write(&config, "[ingest]\nbody_signature = \"require\"\n").unwrap();
    server.signal(Signal::HUP);
    assert!(supervisor.next().starts_with("RELOADING=1\n"));
    assert_eq!(supervisor.next(), "READY=1\n");
    assert_eq!((post(&old).await, post(&kept).await), (401, 401));
    assert_eq!(
        server
            .metric("blobcast_body_signatures_total{result=\"missing\"}")
            .await,
        1.0
    );
    until("the configuration", async || {
        server.log().contains("configuration reloaded")
    })
    .await;
    assert!(
        !server.log().contains("stays as it was"),
        "{}",
        server.log()
    );
    // Unchanged files are read again, too.
    assert_eq!(
        server
            .metric("blobcast_reloads_total{result=\"done\",what=\"certificates\"}")
            .await,
        1.0
    );
    // And what was taken away counts, too.
    file.remove("hunter2");
    fs::write(&config, "[ingest]\nbody_signature = \"observe\"\n").unwrap();
    server.signal(Signal::HUP);
    assert!(supervisor.next().starts_with("RELOADING=1\n"));
    let told = "STATUS=not in force: cannot use the configuration: ingest.body_signature needs the vendor's secret";
    let said = supervisor.next();
    assert!(said.starts_with(told), "{said}");
    assert_eq!(supervisor.next(), "READY=1\n");
    until("the complaint", async || {
        server.log().contains("needs the vendor's secret")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_force_after_a_reload_is_shown_until_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(directory.path());
    let (mut file, config) = (
        CredentialsFile::new(),
        directory.path().join("blobcast.toml"),
    );
    file.add("callback vendor").await;
    fs::write(&config, "").unwrap();
    let options =
        Options::default().variable("NOTIFY_SOCKET", directory.path().join("notify").display());
    let options = options
        .set("config", config.display())
        .set("credentials_file", file.path().display());
    let server = options.start().await;
    let reload = || {
        server.signal(Signal::HUP);
        std::iter::repeat_with(|| supervisor.next())
            .take_while(|message| message != "READY=1\n")
            .collect::<String>()
    };
    let refused = async |what: &str| {
        server
            .metric(&format!("blobcast_reload_refused{{what=\"{what}\"}}"))
            .await
    };
    assert_eq!(supervisor.next(), FIRST);
    assert!(!reload().contains("STATUS="), "there is nothing to tell");

    file.add_line("clients", "oops = 1");
    let told = supervisor.next();
    let status = "STATUS=not in force: cannot use the credentials: credentials_file: ";
    assert!(
        told.starts_with(&format!("{status}{}: ", file.path().display())),
        "{told}"
    );
    fs::write(&config, "[grpc]\ntask_ids_max = 7\n[log]\nretention = 1\n").unwrap();
    let told = reload();
    assert!(
        told.contains("cannot use the credentials: ") && told.contains("`log.retention`"),
        "{told}"
    );
    assert_eq!(
        (refused("credentials").await, refused("configuration").await),
        (1.0, 1.0)
    );

    fs::write(&config, "[grpc]\ntask_ids_max = 7\n").unwrap();
    let told = reload();
    assert!(
        told.ends_with("; and a restart is needed for grpc.task_ids_max\n"),
        "{told}"
    );
    assert_eq!(
        (refused("credentials").await, refused("configuration").await),
        (1.0, 0.0)
    );
    file.remove("oops");
    assert_eq!(
        supervisor.next(),
        "STATUS=not in force: a restart is needed for grpc.task_ids_max\n"
    );
    assert_eq!(refused("credentials").await, 0.0);
    fs::write(&config, "").unwrap();
    assert!(reload().ends_with("STATUS=everything that was read is in force\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_rehearsed_and_asked_for_only_if_it_will_be_taken() {
    let directory = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new(directory.path());
    let config = directory.path().join("blobcast.toml");
    fs::write(&config, "").unwrap();
    let options =
        Options::default().variable("NOTIFY_SOCKET", directory.path().join("notify").display());
    let mut server = options.set("config", config.display()).start().await;
    let check = || {
        let line = format!("check-config --reload {} --config", server.pid());
        Cli::new(&line)
            .arg(&config)
            .arg("--data-dir")
            .arg(server.data_dir())
    };
    assert_eq!(supervisor.next(), FIRST);
    fs::write(&config, "credentials_file = \"/no/such/file\"\n").unwrap();
    assert!(
        check()
            .run()
            .await
            .exited(1)
            .contains("/no/such/file: No such file")
    );
    fs::write(&config, "[logging]\nlevel = \"debug\"\n").unwrap();
    check().run().await.good();
    // The first that it hears of is the second.
    assert!(supervisor.next().starts_with("RELOADING=1\n"));
    assert_eq!(supervisor.next(), "READY=1\n");
    assert_eq!(
        server
            .metric("blobcast_reloads_total{result=\"done\",what=\"configuration\"}")
            .await,
        1.0
    );
    assert_eq!(
        server
            .metric("blobcast_reloads_total{result=\"refused\",what=\"configuration\"}")
            .await,
        0.0
    );
    // Nothing but a broker gets the signal: not a group, not every process, and none that would end by it.
    for processes in ["-1", "0"] {
        let ran = Cli::new(&format!("check-config --reload={processes}"))
            .run()
            .await;
        assert!(ran.exited(2).contains("is not in 1.."), "{ran:?}");
    }
    let mut another = Command::new("sleep").arg("600").spawn().unwrap();
    for (process, told) in [
        (i32::MAX, "cannot signal process"),
        (another.id() as i32, "is not a running broker"),
    ] {
        let ran = Cli::new(&format!("check-config --reload {process}"))
            .run()
            .await;
        assert!(ran.exited(1).contains(told), "{ran:?}");
    }
    assert!(another.try_wait().unwrap().is_none(), "it goes on");
    another.kill().unwrap();
    another.wait().unwrap();
    assert!(server.terminate().await.success());
}

#[tokio::test]
async fn a_socket_that_is_not_where_the_configuration_says_is_named_with_its_unit() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [other, admin, ignored, unknown] = sockets
        .each_ref()
        .map(|socket| socket.local_addr().unwrap());
    let log = directory.path().join("log");
    let mut command = Command::new("sh");
    let (broker, path) = (env!("CARGO_BIN_EXE_blobcast"), directory.path().display());
    let listen =
        format!("--ingest-listen 127.0.0.1:1 --grpc-listen 127.0.0.1:0 --admin-listen {admin}");
    command.args([
        "-c",
        &format!("LISTEN_PID=$$ exec {broker} serve {listen} --data-dir {path}/data"),
    ]);
    // The one that is meant is taken, although another has its name and comes first.
    command
        .env("LISTEN_FDS", "4")
        .env("LISTEN_FDNAMES", "ingest:admin:admin:blobcast-grpc.socket");
    let order = [0, 2, 1, 3];
    let mut sockets = sockets.map(Some);
    let sockets = order.map(|index| sockets[index].take().unwrap());
    let mappings = sockets.into_iter().zip(3..);
    let mappings = mappings.map(|(socket, child_fd)| FdMapping {
        parent_fd: OwnedFd::from(socket),
        child_fd,
    });
    let command = command.fd_mappings(mappings.collect()).unwrap();
    command
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap());
    let mut broker = command.spawn().unwrap();
    let told = || fs::read_to_string(&log).unwrap();
    until("it to be ready", async || told().contains("\"ready\"")).await;
    assert_eq!(Http::new(admin).get("/readyz").await.0, 200);
    for (address, parts) in [
        (
            other,
            [
                "\"configured\":\"127.0.0.1:1\"",
                "systemctl edit blobcast-ingest.socket",
            ],
        ),
        (
            ignored,
            [
                "this socket is not served",
                "systemctl edit blobcast-admin.socket",
            ],
        ),
        (
            unknown,
            ["this socket is not served", "set FileDescriptorName="],
        ),
    ] {
        let warning =
            |line: &str| line.contains("\"WARN\"") && line.contains(&format!("\"{address}\""));
        let log = told();
        let line = log
            .lines()
            .find(|line| warning(line))
            .unwrap_or_else(|| panic!("nothing of {address}: {log}"));
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    broker.kill().unwrap();
    broker.wait().unwrap();
}

#[tokio::test]
async fn sighup_while_the_broker_starts_is_a_reload_and_not_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let (path, log) = (
        directory.path().join("blobcast.toml"),
        directory.path().join("log"),
    );
    // So large that it takes a while from its last byte to what follows.
    let networks: Vec<_> = (0..40_000)
        .map(|n| format!("\"10.{}.{}.{}\"", n >> 16, (n >> 8) & 255, n & 255))
        .collect();
    fs::write(
        &path,
        format!("[ingest]\nallowed_networks = [{}]\n", networks.join(", ")),
    )
    .unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    let options = Options::default().set("config", path.display());
    let mut command = options.command(&directory.path().join("data"), [ANY_PORT; 3]);
    let mut broker = command
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();

    let has_read = || {
        let counts = fs::read_to_string(format!("/proc/{}/io", broker.id())).unwrap_or_default();
        counts
            .lines()
            .find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok())
            .is_some_and(|read| read >= bytes)
    };
    until("the configuration to be read", async || has_read()).await;
    let pid = Pid::from_raw(i32::try_from(broker.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::HUP).unwrap();
    until("the reload", async || {
        assert_eq!(
            broker.try_wait().unwrap(),
            None,
            "{}",
            fs::read_to_string(&log).unwrap()
        );
        fs::read_to_string(&log)
            .unwrap()
            .contains("configuration reloaded")
    })
    .await;
    broker.kill().unwrap();
    broker.wait().unwrap();
}

#[tokio::test]
async fn sighup_opens_nothing_on_the_word_of_a_key_that_needs_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    fs::write(
        &path,
        "[ingest]\nallowlist = \"enforce\"\nallowed_networks = [\"198.51.100.0/24\"]\n",
    )
    .unwrap();
    let exposed = [([0, 0, 0, 0], 0).into(), ANY_PORT, ANY_PORT];
    let server = Options::default()
        .set("config", path.display())
        .start_on(exposed)
        .await;
    assert_eq!(server.http().post(&completed("t1")).await.status, 403);
    fs::write(&path, "[ingest]\nallow_unverified = true\n").unwrap();
    server.signal(Signal::HUP);
    until("the complaint", async || {
        server.log().contains("the configuration stays as it was")
    })
    .await;
    assert_eq!(server.http().post(&completed("t1")).await.status, 403);
}

#[tokio::test]
async fn sighup_takes_up_every_limit_of_what_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    fs::write(&path, "").unwrap();
    let server = Options::default()
        .set("config", path.display())
        .set("ingest.body_bytes_max", "480KiB")
        .start()
        .await;
    let reload = |text: &str| {
        fs::write(&path, text).unwrap();
        server.signal(Signal::HUP);
    };
    let kept = async || server.metric("blobcast_quarantine_callbacks").await;
    for _ in 0..3 {
        let body = "x".repeat(470 * 1024);
        assert_eq!(
            server.http().post_to("/webhook/veo", body).await.status,
            202
        );
    }
    for _ in 0..3 {
        assert_eq!(
            server
                .http()
                .post_to("/webhook/veo", "no JSON")
                .await
                .status,
            202
        );
    }
    server.http().post_bulky(0..60, 20_000).await;
    until("all to be kept", async || {
        kept().await == 6.0 && server.log_info().await.event_count == 60
    })
    .await;

    reload("[quarantine]\nretention_bytes_max = \"1MiB\"\n");
    until("the oldest in quarantine to go", async || {
        kept().await == 5.0
    })
    .await;
    reload("[quarantine]\nretention_count_max = 2\n");
    until("all but two to go", async || kept().await == 2.0).await;
    reload("[quarantine]\nretention_age_max = \"1s\"\n");
    until("all of it to go", async || kept().await == 0.0).await;
    assert_eq!(
        server.log_info().await.event_count,
        60,
        "events are another matter"
    );
    reload("[log]\nretention_bytes_max = \"1MiB\"\n");
    until("the oldest events to go", async || {
        server.log_info().await.event_count < 60
    })
    .await;
    reload("[log]\ndisk_free_min_percent = 100\n");
    until("the disk to be too full", async || {
        server.http().post(&completed("t1")).await.status == 503
    })
    .await;
    reload("");
    until("the disk to be good enough again", async || {
        server.http().post(&completed("t1")).await.status == 200
    })
    .await;
}
