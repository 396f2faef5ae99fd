//! `overview`: the state of a broker on one page.

use std::process::ExitCode;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    EXIT_OTHER,
    client::GrpcArgs,
    cluster,
    output::{self, Format},
    render::{instant, time_json},
    subscription_text::{self, client_text},
};
use crate::{sizing::bytes_text, wire::v1};

/// Shows the state of a broker on one page: whether it is ready, what comes in, and what needs a look.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast overview
  blobcast overview --output json | jq '.history.refusals | add'

Exit codes: 0 the broker is ready; 1 it is not, or an error; 2 usage.")]
pub(super) struct OverviewArgs {
    /// How to print it: lines, or a JSON object, which has each minute of the last day.
    #[arg(long, value_name = "FORMAT", default_value = "pretty")]
    output: Format,
    #[command(flatten)]
    grpc: GrpcArgs,
}

pub(super) async fn run(args: OverviewArgs) -> anyhow::Result<ExitCode> {
    let request = v1::GetOverviewRequest {};
    let answer = args.grpc.admin()?.get_overview(request).await;
    let overview = answer
        .map_err(|status| args.grpc.error(&status))?
        .into_inner();

    match args.output {
        Format::Json => output::emit_json(&as_json(&overview))?,
        Format::Pretty => lines(&overview)
            .into_iter()
            .try_for_each(|(what, text)| output::emit_line(&format!("{what:15}{text}")))?,
    }
    Ok(if overview.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_OTHER)
    })
}

fn lines(overview: &v1::GetOverviewResponse) -> Vec<(&'static str, String)> {
    let now = overview.time.and_then(instant).unwrap_or_default();
    let history = overview.history.clone().unwrap_or_default();
    let ready = if overview.ready {
        "yes".to_owned()
    } else {
        format!("no: {}", overview.problem)
    };
    let mut lines = vec![
        ("ready", ready),
        ("version", overview.version.clone()),
        ("callbacks", sums(&history.callbacks)),
        ("refusals", sums(&history.refusals)),
        ("events", events(overview, now)),
        ("quarantine", overview.quarantine_count.to_string()),
        ("disk", disk(overview)),
        ("backup", backup(overview, now)),
    ];
    let certificates = overview.certificates.iter();
    lines.extend(certificates.map(|it| ("certificate", certificate(it, now))));
    lines.push(("subscriptions", overview.subscription_count.to_string()));
    let laggards = overview.laggards.iter();
    lines.extend(laggards.map(|it| ("", format!("{} is {} behind", client_text(it), it.lag))));
    lines.push((
        "expectations",
        format!(
            "{}, {} overdue",
            overview.expectation_count, overview.overdue_count
        ),
    ));
    let nodes = overview.cluster.iter().flat_map(|cluster| &cluster.nodes);
    lines.extend(nodes.map(|node| ("node", node_text(node))));
    lines
}

/// The last two minutes, of which the second is not over, hour and day.
fn sums(minutes: &[u64]) -> String {
    let sum = |count: usize| -> u64 { minutes.iter().rev().take(count).sum() };
    format!(
        "{} in the last 2 minutes, {} in the last hour, {} in the last day",
        sum(2),
        sum(60),
        sum(1_440)
    )
}

fn events(overview: &v1::GetOverviewResponse, now: Timestamp) -> String {
    let count = overview.event_count;
    let bytes = bytes_text(overview.event_bytes);
    let oldest = overview.oldest_event_at.and_then(instant);
    let oldest = oldest.map(|at| format!(", the oldest of {} ago", ago(at, now)));
    format!("{count}, {bytes}{}", oldest.unwrap_or_default())
}

fn disk(overview: &v1::GetOverviewResponse) -> String {
    match (overview.disk_free_bytes, overview.disk_total_bytes) {
        (Some(free), Some(total)) if total > 0 => {
            let percent = u128::from(free) * 100 / u128::from(total);
            format!(
                "{} of {} free, {percent} %",
                bytes_text(free),
                bytes_text(total)
            )
        }
        _ => "does not answer".to_owned(),
    }
}

