//! Sixty-four times the load that the broker can take: every answer is 200 or 503, no event is
//! lost, and memory stays bounded.

use std::{collections::HashMap, net::SocketAddr, sync::LazyLock};

use blobcast::checker::{Acknowledged, History, check};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;

use super::raw::{Raw, head};
use crate::support::{AsObserved, Options, Server, completed, until, within};

const CONNECTIONS_MAX: usize = 32;
const FLOOD: usize = 64 * CONNECTIONS_MAX;
/// Of each body. All bodies of a flood together are 256 MiB, all that may be open at once 4 MiB.
const PROMPT_BYTES: usize = 128 * 1024;
/// Instead of a status: no answer, because the kernel or the broker closed the connection before its sender was done.
const CUT_OFF: u16 = 0;
/// Generous: what is kept in tables and in the ring is in it, a flood's bodies would not be.
const GROWTH_KIB_MAX: u64 = 160 * 1024;

#[tokio::test]
async fn sixty_four_times_more_connections_than_the_limit_neither_lose_nor_grow() {
    allow_open_files(FLOOD as u64 + 1_000);
    let mut server = Options::default()
        .set("ingest.connections_max", CONNECTIONS_MAX)
        .set("ingest.header_timeout", "60s")
        .set("hub.ring_bytes_max", "1MiB")
        .set("store.cache_bytes", "1MiB")
        .start()
        .await;
    let mut acknowledged = Vec::new();
    // As many as there is room for, and they stay.
    let mut holders = Vec::new();
    for number in 0..CONNECTIONS_MAX {
        let mut raw = Raw::connect(server.ingest).await;
        post(&mut raw, &format!("held-{number}")).await;
        let reply = raw.reply().await;
        assert_eq!(reply.status, 200);
        acknowledged.push(acknowledgement(&reply.json(), &format!("held-{number}")));
        holders.push(raw);
    }
    let before = peak_kib(&server);

    // Nobody else gets in, and each connection gets an answer that says so.
    let counts = flood(server.ingest, "shut-out", &mut acknowledged).await;
    assert!(
        counts.keys().all(|status| matches!(*status, 503 | CUT_OFF)),
        "{counts:?}"
    );
    assert!(counts[&503] >= answers_min(), "{counts:?}");
    assert_eq!(
        server.admin_get("/livez").await.0,
        200,
        "the other listeners do not notice"
    );
    // The holders' places are given back while the next flood rushes in.
    drop(holders);
    let counts = flood(server.ingest, "rushing", &mut acknowledged).await;
    assert!(
        counts
            .keys()
            .all(|status| matches!(*status, 200 | 503 | CUT_OFF)),
        "{counts:?}"
    );
    assert_eq!(counts.values().sum::<usize>(), FLOOD);
    let grown = peak_kib(&server).saturating_sub(before);
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB for {counts:?}");

    // Afterwards it is as if nothing had been.
    let http = server.http();
    until("a free place", || async {
        http.try_post_to("/webhook/veo", completed("after").to_string())
            .await
            .is_ok_and(|answer| answer.status == 200)
    })
    .await;
    acknowledged.push(http.post(&completed("after")).await.acknowledged("after"));
    server.crash().await;
    let log: Vec<_> = server
        .log_of_events()
        .await
        .iter()
        .map(AsObserved::observed)
        .collect();
    assert_eq!(
        check(&History {
            acknowledged,
            log,
            streams: vec![],
            ..History::default()
        }),
        []
    );
}

/// All at once, each with a connection of its own; how many were answered with which status.
async fn flood(
    address: SocketAddr,
    name: &str,
    acknowledged: &mut Vec<Acknowledged>,
) -> HashMap<u16, usize> {
    let mut attempts = JoinSet::new();
    for number in 0..FLOOD {
        let task = format!("{name}-{number}");
        attempts.spawn(async move {
            let mut raw = Raw::try_connect(address).await.unwrap();
            post(&mut raw, &task).await;
            (raw.try_reply().await, task)
        });
    }
    let mut counts = HashMap::new();
    while let Some(attempt) = within("an answer", attempts.join_next()).await {
        let (reply, task) = attempt.unwrap();
        let Some(reply) = reply else {
            *counts.entry(CUT_OFF).or_default() += 1;
            continue;
        };
        *counts.entry(reply.status).or_default() += 1;
        match reply.status {
            200 => acknowledged.push(acknowledgement(&reply.json(), &task)),
            _ => assert_eq!(reply.header("retry-after"), "30"),
        }
    }
    counts
}

/// Posts a callback. What all have in common is made once: the flood should press the broker, not the one who makes it.
async fn post(raw: &mut Raw, task: &str) {
    static PROMPT: LazyLock<String> = LazyLock::new(|| "x".repeat(PROMPT_BYTES));
    let begin = format!("{{\"generation_id\":\"{task}\",\"status\":\"completed\",\"prompt\":\"");
    let end = "\"}";
    let length = begin.len() + PROMPT.len() + end.len();
    raw.send(head(
        "/webhook/veo",
        &format!("content-length: {length}\r\n"),
    ))
    .await;
    raw.send(begin).await;
    raw.send(PROMPT.as_str()).await;
    raw.send(end).await;
}

/// How many of a flood are owed an answer: nearly all, where the kernel lets that many wait.
fn answers_min() -> usize {
    let queue_max = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    if queue_max
        .trim()
        .parse::<usize>()
        .is_ok_and(|max| max >= FLOOD)
    {
        FLOOD - FLOOD / 10
    } else {
        1
    }
}

fn acknowledgement(answer: &serde_json::Value, task: &str) -> Acknowledged {
    Acknowledged {
        event_id: answer["event_id"].as_str().unwrap().to_owned(),
        task_id: task.to_owned(),
    }
}

/// The most memory the process has had, as Linux counts it.
fn peak_kib(server: &Server) -> u64 {
    if !cfg!(target_os = "linux") {
        return 0;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Half of all connections are this process' own.
fn allow_open_files(count: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < count) {
        assert!(
            maximum.is_none_or(|maximum| maximum >= count),
            "needs {count} open files: raise `ulimit -Hn`"
        );
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(count),
                maximum,
            },
        )
        .unwrap();
    }
}
