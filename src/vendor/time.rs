//! The vendor's times. Owns which texts and numbers are one, and the assumption that a time without a zone is UTC.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// The start of year 1: what a protobuf time stamp can hold. The other end of its range is beyond jiff's.
const FIRST: Timestamp = Timestamp::constant(-62_135_596_800, 0);
/// The start of the year 5000, in seconds since 1970: a number beyond counts milliseconds.
const MILLISECONDS_FROM: f64 = 95_617_584_000.0;
/// What jiff reads of a fraction, and what an event's times hold.
const FRACTION_DIGITS_MAX: usize = 9;
/// Digits without a word about what they are: seconds since 2001, or milliseconds.
const DIGITS: [usize; 2] = [10, 13];

/// Reads RFC 3339 with or without a fraction, `T` or a space between date and time, and `Z`, an offset or nothing behind; or the
/// digits of seconds or milliseconds since 1970.
pub(super) fn read(text: &str) -> Option<Timestamp> {
    if DIGITS.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) {
        return of_number(text);
    }
    // jiff also reads week dates, annotations and more. The vendor writes none of it, so it would be somebody's mistake.
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

/// Reads a number of JSON: seconds since 1970, or milliseconds.
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

/// Seconds and nanoseconds, exactly: a float of today's seconds has no more than six places behind the point. `None` if the number
/// has an exponent.
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

/// True if the text equals the form with any digit for each 0.
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

/// The digits of the fraction, if there is one, and what follows; a point needs digits.
fn split_fraction(rest: &str) -> Option<(&str, &str)> {
    let Some(fraction) = rest.strip_prefix('.') else {
        return Some(("", rest));
    };
    let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &fraction[..fraction.len() - zone.len()];
    (!digits.is_empty()).then_some((digits, zone))
}
