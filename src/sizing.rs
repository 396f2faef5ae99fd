//! How much disk and memory a broker takes: formulas over a configuration, with constants that were measured. `docs/sizing.md`
//! tells the same for people. Pure: knows no machine, reads no file.

pub mod disk;
pub mod memory;

/// A number of bytes for people: three digits, and a unit of 1,024.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut number = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        // What would be rounded to 1,000 or more has the next unit.
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
    fn bytes_are_told_by_three_digits() {
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
            let told = number.parse::<f64>().unwrap() * 1024_f64.powi(i32::try_from(power).unwrap());
            prop_assert!((told - bytes as f64).abs() <= bytes as f64 / 100.0, "{} of {}", text, bytes);
        }
    }
}
