//! Why a task failed. Owns the search for a code and a sentence in the many places where products put them.
//!
//! What the search does not use is kept in the details: nothing that the vendor said is only in the raw body.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value};

use super::{
    fields::{Fields, Json, Key},
    status,
};
use crate::event::TaskError;

/// The places beside `error`, in order, with their names.
const BESIDE: [(Key, &str); 6] = [
    (Key::ErrorCode, "error_code"),
    (Key::ErrorMessage, "error_message"),
    (Key::ErrorMsg, "error_msg"),
    (Key::Message, "message"),
    (Key::Description, "description"),
    (Key::Detail, "detail"),
];
/// Where the object of an error has its sentence.
const MESSAGES: [&str; 3] = ["message", "msg", "detail"];
/// Where an object of an error may have another one.
const NESTED: [&str; 4] = ["error", "message", "msg", "detail"];
/// Longest code in bytes. The vendor's have thirty; what is longer is read by people.
const CODE_BYTES_MAX: usize = 256;
/// How many objects or arrays in each other are looked into. The vendor's errors have one.
const LEVELS_MAX: usize = 4;

/// The reason of a failed task; `status_text` is the vendor's word, which can be a reason in itself.
pub(super) fn read(fields: &Fields<'_>, status_text: &str) -> TaskError {
    let error = fields.json(Key::Error);
    let given = error
        .map(|error| look_into(error, LEVELS_MAX))
        .unwrap_or_default();
    let beside: Vec<_> = BESIDE
        .iter()
        .filter_map(|&(key, name)| Some((name, fields.json(key)?)))
        .collect();
    let texts: Vec<_> = beside
        .iter()
        .filter_map(|&(name, value)| Some((name, text_beside(name, value)?)))
        .collect();
    let all = || {
        given
            .texts
            .iter()
            .chain(texts.iter().map(|(_, text)| text))
            .map(|text| text.trim())
    };

    let code = given
        .code
        .as_deref()
        .map(str::trim)
        .or_else(|| all().find(|text| is_code(text)));
    // The neighbour of a code is its message, word for word.
    let message = given
        .neighbour
        .as_deref()
        .or_else(|| all().find(|text| !is_code(text)))
        .or(code)
        .unwrap_or_default();

    let is_used = |text: &str| text.trim() == message.trim() || code == Some(text.trim());
    let mut unused = Map::new();
    if let Some(error) = error
        && !(given.is_used_up && given.texts.iter().all(|text| is_used(text)))
    {
        unused.insert("error".into(), error.value());
    }
    for (name, value) in beside {
        let text = texts.iter().find(|(with_text, _)| *with_text == name);
        if text.map_or_else(|| says_something(value), |(_, text)| !is_used(text)) {
            unused.insert(name.into(), value.value());
        }
    }
    let code = code
        .map(str::to_ascii_uppercase)
        .or_else(|| status::code(status_text));
    TaskError {
        code: code.unwrap_or_else(|| TaskError::NO_CODE.into()),
        message: message.into(),
        details: details(given.details.map(Json::value), unused),
    }
}

/// The vendor's details alone, the error as a whole, or all that there is to be kept under the names it has.
fn details(given: Option<Value>, mut unused: Map<String, Value>) -> Option<Value> {
    match (unused.len(), unused.contains_key("error")) {
        (0, _) => given,
        (1, true) => unused.remove("error"),
        (_, true) => Some(unused.into()), // `error` has the vendor's details in it
        (_, false) => {
            unused.extend(given.map(|given| ("details".into(), given)));
            Some(unused.into())
        }
    }
}

/// What `error`, or a value within it, says.
#[derive(Default)]
struct Given<'a> {
    /// Stated as one.
    code: Option<Cow<'a, str>>,
    /// Beside that code.
    neighbour: Option<Cow<'a, str>>,
    /// Without a code beside it: each may be a code itself.
    texts: Vec<Cow<'a, str>>,
    details: Option<Json<'a>>,
    /// There is nothing else in it.
    is_used_up: bool,
}

