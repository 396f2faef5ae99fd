//! Several brokers with one log, which NATS JetStream orders and replicates: real processes, a real NATS server.

use std::{
    collections::HashSet,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use blobcast::{
    simulator::server::State,
    wire::v1::{
        DiscardQuarantinedRequest, Event, GetTaskRequest, ListQuarantineRequest,
        QuarantinedCallback, ReleaseQuarantinedRequest,
    },
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::Code;

mod absence;
mod deployed;
mod frames;
mod import;
mod restored_stream;

use crate::{
    erasure::erase,
    support::{
        Cli, CredentialsFile, Http, NatsOptions, NatsServer, Options, Server, Sub, VendorCase,
        after, bulky, completed, cursor_at, expect, expectation, fatal, free_address, is_on_disk,
        is_recovered, latest, place, places, processing, reason, request, tasks_of, until, within,
    },
};

/// Nodes of one cluster, and the NATS server that they share.
struct Nodes {
    nats: NatsServer,
    nodes: Vec<Server>,
}

impl Nodes {
    /// Starts three nodes, which are ready; `None` where there is no NATS server.
    async fn three() -> Option<Self> {
        Self::with(|options| options).await
    }

    async fn with(change: impl Fn(Options) -> Options) -> Option<Self> {
        let nats = NatsServer::start(NatsOptions::default()).await?;
        let mut nodes = Vec::new();
        for name in ["a", "b", "c"] {
            nodes.push(change(nats.node(name)).start().await);
        }
        for node in &nodes {
            node.ready().await;
        }
        Some(Self { nats, nodes })
    }

    /// Which node writes. With several or none for a moment, it waits.
    async fn writer(&self) -> usize {
        let mut writer = None;
        until("one writer", async || {
            let mut writers = Vec::new();
            for (at, node) in self.nodes.iter().enumerate() {
                if node.metric("blobcast_cluster_is_writer").await > 0.0 {
                    writers.push(at);
                }
            }
            writer = (writers.len() == 1).then(|| writers[0]);
            writer.is_some()
        })
        .await;
        writer.unwrap()
    }

    /// Takes out the node that writes.
    async fn without_writer(mut self) -> (Server, Self) {
        let writer = self.writer().await;
        (self.nodes.remove(writer), self)
    }

    /// A node that does not write.
    async fn other(&self) -> &Server {
        &self.nodes[(self.writer().await + 1) % self.nodes.len()]
    }

    /// A command line with the addresses of all nodes, from this one on.
    fn cli_from(&self, first: usize, line: &str) -> Cli {
        let count = self.nodes.len();
        let url = |at: usize| format!("http://{}", self.nodes[at % count].grpc);
        let urls: Vec<_> = (first..first + count).map(url).collect();
        Cli::new(line).env("BLOBCAST_GRPC_URL", urls.join(","))
    }

    /// Waits until all nodes have the same log of so many events, and returns it.
    async fn log_of(&self, count: usize) -> Vec<Event> {
        let mut logs = Vec::new();
        until("one log on all nodes", async || {
            logs.clear();
            for node in &self.nodes {
                logs.push(node.log_of_events().await);
            }
            logs.iter().all(|log| log.len() == count)
        })
        .await;
        assert!(logs.windows(2).all(|pair| pair[0] == pair[1]), "{logs:#?}");
        logs.swap_remove(0)
    }

    /// Waits until all nodes have the same callbacks in quarantine, so many, and returns them.
    async fn quarantined(&self, count: usize) -> Vec<QuarantinedCallback> {
        let mut lists = Vec::new();
        until("one quarantine on all nodes", async || {
            lists.clear();
            for node in &self.nodes {
                lists.push(quarantine(node).await);
            }
            lists.iter().all(|list| list.len() == count)
        })
        .await;
        assert!(
            lists.windows(2).all(|pair| pair[0] == pair[1]),
            "{lists:#?}"
        );
        lists.swap_remove(0)
    }
}

/// Callers that post callbacks to nodes in turn, each again and elsewhere until it is answered 200.
#[derive(Default)]
struct Posting {
    ids: Mutex<Vec<String>>,
    next: AtomicUsize,
    is_over: AtomicBool,
}

impl Posting {
    /// Begins to post at these nodes; each caller has one callback on its way.
    fn begin<'n>(nodes: impl IntoIterator<Item = &'n Server>) -> (Arc<Self>, JoinSet<()>) {
        let posting = Arc::new(Self::default());
        let https: Vec<_> = nodes.into_iter().map(Server::http).collect();
        let mut callers = JoinSet::new();
        for caller in 0..8 {
            let (posting, https) = (Arc::clone(&posting), https.clone());
            callers.spawn(async move { posting.post(caller, &https).await });
        }
        (posting, callers)
    }

    async fn post(&self, caller: usize, https: &[Http]) {
        let mut node = caller;
        while !self.is_over.load(Ordering::Relaxed) {
            let task = format!("t{}", self.next.fetch_add(1, Ordering::Relaxed));
            loop {
                let http = &https[node % https.len()];
                let body = completed(&task).to_string();
                let answer = http.try_post_to("/webhook/veo", body).await;
                if let Ok(answer) = answer
                    && answer.status == 200
                {
                    self.ids.lock().unwrap().push(answer.event_id());
                    break;
                }
                node += 1;
            }
        }
    }

    fn count(&self) -> usize {
        self.ids.lock().unwrap().len()
    }

    async fn reaches(&self, count: usize) {
        until("more callbacks", async || self.count() >= count).await;
    }

    /// Ends it; returns the ids that were answered.
    async fn end(&self, callers: JoinSet<()>) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        within("the callers", callers.join_all()).await;
        self.ids.lock().unwrap().clone()
    }
}

