//! From requests to the domain's types: everything that a client sends is checked here. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::v1;
use crate::event::{
    Filter, LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Product, TaskId, TaskStatus,
};

/// A field of a request that is malformed. A client sees it as a `BadRequest` violation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Malformed {
    /// Path of the field, for example `filter.task_ids[3]`.
    pub field: String,
    /// What is wrong, and what is allowed.
    pub problem: String,
}

impl Malformed {
    /// A field by its path, and what is wrong with it.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// How many values a filter may have.
#[derive(Clone, Copy, Debug)]
pub struct FilterLimits {
    /// Task ids.
    pub task_ids_max: usize,
    /// Products.
    pub products_max: usize,
}

/// Why a filter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterRefusal {
    /// A value is malformed.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Too many values.
    #[error("{field} has more than {limit} values: split it over several subscriptions")]
    TooMany {
        /// Path of the field.
        field: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// Checks a filter. `None` is the filter that matches everything.
pub fn filter_from_wire(
    filter: Option<v1::Filter>,
    limits: FilterLimits,
) -> Result<Filter, FilterRefusal> {
    let v1::Filter {
        task_ids,
        products,
        statuses,
        labels,
    } = filter.unwrap_or_default();

    at_most("filter.task_ids", task_ids.len(), limits.task_ids_max)?;
    at_most("filter.products", products.len(), limits.products_max)?;
    at_most("filter.statuses", statuses.len(), TaskStatus::ALL.len())?;
    at_most("filter.labels", labels.len(), LABELS_MAX)?;

    for (key, value) in &labels {
        if key.chars().count() > LABEL_KEY_CHARS_MAX
            || value.chars().count() > LABEL_VALUE_CHARS_MAX
        {
            let problem = format!(
                "a key has at most {LABEL_KEY_CHARS_MAX} characters, a value {LABEL_VALUE_CHARS_MAX}"
            );
            return Err(Malformed::new("filter.labels", problem).into());
        }
    }

    Ok(Filter {
        task_ids: each("filter.task_ids", &task_ids, |id| {
            TaskId::parse(id).map_err(|e| e.to_string())
        })?,
        products: each("filter.products", &products, |slug| {
            Product::parse(slug).map_err(|e| e.to_string())
        })?,
        statuses: each("filter.statuses", &statuses, |&number| {
            let status = u8::try_from(number).ok().and_then(TaskStatus::from_number);
            status.ok_or_else(|| format!("no status has the number {number}"))
        })?,
        labels: labels.into_iter().collect(),
        bound: None,
    })
}

fn at_most(field: &'static str, count: usize, limit: usize) -> Result<(), FilterRefusal> {
    if count > limit {
        Err(FilterRefusal::TooMany { field, limit })
    } else {
        Ok(())
    }
}

fn each<T, U, C: FromIterator<U>>(
    field: &str,
    values: &[T],
    parse: impl Fn(&T) -> Result<U, String>,
) -> Result<C, Malformed> {
    let indexed = values.iter().enumerate();
    indexed
        .map(|(at, value)| parse(value).map_err(|e| Malformed::new(format!("{field}[{at}]"), e)))
        .collect()
}

/// Reads a point in time.
pub fn instant_from_wire(
    field: &str,
    time: prost_types::Timestamp,
) -> Result<Timestamp, Malformed> {
    // The years 1 to 9999, and nanoseconds that count forward from the second: what protobuf allows.
    let in_range = (-62_135_596_800..=253_402_300_799).contains(&time.seconds)
        && (0..1_000_000_000).contains(&time.nanos);
    if !in_range {
        return Err(Malformed::new(
            field,
            "not a point in time between the years 1 and 9999",
        ));
    }
    // jiff ends a day earlier; no event is that far in the future.
    Ok(Timestamp::new(time.seconds, time.nanos).unwrap_or(Timestamp::MAX))
}

/// Reads a duration that must not be negative.
pub fn positive_duration(
    field: &str,
    duration: prost_types::Duration,
) -> Result<Duration, Malformed> {
    let negative = || Malformed::new(field, "must not be negative");
    // Checked first: the conversion negates negative numbers, and the smallest ones have no opposite.
    if duration.seconds < 0 || duration.nanos < 0 {
        return Err(negative());
    }
    Duration::try_from(duration).map_err(|_| negative())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_not_negative_however_little_or_much() {
        let read =
            |seconds, nanos| positive_duration("timeout", prost_types::Duration { seconds, nanos });
        assert_eq!(read(1, 500_000_000), Ok(Duration::from_millis(1_500)));
        assert_eq!(
            read(i64::MAX, i32::MAX),
            Ok(Duration::new(i64::MAX as u64, 999_999_999))
        );
        for (seconds, nanos) in [
            (-1, 0),
            (0, -1),
            (1, -1),
            (-1, 1),
            (i64::MIN, 0),
            (0, i32::MIN),
            (i64::MIN, i32::MIN),
        ] {
            assert_eq!(
                read(seconds, nanos).unwrap_err().field,
                "timeout",
                "{seconds} s {nanos} ns"
            );
        }
    }

    #[test]
    fn a_point_in_time_is_what_protobuf_allows_and_nothing_else() {
        let read =
            |seconds, nanos| instant_from_wire("since", prost_types::Timestamp { seconds, nanos });
        for (seconds, nanos) in [(0, 0), (-62_135_596_800, 0), (253_402_300_799, 999_999_999)] {
            assert!(read(seconds, nanos).is_ok(), "{seconds} s {nanos} ns");
        }
        for (seconds, nanos) in [
            (0, -1),
            (0, 1_000_000_000),
            (-62_135_596_801, 0),
            (253_402_300_800, 0),
            (i64::MAX, 0),
        ] {
            assert_eq!(
                read(seconds, nanos).unwrap_err().field,
                "since",
                "{seconds} s {nanos} ns"
            );
        }
    }
}
