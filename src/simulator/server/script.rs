//! Answers that tests prescribe, in place of true ones.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::tasks::State;

/// Which requests a script is for. A task's own script comes before that of its product, and that before the one of all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The status of one task.
    Task {
        /// The slug of its product.
        product: String,
        /// Its id.
        id: String,
    },
    /// The lists of one product.
    List {
        /// The slug of the product.
        product: String,
    },
    /// Every status and every list.
    Checks,
    /// Every request for a new task. A step that needs a true answer has that of a task that is accepted.
    Generate,
}

impl Target {
    /// The status of one task.
    pub fn task(product: &str, id: &str) -> Self {
        Self::Task {
            product: product.to_owned(),
            id: id.to_owned(),
        }
    }

    /// The lists of one product.
    pub fn list(product: &str) -> Self {
        Self::List {
            product: product.to_owned(),
        }
    }
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The true answer.
    Truth,
    /// The task in another state than it is in. In a list: every task of the page.
    State(State),
    /// The true answer with some fields replaced. In a list: in every task of the page.
    Fields(Map<String, Value>),
    /// This HTTP status with this body.
    Answer(u16, Bytes),
    /// This HTTP status with this header and the body that an error with that status has.
    Header(u16, &'static str, String),
    /// The answer of another step, later.
    Slow(Duration, Box<Self>),
    /// The first half of the true answer under a `content-length` for all of it; then the connection breaks.
    Truncated,
    /// 200 with a JSON object of this many bytes, without a `content-length`.
    Huge(usize),
    /// No answer, and the connection stays open.
    Silence,
    /// No answer: the connection breaks.
    Broken,
}

impl Step {
    /// This HTTP status, with the body that the vendor has for it.
    pub fn status(status: u16) -> Self {
        Self::Header(status, "x-simulated", "scripted".to_owned())
    }

    /// 429 with a `retry-after` of so many seconds.
    pub fn too_many(retry_after: u64) -> Self {
        Self::Header(429, "retry-after", retry_after.to_string())
    }

    /// 302 to another URL.
    pub fn redirect(location: &str) -> Self {
        Self::Header(302, "location", location.to_owned())
    }

    /// Replaces the fields of an object in the true answer; any other value replaces none.
    pub fn fields(fields: Value) -> Self {
        match fields {
            Value::Object(fields) => Self::Fields(fields),
            _ => Self::Fields(Map::new()),
        }
    }
}

/// The scripts of all targets.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    by_target: BTreeMap<Target, Script>,
}

#[derive(Debug, Default)]
struct Script {
    steps: VecDeque<Step>,
    /// The answer after the last step.
    afterwards: Option<Step>,
}

impl Scripts {
    /// Appends steps, one for each request.
    pub(super) fn then(&mut self, target: Target, steps: impl IntoIterator<Item = Step>) {
        self.by_target
            .entry(target)
            .or_default()
            .steps
            .extend(steps);
    }

    /// Sets the answer to every request after the steps.
    pub(super) fn always(&mut self, target: Target, step: Step) {
        self.by_target.entry(target).or_default().afterwards = Some(step);
    }

    pub(super) fn clear(&mut self) {
        self.by_target.clear();
    }

    /// Takes the step for a request to the first of these targets that has one.
    pub(super) fn next(&mut self, targets: &[Target]) -> Step {
        targets
            .iter()
            .find_map(|target| {
                let script = self.by_target.get_mut(target)?;
                script
                    .steps
                    .pop_front()
                    .or_else(|| script.afterwards.clone())
            })
            .unwrap_or(Step::Truth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_taken_in_order_and_the_narrowest_target_comes_first() {
        let mut scripts = Scripts::default();
        let targets = [Target::task("veo", "a"), Target::Checks];
        scripts.then(targets[0].clone(), [Step::status(500), Step::Silence]);
        scripts.always(Target::Checks, Step::status(401));
        let mut next = || scripts.next(&targets);
        assert_eq!(next(), Step::status(500));
        assert_eq!(next(), Step::Silence);
        assert_eq!([next(), next()], [Step::status(401), Step::status(401)]);
        assert_eq!(scripts.next(&[Target::Generate]), Step::Truth);
        scripts.clear();
        assert_eq!(scripts.next(&targets), Step::Truth);
    }
}
