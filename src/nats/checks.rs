//! What has to be true of the servers and the account before a node starts.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, HeaderMap, ServerInfo};
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    api::{self, Failure, code},
    asker::{Asker, NoAnswer},
    error::NatsError,
    link::Link,
    settings::Settings,
};
use crate::cluster::Author;

/// Earlier versions can lose acknowledged messages (nats-server #7955, #8057, #8023).
const VERSION_MIN: [u64; 3] = [2, 14, 0];
/// A refusal comes before the answer to what was asked later, but by another task.
const GRACE: Duration = Duration::from_millis(100);
/// The servers answer at once, if at all.
const TIME: Duration = Duration::from_secs(2);
/// A name that no stream has, as names have no blanks.
const NO_STREAM: &str = "no stream";

/// What the server says of itself.
pub(super) fn server(settings: &Settings, info: &ServerInfo) -> Result<(), NatsError> {
    if version(&info.version).is_none_or(|it| it < VERSION_MIN) {
        return Err(NatsError::Version {
            server: info.server_name.clone(),
            found: info.version.clone(),
        });
    }
    if info.max_payload < settings.message_bytes_max {
        return Err(NatsError::Payload {
            server: info.server_name.clone(),
            found: info.max_payload,
            needed: settings.message_bytes_max,
        });
    }
    Ok(())
}

/// The numbers of "2.15.1" or "v2.15.0-dev".
fn version(text: &str) -> Option<[u64; 3]> {
    let numbers = text.trim_start_matches('v').split(['-', '+']).next()?;
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

/// That the account has JetStream, and may do what a node does.
pub(super) async fn account(
    client: &Client,
    asker: &mut Asker,
    link: &Arc<Link>,
    settings: &Settings,
) -> Result<(), NatsError> {
    let nobody = Author(0);
    let subscriptions = [settings.append_subject(nobody), settings.nodes_subject()];
    let mut kept = Vec::new();
    for subject in subscriptions {
        kept.push(client.subscribe(subject).await);
    }
    try_to_publish(asker, settings, nobody).await;

    let answer = api::account(asker).await;
    let refusal = link.refusal_before(Instant::now() + GRACE).await;
    drop(kept);
    if let Some(action) = refusal {
        return Err(NatsError::Permission(action));
    }
    answer.map_err(|failure| match failure {
        Failure::Error(error)
            if matches!(
                error.code,
                code::NOT_ENABLED | code::NOT_ENABLED_FOR_ACCOUNT
            ) =>
        {
            NatsError::NoJetStream(error.description)
        }
        Failure::NoAnswer(NoAnswer::NobodyThere) => {
            NatsError::NoJetStream("nobody answers for it".to_owned())
        }
        failure => failure.into_error("show the account"),
    })
}

/// Publishes to each subject that a node publishes to, in a way that changes nothing. Permissions are what is of interest; answers
/// are not. A purge is not tried: one that is not understood might remove everything.
async fn try_to_publish(asker: &mut Asker, settings: &Settings, nobody: Author) {
    let stream = settings.stream();
    let mut refused_by_stream = HeaderMap::new();
    refused_by_stream.insert("Nats-Expected-Stream", NO_STREAM);
    let other_stream = format!(r#"{{"stream_name":"{NO_STREAM}"}}"#);

    let tries = [
        (settings.log_subject(), refused_by_stream, Bytes::new()),
        (
            settings.append_subject(nobody),
            HeaderMap::new(),
            Bytes::new(),
        ),
        (settings.node_subject(), HeaderMap::new(), Bytes::new()),
        (
            format!("$JS.FC.{stream}.none.none"),
            HeaderMap::new(),
            Bytes::new(),
        ),
        (
            format!("$JS.API.STREAM.INFO.{stream}"),
            HeaderMap::new(),
            Bytes::new(),
        ),
        (
            format!("$JS.API.DIRECT.GET.{stream}"),
            HeaderMap::new(),
            Bytes::new(),
        ),
        (
            format!("$JS.API.CONSUMER.CREATE.{stream}.none"),
            HeaderMap::new(),
            other_stream.into(),
        ),
    ];
    let deadline = Instant::now() + TIME;
    for (subject, headers, bytes) in tries {
        let _ = asker.send(&subject, headers, bytes, deadline).await.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let is_enough = |text: &str| version(text).is_some_and(|it| it >= VERSION_MIN);
        for good in [
            "2.14.0",
            "2.15.1",
            "v2.14.0",
            "2.15.0-dev",
            "3.0.0",
            "2.100.0",
        ] {
            assert!(is_enough(good), "{good}");
        }
        for bad in ["2.13.9", "2.9.100", "1.99.99", "", "2.14", "x.y.z"] {
            assert!(!is_enough(bad), "{bad}");
        }
    }
}
