//! Conversions between the integers of the configuration, of memory and of metrics. None of them fails.

/// A limit as a size in memory. Where sizes have 32 bits, a larger limit is no limit.
pub(super) fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A number as the value of a gauge.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