/// What a start that is refused says.
async fn refusal(mut command: Command) -> String {
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = within("the end of the start", run).await.unwrap();
    assert!(!output.status.success());
    fatal(&output.stderr)
}

async fn quarantine(node: &Server) -> Vec<QuarantinedCallback> {
    let request = ListQuarantineRequest {
        include_body: true,
        ..Default::default()
    };
    let listed = node.admin_service().await.list_quarantine(request).await;
    listed.unwrap().into_inner().callbacks
}

#[tokio::test]
async fn three_nodes_have_one_log_with_the_same_places_and_cursors() {
    let Some(cluster) = Nodes::three().await else {
        return;
    };
    let mut ids = Vec::new();
    for number in 0..30 {
        let node = &cluster.nodes[number % 3];
        ids.push(
            node.http()
                .post(&completed(&format!("t{number}")))
                .await
                .event_id(),
        );
    }
    let log = cluster.log_of(30).await;
    assert_eq!(places(&log), (1..=30).collect::<Vec<_>>());
    let logged: Vec<_> = log.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(logged, ids, "each answer came before the next callback");
}

#[tokio::test]
async fn what_was_answered_by_a_node_can_be_read_there_at_once() {
    let Some(cluster) = Nodes::three().await else {
        return;
    };
    let node = cluster.other().await;
    for number in 0..20 {
        let id = node
            .http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
        let log = node.log_of_events().await;
        assert_eq!(log.last().unwrap().event_id, id);
    }
}

#[tokio::test]
async fn a_duplicate_at_another_node_is_answered_with_its_original() {
    let Some(cluster) = Nodes::three().await else {
        return;
    };
    let body = completed("t1");
    // All at once at all nodes: one of them becomes the event.
    let https: Vec<_> = cluster.nodes.iter().map(Server::http).collect();
    let posts: Vec<_> = (0..30)
        .map(|number| {
            let (http, body) = (https[number % 3].clone(), body.clone());
            tokio::spawn(async move { http.post(&body).await })
        })
        .collect();
    let mut answers = Vec::new();
    for post in posts {
        answers.push(within("an answer", post).await.unwrap());
    }
    let log = cluster.log_of(1).await;
    assert!(
        answers
            .iter()
            .all(|answer| answer.event_id() == log[0].event_id)
    );
    let new = answers.iter().filter(|answer| !answer.duplicate()).count();
    assert_eq!(new, 1);
}

#[tokio::test]
async fn a_stream_that_began_on_one_node_goes_on_at_another() {
    let Some(cluster) = Nodes::three().await else {
        return;
    };
    let mut seen = Vec::new();
    let mut cursor = None;
    for round in 0..6 {
        let (reader, sender) = (&cluster.nodes[round % 3], &cluster.nodes[(round + 1) % 3]);
        let request = cursor.as_deref().map_or_else(request, after);
        let mut sub = reader.subscribe(request).await;
        let task = format!("t{round}");
        sender.http().post(&completed(&task)).await.event_id();
        let event = sub.next_event().await;
        assert_eq!(event.task_id, task);
        cursor = Some(sub.cursor.clone());
        seen.push(event);
    }
    assert_eq!(cluster.log_of(6).await, seen);
}

#[tokio::test]
async fn a_cursor_ahead_of_a_node_is_waited_for_and_then_refused_for_now() {
    let Some(cluster) = Nodes::with(|options| options.set("cluster.read_wait", "300ms")).await
    else {
        return;
    };
    cluster.nodes[0]
        .http()
        .post(&completed("t1"))
        .await
        .event_id();
    let log = cluster.log_of(1).await;
    let next = cursor_at(&log[0].cursor, 2);
    let refused = cluster.nodes[1]
        .try_subscribe(after(&next))
        .await
        .err()
        .unwrap();
    assert_eq!(
        (refused.code(), reason(&refused)),
        (Code::Unavailable, "STORE_BEHIND".into())
    );

    let cluster = Nodes {
        nodes: vec![
            cluster
                .nats
                .node("d")
                .set("cluster.read_wait", "60s")
                .start()
                .await,
        ],
        nats: cluster.nats,
    };
    cluster.nodes[0].ready().await;
    let (reader, poster) = (cluster.nodes[0].events().await, cluster.nodes[0].http());
    let waiting = tokio::spawn(Sub::open(reader, after(&next)));
    poster.post(&completed("t2")).await.event_id();
    let mut sub = within("the stream", waiting).await.unwrap().unwrap();
    poster.post(&completed("t3")).await.event_id();
    assert_eq!(sub.next_event().await.task_id, "t3");
}

