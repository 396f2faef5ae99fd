//! RunBlob's callback bodies: reading them into reports, and writing samples of them.
//!
//! Owns every rule about the vendor's JSON: [`read`] turns a body into a [`Report`], [`sample`] and [`task_sample`] write bodies
//! like the vendor's. Pure: no I/O, no clock, no randomness, and never a log line, because a body holds user content.
//!
//! The vendor documents a different shape for each product and changes shapes without notice, so reading is lenient. A callback is
//! refused only if it is not a JSON object, or has no task id or no status. Any other field that is missing, null, of the wrong
//! type or unreadable counts as absent and does not affect the fields beside it.
//!
//! A body is parsed once: `fields` cuts it into the raw JSON text of each known key. Each other file then parses the few keys that
//! it owns: `status`, `outputs`, `error`, `time`, and `infer` for the product.

mod error;
mod fields;
mod infer;
mod outputs;
pub mod sample;
mod status;
pub mod task_sample;
#[cfg(test)]
mod tests;
mod time;

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;

use crate::event::{Report, TaskId, TaskStatus};
use fields::{Fields, Json, Key};
pub use status::{StatusWord, StatusWordError};

/// Most levels of arrays and objects in a body, the outermost included. It is serde_json's own limit, so any part of a body that is
/// passed on as JSON can be parsed again. The vendor's bodies have three levels.
pub const NESTING_LEVELS_MAX: usize = 128;

/// A body cannot be read as a report and has to be quarantined. Neither the text nor the reason ever repeats any of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The body is not JSON, or not UTF-8.
    #[error("the body is not JSON")]
    NotJson,
    /// The body is JSON, but deeper than [`NESTING_LEVELS_MAX`]. It shares the reason of [`Unreadable::NotJson`].
    #[error("the body is not JSON that can be read: more than {NESTING_LEVELS_MAX} levels deep")]
    TooDeeplyNested,
    /// The body is a JSON string, number, boolean, null or empty array.
    #[error("the body is JSON, but not an object")]
    NotAnObject,
    /// The body is a JSON array with elements. It shares the reason of [`Unreadable::NotAnObject`].
    #[error("the body is a JSON array, not an object")]
    Array,
    /// There is no id under any of the vendor's keys.
    #[error("no task id: generation_id, task_uuid, task_id and id are all missing or empty")]
    NoTaskId,
    /// The id is not a valid [`TaskId`], or has lost characters on its way.
    #[error("the task id is not 1 to 128 printable characters without spaces")]
    BadTaskId,
    /// There is neither a status nor an output or error that would imply one.
    #[error(
        "no status: neither status nor success, and neither an output nor an error that would imply one"
    )]
    NoStatus,
}

impl Unreadable {
    /// Every kind, so that metrics and documents can list them.
    pub const ALL: [Self; 7] = [
        Self::NotJson,
        Self::TooDeeplyNested,
        Self::NotAnObject,
        Self::Array,
        Self::NoTaskId,
        Self::BadTaskId,
        Self::NoStatus,
    ];

    /// The stable snake_case word in the HTTP answer, in quarantine and in metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotJson | Self::TooDeeplyNested => "not_json",
            Self::NotAnObject | Self::Array => "not_an_object",
            Self::NoTaskId => "no_task_id",
            Self::BadTaskId => "bad_task_id",
            Self::NoStatus => "no_status",
        }
    }
}

/// Values by which an operator replaces those of a quarantined body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The task id to use instead of the body's.
    pub task_id: Option<TaskId>,
    /// The status word to use instead of the body's.
    pub status: Option<StatusWord>,
}

/// Reads a callback's body. On an error the callback has to be quarantined.
///
/// An unpaired surrogate in a text (`\ud83d` alone, left by a sender that truncates a prompt inside an emoji) becomes a replacement
/// character. It is refused only in a task id, where two ids could become one, and in a key.
pub fn read(body: &[u8]) -> Result<Report, Unreadable> {
    read_as(body, &Overrides::default())
}

