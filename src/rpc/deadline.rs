//! The deadline of a call: its `grpc-timeout` as a point in time. Pure.

use std::time::Duration;

use hyper::HeaderMap;
use tokio::time::Instant;
use tonic::{Request, Status};

/// The point in time at which the client stops waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(pub Instant);

/// Notes the deadline of a call that has one, before tonic starts its own timer for it. tonic's timer ends a call without a reason, and
/// does not end a stream. A deadline that is noted first is never later than tonic's.
pub(crate) fn note_deadline(mut request: Request<()>) -> Result<Request<()>, Status> {
    if let Some(deadline) = Deadline::of_headers(request.metadata().as_ref()) {
        request.extensions_mut().insert(deadline);
    }
    Ok(request)
}

impl Deadline {
    /// That of a call with these headers, if it begins now.
    pub(crate) fn of_headers(headers: &HeaderMap) -> Option<Self> {
        let timeout = timeout(headers)?;
        Instant::now().checked_add(timeout).map(Self)
    }
}

/// The deadline as noted.
pub(super) fn of<T>(request: &Request<T>) -> Option<Instant> {
    request
        .extensions()
        .get()
        .map(|&Deadline(deadline)| deadline)
}

fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.checked_mul(3600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout_of(text: &'static str) -> Option<Duration> {
        let mut request = Request::new(());
        request
            .metadata_mut()
            .insert("grpc-timeout", text.parse().unwrap());
        timeout(request.metadata().as_ref())
    }

    #[test]
    fn a_timeout_has_a_number_and_one_of_six_units() {
        let good = [
            ("1H", 3_600_000),
            ("2M", 120_000),
            ("3S", 3_000),
            ("4m", 4),
            ("5000u", 5),
            ("6000000n", 6),
        ];
        for (text, millis) in good {
            assert_eq!(
                timeout_of(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "S",
            "5",
            "5s",
            "-5S",
            "1.5S",
            "5 S",
            "18446744073709551615H",
            "18446744073709551616n",
        ] {
            assert_eq!(timeout_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_timeout_beyond_the_clock_is_no_deadline() {
        for (text, has_deadline) in [("1H", true), ("18446744073709551615S", false)] {
            let mut request = Request::new(());
            request
                .metadata_mut()
                .insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(
                of(&note_deadline(request).unwrap()).is_some(),
                has_deadline,
                "{text}"
            );
        }
        assert!(of(&note_deadline(Request::new(())).unwrap()).is_none());
    }
}