#[tokio::test]
async fn listen_goes_on_at_the_next_node_when_its_own_is_killed_or_stopped() {
    let Some(mut cluster) = Nodes::three().await else {
        return;
    };
    let listen = cluster
        .cli_from(0, "listen --from earliest --output json")
        .start();
    // Only the last node is posted to: it outlives the others.
    let (posting, callers) = Posting::begin([&cluster.nodes[2]]);
    listen.prints_lines(50).await;
    cluster.nodes[0].kill();
    let next = format!(" s at http://{} from ", cluster.nodes[1].grpc);
    listen.says(&next).await;
    let printed = listen.stdout().lines().count();
    listen.prints_lines(printed + 50).await;
    assert!(cluster.nodes[1].terminate().await.success());
    let next = format!(" s at http://{} from ", cluster.nodes[2].grpc);
    listen.says(&next).await;
    posting.reaches(posting.count() + 50).await;
    posting.end(callers).await;

    let log = cluster.nodes[2].log_of_events().await;
    listen.prints_lines(log.len()).await;
    let cursors: Vec<_> = listen
        .json_lines()
        .iter()
        .map(|event| event["cursor"].as_str().unwrap().to_owned())
        .collect();
    let expected: Vec<_> = log.iter().map(|event| event.cursor.clone()).collect();
    assert_eq!(cursors, expected, "each event once, in order");
}

#[tokio::test]
async fn a_wait_that_began_at_a_node_ends_at_another() {
    let Some(mut cluster) = Nodes::three().await else {
        return;
    };
    let wait = cluster.cli_from(0, "wait t1 --product veo").start();
    until("the wait", async || {
        !cluster.nodes[0].subscriptions().await.is_empty()
    })
    .await;
    cluster.nodes[0].kill();
    let next = format!("going on at http://{}", cluster.nodes[1].grpc);
    wait.says(&next).await;
    cluster.nodes[2].http().post(&completed("t1")).await;
    assert!(wait.ended().await.good().starts_with("https://"));
}

#[tokio::test]
async fn a_command_asks_again_while_every_node_is_behind() {
    let patient = |options: Options| options.set("cluster.read_wait", "300ms");
    let Some(mut cluster) = Nodes::with(patient).await else {
        return;
    };
    cluster.nats.kill();
    let get = cluster.cli_from(0, "get t1 --output json").start();
    get.says("STORE_BEHIND").await;
    for node in &cluster.nodes {
        get.says(&format!("http://{}: UNAVAILABLE STORE_BEHIND: ", node.grpc))
            .await;
    }
    get.says("; trying again in ").await;
    cluster.nats.run();
    let ran = get.ended().await;
    let said = ran.exited(1).lines().last().unwrap();
    assert!(said.contains("NOT_FOUND TASK_NOT_FOUND"), "{said}");

    for node in &cluster.nodes {
        node.ready().await;
    }
    let id = cluster.nodes[1].http().post(&completed("t1")).await;
    let ran = cluster.cli_from(0, "get t1 --output json").run().await;
    assert_eq!(ran.each("event_id"), [id.event_id()]);

    cluster.nats.kill();
    let ran = cluster.cli_from(0, "get t2").run().await;
    let said = ran.exited(1).lines().last().unwrap();
    assert!(
        said.starts_with("error: no broker took the call: "),
        "{said}"
    );
    for node in &cluster.nodes {
        let problem = format!("http://{}: UNAVAILABLE STORE_BEHIND: ", node.grpc);
        assert!(said.contains(&problem), "{said}");
    }
}

