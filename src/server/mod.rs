//! Builds the broker from its configuration, runs it, and takes it down in order. The only place that spawns what lives long.

mod acme;
mod admin;
mod aside;
mod banner;
mod credentials;
mod drain;
mod exposure;
mod grpc;
mod http;
mod listeners;
mod liveness;
mod log_writer;
mod logging;
pub(crate) mod net;
mod otlp;
mod recovery;
mod runtimes;
mod secured;
mod supervisor;
mod watch;

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

pub use exposure::{Reader, exposed_directory, exposures, warn as warn_of_exposure};
pub use listeners::Listeners;
pub use logging::{flush as flush_log, init as init_logging, last_words, note};
pub use runtimes::{Homes, Runtimes};

use crate::{
    config::{self, Config, ConfigErrors},
    credentials::SharedCredentials,
    event::Record,
    hub::Hub,
    ingest::{self, Ingest},
    journal::{Journal, Local},
    metrics::Metrics,
    rpc,
    store::{Appender, Clock, OpenError, Retention, Store, writer},
    subscription::{Memory, Registry, RegistryLimits, Sources, WideReaders},
    wire::FilterLimits,
};
use acme::Acme;
use liveness::Liveness;
use net::{Entrance, tls::Tls};
use secured::Secured;
use watch::{Asked, Rereader, Watched};

/// How long the files that the start needs may take: a mount may just be coming up.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be had.
    #[error("cannot listen on {address} ({key}): {source}; choose another address with {flag}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The configuration key.
        key: &'static str,
        /// The flag that overrides it.
        flag: &'static str,
        /// The system's complaint.
        source: io::Error,
    },
    /// The store cannot be had.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The credentials file cannot be used.
    #[error("cannot use the credentials: {0}")]
    Credentials(String),
    /// The files cannot be read in time.
    #[error("cannot read the credentials and certificates: {0}")]
    Files(String),
    /// A certificate cannot be used.
    #[error("cannot use the certificate: {0}")]
    Tls(String),
    /// Traces cannot be sent.
    #[error("cannot send traces (traces.otlp_endpoint): {0}")]
    Traces(String),
    /// A listener that was opened cannot be used.
    #[error("cannot use a listening socket: {0}")]
    Socket(io::Error),
    /// The operating system gives no thread.
    #[error("cannot start the writer's thread: {0}")]
    Thread(io::Error),
}

/// Why a running broker ends otherwise than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A part that must live as long as the process has ended.
    #[error("{0} has ended unexpectedly")]
    Ended(&'static str),
    /// A part has panicked.
    #[error("a task has failed: {0}")]
    Task(#[from] JoinError),
}

/// Where the broker can be reached.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Callbacks.
    pub ingest: SocketAddr,
    /// Subscriptions.
    pub grpc: SocketAddr,
    /// Operators.
    pub admin: SocketAddr,
}

/// A running broker.
#[derive(Debug)]
pub struct Server {
    listeners: Listeners,
    addresses: Addresses,
    /// As of the last reload.
    config: Arc<Mutex<Config>>,
    rereader: Rereader,
    retention: Arc<Mutex<Retention>>,
    sources: Arc<Sources>,
    credentials: Arc<SharedCredentials>,
    ingest: Arc<Ingest>,
    appender: Appender,
    status: Arc<admin::Status>,
    health: HealthReporter,
    writer: thread::JoinHandle<()>,
    tasks: JoinSet<&'static str>,
    stop_ingest: CancellationToken,
    stop_grpc: CancellationToken,
    stop_admin: CancellationToken,
}

