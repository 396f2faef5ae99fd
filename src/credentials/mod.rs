//! The credentials file: which callbacks are authentic, and which clients may read which events. Pure.
//!
//! All credentials are in one TOML file, so that there is one file to guard, to watch and to rotate. Tokens are stored as hashes: the
//! file alone does not let anybody in with one. Secrets that sign have to be stored in full, and so have keys for the vendor's API; those
//! may be in files of their own.
//!
//! ```toml
//! [callback_tokens]   # …/webhook/veo?token=…
//! runblob = { token = "sha256:…", created = 2026-01-31, expires = 2027-01-31 }
//! ads = { token = "sha256:…", products = ["veo"], labels = { team = "ads" } }   # events carry these labels, whatever the URL has
//! other = { token = "sha256:…", previous = { token = "sha256:…", expires = 2026-02-07 } }   # during a rotation
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
//!
//! [[vendor_keys]]     # asks the vendor's API about late tasks; the first that fits a product is used
//! name = "main"
//! key_file = "/etc/blobcast/runblob-key"   # or: key = "…"
//! products = ["veo", "sora"]               # without it: all
//! ```
//!
//! A line may have a `previous` secret, which is accepted beside the current one until it expires or is removed. So senders and
//! clients need not all change at the same moment. `blobcast token rotate` adds it and `token retire` removes it.
//!
//! `file` parses the text; `callback_token` and `lookup` answer requests from the parsed version; `denial` explains a refusal to the operator; `changes`
//! and `isolation` review a version for the log; `rotation` edits the text. This module never opens the file itself.

mod binding;
mod callback_lines;
mod callback_token;
mod changes;
mod client;
mod denial;
mod file;
mod isolation;
mod lifetime;
mod listed;
mod lookup;
mod removed;
mod rotation;
mod secret;
mod shared;
mod signed_url;
mod vendor_key;

pub use binding::{Binding, Products};
pub use callback_lines::KeyId;
pub use client::{Certificate, Client, Proof};
pub use denial::Denial;
pub use file::{CredentialsError, FILE_BYTES_MAX};
pub use isolation::{Intruder, Intruders};
pub use lifetime::{Generation, Lifetime};
pub(crate) use listed::{ListedCredential, product_list};
pub use lookup::Credentials;
pub use rotation::{NewSecret, RotationError, Target, retire, rotate};
pub use secret::{SECRET_PARAMETERS, Secret, TokenHash, new_secret};
pub use shared::SharedCredentials;
pub use signed_url::{MintError, Minted, URL_BYTES_MAX, UrlRefusal};
pub use vendor_key::{API_KEY_BYTES_MAX, ApiKey, VENDOR_KEYS_MAX, VendorKey};

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::client_for_tests;
