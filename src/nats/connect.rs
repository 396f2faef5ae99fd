//! Connects, and starts what serves a node. The way in.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::{
    Auth, AuthError, Client, ConnectError, ConnectErrorKind, ConnectOptions, connect_with_options,
};
use bytes::Bytes;
use tokio::{
    sync::{Mutex, Notify, mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    asker::{Asker, subscribe},
    backoff::Backoff,
    checks, direct,
    error::NatsError,
    event::Events,
    fetcher::Fetcher,
    follower::Follower,
    handle::{Handle, Orders},
    link::Link,
    monitoring::{self, Synced},
    presence,
    publisher::Publisher,
    purger::Purger,
    requests::{self, LANES, Lane, REPLIES_MAX, REQUESTS_MAX},
    servers::Servers,
    settings::Settings,
    slot::Slot,
    stream::{self, StreamState},
    watch::Watched,
};
use crate::{
    causes::{causes, causes_trusting},
    cluster::Author,
    files,
};

/// Two unanswered ones end a connection: a server that hangs is left within six seconds.
const PING_EVERY: Duration = Duration::from_secs(2);
/// For TCP, TLS and the greeting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// What waits to be sent. Only while the connection is busy: nothing is handed over without one.
const COMMANDS_MAX: usize = 256;
/// Messages of one subscription that wait. A consumer has 32 MiB on the way at most (`JsFlowControlMaxPending` of the server), and
/// a message takes more than 256 bytes of those.
const MESSAGES_MAX: usize = 1 << 17;
/// With their pauses they take as long as a server may lag.
const MESSAGE_TRIES: usize = 8;
/// A password, a key, or certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A connection to NATS that has passed the checks of a start.
pub struct Nats {
    pub(super) client: Client,
    link: Arc<Link>,
    pub(super) settings: Arc<Settings>,
    pub(super) asker: Asker,
    synced: Synced,
    has_made_stream: bool,
}

impl Nats {
    /// Connects to any of the servers, and checks what they are and what the account may. Tries each server once.
    pub async fn connect(settings: Settings) -> Result<Self, NatsError> {
        settings.check()?;
        let (settings, link) = (Arc::new(settings), Arc::new(Link::new()));
        let servers = Arc::new(Servers::new(&settings)?);
        password(&settings).await?;
        certificates(&settings).await?;

        let client = connect(&settings, &link, &servers).await?;
        checks::server(&settings, &client.server_info())?;
        let mut asker = Asker::new(&client, &link).await?;
        checks::account(&client, &mut asker, &link, &settings).await?;
        let synced = monitoring::check(&settings).await?;
        Ok(Self {
            client,
            link,
            settings,
            asker,
            synced,
            has_made_stream: false,
        })
    }

    /// Whether the servers have shown that they sync what they acknowledge.
    pub fn synced(&self) -> Synced {
        self.synced
    }

    /// The stream, which is made if there is none. Refuses one that is not as it has to be. Waits for an election of the servers.
    pub async fn stream(&mut self) -> Result<StreamState, NatsError> {
        let stream = stream::get_or_create(&mut self.asker, &self.settings).await;
        let stream = stream.map(|(stream, is_made)| {
            self.has_made_stream |= is_made;
            stream
        });
        match self.link.refusal_before(tokio::time::Instant::now()).await {
            Some(action) if stream.is_err() => Err(NatsError::Permission(action)),
            _ => stream,
        }
    }

    /// Whether this has made the stream, so that no other node can have anything of it.
    pub fn has_made_stream(&self) -> bool {
        self.has_made_stream
    }

    /// The message of the stream at this sequence; `None` if no server has it for a few tries. For a node that begins in the middle
    /// of a stream, before it starts.
    pub async fn message(&mut self, sequence: u64) -> Result<Option<Bytes>, NatsError> {
        let (stream, mut backoff) = (self.settings.stream(), Backoff::default());
        let mut problem = None;
        for _ in 0..MESSAGE_TRIES {
            match direct::one(&mut self.asker, &stream, sequence).await {
                Ok(Some(got)) => return Ok(Some(got.bytes)),
                Ok(None) => problem = None,
                Err(why) => problem = Some(why),
            }
            sleep(backoff.next()).await;
        }
        problem.map_or(Ok(None), |why| {
            Err(NatsError::NoAnswer {
                what: "give a message of the stream",
                why: why.to_string(),
            })
        })
    }

    /// Starts to serve this node: follows `stream` from the sequence `from` on, and takes requests for `me`.
    pub async fn start(
        self,
        stream: StreamState,
        me: Author,
        from: u64,
        events: Events,
    ) -> Result<Handle, NatsError> {
        let (requests, requested) = mpsc::channel(REQUESTS_MAX);
        let (replies, replied) = mpsc::channel(REPLIES_MAX);
        let orders = Orders {
            publish: Slot::new(),
            fetch: Slot::new(),
            follow: Slot::new(),
            purge: Slot::new(),
            presence: Slot::new(),
            reconnect: Arc::new(Notify::new()),
            requests,
            replies,
            serves: watch::channel(true).0,
        };
        let (client, link, settings) = (&self.client, &self.link, &self.settings);
        let watched = Watched::new(
            client.clone(),
            Arc::clone(settings),
            stream.clone(),
            (Arc::clone(link), self.asker),
        );

        let mut tasks = Tasks::default();
        let kit = Kit {
            client,
            link,
            settings,
            events: &events,
            orders: &orders,
        };
        kit.start_writing(&mut tasks).await?;
        kit.start_following(&mut tasks, &watched, me, from).await?;
        kit.start_requests(&mut tasks, me, requested, replied)
            .await?;
        tasks.start(watched.clone().connection(events.clone()));
        tasks.start(watched.clone().stream(stream, events.clone()));
        tasks.start(watched.clone().reconnect(Arc::clone(&orders.reconnect)));

        Ok(Handle {
            orders,
            client: self.client,
            watched,
            _tasks: Arc::new(tasks.0),
        })
    }
}

/// They end with the last handle.
#[derive(Default)]
struct Tasks(Vec<AbortOnDropHandle<()>>);

impl Tasks {
    fn start(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(AbortOnDropHandle::new(tokio::spawn(task)));
    }
}

/// What each task needs some of.
struct Kit<'a> {
    client: &'a Client,
    link: &'a Arc<Link>,
    settings: &'a Arc<Settings>,
    events: &'a Events,
    orders: &'a Orders,
}

