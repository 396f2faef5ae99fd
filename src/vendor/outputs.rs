//! The results of a task. Owns which keys hold output URLs, in which order, and what they lead to. Never fetches one.

use std::{borrow::Cow, collections::HashSet};

use super::fields::{Fields, Key};
use crate::event::{Output, OutputKind};

const VIDEO: Option<OutputKind> = Some(OutputKind::Video);
const IMAGE: Option<OutputKind> = Some(OutputKind::Image);
const BY_EXTENSION: Option<OutputKind> = None;

/// All outputs in the documented order, each once.
pub(super) fn read(fields: &Fields<'_>) -> Vec<Output> {
    let within = fields.object(Key::Output).unwrap_or_default();
    // A set, since comparing each with each would let one body of a megabyte hold up all others.
    let mut seen = HashSet::new();
    [
        one(fields, Key::VideoUrl, VIDEO),
        one(fields, Key::ResultImageUrl, IMAGE),
        one(fields, Key::ImageUrl, IMAGE),
        many(fields, Key::ResultImageUrls, IMAGE),
        many(&within, Key::VideoUrls, VIDEO),
        many(&within, Key::ImageUrls, IMAGE),
        one(&within, Key::LastFrameUrl, IMAGE),
        one(fields, Key::Url, BY_EXTENSION),
        one(fields, Key::Result, BY_EXTENSION),
        many(fields, Key::Result, BY_EXTENSION),
    ]
    .into_iter()
    .flatten()
    .filter(|(_, url)| seen.insert(url.clone()))
    .map(|(kind, url)| Output { kind: kind.unwrap_or_else(|| kind_of(&url)), url: url.into_owned() })
    .collect()
}

type Found<'a> = Vec<(Option<OutputKind>, Cow<'a, str>)>;

fn one<'a>(fields: &Fields<'a>, key: Key, kind: Option<OutputKind>) -> Found<'a> {
    fields.text(key).map(|url| (kind, url)).into_iter().collect()
}

fn many<'a>(fields: &Fields<'a>, key: Key, kind: Option<OutputKind>) -> Found<'a> {
    fields.texts(key).into_iter().map(|url| (kind, url)).collect()
}

/// By the extension of the URL's path; a query or fragment says nothing about the file.
fn kind_of(url: &str) -> OutputKind {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    let extension = file.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    match extension.as_deref() {
        Some("mp4" | "m4v" | "mov" | "webm" | "mkv" | "avi") => OutputKind::Video,
        Some("png" | "jpg" | "jpeg" | "webp" | "gif" | "avif" | "heic" | "bmp" | "tif" | "tiff") => OutputKind::Image,
        _ => OutputKind::Other,
    }
}
