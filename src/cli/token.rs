//! `token`: makes secrets, and the lines of the credentials file that stand for them. Works without a broker. How one takes the
//! place of another is in `rotate`.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::{
    args,
    output::{self, Format, Usage},
    rotate::{self, RetireArgs, RotateArgs},
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
  blobcast token rotate client billing --credentials-file /etc/blobcast/credentials.toml
  blobcast token retire client billing --credentials-file /etc/blobcast/credentials.toml

Put the line into the file that `credentials_file` names, under the section it is printed with. The broker keeps only the \
hash of a token, so it is printed here once and never again.")]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a new secret and print the line that stands for it.
    New(NewArgs),
    /// Put a new secret into the credentials file, beside the old one, and print it.
    Rotate(RotateArgs),
    /// Take the old secret out of the credentials file, once nobody uses it.
    Retire(RetireArgs),
}

#[derive(Args, Debug)]
struct NewArgs {
    #[command(subcommand)]
    kind: Kind,
    /// Refuse it after this long from now, for example 90d [default: never].
    #[arg(long, value_name = "DURATION", value_parser = args::duration, global = true)]
    expires_in: Option<Duration>,
    /// For people, or one JSON object.
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
}

#[derive(Args, Debug)]
struct ClientArgs {
    /// Names the service in lists and logs.
    name: String,
    /// A product it may see, for example veo; repeat it for more.
    #[arg(long = "product", value_name = "PRODUCT", value_parser = Product::parse)]
    products: Vec<Product>,
    /// It may see every product, also those to come.
    #[arg(long, conflicts_with = "products")]
    all_products: bool,
    /// It may see only events with this label; repeat it for more, and events need all of them.
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
    /// Names it in lists and logs; a key's name also stands in the URLs it signs.
    name: String,
    /// A product that its callbacks may be of, for example veo; repeat it for more [default: any].
    #[arg(long = "product", value_name = "PRODUCT", value_parser = Product::parse)]
    products: Vec<Product>,
    /// A label that each of its events carries, whatever the URL says besides; repeat it for more.
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
    let (section, name, rest, secret) = match &args.kind {
        Kind::Client(client) => {
            let secret = new_secret(true);
            (
                "clients",
                &client.name,
                client_fields(client, &secret)?,
                secret,
            )
        }
        Kind::Callback(callback) => {
            let secret = new_secret(true);
            let fields = format!(
                "token = \"{}\"{}",
                TokenHash::of(&secret),
                bound_fields(callback)?
            );
            ("callback_tokens", &callback.name, fields, secret)
        }
        Kind::SigningKey(callback) => {
            let name = &callback.name;
            if KeyId::parse(name).is_none() {
                let problem =
                    "a key's name has 1 to 32 characters of a-z, A-Z, 0-9, '.', '_' and '-'";
                return Err(Usage(problem.to_owned()).into());
            }
            let secret = new_secret(false);
            (
                "signing_keys",
                name,
                format!("secret = \"{secret}\"{}", bound_fields(callback)?),
                secret,
            )
        }
    };
    let now = Timestamp::now();
    let seconds = |time: Timestamp| Timestamp::from_second(time.as_second()).unwrap_or(time);
    let mut line = format!("{} = {{ {rest}, created = {}", toml_key(name), seconds(now));
    if let Some(expires_in) = args.expires_in {
        if expires_in < Duration::from_secs(1) {
            return Err(Usage(
                "--expires-in is at least 1s: what has expired lets nobody in".to_owned(),
            )
            .into());
        }
        let expires = now
            .checked_add(expires_in)
            .map_err(|_| Usage("--expires-in is beyond the year 9999".to_owned()))?;
        line += &format!(", expires = {}", seconds(expires));
    }
    line += " }";
    // What the broker would refuse is refused here.
    Credentials::parse(&format!("[{section}]\n{line}\n"))
        .map_err(|error| Usage(error.to_string()))?;
    match args.output {
        Format::Json => {
            let json = json!({"section": section, "name": name, "line": line, "secret": secret});
            output::emit_json(&json)?;
        }
        Format::Pretty => {
            let told = match args.kind {
                Kind::SigningKey(_) => String::new(), // the line has it
                _ => format!("The token, shown this once:\n\n  {secret}\n\n"),
            };
            output::emit(
                format!("{told}The line for the credentials file:\n\n  [{section}]\n  {line}\n")
                    .as_bytes(),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn client_fields(client: &ClientArgs, secret: &str) -> anyhow::Result<String> {
    let products = match client.products.as_slice() {
        [] if client.all_products => ", products = [\"*\"]".to_owned(),
        // Without any it may do nothing but this.
        [] if client.backup && !client.admin => String::new(),
        [] => {
            let problem = "name what it may see: --product veo, or --all-products; or --backup alone for what takes backups";
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

/// `, labels = { team = "ads" }`, if there are any.
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

/// Bare where TOML allows it.
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
