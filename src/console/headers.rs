//! The headers of the console's answers: what a browser may do with them. Pure.

use hyper::header::{
    CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};

use crate::config::Media;

const COOP: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const CORP: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const PERMISSIONS: HeaderName = HeaderName::from_static("permissions-policy");

/// The headers of every answer of the console.
#[derive(Clone, Debug)]
pub(crate) struct PageHeaders(HeaderMap);

impl PageHeaders {
    /// `hosts` are those that media may come from; none: any.
    pub(crate) fn new(media: Media, hosts: &[String]) -> Self {
        let sources = match (media, hosts) {
            (Media::Off, _) => String::new(),
            (_, []) => " https:".to_owned(),
            (_, hosts) => hosts
                .iter()
                .map(|host| format!(" https://{host}"))
                .collect(),
        };
        let of_media = if sources.is_empty() {
            " 'none'"
        } else {
            &sources
        };
        let policy = format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'{sources}; media-src{of_media}; connect-src \
             'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
        );

        let mut headers = HeaderMap::new();
        let policy =
            HeaderValue::from_str(&policy).expect("hosts are checked with the configuration");
        headers.insert(CONTENT_SECURITY_POLICY, policy);
        for (name, value) in [
            (REFERRER_POLICY, "no-referrer"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (COOP, "same-origin"),
            (CORP, "same-origin"),
            (PERMISSIONS, "camera=(), geolocation=(), microphone=()"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Self(headers)
    }

    /// Puts them on an answer.
    pub(crate) fn apply(&self, to: &mut HeaderMap) {
        for (name, value) in &self.0 {
            to.insert(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_come_from_where_the_configuration_lets_them() {
        let hosts = ["cdn.runblob.io".to_owned()];
        let cases: [(Media, &[String], &str, &str); 3] = [
            (
                Media::Click,
                &[],
                "img-src 'self' https:;",
                "media-src https:;",
            ),
            (
                Media::Auto,
                &hosts,
                "img-src 'self' https://cdn.runblob.io;",
                "media-src https://cdn.runblob.io;",
            ),
            (Media::Off, &hosts, "img-src 'self';", "media-src 'none';"),
        ];
        for (media, hosts, img, video) in cases {
            let mut headers = HeaderMap::new();
            PageHeaders::new(media, hosts).apply(&mut headers);
            let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(policy.contains(img) && policy.contains(video), "{policy}");
        }
    }
}
