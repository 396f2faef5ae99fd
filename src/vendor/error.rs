//! Why a task failed. Owns the search for a code and a sentence in the many places where products put them.

use std::borrow::Cow;

use super::fields::{Fields, Key};
use crate::event::TaskError;

/// The reason of a failed task; `status_text` is the vendor's word, which can be a reason in itself.
pub(super) fn read(fields: &Fields<'_>, status_text: &str) -> TaskError {
    let object = fields.object(Key::Error).unwrap_or_default();
    let texts = texts(fields, &object);
    let given_code = object.text_or_number(Key::Code).filter(|code| !code.trim().is_empty());
    let code_text = given_code.as_deref().or_else(|| first(&texts, is_code)).map(str::trim);
    let sentence = first(&texts, |text| !is_code(text));
    TaskError {
        code: code_text.map_or_else(|| code_of_status(status_text).into(), str::to_ascii_uppercase),
        message: sentence.or(code_text).unwrap_or_default().into(),
        details: object.value(Key::Details),
    }
}

fn texts<'a>(fields: &Fields<'a>, object: &Fields<'a>) -> Vec<Cow<'a, str>> {
    let within = object.text(Key::Message);
    let beside = [Key::Error, Key::ErrorMessage, Key::Message, Key::Description].map(|key| fields.text(key));
    within.into_iter().chain(beside.into_iter().flatten()).collect()
}

fn first<'t>(texts: &'t [Cow<'_, str>], wanted: impl Fn(&str) -> bool) -> Option<&'t str> {
    texts.iter().map(|text| text.trim()).find(|text| !text.is_empty() && wanted(text))
}

/// One word of ASCII letters, digits and `_`. Only ASCII: a sentence in Chinese has no spaces either.
fn is_code(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn code_of_status(status_text: &str) -> &'static str {
    match status_text.to_ascii_lowercase().as_str() {
        "timeout" => "TIMEOUT",
        "moderation_blocked" => "MODERATION_BLOCKED",
        _ => "UNSPECIFIED",
    }
}
