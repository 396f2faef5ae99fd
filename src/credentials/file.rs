//! The file's form. Every mistake is told with its table and name; what cannot be meant is refused as a whole, so that a
//! half-read file never lets anyone in or locks everyone out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{Timestamp, civil, tz::TimeZone};
use serde::Deserialize;
use toml::{Spanned, value::Datetime};

use super::{
    BodySecret, CallbackToken, Client, Credentials, Generation, KeyId, Known, Lifetime, Previous,
    Products, Proof, Secret, SigningKey, TokenHash,
    binding::{binding, labels, products},
    secret::{SECRET_BYTES_MIN, TOKEN_PREFIX},
};
use crate::{event::Labels, size::parse_size};

/// Longest name of a token or a client: each event carries the one it came by.
const NAME_BYTES_MAX: usize = 128;

/// Why the file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Not TOML, or not of the form.
    #[error("{0}")]
    Form(String),
    /// An entry that cannot be.
    #[error("[{table}] {name}: {problem}")]
    Entry {
        /// The table.
        table: &'static str,
        /// The entry, or the line where it begins, if what stands there may be a secret.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    callback_tokens: BTreeMap<Spanned<String>, RawToken>,
    signing_keys: BTreeMap<Spanned<String>, RawKey>,
    body_signature: Option<RawBodySignature>,
    clients: BTreeMap<Spanned<String>, RawClient>,
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

/// As in the configuration.
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

pub(super) fn parse(text: &str) -> Result<Credentials, CredentialsError> {
    // The parser quotes the line it stumbles over, and that may be one with a secret.
    let file: File = toml::from_str(text)
        .map_err(|error| CredentialsError::Form(without_secrets(text, &error)))?;
    let entry = |table, name: &Spanned<String>| entry(table, told(text, name));
    let mut credentials = Credentials::default();
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
    let mut names: Vec<(Proof, String)> = Vec::new();
    for (name, raw) in file.clients {
        let known = known(name.get_ref(), &raw).map_err(entry("clients", &name))?;
        for client in known.all() {
            if let Some((_, other)) = names.iter().find(|(proof, _)| *proof == client.proof) {
                let problem = format!(
                    "shows the same as {other}: give each client its own token or certificate"
                );
                return Err(entry("clients", &name)(problem));
            }
            names.push((client.proof.clone(), told(text, &name)));
        }
        credentials.clients.insert(name.into_inner().into(), known);
    }
    Ok(credentials)
}

/// What a message says: never what stands in the file where it is not expected, for that may be a secret.
fn without_secrets(text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .map(|span| format!("line {}: ", line(text, span.start)))
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

/// Counted from 1.
fn line(text: &str, offset: usize) -> usize {
    text.as_bytes()
        .iter()
        .take(offset)
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

/// A name that looks like one, or its line: a secret in its place is longer, or a token.
fn told(text: &str, name: &Spanned<String>) -> String {
    let is_name =
        KeyId::parse(name.get_ref()).is_some() && !name.get_ref().starts_with(TOKEN_PREFIX);
    if is_name {
        name.get_ref().clone()
    } else {
        format!("line {}", line(text, name.span().start))
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

/// The client, and the same as it is let in by the token before.
fn known(name: &str, raw: &RawClient) -> Result<Known, Problem> {
    let client = client(name, raw)?;
    let previous: Previous<TokenHash> = match (&raw.previous, &client.proof) {
        (None, _) => None,
        (Some(previous), Proof::Token(_)) => Some(previous_token(previous)?),
        (Some(_), Proof::Certificate(_)) => {
            return Err(
                "has a `previous` token, and is known by its certificate: leave it out".to_owned(),
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
    Ok(Known {
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
        // It takes backups, and reads nothing else.
        [] if raw.backup => Products::Only(BTreeSet::new()),
        [] => {
            let problem = "may see nothing: name `products`, [\"*\"] for all, or `backup = true` for what takes backups only";
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
        shown: None,
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
        // Not what stands there: it may be a secret.
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

/// A date stands for its beginning, and a time without an offset is UTC.
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