/// Like [`read`], with an operator's values in place of the body's.
pub fn read_as(body: &[u8], overrides: &Overrides) -> Result<Report, Unreadable> {
    let text = text(body)?;
    let fields = Fields::of_text(&text)?;
    let task_id = overrides
        .task_id
        .clone()
        .map_or_else(|| task_id(&fields), Ok)?;
    report(&fields, task_id, overrides.status.as_ref())
}

/// The first `count_max` elements of a body that is an array, byte for byte, and the number of all its elements. `None` if the body
/// is not a readable array.
pub fn elements(body: &[u8], count_max: usize) -> Option<(Vec<Bytes>, usize)> {
    let text = text(body).ok()?;
    let text = text.trim_ascii();
    if Json(text).nests_deeper_than(NESTING_LEVELS_MAX) {
        return None;
    }
    let (first, count) = Json(text).first_elements(count_max)?;
    Some((
        first
            .into_iter()
            .map(|element| Bytes::copy_from_slice(element.0.as_bytes()))
            .collect(),
        count,
    ))
}

/// The body as text, without its byte order mark. The mark tells the encoding; without a mark it is UTF-8.
fn text(body: &[u8]) -> Result<Cow<'_, str>, Unreadable> {
    let utf16 = |units: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = units.as_chunks();
        let units: Vec<_> = pairs.iter().map(|&pair| unit(pair)).collect();
        // An unpaired surrogate is treated like an escaped one.
        if rest.is_empty() {
            Ok(Cow::Owned(String::from_utf16_lossy(&units)))
        } else {
            Err(Unreadable::NotJson)
        }
    };
    match body {
        [0xfe, 0xff, units @ ..] => utf16(units, u16::from_be_bytes),
        [0xff, 0xfe, units @ ..] => utf16(units, u16::from_le_bytes),
        [0xef, 0xbb, 0xbf, text @ ..] | text => {
            // The whole body is checked here: serde_json does not check the strings that it skips.
            std::str::from_utf8(text)
                .map(Cow::Borrowed)
                .map_err(|_| Unreadable::NotJson)
        }
    }
}

fn report(
    fields: &Fields<'_>,
    task_id: TaskId,
    status_override: Option<&StatusWord>,
) -> Result<Report, Unreadable> {
    let outputs = outputs::read(fields);
    let (status, status_text) = match status_override {
        Some(word) => (word.status(), Cow::Borrowed(word.as_str())),
        None => status::read(fields, !outputs.is_empty()).ok_or(Unreadable::NoStatus)?,
    };

    let owned = |key| fields.text(key).unwrap_or_default().into_owned();
    Ok(Report {
        task_id,
        inferred_product: infer::product(fields),
        status,
        outputs,
        error: (status == TaskStatus::Failed).then(|| error::read(fields, &status_text)),
        status_text: status_text.into_owned(),
        prompt: owned(Key::Prompt),
        model: owned(Key::Model),
        seed: fields.integer(Key::Seed),
        created_at: time(fields, Key::CreatedAt),
        completed_at: time(fields, Key::CompletedAt),
    })
}

fn time(fields: &Fields<'_>, key: Key) -> Option<Timestamp> {
    let value = fields.json(key)?;
    value.text().map_or_else(
        || time::of_number(value.number()?),
        |text| time::read(&text),
    )
}

/// The first key that is present decides, even if its id is invalid: a later key might hold the id of something else.
fn task_id(fields: &Fields<'_>) -> Result<TaskId, Unreadable> {
    const KEYS: [Key; 4] = [Key::GenerationId, Key::TaskUuid, Key::TaskId, Key::Id];
    let raw = KEYS
        .into_iter()
        .find_map(|key| fields.text_or_number(key))
        .ok_or(Unreadable::NoTaskId)?;
    if raw.contains(char::REPLACEMENT_CHARACTER) {
        return Err(Unreadable::BadTaskId);
    }
    TaskId::parse(&raw).map_err(|_| Unreadable::BadTaskId)
}
