//! How many reads may hang at once, and when the next one may begin.
//!
//! A read that hangs keeps its thread. The path may lead elsewhere by now, so there is always another read, but ever later.

use std::time::Duration;

use tokio::time::Instant;

/// How long one read may take, with looking and parsing: a local file takes milliseconds, a slow mount some hundred.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// On request a read begins at once only while fewer than so many hang.
pub(super) const HANGING_MAX: usize = 8;
/// Pauses between reads of files that hang: doubled with each.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(500);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The pause is at least this part of the time that the mount has hung. So a day costs 160 threads, of about 30 KiB each, and a
/// month 270.
pub(super) const PAUSE_PART: u32 = 32;

/// How long no read may begin because so many hang, of which the last was given up at `hung_at`.
pub(super) fn pause_beside(
    hanging: usize,
    hung_at: Option<Instant>,
    now: Instant,
) -> Option<Duration> {
    let pause = PAUSE_MAX.saturating_sub(now.duration_since(hung_at?));
    (hanging >= HANGING_MAX && !pause.is_zero()).then_some(pause)
}

/// Why nothing is read although it was requested.
pub(super) fn already_hanging(count: usize, pause: Duration) -> String {
    format!(
        "not read: {count} reads hang already, the next may begin in {} s",
        pause.as_secs() + 1
    )
}
