//! The broker process: started on free ports with a directory of its own, killed when dropped.
//! Fails a test whose broker has blocked.

use std::{
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
};

use blobcast::wire::v1::{
    admin_service_client::AdminServiceClient, event_service_client::EventServiceClient,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::{
    Http, PATIENCE,
    command::{terminal, under_umask},
    until,
    watchdog::Watchdog,
};

/// A loopback address with a port that the system chooses.
pub const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Options for starting a broker.
#[derive(Clone, Debug, Default)]
pub struct Options {
    env: Vec<(String, String)>,
    umask: Option<&'static str>,
    on_terminal: bool,
}

impl Options {
    /// Sets a configuration key by its environment variable: `("log.retention_age_max", "1s")`.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.env.push((
            format!("BLOBCAST_{}", key.replace('.', "__").to_uppercase()),
            value.to_string(),
        ));
        self
    }

    /// Sets an environment variable that is not a configuration key.
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Starts it under a umask, in octal.
    pub fn umask(mut self, umask: &'static str) -> Self {
        self.umask = Some(umask);
        self
    }

    /// Starts it with a terminal for its standard output.
    pub fn on_terminal(mut self) -> Self {
        self.on_terminal = true;
        self
    }

    /// Starts a broker with an empty directory.
    pub async fn start(self) -> Server {
        self.start_on([ANY_PORT; 3]).await
    }

    /// Like [`Options::start`], on the given addresses for ingest, gRPC and admin.
    pub async fn start_on(self, listen: [SocketAddr; 3]) -> Server {
        Server::launch(self, Arc::new(tempfile::tempdir().unwrap()), listen).await
    }

    /// Starts a broker on the data in `data` of a directory, which is removed with the broker.
    pub async fn start_in(self, directory: TempDir) -> Server {
        Server::launch(self, Arc::new(directory), [ANY_PORT; 3]).await
    }

    /// The command that starts it, for tests of its output.
    pub fn command(&self, data_dir: &Path, listen: [SocketAddr; 3]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blobcast"));
        // The environment of this machine must not affect the broker under test.
        for (key, _) in
            std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("BLOBCAST_"))
        {
            command.env_remove(key);
        }

        command
            .arg("serve")
            .arg("--data-dir")
            .arg(data_dir)
            .envs(self.env.iter().cloned());

        for (flag, address) in ["--ingest-listen", "--grpc-listen", "--admin-listen"]
            .into_iter()
            .zip(listen)
        {
            command.arg(flag).arg(address.to_string());
        }

        if let Some(umask) = self.umask {
            under_umask(&command, umask)
        } else {
            command
        }
    }
}

/// A running broker.
pub struct Server {
    child: Child,
    options: Options,
    directory: Arc<TempDir>,
    log: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
    watchdog: Watchdog,
    printed: Arc<Mutex<String>>,
    pub ingest: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
}

impl Server {
    /// Starts a broker with the defaults.
    pub async fn start() -> Self {
        Options::default().start().await
    }

    async fn launch(options: Options, directory: Arc<TempDir>, listen: [SocketAddr; 3]) -> Self {
        match Self::try_launch(options, directory, listen).await {
            Ok(server) => server,
            Err(log) => panic!("not ready; its log: {log}"),
        }
    }

