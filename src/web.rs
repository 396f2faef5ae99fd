//! Tells requests that a web page made its visitor's browser send (cross-site requests, DNS
//! rebinding) from those of clients. Pure.
//!
//! A page can make a browser send requests to every address that the browser reaches, also to
//! loopback. The browser reports the page's origin (`Origin`, `Sec-Fetch-Site`) and the requested
//! host (`Host`), and a page can change neither. But a page's own domain can resolve to the
//! broker's address (DNS rebinding): then origin and host are equal. So an equal name is accepted
//! only if it is known to be the broker's; an IP address or `localhost`, which browsers do not look
//! up in the DNS, is always accepted.

use std::net::IpAddr;

use hyper::{
    HeaderMap, Request, Uri,
    header::{HOST, ORIGIN},
    http::uri::Authority,
};

const SEC_FETCH_SITE: &str = "sec-fetch-site";
const SEC_FETCH_MODE: &str = "sec-fetch-mode";

/// The authorities that a request names: that of its target (HTTP/2, or an absolute URL), then each
/// `Host`. `None` stands for one that cannot be read.
pub(crate) fn authorities<B>(request: &Request<B>) -> impl Iterator<Item = Option<&str>> {
    let of_target = request
        .uri()
        .authority()
        .map(|authority| Some(authority.as_str()));
    of_target.into_iter().chain(
        request
            .headers()
            .get_all(HOST)
            .iter()
            .map(|host| host.to_str().ok()),
    )
}

/// Whether a foreign page made a browser send this request. A page is not foreign if its origin is
/// that of `public_url`, or is the requested authority and that is an address, `localhost`, or one
/// of `hosts`.
pub(crate) fn is_foreign<B>(
    request: &Request<B>,
    public_url: Option<&str>,
    hosts: &[String],
) -> bool {
    let headers = request.headers();
    if says(headers, SEC_FETCH_SITE, "cross-site") {
        return true;
    }

    headers.get_all(ORIGIN).iter().any(|origin| {
        // A page that hides its origin has the origin `null`, which is no URL.
        let Some(origin) = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.parse::<Uri>().ok())
        else {
            return true;
        };

        let is_public = public_url
            .and_then(|url| url.parse().ok())
            .is_some_and(|url| host_and_port(&url) == host_and_port(&origin));
        let is_here = || {
            let (Some(scheme), Some(Some(authority))) =
                (origin.scheme_str(), authorities(request).next())
            else {
                return false;
            };
            let here = format!("{scheme}://{authority}").parse::<Uri>().ok();
            here.is_some_and(|here| host_and_port(&here) == host_and_port(&origin))
                && origin.authority().is_some_and(|authority| {
                    is_address_or_localhost(authority) || is_one_of(authority, hosts)
                })
        };

        host_and_port(&origin).is_none() || !(is_public || is_here())
    })
}

/// Whether the browser opens the target as a page, for example because its user followed a link.
pub(crate) fn is_navigation(headers: &HeaderMap) -> bool {
    says(headers, SEC_FETCH_MODE, "navigate")
}

/// Whether `authority` names a listener on `port`: an address with any port, as ports may be
/// forwarded; `localhost` with `port`; or one of `hosts`.
pub(crate) fn is_ours(authority: &str, port: u16, hosts: &[String]) -> bool {
    let Some(authority) = authority
        .parse::<Authority>()
        .ok()
        .filter(|authority| !authority.as_str().contains('@'))
    else {
        return false;
    };
    let is_localhost = authority.host().eq_ignore_ascii_case("localhost")
        && authority
            .port_u16()
            .map_or([80, 443].contains(&port), |of_request| of_request == port);
    address(&authority).is_some() || is_localhost || is_one_of(&authority, hosts)
}

/// Whether `authority` is one of `hosts`. A host without a port matches every port.
fn is_one_of(authority: &Authority, hosts: &[String]) -> bool {
    hosts
        .iter()
        .filter_map(|host| host.parse::<Authority>().ok())
        .any(|host| {
            host.host().eq_ignore_ascii_case(authority.host())
                && host
                    .port_u16()
                    .is_none_or(|port| authority.port_u16() == Some(port))
        })
}

