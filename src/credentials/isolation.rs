//! Tenant isolation: finds callback credentials whose holders could write events that another tenant's client sees. Pure.
//!
//! A client that is bound to labels sees only events with them. A callback credential that is not bound to those labels may write
//! them into its URLs; the operator should know.

use std::{fmt, sync::Arc};

use super::{
    binding::{Binding, Products},
    client::Client,
    lookup::Credentials,
};
use crate::event::Labels;

/// Most pairs of a client and a credential that are compared. A file of 4 MiB can have tens of millions of pairs, and a change has to
/// be in force within a second. 1,000 tenants with one token each have exactly this many pairs.
const PAIRS_MAX: usize = 1_000_000;

/// A callback credential whose holder may write labels that clients of other tenants are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intruder {
    /// Kind and name of the credential.
    pub credential: String,
    /// The first client that would see such events.
    pub client: Arc<str>,
    /// The number of further clients that would see them.
    pub others: usize,
}

impl fmt::Display for Intruder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            credential,
            client,
            others,
        } = self;
        match others {
            0 => write!(f, "{credential} (client {client})"),
            others => write!(f, "{credential} (client {client} and {others} more)"),
        }
    }
}

/// The result of the search for intruders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intruders {
    /// The intruders, in the order of the credentials' names.
    pub found: Vec<Intruder>,
    /// True if every pair was compared; otherwise there may be more.
    pub is_all: bool,
}

impl Credentials {
    /// True if at least one client is bound to labels.
    pub fn has_bound_clients(&self) -> bool {
        self.clients
            .values()
            .any(|line| line.client.labels.is_some())
    }

    /// The names of the clients that see only a part of the events and may not take a backup, which holds all of them.
    pub fn clients_that_are_bound(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_bound = |client: &Client| !client.sees_all() && !client.backup;
        self.clients
            .iter()
            .filter(move |(_, line)| is_bound(&line.client))
            .map(|(name, _)| name)
    }

    /// The callback credentials whose holders may write events that a client of another tenant sees.
    pub fn intruders(&self) -> Intruders {
        self.intruders_of(PAIRS_MAX)
    }

    fn intruders_of(&self, pairs_max: usize) -> Intruders {
        let clients: Vec<_> = self
            .clients
            .values()
            .map(|line| &*line.client)
            .filter_map(labels_of)
            .collect();

        let tokens = self
            .callback_tokens
            .iter()
            .map(|(name, token)| ("callback_token", &**name, &token.bound));
        let keys = self
            .signing_keys
            .iter()
            .map(|(id, key)| ("signing_key", &**id.name(), &key.bound));

        let mut intruders = Intruders {
            found: Vec::new(),
            is_all: true,
        };
        let mut pairs_left = pairs_max;
        for (kind, name, bound) in tokens.chain(keys) {
            let compared = &clients[..clients.len().min(pairs_left)];
            pairs_left -= compared.len();
            intruders.is_all &= compared.len() == clients.len();

            let mut seen_by = compared
                .iter()
                .filter(|(client, labels)| may_intrude(client, labels, bound.as_deref()));
            if let Some((client, _)) = seen_by.next() {
                let (credential, client) = (format!("{kind} {name}"), Arc::clone(&client.name));
                intruders.found.push(Intruder {
                    credential,
                    client,
                    others: seen_by.count(),
                });
            }
        }
        intruders
    }
}

fn labels_of(client: &Client) -> Option<(&Client, &Labels)> {
    client.labels.as_deref().map(|labels| (client, labels))
}

/// True if a URL of the credential can write an event that the client sees, although the credential's binding does not already give
/// it all of the client's labels.
fn may_intrude(client: &Client, labels: &Labels, bound: Option<&Binding>) -> bool {
    let Some(bound) = bound else { return true };
    let is_other_tenants = labels
        .iter()
        .any(|(key, value)| bound.labels.get(key).is_some_and(|other| other != value));
    let is_own = labels
        .iter()
        .all(|(key, value)| bound.labels.get(key) == Some(value));
    !is_other_tenants && !is_own && overlap(&client.products, &bound.products)
}

