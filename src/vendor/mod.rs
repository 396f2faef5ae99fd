//! RunBlob's callback bodies: what they say, and what they look like.
//!
//! Owns every rule about the vendor's JSON: [`read`] turns a body into a [`Report`], [`sample`] writes bodies like the
//! vendor's. Pure: no I/O, no clock, no randomness, and never a log line, because a body holds user content.
//!
//! The vendor documents a different shape per product and changes them without notice, so reading is lenient: a callback is
//! refused only if it is not a JSON object or if its task or status cannot be told. Any other field that is missing, null, of
//! the wrong type or unreadable is absent, and costs nothing but itself.
//!
//! A body is walked once: `fields` cuts it into the raw texts of the keys we know, and the other files look into the few
//! that matter to them: `status`, `outputs`, `error`, `time`, and `infer` for the product.

mod error;
mod fields;
mod infer;
mod outputs;
pub mod sample;
mod status;
#[cfg(test)]
mod tests;
mod time;

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;

use crate::event::{Report, TaskId, TaskStatus};
use fields::{Fields, Json, Key};
pub use status::{StatusWord, StatusWordError};

/// Levels of arrays and objects in a body, the outermost included: what serde_json reads before it gives up, so whatever we
/// take apart or hand on as JSON can be read again. The vendor's bodies have three.
pub const NESTING_LEVELS_MAX: usize = 128;

/// Why a body could not be understood. Neither the text nor the reason ever repeats any of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not JSON, or not UTF-8.
    #[error("the body is not JSON")]
    NotJson,
    /// JSON, but deeper than [`NESTING_LEVELS_MAX`]; its reason is that of [`Unreadable::NotJson`].
    #[error("the body is not JSON that can be read: more than {NESTING_LEVELS_MAX} levels deep")]
    TooDeeplyNested,
    /// JSON, but a text, a number, …
    #[error("the body is JSON, but not an object")]
    NotAnObject,
    /// A JSON array; its reason is that of [`Unreadable::NotAnObject`].
    #[error("the body is a JSON array, not an object")]
    Array,
    /// No id under any key that the vendor uses.
    #[error("no task id: generation_id, task_uuid, task_id and id are all missing or empty")]
    NoTaskId,
    /// An id that [`TaskId`] does not take, or one that lost characters on its way.
    #[error("the task id is not 1 to 128 printable characters without spaces")]
    BadTaskId,
    /// Neither a status nor anything that implies one.
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

    /// A stable snake_case word, for the answer, the quarantine and metrics.
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

/// What an operator knows better than a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The task, which the body does not name properly.
    pub task_id: Option<TaskId>,
    /// A status word, instead of the body's.
    pub status: Option<StatusWord>,
}

/// Reads a callback's body, or says why it has to be quarantined.
///
/// Where a text holds half of a surrogate pair (`\ud83d` alone, as left by a sender that cuts a prompt inside an emoji), the
/// half becomes a replacement character; only in a task id, where two ids could become one, or in a key, is it refused.
pub fn read(body: &[u8]) -> Result<Report, Unreadable> {
    read_as(body, &Known::default())
}

/// Like [`read`], for an operator who knows something better.
pub fn read_as(body: &[u8], known: &Known) -> Result<Report, Unreadable> {
    let text = text(body)?;
    let fields = Fields::of_text(&text)?;
    let task_id = known.task_id.clone().map_or_else(|| task_id(&fields), Ok)?;
    report(&fields, task_id, known.status.as_ref())
}

/// The first elements of a body that is an array, `count_max` at most, as they stand in it, and how many there are; `None` if it is
/// no array that can be read, or an empty one.
pub fn elements(body: &[u8], count_max: usize) -> Option<(Vec<Bytes>, usize)> {
    let text = text(body).ok()?;
    let text = text.trim_ascii();
    if Json(text).nests_deeper_than(NESTING_LEVELS_MAX) {
        return None;
    }
    let (first, count) = Json(text)
        .first_elements(count_max)
        .filter(|&(_, count)| count > 0)?;
    Some((
        first
            .into_iter()
            .map(|element| Bytes::copy_from_slice(element.0.as_bytes()))
            .collect(),
        count,
    ))
}

/// A body as text. A byte order mark says how it is encoded, and is no part of it; without one it is UTF-8.
fn text(body: &[u8]) -> Result<Cow<'_, str>, Unreadable> {
    let utf16 = |units: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = units.as_chunks();
        let units: Vec<_> = pairs.iter().map(|&pair| unit(pair)).collect();
        // Half of a surrogate pair is as good, or bad, as an escaped one.
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
            // The whole body at once: serde_json does not check the texts it skips.
            std::str::from_utf8(text)
                .map(Cow::Borrowed)
                .map_err(|_| Unreadable::NotJson)
        }
    }
}

fn report(
    fields: &Fields<'_>,
    task_id: TaskId,
    known_status: Option<&StatusWord>,
) -> Result<Report, Unreadable> {
    let outputs = outputs::read(fields);
    let (status, status_text) = match known_status {
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

/// The first id that is there decides, also if it is bad: another key might hold the id of something else.
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
