//! Sequences and cursors: an event's place in the log, and the opaque text of it that clients hold. Pure.
//!
//! Every cursor carries the epoch of its log and a check sum, so that a cursor of another log, or a mistyped one, is refused and
//! never names the wrong event.

use std::fmt;

/// An event's place in the log; 0 is the place before the first event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The place after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The place before this one; 0 stays 0.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// The identity of one log, drawn at random when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A [`Sequence`] and the log that it belongs to: a client's bookmark.
///
/// Its text is 36 lower-case hexadecimal digits: epoch (16), sequence (16), check (4). Clients treat it as opaque. The check makes
/// a mistyped or truncated cursor malformed, so that it does not name another event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The log that the sequence counts in.
    pub epoch: Epoch,
    /// The last event that the client has; reading resumes after it.
    pub sequence: Sequence,
}

/// The text is not a cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: pass one exactly as it was received")]
pub struct CursorError;

impl Cursor {
    /// Length of the text in bytes.
    pub const TEXT_BYTES: usize = 36;

    /// Reads the text form. Only the exact output of [`Cursor::to_text`] is accepted.
    pub fn parse(text: &str) -> Result<Self, CursorError> {
        let hex = |range| {
            let digits: &str = text.get(range).ok_or(CursorError)?;
            let lower = digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if lower {
                u64::from_str_radix(digits, 16).map_err(|_| CursorError)
            } else {
                Err(CursorError)
            }
        };
        if text.len() != Self::TEXT_BYTES {
            return Err(CursorError);
        }

        let cursor = Self {
            epoch: Epoch(hex(0..16)?),
            sequence: Sequence(hex(16..32)?),
        };
        if hex(32..36)? == u64::from(cursor.check()) {
            Ok(cursor)
        } else {
            Err(CursorError)
        }
    }

    /// Writes the text form without allocating: this runs once per delivery.
    pub fn to_text(self) -> [u8; Self::TEXT_BYTES] {
        let mut text = [0; Self::TEXT_BYTES];
        text[..16].copy_from_slice(&digits(self.epoch.0));
        text[16..32].copy_from_slice(&digits(self.sequence.0));
        text[32..].copy_from_slice(&digits(self.check().into())[12..]);
        text
    }

    // Folds a 64-bit multiplicative hash to 16 bits: a typing error slips through once in 65,536 times.
    fn check(self) -> u16 {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed =
            (self.epoch.0.rotate_left(32) ^ self.sequence.0.wrapping_mul(ODD)).wrapping_mul(ODD);
        (mixed >> 48) as u16
    }
}

/// The 16 hexadecimal digits of a number, computed in parallel: each byte of a 128-bit word holds one digit.
fn digits(number: u64) -> [u8; 16] {
    const LOW: u128 = u128::MAX / 0xff * 0x0f;
    const ONES: u128 = u128::MAX / 0xff;
    // Halve the groups until each digit has a byte of its own.
    let mut spread = u128::from(number);
    spread = (spread | spread << 32) & (u128::MAX / ((1 << 64) - 1) * 0xffff_ffff);
    spread = (spread | spread << 16) & (u128::MAX / ((1 << 32) - 1) * 0xffff);
    spread = (spread | spread << 8) & (u128::MAX / 0xffff * 0xff);
    spread = (spread | spread << 4) & LOW;
    // Digits from 10 on are letters.
    let letters = ((spread + ONES * 6) >> 4) & ONES;
    (spread + ONES * u128::from(b'0') + letters * u128::from(b'a' - b'0' - 10)).to_be_bytes()
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_text()
            .iter()
            .try_for_each(|&digit| fmt::Write::write_char(f, char::from(digit)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_cursor_survives_its_text(epoch: u64, sequence: u64) {
            let cursor = Cursor { epoch: Epoch(epoch), sequence: Sequence(sequence) };
            prop_assert_eq!(Cursor::parse(&cursor.to_string()), Ok(cursor));
        }

        #[test]
        fn any_other_text_is_refused(text in "\\PC{0,64}") {
            if let Ok(cursor) = Cursor::parse(&text) {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }

        #[test]
        fn texts_of_one_log_sort_like_their_sequences(epoch: u64, a: u64, b: u64) {
            let text = |s| Cursor { epoch: Epoch(epoch), sequence: Sequence(s) }.to_string();
            prop_assert_eq!(a.cmp(&b), text(a).cmp(&text(b)));
        }
    }

    #[test]
    fn a_changed_digit_is_noticed() {
        let changes =
            (1..2_000u64).flat_map(|sequence| (0..36).map(move |digit| (sequence, digit)));
        let mut missed = 0;
        for (sequence, digit) in changes {
            let mut text = Cursor {
                epoch: Epoch(7),
                sequence: Sequence(sequence),
            }
            .to_text();
            text[digit] = if text[digit] == b'0' { b'1' } else { b'0' };
            missed += u32::from(Cursor::parse(std::str::from_utf8(&text).unwrap()).is_ok());
        }
        assert!(
            missed < 10,
            "{missed} of 72,000 slips look like cursors; a 16-bit check misses about one"
        );
    }
}