impl Server {
    /// Opens the store, binds the listeners and starts to serve; callbacks' connections live on `homes`.
    pub async fn start(config: &Config, homes: Homes) -> Result<Self, StartError> {
        // Before the store: a busy port should not cost a recovery.
        let listeners = Listeners::open(config)?;
        let addresses = listeners.addresses().map_err(StartError::Socket)?;
        let [ingest_listener, grpc_listener, admin_listener] =
            listeners.to_accept_from().map_err(StartError::Socket)?;
        let metrics = Arc::new(Metrics::default());
        logging::count_lost_in(&metrics.log_lines_lost);
        let shared_config = Arc::new(Mutex::new(config.clone()));
        let FromFiles { credentials, mut secured, watched } = read_files(&shared_config, addresses, &metrics).await?;
        let (tracer, exporter) = otlp::tracer(&config.traces, &metrics).map_err(StartError::Traces)?;
        let sources = open_sources(config, &metrics).await?;
        let retention = retention(config);
        let (appender, writer) = start_writer(retention, &sources)?;
        let retention = Arc::new(Mutex::new(retention));
        let journal: Arc<dyn Journal> = Arc::new(Local::new(appender.clone()));
        let rules = credentials::rules(config, Arc::clone(&credentials));
        let (limits, counts, clock) = (ingest_limits(config), Arc::clone(&metrics), Arc::clone(sources.store.clock()));
        let ingest = Ingest::new(Arc::clone(&journal), appender.clone(), clock, limits, rules, counts, tracer.clone());
        let liveness = Arc::new(Liveness::new(&homes));
        let gate = gate(config, &addresses, &credentials, &sources);
        let base = banner::callback_base(config, &addresses);
        let (probed, kept) = (Arc::clone(&journal), Arc::clone(&retention));
        let context = rpc_context(config, &sources, journal, &appender, gate.clone(), base, kept);
        let answers = Arc::clone(&context.answers);
        let status = Arc::new(admin::Status::new(&sources, &answers, probed, &liveness));
        let (health, services) = grpc::services(context, config, tracer).await;

        let [stop_ingest, stop_grpc, stop_admin] = [(); 3].map(|()| CancellationToken::new());
        let mut tasks = JoinSet::new();
        let (limits, counters) = (http::Limits::ingest(&config.ingest), http::Counters::of_ingest(&metrics));
        let entrance = secured.ingest_entrance(config);
        let stop = stop_ingest.clone();
        let serve = http::serve(ingest_listener, homes, entrance, callbacks(&ingest), limits, counters, stop);
        tasks.spawn(named("the ingest listener", serve));
        let (entrance, counters) = (secured.grpc_entrance(config), grpc::Counters::new(&metrics));
        let serve = grpc::serve(grpc_listener, entrance, services, config.grpc.clone(), counters, stop_grpc.clone());
        tasks.spawn(named("the gRPC listener", serve));
        let (limits, counters) = (http::Limits::admin(), http::Counters::of("admin", &metrics));
        let entrance = Entrance::open_to_all(secured.admin.clone());
        let (hosts, refused) = (config.admin.hosts.clone(), metrics.admin_refused.clone());
        let door = admin::Door { port: addresses.admin.port(), hosts, refused, told: Mutex::default() };
        let responder = http::routed(admin::router(&status, door));
        let stop = stop_admin.clone();
        let serve = http::serve(admin_listener, Homes::here(), entrance, responder, limits, counters, stop);
        tasks.spawn(named("the admin listener", serve));
        let (rereader, asked) = Rereader::new();
        let review = review(Arc::clone(&sources), gate, secured.grpc.clone());
        let tend = tend_memory(Arc::clone(&sources), answers, stop_admin.clone());
        tasks.spawn(named("the care of memory", tend));
        exporter.map(|exporter| tasks.spawn(named("the export of traces", exporter.run(stop_admin.clone()))));
        tasks.spawn(named("the watchdog", supervisor::watchdog(liveness, stop_admin.clone())));
        keep_files(&mut tasks, renewal(&mut secured, &sources), watched, review, asked, metrics, &stop_admin);
        Ok(Self {
            listeners,
            addresses,
            config: shared_config,
            rereader,
            retention,
            sources,
            credentials,
            ingest,
            appender,
            status,
            health,
            writer,
            tasks,
            stop_ingest,
            stop_grpc,
            stop_admin,
        })
    }