#[tokio::test]
async fn when_the_writing_node_is_killed_the_others_go_on_and_nothing_acknowledged_is_missing() {
    let Some(cluster) = Nodes::three().await else {
        return;
    };
    let (mut writer, cluster) = cluster.without_writer().await;
    let (posting, callers) = Posting::begin(cluster.nodes.iter().chain([&writer]));
    posting.reaches(200).await;
    writer.kill();
    posting.reaches(posting.count() + 200).await;
    let ids = posting.end(callers).await;

    let mut log = Vec::new();
    until("all of it on both nodes", async || {
        log = cluster.nodes[0].log_of_events().await;
        log == cluster.nodes[1].log_of_events().await
            && ids
                .iter()
                .all(|id| log.iter().any(|event| event.event_id == *id))
    })
    .await;
    let tasks: HashSet<_> = log.iter().map(|event| &event.task_id).collect();
    assert_eq!(tasks.len(), log.len(), "no callback became two events");
    assert_eq!(places(&log), (1..=log.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_node_joins_from_an_empty_directory_and_a_killed_one_catches_up() {
    let Some(mut cluster) = Nodes::three().await else {
        return;
    };
    for number in 0..50 {
        let node = &cluster.nodes[number % 3];
        node.http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    cluster.nodes.push(cluster.nats.node("d").start().await);
    cluster.nodes[3].ready().await;
    cluster.log_of(50).await;

    let mut killed = cluster.nodes.remove(1);
    killed.kill();
    for number in 50..100 {
        let node = &cluster.nodes[number % 3];
        node.http()
            .post(&completed(&format!("t{number}")))
            .await
            .event_id();
    }
    killed.restart().await;
    killed.ready().await;
    cluster.nodes.push(killed);
    let log = cluster.log_of(100).await;
    assert_eq!(places(&log), (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_cluster_of_which_every_node_was_stopped_or_killed_goes_on() {
    let Some(mut cluster) = Nodes::three().await else {
        return;
    };
    for round in 0..2 {
        let id = cluster.nodes[round]
            .http()
            .post(&completed(&format!("t{round}")))
            .await
            .event_id();
        if round == 0 {
            for node in &mut cluster.nodes {
                assert!(node.terminate().await.success());
            }
        } else {
            cluster.nodes.iter_mut().for_each(Server::kill);
        }
        for node in &mut cluster.nodes {
            node.restart().await;
        }
        let log = cluster.log_of(round + 1).await;
        assert_eq!(log[round].event_id, id);
    }
    for node in &cluster.nodes {
        node.ready().await;
    }
    assert!(
        cluster.nodes[2]
            .http()
            .post(&completed("t1"))
            .await
            .duplicate()
    );
}

#[tokio::test]
async fn without_nats_reads_go_on_callbacks_are_refused_and_all_recovers_by_itself() {
    let Some(mut cluster) = Nodes::with(|options| options.set("ingest.answer_timeout", "1s")).await
    else {
        return;
    };
    cluster.nodes[0]
        .http()
        .post(&completed("t1"))
        .await
        .event_id();
    cluster.log_of(1).await;
    let mut subs = Vec::new();
    for node in &cluster.nodes {
        subs.push(node.subscribe(latest()).await);
    }

    cluster.nats.kill();
    for node in &cluster.nodes {
        let answer = node.http().post(&completed("t2")).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(node.log_of_events().await.len(), 1, "reads go on");
        let unknown = GetTaskRequest {
            task_id: "t2".into(),
            ..Default::default()
        };
        let missed = node.events().await.get_task(unknown).await.unwrap_err();
        assert_eq!(
            (missed.code(), reason(&missed)),
            (Code::Unavailable, "STORE_BEHIND".into()),
            "another node may have it"
        );
        let discard = DiscardQuarantinedRequest {
            quarantine_ids: vec!["1".into()],
        };
        let refused = node
            .admin_service()
            .await
            .discard_quarantined(discard)
            .await;
        let refused = refused.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused)),
            (Code::Unavailable, "STORE_READ_ONLY".into())
        );
        until("not ready", async || {
            let (status, why) = node.admin_get("/readyz").await;
            status == 503 && why.contains("NATS cannot be reached")
        })
        .await;
        assert_eq!(node.admin_get("/livez").await.0, 200);
        assert_eq!(node.metric("blobcast_cluster_connected").await, 0.0);
    }

    cluster.nats.run();
    for node in &cluster.nodes {
        node.ready().await;
    }
    let mut ids = HashSet::new();
    for node in &cluster.nodes {
        ids.insert(node.http().post(&completed("t2")).await.event_id());
    }
    assert_eq!(ids.len(), 1, "however often it was tried, it is one event");
    let log = cluster.log_of(2).await;
    for sub in &mut subs {
        assert_eq!(sub.next_event().await, log[1]);
    }
}

#[tokio::test]
async fn the_quarantine_is_the_same_on_all_nodes_whichever_is_asked_to_change_it() {
    // A callback that is handed over, and whose answer is late, may come into quarantine twice.
    let patient = |options: Options| options.set("cluster.forward_timeout", "1m");
    let Some(cluster) = Nodes::with(patient).await else {
        return;
    };
    for (number, node) in cluster.nodes.iter().enumerate() {
        let answer = node
            .http()
            .post_to("/webhook/veo", format!("secret nonsense {number}"))
            .await;
        assert_eq!(answer.status, 202);
    }
    let kept = cluster.quarantined(3).await;
    let ids: Vec<_> = kept.iter().map(|it| it.quarantine_id.clone()).collect();

    let other = cluster.other().await;
    let mut admin = other.admin_service().await;
    let release = ReleaseQuarantinedRequest {
        quarantine_id: ids[0].clone(),
        body: completed("t1").to_string().into(),
        ..Default::default()
    };
    admin.release_quarantined(release).await.unwrap();
    let discard = DiscardQuarantinedRequest {
        quarantine_ids: vec![ids[1].clone()],
    };
    admin.discard_quarantined(discard).await.unwrap();
    assert_eq!(
        quarantine(other).await.len(),
        1,
        "it was applied here before it was answered"
    );

    cluster.quarantined(1).await;
    assert_eq!(tasks_of(&cluster.log_of(1).await), ["t1"]);
    // A released callback stays, as the raw body of its event.
    for node in &cluster.nodes {
        let directory = node.data_dir();
        until("the overwriting", async || {
            !is_on_disk(&directory, "secret nonsense 1")
        })
        .await;
        assert!(is_on_disk(&directory, "secret nonsense 2"));
    }
}

#[tokio::test]
async fn an_erasure_at_one_node_takes_the_content_from_all() {
    const SECRET: &str = "a portrait of Erika Mustermann";
    let Some(cluster) = Nodes::three().await else {
        return;
    };
    let saying = |task| crate::erasure::saying(completed(task), SECRET);
    cluster.nodes[0].http().post(&saying("t1")).await.event_id();
    cluster.nodes[1]
        .http()
        .post(&completed("t2"))
        .await
        .event_id();
    cluster.log_of(2).await;
    for node in &cluster.nodes {
        assert!(is_on_disk(&node.data_dir(), SECRET));
    }

    let other = cluster.other().await;
    assert_eq!(erase(other, "veo", "t1").await.unwrap(), 1);
    assert!(
        !is_on_disk(&other.data_dir(), SECRET),
        "the answer says that none is left here"
    );
    assert_eq!(tasks_of(&cluster.log_of(1).await), ["t2"]);
    for node in &cluster.nodes {
        let directory = node.data_dir();
        until("the overwriting", async || !is_on_disk(&directory, SECRET)).await;
    }
}

#[tokio::test]
async fn one_that_was_killed_while_others_erased_has_overwritten_it_when_it_is_ready() {
    const SECRET: &str = "a portrait of Erika Mustermann";
    let Some(mut cluster) = Nodes::three().await else {
        return;
    };
    let body = crate::erasure::saying(processing("t1"), SECRET);
    cluster.nodes[0].http().post(&body).await.event_id();
    cluster.log_of(1).await;
    let mut killed = cluster.nodes.pop().unwrap();
    killed.kill();
    assert!(is_on_disk(&killed.data_dir(), SECRET));
    assert_eq!(erase(&cluster.nodes[0], "veo", "t1").await.unwrap(), 1);
    killed.restart().await;
    killed.ready().await;
    let directory = killed.data_dir();
    until("the overwriting", async || !is_on_disk(&directory, SECRET)).await;
    cluster.nodes.push(killed);
    cluster.log_of(0).await;
}

#[tokio::test]
async fn a_task_that_is_expected_at_any_node_is_checked_by_the_one_that_writes() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let case = VendorCase::new().await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(nats.node_with(case.options(), name).start().await);
    }
    let cluster = Nodes { nats, nodes };
    let writer = cluster.writer().await;
    let other = cluster.other().await;
    case.has("veo", "lost", State::Completed);
    expect(other, vec![expectation("veo", "lost")]).await;

    let log = cluster.log_of(1).await;
    assert!(is_recovered(&log[0]), "{log:?}");
    assert_eq!(case.checks_of("lost"), 1);
    for (at, node) in cluster.nodes.iter().enumerate() {
        let recovered = "blobcast_reconcile_recovered_total{product=\"veo\"}";
        let expected = if at == writer { 1.0 } else { 0.0 };
        until("the count", async || {
            node.metric(recovered).await == expected
        })
        .await;
        let open = "blobcast_expectations{state=\"waiting\"}";
        until("its end", async || node.metric(open).await == 0.0).await;
    }
}

#[tokio::test]
async fn a_node_joins_a_stream_that_has_forgotten_its_beginning() {
    const COUNT: usize = 1_300;
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let small = |name: &str| {
        nats.node(name)
            .set("log.retention_bytes_max", "1MiB")
            .set("ingest.body_bytes_max", "64KiB")
    };
    let first = small("a").start().await;
    first.ready().await;
    // Each has a frame of its own. The log forgets by segments of 32 MiB, and the stream with it: this fills two.
    first.http().post_bulky(0..COUNT, 30_000).await;
    until("the stream to forget", async || {
        let info = nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await;
        info["state"]["first_seq"].as_u64().unwrap() > 1
    })
    .await;

    let second = small("b").start().await;
    second.ready().await;
    let head = place(&first.log_info().await.head);
    second.has_place(head).await;
    let (mine, theirs) = (second.log_of_events().await, first.log_of_events().await);
    assert!(!mine.is_empty() && mine.len() < COUNT);
    assert_eq!(mine, theirs);
    let newest = bulky(&format!("t{}", COUNT - 1), 30_000);
    let again = second.http().post(&newest).await;
    assert_eq!(
        (again.duplicate(), again.event_id()),
        (true, mine[mine.len() - 1].event_id.clone())
    );
}

#[tokio::test]
async fn what_others_publish_to_the_subject_is_passed_over_and_counted() {
    let Some(cluster) = Nodes::three().await else {
        return;
    };
    cluster.nodes[0]
        .http()
        .post(&completed("t1"))
        .await
        .event_id();
    let client = async_nats::connect(cluster.nats.url()).await.unwrap();
    client
        .publish("blobcast.main.log", "nonsense".into())
        .await
        .unwrap();
    client.flush().await.unwrap();
    cluster.nodes[1]
        .http()
        .post(&completed("t2"))
        .await
        .event_id();
    assert_eq!(tasks_of(&cluster.log_of(2).await), ["t1", "t2"]);
    for node in &cluster.nodes {
        let foreign = "blobcast_cluster_frames_total{what=\"foreign\"}";
        until("the count", async || node.metric(foreign).await == 1.0).await;
    }
}

#[tokio::test]
async fn a_node_whose_stream_was_deleted_serves_what_it_has_and_takes_nothing() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let node = nats.node("a").start().await;
    node.http().post(&completed("t1")).await.event_id();
    let client = async_nats::connect(nats.url()).await.unwrap();
    let delete = client.request("$JS.API.STREAM.DELETE.BLOBCAST_main", "".into());
    within("the deletion", delete).await.unwrap();

    let hole = "blobcast_cluster_hole";
    until("the node to notice", async || {
        node.metric(hole).await == 1.0
    })
    .await;
    let (status, why) = node.admin_get("/readyz").await;
    let said = ["hole", "BLOBCAST_main"];
    assert!(
        status == 503 && said.iter().all(|it| why.contains(it)),
        "{why}"
    );
    assert_eq!(node.admin_get("/livez").await.0, 200);
    let answer = node.http().post(&completed("t2")).await;
    assert_eq!((answer.status, answer.reason()), (503, "stream_away"));
    assert_eq!(tasks_of(&node.log_of_events().await), ["t1"]);
}

#[tokio::test]
async fn a_node_that_has_more_than_its_stream_does_not_say_that_a_task_is_unknown() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let options = nats.node("a").set("cluster.read_wait", "300ms");
    let node = options.start().await;
    node.http().post(&completed("t1")).await.event_id();
    let unknown = async || {
        let mut events = node.events().await;
        let request = GetTaskRequest {
            task_id: "unknown".into(),
            ..Default::default()
        };
        reason(&events.get_task(request).await.unwrap_err())
    };
    assert_eq!(unknown().await, "TASK_NOT_FOUND");

    // As restored from a copy of its beginning: the same log, without its end.
    let stream = |verb: &str| format!("STREAM.{verb}.BLOBCAST_main");
    let config = nats.api(&stream("INFO"), &Value::Null).await["config"].take();
    nats.api(&stream("DELETE"), &Value::Null).await;
    nats.api(&stream("CREATE"), &config).await;
    assert_eq!(unknown().await, "STORE_BEHIND");

    until("the node to notice", async || {
        node.metric("blobcast_cluster_hole").await == 1.0
    })
    .await;
    assert_eq!(unknown().await, "STORE_BEHIND");
    assert_eq!(tasks_of(&node.log_of_events().await), ["t1"]);
}

