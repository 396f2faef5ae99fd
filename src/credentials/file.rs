//! Parses the text of the credentials file. An error names the table and the line's name, but never quotes the file: the place may
//! hold a secret.
//!
//! One mistake refuses the whole file. A file that was read in part could let callers in, or lock everyone out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{Timestamp, civil, tz::TimeZone};
use serde::Deserialize;
use toml::{Spanned, value::Datetime};

use super::{
    binding::{Products, binding, labels, products},
    callback_lines::{BodySecret, CallbackToken, KeyId, SigningKey},
    client::{Client, ClientLine, Proof},
    lifetime::{Generation, Lifetime, Previous},
    lookup::{Content, Credentials},
    secret::{SECRET_BYTES_MIN, Secret, TOKEN_PREFIX, TokenHash},
    vendor_key::{RawVendorKey, check_beside, vendor_key},
};
use crate::{event::Labels, size::parse_size};

/// Largest credentials file that is read: room for ten thousand clients.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Longest name of a token or a client: each event stores the name of the credential that authenticated it.
const NAME_BYTES_MAX: usize = 128;

/// The file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The text is not TOML, or has an unknown table or field.
    #[error("{0}")]
    Form(String),
    /// One line has a value that is not allowed.
    #[error("[{table}] {name}: {problem}")]
    Entry {
        /// The table that the line is in.
        table: &'static str,
        /// The line's name, or its number in the file if the name may be a secret.
        name: String,
        /// The mistake, and how to correct it.
        problem: String,
    },
}

impl Credentials {
    /// Parses the text of the file.
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        parse(text)
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    callback_tokens: BTreeMap<Spanned<String>, RawToken>,
    signing_keys: BTreeMap<Spanned<String>, RawKey>,
    body_signature: Option<RawBodySignature>,
    clients: BTreeMap<Spanned<String>, RawClient>,
    vendor_keys: Vec<RawVendorKey>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table, as `blobcast token new callback` prints it"
)]
struct RawToken {
    token: String,
    previous: Option<RawPreviousToken>,
    products: Option<Vec<String>>,
    labels: Option<Labels>,
    bytes_per_minute_max: Option<RawSize>,
    created: Option<Datetime>,
    expires: Option<Datetime>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table, as `blobcast token new signing-key` prints it"
)]
struct RawKey {
    secret: String,
    previous: Option<RawPreviousSecret>,
    products: Option<Vec<String>>,
    labels: Option<Labels>,
    bytes_per_minute_max: Option<RawSize>,
    created: Option<Datetime>,
    expires: Option<Datetime>,
}

/// A size, written as in the configuration.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size like \"128MiB\", or a number of bytes")]
enum RawSize {
    Bytes(u64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with `secret`")]
struct RawBodySignature {
    secret: String,
    previous: Option<RawPreviousSecret>,
    created: Option<Datetime>,
    expires: Option<Datetime>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with `token`, as `blobcast token rotate` writes it"
)]
struct RawPreviousToken {
    token: String,
    created: Option<Datetime>,
    expires: Option<Datetime>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table with `secret`, as `blobcast token rotate` writes it"
)]
struct RawPreviousSecret {
    secret: String,
    created: Option<Datetime>,
    expires: Option<Datetime>,
}

#[derive(Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a table, as `blobcast token new client` prints it"
)]
struct RawClient {
    token: Option<String>,
    previous: Option<RawPreviousToken>,
    certificate: Option<String>,
    #[serde(default)]
    products: Vec<String>,
    labels: Option<Labels>,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    backup: bool,
    subscriptions_max: Option<usize>,
    task_ids_max: Option<usize>,
    created: Option<Datetime>,
    expires: Option<Datetime>,
}

type Problem = String;

fn parse(text: &str) -> Result<Credentials, CredentialsError> {
    let file: File = toml::from_str(text)
        .map_err(|error| CredentialsError::Form(without_secrets(text, &error)))?;
    let entry = |table, name: &Spanned<String>| entry(table, printable_name(text, name));

    let mut credentials = Credentials::saying(Content::of(text));
    for (name, raw) in file.callback_tokens {
        let token =
            callback_token(name.get_ref(), &raw).map_err(entry("callback_tokens", &name))?;
        credentials
            .callback_tokens
            .insert(name.into_inner().into(), token);
    }
    for (name, raw) in file.signing_keys {
        let (id, key) = signing_key(name.get_ref(), &raw).map_err(entry("signing_keys", &name))?;
        credentials.signing_keys.insert(id, key);
    }
    if let Some(raw) = file.body_signature {
        credentials.body_secret = Some(body_secret(&raw)?);
    }

    let mut proofs: Vec<(Proof, String)> = Vec::new();
    for (name, raw) in file.clients {
        let line = client_line(name.get_ref(), &raw).map_err(entry("clients", &name))?;
        for client in line.all() {
            if let Some((_, other)) = proofs.iter().find(|(proof, _)| *proof == client.proof) {
                let problem = format!(
                    "has the same token or certificate as {other}: give each client its own"
                );
                return Err(entry("clients", &name)(problem));
            }
            proofs.push((client.proof.clone(), printable_name(text, &name)));
        }
        credentials.clients.insert(name.into_inner().into(), line);
    }

    for raw in file.vendor_keys {
        let wrong = |problem| entry("vendor_keys", &raw.name)(problem);
        let line = vendor_key(&raw).map_err(wrong)?;
        check_beside(&line, &credentials.vendor_keys.0).map_err(wrong)?;
        credentials.vendor_keys.0.push(line);
    }
    Ok(credentials)
}