fn look_into(value: Json<'_>, levels: usize) -> Given<'_> {
    if let Some(text) = value.text() {
        let texts = if text.trim().is_empty() {
            Vec::new()
        } else {
            vec![text]
        };
        return Given {
            texts,
            is_used_up: true,
            ..Given::default()
        };
    }
    if levels == 0 || !says_something(value) {
        return Given {
            is_used_up: !says_something(value),
            ..Given::default()
        };
    }
    if let Some((elements, count)) = value.first_elements(1) {
        let given = elements
            .first()
            .map(|&first| look_into(first, levels - 1))
            .unwrap_or_default();
        return Given {
            is_used_up: given.is_used_up && count == 1,
            ..given
        };
    }
    look_into_object(value, levels)
}

fn look_into_object(value: Json<'_>, levels: usize) -> Given<'_> {
    let Some(mut entries) = value.entries() else {
        return Given::default();
    };
    let details = entries.remove("details");
    entries.retain(|_, value| says_something(*value));

    let code = entries
        .get("code")
        .and_then(|&code| text_or_number(code))
        .filter(|code| code.len() <= CODE_BYTES_MAX);
    if code.is_some() {
        entries.remove("code");
    }
    // A code that is too long is a sentence.
    let sentence = MESSAGES
        .into_iter()
        .chain(["code"])
        .find_map(|key| Some((key, entries.get(key)?.text()?)));
    let text = sentence.map(|(key, text)| {
        entries.remove(key);
        text
    });
    if code.is_some() {
        return Given {
            code,
            neighbour: text,
            texts: Vec::new(),
            details,
            is_used_up: entries.is_empty(),
        };
    }

    let Some((key, within)) = take_nested(&mut entries) else {
        return Given {
            texts: text.into_iter().collect(),
            details,
            is_used_up: entries.is_empty(),
            ..Given::default()
        };
    };
    let within = look_into(within, levels - 1);
    // A name that we do not know may be half of what is said.
    let is_known = NESTED.contains(&key.as_str());
    let has_room = details.is_none() || within.details.is_none();
    Given {
        is_used_up: is_known && entries.is_empty() && within.is_used_up && has_room,
        texts: text.into_iter().chain(within.texts).collect(),
        details: details.or(within.details),
        ..within
    }
}

/// The first object or array in an object, of known names before others.
fn take_nested<'a>(entries: &mut BTreeMap<String, Json<'a>>) -> Option<(String, Json<'a>)> {
    let is_nested = |value: &Json<'_>| value.0.starts_with(['{', '[']);
    let known = NESTED
        .into_iter()
        .find(|&key| entries.get(key).is_some_and(is_nested));
    let other = || {
        entries
            .iter()
            .find(|(_, value)| is_nested(value))
            .map(|(key, _)| key.clone())
    };
    let key = known.map(str::to_owned).or_else(other)?;
    entries.remove_entry(&key)
}

fn text_beside<'a>(name: &str, value: Json<'a>) -> Option<Cow<'a, str>> {
    let text = if name == "error_code" {
        text_or_number(value)
    } else {
        value.text()
    };
    text.filter(|text| !text.trim().is_empty())
}

fn text_or_number(value: Json<'_>) -> Option<Cow<'_, str>> {
    let text = value.text().or_else(|| value.number().map(Cow::Borrowed));
    text.filter(|text| !text.trim().is_empty())
}

/// Null, nothing but blanks, and what is empty are the same as no value.
fn says_something(value: Json<'_>) -> bool {
    match value.0.as_bytes() {
        [b'"', ..] => value.text().is_some_and(|text| !text.trim().is_empty()),
        [b'{', inner @ .., b'}'] | [b'[', inner @ .., b']'] => !inner.trim_ascii().is_empty(),
        value => value != b"null",
    }
}

/// One word of ASCII letters, digits and `_`. Only ASCII: a sentence in Chinese has no spaces either.
fn is_code(text: &str) -> bool {
    text.len() <= CODE_BYTES_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
