//! The lines of the credentials file as operators see them: names, rights and times, never a secret or its hash. Pure.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    binding::{Binding, Products},
    lifetime::Lifetime,
    lookup::Credentials,
};
use crate::event::{Labels, Product};

/// One line, of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedCredential {
    /// As in metrics.
    pub kind: &'static str,
    /// Empty for the vendor's secret of bodies.
    pub name: Arc<str>,
    pub lifetime: Lifetime,
    /// Of the secret that is accepted beside the current one during a rotation.
    pub previous: Option<Lifetime>,
    pub products: Products,
    pub labels: Labels,
    pub admin: bool,
    pub backup: bool,
    /// The name in the certificate by which a client shows who it is; empty if it has a token.
    pub certificate_name: String,
    /// Limits of its own.
    pub bytes_per_minute_max: Option<u64>,
    pub subscriptions_max: Option<usize>,
    pub task_ids_max: Option<usize>,
}

impl ListedCredential {
    fn new(kind: &'static str, name: &Arc<str>, lifetime: Lifetime) -> Self {
        Self {
            kind,
            name: Arc::clone(name),
            lifetime,
            previous: None,
            products: Products::All,
            labels: Labels::new(),
            admin: false,
            backup: false,
            certificate_name: String::new(),
            bytes_per_minute_max: None,
            subscriptions_max: None,
            task_ids_max: None,
        }
    }

    fn bound(self, bound: Option<&Arc<Binding>>) -> Self {
        let Some(bound) = bound else { return self };
        Self {
            products: bound.products.clone(),
            labels: bound.labels.clone(),
            ..self
        }
    }
}

impl Credentials {
    /// Every line: callback tokens, signing keys, the secret of bodies, clients, and keys for the vendor's API; by name, the last in
    /// the order of the file.
    pub(crate) fn listed(&self) -> Vec<ListedCredential> {
        let tokens = self.callback_tokens.iter().map(|(name, token)| {
            let line = ListedCredential::new("callback_token", name, token.lifetime);
            ListedCredential {
                previous: token.previous.as_ref().map(|(_, lifetime)| *lifetime),
                bytes_per_minute_max: token.bytes_per_minute_max,
                ..line.bound(token.bound.as_ref())
            }
        });
        let keys = self.signing_keys.iter().map(|(id, key)| {
            let line = ListedCredential::new("signing_key", id.name(), key.lifetime);
            ListedCredential {
                previous: key.previous.as_ref().map(|(_, lifetime)| *lifetime),
                bytes_per_minute_max: key.bytes_per_minute_max,
                ..line.bound(key.bound.as_ref())
            }
        });
        let body = self.body_secret.iter().map(|secret| ListedCredential {
            previous: secret.previous.as_ref().map(|(_, lifetime)| *lifetime),
            ..ListedCredential::new("body_signature", &"".into(), secret.lifetime)
        });
        let clients = self.clients.iter().map(|(name, line)| {
            let client = &line.client;
            ListedCredential {
                previous: line.previous.as_ref().map(|client| client.lifetime),
                products: client.products.clone(),
                labels: client.labels.as_deref().cloned().unwrap_or_default(),
                admin: client.admin,
                backup: client.backup,
                certificate_name: client.certificate_name().unwrap_or_default().to_owned(),
                subscriptions_max: client.subscriptions_max,
                task_ids_max: client.task_ids_max,
                ..ListedCredential::new("client", name, client.lifetime)
            }
        });
        let vendor_keys = self.vendor_keys.0.iter().map(|line| ListedCredential {
            products: line.products.clone(),
            ..ListedCredential::new("vendor_key", line.name.name(), Lifetime::default())
        });

        tokens
            .chain(keys)
            .chain(body)
            .chain(clients)
            .chain(vendor_keys)
            .collect()
    }
}

/// The products as a list: `*` for all.
pub(crate) fn product_list(products: &Products) -> Vec<String> {
    let names = |some: &BTreeSet<Product>| some.iter().map(ToString::to_string).collect();
    match products {
        Products::All => vec!["*".to_owned()],
        Products::Only(some) => names(some),
    }
}
