//! The vendor's times. Owns which texts are one, and the assumption that a time without a zone is UTC.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// The start of year 1: what a protobuf time stamp can hold. The other end of its range is beyond jiff's.
const FIRST: Timestamp = Timestamp::constant(-62_135_596_800, 0);

/// Reads RFC 3339 with 0 to 9 fraction digits, `T` or a space between date and time, and `Z`, an offset or nothing behind.
pub(super) fn read(text: &str) -> Option<Timestamp> {
    // jiff also reads week dates, annotations and more. The vendor writes none of it, so it would be somebody's mistake.
    let (clock, rest) = text.split_at_checked("2025-12-06T21:43:03".len())?;
    let zone = without_fraction(rest)?;
    if !is_date_and_time(clock) {
        return None;
    }
    let time = match zone {
        "" => TimeZone::UTC.to_timestamp(text.parse::<DateTime>().ok()?).ok(),
        "Z" | "z" => text.parse().ok(),
        offset if is_offset(offset) => text.parse().ok(),
        _ => None,
    };
    time.filter(|time| *time >= FIRST)
}

fn is_date_and_time(text: &str) -> bool {
    has_form(text, "0000-00-00T00:00:00")
        || has_form(text, "0000-00-00t00:00:00")
        || has_form(text, "0000-00-00 00:00:00")
}

fn is_offset(text: &str) -> bool {
    has_form(text, "+00:00") || has_form(text, "-00:00")
}

/// True if the text equals the form with any digit for each 0.
fn has_form(text: &str, form: &str) -> bool {
    let fits = |(byte, form): (u8, u8)| if form == b'0' { byte.is_ascii_digit() } else { byte == form };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

/// What follows the fraction, if there is one of 1 to 9 digits or none at all.
fn without_fraction(rest: &str) -> Option<&str> {
    let Some(fraction) = rest.strip_prefix('.') else { return Some(rest) };
    let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    (1..=9).contains(&(fraction.len() - zone.len())).then_some(zone)
}
