//! Logs that are taken into the stream of a cluster: of a broker that was alone, and of a node whose stream is lost.

use std::{path::Path, slice::from_ref};

use blobcast::wire::v1::{DiscardQuarantinedRequest, Expectation, ListExpectationsRequest};
use serde_json::{Value, json};

use super::{Nodes, quarantine, refusal};
use crate::support::{
    Cli, NatsOptions, NatsServer, Options, Ran, Server, VendorCase, after, bulky, completed,
    expect, expectation, free_address, place, places, processing, reason, request, tasks_of, until,
};

/// Runs a verb of `blobcast cluster` on a directory, for the cluster at this server.
pub(super) async fn transfer(nats: &NatsServer, verb: &str, from: &Path) -> Ran {
    transfer_at(from_ref(nats), verb, from).await
}

/// The same, for a stream with a copy at each of these servers.
async fn transfer_at(servers: &[NatsServer], verb: &str, from: &Path) -> Ran {
    let [urls, monitoring_urls] = urls(servers);
    Cli::new(&format!("cluster {verb} --from"))
        .arg(from)
        .env("BLOBCAST_CLUSTER__SERVERS", urls)
        .env("BLOBCAST_CLUSTER__MONITORING_URLS", monitoring_urls)
        .env("BLOBCAST_CLUSTER__REPLICAS", servers.len())
        .env("BLOBCAST_CLUSTER__STREAM_BYTES_MAX", "256MiB")
        .run()
        .await
}

/// Their addresses, and those of their monitoring.
fn urls(servers: &[NatsServer]) -> [String; 2] {
    let all =
        |url: fn(&NatsServer) -> String| servers.iter().map(url).collect::<Vec<_>>().join(",");
    [all(NatsServer::url), all(NatsServer::monitoring_url)]
}

fn done(ran: &Ran) {
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

fn refused(ran: &Ran, said: &[&str]) {
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    for part in said {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
}

/// What the stream says of itself.
async fn stream(nats: &NatsServer) -> Value {
    nats.api("STREAM.INFO.BLOBCAST_main", &Value::Null).await
}

/// Has the stream say that it is not whole, as one that was filled by a command that was killed.
async fn cut_off(nats: &NatsServer) {
    let mut config = stream(nats).await["config"].take();
    config["metadata"]["blobcast-unfinished"] = json!("blobcast cluster import");
    let updated = nats.api("STREAM.UPDATE.BLOBCAST_main", &config).await;
    assert!(updated.get("error").is_none(), "{updated}");
}

async fn expected(server: &Server) -> Vec<String> {
    let mut admin = server.admin_service().await;
    let listed = admin.list_expectations(ListExpectationsRequest::default());
    let open = listed.await.unwrap().into_inner().expectations;
    open.into_iter().map(|it| it.task_id).collect()
}

/// Two nodes with empty directories, ready.
async fn two(nats: NatsServer, options: &Options) -> Nodes {
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let node = nats.node_with(options.clone(), name).start().await;
        node.ready().await;
        nodes.push(node);
    }
    Nodes { nats, nodes }
}

#[tokio::test]
async fn a_broker_that_was_alone_becomes_a_cluster_with_its_log_and_its_cursors() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let case = VendorCase::new().await;
    let options = case.options();
    let options = options
        .set("log.retention_bytes_max", "1MiB")
        .set("ingest.body_bytes_max", "64KiB");
    let mut alone = options.clone().start().await;
    // More than is retained.
    alone.http().post_bulky(0..40, 30_000).await;
    alone.trimmed().await;
    for number in 0..3 {
        let body = format!("nonsense {number}");
        assert_eq!(alone.http().post_to("/webhook/veo", body).await.status, 202);
    }
    let kept = quarantine(&alone).await;
    let discard = DiscardQuarantinedRequest {
        quarantine_ids: vec![kept[2].quarantine_id.clone()],
    };
    let mut admin = alone.admin_service().await;
    admin.discard_quarantined(discard).await.unwrap();
    let later = Expectation {
        expect_within: Some(prost_types::Duration {
            seconds: 3_600,
            nanos: 0,
        }),
        ..expectation("veo", "expected")
    };
    expect(&alone, vec![later]).await;
    let log = alone.log_of_events().await;
    assert!(place(&log[0].cursor) > 1, "something is forgotten");
    let (kept, info) = (quarantine(&alone).await, alone.log_info().await);
    refused(
        &transfer(&nats, "import", &alone.data_dir()).await,
        &["in use by another process"],
    );
    assert!(alone.terminate().await.success());

    done(&transfer(&nats, "import", &alone.data_dir()).await);
    let cluster = two(nats, &options).await;
    assert_eq!(cluster.log_of(log.len()).await, log);
    assert_eq!(cluster.quarantined(2).await, kept);
    for node in &cluster.nodes {
        assert_eq!(expected(node).await, ["expected"]);
        assert_eq!(node.log_info().await.epoch, info.epoch);
    }
    // Cursors, numbers and repeats go on.
    let [first, second] = &cluster.nodes[..] else {
        panic!("two nodes")
    };
    let mut sub = second.subscribe(after(&log[log.len() - 2].cursor)).await;
    assert_eq!(sub.next_event().await, log[log.len() - 1]);
    let again = first.http().post(&bulky("t39", 30_000)).await;
    assert!(again.duplicate());
    first.http().post(&completed("new")).await.event_id();
    let event = sub.next_event().await;
    assert_eq!(event.task_id, "new");
    assert_eq!(place(&event.cursor), place(&log[log.len() - 1].cursor) + 1);
    let number = second.http().post_to("/webhook/veo", "nonsense 3").await;
    assert_eq!(number.status, 202);
    let all = cluster.quarantined(3).await;
    assert_eq!(all[2].quarantine_id, "4", "no number is given out twice");

    // It is in one place only.
    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(options.command(&alone.data_dir(), listen)).await;
    assert!(
        said.contains("used up") && said.contains("BLOBCAST_main"),
        "{said}"
    );
    refused(
        &transfer(&cluster.nats, "import", &alone.data_dir()).await,
        &["has a log"],
    );
}

