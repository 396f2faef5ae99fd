//! Builds the broker from its configuration, runs it, and takes it down in order. The only place that spawns what lives long.

mod acme;
mod operations;
mod aside;
mod audit;
mod banner;
mod cgroup;
mod credentials;
mod drain;
mod exposure;
mod from_files;
mod grpc;
mod http;
mod listeners;
mod liveness;
mod log_writer;
mod logging;
pub(crate) mod net;
mod otlp;
mod reopen;
mod refusal;
mod rehearsal;
mod resources;
mod runtimes;
mod tls;
mod socket_units;
mod systemd;
mod watch;

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::SyncSender},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

pub use exposure::{Reader, exposed_directory, exposures, warn as warn_of_exposure};
pub use listeners::Listeners;
pub use logging::{
    flush as flush_log, init as init_logging, last_words, log_fatal, log_panic, note,
};
pub use rehearsal::{Rehearsal, rehearse};
pub use runtimes::{Homes, Runtimes};

use crate::{
    audit::{Audit, Command, Entry, OK, REFUSED},
    config::{self, Config, ConfigErrors},
    credentials::{Credentials, SharedCredentials},
    event::Record,
    hub::Hub,
    ingest::{self, Ingest},
    journal::{Journal, Local},
    metrics::Metrics,
    rpc,
    sampler::Sampler,
    store::{
        Appender, BackupResult, Clock, OpenError, Publish, Retention, Started, Store, Summary,
        writer,
    },
    subscription::{Memory, Registry, RegistryLimits, Sources, WideReaders},
    trace::Tracer,
    wire::FilterLimits,
};
use acme::Acme;
use from_files::FromFiles;
use liveness::Liveness;
use net::{Entrance, tls::Tls};
use refusal::{Refusal, Refusals, Source, What};
use tls::ListenersTls;
use watch::{Asked, Rereader, Told, Watched};

/// Time for a client's answer to a ping over a bad line; a client that takes longer has missed a keepalive, though its connection may have
/// more patience.
const PONG_TIME: Duration = Duration::from_secs(2);
/// How long the files that the start needs may take: a mount may just be coming up.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is noted which credentials open streams use: an operator who rotates one looks at that over hours.
const USE_NOTED: Duration = Duration::from_secs(10);

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be had.
    #[error("cannot listen on {address} ({key}): {source}; {}choose another address with {flag}", holder(source, *address))]
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
    /// The files cannot be read in time.
    #[error("cannot read the credentials and certificates: {0}")]
    Files(String),
    /// What is done cannot be recorded.
    #[error("cannot open audit.file: {0}")]
    Audit(String),
    /// Something that the configuration names cannot be used.
    #[error("{}", refusal::joined(.0))]
    Refused(Vec<Refusal>),
    /// A listener that was opened cannot be used.
    #[error("cannot use a listening socket: {0}")]
    Socket(io::Error),
    /// The operating system gives no thread.
    #[error("cannot start the writer's thread: {0}")]
    Thread(io::Error),
}

/// Who may have a port that is in use, and how to see it.
fn holder(error: &io::Error, address: SocketAddr) -> String {
    if error.kind() != io::ErrorKind::AddrInUse {
        return String::new();
    }
    format!(
        "another broker may be running there (`ss -ltnp 'sport = :{}'` shows the process): stop it, or ",
        address.port()
    )
}

