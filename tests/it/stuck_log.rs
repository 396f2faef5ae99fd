//! A standard error that nobody reads: the broker keeps serving, later reports the lines it
//! dropped, and can exit.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStderr, Stdio},
    time::{Duration, Instant},
};

use blobcast::wire::v1::{GetLogInfoRequest, event_service_client::EventServiceClient};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{Http, Options, completed, free_address, until, within};

/// Longest end with a standard error that takes nothing: a second for the log, and time for a busy machine.
const END_MAX: Duration = Duration::from_secs(10);

/// A broker whose standard error is a pipe that is read only when the test says so.
struct Stuck {
    child: Child,
    stderr: Option<ChildStderr>,
    ingest: SocketAddr,
    grpc: SocketAddr,
    admin: SocketAddr,
    _directory: TempDir,
}

/// Callbacks for each call and probe: they fill the pipe soonest.
const CALLBACKS: usize = 16;

impl Stuck {
    /// Starts one, and waits until lines are being lost; every callback is answered meanwhile.
    async fn start() -> Self {
        let (directory, listen) = (
            tempfile::tempdir().unwrap(),
            [(); 3].map(|()| free_address()),
        );
        // The level at which each request makes most lines.
        let mut command = Options::default()
            .set("logging.level", "trace")
            .command(directory.path(), listen);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take();
        let [ingest, grpc, admin] = listen;
        let broker = Self {
            child,
            stderr,
            ingest,
            grpc,
            admin,
            _directory: directory,
        };
        let http = Http::new(ingest);
        let post = || http.try_post_to("/webhook/veo", completed("first").to_string());
        until("the broker to answer", || async { post().await.is_ok() }).await;
        let mut tasks = (0..).map(|n| format!("t{n}"));
        until("lines to be lost", async || {
            broker.answers(&tasks.next().unwrap()).await;
            broker.lost().await > 0.0
        })
        .await;
        broker
    }

    /// Callbacks, calls and probes.
    async fn answers(&self, task: &str) {
        let http = Http::new(self.ingest);
        for part in 0..CALLBACKS {
            let callback = completed(&format!("{task}-{part}"));
            let answer = within("an answer", http.post(&callback)).await;
            assert_eq!(answer.status, 200);
        }
        let mut events = EventServiceClient::connect(format!("http://{}", self.grpc))
            .await
            .unwrap();
        within("a call", events.get_log_info(GetLogInfoRequest::default()))
            .await
            .unwrap();
        assert_eq!(Http::new(self.admin).get("/livez").await.0, 200);
    }

    async fn lost(&self) -> f64 {
        let (_, text) = Http::new(self.admin).get("/metrics").await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("blobcast_log_lines_lost_total "));
        line.unwrap().parse().unwrap()
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up_and_says_what_is_missing_when_it_is_read_again() {
    let mut broker = Stuck::start().await;
    let stderr = BufReader::new(broker.stderr.take().unwrap());
    let told = tokio::task::spawn_blocking(move || {
        let lines = stderr
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
        let mut lost = lines.filter(|line| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.contains("lines were lost"))
        });
        lost.next().expect("the line that says so")["lines"]
            .as_u64()
            .unwrap()
    });
    // Each line was whole, or it would have been no JSON.
    assert!(within("the line that says so", told).await.unwrap() > 0);
}

#[tokio::test]
async fn a_broker_whose_log_nobody_reads_ends_all_the_same() {
    let mut broker = Stuck::start().await;
    let begun = Instant::now();
    kill_process(Pid::from_child(&broker.child), Signal::TERM).unwrap();
    until("its end", || {
        std::future::ready(broker.child.try_wait().unwrap().is_some())
    })
    .await;
    assert!(broker.child.wait().unwrap().success());
    assert!(begun.elapsed() < END_MAX, "it took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_start_that_fails_ends_although_nobody_reads_why() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = [taken.local_addr().unwrap(), free_address(), free_address()];
    // A pipe that is full already.
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while std::io::Write::write(&mut writer, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut command = Options::default().command(directory.path(), listen);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    drop(command);
    until("its end", || {
        std::future::ready(child.try_wait().unwrap().is_some())
    })
    .await;
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(reader);
}