#[tokio::test]
async fn a_stream_that_was_not_filled_to_its_end_is_never_served_and_is_made_again() {
    let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let mut alone = Server::start().await;
    alone.http().post(&processing("t1")).await.event_id();
    alone.http().post(&completed("t1")).await.event_id();
    let log = alone.log_of_events().await;
    alone.terminate().await;
    let from = alone.data_dir();
    done(&transfer(&nats, "import", &from).await);
    cut_off(&nats).await;

    let directory = tempfile::tempdir().unwrap();
    let listen = [free_address(), free_address(), free_address()];
    let said = refusal(nats.node("a").command(directory.path(), listen)).await;
    assert!(
        said.contains("is not whole") && said.contains("--anew"),
        "{said}"
    );
    let before = stream(&nats).await;
    refused(
        &transfer(&nats, "import", &from).await,
        &["is not whole", "--anew"],
    );
    assert_eq!(stream(&nats).await["created"], before["created"]);

    done(&transfer(&nats, "import --anew", &from).await);
    assert_ne!(stream(&nats).await["created"], before["created"]);
    let cluster = two(nats, &Options::default()).await;
    assert_eq!(cluster.log_of(2).await, log);
}

#[tokio::test]
async fn a_directory_that_does_not_fit_and_a_stream_with_a_log_are_refused_before_anything_is_written()
 {
    let small = NatsOptions {
        max_payload: 512 << 10,
        ..NatsOptions::default()
    };
    let Some(nats) = NatsServer::start(small).await else {
        return;
    };
    let mut alone = Server::start().await;
    alone.http().post_bulky(0..1, 300_000).await;
    alone.terminate().await;
    let from = alone.data_dir();
    let import = async |more: &str| {
        Cli::new(&format!("cluster import {more} --from"))
            .arg(&from)
            .env("BLOBCAST_CLUSTER__SERVERS", nats.url())
            .env("BLOBCAST_CLUSTER__MONITORING_URLS", nats.monitoring_url())
            .env("BLOBCAST_CLUSTER__REPLICAS", 1)
            .env("BLOBCAST_CLUSTER__STREAM_BYTES_MAX", "256MiB")
            .env("BLOBCAST_INGEST__BODY_BYTES_MAX", "64KiB")
            .run()
            .await
    };
    refused(&import("").await, &["max_payload"]);
    assert_eq!(stream(&nats).await["error"]["err_code"], 10_059);
    let mut node = nats
        .node("a")
        .set("ingest.body_bytes_max", "64KiB")
        .start()
        .await;
    node.ready().await;
    node.terminate().await;
    let before = stream(&nats).await;
    refused(&import("").await, &["max_payload"]);
    assert_eq!(stream(&nats).await["state"], before["state"]);
}

