//! Reads URLs and their paths. Pure; knows no key. An error says what is wrong and never repeats the text, which may have a secret.

use hyper::http::uri::Authority;

/// A URL without its possible secrets: user name, password and query.
pub(crate) fn without_secrets(raw: &str) -> String {
    let (scheme, rest) = raw
        .split_once("://")
        .map_or(("", raw), |(scheme, rest)| (&raw[..scheme.len() + 3], rest));
    // A password that is not percent-encoded may contain any character, so the last `@` ends it.
    let (userinfo, rest) = rest
        .rsplit_once('@')
        .map_or(("", rest), |(_, rest)| ("…@", rest));
    let (rest, query) = rest
        .find(['?', '#'])
        .map_or((rest, ""), |end| (&rest[..=end], "…"));
    format!("{scheme}{userinfo}{rest}{query}")
}

/// A URL without its trailing slash. Refuses URLs with parts that must not be printed or logged.
pub(super) fn http_url(raw: &str) -> Result<Option<String>, &'static str> {
    if raw.is_empty() {
        return Ok(None);
    }

    let Some(rest) = raw
        .strip_prefix("https://")
        .or_else(|| raw.strip_prefix("http://"))
    else {
        return Err("must begin with http:// or https://");
    };

    if !raw.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("may have only printable ASCII characters and no spaces");
    }

    if raw.contains(['?', '#']) {
        return Err("must have no query and no fragment");
    }

    let authority = rest.split('/').next().unwrap_or_default();
    // Also after the slash that ends the host: a password may contain a slash.
    if rest.contains('@') {
        return Err("must not carry a user name or password");
    }

    if authority.is_empty() || authority.starts_with(':') {
        return Err("names no host");
    }

    Ok(Some(raw.trim_end_matches('/').to_owned()))
}

/// The URL of a NATS server. Credentials have keys of their own, so that none is printed or logged with it.
pub(super) fn nats_url(raw: &str) -> Result<String, &'static str> {
    let Some(rest) = raw
        .strip_prefix("nats://")
        .or_else(|| raw.strip_prefix("tls://"))
    else {
        return Err("must begin with nats:// or tls://");
    };

    if rest.contains('@') {
        return Err("must not carry a user name or password: there are keys for them");
    }

    let address = rest.strip_suffix('/').unwrap_or(rest);
    if address.is_empty() || address.starts_with(':') {
        return Err("names no host");
    }

    let is_authority = |authority: &Authority| {
        authority.as_str() == authority.host() || authority.port_u16().is_some()
    };
    if address
        .parse::<Authority>()
        .is_ok_and(|it| is_authority(&it))
    {
        Ok(raw.trim_end_matches('/').to_owned())
    } else {
        Err("must have a host and perhaps a port, and nothing behind them")
    }
}

/// A URL that can be connected to.
pub(super) fn uri_with_port(url: &str) -> Result<hyper::Uri, &'static str> {
    let uri: hyper::Uri = url.parse().map_err(|_| "has an invalid host")?;
    let is_port = |authority: &Authority| {
        authority.as_str() == authority.host() || authority.port_u16().is_some()
    };
    if uri.authority().is_some_and(is_port) {
        Ok(uri)
    } else {
        Err("has an invalid port")
    }
}

/// The segments of a path between `/v1/` and `/generations/`.
pub(super) fn api_path(raw: &str) -> Result<&str, &'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let segments = raw.strip_suffix('/').unwrap_or(raw);
    if segments.is_empty() {
        return Err("has no segment");
    }
    for segment in segments.split('/') {
        match segment {
            "" => return Err("has an empty segment, so leave out the first slash"),
            "." | ".." => return Err("leads elsewhere"),
            _ if !segment.bytes().all(allowed) => {
                return Err("has other characters than a-z, A-Z, 0-9, '.', '_', '-' and '/'");
            }
            _ => {}
        }
    }
    Ok(raw)
}
