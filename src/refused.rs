//! The last callbacks that were refused, as operators see them.
//!
//! Written on refusals only, which anybody can cause as fast as the network takes them: see [`crate::recent`] for what one costs.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;

use crate::{network, printable::printable_beginning, recent::Recent, trace::RequestId};

/// One request to the public listener that was not kept. It has no secret: no query, no header and no body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedCallback {
    /// When it was answered, by the log's clock.
    pub at: Timestamp,
    /// The `x-request-id` of the answer.
    pub request_id: RequestId,
    /// What the metrics count it as, and what the sender was answered.
    pub outcome: &'static str,
    /// The status of the answer.
    pub http_status: u16,
    /// Why it was refused; the sender does not learn it.
    pub cause: &'static str,
    /// What the operator can do about it.
    pub explanation: &'static str,
    /// The product that the URL names; `other` if it is malformed, empty if there is none.
    pub product: Box<str>,
    /// The path of the URL, printable and cut.
    pub path: Box<str>,
    /// The client, behind trusted proxies.
    pub address: IpAddr,
    /// Kind and name of the credential, if that is proved.
    pub credential: Box<str>,
    /// The key that the URL names, which is not proved.
    pub key_id: Box<str>,
}

/// The last refusals. The owner of one is its address, or its IPv6 /64.
#[derive(Debug, Default)]
pub(crate) struct RefusedCallbacks(Recent<IpAddr, RefusedCallback>);

impl RefusedCallbacks {
    /// Keeps a refusal, in place of an older one if there is no room.
    pub(crate) fn note(&self, mut refused: RefusedCallback) {
        refused.path = printable_beginning(&refused.path).into();
        self.0.note(network::of(refused.address), refused);
    }

    /// The newest `count_max` of those before number `before`, the newest first, with their numbers.
    pub(crate) fn newest(&self, before: u64, count_max: usize) -> Vec<(u64, Arc<RefusedCallback>)> {
        self.0.newest(before, count_max, |_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_printable_and_short() {
        let refused = RefusedCallbacks::default();
        refused.note(RefusedCallback {
            at: Timestamp::UNIX_EPOCH,
            request_id: RequestId::new(),
            outcome: "unauthorized",
            http_status: 401,
            cause: "missing",
            explanation: "",
            product: "veo".into(),
            path: "\u{202e}x".repeat(1 << 16).into(),
            address: "::1".parse().unwrap(),
            credential: "".into(),
            key_id: "".into(),
        });
        let [(_, kept)] = &refused.newest(u64::MAX, 9)[..] else {
            panic!("one refusal")
        };
        assert!(
            kept.path.starts_with("\\u{202e}x") && kept.path.len() < 300,
            "{kept:?}"
        );
    }
}