#[tokio::test]
async fn a_node_that_has_a_log_does_not_make_its_stream_anew() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut node = nats.node("a").start().await;
    node.http().post(&completed("t1")).await.event_id();
    node.terminate().await;
    nats.api("STREAM.DELETE.BLOBCAST_main", &Value::Null).await;

    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(nats.node("a").command(&node.data_dir(), listen)).await;
    for part in ["no stream BLOBCAST_main", "has a log", "--data-dir"] {
        assert!(said.contains(part), "{said}");
    }
    let info = nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await;
    assert_eq!(info["error"]["err_code"], 10_059, "{info}");
}

#[tokio::test]
async fn a_directory_with_another_log_is_refused() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let first = nats.node("a").start().await;
    let mut alone = Server::start().await;
    alone.http().post(&completed("t1")).await.event_id();
    alone.terminate().await;

    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(nats.node("b").command(&alone.data_dir(), listen)).await;
    let epoch = first.log_info().await.epoch;
    for part in [epoch.as_str(), "BLOBCAST_main", "--data-dir"] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn the_directory_of_a_node_is_refused_without_its_cluster() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut node = nats.node("a").start().await;
    node.http().post(&completed("t1")).await.event_id();
    node.terminate().await;

    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(Options::default().command(&node.data_dir(), listen)).await;
    assert!(said.contains("--cluster"), "{said}");
}

