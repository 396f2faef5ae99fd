//! The health service: tonic's, but for watches of names that it does not know, which the protocol wants to be told so and kept
//! until the name is known.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio_stream::Stream;
use tonic::{Request, Response, Status};
use tonic_health::{
    pb::{
        HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
        health_server::Health as Service,
    },
    server::{HealthReporter, HealthService, WatchStream},
};

use super::HEALTH_NAMES;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Health(HealthService);

impl Health {
    /// What `reporter` reports.
    pub(super) fn of(reporter: &HealthReporter) -> Self {
        Self(HealthService::from_health_reporter(reporter.clone()))
    }
}

#[tonic::async_trait]
impl Service for Health {
    type WatchStream = Watched;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Watched>, Status> {
        let is_known = HEALTH_NAMES.contains(&request.get_ref().service.as_str());
        // No name is added while the broker runs, so a watch of an unknown one waits for the end: that of the whole server's.
        let request = if is_known {
            request
        } else {
            Request::new(HealthCheckRequest::default())
        };
        let of = self.0.watch(request).await?.into_inner();
        Ok(Response::new(Watched {
            of,
            is_known,
            is_told: false,
        }))
    }
}

/// The statuses of one name.
#[derive(Debug)]
pub(super) struct Watched {
    of: WatchStream,
    is_known: bool,
    is_told: bool,
}

impl Stream for Watched {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_known {
            return Pin::new(&mut self.of).poll_next(cx);
        }
        if !std::mem::replace(&mut self.is_told, true) {
            return Poll::Ready(Some(Ok(HealthCheckResponse {
                status: ServingStatus::ServiceUnknown.into(),
            })));
        }
        while ready!(Pin::new(&mut self.of).poll_next(cx)).is_some() {}
        Poll::Ready(None)
    }
}
