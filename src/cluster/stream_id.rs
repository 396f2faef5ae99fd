//! Which stream it is.

use std::fmt;

/// A stream since it was made. A copy that is restored has the same one; a stream that is made anew has another, though it may be
/// filled with the same log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

impl StreamId {
    /// Of all streams that say none.
    pub const NONE: Self = Self(0);

    /// As it is displayed.
    pub fn parse(text: &str) -> Option<Self> {
        let is_whole = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok()?;
        is_whole.then_some(Self(number))
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
