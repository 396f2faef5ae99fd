//! What a request is found again by.
//!
//! Every request has an id of its own, which its answer and its log lines carry. Ids of callers are never taken over: whoever
//! chose one could make two requests look like one. Knows nothing of the rest of the crate.

use std::fmt;

use hyper::header::{HeaderName, HeaderValue};
use uuid::Uuid;

/// The header, or the gRPC metadata, that an answer carries its request's id in.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Names one request to people: 32 hexadecimal digits, random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(Uuid);

impl RequestId {
    /// One that nobody has.
    #[allow(clippy::new_without_default, reason = "no two are the same, so there is no default")]
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }
}

impl From<RequestId> for HeaderValue {
    fn from(id: RequestId) -> Self {
        let mut digits = [0; 32];
        Self::from_str(id.0.simple().encode_lower(&mut digits)).expect("digits are fit for a header")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0.simple())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_32_digits_and_never_the_same() {
        let (one, other) = (RequestId::new(), RequestId::new());
        assert_ne!(one, other);
        assert_eq!(HeaderValue::from(one), one.to_string());
        assert_eq!(one.to_string().len(), 32);
        assert!(one.to_string().bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    }
}