impl Kit<'_> {
    async fn asker(&self) -> Result<Asker, NatsError> {
        Asker::new(self.client, self.link).await
    }

    async fn start_writing(&self, tasks: &mut Tasks) -> Result<(), NatsError> {
        let publisher = Publisher {
            asker: self.asker().await?,
            settings: Arc::clone(self.settings),
            orders: self.orders.publish.clone(),
            events: self.events.clone(),
        };
        let purger = Purger {
            asker: self.asker().await?,
            settings: Arc::clone(self.settings),
            orders: self.orders.purge.clone(),
            events: self.events.clone(),
        };
        tasks.start(publisher.run());
        tasks.start(purger.run());
        Ok(())
    }

    async fn start_following(
        &self,
        tasks: &mut Tasks,
        watched: &Watched,
        me: Author,
        from: u64,
    ) -> Result<(), NatsError> {
        let follower = Follower {
            client: self.client.clone(),
            link: Arc::clone(self.link),
            settings: Arc::clone(self.settings),
            me,
            orders: self.orders.follow.clone(),
            events: self.events.clone(),
            counters: watched.counters(),
            getter: self.asker().await?,
            next: from,
            gaps: 0,
        };
        let fetcher = Fetcher {
            asker: self.asker().await?,
            settings: Arc::clone(self.settings),
            orders: self.orders.fetch.clone(),
            events: self.events.clone(),
        };
        tasks.start(follower.run(self.asker().await?));
        tasks.start(fetcher.run());
        Ok(())
    }

    async fn start_requests(
        &self,
        tasks: &mut Tasks,
        me: Author,
        requested: mpsc::Receiver<requests::Request>,
        replied: mpsc::Receiver<requests::Reply>,
    ) -> Result<(), NatsError> {
        let requested = Arc::new(Mutex::new(requested));
        for _ in 0..LANES {
            let lane = Lane {
                asker: self.asker().await?,
                settings: Arc::clone(self.settings),
                requests: Arc::clone(&requested),
                events: self.events.clone(),
            };
            tasks.start(lane.run());
        }
        let (client, settings) = (self.client, self.settings);
        let (serves, events) = (self.orders.serves.subscribe(), self.events);
        let requests = subscribe(client, settings.append_subject(me)).await?;
        tasks.start(requests::serve(requests, events.clone(), serves));
        tasks.start(requests::answer(client.clone(), replied));

        let (link, shown) = (Arc::clone(self.link), self.orders.presence.clone());
        let nodes = subscribe(client, settings.nodes_subject()).await?;
        tasks.start(presence::show(
            client.clone(),
            link,
            Arc::clone(settings),
            shown,
        ));
        tasks.start(presence::hear(nodes, events.clone()));
        Ok(())
    }
}

