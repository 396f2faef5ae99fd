//! What a line of the credentials file binds to: products, and labels. Pure.

use std::{borrow::Cow, collections::BTreeSet};

use super::SECRET_PARAMETERS;
use crate::event::{
    LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Labels, Product, labels_fit,
};

/// Stands for every product.
const ALL_PRODUCTS: &str = "*";

/// Which products a client may see, or a callback may be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Products {
    /// Every one, also those to come.
    All,
    /// These.
    Only(BTreeSet<Product>),
}

impl Products {
    /// Whether `product` is among them.
    pub fn allow(&self, product: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(products) => products.contains(product),
        }
    }

    /// The one that there is, if there is only one.
    pub fn only(&self) -> Option<&Product> {
        match self {
            Self::Only(products) if products.len() == 1 => products.first(),
            _ => None,
        }
    }
}

/// What the callbacks of a credential are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// They may be of these products.
    pub products: Products,
    /// Their events carry all of these labels, whatever the URL says besides.
    pub labels: Labels,
}

impl Binding {
    /// Whether a URL with these labels gives one of the bound ones another value.
    pub fn is_contradicted_by<'a>(
        &self,
        labels: impl IntoIterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
    ) -> bool {
        labels.into_iter().any(|(key, value)| {
            self.labels
                .get(&*key)
                .is_some_and(|bound| **bound != *value)
        })
    }

    /// The labels of an event whose URL has `labels`.
    pub fn with(&self, mut labels: Labels) -> Labels {
        labels.extend(self.labels.clone());
        labels
    }
}

/// The products that a line names.
pub(super) fn products(raw: &[String]) -> Result<Products, String> {
    match raw {
        [all] if all == ALL_PRODUCTS => Ok(Products::All),
        [] => Err("may see nothing: name `products`, or [\"*\"] for all".to_owned()),
        some => {
            let parse = |(index, raw): (usize, &String)| {
                Product::parse(raw)
                    .map_err(|error| format!("number {} of `products`: {error}", index + 1))
            };
            Ok(Products::Only(
                some.iter()
                    .enumerate()
                    .map(parse)
                    .collect::<Result<_, _>>()?,
            ))
        }
    }
}

/// The labels that a line binds to, if it does. No message repeats one: a secret may stand in the wrong place.
pub(super) fn labels(raw: Option<Labels>) -> Result<Option<Labels>, String> {
    let Some(labels) = raw else { return Ok(None) };
    if labels.is_empty() {
        return Err("`labels` binds to nothing: name some, or leave it out".to_owned());
    }
    if !labels_fit(&labels) {
        return Err(format!(
            "`labels` are at most {LABELS_MAX}; a key has 1 to {LABEL_KEY_CHARS_MAX} characters, a value at most \
             {LABEL_VALUE_CHARS_MAX}"
        ));
    }
    if labels
        .keys()
        .any(|key| SECRET_PARAMETERS.contains(&key.as_str()))
    {
        return Err(
            "no label is called `token`, `exp`, `kid` or `sig`: those authenticate a callback URL"
                .to_owned(),
        );
    }
    Ok(Some(labels))
}

/// What a line for callbacks binds to; `None`: to nothing.
pub(super) fn binding(
    raw_products: Option<&[String]>,
    raw_labels: Option<Labels>,
) -> Result<Option<Binding>, String> {
    let products = match raw_products {
        Some([]) => return Err("may bring nothing: name `products`, or leave it out".to_owned()),
        Some(some) => products(some)?,
        None => Products::All,
    };
    let labels = labels(raw_labels)?.unwrap_or_default();
    let is_bound = products != Products::All || !labels.is_empty();
    Ok(is_bound.then_some(Binding { products, labels }))
}
