//! What callbacks can be posted to: the broker, or one of the servers of this program that stand for what people write.

use std::{env, net::SocketAddr, process::Command};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, routing::any};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::{
    harness::{Process, Says},
    report::Who,
};

/// The limit: what the same HTTP stack does when nothing has to be done.
pub const EMPTY: Who = Who {
    name: "empty handler",
    settings: "axum with its router on hyper, set up as in our ingest, which has no router (HTTP/1.1, header time-out, no delay); takes the body, answers 200",
};
/// As long as ours.
const ANSWER: &str =
    r#"{"status":"received","event_id":"019a0000-0000-7000-8000-000000000000","duplicate":false}"#;

/// A server that takes callbacks, and may stream events.
#[derive(Debug)]
pub struct Front {
    /// The process.
    pub process: Process,
    /// Where callbacks go.
    pub ingest: SocketAddr,
    /// Where subscriptions go; of a server without any, the same.
    pub grpc: SocketAddr,
    /// Its data, if it has any; deleted with it.
    pub directory: Option<TempDir>,
}

impl Front {
    /// Starts one of this program's own servers in a process of its own.
    pub async fn own(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(crate::PART).args(arguments);
        let mut process = Process::start(command, Says::Stdout)?;
        let addresses = |line: &str| {
            let (ingest, grpc) = line.strip_prefix("ready ")?.split_once(' ')?;
            Some((ingest.parse().ok()?, grpc.parse().ok()?))
        };
        let (ingest, grpc) = process
            .hears(addresses)
            .await
            .with_context(|| format!("{arguments:?}"))?;
        Ok(Self {
            process,
            ingest,
            grpc,
            directory: None,
        })
    }
}

/// Prints where this process listens, for the process that has started it.
pub fn announce(ingest: &TcpListener, grpc: &TcpListener) -> Result<()> {
    println!("ready {} {}", ingest.local_addr()?, grpc.local_addr()?);
    Ok(())
}

/// The empty handler, as a process.
pub async fn serve_empty() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(&listener, &listener)?;
    let handle = |_body: Bytes| async { answer() };
    let router = Router::new()
        .route("/webhook", any(handle))
        .route("/webhook/", any(handle))
        .route("/webhook/{product}", any(handle))
        .route("/webhook/{product}/", any(handle));
    serve(listener, router).await
}

/// What a callback is answered.
pub fn answer() -> ([(&'static str, &'static str); 1], &'static str) {
    ([("content-type", "application/json")], ANSWER)
}

/// HTTP/1.1 as in our ingest, without its limits.
pub async fn serve(listener: TcpListener, router: Router) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = TowerToHyperService::new(router.clone());
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(std::time::Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service);
        // A connection that fails is its client's to complain about.
        tokio::spawn(async move { connection.await.is_ok() });
    }
}
