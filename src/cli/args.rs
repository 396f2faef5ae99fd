//! Arguments that several verbs share: filters, times, `key=value`, URLs. Pure: reads texts, opens
//! nothing.

use std::time::Duration;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use hyper::Uri;
use jiff::Timestamp;

use super::{output::Usage, user_info::without_user_text};
use crate::{
    event::{Cursor, Product, TaskId, TaskStatus},
    wire::{status_to_wire, v1},
};

/// A filter of events: AND between different flags, OR between repetitions of one flag.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct FilterArgs {
    /// Only events of this task; repeat it for more tasks.
    #[arg(long = "task", value_name = "TASK_ID", value_parser = TaskId::parse)]
    tasks: Vec<TaskId>,
    /// Only events of this product, for example veo; repeat it for more products.
    #[arg(long = "product", value_name = "PRODUCT", value_parser = Product::parse)]
    products: Vec<Product>,
    /// Only events with this status; repeat it for more. `unspecified`: the vendor's word is not known. `overdue`: the broker's own word
    /// for a late task.
    #[arg(long = "status", value_name = "STATUS", value_parser = status_parser())]
    statuses: Vec<TaskStatus>,
    /// Only events whose callback URL carried this label; repeat it for more: one of them is
    /// enough.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
}

impl FilterArgs {
    pub(super) fn to_wire(&self) -> anyhow::Result<v1::Filter> {
        let mut filter = v1::Filter {
            task_ids: self.tasks.iter().map(ToString::to_string).collect(),
            products: self.products.iter().map(ToString::to_string).collect(),
            statuses: self
                .statuses
                .iter()
                .map(|&status| status_to_wire(status).into())
                .collect(),
            ..v1::Filter::default()
        };

        for (key, value) in &self.labels {
            // The filter has a map: a second value would silently replace the first.
            if filter
                .labels
                .insert(key.clone(), value.clone())
                .is_some_and(|earlier| earlier != *value)
            {
                return Err(Usage(format!(
                    "--label {key}=… is given twice: a filter takes one value per key"
                ))
                .into());
            }
        }

        Ok(filter)
    }
}

fn status_parser() -> impl TypedValueParser<Value = TaskStatus> {
    PossibleValuesParser::new(TaskStatus::ALL.map(TaskStatus::as_str)).try_map(|word| {
        let status = TaskStatus::ALL
            .into_iter()
            .find(|status| status.as_str() == word);
        status.ok_or("not a status")
    })
}

/// Where `listen` starts: the value of `--from`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum From {
    /// At the head.
    Latest,
    /// With the oldest retained event.
    Earliest,
    /// With the first event received in this time before now.
    Ago(Duration),
    /// With the first event received at or after this time.
    At(Timestamp),
    /// After the event with this cursor.
    After(Cursor),
}

impl From {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "latest" => return Ok(Self::Latest),
            "earliest" => return Ok(Self::Earliest),
            // Only a cursor is that long, so a damaged one is reported as a cursor and not as a bad
            // duration.
            _ if text.len() == Cursor::TEXT_BYTES
                && text.bytes().all(|b| b.is_ascii_hexdigit()) =>
            {
                return Cursor::parse(text)
                    .map(Self::After)
                    .map_err(|error| error.to_string());
            }
            _ => {}
        }

        match Moment::parse(text) {
            Ok(Moment::Ago(ago)) => Ok(Self::Ago(ago)),
            Ok(Moment::At(time)) => Ok(Self::At(time)),
            Err(_) => {
                Err("neither latest, earliest, a duration (2h), a time (2026-01-31T12:00:00Z) nor a cursor".into())
            }
        }
    }

    pub(super) fn to_wire(&self, now: Timestamp) -> v1::subscribe_request::Start {
        use v1::{StartPosition, subscribe_request::Start};
        match self {
            Self::Latest => Start::Position(StartPosition::Latest.into()),
            Self::Earliest => Start::Position(StartPosition::Earliest.into()),
            Self::Ago(ago) => Start::Since(crate::wire::timestamp(Moment::Ago(*ago).resolve(now))),
            Self::At(time) => Start::Since(crate::wire::timestamp(*time)),
            Self::After(cursor) => Start::AfterCursor(cursor.to_string()),
        }
    }
}

