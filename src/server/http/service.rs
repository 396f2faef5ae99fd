//! What the connections of a listener are served with, and what is counted of them.

use std::pin::Pin;

use prometheus::IntCounterVec;
use tokio_io_timeout::TimeoutStream;

use super::limits::Limits;
use crate::{
    metrics::Metrics,
    server::net::{self, Floods, Stream, TurnedAway},
};

/// A connection whose client has to take some of an answer now and then.
pub(super) type Timed = Pin<Box<TimeoutStream<Stream>>>;

/// What one listener counts.
#[derive(Clone)]
pub(in crate::server) struct Counters {
    pub(super) connections: net::Counters,
    /// Requests that ended before their headers were complete, by outcome; of the ingest listener only.
    callbacks: Option<IntCounterVec>,
}

impl Counters {
    pub(in crate::server) fn of(listener: &'static str, metrics: &Metrics) -> Self {
        Self {
            connections: net::Counters::of(listener, metrics),
            callbacks: None,
        }
    }

    /// Of a listener that counts its connections itself.
    pub(super) fn without_callbacks(connections: &net::Counters) -> Self {
        Self {
            connections: connections.clone(),
            callbacks: None,
        }
    }

    pub(in crate::server) fn of_ingest(metrics: &Metrics) -> Self {
        Self {
            callbacks: Some(metrics.callbacks.clone()),
            ..Self::of("ingest", metrics)
        }
    }
}

/// What one connection is served with.
pub(super) struct Service<R> {
    pub responder: R,
    pub limits: Limits,
    pub callbacks: Option<IntCounterVec>,
    pub floods: Floods,
    pub turned_away: TurnedAway,
}

impl<R: Clone> Service<R> {
    pub(super) fn new(responder: &R, limits: Limits, counters: &Counters) -> Self {
        Self {
            responder: responder.clone(),
            limits,
            callbacks: counters.callbacks.clone(),
            floods: counters.connections.floods.clone(),
            turned_away: counters.connections.turned_away.clone(),
        }
    }
}