#[tokio::test]
async fn a_log_whose_stream_is_lost_goes_on_in_a_new_one_as_another_log_or_as_the_same() {
    for keeps_epoch in [false, true] {
        let Some(nats) = NatsServer::start(NatsOptions::default()).await else {
            return;
        };
        let mut cluster = two(nats, &Options::default()).await;
        for task in ["t1", "t2"] {
            cluster.nodes[0]
                .http()
                .post(&completed(task))
                .await
                .event_id();
        }
        let http = cluster.nodes[1].http();
        let nonsense = http.post_to("/webhook/veo", "nonsense").await;
        assert_eq!(nonsense.status, 202);
        let log = cluster.log_of(2).await;
        let kept = cluster.quarantined(1).await;
        let epoch = cluster.nodes[0].log_info().await.epoch;
        for node in &mut cluster.nodes {
            node.terminate().await;
        }
        let Nodes { nats, nodes } = cluster;
        let from = nodes[0].data_dir();
        refused(&transfer(&nats, "import", &from).await, &["cluster heal"]);
        refused(&transfer(&nats, "heal", &from).await, &["has a log"]);
        let deleted = nats.api("STREAM.DELETE.BLOBCAST_main", &Value::Null).await;
        assert_eq!(deleted["success"], true, "{deleted}");

        let verb = if keeps_epoch {
            "heal --keep-epoch"
        } else {
            "heal"
        };
        done(&transfer(&nats, verb, &from).await);
        let healed = two(nats, &Options::default()).await;
        let now = healed.log_of(2).await;
        assert_eq!(
            (places(&now), tasks_of(&now)),
            (vec![1, 2], vec!["t1", "t2"])
        );
        assert_eq!(healed.quarantined(1).await, kept);
        let node = &healed.nodes[1];
        assert_eq!(node.log_info().await.epoch == epoch, keeps_epoch);
        if keeps_epoch {
            assert_eq!(now, log);
            let mut sub = node.subscribe(after(&log[0].cursor)).await;
            assert_eq!(sub.next_event().await, log[1]);
        } else {
            let refused = node.try_subscribe(after(&log[0].cursor)).await;
            assert_eq!(reason(&refused.err().unwrap()), "EPOCH_MISMATCH");
            let mut sub = node.subscribe(request()).await;
            healed.nodes[0]
                .http()
                .post(&completed("t3"))
                .await
                .event_id();
            until("the event", async || sub.next_event().await.task_id == "t3").await;
        }
    }
}

#[tokio::test]
async fn a_healed_stream_has_a_whole_copy_at_each_of_three_servers() {
    let Some(mut servers) = NatsServer::three().await else {
        return;
    };
    let [all, monitoring] = urls(&servers);
    let options = |name: &str| {
        Options::default()
            .set("cluster.servers", &all)
            .set("cluster.monitoring_urls", &monitoring)
            .set("cluster.stream_bytes_max", "256MiB")
            .set("cluster.node", name)
    };
    let mut node = options("a").start().await;
    node.ready().await;
    // More than one frame.
    node.http().post_bulky(0..20, 200_000).await;
    let epoch = node.log_info().await.epoch;
    node.terminate().await;
    let deleted = servers[0].api("STREAM.DELETE.BLOBCAST_main", &Value::Null);
    assert_eq!(deleted.await["success"], true);

    done(&transfer_at(&servers, "heal", &node.data_dir()).await);
    let info = stream(&servers[0]).await;
    assert_eq!(info["config"]["num_replicas"], 3);
    let leader = info["cluster"]["leader"].as_str().unwrap().to_owned();
    let at = servers.iter().position(|it| it.name() == leader).unwrap();
    servers[at].kill();

    // What is left has all of it, and takes more.
    let healed = options("b").set("cluster.sync", "warn").start().await;
    healed.ready().await;
    let log = healed.log_of_events().await;
    let tasks: Vec<_> = (0..20).map(|number| format!("t{number}")).collect();
    assert_eq!(tasks_of(&log), tasks);
    assert_ne!(healed.log_info().await.epoch, epoch);
    until("a callback to be taken", async || {
        healed.http().post(&completed("new")).await.status == 200
    })
    .await;
    healed.has_place(21).await;
}
