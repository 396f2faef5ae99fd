//! Reads the texts of values: durations, addresses, URLs, networks, paths, tables of products. Pure;
//! knows no key and no limit.
//!
//! A text that cannot be read is an error that shows the expected form, and never a secret in a
//! URL.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use tracing_subscriber::EnvFilter;

use super::urls::{api_path, http_url, nats_url, uri_with_port, without_secrets};
use crate::{
    event::{Product, ProductError},
    size::{SizeError, parse_size},
};

/// Units of time in nanoseconds, largest first.
const TIME_UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A text that cannot be read as a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error("{0:?} is not a duration: {1}")]
    Duration(String, String),
    #[error("{0:?} is not an address to listen on: it is IP:PORT, [IPv6]:PORT or localhost:PORT")]
    Listen(String),
    #[error("{0:?} is not a public URL: it {1}")]
    PublicUrl(String, &'static str),
    #[error("{0:?} is not an OTLP endpoint: it {1}")]
    OtlpEndpoint(String, &'static str),
    #[error("{0:?} is not the base URL of an API: it {1}")]
    BaseUrl(String, &'static str),
    #[error("{0:?} is not a NATS server: it {1}")]
    NatsServer(String, &'static str),
    #[error("{0:?} is not the URL of a NATS server's monitoring: it {1}")]
    MonitoringUrl(String, &'static str),
    #[error("{0}: {1}")]
    OfProduct(String, Box<Self>),
    #[error("{0:?} is no product: {1}")]
    Product(String, ProductError),
    #[error("{0:?} is not PRODUCT=VALUE")]
    NoPair(String),
    #[error("{0} is named twice")]
    NamedTwice(String),
    #[error("{0:?} is not a path like \"flux\", \"kling/o1-video\" or \"sora/\": it {1}")]
    Path(String, &'static str),
    #[error("{0:?} is not a ratio: it is a number from 0 to 1")]
    Ratio(String),
    #[error("{0:?} is not a network: it is ADDRESS/BITS, or one ADDRESS")]
    Network(String),
    #[error("the path is empty")]
    EmptyPath,
    #[error("{0:?} is not a log filter: {1}")]
    Level(String, String),
}

/// A duration like `15s`, `1h 30m` or `7d`, as the `humantime` crate reads it.
pub(crate) fn parse_duration(raw: &str) -> Result<Duration, UnitError> {
    humantime::parse_duration(raw)
        .map_err(|error| UnitError::Duration(raw.to_owned(), error.to_string()))
}

/// The duration in the largest unit that states it exactly; [`parse_duration`] reads it back.
pub(super) fn duration_text(nanoseconds: u128) -> String {
    let exact = TIME_UNITS
        .iter()
        .find(|(_, factor)| nanoseconds != 0 && nanoseconds.is_multiple_of(*factor));
    exact.map_or_else(
        || "0s".to_owned(),
        |(unit, factor)| format!("{}{unit}", nanoseconds / factor),
    )
}

/// An address to listen on. The only name is `localhost`, for 127.0.0.1: others would depend on the
/// DNS.
pub(crate) fn parse_listen(raw: &str) -> Result<SocketAddr, UnitError> {
    let address = match raw.strip_prefix("localhost:") {
        Some(port) => port
            .parse()
            .ok()
            .map(|port: u16| (Ipv4Addr::LOCALHOST, port).into()),
        None => raw.parse().ok(),
    };
    address.ok_or_else(|| UnitError::Listen(raw.to_owned()))
}

fn parse_public_url(raw: &str) -> Result<Option<String>, UnitError> {
    http_url(raw).map_err(|why| UnitError::PublicUrl(without_secrets(raw), why))
}

fn parse_base_url(raw: &str) -> Result<String, UnitError> {
    let wrong = |why| UnitError::BaseUrl(without_secrets(raw), why);
    let url = http_url(raw).map_err(wrong)?;
    let url = url.ok_or_else(|| wrong("is empty"))?;
    uri_with_port(&url).map_err(wrong)?;
    Ok(url)
}

fn parse_nats_server(raw: &str) -> Result<String, UnitError> {
    nats_url(raw).map_err(|why| UnitError::NatsServer(without_secrets(raw), why))
}

fn parse_monitoring_url(raw: &str) -> Result<String, UnitError> {
    let wrong = |why| UnitError::MonitoringUrl(without_secrets(raw), why);
    let url = http_url(raw).map_err(wrong)?;
    let url = url.ok_or_else(|| wrong("is empty"))?;
    uri_with_port(&url).map_err(wrong)?;
    Ok(url)
}

fn parse_api_path(raw: &str) -> Result<String, UnitError> {
    api_path(raw)
        .map(str::to_owned)
        .map_err(|why| UnitError::Path(raw.to_owned(), why))
}

fn parse_otlp_endpoint(raw: &str) -> Result<Option<String>, UnitError> {
    let wrong = |why| UnitError::OtlpEndpoint(without_secrets(raw), why);
    let Some(url) = http_url(raw).map_err(wrong)? else {
        return Ok(None);
    };
    let uri = uri_with_port(&url).map_err(wrong)?;
    if uri.path() != "/" {
        return Err(wrong(
            "must have no path: traces are sent by gRPC, usually to port 4317, not by HTTP",
        ));
    }
    Ok(Some(url))
}

/// A number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio(f64);

// NaN, the only number that does not equal itself, is not from 0 to 1.
impl Eq for Ratio {}

impl Ratio {
    fn new(number: f64) -> Result<Self, UnitError> {
        if (0.0..=1.0).contains(&number) {
            Ok(Self(number))
        } else {
            Err(UnitError::Ratio(number.to_string()))
        }
    }

    pub(crate) fn get(self) -> f64 {
        self.0
    }
}

fn parse_path(raw: &str) -> Result<PathBuf, UnitError> {
    if raw.is_empty() {
        Err(UnitError::EmptyPath)
    } else {
        Ok(raw.into())
    }
}

fn parse_level(raw: &str) -> Result<String, UnitError> {
    // tracing-subscriber 0.3.23 panics on some of these: it cuts the text in the middle of a
    // character.
    if !raw.is_ascii() {
        return Err(UnitError::Level(
            raw.to_owned(),
            "it has characters other than ASCII".to_owned(),
        ));
    }
    match EnvFilter::try_new(raw) {
        Ok(_) => Ok(raw.to_owned()),
        Err(error) => Err(UnitError::Level(raw.to_owned(), error.to_string())),
    }
}

type Parse<T> = fn(&str) -> Result<T, UnitError>;

/// A value of a TOML file: how it is read from a string and from a number; `None` where that is
/// refused.
struct Leaf<T> {
    expected: &'static str,
    text: Option<Parse<T>>,
    number: Option<fn(u64) -> T>,
}

impl<T> Visitor<'_> for Leaf<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, raw: &str) -> Result<T, E> {
        let parse = self
            .text
            .ok_or_else(|| E::invalid_type(Unexpected::Str(raw), &self))?;
        parse(raw).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        let take = self
            .number
            .ok_or_else(|| E::invalid_type(Unexpected::Unsigned(number), &self))?;
        Ok(take(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }
}

fn text<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &'static str,
    parse: Parse<T>,
) -> Result<T, D::Error> {
    from.deserialize_any(Leaf {
        expected,
        text: Some(parse),
        number: None,
    })
}

pub(super) fn count<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    from.deserialize_any(Leaf {
        expected: "a whole number, 0 or more",
        text: None,
        number: Some(|number| number),
    })
}

pub(super) fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text: Parse<u64> = |text| Ok(parse_size(text)?);
    from.deserialize_any(Leaf {
        expected: "a size",
        text: Some(text),
        number: Some(|number| number),
    })
}

/// A size, or an empty text.
pub(super) fn optional_size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let parse: Parse<Option<u64>> = |text| {
        let size = (!text.is_empty()).then(|| parse_size(text));
        Ok(size.transpose()?)
    };
    from.deserialize_any(Leaf {
        expected: "a size, or an empty string",
        text: Some(parse),
        number: Some(Some),
    })
}

pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    text(from, "a duration with its unit", parse_duration)
}

