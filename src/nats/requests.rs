//! Requests to other nodes, and those of other nodes.

use std::sync::Arc;

use async_nats::{Client, HeaderMap, Subscriber};
use bytes::Bytes;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::StreamExt;

use super::{
    asker::{Asker, NoAnswer},
    event::{Event, Events, NoReply, RequestId},
    settings::Settings,
};
use crate::cluster::{Author, GroupId};

/// Requests that are out at a time. More would only wait in the other node's queue.
pub(super) const LANES: usize = 4;
/// Requests that wait for a lane: those that a node has given up, and new ones in their place.
pub(super) const REQUESTS_MAX: usize = 16;
/// Answers that wait to be sent. They are small, and go out as fast as the connection takes them.
pub(super) const REPLIES_MAX: usize = 256;

pub(super) struct Request {
    pub(super) group: GroupId,
    pub(super) to: Author,
    pub(super) bytes: Bytes,
}

pub(super) struct Reply {
    pub(super) id: RequestId,
    pub(super) bytes: Bytes,
}

/// Asks other nodes, one request at a time.
pub(super) struct Lane {
    pub(super) asker: Asker,
    pub(super) settings: Arc<Settings>,
    pub(super) requests: Arc<Mutex<mpsc::Receiver<Request>>>,
    pub(super) events: Events,
}

impl Lane {
    pub(super) async fn run(mut self) {
        loop {
            let next = self.requests.lock().await.recv().await;
            let Some(Request { group, to, bytes }) = next else {
                return;
            };
            let (subject, time) = (
                self.settings.append_subject(to),
                self.settings.forward_timeout,
            );
            let answer = self.asker.ask(&subject, HeaderMap::new(), bytes, time);
            let reply = match answer.await {
                Ok(message) => Ok(message.payload),
                Err(why) => Err(why.into()),
            };
            self.events.send(Event::Replied { group, reply }).await;
        }
    }
}

impl From<NoAnswer> for NoReply {
    fn from(why: NoAnswer) -> Self {
        match why {
            NoAnswer::NobodyThere => Self::NobodyThere,
            NoAnswer::TimedOut => Self::TimedOut,
            NoAnswer::Disconnected => Self::Disconnected,
            NoAnswer::NotSent(_) => Self::NotSent,
        }
    }
}

/// Takes the requests of other nodes, until it is to stop. They wait for a place among the events: nodes ask for little at a time,
/// and give up soon.
pub(super) async fn serve(
    mut requests: Subscriber,
    events: Events,
    mut serves: watch::Receiver<bool>,
) {
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            () = stopped(&mut serves), if *serves.borrow() => {
                if requests.drain().await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Some(request) = request else {
            return;
        };
        if let Some(reply) = request.reply {
            let (id, bytes) = (RequestId(reply.to_string()), request.payload);
            events.send(Event::Request { id, bytes }).await;
        }
    }
}

async fn stopped(serves: &mut watch::Receiver<bool>) {
    // Without a handle there is nobody to serve, either.
    let _ = serves.wait_for(|serves| !serves).await.is_ok();
}

/// Sends answers to other nodes.
pub(super) async fn answer(client: Client, mut replies: mpsc::Receiver<Reply>) {
    while let Some(Reply { id, bytes }) = replies.recv().await {
        if let Err(error) = client.publish(id.0, bytes).await {
            tracing::debug!(%error, "an answer to another node was not sent");
        }
    }
}
