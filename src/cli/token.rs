//! `token new`: makes secrets, and prints their lines for the credentials file. Needs no running
//! broker.
//!
//! Never writes the credentials file itself: `rotate` does, for secrets that are in it already.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::{
    args,
    output::{self, Format, Usage},
    rotate::{self, RetireArgs, RotateArgs},
    vendor_key::{self, VendorKeyArgs},
};
use crate::{
    credentials::{Credentials, KeyId, TokenHash, new_secret},
    event::Product,
};

/// Makes tokens and keys for the credentials file.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast token new client billing --product veo --product sora
  blobcast token new client ads --all-products --label team=ads
  blobcast token new client ops --all-products --admin --expires-in 90d
  blobcast token new client nightly --backup
  blobcast token new callback runblob
  blobcast token new callback ads --product veo --label team=ads
  blobcast token new signing-key k1
  blobcast token new vendor-key main --key-file /etc/blobcast/runblob-key
  blobcast token rotate client billing --credentials-file /etc/blobcast/credentials.toml
  blobcast token retire client billing --credentials-file /etc/blobcast/credentials.toml

Add the printed line to the file that `credentials_file` names, below the header of its section, \
which the file has only once. The file contains only the hash of a token, so the token is printed \
here once and never again.")]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a new secret and print its line for the credentials file.
    New(NewArgs),
    /// Put a new secret into the credentials file, beside the old one, and print it.
    Rotate(RotateArgs),
    /// Remove the old secret from the credentials file, once no client uses it.
    Retire(RetireArgs),
}

#[derive(Args, Debug)]
struct NewArgs {
    #[command(subcommand)]
    kind: Kind,
    /// Refuse the secret after this long from now, for example 90d [default: never].
    #[arg(long, value_name = "DURATION", value_parser = args::duration, global = true)]
    expires_in: Option<Duration>,
    /// How to print the result: text, or one JSON object.
    #[arg(long, value_name = "FORMAT", default_value = "pretty", global = true)]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// A bearer token for a service that reads events.
    Client(ClientArgs),
    /// A token for callback URLs: …/webhook/veo?token=…
    Callback(CallbackArgs),
    /// A key that signs callback URLs.
    SigningKey(CallbackArgs),
    /// A key for the vendor's API, which the vendor has made: see --key-file.
    VendorKey(VendorKeyArgs),
}

#[derive(Args, Debug)]
struct ClientArgs {
    /// Name of the service in lists and logs.
    name: String,
    /// A product that it may see, for example veo; repeat it for more.
    #[arg(long = "product", value_name = "PRODUCT", value_parser = Product::parse)]
    products: Vec<Product>,
    /// It may see every product, also future ones.
    #[arg(long, conflicts_with = "products")]
    all_products: bool,
    /// It may see only events with this label; repeat it for more: events need all of them.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::key_value)]
    labels: Vec<(String, String)>,
    /// It may use the admin service, too: subscriptions, quarantine, callback URLs.
    #[arg(long)]
    admin: bool,
    /// It may take backups, which hold every product; it needs neither a product nor --admin.
    #[arg(long)]
    backup: bool,
}

#[derive(Args, Debug)]
struct CallbackArgs {
    /// Name of the credential in lists and logs; a key's name is also in the URLs that it signs.
    name: String,
    /// A product that its callbacks may be for, for example veo; repeat it for more [default: any].
    #[arg(long = "product", value_name = "PRODUCT", value_parser = Product::parse)]
    products: Vec<Product>,
    /// A label that all its events get, whatever else the URL says; repeat it for more.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::key_value)]
    labels: Vec<(String, String)>,
}

pub(super) fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        TokenCommand::New(args) => new(&args),
        TokenCommand::Rotate(args) => rotate::rotate(args),
        TokenCommand::Retire(args) => rotate::retire(args),
    }
}

fn new(args: &NewArgs) -> anyhow::Result<ExitCode> {
    let made = match &args.kind {
        Kind::Client(client) => Made::client(client)?,
        Kind::Callback(callback) => Made::callback(callback)?,
        Kind::SigningKey(callback) => Made::signing_key(callback)?,
        Kind::VendorKey(_) if args.expires_in.is_some() => {
            let problem =
                "--expires-in is not for a vendor-key: the vendor says how long it is good";
            return Err(Usage(problem.to_owned()).into());
        }
        Kind::VendorKey(key) => return vendor_key::print(key, args.output),
    };
    let line = made.line(args.expires_in)?;

    // Refuses here whatever the broker would refuse.
    let Made {
        section,
        name,
        secret,
        ..
    } = made;

    Credentials::parse(&format!("[{section}]\n{line}\n"))
        .map_err(|error| Usage(error.to_string()))?;

    match args.output {
        Format::Json => {
            let json = json!({"section": section, "name": name, "line": line, "secret": secret});
            output::emit_json(&json)?;
        }
        Format::Pretty => {
            let token = match args.kind {
                Kind::SigningKey(_) => String::new(), // its secret is in the line
                _ => format!("The token, shown only this once:\n\n  {secret}\n\n"),
            };
            let next_step = next_step(&args.kind);
            output::emit(
                format!(
                    "{token}Add this line to the credentials file, below its header [{section}]; a \
                     file has each header once:\n\n  {line}\n\nNext: {next_step}. A running broker \
                     applies the change within a second.\n"
                )
                .as_bytes(),
            )?;
        }
    }

    Ok(ExitCode::SUCCESS)
}