pub(super) fn listen<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    text(from, "an address to listen on", parse_listen)
}

pub(super) fn public_url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    text(from, "a URL, or an empty string", parse_public_url)
}

pub(super) fn base_url<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    text(from, "a URL", parse_base_url)
}

pub(super) fn durations_by_product<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<Product, Duration>, D::Error> {
    from.deserialize_any(ByProduct {
        expected: "a table of products with a duration each",
        parse: parse_duration,
    })
}

pub(super) fn paths_by_product<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<Product, String>, D::Error> {
    from.deserialize_any(ByProduct {
        expected: "a table of products with a path each",
        parse: parse_api_path,
    })
}

pub(super) fn otlp_endpoint<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<String>, D::Error> {
    text(from, "a URL, or an empty string", parse_otlp_endpoint)
}

pub(super) fn ratio<'de, D: Deserializer<'de>>(from: D) -> Result<Ratio, D::Error> {
    from.deserialize_any(RatioVisitor)
}

/// An integer, a float, or a text with either, as environment and command line have it.
struct RatioVisitor;

impl Visitor<'_> for RatioVisitor {
    type Value = Ratio;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 0 to 1")
    }

    fn visit_str<E: Error>(self, raw: &str) -> Result<Ratio, E> {
        let number = raw
            .trim()
            .parse()
            .map_err(|_| E::custom(UnitError::Ratio(raw.to_owned())))?;
        self.visit_f64(number)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Ratio, E> {
        self.visit_f64(number as f64)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Ratio, E> {
        Ratio::new(number).map_err(E::custom)
    }
}

pub(super) fn path<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    text(from, "a path", parse_path)
}