    /// An error is the log of a process that does not get ready.
    async fn try_launch(
        options: Options,
        directory: Arc<TempDir>,
        listen: [SocketAddr; 3],
    ) -> Result<Self, String> {
        let mut command = options.command(&directory.path().join("data"), listen);
        let (ours, theirs) = options.on_terminal.then(|| terminal(200)).unzip();
        command
            .stdout(theirs.map_or_else(Stdio::piped, Stdio::from))
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();

        let printed = child
            .stdout
            .take()
            .map(collect)
            .or(ours.map(collect))
            .unwrap();

        let log = Arc::new(Mutex::new(String::new()));
        let (ready, is_ready) = mpsc::channel();
        let (stderr, lines) = (child.stderr.take().unwrap(), Arc::clone(&log));
        let log_reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
                if parsed["message"] == "ready" {
                    let _ = ready.send(
                        ["ingest", "grpc", "admin"]
                            .map(|key| parsed[key].as_str().unwrap().parse().unwrap()),
                    );
                }
                let mut log = lines.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });

        let addresses = tokio::task::spawn_blocking(move || is_ready.recv_timeout(PATIENCE))
            .await
            .unwrap();
        let Ok([ingest, grpc, admin]) = addresses else {
            let _ = child.kill(); // mostly it has ended
            child.wait().unwrap();
            return Err(log.lock().unwrap().clone());
        };

        let watchdog = Watchdog::of(child.id());
        Ok(Self {
            child,
            options,
            directory,
            log,
            log_reader: Some(log_reader),
            watchdog,
            printed,
            ingest,
            grpc,
            admin,
        })
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Its log so far; complete once it has ended. A line may arrive later than the event that it
    /// is about: see [`Server::logged`].
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for `count` lines of its log that contain `text`, and returns them. Panics if there
    /// are more.
    pub async fn logged(&self, text: &str, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        until(text, || {
            lines = self
                .log()
                .lines()
                .filter(|line| line.contains(text))
                .map(str::to_owned)
                .collect();
            std::future::ready(lines.len() >= count)
        })
        .await;
        assert_eq!(lines.len(), count, "{text}: {lines:#?}");
        lines
    }

    /// Its standard output so far.
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        super::process::signal(self.pid(), signal);
    }

    /// `SIGSTOP`, until it stands still.
    pub async fn pause(&self) {
        super::process::pause(self.pid()).await;
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the broker to end", || {
            status = self.child.try_wait().unwrap();
            std::future::ready(status.is_some())
        })
        .await;
        // Its last lines may not have arrived yet.
        if let Some(log_reader) = self.log_reader.take() {
            log_reader.join().unwrap();
        }
        status.unwrap()
    }

    /// Sends SIGTERM, and waits until it has ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.ended().await
    }

    /// Starts a new process on the directory of this one, which must have ended, and on its ports, unless somebody has taken
    /// one of them meanwhile: any connection of another test may.
    pub async fn restart(&mut self) {
        self.restart_with(self.options.clone()).await;
    }

    /// Like [`Server::restart`], on other ports: somebody may have taken those of a process that was down for long.
    pub async fn restart_elsewhere(&mut self) {
        let options = self.options.clone();
        *self = Self::launch(options, Arc::clone(&self.directory), [ANY_PORT; 3]).await;
    }

    /// Like [`Server::restart`], with other options.
    pub async fn restart_with(&mut self, options: Options) {
        let listen = [self.ingest, self.grpc, self.admin];
        let directory = Arc::clone(&self.directory);
        let restarted = Self::try_launch(options.clone(), directory, listen).await;
        *self = match restarted {
            Err(log) if log.contains("Address already in use") => {
                Self::launch(options, Arc::clone(&self.directory), [ANY_PORT; 3]).await
            }
            Err(log) => panic!("not ready; its log: {log}"),
            Ok(server) => server,
        };
    }

    /// `kill -9`, and start again.
    pub async fn crash(&mut self) {
        self.kill();
        self.restart().await;
    }

    /// A client of the ingest listener.
    pub fn http(&self) -> Http {
        Http::new(self.ingest)
    }

    /// GETs a path of the admin listener; returns status and body.
    pub async fn admin_get(&self, path: &str) -> (u16, String) {
        Http::new(self.admin).get(path).await
    }

    /// The value of a metric in `/metrics`; `name` includes the labels. 0 if it is missing.
    pub async fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.admin_get("/metrics").await;
        assert_eq!(status, 200);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// A connection of its own, so that streams do not share one.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// A client of the event service.
    pub async fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel().await).max_decoding_message_size(16 * 1024 * 1024)
    }

    /// A client of the admin service.
    pub async fn admin_service(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel().await).max_decoding_message_size(16 * 1024 * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the broker's log:\n{}", self.log());
            self.watchdog
                .found()
                .inspect(|blocked| eprintln!("--- blocked: {blocked}"));
        } else if let Some(blocked) = self.watchdog.found() {
            panic!(
                "what serves must not block: {blocked}; the broker's log:\n{}",
                self.log()
            );
        }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let into = Arc::clone(&text);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            // A terminal writes a line end as two characters.
            into.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&buffer[..count]).replace('\r', ""));
        }
    });
    text
}
