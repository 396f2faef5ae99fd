//! A body cut into its fields. Owns all that touches JSON: which keys we know, and how leniently their values are read.
//!
//! The cut leaves every value as the text it is in the body. That is fast, since nothing is built for a field nobody asks
//! for; and it is safe, since a number that no type can hold, or half of a surrogate pair, cannot spoil the fields beside it.
//! Of duplicate keys the last counts; null counts as absent, except for [`Fields::has`].

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{NESTING_LEVELS_MAX, Unreadable};

/// The keys we look at, in a body or in the objects in it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
pub(super) enum Key {
    GenerationId,
    TaskUuid,
    TaskId,
    Id,
    Status,
    Success,
    VideoUrl,
    ResultImageUrl,
    ImageUrl,
    ResultImageUrls,
    Output,
    VideoUrls,
    ImageUrls,
    LastFrameUrl,
    Url,
    Result,
    Error,
    Code,
    Details,
    ErrorMessage,
    Message,
    Description,
    Prompt,
    Model,
    Seed,
    CreatedAt,
    CompletedAt,
    #[serde(other)]
    Unknown,
}

/// The values of one JSON object, by key.
#[derive(Default)]
pub(super) struct Fields<'a> {
    values: [Option<Json<'a>>; Key::Unknown as usize],
    too_deep: bool,
}

impl<'a> Fields<'a> {
    /// Cuts a body, or says why it is not an object that can be read.
    pub(super) fn of_body(body: &'a [u8]) -> Result<Self, Unreadable> {
        // The whole body at once: serde_json does not check the texts it skips.
        let text = std::str::from_utf8(body).map_err(|_| Unreadable::NotJson)?;
        if !text.trim_start().starts_with('{') {
            return Err(not_an_object(text));
        }
        let fields: Self = serde_json::from_str(text).map_err(|_| Unreadable::NotJson)?;
        if fields.too_deep { Err(Unreadable::TooDeeplyNested) } else { Ok(fields) }
    }

    /// True if the key is there, with null or any other value: which keys a body has tells its shape.
    pub(super) fn has(&self, key: Key) -> bool {
        self.values[key as usize].is_some()
    }

    /// A text that is not empty.
    pub(super) fn text(&self, key: Key) -> Option<Cow<'a, str>> {
        self.get(key)?.text()
    }

    /// A text that is not empty, or a number as it is written.
    pub(super) fn text_or_number(&self, key: Key) -> Option<Cow<'a, str>> {
        let value = self.get(key)?;
        value.text().or_else(|| value.number().map(Cow::Borrowed))
    }

    /// The texts of an array; whatever else is in it is skipped.
    pub(super) fn texts(&self, key: Key) -> Vec<Cow<'a, str>> {
        self.get(key).map(Json::texts).unwrap_or_default()
    }

    /// True or false.
    pub(super) fn boolean(&self, key: Key) -> Option<bool> {
        self.get(key)?.0.parse().ok()
    }

    /// A whole number, also if it is written as a text or with a fraction of zero.
    pub(super) fn integer(&self, key: Key) -> Option<i64> {
        let digits = self.text_or_number(key)?;
        digits.trim().parse().ok().or_else(|| whole(digits.trim().parse().ok()?))
    }

    /// The fields of an object within this one.
    pub(super) fn object(&self, key: Key) -> Option<Self> {
        serde_json::from_str(self.get(key)?.object()?).ok()
    }

    /// Any value, to be kept. One that serde_json cannot hold (1e400, half of a surrogate pair) is kept as its JSON text.
    pub(super) fn value(&self, key: Key) -> Option<Value> {
        let json = self.get(key)?.0;
        Some(serde_json::from_str(json).unwrap_or_else(|_| Value::from(json)))
    }

    fn get(&self, key: Key) -> Option<Json<'a>> {
        self.values[key as usize].filter(|value| value.0 != "null")
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        while let Some((key, value)) = map.next_entry::<Key, &RawValue>()? {
            let value = Json(value.get());
            fields.too_deep |= value.nests_deeper_than(NESTING_LEVELS_MAX - 1);
            // There is no slot for the unknown key.
            if let Some(slot) = fields.values.get_mut(key as usize) {
                *slot = Some(value);
            }
        }
        Ok(fields)
    }
}

/// One value as it stands in the body: well-formed, without space around it, not yet looked into.
#[derive(Clone, Copy)]
struct Json<'a>(&'a str);

impl<'a> Json<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        let within = self.0.strip_prefix('"')?.strip_suffix('"')?;
        let text = if within.contains('\\') { Cow::Owned(unescape(self.0)?) } else { Cow::Borrowed(within) };
        (!text.is_empty()).then_some(text)
    }

    fn number(self) -> Option<&'a str> {
        self.0.starts_with(|first: char| first == '-' || first.is_ascii_digit()).then_some(self.0)
    }

    fn object(self) -> Option<&'a str> {
        self.0.starts_with('{').then_some(self.0)
    }

    fn texts(self) -> Vec<Cow<'a, str>> {
        let values: Vec<&RawValue> = serde_json::from_str(self.0).unwrap_or_default();
        values.into_iter().filter_map(|value| Json(value.get()).text()).collect()
    }

    /// serde_json skips a value without recursion, and so without a limit: the stack is safe, and the limit is ours to keep.
    fn nests_deeper_than(self, levels_max: usize) -> bool {
        let (mut levels, mut in_text, mut escaped) = (0, false, false);
        if !self.0.starts_with(['[', '{']) {
            return false;
        }
        self.0.bytes().any(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_text = !in_text,
                b'[' | b'{' if !in_text => levels += 1,
                b']' | b'}' if !in_text => levels -= 1,
                _ => {}
            }
            levels > levels_max
        })
    }
}

fn not_an_object(text: &str) -> Unreadable {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(value) if Json(value.get()).nests_deeper_than(NESTING_LEVELS_MAX) => Unreadable::TooDeeplyNested,
        Ok(_) => Unreadable::NotAnObject,
        Err(_) => Unreadable::NotJson,
    }
}

/// The integer a float stands for; beyond 2^53 a float no longer says which one.
fn whole(float: f64) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    (float.fract() == 0.0 && float.abs() <= EXACT_MAX).then_some(float as i64)
}

fn unescape(json: &str) -> Option<String> {
    let Bytes(bytes) = serde_json::from_str(json).ok()?;
    Some(String::from_utf8(bytes).unwrap_or_else(|e| without_halves(e.as_bytes())))
}

/// Half of a surrogate pair comes as three bytes, none of which is UTF-8. One character stands for it: three would make an
/// event larger than its body, and so too large for clients.
fn without_halves(bytes: &[u8]) -> String {
    const FIRST_OF_HALF: u8 = 0xed;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if chunk.invalid().first() == Some(&FIRST_OF_HALF) {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

/// A JSON text asked for as bytes: the one way in which serde_json does not refuse half of a surrogate pair.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(BytesVisitor)
    }
}

struct BytesVisitor;

impl Visitor<'_> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes(bytes.to_vec()))
    }
}