/// A new secret, and the parts of its line in the credentials file.
struct Made<'a> {
    section: &'static str,
    name: &'a str,
    /// The fields that depend on the kind, as TOML.
    fields: String,
    secret: String,
}

impl<'a> Made<'a> {
    fn client(client: &'a ClientArgs) -> anyhow::Result<Self> {
        let secret = new_secret(true);
        Ok(Self {
            section: "clients",
            name: &client.name,
            fields: client_fields(client, &secret)?,
            secret,
        })
    }

    fn callback(callback: &'a CallbackArgs) -> anyhow::Result<Self> {
        let secret = new_secret(true);
        let (hash, bound) = (TokenHash::of(&secret), bound_fields(callback)?);
        Ok(Self {
            section: "callback_tokens",
            name: &callback.name,
            fields: format!("token = \"{hash}\"{bound}"),
            secret,
        })
    }

    fn signing_key(callback: &'a CallbackArgs) -> anyhow::Result<Self> {
        if KeyId::parse(&callback.name).is_none() {
            let problem = "a key's name has 1 to 32 characters of a-z, A-Z, 0-9, '.', '_' and '-'";
            return Err(Usage(problem.to_owned()).into());
        }
        let secret = new_secret(false);
        Ok(Self {
            section: "signing_keys",
            name: &callback.name,
            fields: format!("secret = \"{secret}\"{}", bound_fields(callback)?),
            secret,
        })
    }

    /// The line for the credentials file.
    fn line(&self, expires_in: Option<Duration>) -> Result<String, Usage> {
        let now = Timestamp::now();
        let seconds = |time: Timestamp| Timestamp::from_second(time.as_second()).unwrap_or(time);
        let expires = match expires_in {
            None => String::new(),
            Some(expires_in) if expires_in < Duration::from_secs(1) => {
                let problem = "--expires-in is at least 1s: the secret would never be valid";
                return Err(Usage(problem.to_owned()));
            }
            Some(expires_in) => {
                let expires = now
                    .checked_add(expires_in)
                    .map_err(|_| Usage("--expires-in is beyond the year 9999".to_owned()))?;
                format!(", expires = {}", seconds(expires))
            }
        };

        let (key, fields) = (toml_key(self.name), &self.fields);
        let created = seconds(now);
        Ok(format!(
            "{key} = {{ {fields}, created = {created}{expires} }}"
        ))
    }
}

/// What to do once the line is in the file.
fn next_step(kind: &Kind) -> &'static str {
    match kind {
        Kind::Client(_) => {
            "give the token to the service; the client verbs take it from --token-file or \
             BLOBCAST_TOKEN"
        }
        Kind::Callback(_) => {
            "give RunBlob the callback URL with this token: …/webhook/PRODUCT?token=…"
        }
        Kind::SigningKey(_) => "mint callback URLs with `blobcast url`",
        Kind::VendorKey(_) => "set `reconcile.enabled`",
    }
}

fn client_fields(client: &ClientArgs, secret: &str) -> anyhow::Result<String> {
    let products = match client.products.as_slice() {
        [] if client.all_products => ", products = [\"*\"]".to_owned(),
        // Without a product it may take backups and nothing else.
        [] if client.backup && !client.admin => String::new(),
        [] => {
            let problem = "name the products that it may see: --product veo, or --all-products; or --backup alone for a client that takes backups";
            return Err(Usage(problem.to_owned()).into());
        }
        some => format!(", products = [{}]", quoted(some)),
    };
    let labels = labels_field(&client.labels)?;
    let admin = if client.admin { ", admin = true" } else { "" };
    let backup = if client.backup { ", backup = true" } else { "" };
    Ok(format!(
        "token = \"{}\"{products}{labels}{admin}{backup}",
        TokenHash::of(secret)
    ))
}

fn bound_fields(callback: &CallbackArgs) -> anyhow::Result<String> {
    let products = match callback.products.as_slice() {
        [] => String::new(),
        some => format!(", products = [{}]", quoted(some)),
    };
    Ok(products + &labels_field(&callback.labels)?)
}

fn quoted(products: &[Product]) -> String {
    products
        .iter()
        .map(|product| format!("\"{product}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `, labels = { team = "ads" }`; empty without labels.
fn labels_field(labels: &[(String, String)]) -> anyhow::Result<String> {
    let mut sorted = BTreeMap::new();
    for (key, value) in labels {
        if sorted.insert(key, value).is_some() {
            return Err(Usage(format!(
                "--label {key}=… is given twice: a label has one value"
            ))
            .into());
        }
    }
    let label = |(key, value): (&String, &String)| {
        format!("{} = {}", toml_key(key), toml::Value::from(value.as_str()))
    };
    let labels: Vec<_> = sorted.into_iter().map(label).collect();
    Ok(if labels.is_empty() {
        String::new()
    } else {
        format!(", labels = {{ {} }}", labels.join(", "))
    })
}

/// A TOML key, quoted if necessary.
fn toml_key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare {
        name.to_owned()
    } else {
        toml::Value::from(name).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_where_it_has_to_be() {
        assert_eq!(toml_key("a-b_1"), "a-b_1");
        assert_eq!(toml_key("2026.b"), "\"2026.b\"");
        assert_eq!(toml_key("a b"), "\"a b\"");
        let quoted = toml_key("a\"b");
        let table: toml::Table = toml::from_str(&format!("{quoted} = 1")).unwrap();
        assert_eq!(table.keys().next().unwrap(), "a\"b");
    }
}
