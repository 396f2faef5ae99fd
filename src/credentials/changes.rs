//! The differences between two versions of the credentials file, for the log and the audit. Names lines and fields, never a value.
//!
//! Every comparison destructures its line, so that the compiler asks for a decision about each new field.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use super::{
    binding::{Binding, Products},
    callback_lines::{BodySecret, CallbackToken, SigningKey},
    client::{Client, ClientLine, Proof},
    lifetime::{Lifetime, Previous},
    lookup::Credentials,
    vendor_key::VendorKeyLine,
};
use crate::event::Labels;

/// The fields of a line, each with whether it differs.
type Fields<const N: usize> = [(&'static str, bool); N];

impl Credentials {
    /// One text for each line that differs from `old`: its kind and name, and `added`, `removed`, or `changed` with the fields.
    pub fn changes_from(&self, old: &Self) -> Vec<String> {
        let body_secret =
            |credentials: &Self| credentials.body_secret.clone().map(|secret| ("", secret));
        let body_secret = |credentials: &Self| {
            body_secret(credentials)
                .into_iter()
                .collect::<BTreeMap<_, _>>()
        };

        let mut changes = changes(
            "callback_token ",
            &old.callback_tokens,
            &self.callback_tokens,
            of_callback_token,
        );
        changes.extend(self::changes(
            "signing_key ",
            &old.signing_keys,
            &self.signing_keys,
            of_signing_key,
        ));
        changes.extend(self::changes(
            "body_signature",
            &body_secret(old),
            &body_secret(self),
            of_body_secret,
        ));
        changes.extend(self::changes(
            "client ",
            &old.clients,
            &self.clients,
            of_client,
        ));
        let by_name = |credentials: &Self| {
            let lines = credentials.vendor_keys.0.iter();
            lines
                .map(|line| (line.name.clone(), line.clone()))
                .collect::<BTreeMap<_, _>>()
        };
        let [old_keys, new_keys] = [old, self].map(by_name);
        changes.extend(self::changes(
            "vendor_key ",
            &old_keys,
            &new_keys,
            of_vendor_key,
        ));
        let order = |credentials: &Self| {
            let names = credentials.vendor_keys.0.iter().map(|line| &line.name);
            names
                .filter(|name| old_keys.contains_key(*name) && new_keys.contains_key(*name))
                .cloned()
                .collect::<Vec<_>>()
        };
        if order(old) != order(self) {
            changes.push("vendor_keys changed: order".to_owned());
        }
        changes
    }
}

fn changes<K: Ord + Display, V: PartialEq, const N: usize>(
    kind: &str,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    fields: impl Fn(&V, &V) -> Fields<N>,
) -> Vec<String> {
    let removed = old
        .keys()
        .filter(|name| !new.contains_key(name))
        .map(|name| format!("{kind}{name} removed"));

    let others = new.iter().filter_map(|(name, value)| match old.get(name) {
        None => Some(format!("{kind}{name} added")),
        Some(before) if before != value => {
            let changed = fields(before, value)
                .into_iter()
                .filter(|(_, differs)| *differs)
                .map(|(field, _)| field);
            Some(format!(
                "{kind}{name} changed: {}",
                changed.collect::<Vec<_>>().join(", ")
            ))
        }
        Some(_) => None,
    });

    removed.chain(others).collect()
}

fn of_callback_token(old: &CallbackToken, new: &CallbackToken) -> Fields<7> {
    let [old, new] = [old, new].map(
        |CallbackToken {
             hash,
             lifetime,
             previous,
             bytes_per_minute_max,
             bound,
         }| {
            (
                ("token", hash),
                *lifetime,
                previous,
                *bytes_per_minute_max,
                bound.as_ref(),
            )
        },
    );
    of_callback_credential(old, new)
}

fn of_signing_key(old: &SigningKey, new: &SigningKey) -> Fields<7> {
    let [old, new] = [old, new].map(
        |SigningKey {
             secret,
             lifetime,
             previous,
             bytes_per_minute_max,
             bound,
         }| {
            (
                ("secret", secret),
                *lifetime,
                previous,
                *bytes_per_minute_max,
                bound.as_ref(),
            )
        },
    );
    of_callback_credential(old, new)
}

/// A secret with the name of its field, its lifetime, the previous secret, `bytes_per_minute_max`, and the binding.
type CallbackCredential<'a, S> = (
    (&'static str, &'a S),
    Lifetime,
    &'a Previous<S>,
    Option<u64>,
    Option<&'a Arc<Binding>>,
);

fn of_callback_credential<S: PartialEq>(
    old: CallbackCredential<'_, S>,
    new: CallbackCredential<'_, S>,
) -> Fields<7> {
    let ((field, secret), lifetime, previous, bytes_per_minute_max, bound) = old;
    let [created, expires] = of_lifetime(lifetime, new.1);
    let [products, labels] = of_binding(bound, new.4);
    [
        (field, secret != new.0.1),
        created,
        expires,
        ("previous", previous != new.2),
        ("bytes_per_minute_max", bytes_per_minute_max != new.3),
        products,
        labels,
    ]
}

fn of_body_secret(old: &BodySecret, new: &BodySecret) -> Fields<4> {
    let BodySecret {
        secret,
        lifetime,
        previous,
    } = old;
    let [created, expires] = of_lifetime(*lifetime, new.lifetime);
    [
        ("secret", *secret != new.secret),
        created,
        expires,
        ("previous", *previous != new.previous),
    ]
}

fn of_client(old: &ClientLine, new: &ClientLine) -> Fields<11> {
    // `previous` is the same client with another proof, so only proof and lifetime can differ.
    let shows = |client: &Arc<Client>| (client.proof.clone(), client.lifetime);
    let differs_before = old.previous.as_ref().map(shows) != new.previous.as_ref().map(shows);
    let (old, new) = (&old.client, &new.client);

    // The name is the key of the line; generation and certificate are not in the file.
    let Client {
        name: _,
        products,
        labels,
        admin,
        backup,
        subscriptions_max,
        task_ids_max,
        proof,
        lifetime,
        generation: _,
        certificate: _,
    } = &**old;

    let token = |proof: &Proof| {
        if let Proof::Token(hash) = proof {
            Some(hash.clone())
        } else {
            None
        }
    };
    let [created, expires] = of_lifetime(*lifetime, new.lifetime);
    [
        ("token", token(proof) != token(&new.proof)),
        (
            "certificate",
            old.certificate_name() != new.certificate_name(),
        ),
        created,
        expires,
        ("previous", differs_before),
        ("products", *products != new.products),
        ("labels", *labels != new.labels),
        ("admin", *admin != new.admin),
        ("backup", *backup != new.backup),
        (
            "subscriptions_max",
            *subscriptions_max != new.subscriptions_max,
        ),
        ("task_ids_max", *task_ids_max != new.task_ids_max),
    ]
}

fn of_vendor_key(old: &VendorKeyLine, new: &VendorKeyLine) -> Fields<3> {
    let VendorKeyLine {
        name: _,
        products,
        key_file,
        key,
    } = old;
    [
        ("key", *key != new.key),
        ("key_file", *key_file != new.key_file),
        ("products", *products != new.products),
    ]
}

fn of_lifetime(old: Lifetime, new: Lifetime) -> Fields<2> {
    let Lifetime { created, expires } = old;
    [
        ("created", created != new.created),
        ("expires", expires != new.expires),
    ]
}

/// Compares bindings. A line without one allows every product and adds no label.
fn of_binding(old: Option<&Arc<Binding>>, new: Option<&Arc<Binding>>) -> Fields<2> {
    let unbound = Binding {
        products: Products::All,
        labels: Labels::new(),
    };
    let [old, new] = [old, new].map(|bound| bound.map_or(&unbound, |bound| &**bound));
    [
        ("products", old.products != new.products),
        ("labels", old.labels != new.labels),
    ]
}
