//! That nodes are there, and how far they are, as they show each other.

use std::sync::Arc;

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use tokio_stream::StreamExt;

use super::{
    event::{Event, Events},
    link::Link,
    settings::Settings,
    slot::Slot,
};

/// Shows this node's presence whenever there is a new one. One that finds no connection is late, and not shown.
pub(super) async fn show(
    client: Client,
    link: Arc<Link>,
    settings: Arc<Settings>,
    orders: Slot<Bytes>,
) {
    let subject = settings.node_subject();
    loop {
        let presence = orders.take().await;
        if link.connection().is_up {
            let _ = client.publish(subject.clone(), presence).await.is_ok();
        }
    }
}

/// Tells of all nodes' presence. A node that has just started listens to it before it writes, so none is left out.
pub(super) async fn hear(mut nodes: Subscriber, events: Events) {
    while let Some(message) = nodes.next().await {
        let Some((_, node)) = message.subject.rsplit_once('.') else {
            continue;
        };
        // An empty one only tries whether it may be published.
        if !message.payload.is_empty() {
            let (node, bytes) = (node.to_owned(), message.payload);
            events.send(Event::Presence { node, bytes }).await;
        }
    }
}
