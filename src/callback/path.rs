//! The path of a callback's URL: its product, or that it is another path. Pure.
//!
//! Customers type the URL, proxies rewrite it, and some paste a vendor's path in place of the product. The vendor does not repeat a
//! callback that was answered 404. So a nearly right path is read as what was meant, or the callback goes to quarantine.

use std::{borrow::Cow, fmt::Write};

use crate::{credentials::SECRET_PARAMETERS, printable::printable_beginning};

/// The first segment of a webhook's path.
const ROOT: &str = "webhook";
/// Behind these marks a path has what belongs into a query, perhaps a secret. `%` begins the escaped ones.
const QUERY_MARKS: [&str; 6] = ["&", "=", "%3F", "%3D", "%26", TOKEN_BEGIN];
/// The beginning of every token.
const TOKEN_BEGIN: &str = "bcast_";

/// A webhook's path, or a near miss of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookPath {
    /// The product as the path names it, perhaps malformed; `/` within it is `-`. `None` if it names none.
    pub product: Option<String>,
    /// The path as sent, without what looks like a query, if it is a near miss of `/webhook` and `/webhook/PRODUCT`: another segment
    /// begins with `webhook`, or the word is in capitals, or it goes on behind `webhook`.
    pub near_miss: Option<String>,
}

impl WebhookPath {
    /// `None` if it is another path altogether.
    pub fn parse(path: &str) -> Option<Self> {
        match path.strip_prefix("/webhook/") {
            // Nearly always.
            Some(product) if !product.is_empty() && !product.contains(['/', '%']) => {
                return Some(Self {
                    product: Some(product.to_owned()),
                    near_miss: None,
                });
            }
            _ if !path.starts_with('/') => return None,
            _ => {}
        }

        let whole = with_slashes(path);
        let mut parts = parts(&whole);
        if parts.next() == Some(ROOT) {
            return Some(Self {
                product: joined(parts),
                near_miss: None,
            });
        }

        let kept = without_query(path);
        let whole = with_slashes(kept);
        let mut parts = self::parts(&whole);
        parts.find(|part| {
            part.get(..ROOT.len())
                .is_some_and(|begin| begin.eq_ignore_ascii_case(ROOT))
        })?;

        Some(Self {
            product: joined(parts),
            near_miss: Some(kept.to_owned()),
        })
    }

    /// The right form of the path.
    pub fn canonical(&self) -> String {
        let mut path = format!("/{ROOT}");
        if let Some(product) = &self.product {
            let _ = write!(path, "/{product}").is_ok(); // a text takes anything
        }
        path
    }
}

/// A path for the log: without what looks like a query, on one line, and not too long.
pub fn shown(path: &str) -> String {
    printable_beginning(without_query(path))
}

/// Escaped slashes are slashes, too.
fn with_slashes(path: &str) -> Cow<'_, str> {
    if path.contains('%') {
        path.replace("%2F", "/").replace("%2f", "/").into()
    } else {
        path.into()
    }
}

/// The segments; several slashes count as one.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> Option<String> {
    let parts: Vec<_> = parts.collect();
    (!parts.is_empty()).then(|| parts.join("-"))
}

fn without_query(path: &str) -> &str {
    let is_mark = |at: &usize| {
        let rest = &path.as_bytes()[*at..];
        QUERY_MARKS.iter().any(|mark| {
            rest.get(..mark.len())
                .is_some_and(|b| b.eq_ignore_ascii_case(mark.as_bytes()))
        })
    };
    // A mark is ASCII, so it begins a character.
    (0..path.len())
        .find(is_mark)
        .map_or(path, |end| &path[..end])
}

/// A product without the values of secret parameters, which a query within the path has. Names and marks stay, so that a malformed product
/// stays malformed.
pub(super) fn without_secrets(product: &str) -> Cow<'_, str> {
    // Each secret is behind one of these.
    if !product.contains(['=', '%', '_']) {
        return product.into();
    }
    let bytes: Vec<_> = decoded(product).collect();
    let is_end = |&(byte, _, _): &(u8, usize, usize)| matches!(byte, b'&' | b';' | b'?' | b'#');
    let (mut kept, mut copied, mut at) = (String::with_capacity(product.len()), 0, 0);
    while at < bytes.len() {
        let (_, _, value) = bytes[at];
        at += 1;
        if !begins_secret(&bytes[..at]) {
            continue;
        }
        at = bytes[at..]
            .iter()
            .position(is_end)
            .map_or(bytes.len(), |length| at + length);
        kept.push_str(&product[copied..value]);
        copied = bytes.get(at).map_or(product.len(), |&(_, begin, _)| begin);
    }

    kept.push_str(&product[copied..]);
    kept.into()
}