#[tokio::test]
async fn a_server_that_does_not_sync_is_refused_unless_the_configuration_says_otherwise() {
    let options = NatsOptions {
        syncs: false,
        ..NatsOptions::default()
    };
    let Some(nats) = NatsServer::start(options).await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(nats.node("a").command(directory.path(), listen)).await;
    assert!(
        said.contains("sync_interval") && said.contains("cluster.sync"),
        "{said}"
    );

    let node = nats.node("a").set("cluster.sync", "warn").start().await;
    node.ready().await;
    assert!(node.log().contains("sync_interval"), "it warns");
}

/// What `cluster status` says of this node, as JSON.
async fn status_of(node: &Server) -> Value {
    let ran = node.cli("cluster status --output json").run().await;
    ran.json_lines().remove(0)
}

/// The nodes of such an answer, by name, in order.
fn names_of(status: &Value) -> Vec<&str> {
    let nodes = status["nodes"].as_array().unwrap();
    let mut names: Vec<_> = nodes
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn cluster_status_shows_who_writes_and_how_far_each_node_is() {
    let Some(mut cluster) = Nodes::three().await else {
        return;
    };
    cluster.nodes[0]
        .http()
        .post(&completed("t1"))
        .await
        .event_id();
    cluster.log_of(1).await;
    let writer = ["a", "b", "c"][cluster.writer().await];
    for (node, name) in cluster.nodes.iter().zip(["a", "b", "c"]) {
        let mut status = Value::Null;
        until("three nodes that have it all", async || {
            status = status_of(node).await;
            let nodes = status["nodes"].as_array().unwrap();
            nodes.len() == 3
                && nodes
                    .iter()
                    .all(|it| it["place"] == 1 && it["stream_lag"] == 0 && it["ready"] == true)
        })
        .await;
        assert_eq!(names_of(&status), ["a", "b", "c"]);
        assert_eq!(
            status["nodes"][0]["name"], name,
            "the one that answers first"
        );
        assert_eq!(
            (&status["name"], &status["node"]),
            (&json!("main"), &json!(name))
        );
        assert_eq!(
            (&status["ready"], &status["problem"]),
            (&json!(true), &json!(""))
        );
        assert_eq!(
            (&status["writer"], &status["hole"]),
            (&json!(writer), &json!(false))
        );
        assert_eq!(status["nodes"][1]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(node.metric("blobcast_cluster_ready").await, 1.0);
        assert_eq!(node.metric("blobcast_cluster_sync_shown").await, 1.0);
    }

    let text = cluster.nodes[0].cli("cluster status").run().await;
    let rows: Vec<_> = text.good().lines().collect();
    assert_eq!(rows[..2], ["cluster  main", "node     a, ready"]);
    assert_eq!(rows[2], format!("writer   {writer}"));
    assert!(
        rows[5].starts_with("NODE ") && rows[5].ends_with("  DIFFERS"),
        "{text:?}"
    );
    assert!(rows[6].starts_with("a (this one)  "), "{text:?}");
    let writes: Vec<_> = rows[6..]
        .iter()
        .filter(|row| row.split_whitespace().rev().nth(4) == Some("yes"))
        .collect();
    assert_eq!(writes.len(), 1, "{text:?}");
    assert!(writes[0].starts_with(writer), "{text:?}");

    cluster.nodes.pop().unwrap().kill();
    until("a node that is away", async || {
        let status = status_of(&cluster.nodes[0]).await;
        let nodes = status["nodes"].as_array().unwrap();
        let is_away = |name: &str| {
            let node = nodes.iter().find(|it| it["name"] == name).unwrap();
            node["away_seconds"].as_u64().is_some_and(|it| it >= 7)
        };
        !is_away("a") && !is_away("b") && is_away("c")
    })
    .await;
    let text = cluster.nodes[0].cli("cluster status").run().await;
    assert!(text.good().contains("  away "), "{text:?}");
    assert!(
        text.stderr.contains("c has not shown itself for"),
        "{text:?}"
    );
    until("the metric", async || {
        cluster.nodes[0].metric("blobcast_cluster_nodes").await == 2.0
    })
    .await;
}

#[tokio::test]
async fn cluster_status_shows_a_hole_and_that_another_log_is_at_the_same_frame() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let (first, second) = (nats.node("a").start().await, nats.node("b").start().await);
    first.ready().await;
    second.ready().await;

    // A node that says what the second one does, but for the chain of its log.
    let client = async_nats::connect(nats.url()).await.unwrap();
    let mut said = client.subscribe("blobcast.main.nodes.b").await.unwrap();
    until("the difference", async || {
        let said = within("the second node", said.next()).await.unwrap();
        let mut presence: Value = serde_json::from_slice(&said.payload).unwrap();
        presence["author"] = "00".into();
        presence["chain"] = "another".into();
        let clock = presence["clock_micros"].as_i64().unwrap();
        presence["clock_micros"] = (clock - 3_600_000_000).into();
        let presence = presence.to_string();
        client
            .publish("blobcast.main.nodes.z", presence.into())
            .await
            .unwrap();
        client.flush().await.unwrap();
        let status = status_of(&first).await;
        let nodes = status["nodes"].as_array().unwrap();
        let differs = |name: &str| {
            nodes
                .iter()
                .any(|it| it["name"] == name && it["mismatches"] == json!(["chain"]))
        };
        assert!(!differs("a") && !differs("b"), "{status}");
        differs("z")
    })
    .await;
    let skew = first.metric("blobcast_cluster_clock_skew_seconds").await;
    assert!((3_600.0..3_660.0).contains(&skew), "{skew}");
    let text = first.cli("cluster status").run().await;
    assert!(text.good().contains("  chain\n"), "{text:?}");
    assert!(text.stderr.contains("z and a differ (chain)"), "{text:?}");

    let delete = client.request("$JS.API.STREAM.DELETE.BLOBCAST_main", "".into());
    within("the deletion", delete).await.unwrap();
    let mut status = Value::Null;
    until("the hole", async || {
        status = status_of(&first).await;
        status["hole"] == true
    })
    .await;
    assert_eq!(status["ready"], false);
    let problem = status["problem"].as_str().unwrap();
    let (_, why) = first.admin_get("/readyz/ingest").await;
    assert_eq!(why, format!("not ready: {problem}\n"));
    assert_eq!(first.metric("blobcast_cluster_ready").await, 0.0);
    let text = first.cli("cluster status").run().await;
    assert!(
        text.good().contains(&format!("a, not ready: {problem}")),
        "{text:?}"
    );
    assert!(
        text.stderr.contains("a follows the stream no more"),
        "{text:?}"
    );
    until("that the other one is not ready", async || {
        let status = status_of(&first).await;
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .any(|it| it["name"] == "b" && it["ready"] == false)
    })
    .await;
}

#[tokio::test]
async fn nodes_say_what_differs_and_should_not_until_it_is_the_same() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut credentials = [CredentialsFile::new(), CredentialsFile::new()];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blobcast.toml");
    std::fs::write(&path, "[quarantine]\nretention_count_max = 99\n").unwrap();
    // What belongs to one machine may differ.
    let with = |name: &str, credentials: &CredentialsFile| {
        let options = nats.node(name).set("grpc.subscriptions_max", name.len());
        options.set("credentials_file", credentials.path().display())
    };
    let first = with("a", &credentials[0]).start().await;
    let second = with("bb", &credentials[1]).variable("BLOBCAST_CONFIG", path.display());
    let second = second.start().await;
    first.ready().await;
    second.ready().await;

    let differs = async |configuration: f64, credentials: f64, mismatches: Value| {
        until(&format!("{mismatches}"), async || {
            let status = status_of(&first).await;
            let nodes = status["nodes"].as_array().unwrap();
            let of = |what| format!("blobcast_cluster_mismatch{{what=\"{what}\"}}");
            nodes.len() == 2
                && nodes[1]["mismatches"] == mismatches
                && first.metric(&of("configuration")).await == configuration
                && first.metric(&of("credentials")).await == credentials
                && first.metric(&of("chain")).await == 0.0
        })
        .await;
    };
    differs(1.0, 0.0, json!(["quarantine.retention_count_max"])).await;
    let text = first.cli("cluster status").run().await;
    let told = "bb and a differ (quarantine.retention_count_max): give all nodes the same";
    assert!(text.stderr.contains(told), "{text:?}");

    credentials[0].add("callback vendor").await;
    differs(
        1.0,
        1.0,
        json!(["quarantine.retention_count_max", "credentials"]),
    )
    .await;
    // The same in other words is the same.
    let text = std::fs::read_to_string(credentials[0].path()).unwrap();
    credentials[1].write(&format!("# ours\n\n{text}"));
    differs(1.0, 0.0, json!(["quarantine.retention_count_max"])).await;

    std::fs::write(&path, "").unwrap();
    second.signal(Signal::HUP);
    differs(0.0, 0.0, json!([])).await;
    first.logged("differs from this one in what", 3).await;
    first.logged("differs from this one no more", 1).await;
}

