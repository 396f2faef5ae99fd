//! The JSON of a body, cut into the values of the known keys. Owns all parsing of JSON: the list of keys, and how leniently their
//! values are read.
//!
//! Every value stays the text that it is in the body until it is read. That is fast, because nothing is built for a field that is
//! not read. It is also safe: a number that no type can hold, or an unpaired surrogate, does not affect the fields beside it.
//! Of duplicate keys the last one counts; null counts as absent, except in [`Fields::has`].

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{NESTING_LEVELS_MAX, Unreadable};

/// The keys that are read, in a body or in the objects within it.
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
    VideoUrls,
    ResultImageUrl,
    ImageUrl,
    ImageUrls,
    ResultImageUrls,
    Images,
    Videos,
    Output,
    LastFrameUrl,
    Url,
    Urls,
    Result,
    Error,
    Code,
    Msg,
    Details,
    ErrorCode,
    ErrorMessage,
    ErrorMsg,
    Message,
    Description,
    Detail,
    Prompt,
    Model,
    Seed,
    CreatedAt,
    CompletedAt,
    #[serde(other)]
    Unknown,
}

/// The values of one JSON object, by key.
pub(super) struct Fields<'a> {
    values: [Option<Json<'a>>; Key::Unknown as usize],
    too_deep: bool,
}

impl Default for Fields<'_> {
    fn default() -> Self {
        Self {
            values: [None; Key::Unknown as usize],
            too_deep: false,
        }
    }
}

impl<'a> Fields<'a> {
    /// Cuts the text of a body, which has to be an object.
    pub(super) fn of_text(text: &'a str) -> Result<Self, Unreadable> {
        if !text.trim_start().starts_with('{') {
            return Err(not_an_object(text));
        }
        let fields: Self = serde_json::from_str(text).map_err(|_| Unreadable::NotJson)?;
        if fields.too_deep {
            Err(Unreadable::TooDeeplyNested)
        } else {
            Ok(fields)
        }
    }

    /// True if the key is present, with null or any other value. The set of keys tells the shape of a body.
    pub(super) fn has(&self, key: Key) -> bool {
        self.values[key as usize].is_some()
    }

    /// The value, if it is a text that is not empty.
    pub(super) fn text(&self, key: Key) -> Option<Cow<'a, str>> {
        self.json(key)?.text()
    }

    /// The value, if it is a text that is not empty or a number. A number is returned as it is written.
    pub(super) fn text_or_number(&self, key: Key) -> Option<Cow<'a, str>> {
        let value = self.json(key)?;
        value.text().or_else(|| value.number().map(Cow::Borrowed))
    }

    /// The value, if it is present and not null.
    pub(super) fn json(&self, key: Key) -> Option<Json<'a>> {
        self.values[key as usize].filter(|value| value.0 != "null")
    }

    /// The value, if it is a whole number, even as a text or with a fraction of zero.
    pub(super) fn integer(&self, key: Key) -> Option<i64> {
        let digits = self.text_or_number(key)?;
        digits
            .trim()
            .parse()
            .ok()
            .or_else(|| whole(digits.trim().parse().ok()?))
    }

    /// The fields of the value, if it is an object.
    pub(super) fn object(&self, key: Key) -> Option<Self> {
        self.json(key)?.fields()
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

/// The text of one JSON value in the body: well-formed, without surrounding space, not parsed yet.
#[derive(Clone, Copy)]
pub(super) struct Json<'a>(pub &'a str);

