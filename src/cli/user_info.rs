//! Keeps secrets in URLs out of what is printed: user, password and query. Also turns user and
//! password into a header.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use clap::error::{ContextKind, ContextValue, Error};
use hyper::{Uri, header::HeaderValue, http::uri::Authority};
use percent_encoding::percent_decode_str;

use crate::config;

/// Displays a URL with `…` in place of its user, password and query.
pub(super) struct Shown<'a>(pub &'a Uri);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&config::url_without_secrets(&self.0.to_string()))
    }
}

/// The URL without user and password, and an `Authorization` header with them.
pub(super) fn without_user(url: Uri) -> (Uri, Option<HeaderValue>) {
    let mut parts = url.into_parts();
    let mut authorization = None;
    if let Some(authority) = parts.authority.take() {
        let (user, host) = without_user_text(&authority);
        authorization = user.map(basic);
        parts.authority = Some(
            host.parse()
                .expect("the host of a URL is one without its user"),
        );
    }
    (
        Uri::from_parts(parts).expect("only the user of a whole URL was taken away"),
        authorization,
    )
}

/// Splits an authority into `user:password` and `host:port`.
pub(super) fn without_user_text(authority: &Authority) -> (Option<&str>, &str) {
    match authority.as_str().rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority.as_str()),
    }
}

/// `user:password` as the value of `Authorization`.
fn basic(user: &str) -> HeaderValue {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let pair: Vec<u8> = percent_decode_str(name)
        .chain([b':'])
        .chain(percent_decode_str(password))
        .collect();
    let mut header = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(pair)))
        .expect("Base64 is made of what a header may hold");
    header.set_sensitive(true);
    header
}

/// A usage error of clap's, which quotes the command line, with the secrets in URLs removed.
pub(super) fn without_secrets(mut usage: Error) -> Error {
    let is_of_url = usage
        .get(ContextKind::InvalidArg)
        .is_some_and(|arg| arg.to_string().ends_with("<URL>"));
    let shown = |text: &str| {
        if is_of_url || text.contains("://") {
            config::url_without_secrets(text)
        } else {
            text.to_owned()
        }
    };

    let context: Vec<_> = usage
        .context()
        .map(|(kind, value)| (kind, value.clone()))
        .collect();

    for (kind, value) in context {
        let value = match value {
            ContextValue::String(text) => ContextValue::String(shown(&text)),
            ContextValue::Strings(texts) => {
                ContextValue::Strings(texts.iter().map(|text| shown(text)).collect())
            }
            // Suggestions, which may quote the command line.
            ContextValue::StyledStrs(texts) => {
                let is_harmless =
                    |text: &clap::builder::StyledStr| !text.to_string().contains("://");
                ContextValue::StyledStrs(texts.into_iter().filter(is_harmless).collect())
            }
            other => other,
        };

        usage.insert(kind, value);
    }

    usage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_that_is_no_escape_stays() {
        let sent = |user: &str| {
            let (url, header) = without_user(format!("http://{user}@localhost/").parse().unwrap());
            assert_eq!(url, "http://localhost/");
            let header = header.unwrap();
            let pair = header.to_str().unwrap().strip_prefix("Basic ").unwrap();
            String::from_utf8(BASE64_STANDARD.decode(pair).unwrap()).unwrap()
        };
        for (user, pair) in [
            ("100%", "100%:"),
            ("u:%4", "u:%4"),
            ("u:%+4", "u:%+4"),
            ("%zz%41:%25", "%zzA:%"),
            ("u%3a:%C3%A4", "u::ä"),
        ] {
            assert_eq!(sent(user), pair);
        }
    }
}
