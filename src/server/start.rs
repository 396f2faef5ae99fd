//! Starts a broker. The order: listeners, files, cluster, store, writer, services, tasks.
//!
//! Steps that fail early come first: a busy port or a wrong certificate must not cost the recovery of a log.

use std::sync::{Arc, mpsc::SyncSender};

use parking_lot::Mutex;
use tokio::{net::TcpListener, time::sleep};

use super::{
    addresses::Addresses,
    aside::{self, START_TIMEOUT},
    audit,
    certificates::ListenersTls,
    cluster::{self, Joining, Node},
    credentials,
    drain::Drain,
    error::StartError,
    exposure,
    from_files::FromFiles,
    grpc, http,
    listeners::Listeners,
    logging,
    net::{self, Entrance},
    operations, otlp, reconcile,
    reload::Reloader,
    resources,
    review_schedule::Review,
    running::Server,
    runtimes::Homes,
    services::{Core, Services, admin_door, callbacks},
    storage::{self, Writing},
    systemd,
    tasks::{Stops, Tasks},
    watch::{self, Recorder, Rereader, Watched},
};
use crate::{
    audit::{Audit, Command, OK},
    config::{Config, Loaded},
    credentials::Credentials,
    journal::jetstream::SayCommon,
    metrics::Metrics,
    minutes::{LOOK_INTERVAL, Minutes},
    rpc,
    subscription::Sources,
};

impl Server {
    /// Starts a broker, which serves when this returns. Callbacks' connections live on `homes`.
    pub(crate) async fn start(loaded: &Loaded, homes: Homes) -> Result<Self, StartError> {
        let config = &loaded.config;
        let (listeners, addresses, sockets) = listen(config)?;

        let metrics = counted();
        let shared_config = Arc::new(Mutex::new(config.clone()));
        let read = read_files(&shared_config, addresses, &metrics).await?;
        let (credentials, mut tls, mut watched) = (read.credentials, read.tls, read.watched);
        let audit_file = open_audit(config, &metrics).await?;
        let (tracer, exporter) = otlp::tracer(&config.traces, read.collector, &metrics);
        watched.extend(exporter.as_ref().and_then(|it| it.watched(&config.traces)));

        let common = cluster::common(&shared_config, &credentials);
        let (sources, writing, node) = open_log(config, &metrics, common).await?;
        let audit = recorder(config, audit_file, &sources);
        let (retention, journal) = (storage::shared_retention(config), writing.journal);
        let settings = Arc::new(Mutex::new(resources::described(loaded)));

        let api = read.vendor_api;
        let reconciler = reconcile::reconciler(api, config, &sources, &journal, &credentials);
        let core = Core {
            config,
            addresses,
            credentials: &credentials,
            sources: &sources,
            journal: &journal,
            cluster: node.as_ref().map(|node| &node.state),
            retention: &retention,
            settings: &settings,
            audit: &audit,
            reconciler: reconciler.as_ref(),
        };
        let services = Services::new(&core, tracer, &homes).await;
        let (mut tasks, stops) = (Tasks::default(), Stops::default());
        spawn_listeners(&mut tasks, &stops, sockets, homes, &core, &tls, &services);
        spawn_upkeep(&mut tasks, &stops, exporter, &core, &mut tls, &services);
        let recorder = Recorder::new(metrics, &audit);
        let review = Review::new(Arc::clone(&sources), services.gate, tls.grpc);
        let rereader = spawn_watch(&mut tasks, &stops, watched, review, &recorder);
        note_start(config, &audit, &credentials.get());

        Ok(Self {
            node,
            reloader: Reloader {
                config: shared_config,
                settings,
                addresses,
                rereader,
                refusals: recorder.refusals,
                retention,
                sources: Arc::clone(&sources),
                credentials,
                audit: Arc::clone(&audit),
                ingest: Arc::clone(&services.ingest),
                journal,
            },
            tasks,
            drain: Drain {
                listeners,
                sources,
                ingest: services.ingest,
                appender: writing.appender,
                status: services.status,
                health: services.health,
                writer: writing.thread,
                audit,
                stops,
            },
        })
    }
}

/// The metrics, which count the log's lost lines, too.
fn counted() -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::default());
    logging::count_lost_in(&metrics.log_lines_lost);
    metrics
}

/// Opens the listening sockets. Returns them with their addresses, and once more to accept from.
fn listen(config: &Config) -> Result<(Listeners, Addresses, [TcpListener; 3]), StartError> {
    let listeners = Listeners::open(config)?;
    let addresses = listeners.addresses().map_err(StartError::Socket)?;
    let sockets = listeners.to_accept_from().map_err(StartError::Socket)?;
    Ok((listeners, addresses, sockets))
}

/// Opens the store, and starts what writes to it: this broker alone, or as a node, whose store has to have the stream's log.
async fn open_log(
    config: &Config,
    metrics: &Arc<Metrics>,
    common: SayCommon,
) -> Result<(Arc<Sources>, Writing, Option<Node>), StartError> {
    let joining = cluster::join(config).await?;
    let beginning = joining.as_ref().and_then(Joining::beginning);
    let sources = storage::open(config, metrics, beginning).await?;
    let retention = storage::retention(config);
    let Some(joining) = joining else {
        let writing = storage::start_writing(retention, &sources)?;
        return Ok((sources, writing, None));
    };

    joining.check(config, &sources.store)?;
    let (writing, node) = joining.start(config, retention, &sources, common).await?;
    Ok((sources, writing, Some(node)))
}