#[tokio::test]
async fn a_client_that_is_no_administrator_does_not_see_the_machines_of_a_cluster() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut file = CredentialsFile::new();
    file.add("callback vendor").await;
    let admin = file.add("client operator --all-products --admin").await;
    let reader = file.add("client reader --product veo").await;
    let options = nats
        .node("a")
        .set("credentials_file", file.path().display());
    let node = options.start().await;
    node.ready().await;

    let run = async |token: &str| {
        let cli = node
            .cli("cluster status --output json")
            .env("BLOBCAST_TOKEN", token);
        cli.run().await.json_lines().remove(0)
    };
    assert_eq!(names_of(&run(&admin).await), ["a"]);
    let seen = run(&reader).await;
    assert_eq!(names_of(&seen), [""; 0]);
    assert_eq!((&seen["node"], &seen["ready"]), (&json!("a"), &json!(true)));
    let text = node.cli("cluster status").env("BLOBCAST_TOKEN", &reader);
    assert!(text.run().await.stderr.contains("`admin = true`"));
}

#[tokio::test]
async fn a_node_without_servers_is_refused_and_not_alone() {
    let directory = tempfile::tempdir().unwrap();
    let serve = Cli::new("serve --node a --cluster-name main").current_dir(directory.path());
    let ran = serve.run().await;
    ran.exited(1);
    let said = fatal(ran.stderr.as_bytes());
    for part in [
        "--node: ",
        "--cluster-name: ",
        "name the NATS servers (--cluster)",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test]
async fn the_banner_and_the_metrics_show_the_cluster() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let first = nats.node("a").start().await;
    first.ready().await;
    let second = nats.node("b").on_terminal().start().await;
    second.ready().await;
    until("the banner", async || second.printed().contains("See it:")).await;
    let printed = second.printed();
    for part in [
        "cluster      main, node b",
        "1 server; stream BLOBCAST_main: 1 replica",
        "nodes        b (this one)",
        "writer a; 0 frames behind",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }

    second.http().post(&completed("t1")).await.event_id();
    first.has_place(1).await;
    for (name, value) in [
        ("blobcast_cluster_connected", 1.0),
        ("blobcast_cluster_applied_place", 1.0),
        ("blobcast_cluster_hole", 0.0),
        ("blobcast_cluster_conflicts_total", 0.0),
    ] {
        assert_eq!(second.metric(name).await, value, "{name}");
    }
    assert!(
        first
            .metric("blobcast_cluster_frames_total{what=\"written\"}")
            .await
            >= 1.0
    );
    assert!(
        second
            .metric("blobcast_cluster_frames_total{what=\"applied\"}")
            .await
            >= 1.0
    );
    assert!(
        second
            .metric("blobcast_cluster_forwards_total{result=\"written\"}")
            .await
            >= 1.0
    );
    until("both nodes", async || {
        first.metric("blobcast_cluster_nodes").await == 2.0
            && second.metric("blobcast_cluster_nodes").await == 2.0
    })
    .await;
    let head = place(&second.log_info().await.head);
    assert_eq!(head, 1);
}
