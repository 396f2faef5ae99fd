//! The text of a failure: the step that failed, and its causes.

use std::error::Error;

use crate::causes::causes;

/// Names the step at which an error came up, and each cause behind the error.
pub(super) fn at<E: Error + 'static>(step: &str) -> impl Fn(E) -> String {
    move |error| format!("{step}: {}", causes(&error))
}

/// The same for a problem that is a text already.
pub(super) fn problem_at(step: &str) -> impl Fn(String) -> String {
    move |problem| format!("{step}: {problem}")
}