fn host_and_port(url: &Uri) -> Option<(String, u16)> {
    let default = match url.scheme_str()? {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    Some((
        url.host()?.to_ascii_lowercase(),
        url.port_u16().unwrap_or(default),
    ))
}

fn is_address_or_localhost(authority: &Authority) -> bool {
    address(authority).is_some() || authority.host().eq_ignore_ascii_case("localhost")
}

fn address(authority: &Authority) -> Option<IpAddr> {
    let host = authority.host();
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
        .parse()
        .ok()
}

fn says(headers: &HeaderMap, name: &str, word: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .any(|value| value.as_bytes().eq_ignore_ascii_case(word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = Request::post("/webhook").header(HOST, host);
        headers
            .iter()
            .fold(request, |request, &(name, value)| {
                request.header(name, value)
            })
            .body(())
            .unwrap()
    }

    #[test]
    fn requests_without_headers_of_a_browser_are_not_foreign() {
        for headers in [
            &[][..],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin")],
        ] {
            assert!(
                !is_foreign(&request("hooks.example.com", headers), None, &[]),
                "{headers:?}"
            );
        }
        for word in ["cross-site", "Cross-Site"] {
            assert!(is_foreign(
                &request("127.0.0.1:8080", &[("sec-fetch-site", word)]),
                None,
                &[]
            ));
        }
    }

    #[test]
    fn an_origin_is_ours_by_its_address_or_by_a_name_that_is_known_to_be_ours() {
        let public = Some("https://hooks.example.com/blobcast");
        for (host, origin, is_own) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080", true),
            ("[::1]:8080", "http://[::1]:8080", true),
            ("localhost:8080", "http://LOCALHOST:8080", true),
            ("127.0.0.1", "http://127.0.0.1:80", true),
            ("127.0.0.1", "https://127.0.0.1", true),
            ("127.0.0.1:8080", "http://127.0.0.1:3000", false), // another server of the same machine
            ("127.0.0.1:8080", "http://localhost:8080", false),
            ("127.0.0.1:8080", "null", false),
            ("127.0.0.1:8080", "", false),
            ("127.0.0.1:8080", "file://", false),
            ("127.0.0.1:8080", "moz-extension://127.0.0.1:8080", false),
            ("127.0.0.1:8080", "https://evil.example", false),
            ("evil.example:8080", "http://evil.example:8080", false), // DNS rebinding
            ("127.0.0.1:8080", "https://hooks.example.com", true), // behind a proxy that changes the name
            ("hooks.example.com", "https://hooks.example.com:443", true),
            ("hooks.example.com", "http://hooks.example.com", false),
            (
                "hooks.example.com",
                "https://hooks.example.com.evil.example",
                false,
            ),
        ] {
            let foreign = is_foreign(&request(host, &[("origin", origin)]), public, &[]);
            assert_eq!(!foreign, is_own, "{origin} at {host}");
        }
        let both = [
            ("origin", "http://127.0.0.1:8080"),
            ("origin", "https://evil.example"),
        ];
        assert!(is_foreign(&request("127.0.0.1:8080", &both), public, &[]));
        let named = request(
            "console.internal:9090",
            &[("origin", "http://console.internal:9090")],
        );
        assert!(
            is_foreign(&named, None, &[])
                && !is_foreign(&named, None, &["console.internal".into()])
        );
    }

    #[test]
    fn a_listener_is_named_by_an_address_localhost_with_its_port_or_one_of_its_hosts() {
        let hosts = [
            "metrics.internal".to_owned(),
            "forwarded.internal:19090".to_owned(),
        ];
        for (authority, is_it) in [
            ("127.0.0.1:9090", true),
            ("127.0.0.1:19090", true),
            ("10.1.2.3", true),
            ("[fd00::1]:9090", true),
            ("localhost:9090", true),
            ("LocalHost:9090", true),
            ("localhost:9091", false),
            ("localhost", false),
            ("metrics.internal", true),
            ("Metrics.Internal:1", true),
            ("forwarded.internal:19090", true),
            ("forwarded.internal:9090", false),
            ("forwarded.internal", false),
            ("evil.example:9090", false),
            ("localhost.evil.example:9090", false),
            ("127.0.0.1.evil.example:9090", false),
            ("127.0.0.1@evil.example:9090", false),
            ("evil@127.0.0.1:9090", false),
            ("2130706433:9090", false),
            ("", false),
        ] {
            assert_eq!(is_ours(authority, 9090, &hosts), is_it, "{authority}");
        }
        assert!(is_ours("localhost", 80, &[]) && is_ours("localhost", 443, &[]));
    }
}
