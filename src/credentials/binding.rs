//! The `products` and `labels` of a line of the credentials file. They restrict what a client sees, and they bind the events of a
//! callback credential. Pure.

use std::{borrow::Cow, collections::BTreeSet};

use super::secret::SECRET_PARAMETERS;
use crate::event::{
    LABEL_KEY_CHARS_MAX, LABEL_VALUE_CHARS_MAX, LABELS_MAX, Labels, Product, labels_fit,
};

/// The entry of `products` that means every product.
const ALL_PRODUCTS: &str = "*";

/// The products that a client may see, or that a callback may be of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Products {
    /// Every product, including those that the vendor adds later.
    All,
    /// The listed products; empty for a client that only takes backups.
    Only(BTreeSet<Product>),
}

impl Products {
    /// True if `product` is allowed.
    pub fn allow(&self, product: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(products) => products.contains(product),
        }
    }

    /// The product, if the list has exactly one.
    pub fn only(&self) -> Option<&Product> {
        match self {
            Self::Only(products) if products.len() == 1 => products.first(),
            _ => None,
        }
    }
}

/// The restrictions on the callbacks of one credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The callbacks may be of these products.
    pub products: Products,
    /// The events carry all of these labels in addition to those of the URL.
    pub labels: Labels,
}

impl Binding {
    /// True if the labels of a URL give a bound label another value.
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

/// Parses the `products` of a client.
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

/// Checks the `labels` of a line. No message repeats a label: a secret may stand in the wrong place.
pub(super) fn labels(raw: Option<Labels>) -> Result<Option<Labels>, String> {
    let Some(labels) = raw else { return Ok(None) };
    if labels.is_empty() {
        return Err("`labels` is empty: name some, or leave it out".to_owned());
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

/// The binding of a line for callbacks; `None` if the line restricts nothing.
pub(super) fn binding(
    raw_products: Option<&[String]>,
    raw_labels: Option<Labels>,
) -> Result<Option<Binding>, String> {
    let products = match raw_products {
        Some([]) => return Err(
            "`products` is empty, so every callback would be refused: name some, or leave it out"
                .to_owned(),
        ),
        Some(some) => products(some)?,
        None => Products::All,
    };
    let labels = labels(raw_labels)?.unwrap_or_default();
    let is_bound = products != Products::All || !labels.is_empty();
    Ok(is_bound.then_some(Binding { products, labels }))
}
