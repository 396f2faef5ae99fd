//! The state of the connection, as the library's callbacks report it, and which permissions are missing.

use std::collections::BTreeSet;

use async_nats::{Client, ClientError, ConnectErrorKind, Event, ServerError, connection};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

/// More different refusals than a node has subjects; what is beyond it is not remembered.
const REFUSALS_MAX: usize = 64;

/// Whether there is a connection. Two that differ in `number` are two connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) is_up: bool,
    pub(super) number: u64,
}

#[derive(Debug)]
pub(super) struct Link {
    connection: watch::Sender<Connection>,
    /// What the account may not do, by the server's words.
    refusals: watch::Sender<BTreeSet<String>>,
    /// The last failure to connect, to log each only once.
    problem: Mutex<Option<String>>,
}

impl Link {
    pub(super) fn new() -> Self {
        Self {
            connection: watch::channel(Connection::default()).0,
            refusals: watch::channel(BTreeSet::new()).0,
            problem: Mutex::new(None),
        }
    }

    pub(super) fn connection(&self) -> Connection {
        *self.connection.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Connection> {
        self.connection.subscribe()
    }

    /// Waits for a connection, until `deadline`.
    pub(super) async fn up_before(&self, deadline: Instant) -> Option<Connection> {
        let mut watch = self.connection.subscribe();
        let up = watch.wait_for(|it| it.is_up);
        let up = tokio::time::timeout_at(deadline, up).await.ok()?.ok()?;
        Some(*up)
    }

    /// Waits until this connection is lost.
    pub(super) async fn lost(&self, connection: Connection) {
        let mut watch = self.connection.subscribe();
        // The sender is in `self`, so this comes to an end only with the condition.
        let _ = watch.wait_for(|it| *it != connection).await.is_ok();
    }

    /// The first permission that a server has missed, also if it says so only until `deadline`.
    pub(super) async fn refusal_before(&self, deadline: Instant) -> Option<String> {
        let mut watch = self.refusals.subscribe();
        let any = watch.wait_for(|refusals| !refusals.is_empty());
        let any = tokio::time::timeout_at(deadline, any).await.ok()?.ok()?;
        any.first().cloned()
    }

    /// Takes note of what the library reports.
    pub(super) fn note(&self, event: &Event) {
        match event {
            Event::Connected => {
                *self.problem.lock() = None;
                self.set(true, true);
            }
            Event::Disconnected | Event::Closed => self.set(false, false),
            Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
            Event::ServerError(ServerError::Other(text)) => self.refused(text),
            Event::ServerError(error) => self.failed(&error.to_string()),
            Event::ClientError(ClientError::Other(text)) => self.failed(text),
            Event::ClientError(error) => self.failed(&error.to_string()),
            Event::SlowConsumer(_) => tracing::debug!("a message of NATS found no place"),
            Event::Draining => {}
        }
    }

    /// Compares with what the library says now: an event of it may have been dropped.
    pub(super) fn correct(&self, client: &Client) {
        let is_up = client.connection_state() == connection::State::Connected;
        if is_up != self.connection().is_up {
            self.set(is_up, is_up);
        }
    }

    fn set(&self, is_up: bool, is_new: bool) {
        self.connection.send_modify(|it| {
            it.is_up = is_up;
            it.number = it.number.saturating_add(u64::from(is_new));
        });
    }

    fn refused(&self, text: &str) {
        let Some(action) = permission(text) else {
            return self.failed(text);
        };
        let is_new = self.refusals.send_if_modified(|refusals| {
            refusals.len() < REFUSALS_MAX && refusals.insert(action.clone())
        });
        if is_new {
            tracing::warn!("the NATS account has no permission to {action}");
        }
    }

    fn failed(&self, text: &str) {
        let text = if text == ConnectErrorKind::AuthorizationViolation.to_string() {
            "the server refuses the user, its password or its certificate"
        } else {
            text
        };
        let before = self.problem.lock().replace(text.to_owned());
        if before.as_deref() != Some(text) {
            tracing::warn!(problem = text, "cannot use NATS for now");
        }
    }
}

/// What the account may not do, if that is what the server's error says.
fn permission(text: &str) -> Option<String> {
    const PREFIX: &str = "permissions violation for ";
    let text = text.trim_matches('\'');
    let start = text.get(..PREFIX.len())?;
    let what = text.get(PREFIX.len()..)?;
    let verb = |(verb, subject): (&str, &str)| format!("{verb} {}", subject.trim());
    start.eq_ignore_ascii_case(PREFIX).then(|| {
        what.split_once(" to ")
            .map(|(kind, subject)| match kind {
                "Subscription" => verb(("subscribe to", subject)),
                _ => verb(("publish to", subject)),
            })
            .unwrap_or_else(|| what.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_permission_is_named_by_verb_and_subject() {
        let said = |text| permission(text);
        assert_eq!(
            said("Permissions Violation for Publish to \"$JS.API.INFO\"").as_deref(),
            Some("publish to \"$JS.API.INFO\"")
        );
        assert_eq!(
            said("Permissions Violation for Subscription to \"blobcast.main.nodes.*\"").as_deref(),
            Some("subscribe to \"blobcast.main.nodes.*\"")
        );
        assert_eq!(said("maximum connections exceeded"), None);
    }

    #[tokio::test]
    async fn a_reconnect_is_another_connection_even_if_nobody_has_seen_the_loss() {
        let link = Link::new();
        link.note(&Event::Connected);
        let first = link.connection();
        link.note(&Event::Disconnected);
        link.note(&Event::Connected);
        assert!(link.connection().is_up);
        link.lost(first).await;
    }
}