/// The bytes of the text with escapes decoded once, each with its begin and end in the text.
fn decoded(text: &str) -> impl Iterator<Item = (u8, usize, usize)> {
    let raw = text.as_bytes();
    let digit = move |at: usize| raw.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut at = 0;
    std::iter::from_fn(move || {
        let begin = at;
        let first = *raw.get(begin)?;
        let escaped = match (first, digit(begin + 1), digit(begin + 2)) {
            (b'%', Some(high), Some(low)) => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        at = begin + if escaped.is_some() { 3 } else { 1 };
        Some((escaped.unwrap_or(first), begin, at))
    })
}

/// Whether a secret follows: behind the name of a secret parameter and `=`, or what all tokens begin with.
fn begins_secret(before: &[(u8, usize, usize)]) -> bool {
    let ends_with = |word: &str| {
        let begin = before.len().checked_sub(word.len());
        let end = begin.map(|begin| {
            before[begin..]
                .iter()
                .map(|&(byte, ..)| byte.to_ascii_lowercase())
        });
        end.is_some_and(|end| end.eq(word.bytes()))
    };

    let is_named = |name: &&str| {
        let name_begins = before.len().checked_sub(name.len() + 1);
        let is_whole = name_begins
            .is_some_and(|begin| begin == 0 || !before[begin - 1].0.is_ascii_alphanumeric());
        is_whole && ends_with(&format!("{name}="))
    };

    match before.last() {
        Some((b'=', ..)) => SECRET_PARAMETERS.iter().any(is_named),
        Some((b'_', ..)) => ends_with(TOKEN_BEGIN),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(path: &str) -> Option<(Option<String>, bool)> {
        WebhookPath::parse(path).map(|path| (path.product, path.near_miss.is_some()))
    }

    #[test]
    fn a_path_names_a_product_or_none_is_a_near_miss_or_another_path() {
        let exact = |product: &str| Some((Some(product.to_owned()), false));
        let near = |product: &str| Some((Some(product.to_owned()), true));
        for (path, is_read_as) in [
            ("/webhook", Some((None, false))),
            ("/webhook/", Some((None, false))),
            ("/webhook///", Some((None, false))),
            ("//webhook", Some((None, false))),
            ("/webhook%2f", Some((None, false))),
            ("/webhook/veo", exact("veo")),
            ("/webhook/veo/", exact("veo")),
            ("/webhook/veo//", exact("veo")),
            ("/webhook//veo", exact("veo")),
            ("//webhook/veo", exact("veo")),
            ("/webhook%2Fveo", exact("veo")),
            ("/webhook/kling/o1-video", exact("kling-o1-video")),
            ("/webhook/kling%2fo1-video/", exact("kling-o1-video")),
            ("/webhook/kling//o1-video", exact("kling-o1-video")),
            ("/webhook/Veo", exact("Veo")),
            ("/webhook/ve%6f", exact("ve%6f")),
            ("/webhook/veo.json", exact("veo.json")),
            ("/webhook/..", exact("..")),
            ("/Webhook/veo", near("veo")),
            ("/WEBHOOK", Some((None, true))),
            ("/webhooks/veo", near("veo")),
            ("/webhook.json", Some((None, true))),
            ("/webhook:veo", Some((None, true))),
            ("/webhook%252Fveo", Some((None, true))),
            ("/webhook&token=x", Some((None, true))),
            ("/api/webhook/kling/o1-video", near("kling-o1-video")),
            ("/", None),
            ("", None),
            ("*", None),
            ("webhook", None),
            ("/metrics", None),
            ("/veo", None),
            ("/my-webhook", None),
            ("/webhoo", None),
            ("/wébhook/veo", None),
            ("/?a=/webhook", None),
            ("/a=b/webhook", None),
        ] {
            assert_eq!(read(path), is_read_as, "{path}");
        }
    }

    #[test]
    fn what_belongs_into_a_query_is_not_shown_nor_kept() {
        for path in [
            "/Webhook/veo&token=s",
            "/Webhook/veo%3ftoken=s",
            "/Webhook/veo%3Ftoken%3Ds",
            "/Webhook/veo=s",
        ] {
            assert_eq!(shown(path), "/Webhook/veo", "{path}");
            assert_eq!(
                WebhookPath::parse(path).unwrap().near_miss.as_deref(),
                Some("/Webhook/veo"),
                "{path}"
            );
        }
        assert_eq!(shown("/BCAST_abc"), "/");
        assert_eq!(shown("/a\u{202e}b"), "/a\\u{202e}b");
        assert_eq!(
            shown(&"é".repeat(1_000)).chars().count(),
            201,
            "with a mark that there was more"
        );
    }

    proptest! {
        #[test]
        fn any_path_is_read_and_its_canonical_form_says_the_same(path in "(/|%2[fF]|%3[fF]|&|web|[Hh]ook|webhook|\\PC){0,12}") {
            let _ = shown(&path);
            if let Some(read) = WebhookPath::parse(&path) {
                let canonical = WebhookPath::parse(&read.canonical()).unwrap();
                prop_assert_eq!((&canonical.product, &canonical.near_miss), (&read.product, &None));
                prop_assert_eq!(canonical.canonical(), read.canonical());
                // What is kept of it names the same product; and it is right, if only the query was in the wrong place.
                if let Some(kept) = &read.near_miss {
                    let again = WebhookPath::parse(kept).unwrap();
                    prop_assert_eq!(&again.product, &read.product);
                    prop_assert!(again.near_miss.is_none() || again.near_miss == read.near_miss);
                }
            }
        }
    }
}
