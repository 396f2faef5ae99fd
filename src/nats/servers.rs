//! Which server comes next: the configured ones in a circle, from a random one on, with pauses once all of them have failed.

use std::time::Duration;

use async_nats::{ReconnectToServer, ServerAddr};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{backoff::Backoff, error::NatsError, settings::Settings};

/// A connection that was lost sooner than this counts as a failure: no server is asked again and again without a pause.
const SHORT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Servers {
    addresses: Vec<ServerAddr>,
    turn: Mutex<Turn>,
}

#[derive(Debug)]
struct Turn {
    next: usize,
    /// Tries since a connection held.
    failed: usize,
    backoff: Backoff,
    connected: Option<Instant>,
}

impl Servers {
    pub(super) fn new(settings: &Settings) -> Result<Self, NatsError> {
        let address = |server: &String| {
            let problem = |problem: String| NatsError::Address {
                server: server.clone(),
                problem,
            };
            if !server.starts_with("nats://") && !server.starts_with("tls://") {
                return Err(problem(
                    "it begins neither with nats:// nor with tls://".to_owned(),
                ));
            }
            (server.parse::<ServerAddr>()).map_err(|error| problem(error.to_string()))
        };
        let addresses: Vec<_> = settings
            .servers
            .iter()
            .map(address)
            .collect::<Result<_, _>>()?;

        let turn = Mutex::new(Turn {
            next: fastrand::usize(..addresses.len().max(1)),
            failed: 0,
            backoff: Backoff::default(),
            connected: None,
        });
        Ok(Self { addresses, turn })
    }

    pub(super) fn addresses(&self) -> &[ServerAddr] {
        &self.addresses
    }

    /// The server to try, and after which pause.
    pub(super) fn next(&self) -> Option<ReconnectToServer> {
        let mut turn = self.turn.lock();
        if turn
            .connected
            .take()
            .is_some_and(|at| at.elapsed() >= SHORT)
        {
            turn.failed = 0;
            turn.backoff.reset();
        }
        let addr = self.addresses.get(turn.next)?.clone();
        turn.next = (turn.next + 1) % self.addresses.len();

        let is_first_round = turn.failed < self.addresses.len();
        turn.failed = turn.failed.saturating_add(1);
        let delay = if is_first_round {
            Duration::ZERO
        } else {
            turn.backoff.next()
        };
        Some(ReconnectToServer {
            addr,
            delay: Some(delay),
        })
    }

    /// The last one that was tried is connected.
    pub(super) fn connected(&self) {
        self.turn.lock().connected = Some(Instant::now());
    }
}
