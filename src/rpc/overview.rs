//! The state of the broker on one page: what administrators look at first.

use jiff::Timestamp;

use super::{Context, access::Caller, log_info, subscriptions::open_on_wire};
use crate::{
    audit::Entry,
    minutes::{Counts, MINUTES, Minutes},
    subscription::{Sources, Wanted},
    wire::{timestamp, v1},
};

/// Streams that are named because they are most behind.
const LAGGARDS: usize = 10;

/// Puts down what has come since the last look.
pub(crate) fn look_at_counters(sources: &Sources, minutes: &Minutes) {
    let (kept, refused) = sources.metrics.callback_totals();
    let now = sources.store.clock().now();
    minutes.look(minute_of(now), Counts { kept, refused });
}

fn minute_of(time: Timestamp) -> i64 {
    time.as_second().div_euclid(60)
}

/// What has to be asked of the disk.
struct OnDisk {
    /// When the oldest event was received.
    oldest: Option<Timestamp>,
    free_and_total: Option<(u64, u64)>,
}

/// What one page shows.
pub(super) async fn describe(
    context: &Context,
    caller: &Caller,
    entry: &mut Entry,
) -> v1::GetOverviewResponse {
    let (sources, everybody) = (&context.sources, Wanted::default());
    let (problem, disk, laggards) = tokio::join!(
        context.readiness.problem(),
        context.readiness.read_in_time(look_at_disk),
        sources
            .registry
            .most_behind(&sources.hub, None, LAGGARDS, &everybody),
    );
    let disk = disk.unwrap_or(OnDisk {
        oldest: None,
        free_and_total: None,
    });
    entry.note("ready", problem.is_none());

    let store = &sources.store;
    let (summary, expectations) = (store.summary(), store.expectation_counts());
    let (taken, failed_at) = store.backup_results().last();
    let first_available = sources.first_available().map(|place| store.cursor(place));
    let history = history(context);
    let laggards = laggards
        .into_iter()
        .map(|listed| open_on_wire(context, listed))
        .filter(|listed| listed.lag > 0);
    let (disk_free_bytes, disk_total_bytes) = disk.free_and_total.unzip();

    v1::GetOverviewResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: Some(timestamp(store.clock().now())),
        ready: problem.is_none(),
        problem: problem.unwrap_or_default(),
        history: Some(history),
        head: store.cursor(store.head()).to_string(),
        first_available: first_available
            .map(|cursor| cursor.to_string())
            .unwrap_or_default(),
        oldest_event_at: disk.oldest.map(timestamp),
        event_count: summary.event_count,
        event_bytes: summary.event_bytes,
        quarantine_count: summary.quarantine_count,
        disk_free_bytes,
        disk_total_bytes,
        certificates: certificates(context),
        last_backup_at: seconds(taken.at),
        last_backup_failed_at: seconds(failed_at),
        subscription_count: sources.registry.len() as u64,
        laggards: laggards.collect(),
        expectation_count: expectations.open as u64,
        overdue_count: expectations.overdue as u64,
        cluster: context
            .cluster
            .as_ref()
            .map(|cluster| log_info::describe_cluster(context, cluster, caller)),
    }
}

fn look_at_disk(sources: &Sources) -> OnDisk {
    let store = &sources.store;
    let oldest = (store.summary().event_count > 0)
        .then(|| store.get(store.first_available()).ok().flatten())
        .flatten();
    OnDisk {
        oldest: oldest
            .and_then(|record| Timestamp::from_microsecond(record.received_at_micros()).ok()),
        free_and_total: store.disk_bytes().ok(),
    }
}

fn history(context: &Context) -> v1::History {
    look_at_counters(&context.sources, &context.minutes);
    let minute = minute_of(context.sources.store.clock().now());
    let day = context.minutes.day(minute);
    let began = (minute + 1)
        .saturating_sub(MINUTES as i64)
        .saturating_mul(60);
    v1::History {
        began_at: seconds(began),
        callbacks: day.iter().map(|counts| counts.kept).collect(),
        refusals: day.iter().map(|counts| counts.refused).collect(),
    }
}

fn certificates(context: &Context) -> Vec<v1::CertificateExpiry> {
    let expiries = context.sources.metrics.certificate_expiries();
    expiries
        .into_iter()
        .map(|(listener, expires)| v1::CertificateExpiry {
            listener,
            expires_at: seconds(expires),
        })
        .collect()
}

/// `None` for 0, by which metrics say that there is none.
fn seconds(at: i64) -> Option<prost_types::Timestamp> {
    let time = Timestamp::from_second(at).ok().filter(|_| at > 0)?;
    Some(timestamp(time))
}
