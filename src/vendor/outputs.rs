//! The outputs of a task. Owns the list of keys that hold output URLs, their order, and the kind of file that each leads to. Never
//! fetches a URL.

use std::{borrow::Cow, collections::HashSet};

use super::fields::{Fields, Json, Key};
use crate::event::{Output, OutputKind};

const VIDEO: Option<OutputKind> = Some(OutputKind::Video);
const IMAGE: Option<OutputKind> = Some(OutputKind::Image);
const BY_EXTENSION: Option<OutputKind> = None;

const BEFORE_OUTPUT: [(Key, Option<OutputKind>); 8] = [
    (Key::VideoUrl, VIDEO),
    (Key::VideoUrls, VIDEO),
    (Key::ResultImageUrl, IMAGE),
    (Key::ImageUrl, IMAGE),
    (Key::ImageUrls, IMAGE),
    (Key::ResultImageUrls, IMAGE),
    (Key::Images, IMAGE),
    (Key::Videos, VIDEO),
];
/// The members of an object under `output`. A text or an array there is read like any other key's.
const WITHIN_OUTPUT: [(Key, Option<OutputKind>); 5] = [
    (Key::VideoUrls, VIDEO),
    (Key::ImageUrls, IMAGE),
    (Key::Images, IMAGE),
    (Key::Videos, VIDEO),
    (Key::LastFrameUrl, IMAGE),
];
const BEHIND_OUTPUT: [(Key, Option<OutputKind>); 3] = [
    (Key::Url, BY_EXTENSION),
    (Key::Urls, BY_EXTENSION),
    (Key::Result, BY_EXTENSION),
];

type Found<'a> = Vec<(Option<OutputKind>, Cow<'a, str>)>;

/// All outputs in the documented order of keys, each URL once.
pub(super) fn read(fields: &Fields<'_>) -> Vec<Output> {
    let mut found = Vec::new();
    take_all(fields, &BEFORE_OUTPUT, &mut found);
    if let Some(output) = fields.json(Key::Output) {
        take_output(output, &mut found);
    }
    take_all(fields, &BEHIND_OUTPUT, &mut found);

    if found.len() > 1 {
        // A set: comparing all pairs would let one body of a megabyte delay every other callback.
        let mut seen = HashSet::new();
        found.retain(|(_, url)| seen.insert(url.clone()));
    }
    let output = |(kind, url): (Option<OutputKind>, Cow<'_, str>)| Output {
        kind: kind.unwrap_or_else(|| kind_of(&url)),
        url: url.into_owned(),
    };
    found.into_iter().map(output).collect()
}

fn take_all<'a>(fields: &Fields<'a>, places: &[(Key, Option<OutputKind>)], found: &mut Found<'a>) {
    for &(key, kind) in places {
        if let Some(value) = fields.json(key) {
            take(value, kind, found);
        }
    }
}

fn take_output<'a>(output: Json<'a>, found: &mut Found<'a>) {
    let Some(within) = output.fields() else {
        return take(output, BY_EXTENSION, found);
    };
    take_all(&within, &WITHIN_OUTPUT, found);
    take_url(&within, BY_EXTENSION, found);
}

/// Takes a text, an object with `url`, or an array of either.
fn take<'a>(value: Json<'a>, kind: Option<OutputKind>, found: &mut Found<'a>) {
    match value.elements() {
        Some(elements) => elements
            .into_iter()
            .for_each(|element| take_one(element, kind, found)),
        None => take_one(value, kind, found),
    }
}

fn take_one<'a>(value: Json<'a>, kind: Option<OutputKind>, found: &mut Found<'a>) {
    if let Some(text) = value.text() {
        take_text(text, kind, found);
    } else if let Some(fields) = value.fields() {
        take_url(&fields, kind, found);
    }
}

fn take_url<'a>(fields: &Fields<'a>, kind: Option<OutputKind>, found: &mut Found<'a>) {
    if let Some(text) = fields.text(Key::Url) {
        take_text(text, kind, found);
    }
}

fn take_text<'a>(text: Cow<'a, str>, kind: Option<OutputKind>, found: &mut Found<'a>) {
    if is_url(&text) {
        found.push((kind, text));
    }
}

/// True for an absolute http or https URL with a host. A text with blanks or control characters is a sentence about a URL, or a mistake.
fn is_url(text: &str) -> bool {
    let has_scheme = |scheme: &str| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    };
    let scheme = ["https://", "http://"]
        .into_iter()
        .find(|scheme| has_scheme(scheme));
    let host = scheme.and_then(|scheme| text[scheme.len()..].chars().next());

    // Nearly all URLs are ASCII, and the check of bytes is faster.
    let is_graphic = || text.bytes().all(|b| b.is_ascii_graphic());
    host.is_some_and(|first| !matches!(first, '/' | '?' | '#'))
        && (is_graphic() || text.chars().all(|c| !c.is_whitespace() && !c.is_control()))
}

/// The kind of file, by the extension of the URL's path. Query and fragment say nothing about the file.
fn kind_of(url: &str) -> OutputKind {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    let extension = file
        .rsplit_once('.')
        .map(|(_, extension)| extension.to_ascii_lowercase());
    match extension.as_deref() {
        Some("mp4" | "m4v" | "mov" | "webm" | "mkv" | "avi") => OutputKind::Video,
        Some(
            "png" | "jpg" | "jpeg" | "webp" | "gif" | "avif" | "heic" | "bmp" | "tif" | "tiff",
        ) => OutputKind::Image,
        _ => OutputKind::Other,
    }
}
