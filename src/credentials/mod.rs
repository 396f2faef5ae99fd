//! Who may send callbacks, and who may read events: the credentials file, read and checked. Pure.
//!
//! One TOML file holds all of it, so that there is one thing to guard, to watch and to rotate. Tokens are kept as hashes: who
//! reads the file can use none of them. Keys that sign have to be there in full.
//!
//! ```toml
//! [callback_tokens]   # …/webhook/veo?token=…
//! runblob = { token = "sha256:…", created = 2026-01-31, expires = 2027-01-31 }
//!
//! [signing_keys]      # …/webhook/veo?exp=…&kid=k1&sig=…, and MintCallbackUrl
//! k1 = { secret = "…", created = 2026-01-31, bytes_per_minute_max = "16MiB" }
//!
//! [body_signature]    # X-RunBlob-Signature
//! secret = "…"
//!
//! [clients]           # authorization: Bearer …, or a client certificate with this name
//! billing = { token = "sha256:…", products = ["veo", "sora"], subscriptions_max = 1000 }
//! studio = { certificate = "studio.internal", products = ["*"], admin = true }
//! ```

mod certificate;
mod file;
mod secret;
mod signed_url;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock},
};

use jiff::Timestamp;

use crate::event::Product;
pub use certificate::Certificate;
pub use file::CredentialsError;
pub use secret::{Secret, TokenHash, new_secret};
pub use signed_url::{KeyId, MintError, Minted, SECRET_PARAMETERS, URL_BYTES_MAX, UrlRefusal};

/// How long something may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// When it was made; orders the signing keys.
    pub created: Option<Timestamp>,
    /// From then on it is refused.
    pub expires: Option<Timestamp>,
}

impl Lifetime {
    fn is_over(self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// A secret part of a callback URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackToken {
    hash: TokenHash,
    lifetime: Lifetime,
    bytes_per_minute_max: Option<u64>,
}

/// Which products a client may see.
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
}

/// What a client shows to be known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// `authorization: Bearer …`.
    Token(TokenHash),
    /// A certificate for this DNS name, URI, or common name.
    Certificate(String),
}

/// A service that may read events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Names it to people.
    pub name: Arc<str>,
    /// What it may see.
    pub products: Products,
    /// Whether it may use `AdminService`.
    pub admin: bool,
    /// Streams it may have open; `None`: as the configuration says.
    pub subscriptions_max: Option<usize>,
    /// Task ids it may have in one filter; `None`: as the configuration says.
    pub task_ids_max: Option<usize>,
    proof: Proof,
    lifetime: Lifetime,
    /// The certificate it was let in by; `None` in the file, and of one with a token.
    shown: Option<Arc<Certificate>>,
}

impl Client {
    /// Whether it is past its expiry.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.lifetime.is_over(now)
    }
}

/// Everything the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    callback_tokens: BTreeMap<Arc<str>, CallbackToken>,
    signing_keys: BTreeMap<KeyId, SigningKey>,
    body_secret: Option<Secret>,
    clients: BTreeMap<Arc<str>, Arc<Client>>,
    /// Something was asked for before, so it is now, although nothing may be left that would be good.
    urls_were_verified: bool,
    clients_were_verified: bool,
}

/// The credentials in force; replaced as a whole when the file changes.
#[derive(Debug, Default)]
pub struct SharedCredentials(RwLock<Arc<Credentials>>);

impl SharedCredentials {
    /// As of now.
    pub fn get(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on. What was asked for before goes on to be asked for: who removes the last token lets nobody in, not everybody.
    pub fn set(&self, mut credentials: Credentials) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        credentials.urls_were_verified = current.verify_urls();
        credentials.clients_were_verified = current.verify_clients();
        *current = Arc::new(credentials);
    }
}

/// A key for signed callback URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SigningKey {
    secret: Secret,
    lifetime: Lifetime,
    bytes_per_minute_max: Option<u64>,
}

impl Credentials {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        file::parse(text)
    }

    /// Whether callback URLs are to carry something.
    pub fn verify_urls(&self) -> bool {
        self.urls_were_verified || !(self.callback_tokens.is_empty() && self.signing_keys.is_empty())
    }

    /// Whether clients are to show something.
    pub fn verify_clients(&self) -> bool {
        self.clients_were_verified || !self.clients.is_empty()
    }

    /// What bodies are signed with.
    pub fn body_secret(&self) -> Option<&Secret> {
        self.body_secret.as_ref()
    }

    /// How many of each, for people: callback tokens, signing keys, clients.
    pub fn counts(&self) -> [usize; 3] {
        [self.callback_tokens.len(), self.signing_keys.len(), self.clients.len()]
    }

    /// The name of the callback token that `text` is.
    pub fn callback_token(&self, text: &str, now: Timestamp) -> Option<&Arc<str>> {
        let hash = TokenHash::of(text);
        // Every entry is compared, so that the time tells nothing of which one it was.
        self.callback_tokens.iter().fold(None, |found, (name, token)| {
            let is_it = token.hash.equals(&hash) & !token.lifetime.is_over(now);
            if is_it { Some(name) } else { found }
        })
    }

    /// What the line of a callback token says of its budget; `None`: as the configuration says.
    pub fn callback_token_budget(&self, name: &str) -> Option<u64> {
        self.callback_tokens.get(name)?.bytes_per_minute_max
    }

    /// What the line of a signing key says of its budget; `None`: as the configuration says.
    pub fn signing_key_budget(&self, key_id: &KeyId) -> Option<u64> {
        self.signing_keys.get(key_id)?.bytes_per_minute_max
    }

    /// The client whose bearer token `text` is.
    pub fn client_of_token(&self, text: &str, now: Timestamp) -> Option<&Arc<Client>> {
        let hash = TokenHash::of(text);
        self.clients.values().fold(None, |found, client| match &client.proof {
            Proof::Token(token) if token.equals(&hash) & !client.is_expired(now) => Some(client),
            _ => found,
        })
    }

    /// The client that a certificate belongs to, as long as that is good.
    pub fn client_of_certificate(&self, certificate: &Arc<Certificate>, now: Timestamp) -> Option<Arc<Client>> {
        if !certificate.is_good(now) {
            return None;
        }
        let client = self.clients.values().find(|client| match &client.proof {
            Proof::Certificate(name) => certificate.names().contains(name) && !client.is_expired(now),
            Proof::Token(_) => false,
        })?;
        Some(certificate.lets_in(client))
    }

    /// What has become of a client: it is still the one who shows the same, and what it has shown is still good, whatever it may
    /// see by now.
    pub fn current(&self, client: &Client, now: Timestamp) -> Option<&Arc<Client>> {
        let current = self.clients.get(&client.name)?;
        let shown_is_good = client.shown.as_ref().is_none_or(|certificate| certificate.is_good(now));
        (current.proof == client.proof && !current.is_expired(now) && shown_is_good).then_some(current)
    }

    /// How many clients are past their expiry.
    pub fn expired_clients(&self, now: Timestamp) -> usize {
        self.clients.values().filter(|client| client.is_expired(now)).count()
    }
}

#[cfg(test)]
mod tests;
