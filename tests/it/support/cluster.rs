//! Nodes of a cluster at a NATS server of one test, and a NATS server for the nodes of this process.

use std::{
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use super::{NatsServer, Options, PATIENCE, Server, free_address, nats_server, until};

impl NatsServer {
    /// Options of a node of a cluster at this server.
    pub fn node(&self, name: &str) -> Options {
        self.node_with(Options::default(), name)
    }

    /// Like [`NatsServer::node`], beside other options.
    pub fn node_with(&self, options: Options, name: &str) -> Options {
        options
            .set("cluster.servers", self.url())
            .set("cluster.monitoring_urls", self.monitoring_url())
            .set("cluster.replicas", 1)
            .set("cluster.stream_bytes_max", "256MiB")
            .set("cluster.node", name)
    }
}

impl Server {
    /// Waits until `/readyz` says so.
    pub async fn ready(&self) {
        until("readiness", async || {
            self.admin_get("/readyz").await.0 == 200
        })
        .await;
    }

    /// Waits until this node has applied everything up to a place.
    pub async fn has_place(&self, place: u64) {
        until("the place", async || {
            super::place(&self.log_info().await.head) >= place
        })
        .await;
    }
}

/// The address of a server that all tests of this process share. It ends, and its directory goes, with the process.
pub fn shared_nats() -> String {
    static SHARED: OnceLock<(String, Child)> = OnceLock::new();
    let (url, _) = SHARED.get_or_init(|| {
        let binary = nats_server().expect("who asks for it has looked");
        let (directory, address) = (tempfile::tempdir().unwrap().keep(), free_address());
        // The shell's input ends when this process does, however that ends.
        let script = r#""$0" -a "${1%:*}" -p "${1##*:}" -js -sd "$2" -l "$2/log" & server=$!
            read -r _; kill -9 $server; rm -rf "$2""#;
        let shell = Command::new("sh")
            .args(["-c", script])
            .arg(binary)
            .arg(address.to_string())
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the NATS server");
            thread::sleep(Duration::from_millis(5)); // between two polls
        }
        (format!("nats://{address}"), shell)
    });
    url.clone()
}