/// Why a running broker ends otherwise than by request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The process was to start itself anew, and cannot.
    #[error("cannot start anew: {0}")]
    StartAnew(io::Error),
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
    refusals: Arc<Refusals>,
    retention: Arc<Mutex<Retention>>,
    sources: Arc<Sources>,
    credentials: Arc<SharedCredentials>,
    audit: Arc<Audit>,
    ingest: Arc<Ingest>,
    journal: Arc<dyn Journal>,
    appender: Appender,
    status: Arc<operations::Status>,
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
        let FromFiles {
            credentials,
            mut tls,
            collector,
            mut watched,
        } = read_files(&shared_config, addresses, &metrics).await?;
        let audit_file = open_audit(config, &metrics).await?;
        let (tracer, exporter) = otlp::tracer(&config.traces, collector, &metrics);
        watched.extend(
            exporter
                .as_ref()
                .and_then(|exporter| exporter.watched(&config.traces)),
        );
        let sources = open_sources(config, &metrics).await?;
        let audit = recorder(config, audit_file, &sources);
        let retention = Arc::new(Mutex::new(retention(config)));
        let (appender, writer) = start_writer(*lock(&retention), &sources)?;
        let journal: Arc<dyn Journal> = Arc::new(Local::new(appender.clone()));
        let ingest = front(config, &credentials, &journal, &sources, tracer.clone());
        let liveness = Arc::new(Liveness::new(&homes));
        let gate = gate(config, &addresses, &credentials, &sources);
        let base = banner::callback_base(config, &addresses);
        let context = rpc_context(
            config,
            &sources,
            Arc::clone(&journal),
            gate.clone(),
            base,
            Arc::clone(&retention),
            &audit,
        );
        let answers = Arc::clone(&context.answers);
        let status = Arc::new(operations::Status::new(
            &sources,
            &answers,
            Arc::clone(&journal),
            &liveness,
        ));
        let (health, services) = grpc::services(context, config, tracer).await;

        let [stop_ingest, stop_grpc, stop_admin] = [(); 3].map(|()| CancellationToken::new());
        let mut tasks = JoinSet::new();
        let (limits, counters) = (
            http::Limits::ingest(&config.ingest),
            http::Counters::of_ingest(&metrics),
        );
        let (entrance, stop) = (tls.ingest_entrance(config), stop_ingest.clone());
        let serve = http::serve(
            ingest_listener,
            homes,
            entrance,
            callbacks(&ingest),
            limits,
            counters,
            stop,
        );
        tasks.spawn(named("the ingest listener", serve));
        let (entrance, counters) = (tls.grpc_entrance(config), grpc::Counters::new(&metrics));
        let serve = grpc::serve(
            grpc_listener,
            entrance,
            services,
            config.grpc.clone(),
            counters,
            stop_grpc.clone(),
        );
        tasks.spawn(named("the gRPC listener", serve));
        let (limits, counters) = (http::Limits::admin(), http::Counters::of("admin", &metrics));
        let (entrance, stop) = (Entrance::open_to_all(tls.admin.clone()), stop_admin.clone());
        let responder = http::routed(operations::router(
            &status,
            door(config, &addresses, &metrics),
        ));
        let serve = http::serve(
            admin_listener,
            Homes::here(),
            entrance,
            responder,
            limits,
            counters,
            stop,
        );
        tasks.spawn(named("the admin listener", serve));
        let (review, (rereader, asked)) = (
            review(Arc::clone(&sources), gate, tls.grpc.clone()),
            Rereader::new(),
        );
        tasks.spawn(named(
            "the care of memory",
            tend_memory(Arc::clone(&sources), answers, stop_admin.clone()),
        ));
        exporter.map(|exporter| {
            tasks.spawn(named(
                "the export of traces",
                exporter.run(stop_admin.clone()),
            ))
        });
        tasks.spawn(named(
            "the watchdog",
            systemd::watchdog(liveness, stop_admin.clone()),
        ));
        let (refusals, renewal) = (
            Arc::new(Refusals::new(metrics)),
            renewal(&mut tls, &sources),
        );
        let told = Told {
            refusals: Arc::clone(&refusals),
            audit: Arc::clone(&audit),
        };
        keep_files(
            &mut tasks,
            renewal,
            watched,
            review,
            asked,
            told,
            &stop_admin,
        );
        note_start(config, &audit, &credentials.get());
        Ok(Self {
            listeners,
            addresses,
            config: shared_config,
            rereader,
            refusals,
            retention,
            sources,
            credentials,
            audit,
            ingest,
            journal,
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
        banner::text(
            config,
            &self.addresses,
            &self.sources.store,
            &self.credentials.get(),
        )
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
        self.refusals.tell_ready();
        let mut shutdown = pin!(shutdown);
        let mut reopening = pin!(reopen::is_possible(Arc::clone(&self.sources.store)));
        let recovers = loop {
            tokio::select! {
                () = &mut shutdown => break false,
                () = &mut reopening => break true,
                Some(ended) = self.tasks.join_next() => return Err(RunError::Ended(ended?)),
                () = hangup() => {
                    systemd::reloading();
                    tokio::select! {
                        () = &mut shutdown => break false,
                        () = self.reload(&reload) => systemd::ready(),
                    }
                }
            }
        };
        let drain_timeout = lock(&self.config).shutdown.drain_timeout;
        if recovers {
            tracing::warn!("the disk can be written again: starting anew to open the store");
        } else {
            systemd::stopping();
        }
        let listeners = drain::drain(self, drain_timeout, recovers).await;
        Ok(listeners.map_or(Ended::Stopped, Ended::ToStartAnew))
    }

    /// Puts into force what can be while everything goes on, and says what cannot. The files go first, so that the configuration
    /// is judged by what they say now.
    async fn reload(
        &self,
        load: &Arc<impl Fn() -> Result<Config, ConfigErrors> + Send + Sync + 'static>,
    ) {
        let mut refused: Vec<_> = self
            .rereader
            .reread()
            .await
            .into_iter()
            .map(What::label)
            .collect();
        refused.extend(self.reopen_audit().await);

        let before = lock(&self.config).clone();
        let read = self.rereader.read(load).await;
        let mut entry = self.audit.entry("configuration");
        entry.note("by", "SIGHUP");
        let problems: Vec<String> = match read {
            Ok(Ok(new)) => self
                .put_into_force(&new, &refused, &mut entry)
                .err()
                .unwrap_or_default(),
            Ok(Err(errors)) => errors.problems.iter().map(ToString::to_string).collect(),
            Err(problem) => vec![problem],
        };
        entry.note("problems", problems.clone());
        entry.end_now(if problems.is_empty() { OK } else { REFUSED });
        self.refusals.count(
            What::Configuration,
            if problems.is_empty() {
                "done"
            } else {
                "refused"
            },
        );
        problems.iter().for_each(|problem| {
            tracing::error!(problem, "the configuration stays as it was: correct it")
        });
        let refusals = problems
            .iter()
            .map(|problem| Refusal::new(What::Configuration, problem));
        self.refusals.set(Source::Configuration, refusals.collect());

        let in_force = lock(&self.config).clone();
        if in_force.log != before.log || in_force.quarantine != before.quarantine {
            resources::warn_of_disk(&in_force, self.sources.store.summary()).await;
        }
    }

    /// The file of audit records may have been moved away. Its name if it cannot be opened.
    async fn reopen_audit(&self) -> Option<&'static str> {
        let what = What::AuditFile;
        let opened = self.audit.reopen().await?;
        self.refusals
            .count(what, if opened.is_ok() { "done" } else { "refused" });
        let problem = opened.err();
        let refusals = problem.iter().map(|problem| {
            Refusal::new(what, format!("audit.file: {problem}; mend it and reload"))
        });
        self.refusals.set(Source::Audit, refusals.collect());
        let problem = problem?;
        tracing::error!(
            problem,
            "the audit file stays the one that was open: mend it and reload"
        );
        Some(what.label())
    }

    /// `refused` are the files that stay as they were.
    fn put_into_force(
        &self,
        new: &Config,
        refused: &[&str],
        entry: &mut Entry,
    ) -> Result<(), Vec<String>> {
        let mut config = lock(&self.config);
        // What needs a restart stays as it is, also in what is compared with next time.
        let in_force = config.take_up(new);
        let problems = credentials::problems(&in_force, &self.addresses, &self.credentials.get());
        if !problems.is_empty() {
            return Err(problems);
        }
        let need_a_restart = config::needs_restart(&in_force, new);
        entry.note("changes", config.changes_to(&in_force));
        entry.note("need_a_restart", need_a_restart.clone());
        self.refusals.set_needs_restart(need_a_restart.clone());
        let retention = retention(&in_force);
        *lock(&self.retention) = retention;
        self.journal.retain(retention);
        logging::set_level(&in_force.logging);
        self.ingest
            .set_rules(credentials::rules(&in_force, Arc::clone(&self.credentials)));
        *config = in_force;
        match (need_a_restart.is_empty(), refused.is_empty()) {
            (true, true) => tracing::info!("configuration reloaded"),
            (false, true) => tracing::warn!(
                ?need_a_restart,
                "configuration reloaded, but for what needs a restart"
            ),
            (_, false) => tracing::error!(
                ?refused,
                ?need_a_restart,
                "configuration reloaded, but for files that could not be read or used: the error before this says why"
            ),
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
    told: Told,
    stop: &CancellationToken,
) {
    if let Some((acme, clock)) = acme {
        tasks.spawn(named(
            "the renewal of certificates",
            acme.run(clock, Arc::clone(&told.audit), stop.clone()),
        ));
    }
    let watch = watch::watch(watched, review, asked, told, stop.clone());
    tasks.spawn(named("the watch of files", watch));
}

fn renewal(tls: &mut ListenersTls, sources: &Sources) -> Option<(Acme, Arc<Clock>)> {
    tls.acme
        .take()
        .map(|acme| (acme, Arc::clone(sources.store.clock())))
}

/// Reads them aside, so that a mount which hangs ends the start with an error.
async fn read_files(
    config: &Arc<Mutex<Config>>,
    addresses: Addresses,
    metrics: &Arc<Metrics>,
) -> Result<FromFiles, StartError> {
    let (shared, metrics) = (Arc::clone(config), Arc::clone(metrics));
    let read = move || FromFiles::read(&shared, &[addresses], &metrics);
    aside::within(START_TIMEOUT, read)
        .await
        .map_err(StartError::Files)?
        .map_err(StartError::Refused)
}

/// Opens the file of audit records aside: its file system may hang, too.
async fn open_audit(
    config: &Config,
    metrics: &Arc<Metrics>,
) -> Result<Option<SyncSender<Command>>, StartError> {
    let Some(path) = config.audit.file.clone() else {
        return Ok(None);
    };
    let records = metrics.audit_records.clone();
    let opened = aside::within(START_TIMEOUT, move || audit::start(&path, &records)).await;
    opened
        .and_then(|opened| opened)
        .map(Some)
        .map_err(StartError::Audit)
}

fn recorder(config: &Config, file: Option<SyncSender<Command>>, sources: &Sources) -> Arc<Audit> {
    let clock = Arc::clone(sources.store.clock());
    Audit::new(
        file,
        config.audit.required,
        move || clock.now(),
        Arc::clone(&sources.metrics),
    )
}

/// Records what the broker starts with, since credentials may have changed while none ran, and warns of tenants that are not apart.
fn note_start(config: &Config, audit: &Arc<Audit>, credentials: &Credentials) {
    credentials::warn_of_tenants(config, credentials, &credentials.intruders());

    let mut entry = audit.entry("start");
    entry.note("version", env!("CARGO_PKG_VERSION"));
    entry.note("credentials", credentials.names());
    entry.end_now(OK);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock is held ends the process, so a poisoned lock is never seen.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_over(work: &mut oneshot::Receiver<()>) -> bool {
    !matches!(work.try_recv(), Err(TryRecvError::Empty))
}

/// Cuts off whom the credentials do not let in any more, when they have changed or somebody's have expired, or a certificate that
/// was shown is not good any more. Notes which credentials open streams use.
fn review(sources: Arc<Sources>, gate: rpc::Gate, tls: Option<Arc<Tls>>) -> impl FnMut() {
    let mut reviewed = (gate.credentials.get(), 0);
    let mut verifying = None;
    let mut noted_at = Instant::now();
    gate.metrics.set_credential_expiries(reviewed.0.expiries());
    move || {
        let (credentials, now) = (gate.credentials.get(), gate.clock.earliest());
        let expired = credentials.expired_clients(now);
        if let Some(tls) = tls.as_ref().filter(|tls| tls.is_to_verify(now)).cloned()
            && verifying.as_mut().is_none_or(is_over)
        {
            // Not on the runtime's blocking threads: reads of the store must not delay a revocation.
            let begun = aside::spawn(move || tls.verify_again(now));
            verifying = begun
                .inspect_err(|error| tracing::warn!(%error, "cannot verify certificates again yet"))
                .ok();
        }
        let have_changed = tls.as_ref().is_some_and(|tls| tls.have_changed(now));
        if !Arc::ptr_eq(&credentials, &reviewed.0) || expired != reviewed.1 || have_changed {
            reviewed = (credentials, expired);
            gate.metrics.set_credential_expiries(reviewed.0.expiries());
            sources
                .registry
                .review(&sources.hub, |client, filter| gate.review(client, filter));
        }
        if noted_at.elapsed() >= USE_NOTED {
            noted_at = Instant::now();
            sources
                .registry
                .clients()
                .iter()
                .for_each(|client| gate.note_in_use(client));
        }
    }
}

fn gate(
    config: &Config,
    addresses: &Addresses,
    credentials: &Arc<SharedCredentials>,
    sources: &Sources,
) -> rpc::Gate {
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
    // What needs a restart is compared with the configuration as it was set, so this one is not kept.
    let config = &resources::fitted_to_memory(config, metrics);
    let (path, cache_bytes, is_expected) = (
        config.data_dir.clone(),
        config.store.cache_bytes,
        config.log.expect_existing,
    );
    let opened =
        tokio::task::spawn_blocking(move || Store::open_to_serve(&path, cache_bytes, is_expected))
            .await;
    let store = Arc::new(opened.map_err(|error| StartError::Thread(io::Error::other(error)))??);
    tell_start(&store, metrics);
    resources::warn_of_disk(config, store.summary()).await;

    let hub = Hub::new(store.head(), usize_of(config.hub.ring_bytes_max));
    let registry = Registry::new(RegistryLimits {
        subscriptions_max: usize_of(config.grpc.subscriptions_max),
        subscriptions_per_client_max: usize_of(config.grpc.subscriptions_per_client_max),
        task_ids_max: usize_of(config.grpc.task_ids_in_all_max),
        silence_max: config.grpc.keepalive_interval + PONG_TIME.min(config.grpc.keepalive_timeout),
    });
    let (metrics, wide_readers) = (Arc::clone(metrics), WideReaders::default());
    let memory = Memory::new(
        usize_of(config.grpc.reading_bytes_max),
        usize_of(config.ingest.body_bytes_max),
    );
    Ok(Arc::new(Sources {
        store,
        hub,
        registry,
        metrics,
        wide_readers,
        memory,
    }))
}

/// Says how the log was found: a new one is never a surprise.
fn tell_start(store: &Store, metrics: &Metrics) {
    let Started {
        found,
        version_before,
        cut,
    } = store.started();
    let (found, epoch, version_before) = (
        found.as_str(),
        store.epoch().to_string(),
        version_before.as_deref(),
    );
    metrics.started(found, version_before.unwrap_or_default(), &epoch);
    let Summary {
        event_count: events,
        quarantine_count: quarantined,
        ..
    } = store.summary();
    let version_before = version_before.unwrap_or("none");
    tracing::info!(found, epoch, events, quarantined, version_before, %cut, "log opened");
    for result in store.backup_results().found() {
        metrics
            .backups_finished
            .with_label_values(&[result.as_str()])
            .inc();
        if *result == BackupResult::Interrupted {
            tracing::warn!(
                "a backup was cut off when the last broker ended: it has failed; take another one"
            );
        }
    }
}

fn door(config: &Config, addresses: &Addresses, metrics: &Metrics) -> operations::Door {
    let (hosts, refused) = (config.admin.hosts.clone(), metrics.admin_refused.clone());
    operations::Door {
        port: addresses.admin.port(),
        hosts,
        refused,
        log: Sampler::every(operations::COMPLAINT),
    }
}

/// The front that callbacks come to.
fn front(
    config: &Config,
    credentials: &Arc<SharedCredentials>,
    journal: &Arc<dyn Journal>,
    sources: &Sources,
    tracer: Tracer,
) -> Arc<Ingest> {
    let rules = credentials::rules(config, Arc::clone(credentials));
    let (clock, metrics) = (
        Arc::clone(sources.store.clock()),
        Arc::clone(&sources.metrics),
    );
    Ingest::new(
        Arc::clone(journal),
        clock,
        ingest_limits(config),
        rules,
        metrics,
        tracer,
    )
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
        segment_age_max: config.log.segment_age(),
        quarantine_age_max: config.quarantine.retention_age_max,
        quarantine_bytes_max: config.quarantine.retention_bytes_max,
        quarantine_count_max: config.quarantine.retention_count_max,
        disk_free_min_percent: config.log.disk_free_min_percent,
    }
}

/// Publishes to the live path.
struct ToHub(Arc<Hub>);

impl Publish for ToHub {
    fn publish(&mut self, records: &[Record]) {
        self.0.publish(records);
    }

    fn erase(&mut self, erased: &[Record]) {
        self.0.erase(erased);
    }
}

fn start_writer(
    retention: Retention,
    sources: &Sources,
) -> Result<(Appender, thread::JoinHandle<()>), StartError> {
    let publish = ToHub(Arc::clone(&sources.hub));
    let (appender, mut writer) = writer(
        Arc::clone(&sources.store),
        retention,
        publish,
        Arc::clone(&sources.metrics),
    );
    let maintenance = writer.maintenance();
    let maintaining = thread::Builder::new()
        .name("maintenance".into())
        .spawn(|| maintenance.run())
        .map_err(StartError::Thread)?;
    let write = || {
        writer.run();
        let _ = maintaining.join().is_ok(); // a panic has ended the process
    };
    let writing = thread::Builder::new()
        .name("writer".into())
        .spawn(write)
        .map_err(StartError::Thread)?;
    Ok((appender, writing))
}

fn ingest_limits(config: &Config) -> ingest::Limits {
    ingest::Limits {
        body_bytes_max: usize_of(config.ingest.body_bytes_max),
        body_timeout: config.ingest.body_timeout,
        answer_timeout: config.ingest.answer_timeout,
        inflight_bytes_max: usize_of(config.ingest.inflight_bytes_max),
        refusals_per_minute_max: u32::try_from(config.ingest.refusals_per_minute_max)
            .unwrap_or(u32::MAX),
    }
}

#[allow(
    clippy::too_many_arguments,
    reason = "what the services work on, each of it once"
)]
fn rpc_context(
    config: &Config,
    sources: &Arc<Sources>,
    journal: Arc<dyn Journal>,
    gate: rpc::Gate,
    callback_base: String,
    retention: Arc<Mutex<Retention>>,
    audit: &Arc<Audit>,
) -> rpc::Context {
    rpc::Context {
        sources: Arc::clone(sources),
        journal,
        audit: Arc::clone(audit),
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

/// Takes memory back from those who do not use it, and notes who takes nothing, until `stop`.
async fn tend_memory(sources: Arc<Sources>, answers: Arc<rpc::Answers>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = sources.tend_memory() => {}
        () = sources.look_for_stalled() => {}
        () = answers.tend() => {}
    }
}

// On a machine where sizes have 32 bits a larger limit is no limit.
fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
