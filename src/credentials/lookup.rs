//! All credentials of one version of the file, and the look-ups in them. Pure.
//!
//! A look-up of a token compares every entry in constant time, so that the time reveals neither whether the token is known nor which
//! entry it matches.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use ring::{
    digest::{SHA256, digest},
    hmac,
};

use super::{
    binding::Binding,
    callback_lines::{BodySecret, CallbackToken, KeyId, SigningKey},
    client::{Certificate, Client, ClientLine, Proof},
    lifetime::{Generation, Lifetime},
    removed::NamedSecrets,
    secret::{Secret, TokenHash},
    vendor_key::{ApiKey, VendorKey, VendorKeyLines},
};
use crate::event::Labels;

/// Enough that no two files have the same by chance.
const FINGERPRINT_BYTES: usize = 8;

/// One version of the credentials file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub(super) callback_tokens: BTreeMap<Arc<str>, CallbackToken>,
    pub(super) signing_keys: BTreeMap<KeyId, SigningKey>,
    pub(super) body_secret: Option<BodySecret>,
    pub(super) clients: BTreeMap<Arc<str>, ClientLine>,
    pub(super) vendor_keys: VendorKeyLines,
    /// An earlier version had credentials for callbacks, so callbacks have to authenticate even if this one has none.
    urls_were_verified: bool,
    /// The same for clients.
    clients_were_verified: bool,
    /// The secrets that were removed since the start.
    pub(super) removed: NamedSecrets,
    /// The text of the file without comments and order; empty without a file.
    pub(super) content: Content,
}

/// A hash of what a credentials file says, however it is written. It is no part of what two versions are compared by: they may say the
/// same in other words.
#[derive(Clone, Debug, Default)]
pub(super) struct Content(Vec<u8>);

impl Content {
    /// Of the text of a file that was read.
    pub(super) fn of(text: &str) -> Self {
        let table: toml::Table = toml::from_str(text).unwrap_or_default();
        let text = table.to_string();
        Self(digest(&SHA256, text.as_bytes()).as_ref().to_vec())
    }
}

impl PartialEq for Content {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Content {}

impl Credentials {
    /// A version of this content, without a line yet.
    pub(super) fn saying(content: Content) -> Self {
        Self {
            content,
            ..Self::default()
        }
    }

