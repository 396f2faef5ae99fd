//! The empty handler with nothing but durability: what it costs before anybody looks into a callback.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use axum::{Router, body::Bytes, http::StatusCode, response::IntoResponse, routing::any};
use tokio::{net::TcpListener, sync::oneshot};

use super::front::{self, Front};
use crate::{bench::Bench, harness, report::Who};

/// See the file's description.
pub const APPEND: Who = Who {
    name: "bare append",
    settings: "the empty handler, with each body appended to one file, which was filled with zeros ahead; a thread writes and syncs what has queued up, and answers; nothing is parsed, indexed, compared or sent on",
};
/// Twice what is written in one turn.
const FILE_BYTES: u64 = 1024 * 1024 * 1024;

type Body = (Bytes, oneshot::Sender<()>);

/// Starts it in a process of its own.
pub async fn start(bench: &Bench) -> Result<Front> {
    let directory = harness::directory(&bench.target)?;
    let path = directory.path().join("bodies");
    let front = Front::own(&["append", path.to_str().context("a path that is no text")?]).await?;
    Ok(Front {
        directory: Some(directory),
        ..front
    })
}

/// Serves, as a process.
pub async fn serve(path: &Path) -> Result<()> {
    let file = zeros(path).with_context(|| path.display().to_string())?;
    let (sender, bodies) = mpsc::channel();
    thread::spawn(move || append(&file, &bodies).expect("the disk takes what it has room for"));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    front::announce(&listener, &listener)?;
    let handle = move |body: Bytes| durable(sender.clone(), body);
    front::serve(
        listener,
        Router::new().route("/webhook/{product}", any(handle)),
    )
    .await
}

async fn durable(bodies: Sender<Body>, body: Bytes) -> impl IntoResponse {
    let (reply, answer) = oneshot::channel();
    let sent = bodies
        .send((body, reply))
        .map_err(|_| anyhow!("the writer has ended"));
    match (sent, answer.await) {
        (Ok(()), Ok(())) => front::answer().into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Room that needs no more than its bytes to be synced.
fn zeros(path: &Path) -> io::Result<File> {
    let mut file = File::create(path)?;
    let zeros = vec![0; 1024 * 1024];
    for _ in 0..FILE_BYTES / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn append(file: &File, bodies: &Receiver<Body>) -> io::Result<()> {
    let (mut end, mut bytes) = (0, Vec::new());
    while let Ok(first) = bodies.recv() {
        let group: Vec<_> = [first].into_iter().chain(bodies.try_iter()).collect();
        bytes.clear();
        for (body, _) in &group {
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(body);
        }
        file.write_all_at(&bytes, end)?;
        file.sync_data()?;
        end += bytes.len() as u64;
        for (_, reply) in group {
            let _ = reply.send(()).is_ok(); // who has gone needs no answer
        }
    }
    Ok(())
}