pub(super) fn optional_path<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<PathBuf>, D::Error> {
    text(from, "a path, or an empty string", |raw| {
        Ok((!raw.is_empty()).then(|| raw.into()))
    })
}

pub(super) fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    from.deserialize_any(List {
        expected: "a list of networks",
        parse: network,
    })
}

pub(super) fn nats_servers<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_any(List {
        expected: "a list of NATS servers",
        parse: parse_nats_server,
    })
}

pub(super) fn monitoring_urls<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_any(List {
        expected: "a list of URLs",
        parse: parse_monitoring_url,
    })
}

pub(super) fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_any(List {
        expected: "a list of texts",
        parse: |raw| Ok(raw.to_owned()),
    })
}

/// A list of texts, or one comma-separated text, as environment and command line have it.
struct List<T> {
    expected: &'static str,
    parse: Parse<T>,
}

impl<'de, T> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, raw: &str) -> Result<Self::Value, E> {
        raw.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| (self.parse)(part).map_err(E::custom))
            .collect()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(raw) = list.next_element::<String>()? {
            values.push((self.parse)(&raw).map_err(A::Error::custom)?);
        }
        Ok(values)
    }
}

/// A table of products, or one text `PRODUCT=VALUE,PRODUCT=VALUE`, as environment and command line have it.
struct ByProduct<T> {
    expected: &'static str,
    parse: Parse<T>,
}

impl<T> ByProduct<T> {
    fn add(&self, to: &mut BTreeMap<Product, T>, name: &str, raw: &str) -> Result<(), UnitError> {
        let product =
            Product::parse(name).map_err(|error| UnitError::Product(name.to_owned(), error))?;
        let value = (self.parse)(raw)
            .map_err(|error| UnitError::OfProduct(name.to_owned(), Box::new(error)))?;
        let before = to.insert(product, value);
        before.map_or(Ok(()), |_| Err(UnitError::NamedTwice(name.to_owned())))
    }
}

impl<'de, T> Visitor<'de> for ByProduct<T> {
    type Value = BTreeMap<Product, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, raw: &str) -> Result<Self::Value, E> {
        let mut values = BTreeMap::new();
        for pair in raw
            .split(',')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| E::custom(UnitError::NoPair(pair.to_owned())))?;
            self.add(&mut values, name.trim(), value.trim())
                .map_err(E::custom)?;
        }
        Ok(values)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Self::Value, A::Error> {
        let mut values = BTreeMap::new();
        while let Some((name, raw)) = table.next_entry::<String, String>()? {
            self.add(&mut values, &name, &raw)
                .map_err(A::Error::custom)?;
        }
        Ok(values)
    }
}

/// `ADDRESS/BITS`, or one address.
fn network(raw: &str) -> Result<IpNet, UnitError> {
    let address = || raw.parse::<IpAddr>().ok().map(IpNet::from);
    raw.parse()
        .ok()
        .or_else(address)
        .ok_or_else(|| UnitError::Network(raw.to_owned()))
}

pub(super) fn level<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    text(from, "a log filter", parse_level)
}