impl<'a> Json<'a> {
    /// The value, if it is a text that is not empty.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        let within = self.0.strip_prefix('"')?.strip_suffix('"')?;
        let text = if within.contains('\\') {
            Cow::Owned(unescape(self.0)?)
        } else {
            Cow::Borrowed(within)
        };
        (!text.is_empty()).then_some(text)
    }

    pub(super) fn is_text(self) -> bool {
        self.0.starts_with('"')
    }

    /// The digits of the value as written, if it is a number.
    pub(super) fn number(self) -> Option<&'a str> {
        self.0
            .starts_with(|first: char| first == '-' || first.is_ascii_digit())
            .then_some(self.0)
    }

    pub(super) fn boolean(self) -> Option<bool> {
        self.0.parse().ok()
    }

    /// The fields of the value, if it is an object.
    pub(super) fn fields(self) -> Option<Fields<'a>> {
        if self.0.starts_with('{') {
            serde_json::from_str(self.0).ok()
        } else {
            None
        }
    }

    /// The elements of the value, if it is an array.
    pub(super) fn elements(self) -> Option<Vec<Self>> {
        if !self.0.starts_with('[') {
            return None;
        }
        let elements: Vec<&RawValue> = serde_json::from_str(self.0).ok()?;
        Some(
            elements
                .into_iter()
                .map(|element| Self(element.get()))
                .collect(),
        )
    }

    /// The first `count_max` elements of an array, and the number of all. For arrays that may fill a body.
    pub(super) fn first_elements(self, count_max: usize) -> Option<(Vec<Self>, usize)> {
        if !self.0.starts_with('[') {
            return None;
        }
        let mut deserializer = serde_json::Deserializer::from_str(self.0);
        let elements = deserializer
            .deserialize_seq(FirstElements { count_max })
            .ok()?;
        deserializer.end().ok()?;

        Some(elements)
    }

    /// The values of an object by key, without nulls, unknown keys included.
    pub(super) fn entries(self) -> Option<BTreeMap<String, Self>> {
        if !self.0.starts_with('{') {
            return None;
        }
        let entries: BTreeMap<String, &RawValue> = serde_json::from_str(self.0).ok()?;
        let entries = entries
            .into_iter()
            .map(|(key, value)| (key, Self(value.get())));
        Some(entries.filter(|(_, value)| value.0 != "null").collect())
    }

    /// The parsed value. A value that serde_json cannot represent (1e400, an unpaired surrogate) becomes a string of its JSON text.
    pub(super) fn value(self) -> Value {
        serde_json::from_str(self.0).unwrap_or_else(|_| Value::from(self.0))
    }

    /// True if arrays and objects nest deeper than `levels_max`. serde_json skips values without recursion and without a limit, so the
    /// limit has to be enforced here.
    pub(super) fn nests_deeper_than(self, levels_max: usize) -> bool {
        let (mut levels, mut in_text, mut escaped) = (0_usize, false, false);
        if !self.0.starts_with(['[', '{']) {
            return false;
        }
        self.0.bytes().any(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_text = !in_text,
                b'[' | b'{' if !in_text => levels += 1,
                b']' | b'}' if !in_text => levels = levels.saturating_sub(1), // may be invalid JSON
                _ => {}
            }
            levels > levels_max
        })
    }
}

struct FirstElements {
    count_max: usize,
}

impl<'de> Visitor<'de> for FirstElements {
    type Value = (Vec<Json<'de>>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let (mut first, mut count) = (Vec::new(), 0);
        while let Some(element) = elements.next_element::<&RawValue>()? {
            if count < self.count_max {
                first.push(Json(element.get()));
            }
            count += 1;
        }
        Ok((first, count))
    }
}

fn not_an_object(text: &str) -> Unreadable {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(value) if Json(value.get()).nests_deeper_than(NESTING_LEVELS_MAX) => {
            Unreadable::TooDeeplyNested
        }
        Ok(value)
            if Json(value.get())
                .first_elements(0)
                .is_some_and(|(_, count)| count > 0) =>
        {
            Unreadable::Array
        }
        Ok(_) => Unreadable::NotAnObject,
        Err(_) => Unreadable::NotJson,
    }
}

/// The integer that a float stands for. Beyond 2^53 a float no longer identifies one integer.
fn whole(float: f64) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    (float.fract() == 0.0 && float.abs() <= EXACT_MAX).then_some(float as i64)
}

fn unescape(json: &str) -> Option<String> {
    let Bytes(bytes) = serde_json::from_str(json).ok()?;
    Some(String::from_utf8(bytes).unwrap_or_else(|e| replace_surrogates(e.as_bytes())))
}

/// Replaces each unpaired surrogate by one replacement character. It arrives as three bytes, none of which is UTF-8; a replacement
/// for each byte would make an event larger than its body, and so too large for clients.
fn replace_surrogates(bytes: &[u8]) -> String {
    const SURROGATE_FIRST_BYTE: u8 = 0xed;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if chunk.invalid().first() == Some(&SURROGATE_FIRST_BYTE) {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

/// A JSON string deserialised as bytes: the only way in which serde_json accepts an unpaired surrogate.
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
