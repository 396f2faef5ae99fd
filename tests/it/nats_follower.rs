//! A node follows the stream without a gap, whatever becomes of servers, consumers and its own queue.

use async_nats::Client;
use blobcast::nats::{Event, Settings};
use serde_json::{Value, json};

use crate::support::{NatsNode, NatsOptions, NatsServer, nats_settings, until, within};

async fn one() -> Option<[NatsServer; 1]> {
    Some([NatsServer::start(NatsOptions::default()).await?])
}

/// Takes messages up to `last`, and sees that none is missing, doubled, or another one.
async fn takes(node: &mut NatsNode, first: u64, last: u64) {
    for expected in first..=last {
        let (sequence, bytes) = node.message().await;
        assert_eq!(sequence, expected);
        assert_eq!(bytes, expected.to_string());
    }
}

async fn api(client: &Client, request: &str, body: &Value) -> Value {
    let subject = format!("$JS.API.{request}");
    let text = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = client.request(subject, text.into()).await;
    serde_json::from_slice(&answer.unwrap().payload).unwrap()
}

/// The consumers of the stream.
async fn consumers(client: &Client) -> Vec<String> {
    let answer = api(client, "CONSUMER.NAMES.BLOBCAST_main", &Value::Null).await;
    let names = answer["consumers"].as_array().into_iter().flatten();
    names
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn messages_come_in_order_through_a_crash_of_the_server() {
    let Some(mut servers) = one().await else {
        return;
    };
    let mut writer = NatsNode::start(nats_settings(&servers), 1, 1, 1024).await;
    let mut reader = NatsNode::start(nats_settings(&servers), 2, 1, 1024).await;
    writer.fill(0, 20).await;
    takes(&mut reader, 1, 20).await;

    servers[0].kill();
    reader
        .wait("the loss", |event| {
            matches!(event, Event::Connected(false)).then_some(())
        })
        .await;
    servers[0].run();
    writer.publish_for_sure(20, 21, "21").await;
    writer.fill(21, 20).await;
    takes(&mut reader, 21, 41).await;
}

#[tokio::test]
async fn a_follower_goes_on_when_its_consumer_is_deleted() {
    let Some(servers) = one().await else {
        return;
    };
    let mut node = NatsNode::start(nats_settings(&servers), 1, 1, 1024).await;
    let mut reader = NatsNode::start(nats_settings(&servers), 2, 1, 1024).await;
    node.fill(0, 5).await;
    takes(&mut reader, 1, 5).await;

    let client = async_nats::connect(servers[0].url()).await.unwrap();
    until("both consumers", async || {
        consumers(&client).await.len() == 2
    })
    .await;
    let before = consumers(&client).await;
    for name in &before {
        let request = format!("CONSUMER.DELETE.BLOBCAST_main.{name}");
        assert_eq!(
            api(&client, &request, &Value::Null).await["success"],
            json!(true)
        );
    }
    until("new consumers", async || {
        let now = consumers(&client).await;
        now.len() == 2 && now.iter().all(|name| !before.contains(name))
    })
    .await;
    node.fill(5, 5).await;
    takes(&mut reader, 6, 10).await;
}

/// A consumer needs the leader of the whole system; a stream with one copy needs nobody but its server.
#[tokio::test]
async fn messages_are_got_while_no_consumer_can_be_made() {
    let Some(mut servers) = NatsServer::three().await else {
        return;
    };
    let settings = Settings {
        replicas: 1,
        ..nats_settings(&servers)
    };
    let first = NatsNode::start(settings.clone(), 1, 1, 1024).await;
    let holder = first.handle.look().await.unwrap().leader.unwrap();
    drop(first);
    let at = servers.iter().position(|it| it.name() == holder).unwrap();
    let settings = Settings {
        servers: vec![servers[at].url()],
        ..settings
    };
    let mut node = NatsNode::start(settings, 2, 1, 1024).await;
    node.fill(0, 10).await;
    takes(&mut node, 1, 10).await;

    for server in servers.iter_mut().filter(|it| it.name() != holder) {
        server.kill();
    }
    node.handle.follow_from(1);
    takes(&mut node, 1, 10).await;
    node.fill(10, 10).await;
    takes(&mut node, 11, 20).await;
    assert!(node.handle.state().gets > 0);
}

#[tokio::test]
async fn a_follower_begins_anywhere_and_passes_over_only_what_is_removed() {
    let Some(servers) = one().await else {
        return;
    };
    let mut node = NatsNode::start(nats_settings(&servers), 1, 4, 1024).await;
    node.fill(0, 10).await;
    takes(&mut node, 4, 10).await;
    node.handle.follow_from(2);
    takes(&mut node, 2, 10).await;

    node.handle.purge(6);
    node.wait("the purge", |event| {
        matches!(event, Event::Purged { .. }).then_some(())
    })
    .await;
    node.handle.follow_from(2);
    takes(&mut node, 7, 10).await;
}

#[tokio::test]
async fn a_node_that_takes_its_time_gets_everything() {
    let Some(servers) = one().await else {
        return;
    };
    let mut writer = NatsNode::start(nats_settings(&servers), 1, 1_001, 1024).await;
    writer.fill(0, 1_000).await;
    // Its queue has one place, so the server holds back nearly all.
    let mut reader = NatsNode::start(nats_settings(&servers), 2, 1, 1).await;
    takes(&mut reader, 1, 1_000).await;
}

#[tokio::test]
async fn a_stream_that_was_made_again_is_noticed() {
    let Some(servers) = one().await else {
        return;
    };
    let mut node = NatsNode::start(nats_settings(&servers), 1, 1, 1024).await;
    node.fill(0, 1).await;
    let client = async_nats::connect(servers[0].url()).await.unwrap();
    let deleted = api(&client, "STREAM.DELETE.BLOBCAST_main", &Value::Null).await;
    assert_eq!(deleted["success"], json!(true));
    let again = NatsNode::start(nats_settings(&servers), 2, 1, 1024).await;

    let said = node
        .wait("the problem", |event| match event {
            Event::Fatal(problem) => Some(problem.clone()),
            _ => None,
        })
        .await;
    let epoch = again.handle.state().stream.unwrap().epoch.0.to_string();
    assert!(said.contains(&epoch), "{said}");
}

#[tokio::test]
async fn three_servers_lose_nothing_when_the_leader_is_killed() {
    let Some(mut servers) = NatsServer::three().await else {
        return;
    };
    let mut writer = NatsNode::start(nats_settings(&servers), 1, 1, 4096).await;
    let mut reader = NatsNode::start(nats_settings(&servers), 2, 1, 4096).await;
    writer.fill(0, 50).await;
    takes(&mut reader, 1, 50).await;

    let leader = writer.handle.look().await.unwrap().leader.unwrap();
    let at = servers.iter().position(|it| it.name() == leader).unwrap();
    servers[at].kill();

    // An answer that is lost may be of a message that is there: then the next try is refused.
    let outcome = writer.publish_for_sure(50, 51, "51").await;
    assert!(
        matches!(
            outcome,
            Event::Acked { sequence: 51, .. } | Event::Refused { last: Some(51), .. }
        ),
        "{outcome:?}"
    );
    for expected in 51..100 {
        let text = (expected + 1).to_string();
        let outcome = writer.publish_for_sure(expected, expected + 1, &text).await;
        assert!(
            matches!(outcome, Event::Acked { .. } | Event::Refused { .. }),
            "{outcome:?}"
        );
    }
    takes(&mut reader, 51, 100).await;

    servers[at].run();
    within("all copies", async {
        until("all copies", async || {
            let stream = writer.handle.look().await;
            stream.is_ok_and(|it| it.replicas_current == 3 && it.last == 100)
        })
        .await;
    })
    .await;
}
