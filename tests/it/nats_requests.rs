//! What nodes ask each other, and how they show that they are there.

use blobcast::{
    cluster::{Author, GroupId},
    nats::{Event, NoReply},
};
use bytes::Bytes;

use crate::support::{NatsNode, NatsOptions, NatsServer, nats_settings};

async fn two() -> Option<(NatsServer, NatsNode, NatsNode)> {
    let server = NatsServer::start(NatsOptions::default()).await?;
    let settings = nats_settings(std::slice::from_ref(&server));
    let one = NatsNode::start(settings.clone(), 1, 1, 1024).await;
    let other = NatsNode::start(settings, 2, 1, 1024).await;
    // By the answer the server knows what it has subscribed to.
    other.handle.look().await.unwrap();
    Some((server, one, other))
}

async fn replied(node: &mut NatsNode, group: u64) -> Result<Bytes, NoReply> {
    node.wait("the reply", |event| match event {
        Event::Replied { group: it, reply } if *it == GroupId(group) => Some(reply.clone()),
        _ => None,
    })
    .await
}

/// Asks, until the other node has subscribed.
fn asks(node: &NatsNode, to: u128, group: u64, text: &'static str) {
    let bytes = Bytes::from(text);
    assert!(node.handle.request(GroupId(group), Author(to), bytes));
}

#[tokio::test]
async fn a_request_is_answered_by_the_node_that_it_names() {
    let Some((_server, mut one, mut other)) = two().await else {
        return;
    };
    for group in 0..8 {
        asks(&one, 2, group, "a question");
        let id = other
            .wait("the request", |event| match event {
                Event::Request { id, bytes } if bytes == "a question" => Some(id.clone()),
                _ => None,
            })
            .await;
        other.handle.reply(id, Bytes::from("an answer"));
        assert_eq!(replied(&mut one, group).await.unwrap(), "an answer");
    }
}

#[tokio::test]
async fn a_request_to_nobody_fails_at_once_and_one_without_an_answer_in_time() {
    let Some((_server, mut one, other)) = two().await else {
        return;
    };
    asks(&one, 3, 1, "nobody");
    assert_eq!(replied(&mut one, 1).await, Err(NoReply::NobodyThere));
    asks(&one, 2, 2, "silence");
    assert_eq!(replied(&mut one, 2).await, Err(NoReply::TimedOut));

    other.handle.stop_serving();
    for group in 3.. {
        asks(&one, 2, group, "stopping");
        if replied(&mut one, group).await == Err(NoReply::NobodyThere) {
            break;
        }
    }
}

#[tokio::test]
async fn no_more_requests_are_taken_than_there_are_places() {
    let Some((_server, one, _other)) = two().await else {
        return;
    };
    let taken = (0..1_000).filter(|group| {
        one.handle
            .request(GroupId(*group), Author(2), Bytes::from("unanswered"))
    });
    assert!((16..=20).contains(&taken.count()));
}

#[tokio::test]
async fn nodes_see_each_other_under_a_name_that_a_subject_can_have() {
    let Some((_server, one, mut other)) = two().await else {
        return;
    };
    one.handle.presence(Bytes::from("here I am"));
    let node = other
        .wait("the presence", |event| match event {
            Event::Presence { node, bytes } if bytes == "here I am" => Some(node.clone()),
            _ => None,
        })
        .await;
    assert_eq!(node, "a_example");
}
