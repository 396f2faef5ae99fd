//! The callback URLs that deliveries go to: the path of a product, and labels in the query. Pure.

use hyper::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

/// All but the unreserved characters of RFC 3986.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The URL that a product's callbacks go to.
///
/// A base without a path gets `/webhook/{product}`. A base with a path is a complete callback URL and keeps its path. The labels are
/// added to its query.
pub fn callback_url(base: &Uri, product: &str, labels: &[(String, String)]) -> Uri {
    match base.path() {
        "" | "/" => with_target(
            base,
            &format!("/webhook/{}", percent_encoded(product)),
            labels,
        ),
        path => with_target(base, path, labels),
    }
}

/// The URL with labels added to its query.
pub fn with_labels(url: &Uri, labels: &[(String, String)]) -> Uri {
    with_target(url, url.path(), labels)
}

/// Labels as in the query of a URL, percent-encoded: `ref=42&team=ads`.
pub fn labels_query(labels: &[(String, String)]) -> String {
    let pair = |(key, value): &(String, String)| {
        format!("{}={}", percent_encoded(key), percent_encoded(value))
    };
    labels.iter().map(pair).collect::<Vec<_>>().join("&")
}

fn with_target(url: &Uri, path: &str, labels: &[(String, String)]) -> Uri {
    let query: Vec<_> = url
        .query()
        .map(str::to_owned)
        .into_iter()
        .chain([labels_query(labels)])
        .collect();
    let query = query
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("&");
    let target = if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    };

    let mut parts = url.clone().into_parts();
    parts.path_and_query = Some(
        target
            .parse()
            .expect("a valid path and percent-encoded pairs make a valid target"),
    );
    Uri::from_parts(parts).expect("only the target of a whole URI was replaced")
}

fn percent_encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, ENCODED)
}
