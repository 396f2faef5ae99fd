//! Numbers, sizes and times as `size` prints them: for people, or in the syntax of the configuration. Pure.

use std::time::Duration;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// A size in the syntax of the configuration.
pub(super) fn size_key(bytes: u64) -> String {
    let units = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let exact = units
        .into_iter()
        .find(|(unit, _)| bytes.is_multiple_of(*unit));
    exact.map_or_else(
        || bytes.to_string(),
        |(unit, name)| format!("{}{name}", bytes / unit),
    )
}

/// A duration in the syntax of the configuration, rounded up to whole seconds.
pub(super) fn time_key(time: Duration) -> String {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    let units = [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (1, "s")];
    let exact = units
        .into_iter()
        .find(|(unit, _)| seconds.is_multiple_of(*unit));
    exact.map_or_else(String::new, |(unit, name)| {
        format!("{}{name}", seconds / unit)
    })
}

/// A duration for people: one unit, with one decimal if it is not whole.
pub(super) fn time_text(time: Duration) -> String {
    const YEAR: u64 = 365 * DAY;
    if time > Duration::from_secs(1_000 * YEAR) {
        return "more than 1,000 years".to_owned();
    }
    let seconds = time.as_secs_f64();
    let units = [
        (2 * YEAR, YEAR, "years"),
        (2 * DAY, DAY, "days"),
        (2 * HOUR, HOUR, "hours"),
        (2 * MINUTE, MINUTE, "minutes"),
    ];
    let (factor, unit) = units
        .into_iter()
        .find(|(from, ..)| seconds >= *from as f64)
        .map_or((1, "seconds"), |(_, factor, unit)| (factor, unit));
    let number = format!("{:.1}", seconds / factor as f64);
    match number.trim_end_matches(".0") {
        "1" => format!("1 {}", unit.trim_end_matches('s')),
        number => format!("{number} {unit}"),
    }
}

/// A number with thousands separators.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let comma = |at: usize| at > 0 && (digits.len() - at).is_multiple_of(3);
    digits
        .char_indices()
        .flat_map(|(at, digit)| comma(at).then_some(',').into_iter().chain([digit]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_one_unit_in_singular_or_plural() {
        for (seconds, text) in [
            (0.5, "0.5 seconds"),
            (1.0, "1 second"),
            (1.02, "1 second"),
            (90.0, "90 seconds"),
            (120.0, "2 minutes"),
            (5_400.0, "90 minutes"),
            (151_200.0, "42 hours"),
            (216_000.0, "2.5 days"),
        ] {
            assert_eq!(time_text(Duration::from_secs_f64(seconds)), text);
        }
    }
}
