//! The error of a failed task. Owns the search for a code and a message in the many places where products put them.
//!
//! Values that become neither code nor message are kept in the details, so a client never needs the raw body to see all of an error.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Map, Value};

use super::{
    fields::{Fields, Json, Key},
    status,
};
use crate::event::TaskError;

/// The keys of a body, other than `error`, that may hold a code or a message, in order of preference.
const OTHER_KEYS: [(Key, &str); 6] = [
    (Key::ErrorCode, "error_code"),
    (Key::ErrorMessage, "error_message"),
    (Key::ErrorMsg, "error_msg"),
    (Key::Message, "message"),
    (Key::Description, "description"),
    (Key::Detail, "detail"),
];
/// The members of an error object that may hold its message.
const MESSAGE_MEMBERS: [&str; 3] = ["message", "msg", "detail"];
/// The members of an error object that may hold another error object.
const NESTED_MEMBERS: [&str; 4] = ["error", "message", "msg", "detail"];
/// Longest code in bytes. The vendor's codes have about thirty; a longer text is a message.
const CODE_BYTES_MAX: usize = 256;
/// How many nested objects or arrays are searched. The vendor's errors have one level.
const LEVELS_MAX: usize = 4;

/// The error of a failed task. `status_text` is the vendor's status word, which can itself be the reason.
pub(super) fn read(fields: &Fields<'_>, status_text: &str) -> TaskError {
    let error = fields.json(Key::Error);
    let found = error
        .map(|error| search(error, LEVELS_MAX))
        .unwrap_or_default();
    let others: Vec<_> = OTHER_KEYS
        .iter()
        .filter_map(|&(key, name)| Some((name, fields.json(key)?)))
        .collect();
    let texts: Vec<_> = others
        .iter()
        .filter_map(|&(name, value)| Some((name, text_of_other(name, value)?)))
        .collect();
    let all = || {
        found
            .texts
            .iter()
            .chain(texts.iter().map(|(_, text)| text))
            .map(|text| text.trim())
    };

    let code = found
        .code
        .as_deref()
        .map(str::trim)
        .or_else(|| all().find(|text| is_code(text)));
    // The text beside an explicit code is its message, word for word.
    let message = found
        .message
        .as_deref()
        .or_else(|| all().find(|text| !is_code(text)))
        .or(code)
        .unwrap_or_default();

    let is_used = |text: &str| text.trim() == message.trim() || code == Some(text.trim());
    let mut unused = Map::new();
    if let Some(error) = error
        && !(found.is_exhausted && found.texts.iter().all(|text| is_used(text)))
    {
        unused.insert("error".into(), error.value());
    }
    for (name, value) in others {
        let text = texts.iter().find(|(with_text, _)| *with_text == name);
        if text.map_or_else(|| has_content(value), |(_, text)| !is_used(text)) {
            unused.insert(name.into(), value.value());
        }
    }

    let code = code
        .map(str::to_ascii_uppercase)
        .or_else(|| status::code(status_text));
    TaskError {
        code: code.unwrap_or_else(|| TaskError::NO_CODE.into()),
        message: message.into(),
        details: details(found.details.map(Json::value), unused),
    }
}

/// The details of the error: the vendor's own if nothing else is unused, the whole `error` if only it is, or else an object with
/// every unused value under its key.
fn details(given: Option<Value>, mut unused: Map<String, Value>) -> Option<Value> {
    match (unused.len(), unused.contains_key("error")) {
        (0, _) => given,
        (1, true) => unused.remove("error"),
        (_, true) => Some(unused.into()), // `error` contains the vendor's details
        (_, false) => {
            unused.extend(given.map(|given| ("details".into(), given)));
            Some(unused.into())
        }
    }
}

/// The parts of an error that were found in `error` or in a value within it.
#[derive(Default)]
struct Found<'a> {
    /// The value of an explicit `code`.
    code: Option<Cow<'a, str>>,
    /// The text beside that code.
    message: Option<Cow<'a, str>>,
    /// Texts without a code beside them: each may itself be a code or a message.
    texts: Vec<Cow<'a, str>>,
    details: Option<Json<'a>>,
    /// The fields above hold everything that was in the value.
    is_exhausted: bool,
}

fn search(value: Json<'_>, levels: usize) -> Found<'_> {
    if let Some(text) = value.text() {
        let texts = if text.trim().is_empty() {
            Vec::new()
        } else {
            vec![text]
        };
        return Found {
            texts,
            is_exhausted: true,
            ..Found::default()
        };
    }

    if levels == 0 || !has_content(value) {
        return Found {
            is_exhausted: !has_content(value),
            ..Found::default()
        };
    }

    if let Some((elements, count)) = value.first_elements(1) {
        let found = elements
            .first()
            .map(|&first| search(first, levels - 1))
            .unwrap_or_default();
        return Found {
            is_exhausted: found.is_exhausted && count == 1,
            ..found
        };
    }
    search_object(value, levels)
}

fn search_object(value: Json<'_>, levels: usize) -> Found<'_> {
    let Some(mut entries) = value.entries() else {
        return Found::default();
    };
    let details = entries.remove("details");
    entries.retain(|_, value| has_content(*value));

    let code = entries
        .get("code")
        .and_then(|&code| text_or_number(code))
        .filter(|code| code.len() <= CODE_BYTES_MAX);
    if code.is_some() {
        entries.remove("code");
    }

    // A code that is too long is a message.
    let message = MESSAGE_MEMBERS
        .into_iter()
        .chain(["code"])
        .find_map(|key| Some((key, entries.get(key)?.text()?)));
    let text = message.map(|(key, text)| {
        entries.remove(key);
        text
    });

    if code.is_some() {
        return Found {
            code,
            message: text,
            texts: Vec::new(),
            details,
            is_exhausted: entries.is_empty(),
        };
    }

    let Some((key, within)) = take_nested(&mut entries) else {
        return Found {
            texts: text.into_iter().collect(),
            details,
            is_exhausted: entries.is_empty(),
            ..Found::default()
        };
    };
    let within = search(within, levels - 1);
    // An unknown key may carry meaning of its own, so the value is then kept as a whole.
    let is_known = NESTED_MEMBERS.contains(&key.as_str());
    let has_room = details.is_none() || within.details.is_none();
    Found {
        is_exhausted: is_known && entries.is_empty() && within.is_exhausted && has_room,
        texts: text.into_iter().chain(within.texts).collect(),
        details: details.or(within.details),
        ..within
    }
}

/// Removes the first object or array from `entries`, known keys before others.
fn take_nested<'a>(entries: &mut BTreeMap<String, Json<'a>>) -> Option<(String, Json<'a>)> {
    let is_nested = |value: &Json<'_>| value.0.starts_with(['{', '[']);
    let known = NESTED_MEMBERS
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

fn text_of_other<'a>(name: &str, value: Json<'a>) -> Option<Cow<'a, str>> {
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

/// False for null, blank texts, and empty objects and arrays: they count as absent.
fn has_content(value: Json<'_>) -> bool {
    match value.0.as_bytes() {
        [b'"', ..] => value.text().is_some_and(|text| !text.trim().is_empty()),
        [b'{', inner @ .., b'}'] | [b'[', inner @ .., b']'] => !inner.trim_ascii().is_empty(),
        value => value != b"null",
    }
}

/// True for one word of ASCII letters, digits and `_`. Only ASCII, because a sentence in Chinese has no spaces either.
fn is_code(text: &str) -> bool {
    text.len() <= CODE_BYTES_MAX && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
