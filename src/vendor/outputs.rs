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
    let mut found = Vec::new();
    found.extend(one(fields, Key::VideoUrl, VIDEO));
    found.extend(one(fields, Key::ResultImageUrl, IMAGE));
    found.extend(one(fields, Key::ImageUrl, IMAGE));
    found.extend(many(fields, Key::ResultImageUrls, IMAGE));
    found.extend(many(&within, Key::VideoUrls, VIDEO));
    found.extend(many(&within, Key::ImageUrls, IMAGE));
    found.extend(one(&within, Key::LastFrameUrl, IMAGE));
    found.extend(one(fields, Key::Url, BY_EXTENSION));
    found.extend(one(fields, Key::Result, BY_EXTENSION));
    found.extend(many(fields, Key::Result, BY_EXTENSION));
    if found.len() > 1 {
        // A set, since comparing each with each would let one body of a megabyte hold up all others.
        let mut seen = HashSet::new();
        found.retain(|(_, url)| seen.insert(url.clone()));
    }
    let output = |(kind, url): Found<'_>| Output { kind: kind.unwrap_or_else(|| kind_of(&url)), url: url.into_owned() };
    found.into_iter().map(output).collect()
}

type Found<'a> = (Option<OutputKind>, Cow<'a, str>);

fn one<'a>(fields: &Fields<'a>, key: Key, kind: Option<OutputKind>) -> Option<Found<'a>> {
    fields.text(key).map(|url| (kind, url))
}

fn many<'a>(fields: &Fields<'a>, key: Key, kind: Option<OutputKind>) -> impl Iterator<Item = Found<'a>> {
    fields.texts(key).into_iter().map(move |url| (kind, url))
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
