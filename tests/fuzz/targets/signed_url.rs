//! Signed callback URLs. What was minted is accepted until its time is over, and read as what it was minted for; any change
//! of one byte is refused; whatever is accepted carries the signature over exactly its text, key and time.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use arbitrary::Arbitrary;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use blobcast::{
    callback::{Callback, Corrections},
    credentials::{Credentials, MintError, SECRET_PARAMETERS, URL_BYTES_MAX, UrlRefusal},
    event::{Product, Verification, labels_fit},
};
use bytes::Bytes;
use jiff::{Timestamp, ToSpan};
use ring::hmac;

const BASE: &str = "https://hooks.example.com";
const BODY: &[u8] = br#"{"generation_id":"t1","status":"completed"}"#;
/// `k2` is past its expiry.
const FILE: &str = r#"
[signing_keys]
k1 = { secret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", created = 2026-01-01 }
k2 = { secret = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA", created = 2026-01-02, expires = 2026-01-03 }
"#;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
static CREDENTIALS: LazyLock<Credentials> =
    LazyLock::new(|| Credentials::parse(FILE).expect("the file above"));

#[derive(Arbitrary, Debug)]
pub(crate) struct Input<'a> {
    product: Option<&'a str>,
    labels: BTreeMap<&'a str, &'a str>,
    ttl_seconds: u32,
    elapsed_seconds: u32,
    change: Change,
    /// Signed here with the key, without the broker's code.
    foreign: &'a str,
    /// Signed by nobody who has it.
    forged: &'a str,
}

#[derive(Arbitrary, Debug)]
struct Change {
    at: u16,
    byte: u8,
    kind: ChangeKind,
}

#[derive(Arbitrary, Debug)]
enum ChangeKind {
    Replace,
    Insert,
    Remove,
}

pub(crate) fn run(input: Input<'_>) {
    let now = Timestamp::from_second(1_800_000_000).expect("in range");
    if let Some(target) = mint(&input, now) {
        check_change(&target, &input.change, now);
    }
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, SECRET),
        &signed(input.foreign),
    );
    check_any(
        &format!("{}&sig={}", input.foreign, URL_SAFE_NO_PAD.encode(tag)),
        now,
    );
    check_any(input.forged, now);
}

/// The target of a URL minted for the input, if it can be.
fn mint(input: &Input<'_>, now: Timestamp) -> Option<String> {
    let product = input
        .product
        .and_then(|product| Product::parse(product).ok());
    let labels = input
        .labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let is_reserved = input
        .labels
        .keys()
        .any(|key| SECRET_PARAMETERS.contains(key));
    let ttl = Duration::from_secs(input.ttl_seconds.into());
    let minted = match CREDENTIALS.mint(BASE, product.as_ref(), &labels, ttl, None, now) {
        Ok(minted) => minted,
        Err(MintError::Reserved(_)) if is_reserved => return None,
        Err(MintError::TooLong(length)) if !is_reserved && length > URL_BYTES_MAX => return None,
        Err(error) => panic!("{error}"),
    };
    assert!(!is_reserved && minted.url.len() <= URL_BYTES_MAX && minted.expires >= now + ttl);
    let target = minted
        .url
        .strip_prefix(BASE)
        .expect("it begins with its base")
        .to_owned();
    let later = now
        .checked_add(i64::from(input.elapsed_seconds).seconds())
        .expect("in range");
    for time in [now, later, minted.expires - 1.second(), minted.expires] {
        let expected = if time < minted.expires {
            Ok("k1".to_owned())
        } else {
            Err(UrlRefusal::Expired)
        };
        assert_eq!(verify(&target, time), expected, "{target} at {time}");
    }
    let callback = Callback::from_target(
        &target,
        Bytes::from_static(BODY),
        Timestamp::UNIX_EPOCH,
        Verification::SignedUrl,
        "",
    );
    match callback.draft(&Corrections::default()) {
        Ok(draft) => {
            assert_eq!(draft.labels, labels);
            assert_eq!(
                draft.product.as_str(),
                product.as_ref().map_or("unknown", Product::as_str)
            );
        }
        Err(rejection) => assert!(!labels_fit(&labels), "{rejection}"),
    }
    Some(target)
}

fn check_change(target: &str, change: &Change, now: Timestamp) {
    let mut bytes = target.as_bytes().to_vec();
    let at = usize::from(change.at) % bytes.len();
    match change.kind {
        ChangeKind::Replace => bytes[at] = change.byte,
        ChangeKind::Insert => bytes.insert(at, change.byte),
        ChangeKind::Remove => drop(bytes.remove(at)),
    }
    if let Some(changed) = String::from_utf8(bytes)
        .ok()
        .filter(|changed| changed != target)
    {
        assert_eq!(
            verify(&changed, now),
            Err(UrlRefusal::Invalid),
            "{changed} is not {target}"
        );
    }
}

/// Any text: good exactly if it names one known key and one time, and is signed as a whole.
fn check_any(target: &str, now: Timestamp) {
    let expected = target.rsplit_once("&sig=").and_then(|(before, tag)| {
        let (_, query) = before.split_once('?')?;
        let exp = only(query, "exp")?.parse::<i64>().ok()?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(
            &hmac::Key::new(hmac::HMAC_SHA256, SECRET),
            &signed(before),
            &tag,
        )
        .ok()?;
        (only(query, "kid")? == "k1").then_some(exp)
    });
    let expected = match expected {
        Some(exp) if exp > now.as_second() => Ok("k1".to_owned()),
        Some(_) => Err(UrlRefusal::Expired),
        None => Err(UrlRefusal::Invalid),
    };
    assert_eq!(verify(target, now), expected, "{target}");
}

fn verify(target: &str, now: Timestamp) -> Result<String, UrlRefusal> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    CREDENTIALS
        .verify_url(path, query, now)
        .map(|(key_id, _)| key_id.to_string())
}

fn signed(target: &str) -> Vec<u8> {
    [b"blobcast-url-v1\n", target.as_bytes()].concat()
}

fn only(query: &str, name: &str) -> Option<String> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    let value = values.next()?.1.into_owned();
    values.next().is_none().then_some(value)
}
