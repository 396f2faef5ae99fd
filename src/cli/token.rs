//! `token`: makes secrets, and the lines of the credentials file that stand for them. Works without a broker.

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::{
    args,
    output::{self, Format, Usage},
};
use crate::{
    credentials::{KeyId, TokenHash, new_secret},
    event::Product,
};

/// Makes tokens and keys for the credentials file.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  blobcast token new client billing --product veo --product sora
  blobcast token new client ops --all-products --admin --expires-in 90d
  blobcast token new callback runblob
  blobcast token new signing-key k1

Put the line into the file that `credentials_file` names, under the section it is printed with. The broker keeps only the
hash of a token, so it is printed here once and never again.")]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a new secret and print the line that stands for it.
    New(NewArgs),
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
    Callback(NameArgs),
    /// A key that signs callback URLs.
    SigningKey(NameArgs),
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
    /// It may use the admin service, too: subscriptions, quarantine, callback URLs.
    #[arg(long)]
    admin: bool,
}

#[derive(Args, Debug)]
struct NameArgs {
    /// Names it in lists and logs; a key's name also stands in the URLs it signs.
    name: String,
}

pub(super) fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    let TokenCommand::New(args) = args.command;
    let (section, name, rest, secret) = match &args.kind {
        Kind::Client(client) => {
            let secret = new_secret(true);
            ("clients", &client.name, client_fields(client, &secret)?, secret)
        }
        Kind::Callback(NameArgs { name }) => {
            let secret = new_secret(true);
            ("callback_tokens", name, format!("token = \"{}\"", TokenHash::of(&secret)), secret)
        }
        Kind::SigningKey(NameArgs { name }) => {
            if KeyId::parse(name).is_none() {
                let problem = "a key's name has 1 to 32 characters of a-z, A-Z, 0-9, '.', '_' and '-'";
                return Err(Usage(problem.to_owned()).into());
            }
            let secret = new_secret(false);
            ("signing_keys", name, format!("secret = \"{secret}\""), secret)
        }
    };
    let now = Timestamp::now();
    let seconds = |time: Timestamp| Timestamp::from_second(time.as_second()).unwrap_or(time);
    let mut line = format!("{} = {{ {rest}, created = {}", toml_key(name), seconds(now));
    if let Some(expires_in) = args.expires_in {
        let expires =
            now.checked_add(expires_in).map_err(|_| Usage("--expires-in is beyond the year 9999".to_owned()))?;
        line += &format!(", expires = {}", seconds(expires));
    }
    line += " }";
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
            output::emit(format!("{told}The line for the credentials file:\n\n  [{section}]\n  {line}\n").as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn client_fields(client: &ClientArgs, secret: &str) -> anyhow::Result<String> {
    let products = match client.products.as_slice() {
        [] if client.all_products => "\"*\"".to_owned(),
        [] => return Err(Usage("name what it may see: --product veo, or --all-products".to_owned()).into()),
        some => some.iter().map(|product| format!("\"{product}\"")).collect::<Vec<_>>().join(", "),
    };
    let admin = if client.admin { ", admin = true" } else { "" };
    Ok(format!("token = \"{}\", products = [{products}]{admin}", TokenHash::of(secret)))
}

/// Bare where TOML allows it.
fn toml_key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { toml::Value::from(name).to_string() }
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
