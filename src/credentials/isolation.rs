//! Whether the lines of the file keep tenants apart: which callback credentials may write events that a bound client sees. Pure.

use std::{fmt, sync::Arc};

use super::{Binding, Client, Credentials, Products};
use crate::event::Labels;

/// Pairs of a client and a credential that are compared. A file of 4 MiB can have tens of millions, and a change is to be in force
/// within a second; 1,000 tenants with a token each have as many as this.
const PAIRS_MAX: usize = 1_000_000;

/// A credential that is not one tenant's own: its holder may write labels that others are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intruder {
    /// Kind and name of the credential.
    pub credential: String,
    /// The first client that would see what it brings.
    pub client: Arc<str>,
    /// How many clients would besides.
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

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intruders {
    /// By the names of the credentials.
    pub found: Vec<Intruder>,
    /// Whether every pair was compared; if not, there may be more.
    pub is_all: bool,
}

impl Credentials {
    /// Whether some client is bound to labels.
    pub fn has_bound_clients(&self) -> bool {
        self.clients
            .values()
            .any(|known| known.client.labels.is_some())
    }

    /// The names of the clients that see only a part, and may take no backup, which has everything.
    pub fn clients_that_are_bound(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_bound = |client: &Client| !client.sees_all() && !client.backup;
        self.clients
            .iter()
            .filter(move |(_, known)| is_bound(&known.client))
            .map(|(name, _)| name)
    }

    /// The callback credentials whose holders may write events that clients with other labels see.
    pub fn intruders(&self) -> Intruders {
        self.intruders_of(PAIRS_MAX)
    }

    fn intruders_of(&self, pairs_max: usize) -> Intruders {
        let clients: Vec<_> = self
            .clients
            .values()
            .map(|known| &*known.client)
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

/// Whether a URL of the credential can bring an event that the client sees, and that is not the client's own by what the credential
/// is bound to.
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
    fn a_credential_intrudes_where_it_may_write_what_a_client_is_bound_to() {
        let (ads, film, site) = (("team", "ads"), ("team", "film"), ("site", "b"));
        for (client, token, intrudes) in [
            ((&["*"][..], &[ads][..]), (&[][..], &[][..]), true),
            ((&["*"], &[ads]), (&[], &[ads]), false),
            ((&["*"], &[ads]), (&[], &[film]), false),
            ((&["*"], &[ads]), (&[], &[ads, site]), false),
            // Bound to another key, or to fewer.
            ((&["*"], &[site]), (&[], &[ads]), true),
            ((&["*"], &[ads, site]), (&[], &[ads]), true),
            ((&["*"], &[ads, site]), (&[], &[film]), false),
            // Of a product that the client may not see.
            ((&["veo"], &[ads]), (&["sora"], &[]), false),
            ((&["veo", "sora"], &[ads]), (&["sora", "kling"], &[]), true),
            ((&["veo"], &[site]), (&["sora"], &[ads]), false),
            ((&["*"], &[ads]), (&["sora"], &[]), true),
            // Not bound to labels: nobody's label is missing.
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
    fn each_credential_is_told_once_with_a_client_that_sees_it() {
        let clients: [Line<'_>; 3] = [
            (&["*"], &[("team", "ads")]),
            (&["*"], &[("team", "film")]),
            (&["*"], &[("site", "b")]),
        ];
        let tokens: [Line<'_>; 2] = [(&[], &[]), (&[], &[("team", "ads")])];
        let credentials = file(&clients, &tokens);
        let told = |pairs_max| {
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
        assert_eq!(told(PAIRS_MAX), (all.to_owned(), true));
        assert_eq!(
            told(6),
            (all.to_owned(), true),
            "three clients and two tokens"
        );
        assert_eq!(
            told(5),
            ("callback_token t0 (client c0 and 2 more)".to_owned(), false)
        );
    }

    proptest! {
        /// What a URL can say is tried out, each event that can be made of it.
        #[test]
        fn an_intruder_is_one_whose_holder_can_show_a_client_what_is_not_bound_to_it(
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
            // Seen by what the URL says, and not whatever it says.
            let expected = seen > 0 && seen < events.len();
            prop_assert_eq!(!credentials.intruders().found.is_empty(), expected);
        }
    }
}
