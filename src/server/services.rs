//! The services of the three listeners, made of the store, the credentials and the configuration.

use std::sync::Arc;

use axum::Router;
use http_body_util::{BodyExt, Collected};
use hyper::Response;
use parking_lot::Mutex;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use super::{
    addresses::{Addresses, is_loopback},
    banner,
    console::{self, Console},
    credentials, grpc,
    http::Responder,
    liveness::Liveness,
    numbers::usize_of,
    operations,
    runtimes::Homes,
};
use crate::{
    audit::Audit,
    config::{Config, Settings},
    credentials::SharedCredentials,
    ingest::{self, Ingest},
    journal::{Journal, jetstream::ClusterState},
    metrics::Metrics,
    minutes::Minutes,
    reconcile::Reconciler,
    rpc,
    sampler::Sampler,
    store::Retention,
    subscription::Sources,
    trace::Tracer,
    wire::FilterLimits,
};

/// What the services work on.
pub(super) struct Core<'a> {
    pub config: &'a Config,
    pub addresses: Addresses,
    pub credentials: &'a Arc<SharedCredentials>,
    pub sources: &'a Arc<Sources>,
    pub journal: &'a Arc<dyn Journal>,
    /// Of a node of a cluster.
    pub cluster: Option<&'a Arc<ClusterState>>,
    pub retention: &'a Arc<Mutex<Retention>>,
    pub settings: &'a Arc<Mutex<Settings>>,
    pub audit: &'a Arc<Audit>,
    /// What asks the vendor, if anything does.
    pub reconciler: Option<&'a Arc<Reconciler>>,
}

/// The services, ready to be served.
pub(super) struct Services {
    /// Takes callbacks.
    pub ingest: Arc<Ingest>,
    /// Decides which calls are let in.
    pub gate: rpc::Gate,
    /// Answers that clients have not taken yet.
    pub answers: Arc<rpc::Answers>,
    /// The gRPC services.
    pub routes: Routes,
    /// The console's.
    pub console: Router,
    /// Reports the gRPC services' health.
    pub health: HealthReporter,
    /// What the admin listener shows.
    pub status: Arc<operations::Status>,
    /// Whether every serving thread runs.
    pub liveness: Arc<Liveness>,
    /// What came in each minute.
    pub minutes: Arc<Minutes>,
}

impl Services {
    /// Makes all services. `homes` are the threads that callbacks' connections live on.
    pub(super) async fn new(core: &Core<'_>, tracer: Tracer, homes: &Homes) -> Self {
        let ingest = core.ingest(tracer.clone());

        let gate = core.gate();
        let minutes = Arc::new(Minutes::default());
        let readiness = rpc::Readiness::new(core.sources, core.journal, core.cluster);
        let readiness = Arc::new(readiness);
        let context = core.rpc_context(&gate, &ingest, &minutes, &readiness);
        let answers = Arc::clone(&context.answers);
        let port = core.addresses.grpc.port();
        let (health, routes, door) = grpc::services(context, core.config, port, tracer).await;

        let console = Console::new(gate.clone(), door, core.console_settings());
        let liveness = Arc::new(Liveness::new(homes));
        let cluster = core.cluster.cloned();
        let status = operations::Status::new(core.sources, &answers, readiness, cluster, &liveness);
        Self {
            ingest,
            gate,
            answers,
            routes,
            console: console::routes(console),
            health,
            status: Arc::new(status),
            liveness,
            minutes,
        }
    }
}

impl Core<'_> {
    /// What the ingest listener asks.
    fn ingest(&self, tracer: Tracer) -> Arc<Ingest> {
        Ingest::new(
            Arc::clone(self.journal),
            Arc::clone(self.sources.store.clock()),
            ingest_limits(self.config),
            credentials::rules(self.config, Arc::clone(self.credentials)),
            Arc::clone(&self.sources.metrics),
            tracer,
        )
    }

    fn console_settings(&self) -> console::Settings {
        let (config, addresses) = (self.config, &self.addresses);
        console::Settings {
            may_be_open: is_loopback(addresses.admin) || config.grpc.allow_anonymous,
            port: addresses.admin.port(),
            node: self
                .cluster
                .map_or_else(String::new, |state| format!("_{}", state.node())),
            has_tls: config.admin.tls_certificate_file.is_some(),
            media: config.console.media,
            media_hosts: config.console.media_hosts.clone(),
            shown: banner::shown(config, addresses, &self.credentials.get()),
        }
    }

    fn gate(&self) -> rpc::Gate {
        rpc::Gate {
            credentials: Arc::clone(self.credentials),
            allow_anonymous: self.config.grpc.allow_anonymous,
            is_loopback: is_loopback(self.addresses.grpc),
            clock: Arc::clone(self.sources.store.clock()),
            metrics: Arc::clone(&self.sources.metrics),
        }
    }

    fn rpc_context(
        &self,
        gate: &rpc::Gate,
        ingest: &Arc<Ingest>,
        minutes: &Arc<Minutes>,
        readiness: &Arc<rpc::Readiness>,
    ) -> rpc::Context {
        let grpc = &self.config.grpc;
        rpc::Context {
            sources: Arc::clone(self.sources),
            journal: Arc::clone(self.journal),
            audit: Arc::clone(self.audit),
            readiness: Arc::clone(readiness),
            minutes: Arc::clone(minutes),
            refused: ingest.refused(),
            repetitions: ingest.repetitions(),
            gate: gate.clone(),
            take_callback: test_callbacks(ingest),
            callback_base: banner::callback_base(self.config, &self.addresses),
            filter_limits: FilterLimits {
                task_ids_max: usize_of(grpc.task_ids_max),
                products_max: usize_of(grpc.products_max),
            },
            answers: rpc::Answers::new(
                usize_of(grpc.answers_bytes_max),
                grpc.stall_timeout,
                &self.sources.memory.transit,
                &self.sources.metrics,
            ),
            reconciler: self.reconciler.cloned(),
            expectation_pace: Arc::default(),
            retention: Arc::clone(self.retention),
            settings: Arc::clone(self.settings),
            cluster: self.cluster.map(|state| rpc::Cluster {
                name: self.config.cluster.name.clone(),
                state: Arc::clone(state),
            }),
        }
    }
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

/// Answers callbacks.
pub(super) fn callbacks(ingest: &Arc<Ingest>) -> impl Responder + use<> {
    let ingest = Arc::clone(ingest);
    move |peer, request| Box::pin(Arc::clone(&ingest).answer(peer, request))
}

/// Answers callbacks that administrators have made, as callbacks are answered.
fn test_callbacks(ingest: &Arc<Ingest>) -> rpc::TakeCallback {
    let ingest = Arc::clone(ingest);
    Arc::new(move |caller, target, body| {
        let ingest = Arc::clone(&ingest);
        Box::pin(async move {
            let answer = ingest.answer_test(caller, target, body).await;
            let (head, body) = answer.into_parts();
            // It is in memory.
            let body = body.collect().await.map(Collected::to_bytes);
            Response::from_parts(head, body.unwrap_or_default())
        })
    })
}

/// The names by which the admin listener may be asked.
pub(super) fn admin_door(
    config: &Config,
    addresses: &Addresses,
    metrics: &Metrics,
) -> operations::Door {
    operations::Door {
        port: addresses.admin.port(),
        hosts: config.admin.hosts.clone(),
        refused: metrics.admin_refused.clone(),
        log: Sampler::every(operations::COMPLAINT),
    }
}