/// A point in time, or a duration before now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Moment {
    Ago(Duration),
    At(Timestamp),
}

impl Moment {
    /// Reads `2h` or `2026-01-31T12:00:00Z`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(Self::Ago(ago));
        }
        let time = text.parse().map(Self::At);
        time.map_err(|_| {
            "neither a duration (2h, 30m) nor a time (2026-01-31T12:00:00Z)".to_owned()
        })
    }

    /// The point in time. A duration beyond the range of timestamps gives the earliest one.
    pub(super) fn resolve(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }
}

/// Reads `key=value`; the value may be empty and may contain further `=`.
pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not of the form key=value".to_owned()),
    }
}

/// Reads an `http://` or `https://` URL; `host:port` alone is read as `http://host:port`.
pub(super) fn http_url(text: &str) -> Result<Uri, String> {
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let uri: Uri = full
        .parse()
        .map_err(|error| format!("not a URL: {error}"))?;
    let has_scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    let authority = uri
        .authority()
        .filter(|authority| has_scheme && !authority.host().is_empty());
    let authority = authority.ok_or("not an http:// or https:// URL with a host")?;
    // The authority may be cut by a slash in a password, whose rest would be used as a path and
    // printed.
    if without_user_text(authority).1 != authority.host() && authority.port_u16().is_none() {
        return Err("not a URL: its port is invalid".into());
    }
    Ok(uri)
}

/// Reads a duration such as `10m`, `1h 30m` or `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it like 10m, 30s or 500ms"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Epoch, Sequence};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn from_reads_each_of_its_forms() {
        let cursor = Cursor {
            epoch: Epoch(7),
            sequence: Sequence(42),
        };
        assert_eq!(From::parse("latest"), Ok(From::Latest));
        assert_eq!(From::parse("earliest"), Ok(From::Earliest));
        assert_eq!(From::parse("2h"), Ok(From::Ago(Duration::from_secs(7200))));
        assert_eq!(From::parse("1970-01-01T00:00:00Z"), Ok(From::At(NOW)));
        assert_eq!(From::parse(&cursor.to_string()), Ok(From::After(cursor)));
    }

    #[test]
    fn from_refuses_a_damaged_cursor_and_anything_else() {
        assert!(From::parse(&format!("{:036}", 1)).is_err_and(|error| error.contains("cursor")));
        for text in ["", "soon", "2", "-2h", "0123abcd"] {
            assert!(From::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_counts_back_from_now() {
        use v1::subscribe_request::Start;
        let start = From::parse("90s").unwrap().to_wire(NOW);
        assert_eq!(
            start,
            Start::Since(prost_types::Timestamp {
                seconds: -90,
                nanos: 0
            })
        );
        assert_eq!(Moment::Ago(Duration::MAX).resolve(NOW), Timestamp::MIN);
    }

    #[test]
    fn key_value_splits_at_the_first_equals_sign() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(key_value("a="), Ok(("a".into(), String::new())));
        assert!(key_value("a").is_err() && key_value("=b").is_err());
    }

    #[test]
    fn a_filter_refuses_two_values_for_one_label() {
        let label = |value: &str| ("team".to_owned(), value.to_owned());
        let filter = |labels| {
            FilterArgs {
                labels,
                ..FilterArgs::default()
            }
            .to_wire()
        };
        assert!(filter(vec![label("ads"), label("ads")]).is_ok());
        assert!(
            filter(vec![label("ads"), label("film")])
                .unwrap_err()
                .is::<Usage>()
        );
    }

    #[test]
    fn only_http_and_https_urls_are_accepted() {
        assert_eq!(
            http_url("localhost:50051").unwrap().to_string(),
            "http://localhost:50051/"
        );
        assert_eq!(
            http_url("https://example.com").unwrap().to_string(),
            "https://example.com/"
        );
        assert_eq!(
            http_url("user:pw@[::1]:50051").unwrap().to_string(),
            "http://user:pw@[::1]:50051/"
        );
        for wrong in [
            "ftp://example.com",
            "http://",
            "",
            "http://a:b",
            "http://user:p/w@a",
            "http://user:pw@a:b/",
        ] {
            assert!(http_url(wrong).is_err(), "{wrong}");
        }
    }
}
