//! The status of a task. Owns the list of the vendor's status words. Never guesses the meaning of an unknown word: it reads as
//! unspecified.

use std::{borrow::Cow, str::FromStr};

use super::fields::{Fields, Json, Key};
use crate::event::TaskStatus;

/// The known words, the usual ones first. The vendor's pages name few of them; the others are the words of similar services.
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

/// The words that only say that the task has failed. Any other word of a failure is also its reason.
const PLAIN_FAILURES: [&str; 3] = ["failed", "failure", "error"];

/// A known status word of the vendor, in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusWord(String);

/// The word is not a known status word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a known status word: use completed, failed, processing, pending, or another of the vendor's"
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
    /// The status that the word stands for, never [`TaskStatus::Unspecified`].
    pub fn status(&self) -> TaskStatus {
        of_word(&self.0)
    }

    /// The word as the operator wrote it, without surrounding space.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The status, and the vendor's own word or an empty text. `None` if the body has neither a status nor anything that implies one.
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

/// The status stated by a word or a boolean. Surrounding space is ignored; a blank text states nothing.
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

/// A value of another type, `200` for instance, is an unknown status, kept as it is written.
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

/// The error code in the vendor's word for a failure; `None` if the word only says that the task has failed.
pub(super) fn code(word: &str) -> Option<String> {
    let is_plain = word.is_empty()
        || PLAIN_FAILURES
            .iter()
            .any(|plain| plain.eq_ignore_ascii_case(word));
    (!is_plain).then(|| word.to_ascii_uppercase())
}