/// The parser's message without the text that it quotes from the file, which may be a secret.
fn without_secrets(text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .map(|span| format!("line {}: ", line_number(text, span.start)))
        .unwrap_or_default();
    match error.message().rsplit_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid ") => {
            format!("{line}expected {expected}")
        }
        Some((found, expected)) if found.starts_with("unknown field ") => {
            format!("{line}unknown field, expected {expected}")
        }
        _ => format!("{line}{}", error.message()),
    }
}

/// The number of the line at `offset`, from 1.
fn line_number(text: &str, offset: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

/// The name if it cannot be a misplaced secret, which would be longer or begin like a token; otherwise the number of its line.
fn printable_name(text: &str, name: &Spanned<String>) -> String {
    let is_name =
        KeyId::parse(name.get_ref()).is_some() && !name.get_ref().starts_with(TOKEN_PREFIX);
    if is_name {
        name.get_ref().clone()
    } else {
        format!("line {}", line_number(text, name.span().start))
    }
}

fn entry(table: &'static str, name: String) -> impl FnOnce(Problem) -> CredentialsError {
    move |problem| CredentialsError::Entry {
        table,
        name,
        problem,
    }
}

fn callback_token(name: &str, raw: &RawToken) -> Result<CallbackToken, Problem> {
    check_name(name)?;
    Ok(CallbackToken {
        hash: hash(&raw.token)?,
        lifetime: lifetime(raw.created, raw.expires)?,
        previous: raw.previous.as_ref().map(previous_token).transpose()?,
        bytes_per_minute_max: raw.bytes_per_minute_max.as_ref().map(size).transpose()?,
        bound: binding(raw.products.as_deref(), raw.labels.clone())?.map(Arc::new),
    })
}

fn signing_key(name: &str, raw: &RawKey) -> Result<(KeyId, SigningKey), Problem> {
    let id = KeyId::parse(name)
        .ok_or("a key's name has 1 to 32 characters of a-z, A-Z, 0-9, '.', '_' and '-'")?;
    let parse = |secret: &str| {
        let problem = || {
            format!(
                "the secret is not base64url of {SECRET_BYTES_MIN} bytes or more: `blobcast token new` makes one"
            )
        };
        Secret::parse_base64(secret).ok_or_else(problem)
    };
    let previous = |raw: &RawPreviousSecret| {
        Ok::<_, Problem>((
            in_previous(parse(&raw.secret))?,
            lifetime(raw.created, raw.expires)?,
        ))
    };

    let secret = parse(&raw.secret)?;
    let previous = raw.previous.as_ref().map(previous).transpose()?;
    let lifetime = lifetime(raw.created, raw.expires)?;
    let bytes_per_minute_max = raw.bytes_per_minute_max.as_ref().map(size).transpose()?;
    let bound = binding(raw.products.as_deref(), raw.labels.clone())?.map(Arc::new);

    Ok((
        id,
        SigningKey {
            secret,
            lifetime,
            previous,
            bytes_per_minute_max,
            bound,
        },
    ))
}

fn body_secret(raw: &RawBodySignature) -> Result<BodySecret, CredentialsError> {
    let of = |field: &'static str| entry("body_signature", field.to_owned());
    let empty = || "is empty: take it from your RunBlob account".to_owned();
    let previous = raw.previous.as_ref().map(|raw| {
        let secret = Secret::of_text(&raw.secret).ok_or_else(|| of("previous")(empty()))?;
        Ok::<_, CredentialsError>((
            secret,
            lifetime(raw.created, raw.expires).map_err(of("previous"))?,
        ))
    });
    Ok(BodySecret {
        secret: Secret::of_text(&raw.secret).ok_or_else(|| of("secret")(empty()))?,
        lifetime: lifetime(raw.created, raw.expires).map_err(of("expires"))?,
        previous: previous.transpose()?,
    })
}

fn previous_token(raw: &RawPreviousToken) -> Result<(TokenHash, Lifetime), Problem> {
    Ok((
        in_previous(hash(&raw.token))?,
        lifetime(raw.created, raw.expires)?,
    ))
}

fn in_previous<T>(parsed: Result<T, Problem>) -> Result<T, Problem> {
    parsed.map_err(|problem| format!("in `previous`, {problem}"))
}

fn check_name(name: &str) -> Result<(), Problem> {
    let fits = name.len() <= NAME_BYTES_MAX;
    fits.then_some(())
        .ok_or_else(|| format!("a name has at most {NAME_BYTES_MAX} bytes"))
}

/// The client of a line, once for its current proof and once for its previous token.
fn client_line(name: &str, raw: &RawClient) -> Result<ClientLine, Problem> {
    let client = client(name, raw)?;
    let previous: Previous<TokenHash> = match (&raw.previous, &client.proof) {
        (None, _) => None,
        (Some(previous), Proof::Token(_)) => Some(previous_token(previous)?),
        (Some(_), Proof::Certificate(_)) => {
            return Err(
                "has a `previous` token, but uses a certificate: leave `previous` out".to_owned(),
            );
        }
    };

    let previous = previous.map(|(hash, lifetime)| {
        let (proof, generation) = (Proof::Token(hash), Generation::Previous);
        Arc::new(Client {
            proof,
            lifetime,
            generation,
            ..client.clone()
        })
    });
    Ok(ClientLine {
        client: Arc::new(client),
        previous,
    })
}

fn client(name: &str, raw: &RawClient) -> Result<Client, Problem> {
    check_name(name)?;
    let proof = match (&raw.token, &raw.certificate) {
        (Some(token), None) => Proof::Token(hash(token)?),
        (None, Some(name)) if !name.is_empty() => Proof::Certificate(name.clone()),
        _ => return Err("needs either `token` or `certificate`".to_owned()),
    };

    let products = match raw.products.as_slice() {
        // A client for backups only.
        [] if raw.backup => Products::Only(BTreeSet::new()),
        [] => {
            let problem = "may see nothing: name `products`, [\"*\"] for all, or `backup = true` for a client that only takes backups";
            return Err(problem.to_owned());
        }
        some => products(some)?,
    };

    let labels = labels(raw.labels.clone())?;
    if raw.admin && labels.is_some() {
        return Err(
            "is bound to `labels`, and an administrator sees everything: leave out one of them"
                .to_owned(),
        );
    }
    if raw.backup && labels.is_some() {
        return Err(
            "is bound to `labels`, and a backup holds everything: leave out one of them".to_owned(),
        );
    }
    if raw.subscriptions_max == Some(0) || raw.task_ids_max == Some(0) {
        return Err(
            "a limit of 0 lets nothing through: leave it out, or remove the client".to_owned(),
        );
    }

    Ok(Client {
        name: name.into(),
        products,
        labels: labels.map(Arc::new),
        admin: raw.admin,
        backup: raw.backup,
        subscriptions_max: raw.subscriptions_max,
        task_ids_max: raw.task_ids_max,
        proof,
        lifetime: lifetime(raw.created, raw.expires)?,
        generation: Generation::Current,
        certificate: None,
    })
}

fn hash(text: &str) -> Result<TokenHash, Problem> {
    let problem =
        "the token is not `sha256:` and 64 hexadecimal digits: `blobcast token new` makes the line";
    TokenHash::parse(text).ok_or_else(|| problem.to_owned())
}

fn size(raw: &RawSize) -> Result<u64, Problem> {
    match raw {
        RawSize::Bytes(bytes) => Ok(*bytes),
        // The message does not quote the text: it may be a misplaced secret.
        RawSize::Text(text) => parse_size(text).map_err(|_| {
            "bytes_per_minute_max is no size: write \"128MiB\", or 0 for no limit".to_owned()
        }),
    }
}

fn lifetime(created: Option<Datetime>, expires: Option<Datetime>) -> Result<Lifetime, Problem> {
    Ok(Lifetime {
        created: created.map(timestamp).transpose()?,
        expires: expires.map(timestamp).transpose()?,
    })
}

/// A TOML date or time as a point in time. A date means its first moment; a time without an offset is UTC.
pub(super) fn timestamp(time: Datetime) -> Result<Timestamp, Problem> {
    let text = time.to_string();
    let utc = |civil: civil::DateTime| civil.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp());
    let parsed = text
        .parse::<Timestamp>()
        .or_else(|_| text.parse::<civil::DateTime>().and_then(utc));
    parsed.map_err(|_| {
        format!("{text} is no point in time: write 2026-01-31 or 2026-01-31T12:00:00Z")
    })
}