async fn connect(
    settings: &Arc<Settings>,
    link: &Arc<Link>,
    servers: &Arc<Servers>,
) -> Result<Client, NatsError> {
    let addresses = servers.addresses();
    let mut problems = Vec::new();
    for _ in addresses {
        let options = options(settings, link, servers);
        match connect_with_options(addresses, options).await {
            Ok(client) => return Ok(client),
            Err(error) if is_login(&error) => return Err(NatsError::Login(causes(&error))),
            Err(error) => problems.push(causes_trusting(&error, "cluster.tls_ca_file")),
        }
    }
    problems.dedup();
    Err(NatsError::Unreachable(problems.join("; ")))
}

fn is_login(error: &ConnectError) -> bool {
    matches!(
        error.kind(),
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication
    )
}

fn options(settings: &Arc<Settings>, link: &Arc<Link>, servers: &Arc<Servers>) -> ConnectOptions {
    let (heard, connected, chosen) = (Arc::clone(link), Arc::clone(servers), Arc::clone(servers));
    let mut options = if settings.user.is_empty() {
        ConnectOptions::new()
    } else {
        let settings = Arc::clone(settings);
        ConnectOptions::with_auth_callback(move |_| login(Arc::clone(&settings)))
    };
    if let Some(authorities) = settings.tls_ca_file.clone() {
        options = options.add_root_certificates(authorities).require_tls(true);
    }
    if let (Some(certificate), Some(key)) = (
        settings.tls_certificate_file.clone(),
        settings.tls_key_file.clone(),
    ) {
        options = options
            .add_client_certificate(certificate, key)
            .require_tls(true);
    }
    options
        .name(format!("blobcast {} {}", settings.name, settings.node))
        .ping_interval(PING_EVERY)
        .connection_timeout(CONNECT_TIMEOUT)
        .client_capacity(COMMANDS_MAX)
        .subscription_capacity(MESSAGES_MAX)
        // The configured ones are those that this machine is meant to reach.
        .ignore_discovered_servers()
        .reconnect_to_server_callback(move |_, _| {
            let next = chosen.next();
            async move { next }
        })
        .event_callback(move |event| {
            if event == async_nats::Event::Connected {
                connected.connected();
            }
            heard.note(&event);
            async {}
        })
}

/// The password may have been replaced since the last connection.
async fn login(settings: Arc<Settings>) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    auth.username = Some(settings.user.clone());
    auth.password = password(&settings).await.map_err(AuthError::new)?;
    Ok(auth)
}

async fn password(settings: &Settings) -> Result<Option<String>, NatsError> {
    let Some(path) = settings.password_file.clone() else {
        return Ok(None);
    };
    let text = read(path).await?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The connection reads them, and would not say which one is missing.
async fn certificates(settings: &Settings) -> Result<(), NatsError> {
    let files = [
        &settings.tls_ca_file,
        &settings.tls_certificate_file,
        &settings.tls_key_file,
    ];
    for path in files.into_iter().flatten() {
        read(path.clone()).await?;
    }
    Ok(())
}

async fn read(path: PathBuf) -> Result<String, NatsError> {
    let read = {
        let path = path.clone();
        spawn_blocking(move || files::read_text(&path, FILE_BYTES_MAX)).await
    };
    // It fails only while the runtime ends.
    let read = read.unwrap_or_else(|_| Err(std::io::ErrorKind::Interrupted.into()));
    read.map_err(|source| NatsError::File { path, source })
}

impl std::fmt::Debug for Nats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nats")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
