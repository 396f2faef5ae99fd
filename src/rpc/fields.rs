//! Fields of requests that are texts. Pure.

use crate::wire::Malformed;

/// Parses a field.
pub(super) fn parse<'a, T, E: ToString>(
    field: &str,
    text: &'a str,
    parse: impl Fn(&'a str) -> Result<T, E>,
) -> Result<T, Malformed> {
    parse(text).map_err(|error| Malformed::new(field, error.to_string()))
}

/// Parses a field that may be empty.
pub(super) fn optional<'a, T, E: ToString>(
    field: &str,
    text: &'a str,
    parse: impl Fn(&'a str) -> Result<T, E>,
) -> Result<Option<T>, Malformed> {
    if text.is_empty() {
        return Ok(None);
    }
    self::parse(field, text, parse).map(Some)
}
