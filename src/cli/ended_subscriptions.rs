//! `subscriptions --ended`: lists the last streams that ended, and why.

use std::process::ExitCode;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tonic::Status;

use super::{
    brokers::{Broker, complete, stop_if_only},
    client::GrpcArgs,
    output::{self, Format, note},
    render::{clock, instant, time_json},
    subscription_text::{self, client_text, filter_text},
};
use crate::wire::v1;

/// What the command line asks for.
pub(super) struct Asked<'a> {
    pub(super) grpc: &'a GrpcArgs,
    /// Only streams of this client, if it is not empty.
    pub(super) client: &'a str,
    /// Most streams of each broker.
    pub(super) limit: usize,
    pub(super) output: Format,
}

pub(super) async fn list(args: &Asked<'_>, brokers: &mut [Broker]) -> anyhow::Result<ExitCode> {
    let (mut listed, mut away) = (Vec::new(), Vec::new());
    for broker in brokers {
        match of_broker(args, broker).await {
            Ok(ended) => listed.extend(ended),
            Err(status) => {
                away.push(broker.refusal(status));
                stop_if_only(args.grpc, &away)?;
            }
        }
    }

    let now = Timestamp::now();
    match args.output {
        Format::Json => listed
            .iter()
            .try_for_each(|ended| output::emit_json(&as_json(ended)))?,
        Format::Pretty if listed.is_empty() && away.is_empty() => {
            note("no subscription has ended since the broker started");
        }
        Format::Pretty if listed.is_empty() => {}
        Format::Pretty => {
            let rows: Vec<_> = listed.iter().map(|ended| row(ended, now)).collect();
            let header = [
                "ID",
                "ENDED",
                "CAUSE",
                "CLIENT",
                "FOR",
                "DELIVERED",
                "LAG",
                "CURSOR",
                "FILTER",
            ];
            output::emit_table(header, &rows)?;
        }
    }
    complete(args.grpc, &away)?;
    Ok(ExitCode::SUCCESS)
}

async fn of_broker(
    args: &Asked<'_>,
    broker: &mut Broker,
) -> Result<Vec<v1::EndedSubscription>, Status> {
    let mut listed = Vec::new();
    let mut request = v1::ListEndedSubscriptionsRequest {
        client: args.client.to_owned(),
        ..v1::ListEndedSubscriptionsRequest::default()
    };
    loop {
        let page = broker.client.list_ended_subscriptions(request.clone());
        let page = page.await?.into_inner();
        listed.extend(page.subscriptions);
        if listed.len() >= args.limit || page.next_page_token.is_empty() {
            listed.truncate(args.limit);
            return Ok(listed);
        }
        request.page_token = page.next_page_token;
    }
}

fn row(ended: &v1::EndedSubscription, now: Timestamp) -> [String; 9] {
    let last = ended.subscription.clone().unwrap_or_default();
    let ended_at = ended.ended_at.and_then(instant);
    let filter = filter_text(&last);
    [
        last.subscription_id.clone(),
        ended_at.map_or_else(|| "-".to_owned(), |time| clock(time, now)),
        ended.cause.clone(),
        client_text(&last),
        open_for(ended).map_or_else(|| "-".to_owned(), span),
        last.delivered_count.to_string(),
        last.lag.to_string(),
        last.cursor,
        if ended.filter_cut {
            format!("{filter} …")
        } else {
            filter
        },
    ]
}

fn open_for(ended: &v1::EndedSubscription) -> Option<SignedDuration> {
    let opened = ended.subscription.as_ref()?.opened_at?;
    Some(instant(ended.ended_at?)?.duration_since(instant(opened)?))
}

/// `3.2s`, `2m5s`, `7h10m`, `4d3h`.
fn span(length: SignedDuration) -> String {
    let seconds = length.as_secs().max(0);
    match seconds {
        0..60 => format!("{:.1}s", length.as_secs_f64().max(0.0)),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// The stream as in the list of open ones, and how it ended.
fn as_json(ended: &v1::EndedSubscription) -> Value {
    let last = ended.subscription.clone().unwrap_or_default();
    let mut json = subscription_text::as_json(&last);
    json["ended_at"] = json!(time_json(ended.ended_at));
    json["open_seconds"] = json!(open_for(ended).map(|length| length.as_secs_f64()));
    json["cause"] = json!(ended.cause);
    json["filter_cut"] = json!(ended.filter_cut);
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_has_its_two_largest_units() {
        for (seconds, shown) in [
            (3, "3.0s"),
            (125, "2m5s"),
            (25_800, "7h10m"),
            (356_400, "4d3h"),
            (-1, "0.0s"),
        ] {
            assert_eq!(span(SignedDuration::from_secs(seconds)), shown);
        }
    }
}