fn overlap(one: &Products, other: &Products) -> bool {
    match (one, other) {
        (Products::All, _) | (_, Products::All) => true,
        (Products::Only(one), Products::Only(other)) => {
            let (few, many) = if one.len() <= other.len() {
                (one, other)
            } else {
                (other, one)
            };
            few.iter().any(|product| many.contains(product))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::credentials::TokenHash;

    fn line(text: &mut String, name: &str, products: Option<&[&str]>, labels: &[(&str, &str)]) {
        let token = TokenHash::of(&text.len().to_string());
        write!(text, "{name} = {{ token = \"{token}\"").unwrap();
        if let Some(products) = products {
            write!(text, ", products = {products:?}").unwrap();
        }
        if !labels.is_empty() {
            let labels: Vec<_> = labels
                .iter()
                .map(|(key, value)| format!("{key} = \"{value}\""))
                .collect();
            write!(text, ", labels = {{ {} }}", labels.join(", ")).unwrap();
        }
        text.push_str(" }\n");
    }

    type Line<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);

    fn file(clients: &[Line<'_>], tokens: &[Line<'_>]) -> Credentials {
        let mut text = "[clients]\n".to_owned();
        for (number, (products, labels)) in clients.iter().enumerate() {
            line(&mut text, &format!("c{number}"), Some(products), labels);
        }
        text.push_str("[callback_tokens]\n");
        for (number, (products, labels)) in tokens.iter().enumerate() {
            line(
                &mut text,
                &format!("t{number}"),
                (!products.is_empty()).then_some(*products),
                labels,
            );
        }
        Credentials::parse(&text).unwrap()
    }

    fn pairs(labels: &Labels) -> Vec<(&str, &str)> {
        labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }

    #[test]
    fn a_credential_intrudes_where_it_may_write_the_labels_of_a_bound_client() {
        let (ads, film, site) = (("team", "ads"), ("team", "film"), ("site", "b"));
        for (client, token, intrudes) in [
            ((&["*"][..], &[ads][..]), (&[][..], &[][..]), true),
            ((&["*"], &[ads]), (&[], &[ads]), false),
            ((&["*"], &[ads]), (&[], &[film]), false),
            ((&["*"], &[ads]), (&[], &[ads, site]), false),
            // The token is bound to another label key, or to fewer labels.
            ((&["*"], &[site]), (&[], &[ads]), true),
            ((&["*"], &[ads, site]), (&[], &[ads]), true),
            ((&["*"], &[ads, site]), (&[], &[film]), false),
            // The token's product is one that the client may not see.
            ((&["veo"], &[ads]), (&["sora"], &[]), false),
            ((&["veo", "sora"], &[ads]), (&["sora", "kling"], &[]), true),
            ((&["veo"], &[site]), (&["sora"], &[ads]), false),
            ((&["*"], &[ads]), (&["sora"], &[]), true),
            // The client is not bound to labels.
            ((&["veo"], &[]), (&[], &[]), false),
        ] {
            let intruders = file(&[client], &[token]).intruders();
            assert_eq!(
                !intruders.found.is_empty(),
                intrudes,
                "{client:?} {token:?}"
            );
            assert!(intruders.is_all);
        }
    }

    #[test]
    fn each_intruder_is_reported_once_with_a_client_that_sees_its_events() {
        let clients: [Line<'_>; 3] = [
            (&["*"], &[("team", "ads")]),
            (&["*"], &[("team", "film")]),
            (&["*"], &[("site", "b")]),
        ];
        let tokens: [Line<'_>; 2] = [(&[], &[]), (&[], &[("team", "ads")])];
        let credentials = file(&clients, &tokens);
        let report = |pairs_max| {
            let Intruders { found, is_all } = credentials.intruders_of(pairs_max);
            (
                found
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
                is_all,
            )
        };
        let all = "callback_token t0 (client c0 and 2 more), callback_token t1 (client c2)";
        assert_eq!(report(PAIRS_MAX), (all.to_owned(), true));
        assert_eq!(
            report(6),
            (all.to_owned(), true),
            "three clients and two tokens"
        );
        assert_eq!(
            report(5),
            ("callback_token t0 (client c0 and 2 more)".to_owned(), false)
        );
    }

    proptest! {
        /// Tries every set of labels that a URL can have.
        #[test]
        fn an_intruder_can_choose_whether_a_client_sees_its_events(
            client in prop::collection::btree_map("[ab]", "[xy]", 1..3),
            token in prop::collection::btree_map("[ab]", "[xy]", 0..3),
        ) {
            let credentials = file(&[(&["*"], &pairs(&client))], &[(&[], &pairs(&token))]);

            let bound = Binding { products: Products::All, labels: token };
            let values = [None, Some("x"), Some("y")];
            let urls = values.iter().flat_map(|a| values.iter().map(move |b| [("a", *a), ("b", *b)]));
            let labels_of = |url: [(&str, Option<&str>); 2]| -> Labels {
                url.iter().filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.to_owned()))).collect()
            };
            let is_seen = |labels: &Labels| client.iter().all(|(key, value)| labels.get(key) == Some(value));
            let events: Vec<_> = urls.map(labels_of).filter(|labels| {
                !bound.is_contradicted_by(labels.iter().map(|(key, value)| (key.into(), value.into())))
            }).map(|labels| bound.with(labels)).collect();
            let seen = events.iter().filter(|event| is_seen(event)).count();
            // The client sees some of the events, depending on the labels of the URL, but not all of them.
            let expected = seen > 0 && seen < events.len();
            prop_assert_eq!(!credentials.intruders().found.is_empty(), expected);
        }
    }
}
