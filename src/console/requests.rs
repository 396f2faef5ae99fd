//! Tells requests that the console's own page has made from those that another page made its visitor's browser send. Pure.
//!
//! The listener has refused foreign pages and unknown names before; here a page of the same site, on another port or another name, is
//! foreign, too, because the browser sends the session's cookie along.

use hyper::{
    HeaderMap, Method, Uri,
    header::{CONTENT_TYPE, COOKIE, HOST, ORIGIN},
};

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Whether the console's page has made a request that changes something. A form cannot send JSON.
pub(crate) fn is_own(headers: &HeaderMap, has_body: bool) -> bool {
    let is_same = match headers.get(SEC_FETCH_SITE) {
        Some(site) => site.as_bytes() == b"same-origin",
        None => is_of_host(headers),
    };
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|value| {
        value
            .split(';')
            .next()
            .is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
    });
    is_same && (is_json || !has_body)
}

/// Whether a request that reads is one that the console's page, or its user, has made. Clients that are no browser say nothing.
pub(crate) fn is_read_by_own_page(method: &Method, headers: &HeaderMap) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes());
    (method == Method::GET || method == Method::HEAD)
        && site.is_none_or(|site| site == b"same-origin" || site == b"none")
}

/// Whether `Origin` is the host that was asked. The scheme may differ: a proxy in front may speak TLS.
fn is_of_host(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(ORIGIN), text(HOST)) else {
        return false;
    };
    let Some(origin) = origin
        .parse::<Uri>()
        .ok()
        .filter(|origin| origin.host().is_some())
    else {
        return false;
    };
    let default = if origin.scheme_str() == Some("https") {
        ":443"
    } else {
        ":80"
    };
    let bare = |authority: &str| {
        authority
            .strip_suffix(default)
            .unwrap_or(authority)
            .to_ascii_lowercase()
    };
    origin
        .authority()
        .is_some_and(|authority| bare(authority.as_str()) == bare(host))
}

/// The values of a cookie, of which there may be several: one that another program of the host has set does not hide the right one.
pub(crate) fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let cookies = headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter_map(move |(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    name.parse::<HeaderName>().unwrap(),
                    value.parse::<HeaderValue>().unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn only_the_own_page_changes_anything() {
        let json = ("content-type", "application/json");
        let cases: [(&[(&str, &str)], bool); 11] = [
            (&[("sec-fetch-site", "same-origin"), json], true),
            (&[("sec-fetch-site", "same-site"), json], false),
            (&[("sec-fetch-site", "cross-site"), json], false),
            (&[("sec-fetch-site", "none"), json], false),
            (
                &[
                    ("sec-fetch-site", "same-origin"),
                    ("content-type", "text/plain"),
                ],
                false,
            ),
            (&[("sec-fetch-site", "same-origin")], false),
            (
                &[
                    ("origin", "http://127.0.0.1:9090"),
                    ("host", "127.0.0.1:9090"),
                    json,
                ],
                true,
            ),
            (
                &[
                    ("origin", "https://ops.example"),
                    ("host", "ops.example:443"),
                    json,
                ],
                true,
            ),
            (
                &[
                    ("origin", "http://127.0.0.1:3000"),
                    ("host", "127.0.0.1:9090"),
                    json,
                ],
                false,
            ),
            (
                &[("origin", "null"), ("host", "127.0.0.1:9090"), json],
                false,
            ),
            (&[("host", "127.0.0.1:9090"), json], false),
        ];
        for (pairs, is_it) in cases {
            assert_eq!(is_own(&headers(pairs), true), is_it, "{pairs:?}");
        }
        assert!(is_own(
            &headers(&[("sec-fetch-site", "same-origin")]),
            false
        ));
    }

    #[test]
    fn a_page_of_another_port_reads_nothing() {
        for (site, is_it) in [
            ("same-origin", true),
            ("none", true),
            ("same-site", false),
            ("cross-site", false),
        ] {
            let headers = headers(&[("sec-fetch-site", site)]);
            assert_eq!(is_read_by_own_page(&Method::GET, &headers), is_it, "{site}");
            assert!(!is_read_by_own_page(&Method::POST, &headers));
        }
        assert!(is_read_by_own_page(&Method::GET, &HeaderMap::new()));
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let headers = headers(&[
            ("cookie", "a=b; blobcast_session_9090=x=y"),
            ("cookie", "c=d"),
        ]);
        assert_eq!(
            cookies(&headers, "blobcast_session_9090").collect::<Vec<_>>(),
            ["x=y"]
        );
        assert_eq!(cookies(&headers, "c").collect::<Vec<_>>(), ["d"]);
        assert_eq!(cookies(&headers, "session").next(), None);
    }
}