fn backup(overview: &v1::GetOverviewResponse, now: Timestamp) -> String {
    let last = overview.last_backup_at.and_then(instant);
    let failed = overview.last_backup_failed_at.and_then(instant);
    let whole = last.map_or_else(|| "none".to_owned(), |at| format!("{} ago", ago(at, now)));
    match failed {
        Some(at) if last.is_none_or(|last| last < at) => {
            format!("{whole}; the last one failed {} ago", ago(at, now))
        }
        _ => whole,
    }
}

fn certificate(certificate: &v1::CertificateExpiry, now: Timestamp) -> String {
    let listener = &certificate.listener;
    match certificate.expires_at.and_then(instant) {
        Some(at) if at > now => {
            let days = at.duration_since(now).as_hours() / 24;
            format!("{listener}, good for {days} days")
        }
        _ => format!("{listener}, expired"),
    }
}

fn node_text(node: &v1::ClusterNode) -> String {
    let ready = match node.ready {
        Some(true) => "ready",
        Some(false) => "not ready",
        None => "?",
    };
    format!("{}, {ready}, {} behind", node.name, node.stream_lag)
}

/// `40s`, `12m`, `5h`, `3d`.
fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).max(SignedDuration::ZERO).as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn as_json(overview: &v1::GetOverviewResponse) -> Value {
    let history = overview.history.clone().unwrap_or_default();
    let certificates: Vec<_> = overview
        .certificates
        .iter()
        .map(|it| json!({"listener": it.listener, "expires_at": time_json(it.expires_at)}))
        .collect();
    let laggards: Vec<_> = overview
        .laggards
        .iter()
        .map(subscription_text::as_json)
        .collect();
    json!({
        "version": overview.version,
        "time": time_json(overview.time),
        "ready": overview.ready,
        "problem": overview.problem,
        "history": {
            "began_at": time_json(history.began_at),
            "callbacks": history.callbacks,
            "refusals": history.refusals,
        },
        "head": overview.head,
        "first_available": overview.first_available,
        "oldest_event_at": time_json(overview.oldest_event_at),
        "event_count": overview.event_count,
        "event_bytes": overview.event_bytes,
        "quarantine_count": overview.quarantine_count,
        "disk_free_bytes": overview.disk_free_bytes,
        "disk_total_bytes": overview.disk_total_bytes,
        "certificates": certificates,
        "last_backup_at": time_json(overview.last_backup_at),
        "last_backup_failed_at": time_json(overview.last_backup_failed_at),
        "subscription_count": overview.subscription_count,
        "laggards": laggards,
        "expectation_count": overview.expectation_count,
        "overdue_count": overview.overdue_count,
        "cluster": overview.cluster.as_ref().map(cluster::status_json),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_of_the_last_minutes_hour_and_day() {
        let mut minutes = vec![1; 1_440];
        minutes[1_439] = 5;
        minutes[1_438] = 7;
        assert_eq!(
            sums(&minutes),
            "12 in the last 2 minutes, 70 in the last hour, 1450 in the last day"
        );
        assert_eq!(
            sums(&[]),
            "0 in the last 2 minutes, 0 in the last hour, 0 in the last day"
        );
    }

    #[test]
    fn an_age_has_one_unit() {
        for (seconds, shown) in [
            (5, "5s"),
            (300, "5m"),
            (7_300, "2h"),
            (260_000, "3d"),
            (-9, "0s"),
        ] {
            let at = Timestamp::from_second(1_000_000 - seconds).unwrap();
            assert_eq!(ago(at, Timestamp::from_second(1_000_000).unwrap()), shown);
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let overview = v1::GetOverviewResponse {
            time: time(1_000_000),
            problem: "the disk is full".into(),
            last_backup_failed_at: time(999_900),
            certificates: vec![v1::CertificateExpiry {
                listener: "grpc".into(),
                expires_at: time(1_000_000 + 86_400 * 3 + 5),
            }],
            ..v1::GetOverviewResponse::default()
        };
        let lines = lines(&overview);
        for line in [
            ("ready", "no: the disk is full"),
            ("disk", "does not answer"),
            ("backup", "none; the last one failed 100s ago"),
            ("certificate", "grpc, good for 3 days"),
            ("expectations", "0, 0 overdue"),
        ] {
            assert!(
                lines.contains(&(line.0, line.1.to_owned())),
                "{line:?}: {lines:?}"
            );
        }
    }
}