    /// Where the broker can be reached: the real ports, also where the configuration says 0.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What a person sees after the start.
    pub fn banner(&self, config: &Config) -> String {
        banner::text(config, &self.addresses, &self.sources.store, &self.credentials.get())
    }

    /// Serves until `shutdown` completes, or until a store that has failed can be opened again; then takes everything down in
    /// order. Whenever `hangup` completes, puts into force what `reload` gives; that may take any time, and holds nothing up.
    pub async fn run_until(
        mut self,
        shutdown: impl Future<Output = ()>,
        mut hangup: impl AsyncFnMut(),
        reload: impl Fn() -> Result<Config, ConfigErrors> + Send + Sync + 'static,
    ) -> Result<Ended, RunError> {
        let reload = Arc::new(reload);
        supervisor::ready();
        let mut shutdown = pin!(shutdown);
        let mut recovery = pin!(recovery::is_possible(Arc::clone(&self.sources.store)));
        let recovers = loop {
            tokio::select! {
                () = &mut shutdown => break false,
                () = &mut recovery => break true,
                Some(ended) = self.tasks.join_next() => return Err(RunError::Ended(ended?)),
                () = hangup() => {
                    supervisor::reloading();
                    tokio::select! {
                        () = &mut shutdown => break false,
                        () = self.reload(&reload) => supervisor::ready(),
                    }
                }
            }
        };
        let drain_timeout = lock(&self.config).shutdown.drain_timeout;
        if recovers {
            tracing::warn!("the disk can be written again: starting anew to open the store");
        } else {
            supervisor::stopping();
        }
        let listeners = drain::drain(self, drain_timeout, recovers).await;
        Ok(listeners.map_or(Ended::Stopped, Ended::ToStartAnew))
    }

    /// Puts into force what can be while everything goes on, and says what cannot. The files go first, so that the configuration
    /// is judged by what they say now.
    async fn reload(&self, load: &Arc<impl Fn() -> Result<Config, ConfigErrors> + Send + Sync + 'static>) {
        self.rereader.reread().await;

        let load = Arc::clone(load);
        let read = match Arc::strong_count(&load) {
            // Each that hangs has one.
            ..=watch::HANGING_MAX => aside::within(watch::READ_TIMEOUT, move || load()).await,
            _ => Err(aside::too_slow(watch::READ_TIMEOUT)),
        };
        let problems = match read {
            Ok(Ok(new)) => self.put_into_force(&new).err().into_iter().collect(),
            Ok(Err(errors)) => errors.problems.iter().map(ToString::to_string).collect(),
            Err(problem) => vec![problem],
        };
        let result = if problems.is_empty() { "done" } else { "refused" };
        self.sources.metrics.reloads.with_label_values(&["configuration", result]).inc();
        problems.iter().for_each(|problem| tracing::error!(problem, "the configuration stays as it was: correct it"));
    }

    fn put_into_force(&self, new: &Config) -> Result<(), String> {
        let mut config = lock(&self.config);
        // What needs a restart stays as it is, also in what is compared with next time.
        let in_force = config.take_up(new);
        credentials::check(&in_force, &self.addresses, &self.credentials.get())?;
        let need_a_restart = config::needs_restart(&in_force, new);
        let retention = retention(&in_force);
        *lock(&self.retention) = retention;
        self.appender.retain(retention);
        logging::set_level(&in_force.logging);
        self.ingest.set_rules(credentials::rules(&in_force, Arc::clone(&self.credentials)));
        *config = in_force;
        if need_a_restart.is_empty() {
            tracing::info!("configuration reloaded");
        } else {
            tracing::warn!(?need_a_restart, "configuration reloaded, but for what needs a restart");
        }
        Ok(())
    }
}