    /// A hash by which two brokers can see whether they have the same credentials, the keys in files of their own included. Nobody can
    /// find a secret by it, and with another `context` it is another one.
    pub fn fingerprint(&self, context: &[u8]) -> String {
        let mut hash = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, context));
        hash.update(&self.content.0);
        for line in &self.vendor_keys.0 {
            let key = line.key.as_ref().map_or("", ApiKey::reveal);
            hash.update(digest(&SHA256, key.as_bytes()).as_ref());
        }
        let tag = hash.sign();
        let first = tag.as_ref().iter().take(FINGERPRINT_BYTES);
        first.map(|byte| format!("{byte:02x}")).collect()
    }

    /// Takes over from the version `old`: which authentication it required, and which secrets it had.
    pub(super) fn succeed(&mut self, old: &Self) {
        self.urls_were_verified = old.verify_urls();
        self.clients_were_verified = old.verify_clients();
        self.removed = old.removed.after_change(old.secrets(), &self.secrets());
    }

    /// True if a callback URL has to carry a token or a signature.
    pub fn verify_urls(&self) -> bool {
        self.urls_were_verified
            || !(self.callback_tokens.is_empty() && self.signing_keys.is_empty())
    }

    /// True if a client has to present a token or a certificate.
    pub fn verify_clients(&self) -> bool {
        self.clients_were_verified || !self.clients.is_empty()
    }

    /// The kind and name of every line, as one text each.
    pub fn names(&self) -> Vec<String> {
        let named = |kind: &'static str, name: &dyn Display| format!("{kind} {name}");
        let tokens = self
            .callback_tokens
            .keys()
            .map(|name| named("callback_token", name));
        let keys = self
            .signing_keys
            .keys()
            .map(|name| named("signing_key", name));
        let body_secret = self.body_secret.iter().map(|_| "body_signature".to_owned());
        let clients = self.clients.keys().map(|name| named("client", name));
        let vendor_keys = self
            .vendor_keys
            .0
            .iter()
            .map(|line| named("vendor_key", &line.name));

        tokens
            .chain(keys)
            .chain(body_secret)
            .chain(clients)
            .chain(vendor_keys)
            .collect()
    }

    /// The keys for the vendor's API, in the order of the file. A line with `key_file` counts once its file was read.
    pub fn vendor_keys(&self) -> impl Iterator<Item = VendorKey> {
        self.vendor_keys.keys()
    }

    /// The files that hold keys for the vendor's API.
    pub fn key_files(&self) -> BTreeSet<PathBuf> {
        self.vendor_keys.key_files()
    }

    /// Takes the keys for the vendor's API from their files. `read` returns the content of one, `wrong` is called with the problem of
    /// a key.
    pub fn read_key_files<E>(
        &mut self,
        read: impl Fn(&Path) -> Result<String, E>,
        wrong: impl Fn(&KeyId, &Path, String) -> E,
    ) -> Result<(), E> {
        self.vendor_keys.read_files(read, wrong)
    }

    /// True if the file has the vendor's secret for body signatures.
    pub fn has_body_secret(&self) -> bool {
        self.body_secret.is_some()
    }

    /// The signature over `body` as the vendor makes it; `None` if there is no secret for it, or it has expired.
    pub fn sign_body(&self, body: &[u8], now: Timestamp) -> Option<String> {
        let by = self.body_secret.as_ref()?;
        let is_good = !by.lifetime.is_over(now);
        let hex = |tag: hmac::Tag| {
            tag.as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        is_good.then(|| hex(by.secret.sign(body)))
    }

    /// The secret by which `tag` is a valid signature over `body`; `None` if there is no such secret or it has expired.
    pub fn verify_body(&self, body: &[u8], tag: &[u8], now: Timestamp) -> Option<Generation> {
        let BodySecret {
            secret,
            lifetime,
            previous,
        } = self.body_secret.as_ref()?;
        let is_by = |secret: &Secret, lifetime: &Lifetime| {
            !lifetime.is_over(now) && secret.verify(body, tag)
        };

        if is_by(secret, lifetime) {
            return Some(Generation::Current);
        }
        let is_by_previous = previous
            .as_ref()
            .is_some_and(|(secret, lifetime)| is_by(secret, lifetime));
        is_by_previous.then_some(Generation::Previous)
    }

    /// The kind, name and expiry of every line that expires. Previous secrets are left out: they are meant to expire.
    pub fn expiries(&self) -> Vec<(&'static str, Arc<str>, Timestamp)> {
        let of = |kind, name: &Arc<str>, lifetime: &Lifetime| {
            Some((kind, Arc::clone(name), lifetime.expires?))
        };
        let tokens = self
            .callback_tokens
            .iter()
            .filter_map(|(name, token)| of("callback_token", name, &token.lifetime));
        let keys = self
            .signing_keys
            .iter()
            .filter_map(|(id, key)| of("signing_key", id.name(), &key.lifetime));
        let body = self
            .body_secret
            .iter()
            .filter_map(|secret| of("body_signature", &Arc::from(""), &secret.lifetime));
        let clients = self
            .clients
            .iter()
            .filter_map(|(name, line)| of("client", name, &line.client.lifetime));

        tokens.chain(keys).chain(body).chain(clients).collect()
    }

    /// The numbers of callback tokens, signing keys and clients, in this order.
    pub fn counts(&self) -> [usize; 3] {
        [
            self.callback_tokens.len(),
            self.signing_keys.len(),
            self.clients.len(),
        ]
    }

    /// The byte budget in the line of a signing key; `None`: the budget of the configuration.
    pub fn signing_key_budget(&self, key_id: &KeyId) -> Option<u64> {
        self.signing_keys.get(key_id)?.bytes_per_minute_max
    }

    /// The products and labels to which the line of a signing key binds the callbacks of its URLs.
    pub fn signing_key_binding(&self, key_id: &KeyId) -> Option<&Arc<Binding>> {
        self.signing_keys.get(key_id)?.bound.as_ref()
    }

    /// The client whose bearer token is `text`.
    pub fn client_of_token(&self, text: &str, now: Timestamp) -> Option<&Arc<Client>> {
        let hash = TokenHash::of(text);
        self.clients
            .values()
            .flat_map(ClientLine::all)
            .fold(None, |found, client| match &client.proof {
                Proof::Token(token) if token.equals(&hash) & !client.is_expired(now) => {
                    Some(client)
                }
                _ => found,
            })
    }

    /// The client that a valid certificate authenticates.
    pub fn client_of_certificate(
        &self,
        certificate: &Arc<Certificate>,
        now: Timestamp,
    ) -> Option<Arc<Client>> {
        if !certificate.is_good(now) {
            return None;
        }

        let client = self
            .clients
            .values()
            .map(|line| &line.client)
            .find(|client| match &client.proof {
                Proof::Certificate(name) => {
                    certificate.names().contains(name) && !client.is_expired(now)
                }
                Proof::Token(_) => false,
            })?;
        Some(certificate.authenticate(client))
    }

    /// A client of an earlier version as it is in this one: the line of the same name with the same proof, if both the line and the
    /// connection's certificate are still valid. Its permissions may have changed.
    pub fn current(&self, client: &Client, now: Timestamp) -> Option<&Arc<Client>> {
        let certificate_is_good = client.certificate_is_good(now);
        let is_same = |current: &&Arc<Client>| {
            current.proof == client.proof && !current.is_expired(now) && certificate_is_good
        };
        self.clients.get(&client.name)?.all().find(is_same)
    }

    /// The labels that the client of this name is bound to; `None` without such a client, or if it is not bound.
    pub fn labels_of_client(&self, name: &str) -> Option<&Arc<Labels>> {
        self.clients.get(name)?.client.labels.as_ref()
    }

    /// How many proofs of clients have expired, previous tokens included.
    pub fn expired_clients(&self, now: Timestamp) -> usize {
        self.clients
            .values()
            .flat_map(ClientLine::all)
            .filter(|client| client.is_expired(now))
            .count()
    }

    /// Every secret of this version, previous ones included.
    pub(super) fn secrets(&self) -> NamedSecrets {
        NamedSecrets {
            callback_tokens: self.callback_hashes(),
            signing_keys: self.key_secrets(),
            clients: self.client_hashes(),
        }
    }

    pub(super) fn callback_hashes(&self) -> Vec<(Arc<str>, TokenHash)> {
        let of = |(name, token): (&Arc<str>, &CallbackToken)| {
            let previous = token.previous.as_ref().map(|(hash, _)| hash);
            let all = [Some(&token.hash), previous].into_iter().flatten();
            all.map(|hash| (Arc::clone(name), hash.clone()))
                .collect::<Vec<_>>()
        };
        self.callback_tokens.iter().flat_map(of).collect()
    }

    fn key_secrets(&self) -> Vec<(KeyId, Secret)> {
        let of = |(id, key): (&KeyId, &SigningKey)| {
            key.secrets()
                .map(|(secret, _)| (id.clone(), secret.clone()))
                .collect::<Vec<_>>()
        };
        self.signing_keys.iter().flat_map(of).collect()
    }

    pub(super) fn client_hashes(&self) -> Vec<(Arc<str>, TokenHash)> {
        let of = |client: &Arc<Client>| match &client.proof {
            Proof::Token(hash) => Some((Arc::clone(&client.name), hash.clone())),
            Proof::Certificate(_) => None,
        };
        self.clients
            .values()
            .flat_map(ClientLine::all)
            .filter_map(of)
            .collect()
    }
}
