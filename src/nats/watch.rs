//! Watches connection and stream: what a node shows of them, and whether the stream is still the one that it was.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Duration, Instant};

use async_nats::Client;
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    api::{self, code},
    asker::Asker,
    error::NatsError,
    event::{Event, Events},
    link::Link,
    settings::Settings,
    stream::StreamState,
};

/// As often as nodes show their presence.
const EVERY: Duration = Duration::from_secs(2);
/// How often the servers have to say that there is no such stream: they may have just started.
const MISSES_MAX: u32 = 5;

/// What was last seen of connection and stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Whether there is a connection.
    pub is_connected: bool,
    /// How many connections there have been.
    pub connections: u64,
    /// The server of the last one.
    pub server: String,
    /// Its version.
    pub version: String,
    /// The stream, once its leader was asked; it may have changed since.
    pub stream: Option<StreamState>,
    /// When its leader said so.
    pub looked_at: Option<Instant>,
    /// How many consumers the follower has asked for.
    pub consumers: u64,
    /// How many messages it has got without one.
    pub gets: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) consumers: AtomicU64,
    pub(super) gets: AtomicU64,
}

/// What handle and watch share.
#[derive(Clone)]
pub(super) struct Watched {
    client: Client,
    link: Arc<Link>,
    settings: Arc<Settings>,
    counters: Arc<Counters>,
    stream: watch::Sender<(StreamState, Instant)>,
    asker: Arc<Mutex<Asker>>,
}

impl Watched {
    pub(super) fn new(
        client: Client,
        settings: Arc<Settings>,
        stream: StreamState,
        (link, asker): (Arc<Link>, Asker),
    ) -> Self {
        Self {
            client,
            link,
            settings,
            counters: Arc::default(),
            stream: watch::channel((stream, Instant::now())).0,
            asker: Arc::new(Mutex::new(asker)),
        }
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    pub(super) fn state(&self) -> State {
        let (connection, info) = (self.link.connection(), self.client.server_info());
        let (stream, looked_at) = self.stream.borrow().clone();
        State {
            is_connected: connection.is_up,
            connections: connection.number,
            server: info.server_name,
            version: info.version,
            stream: Some(stream),
            looked_at: Some(looked_at),
            consumers: self.counters.consumers.load(Ordering::Relaxed),
            gets: self.counters.gets.load(Ordering::Relaxed),
        }
    }

    /// Asks the stream's leader. Callers wait for each other: answers take milliseconds, or seconds at most.
    pub(super) async fn look(&self) -> Result<StreamState, NatsError> {
        let name = self.settings.stream();
        let info = api::stream_info(&mut *self.asker.lock().await, &name).await;
        let info = info.map_err(|failure| match failure.code() {
            Some(code::STREAM_NOT_FOUND) => NatsError::NoStream(name.clone()),
            _ => failure.into_error("show the stream"),
        })?;
        let foreign = || NatsError::Foreign {
            what: format!("stream {name}"),
        };
        let state = StreamState::of(&info).ok_or_else(foreign)?;
        self.stream.send_replace((state.clone(), Instant::now()));
        Ok(state)
    }

    /// Tells of each change of the connection.
    pub(super) async fn connection(self, events: Events) {
        let mut link = self.link.watch();
        loop {
            let is_up = link.borrow_and_update().is_up;
            events.send(Event::Connected(is_up)).await;
            // The sender is in `self`.
            if link.wait_for(|it| it.is_up != is_up).await.is_err() {
                return;
            }
        }
    }

    /// Looks at the stream, and says once if it is another one than `known`.
    pub(super) async fn stream(self, known: StreamState, events: Events) {
        let (mut every, mut misses, mut is_lost) = (interval(EVERY), 0_u32, false);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.link.correct(&self.client);
            if !self.link.connection().is_up {
                continue;
            }
            let problem = match self.look().await {
                Ok(state) if (state.epoch, state.id) == (known.epoch, known.id) => {
                    misses = 0;
                    None
                }
                Ok(state) if state.epoch == known.epoch => Some(format!(
                    "hole: stream {} was deleted and made again, with the same log: start with another --data-dir, empty",
                    self.settings.stream()
                )),
                Ok(state) => Some(format!(
                    "hole: stream {} has epoch {}, and had {}: it was deleted and made again",
                    self.settings.stream(),
                    state.epoch.0,
                    known.epoch.0
                )),
                Err(NatsError::NoStream(name)) => {
                    misses += 1;
                    (misses >= MISSES_MAX)
                        .then(|| format!("hole: there is no stream {name} any more"))
                }
                Err(error @ NatsError::Foreign { .. }) => {
                    misses += 1;
                    (misses >= MISSES_MAX).then(|| format!("hole: {error}"))
                }
                Err(_) => None,
            };
            if let Some(problem) = problem.filter(|_| !is_lost) {
                is_lost = true;
                events.send(Event::Fatal(problem)).await;
            }
        }
    }

    /// Connects to the next server when asked to.
    pub(super) async fn reconnect(self, asked: Arc<Notify>) {
        loop {
            asked.notified().await;
            if let Err(error) = self.client.force_reconnect().await {
                tracing::debug!(%error, "cannot connect to the next NATS server");
            }
        }
    }
}