/// Reads the credentials and certificates aside, so that a mount which hangs ends the start with an error.
async fn read_files(
    config: &Arc<Mutex<Config>>,
    addresses: Addresses,
    metrics: &Arc<Metrics>,
) -> Result<FromFiles, StartError> {
    let (shared, metrics) = (Arc::clone(config), Arc::clone(metrics));
    let read = move || FromFiles::read(&shared, &[addresses], &metrics);
    let read = aside::within(START_TIMEOUT, read)
        .await
        .map_err(StartError::Files)?
        .map_err(StartError::Refused)?;
    read.warnings
        .iter()
        .for_each(|problem| exposure::warn(problem));
    Ok(read)
}

/// Opens the audit file aside: its file system may hang, too.
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

/// Spawns what accepts connections on each listener.
fn spawn_listeners(
    tasks: &mut Tasks,
    stops: &Stops,
    [ingest, grpc, admin]: [TcpListener; 3],
    homes: Homes,
    core: &Core<'_>,
    tls: &ListenersTls,
    services: &Services,
) {
    let (config, metrics) = (core.config, &core.sources.metrics);

    let serve = http::serve(
        ingest,
        homes,
        tls.ingest_entrance(config),
        callbacks(&services.ingest),
        http::Limits::ingest(&config.ingest),
        http::Counters::of_ingest(metrics),
        stops.ingest.clone(),
    );
    tasks.spawn("the ingest listener", serve);

    let (entrance, routes) = (tls.grpc_entrance(config), services.routes.clone());
    let (config_of_grpc, counters) = (config.clone(), net::Counters::of("grpc", metrics));
    let stop = stops.grpc.clone();
    let serve = async move {
        grpc::serve(grpc, entrance, routes, &config_of_grpc, counters, stop).await;
    };
    tasks.spawn("the gRPC listener", serve);

    let door = admin_door(config, &core.addresses, metrics);
    let serve = http::serve(
        admin,
        Homes::here(),
        Entrance::open_to_all(tls.admin.clone()),
        http::routed(operations::router(
            &services.status,
            door,
            services.console.clone(),
        )),
        http::Limits::admin(),
        http::Counters::of("admin", metrics),
        stops.admin.clone(),
    );
    tasks.spawn("the admin listener", serve);
}

/// Spawns what runs beside the listeners.
fn spawn_upkeep(
    tasks: &mut Tasks,
    stops: &Stops,
    exporter: Option<otlp::Exporter>,
    core: &Core<'_>,
    tls: &mut ListenersTls,
    services: &Services,
) {
    let memory = tend_memory(Arc::clone(core.sources), Arc::clone(&services.answers));
    let counting = count_minutes(Arc::clone(core.sources), Arc::clone(&services.minutes));
    let stop = stops.admin.clone();
    tasks.spawn("the care of memory", async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = memory => {}
            () = counting => {}
        }
    });

    if let Some(exporter) = exporter {
        tasks.spawn("the export of traces", exporter.run(stops.admin.clone()));
    }

    let liveness = Arc::clone(&services.liveness);
    let watchdog = systemd::watchdog(liveness, stops.admin.clone());
    tasks.spawn("the watchdog", watchdog);

    if let Some(reconciler) = core.reconciler {
        reconcile::spawn(tasks, Arc::clone(reconciler), stops);
    }

    if let Some(acme) = tls.acme.take() {
        let (clock, audit) = (
            Arc::clone(core.sources.store.clock()),
            Arc::clone(core.audit),
        );
        let renewal = acme.run(clock, audit, stops.admin.clone());
        tasks.spawn("the renewal of certificates", renewal);
    }
}

/// Takes memory back from streams and answers that do not use it, and finds readers that are stalled, for ever.
async fn tend_memory(sources: Arc<Sources>, answers: Arc<rpc::Answers>) {
    tokio::select! {
        () = sources.tend_memory() => {}
        () = sources.look_for_stalled() => {}
        () = answers.tend() => {}
    }
}

/// Puts down what comes in each minute, for ever.
async fn count_minutes(sources: Arc<Sources>, minutes: Arc<Minutes>) {
    loop {
        rpc::look_at_counters(&sources, &minutes);
        sleep(LOOK_INTERVAL).await;
    }
}

/// Spawns what reads files again when they change, and reviews subscriptions after each look.
fn spawn_watch(
    tasks: &mut Tasks,
    stops: &Stops,
    watched: Vec<Watched>,
    mut review: Review,
    recorder: &Recorder,
) -> Rereader {
    let (rereader, requests) = Rereader::new();
    let tick = move || review.tick();
    let watch = watch::watch(
        watched,
        tick,
        requests,
        recorder.clone(),
        stops.admin.clone(),
    );
    tasks.spawn("the watch of files", watch);
    rereader
}

/// Records what the broker starts with, since credentials may have changed while none ran, and warns of tenants that are not
/// isolated.
fn note_start(config: &Config, audit: &Arc<Audit>, credentials: &Credentials) {
    credentials::warn_of_tenants(config, credentials, &credentials.intruders());

    let mut entry = audit.entry("start");
    entry.note("version", env!("CARGO_PKG_VERSION"));
    entry.note("credentials", credentials.names());
    entry.end_now(OK);
}
