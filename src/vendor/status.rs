//! What became of the task. Owns the vendor's status words; never guesses at one it does not know.

use std::borrow::Cow;

use super::fields::{Fields, Key};
use crate::event::TaskStatus;

/// The status and the vendor's own word, empty if there is none; `None` if nothing in the body tells the status.
pub(super) fn read<'a>(fields: &Fields<'a>, has_output: bool) -> Option<(TaskStatus, Cow<'a, str>)> {
    stated(fields, Key::Status)
        .or_else(|| stated(fields, Key::Success))
        .or_else(|| implied(fields, has_output).map(|status| (status, Cow::default())))
}

fn stated<'a>(fields: &Fields<'a>, key: Key) -> Option<(TaskStatus, Cow<'a, str>)> {
    let flag = |done| (if done { TaskStatus::Completed } else { TaskStatus::Failed }, Cow::default());
    let word = |word: Cow<'a, str>| (of_word(&word), word);
    fields.text(key).map(word).or_else(|| fields.boolean(key).map(flag))
}

fn implied(fields: &Fields<'_>, has_output: bool) -> Option<TaskStatus> {
    let has_error = || fields.object(Key::Error).is_some() || fields.text(Key::ErrorMessage).is_some();
    if has_output { Some(TaskStatus::Completed) } else { has_error().then_some(TaskStatus::Failed) }
}

fn of_word(word: &str) -> TaskStatus {
    match word.to_ascii_lowercase().as_str() {
        "completed" | "done" | "success" => TaskStatus::Completed,
        "failed" | "error" | "timeout" | "moderation_blocked" => TaskStatus::Failed,
        "pending" | "queued" => TaskStatus::Pending,
        "processing" | "running" => TaskStatus::Processing,
        _ => TaskStatus::Unspecified,
    }
}
