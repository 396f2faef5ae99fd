//! Who may send callbacks, and who may read events: the credentials file, read and checked. Pure.
//!
//! One TOML file holds all of it, so that there is one thing to guard, to watch and to rotate. Tokens are kept as hashes: who
//! reads the file can use none of them. Keys that sign have to be there in full.
//!
//! ```toml
//! [callback_tokens]   # …/webhook/veo?token=…
//! runblob = { token = "sha256:…", created = 2026-01-31, expires = 2027-01-31 }
//! ads = { token = "sha256:…", products = ["veo"], labels = { team = "ads" } }   # whatever the URL says besides
//! other = { token = "sha256:…", previous = { token = "sha256:…", expires = 2026-02-07 } }   # while it is being rotated
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
//! ads = { token = "sha256:…", products = ["*"], labels = { team = "ads" } }   # sees no events of other teams
//! nightly = { token = "sha256:…", backup = true }   # takes backups, and reads nothing else
//! ```
//!
//! Each secret may have a `previous` one beside it, which is as good until it expires or is taken out: so none is changed everywhere
//! at once. `blobcast token rotate` puts it there, and `token retire` takes it out.

mod binding;
mod certificate;
mod changes;
mod denial;
mod file;
mod isolation;
mod rotation;
mod secret;
mod signed_url;

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, PoisonError, RwLock},
};

use jiff::Timestamp;

use crate::event::Labels;
pub use binding::{Binding, Products};
pub use certificate::Certificate;
pub use denial::Denial;
pub use file::CredentialsError;
pub use isolation::{Intruder, Intruders};
pub use rotation::{NewSecret, RotationError, Target, retire, rotate};
pub use secret::{Secret, TokenHash, new_secret};
pub use signed_url::{KeyId, MintError, Minted, SECRET_PARAMETERS, URL_BYTES_MAX, UrlRefusal};

/// Largest file that is read: room for ten thousand clients.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

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

/// Which of the secrets of one name was shown: there are two while it is being rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The one that is to be used.
    Current,
    /// The one before.
    Previous,
}

impl Generation {
    /// As in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Previous => "previous",
        }
    }
}

/// A secret that goes on to be accepted beside its successor, and how long.
type Previous<S> = Option<(S, Lifetime)>;

/// A secret part of a callback URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackToken {
    hash: TokenHash,
    lifetime: Lifetime,
    previous: Previous<TokenHash>,
    bytes_per_minute_max: Option<u64>,
    bound: Option<Arc<Binding>>,
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
    /// And only events with all of these labels; `None`: with any.
    pub labels: Option<Arc<Labels>>,
    /// Whether it may use `AdminService`.
    pub admin: bool,
    /// Whether it may take backups, which hold every product.
    pub backup: bool,
    /// Streams it may have open; `None`: as the configuration says.
    pub subscriptions_max: Option<usize>,
    /// Task ids it may have in one filter; `None`: as the configuration says.
    pub task_ids_max: Option<usize>,
    proof: Proof,
    lifetime: Lifetime,
    generation: Generation,
    /// The certificate it was let in by; `None` in the file, and of one with a token.
    shown: Option<Arc<Certificate>>,
}

impl Client {
    /// Which of its tokens it has shown.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether there is no event that it may not see.
    pub fn sees_all(&self) -> bool {
        self.products == Products::All && self.labels.is_none()
    }

    /// The name in its certificate by which it is known, if it is known by one.
    pub fn certificate_name(&self) -> Option<&str> {
        match &self.proof {
            Proof::Certificate(name) => Some(name),
            Proof::Token(_) => None,
        }
    }

    /// Whether it, and the certificate that it has shown, may still be used.
    pub fn is_good(&self, now: Timestamp) -> bool {
        !self.is_expired(now) && self.shown_is_good(now)
    }

    fn shown_is_good(&self, now: Timestamp) -> bool {
        self.shown
            .as_ref()
            .is_none_or(|certificate| certificate.is_good(now))
    }

    /// Whether it is past its expiry.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.lifetime.is_over(now)
    }
}

/// A client, as it is let in by its token or certificate, and by the token before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    client: Arc<Client>,
    previous: Option<Arc<Client>>,
}

impl Known {
    /// By whatever it shows.
    fn all(&self) -> impl Iterator<Item = &Arc<Client>> {
        [Some(&self.client), self.previous.as_ref()]
            .into_iter()
            .flatten()
    }
}

/// What the vendor signs bodies with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BodySecret {
    secret: Secret,
    lifetime: Lifetime,
    previous: Previous<Secret>,
}

/// Everything the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    callback_tokens: BTreeMap<Arc<str>, CallbackToken>,
    signing_keys: BTreeMap<KeyId, SigningKey>,
    body_secret: Option<BodySecret>,
    clients: BTreeMap<Arc<str>, Known>,
    /// Something was asked for before, so it is now, although nothing may be left that would be good.
    urls_were_verified: bool,
    clients_were_verified: bool,
    removed: denial::Removed,
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
        credentials.removed = denial::Removed::between(&current, &credentials);
        *current = Arc::new(credentials);
    }
}

/// A key for signed callback URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SigningKey {
    secret: Secret,
    lifetime: Lifetime,
    previous: Previous<Secret>,
    bytes_per_minute_max: Option<u64>,
    bound: Option<Arc<Binding>>,
}