/// How serving has ended.
#[derive(Debug)]
pub enum Ended {
    /// For good.
    Stopped,
    /// To begin again with these sockets.
    ToStartAnew(Listeners),
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// What goes on beside the listeners until `stop`: certificates, and files that change.
fn keep_files(
    tasks: &mut JoinSet<&'static str>,
    acme: Option<(Acme, Arc<Clock>)>,
    watched: Vec<Watched>,
    review: impl FnMut() + Send + 'static,
    asked: Asked,
    metrics: Arc<Metrics>,
    stop: &CancellationToken,
) {
    if let Some((acme, clock)) = acme {
        tasks.spawn(named("the renewal of certificates", acme.run(clock, stop.clone())));
    }
    let watch = watch::watch(watched, review, asked, metrics, stop.clone());
    tasks.spawn(named("the watch of files", watch));
}

fn renewal(secured: &mut Secured, sources: &Sources) -> Option<(Acme, Arc<Clock>)> {
    secured.acme.take().map(|acme| (acme, Arc::clone(sources.store.clock())))
}

/// What the start needs from files, and what watches them.
struct FromFiles {
    credentials: Arc<SharedCredentials>,
    secured: Secured,
    watched: Vec<Watched>,
}

/// Reads them aside, so that a mount which hangs ends the start with an error.
async fn read_files(
    config: &Arc<Mutex<Config>>,
    addresses: Addresses,
    metrics: &Arc<Metrics>,
) -> Result<FromFiles, StartError> {
    let (shared, metrics) = (Arc::clone(config), Arc::clone(metrics));
    let read = move || {
        let config = lock(&shared).clone();
        let credentials = Arc::new(SharedCredentials::default());
        let watched = credentials::watched(&shared, &credentials);
        credentials.set(credentials::load(&config, &addresses).map_err(StartError::Credentials)?);

        let mut secured = Secured::new(&config, &metrics).map_err(StartError::Tls)?;
        let watched = watched.into_iter().chain(std::mem::take(&mut secured.watched)).collect();
        Ok(FromFiles { credentials, secured, watched })
    };
    aside::within(START_TIMEOUT, read).await.map_err(StartError::Files)?
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock is held ends the process, so a poisoned lock is never seen.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_over(work: &mut oneshot::Receiver<()>) -> bool {
    !matches!(work.try_recv(), Err(TryRecvError::Empty))
}

/// Cuts off whom the credentials do not let in any more, when they have changed or somebody's have expired, or a certificate that
/// was shown is not good any more.
fn review(sources: Arc<Sources>, gate: rpc::Gate, tls: Option<Arc<Tls>>) -> impl FnMut() {
    let mut reviewed = (gate.credentials.get(), 0);
    let mut verifying = None;
    move || {
        let (credentials, now) = (gate.credentials.get(), gate.clock.earliest());
        let expired = credentials.expired_clients(now);
        if let Some(tls) = tls.as_ref().filter(|tls| tls.is_to_verify(now)).cloned()
            && verifying.as_mut().is_none_or(is_over)
        {
            // Not on the runtime's blocking threads: reads of the store must not delay a revocation.
            let begun = aside::spawn(move || tls.verify_again(now));
            verifying = begun.inspect_err(|error| tracing::warn!(%error, "cannot verify certificates again yet")).ok();
        }
        let have_changed = tls.as_ref().is_some_and(|tls| tls.have_changed(now));
        if !Arc::ptr_eq(&credentials, &reviewed.0) || expired != reviewed.1 || have_changed {
            reviewed = (credentials, expired);
            sources.registry.review(&sources.hub, |client, filter| gate.review(client, filter));
        }
    }
}

fn gate(config: &Config, addresses: &Addresses, credentials: &Arc<SharedCredentials>, sources: &Sources) -> rpc::Gate {
    rpc::Gate {
        credentials: Arc::clone(credentials),
        allow_anonymous: config.grpc.allow_anonymous,
        is_loopback: is_loopback(addresses.grpc),
        clock: Arc::clone(sources.store.clock()),
        metrics: Arc::clone(&sources.metrics),
    }
}

/// Whether only this machine reaches an address.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

async fn open_sources(config: &Config, metrics: &Arc<Metrics>) -> Result<Arc<Sources>, StartError> {
    let (path, cache_bytes) = (config.data_dir.clone(), config.store.cache_bytes);
    let opened = tokio::task::spawn_blocking(move || Store::open(&path, cache_bytes)).await;
    let store = Arc::new(opened.map_err(|error| StartError::Thread(io::Error::other(error)))??);
    let hub = Hub::new(store.head(), usize_of(config.hub.ring_bytes_max));
    let registry = Registry::new(RegistryLimits {
        subscriptions_max: usize_of(config.grpc.subscriptions_max),
        subscriptions_per_client_max: usize_of(config.grpc.subscriptions_per_client_max),
        task_ids_max: usize_of(config.grpc.task_ids_in_all_max),
    });
    let (metrics, wide_readers) = (Arc::clone(metrics), WideReaders::default());
    let memory = Memory::new(usize_of(config.grpc.reading_bytes_max), usize_of(config.ingest.body_bytes_max));
    Ok(Arc::new(Sources { store, hub, registry, metrics, wide_readers, memory }))
}

/// Answers callbacks.
fn callbacks(ingest: &Arc<Ingest>) -> impl http::Responder {
    let ingest = Arc::clone(ingest);
    move |peer, request| Box::pin(Arc::clone(&ingest).answer(peer, request))
}

fn retention(config: &Config) -> Retention {
    Retention {
        event_age_max: config.log.retention_age_max,
        event_bytes_max: config.log.retention_bytes_max,
        quarantine_age_max: config.quarantine.retention_age_max,
        quarantine_bytes_max: config.quarantine.retention_bytes_max,
        quarantine_count_max: config.quarantine.retention_count_max,
        disk_free_min_percent: config.log.disk_free_min_percent,
    }
}

fn start_writer(retention: Retention, sources: &Sources) -> Result<(Appender, thread::JoinHandle<()>), StartError> {
    let hub = Arc::clone(&sources.hub);
    let publish = move |records: &[Record]| hub.publish(records);
    let (appender, mut writer) = writer(Arc::clone(&sources.store), retention, publish, Arc::clone(&sources.metrics));
    let keeper = writer.keeper();
    let keeping = thread::Builder::new().name("keeper".into()).spawn(|| keeper.run()).map_err(StartError::Thread)?;
    let write = || {
        writer.run();
        let _ = keeping.join().is_ok(); // a panic has ended the process
    };
    let writing = thread::Builder::new().name("writer".into()).spawn(write).map_err(StartError::Thread)?;
    Ok((appender, writing))
}

fn ingest_limits(config: &Config) -> ingest::Limits {
    ingest::Limits {
        body_bytes_max: usize_of(config.ingest.body_bytes_max),
        body_timeout: config.ingest.body_timeout,
        answer_timeout: config.ingest.answer_timeout,
        inflight_bytes_max: usize_of(config.ingest.inflight_bytes_max),
        refusals_per_minute_max: u32::try_from(config.ingest.refusals_per_minute_max).unwrap_or(u32::MAX),
    }
}

fn rpc_context(
    config: &Config,
    sources: &Arc<Sources>,
    journal: Arc<dyn Journal>,
    appender: &Appender,
    gate: rpc::Gate,
    callback_base: String,
    retention: Arc<Mutex<Retention>>,
) -> rpc::Context {
    rpc::Context {
        sources: Arc::clone(sources),
        journal,
        appender: appender.clone(),
        gate,
        callback_base,
        filter_limits: FilterLimits {
            task_ids_max: usize_of(config.grpc.task_ids_max),
            products_max: usize_of(config.grpc.products_max),
        },
        answers: rpc::Answers::new(
            usize_of(config.grpc.answers_bytes_max),
            config.grpc.stall_timeout,
            &sources.memory.transit,
            &sources.metrics,
        ),
        retention,
    }
}

/// Takes memory back from those who do not use it, until `stop`.
async fn tend_memory(sources: Arc<Sources>, answers: Arc<rpc::Answers>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = sources.tend_memory() => {}
        () = answers.tend() => {}
    }
}

// On a machine where sizes have 32 bits a larger limit is no limit.
fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
