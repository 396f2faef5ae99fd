//! What became of the task. Owns the vendor's status words; never guesses at one it does not know.

use std::{borrow::Cow, str::FromStr};

use super::fields::{Fields, Json, Key};
use crate::event::TaskStatus;

/// The words that are known, the usual ones first. The vendor's pages name few of them; the others are what services of its
/// kind say.
const WORDS: [(&str, TaskStatus); 26] = [
    ("completed", TaskStatus::Completed),
    ("failed", TaskStatus::Failed),
    ("processing", TaskStatus::Processing),
    ("pending", TaskStatus::Pending),
    ("complete", TaskStatus::Completed),
    ("done", TaskStatus::Completed),
    ("success", TaskStatus::Completed),
    ("succeeded", TaskStatus::Completed),
    ("succeed", TaskStatus::Completed),
    ("finished", TaskStatus::Completed),
    ("failure", TaskStatus::Failed),
    ("error", TaskStatus::Failed),
    ("internal_error", TaskStatus::Failed),
    ("timeout", TaskStatus::Failed),
    ("expired", TaskStatus::Failed),
    ("canceled", TaskStatus::Failed),
    ("cancelled", TaskStatus::Failed),
    ("rejected", TaskStatus::Failed),
    ("blocked", TaskStatus::Failed),
    ("filtered", TaskStatus::Failed),
    ("moderated", TaskStatus::Failed),
    ("moderation_blocked", TaskStatus::Failed),
    ("safety_blocked", TaskStatus::Failed),
    ("nsfw", TaskStatus::Failed),
    ("queued", TaskStatus::Pending),
    ("running", TaskStatus::Processing),
];

/// The words that say no more than that the task has failed; any other is a reason in itself.
const PLAIN_FAILURES: [&str; 3] = ["failed", "failure", "error"];

/// A word that the vendor may use for a status, and that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusWord(String);

/// A word of an unknown status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a status word that is known: use completed, failed, processing, pending, or another of the vendor's"
)]
pub struct StatusWordError;

impl FromStr for StatusWord {
    type Err = StatusWordError;

    fn from_str(raw: &str) -> Result<Self, StatusWordError> {
        let word = raw.trim();
        if of_word(word) == TaskStatus::Unspecified {
            Err(StatusWordError)
        } else {
            Ok(Self(word.to_owned()))
        }
    }
}

impl StatusWord {
    /// What it stands for, never [`TaskStatus::Unspecified`].
    pub fn status(&self) -> TaskStatus {
        of_word(&self.0)
    }

    /// The word as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The status and the vendor's own word, empty if there is none; `None` if nothing in the body tells the status.
pub(super) fn read<'a>(
    fields: &Fields<'a>,
    has_output: bool,
) -> Option<(TaskStatus, Cow<'a, str>)> {
    let (status, success) = (fields.json(Key::Status), fields.json(Key::Success));
    let flag = |word: &str| match word {
        "true" => Some(TaskStatus::Completed),
        "false" => Some(TaskStatus::Failed),
        _ => None,
    };
    let of_success = |value: Json<'a>| {
        let text = value
            .text()
            .filter(|text| text.trim().len() <= "false".len());
        let status = flag(&text?.trim().to_ascii_lowercase())?;
        Some((status, Cow::default()))
    };

    status
        .and_then(stated)
        .or_else(|| success.and_then(|value| of_success(value).or_else(|| stated(value))))
        .or_else(|| status.and_then(of_another_type))
        .or_else(|| success.and_then(of_another_type))
        .or_else(|| implied(fields, has_output).map(|status| (status, Cow::default())))
}

/// What a word, true or false says. Blanks around a word are no part of it, and blanks alone are none.
fn stated(value: Json<'_>) -> Option<(TaskStatus, Cow<'_, str>)> {
    let Some(text) = value.text() else {
        let status = if value.boolean()? {
            TaskStatus::Completed
        } else {
            TaskStatus::Failed
        };
        return Some((status, Cow::default()));
    };
    let word = match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    };
    (!word.is_empty()).then(|| (of_word(&word), word))
}

/// Whatever else stands there, `200` perhaps, is no word we know either, and is kept as it is written.
fn of_another_type(value: Json<'_>) -> Option<(TaskStatus, Cow<'_, str>)> {
    (!value.is_text()).then_some((TaskStatus::Unspecified, Cow::Borrowed(value.0)))
}

fn implied(fields: &Fields<'_>, has_output: bool) -> Option<TaskStatus> {
    let has_error =
        || fields.object(Key::Error).is_some() || fields.text(Key::ErrorMessage).is_some();
    if has_output {
        Some(TaskStatus::Completed)
    } else {
        has_error().then_some(TaskStatus::Failed)
    }
}

fn of_word(word: &str) -> TaskStatus {
    let known = WORDS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(word));
    known.map_or(TaskStatus::Unspecified, |(_, status)| *status)
}

/// The code that the vendor's word for a failure is; `None` if it says no more than "failed".
pub(super) fn code(word: &str) -> Option<String> {
    let is_plain = word.is_empty()
        || PLAIN_FAILURES
            .iter()
            .any(|plain| plain.eq_ignore_ascii_case(word));
    (!is_plain).then(|| word.to_ascii_uppercase())
}