impl SigningKey {
    /// Those that it signs with, and has signed with, and how long each is good.
    fn secrets(&self) -> impl Iterator<Item = (&Secret, Lifetime)> {
        let previous = self
            .previous
            .as_ref()
            .map(|(secret, lifetime)| (secret, *lifetime));
        [Some((&self.secret, self.lifetime)), previous]
            .into_iter()
            .flatten()
    }
}

impl Credentials {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        file::parse(text)
    }

    /// Whether callback URLs are to carry something.
    pub fn verify_urls(&self) -> bool {
        self.urls_were_verified
            || !(self.callback_tokens.is_empty() && self.signing_keys.is_empty())
    }

    /// Whether clients are to show something.
    pub fn verify_clients(&self) -> bool {
        self.clients_were_verified || !self.clients.is_empty()
    }

    /// Kind and name of each.
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
        tokens
            .chain(keys)
            .chain(body_secret)
            .chain(clients)
            .collect()
    }

    /// Whether it is known what bodies are signed with.
    pub fn has_body_secret(&self) -> bool {
        self.body_secret.is_some()
    }

    /// Which secret `tag` is the signature over `body` by; `None` if it is by none that is good.
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

    /// Kind, name and expiry of each that expires. Not of what is being replaced: that is to end.
    pub fn expiries(&self) -> Vec<(&'static str, Arc<str>, Timestamp)> {
        let of = |kind, name: &Arc<str>, lifetime: &Lifetime| {
            Some((kind, Arc::clone(name), lifetime.expires?))
        };
        let tokens = self
            .callback_tokens
            .iter()
            .filter_map(|(name, it)| of("callback_token", name, &it.lifetime));
        let keys = self
            .signing_keys
            .iter()
            .filter_map(|(id, it)| of("signing_key", id.name(), &it.lifetime));
        let body = self
            .body_secret
            .iter()
            .filter_map(|it| of("body_signature", &Arc::from(""), &it.lifetime));
        let clients = self
            .clients
            .iter()
            .filter_map(|(name, it)| of("client", name, &it.client.lifetime));
        tokens.chain(keys).chain(body).chain(clients).collect()
    }

    /// How many of each, for people: callback tokens, signing keys, clients.
    pub fn counts(&self) -> [usize; 3] {
        [
            self.callback_tokens.len(),
            self.signing_keys.len(),
            self.clients.len(),
        ]
    }

    /// The name of the callback token that `text` is, and which of its secrets.
    pub fn callback_token(&self, text: &str, now: Timestamp) -> Option<(&Arc<str>, Generation)> {
        let hash = TokenHash::of(text);
        // Every entry is compared, so that the time tells nothing of which one it was.
        self.callback_tokens
            .iter()
            .fold(None, |found, (name, token)| {
                let is_it = |known: &TokenHash, lifetime: &Lifetime| {
                    known.equals(&hash) & !lifetime.is_over(now)
                };
                let is_previous = token
                    .previous
                    .as_ref()
                    .is_some_and(|(known, lifetime)| is_it(known, lifetime));
                match (is_it(&token.hash, &token.lifetime), is_previous) {
                    (true, _) => Some((name, Generation::Current)),
                    (false, true) => Some((name, Generation::Previous)),
                    (false, false) => found,
                }
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

    /// What the line of a callback token binds its callbacks to.
    pub fn callback_token_binding(&self, name: &str) -> Option<&Arc<Binding>> {
        self.callback_tokens.get(name)?.bound.as_ref()
    }

    /// What the line of a signing key binds the callbacks of its URLs to.
    pub fn signing_key_binding(&self, key_id: &KeyId) -> Option<&Arc<Binding>> {
        self.signing_keys.get(key_id)?.bound.as_ref()
    }

    /// The client whose bearer token `text` is.
    pub fn client_of_token(&self, text: &str, now: Timestamp) -> Option<&Arc<Client>> {
        let hash = TokenHash::of(text);
        self.clients
            .values()
            .flat_map(Known::all)
            .fold(None, |found, client| match &client.proof {
                Proof::Token(token) if token.equals(&hash) & !client.is_expired(now) => {
                    Some(client)
                }
                _ => found,
            })
    }

    /// The client that a certificate belongs to, as long as that is good.
    pub fn client_of_certificate(
        &self,
        certificate: &Arc<Certificate>,
        now: Timestamp,
    ) -> Option<Arc<Client>> {
        if !certificate.is_good(now) {
            return None;
        }
        let client =
            self.clients
                .values()
                .map(|known| &known.client)
                .find(|client| match &client.proof {
                    Proof::Certificate(name) => {
                        certificate.names().contains(name) && !client.is_expired(now)
                    }
                    Proof::Token(_) => false,
                })?;
        Some(certificate.lets_in(client))
    }

    /// What has become of a client: it is still the one who shows the same, and what it has shown is still good, whatever it may
    /// see by now.
    pub fn current(&self, client: &Client, now: Timestamp) -> Option<&Arc<Client>> {
        let shown_is_good = client.shown_is_good(now);
        let is_it = |current: &&Arc<Client>| {
            current.proof == client.proof && !current.is_expired(now) && shown_is_good
        };
        self.clients.get(&client.name)?.all().find(is_it)
    }

    /// How many clients are past their expiry, by one of their tokens.
    pub fn expired_clients(&self, now: Timestamp) -> usize {
        self.clients
            .values()
            .flat_map(Known::all)
            .filter(|client| client.is_expired(now))
            .count()
    }
}

#[cfg(test)]
mod tests;
