//! NATS servers for tests: real processes on free ports, that can be killed, stopped and started again.

use std::{
    collections::VecDeque,
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use blobcast::{
    cluster::Author,
    nats::{Event, Events, Handle, Nats, Settings, Sync},
};
use bytes::Bytes;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{free_address, process, until, within};

/// What a server is started with.
#[derive(Clone)]
pub struct NatsOptions {
    pub max_payload: usize,
    /// `sync_interval: always`.
    pub syncs: bool,
    pub jetstream: bool,
    /// Further lines of its configuration.
    pub more: String,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            max_payload: 8 << 20,
            syncs: true,
            jetstream: true,
            more: String::new(),
        }
    }
}

/// One server.
pub struct NatsServer {
    program: PathBuf,
    directory: TempDir,
    pub client: SocketAddr,
    pub monitoring: SocketAddr,
    route: SocketAddr,
    name: String,
    options: NatsOptions,
    routes: Vec<SocketAddr>,
    child: Option<Child>,
}

/// The server to test with. Without one the test is skipped.
pub fn nats_server() -> Option<PathBuf> {
    let named = env::var_os("NATS_SERVER").map(PathBuf::from);
    let on_path = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path)
            .map(|directory| directory.join("nats-server"))
            .find(|program| program.is_file())
    };
    let found = named.or_else(on_path);
    if found.is_none() {
        eprintln!("skipped: no nats-server; set NATS_SERVER, or put it into PATH");
    }
    found
}

impl NatsServer {
    /// The answer of JetStream to a request of somebody else; `Value::Null` is an empty body.
    pub async fn api(&self, request: &str, body: &Value) -> Value {
        let client = async_nats::connect(self.url()).await.unwrap();
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let answer = client.request(format!("$JS.API.{request}"), text.into());
        serde_json::from_slice(&answer.await.unwrap().payload).unwrap()
    }

    /// A single server, once it answers.
    pub async fn start(options: NatsOptions) -> Option<Self> {
        let mut server = Self::new(nats_server()?, "n1", options, Vec::new());
        server.run();
        server.is_healthy().await;
        Some(server)
    }

    /// Three servers in one cluster, once JetStream answers at each.
    pub async fn three() -> Option<Vec<Self>> {
        let program = nats_server()?;
        let new = |name| Self::new(program.clone(), name, NatsOptions::default(), Vec::new());
        let mut servers: Vec<_> = ["n1", "n2", "n3"].into_iter().map(new).collect();
        let routes: Vec<_> = servers.iter().map(|server| server.route).collect();
        for server in &mut servers {
            server.routes.clone_from(&routes);
            server.run();
        }
        for server in &servers {
            server.is_healthy().await;
        }
        Some(servers)
    }

    fn new(program: PathBuf, name: &str, options: NatsOptions, routes: Vec<SocketAddr>) -> Self {
        Self {
            program,
            directory: tempfile::tempdir().unwrap(),
            client: free_address(),
            monitoring: free_address(),
            route: free_address(),
            name: name.to_owned(),
            options,
            routes,
            child: None,
        }
    }

    /// Runs it, on the same ports and data as before.
    pub fn run(&mut self) {
        let path = self.directory.path().join("nats.conf");
        fs::write(&path, self.configuration()).unwrap();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn configuration(&self) -> String {
        let options = &self.options;
        let mut text = format!(
            "server_name: {}\nlisten: {}\nhttp: {}\nmax_payload: {}\n{}\n",
            self.name, self.client, self.monitoring, options.max_payload, options.more
        );
        if options.jetstream {
            let data = self.directory.path().join("data");
            let sync = if options.syncs {
                "sync_interval: always"
            } else {
                ""
            };
            text += &format!(
                "jetstream {{ store_dir: {:?}, max_file_store: 1GB, {sync} }}\n",
                data.display().to_string()
            );
        }
        if !self.routes.is_empty() {
            let routes: Vec<_> = self
                .routes
                .iter()
                .map(|it| format!("nats://{it}"))
                .collect();
            text += &format!(
                "cluster {{ name: test, listen: {}, routes: [ {} ] }}\n",
                self.route,
                routes.join(", ")
            );
        }
        text
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.client)
    }

    pub fn monitoring_url(&self) -> String {
        format!("http://{}", self.monitoring)
    }

    /// What it says of itself at this path of its monitoring port.
    pub async fn get(&self, path: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let mut stream = tokio::net::TcpStream::connect(self.monitoring).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: nats\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let is_good = answer.lines().next()?.contains(" 200 ");
        is_good.then_some(answer)
    }

