//! Infers the product from the shape of a body, for callback URLs that name no product. Owns the rules of that guess.
//!
//! A key counts even if its value is null: the body of a failed task still has the keys of its product.

use std::borrow::Cow;

use super::fields::{Fields, Key};
use crate::event::Product;

/// The product that has this shape; `unknown` if several have it.
pub(super) fn product(fields: &Fields<'_>) -> Product {
    let slug = of_shape(fields);
    Product::parse(&slug).expect("every slug here is a constant or made of short lower-case words")
}

fn of_shape(fields: &Fields<'_>) -> Cow<'static, str> {
    let states_only_success = || fields.has(Key::Success) && fields.text(Key::Status).is_none();
    let slug = if fields.has(Key::Output) {
        "seedance"
    } else if fields.has(Key::ErrorMessage) {
        "sora"
    } else if states_only_success() {
        "veo"
    } else if let Some(kling) = fields.text(Key::Model).and_then(|model| of_model(&model)) {
        return kling;
    } else {
        of_result(fields)
    };
    slug.into()
}

fn of_result(fields: &Fields<'_>) -> &'static str {
    if fields.has(Key::ImageUrl) {
        "kling-o1-photo"
    } else if fields.has(Key::TaskUuid) {
        if fields.has(Key::Prompt) {
            "chatgpt-images"
        } else {
            "gemini"
        }
    } else if fields.has(Key::Seed) || fields.has(Key::Error) {
        "veo"
    } else {
        "unknown"
    }
}

/// The product in a model's name: `kling_o1_video` and `kling-o3-video-10s-pro` name a sub-product; any other kling model is `kling`.
fn of_model(model: &str) -> Option<Cow<'static, str>> {
    let model = model.to_ascii_lowercase();
    if !model.starts_with("kling") {
        return None;
    }

    let words: Vec<&str> = model.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let named = words
        .windows(2)
        .find(|pair| is_generation(pair[0]) && matches!(pair[1], "video" | "photo"));
    Some(named.map_or("kling".into(), |pair| {
        format!("kling-{}-{}", pair[0], pair[1]).into()
    }))
}

/// True for `o1`, `o3` and any later number: the vendor adds generations faster than the broker is released.
fn is_generation(word: &str) -> bool {
    let digits = word.strip_prefix('o').unwrap_or_default();
    matches!(digits.len(), 1 | 2) && digits.bytes().all(|b| b.is_ascii_digit())
}
