//! `GetLogInfo`: the log, and the cluster whose log it is. Reads what is in memory. It waits only for the place of a cursor that another
//! node of a cluster has given out.

use std::sync::Arc;

use tonic::Status;

use super::{Context, access::Caller, errors, fields};
use crate::{
    event::{Cursor, Sequence},
    journal::jetstream::{ClusterState, OtherNode},
    wire::{duration, v1},
};

/// The cluster that this broker is a node of.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// Its name.
    pub name: String,
    /// This node's part in it.
    pub state: Arc<ClusterState>,
}

pub(super) async fn describe(
    context: &Context,
    caller: &Caller,
    request: &v1::GetLogInfoRequest,
) -> Result<v1::GetLogInfoResponse, Status> {
    let store = &context.sources.store;
    let after = place(context, &request.after_cursor).await?;
    let head = store.head();
    let summary = store.summary();
    let first_available = context
        .sources
        .first_available()
        .map(|place| store.cursor(place).to_string());
    let cluster = context.cluster.as_ref();

    Ok(v1::GetLogInfoResponse {
        epoch: store.epoch().to_string(),
        first_available: first_available.unwrap_or_default(),
        head: store.cursor(head).to_string(),
        event_count: summary.event_count,
        event_bytes: summary.event_bytes,
        quarantine_count: summary.quarantine_count,
        retention_age_max: Some(duration(context.retention().event_age_max)),
        retention_bytes_max: context.retention().event_bytes_max,
        cluster: cluster.map(|cluster| describe_cluster(context, cluster, caller)),
        events_after: after.map(|place| head.0.saturating_sub(place.0)),
    })
}

/// The place of a cursor; `None` if none was sent.
async fn place(context: &Context, cursor: &str) -> Result<Option<Sequence>, Status> {
    let Some(cursor) = fields::optional("after_cursor", cursor, Cursor::parse)? else {
        return Ok(None);
    };
    let place = context.sources.place(cursor).await;
    place
        .map(Some)
        .map_err(|error| errors::open(&context.sources, &error))
}

/// Names, versions and problems of machines are for administrators.
pub(super) fn describe_cluster(
    context: &Context,
    cluster: &Cluster,
    caller: &Caller,
) -> v1::ClusterInfo {
    let (store, state) = (&context.sources.store, &cluster.state);
    let is_admin = caller.require_admin().is_ok();
    let overview = state.overview();
    let problem = state.problem_of_callbacks(&store.health());
    let is_ready = problem.is_none();

    let mut nodes = Vec::new();
    if is_admin {
        nodes.push(v1::ClusterNode {
            name: state.node().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            place: Some(store.head().0),
            stream_lag: overview.behind,
            ready: Some(is_ready),
            mismatches: Vec::new(),
            away_for: None,
        });
        nodes.extend(state.others().into_iter().map(describe_other));
    }

    v1::ClusterInfo {
        name: cluster.name.clone(),
        node: state.node().to_owned(),
        writer: overview.writer.unwrap_or_default(),
        nodes,
        stream_lag: overview.behind,
        ready: is_ready,
        problem: problem.filter(|_| is_admin).unwrap_or_default(),
        hole: state.is_stopped(),
        stream_bytes: overview.stream_bytes,
        stream_bytes_max: overview.stream_bytes_max,
    }
}

fn describe_other(other: OtherNode) -> v1::ClusterNode {
    v1::ClusterNode {
        name: other.name,
        version: other.version,
        place: other.place,
        stream_lag: other.behind,
        ready: other.is_ready,
        mismatches: other.mismatches,
        away_for: other.away.map(duration),
    }
}