    pub async fn is_healthy(&self) {
        until(&format!("{} to be healthy", self.name), async || {
            self.get("/healthz").await.is_some()
        })
        .await;
    }

    pub fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// `SIGSTOP`, until it stands still.
    pub async fn pause(&self) {
        process::pause(self.pid()).await;
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How nodes of these tests reach the servers: by a stream with a copy at each.
pub fn nats_settings(servers: &[NatsServer]) -> Settings {
    Settings {
        servers: servers.iter().map(NatsServer::url).collect(),
        name: "main".to_owned(),
        node: "a.example".to_owned(),
        replicas: servers.len(),
        create: true,
        user: String::new(),
        password_file: None,
        tls_ca_file: None,
        tls_certificate_file: None,
        tls_key_file: None,
        monitoring_urls: servers.iter().map(NatsServer::monitoring_url).collect(),
        sync: Sync::Require,
        message_bytes_max: 2 << 20,
        stream_bytes_max: 64 << 20,
        // A machine that does much else syncs slowly.
        publish_timeout: Duration::from_secs(5),
        forward_timeout: Duration::from_secs(5),
    }
}

/// A node's connection, with what happens at it.
pub struct NatsNode {
    pub handle: Handle,
    events: mpsc::Receiver<Event>,
    /// Those that nobody has waited for yet.
    kept: VecDeque<Event>,
    /// How often it was woken.
    pub woken: Arc<AtomicUsize>,
}

impl NatsNode {
    /// Follows the stream from its message `from` on, with room for `events_max` events.
    pub async fn start(settings: Settings, me: u128, from: u64, events_max: usize) -> Self {
        let mut nats = Nats::connect(settings).await.unwrap();
        let stream = nats.stream().await.unwrap();
        let (sender, events) = mpsc::channel(events_max);
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let wake = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let events_out = Events::new(sender, wake);
        let handle = nats.start(stream, Author(me), from, events_out).await;
        Self {
            handle: handle.unwrap(),
            events,
            kept: VecDeque::new(),
            woken,
        }
    }

    /// The first event that is picked. Others are kept.
    pub async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        for at in 0..self.kept.len() {
            if let Some(picked) = pick(&self.kept[at]) {
                self.kept.remove(at);
                return picked;
            }
        }
        within(what, async {
            loop {
                let event = self.events.recv().await.expect("its tasks run");
                if let Some(picked) = pick(&event) {
                    return picked;
                }
                self.kept.push_back(event);
            }
        })
        .await
    }

    /// The next message of the stream.
    pub async fn message(&mut self) -> (u64, Bytes) {
        self.wait("a message", |event| match event {
            Event::Message { sequence, bytes } => Some((*sequence, bytes.clone())),
            _ => None,
        })
        .await
    }

    /// The message at this sequence, as text.
    pub async fn message_at(&mut self, sequence: u64) -> String {
        self.wait("a message", |event| match event {
            Event::Message {
                sequence: it,
                bytes,
            } if *it == sequence => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            _ => None,
        })
        .await
    }

    /// Publishes, and says what became of it.
    pub async fn publish(&mut self, expected: u64, chain: u64, bytes: &str) -> Event {
        let bytes = Bytes::copy_from_slice(bytes.as_bytes());
        self.handle.publish(expected, chain, bytes);
        self.wait("an outcome", |event| match event {
            Event::Acked { chain: it, .. }
            | Event::Refused { chain: it, .. }
            | Event::Unanswered { chain: it, .. } => (*it == chain).then(|| event.clone()),
            _ => None,
        })
        .await
    }

    /// Publishes until it is known what became of it.
    pub async fn publish_for_sure(&mut self, expected: u64, chain: u64, bytes: &str) -> Event {
        within("an outcome that says it", async {
            loop {
                let outcome = self.publish(expected, chain, bytes).await;
                if !matches!(outcome, Event::Unanswered { .. }) {
                    return outcome;
                }
            }
        })
        .await
    }

    /// Publishes messages behind `last`, each with its sequence as text.
    pub async fn fill(&mut self, last: u64, count: u64) {
        for expected in last..last + count {
            let sequence = expected + 1;
            let outcome = self
                .publish(expected, sequence, &sequence.to_string())
                .await;
            let Event::Acked { sequence: at, .. } = outcome else {
                panic!("{outcome:?}")
            };
            assert_eq!(at, sequence);
        }
    }
}
