//! Whether the servers sync what they acknowledge: their monitoring ports say so, and nothing that a client gets does.

use std::{collections::BTreeSet, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    error::NatsError,
    settings::{Settings, Sync},
};
use crate::causes::causes;

/// It is asked at a start, for each server in turn.
const TIME: Duration = Duration::from_secs(5);
/// A page is some ten thousand bytes long.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Whether what the servers acknowledge is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synced {
    /// Every server has shown it.
    Shown,
    /// It was not looked at, or not every server has shown it.
    NotShown,
}

/// What is read of `/varz`.
#[derive(Debug, Deserialize)]
struct Varz {
    #[serde(default)]
    server_id: String,
    #[serde(default)]
    server_name: String,
    #[serde(default)]
    jetstream: JetStream,
}

#[derive(Debug, Default, Deserialize)]
struct JetStream {
    #[serde(default)]
    config: Option<Config>,
}

#[derive(Debug, Deserialize)]
struct Config {
    /// Left out if it is false.
    #[serde(default)]
    sync_always: bool,
}

/// Asks each server, and insists or warns as configured.
pub(super) async fn check(settings: &Settings) -> Result<Synced, NatsError> {
    if settings.sync == Sync::Off {
        return Ok(Synced::NotShown);
    }
    match (shown(settings).await, settings.sync) {
        (Ok(()), _) => Ok(Synced::Shown),
        (Err(error), Sync::Require) => Err(error),
        (Err(error), _) => {
            tracing::warn!("{error}");
            Ok(Synced::NotShown)
        }
    }
}

async fn shown(settings: &Settings) -> Result<(), NatsError> {
    let mut servers = BTreeSet::new();
    for url in &settings.monitoring_urls {
        let varz = varz(url).await.map_err(|problem| NatsError::Unmonitored {
            url: url.clone(),
            problem,
        })?;
        let config = varz.jetstream.config;
        let config = config.ok_or_else(|| {
            NatsError::NoJetStream(format!("server {} at {url}", varz.server_name))
        })?;
        if !config.sync_always {
            return Err(NatsError::NotSynced { url: url.clone() });
        }
        servers.insert(varz.server_id);
    }
    // Any server may come to hold a copy, but no fewer than these do.
    if servers.len() < settings.replicas {
        return Err(NatsError::SyncUnknown(format!(
            "cluster.monitoring_urls names {} of the servers, and {} have a copy of the stream",
            servers.len(),
            settings.replicas
        )));
    }
    Ok(())
}

async fn varz(url: &str) -> Result<Varz, String> {
    let uri = format!("{}/varz", url.trim_end_matches('/'));
    let uri: Uri = uri.parse().map_err(|_| "it is no URL".to_owned())?;
    let connector = HttpsConnectorBuilder::new().with_native_roots();
    let connector = connector.map_err(|error| causes(&error))?;
    let connector = connector.https_or_http().enable_http1();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    let client: Client<_, Empty<&[u8]>> = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector.wrap_connector(tcp));

    let exchange = async {
        let request = Request::get(uri).body(Empty::new());
        let request = request.map_err(|error| causes(&error))?;
        let response = client.request(request).await;
        let response = response.map_err(|error| causes(&error))?;
        if !response.status().is_success() {
            return Err(format!("it answers {}", response.status()));
        }
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect();
        let body = body.await.map_err(|error| causes(&*error))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| format!("it answers no /varz: {error}"))
    };
    let answer = timeout(TIME, exchange).await;
    answer.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}
