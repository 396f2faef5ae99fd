//! How much disk and memory a broker needs: formulas over a configuration, with measured constants.
//!
//! `docs/sizing.md` explains them to operators. Pure: asks no machine, reads no file.

pub mod disk;
pub(crate) mod memory;

/// A number of bytes with three digits and a binary unit: `10.0 GiB`.
pub(crate) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut number = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        // A number that would be rounded to 1,000 gets the next unit.
        if number < 999.5 {
            break;
        }
        (number, unit) = (number / 1024.0, next);
    }
    match number {
        _ if unit == "B" => format!("{bytes} B"),
        _ if number < 9.995 => format!("{number:.2} {unit}"),
        _ if number < 99.95 => format!("{number:.1} {unit}"),
        _ => format!("{number:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "0.98 KiB"),
            (1_024, "1.00 KiB"),
            (10_240, "10.0 KiB"),
            (10 << 30, "10.0 GiB"),
            (1_000 << 20, "0.98 GiB"),
            (512 << 20, "512 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes_text(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn a_text_is_off_by_less_than_a_percent(bytes: u64) {
            let text = bytes_text(bytes);
            let (number, unit) = text.split_once(' ').unwrap();
            let power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].iter().position(|name| *name == unit).unwrap();
            let shown = number.parse::<f64>().unwrap() * 1024_f64.powi(i32::try_from(power).unwrap());
            prop_assert!((shown - bytes as f64).abs() <= bytes as f64 / 100.0, "{} of {}", text, bytes);
        }
    }
}
