//! What becomes of messages that a node publishes, and what it removes from the stream.

use std::time::Duration;

use blobcast::nats::{Doubt, Event, Nats, Settings};
use rustix::process::Signal;

use crate::support::{NatsNode, NatsOptions, NatsServer, nats_settings, until};

async fn node() -> Option<(NatsServer, NatsNode)> {
    let server = NatsServer::start(NatsOptions::default()).await?;
    let settings = nats_settings(std::slice::from_ref(&server));
    let node = NatsNode::start(settings, 1, 1, 1024).await;
    Some((server, node))
}

#[tokio::test]
async fn a_message_is_stored_only_behind_what_it_expects() {
    let Some((_server, mut node)) = node().await else {
        return;
    };
    let acked = node.publish(0, 10, "one").await;
    assert!(
        matches!(
            acked,
            Event::Acked {
                chain: 10,
                sequence: 1
            }
        ),
        "{acked:?}"
    );
    let refused = node.publish(0, 20, "late").await;
    assert!(
        matches!(
            refused,
            Event::Refused {
                chain: 20,
                last: Some(1)
            }
        ),
        "{refused:?}"
    );
    let early = node.publish(2, 30, "early").await;
    assert!(
        matches!(
            early,
            Event::Refused {
                chain: 30,
                last: Some(1)
            }
        ),
        "{early:?}"
    );
    let acked = node.publish(1, 40, "two").await;
    assert!(
        matches!(
            acked,
            Event::Acked {
                chain: 40,
                sequence: 2
            }
        ),
        "{acked:?}"
    );
    assert!(node.woken.load(std::sync::atomic::Ordering::Relaxed) > 0);

    let stream = node.handle.look().await.unwrap();
    assert_eq!((stream.first, stream.last), (1, 2));
    assert_eq!(node.handle.state().stream, Some(stream));
}

#[tokio::test]
async fn a_doubt_is_resolved_by_the_same_message_and_it_is_there_once() {
    let Some(server) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let settings = Settings {
        publish_timeout: Duration::from_secs(1),
        ..nats_settings(std::slice::from_ref(&server))
    };
    let mut node = NatsNode::start(settings, 1, 1, 1024).await;
    node.publish_for_sure(0, 10, "one").await;
    server.pause().await;
    let doubt = node.publish(1, 20, "twice").await;
    assert!(
        matches!(doubt, Event::Unanswered { chain: 20, .. }),
        "{doubt:?}"
    );
    server.signal(Signal::CONT);

    // By this or the first try; the answer to the first one is gone.
    let outcome = node.publish_for_sure(1, 20, "twice").await;
    assert!(
        matches!(
            outcome,
            Event::Acked { sequence: 2, .. } | Event::Refused { last: Some(2), .. }
        ),
        "{outcome:?}"
    );
    node.handle.fetch(2);
    assert_eq!(node.message_at(2).await, "twice");
    assert_eq!(node.handle.look().await.unwrap().last, 2);
}

#[tokio::test]
async fn a_message_without_a_server_is_in_doubt() {
    let Some((mut server, mut node)) = node().await else {
        return;
    };
    server.kill();
    let doubt = node.publish(0, 10, "lost").await;
    let Event::Unanswered { why, .. } = doubt else {
        panic!("{doubt:?}")
    };
    assert_eq!(why, Doubt::Disconnected);

    server.run();
    let outcome = node.publish_for_sure(0, 10, "lost").await;
    assert!(
        matches!(outcome, Event::Acked { sequence: 1, .. }),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_full_stream_says_so_and_takes_messages_again_after_a_purge() {
    let Some(server) = NatsServer::start(NatsOptions::default()).await else {
        return;
    };
    let settings = Settings {
        stream_bytes_max: 64 << 10,
        ..nats_settings(std::slice::from_ref(&server))
    };
    let mut node = NatsNode::start(settings, 1, 1, 1024).await;
    let text = "x".repeat(20 << 10);
    let mut last = 0;
    let full = loop {
        match node.publish(last, last + 1, &text).await {
            Event::Acked { sequence, .. } => last = sequence,
            outcome => break outcome,
        }
    };
    let is_full = matches!(
        &full,
        Event::Unanswered {
            why: Doubt::Full(_),
            ..
        }
    );
    assert!(is_full && last == 3, "{last}: {full:?}");

    node.handle.purge(2);
    node.wait("the purge", |event| {
        matches!(event, Event::Purged { through: 2 }).then_some(())
    })
    .await;
    let outcome = node.publish_for_sure(last, last + 1, &text).await;
    assert!(
        matches!(outcome, Event::Acked { sequence: 4, .. }),
        "{outcome:?}"
    );
    let stream = node.handle.look().await.unwrap();
    assert_eq!((stream.first, stream.last), (3, 4));
}

#[tokio::test]
async fn one_message_is_got_by_its_sequence() {
    let Some((_server, mut node)) = node().await else {
        return;
    };
    node.fill(0, 3).await;
    until("the follower to be done", async || {
        node.message().await.0 == 3
    })
    .await;
    node.handle.fetch(2);
    assert_eq!(node.message().await, (2, "2".into()));
}

#[tokio::test]
async fn a_message_is_got_before_the_start() {
    let Some((server, mut node)) = node().await else {
        return;
    };
    node.fill(0, 2).await;
    let settings = nats_settings(std::slice::from_ref(&server));
    let mut nats = Nats::connect(settings).await.unwrap();
    assert_eq!(nats.message(2).await.unwrap().unwrap(), "2");
    assert_eq!(nats.message(3).await.unwrap(), None);
}
