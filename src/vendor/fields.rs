//! A body cut into its fields. Owns all that touches JSON: which keys we know, and how leniently their values are read.
//!
//! The cut leaves every value as the text it is in the body. That is fast, since nothing is built for a field nobody asks
//! for; and it is safe, since a number that no type can hold, or half of a surrogate pair, cannot spoil the fields beside it.
//! Of duplicate keys the last counts; null counts as absent, except for [`Fields::has`].

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
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
    /// Cuts a body's text, or says why it is not an object that can be read.
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

    /// True if the key is there, with null or any other value: which keys a body has tells its shape.
    pub(super) fn has(&self, key: Key) -> bool {
        self.values[key as usize].is_some()
    }

    /// A text that is not empty.
    pub(super) fn text(&self, key: Key) -> Option<Cow<'a, str>> {
        self.json(key)?.text()
    }

    /// A text that is not empty, or a number as it is written.
    pub(super) fn text_or_number(&self, key: Key) -> Option<Cow<'a, str>> {
        let value = self.json(key)?;
        value.text().or_else(|| value.number().map(Cow::Borrowed))
    }

    /// Whatever is there but null.
    pub(super) fn json(&self, key: Key) -> Option<Json<'a>> {
        self.values[key as usize].filter(|value| value.0 != "null")
    }

    /// A whole number, also if it is written as a text or with a fraction of zero.
    pub(super) fn integer(&self, key: Key) -> Option<i64> {
        let digits = self.text_or_number(key)?;
        digits
            .trim()
            .parse()
            .ok()
            .or_else(|| whole(digits.trim().parse().ok()?))
    }

    /// The fields of an object within this one.
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

/// One value as it stands in the body: well-formed, without space around it, not yet looked into.
#[derive(Clone, Copy)]
pub(super) struct Json<'a>(pub &'a str);

impl<'a> Json<'a> {
    /// A text that is not empty.
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

    /// A number as it is written.
    pub(super) fn number(self) -> Option<&'a str> {
        self.0
            .starts_with(|first: char| first == '-' || first.is_ascii_digit())
            .then_some(self.0)
    }

    /// True or false.
    pub(super) fn boolean(self) -> Option<bool> {
        self.0.parse().ok()
    }

    /// The fields of an object.
    pub(super) fn fields(self) -> Option<Fields<'a>> {
        if self.0.starts_with('{') {
            serde_json::from_str(self.0).ok()
        } else {
            None
        }
    }

    /// The values of an array.
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

    /// The first values of an array, `count_max` at most, and how many there are: for arrays that may be as long as a body.
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

    /// The values of an object that are not null, by key: also those under keys that we do not know.
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

    /// Any value, to be kept. One that serde_json cannot hold (1e400, half of a surrogate pair) is kept as its JSON text.
    pub(super) fn value(self) -> Value {
        serde_json::from_str(self.0).unwrap_or_else(|_| Value::from(self.0))
    }

    /// serde_json skips a value without recursion, and so without a limit: the stack is safe, and the limit is ours to keep.
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
                b']' | b'}' if !in_text => levels = levels.saturating_sub(1), // it may be no JSON
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
