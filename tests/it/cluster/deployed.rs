//! What `deploy/cluster` says: compose.yaml's containers as processes on addresses of their own, nats.conf, and the drop-in.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::support::{Cli, Http, Running, completed, nats_server, until};

/// A file of `deploy/cluster`.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/cluster")
        .join(name)
}

/// What compose.yaml gives to its containers. It is read by its lines, so it has to stay as simple as it is.
struct Compose {
    nats_command: Vec<String>,
    nats: String,
    node_command: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Compose {
    fn read() -> Self {
        let text = fs::read_to_string(file("compose.yaml")).unwrap();
        let block = |head: &str, indent: &str| -> Vec<String> {
            let lines = text.lines().skip_while(|line| line.trim() != head).skip(1);
            let inside = lines.map_while(|line| line.strip_prefix(indent));
            inside.map(str::to_owned).collect()
        };
        let command = |head: &str| -> Vec<String> {
            let lines = block(head, "  ");
            let list = lines.iter().find_map(|line| line.strip_prefix("command: "));
            serde_json::from_str(list.unwrap()).unwrap()
        };
        let pair = |line: &String| {
            let (key, value) = line.split_once(": ").unwrap();
            (key.to_owned(), value.trim_matches('"').to_owned())
        };
        Self {
            nats_command: command("x-nats: &nats"),
            // Compose writes $ as $$.
            nats: block("content: |", "      ").join("\n").replace("$$", "$"),
            node_command: command("x-node: &node"),
            environment: block("x-environment: &environment", "  ")
                .iter()
                .filter(|line| !line.starts_with('#'))
                .map(pair)
                .collect(),
        }
    }

    /// The environment of a node.
    fn node(&self, name: &str) -> Vec<(String, String)> {
        let mut environment = self.environment.clone();
        environment.push(("BLOBCAST_CLUSTER__NODE".to_owned(), name.to_owned()));
        environment
    }
}

/// A network of loopback addresses, with one for each container.
struct Network(String);

impl Network {
    /// One that no other process of these tests has.
    fn new() -> Self {
        let process = std::process::id();
        Self(format!("127.{}.{}", 1 + process % 254, process / 254 % 256))
    }

    fn of_nats(&self, number: usize) -> String {
        format!("{}.{number}", self.0)
    }

