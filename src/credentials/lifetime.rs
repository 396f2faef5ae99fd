//! How long a secret is valid, and which of the two secrets of a name it is. Pure.

use jiff::Timestamp;

/// The time in which a secret may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// When the secret was made. Orders the signing keys.
    pub created: Option<Timestamp>,
    /// The secret is refused from this moment on.
    pub expires: Option<Timestamp>,
}

impl Lifetime {
    pub(super) fn is_over(self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// Which secret of a line was presented. During a rotation a line has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The secret that senders and clients should use.
    Current,
    /// The secret before it, which is still accepted during the rotation.
    Previous,
}

impl Generation {
    /// The word used in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
        }
    }
}

/// The secret that is still accepted beside its successor, and its own lifetime.
pub(super) type Previous<S> = Option<(S, Lifetime)>;
