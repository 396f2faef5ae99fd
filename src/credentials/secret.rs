//! Secrets: generating, parsing and comparing them. Comparisons take constant time, and `Debug` never shows a secret or a hash.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{digest, hmac, rand::SecureRandom};
use subtle::ConstantTimeEq;

/// Query parameters that authenticate a callback URL. They are never labels, and never stored.
pub const SECRET_PARAMETERS: [&str; 4] = ["token", "exp", "kid", "sig"];
/// Fewest bytes of a signing secret: the length of its HMAC-SHA256.
pub(super) const SECRET_BYTES_MIN: usize = 32;
/// The beginning of every token that [`new_secret`] makes, so that scanners for leaked secrets can recognise one.
pub(super) const TOKEN_PREFIX: &str = "bcast_";
const HASH_PREFIX: &str = "sha256:";

/// The SHA-256 of a token. The tokens have 256 random bits, so the hash needs no salt and no stretching.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Hashes a token as it stands in a URL or a header.
    pub fn of(token: &str) -> Self {
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// Reads `sha256:` and 64 hexadecimal digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let hex = text
            .strip_prefix(HASH_PREFIX)
            .filter(|hex| hex.len() == 64 && hex.is_ascii())?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// Compares in constant time.
    pub(super) fn equals(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HASH_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// A key for HMAC-SHA256 signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Decodes base64url, with or without padding, to at least [`SECRET_BYTES_MIN`] bytes.
    pub(super) fn parse_base64(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
        (bytes.len() >= SECRET_BYTES_MIN).then_some(Self(bytes))
    }

    /// The bytes of the text itself, which is the form of the vendor's secret.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.as_bytes().to_vec()))
    }

    /// The HMAC-SHA256 of `message`.
    pub(super) fn sign(&self, message: &[u8]) -> hmac::Tag {
        hmac::sign(&self.key(), message)
    }

    /// True if `tag` is the HMAC-SHA256 of `message`. Constant time.
    pub fn verify(&self, message: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.key(), message, tag).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Generates a token or a signing secret: 256 random bits as base64url. A token begins with `bcast_`.
pub fn new_secret(is_token: bool) -> String {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system gives random bytes");
    let prefix = if is_token { TOKEN_PREFIX } else { "" };
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
}