    /// What a container gets, with addresses in place of names, and its own in place of all.
    fn adapted(&self, text: &str, own: &str) -> String {
        let mut text = text.replace("0.0.0.0", own);
        for number in 1..=3 {
            text = text.replace(
                &format!("nats-{number}:"),
                &format!("{}:", self.of_nats(number)),
            );
        }
        text
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn address(host: &str, port: u16) -> SocketAddr {
    format!("{host}:{port}").parse().unwrap()
}

async fn until_200(what: &str, address: SocketAddr, path: &str) {
    until(what, async || {
        // Until it listens, there is nothing to ask.
        std::net::TcpStream::connect(address).is_ok() && Http::new(address).get(path).await.0 == 200
    })
    .await;
}

/// One of the servers of compose.yaml.
fn nats(compose: &Compose, network: &Network, number: usize, directory: &Path) -> Process {
    let data = directory.join(format!("nats-{number}"));
    let told = network.adapted(&compose.nats, &network.of_nats(number));
    let told = told.replace("/data", &data.display().to_string());
    let path = directory.join(format!("nats-{number}.conf"));
    fs::write(&path, told).unwrap();
    let command = compose.nats_command.iter();
    let child = Command::new(nats_server().unwrap())
        .args(command.map(|word| word.replace("/nats.conf", path.to_str().unwrap())))
        .env("NATS_NAME", format!("nats-{number}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Process(child.unwrap())
}

/// One of the nodes of compose.yaml.
fn node(compose: &Compose, name: &str, host: &str, network: &Network, data: &Path) -> Running {
    fs::create_dir(data).unwrap();
    // As the mode that compose.yaml gives to the tmpfs.
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).unwrap();
    let [program, words @ ..] = &compose.node_command[..] else {
        panic!("a node needs a command");
    };
    assert_eq!(program, "blobcast");
    let mut cli = Cli::new(&words.join(" "));
    for (key, value) in compose.node(name) {
        let told = network.adapted(&value, host);
        cli = cli.env(
            &key,
            told.replace("/var/lib/blobcast", data.to_str().unwrap()),
        );
    }
    cli.start()
}

#[tokio::test]
async fn the_containers_of_compose_make_a_cluster() {
    if nats_server().is_none() {
        return;
    }
    let (compose, network, directory) = (Compose::read(), Network::new(), TempDir::new().unwrap());
    let mut servers = Vec::new();
    for number in 1..=3 {
        servers.push(nats(&compose, &network, number, directory.path()));
    }
    for number in 1..=3 {
        let monitoring = address(&network.of_nats(number), 8222);
        until_200("a NATS server", monitoring, "/healthz").await;
    }

    let (mut nodes, mut hosts) = (Vec::new(), Vec::new());
    for (number, name) in (11..).zip(["a", "b", "c"]) {
        let host = network.of_nats(number);
        let data = directory.path().join(name);
        nodes.push(node(&compose, name, &host, &network, &data));
        hosts.push(host);
    }
    for host in &hosts {
        until_200("a node", address(host, 9090), "/readyz").await;
    }
    let answer = Http::new(address(&hosts[0], 8080))
        .post(&completed("t1"))
        .await;
    answer.event_id();
    for host in &hosts {
        let line = format!("get t1 --output json --grpc-url http://{host}:50051");
        until("the event", async || {
            Cli::new(&line).run().await.code == Some(0)
        })
        .await;
    }
    let status = format!("cluster status --grpc-url http://{}:50051", hosts[1]);
    let ran = Cli::new(&status).run().await;
    assert!(ran.good().contains("main"), "{ran:?}");
    for node in &nodes {
        let exposed = node.stderr().contains("others can get at");
        assert!(!exposed, "{}", node.stderr());
    }
}

/// `check-config` with an environment: what is not a key, or not a value of it, is refused.
async fn checked(environment: &[(String, String)]) -> crate::support::Ran {
    let mut cli = Cli::new("check-config");
    for (key, value) in environment {
        cli = cli.env(key, value);
    }
    cli.run().await
}

#[tokio::test]
async fn a_node_would_start_with_the_environment_of_compose_and_of_the_drop_in() {
    let of_compose = Compose::read().node("a");
    assert!(of_compose.len() > 8, "{of_compose:?}");
    checked(&of_compose).await.good();

    let drop_in = fs::read_to_string(file("blobcast.service.d/cluster.conf")).unwrap();
    let lines = drop_in.lines().map(|line| line.trim_start_matches('#'));
    let values = lines.filter_map(|line| line.strip_prefix("Environment="));
    let mut of_drop_in: Vec<_> = values
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(key, value)| (key.to_owned(), value.replace("%l", "a")))
        .collect();
    assert_eq!(of_drop_in.len(), 6, "{of_drop_in:?}");
    // A file of the site.
    let directory = TempDir::new().unwrap();
    let password = directory.path().join("nats.password");
    fs::write(&password, "password").unwrap();
    for (_, value) in &mut of_drop_in {
        *value = value.replace("/etc/blobcast/nats.password", password.to_str().unwrap());
    }
    let ran = checked(&of_drop_in).await;
    ran.good();

    of_drop_in.push(("BLOBCAST_CLUSTER__NODES".to_owned(), "a".to_owned()));
    let ran = checked(&of_drop_in).await;
    assert!(ran.exited(1).contains("BLOBCAST_CLUSTER__NODES"), "{ran:?}");
}

#[test]
fn nats_takes_the_configurations() {
    let Some(program) = nats_server() else {
        return;
    };
    let directory = TempDir::new().unwrap();
    let of_compose = directory.path().join("compose.conf");
    fs::write(&of_compose, Compose::read().nats).unwrap();
    let wrong = directory.path().join("wrong.conf");
    fs::write(&wrong, "jetstream { sync_intervall: always }").unwrap();
    for (path, is_good) in [
        (&file("nats.conf"), true),
        (&of_compose, true),
        (&wrong, false),
    ] {
        let done = Command::new(&program)
            .arg("-c")
            .arg(path)
            .arg("-t")
            .env("NATS_NAME", "nats-1")
            .output()
            .unwrap();
        assert_eq!(done.status.success(), is_good, "{path:?}: {done:?}");
    }
}
