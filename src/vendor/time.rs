//! The vendor's times. Owns the accepted forms of texts and numbers, and the assumption that a time without a zone is UTC.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// The start of year 1: the earliest protobuf timestamp. The latest is beyond jiff's range.
const FIRST: Timestamp = Timestamp::constant(-62_135_596_800, 0);
/// The start of the year 5000, in seconds since 1970. A larger number counts milliseconds.
const MILLISECONDS_FROM: f64 = 95_617_584_000.0;
/// Nanoseconds: the precision of jiff and of an event's times.
const FRACTION_DIGITS_MAX: usize = 9;
/// Lengths of texts of bare digits that count as times: seconds (10, since 2001) and milliseconds (13).
const DIGITS: [usize; 2] = [10, 13];

/// Reads RFC 3339 with or without a fraction, with `T` or a space between date and time, and with `Z`, an offset or no zone at the
/// end; or the digits of seconds or milliseconds since 1970.
pub(super) fn read(text: &str) -> Option<Timestamp> {
    if DIGITS.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) {
        return of_number(text);
    }

    // jiff also reads week dates, annotations and more. The vendor writes none of these, so they would be a mistake.
    let (clock, rest) = text.split_at_checked("2025-12-06T21:43:03".len())?;
    let (fraction, zone) = split_fraction(rest)?;
    if !is_date_and_time(clock) {
        return None;
    }

    let shortened;
    let text = if fraction.len() > FRACTION_DIGITS_MAX {
        shortened = format!("{clock}.{}{zone}", &fraction[..FRACTION_DIGITS_MAX]);
        &shortened
    } else {
        text
    };

    let time = match zone {
        "" => TimeZone::UTC
            .to_timestamp(text.parse::<DateTime>().ok()?)
            .ok(),
        "Z" | "z" => text.parse().ok(),
        offset if is_offset(offset) => text.parse().ok(),
        _ => None,
    };
    time.filter(|time| *time >= FIRST)
}

/// Reads a JSON number: seconds since 1970, or milliseconds.
pub(super) fn of_number(number: &str) -> Option<Timestamp> {
    let float: f64 = number.parse().ok()?;
    let time = if float.abs() >= MILLISECONDS_FROM {
        Timestamp::from_millisecond(float as i64)
    } else if let Some((seconds, nanos)) = plain_seconds(number) {
        Timestamp::new(seconds, nanos)
    } else {
        Timestamp::from_nanosecond((float * 1e9) as i128)
    };
    time.ok().filter(|time| *time >= FIRST)
}

/// Exact seconds and nanoseconds: a float of today's seconds keeps only six decimal places. `None` if the number has an exponent.
fn plain_seconds(number: &str) -> Option<(i64, i32)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = &fraction[..fraction.len().min(FRACTION_DIGITS_MAX)];
    let nanos: i32 = format!("{digits:0<9}").parse().ok()?;

    Some((
        whole.parse().ok()?,
        if number.starts_with('-') {
            -nanos
        } else {
            nanos
        },
    ))
}

fn is_date_and_time(text: &str) -> bool {
    has_form(text, "0000-00-00T00:00:00")
        || has_form(text, "0000-00-00t00:00:00")
        || has_form(text, "0000-00-00 00:00:00")
}

fn is_offset(text: &str) -> bool {
    let forms = ["00:00", "0000", "00"];
    text.strip_prefix(['+', '-'])
        .is_some_and(|text| forms.iter().any(|form| has_form(text, form)))
}

/// True if the text equals the form, where each 0 of the form stands for any digit.
fn has_form(text: &str, form: &str) -> bool {
    let fits = |(byte, form): (u8, u8)| {
        if form == b'0' {
            byte.is_ascii_digit()
        } else {
            byte == form
        }
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

/// The digits of the fraction, or an empty text, and the rest. `None` if a point has no digits after it.
fn split_fraction(rest: &str) -> Option<(&str, &str)> {
    let Some(fraction) = rest.strip_prefix('.') else {
        return Some(("", rest));
    };
    let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &fraction[..fraction.len() - zone.len()];
    (!digits.is_empty()).then_some((digits, zone))
}
