//! The health service: tonic's, but for watches of unknown names. By the protocol these get `SERVICE_UNKNOWN`, and stay open until the
//! name is known.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tonic_health::{
    ServingStatus,
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_check_response::ServingStatus as WireStatus, health_server::Health as Service,
    },
    server::{HealthReporter, HealthService, WatchStream},
};

use crate::wire::service::{
    admin_service_server::SERVICE_NAME as ADMIN, event_service_server::SERVICE_NAME as EVENTS,
};

/// Names whose health can be asked; the empty one is the whole server.
const NAMES: [&str; 3] = ["", EVENTS, ADMIN];

/// Reports the same health for every name.
pub(in crate::server) async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for name in NAMES {
        health.set_service_status(name, status).await;
    }
}

/// Ends all `Watch` streams, which would hold up a graceful shutdown for ever.
pub(in crate::server) async fn end_health_watches(health: &mut HealthReporter) {
    for name in NAMES {
        health.clear_service_status(name).await;
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Health(HealthService);

impl Health {
    /// Shows what `reporter` reports.
    pub(super) fn of(reporter: &HealthReporter) -> Self {
        Self(HealthService::from_health_reporter(reporter.clone()))
    }
}

#[tonic::async_trait]
impl Service for Health {
    type WatchStream = Statuses;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Statuses>, Status> {
        let is_known = NAMES.contains(&request.get_ref().service.as_str());
        // No name is added while the broker runs, so a watch of an unknown one waits for the end: that of the whole server's.
        let request = if is_known {
            request
        } else {
            Request::new(HealthCheckRequest::default())
        };
        let of = self.0.watch(request).await?.into_inner();
        Ok(Response::new(Statuses {
            of,
            is_known,
            is_told: false,
        }))
    }
}

/// The statuses of one name.
#[derive(Debug)]
pub(super) struct Statuses {
    of: WatchStream,
    is_known: bool,
    /// The client was sent that the name is unknown.
    is_told: bool,
}

impl Stream for Statuses {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_known {
            return Pin::new(&mut self.of).poll_next(cx);
        }
        if !std::mem::replace(&mut self.is_told, true) {
            return Poll::Ready(Some(Ok(HealthCheckResponse {
                status: WireStatus::ServiceUnknown.into(),
            })));
        }

        while ready!(Pin::new(&mut self.of).poll_next(cx)).is_some() {}
        Poll::Ready(None)
    }
}
