//! Reads and writes sizes in bytes as in the configuration and the credentials file: `64MiB`. Pure.

/// Units of size, largest first.
const SIZE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// A text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("{0:?} is not a size: it begins with a whole number, like 64MiB")]
    Number(String),
    // MB is refused, too: it would be mistaken for MiB.
    #[error("{0:?} is not a size: its unit is one of B, KiB, MiB, GiB, TiB")]
    Unit(String),
    #[error("{0:?} is too large for a size")]
    TooLarge(String),
}

/// Reads a text like `64MiB`, `64 MiB`, `512B` or `512`.
pub(crate) fn parse_size(raw: &str) -> Result<u64, SizeError> {
    let text = raw.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::Number(raw.to_owned()));
    }
    let factor = match unit.trim_start() {
        "" => 1,
        unit => {
            let known = SIZE_UNITS.iter().find(|(name, _)| *name == unit);
            known.ok_or_else(|| SizeError::Unit(raw.to_owned()))?.1
        }
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor));
    bytes.ok_or_else(|| SizeError::TooLarge(raw.to_owned()))
}

/// The size in the largest unit that divides it; [`parse_size`] reads it back.
pub(crate) fn size_text(bytes: u64) -> String {
    let exact = SIZE_UNITS
        .iter()
        .find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    exact.map_or_else(
        || "0B".to_owned(),
        |(unit, factor)| format!("{}{unit}", bytes / factor),
    )
}
